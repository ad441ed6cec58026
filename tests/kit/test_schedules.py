"""Each check of the layer schedules is made to fail by a wrong backend, for the reason that it names."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import StaleClaim, TaskExists, TaskNotFound, TaskStatus
from taskqueue.backends.memory import MemoryBackend

sys.path.insert(0, str(Path(__file__).parent))  # the tests are run by path, not imported as a package

from planted import LITTLE, Method, Open, pause, planted, violation

SCHEDULES = {
    "schedules/C1/claims-race",
    "schedules/L1/outcomes-race",
    "schedules/L2/recovery-races-the-holder",
    "schedules/L1/enqueues-race",
    "schedules/R1/retries-race",
    "schedules/G1/purges-race",
    "schedules/LISTING/listings-race",
    "schedules/LISTING/sums-race-one-task",
    "schedules/V1/results-race-readers",
    "schedules/X1/one-handle-serves-many-calls",
}


async def claim_after_a_look(self: Open, *, now: Any, limit: int, lease_expires_at: Any) -> list[Any]:
    due = sorted(
        (t for t in self.all() if t.status == "pending" and t.available_at <= now), key=lambda t: t.available_at
    )
    await pause()
    taken = [
        replace(
            t, status=TaskStatus.RUNNING, attempts=t.attempts + 1, started_at=now, lease_expires_at=lease_expires_at
        )
        for t in due[:limit]
    ]
    for task in taken:
        self.put(task)
    return taken


async def claim_and_keep_some(self: Open, *, now: Any, limit: int, lease_expires_at: Any) -> Any:
    await pause()
    claimed = self.store.claim(now, limit + 1, lease_expires_at)
    return claimed[:limit]


async def complete_after_a_look(self: Open, task_id: str, attempt: int, *, value: bytes, now: Any) -> None:
    self.store._held(task_id, attempt)
    await pause()
    task = self.look(task_id)
    if task is None:
        raise TaskNotFound(task_id)
    self.put(replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None))


async def complete_before_the_value(self: Open, task_id: str, attempt: int, *, value: bytes, now: Any) -> None:
    self.store.complete(task_id, attempt, b"", now)
    await pause()
    task = self.look(task_id)
    if task is not None:
        self.put(replace(task, value=value))


async def complete_behind_the_answer(self: Open, task_id: str, attempt: int, *, value: bytes, now: Any) -> None:
    _, task = self.store._held(task_id, attempt)
    done = replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None)
    asyncio.get_running_loop().call_later(0.002, self.put, done)


async def fail_after_a_look_at_the_lease(
    self: Open, task_id: str, attempt: int, failure: Any, *, if_expired: bool = False
) -> Any:
    _, task = self.store._held(task_id, attempt)
    if if_expired and task.lease_expires_at > failure.failed_at:
        raise StaleClaim(task_id, attempt, status=task.status, attempts=attempt, lease_expires_at=task.lease_expires_at)
    await pause()
    return self.store.fail(task_id, attempt, failure, if_expired=False)


async def fail_in_two_steps(self: Open, task_id: str, attempt: int, failure: Any, *, if_expired: bool = False) -> Any:
    task = self.store.fail(task_id, attempt, replace(failure, retry_at=None), if_expired=if_expired)
    if failure.retry_at is None or task.attempts >= task.max_retries:
        return task
    await pause()
    failures = (*task.failures[:-1], failure)
    task = replace(task, status=TaskStatus.PENDING, finished_at=None, available_at=failure.retry_at, failures=failures)
    self.put(task)
    return task


async def enqueue_one_by_one(self: Open, tasks: Any) -> None:
    ids = [task.id for task in tasks]
    known = [task_id for task_id in ids if self.look(task_id) or ids.count(task_id) > 1]
    if known:
        raise TaskExists(known)
    for task in tasks:
        self.store.enqueue([task])
        await pause()


async def purge_what_another_counts(self: Open, *, finished_before: Any, limit: int) -> int:
    old = [task for task in self.all() if task.status.ended and task.finished_at < finished_before][:limit]
    await pause()
    for task in old:
        self.store.purge(task.finished_at + timedelta(microseconds=1), 1)
    return len(old)


async def count_one_by_one(self: Open) -> Any:
    counts = {}
    for status in TaskStatus:
        counts[status] = sum(task.status is status for task in self.all())
        await pause()
    return counts


async def look_at_leases_then_at_etas(self: Open) -> Any:
    leases = [task.lease_expires_at for task in self.all() if task.lease_expires_at is not None]
    await pause()
    return min([*leases, *(task.available_at for task in self.all() if task.status == "pending")], default=None)


async def extend_what_it_saw(self: Open, claims: Any, *, lease_expires_at: Any) -> Any:
    held = []
    for task_id, attempt in claims:
        task = self.look(task_id)
        if task is not None and task.status == "running" and task.attempts == attempt:
            await pause()
            self.put(replace(task, lease_expires_at=max(task.lease_expires_at, lease_expires_at)))
            held.append((task_id, attempt))
    return held


async def cancel_alone(self: Open, task_id: str, *, now: Any) -> bool:
    if self.store.__dict__.setdefault("busy", False):
        raise OSError("database is locked")
    self.store.busy = True
    try:
        await pause()
        return bool(self.store.cancel(task_id, now))
    finally:
        self.store.busy = False


DEFECTS: list[tuple[str, str, Method, str, str]] = [
    # the check, the method and what it does instead, the requirement, and what the message says
    ("schedules/C1/claims-race", "claim", claim_after_a_look, "C1", "attempt 1 of t"),
    ("schedules/C1/claims-race", "claim", claim_and_keep_some, "C2", "in the answer of a claim"),
    ("schedules/R1/retries-race", "claim", claim_after_a_look, "C1", "claim only"),
    ("schedules/L1/outcomes-race", "complete", complete_after_a_look, "L1", "ended by one call"),
    ("schedules/L2/recovery-races-the-holder", "fail", fail_after_a_look_at_the_lease, "L2", "its lease holds until"),
    ("schedules/L1/enqueues-race", "enqueue", enqueue_one_by_one, "L1", "already enqueued"),
    ("schedules/G1/purges-race", "purge", purge_what_another_counts, "G1", "removed, since"),
    ("schedules/LISTING/listings-race", "counts", count_one_by_one, "LISTING", "the counts at one instant"),
    ("schedules/LISTING/sums-race-one-task", "next_due", look_at_leases_then_at_etas, "LISTING", "next_due()"),
    (
        "schedules/V1/results-race-readers",
        "complete",
        complete_before_the_value,
        "V1",
        "with the value of the complete",
    ),
    ("schedules/V1/results-race-readers", "complete", complete_behind_the_answer, "D1", "success from then on"),
    ("schedules/V1/results-race-readers", "fail", fail_in_two_steps, "R2", "never FAILED"),
    ("schedules/L1/outcomes-race", "extend", extend_what_it_saw, "R2", "t1 with available_at"),
    ("schedules/X1/one-handle-serves-many-calls", "cancel", cancel_alone, "X1", "database is locked"),
]


@pytest.mark.parametrize(
    ("check", "method", "defect", "requirement", "message"),
    DEFECTS,
    ids=[f"{each[0].split('/')[2]}-{each[2].__name__}" for each in DEFECTS],
)
def test_a_wrong_backend_is_caught_for_its_own_reason(
    check: str, method: str, defect: Method, requirement: str, message: str
) -> None:
    caught = [found for seed in range(2) if (found := violation(check, planted(method, defect), seed=seed))]
    assert caught
    named = [f"{found.expected}\n{found.actual}" for found in caught if found.requirement == requirement]
    assert any(message in text for text in named), [(found.requirement, found.expected) for found in caught]


def test_every_check_of_the_layer_has_a_defect() -> None:
    assert {each[0] for each in DEFECTS} == SCHEDULES


@pytest.mark.parametrize("check", sorted(SCHEDULES))
def test_a_correct_backend_passes(check: str) -> None:
    assert violation(check, MemoryBackend, effort=LITTLE) is None


class Hesitant(MemoryBackend):
    """Correct, though every call pauses before and after it does everything in one step."""


def _hesitating(name: str) -> Method:
    async def method(self: Hesitant, *args: Any, **options: Any) -> Any:
        await pause()
        answer = await getattr(MemoryBackend, name)(self, *args, **options)
        await asyncio.create_task(pause())
        return answer

    return method


def _methods() -> Iterator[str]:
    yield from (
        "enqueue",
        "claim",
        "extend",
        "complete",
        "fail",
        "cancel",
        "expired",
        "get",
        "tasks",
        "counts",
        "purge",
    )


for _name in _methods():
    setattr(Hesitant, _name, _hesitating(_name))


@pytest.mark.parametrize("check", sorted(SCHEDULES))
def test_a_correct_backend_that_suspends_passes(check: str) -> None:
    assert violation(check, Hesitant, effort=LITTLE) is None
