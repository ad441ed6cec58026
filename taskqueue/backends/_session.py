"""What the sessions of all backends with a connection have in common: one connected period of a handle."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet, ref


class BaseSession(ABC):
    """One connected period of a handle, on the running event loop and in this process. It begins to open at once.

    Attributes:
        closed: Whether it has been closed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connecting = 0
        self._connected = False
        self._guardian: Any = _close_at_shutdown(ref(self))  # typing does not know ag_running
        self._opening = self._loop.create_task(self._open())
        self._closing: asyncio.Task[None] | None = None
        self.closed = False
        _SESSIONS.add(self)

    @property
    def usable(self) -> bool:
        """Whether a connect has returned and nobody has called close."""
        return self._connected and self._closing is None

    @property
    def closing(self) -> "asyncio.Task[None] | None":
        """The task that closes the session, or None before somebody has called close."""
        return self._closing

    async def connected(self) -> None:
        """Wait until the session is open. If that fails, or everybody who waits here is cancelled, it is closed."""
        self._connecting += 1
        try:
            await asyncio.wait((self._opening,))
            self._opening.result()
            self._connected = True
        finally:
            self._connecting -= 1
            if not self._connecting and not self._connected:
                self._give_up_opening()
                await finished(self.close())

    def close(self) -> "asyncio.Task[None]":
        """Begin to close, once the calls under way have been answered; return the task that does it. Idempotent."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
            self._wake()
        return self._closing

    async def _open(self) -> None:
        await self._open_store()
        await anext(self._guardian)

    async def _close(self) -> None:
        await finished(self._opening)
        if self._opening.cancelled() or self._opening.exception() is not None:
            return
        await self._close_store()
        self.closed = True
        if not self._guardian.ag_running:
            await self._guardian.aclose()

    @abstractmethod
    def _give_up_opening(self) -> None:
        """Take note that nobody waits for the session to open any more."""

    @abstractmethod
    def _wake(self) -> None:
        """End every ``wait``."""

    @abstractmethod
    async def _open_store(self) -> None:
        """Open it, or raise and leave nothing open."""

    @abstractmethod
    async def _close_store(self) -> None:
        """Answer the calls under way, and leave nothing open."""

    @abstractmethod
    def _explained(self, error: BaseException) -> Exception | None:
        """Return what an error of the driver means to the caller, or None for one that is to be raised as it is."""

    def _answer(self, answer: "asyncio.Future[Any]", outcome: Any) -> None:
        """Give a caller its result, or the exception that is to be raised."""
        if answer.done():
            return
        if isinstance(outcome, BaseException):
            answer.set_exception(self._to_raise(outcome))
        else:
            answer.set_result(outcome)

    def _to_raise(self, error: BaseException) -> BaseException:
        """Return what a caller gets for an error."""
        explained = self._explained(error)
        if explained is None:
            return error
        explained.__cause__ = error
        return explained


async def finished(future: "asyncio.Future[Any]") -> None:
    """Wait until ``future`` is done, however often the waiting task is cancelled. Raises nothing."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((future,))


async def _close_at_shutdown(session: "ref[BaseSession]") -> AsyncGenerator[None, None]:
    """Close the session when the event loop shuts its asynchronous generators down, if nobody has closed it before."""
    try:
        yield
    finally:
        forgotten = session()
        if forgotten is not None and not forgotten.closed:
            await finished(forgotten.close())


# A forked child must not use what its parent has open, nor close it: to collect a session there would be to do so, or
# to end tasks and threads that are not there.
_SESSIONS: "WeakSet[BaseSession]" = WeakSet()
_INHERITED: Final[list[BaseSession]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_SESSIONS))
