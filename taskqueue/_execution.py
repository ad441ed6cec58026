"""One execution of one call, apart from everything around it: nothing that the function does gets out of here."""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
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
    """

    def __init__(self, call: Call, current: CurrentTask, executor: Executor) -> None:
        self._call = call
        self._executor = executor
        self.began = False
        self.in_thread = False
        context = contextvars.copy_context()
        context.run(running.set, current)
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"taskqueue-{current.id}-{current.attempt}", context=context
        )

    def interrupt(self) -> None:
        """Cancel the call at its next await. A function in a thread runs on; only its outcome is dropped."""
        self._task.cancel()

    async def outcome(self) -> Returned | Raised:
        """Wait for the call to end, and return how. Cancelling this does not interrupt the call."""
        await asyncio.wait([self._task])
        if self._task.cancelled():
            # Before its first step, or at its very end by its own doing; everything else `_run` catches.
            return Raised(asyncio.CancelledError())
        return self._task.result()

    async def _run(self) -> Returned | Raised:
        self.began = True
        call = self._call
        try:
            if is_async(call.func):
                return Returned(await call.func(*call.args, **call.kwargs))
            outcome = await asyncio.get_running_loop().run_in_executor(
                # A context can be entered once at a time, and this task is in its own.
                self._executor,
                partial(contextvars.copy_context().run, self._run_in_thread),
            )
            if isinstance(outcome, Returned) and inspect.isawaitable(outcome.value):
                awaitable: Awaitable[Any] = outcome.value
                return Returned(await awaitable)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the loop; it is this task's outcome
            return Raised(error)
        return outcome

    def _run_in_thread(self) -> Returned | Raised:
        call = self._call
        self.in_thread = True
        try:
            return Returned(call.func(*call.args, **call.kwargs))
        except BaseException as error:  # noqa: BLE001 - as above; and a StopIteration cannot cross a future
            return Raised(error)
        finally:
            self.in_thread = False


def is_async(func: Callable[..., Any]) -> bool:
    """Tell whether calling ``func`` gives a coroutine: a coroutine function, partial of one, or async ``__call__``."""
    while isinstance(func, partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004 - asks what kind of function it is, not whether there is one
