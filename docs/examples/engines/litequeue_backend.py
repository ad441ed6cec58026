"""litequeue: a message queue in an SQLite file, presented through the contract.

    PYTHONPATH=docs/examples/engines pytest --conformance=litequeue_backend:Harness

What it has: ``put`` with an idempotency key, ``pop``, which takes the oldest ready message and counts the claim;
``done``, ``mark_failed`` and ``retry``, each refused unless the claim still holds the message; all of them durable.

What it has no counterpart for: a time from which a message is due, results, error texts, cancelling, leases of single
claims (a message that is locked stays so until somebody calls ``retry_expired`` with an age of his choice; the adapter
takes the 30 seconds of litequeue's README), taking several messages in one step, and removing only the old ones.

It reads the clock through its module global ``time_ns``; this adapter puts the caller's ``now`` there for the length of
a call. It counts nanoseconds in 64 bits, so that its calendar ends in the year 2262.

What the adapter reads from the table itself, since the API has no such look-up: a message by its idempotency key, and
the listing.
"""

# ruff: noqa: ARG002 - the parameters are those of the contract, also where an engine has no use for them

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import litequeue
from engine_backend import (
    EngineBackend,
    EngineHarness,
    folder,
    from_fields,
    from_microseconds,
    to_fields,
    to_microseconds,
)
from litequeue import IdempotencyConflict, LiteQueue, Message, MessageStatus

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS = {
    MessageStatus.READY: TaskStatus.PENDING,
    MessageStatus.LOCKED: TaskStatus.RUNNING,
    MessageStatus.DONE: TaskStatus.SUCCESS,
    MessageStatus.FAILED: TaskStatus.FAILED,
}
_HELD: Final = timedelta(seconds=30)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_LAST_OF_LITEQUEUE: Final = from_microseconds((2**63 - 1) // 1000)  # it counts nanoseconds: in the year 2262
_now = threading.local()


def _time_ns() -> int:
    now = getattr(_now, "ns", None)
    return time.time_ns() if now is None else now


litequeue.time_ns = _time_ns


class LiteQueueBackend(EngineBackend):
    """A handle on a litequeue file."""

    async def open(self, thread: ThreadPoolExecutor) -> LiteQueue:
        """Open the file."""
        path = folder() / f"{self._store}.litequeue"
        return await asyncio.get_running_loop().run_in_executor(thread, LiteQueue, path)

    async def shut(self, engine: LiteQueue, thread: ThreadPoolExecutor) -> None:
        """Close it."""
        await asyncio.get_running_loop().run_in_executor(thread, engine.close)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Put the messages in one transaction, with the task's id as the idempotency key.

        A replay with the same data is no error to litequeue; a mark in the data, new for each call, makes it one.
        When a task is due is not known to the engine.
        """
        mark = uuid.uuid4().hex
        messages = [(task.id, json.dumps({**to_fields(task), "mark": mark, "n": n})) for n, task in enumerate(tasks)]

        def step(queue: LiteQueue) -> None:
            if messages:
                with queue.transaction(mode="IMMEDIATE"):
                    for key, data in messages:
                        queue.put(data, idempotency_key=key)

        try:
            await self.run_blocking(step)
        except IdempotencyConflict as conflict:  # names the first; the contract asks for all
            known = [task.id for task in tasks if await self.get(task.id) is not None]
            twice = [task.id for task in tasks if sum(other.id == task.id for other in tasks) > 1]
            raise TaskExists(list(dict.fromkeys([*known, *twice]))) from conflict

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Pop up to ``limit`` messages, each in a transaction of its own. Every lock is taken to hold 30 seconds."""
        del lease_expires_at

        def step(queue: LiteQueue) -> list[Task]:
            claimed = []
            with _at(now):
                while len(claimed) < limit and (message := queue.pop()) is not None:
                    claimed.append(_task(message))
            return claimed

        return await self.run_blocking(step)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Raise: a lock is as old as its claim."""
        if not claims:
            return []
        raise self.missing("litequeue cannot renew a lock")

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Mark as done. The value is lost: litequeue keeps no results."""
        del value

        def step(queue: LiteQueue) -> None:
            with _at(now):
                self._check(queue.done(_find(queue, task_id).message_id, claim_id=attempt), queue, task_id, attempt)

        await self.run_blocking(step)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Mark as failed or, if the budget allows, as ready again, at once. The failure itself is lost."""

        def step(queue: LiteQueue) -> Task:
            message = _find(queue, task_id)
            task = _task(message)
            lease = task.lease_expires_at
            if if_expired and task.attempts == attempt and lease is not None and lease > failure.failed_at:
                raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts, lease_expires_at=lease)
            retry = failure.retry_at is not None and attempt < json.loads(message.data)["max_retries"]
            with _at(failure.failed_at):
                end = queue.retry if retry else queue.mark_failed
                self._check(end(message.message_id, claim_id=attempt), queue, task_id, attempt)
            return _task(_find(queue, task_id))

        return await self.run_blocking(step)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Raise, unless the message has ended: it cannot be taken back."""
        if (task := await self.get(task_id)) is None:
            raise TaskNotFound(task_id)
        if task.status.ended:
            return False
        raise self.missing("litequeue has no cancelling")

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List the locks that are 30 seconds old, and sort them."""

        def step(queue: LiteQueue) -> list[Task]:
            # Half a microsecond less, since litequeue asks for more than the age, and the contract for as much.
            with _at(now):
                locked = list(queue.list_locked(_HELD.total_seconds() - 5e-7))
            return [_task(message) for message in sorted(locked, key=lambda each: each.lock_time or 0)][:limit]

        return await self.run_blocking(step)

    async def next_due(self) -> datetime | None:
        """Look at the locks, if nothing is ready; what is ready is due since it was put."""

        def step(queue: LiteQueue) -> datetime | None:
            if (message := queue.peek()) is not None:
                return _task(message).enqueued_at
            with _at(_LAST_OF_LITEQUEUE):
                leases = [_lease(message) for message in queue.list_locked(0)]
            return min((lease for lease in leases if lease is not None), default=None)

        return await self.run_blocking(step)

    async def get(self, task_id: str) -> Task | None:
        """Read the message with this key, from the table."""

        def step(queue: LiteQueue) -> Task | None:
            try:
                return _task(_find(queue, task_id))
            except TaskNotFound:
                return None

        return await self.run_blocking(step)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List the messages in the order of their rows, from the table."""

        def step(queue: LiteQueue) -> tuple[list[Task], str | None]:
            rows = queue.conn.execute(
                f"SELECT rowid, * FROM {queue.table} WHERE rowid > ? ORDER BY rowid",  # noqa: S608 - a constant
                (int(after or 0),),
            )
            found: list[Task] = []
            cursor = after
            for row in rows.fetchall():
                if len(found) == limit:
                    return found, cursor
                task = _task(_message(row))
                if status in {None, task.status}:
                    found.append(task)
                cursor = str(row["rowid"])
            return found, after if limit == 0 else None

        return await self.run_blocking(step)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Ask for the four counts that litequeue keeps; nothing is ever cancelled."""
        return await self.run_blocking(
            lambda queue: {
                TaskStatus.PENDING: queue.ready_count(),
                TaskStatus.RUNNING: queue.locked_count(),
                TaskStatus.SUCCESS: queue.done_count(),
                TaskStatus.FAILED: queue.failed_count(),
                TaskStatus.CANCELLED: 0,
            }
        )

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Raise: ``prune`` removes all that has ended, however short a time ago."""
        raise self.missing("litequeue's prune knows no age and no limit")

    def _check(self, done: bool, queue: LiteQueue, task_id: str, attempt: int) -> None:  # noqa: FBT001 - its answer
        if not done:
            task = _task(_find(queue, task_id))
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)


