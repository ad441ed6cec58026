"""Which calls run on the event loop itself, because they take no longer there than to hand them to a thread."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from taskqueue.backends._sqlite_operations import Operation

_MOST_CALLS: Final = 25
_LONG_SECONDS: Final = 0.001
_WARY_FACTOR: Final = 20
_WRITES_TO_A_CHECKPOINT: Final = 200


class QuickCalls:
    """Tells when calls may run on the event loop, and when the log has to be looked after.

    Only short ones may, and only where no write is synced: a lone insert then takes some 40 µs, and the way to another
    thread and back several times that. Once a call took longer than a millisecond, because the disk is slow or what it
    read was large, none may for twenty times as long, so that such calls take a twentieth of the loop's time at most.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wary_until = 0.0
        self._writes = 0

    def may(self, operations: Sequence[Operation[Any]]) -> bool:
        """Whether to run these here."""
        return (
            len(operations) <= _MOST_CALLS
            and all(operation.short for operation in operations)
            and self._loop.time() >= self._wary_until
        )

    def took(self, seconds: float, *, wrote: bool) -> None:
        """Take note of a run."""
        self._writes += wrote
        if seconds > _LONG_SECONDS:
            self._wary_until = self._loop.time() + _WARY_FACTOR * seconds

    def checkpoint_is_due(self) -> bool:
        """Whether so much has been written here that the log should be copied to the file. True once for as much."""
        due = self._writes >= _WRITES_TO_A_CHECKPOINT
        if due:
            self._writes = 0
        return due
