"""What a failing check says: the requirement, what was expected, what happened, and where to look."""

import functools
from collections.abc import Awaitable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeGuard, TypeVar

from taskqueue_conformance import blame
from taskqueue_conformance.requirements import REQUIREMENTS

E = TypeVar("E", bound=BaseException)

_SHOWN = 300
_MANY = 20
# Its type stays what it is under frozen time, where freezegun replaces the name of the class.
_AN_INSTANT = datetime(2030, 1, 1, tzinfo=UTC)


class Violation(AssertionError):
    """A backend broke a requirement.

    Attributes:
        requirement: The id of the requirement that is broken, or None for the one that the check is about.
        what: What was looked at.
        expected: What the contract demands.
        actual: What happened.
        look: Where an implementer should look first, or None for the requirement's own hint.
        counterexample: A scenario that shows it, as the text of a feature file, or None.
    """

    def __init__(
        self, what: str, *, expected: str, actual: str, breaks: str | None = None, look: str | None = None
    ) -> None:
        if breaks is not None and breaks not in REQUIREMENTS:
            raise KeyError(breaks)
        super().__init__(f"{what}: expected {expected}, got {actual}")
        self.requirement = breaks
        self.what = what
        self.expected = expected
        self.actual = actual
        self.look = look
        self.counterexample: str | None = None


def expect(
    what: str,
    condition: object,
    *,
    expected: object,
    actual: object,
    breaks: str | None = None,
    look: str | None = None,
) -> None:
    """Raise a :class:`Violation` unless ``condition`` holds."""
    if not condition:
        raise Violation(what, expected=shown(expected), actual=shown(actual), breaks=breaks, look=look)


def expect_equal(
    what: str, actual: object, expected: object, *, breaks: str | None = None, look: str | None = None
) -> None:
    """Raise a :class:`Violation` unless the two are equal and, for bytes and datetimes, of the same type.

    Records are compared field by field, and only the fields that differ are shown.
    """
    if type(actual) is type(expected) and actual == expected:
        return
    # A status may be given as its value, and sequences may be lists or tuples: equality decides there.
    if actual == expected and not isinstance(expected, bytes | int | float):
        return
    wanted, got = difference(expected, actual)
    raise Violation(what, expected=wanted, actual=got, breaks=breaks, look=look)


_FIELD_REQUIREMENTS = {
    "payload": "P1",
    "enqueued_at": "E3",
    "available_at": "E3",
    "started_at": "E3",
    "lease_expires_at": "E3",
    "finished_at": "E3",
    "value": "V1",
}


def expect_task(what: str, actual: object, expected: object, *, breaks: str | None = None) -> None:
    """Raise a :class:`Violation` unless a stored task equals ``expected`` in every field.

    Where one field differs that has a requirement of its own (the payload, the value, an instant that is a little
    off), and the caller named none, that requirement is named. What :mod:`taskqueue_conformance.blame` recognises
    is named in any case.
    """
    names = differing_fields(expected, actual)
    both_set = [name for name in names if None not in (getattr(expected, name), getattr(actual, name))]
    breaks = blame.by_difference(expected, actual) or breaks
    if breaks is None and len(names) == 1 and names == both_set:
        breaks = _FIELD_REQUIREMENTS.get(names[0])
    expect_equal(what, actual, expected, breaks=breaks)


async def expect_refused(
    what: str, call: Awaitable[Any], error: type[E], *, breaks: str | None = None, look: str | None = None
) -> E:
    """Await ``call`` and return the exception of type ``error`` that it raises; anything else is a violation."""
    try:
        result = await call
    except error as refused:
        return refused
    except Exception as other:
        actual = f"{type(other).__name__}: {other}"
        raise Violation(what, expected=error.__name__, actual=actual, breaks=breaks, look=look) from other
    raise Violation(
        what,
        expected=f"{error.__name__}",
        actual=f"no exception, and the answer {shown(result)}",
        breaks=breaks,
        look=look,
    )


def shown(value: object) -> str:
    """Return ``value`` for a message: short, and strings as they are."""
    if isinstance(value, list) and len(value) > _MANY:
        return f"{_compact(value[:_MANY])[: _SHOWN - 60]}… ({len(value)} in all)"
    text = value if isinstance(value, str) else _compact(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 60]}… ({len(text)} characters in all)"


def said(error: BaseException) -> str:
    """Return the type of an exception, and what it says if it says anything."""
    return f"{type(error).__name__}: {shown(str(error))}" if str(error) else type(error).__name__


def _compact(value: object) -> str:
    """Return a ``repr`` without what a reader has to skip: defaults of records, and the spelling of instants in UTC."""
    if type(value) is type(_AN_INSTANT) and value.tzinfo is UTC:
        return str(value)
    if isinstance(value, Enum):
        return value.name
    kind: Any = type(value)
    defaults = _defaults(kind)
    if defaults is not None:
        told = [
            f"{name}={_compact(each)}"
            for name, default in defaults
            if (each := getattr(value, name)) != default or default is MISSING
        ]
        return f"{type(value).__name__}({', '.join(told)})"
    if type(value) in (list, tuple):
        inside = ", ".join(map(_compact, value))  # type: ignore[call-overload]  # the line above has looked
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"  # type: ignore[arg-type]  # the same
    if type(value) is dict:
        return "{" + ", ".join(f"{_compact(key)}: {_compact(each)}" for key, each in value.items()) + "}"
    return repr(value)


@functools.cache
def _defaults(kind: type) -> Sequence[tuple[str, object]] | None:
    """Return the fields that a record shows, with their defaults, or None for what is no record."""
    if not is_dataclass(kind):
        return None
    return [(field.name, field.default) for field in fields(kind) if field.repr]


def difference(expected: object, actual: object) -> tuple[str, str]:
    """Return two values for a message: of records that are alike, only the fields in which they differ."""
    names = differing_fields(expected, actual)
    if names:
        return (
            ", ".join(f"{name}={shown(getattr(expected, name))}" for name in names),
            ", ".join(f"{name}={shown(getattr(actual, name))}" for name in names),
        )
    if _records(expected) and _records(actual) and len(expected) == len(actual):
        for position, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
            if wanted != got:
                left, right = difference(wanted, got)
                return f"at position {position}: {left}", f"at position {position}: {right}"
    return shown(expected), shown(actual)


def differing_fields(expected: object, actual: object) -> list[str]:
    """Return the names of the fields in which two records of one type differ; none if they are no such records."""
    if not is_dataclass(expected) or isinstance(expected, type) or type(expected) is not type(actual):
        return []
    names = [field.name for field in fields(expected)]
    return [name for name in names if getattr(expected, name) != getattr(actual, name)]


def _records(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
