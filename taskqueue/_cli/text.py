"""Instants, durations and foreign text as a person reads them."""

import re
from datetime import datetime, timedelta
from typing import Final

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SHORT_UNITS: Final = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_TENTHS_BELOW: Final = 10


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped, but for line breaks and tabs.

    Ids and errors come from elsewhere; what they hold must not steer the terminal.
    """
    return _CONTROLS.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return ``text`` printable, on one line."""
    return " ".join(printable(text).split())


def shown_id(task_id: str) -> str:
    """Return an id printable; line breaks and tabs in it are escaped, since its white space counts."""
    return printable(task_id).replace("\n", "\\n").replace("\t", "\\t")


def iso(instant: datetime) -> str:
    """Return an instant in ISO 8601, in UTC, to the microsecond: ``2030-01-01T12:00:00.000000Z``."""
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def readable(instant: datetime) -> str:
    """Return an instant in UTC for a person: ``2030-01-01 12:00:00.000Z``."""
    return instant.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def short(duration: timedelta) -> str:
    """Return about how long a duration is, cut and not rounded: ``0.2s``, ``3m10s``, ``4d2h``; its sign is ignored."""
    seconds = abs(duration.total_seconds())
    for size, unit, smaller, smaller_unit in _SHORT_UNITS:
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size:.0f}{unit}" + (f"{rest:.0f}{smaller_unit}" if rest else "")
    return f"{int(seconds * 10) / 10}s" if 0 < seconds < _TENTHS_BELOW else f"{int(seconds)}s"


def due(available_at: datetime, now: datetime) -> str:
    """Say how long until a task is due, or for how long it has been: ``due in 5m``, ``due for 3.0s``."""
    away = available_at - now
    return f"due in {short(away)}" if away > timedelta(0) else f"due for {short(away)}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - two digits of hex
