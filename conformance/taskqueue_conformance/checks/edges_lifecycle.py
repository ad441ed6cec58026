"""Every method on every status: what a transition sets, what is refused, and that a refusal changes nothing (L1-L3)."""

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import partial

from taskqueue import Backend, NotConnected, StaleClaim, Task, TaskExists, TaskNotFound, TaskQueueError, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._shared import MAX_STEPS, overlap
from taskqueue_conformance.checks._states import (
    ENDED,
    LATER,
    LIVE,
    MUCH_LATER,
    OUTCOMES,
    SECOND,
    STATES,
    Recorder,
    claim_all,
    every_state,
    expect_unchanged,
    late_failure,
    snapshot,
    stored,
)
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_refused

ROUNDS = 8
"""How often a race is run: each time with the two calls in the other order."""


# --- L1: an ended task never changes; a refused call changes nothing -------------------------------------------------


@check(
    "L1",
    "No outcome is recorded for a task that has ended",
    cases=OUTCOMES,
    look="complete and fail: only a task that is RUNNING may end, tested in the same step",
)
async def an_ended_task_takes_no_outcome(lab: Lab, record: Recorder) -> None:
    """A late complete does not overwrite a cancel, nor a late failure a success, whichever attempt they name."""
    backend = await lab.handle()
    tasks = await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    for name in ENDED:
        for attempt in range(1, tasks[name].attempts + 2):
            what = f"an outcome of attempt {attempt} for the task {name!r}"
            refused = await expect_refused(what, record(backend, name, attempt), StaleClaim)
            _expect_facts(what, refused, attempt, tasks[name])
            await expect_unchanged(backend, before, after=f"{what} was refused")


@check("L1", "extend leaves ended tasks out of its answer and changes nothing", look="extend: only RUNNING tasks")
async def an_ended_task_is_not_extended(lab: Lab) -> None:
    """Nothing is revived, nor given a lease."""
    backend = await lab.handle()
    tasks = await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    for name in ENDED:
        claims = [(name, attempt) for attempt in range(1, tasks[name].attempts + 2)]
        held = await backend.extend(claims, lease_expires_at=LATER)
        expect_equal(f"the answer of extend() for the task {name!r}", held, [])
        await expect_unchanged(backend, before, after=f"extend({claims})")


@check("L1", "cancel ends a task once: the call that did says True, later ones False", look="cancel: what it returns")
async def cancel_says_who_ended_the_task(lab: Lab) -> None:
    """A cancel that comes too late says so, and leaves value, failures and finished_at alone."""
    backend = await lab.handle()
    await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    for name in ENDED:
        answer = await backend.cancel(name, now=LATER)
        expect_equal(f"cancel({name!r}), which had ended", answer, expected=False)
        await expect_unchanged(backend, before, after=f"a late cancel({name!r})")
    for name in LIVE:
        others = await snapshot(backend, *(other for other in STATES if other != name))
        answer = await backend.cancel(name, now=LATER)
        expect_equal(f"cancel({name!r}), which had not ended", answer, expected=True)
        ended = await stored(backend, name)
        expect_equal(f"the status of {name!r} after cancel", ended.status, TaskStatus.CANCELLED, breaks="LIFECYCLE")
        for other, was in others.tasks.items():
            expect_equal(f"get({other!r}) after cancel({name!r})", await backend.get(other), was)
        answer = await backend.cancel(name, now=MUCH_LATER)
        expect_equal(f"a second cancel({name!r})", answer, expected=False)
        expect_equal(f"get({name!r}) after a second cancel", await backend.get(name), ended)


@check("L1", "complete ends a task once: the second is refused", look="complete: the guard on the status")
async def a_second_complete_is_refused(lab: Lab) -> None:
    """StaleClaim with SUCCESS and the same attempts is how a caller learns that a lost answer had landed."""
    backend = await lab.handle()
    await lab.running(backend, new_task())
    await backend.complete("a", 1, value=b"first", now=NOON)
    before = await snapshot(backend, "a")
    for value in (b"first", b"second"):
        refused = await expect_refused(
            "a second complete", backend.complete("a", 1, value=value, now=LATER), StaleClaim
        )
        _expect_facts("a second complete", refused, 1, await stored(backend, "a"))
    await expect_unchanged(backend, before, after="a second complete")


