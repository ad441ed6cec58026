"""A store in this process's memory: for tests, and a second statement of the contract."""

import asyncio
import heapq
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final, Self
from weakref import WeakSet, WeakValueDictionary

from taskqueue.errors import InvalidArgument, NotConnected, StaleClaim, TaskExists, TaskNotFound
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

_SCHEME: Final = "memory://"

# One lock for all stores, held only for short computations: handles live in several threads, and a fork can then wait
# for it, so that a child never inherits a store in the middle of a change.
_LOCK: Final = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class MemoryBackend:
    """A handle on a store that lives in this process, as long as any handle object on it does.

    It fulfils the whole contract of :class:`~taskqueue.backend.Backend` within one process: handles may be used on
    different event loops in different threads. It is neither durable nor shared between processes; a forked child
    has a copy. No call but ``wait`` ever suspends, so each takes effect at once and cannot be cancelled.

    Args:
        name: Handles with the same name share a store. None means a new store that only clones of this handle share.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._store = _Store() if name is None else _named_store(name)
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._pid = os.getpid()
        self._waiting: set[asyncio.Future[None]] = set()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return a handle for ``memory://`` (a new store) or ``memory://NAME`` (the store of that name).

        Raises:
            InvalidArgument: The URL has another form.
        """
        name = url.removeprefix(_SCHEME)
        if not url.startswith(_SCHEME) or any(mark in name for mark in "/?#"):
            raise InvalidArgument("url", url, "write memory:// for a store of its own, or memory://NAME to share one")
        return cls(name or None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same store."""
        other = type(self)(self._name)
        other._store = self._store  # noqa: SLF001 - an anonymous store has no other way to be shared
        return other

    async def connect(self) -> None:
        """Connect on this event loop. Idempotent; other loops that this handle is connected on stay so."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loops = WeakSet()
            self._waiting = set()
        self._loops.add(asyncio.get_running_loop())

    async def close(self) -> None:
        """Disconnect from this event loop and end every ``wait`` on it. Idempotent; the store keeps its tasks."""
        loop = asyncio.get_running_loop()
        if self._pid == os.getpid() and loop in self._loops:
            self._loops.discard(loop)
            for waiter in self._waiting.copy():
                if waiter.get_loop() is loop:
                    _wake(waiter)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks, all of them or none. See :meth:`taskqueue.backend.Backend.enqueue`."""
        self._connected().enqueue(tasks)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Take up to ``limit`` due tasks. See :meth:`taskqueue.backend.Backend.claim`."""
        return self._connected().claim(now, limit, lease_expires_at)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Lengthen the leases still held. See :meth:`taskqueue.backend.Backend.extend`."""
        return self._connected().extend(claims, lease_expires_at)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a held task as SUCCESS. See :meth:`taskqueue.backend.Backend.complete`."""
        self._connected().complete(task_id, attempt, bytes(value), now)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failed attempt. See :meth:`taskqueue.backend.Backend.fail`."""
        return self._connected().fail(task_id, attempt, failure, if_expired=if_expired)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a task as CANCELLED. See :meth:`taskqueue.backend.Backend.cancel`."""
        return self._connected().cancel(task_id, now)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List RUNNING tasks whose lease has run out. See :meth:`taskqueue.backend.Backend.expired`."""
        return self._connected().expired(now, limit)

    async def next_due(self) -> datetime | None:
        """Return the next instant of interest. See :meth:`taskqueue.backend.Backend.next_due`."""
        return self._connected().next_due()

    async def get(self, task_id: str) -> Task | None:
        """Return a task, or None. See :meth:`taskqueue.backend.Backend.get`."""
        return self._connected().get(task_id)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List tasks in the order of enqueueing. See :meth:`taskqueue.backend.Backend.tasks`.

        Raises:
            InvalidArgument: ``after`` is not a cursor of this backend.
        """
        if after is not None and not (after.isascii() and after.isdecimal()):
            raise InvalidArgument("after", after, "pass a cursor that tasks() returned, or None")
        return self._connected().page(status, after, limit)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks for each status. See :meth:`taskqueue.backend.Backend.counts`."""
        return self._connected().counts()

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Remove ended tasks. See :meth:`taskqueue.backend.Backend.purge`."""
        return self._connected().purge(finished_before, limit)

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name; a hint is no deadline
        """Wait for a change. See :meth:`taskqueue.backend.Backend.wait`."""
        store = self._connected()
        if timeout <= 0:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        store.listen(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            store.unlisten(waiter)
            self._waiting.discard(waiter)
            waiter.cancel()

    def _connected(self) -> "_Store":
        if self._pid != os.getpid() or asyncio.get_running_loop() not in self._loops:
            raise NotConnected(f"{self!r} is not connected on this event loop: await connect() first")
        return self._store


class _Schedule:
    """The instants of some tasks, by sequence number: a heap whose dead entries are dropped late."""

    def __init__(self) -> None:
        self._live: dict[int, datetime] = {}
        self._heap: list[tuple[datetime, int]] = []

    def set(self, seq: int, at: datetime) -> None:
        if self._live.get(seq) == at:
            return
        self._live[seq] = at
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(live_at, live) for live, live_at in self._live.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (at, seq))

    def discard(self, seq: int) -> None:
        self._live.pop(seq, None)

    def earliest(self) -> datetime | None:
        while self._heap and self._live.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, until: datetime, limit: int, *, inclusive: bool = True) -> Iterator[int]:
        """Remove and yield at most ``limit`` sequence numbers, earliest instant first, ties by number."""
        for _ in range(limit):
            at = self.earliest()
            if at is None or at > until or (at == until and not inclusive):
                return
            _, seq = heapq.heappop(self._heap)
            del self._live[seq]
            yield seq


