"""Checks of arguments. Each returns the value, converted where it says so, or raises ``InvalidArgument``."""

import inspect
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from taskqueue.backend import MAX_ID_BYTES
from taskqueue.errors import InvalidArgument

MAX_RETRIES = 2**31 - 1
"""The largest retry budget: what a 32-bit column holds."""


def function(value: object) -> Callable[..., Any]:
    """Check that ``value`` can be called; a coroutine object is closed, so that it does not warn as well."""
    if inspect.iscoroutine(value):
        value.close()
        raise InvalidArgument(
            "func",
            value,
            "this is a call that was made already; pass the function and its arguments apart: enqueue(func, 1, x=2)",
        )
    if isinstance(value, str):
        raise InvalidArgument("func", value, "pass the function itself, not its name")
    if not callable(value):
        raise InvalidArgument("func", value, "pass something callable, and its arguments after it")
    return value


def context(value: object) -> dict[str, Any] | None:
    """Check that ``value`` is None or a dict whose keys are strings."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidArgument("context", value, 'pass a dict with string keys, for example {"request_id": "abc"}')
    for key in value:
        if not isinstance(key, str):
            raise InvalidArgument("context", value, f"its keys must be strings, and {key!r} is not one")
    return value


def keywords(argument: str, value: Mapping[Any, Any]) -> dict[str, Any]:
    """Return ``value`` as the keyword arguments of a call: a dict whose keys are strings."""
    for key in value:
        if not isinstance(key, str):
            raise InvalidArgument(argument, value, f"names of arguments are strings, and {key!r} is not one")
    return dict(value)


def integer(argument: str, value: object, *, least: int, most: int | None = None) -> int:
    """Check that ``value`` is an int of at least ``least`` and at most ``most``; a bool is refused."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(argument, value, f"pass an int of {least} or more")
    if value < least:
        raise InvalidArgument(argument, value, f"pass {least} or more")
    if most is not None and value > most:
        raise InvalidArgument(argument, value, f"pass at most {most}")
    return value


def max_retries(value: object) -> int:
    """Check a retry budget."""
    return integer("max_retries", value, least=0, most=MAX_RETRIES)


def task_id(value: object, argument: str = "task_id") -> str:
    """Check an id: 1 to 255 bytes of UTF-8 without NUL; a subclass of str becomes a plain one."""
    if not isinstance(value, str):
        raise InvalidArgument(argument, value, "pass the id as a string")
    if not value:
        raise InvalidArgument(argument, value, "an id cannot be empty")
    if "\0" in value:
        raise InvalidArgument(argument, value, "an id cannot contain a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            argument, value, "an id must be well-formed Unicode; this one has a lone surrogate"
        ) from None
    if size > MAX_ID_BYTES:
        raise InvalidArgument(argument, value, f"an id has at most {MAX_ID_BYTES} bytes of UTF-8; this one has {size}")
    return str(value)


def timeout(argument: str, value: object, *, zero: bool = True) -> float:
    """Return a timeout in seconds, finite and above zero or with ``zero`` not below it."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    else:
        raise InvalidArgument(argument, value, "pass a number of seconds, a timedelta or None")
    if not (math.isfinite(seconds) and (seconds > 0 or (zero and seconds == 0))):
        least = "zero or more" if zero else "more than zero"
        raise InvalidArgument(argument, value, f"pass a finite number of seconds, {least}, or None")
    return seconds


def duration(argument: str, value: object, *, zero: bool = False) -> timedelta:
    """Check that ``value`` is a timedelta above zero, or with ``zero`` not below it."""
    if not isinstance(value, timedelta):
        raise InvalidArgument(argument, value, "pass a timedelta, for example timedelta(seconds=30)")
    if value < timedelta(0) or (not zero and not value):
        raise InvalidArgument(argument, value, f"pass {'zero or more' if zero else 'more than zero'}")
    return value