@check(
    "L1",
    "enqueue refuses ids that are known, whatever their status, and stores nothing of the call",
    look="enqueue: a known id is refused before anything of the list is stored",
)
async def a_known_id_is_refused(lab: Lab) -> None:
    """All or none: the good tasks of the list, before and after the offender, are not stored."""
    backend = await lab.handle()
    await every_state(lab, backend)
    before = await snapshot(backend, *STATES, "fresh1", "fresh2")
    for name in STATES:
        again = new_task(name, payload=b"another payload", max_retries=7, available_at=NOON - LEASE)
        for position, tasks in {
            "alone": [again],
            "first": [again, new_task("fresh1"), new_task("fresh2")],
            "in the middle": [new_task("fresh1"), again, new_task("fresh2")],
            "last": [new_task("fresh1"), new_task("fresh2"), again],
        }.items():
            what = f"enqueue with the known id {name!r} {position}"
            refused = await expect_refused(what, backend.enqueue(tasks), TaskExists)
            expect_equal(f"task_ids of the TaskExists from {what}", list(refused.task_ids), [name])
            await expect_unchanged(backend, before, after=what)
    fresh = [new_task("fresh1"), new_task("fresh2")]
    await backend.enqueue(fresh)
    await lab.expect_stored(backend, *fresh, when="after an enqueue that follows refused ones")


@check("L1", "TaskExists carries every id that offends, and no other", look="enqueue: which ids TaskExists carries")
async def every_offender_is_named(lab: Lab) -> None:
    """Known ids and ids that stand twice in the list."""
    backend = await lab.handle()
    await lab.put(backend, new_task("a"), new_task("b"), new_task("c"))
    before = await snapshot(backend, "a", "b", "c", "x", "y", "z")
    for ids, offenders in {
        ("c", "x", "a"): {"a", "c"},
        ("x", "y", "x"): {"x"},
        ("x", "x", "y", "y", "z"): {"x", "y"},
        ("x", "b", "y", "x"): {"b", "x"},
        ("a", "a", "z"): {"a"},
        ("a", "b", "c"): {"a", "b", "c"},
    }.items():
        what = f"enqueue of {', '.join(ids)} where a, b and c are known"
        refused = await expect_refused(what, backend.enqueue([new_task(each) for each in ids]), TaskExists)
        expect_equal(f"task_ids of the TaskExists from {what}", sorted(set(refused.task_ids)), sorted(offenders))
        await expect_unchanged(backend, before, after=what)
    twins = [new_task("x", payload=b"one"), new_task("x", payload=b"two")]
    await expect_refused("enqueue of one id twice with different payloads", backend.enqueue(twins), TaskExists)
    await expect_unchanged(backend, before, after="enqueue of one id twice")


@check("L1", "A refused enqueue does not disturb the order of what follows", look="enqueue: nothing of it may remain")
async def a_refused_enqueue_leaves_the_order(lab: Lab) -> None:
    """What was refused takes no place in the queue."""
    backend = await lab.handle()
    await lab.put(backend, new_task("a"), new_task("b"))
    for refused in ([new_task("b"), new_task("a")], [new_task("x"), new_task("a")]):
        await expect_refused("enqueue of a known id", backend.enqueue(refused), TaskExists)
    await lab.put(backend, new_task("x"))
    claimed = await backend.claim(now=NOON, limit=10, lease_expires_at=LATER)
    expect_equal("the claim after refused enqueues", [task.id for task in claimed], ["a", "b", "x"])


@check("L1", "An empty list and a limit of 0 change nothing")
async def nothing_asked_nothing_done(lab: Lab) -> None:
    """Beware SQL's LIMIT -1, and "LIMIT 0 or default"."""
    backend = await lab.handle()
    await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    await backend.enqueue([])
    claimed = await backend.claim(now=MUCH_LATER, limit=0, lease_expires_at=MUCH_LATER)
    expect_equal("claim(limit=0)", list(claimed), [], breaks="E2")
    expect_equal("extend([])", await backend.extend([], lease_expires_at=MUCH_LATER), [], breaks="L2")
    expect_equal("expired(limit=0)", list(await backend.expired(now=MUCH_LATER, limit=0)), [], breaks="D3")
    page, cursor = await backend.tasks(limit=0)
    expect_equal("tasks(limit=0)", (list(page), cursor), ([], None), breaks="LISTING")
    expect_equal("purge(limit=0)", await backend.purge(finished_before=MUCH_LATER, limit=0), 0, breaks="G1")
    await expect_unchanged(backend, before, after="calls with an empty list or a limit of 0")


# --- L1: races. Whoever wins says so, and the other is refused. ------------------------------------------------------


