"""What a worker does now and then, beside running tasks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from taskqueue._text import log_text
from taskqueue.errors import NotConnected

logger = logging.getLogger("taskqueue.worker")


async def regularly(
    what: str, do: Callable[[], Awaitable[object]], seconds: float, *, when: asyncio.Event | None = None
) -> None:
    """Call ``do`` at once, and again each time this many seconds on the event loop's clock after it has ended.

    With ``when`` it is called only once this is set, which clears it. What it raises is logged, once until it succeeds
    again. Ends only by cancellation, and when the queue is closed.
    """
    failing = False
    while True:
        if when is not None:
            await when.wait()
            when.clear()
        try:
            await do()
        except NotConnected:
            return  # the queue was closed, which ends its worker
        except Exception as error:  # it must never end the worker
            if not failing:
                logger.warning("%s failed, trying again every %.3g s: %s", what, seconds, log_text(error))
                logger.debug("in full:", exc_info=error)
            failing = True
        else:
            if failing:
                logger.warning("%s works again", what)
            failing = False
        await asyncio.sleep(seconds)
