"""The ids that a queue gives to tasks."""

import os
from datetime import datetime, timedelta
from typing import Final

from taskqueue._instants import EPOCH

_MILLISECOND: Final = timedelta(milliseconds=1)
_DIGITS: Final = 19
_REFILL_BYTES: Final = 10 * 256
# Two bits of a digit are fixed: they name the layout of the UUID.
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))

# Random bits in advance, as digits: to ask the system for each id would cost more than all the rest of it.
_random: Final[list[str]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.clear)  # parent and child must not use the same ones


def new_ids(now: datetime, number: int) -> list[str]:
    """Return UUIDs of version 7: each has the milliseconds of ``now``, and 74 random bits.

    Ids of the same time lie close together in an index, so a batch of new tasks touches few pages of it, however many
    tasks there are.
    """
    time = f"{(now - EPOCH) // _MILLISECOND:012x}"
    prefix = f"{time[:8]}-{time[8:]}-7"
    ids = []
    for _ in range(number):
        digits = _random_digits()
        ids.append(f"{prefix}{digits[:3]}-{_VARIANT[digits[3]]}{digits[4:7]}-{digits[7:]}")
    return ids


def _random_digits() -> str:
    while True:
        try:
            return _random.pop()  # in one step, whichever threads do it
        except IndexError:
            digits = os.urandom(_REFILL_BYTES).hex()
            _random.extend(digits[start : start + _DIGITS] for start in range(0, len(digits) - _DIGITS, 20))