@check("L1", "Of a cancel and an outcome that race, one wins and says so", cases=OUTCOMES)
async def cancel_races_an_outcome(lab: Lab, record: Recorder) -> None:
    """The stored status is the winner's; a failure that is retried may win first and be cancelled after."""
    first, second = await lab.handle(), await lab.handle()
    for number in range(ROUNDS):
        name = f"task{number}"
        await lab.running(first, new_task(name))
        cancel: Awaitable[object] = first.cancel(name, now=LATER)
        outcome: Awaitable[object] = record(second, name, 1)
        if number % 2:
            recorded, cancelled = await _race(outcome, cancel)
        else:
            cancelled, recorded = await _race(cancel, outcome)
        await _expect_cancel_or_outcome(second, name, cancelled, recorded)
        await _clear(first, name)


@check(
    "L1", "A cancel and an outcome do not meet between their steps", cases=OUTCOMES, look="one statement with a guard"
)
async def cancel_between_the_steps_of_an_outcome(lab: Lab, record: Recorder) -> None:
    """One call is held at each of its suspensions while the other runs: what it has read may be out of date by then."""
    first, second = await lab.handle(), await lab.handle()
    for step in range(1, MAX_STEPS + 1):
        names = [f"task{step}a", f"task{step}b"]
        await lab.running(first, *map(new_task, names))

        async def outcome(name: str) -> object:
            return await record(first, name, 1)

        def cancel(name: str) -> Coroutine[object, object, bool]:
            return second.cancel(name, now=LATER)

        one_held, (recorded, cancelled) = await overlap(outcome(names[0]), partial(cancel, names[0]), after=step)
        await _expect_cancel_or_outcome(second, names[0], cancelled, recorded)
        other_held, (cancelled, recorded) = await overlap(cancel(names[1]), partial(outcome, names[1]), after=step)
        await _expect_cancel_or_outcome(second, names[1], cancelled, recorded)
        if not (one_held or other_held):
            return
        for name in names:
            await _clear(first, name)


async def _expect_cancel_or_outcome(backend: Backend, name: str, cancelled: object, recorded: object) -> None:
    """Verify that what a cancel and an outcome answered goes together, and with what is stored."""
    task = await stored(backend, name)
    story = f"cancel answered {cancelled!r}, the outcome {recorded!r}, and the task is {task.status.upper()}"
    if isinstance(recorded, StaleClaim):
        _expect_story(story, cancelled is True and task.status is TaskStatus.CANCELLED)
        expect_equal("the status that StaleClaim carries", recorded.status, TaskStatus.CANCELLED)
    else:
        _expect_story(story, not isinstance(recorded, TaskQueueError))
        retried = isinstance(recorded, Task) and recorded.status is TaskStatus.PENDING
        _expect_story(story, cancelled is retried and (task.status is TaskStatus.CANCELLED) is retried)
    failures = 1 if isinstance(recorded, Task) else 0
    expect_equal(f"the number of failures where {story}", len(task.failures), failures)


@check("L1", "Of two calls that end one task, exactly one wins")
async def two_ends_race(lab: Lab) -> None:
    """Two cancels, two completes, two failures, a completion and a failure."""
    first, second = await lab.handle(), await lab.handle()

    async def cancelled(backend: Backend, name: str, number: int) -> object:
        if await backend.cancel(name, now=NOON + number * SECOND):
            return number
        return StaleClaim(name, 1, status=TaskStatus.CANCELLED, attempts=1)

    async def completed(backend: Backend, name: str, number: int) -> object:
        await backend.complete(name, 1, value=b"%d" % number, now=NOON + number * SECOND)
        return number

    async def failed(backend: Backend, name: str, number: int) -> object:
        await backend.fail(name, 1, new_failure(failed_at=NOON + number * SECOND))
        return number

    races = [(cancelled, cancelled), (completed, completed), (failed, failed), (completed, failed)]
    for number in range(ROUNDS * len(races)):
        name = f"task{number}"
        one, other = races[number % len(races)]
        await lab.running(first, new_task(name))
        answers = await _race(one(first, name, 0), other(second, name, 1))
        task = await stored(first, name)
        story = (
            f"{one.__name__} and {other.__name__} answered {answers!r}, and the task is {task.status.upper()} with "
            f"finished_at={task.finished_at}"
        )
        winners = [answer for answer in answers if isinstance(answer, int)]
        losers = [answer for answer in answers if isinstance(answer, StaleClaim)]
        _expect_story(story, len(winners) == len(losers) == 1)
        _expect_story(story, task.finished_at == NOON + winners[0] * SECOND)
        expect_equal(f"the status that the loser was told where {story}", losers[0].status, task.status)
        await _clear(first, name)


