"""An event loop in a thread of its own, to which other threads hand coroutines and wait for them."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar
from weakref import WeakSet

from taskqueue.errors import NotConnected

T = TypeVar("T")

_PATIENCE_SECONDS: Final = 2.0
_PATIENCE_AT_EXIT_SECONDS: Final = 5.0
_CLOSED: Final = "this queue was closed; call connect() or use `with queue:` to open it again"


class LoopThread:
    """A running event loop. Every call that is accepted is answered, whatever becomes of the loop.

    The thread is a daemon, so it keeps no interpreter from ending; one that is left then is stopped by ``atexit``.

    Args:
        closing: Run on the loop as the last thing before it ends.
    """

    def __init__(self, closing: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._closing = closing
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ending = asyncio.Event()
        self._ended = False
        self._failure: BaseException | None = None
        self._answers: set[Future[Any]] = set()
        self._tasks: dict[Future[Any], asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="taskqueue-sync", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise
        _ALL.add(self)

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child: it has inherited this object, but not the thread."""
        return self._pid == os.getpid()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop, and return or raise what it does. Called from any other thread.

        If this is interrupted, as by Ctrl-C, the coroutine is cancelled.

        Raises:
            NotConnected: The loop was stopped, before or meanwhile.
        """
        answer: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise NotConnected(_CLOSED)
            self._answers.add(answer)
            self._loop.call_soon_threadsafe(self._begin, work, answer)
        try:
            return answer.result()
        except BaseException:
            if not answer.done():
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(self._cancel, answer)
            raise

    def stop(self, timeout: float | None = None) -> None:
        """Let calls under way end, close, and end the thread. Idempotent.

        Args:
            timeout: How many seconds to wait for that; None waits as long as it takes.

        Raises:
            BaseException: What ``closing`` raised.
        """
        self.request_stop()
        self._thread.join(timeout)
        if self._failure is not None:
            raise self._failure

    def request_stop(self) -> None:
        """Do what ``stop`` does, without waiting for it. Does nothing in a forked child, which has no such thread."""
        if not self.is_of_this_process:
            _INHERITED.append(self)
            return
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._ending.set)

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 - stop() raises it
            self._failure = error
        finally:
            with self._lock:
                self._ended = True
            for answer in self._answers.copy():
                _answer_closed(answer)

    async def _main(self) -> None:
        await self._ending.wait()
        try:
            await self._closing()
        finally:
            # Once all is closed calls end by themselves, and know better than a cancellation how they did.
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=_PATIENCE_SECONDS)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]], answer: "Future[T]") -> None:
        task = self._loop.create_task(_attend(work, answer), name="taskqueue-call")
        self._tasks[answer] = task
        task.add_done_callback(lambda _: self._done(answer))

    def _done(self, answer: "Future[Any]") -> None:
        del self._tasks[answer]
        self._answers.discard(answer)
        _answer_closed(answer)  # cancelled before its first step

    def _cancel(self, answer: "Future[Any]") -> None:
        if (task := self._tasks.get(answer)) is not None:
            task.cancel()


async def _attend(work: Callable[[], Coroutine[Any, Any, T]], answer: "Future[T]") -> None:
    try:
        value = await work()
    except asyncio.CancelledError:
        _answer_closed(answer)
    except BaseException as error:  # noqa: BLE001 - also a SystemExit belongs to the caller, not to this loop
        answer.set_exception(error)
    else:
        answer.set_result(value)


def _answer_closed(answer: "Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(NotConnected(f"{_CLOSED}. It was closed during this call, which may have taken effect"))


# What a forked child has inherited is never collected: an event loop that is would take the parent's along.
_INHERITED: Final[list[LoopThread]] = []
_ALL: Final["WeakSet[LoopThread]"] = WeakSet()


@atexit.register
def _stop_all() -> None:
    for each in list(_ALL):
        if each.is_of_this_process:
            with suppress(Exception):  # nobody is left to hear of it
                each.stop(_PATIENCE_AT_EXIT_SECONDS)
