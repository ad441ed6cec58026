"""Which calls run on the event loop itself, because they take no longer there than to hand them to a thread."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final

from taskqueue.backends._sqlite_operations import Operation

_MOST_CALLS: Final = 25
_LONG_SECONDS: Final = 0.001
_LONGEST_OVERRUN_SECONDS: Final = 0.005
_FORGIVENESS: Final = 0.9
_WARY_FACTOR: Final = 20
_WRITES_TO_A_CHECKPOINT: Final = 200
_SECONDS_BETWEEN_LOOKS: Final = 0.001


class QuickCalls:
    """Tells when calls may run on the event loop, and when the log has to be looked after.

    Only short ones may, and only where no write is synced: a lone insert then takes some 40 µs, and the way to another
    thread and back several times that. Once calls that took longer than a millisecond each, because the disk is slow or
    what they read was large, took more than five in all, none may for twenty times as long: so such calls take a
    twentieth of the loop's time at most. Where quick ones follow on a long one it is forgiven bit by bit, for the
    system may just have had something else to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wary_until = 0.0
        self._overrun = 0.0
        self._writes = 0
        self._looked_at = -math.inf

    def may(self, operations: Sequence[Operation[Any]]) -> bool:
        """Whether to run these here."""
        if len(operations) > _MOST_CALLS or (self._wary_until and self._loop.time() < self._wary_until):
            return False
        for operation in operations:  # noqa: SIM110 - twice as fast as all(), and a part of every call
            if not operation.short:
                return False
        return True

    def look_is_due(self, now: float) -> bool:
        """Whether to look, before a run at ``now`` by the event loop's clock, if the store's files are in place.

        Each millisecond is often enough. Whatever is written is acknowledged only once the file itself has been seen
        after it; and without its log, all is lost that has not been copied to the file, not just the last of it.
        """
        if now - self._looked_at < _SECONDS_BETWEEN_LOOKS:
            return False
        self._looked_at = now
        return True

    def took(self, seconds: float, *, wrote: bool) -> None:
        """Take note of a run."""
        self._writes += wrote
        if seconds > _LONG_SECONDS:
            self._overrun += seconds
            if self._overrun > _LONGEST_OVERRUN_SECONDS:
                self._wary_until = self._loop.time() + _WARY_FACTOR * self._overrun
                self._overrun = 0.0
        else:
            self._overrun *= _FORGIVENESS

    def checkpoint_is_due(self) -> bool:
        """Whether so much has been written here that the log should be copied to the file. True once for as much."""
        due = self._writes >= _WRITES_TO_A_CHECKPOINT
        if due:
            self._writes = 0
        return due
