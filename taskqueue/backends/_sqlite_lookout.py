"""Waiting for a change of a store, by whichever process."""

import asyncio
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from taskqueue.backends._sqlite_changes import listen, unlisten, wake
from taskqueue.backends._sqlite_inotify import LogWatch
from taskqueue.backends._sqlite_operations import Operation, nothing

T = TypeVar("T")

_POLL_SECONDS: Final = 0.03
_SAFETY_SECONDS: Final = 0.5
_FIRST_PAUSE_SECONDS: Final = 0.0005
_WAKES_IN_A_ROW: Final = 10
_WAKE_SECONDS: Final = 0.02


class _Submit(Protocol):
    def __call__(self, operation: Operation[T], /) -> "asyncio.Future[T]": ...


class Lookout:
    """Ends the waits of one session, on its event loop.

    Changes in this process are announced (``_sqlite_changes``). For those of others SQLite's data version is compared
    with what the last call of the session saw, so that none in between is missed. It is looked at when the kernel
    tells that somebody writes: at once, and then after growing pauses, since a write comes before its commit, perhaps
    together with a commit before it; so the pauses grow on when a wait has ended and the next one begins. Behind
    that it is looked at now and then all the same, and more often where the kernel tells nothing. Nothing runs while
    nobody waits.

    A store that others keep changing must not keep its waiters busy: after ``_WAKES_IN_A_ROW`` they are woken only
    every ``_WAKE_SECONDS``, until there is a pause or a change of their own.

    Args:
        store: The file, without symbolic links: where its log lies, and the name under which changes in this process
            are announced.
        submit: Queues an operation of the session; one that has been run is told to :meth:`see`.
    """

    def __init__(self, store: str, submit: _Submit) -> None:
        self._store = store
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._version: int | None = None
        self._wakes = _Allowance()
        self._waking: asyncio.TimerHandle | None = None
        self._looking: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _SAFETY_SECONDS
        self._watch: LogWatch | None = None
        self._watched = False
        self._opening: asyncio.Future[LogWatch | None] | None = None
        self._closed = False

    async def wait(self, seconds: float) -> None:
        """Wait for a change, for :meth:`wake`, or until the time is up.

        Raises:
            StoreUnavailable: A look at the store failed.
        """
        if seconds <= 0:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        listen(self._store, waiter)
        end = self._loop.call_later(seconds, wake, waiter)
        try:
            self._begin()
            await waiter
        finally:
            end.cancel()
            unlisten(self._store, waiter)
            self._waiters.discard(waiter)
            if not waiter.done():
                waiter.cancel()
            elif not waiter.cancelled():
                waiter.exception()  # seen, also where this was cancelled
            if not self._waiters:
                self._end()

    def see(self, version: int | None, *, changed: bool) -> None:
        """Take note of the data version that a call found, and whether that call changed the store itself.

        It may be None for calls that did not ask: then an earlier one is compared, and a wait may end early.
        """
        if changed:
            self._wakes.renew()
        if version is None or version == self._version:
            return
        self._version = version
        if self._waiters and self._waking is None:
            delay = self._wakes.take(self._loop.time())
            if delay:
                self._waking = self._loop.call_later(delay, self.wake)
            else:
                self.wake()

    def wake(self) -> None:
        """End every wait."""
        self._cancel_waking()
        for waiter in self._waiters:
            wake(waiter)

    def close(self) -> None:
        """Release what is open. Also once the event loop has been closed."""
        self._closed = True
        self._end()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    # From _begin to _end there is always a look under way, a timer for the next one, a timer that ends the waits, or
    # a watch being opened, which a look follows.

    def _begin(self) -> None:
        if self._closed or any((self._looking, self._timer, self._waking, self._opening)):
            return
        if self._watched:
            self._rest()
        else:
            self._opening = self._submit(Operation(self._open_watch, writes=False))
            self._opening.add_done_callback(self._opened)

    def _open_watch(self, _: Any) -> LogWatch | None:
        try:
            return LogWatch(self._store)
        except OSError:
            return None

    def _opened(self, opening: "asyncio.Future[LogWatch | None]") -> None:
        self._opening = None
        if opening.cancelled():
            return
        if (error := opening.exception()) is not None:
            self._fail(error)
            return
        self._watched = True
        self._watch = opening.result()
        if self._closed:
            self.close()
        elif self._waiters:
            self._look()

    def _rung(self) -> None:
        """Look, since somebody writes."""
        if self._watch is not None:
            self._watch.drain()
        self._cancel_timer()
        self._pause = _FIRST_PAUSE_SECONDS
        self._look()

    def _look(self) -> None:
        self._unwatch()
        self._timer = None
        self._looking = self._submit(nothing())
        self._looking.add_done_callback(self._looked)

    def _looked(self, looking: "asyncio.Future[None]") -> None:
        error = None if looking.cancelled() else looking.exception()
        if self._looking is not looking:
            return
        self._looking = None
        if error is not None:
            self._fail(error)
        elif self._waiters and self._waking is None:
            self._rest()

    def _rest(self) -> None:
        """Look again later, or as soon as the kernel tells of a write."""
        pause = min(self._pause, _SAFETY_SECONDS if self._listen() else _POLL_SECONDS)
        self._pause = min(2 * self._pause, _SAFETY_SECONDS)
        self._timer = self._loop.call_later(pause, self._look)

    def _listen(self) -> bool:
        if self._watch is None:
            return False
        try:
            self._loop.add_reader(self._watch.fileno(), self._rung)
        except NotImplementedError:  # on event loops that watch no descriptors
            self._watch.close()
            self._watch = None
            return False
        return True

    def _fail(self, error: BaseException) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _end(self) -> None:
        self._cancel_waking()
        self._cancel_timer()
        looking, self._looking = self._looking, None
        with suppress(RuntimeError):  # the event loop has been closed
            if looking is not None:
                looking.cancel()
        self._unwatch()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _cancel_waking(self) -> None:
        waking, self._waking = self._waking, None
        if waking is not None:
            waking.cancel()

    def _unwatch(self) -> None:
        if self._watch is not None:
            with suppress(RuntimeError, NotImplementedError):  # the event loop has been closed, or never watched it
                self._loop.remove_reader(self._watch.fileno())


class _Allowance:
    """How often waiters may be woken: a token bucket."""

    def __init__(self) -> None:
        self._paid_until = 0.0

    def renew(self) -> None:
        self._paid_until = 0.0

    def take(self, now: float) -> float:
        """Return in how many seconds the next wake-up may be."""
        self._paid_until = max(self._paid_until, now) + _WAKE_SECONDS
        return max(0.0, self._paid_until - now - _WAKES_IN_A_ROW * _WAKE_SECONDS)
