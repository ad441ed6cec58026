"""Instants: the default clock, and the conversion of every datetime that comes from outside."""

from datetime import UTC, datetime, timedelta
from typing import Final

from taskqueue.errors import InvalidArgument


def _plain_datetime() -> type[datetime]:
    """Return the real class ``datetime``, also when a tool that freezes time has put a subclass in its place."""
    return next(base for base in datetime.__mro__ if base.__module__ == "datetime" and base.__name__ == "datetime")


# Instances, not classes: what freezes time replaces classes in modules that are loaded already.
EPOCH: Final = _plain_datetime()(1970, 1, 1, tzinfo=UTC)
"""The earliest instant that can be stored."""
LATEST: Final = _plain_datetime()(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
"""The latest instant that can be stored."""

# `datetime` itself may be a stand-in while time is frozen.
_DATETIME: Final = type(EPOCH)
_ZERO: Final = timedelta(0)
_RANGE: Final = LATEST - EPOCH


def system_clock() -> datetime:
    """Return the present time of the system's clock, in UTC."""
    return datetime.now(UTC)


def to_utc(argument: str, value: object) -> datetime:
    """Return the same instant as a plain ``datetime`` (exactly that type) in UTC.

    Args:
        argument: The name of the parameter, for the message.
        value: A timezone-aware datetime in any zone; ``fold`` is heeded.

    Raises:
        InvalidArgument: Not a datetime, or naive, or outside 1970-01-01 to 9999-12-31T23:59:59.999999 in UTC.
    """
    if type(value) is type(EPOCH) and value.tzinfo is UTC and EPOCH <= value <= LATEST:
        return value  # as nearly always, and a part of every call
    if isinstance(value, timedelta):
        raise InvalidArgument(argument, value, "pass an instant, for example datetime.now(UTC) + timedelta(minutes=5)")
    if not isinstance(value, _DATETIME):
        raise InvalidArgument(argument, value, "pass a timezone-aware datetime, for example datetime.now(UTC)")
    if value.utcoffset() is None:
        raise InvalidArgument(
            argument,
            value,
            "a datetime without a time zone is ambiguous; pass datetime.now(UTC), datetime(…, tzinfo=UTC), or for "
            "local time value.astimezone()",
        )
    since_epoch = value - EPOCH
    if not _ZERO <= since_epoch <= _RANGE:
        raise InvalidArgument(
            argument, value, "in UTC this lies outside the years 1970 to 9999, which are all that can be stored"
        )
    # Arithmetic on a plain datetime gives a plain one; a subclass would be refused by some stores' codecs.
    return EPOCH + since_epoch


def later(instant: datetime, by: timedelta) -> datetime:
    """Return ``instant + by``, or the latest instant that can be stored if that is earlier; ``by`` is not negative."""
    return instant + by if by < LATEST - instant else LATEST


def earlier(instant: datetime, by: timedelta) -> datetime:
    """Return ``instant - by``, or the earliest instant that can be stored if that is later; ``by`` is not negative."""
    return instant - by if by < instant - EPOCH else EPOCH
