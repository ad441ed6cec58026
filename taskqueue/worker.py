"""The worker: claims due tasks, runs them, and tells the queue what became of each."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from typing import Final, TypeVar

from taskqueue import _check
from taskqueue._execution import Execution, Raised, Returned
from taskqueue._hint import watching
from taskqueue._text import error_text, traceback_text
from taskqueue.current import CurrentTask
from taskqueue.errors import (
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    SerializationError,
    StaleClaim,
    TaskNotFound,
    TaskQueueError,
    TooLarge,
)
from taskqueue.queue import DEFAULT_LEASE, TaskQueue
from taskqueue.status import TaskStatus
from taskqueue.task import Task

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FIRST_REST: Final = 0.1
_SHORTEST_WAIT: Final = 0.001
_TRIES_TO_RECORD: Final = 6
# What repeating cannot heal: the worker ends with it instead of logging it for ever.
_HOPELESS: Final = (NotConnected, IncompatibleStore, InvalidArgument)
# What asyncio lets through to the loop, or what ends a coroutine; a task's own code may raise them too.
_LETHAL: Final = (SystemExit, KeyboardInterrupt, GeneratorExit)


class Worker:
    """Runs the tasks of a queue: coroutines on the event loop, plain functions in threads.

    It claims no more tasks than it has free places for. How a task ends is always recorded through the queue, which
    alone decides about retries. What a task raises ends that task and never the worker, ``SystemExit`` included; a
    payload that cannot be loaded, or a return value that cannot be stored, is a failed attempt.

    A worker does not close its queue. Once stopped it stays stopped; make a new one to go on.

    Args:
        queue: Whose tasks to run.
        concurrency: How many tasks run at a time; also the number of threads.
        lease: How long a claim holds. A task that runs longer may be taken for dead and be run again if its budget
            allows, so make it longer than the longest task.
        poll: How long an idle worker waits at most before it looks again. A notification, or the eta of a task that
            it knows of, wakes it earlier.

    Raises:
        InvalidArgument: An argument cannot mean anything.

    Spec: Retry Policy Ownership / Worker delegates to queue.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        concurrency: int = 10,
        lease: timedelta = DEFAULT_LEASE,
        poll: timedelta = timedelta(seconds=5),
    ) -> None:
        given: object = queue
        if not isinstance(given, TaskQueue):
            raise InvalidArgument("queue", given, "pass a TaskQueue")
        self.queue = queue
        self.concurrency = _check.integer("concurrency", concurrency, least=1)
        self.lease = _check.duration("lease", lease)
        self.poll = _check.duration("poll", poll)
        self._running: _Run | None = None
        self._stopped = False

    async def run(self) -> None:
        """Run tasks until ``stop`` is called; then let the running ones finish, and return.

        If this is cancelled, the tasks that run are interrupted and recorded as failed attempts. A function in a
        thread cannot be interrupted: it is recorded as failed and runs on.

        Raises:
            StoreUnavailable: The store cannot be reached at the start. Later such errors are logged and waited out.
            NotConnected: The queue was closed.
            TaskQueueError: This worker runs already.
        """
        await self._run(until_idle=False)

    async def run_until_idle(self) -> None:
        """Run what is due, and return once nothing is due at the queue's clock and nothing runs, or after ``stop``.

        Tasks with a later eta stay, retries that are not due yet among them. May be called again and again.

        Raises:
            The same as ``run``.
        """
        await self._run(until_idle=True)

    def stop(self) -> None:
        """Claim no more, and let what runs finish; then ``run`` returns.

        Idempotent. May be called from a task, from a thread and before ``run``, which then returns at once. A claim
        in flight is awaited, and what it took is run.
        """
        self._stopped = True
        if (running := self._running) is not None:
            running.stop()

    async def _run(self, *, until_idle: bool) -> None:
        if self._running is not None:
            raise TaskQueueError("this worker runs already; make another one to run beside it")
        if self._stopped:
            return
        self._running = _Run(self)
        try:
            await self._running.serve(until_idle=until_idle)
        finally:
            self._running = None


