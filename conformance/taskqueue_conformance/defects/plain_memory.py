"""A correct backend in memory, taken apart into small steps, so that one step can be replaced by a wrong one."""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar, Final, Self
from weakref import WeakSet, WeakValueDictionary

from taskqueue import Failure, NotConnected, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus

Waiter = asyncio.Future[None]

LOCK: Final = threading.RLock()
"""Held for every step; a fork waits for it, so that a child never sees half a step."""
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class Store:
    """The tasks of one store, by id in the order of enqueueing. Every public method is one step, made under LOCK."""

    def __init__(self) -> None:
        self.stored: dict[str, Task] = {}
        self.number: dict[str, int] = {}
        self.last_number = 0
        self.waiters: set[Waiter] = set()

    # What each call does.

    def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add all or none."""
        offending = self.offending(tasks)
        if offending:
            raise TaskExists(offending)
        for task in tasks:
            self.add(task)
        self.changed()

    def claim(self, now: datetime, limit: int, lease_expires_at: datetime) -> list[Task]:
        """Take due tasks, the first in order first."""
        return self.take(self.choose(now, limit), now, lease_expires_at)

    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        """Lengthen the leases that are held."""
        held = []
        for task_id, attempt in claims:
            task = self.stored.get(task_id)
            if task is not None and self.may_extend(task, attempt):
                self.put(self.extended(task, lease_expires_at))
                held.append((task_id, attempt))
        self.changed()
        return held

    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        """End a held task with its value."""
        task = self.known(task_id)
        if not self.may_complete(task, attempt):
            raise self.stale(task, attempt)
        self.put(self.completed(task, value, now))
        self.changed()

    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        """Record a failure, and retry if one is proposed and the budget allows."""
        task = self.known(task_id)
        if not self.may_fail(task, attempt):
            raise self.stale(task, attempt)
        lease = task.lease_expires_at
        if if_expired and lease is not None and not self.is_over(lease, failure.failed_at):
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts, lease_expires_at=lease)
        task = self.retried(task, failure) if self.may_retry(task, failure) else self.failed(task, failure)
        self.put(task)
        self.changed()
        return self.handed_out(task)

    def cancel(self, task_id: str, now: datetime) -> bool:
        """End a task that has not ended."""
        task = self.known(task_id)
        if not self.may_cancel(task):
            return False
        self.put(self.cancelled(task, now))
        self.changed()
        return True

    def expired(self, now: datetime, limit: int) -> list[Task]:
        """List RUNNING tasks whose lease is over."""
        found = [
            task for task in self.stored.values()
            if task.lease_expires_at is not None and self.is_over(task.lease_expires_at, now)
        ]  # fmt: skip
        return [self.handed_out(task) for task in sorted(found, key=self.lease_order)[:limit]]

    def next_due(self) -> datetime | None:
        """Return the earliest instant of interest."""
        pending = [task.available_at for task in self.stored.values() if task.status is TaskStatus.PENDING]
        leases = [task.lease_expires_at for task in self.stored.values() if task.lease_expires_at is not None]
        return min([*pending, *leases], default=None)

    def get(self, task_id: str) -> Task | None:
        """Return a task or None."""
        task = self.stored.get(task_id)
        return None if task is None else self.handed_out(task)

    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        """Return a page and its cursor: the number of its last task."""
        if limit == 0:
            return [], after
        start = 0 if after is None else int(after)
        found = [
            task for task in self.stored.values()
            if self.number[task.id] > start and status in (None, task.status)
        ]  # fmt: skip
        page = [self.handed_out(task) for task in found[:limit]]
        return page, str(self.number[page[-1].id]) if len(found) > limit else None

    def counts(self) -> dict[TaskStatus, int]:
        """Count each status."""
        statuses = [task.status for task in self.stored.values()]
        return {status: statuses.count(status) for status in TaskStatus}

    def purge(self, finished_before: datetime, limit: int) -> int:
        """Remove ended tasks."""
        chosen = [task for task in self.stored.values() if self.may_purge(task, finished_before)]
        chosen = sorted(chosen, key=self.purge_order)[:limit]
        for task in chosen:
            self.remove(task)
        self.changed()
        return len(chosen)

    # The questions and the steps that they are made of.

    def offending(self, tasks: Sequence[Task]) -> list[str]:
        """Return the ids that are known or stand twice."""
        times = Counter(task.id for task in tasks)
        return [one for one, number in times.items() if one in self.stored or number > 1]

    def add(self, task: Task) -> None:
        """Store a new task behind all others."""
        self.last_number += 1
        self.number[task.id] = self.last_number
        self.put(self.kept(task))

    def kept(self, task: Task) -> Task:
        """Return what is stored of a new task."""
        return replace(task, payload=bytes(task.payload), failures=tuple(task.failures))

    def put(self, task: Task) -> None:
        """Store a task in its place."""
        self.stored[task.id] = task

    def remove(self, task: Task) -> None:
        """Forget a task."""
        del self.stored[task.id], self.number[task.id]

    def handed_out(self, task: Task) -> Task:
        """Return what a caller gets of a stored task."""
        return task

    def choose(self, now: datetime, limit: int) -> list[Task]:
        """Return the tasks to claim, in order."""
        due = [task for task in self.stored.values() if task.status is TaskStatus.PENDING and self.is_due(task, now)]
        return sorted(due, key=self.claim_order)[:limit]

    def is_due(self, task: Task, now: datetime) -> bool:
        """Whether a PENDING task may be claimed."""
        return task.available_at <= now

    def claim_order(self, task: Task) -> tuple[Any, ...]:
        """By what claims are ordered."""
        return task.available_at, self.number[task.id]

    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        """Make the chosen tasks RUNNING and return them."""
        taken = [self.claimed(task, now, lease_expires_at) for task in chosen]
        for task in taken:
            self.put(task)
        self.changed()
        return [self.handed_out(task) for task in taken]

    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        """Return what a claim makes of a task."""
        return replace(
            task,
            status=TaskStatus.RUNNING,
            attempts=task.attempts + 1,
            started_at=now,
            lease_expires_at=lease_expires_at,
        )

    def holds(self, task: Task, attempt: int) -> bool:
        """Whether a claim is held."""
        return task.status is TaskStatus.RUNNING and task.attempts == attempt

    def may_extend(self, task: Task, attempt: int) -> bool:
        """The guard of extend."""
        return self.holds(task, attempt)

    def may_complete(self, task: Task, attempt: int) -> bool:
        """The guard of complete."""
        return self.holds(task, attempt)

    def may_fail(self, task: Task, attempt: int) -> bool:
        """The guard of fail."""
        return self.holds(task, attempt)

    def may_cancel(self, task: Task) -> bool:
        """The guard of cancel."""
        return not task.status.ended

    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        """The guard of purge."""
        return task.finished_at is not None and task.finished_at < finished_before

    def may_retry(self, task: Task, failure: Failure) -> bool:
        """Whether a failed task is tried again."""
        return failure.retry_at is not None and task.attempts < task.max_retries

    def is_over(self, lease: datetime, at: datetime) -> bool:
        """Whether a lease has run out."""
        return lease <= at

    def extended(self, task: Task, lease_expires_at: datetime) -> Task:
        """Return a task with a longer lease."""
        lease = task.lease_expires_at
        return replace(task, lease_expires_at=lease_expires_at if lease is None else max(lease, lease_expires_at))

    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        """Return what complete makes of a task."""
        return replace(task, status=TaskStatus.SUCCESS, value=bytes(value), finished_at=now, lease_expires_at=None)

    def cancelled(self, task: Task, now: datetime) -> Task:
        """Return what cancel makes of a task."""
        return replace(task, status=TaskStatus.CANCELLED, finished_at=now, lease_expires_at=None)

    def retried(self, task: Task, failure: Failure) -> Task:
        """Return what a failure makes of a task that is tried again."""
        assert failure.retry_at is not None  # noqa: S101 - may_retry has looked
        return replace(
            task,
            status=TaskStatus.PENDING,
            available_at=failure.retry_at,
            lease_expires_at=None,
            failures=(*task.failures, failure),
        )

    def failed(self, task: Task, failure: Failure) -> Task:
        """Return what a failure makes of a task that has spent its budget."""
        return replace(
            task,
            status=TaskStatus.FAILED,
            finished_at=failure.failed_at,
            lease_expires_at=None,
            failures=(*task.failures, replace(failure, retry_at=None)),
        )

    def lease_order(self, task: Task) -> Any:
        """By what expired leases are listed."""
        return task.lease_expires_at

    def purge_order(self, task: Task) -> Any:
        """By what purged tasks are chosen."""
        return task.finished_at

    def known(self, task_id: str) -> Task:
        """Return a task, or raise TaskNotFound."""
        if task_id not in self.stored:
            raise TaskNotFound(task_id)
        return self.stored[task_id]

    def stale(self, task: Task, attempt: int) -> StaleClaim:
        """Return the refusal of a claim that is not held."""
        return StaleClaim(task.id, attempt, status=task.status, attempts=task.attempts)

    def changed(self) -> None:
        """Wake everybody who waits."""
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            with suppress(RuntimeError):  # its event loop has been closed
                waiter.get_loop().call_soon_threadsafe(wake, waiter)


_STORES: "WeakValueDictionary[tuple[type[Store], str], Store]" = WeakValueDictionary()


class PlainMemory:
    """A handle on a :class:`Store` of this process, which lives as long as a handle on it does."""

    store_class: ClassVar[type[Store]] = Store

    def __init__(self, name: str) -> None:
        self.name = name
        key = (self.store_class, name)
        with LOCK:
            self.kept_store = _STORES.get(key) or self.store_class()
            _STORES[key] = self.kept_store
        self.loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self.process = os.getpid()
        self.waiting: set[Waiter] = set()

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Give the store for one step, if this handle is connected here."""
        if self.process != os.getpid() or asyncio.get_running_loop() not in self.loops:
            raise NotConnected("await connect() first, on this event loop and in this process")
        with LOCK:
            yield self.kept_store

    def clone(self) -> Self:
        """See the contract, as for every method below."""
        return type(self)(self.name)

    async def connect(self) -> None:
        """See the contract."""
        if self.process != os.getpid():
            self.process, self.loops, self.waiting = os.getpid(), WeakSet(), set()
        self.loops.add(asyncio.get_running_loop())

    async def close(self) -> None:
        """See the contract."""
        loop = asyncio.get_running_loop()
        if self.process == os.getpid() and loop in self.loops:
            self.loops.discard(loop)
            for waiter in [waiter for waiter in self.waiting if waiter.get_loop() is loop]:
                wake(waiter)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """See the contract."""
        with self.use() as store:
            store.enqueue(tasks)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """See the contract."""
        with self.use() as store:
            claimed: list[Task] = store.claim(now, limit, lease_expires_at)
            return claimed

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """See the contract."""
        with self.use() as store:
            held: list[tuple[str, int]] = store.extend(claims, lease_expires_at)
            return held

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """See the contract."""
        with self.use() as store:
            store.complete(task_id, attempt, value, now)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """See the contract."""
        with self.use() as store:
            task: Task = store.fail(task_id, attempt, failure, if_expired=if_expired)
            return task

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """See the contract."""
        with self.use() as store:
            ended: bool = store.cancel(task_id, now)
            return ended

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """See the contract."""
        with self.use() as store:
            found: list[Task] = store.expired(now, limit)
            return found

    async def next_due(self) -> datetime | None:
        """See the contract."""
        with self.use() as store:
            due: datetime | None = store.next_due()
            return due

    async def get(self, task_id: str) -> Task | None:
        """See the contract."""
        with self.use() as store:
            task: Task | None = store.get(task_id)
            return task

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """See the contract."""
        with self.use() as store:
            page: tuple[list[Task], str | None] = store.page(status, after, limit)
            return page

    async def counts(self) -> Mapping[TaskStatus, int]:
        """See the contract."""
        with self.use() as store:
            counts: dict[TaskStatus, int] = store.counts()
            return counts

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """See the contract."""
        with self.use() as store:
            removed: int = store.purge(finished_before, limit)
            return removed

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        """See the contract."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        with self.use() as store:
            store.waiters.add(waiter)
        self.waiting.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self.waiting.discard(waiter)
            with LOCK:
                self.kept_store.waiters.discard(waiter)
            waiter.cancel()


def wake(waiter: Waiter) -> None:
    """End a wait, once."""
    if not waiter.done():
        waiter.set_result(None)
