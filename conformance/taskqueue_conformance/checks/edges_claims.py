"""Edges of claiming: E2 (how many), C1 (never twice), C2 (what was taken was returned) and C3 (the order)."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from taskqueue import Backend, Task, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._shared import (
    BLOBS,
    END_OF_TIME,
    EPOCH,
    HOUR,
    MAX_STEPS,
    MOMENTS,
    SECOND,
    after_cancel,
    after_claim,
    after_complete,
    after_fail,
    claim,
    expect_stored,
    expect_tasks,
    ids,
    listing,
    outcomes,
    overlap,
)
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_task, shown

# E2 --------------------------------------------------------------------------------------------------------------

LOOK_AT_LIMIT: Final = "claim: choose what is PENDING and due first, order it, and only then apply the limit"


@check(
    "E2",
    "A claim returns exactly min(due, limit) tasks",
    cases={"0": 0, "1": 1, "2": 2, "all but one": 4, "exactly all": 5, "one more": 6, "many more": 1_000_000},
    look=LOOK_AT_LIMIT,
)
async def a_claim_returns_min_of_due_and_limit(lab: Lab, limit: int) -> None:
    backend = await lab.handle()
    tasks = [new_task(f"{number}", available_at=NOON - (5 - number) * SECOND) for number in range(5)]
    await lab.put(backend, *tasks)
    claimed = await claim(backend, limit=limit)
    expect_equal(f"how many tasks claim(limit={limit}) returned", len(claimed), min(5, limit), breaks="E2")
    rest = await claim(backend, limit=100)
    expect_equal("how many tasks the next claim returned", len(rest), 5 - len(claimed), breaks="C2")


@check("E2", "A claim with limit 0 returns nothing and changes nothing", look=LOOK_AT_LIMIT)
async def limit_0_takes_nothing(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task("a"), new_task("b")]
    await lab.put(backend, *tasks)
    expect_equal("how many tasks claim(limit=0) returned", len(await claim(backend, limit=0)), 0)
    await lab.expect_stored(backend, *tasks, when="after claim(limit=0)")


@check("E2", "Claims drain what is due, and then return nothing", look=LOOK_AT_LIMIT)
async def claims_drain_what_is_due(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, *(new_task(f"{number}", available_at=NOON - SECOND) for number in range(5)))
    sizes = [len(await claim(handle, limit=2)) for handle in (backend, other, backend, other)]
    expect_equal("how many tasks four claims of 2 returned", sizes, [2, 2, 1, 0])


async def _undue(backend: Backend) -> None:
    await backend.enqueue([new_task(f"ahead {n}", available_at=NOON + MICROSECOND) for n in range(1000)])


async def _running(backend: Backend) -> None:
    await backend.enqueue([new_task(f"ahead {n}", available_at=NOON - HOUR) for n in range(1000)])
    claimed = await claim(backend, limit=1000)
    expect_equal("how many of 1,000 due tasks a claim of 1,000 returned", len(claimed), 1000)


async def _ended(backend: Backend) -> None:
    names = [f"ahead {n}" for n in range(120)]
    await backend.enqueue([new_task(name, available_at=NOON - HOUR, max_retries=0) for name in names])
    claimed = ids(await claim(backend, limit=90))
    await outcomes(*(backend.complete(name, 1, value=b"", now=NOON) for name in claimed[:30]))
    await outcomes(*(backend.fail(name, 1, new_failure()) for name in claimed[30:60]))
    await outcomes(*(backend.cancel(name, now=NOON) for name in [*claimed[60:], *({*names} - {*claimed})]))


async def _retried(backend: Backend) -> None:
    failure = new_failure()
    later = NOON + MICROSECOND
    await backend.enqueue(
        [new_task(f"ahead {n}", available_at=later, attempts=1, failures=(failure,)) for n in range(1000)]
    )


AHEAD: Final = {
    "1,000 not due": _undue,
    "1,000 running": _running,
    "120 ended": _ended,
    "1,000 retries not due": _retried,
}


@check("E2", "No task hides a due one", cases=AHEAD, look=LOOK_AT_LIMIT)
async def nothing_hides_a_due_task(lab: Lab, fill: Callable[[Backend], Awaitable[None]]) -> None:
    backend = await lab.handle()
    first, last = new_task("0 first", available_at=NOON - SECOND), new_task("zz last", available_at=NOON - SECOND)
    await fill(backend)
    for task in (last, first):
        await lab.put(backend, task)
        claimed = await claim(backend)
        expect_equal("the ids that claim(limit=1) returned", ids(claimed), [task.id], breaks="E2")


@check("E2", "A task that is not due yet does not stand in the way of a due one", look=LOOK_AT_LIMIT)
async def undue_and_due_tasks_mixed(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [
        new_task(f"{number:02}", available_at=NOON + HOUR if number % 2 else NOON - SECOND) for number in range(40)
    ]
    await lab.put(backend, *tasks)
    due = [task.id for task in tasks if task.available_at < NOON]
    first, rest = await claim(backend, limit=7), await claim(backend, limit=100)
    expect_equal("how many tasks claim(limit=7) returned", len(first), 7, breaks="E2")
    expect_equal("the ids of two claims", sorted(ids([*first, *rest])), due, breaks="E2")


@check(
    "E2", "What becomes due after a claim that found nothing is found", look="claim: does anything remember 'empty'?"
)
async def an_empty_claim_hides_nothing(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    later = new_task("later", available_at=NOON + HOUR)
    await lab.put(other, later)
    for handle in (backend, other):
        expect_equal("the ids that a claim of nothing returned", ids(await claim(handle, limit=9)), [], breaks="E1")
    now = NOON - HOUR
    for number, handle in enumerate((other, backend)):
        # Due before all that earlier claims looked at, and put there by another handle.
        task = new_task(f"{number}", available_at=now - SECOND)
        await lab.put(handle, task)
        claimed = await claim(backend, now=now, limit=9)
        expect_equal("the ids that the next claim returned", ids(claimed), [task.id], breaks="E2")
    claimed = await claim(backend, now=NOON + 2 * HOUR, limit=9)
    expect_equal("the ids that a claim two hours later returned", ids(claimed), ["later"], breaks="E2")
    await backend.fail("later", 1, new_failure(retry_at=NOON))
    claimed = await claim(other, limit=9)
    expect_equal("the ids claimed after a retry", ids(claimed), ["later"], breaks="E2")


@check("E2", "1,000 tasks can be enqueued, and claimed, in one call", look="limits on the size of one statement")
async def a_thousand_tasks_in_one_call(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(f"{number}", available_at=NOON - SECOND) for number in range(1000)]
    await backend.enqueue(tasks)
    await lab.expect_stored(backend, tasks[0], tasks[999], when="after enqueue of 1,000")
    claimed = await claim(backend, limit=1000)
    expect_equal("how many tasks claim(limit=1000) returned", len(claimed), 1000, breaks="E2")
    expect_equal("how many different ones", len({task.id for task in claimed}), 1000, breaks="C1")


@check("E2", "Tasks that are alike in everything but the id are all there", look="keys other than the id")
async def twins_are_two_tasks(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(task_id, payload=b"same", available_at=NOON - SECOND) for task_id in ("a", "b", "c")]
    await lab.put(backend, *tasks[:2])
    await lab.put(backend, tasks[2])
    await lab.expect_claimed(backend, await claim(backend, limit=9), tasks, now=NOON)


# C1 --------------------------------------------------------------------------------------------------------------

LOOK_AT_ONE_STEP: Final = "claim: choose and mark in one atomic step, with PENDING in the condition of the update"


@check(
    "C1", "A claimed task is not claimed again while it is held, even when its lease has run out", look=LOOK_AT_ONE_STEP
)
async def a_held_task_is_not_claimed(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    (held,) = await lab.running(backend, new_task(available_at=NOON - SECOND))
    for now in (NOON - SECOND, NOON, NOON + LEASE, NOON + LEASE + MICROSECOND, NOON + HOUR, END_OF_TIME):
        for handle in (backend, other):
            claimed = await handle.claim(now=now, limit=10, lease_expires_at=END_OF_TIME)
            expect_equal(f"the ids that claim(now={now}) returned", ids(claimed), [], breaks="C1")
    await expect_stored(other, held, when="after claims that took nothing", breaks="C1")
    await backend.extend([("a", 1)], lease_expires_at=NOON + HOUR)
    claimed = await claim(other, now=NOON + 2 * HOUR)
    expect_equal("the ids claimed after the extended lease ran out", ids(claimed), [], breaks="C1")


@check("C1", "A task claimed with a lease in the past is held all the same", look=LOOK_AT_ONE_STEP)
async def a_lease_in_the_past_holds(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await lab.running(backend, new_task(available_at=NOON - SECOND), lease_expires_at=EPOCH)
    for handle in (backend, other):
        claimed = await claim(handle, now=NOON + HOUR, limit=10)
        expect_equal("the ids that a second claim returned", ids(claimed), [], breaks="C1")
    await backend.complete("a", 1, value=b"", now=NOON)


@check("C1", "An ended task is never claimed", look=LOOK_AT_ONE_STEP)
async def an_ended_task_is_not_claimed(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    names = ("success", "failed", "cancelled", "withdrawn")
    await lab.running(backend, *(new_task(name, available_at=NOON - SECOND) for name in names[:3]))
    await lab.put(backend, new_task("withdrawn"))
    await backend.complete("success", 1, value=b"", now=NOON)
    await backend.fail("failed", 1, new_failure())
    await backend.cancel("cancelled", now=NOON)
    await backend.cancel("withdrawn", now=NOON)
    for handle in (backend, other):
        for now in (NOON, NOON + HOUR, END_OF_TIME):
            expect_equal("the ids that a claim returned", ids(await claim(handle, now=now, limit=9)), [], breaks="L1")


@check("C1", "Each claim of a task has an attempt number of its own", look="claim: attempts + 1, never anything less")
async def every_claim_has_its_own_number(lab: Lab) -> None:
    first, second = await lab.handle(), await lab.handle()
    await lab.put(first, new_task(max_retries=12, available_at=NOON - SECOND))
    numbers = []
    for number in range(1, 13):
        claiming, failing = (first, second) if number % 3 else (second, first)
        claimed = await claim(claiming, limit=9)
        expect_equal("the ids that claim returned", ids(claimed), ["a"], breaks="R1")
        numbers.append(claimed[0].attempts)
        attempt = claimed[0].attempts
        if number % 2:
            await failing.fail("a", attempt, new_failure(attempt, retry_at=NOON - SECOND))
        else:
            failure = new_failure(attempt, failed_at=NOON + HOUR, retry_at=NOON - HOUR)
            await failing.fail("a", attempt, failure, if_expired=True)
    expect("the attempt numbers", len(set(numbers)) == 12, expected="no number twice", actual=numbers)
    expect_equal("the attempt numbers", numbers, list(range(1, 13)), breaks="R1")


@check("C1", "Claims on several handles at once never share a task", look=LOOK_AT_ONE_STEP)
async def claims_at_once_share_no_task(lab: Lab) -> None:
    handles = [await lab.handle() for _ in range(5)]
    await lab.put(handles[0], new_task("first", available_at=NOON + HOUR))

    async def one(handle: Backend, yields: int, limit: int) -> Sequence[Task]:
        for _ in range(yields):
            await asyncio.sleep(0)
        return await claim(handle, limit=limit)

    for round_ in range(12):
        tasks = [new_task(f"{round_}-{number}", available_at=NOON - SECOND) for number in range(1 + round_ % 4)]
        await handles[0].enqueue(tasks)
        calls = [one(handle, lab.rng.randrange(4), 1 + lab.rng.randrange(3)) for handle in handles]
        answers = await outcomes(*calls, one(handles[1], 1, 2), claim(handles[2], limit=100))
        # A claim may have passed over what another one was changing; what is left is there now.
        answers.append(await claim(handles[-1], limit=100))
        await _expect_each_once(handles[0], [task for answer in answers for task in answer], tasks)


async def _expect_each_once(backend: Backend, claimed: Sequence[Task], tasks: Sequence[Task]) -> None:
    taken = Counter((task.id, task.attempts) for task in claimed)
    twice = [each for each, times in taken.items() if times > 1]
    expect("claims returned to two callers", not twice, expected="none", actual=twice, breaks="C1")
    expect_equal("attempts of the claimed tasks", {task.attempts for task in claimed}, {1}, breaks="C1")
    missing = [await backend.get(task_id) for task_id in sorted({*ids(tasks)} - {*ids(claimed)})]
    taken_by_nobody = any(task is not None and task.status is TaskStatus.RUNNING for task in missing)
    breaks = "C2" if taken_by_nobody else "E2"
    expect_equal("the ids claimed by all together", sorted(ids(claimed)), sorted(ids(tasks)), breaks=breaks)


@check("C1", "A claim that is held up in its middle shares no task with the others", look=LOOK_AT_ONE_STEP)
async def a_claim_held_up_shares_no_task(lab: Lab) -> None:
    first, second, third = [await lab.handle() for _ in range(3)]
    await lab.put(first, new_task("first", available_at=NOON + HOUR))
    for after in range(1, MAX_STEPS + 1):
        tasks = [new_task(f"{after}-{number}", available_at=NOON - SECOND) for number in range(3)]
        await first.enqueue(tasks)
        held, answers = await overlap(
            claim(first, limit=2), partial(claim, second, limit=2), partial(claim, third, limit=9), after=after
        )
        answers.append(await claim(second, limit=100))
        await _expect_each_once(first, [task for answer in answers for task in answer], tasks)
        if not held:
            break


# Races for the outcome of one task: whoever loses is refused, and what is stored is what the winner wrote.

Race = Callable[[Backend, Task], Coroutine[Any, Any, Any]]


def _complete(backend: Backend, task: Task) -> Coroutine[Any, Any, Any]:
    return backend.complete(task.id, 1, value=b"completed", now=NOON)


def _cancel(backend: Backend, task: Task) -> Coroutine[Any, Any, Any]:
    return backend.cancel(task.id, now=NOON)


_RETRIED: Final = new_failure(retry_at=NOON + HOUR)
_GIVEN_UP: Final = new_failure(error="RuntimeError: gave up")
_LOST: Final = new_failure(error="the lease ran out", traceback=None, failed_at=NOON + HOUR, retry_at=NOON + 2 * HOUR)


def _retry(backend: Backend, task: Task) -> Coroutine[Any, Any, Any]:
    return backend.fail(task.id, 1, _RETRIED)


def _give_up(backend: Backend, task: Task) -> Coroutine[Any, Any, Any]:
    return backend.fail(task.id, 1, _GIVEN_UP)


def _recover(backend: Backend, task: Task) -> Coroutine[Any, Any, Any]:
    return backend.fail(task.id, 1, _LOST, if_expired=True)


def _written(step: Race, task: Task) -> Task:
    if step is _complete:
        return after_complete(task, value=b"completed")
    if step is _cancel:
        return after_cancel(task)
    return after_fail(task, _RETRIED if step is _retry else _GIVEN_UP if step is _give_up else _LOST)


RACES: Final = {
    "complete, cancel": (_complete, _cancel),
    "cancel, complete": (_cancel, _complete),
    "cancel, fail": (_cancel, _give_up),
    "fail, cancel": (_give_up, _cancel),
    "retry, recover": (_retry, _recover),
    "recover, complete": (_recover, _complete),
    "complete, recover": (_complete, _recover),
    "complete, complete": (_complete, _complete),
    "cancel, cancel": (_cancel, _cancel),
}


@check(
    "L1",
    "Of two outcomes at once exactly one is recorded, and the other call is refused",
    cases=RACES,
    look="complete, fail and cancel: the condition on status and attempt in the update itself",
)
async def one_outcome_wins(lab: Lab, race: tuple[Race, Race]) -> None:
    one, two = await lab.handle(), await lab.handle()
    await lab.put(one, new_task("first", available_at=NOON + HOUR))
    first, second = race
    for after in range(1, MAX_STEPS + 1):
        (task,) = await lab.running(one, new_task(f"{after}", available_at=NOON - SECOND))
        held, answers = await overlap(first(one, task), partial(second, two, task), after=after)
        _expect_one_winner(race, answers)
        won = [_written(step, task) for step, answer in zip(race, answers, strict=True) if not _refused(answer)]
        expect_task("the task after the race", await two.get(task.id), won[0], breaks="L1")
        if not held:
            break


def _refused(answer: object) -> bool:
    return answer is False or isinstance(answer, BaseException)


def _expect_one_winner(race: tuple[Race, Race], answers: Sequence[object]) -> None:
    won = [not _refused(answer) for answer in answers]
    expect(
        f"{race[0].__name__[1:]} and {race[1].__name__[1:]} at once",
        won.count(True) == 1,
        expected="one that succeeds and one that is refused",
        actual=", ".join(shown(answer) for answer in answers),
        breaks="L1",
    )


@check("L1", "A claim and a cancellation at once agree on what happened", look=LOOK_AT_ONE_STEP)
async def claim_and_cancel_agree(lab: Lab) -> None:
    one, two = await lab.handle(), await lab.handle()
    await lab.put(one, new_task("first", available_at=NOON + HOUR))
    for claim_first in (True, False):
        for after in range(1, MAX_STEPS + 1):
            task = new_task(f"{claim_first} {after}", available_at=NOON - SECOND)
            await lab.put(one, task)
            calls: list[Callable[[], Coroutine[Any, Any, Any]]]
            calls = [partial(claim, one, limit=9), partial(two.cancel, task.id, now=NOON)]
            first, second = calls if claim_first else reversed(calls)
            held, answers = await overlap(first(), second, after=after)
            claimed, cancelled = answers if claim_first else reversed(answers)
            expect(
                "cancel, of a task that had not ended", cancelled is True, expected=True, actual=cancelled, breaks="L1"
            )
            expected = after_cancel(after_claim(task) if claimed else task)
            expect_task("the task after claim and cancel at once", await two.get(task.id), expected, breaks="L1")
            if not held:
                break


@check("C1", "A retry and a claim at once agree on what happened", look=LOOK_AT_ONE_STEP)
async def retry_and_claim_agree(lab: Lab) -> None:
    one, two, three = [await lab.handle() for _ in range(3)]
    await lab.put(one, new_task("first", available_at=NOON + HOUR))
    failure = new_failure(retry_at=NOON - SECOND)
    for after in range(1, MAX_STEPS + 1):
        (task,) = await lab.running(one, new_task(f"{after}", available_at=NOON - SECOND))
        held, answers = await overlap(
            one.fail(task.id, 1, failure), partial(claim, two, limit=9), partial(claim, three, limit=9), after=after
        )
        failed, *claims = answers
        expect_task("the task that fail returned", failed, after_fail(task, failure), breaks="R2")
        claims.append(await claim(three, limit=9))
        taken = [(each.id, each.attempts) for answer in claims for each in answer]
        expect_equal("the claims after and beside the retry", taken, [(task.id, 2)], breaks="C1")
        await two.complete(task.id, 2, value=b"", now=NOON)
        if not held:
            break


@check(
    "L2", "An extension that is held up in its middle revives nothing", look="extend: the guard in the update itself"
)
async def extend_and_an_outcome_agree(lab: Lab) -> None:
    one, two = await lab.handle(), await lab.handle()
    await lab.put(one, new_task("first", available_at=NOON + HOUR))
    for name, step in {"complete": _complete, "cancel": _cancel, "retry": _retry}.items():
        for after in range(1, MAX_STEPS + 1):
            (task,) = await lab.running(one, new_task(f"{name} {after}", available_at=NOON - SECOND))
            held, answers = await overlap(
                one.extend([(task.id, 1)], lease_expires_at=NOON + HOUR),
                partial(step, two, task),
                after=after,
            )
            if isinstance(answers[1], BaseException):
                raise Violation(
                    f"{name} beside extend", expected="an answer", actual=shown(answers[1]), breaks="L2"
                ) from answers[1]
            expect_task(f"the task after {name} beside extend", await two.get(task.id), _written(step, task))
            if not held:
                break


# C2 --------------------------------------------------------------------------------------------------------------

LOOK_AT_TAKEN: Final = "claim: take no more than is returned (no prefetching), and change nothing else"


@check("C2", "A claim takes what it returns, and leaves every other task as it was", look=LOOK_AT_TAKEN)
async def a_claim_changes_only_what_it_returns(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = [new_task(f"{n}", available_at=NOON - (9 - n) * SECOND, payload=bytes([n])) for n in range(8)]
    await lab.put(backend, *tasks, new_task("undue", available_at=NOON + SECOND))
    stored = {task.id: task for task in [*tasks, new_task("undue", available_at=NOON + SECOND)]}
    for number, limit in enumerate((1, 3, 2)):
        now, lease = NOON + number * SECOND - SECOND, NOON + number * HOUR
        claimed = await backend.claim(now=now, limit=limit, lease_expires_at=lease)
        for task in claimed:
            stored[task.id] = after_claim(stored[task.id], now=now, lease=lease)
            expect_task(f"{task.id!r} as claim returned it", task, stored[task.id], breaks="C2")
        for handle in (backend, other):
            await expect_stored(handle, *stored.values(), when=f"after a claim of {limit}", breaks="C2")


@check("C2", "A claim keeps the budget, the instants and the failures of what it takes", look=LOOK_AT_TAKEN)
async def a_claim_keeps_the_rest_of_the_task(lab: Lab) -> None:
    backend = await lab.handle()
    failure = new_failure(1, error="first", failed_at=NOON - HOUR, retry_at=NOON - SECOND)
    moved = new_task(
        "moved",
        max_retries=7,
        attempts=2,
        failures=(failure, new_failure(2, traceback=None)),
        started_at=NOON - 2 * HOUR,
        available_at=NOON - SECOND,
    )
    other = new_task("other", max_retries=0, available_at=NOON - HOUR)
    claimed = await lab.running(backend, moved, other)
    for task in (moved, other):
        (found,) = [each for each in claimed if each.id == task.id]
        expect_task("the task that claim returned", found, after_claim(task), breaks="C2")
        await expect_stored(backend, after_claim(task), when="after claim", breaks="C2")


@check("C2", "All that is RUNNING was returned to a caller", look=LOOK_AT_TAKEN)
async def everything_running_was_returned(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = [new_task(f"{number}", available_at=NOON - SECOND) for number in range(300)]
    await backend.enqueue(tasks)
    await lab.expect_stored(backend, tasks[0], when="after enqueue")
    returned: set[str] = set()
    for limit, handle in ((1, backend), (99, other), (50, backend)):
        returned |= {task.id for task in await claim(handle, limit=limit)}
        running = await listing(other)
        taken = {task.id for task in running if task.status is TaskStatus.RUNNING}
        expect(
            "tasks that are RUNNING and were returned to nobody",
            taken <= returned,
            expected="none",
            actual=sorted(taken - returned),
        )
        expect(
            "tasks that were returned and are not RUNNING",
            returned <= taken,
            expected="none",
            actual=sorted(returned - taken),
        )
    untouched = await listing(backend)
    for task in untouched:
        if task.id not in returned:
            expect_task(
                f"{task.id!r}, which no claim returned",
                task,
                new_task(task.id, available_at=NOON - SECOND),
                breaks="C2",
            )


@check("C2", "Claims at once take no more than they return", look=LOOK_AT_TAKEN)
async def claims_at_once_take_what_they_return(lab: Lab) -> None:
    handles = [await lab.handle() for _ in range(4)]
    tasks = [new_task(f"{number:02}", available_at=NOON - SECOND) for number in range(60)]
    await lab.put(handles[0], *tasks)
    for _ in range(4):
        answers = await outcomes(*(claim(handle, limit=3) for handle in handles))
        for task in (task for answer in answers for task in answer):
            expect_task("a task as claim returned it", await handles[0].get(task.id), task, breaks="C2")
    everything = {task.id: await handles[0].get(task.id) for task in tasks}
    running = [task for task in everything.values() if task and task.status is TaskStatus.RUNNING]
    expect(
        "tasks that are RUNNING after claims of 48 at most",
        len(running) <= 48,
        expected="48 at most",
        actual=len(running),
    )


@check("C2", "A claim that takes nothing changes nothing", look=LOOK_AT_TAKEN)
async def a_claim_of_nothing_changes_nothing(lab: Lab) -> None:
    backend = await lab.handle()
    (running,) = await lab.running(backend, new_task("running", available_at=NOON - SECOND))
    undue = new_task("undue", available_at=NOON + HOUR)
    await lab.put(backend, undue)
    for limit in (0, 1, 10):
        await lab.expect_claimed(backend, await claim(backend, limit=limit), [], now=NOON)
        await expect_stored(backend, running, undue, when=f"after claim(limit={limit})", breaks="C2")


# C3 --------------------------------------------------------------------------------------------------------------

LOOK_AT_ORDER: Final = "claim: order by available_at, then by a sequence number given once at enqueue and kept for life"


async def _drain(backend: Backend, *, now: datetime = NOON, limit: int = 1) -> list[str]:
    order: list[str] = []
    while claimed := ids(await claim(backend, now=now, limit=limit)):
        twice = sorted({*order} & {*claimed})
        expect("tasks that were claimed and are claimed again", not twice, expected="none", actual=twice, breaks="C1")
        order += claimed
    return order


def _expect_order(order: Sequence[str], expected: Sequence[str]) -> None:
    expect_equal("the ids claimed, in whatever order", sorted(order), sorted(expected), breaks="E2")
    expect_equal("the order of claiming", list(order), list(expected), breaks="C3")


BATCHES: Final = {"one at a time": 1, "three at a time": 3, "all at once": 100}


@check(
    "C3",
    "The earliest available_at is claimed first, whatever the order of enqueueing",
    cases=BATCHES,
    look=LOOK_AT_ORDER,
)
async def the_earliest_is_first(lab: Lab, limit: int) -> None:
    backend = await lab.handle()
    moments = list(MOMENTS.values())
    close = [NOON + number * MICROSECOND for number in (10, 11, 12, 100, 101)]
    far = [END_OF_TIME - number * MICROSECOND for number in (1, 2, 3)]
    early = [EPOCH + number * MICROSECOND for number in (2, 9, 10, 11)]
    instants = sorted({*moments, *close, *far, *early})
    tasks = [new_task(f"{instant}", available_at=instant) for instant in instants]
    shuffled = tasks.copy()
    lab.rng.shuffle(shuffled)
    await lab.put(backend, *shuffled[:10])
    await lab.put(backend, *shuffled[10:])
    order = await _drain(backend, now=END_OF_TIME, limit=limit)
    _expect_order(order, ids(tasks))


@check("C3", "Ties are claimed in the order of the list that enqueued them", cases=BATCHES, look=LOOK_AT_ORDER)
async def ties_follow_the_list(lab: Lab, limit: int) -> None:
    backend = await lab.handle()
    # Neither the ids, nor the payloads, nor any other field is in the order of the list.
    names = [f"{(number * 7) % 23:02}" for number in range(23)]
    tasks = [
        new_task(
            name,
            payload=bytes([255 - int(name)]) * (int(name) % 5),
            enqueued_at=NOON - int(name) * HOUR,
            max_retries=int(name) % 4,
        )
        for name in names
    ]
    await lab.put(backend, *tasks)
    order = await _drain(backend, limit=limit, now=NOON + SECOND)
    _expect_order(order, names)


@check("C3", "Ties are claimed in the order of the calls that enqueued them, across handles", look=LOOK_AT_ORDER)
async def ties_follow_the_calls(lab: Lab) -> None:
    handles = [await lab.handle() for _ in range(3)]
    names = [f"{(number * 5) % 13}" for number in range(13)]
    for number, name in enumerate(names):
        enqueued_at = NOON - number * HOUR
        await lab.put(handles[number % 3], new_task(name, available_at=NOON - SECOND, enqueued_at=enqueued_at))
    _expect_order(await _drain(handles[1], limit=2), names)


@check("C3", "The order of ties holds for many tasks", look=LOOK_AT_ORDER)
async def the_order_holds_for_many(lab: Lab) -> None:
    backend = await lab.handle()
    instants = [NOON - number * MICROSECOND for number in range(4)]
    tasks = [new_task(f"{number:x}", available_at=lab.rng.choice(instants)) for number in range(300)]
    lab.rng.shuffle(tasks)
    for start in range(0, 300, 75):
        await backend.enqueue(tasks[start : start + 75])
    await lab.expect_stored(backend, tasks[0], when="after enqueue")
    expected = ids(sorted(tasks, key=lambda task: task.available_at))
    _expect_order(await _drain(backend, limit=17, now=NOON + SECOND), expected)


async def _retried_in_reverse(backend: Backend, names: Sequence[str]) -> None:
    claimed = await claim(backend, limit=len(names))
    for task in sorted(claimed, key=lambda task: names.index(task.id), reverse=True):
        await backend.fail(task.id, 1, new_failure(retry_at=NOON + SECOND))


async def _recovered_in_reverse(backend: Backend, names: Sequence[str]) -> None:
    claimed = await claim(backend, limit=len(names))
    for task in sorted(claimed, key=lambda task: names.index(task.id), reverse=True):
        failure = new_failure(traceback=None, failed_at=NOON + HOUR, retry_at=NOON + SECOND)
        await backend.fail(task.id, 1, failure, if_expired=True)


RETURNS: Final = {"retried": _retried_in_reverse, "recovered": _recovered_in_reverse}


@check("C3", "A task that comes back keeps its place in the order of enqueueing", cases=RETURNS, look=LOOK_AT_ORDER)
async def a_returning_task_keeps_its_place(
    lab: Lab, send_back: Callable[[Backend, Sequence[str]], Awaitable[None]]
) -> None:
    backend, other = await lab.handle(), await lab.handle()
    early = ["d", "b", "c"]
    again = NOON + SECOND
    await lab.put(backend, *(new_task(name, available_at=NOON - SECOND) for name in early))
    await lab.put(other, new_task("a fresh one", available_at=again))
    await send_back(backend, early)
    await lab.put(backend, new_task("a last one", available_at=again))
    order = await _drain(other, now=again, limit=2)
    _expect_order(order, [*early, "a fresh one", "a last one"])


@check("C3", "A retry is placed by its retry_at among the others", look=LOOK_AT_ORDER)
async def a_retry_is_placed_by_its_instant(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.running(backend, new_task("late"), new_task("early"), now=NOON + SECOND)
    await lab.put(backend, new_task("middle", available_at=NOON + 5 * SECOND))
    await backend.fail("late", 1, new_failure(retry_at=NOON + 5 * SECOND + MICROSECOND))
    await backend.fail("early", 1, new_failure(retry_at=NOON + 5 * SECOND - MICROSECOND))
    order = await _drain(backend, now=NOON + HOUR)
    _expect_order(order, ["early", "middle", "late"])


@check("C3", "Tasks that come from another store stand where they were enqueued", look=LOOK_AT_ORDER)
async def moved_tasks_stand_in_line(lab: Lab) -> None:
    backend = await lab.handle()
    past = (new_failure(1, retry_at=NOON - HOUR), new_failure(2, retry_at=NOON))
    tasks = [
        new_task("new"),
        new_task("moved twice", attempts=2, failures=past, started_at=NOON - HOUR),
        new_task("another new"),
        new_task("moved once", attempts=1, failures=past[:1], started_at=NOON - 2 * HOUR, enqueued_at=EPOCH),
    ]
    await lab.put(backend, *tasks)
    _expect_order(await _drain(backend, now=NOON + SECOND), ids(tasks))


@check("C3", "What happens to other tasks does not change the order", look=LOOK_AT_ORDER)
async def the_order_survives_other_calls(lab: Lab) -> None:
    backend = await lab.handle()
    now = NOON + SECOND
    names = [f"{9 - number}" for number in range(9)]
    await lab.put(backend, *(new_task(name) for name in names))
    # The first four leave, two of them for good; then others take whatever the purged ones left free.
    claimed = ids(await claim(backend, now=now, limit=4))
    await backend.extend([(name, 1) for name in claimed], lease_expires_at=NOON + HOUR)
    for name in claimed[:3]:
        await backend.complete(name, 1, value=b"", now=NOON)
    removed = await backend.purge(finished_before=NOON + HOUR, limit=100)
    expect_equal("how many were purged", removed, 3, breaks="G1")
    fresh = [*claimed[:3], "0", "00", "000"]
    await lab.put(backend, *(new_task(name) for name in fresh))
    await backend.cancel(names[5], now=NOON)
    await backend.fail(claimed[3], 1, new_failure(retry_at=NOON))
    expected = [name for name in [*names[3:], *fresh] if name != names[5]]
    _expect_order(await _drain(backend, now=now, limit=3), expected)


@check("C3", "An id that was purged and enqueued anew stands at the end", look=LOOK_AT_ORDER)
async def a_reused_id_stands_at_the_end(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.put(backend, new_task("a"), new_task("b"), new_task("c"))
    await backend.cancel("a", now=NOON)
    removed = await backend.purge(finished_before=NOON + SECOND, limit=10)
    expect_equal("how many were purged", removed, 1, breaks="G1")
    await lab.put(backend, new_task("a"))
    order = await _drain(backend, now=NOON + SECOND)
    _expect_order(order, ["b", "c", "a"])


@check("C3", "No valid record stops a claim", look="claim: anything that raises on what it reads")
async def no_record_stops_a_claim(lab: Lab) -> None:
    backend = await lab.handle()
    past = new_failure(1, retry_at=END_OF_TIME, failed_at=EPOCH)
    odd = [
        *(new_task(f"payload {name}", payload=blob) for name, blob in BLOBS.items()),
        new_task("\U0001f600/../%_\n'\""),
        new_task("no budget", max_retries=0),
        new_task("large budget", max_retries=1_000_000),
        new_task("the last attempt", max_retries=2, attempts=1, failures=(past,), started_at=EPOCH),
        new_task("enqueued at the end of time", enqueued_at=END_OF_TIME),
        new_task("plain"),
    ]
    ended = new_task("spent", max_retries=1)
    now = NOON + timedelta(seconds=1)
    await lab.running(backend, ended, now=now)
    await backend.fail("spent", 1, new_failure())
    await lab.put(backend, *odd)
    first = await claim(backend, now=now, limit=5)
    rest = await claim(backend, now=now, limit=100)
    expect_tasks("two claims together", [*first, *rest], [after_claim(task, now=now) for task in odd], breaks="C3")
