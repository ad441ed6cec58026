"""huey's SQLite storage, presented through the contract.

    PYTHONPATH=docs/examples/engines pytest --conformance=huey_backend:Harness

It speaks to ``SqliteStorage``, the layer under ``SqliteHuey`` and its consumer, and does in ``claim`` what the
consumer's scheduler and worker do: ``read_schedule(now)``, ``enqueue`` what that gave, ``dequeue``. What the storage
has: a queue,
a schedule that is asked with an instant of the caller's, results by key that can be read again and again, revoking of
what has not started.

huey takes a task out of the store when it hands it to a worker: the worker has it in memory, puts its result, and
enqueues it again for a retry. So here the handle that claimed keeps the task in its memory, with attempts and failures,
and writes them with the result or the retry. Other handles do not see what runs; when the process dies it is gone.
There are no leases (the handle remembers those that it was given), ids are not compared, and several tasks are enqueued
in several steps.
"""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from engine_backend import EngineBackend, EngineHarness, NotInEngine, folder, from_microseconds, to_microseconds
from huey.constants import EmptyData
from huey.storage import SqliteStorage

from taskqueue import Failure, StaleClaim, Task, TaskNotFound, TaskStatus


class HueyBackend(EngineBackend):
    """A handle on a huey file. It has the tasks that it claimed in its memory, as a consumer has."""

    def __init__(self, store: str) -> None:
        super().__init__(store)
        self._running: dict[str, Task] = {}

    async def open(self, thread: ThreadPoolExecutor) -> SqliteStorage:
        """Open the file, in huey's default settings but for ``strict_fifo``, which keeps the order of enqueueing."""
        path = str(folder() / f"{self._store}.huey")
        return await asyncio.get_running_loop().run_in_executor(
            thread, lambda: SqliteStorage(filename=path, strict_fifo=True)
        )

    async def shut(self, engine: SqliteStorage, thread: ThreadPoolExecutor) -> None:
        """Close it. What this handle has claimed is forgotten, as by a consumer that ends."""
        self._running.clear()
        await asyncio.get_running_loop().run_in_executor(thread, engine.close)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add each task to the schedule, one after the other. A known id is no error to huey."""

        def step(storage: SqliteStorage) -> None:
            for task in tasks:
                storage.add_to_schedule(_encode(task), task.available_at)

        await self.run_blocking(step)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Move what is due from the schedule to the queue, and take up to ``limit`` tasks out of the queue."""

        def step(storage: SqliteStorage) -> list[Task]:
            if limit:
                for data in storage.read_schedule(now):
                    storage.enqueue(data)
            claimed: list[Task] = []
            while len(claimed) < limit and (data := storage.dequeue()) is not None:
                task = _decode(data)
                if storage.has_data_for_key(f"r:{task.id}"):  # revoked: a consumer drops it
                    continue
                running = replace(
                    task,
                    status=TaskStatus.RUNNING,
                    attempts=task.attempts + 1,
                    started_at=now,
                    lease_expires_at=lease_expires_at,
                )
                self._running[task.id] = running
                claimed.append(running)
            return claimed

        return await self.run_blocking(step)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Change what this handle remembers: huey has no leases."""

        def step(storage: SqliteStorage) -> list[tuple[str, int]]:
            del storage
            held = []
            for task_id, attempt in claims:
                task = self._running.get(task_id)
                if task is not None and task.attempts == attempt and task.lease_expires_at is not None:
                    later = max(task.lease_expires_at, lease_expires_at)
                    self._running[task_id] = replace(task, lease_expires_at=later)
                    held.append((task_id, attempt))
            return held

        return await self.run_blocking(step)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Put the result, if it was this handle that took the task."""

        def step(storage: SqliteStorage) -> None:
            task = self._held(storage, task_id, attempt)
            self._end(storage, task, status=TaskStatus.SUCCESS, value=value, finished_at=now)

        await self.run_blocking(step)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Put the error as the result, or add the task to the schedule again, as a consumer does for a retry."""

        def step(storage: SqliteStorage) -> Task:
            task = self._held(storage, task_id, attempt)
            lease = task.lease_expires_at
            if if_expired and lease is not None and lease > failure.failed_at:
                raise StaleClaim(task_id, attempt, status=task.status, attempts=attempt, lease_expires_at=lease)
            if failure.retry_at is None or attempt >= task.max_retries:
                last = replace(failure, retry_at=None)
                failures = (*task.failures, last)
                return self._end(
                    storage, task, status=TaskStatus.FAILED, failures=failures, finished_at=failure.failed_at
                )
            task = replace(
                task,
                status=TaskStatus.PENDING,
                available_at=failure.retry_at,
                lease_expires_at=None,
                failures=(*task.failures, failure),
            )
            storage.add_to_schedule(_encode(task), failure.retry_at)
            del self._running[task_id]
            return task

        return await self.run_blocking(step)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Put the mark by which huey's consumer drops a task that it takes; what runs is not reached by it."""

        def step(storage: SqliteStorage) -> bool:
            task = self._find(storage, task_id)
            if task.status is not TaskStatus.PENDING:
                if task.status is TaskStatus.RUNNING:
                    raise NotInEngine("huey cannot revoke a task that runs")
                return False
            storage.put_data(f"r:{task_id}", _encode(replace(task, status=TaskStatus.CANCELLED, finished_at=now)))
            return True

        return await self.run_blocking(step)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List what this handle holds; what others hold nobody knows."""

        def step(storage: SqliteStorage) -> list[Task]:
            del storage
            expired = [task for task in self._running.values() if _lease(task) <= now]
            return sorted(expired, key=_lease)[:limit]

        return await self.run_blocking(step)

    async def next_due(self) -> datetime | None:
        """Look through the queue, the schedule, and this handle's memory."""

        def step(storage: SqliteStorage) -> datetime | None:
            tasks = [task for task in self._all(storage) if not task.status.ended]
            return min((task.lease_expires_at or task.available_at for task in tasks), default=None)

        return await self.run_blocking(step)

    async def get(self, task_id: str) -> Task | None:
        """Look for the result, then in this handle's memory, then through the queue and the schedule."""

        def step(storage: SqliteStorage) -> Task | None:
            try:
                return self._find(storage, task_id)
            except TaskNotFound:
                return None

        return await self.run_blocking(step)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List results, memory, queue and schedule by ``enqueued_at``: huey keeps no order over all of them."""

        def step(storage: SqliteStorage) -> tuple[list[Task], str | None]:
            if not limit:
                return [], after
            found = sorted(self._all(storage), key=lambda task: task.enqueued_at)
            found = [task for task in found if status in {None, task.status}]
            end = int(after or 0) + limit
            return found[int(after or 0) : end], str(end) if end < len(found) else None

        return await self.run_blocking(step)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Count queue, schedule and results, and this handle's memory."""

        def step(storage: SqliteStorage) -> dict[TaskStatus, int]:
            found = [task.status for task in self._all(storage)]
            return {status: found.count(status) for status in TaskStatus}

        return await self.run_blocking(step)

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Look through the results, and delete them by key, one after the other."""

        def step(storage: SqliteStorage) -> int:
            ended = [(task.finished_at, key) for key, data in storage.result_items().items() if (task := _decode(data))]
            old = sorted((at, key) for at, key in ended if at is not None and at < finished_before)[:limit]
            for _, key in old:
                storage.delete_data(key)
            return len(old)

        return await self.run_blocking(step)

    def _held(self, storage: SqliteStorage, task_id: str, attempt: int) -> Task:
        task = self._running.get(task_id)
        if task is None:
            task = self._find(storage, task_id)
        if task.status is not TaskStatus.RUNNING or task.attempts != attempt:
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return task

    def _end(self, storage: SqliteStorage, task: Task, **changes: Any) -> Task:
        task = replace(task, lease_expires_at=None, **changes)
        storage.put_data(task.id, _encode(task), is_result=True)
        del self._running[task.id]
        return task

    def _find(self, storage: SqliteStorage, task_id: str) -> Task:
        for key in (task_id, f"r:{task_id}"):
            if (data := storage.peek_data(key)) is not EmptyData:
                return _decode(data)
        if task_id in self._running:
            return self._running[task_id]
        for data in (*storage.enqueued_items(), *storage.scheduled_items()):
            if (task := _decode(data)).id == task_id:
                return task
        raise TaskNotFound(task_id)

    def _all(self, storage: SqliteStorage) -> list[Task]:
        ended = [_decode(data) for data in storage.result_items().values()]
        waiting = [_decode(data) for data in (*storage.enqueued_items(), *storage.scheduled_items())]
        known = {task.id for task in ended}
        return [*ended, *self._running.values(), *(task for task in waiting if task.id not in known)]


class Harness(EngineHarness):
    """``--conformance=huey_backend:Harness``."""

    def backend(self, store: str) -> HueyBackend:
        """Return a handle on the file of this name."""
        return HueyBackend(store)


def _lease(task: Task) -> datetime:
    assert task.lease_expires_at is not None  # noqa: S101 - what runs has one
    return task.lease_expires_at


def _encode(task: Task) -> bytes:
    """Return the whole task as JSON: huey's message is what the application puts into it."""
    fields = asdict(task)
    for name in ("payload", "value"):
        fields[name] = None if fields[name] is None else base64.b64encode(fields[name]).decode()
    return json.dumps(fields, default=to_microseconds).encode()


def _decode(data: bytes) -> Task:
    def with_instants(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name: from_microseconds(value) if name.endswith("_at") and value is not None else value
            for name, value in fields.items()
        }

    fields = json.loads(bytes(data), object_hook=with_instants)
    for name in ("payload", "value"):
        fields[name] = None if fields[name] is None else base64.b64decode(fields[name])
    failures = tuple(Failure(**failure) for failure in fields.pop("failures"))
    return Task(**{**fields, "status": TaskStatus(fields["status"])}, failures=failures)
