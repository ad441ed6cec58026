"""One claimed task: runs it and records the outcome."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from taskqueue._execution import Execution, Raised, Returned
from taskqueue._text import log_text, traceback_text
from taskqueue.current import Cancellation, CurrentTask, running
from taskqueue.errors import (
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    SerializationError,
    StaleClaim,
    StoreUnavailable,
    TaskNotFound,
    TooLarge,
)
from taskqueue.queue import TaskQueue
from taskqueue.status import TaskStatus
from taskqueue.task import Task

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("taskqueue.worker")

HOPELESS: Final = (NotConnected, IncompatibleStore, InvalidArgument)
"""What repeating cannot heal: the worker ends with it instead of logging it for ever."""
PATIENCE: Final = 5.0
"""How many seconds a coroutine has to end after it was interrupted because its worker ends; then its outcome has as
many again to be recorded, should the store be away."""

_FIRST_REST: Final = 0.1
_LONGEST_REST: Final = 2.0
_LONGEST_RECORDING: Final = 3600.0
"""For how many seconds an outcome is kept while the store is away. Not for ever, since a single record that is damaged
looks the same."""
_TRIES_TO_RECORD: Final = 6
"""How often it is tried if what goes wrong is not that the store is away."""
CANCELLED: Final = "the worker was cancelled"
"""Why an attempt is interrupted whose worker is cancelled."""
# What asyncio lets through to the loop, or what ends a coroutine; a task's own code may raise them too.
_LETHAL: Final = (SystemExit, KeyboardInterrupt, GeneratorExit)


class Owner(Protocol):
    """Who starts attempts, and hears of them on the event loop."""

    @property
    def cancelled(self) -> bool:
        """Whether it is being cancelled itself."""

    def attempt_has_outcome(self, attempt: "Attempt") -> None:
        """There is an outcome, which is not recorded yet."""

    def attempt_ended(self, attempt: "Attempt") -> None:
        """The outcome is recorded, or given up. What was called may run on."""


class Attempt:
    """One claimed task: runs it and records the outcome. Nothing that the task does gets out of here.

    The call runs in the asyncio task that then records its outcome, for a second one would cost as much as all that a
    short task does. Where the task's own code may still cancel that one, another one records.

    Args:
        queue: Where the outcome is recorded.
        task: As it was claimed.
        executor: Where plain functions run.
        owner: Who hears of the outcome and of the end.
        loop: The running event loop, which is expensive to ask for.

    Attributes:
        claim: The id of the task and the number of the attempt.
        cancellation: What ``current_task().cancelled`` shows inside; may be set from any thread.
        interrupted: Whether it was recorded as failed because it was interrupted, or could not be recorded at all
            before its worker ended.
    """

    def __init__(
        self,
        queue: TaskQueue,
        task: Task,
        executor: Executor,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.claim = (task.id, task.attempts)
        self.cancellation = Cancellation()
        self.interrupted = False
        self._queue = queue
        self._task = task
        self._executor = executor
        self._owner = owner
        self._loop = loop
        self._runner: asyncio.Task[None] | None = None
        self._recorder: asyncio.Task[None] | None = None
        self._execution: Execution | None = None
        self._has_outcome = False
        self._given_up = False
        self._lost = False
        self._interruption: str | None = None
        self._overrun: float | None = None
        self._losing_patience: asyncio.TimerHandle | None = None
        self._record_until = math.inf

    @property
    def runs_on(self) -> bool:
        """Whether the call still runs: a function in a thread, or a coroutine that ignored its cancellation."""
        return self._execution is not None and self._execution.runs_on

    def begin(self) -> None:
        """Start to run the task. Call it once."""
        self._runner = self._loop.create_task(self._run(), name=f"taskqueue-{self.claim[0]}-{self.claim[1]}")
        self._runner.add_done_callback(self._run_ended)

    async def over(self) -> None:
        """Wait until the call does not run any more. Cancelling this does not interrupt the call."""
        if self._runner is not None:
            await asyncio.wait([self._runner])
        if self._execution is not None:
            await self._execution.function_ended()

    def is_run_by(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether ``task`` is one of those that this attempt consists of. Callable from any thread."""
        return task is self._runner or task is self._recorder

    def interrupt(self, why: str) -> None:
        """End the attempt at the next await of its coroutine; it is recorded as failed if it does not return.

        A function in a thread is recorded as failed at once, a coroutine that goes on after ``PATIENCE`` seconds. An
        outcome that cannot be recorded, because the store is away, is given up after as many.
        """
        if self._has_outcome:
            self._limit_recording(PATIENCE)
            return
        self._interruption = self._interruption or why
        if self._losing_patience is None:
            self._losing_patience = self._loop.call_later(PATIENCE, self._abandon)
        self._cut()

    def lose(self) -> None:
        """End the attempt: its claim is not held any more, so nothing can be recorded."""
        # While the outcome is being recorded, a claim that is not held may mean that it is recorded.
        if not self._has_outcome:
            self._lost = True
            self._cut()

    def give_up(self) -> None:
        """Stop recording the outcome: the lease will run out. Where there is none yet, interrupt once more."""
        if not self._has_outcome:
            self.interrupt(CANCELLED)
            return
        self._given_up = True
        recording = self._recorder or self._runner
        if recording is not None:
            recording.cancel()

    async def _run(self) -> None:
        outcome = await self._outcome()
        if isinstance(outcome, Returned) and self._is_cancelling():
            outcome = await self._unless_cancelled(outcome)
        # Whoever abandoned the call has seen to its outcome; and whoever closes an event loop may throw away what runs.
        if self._has_outcome or not self._loop.is_running():
            return
        self._take(outcome)
        if not self._is_cancelling():
            try:
                await self._record(outcome)
            except asyncio.CancelledError:
                if self._given_up:
                    raise
                # By something that the task's code has left behind.
            else:
                return
        self._record_apart(outcome)

    @staticmethod
    async def _unless_cancelled(outcome: Returned) -> Returned | Raised:
        """Let a cancellation of this asyncio task that has not taken effect, since the call ended first, do so."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            return Raised(error)
        return outcome

    def _is_cancelling(self) -> bool:
        """Tell whether somebody has cancelled what runs the task: it can take effect, or be repeated, at any await."""
        return self._runner is not None and self._runner.cancelling() > 0

    def _run_ended(self, _: asyncio.Task[None]) -> None:
        if not self._has_outcome:
            # Cancelled before its first step, by somebody who cancels whatever there is.
            self._end_unfinished()
        if self._recorder is None:
            self._owner.attempt_ended(self)

    def _end_unfinished(self) -> None:
        outcome = Raised(asyncio.CancelledError())
        self._take(outcome)
        self._record_apart(outcome)

    def _take(self, outcome: Returned | Raised) -> None:
        """Note that there is an outcome now."""
        self._has_outcome = True
        if self._interruption is None and _is_cancellation(outcome) and self._owner.cancelled:
            # The end of asyncio.run cancels every task of the loop, and this one may be told before its owner.
            self._interruption = CANCELLED
        self._limit_recording(_LONGEST_RECORDING if self._interruption is None else PATIENCE)
        self._owner.attempt_has_outcome(self)

    async def _record(self, outcome: Returned | Raised) -> None:
        if self._lost:
            self._log_dropped("its claim was lost, for the task was cancelled, recovered by another worker or purged")
            return
        if self._overrun is None and isinstance(outcome, Returned):
            problem = await self._complete(outcome.value)
            if problem is None:
                return
            outcome = Raised(problem)
        await self._fail(outcome)

    def _record_apart(self, outcome: Returned | Raised) -> None:
        """Record it in an asyncio task of which the task's code knows nothing."""
        self._recorder = self._loop.create_task(self._record(outcome), name=f"taskqueue-outcome-{self.claim[0]}")
        self._recorder.add_done_callback(self._recorded)

    def _recorded(self, _: asyncio.Task[None]) -> None:
        self._owner.attempt_ended(self)

    def _cut(self) -> None:
        self.cancellation.requested = True
        # One that has not begun sees it when it would.
        if self._execution is not None and self._runner is not None:
            self._runner.cancel()

    def _limit_recording(self, seconds: float) -> None:
        self._record_until = min(self._record_until, self._loop.time() + seconds)

    def _abandon(self) -> None:
        if not self._has_outcome and self._execution is not None:
            self._end_unfinished()

    def _time_out(self, seconds: float) -> None:
        self._overrun = seconds
        self._cut()

    async def _outcome(self) -> Returned | Raised:
        task = self._task
        if self._lost or self._interruption is not None:
            return Raised(asyncio.CancelledError())
        try:
            call = self._queue.load_call(task)
        except BaseException as error:  # noqa: BLE001 - loading may run any code, which may even call sys.exit
            return Raised(error)
        execution = self._execution = Execution(call, self._executor)
        running.set(
            CurrentTask(id=task.id, attempt=task.attempts, context=call.context, _cancellation=self.cancellation)
        )
        timer = None
        if call.timeout is not None:
            timer = self._loop.call_later(call.timeout, self._time_out, call.timeout)
        try:
            return await execution.outcome()
        finally:
            running.set(None)
            for handle in (timer, self._losing_patience):
                if handle is not None:
                    handle.cancel()

    async def _complete(self, value: object) -> BaseException | None:
        """Record the value; return why this task cannot have it, if so."""
        task = self._task
        try:
            await self._persist(self._queue.complete_task, task.id, task.attempts, value)
        except asyncio.CancelledError as error:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise
            return error  # the value's own doing
        except StoreUnavailable as problem:
            self._give_up("outcome", problem)
        except (Exception, *_LETHAL) as error:  # noqa: BLE001 - the value's own code may raise anything as well
            return error
        return None

    async def _fail(self, outcome: Returned | Raised) -> None:
        task = self._task
        described = self._described(outcome)
        # Where it was when it was cancelled.
        trace = traceback_text(outcome.error) if isinstance(outcome, Raised) else None
        try:
            failed = await self._persist(self._queue.fail_task, task.id, task.attempts, described, traceback=trace)
        except Exception as problem:  # noqa: BLE001 - nobody is left to tell but the log
            self._give_up("failure", problem, f"; the failure: {log_text(described)}")
            return
        if failed is None:
            return
        reason = log_text(failed.failures[-1].error)
        if failed.status is TaskStatus.PENDING:
            eta = failed.available_at
            logger.warning("task %s: attempt %d failed, due again at %s: %s", task.id, task.attempts, eta, reason)
        else:
            logger.error("task %s: attempt %d failed, and was the last: %s", task.id, task.attempts, reason)

    def _described(self, outcome: Returned | Raised) -> BaseException | str:
        """Say why the attempt failed: with the exception itself, unless that is only how it was ended."""
        execution = self._execution
        in_thread = execution is not None and execution.in_thread
        if self._overrun is not None:
            text = f"TimeoutError: the task ran longer than its timeout of {self._overrun:g} s"
            return f"{text}; its thread cannot be interrupted, and runs on" if in_thread else text
        error = outcome.error if isinstance(outcome, Raised) else asyncio.CancelledError()
        if self._interruption is None or not isinstance(error, asyncio.CancelledError):
            return error
        self.interrupted = True
        if execution is None:
            how = "before the task began"
        elif in_thread:
            how = "while the function ran in a thread, which cannot be interrupted and runs on"
        elif execution.runs_on:
            how = "while the coroutine ran, which ignored its cancellation and goes on"
        else:
            how = "before the task had ended"
        return f"interrupted: {self._interruption} {how}"

    def _log_dropped(self, why: object) -> None:
        logger.warning("task %s: the outcome of attempt %d is dropped: %s", self._task.id, self._task.attempts, why)

    def _give_up(self, what: str, problem: BaseException, more: str = "") -> None:
        self.interrupted = True
        logger.error(
            "task %s: the %s of attempt %d cannot be recorded, so its lease will run out: %s%s",
            self._task.id,
            what,
            self._task.attempts,
            log_text(problem),
            more,
        )

    async def _persist(self, record: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Record an outcome, trying again while the store is away; None if the queue refused it.

        Nobody but this worker has the outcome, and its lease is extended as soon as the store is back; so it is kept
        until it is recorded or refused, for an hour, or until the worker ends. Raises whatever trying again cannot
        heal, and the error of the last try.
        """
        rest, tries = _FIRST_REST, 0
        while True:
            tries += 1
            try:
                recorded = await record(*args, **kwargs)
            except (StaleClaim, TaskNotFound) as refusal:
                # After an answer that was lost this can also mean that the outcome is recorded already.
                self._log_dropped(refusal)
                return None
            except (SerializationError, TooLarge, *HOPELESS):
                raise
            except Exception as error:
                if not self._may_try_again(error, tries, rest):
                    raise
                # One line for each task, and not one for each try: the store may be away for hours.
                level = logging.DEBUG if tries > 1 else logging.WARNING
                why = log_text(error)
                logger.log(level, "task %s: cannot record its outcome, trying again: %s", self._task.id, why)
                await asyncio.sleep(rest)
                rest = min(2 * rest, _LONGEST_REST)
            else:
                if tries > 1:
                    logger.warning("task %s: recorded its outcome, at try %d", self._task.id, tries)
                return recorded

    def _may_try_again(self, error: Exception, tries: int, rest: float) -> bool:
        if not isinstance(error, StoreUnavailable):
            return tries < _TRIES_TO_RECORD
        return self._loop.time() + rest < self._record_until


def _is_cancellation(outcome: Returned | Raised) -> bool:
    return isinstance(outcome, Raised) and isinstance(outcome.error, asyncio.CancelledError)
