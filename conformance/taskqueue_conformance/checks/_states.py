"""Stores with one task in each state of the contract's table, and snapshots of everything that a store shows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from taskqueue import Backend, Failure, StaleClaim, Task, TaskStatus
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import Violation, expect, expect_equal

SECOND: Final = timedelta(seconds=1)
LATER: Final = NOON + timedelta(hours=1)
"""When the PENDING tasks of :func:`every_state` are due; every lease there has run out by then."""
MUCH_LATER: Final = NOON + timedelta(days=1)

LIVE: Final = ("new", "retry", "running", "running_again")
ENDED: Final = ("success", "failed", "cancelled_pending", "cancelled_running")
STATES: Final = (*LIVE, *ENDED)
"""The columns of "Fields by status", with two attempts behind "running_again" and all but one of the ended."""

_EXPECTED: Final[Mapping[str, tuple[TaskStatus, int]]] = {
    "new": (TaskStatus.PENDING, 0),
    "retry": (TaskStatus.PENDING, 1),
    "running": (TaskStatus.RUNNING, 1),
    "running_again": (TaskStatus.RUNNING, 2),
    "success": (TaskStatus.SUCCESS, 2),
    "failed": (TaskStatus.FAILED, 2),
    "cancelled_pending": (TaskStatus.CANCELLED, 0),
    "cancelled_running": (TaskStatus.CANCELLED, 2),
}


async def every_state(lab: Lab, backend: Backend) -> Mapping[str, Task]:
    """Bring this store to one task in each of :data:`STATES`, its id the state's name; return them as stored.

    Only the status and the number of attempts are verified: what else a step gets wrong is for its own check to say.
    """
    try:
        return await _every_state(lab, backend)
    except StaleClaim as refused:
        raise Violation(
            "an outcome of the current claim", expected="to be recorded", actual=f"StaleClaim: {refused}", breaks="L2"
        ) from refused


async def _every_state(lab: Lab, backend: Backend) -> Mapping[str, Task]:
    tasks = {name: new_task(name) for name in STATES}
    tasks["new"] = new_task("new", available_at=LATER)
    tasks["cancelled_pending"] = new_task("cancelled_pending", available_at=LATER)
    tasks["failed"] = new_task("failed", max_retries=2)
    await lab.put(backend, *tasks.values())

    once = ["retry", "running", "running_again", "success", "failed", "cancelled_running"]
    _expect_attempts(await claim_all(lab, backend, once, now=NOON), 1)
    again = NOON + SECOND
    await backend.fail("retry", 1, new_failure(1, retry_at=LATER))
    twice = ["running_again", "success", "failed", "cancelled_running"]
    for name in twice:
        await backend.fail(name, 1, new_failure(1, retry_at=again))
    _expect_attempts(await claim_all(lab, backend, twice, now=again), 2)
    end = again + SECOND
    await backend.complete("success", 2, value=b"the value", now=end)
    await backend.fail("failed", 2, new_failure(2, failed_at=end, retry_at=LATER))
    await backend.cancel("cancelled_pending", now=end)
    await backend.cancel("cancelled_running", now=end)
    return {name: await _as_expected(backend, name) for name in STATES}


async def _as_expected(backend: Backend, name: str) -> Task:
    status, attempts = _EXPECTED[name]
    task = await stored(backend, name)
    expect_equal(f"the status of the task {name!r}", task.status, status, breaks="LIFECYCLE")
    expect_equal(f"attempts of the task {name!r}", task.attempts, attempts, breaks="R1")
    return task


def _expect_attempts(claimed: Sequence[Task], attempts: int) -> None:
    for task in claimed:
        expect_equal(f"attempts of {task.id!r} in the answer of claim()", task.attempts, attempts, breaks="R1")


async def claim_all(
    lab: Lab, backend: Backend, ids: Sequence[str], *, now: datetime = NOON, lease: timedelta = LEASE
) -> Sequence[Task]:
    """Claim with room for exactly these tasks, which must be all that are due, and return them."""
    claimed = await backend.claim(now=now, limit=len(ids), lease_expires_at=now + lease)
    if sorted(task.id for task in claimed) != sorted(ids):
        expected = [await stored(backend, task_id) for task_id in ids]
        await lab.expect_claimed(backend, claimed, expected, now=now)
    return claimed


async def stored(backend: Backend, task_id: str) -> Task:
    """Return a task that must be there."""
    task = await backend.get(task_id)
    expect(f"get({task_id!r})", task is not None, expected="a task", actual=task, breaks="API")
    assert task is not None  # noqa: S101 - for the type checker; expect has looked
    return task


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that can be read of a store, for comparison with itself later on."""

    tasks: Mapping[str, Task | None]
    listed: Sequence[Task]
    counts: Mapping[TaskStatus, int]
    expired: Sequence[str]
    next_due: datetime | None


async def snapshot(backend: Backend, *ids: str) -> Snapshot:
    """Read everything: the tasks with these ids one by one, and whatever the listings show."""
    listed, _ = await backend.tasks(limit=1000)
    return Snapshot(
        tasks={task_id: await backend.get(task_id) for task_id in ids},
        listed=list(listed),
        counts=dict(await backend.counts()),
        expired=sorted(task.id for task in await backend.expired(now=MUCH_LATER, limit=1000)),
        next_due=await backend.next_due(),
    )


async def expect_unchanged(backend: Backend, before: Snapshot, *, after: str, breaks: str | None = None) -> None:
    """Raise a violation unless everything in the store is as it was; ``after`` says after what, for the message."""
    now = await snapshot(backend, *before.tasks)
    for task_id, was in before.tasks.items():
        expect_equal(f"get({task_id!r}) after {after}", now.tasks[task_id], was, breaks=breaks)
    expect_equal(f"tasks() after {after}", now.listed, before.listed, breaks=breaks)
    expect_equal(f"counts() after {after}", now.counts, before.counts, breaks=breaks)
    expect_equal(f"the ids in expired() after {after}", now.expired, before.expired, breaks=breaks)
    expect_equal(f"next_due() after {after}", now.next_due, before.next_due, breaks=breaks)


def late_failure(attempt: int, **changes: object) -> Failure:
    """Return a failure that would be recorded long after every lease of :func:`every_state` has run out."""
    return new_failure(attempt, **({"error": "too late", "failed_at": LATER} | changes))


Recorder = Callable[[Backend, str, int], Awaitable[object]]
"""A call with the id of a task and the number of an attempt."""

OUTCOMES: Final[Mapping[str, Recorder]] = {
    "complete": lambda backend, task_id, n: backend.complete(task_id, n, value=b"too late", now=LATER),
    "fail": lambda backend, task_id, n: backend.fail(task_id, n, late_failure(n)),
    "fail with a retry": lambda backend, task_id, n: backend.fail(task_id, n, late_failure(n, retry_at=LATER)),
    "fail if expired": lambda backend, task_id, n: backend.fail(
        task_id, n, late_failure(n, retry_at=LATER), if_expired=True
    ),
}
"""Every way to record an outcome, at :data:`LATER`: each is refused with StaleClaim unless the claim is held."""
