"""One execution of one call, apart from everything around it: nothing that the function does gets out of here."""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

from taskqueue.current import CurrentTask, running
from taskqueue.queue import Call


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised; or it was interrupted, and then the error is a ``CancelledError``."""

    error: BaseException


class Execution:
    """Runs one call: a coroutine on the event loop, anything else in a thread of ``executor``.

    The call has an asyncio task of its own, so that cancelling it, or its cancelling itself, touches nothing else. What
    a plain function returns is awaited if it can be, as ``lambda: coroutine()`` expects.

    Args:
        call: What to run.
        current: What ``current_task()`` gives inside.
        executor: Where plain functions run.
        loop: The running event loop, which is expensive to ask for.
    """

    def __init__(self, call: Call, current: CurrentTask, executor: Executor, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._executor = executor
        self._loop = loop
        self._job: Future[Returned | Raised] | None = None
        self._abandoned = False
        self._end: asyncio.Future[None] | None = None
        self.began = False
        context = contextvars.copy_context()
        context.run(running.set, current)
        self.task = self._loop.create_task(
            self._run(), name=f"taskqueue-{current.id}-{current.attempt}", context=context
        )
        self.task.add_done_callback(self._ended)

    @property
    def in_thread(self) -> bool:
        """Whether the function runs in its thread at this moment."""
        return self._job is not None and self._job.running()

    @property
    def runs_on(self) -> bool:
        """Whether anything of the call runs still."""
        return not self.task.done() or self.in_thread

    def interrupt(self) -> None:
        """Cancel the call at its next await. A function in a thread runs on; only its outcome is dropped."""
        self.task.cancel()

    def abandon(self) -> None:
        """Stop waiting for a coroutine that goes on though it was interrupted."""
        self._abandoned = True
        self._ended(self.task)

    def _ended(self, _: "asyncio.Task[Returned | Raised]") -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    async def outcome(self) -> Returned | Raised:
        """Wait for the call to end, and return how. Cancelling this does not interrupt the call. For one at a time."""
        if not (self.task.done() or self._abandoned):
            self._end = self._loop.create_future()
            await self._end
        if not self.task.done() or self.task.cancelled():
            # Abandoned; or cancelled before its first step, or at its very end by its own doing. Else `_run` catches.
            return Raised(asyncio.CancelledError())
        return self.task.result()

    async def over(self) -> None:
        """Wait until nothing of the call runs any more. Cancelling this does not interrupt the call."""
        parts: list[asyncio.Future[Any]] = [self.task]
        if self._job is not None:
            parts.append(asyncio.wrap_future(self._job))
        try:
            await asyncio.wait(parts)
        finally:
            # Without this a function that outlives the event loop would fail to report to it. The function itself
            # is not cancelled, since it runs.
            for job in parts[1:]:
                job.cancel()

    async def _run(self) -> Returned | Raised:
        self.began = True
        call = self._call
        try:
            if is_async(call.func):
                return Returned(await call.func(*call.args, **call.kwargs))
            # A context can be entered once at a time, and this task is in its own.
            self._job = self._executor.submit(contextvars.copy_context().run, self._run_in_thread)
            outcome = await asyncio.wrap_future(self._job)
            if isinstance(outcome, Returned) and inspect.isawaitable(outcome.value):
                awaitable: Awaitable[Any] = outcome.value
                return Returned(await awaitable)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the loop; it is this task's outcome
            if self._job is not None:
                self._job.add_done_callback(_discard)
            return Raised(error)
        return outcome

    def _run_in_thread(self) -> Returned | Raised:
        call = self._call
        try:
            return Returned(call.func(*call.args, **call.kwargs))
        except BaseException as error:  # noqa: BLE001 - as above; and a StopIteration cannot cross a future
            return Raised(error)


def _discard(job: "Future[Returned | Raised]") -> None:
    """Close a coroutine that nobody will await, because its attempt was interrupted before the function returned it."""
    outcome = None if job.cancelled() else job.result()
    if isinstance(outcome, Returned) and inspect.iscoroutine(outcome.value):
        outcome.value.close()


def is_async(func: Callable[..., Any]) -> bool:
    """Tell whether calling ``func`` gives a coroutine: a coroutine function, partial of one, or async ``__call__``."""
    if type(func) is FunctionType and func.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # as nearly always, and to ask `inspect` takes long
    while isinstance(func, partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004 - asks what kind of function it is, not whether there is one