@check("L1", "Of two enqueues of one id, exactly one wins, with all of its list")
async def two_enqueues_race(lab: Lab) -> None:
    """The other is refused with that id and stores nothing, whichever handle it came through."""
    first, second = await lab.handle(), await lab.handle()
    await lab.put(first, new_task("witness", available_at=LATER))
    for number in range(ROUNDS):
        other = first if number % 4 == 3 else second
        shared = f"shared{number}"
        lists = [
            [new_task(f"x{number}"), new_task(shared, payload=b"x")],
            [new_task(shared, payload=b"y"), new_task(f"y{number}")],
        ]
        answers = await _race(first.enqueue(lists[0]), other.enqueue(lists[1]))
        story = f"the enqueues answered {answers!r}"
        _expect_story(story, [type(answer) for answer in answers].count(TaskExists) == 1 and None in answers)
        winner = answers.index(None)
        loser = answers[1 - winner]
        assert isinstance(loser, TaskExists)  # noqa: S101 - for the type checker; seen above
        expect_equal(f"task_ids of the loser where {story}", list(loser.task_ids), [shared])
        await lab.expect_stored(second, *lists[winner], when=f"where {story}")
        for task in lists[1 - winner]:
            if task.id != shared:
                expect_equal(f"get({task.id!r}), of the list that was refused", await second.get(task.id), None)


# --- L2: only the current claim --------------------------------------------------------------------------------------


@check(
    "L2",
    "No outcome is recorded for a claim that is not the current one",
    cases=OUTCOMES,
    look="complete and fail: RUNNING and attempts == attempt, both tested in the same step",
)
async def only_the_current_claim_records(lab: Lab, record: Recorder) -> None:
    """Attempts of the past and of the future are refused; so is any attempt while the task is PENDING."""
    backend = await lab.handle()
    tasks = await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    for name in LIVE:
        for attempt in _stale_attempts(tasks[name]):
            what = f"an outcome of attempt {attempt} for the task {name!r}"
            refused = await expect_refused(what, record(backend, name, attempt), StaleClaim)
            _expect_facts(what, refused, attempt, tasks[name])
            await expect_unchanged(backend, before, after=f"{what} was refused")


@check("L2", "extend lengthens no lease for a claim that is not the current one", look="extend: the guard on attempt")
async def only_the_current_claim_extends(lab: Lab) -> None:
    """Not for attempts of the past or the future, and not while the task is PENDING."""
    backend = await lab.handle()
    tasks = await every_state(lab, backend)
    before = await snapshot(backend, *STATES)
    for name in LIVE:
        for attempt in _stale_attempts(tasks[name]):
            what = f"extend([({name!r}, {attempt})])"
            held = await backend.extend([(name, attempt)], lease_expires_at=MUCH_LATER)
            expect_equal(f"{what}, a claim that is not held", held, [])
            await expect_unchanged(backend, before, after=what)


@check("L2", "A claim whose lease has run out is held until somebody else takes the task")
async def an_expired_claim_is_still_held(lab: Lab) -> None:
    """Its holder may still extend, complete and fail it, however late."""
    backend = await lab.handle()
    await lab.running(backend, *(new_task(name) for name in ("extended", "completed", "failed", "retried", "other")))
    held = await backend.extend([("extended", 1)], lease_expires_at=LATER)
    expect_equal("extend() of an expired lease that is held still", held, [("extended", 1)])
    lease = (await stored(backend, "extended")).lease_expires_at
    expect_equal("the lease after extend() of an expired lease", lease, LATER)
    late = "of a claim whose lease had run out"
    await _expect_accepted(f"complete {late}", backend.complete("completed", 1, value=b"late", now=MUCH_LATER))
    failure = new_failure(failed_at=MUCH_LATER)
    await _expect_accepted(f"fail {late}", backend.fail("failed", 1, failure))
    await _expect_accepted(f"fail {late}", backend.fail("retried", 1, replace(failure, retry_at=MUCH_LATER)))
    for name, status in {
        "extended": TaskStatus.RUNNING,
        "completed": TaskStatus.SUCCESS,
        "failed": TaskStatus.FAILED,
        "retried": TaskStatus.PENDING,
        "other": TaskStatus.RUNNING,
    }.items():
        expect_equal(f"the status of {name!r}", (await stored(backend, name)).status, status)