class Harness(EngineHarness):
    """``--conformance=litequeue_backend:Harness``."""

    def backend(self, store: str) -> LiteQueueBackend:
        """Return a handle on the file of this name."""
        return LiteQueueBackend(store)


@contextmanager
def _at(now: datetime) -> "Iterator[None]":
    _now.ns = to_microseconds(now) * 1000
    try:
        yield
    finally:
        _now.ns = None


def _find(queue: LiteQueue, task_id: str) -> Message:
    row = queue.conn.execute(
        f"SELECT * FROM {queue.table} WHERE idempotency_key = ?",  # noqa: S608 - a constant
        (task_id,),
    ).fetchone()
    if row is None:
        raise TaskNotFound(task_id)
    return _message(row)


def _message(row: Any) -> Message:
    fields = {name: row[name] for name in Message.__dataclass_fields__}
    return Message(**{**fields, "status": MessageStatus(row["status"])})


def _task(message: Message) -> Task:
    return from_fields(
        json.loads(message.data),
        status=_STATUS[message.status],
        attempts=message.claim_id,
        started_at=_instant(message.lock_time),
        lease_expires_at=_lease(message),
        finished_at=_instant(message.done_time),
    )


def _lease(message: Message) -> datetime | None:
    if message.status is not MessageStatus.LOCKED or message.lock_time is None:
        return None
    return from_microseconds(min(message.lock_time // 1000 + _HELD // _MICROSECOND, to_microseconds(_LAST)))


def _instant(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else from_microseconds(nanoseconds // 1000)
