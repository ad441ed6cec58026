"""A clock that follows the server's, for hosts whose own clocks disagree."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from taskqueue._instants import EPOCH, LATEST
from taskqueue.backends._postgres_connection import Connection, Server, driver_error, reach, reason
from taskqueue.errors import NotConnected, StoreUnavailable

_LOG: Final = logging.getLogger("taskqueue.backends.postgres")
_ASK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_SAMPLES: Final = 5
_DRIFT: Final = 200e-6
"""How fast two clocks may drift apart, in seconds for each second: more than those of computers do."""


def _host_seconds() -> float:
    """Return seconds that go on evenly whatever the wall clock does; while the host sleeps too, if the system can."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One look at the server's clock.

    Attributes:
        server: Seconds since 1970 on the server's clock.
        host: Seconds on the host's even clock at the same moment.
        error: By how many seconds that moment may be off at most: half of the time that the question took.
    """

    server: float
    host: float
    error: float


class ServerClock:
    """Returns the time of a PostgreSQL server: pass it as ``clock`` to every queue and worker of a deployment.

    It is set by the server's clock when it is entered (``async with``) and every so many seconds from then on, and goes
    on by the host's even clock in between, whatever happens to the host's wall clock. Where the server cannot be asked
    it goes on by that alone, and its ``error`` grows. It may be called from any thread.

    ``error`` is how far the instant that it returns may lie from the server's at most: half the round trip of the best
    of five questions, and 200 parts per million of the time that has passed since, for drift.
    """

    def __init__(
        self, server: Server, *, every: float = 60.0, host_seconds: Callable[[], float] = _host_seconds
    ) -> None:
        self._server = server
        self._every = every
        self._host_seconds = host_seconds
        self._last: Measurement | None = None
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> datetime:
        """Return the present instant by the server's clock, in UTC.

        Raises:
            NotConnected: The server has not been asked yet.
        """
        last = self._measured()
        since = timedelta(seconds=last.server + (self._host_seconds() - last.host))
        return EPOCH + min(max(since, timedelta(0)), LATEST - EPOCH)

    @property
    def error(self) -> timedelta:
        """How far this clock may be off, now. Raises as a call does."""
        last = self._measured()
        return timedelta(seconds=last.error + _DRIFT * max(0.0, self._host_seconds() - last.host))

    @property
    def offset(self) -> timedelta:
        """How far this clock is ahead of the host's wall clock now; negative if behind. Raises as a call does."""
        return self() - (EPOCH + timedelta(seconds=time.time()))

    async def measure(self) -> timedelta:
        """Ask the server, set the clock, and return its offset. A server that is just starting is waited for.

        Raises:
            StoreUnavailable: The server does not answer; the clock goes on as before.
        """
        try:
            connection = await reach(self._server)
            try:
                samples = [await self._sample(connection) for _ in range(_SAMPLES)]
            finally:
                connection.terminate()
        except Exception as error:
            if not driver_error(error):
                raise
            raise StoreUnavailable(self._server.location, reason(error)) from error
        self._last = min(samples, key=lambda sample: sample.error)
        return self.offset

    async def __aenter__(self) -> Self:
        await self.measure()
        self._task = asyncio.create_task(self._follow(), name="taskqueue-clock")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                offset = await self.measure()
            except StoreUnavailable as error:
                _LOG.warning("the clock goes on without the server, within %s: %s", self.error, error)
            else:
                _LOG.debug("the server's clock is %s ahead of the host's, within %s", offset, self.error)

    async def _sample(self, connection: Connection) -> Measurement:
        asked = self._host_seconds()
        ((microseconds,),) = await connection.fetch(_ASK)
        answered = self._host_seconds()
        return Measurement(microseconds / 1_000_000, (asked + answered) / 2, (answered - asked) / 2)

    def _measured(self) -> Measurement:
        if self._last is None:
            raise NotConnected("this clock has not been set: use it in `async with`, or await measure() first")
        return self._last