@check("L2", "The outcome may carry any instant: what holds a claim is its attempt, not the time")
async def time_does_not_matter_to_a_claim(lab: Lab) -> None:
    """Clocks step back: a task may end before it started."""
    backend = await lab.handle()
    early = NOON - timedelta(days=1)
    await lab.running(backend, *(new_task(name) for name in ("completed", "failed", "cancelled")))
    await _expect_accepted("complete before started_at", backend.complete("completed", 1, value=b"", now=early))
    await _expect_accepted("fail before started_at", backend.fail("failed", 1, new_failure(failed_at=early)))
    await _expect_accepted("cancel before started_at", backend.cancel("cancelled", now=early))
    for name in ("completed", "failed", "cancelled"):
        expect_equal(f"finished_at of {name!r}", (await stored(backend, name)).finished_at, early, breaks="E4")


@check("L2", "After a recovery the former holder is refused, and the new one is not")
async def the_former_holder_is_refused(lab: Lab) -> None:
    """Also while the task is RUNNING again, in somebody else's hands."""
    former, recoverer = await lab.handle(), await lab.handle()
    names = ["completes", "fails", "extends"]
    await lab.running(former, *map(new_task, names))
    for name in names:
        lost = late_failure(1, error="the lease ran out", traceback=None, retry_at=LATER)
        await _expect_accepted("the recovery", recoverer.fail(name, 1, lost, if_expired=True))
    for again in (False, True):
        if again:
            await claim_all(lab, recoverer, names, now=LATER)
        before = await snapshot(former, *names)
        complete = former.complete("completes", 1, value=b"stale", now=LATER)
        refused = await expect_refused("the former holder's complete", complete, StaleClaim)
        _expect_facts("the former holder's complete", refused, 1, await stored(former, "completes"))
        fail = former.fail("fails", 1, late_failure(1, retry_at=LATER))
        refused = await expect_refused("the former holder's fail", fail, StaleClaim)
        _expect_facts("the former holder's fail", refused, 1, await stored(former, "fails"))
        held = await former.extend([("extends", 1)], lease_expires_at=MUCH_LATER)
        expect_equal("the former holder's extend", held, [])
        await expect_unchanged(former, before, after="the former holder's calls")
    held = await recoverer.extend([("extends", 2)], lease_expires_at=MUCH_LATER)
    expect_equal("the new holder's extend", held, [("extends", 2)])
    await _expect_accepted("the new holder's complete", recoverer.complete("completes", 2, value=b"", now=LATER))
    await _expect_accepted("the new holder's fail", recoverer.fail("fails", 2, late_failure(2)))


@check("L2", "The attempt of one task says nothing about another")
async def the_attempt_belongs_to_its_task(lab: Lab) -> None:
    """One task is in its first attempt, the other in its second."""
    backend = await lab.handle()
    await lab.running(backend, new_task("second"))
    await backend.fail("second", 1, new_failure(retry_at=NOON))
    await backend.enqueue([new_task("first")])
    await claim_all(lab, backend, ["first", "second"])
    before = await snapshot(backend, "first", "second")
    for name, attempt in {"first": 2, "second": 1}.items():
        complete = backend.complete(name, attempt, value=b"", now=NOON)
        await expect_refused(f"complete({name!r}, {attempt})", complete, StaleClaim)
        held = await backend.extend([(name, attempt)], lease_expires_at=MUCH_LATER)
        expect_equal(f"extend() of ({name!r}, {attempt})", held, [])
    await expect_unchanged(backend, before, after="calls with the other task's attempt")
    held = await backend.extend([("first", 1), ("second", 1)], lease_expires_at=MUCH_LATER)
    expect_equal("extend() of one claim that is held and one that is not", held, [("first", 1)])
    expect_equal("the task whose claim was not held", await backend.get("second"), before.tasks["second"])
    await _expect_accepted("complete('first', 1)", backend.complete("first", 1, value=b"", now=NOON))
    await _expect_accepted("fail('second', 2)", backend.fail("second", 2, new_failure(2)))


