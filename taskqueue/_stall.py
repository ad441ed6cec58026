"""Whether an event loop turns, seen from the event loop of another thread."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("taskqueue.worker")


class StallWatch:
    """Watches the event loop on which it is made, from the one on which the other methods are called.

    Args:
        timeout: After how many seconds without a turn the loop counts as stalled.
        describe: Says what an asyncio task of the watched loop is, for the log. Called from the other thread.
        on_turn: Called on the watching loop when a stalled loop turns again.
    """

    def __init__(
        self, timeout: float, describe: Callable[[asyncio.Task[Any]], str], on_turn: Callable[[], None]
    ) -> None:
        self._timeout = timeout
        self._describe = describe
        self._on_turn = on_turn
        self._home = asyncio.get_running_loop()
        self._home_thread = threading.get_ident()
        self._asked_at: float | None = None
        self._stalled = False

    def stalled(self) -> bool:
        """Tell whether the loop has not turned for as long as the timeout, and log it the first time.

        A stall is measured from the first of these calls in it: call this regularly.

        Raises:
            RuntimeError: The watched loop is closed.
        """
        watching = asyncio.get_running_loop()
        if self._asked_at is None:
            self._asked_at = watching.time()
            self._home.call_soon_threadsafe(self._answer, watching)
        elif watching.time() - self._asked_at >= self._timeout and not self._stalled:
            self._stalled = True
            logger.error(
                "the event loop has not turned for %.3g s: %s blocks it at %s; the leases of what runs here are not "
                "extended until it turns again, so others may take these tasks",
                watching.time() - self._asked_at,
                self._culprit(),
                self._place(),
            )
        return self._stalled

    def _answer(self, watching: asyncio.AbstractEventLoop) -> None:
        # A watching loop that has been closed does not care any more.
        if not watching.is_closed():
            watching.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        self._asked_at = None
        if self._stalled:
            self._stalled = False
            logger.warning("the event loop turns again")
            self._on_turn()

    def _culprit(self) -> str:
        task = asyncio.current_task(self._home)
        return "something that is no asyncio task" if task is None else self._describe(task)

    def _place(self) -> str:
        frame = sys._current_frames().get(self._home_thread)  # noqa: SLF001 - documented, in spite of its name
        if frame is None:
            return "an unknown place"
        logger.debug("where the event loop is blocked:\n%s", "".join(traceback.format_stack(frame)))
        [innermost] = traceback.extract_stack(frame, limit=1)
        return f'File "{innermost.filename}", line {innermost.lineno}, in {innermost.name}: {innermost.line}'
