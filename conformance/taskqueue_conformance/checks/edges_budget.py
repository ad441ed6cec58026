"""Edges of the retry budget: R1 (how often a task runs) and R2 (how a failure ends)."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from taskqueue import Backend, Failure, Task, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._shared import (
    END_OF_TIME,
    EPOCH,
    HOUR,
    MAX_STEPS,
    MOMENTS,
    SECOND,
    YEAR,
    after_cancel,
    after_claim,
    after_complete,
    after_fail,
    claim,
    expect_stored,
    ids,
    listing,
    overlap,
)
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect, expect_equal, expect_task

PAST: Final = NOON - SECOND
"""Before every claim here, so that no boundary plays a part."""

# R1 --------------------------------------------------------------------------------------------------------------

LOOK_AT_COUNT: Final = "claim counts the attempt; fail retries iff attempts < max_retries; nothing resets either"
BUDGETS: Final = {str(budget): budget for budget in (0, 1, 2, 3, 10)}


def _status(task: Task | None) -> TaskStatus | None:
    return None if task is None else task.status


async def _executions(lab: Lab, first: Backend, second: Backend, task: Task, *, recover: bool) -> int:
    """Claim and fail ``task`` until it is not PENDING any more; return the number of claims."""
    executions = 0
    while True:
        claimed = await claim(first if executions % 2 else second, limit=9)
        await lab.expect_claimed(first, claimed, [task], now=NOON)
        executions += 1
        number = task.attempts + executions
        expect_equal(f"attempts after claim {executions}", claimed[0].attempts, number, breaks="R1")
        failure = new_failure(number, failed_at=NOON + HOUR, retry_at=PAST)
        failed = await second.fail(task.id, number, failure, if_expired=recover)
        expect_equal(f"attempts after failure {executions}", failed.attempts, number, breaks="R1")
        if failed.status is not TaskStatus.PENDING:
            return executions
        expect("how often the task ran", executions < 20, expected="an end", actual=f"{executions} times", breaks="R1")


@check("R1", "A task that always fails runs max(1, max_retries) times", cases=BUDGETS, look=LOOK_AT_COUNT)
async def a_failing_task_spends_its_budget(lab: Lab, budget: int) -> None:
    first, second = await lab.handle(), await lab.handle()
    task = new_task(max_retries=budget, available_at=PAST)
    await lab.put(first, task)
    executions = await _executions(lab, first, second, task, recover=False)
    expect_equal(f"how often it ran with max_retries={budget}", executions, max(1, budget), breaks="R1")
    await _expect_spent(first, second, budget=budget)


@check("R1", "A task whose workers always die runs max(1, max_retries) times", cases=BUDGETS, look=LOOK_AT_COUNT)
async def lost_leases_spend_the_budget(lab: Lab, budget: int) -> None:
    first, second = await lab.handle(), await lab.handle()
    task = new_task(max_retries=budget, available_at=PAST)
    await lab.put(first, task)
    executions = await _executions(lab, first, second, task, recover=True)
    expect_equal(f"how often it ran with max_retries={budget}", executions, max(1, budget), breaks="R1")
    await _expect_spent(first, second, budget=budget)


async def _expect_spent(first: Backend, second: Backend, *, budget: int) -> None:
    for backend in (first, second):
        for now in (NOON, END_OF_TIME):
            claimed = await claim(backend, now=now, limit=9)
            expect_equal("the ids claimed once the budget is spent", ids(claimed), [], breaks="R1")
        spent = await backend.get("a")
        expect_equal("the status once the budget is spent", _status(spent), TaskStatus.FAILED, breaks="R1")
        expect_equal("attempts once the budget is spent", spent and spent.attempts, max(1, budget), breaks="R1")
        expect_equal("max_retries once the budget is spent", spent and spent.max_retries, budget, breaks="R1")


@check("R1", "The attempt is counted when the task is claimed, for every handle to see", look=LOOK_AT_COUNT)
async def the_claim_counts_the_attempt(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task(available_at=PAST)
    await lab.put(backend, task)
    for attempt in (1, 2, 3):
        claimed = await claim(backend, limit=9)
        await lab.expect_claimed(backend, claimed, [task], now=NOON)
        expect_equal("attempts in the claim's answer", claimed[0].attempts, attempt, breaks="R1")
        for handle in (other, backend):
            seen = await handle.get("a")
            expect_equal("attempts that get shows after the claim", seen and seen.attempts, attempt, breaks="R1")
        if attempt < 3:
            await other.fail("a", attempt, new_failure(attempt, retry_at=PAST))


@check("R1", "No call but claim changes attempts, and none changes max_retries", look=LOOK_AT_COUNT)
async def only_claims_count(lab: Lab) -> None:
    backend = await lab.handle()
    names = ("completed", "failed", "retried", "cancelled", "extended")
    await lab.running(backend, *(new_task(name, available_at=PAST, max_retries=5) for name in names))
    for name in names:
        await backend.fail(name, 1, new_failure(retry_at=PAST))
    again = await claim(backend, limit=9)
    expect_equal("the ids of the second claim", sorted(ids(again)), sorted(names), breaks="R2")
    await backend.complete("completed", 2, value=b"", now=NOON)
    await backend.fail("failed", 2, new_failure(2))
    await backend.fail("retried", 2, new_failure(2, retry_at=NOON))
    await backend.cancel("cancelled", now=NOON)
    await backend.extend([("extended", 2)], lease_expires_at=NOON + HOUR)
    await backend.expired(now=END_OF_TIME, limit=9)
    for name in names:
        task = await backend.get(name)
        counted = (task and task.attempts, task and task.max_retries)
        expect_equal(f"attempts and max_retries of the {name} task", counted, (2, 5), breaks="R1")


@check(
    "R1",
    "A task that brings attempts from another store has the rest of its budget left",
    cases={"1 of 3": (1, 3), "2 of 3": (2, 3), "1 of 2": (1, 2), "9 of 10": (9, 10)},
    look=LOOK_AT_COUNT,
)
async def a_moved_task_has_the_rest_of_its_budget(lab: Lab, case: tuple[int, int]) -> None:
    spent, budget = case
    first, second = await lab.handle(), await lab.handle()
    failures = tuple(
        new_failure(number, error=f"elsewhere {number}", failed_at=NOON - HOUR, retry_at=NOON - HOUR + number * SECOND)
        for number in range(1, spent + 1)
    )
    task = new_task(max_retries=budget, attempts=spent, failures=failures, started_at=NOON - YEAR, available_at=PAST)
    await lab.put(first, task)
    await expect_stored(second, task, when="after enqueue of a moved task", breaks="API")
    executions = await _executions(lab, first, second, task, recover=False)
    expect_equal(f"how often it ran after {spent} of {budget} attempts", executions, budget - spent, breaks="R1")
    ended = await second.get("a")
    numbers = [failure.attempt for failure in ended.failures] if ended else []
    expect_equal("the attempts of its failures", numbers, list(range(1, budget + 1)), breaks="R2")
    kept = ended.failures[:spent] if ended else ()
    expect_equal("the failures that it brought", kept, failures, breaks="R2")


@check("R1", "A large budget is kept and obeyed", look=LOOK_AT_COUNT)
async def a_large_budget_is_kept(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.running(backend, new_task(max_retries=1_000_000, available_at=PAST))
    failed = await backend.fail("a", 1, new_failure(retry_at=NOON))
    expect_equal("the status after the first failure", failed.status, TaskStatus.PENDING, breaks="R1")
    expect_equal("max_retries", failed.max_retries, 1_000_000, breaks="R1")


@check("R1", "The budgets of tasks are their own", look=LOOK_AT_COUNT)
async def budgets_are_their_own(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(f"{budget}", max_retries=budget, available_at=PAST) for budget in (3, 0, 2, 1)]
    await lab.put(backend, *tasks)
    ran = dict.fromkeys(ids(tasks), 0)
    for _ in range(5):
        for task in await claim(backend, limit=9):
            ran[task.id] += 1
            await backend.fail(task.id, task.attempts, new_failure(task.attempts, retry_at=PAST))
    expect_equal("how often each ran, by max_retries", ran, {"3": 3, "0": 1, "2": 2, "1": 1}, breaks="R1")


# R2 --------------------------------------------------------------------------------------------------------------

LOOK_AT_FAIL: Final = "fail: FAILED with failed_at, or PENDING at retry_at, in one step; everything else is kept"

RETRIES: Final = {
    **{name: MOMENTS[name] for name in ("the epoch", "part of a millisecond", "the year 3000", "the end of time")},
    "long before it failed": NOON - YEAR,
    "before it was due": PAST - SECOND,
    "1 us before it failed": NOON - MICROSECOND,
    "when it failed": NOON,
    "1 us after it failed": NOON + MICROSECOND,
    "an hour later": NOON + HOUR,
    "centuries later": NOON + 300 * YEAR,
}


@check(
    "R2", "A failure with budget left ends in PENDING at exactly the stated instant", cases=RETRIES, look=LOOK_AT_FAIL
)
async def a_retry_is_due_at_the_stated_instant(lab: Lab, retry_at: datetime) -> None:
    backend, other = await lab.handle(), await lab.handle()
    bystander = new_task("bystander", available_at=PAST)
    (task, *_) = await _claimed(lab, backend, new_task(available_at=PAST), bystander)
    failure = new_failure(retry_at=retry_at)
    expected = after_fail(task, failure)
    await _expect_failed(lab, backend, other, failure, expected)
    await expect_stored(backend, after_claim(bystander), when="after fail of another task", breaks="R2")
    expect_equal("how many tasks there are", len(await listing(other)), 2, breaks="R1")


async def _claimed(lab: Lab, backend: Backend, *tasks: Task, now: datetime = NOON) -> Sequence[Task]:
    """Put and claim tasks; return what is to be stored then, in the order given."""
    await lab.running(backend, *tasks, now=now)
    return [after_claim(task, now=now) for task in tasks]


async def _expect_failed(
    lab: Lab, backend: Backend, other: Backend, failure: Failure, expected: Task, *, if_expired: bool = False
) -> None:
    call = backend.fail(expected.id, failure.attempt, failure, if_expired=if_expired)
    failed = await (lab.expect_recovered(backend, call) if if_expired else call)
    _expect_outcome("the task that fail returned", failed, expected)
    for handle in (backend, other):
        _expect_outcome("the task that get shows after fail", await handle.get(expected.id), expected)


def _expect_outcome(what: str, actual: Task | None, expected: Task) -> None:
    if actual is not None and actual.status is not expected.status:
        budget = f"{expected.attempts} of max_retries={expected.max_retries} attempts"
        spent = expected.attempts >= expected.max_retries
        expect_equal(
            f"status, after {budget}, in {what}", actual.status, expected.status, breaks="R1" if spent else "R2"
        )
    expect_task(what, actual, expected, breaks="R2")


@check(
    "R2",
    "A failure that proposes no retry is final, whatever budget is left",
    cases={"2": 2, "10": 10},
    look=LOOK_AT_FAIL,
)
async def without_retry_at_a_failure_is_final(lab: Lab, budget: int) -> None:
    backend, other = await lab.handle(), await lab.handle()
    (task,) = await _claimed(lab, backend, new_task(max_retries=budget, available_at=PAST))
    failure = new_failure(failed_at=NOON + 3 * SECOND)
    await _expect_failed(lab, backend, other, failure, after_fail(task, failure))
    expect_equal("the ids claimed later", ids(await claim(other, now=END_OF_TIME, limit=9)), [], breaks="L1")
    expect_equal("next_due() once all has ended", await backend.next_due(), None, breaks="LISTING")


@check(
    "R2",
    "With the budget spent a failure is final, and its retry_at is None",
    cases={"0": 0, "1": 1},
    look=LOOK_AT_FAIL,
)
async def with_the_budget_spent_a_failure_is_final(lab: Lab, budget: int) -> None:
    backend, other = await lab.handle(), await lab.handle()
    (task,) = await _claimed(lab, backend, new_task(max_retries=budget, available_at=PAST))
    failure = new_failure(failed_at=NOON + 3 * SECOND, retry_at=NOON + HOUR)
    expected = after_fail(task, failure)
    expect_equal("retry_at of the final failure", expected.failures[-1].retry_at, None)
    await _expect_failed(lab, backend, other, failure, expected)


@check("R2", "Failures are kept in order, each with what it said, to the end", look=LOOK_AT_FAIL)
async def failures_are_kept_in_order(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    expected = new_task(max_retries=4, available_at=PAST)
    await lab.put(backend, expected)
    for attempt in range(1, 5):
        now, lease = NOON + attempt * HOUR, NOON + attempt * HOUR + LEASE
        claimed = await backend.claim(now=now, limit=9, lease_expires_at=lease)
        await lab.expect_claimed(backend, claimed, [expected], now=now)
        expected = after_claim(expected, now=now, lease=lease)
        await expect_stored(other, expected, when=f"after claim {attempt}", breaks="R2")
        failure = Failure(
            attempt=attempt,
            error=f"error {10 - attempt}",
            # Later failures say that they happened earlier: the order is that of the calls.
            failed_at=now - 2 * attempt * HOUR,
            traceback=None if attempt == 2 else f"traceback {attempt}",
            retry_at=now - 3 * attempt * HOUR,
        )
        expected = after_fail(expected, failure)
        await _expect_failed(lab, other, backend, failure, expected)
    expect_equal("the status in the end", expected.status, TaskStatus.FAILED)


@check("V2", "Every failure of a long life is kept", look=LOOK_AT_FAIL)
async def many_failures_are_kept(lab: Lab) -> None:
    """Whoever counts on a small number of attempts loses the oldest, or stops counting."""
    backend, other = await lab.handle(), await lab.handle()
    expected = new_task(max_retries=300, available_at=PAST)
    await lab.put(backend, expected)
    for attempt in range(1, 41):
        (claimed,) = await backend.claim(now=NOON, limit=1, lease_expires_at=NOON + LEASE)
        expect_equal(f"the attempts after claim {attempt}", claimed.attempts, attempt, breaks="R1")
        failure = new_failure(attempt, retry_at=PAST)
        expected = after_fail(after_claim(expected), failure)
        await backend.fail("a", attempt, failure)
    await expect_stored(other, expected, when="after 40 failures")


@check("R2", "Failures survive a success and a cancellation", look=LOOK_AT_FAIL)
async def failures_survive_other_ends(lab: Lab) -> None:
    backend = await lab.handle()
    first, second, third = await _claimed(lab, backend, *(new_task(name, available_at=PAST) for name in "abc"))
    failure = new_failure(retry_at=PAST)
    for task in (first, second, third):
        await backend.fail(task.id, 1, failure)
    await backend.cancel("c", now=NOON + SECOND)
    again = await claim(backend, limit=9)
    expect_equal("the ids of the second claim", sorted(ids(again)), ["a", "b"])
    await backend.complete("a", 2, value=b"v", now=NOON + SECOND)
    await backend.cancel("b", now=NOON + SECOND)
    then = NOON + SECOND
    await expect_stored(
        backend,
        after_complete(after_claim(after_fail(first, failure)), value=b"v", now=then),
        after_cancel(after_claim(after_fail(second, failure)), now=then),
        after_cancel(after_fail(third, failure), now=then),
        when="in the end",
        breaks="R2",
    )


@check("R2", "A worker may fail its task before and after the lease has run out", look=LOOK_AT_FAIL)
async def a_plain_failure_ignores_the_lease(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = await _claimed(lab, backend, *(new_task(f"{number}", available_at=PAST) for number in range(4)))
    offsets = (-LEASE, -MICROSECOND, 0 * SECOND, HOUR)
    for number, (task, offset) in enumerate(zip(tasks, offsets, strict=True)):
        failure = new_failure(failed_at=NOON + LEASE + offset, retry_at=NOON + HOUR if number % 2 else None)
        await _expect_failed(lab, backend, other, failure, after_fail(task, failure))


LOOK_AT_LEASE: Final = "fail: with if_expired, lease_expires_at <= failure.failed_at, checked in the same step"
LEASES: Final = {
    "at noon": NOON + LEASE,
    "at 1 us past": NOON + MICROSECOND,
    "in part of a millisecond": MOMENTS["part of a millisecond"],
    "past 53 bits": MOMENTS["beyond 53 bits of microseconds"],
    "at the end of time": END_OF_TIME,
}


@check("R2", "With if_expired a failure is recorded only from the lease's end on", cases=LEASES, look=LOOK_AT_LEASE)
async def if_expired_waits_for_the_lease(lab: Lab, lease: datetime) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task(max_retries=5, available_at=PAST)
    await lab.running(backend, task, lease_expires_at=lease)
    held = after_claim(task, lease=lease)
    for early in (EPOCH, lease - MICROSECOND):
        failure = new_failure(failed_at=early, retry_at=NOON, traceback=None)
        refused = await lab.expect_not_recovered(
            backend, "fail(if_expired=True) before the lease ends", other.fail("a", 1, failure, if_expired=True)
        )
        told = (refused.status, refused.attempts, refused.lease_expires_at)
        expect_equal("status, attempts and lease in StaleClaim", told, (TaskStatus.RUNNING, 1, lease), breaks="R2")
        await expect_stored(backend, held, when="after a refused fail", breaks="L1")
    failure = new_failure(failed_at=lease, retry_at=NOON, traceback=None)
    await _expect_failed(lab, other, backend, failure, after_fail(held, failure), if_expired=True)


@check("R2", "With if_expired it is the present lease that counts", look=LOOK_AT_LEASE)
async def if_expired_looks_at_the_present_lease(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    (task,) = await _claimed(lab, backend, new_task(available_at=PAST))
    extended = replace(task, lease_expires_at=NOON + HOUR)
    held = await backend.extend([("a", 1)], lease_expires_at=NOON + HOUR)
    expect_equal("extend()", held, [("a", 1)], breaks="L2")
    refused = await lab.expect_not_recovered(
        backend,
        "fail(if_expired=True) after the old lease and before the new one ends",
        other.fail("a", 1, new_failure(failed_at=NOON + LEASE, retry_at=NOON), if_expired=True),
    )
    expect_equal("StaleClaim.lease_expires_at", refused.lease_expires_at, NOON + HOUR, breaks="R2")
    await expect_stored(other, extended, when="after a refused fail", breaks="L1")
    failure = new_failure(failed_at=NOON + 2 * HOUR, retry_at=PAST)
    await _expect_failed(lab, other, backend, failure, after_fail(extended, failure), if_expired=True)
    # The next claim has a lease of its own; the old one means nothing any more.
    (again,) = await backend.claim(now=NOON, limit=1, lease_expires_at=NOON + 3 * HOUR)
    refused = await lab.expect_not_recovered(
        backend,
        "fail(if_expired=True) of the second claim, before its lease ends",
        other.fail("a", 2, new_failure(2, failed_at=NOON + 2 * HOUR), if_expired=True),
    )
    expect_equal("StaleClaim.lease_expires_at", refused.lease_expires_at, again.lease_expires_at, breaks="R2")


@check("R2", "A lost lease spends the last attempt like any failure, and leaves a result", look=LOOK_AT_LEASE)
async def a_lost_lease_can_be_final(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    (task,) = await _claimed(lab, backend, new_task(max_retries=0, available_at=PAST))
    failure = new_failure(error="the lease ran out", traceback=None, failed_at=NOON + HOUR, retry_at=NOON + HOUR)
    await _expect_failed(lab, other, backend, failure, after_fail(task, failure), if_expired=True)
    await lab.expect_expired(backend, await backend.expired(now=END_OF_TIME, limit=9), [], now=END_OF_TIME)


@check("R2", "Nobody sees a retried task as FAILED, nor a failed one as anything but FAILED", look=LOOK_AT_FAIL)
async def nobody_sees_the_middle_of_a_failure(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("first", available_at=NOON + HOUR))
    for retry_at in (NOON + HOUR, None):
        for after in range(1, MAX_STEPS + 1):
            (task,) = await _claimed(lab, backend, new_task(f"{retry_at} {after}", available_at=PAST))
            failure = new_failure(retry_at=retry_at)
            expected = after_fail(task, failure)
            held, (failed, seen) = await overlap(
                backend.fail(task.id, 1, failure),
                partial(other.get, task.id),
                after=after,
            )
            _expect_outcome("the task that fail returned", failed, expected)
            if seen != task:
                _expect_outcome("the task that another handle saw meanwhile", seen, expected)
            if not held:
                break