@check("L2", "extend returns the claims that are held, in the order given, and lengthens just those", look="extend")
async def extend_answers_in_order(lab: Lab) -> None:
    """Held, stale, ended, pending and unknown ones in one call."""
    backend = await lab.handle()
    await every_state(lab, backend)
    await backend.enqueue([new_task("b"), new_task("a"), new_task("bystander")])
    await claim_all(lab, backend, ["a", "b", "bystander"])
    names = (*STATES, "a", "b", "bystander", "unknown")
    before = await snapshot(backend, *names)
    claims = [
        ("running_again", 1), ("b", 1), ("unknown", 1), ("success", 2), ("running_again", 2), ("retry", 1), ("a", 1),
        ("new", 1), ("running", 1), ("running", 2), ("failed", 2), ("cancelled_running", 2), ("a", 2),
    ]  # fmt: skip
    expected = [("b", 1), ("running_again", 2), ("a", 1), ("running", 1)]
    held = await backend.extend(claims, lease_expires_at=MUCH_LATER)
    expect_equal(f"extend({claims})", held, expected)
    extended = dict(expected)
    for name in names:
        was = before.tasks[name]
        wanted = replace(was, lease_expires_at=MUCH_LATER) if was is not None and name in extended else was
        breaks = "L3" if name == "unknown" else "L1" if name in ENDED else "L2"
        expect_equal(f"get({name!r}) after extend({claims})", await backend.get(name), wanted, breaks=breaks)


@check("L2", "extend never shortens a lease, and returns claims whose lease is later already", look="extend: max()")
async def extend_never_shortens(lab: Lab) -> None:
    """By a microsecond more, none, or less; of each task on its own."""
    backend = await lab.handle()
    await lab.running(backend, new_task("early"), new_task("late"))
    lease = NOON + LEASE
    for asked, wanted in (
        (lease - MICROSECOND, lease),
        (lease, lease),
        (NOON - timedelta(days=1), lease),
        (lease + MICROSECOND, lease + MICROSECOND),
        (lease, lease + MICROSECOND),
    ):
        held = await backend.extend([("late", 1)], lease_expires_at=asked)
        expect_equal(f"extend() to {asked}", held, [("late", 1)])
        expect_equal(f"the lease after extend() to {asked}", (await stored(backend, "late")).lease_expires_at, wanted)
    await backend.extend([("late", 1)], lease_expires_at=MUCH_LATER)
    held = await backend.extend([("early", 1), ("late", 1)], lease_expires_at=LATER)
    expect_equal("extend() of an earlier and a later lease", held, [("early", 1), ("late", 1)])
    leases = [(await stored(backend, name)).lease_expires_at for name in ("early", "late")]
    expect_equal("the leases after extend() of an earlier and a later one", leases, [LATER, MUCH_LATER])


@check("C1", "A recovery does not take a task from a claim whose lease still holds", look="fail: if_expired")
async def a_lease_that_holds_is_respected(lab: Lab) -> None:
    """It is refused with RUNNING and the lease that holds, a microsecond before the lease ends as well."""
    backend = await lab.handle()
    tasks = await lab.running(backend, new_task())
    await backend.extend([("a", 1)], lease_expires_at=LATER)
    before = await snapshot(backend, "a")
    for failed_at in (NOON + LEASE, LATER - MICROSECOND):
        for retry_at in (None, failed_at):
            lost = new_failure(failed_at=failed_at, retry_at=retry_at)
            what = f"fail(if_expired=True) at {failed_at}, the lease holding until {LATER}"
            refused = await expect_refused(what, backend.fail("a", 1, lost, if_expired=True), StaleClaim)
            _expect_facts(what, refused, 1, replace(tasks[0], status=TaskStatus.RUNNING))
            expect_equal(f"the lease that StaleClaim carries after {what}", refused.lease_expires_at, LATER)
            await expect_unchanged(backend, before, after=what, breaks="L1")
    await _expect_accepted("complete after refused recoveries", backend.complete("a", 1, value=b"", now=LATER), "L1")


@check("D3", "A task can be recovered from the instant at which its lease ends", look="fail: if_expired, equality")
async def a_lease_that_ended_can_be_recovered(lab: Lab) -> None:
    """Equality is expired."""
    backend = await lab.handle()
    await lab.running(backend, new_task("equal"), new_task("past"), new_task("equal_retry"))
    end = NOON + LEASE
    for name, failed_at, retry_at, status in (
        ("equal", end, None, TaskStatus.FAILED),
        ("past", end + MICROSECOND, None, TaskStatus.FAILED),
        ("equal_retry", end, end, TaskStatus.PENDING),
    ):
        lost = new_failure(failed_at=failed_at, retry_at=retry_at, traceback=None)
        what = f"fail(if_expired=True) at {failed_at} of a lease that ended at {end}"
        await _expect_accepted(what, backend.fail(name, 1, lost, if_expired=True))
        expect_equal(f"the status after {what}", (await stored(backend, name)).status, status)


# --- L3: unknown ids -------------------------------------------------------------------------------------------------


