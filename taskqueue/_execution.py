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
    """Runs one call, in the asyncio task that awaits it: a coroutine there, anything else in a thread of ``executor``.

    What a plain function returns is awaited if it can be, as ``lambda: coroutine()`` expects.

    Args:
        call: What to run.
        executor: Where plain functions run.
    """

    def __init__(self, call: Call, executor: Executor) -> None:
        self._call = call
        self._executor = executor
        self._job: Future[Returned | Raised] | None = None
        self._ended = False

    @property
    def in_thread(self) -> bool:
        """Whether the function runs in its thread at this moment."""
        return self._job is not None and self._job.running()

    @property
    def runs_on(self) -> bool:
        """Whether anything of the call runs still."""
        return not self._ended or self.in_thread

    async def outcome(self) -> Returned | Raised:
        """Run the call, once, and return how it ended. To cancel the asyncio task that awaits this is to interrupt it.

        A function in a thread cannot be interrupted, and runs on; only its outcome is dropped.
        """
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
        else:
            return outcome
        finally:
            self._ended = True

    async def function_ended(self) -> None:
        """Wait until the function does not run in its thread any more. Cancelling this does not interrupt it."""
        if self._job is None:
            return
        waiting = asyncio.wrap_future(self._job)
        try:
            await asyncio.wait([waiting])
        finally:
            # Without this a function that outlives the event loop would fail to report to it. The function itself
            # is not cancelled, since it runs.
            waiting.cancel()

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
