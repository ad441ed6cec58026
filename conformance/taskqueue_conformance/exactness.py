"""Which requirement is broken where two records differ in exactness only, whatever a check was about."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from taskqueue import Task

_A_LITTLE = timedelta(seconds=1)
_ABOUT_NOW = timedelta(hours=1)


def inexact(expected: object, actual: object) -> str | None:
    """Return the requirement that the difference between two tasks betrays by its kind, or None.

    An instant that is off by less than a second was stored badly (E3), one that shows the host's time came from a
    clock (E4), and a payload or the text of a failure that is another one was not kept (P1, V2). A difference of any
    other kind, beside those too, is for the check itself to name.
    """
    if not isinstance(expected, Task) or not isinstance(actual, Task):
        return None
    wanted, got = _flat(expected), _flat(actual)
    if wanted.keys() != got.keys():
        return None
    differing = {name: (wanted[name], got[name]) for name in wanted if wanted[name] != got[name]}
    kinds = {_kind(name, *pair) for name, pair in differing.items()}
    return kinds.pop() if len(kinds) == 1 else None


def _flat(task: Task) -> Mapping[str, Any]:
    flat = {field.name: getattr(task, field.name) for field in fields(task) if field.name != "failures"}
    for number, failure in enumerate(task.failures):
        flat |= {f"failures[{number}].{field.name}": getattr(failure, field.name) for field in fields(failure)}
    return flat


def _kind(name: str, expected: object, actual: object) -> str | None:
    if name == "payload":
        return "P1"
    if name.endswith((".error", ".traceback")):
        return "V2"
    if not isinstance(expected, datetime) or not isinstance(actual, datetime):
        return None
    if abs(actual - expected) < _A_LITTLE:
        return "E3"
    host = datetime.now(UTC)
    return "E4" if abs(actual - host) < _ABOUT_NOW < abs(expected - host) else None
