"""SIGTERM and SIGINT for a worker: the first asks it to stop, the next ends the process."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from taskqueue.errors import InvalidArgument

logger = logging.getLogger("taskqueue.worker")

HANDLED: Final = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS: Final = 0.1
"""How long after the first signal another one is taken for the same, in seconds."""


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT calls ``stop``; the handlers before are back afterwards.

    ``stop`` runs in the main thread between any two bytecodes, also while a task blocks the event loop, and must be
    safe there. What comes within ``ECHO_SECONDS`` counts as the same signal: those who stop a process and its group
    send it twice. The next one ends the process at once. As soon as the event loop turns after that time, both signals
    have their default action again, so that the system itself carries it out, even while code that never returns to
    Python has the main thread.

    Raises:
        InvalidArgument: This is not the main thread, the only one in which Python handles signals.
    """
    handler = _Handler(stop)
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        for number in HANDLED:
            signal.signal(number, handler.handle)
    except ValueError as error:
        raise InvalidArgument(
            "handle_signals",
            True,  # noqa: FBT003 - the value that was passed
            "Python handles signals in the main thread only; run the worker there, or call worker.stop() yourself",
        ) from error
    try:
        yield
    finally:
        handler.close()
        for number, earlier in before.items():
            # None stands for a handler that was not installed by Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


class _Handler:
    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._first: float | None = None
        self._echo_over: asyncio.TimerHandle | None = None
        self._closed = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self._first is None:
            self._first = time.monotonic()
            logger.info("%s: stopping; a second one ends the process at once", signal.Signals(number).name)
            self._loop.call_soon_threadsafe(self._await_echo)
            self._stop()
        elif time.monotonic() - self._first >= ECHO_SECONDS:
            _default()
            signal.raise_signal(number)

    def _await_echo(self) -> None:
        if not self._closed:
            self._echo_over = self._loop.call_later(ECHO_SECONDS, _default)

    def close(self) -> None:
        self._closed = True
        if self._echo_over is not None:
            self._echo_over.cancel()


def _default() -> None:
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