class _Run:
    """One run of a worker, on one event loop."""

    def __init__(self, worker: Worker) -> None:
        self._queue = worker.queue
        self._concurrency = worker.concurrency
        self._lease = worker.lease
        self._poll = worker.poll.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._attempts: dict[asyncio.Task[None], _Attempt] = {}
        self._executor = ThreadPoolExecutor(worker.concurrency, thread_name_prefix="taskqueue-worker")
        self._threads_are_idle = True

    def stop(self) -> None:
        if threading.get_ident() == self._thread:
            self._set_stop()
            return
        # A closed loop, seen from a thread that outlived it, has nothing left to stop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_stop)

    def _set_stop(self) -> None:
        if not self._stop.done():
            self._stop.set_result(None)

    async def serve(self, *, until_idle: bool) -> None:
        try:
            # Connects, and makes a store that cannot be reached an error at the start.
            await self._queue.next_due()
            try:
                await self._claim_and_start(until_idle=until_idle)
            except Exception:
                await self._all_ended()
                raise
            await self._all_ended()
        finally:
            # Only a cancelled run has attempts left here.
            await self._interrupt()
            self._executor.shutdown(wait=self._threads_are_idle)

    async def _claim_and_start(self, *, until_idle: bool) -> None:
        rest = _FIRST_REST
        while not self._stop.done():
            free = self._concurrency - len(self._attempts)
            if not free:
                await self._first_of(*self._attempts)
                continue
            try:
                # Asked before the claim: a task that ends meanwhile may have enqueued another one.
                busy = bool(self._attempts)
                if await self._claim(free) == 0:
                    if until_idle and not busy:
                        return
                    await self._idle(free, until_idle=until_idle)
                rest = _FIRST_REST
            except _HOPELESS:
                raise
            except Exception as error:  # whatever it is, a store that is away comes back
                logger.warning("cannot claim tasks, trying again in %.3g s: %s", rest, error_text(error))
                logger.debug("in full:", exc_info=error)
                await self._first_of(timeout=rest)
                rest = min(2 * rest, max(self._poll, _FIRST_REST))

    async def _idle(self, free: int, *, until_idle: bool) -> None:
        # Read before the claim that follows: what is due now and not claimed then is the lease of a task that runs
        # elsewhere, and to wait for an instant in the past would be a busy loop.
        due = await self._queue.next_due()
        now = self._queue.now()
        seconds = self._poll
        if due is not None and due > now:
            seconds = min(seconds, max((due - now).total_seconds(), _SHORTEST_WAIT))
        async with watching(self._queue.wait, seconds) as change:
            if await self._claim(free) or (until_idle and not self._attempts):
                return
            await self._first_of(change, *self._attempts)
            if change.done():
                await change

    async def _first_of(self, *others: asyncio.Task[None], timeout: float | None = None) -> None:  # noqa: ASYNC109 - passed on
        await asyncio.wait([self._stop, *others], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self, limit: int) -> int:
        claiming = asyncio.create_task(self._claimed(limit), name="taskqueue-claim")
        try:
            await asyncio.wait([claiming])
        finally:
            # Never cancelled: what it took would be lost until its lease ran out, with an attempt spent.
            while not claiming.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([claiming])
            if not claiming.cancelled() and claiming.exception() is None:
                for task in claiming.result():
                    self._start(task)
        return len(claiming.result())

    async def _claimed(self, limit: int) -> list[Task]:
        # Asked in the task that claims: `stop` may be called after it was made and before its first step.
        return [] if self._stop.done() else await self._queue.claim(limit, lease=self._lease)

    def _start(self, task: Task) -> None:
        attempt = _Attempt(self._queue, task, self._executor)
        attending = self._loop.create_task(attempt.attend(), name=f"taskqueue-attempt-{task.id}")
        self._attempts[attending] = attempt
        attending.add_done_callback(self._ended)

    def _ended(self, attending: asyncio.Task[None]) -> None:
        attempt = self._attempts.pop(attending)
        if attempt.runs_on:
            self._threads_are_idle = False

    async def _all_ended(self) -> None:
        if self._attempts:
            await asyncio.wait(self._attempts)

    async def _interrupt(self) -> None:
        if not self._attempts:
            return
        self._threads_are_idle = False
        for attempt in self._attempts.values():
            attempt.interrupt()
        cancelled = False
        while self._attempts:
            try:
                await self._all_ended()
            except asyncio.CancelledError:
                # The second time: give up recording; the leases bring these tasks back.
                cancelled = True
                for attending in self._attempts:
                    attending.cancel()
        if cancelled:
            raise asyncio.CancelledError