@check(
    "L3",
    "An outcome for an unknown id is refused with TaskNotFound and creates nothing",
    cases={**OUTCOMES, "cancel": lambda backend, task_id, _: backend.cancel(task_id, now=LATER)},
    look="complete, fail and cancel: an id that is not there is TaskNotFound",
)
async def an_unknown_id_is_refused(lab: Lab, call: Recorder) -> None:
    """Not even with an id that looks much like a known one."""
    backend = await lab.handle()
    await lab.running(backend, new_task("known"))
    unknown = ["unknown", "KNOWN", "known ", "know", "known\u0301", "%", "k_own", "*"]
    before = await snapshot(backend, "known", *unknown)
    for task_id in unknown:
        what = f"an outcome for the unknown id {task_id!r}"
        refused = await expect_refused(what, call(backend, task_id, 1), TaskNotFound)
        expect_equal("the id that TaskNotFound carries", refused.task_id, task_id)
        await expect_unchanged(backend, before, after=what)


@check("L3", "extend and get of unknown ids create nothing", look="extend: an UPDATE, never an upsert")
async def unknown_ids_are_left_out(lab: Lab) -> None:
    """Also in a store that has never seen a task, before the first enqueue."""
    backend = await lab.handle()
    for known in ([], ["known"]):
        if known:
            await lab.running(backend, new_task("known"))
        before = await snapshot(backend, *known, "unknown")
        held = await backend.extend([("unknown", 1), ("KNOWN", 1)], lease_expires_at=LATER)
        expect_equal("extend() of unknown ids", held, [])
        expect_equal("get() of an unknown id", await backend.get("unknown"), None)
        await expect_refused("cancel() of an unknown id", backend.cancel("unknown", now=LATER), TaskNotFound)
        complete = backend.complete("unknown", 1, value=b"", now=LATER)
        await expect_refused("complete() of an unknown id", complete, TaskNotFound)
        await expect_unchanged(backend, before, after="calls on unknown ids")
    await lab.put(backend, new_task("unknown"))


# --- what each transition sets ---------------------------------------------------------------------------------------

_AT_CLAIM = {"attempts": "R1", "lease_expires_at": "D3", "failures": "V2", "value": "V1"}
_AT_END = {"attempts": "R1", "finished_at": "RESULT", "failures": "V2", "value": "V1"}
_AT_RETRY = {"attempts": "R1", "status": "R2", "available_at": "R2", "finished_at": "R2", "failures": "V2"}


@check(
    "LIFECYCLE",
    "Each step sets the fields that it should, and no other",
    look="the table 'Fields by status' in the contract of a backend",
)
async def each_step_sets_its_fields(lab: Lab) -> None:
    """A task's whole life, retried twice, ended in each of the three ways; what steps return is what they stored."""
    backend = await lab.handle()
    ways = ("success", "failed", "cancelled")
    for way in ways:
        task = new_task(way, available_at=NOON - SECOND)
        await lab.put(backend, task)
        now = NOON
        for attempt in (1, 2, 3):
            was, task = task, replace(
                task,
                status=TaskStatus.RUNNING,
                attempts=attempt,
                started_at=now,
                lease_expires_at=now + LEASE,
            )  # fmt: skip
            claimed = await claim_all(lab, backend, [way], now=now)
            await _expect_step(backend, f"claim {attempt}", was, claimed[0], task, requirements=_AT_CLAIM)
            if attempt == 3:
                break
            failure = new_failure(attempt, failed_at=now + SECOND, retry_at=now + 9 * SECOND)
            was, task = task, replace(
                task,
                status=TaskStatus.PENDING,
                available_at=now + 9 * SECOND,
                lease_expires_at=None,
                failures=(*task.failures, failure),
            )  # fmt: skip
            answer = await backend.fail(way, attempt, failure)
            await _expect_step(
                backend, f"fail with a retry of attempt {attempt}", was, answer, task, requirements=_AT_RETRY
            )
            now += 10 * SECOND
        was, end = task, now + 2 * SECOND
        task = replace(task, lease_expires_at=None, finished_at=end)
        if way == "success":
            task = replace(task, status=TaskStatus.SUCCESS, value=b"the value")
            await backend.complete(way, 3, value=b"the value", now=end)
            await _expect_step(backend, "complete", was, None, task, requirements=_AT_END)
        elif way == "failed":
            last = new_failure(3, failed_at=end, retry_at=end + LEASE)
            failures = (*task.failures, replace(last, retry_at=None))
            task = replace(task, status=TaskStatus.FAILED, failures=failures)
            answer = await backend.fail(way, 3, last)
            await _expect_step(backend, "fail with the budget spent", was, answer, task, requirements=_AT_END)
        else:
            task = replace(task, status=TaskStatus.CANCELLED)
            await backend.cancel(way, now=end)
            await _expect_step(backend, "cancel", was, None, task, requirements=_AT_END)
    fresh = new_task("fresh")
    await lab.put(backend, fresh)
    await backend.cancel("fresh", now=LATER)
    ended = replace(fresh, status=TaskStatus.CANCELLED, finished_at=LATER)
    await _expect_step(backend, "cancel of a PENDING task", fresh, None, ended, requirements=_AT_END)


