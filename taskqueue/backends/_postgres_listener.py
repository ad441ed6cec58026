"""A connection that hears of changes, notices its own death, and comes back."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from taskqueue.backends._postgres_connection import Connection, Server, driver_error, reason

_LOG: Final = logging.getLogger("taskqueue.backends.postgres")
_LOOK_SECONDS: Final = 15.0
"""How long the connection may be silent before it is asked whether it is alive."""
_ANSWER_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 1.0
"""How long `stop` lets a connection be made: cancelled in the middle, the driver leaves an exception unheard."""
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 5.0


class Listener:
    """Listens on a channel from ``start`` to ``stop``, on one event loop.

    Args:
        server: Where.
        channel: What to listen to.
        heard: Called for every notification, and whenever some may have been missed.
    """

    def __init__(self, server: Server, channel: str, heard: Callable[[], None]) -> None:
        self._server = server
        self._channel = channel
        self._heard = heard
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._stopping = False
        self._connecting = False
        self._warned = False

    def start(self) -> None:
        """Begin to listen, in the background. Idempotent."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="taskqueue-listen")

    async def stop(self) -> None:
        """End, and close the connection. Idempotent."""
        if self._task is not None:
            # A cancellation may get lost in the driver or in asyncio, where what is awaited ends at the same time.
            self._stopping = True
            self._ended.set()
            if self._connecting:
                await asyncio.wait((self._task,), timeout=_CONNECT_SECONDS)
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        delay = _FIRST_DELAY
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._listen()
            except Exception as error:
                if not driver_error(error):
                    raise
                self._warn(reason(error))
            if self._stopping:
                return
            if asyncio.get_running_loop().time() - began > _LONGEST_DELAY:
                delay = _FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _warn(self, why: str) -> None:
        """Say once that nobody listens, not every few seconds."""
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "cannot listen for changes in %s, trying again every few seconds: %s", self._server.location, why
            )

    async def _listen(self) -> None:
        """Listen until the connection ends."""
        ended = self._ended = asyncio.Event()
        self._connecting = True
        try:
            connection = await Connection.open(self._server)
        finally:
            self._connecting = False
        try:
            if self._stopping:
                return
            await connection.listen(self._channel, self._heard, ended.set)
            if self._warned:
                self._warned = False
                _LOG.warning("listening for changes in %s again", self._server.location)
            # Whoever waits already may have missed a change while nobody listened.
            self._heard()
            while not (ended.is_set() or self._stopping):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await connection.fetch("SELECT 1")
                await _sleep_until(ended, _LOOK_SECONDS)
        finally:
            # Nothing is lost with it, and a server that does not answer must not hold up a close.
            connection.terminate()


async def _sleep_until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
