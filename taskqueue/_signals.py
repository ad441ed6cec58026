"""SIGTERM and SIGINT for a worker: the first asks it to stop, the second ends the process."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from taskqueue.errors import InvalidArgument

HANDLED: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT calls ``stop``; the handlers before are back afterwards.

    The first signal also gives both back their default action, so the second is carried out by the system itself: it
    ends the process at once, even while code that never returns to Python has the main thread. ``stop`` runs in the
    main thread between any two bytecodes, also while a task blocks the event loop, and must be safe there.

    Raises:
        InvalidArgument: This is not the main thread, the only one in which Python handles signals.
    """

    def handle(_signal: int, _frame: FrameType | None) -> None:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        stop()

    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        for number in HANDLED:
            signal.signal(number, handle)
    except ValueError as error:
        raise InvalidArgument(
            "handle_signals",
            True,  # noqa: FBT003 - the value that was passed
            "Python handles signals in the main thread only; run the worker there, or call worker.stop() yourself",
        ) from error
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed by Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
