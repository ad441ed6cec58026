"""Which requirement is broken, whatever a check was about: by the kind of a difference, or by experiment.

Where a check about one requirement stumbles over the breach of another, its message shall name the other one.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from taskqueue import Backend, Failure, StaleClaim, Task, TaskStatus

_A_LITTLE: Final = timedelta(seconds=1)
_ABOUT_NOW: Final = timedelta(hours=1)

_BEFORE: Final = datetime(1971, 1, 1, tzinfo=UTC)
_PAST: Final = datetime(2001, 1, 1, tzinfo=UTC)
_FUTURE: Final = datetime(9990, 1, 1, tzinfo=UTC)
_AFTER: Final = datetime.max.replace(tzinfo=UTC)


def by_difference(expected: object, actual: object, *, asked: datetime | None = None) -> str | None:
    """Return the requirement that the difference between two tasks betrays by its kind, or None.

    An instant that is off by less than a second was stored badly (E3), one that shows the host's time came from a
    clock (E4), a payload, a value or the text of a failure that is another one was not kept (P1, V1, V2), a wrong
    number of attempts, or a retry beyond the budget, is a matter of R1. Any other difference, or several kinds at
    once, are for the check itself to name: also that ``asked``, an instant which the call was given, was stored to
    the microsecond where it should not have been.
    """
    if not isinstance(expected, Task) or not isinstance(actual, Task):
        return None
    spent = expected.status is TaskStatus.FAILED and expected.attempts >= expected.max_retries
    if spent and actual.status is TaskStatus.PENDING and actual.attempts == expected.attempts:
        return "R1"
    wanted, got = _flat(expected), _flat(actual)
    if wanted.keys() != got.keys():
        return None
    differing = {name: (wanted[name], got[name]) for name in wanted if wanted[name] != got[name]}
    if asked is not None and asked in {actual for _, actual in differing.values()}:
        return None
    kinds = {_kind(name, *pair) for name, pair in differing.items()}
    return kinds.pop() if len(kinds) == 1 else None


def _flat(task: Task) -> Mapping[str, Any]:
    flat = {field.name: getattr(task, field.name) for field in fields(task) if field.name != "failures"}
    for number, failure in enumerate(task.failures):
        flat |= {f"failures[{number}].{field.name}": getattr(failure, field.name) for field in fields(failure)}
    return flat


def _kind(name: str, expected: object, actual: object) -> str | None:
    named = {"payload": "P1", "value": "V1", "attempts": "R1", "max_retries": "R1"}.get(name)
    if named is None and name.endswith((".error", ".traceback")):
        named = "V2"
    if named is None and isinstance(expected, datetime) and isinstance(actual, datetime):
        host = datetime.now(UTC)
        if abs(actual - expected) < _A_LITTLE:
            named = "E3"
        elif abs(actual - host) < _ABOUT_NOW < abs(expected - host):
            named = "E4"
    return named


async def for_claim(backend: Backend) -> str | None:
    """Return E4 if claims look at another time than the one that they are given, or None."""
    await _enqueue(backend, "past", "future")
    early = {task.id for task in await backend.claim(now=_BEFORE, limit=1000, lease_expires_at=_AFTER)}
    late = early | {task.id for task in await backend.claim(now=_AFTER, limit=1000, lease_expires_at=_AFTER)}
    return _verdict({"past", "future"} & _probes(early), {"past", "future"} & _probes(late))


async def for_missing(backend: Backend) -> str | None:
    """Return E1 if a task is not claimed at the instant at which it is due, but later; or None.

    For an empty store: one ordinary task is enough.
    """
    due = _PAST + timedelta(microseconds=250_001)
    await backend.enqueue([Task(id="probe", payload=b"probe", enqueued_at=_PAST, available_at=due, max_retries=1)])
    for later in (timedelta(0), _A_LITTLE):
        if await backend.claim(now=due + later, limit=1, lease_expires_at=_AFTER):
            return "E1" if later else None
    return None


async def for_expired(backend: Backend) -> str | None:
    """Return E4 if ``expired`` looks at another time than the one that it is given, or None."""
    await _running(backend)
    early = {task.id for task in await backend.expired(now=_BEFORE, limit=1000)}
    late = {task.id for task in await backend.expired(now=_AFTER, limit=1000)}
    return _verdict(_probes(early), _probes(late))


async def for_recovery(backend: Backend) -> str | None:
    """Return E4 if ``fail(if_expired=True)`` looks at another time than ``failed_at``, or None."""
    await _running(backend)
    seen: list[set[str]] = []
    for now in (_BEFORE, _AFTER):
        recovered = set() if not seen else set(seen[0])
        for name in {"past", "future"} - recovered:
            failure = Failure(attempt=1, error="the lease ran out", failed_at=now)
            try:
                await backend.fail(_PROBE + name, 1, failure, if_expired=True)
            except StaleClaim:
                continue
            recovered.add(name)
        seen.append(recovered)
    return _verdict(*seen)


_PROBE: Final = "a probe in the "


def _probes(ids: set[str]) -> set[str]:
    return {task_id.removeprefix(_PROBE) for task_id in ids if task_id.startswith(_PROBE)}


def _verdict(early: set[str], late: set[str]) -> str | None:
    # All at 1971 would mean that the instants are not looked at; the past alone, that some later time decided.
    if early == {"past"} or ("past" in late and "future" not in late):
        return "E4"
    return None


async def _enqueue(backend: Backend, *names: str) -> None:
    instants = {"past": _PAST, "future": _FUTURE}
    await backend.enqueue(
        [
            Task(id=_PROBE + name, payload=b"", enqueued_at=_BEFORE, available_at=instants[name], max_retries=1)
            for name in names
        ]
    )


async def _running(backend: Backend) -> None:
    """Have one probe run with a lease in the past and one with a lease in the future."""
    for name, lease in (("past", _PAST), ("future", _FUTURE)):
        await _enqueue(backend, name)
        await backend.claim(now=_AFTER, limit=1000, lease_expires_at=lease)
