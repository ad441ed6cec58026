"""One run of a worker, on one event loop: claims, starts, waits, and ends."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from taskqueue._attempt import CANCELLED, HOPELESS, Attempt
from taskqueue._heartbeat import Heartbeat, Holder
from taskqueue._hint import watching
from taskqueue._recovery import Recovery
from taskqueue._text import error_text, log_text
from taskqueue._upkeep import regularly
from taskqueue.errors import NotConnected, TaskNotFound, TaskQueueError
from taskqueue.queue import TaskQueue
from taskqueue.status import TaskStatus

logger = logging.getLogger("taskqueue.worker")

_FIRST_REST: Final = 0.1
_SHORTEST_WAIT: Final = 0.001
_PURGES_PER_PERIOD: Final = 10
_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_BETWEEN_PURGES: Final = (60.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a worker runs tasks, checked. See ``Worker`` for what they mean."""

    concurrency: int
    lease: timedelta
    poll: timedelta
    grace: timedelta
    stall_timeout: timedelta
    purge_after: timedelta | None


class Run:
    """One run of a worker, on the running event loop.

    Attributes:
        interrupted: The ids of tasks that were interrupted, in the order in which that was recorded.
        abandoned: The ids of tasks whose functions still ran when the run ended.
    """

    def __init__(self, queue: TaskQueue, settings: Settings) -> None:
        self.interrupted: list[str] = []
        self.abandoned: list[str] = []
        self._queue = queue
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._serving: asyncio.Task[Any] | None = None
        self._cancellings_before = 0
        self._attempts: dict[Attempt, None] = {}
        # Whose outcome is being recorded: they run no more, so their places are free.
        self._recording: set[Attempt] = set()
        self._place_free: asyncio.Future[None] | None = None
        self._one_ended: asyncio.Future[None] | None = None
        # What has its outcome and runs on; it keeps its place.
        self._leftovers: dict[asyncio.Task[None], Attempt] = {}
        self._executor = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="taskqueue-worker")
        self._crash: BaseException | None = None
        self._heartbeat = Heartbeat(
            queue, lease=settings.lease, stall_timeout=settings.stall_timeout, on_crash=self._crashed
        )
        self._holding = asyncio.Event()
        self._seen: set[tuple[str, int]] = set()
        self._purged: asyncio.Future[None] = self._loop.create_future()

    def stop(self) -> None:
        """Claim no more. Callable from any thread and from a signal handler."""
        self._stopping = True
        # A closed loop, seen from a thread that outlived it, has nothing left to stop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_stop)

    def _set_stop(self) -> None:
        _resolve(self._stop)
        self._free_a_place()

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the asyncio task that serves, which may not have been told yet."""
        return self._serving is not None and self._serving.cancelling() > self._cancellings_before

    def _crashed(self, problem: BaseException) -> None:
        self._crash = problem
        self.stop()

    async def serve(self, *, until_idle: bool) -> None:
        """Run tasks until stopped, or with ``until_idle`` until nothing is due and nothing runs."""
        upkeep: list[asyncio.Task[Any]] = []
        self._serving = asyncio.current_task()
        self._cancellings_before = self._serving.cancelling() if self._serving is not None else 0
        try:
            # Connects, and makes a store that cannot be reached an error at the start.
            await self._queue.next_due()
            self._heartbeat.start()
            upkeep = self._started_upkeep()
            try:
                await self._claim_until_stopped(until_idle=until_idle)
                if until_idle:
                    await asyncio.wait([self._stop, self._purged], return_when=asyncio.FIRST_COMPLETED)
            except Exception:
                await self._end_within_grace()
                raise
            await self._end_within_grace()
        finally:
            await self._end(upkeep)
        if self._crash is not None:
            raise TaskQueueError(
                f"the thread that extends leases has crashed, so the worker had to end: {error_text(self._crash)}"
            ) from self._crash

    # ---------------------------------------------------------------- claiming

    async def _claim_until_stopped(self, *, until_idle: bool) -> None:
        # In a task that is never cancelled: what a claim in flight took would be lost until its lease ran out, with an
        # attempt spent.
        claiming = self._loop.create_task(self._claim_and_start(until_idle=until_idle), name="taskqueue-claim")
        while not claiming.done():
            try:
                await asyncio.wait([claiming])
            except asyncio.CancelledError:
                self._stopping = True
                self._set_stop()
        if self.cancelled:
            if not claiming.cancelled():
                claiming.exception()  # seen, and of no interest any more
            raise asyncio.CancelledError
        claiming.result()

    async def _claim_and_start(self, *, until_idle: bool) -> None:
        rest = _FIRST_REST
        poll = self._settings.poll.total_seconds()
        while not self._stopping:
            free = self._free
            if free <= 0:
                # A bare future, so that the claim comes soon enough to share a transaction with the outcomes that are
                # recorded meanwhile.
                self._place_free = self._loop.create_future()
                await self._place_free
                continue
            try:
                # Asked before the claim: a task that ends meanwhile may have enqueued another one.
                busy = self._busy
                claimed = await self._claim(free)
                if not claimed and until_idle and not busy:
                    return
                if claimed < free:
                    await self._idle(free - claimed, until_idle=until_idle)
                rest = _FIRST_REST
            except HOPELESS:
                raise
            except Exception as error:  # whatever it is, a store that is away comes back
                logger.warning("cannot claim tasks, trying again in %.3g s: %s", rest, log_text(error))
                logger.debug("in full:", exc_info=error)
                await self._first_of(timeout=rest)
                rest = min(2 * rest, max(poll, _FIRST_REST))

    @property
    def _free(self) -> int:
        concurrency, recording = self._settings.concurrency, len(self._recording)
        if recording > concurrency:
            return 0  # the store does not keep up
        return concurrency - (len(self._attempts) - recording) - len(self._leftovers)

    def _free_a_place(self) -> None:
        _resolve(self._place_free)

    @property
    def _busy(self) -> bool:
        return bool(self._attempts or self._leftovers)

    async def _idle(self, free: int, *, until_idle: bool) -> None:
        poll = self._settings.poll.total_seconds()
        async with watching(self._queue.wait, poll) as change:
            # Read after the wait has begun, so that a retry recorded meanwhile is in it or ends the wait. And before
            # the claim: what is due now and not claimed then is the lease of a task that runs elsewhere, and to wait
            # for an instant in the past would be a busy loop.
            due = await self._queue.next_due()
            now = self._queue.now()
            seconds = poll
            if due is not None and due > now:
                seconds = min(poll, max((due - now).total_seconds(), _SHORTEST_WAIT))
            elif due is not None and await self._claim(free):
                return
            if until_idle and not self._busy:
                return
            await self._first_of(change, self._next_end(), timeout=seconds)
            if change.done():
                await change

    async def _first_of(self, *others: asyncio.Future[None], timeout: float | None = None) -> None:  # noqa: ASYNC109 - passed on
        await asyncio.wait([self._stop, *others], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self, limit: int) -> int:
        attempts = await self._claimed(limit)
        for attempt in attempts:
            self._start(attempt)
            if self.cancelled:
                attempt.interrupt(CANCELLED)
        return len(attempts)

    async def _claimed(self, limit: int) -> list[Attempt]:
        if self._stopping:
            return []
        began = self._loop.time()
        with self._heartbeat.claiming():
            tasks = await self._queue.claim(limit, lease=self._settings.lease)
            attempts = [Attempt(self._queue, task, self._executor, self, self._loop) for task in tasks]
            if attempts and self._loop.time() - began > self._heartbeat.interval:
                attempts = await self._still_held(attempts)
            for attempt in attempts:
                self._heartbeat.hold(attempt.claim, attempt)
        return attempts

    async def _still_held(self, attempts: list[Attempt]) -> list[Attempt]:
        """Return those that nobody else has taken since they were claimed, for the answer came late."""
        try:
            held = await self._queue.extend([attempt.claim for attempt in attempts], lease=self._settings.lease)
        except Exception as error:  # noqa: BLE001 - then the heartbeat finds out
            logger.warning("cannot extend the leases of a claim that took long: %s", log_text(error))
            return attempts
        for attempt in attempts:
            if attempt.claim not in held:
                logger.warning("task %s: attempt %d was lost before its claim was answered", *attempt.claim)
        return [attempt for attempt in attempts if attempt.claim in held]

    # ---------------------------------------------------------------- attempts

    def _start(self, attempt: Attempt) -> None:
        self._attempts[attempt] = None
        self._holding.set()
        attempt.begin()

    def attempt_has_outcome(self, attempt: Attempt) -> None:
        """Take note that an attempt runs no more, or that nobody waits for it any more."""
        if not attempt.runs_on:
            self._recording.add(attempt)
            self._free_a_place()

    def attempt_ended(self, attempt: Attempt) -> None:
        """Take note that an attempt has come to its end."""
        del self._attempts[attempt]
        self._recording.discard(attempt)
        self._heartbeat.release(attempt.claim, attempt)
        if attempt.interrupted:
            self.interrupted.append(attempt.claim[0])
        if attempt.runs_on:
            leftover = self._loop.create_task(attempt.over(), name=f"taskqueue-leftover-{attempt.claim[0]}")
            self._leftovers[leftover] = attempt
            leftover.add_done_callback(self._leftover_ended)
        self._announce_end()

    def _leftover_ended(self, leftover: asyncio.Task[None]) -> None:
        del self._leftovers[leftover]
        self._announce_end()

    def _announce_end(self) -> None:
        self._free_a_place()
        _resolve(self._one_ended)

    def _next_end(self) -> asyncio.Future[None]:
        """Return what is done once one more attempt, or what one has left behind, ends."""
        if self._one_ended is None or self._one_ended.done():
            self._one_ended = self._loop.create_future()
        return self._one_ended

    async def _all_ended(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - passed on
        deadline = None if timeout is None else self._loop.time() + timeout
        # What ends may leave something that runs on.
        while self._busy and (deadline is None or self._loop.time() < deadline):
            await asyncio.wait([self._next_end()], timeout=None if deadline is None else deadline - self._loop.time())

    # ---------------------------------------------------------------- the end

    async def _end_within_grace(self) -> None:
        seconds = self._settings.grace.total_seconds()
        if self._busy:
            running = len(self._attempts) + len(self._leftovers)
            logger.info("claiming no more; %d running tasks have %g s to end", running, seconds)
        await self._all_ended(seconds)
        await self._interrupt(f"the worker was stopped and its grace period of {seconds:g} s was over")

    async def _interrupt(self, why: str) -> None:
        for attempt in [*self._attempts, *self._leftovers.values()]:
            attempt.interrupt(why)
        cancelled = False
        while self._attempts:
            try:
                await asyncio.wait([self._next_end()])
            except asyncio.CancelledError:
                # The second time: give up recording; the leases bring these tasks back.
                cancelled = True
                for attempt in self._attempts:
                    attempt.give_up()
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self, upkeep: list[asyncio.Task[Any]]) -> None:
        try:
            # Only a cancelled run has attempts left here.
            await self._interrupt(CANCELLED)
        finally:
            self.abandoned = [attempt.claim[0] for attempt in self._leftovers.values()]
            still = [*upkeep, *self._leftovers]
            for task in still:
                task.cancel()
            self._executor.shutdown(wait=not self.abandoned)
            try:
                while not all(task.done() for task in still):
                    await asyncio.wait(still)
            finally:
                await self._heartbeat.close()

    def _started_upkeep(self) -> list[asyncio.Task[Any]]:
        lease = self._settings.lease
        recovery = Recovery(self._queue, lease=lease, is_own=self._heartbeat.holds)
        jobs: list[tuple[str, Callable[[], Awaitable[object]], float]] = [
            ("looking for tasks of workers that died", recovery.run_pass, recovery.interval)
        ]
        if (purge_after := self._settings.purge_after) is None:
            self._purged.set_result(None)
        else:
            least, most = _SECONDS_BETWEEN_PURGES
            seconds = max(least, min(purge_after.total_seconds() / _PURGES_PER_PERIOD, most))
            jobs.append(("purging", self._purge, seconds))
        looking = regularly(
            "looking for tasks that were cancelled", self._drop_lost, _SECONDS_BETWEEN_LOOKS, when=self._holding
        )
        return [
            self._loop.create_task(looking, name="taskqueue-changes"),
            *(
                self._loop.create_task(regularly(what, do, seconds), name=f"taskqueue-{what.split()[0]}")
                for what, do, seconds in jobs
            ),
        ]

    async def _drop_lost(self) -> None:
        """Notice claims that were lost before the heartbeat does. It only reads, so it wakes no other worker.

        It is called again, after a rest, while anything is held. A claim is looked at from the second call on that
        finds it held: what runs for a moment only costs nothing. Once there is nothing new, a call waits for a change.
        """
        held = self._heartbeat.held()
        seen, self._seen = self._seen, set(held)
        if not held:
            return
        self._holding.set()
        if not seen.issuperset(held):
            await self._look_at({claim: holder for claim, holder in held.items() if claim in seen})
            return
        async with watching(self._wait_quietly, self._settings.poll.total_seconds()) as change:
            await self._look_at(held)
            await change

    async def _wait_quietly(self, seconds: float) -> None:
        try:
            await self._queue.wait(seconds)
        except NotConnected:
            raise
        except Exception:  # noqa: BLE001 - the look, or the claim, tells of it
            await asyncio.sleep(seconds)

    async def _look_at(self, held: Mapping[tuple[str, int], Holder]) -> None:
        for claim, holder in held.items():
            try:
                task = await self._queue.get_task(claim[0])
            except TaskNotFound:
                self._heartbeat.lose(claim, holder)
                continue
            if task.status is not TaskStatus.RUNNING or task.attempts != claim[1]:
                self._heartbeat.lose(claim, holder)

    async def _purge(self) -> None:
        try:
            purged = await self._queue.purge(older_than=self._settings.purge_after)
        finally:
            if not self._purged.done():
                self._purged.set_result(None)
        if purged:
            logger.info("purged %d tasks that ended more than %s ago", purged, self._settings.purge_after)


def _resolve(awaited: asyncio.Future[None] | None) -> None:
    if awaited is not None and not awaited.done():
        awaited.set_result(None)