class _Attempt:
    """One claimed task: runs it and records the outcome. Nothing that the task does gets out of here."""

    def __init__(self, queue: TaskQueue, task: Task, executor: Executor) -> None:
        self._queue = queue
        self._task = task
        self._executor = executor
        self._execution: Execution | None = None
        self._interrupted = False

    @property
    def runs_on(self) -> bool:
        """Whether the function still runs in its thread."""
        return self._execution is not None and self._execution.in_thread

    def interrupt(self) -> None:
        """End the attempt at the next await of its coroutine; it is recorded as failed if it does not return."""
        self._interrupted = True
        if self._execution is not None:
            self._execution.interrupt()

    async def attend(self) -> None:
        outcome = await self._outcome()
        if isinstance(outcome, Returned):
            problem = await self._complete(outcome.value)
            if problem is None:
                return
            outcome = Raised(problem)
        await self._fail(outcome.error)

    async def _outcome(self) -> Returned | Raised:
        task = self._task
        if self._interrupted:
            return Raised(asyncio.CancelledError())
        try:
            call = self._queue.load_call(task)
        except BaseException as error:  # noqa: BLE001 - loading may run any code, which may even call sys.exit
            return Raised(error)
        current = CurrentTask(id=task.id, attempt=task.attempts, context=call.context)
        self._execution = Execution(call, current, self._executor)
        while True:
            try:
                return await self._execution.outcome()
            except asyncio.CancelledError:
                # The end of asyncio.run cancels every task of the loop. The call has to end before its outcome.
                self.interrupt()

    async def _complete(self, value: object) -> BaseException | None:
        """Record the value; return why this task cannot have it, if so."""
        task = self._task
        try:
            await self._persist(lambda: self._queue.complete_task(task.id, task.attempts, value))
        except asyncio.CancelledError as error:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise
            return error
        except (Exception, *_LETHAL) as error:  # noqa: BLE001 - the value's own code may raise anything as well
            return error
        return None

    async def _fail(self, error: BaseException) -> None:
        task = self._task
        described: BaseException | str = error
        trace = None
        if self._interrupted and isinstance(error, asyncio.CancelledError):
            described = "interrupted: the worker was cancelled "
            if self._execution is None or not self._execution.began:
                described += "before the task began"
            elif self._execution.in_thread:
                described += "while the function ran in a thread, which cannot be interrupted and runs on"
            else:
                described += "before the task had ended"
            trace = traceback_text(error)
        try:
            failed = await self._persist(
                lambda: self._queue.fail_task(task.id, task.attempts, described, traceback=trace)
            )
        except Exception as problem:  # noqa: BLE001 - nobody is left to tell but the log
            logger.error(  # noqa: TRY400 - the trace that matters is the task's, which is not this one
                "task %s: the failure of attempt %d cannot be recorded, so its lease will run out: %s; the failure: %s",
                task.id,
                task.attempts,
                error_text(problem),
                error_text(described),
            )
            return
        if failed is None:
            return
        reason = failed.failures[-1].error
        if failed.status is TaskStatus.PENDING:
            eta = failed.available_at
            logger.warning("task %s: attempt %d failed, due again at %s: %s", task.id, task.attempts, eta, reason)
        else:
            logger.error("task %s: attempt %d failed, and was the last: %s", task.id, task.attempts, reason)

    async def _persist(self, record: Callable[[], Awaitable[T]]) -> T | None:
        """Record an outcome, trying again while the store is away; None if the queue refused it.

        Raises whatever trying again cannot heal, and the error of the last try.
        """
        task = self._task
        rest = _FIRST_REST
        for tries_left in reversed(range(_TRIES_TO_RECORD)):
            try:
                return await record()
            except (StaleClaim, TaskNotFound) as refusal:
                # After an answer that was lost this can also mean that the outcome is recorded already.
                logger.warning("task %s: the outcome of attempt %d is dropped: %s", task.id, task.attempts, refusal)
                return None
            except (SerializationError, TooLarge, *_HOPELESS):
                raise
            except Exception as error:
                if not tries_left:
                    raise
                logger.warning(
                    "task %s: cannot record its outcome, trying again in %.3g s: %s", task.id, rest, error_text(error)
                )
                await asyncio.sleep(rest)
                rest *= 2
        return None
