"""What the checks of time, claims, budgets, content and listing share: instants, comparisons, and overlapping calls."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from taskqueue import Backend, Failure, StaleClaim, Task, TaskNotFound, TaskQueueError, TaskStatus
from taskqueue_conformance.lab import LEASE, NOON
from taskqueue_conformance.violation import Violation, differing_fields, expect, expect_equal, expect_task, shown

SECOND: Final = timedelta(seconds=1)
HOUR: Final = timedelta(hours=1)
YEAR: Final = timedelta(days=365)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


MOMENTS: Final[Mapping[str, datetime]] = {
    "the epoch": EPOCH,
    "the epoch and 1 us": _at("1970-01-01T00:00:00.000001"),
    "the first second less 1 us": _at("1970-01-01T00:00:00.999999"),
    "9 digits of seconds": _at("2001-09-09T01:46:39.999999"),
    "10 digits of seconds": _at("2001-09-09T01:46:40"),
    "a leap day": _at("2024-02-29T23:59:59.999999"),
    "a whole second": NOON,
    "a whole second and 1 us": _at("2030-01-01T12:00:00.000001"),
    "a tenth": _at("2030-01-01T12:00:00.100000"),
    "part of a millisecond": _at("2030-01-01T12:00:00.123456"),
    "a whole second less 1 us": _at("2030-01-01T12:00:00.999999"),
    "the last signed 32-bit second": _at("2038-01-19T03:14:07.999999"),
    "beyond signed 32 bits": _at("2038-01-19T03:14:08"),
    "beyond unsigned 32 bits": _at("2106-02-07T06:28:16.000001"),
    "beyond 53 bits of microseconds": _at("2255-06-05T23:47:34.740993"),
    "beyond 64 bits of nanoseconds": _at("2262-04-11T23:47:16.854777"),
    "the year 3000": _at("3000-01-01T00:00:00.000001"),
    "the last second": _at("9999-12-31T23:59:59"),
    "the end of time": END_OF_TIME,
}
"""Instants at which ways of storing them break, earliest first."""

BLOBS: Final[Mapping[str, bytes]] = {
    "empty": b"",
    "a zero byte": b"\x00",
    "every byte": bytes(range(256)),
    "every byte backwards": bytes(range(255, -1, -1)),
    "not UTF-8": b"\xff\xfe\x80abc\xc3\x28",
    "UTF-8": "naïve 日本語 \U0001f600".encode(),
    "a number": b"007",
    "JSON": b'{"a": [1, 2.0, null], "a": NaN}',
    "null": b"null",
    "white space around": b" \t\r\n text \r\n\x00 ",
    "a pickle": b"\x80\x05N.",
    "hexadecimal": b"\\x6869",
    "base64": b"aGVsbG8=",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "quotes": b"'; DROP TABLE tasks; --\"",
}
"""Bytes that text, JSON, escapes, terminators and truth values spoil."""


def after_claim(task: Task, *, now: datetime = NOON, lease: datetime = NOON + LEASE) -> Task:
    """Return what a claim at ``now`` makes of ``task``."""
    return replace(task, status=TaskStatus.RUNNING, attempts=task.attempts + 1, started_at=now, lease_expires_at=lease)


def after_complete(task: Task, *, value: bytes, now: datetime = NOON) -> Task:
    """Return what ``complete`` makes of ``task``."""
    return replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None)


def after_cancel(task: Task, *, now: datetime = NOON) -> Task:
    """Return what ``cancel`` makes of ``task``."""
    return replace(task, status=TaskStatus.CANCELLED, finished_at=now, lease_expires_at=None)


def after_fail(task: Task, failure: Failure) -> Task:
    """Return what ``fail`` makes of ``task``: a retry if one is proposed and the budget allows it."""
    if failure.retry_at is not None and task.attempts < task.max_retries:
        return replace(
            task,
            status=TaskStatus.PENDING,
            available_at=failure.retry_at,
            lease_expires_at=None,
            failures=(*task.failures, failure),
        )
    return replace(
        task,
        status=TaskStatus.FAILED,
        finished_at=failure.failed_at,
        lease_expires_at=None,
        failures=(*task.failures, replace(failure, retry_at=None)),
    )


async def claim(backend: Backend, *, now: datetime = NOON, limit: int = 1) -> Sequence[Task]:
    """Claim at ``now`` with the usual lease, counted from NOON."""
    return await backend.claim(now=now, limit=limit, lease_expires_at=NOON + LEASE)


def ids(tasks: Sequence[Task]) -> list[str]:
    """Return the ids of tasks, in their order."""
    return [task.id for task in tasks]


def expect_tasks(what: str, actual: Sequence[Task], expected: Sequence[Task], *, breaks: str | None = None) -> None:
    """Compare two lists of tasks: the ids with their order, then every field of each."""
    expect_equal(f"the ids in {what}", ids(actual), ids(expected), breaks=breaks)
    for got, wanted in zip(actual, expected, strict=True):
        expect_task(f"{wanted.id!r} in {what}", got, wanted, breaks=breaks)


def expect_next_due(what: str, actual: datetime | None, expected: datetime | None, *, breaks: str) -> None:
    """Compare an answer of ``next_due``: E3 if it is off by less than a second, ``breaks`` if it is another one."""
    if actual is not None and expected is not None and abs(actual - expected) < SECOND:
        breaks = "E3"
    expect_equal(what, actual, expected, breaks=breaks)


def expect_claim(what: str, actual: Task, expected: Task) -> None:
    """Compare a task that a claim returned with what it must be.

    E3 if the epoch was taken for None, D3 if the lease alone is wrong, and C2 if anything else is.
    """
    differing = differing_fields(expected, actual)
    lost = all(getattr(expected, name) == EPOCH and getattr(actual, name) is None for name in differing)
    breaks = "E3" if lost else "D3" if differing == ["lease_expires_at"] else "C2"
    expect_task(what, actual, expected, breaks=breaks)


async def expect_stored(backend: Backend, *tasks: Task, when: str, breaks: str | None = None) -> None:
    """Read tasks back through ``get`` and compare every field; a difference breaks ``breaks``."""
    for task in tasks:
        expect_task(f"get({task.id!r}) {when}", await backend.get(task.id), task, breaks=breaks)


async def listing(
    backend: Backend,
    *,
    limit: int = 1000,
    status: TaskStatus | None = None,
    after: str | None = None,
    between: Callable[[], Awaitable[None]] | None = None,
) -> list[Task]:
    """List tasks page by page, from the cursor ``after`` to the end, doing something between the pages."""
    found: list[Task] = []
    for _ in range(500):
        page, after = await backend.tasks(status=status, after=after, limit=limit)
        what = f"the size of a page of tasks(limit={limit})"
        expect(what, len(page) <= limit, expected=f"{limit} at most", actual=len(page), breaks="LISTING")
        found += page
        if after is None:
            return found
        if between is not None:
            await between()
    raise Violation(
        "the cursor of tasks()", expected="None in the end", actual=f"{after!r} after 500 pages", breaks="LISTING"
    )


BLOCKED_S: Final = 0.02
"""After how many seconds a call that another one overlaps counts as waiting for it."""
MAX_STEPS: Final = 8
"""How many of a call's suspensions are tried."""


