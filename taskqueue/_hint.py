"""Waiting for a change of the store, so that no change is missed between a look and the wait after it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from taskqueue.errors import NotConnected

logger = logging.getLogger(__name__)


@asynccontextmanager
async def watching(wait: Callable[[float], Awaitable[None]], seconds: float) -> AsyncIterator[asyncio.Task[None]]:
    """Begin to wait for a change; inside, look, and then await the task that is given. It is over by the end.

    ``wait`` is that of a backend or of a queue. The wait has begun when the block is entered, so a change after a
    look in the block ends it. It ends after ``seconds`` on the event loop's clock at the latest. Only
    ``NotConnected`` comes out of it.
    """
    waiting = asyncio.create_task(_change(wait, seconds), name="taskqueue-wait")
    try:
        await asyncio.sleep(0)  # a new task begins only when this one is suspended
        yield waiting
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()  # seen, or of no interest any more


async def _change(wait: Callable[[float], Awaitable[None]], seconds: float) -> None:
    try:
        await wait(seconds)
    except NotConnected:
        raise
    except Exception as error:  # noqa: BLE001 - a hint may fail; the polling behind it goes on
        logger.warning("waiting for changes failed, so changes are noticed only every %.3g s: %s", seconds, error)
        await asyncio.sleep(seconds)
