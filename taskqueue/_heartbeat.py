"""The heartbeat: extends the leases of what a worker runs, from a thread that no task can block."""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from taskqueue._instants import later
from taskqueue._stall import StallWatch
from taskqueue._text import log_text
from taskqueue.backend import MAX_TASKS_PER_CALL
from taskqueue.current import Cancellation, running
from taskqueue.errors import TaskQueueError
from taskqueue.queue import TaskQueue

Claim = tuple[str, int]

logger = logging.getLogger("taskqueue.worker")

SHARE_OF_LEASE: Final = 0.3
"""How long after a beat the next one comes, as a share of the lease: so two may fail before a lease runs out."""

_SHORTEST_INTERVAL: Final = 0.005
_TRIES_PER_INTERVAL: Final = 4
_SHORTEST_LIMIT: Final = 1.0


class Holder(Protocol):
    """Who runs what a claim took."""

    cancellation: Cancellation

    def lose(self) -> None:
        """End it: the claim is not held any more. Called on the worker's event loop."""

    def is_run_by(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether ``task`` belongs to it. Called from the heartbeat's thread."""


class Heartbeat:
    """Extends leases from a thread that has an event loop, and a handle on the store, of its own.

    The handle is connected only once there is something to extend, so short tasks cost no connection. A claim is
    extended before more than a third of its lease is over, since the beats come at a fixed rate, whenever the claim
    was made. Made and used on the worker's event loop.

    Args:
        queue: The worker's queue. Its backend is cloned, and its clock is read in the thread.
        lease: How long the claims shall hold, from each beat.
        stall_timeout: After how long without a turn of the worker's event loop its leases are extended no more.
        on_crash: Called on the worker's event loop if the thread ends by itself.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        lease: timedelta,
        stall_timeout: timedelta,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.interval = max(lease.total_seconds() * SHARE_OF_LEASE, _SHORTEST_INTERVAL)
        self._workers_queue = queue
        self._queue: TaskQueue | None = None
        self._lease = lease
        self._on_crash = on_crash
        self._home = asyncio.get_running_loop()
        self._stall = StallWatch(stall_timeout.total_seconds(), self._described, self._beat_now)
        self._lock = threading.Lock()
        self._held: dict[Claim, Holder] = {}
        self._claiming_since: datetime | None = None
        self._claiming_for = 0
        self._unanswered: set[Claim] = set()
        self._thread = threading.Thread(target=self._work, name="taskqueue-heartbeat", daemon=True)
        self._beating: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._wake = asyncio.Event()
        self._failing = False
        self._closed = False
        self._over: asyncio.Future[None] = self._home.create_future()

    def start(self) -> None:
        """Start the thread.

        Raises:
            TaskQueueError: The system has no thread left.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise TaskQueueError(
                "the thread that extends leases cannot be started; allow this process more threads, or lower the "
                f"concurrency: {error}"
            ) from error

    async def close(self) -> None:
        """End the thread and close its handle. Idempotent. A cancellation takes effect only after that."""
        self._closed = True
        if self._thread.ident is None:
            return
        if (beating := self._beating) is not None:
            loop, task = beating
            with suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(task.cancel)
        cancelled = False
        while not self._over.done():
            try:
                await asyncio.wait([self._over])
            except asyncio.CancelledError:
                cancelled = True
        self._thread.join()
        if cancelled:
            raise asyncio.CancelledError

    # ---------------------------------------------------------------- for the worker, on its event loop

    def hold(self, claim: Claim, holder: Holder) -> None:
        """Extend this claim from now on."""
        with self._lock:
            self._held[claim] = holder

    def release(self, claim: Claim, holder: Holder) -> None:
        """Extend this claim of this holder no more."""
        with self._lock:
            # An id that was purged and enqueued anew may be held a second time.
            if self._held.get(claim) is holder:
                del self._held[claim]

    def holds(self, claim: Claim) -> bool:
        """Tell whether this claim is extended."""
        return claim in self._held

    def held(self) -> dict[Claim, Holder]:
        """Return the claims that are extended, and who runs what they took."""
        with self._lock:
            return self._held.copy()

    def lose(self, claim: Claim, holder: Holder) -> None:
        """End what runs under a claim that is not held any more. Callable from both threads."""
        with self._lock:
            if self._held.get(claim) is not holder:
                return  # it has ended meanwhile
            del self._held[claim]
        # At once, for a function in a thread: the loop may be blocked.
        holder.cancellation.requested = True
        with suppress(RuntimeError):  # the worker's event loop was closed
            self._home.call_soon_threadsafe(holder.lose)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Inside, tasks are claimed: they are extended even if something blocks the loop before they are known here."""
        self._claiming_for = 0
        self._claiming_since = self._workers_queue.now()
        try:
            yield
        finally:
            self._claiming_since = None

    # ---------------------------------------------------------------- in the thread

    def _work(self) -> None:
        problem: BaseException = RuntimeError("it ended by itself")
        try:
            asyncio.run(self._beat_until_closed())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the worker has to know
            problem = error
        with suppress(RuntimeError):  # the worker's event loop was closed: nobody is left to tell
            self._home.call_soon_threadsafe(self._ended, problem)

    def _ended(self, problem: BaseException) -> None:
        if not self._over.done():
            self._over.set_result(None)
        if not self._closed:
            self._on_crash(problem)

    async def _beat_until_closed(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker; this is a coroutine
        self._beating = (loop, task)
        due = loop.time()
        try:
            # `close` sets `_closed` before it looks at `_beating`, so one of the two is seen.
            while not (self._closed or self._home.is_closed()):
                due = max(due + self.interval / (_TRIES_PER_INTERVAL if self._failing else 1), loop.time())
                await self._until(due)
                await self._try_to_beat()
        except asyncio.CancelledError:
            if not self._closed:
                raise
        finally:
            await self._disconnect()

    async def _until(self, due: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        self._wake.clear()

    def _beat_now(self) -> None:
        self._wake.set()

    async def _try_to_beat(self) -> None:
        patience = max(self._lease.total_seconds(), _SHORTEST_LIMIT)
        try:
            # A store that does not answer must not keep the beats from beginning anew.
            async with asyncio.timeout(patience) as limit:
                extended = await self._beat()
        except Exception as error:  # whatever it is, a store that is away comes back
            if not self._failing:
                self._failing = True
                rest = self.interval / _TRIES_PER_INTERVAL
                why = f"the store has not answered for {patience:.3g} s" if limit.expired() else log_text(error)
                logger.warning("cannot extend leases, trying again every %.3g s: %s", rest, why)
                logger.debug("in full:", exc_info=error)
            with suppress(Exception):  # the next beat connects afresh
                await self._disconnect()
        else:
            if self._failing and extended:
                logger.warning("leases are extended again")
            self._failing = False

    async def _beat(self) -> bool:
        """Extend what there is to extend; tell whether there was anything."""
        held = self.held()
        since = self._claiming_since
        if since is not None:
            self._claiming_for += 1
        # At its first beat a claim in flight has most of its lease left, and nearly always its answer is on its way.
        in_flight = since is not None and self._claiming_for > 1
        if not in_flight:
            self._unanswered.clear()
        if not (held or in_flight) or self._stall.stalled():
            return False
        queue = await self._connected()
        kept = await self._extended(queue, list(held))
        for claim, holder in held.items():
            if claim not in kept:
                self.lose(claim, holder)
        if since is not None and in_flight:
            self._unanswered |= await self._claimed_since(queue, since)
            await self._extended(queue, list(self._unanswered))
        return True

    async def _connected(self) -> TaskQueue:
        if self._queue is None:
            # A clone: a handle belongs to the loop that connected it, and a queue to nobody but its user.
            queue = TaskQueue(self._workers_queue.backend.clone(), clock=self._workers_queue.now)
            await queue.connect()
            self._queue = queue
        return self._queue

    async def _disconnect(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            await queue.close()

    async def _extended(self, queue: TaskQueue, claims: Sequence[Claim]) -> set[Claim]:
        kept: set[Claim] = set()
        for start in range(0, len(claims), MAX_TASKS_PER_CALL):
            kept.update(await queue.extend(claims[start : start + MAX_TASKS_PER_CALL], lease=self._lease))
        return kept

    async def _claimed_since(self, queue: TaskQueue, since: datetime) -> set[Claim]:
        """Return the claims that this worker may have made since then and not heard of.

        They are known by how they look, so one that another worker made meanwhile may be among them. That one's lease
        is then extended too, as long as this claim is in flight, which takes no claim from anybody.
        """
        tasks = await queue.backend.expired(now=later(queue.now(), self._lease), limit=MAX_TASKS_PER_CALL)
        return {
            (task.id, task.attempts)
            for task in tasks
            if task.started_at is not None
            and task.started_at >= since
            and task.lease_expires_at == later(task.started_at, self._lease)
        }

    def _described(self, task: asyncio.Task[Any]) -> str:
        held = self.held()
        for (task_id, attempt), holder in held.items():
            if holder.is_run_by(task):
                return f"attempt {attempt} of task {task_id}"
        if sys.version_info >= (3, 12):
            current = task.get_context().get(running)
            if current is not None:
                return f"an asyncio task that attempt {current.attempt} of task {current.id} started"
        return f"the asyncio task {task.get_name()!r}"