class _Paused:
    """Awaits a call, and holds it after its ``after``-th suspension until it is released."""

    def __init__(self, call: Coroutine[Any, Any, Any], *, after: int) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()
        self._call = call
        self._after = after

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._call.__await__()
        suspensions = 0
        error: BaseException | None = None
        while True:
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            error = None
            suspensions += 1
            try:
                yield awaited
                if suspensions == self._after:
                    self.reached.set()
                    yield from self.release.wait().__await__()
            except BaseException as raised:  # noqa: BLE001 - it is the call's own to handle
                error = raised


async def overlap(
    first: Coroutine[Any, Any, Any], *others: Callable[[], Coroutine[Any, Any, Any]], after: int
) -> tuple[bool, list[Any]]:
    """Run ``first`` up to its ``after``-th suspension, then the others as far as they come, then the rest of it.

    A call that waits for a lock which ``first`` holds is waited for no longer than :data:`BLOCKED_S`.

    Returns:
        Whether ``first`` was held at all, and what each call returned, or how it was refused.
    """
    paused = _Paused(first, after=after)

    async def run() -> Any:
        return await paused

    running = asyncio.ensure_future(run())
    reached = asyncio.ensure_future(paused.reached.wait())
    await asyncio.wait([running, reached], return_when=asyncio.FIRST_COMPLETED)
    held = paused.reached.is_set()
    reached.cancel()
    rest = [asyncio.ensure_future(other()) for other in others]
    if rest:
        await asyncio.wait(rest, timeout=BLOCKED_S)
    paused.release.set()
    return held, await outcomes(running, *rest)


async def outcomes(
    *calls: Awaitable[Any],
    refusals: tuple[type[TaskQueueError], ...] = (StaleClaim, TaskNotFound),
    look: str = "how calls on several handles wait for each other's locks",
) -> list[Any]:
    """Await calls side by side and return their answers; a refusal that may be is an answer too."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Violation):
            raise answer
        if isinstance(answer, BaseException) and not isinstance(answer, refusals):
            raise Violation(
                "a call beside others",
                expected="an answer, or a refusal that the contract knows",
                actual=f"{type(answer).__name__}: {shown(str(answer))}",
                breaks="X1",
                look=look,
            ) from answer
    return answers