@check("LIFECYCLE", "A step changes its own task and no other", look="every UPDATE names the id in its WHERE")
async def a_step_leaves_other_tasks_alone(lab: Lab) -> None:
    """With a neighbour in every state, and ids that are alike."""
    backend = await lab.handle()
    await every_state(lab, backend)
    names = ["mine", "mine1", "Mine", "min"]
    await lab.put(backend, *map(new_task, names))
    await claim_all(lab, backend, names)
    others = {name: await backend.get(name) for name in (*STATES, *names)}

    async def expect_others(step: str, task_id: str = "mine") -> None:
        others.pop(task_id, None)
        for name, was in others.items():
            expect_equal(f"get({name!r}) after {step} of {task_id!r}", await backend.get(name), was)

    await backend.extend([("mine", 1)], lease_expires_at=MUCH_LATER)
    await expect_others("extend")
    await backend.fail("mine", 1, new_failure(retry_at=NOON))
    await expect_others("fail with a retry")
    await claim_all(lab, backend, ["mine"])
    await expect_others("claim")
    await backend.complete("mine", 2, value=b"mine", now=NOON)
    await expect_others("complete")
    await backend.fail("mine1", 1, new_failure())
    await expect_others("fail", "mine1")
    await backend.cancel("Mine", now=NOON)
    await expect_others("cancel", "Mine")


async def _expect_step(
    backend: Backend, step: str, before: Task, answer: Task | None, expected: Task, *, requirements: Mapping[str, str]
) -> None:
    """Compare what a step returned and stored with what it should have, and name the requirement of what differs."""
    seen = {"get": await backend.get(expected.id)}
    if answer is not None:
        seen["the answer"] = answer
    for source, actual in seen.items():
        if actual == expected or actual is None:
            expect_equal(f"{source} after {step}", actual, expected)
            continue
        names = [each.name for each in fields(Task) if getattr(actual, each.name) != getattr(expected, each.name)]
        name = names[0]
        got, wanted = getattr(actual, name), getattr(expected, name)
        breaks = "P1" if name == "payload" else requirements.get(name)
        if isinstance(got, datetime) and isinstance(wanted, datetime) and got != getattr(before, name):
            breaks = "E3"
        expect_equal(f"{source} after {step}", actual, expected, breaks=breaks)


def _stale_attempts(task: Task) -> list[int]:
    attempts = range(1, task.attempts + 2)
    return [each for each in attempts if task.status is not TaskStatus.RUNNING or each != task.attempts]


def _expect_facts(what: str, refused: StaleClaim, attempt: int, task: Task) -> None:
    carried = (refused.task_id, refused.attempt, refused.status, refused.attempts)
    expected = (task.id, attempt, task.status, task.attempts)
    expect_equal(f"(task_id, attempt, status, attempts) that StaleClaim carries after {what}", carried, expected)


def _expect_story(story: str, consistent: object) -> None:
    expect(
        "the race",
        consistent,
        expected="one winner, whose outcome is stored, and one loser that was told",
        actual=story,
    )


async def _expect_accepted(what: str, call: Awaitable[object], breaks: str | None = None) -> None:
    try:
        await call
    except (StaleClaim, TaskNotFound, NotConnected) as error:
        expect(what, condition=False, expected="no exception", actual=f"{type(error).__name__}: {error}", breaks=breaks)


async def _race(*calls: Awaitable[object]) -> list[object]:
    """Run calls at the same time and return their answers, and refusals as answers."""

    async def answer(call: Awaitable[object]) -> object:
        try:
            return await call
        except (StaleClaim, TaskExists, TaskNotFound) as refused:
            return refused
        except TaskQueueError as error:
            raise Violation(
                "a call beside another", expected="its answer", actual=f"{type(error).__name__}: {error}", breaks="X1"
            ) from error

    return list(await asyncio.gather(*map(answer, calls)))


async def _clear(backend: Backend, name: str) -> None:
    """End a task that a race may have left PENDING, so that the next round's claim does not meet it."""
    await backend.cancel(name, now=MUCH_LATER)