class _Store:
    """All tasks, by id and in order, and when each next matters. Every public method is one atomic step."""

    def __init__(self) -> None:
        self._next_seq = 1
        self._seq_of: dict[str, int] = {}
        self._tasks: dict[int, Task] = {}
        self._order: list[int] = []
        self._due = _Schedule()
        self._leases = _Schedule()
        self._ended = _Schedule()
        self._counts: Counter[TaskStatus] = Counter()
        self._listeners: set[asyncio.Future[None]] = set()

    def enqueue(self, tasks: Sequence[Task]) -> None:
        own = [
            replace(task, payload=bytes(task.payload), failures=tuple(task.failures), status=TaskStatus(task.status))
            for task in tasks
        ]
        with _LOCK:
            given: set[str] = set()
            offending: dict[str, None] = {}
            for task in own:
                if task.id in given or task.id in self._seq_of:
                    offending[task.id] = None
                given.add(task.id)
            if offending:
                raise TaskExists(tuple(offending))
            for task in own:
                seq = self._next_seq
                self._next_seq += 1
                self._seq_of[task.id] = seq
                self._order.append(seq)
                self._put(seq, task)
            self._changed(own)

    def claim(self, now: datetime, limit: int, lease_expires_at: datetime) -> list[Task]:
        with _LOCK:
            claimed = []
            for seq in self._due.take(now, limit):
                task = self._tasks[seq]
                claimed.append(
                    self._put(
                        seq,
                        replace(
                            task,
                            status=TaskStatus.RUNNING,
                            attempts=task.attempts + 1,
                            started_at=now,
                            lease_expires_at=lease_expires_at,
                        ),
                    )
                )
            self._changed(claimed)
            return claimed

    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        with _LOCK:
            held = []
            for task_id, attempt in claims:
                seq = self._seq_of.get(task_id)
                if seq is None or not _holds(self._tasks[seq], attempt):
                    continue
                held.append((task_id, attempt))
                lease = self._tasks[seq].lease_expires_at
                if lease is None or lease < lease_expires_at:
                    self._put(seq, replace(self._tasks[seq], lease_expires_at=lease_expires_at))
            self._changed(held)
            return held

    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        with _LOCK:
            seq, task = self._held(task_id, attempt)
            self._put(
                seq, replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None)
            )
            self._changed((task,))

    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        with _LOCK:
            seq, task = self._held(task_id, attempt)
            lease = task.lease_expires_at
            if if_expired and lease is not None and lease > failure.failed_at:
                raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts, lease_expires_at=lease)
            if failure.retry_at is not None and task.attempts < task.max_retries:
                task = replace(
                    task,
                    status=TaskStatus.PENDING,
                    available_at=failure.retry_at,
                    lease_expires_at=None,
                    failures=(*task.failures, failure),
                )
            else:
                task = replace(
                    task,
                    status=TaskStatus.FAILED,
                    finished_at=failure.failed_at,
                    lease_expires_at=None,
                    failures=(*task.failures, replace(failure, retry_at=None)),
                )
            self._put(seq, task)
            self._changed((task,))
            return task

    def cancel(self, task_id: str, now: datetime) -> bool:
        with _LOCK:
            seq, task = self._known(task_id)
            if task.status.ended:
                return False
            self._put(seq, replace(task, status=TaskStatus.CANCELLED, finished_at=now, lease_expires_at=None))
            self._changed((task,))
            return True

    def expired(self, now: datetime, limit: int) -> list[Task]:
        with _LOCK:
            found = [self._tasks[seq] for seq in list(self._leases.take(now, limit))]
            for task in found:
                self._schedule(self._seq_of[task.id], task)
            return found

    def next_due(self) -> datetime | None:
        with _LOCK:
            instants = (self._due.earliest(), self._leases.earliest())
            return min((at for at in instants if at is not None), default=None)

    def get(self, task_id: str) -> Task | None:
        with _LOCK:
            seq = self._seq_of.get(task_id)
            return None if seq is None else self._tasks[seq]

    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        if limit == 0:
            return [], after
        with _LOCK:
            found: list[Task] = []
            start = 0 if after is None else bisect_right(self._order, int(after))
            for position in range(start, len(self._order)):
                seq = self._order[position]
                task = self._tasks.get(seq)
                if task is None or status not in {None, task.status}:
                    continue
                found.append(task)
                if len(found) == limit:
                    return found, str(seq)
            return found, None

    def counts(self) -> dict[TaskStatus, int]:
        with _LOCK:
            return {status: self._counts[status] for status in TaskStatus}

    def purge(self, finished_before: datetime, limit: int) -> int:
        with _LOCK:
            purged = list(self._ended.take(finished_before, limit, inclusive=False))
            for seq in purged:
                task = self._tasks.pop(seq)
                del self._seq_of[task.id]
                self._counts[task.status] -= 1
            if len(self._order) > 2 * len(self._tasks):
                self._order = [seq for seq in self._order if seq in self._tasks]
            self._changed(purged)
            return len(purged)

    def listen(self, waiter: "asyncio.Future[None]") -> None:
        with _LOCK:
            self._listeners.add(waiter)

    def unlisten(self, waiter: "asyncio.Future[None]") -> None:
        with _LOCK:
            self._listeners.discard(waiter)

    def _known(self, task_id: str) -> tuple[int, Task]:
        seq = self._seq_of.get(task_id)
        if seq is None:
            raise TaskNotFound(task_id)
        return seq, self._tasks[seq]

    def _held(self, task_id: str, attempt: int) -> tuple[int, Task]:
        seq, task = self._known(task_id)
        if not _holds(task, attempt):
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return seq, task

    def _put(self, seq: int, task: Task) -> Task:
        before = self._tasks.get(seq)
        if before is not None:
            self._counts[before.status] -= 1
        self._counts[task.status] += 1
        self._tasks[seq] = task
        self._schedule(seq, task)
        return task

    def _schedule(self, seq: int, task: Task) -> None:
        places = (
            (self._due, task.available_at if task.status is TaskStatus.PENDING else None),
            (self._leases, task.lease_expires_at),
            (self._ended, task.finished_at),
        )
        for schedule, at in places:
            if at is None:
                schedule.discard(seq)
            else:
                schedule.set(seq, at)

    def _changed(self, what: Sequence[object]) -> None:
        if not what:
            return
        listeners, self._listeners = self._listeners, set()
        for waiter in listeners:
            with suppress(RuntimeError):  # its event loop has been closed
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)


_STORES: "WeakValueDictionary[str, _Store]" = WeakValueDictionary()


def _named_store(name: str) -> _Store:
    with _LOCK:
        store = _STORES.get(name)
        if store is None:
            store = _STORES[name] = _Store()
        return store


def _holds(task: Task, attempt: int) -> bool:
    return task.status is TaskStatus.RUNNING and task.attempts == attempt


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
