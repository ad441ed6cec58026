"""A backend beside the model: each call is made on both, and every answer and every stored field is compared."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.blame import by_difference
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.model import Model
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, shown

HANDLES = ("A", "B")
"""The names of the two handles."""

_PAGE = 50
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_REFUSALS = (StaleClaim, TaskExists, TaskNotFound)


class Twin:
    """Two handles on one store, and the model that says what each call must do.

    Every method makes a call on one handle and on the model, compares what comes back, and then compares every stored
    field of every task, read through the other handle. A difference is a violation that names the requirement.
    """

    def __init__(self, lab: Lab, store: str) -> None:
        self.model = Model()
        self._handles = {name: lab.unconnected(store=store) for name in HANDLES}

    async def connect(self) -> None:
        """Connect both handles."""
        for handle in self._handles.values():
            await handle.connect()

    async def close(self) -> None:
        """Close both handles."""
        for handle in self._handles.values():
            await handle.close()

    async def compare(self) -> None:
        """Compare every stored field of every task, read through both handles."""
        for name in HANDLES:
            await self._compare_stored(name, "at the end", "L1")

    async def reopen(self, name: str) -> None:
        """Close one handle and connect it again; the other stays open, so that every store lives on."""
        await self._handles[name].close()
        await self._handles[name].connect()
        await self._compare_stored(name, "after a handle was closed and connected again", "D1")

    async def enqueue(self, name: str, tasks: Sequence[Task]) -> None:
        """Enqueue on both."""
        refused = await self._both(name, "enqueue", self.model.enqueue, tasks)
        await self._compare_stored(name, "after enqueue", "L1" if refused else "API")

    async def claim(self, name: str, *, now: datetime, limit: int, lease_expires_at: datetime) -> None:
        """Claim on both; the tasks and their order must be the same."""
        expected = self.model.claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        actual = await self._handles[name].claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        if [task.id for task in actual] != [task.id for task in expected]:
            raise Violation(
                "the ids of the claimed tasks, in order",
                expected=shown([task.id for task in expected]),
                actual=shown([task.id for task in actual]),
                breaks=_claim_breaks(expected, actual, now=now, limit=limit),
            )
        for wanted, got in zip(expected, actual, strict=True):
            _compare_task(f"task {wanted.id!r} as the claim returned it", got, wanted, "C2")
        await self._compare_stored(name, "after claim", "C2")

    async def extend(self, name: str, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> None:
        """Extend on both."""
        expected = self.model.extend(claims, lease_expires_at=lease_expires_at)
        actual = await self._handles[name].extend(claims, lease_expires_at=lease_expires_at)
        expect_equal("the claims that are still held", [*actual], expected, breaks="L2")
        await self._compare_stored(name, "after extend", "L2", asked=lease_expires_at)

    async def complete(self, name: str, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Complete on both."""
        refused = await self._both(name, "complete", self.model.complete, task_id, attempt, value=value, now=now)
        await self._compare_stored(name, "after complete", _refusal_breaks(refused) or "V1")

    async def fail(self, name: str, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> None:
        """Fail on both."""
        options = {"if_expired": if_expired}
        refused = await self._both(name, "fail", self.model.fail, task_id, attempt, failure, **options)
        await self._compare_stored(name, "after fail", _refusal_breaks(refused) or "R2")

    async def cancel(self, name: str, task_id: str, *, now: datetime) -> None:
        """Cancel on both."""
        refused = await self._both(name, "cancel", self.model.cancel, task_id, now=now)
        await self._compare_stored(name, "after cancel", _refusal_breaks(refused) or "L1")

    async def expired(self, name: str, *, now: datetime, limit: int) -> None:
        """List expired leases; ties may come in any order."""
        everything = self.model.expired(now=now)
        actual = await self._handles[name].expired(now=now, limit=limit)
        leases = [task.lease_expires_at for task in everything[:limit]]
        expect_equal("the leases of the expired tasks", [t.lease_expires_at for t in actual], leases, breaks="D3")
        expect(
            "the expired tasks", all(t in everything for t in actual), expected=everything, actual=actual, breaks="D3"
        )
        expect_equal("how many tasks", len({task.id for task in actual}), len(leases), breaks="D3")
        await self._compare_stored(name, "after expired", "D3")

    async def purge(self, name: str, *, finished_before: datetime, limit: int) -> None:
        """Purge; which of several that ended at the same instant goes first is free, and the model follows."""
        may_go = self.model.purgeable(finished_before=finished_before)
        count = await self._handles[name].purge(finished_before=finished_before, limit=limit)
        expect_equal("the number of purged tasks", count, min(limit, len(may_go)), breaks="G1")
        kept = {task.id for task in await _list_all(self._other(name))}
        gone = [task for task in self.model.stored.values() if task.id not in kept]
        expect_equal(
            "when the purged tasks had ended",
            sorted(shown(task.finished_at) for task in gone),
            sorted(shown(task.finished_at) for task in may_go[:limit]),
            breaks="G1",
        )
        self.model.forget(task.id for task in gone)
        await self._compare_stored(name, "after purge", "G1")

    async def _both(
        self, name: str, method: str, modelled: Callable[..., Any], *args: Any, **options: Any
    ) -> Exception | None:
        """Make one call on both and compare answer or refusal; return the refusal, or None."""
        call: Awaitable[Any] = getattr(self._handles[name], method)(*args, **options)
        try:
            expected = modelled(*args, **options)
        except _REFUSALS as wanted:
            await _expect_refusal(method, call, wanted)
            return wanted
        try:
            actual = await call
        except _REFUSALS as unwanted:
            raise Violation(
                f"{method}()",
                expected=f"the answer {shown(expected)}",
                actual=_told(unwanted),
                breaks=_allowed_breaks(method),
            ) from unwanted
        if isinstance(expected, Task):
            _compare_task(f"the task that {method} returned", actual, expected, "R2")
        else:
            expect_equal(f"the answer of {method}()", actual, expected, breaks="L1")
        return None

    def _other(self, name: str) -> Subject:
        return self._handles[HANDLES[1 - HANDLES.index(name)]]

    async def _compare_stored(self, name: str, when: str, breaks: str, *, asked: datetime | None = None) -> None:
        other = self._other(name)
        last = next(reversed(self.model.stored), None)
        # At once, so that a backend that batches its calls can; nothing else is under way that could come between.
        listed, counts, due, found, over = await asyncio.gather(
            _list_all(other),
            other.counts(),
            other.next_due(),
            other.get(last or "unknown"),
            other.expired(now=_END_OF_TIME, limit=_PAGE),
        )
        expected = self.model.tasks()
        by_id = {task.id: task for task in listed}
        for task in expected:
            if task.id not in by_id:
                raise Violation(
                    f"task {task.id!r} {when}",
                    expected=shown(task),
                    actual="nothing is listed under this id",
                    breaks=breaks,
                )
            _compare_task(f"task {task.id!r} {when}", by_id[task.id], task, breaks, asked=asked)
        surplus = [task for task in listed if task.id not in self.model.stored]
        expect(f"the tasks {when}", not surplus, expected="no others", actual=surplus, breaks=breaks)
        expect_equal(
            f"the order of the listing {when}", [t.id for t in listed], [t.id for t in expected], breaks="LISTING"
        )
        expect_equal(f"counts() {when}", dict(counts), self.model.counts(), breaks="LISTING")
        expect_equal(f"next_due() {when}", due, self.model.next_due(), breaks="LISTING")
        running = self.model.expired(now=_END_OF_TIME)
        # Ties may come in any order.
        leases = [task.lease_expires_at for task in running[:_PAGE]]
        expect_equal(f"the leases of expired() {when}", [t.lease_expires_at for t in over], leases, breaks="D3")
        expect(f"expired() {when}", all(t in running for t in over), expected=running, actual=over, breaks="D3")
        # One of them by its id as well; this is also what shows that anything was stored at all.
        if last is not None:
            _compare_task(f"get({last!r}) {when}", found, self.model.stored[last], breaks, asked=asked)


async def _list_all(handle: Subject) -> list[Task]:
    listed: list[Task] = []
    cursor: str | None = None
    while True:
        page, cursor = await handle.tasks(after=cursor, limit=_PAGE)
        listed.extend(page)
        if cursor is None:
            return listed
        if len(listed) > 1000:  # noqa: PLR2004 - far more than any run of the model enqueues
            raise Violation("the listing", expected="an end", actual="a cursor again and again", breaks="LISTING")


def _compare_task(what: str, actual: object, expected: Task, breaks: str, *, asked: datetime | None = None) -> None:
    expect_equal(what, actual, expected, breaks=by_difference(expected, actual, asked=asked) or breaks)


async def _expect_refusal(method: str, call: Awaitable[Any], wanted: Exception) -> None:
    breaks = _refusal_breaks(wanted)
    try:
        answer = await call
    except _REFUSALS as refused:
        expect_equal(f"the refusal of {method}()", _told(refused), _told(wanted), breaks=breaks)
    else:
        raise Violation(
            f"{method}()", expected=_told(wanted), actual=f"no exception, and the answer {shown(answer)}", breaks=breaks
        )


def _told(refusal: Exception) -> str:
    data = {
        # In which order the offending ids are told is free.
        name: tuple(sorted(value)) if name == "task_ids" else value
        for name, value in vars(refusal).items()
        if not name.startswith("_")
    }
    return f"{type(refusal).__name__}({', '.join(f'{name}={shown(value)}' for name, value in data.items())})"


def _refusal_breaks(refusal: Exception | None) -> str | None:
    """Return the requirement that a refusal like this one protects."""
    if refusal is None:
        return None
    if isinstance(refusal, TaskNotFound):
        return "L3"
    if isinstance(refusal, StaleClaim) and refusal.status is TaskStatus.RUNNING:
        return "L2"
    return "L1"


def _allowed_breaks(method: str) -> str:
    return {"enqueue": "API", "complete": "L2", "fail": "L2"}.get(method, "L1")


def _claim_breaks(expected: Sequence[Task], actual: Sequence[Task], *, now: datetime, limit: int) -> str:
    """Return the requirement that a wrong choice of tasks breaks."""
    if any(task.available_at > now for task in actual):
        return "E1"
    if len({task.id for task in actual}) < len(actual):
        return "C1"
    if len(actual) > limit or len(actual) < len(expected):
        return "E2"
    wanted = {task.id for task in expected}
    if len(actual) > len(expected) and not wanted >= {task.id for task in actual}:
        return "C1"
    return "C3"
