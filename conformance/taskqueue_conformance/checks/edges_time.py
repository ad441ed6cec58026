"""Edges of time: E1 (nothing is due too early), E3 (instants survive) and E4 (no clock is read)."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import freezegun

from taskqueue import Backend, StaleClaim, Task
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._shared import (
    END_OF_TIME,
    EPOCH,
    HOUR,
    MOMENTS,
    SECOND,
    YEAR,
    after_cancel,
    after_claim,
    after_complete,
    after_fail,
    claim,
    expect_claim,
    expect_next_due,
    expect_stored,
    listing,
)
from taskqueue_conformance.lab import MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect_equal, expect_task

LOOK_AT_DUE: Final = "claim: available_at <= now, compared as instants, to the microsecond"


# E1 --------------------------------------------------------------------------------------------------------------


@check("E1", "A task is claimed from its microsecond on, and not one earlier", cases=MOMENTS, look=LOOK_AT_DUE)
async def a_task_is_due_from_its_microsecond_on(lab: Lab, moment: datetime) -> None:
    backend = await lab.handle()
    task = new_task(available_at=moment)
    await lab.put(backend, task)
    if moment > EPOCH:
        early = moment - MICROSECOND
        await lab.expect_claimed(backend, await claim(backend, now=early, limit=10), [], now=early)
        await expect_stored(backend, task, when="after a claim one microsecond early", breaks="E1")
    await lab.expect_claimed(backend, await claim(backend, now=moment, limit=10), [task], now=moment, breaks="E1")
    later = new_task("later", available_at=moment)
    await lab.put(backend, later)
    if moment < END_OF_TIME:
        late = moment + MICROSECOND
        await lab.expect_claimed(backend, await claim(backend, now=late, limit=10), [later], now=late, breaks="E1")


@check("E1", "Of tasks at many instants, exactly those at or before now are claimed", look=LOOK_AT_DUE)
async def every_instant_is_compared_with_every_now(lab: Lab) -> None:
    backend = await lab.handle()
    pending: list[Task] = []
    for number, now in enumerate(MOMENTS.values()):
        fresh = [new_task(f"{number} {name}", available_at=moment) for name, moment in MOMENTS.items()]
        await backend.enqueue(fresh)
        await lab.expect_stored(backend, fresh[number], when="after enqueue")
        pending += fresh
        due = [task for task in pending if task.available_at <= now]
        claimed = await claim(backend, now=now, limit=1000)
        await lab.expect_claimed(backend, claimed, due, now=now, breaks="E1")
        pending = [task for task in pending if task.available_at > now]


@check("E1", "A retried task is due from its retry_at on, and not one microsecond earlier", look=LOOK_AT_DUE)
async def a_retried_task_is_due_from_its_retry_at_on(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.running(backend, new_task(max_retries=1000))
    attempt = 1
    for moment in [each for each in MOMENTS.values() if each > EPOCH]:
        retried = await backend.fail("a", attempt, new_failure(attempt, retry_at=moment))
        expect_equal("available_at after fail", retried.available_at, moment, breaks="R2")
        early = moment - MICROSECOND
        await lab.expect_claimed(backend, await claim(backend, now=early), [], now=early, breaks="E1")
        claimed = await claim(backend, now=moment)
        await lab.expect_claimed(backend, claimed, [retried], now=moment, breaks="E1")
        attempt = claimed[0].attempts


@check("E1", "Whether a task is due depends on available_at alone", look=LOOK_AT_DUE)
async def no_other_field_makes_a_task_due(lab: Lab) -> None:
    backend = await lab.handle()
    due = [
        new_task("enqueued later than now", enqueued_at=NOON + YEAR, available_at=NOON - SECOND),
        new_task("due before it was enqueued", enqueued_at=NOON - HOUR, available_at=NOON - YEAR),
        new_task("due at the epoch", available_at=EPOCH),
        new_task("enqueued at the epoch", enqueued_at=EPOCH, available_at=NOON - SECOND),
        new_task("started before", attempts=1, failures=(new_failure(),), started_at=NOON + YEAR),
    ]
    undue = [
        new_task("enqueued long ago", enqueued_at=EPOCH, available_at=NOON + MICROSECOND),
        new_task("no budget", max_retries=0, available_at=NOON + SECOND),
        new_task("moved", attempts=1, failures=(new_failure(),), started_at=NOON - YEAR, available_at=NOON + HOUR),
        new_task("at the end of time", available_at=END_OF_TIME),
    ]
    await lab.put(backend, *undue, *due)
    await lab.expect_claimed(backend, await claim(backend, limit=100), due, now=NOON, breaks="E1")
    await lab.expect_stored(backend, *undue, when="after a claim at which they were not due")


@check("E1", "The lease that a claim asks for has no part in what is due", look=LOOK_AT_DUE)
async def the_lease_makes_nothing_due(lab: Lab) -> None:
    backend = await lab.handle()
    task = new_task(available_at=NOON + SECOND)
    await lab.put(backend, task)
    for lease in (NOON + YEAR, NOON - YEAR, EPOCH, END_OF_TIME):
        claimed = await backend.claim(now=NOON, limit=10, lease_expires_at=lease)
        await lab.expect_claimed(backend, claimed, [], now=NOON, breaks="E1")
    now = NOON + SECOND
    claimed = await backend.claim(now=now, limit=10, lease_expires_at=EPOCH)
    await lab.expect_claimed(backend, claimed, [task], now=now, breaks="E1")


# E3 --------------------------------------------------------------------------------------------------------------

LOOK_AT_STORED: Final = "how each datetime field is written and read: UTC, whole microseconds, no floats, zero is set"


@check("E3", "Every field keeps an instant exactly", cases=MOMENTS, look=LOOK_AT_STORED)
async def every_field_keeps_the_instant(lab: Lab, moment: datetime) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task(enqueued_at=moment, available_at=moment)
    waiting = new_task("waiting", enqueued_at=moment, available_at=moment)
    cancelled = new_task("cancelled", enqueued_at=moment, available_at=moment)
    await lab.put(backend, task)
    expect_next_due("next_due() with one task pending", await backend.next_due(), moment, breaks="LISTING")

    claimed = await backend.claim(now=moment, limit=1, lease_expires_at=moment)
    await lab.expect_claimed(backend, claimed, [task], now=moment)
    task = after_claim(task, now=moment, lease=moment)
    expect_claim("the task that claim returned", claimed[0], task)
    await expect_stored(other, task, when="after claim", breaks="C2")
    expect_next_due("next_due() with one task running", await other.next_due(), moment, breaks="D3")
    expired = await backend.expired(now=moment, limit=10)
    await lab.expect_expired(backend, expired, ["a"], now=moment)
    expect_task("the task in expired()", expired[0], task)

    failure = new_failure(failed_at=moment, retry_at=moment)
    task = after_fail(task, failure)
    expect_task("the task that fail returned", await backend.fail("a", 1, failure), task, breaks="R2")
    await expect_stored(other, task, when="after fail with a retry")
    claimed = await backend.claim(now=moment, limit=1, lease_expires_at=moment)
    await lab.expect_claimed(backend, claimed, [task], now=moment)
    task = after_claim(task, now=moment, lease=moment)
    expect_claim("the task that the second claim returned", claimed[0], task)
    await backend.complete("a", 2, value=b"done", now=moment)
    task = after_complete(task, value=b"done", now=moment)
    await expect_stored(other, task, when="after complete")

    await lab.put(backend, waiting, cancelled)
    await backend.cancel("cancelled", now=moment)
    await expect_stored(other, after_cancel(cancelled, now=moment), when="after cancel")
    claimed = await backend.claim(now=moment, limit=1, lease_expires_at=EPOCH)
    await lab.expect_claimed(backend, claimed, [waiting], now=moment)
    await backend.extend([("waiting", 1)], lease_expires_at=moment)
    waiting = after_claim(waiting, now=moment, lease=moment)
    await expect_stored(other, waiting, when="after extend", breaks="L2")
    if moment > EPOCH:
        failure = new_failure(failed_at=moment - MICROSECOND)
        refused = await lab.expect_not_recovered(
            backend,
            "fail(if_expired=True) one microsecond before the lease ends",
            backend.fail("waiting", 1, failure, if_expired=True),
        )
        expect_equal("StaleClaim.lease_expires_at", refused.lease_expires_at, moment)
    failed = await backend.fail("waiting", 1, new_failure(failed_at=moment))
    waiting = after_fail(waiting, new_failure(failed_at=moment))
    expect_task("the task that fail returned", failed, waiting, breaks="R2")
    await expect_stored(other, waiting, when="after the last failure", breaks="R2")
    listed = {found.id: found for found in await listing(backend)}
    for wanted in (task, waiting):
        expect_task(f"{wanted.id!r} in tasks()", listed.get(wanted.id), wanted, breaks="LISTING")


@check("E3", "Each instant has a place of its own", look=LOOK_AT_STORED)
async def each_instant_has_its_own_place(lab: Lab) -> None:
    backend = await lab.handle()
    first = new_failure(1, failed_at=NOON + 1 * HOUR, retry_at=NOON + 2 * HOUR)
    task = new_task(
        enqueued_at=NOON + 3 * HOUR,
        available_at=NOON + 4 * HOUR,
        started_at=NOON + 5 * HOUR,
        attempts=1,
        failures=(first,),
    )
    await lab.put(backend, task)
    claimed = await backend.claim(now=NOON + 6 * HOUR, limit=1, lease_expires_at=NOON + 7 * HOUR)
    await lab.expect_claimed(backend, claimed, [task], now=NOON + 6 * HOUR)
    task = after_claim(task, now=NOON + 6 * HOUR, lease=NOON + 7 * HOUR)
    expect_claim("the task that claim returned", claimed[0], task)
    second = new_failure(2, failed_at=NOON + 8 * HOUR, retry_at=NOON + 9 * HOUR)
    task = after_fail(task, second)
    expect_task("the task that fail returned", await backend.fail("a", 2, second), task, breaks="R2")
    await expect_stored(backend, task, when="after fail", breaks="R2")
    claimed = await backend.claim(now=NOON + 10 * HOUR, limit=1, lease_expires_at=NOON + 11 * HOUR)
    await lab.expect_claimed(backend, claimed, [task], now=NOON + 10 * HOUR)
    task = after_claim(task, now=NOON + 10 * HOUR, lease=NOON + 11 * HOUR)
    await backend.complete("a", 3, value=b"", now=NOON + 12 * HOUR)
    await expect_stored(
        backend, after_complete(task, value=b"", now=NOON + 12 * HOUR), when="after complete", breaks="V1"
    )


@check("E3", "No microsecond is rounded away", look=LOOK_AT_STORED)
async def no_microsecond_is_rounded_away(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [
        new_task(f"{number}", enqueued_at=base + step, available_at=base - step)
        for number, (base, step) in enumerate(
            (base, timedelta(microseconds=1 + 4007 * number))
            for base in (NOON, datetime(2099, 5, 17, 1, 2, 3, tzinfo=UTC), datetime(1983, 11, 30, 9, 8, 7, tzinfo=UTC))
            for number in range(120)
        )
    ]
    await lab.put(backend, tasks[0])
    await backend.enqueue(tasks[1:])
    await lab.expect_stored(backend, *tasks[1:], when="after enqueue")


ZONES: Final = {
    "New York": "America/New_York",
    "Kiritimati": "Pacific/Kiritimati",
    "Kathmandu": "Asia/Kathmandu",
    "without a database": "XST+7:30XDT,M3.2.0,M11.1.0",
}


@check("E3", "The host's time zone changes no stored instant", cases=ZONES, look=LOOK_AT_STORED)
async def the_zone_changes_no_instant(lab: Lab, zone: str) -> None:
    backend = await lab.handle()
    moments = [
        # Clocks in New York jump from 2:00 to 3:00, and in November an hour happens twice.
        *(datetime(2030, 3, 10, 7, 0, tzinfo=UTC) + minutes * timedelta(minutes=1) for minutes in (-30, 0, 30)),
        *(datetime(2030, 11, 3, 5, 30, tzinfo=UTC) + hours * HOUR for hours in range(3)),
        datetime(2030, 7, 1, tzinfo=UTC),
        EPOCH,
        END_OF_TIME,
    ]
    before = new_task("before")
    await lab.put(backend, before)
    with _zone(zone):
        await lab.expect_stored(backend, before, when=f"with TZ={zone}")
        tasks = [new_task(f"{number}", enqueued_at=at, available_at=at) for number, at in enumerate(moments)]
        await lab.put(backend, *tasks)
        expect_next_due(f"next_due() with TZ={zone}", await backend.next_due(), EPOCH, breaks="E3")
    await lab.expect_stored(backend, *tasks, when=f"after enqueue with TZ={zone} and a change of zone")


# E4 --------------------------------------------------------------------------------------------------------------

LOOK_AT_CLOCK: Final = "any use of a clock or a local time zone; time only comes as an argument"


@contextlib.contextmanager
def _zone(name: str) -> Iterator[None]:
    """Run with another local time zone, where the platform can."""
    if not hasattr(time, "tzset"):
        yield
        return
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


async def _life(lab: Lab, backend: Backend, *, start: datetime = NOON) -> Sequence[tuple[str, Any]]:
    """Use every method around ``start`` and return what each said. Nothing in it depends on anything else."""
    said: list[tuple[str, Any]] = []

    def at(hours: float) -> datetime:
        return start + hours * HOUR

    async def say(what: str, call: Any) -> None:
        try:
            answer = await call
        except StaleClaim as refused:
            answer = f"StaleClaim({refused.status}, {refused.attempts}, {refused.lease_expires_at})"
        said.append((what, answer))

    tasks = [new_task(f"{hour}", enqueued_at=at(-1), available_at=at(hour), max_retries=2) for hour in range(-2, 3)]
    await backend.enqueue(tasks)
    await lab.expect_stored(backend, tasks[0], when="after enqueue")
    await say("next_due() before any claim", backend.next_due())
    await say("claim an hour early", backend.claim(now=at(-3), limit=9, lease_expires_at=at(-2)))
    await say("claim at the first hour", backend.claim(now=at(-2), limit=9, lease_expires_at=at(-1)))
    await say("claim at the third hour", backend.claim(now=at(0), limit=9, lease_expires_at=at(1)))
    await say("expired(), one", backend.expired(now=at(-1), limit=9))
    await say("expired(), all", backend.expired(now=at(1), limit=9))
    await say("extend", backend.extend([("-2", 1), ("-1", 1)], lease_expires_at=at(0.5)))
    await say("expired() after extend", backend.expired(now=at(0.4), limit=9))
    failure = new_failure(1, failed_at=at(0.5), retry_at=at(3))
    early = replace(failure, failed_at=at(0.4))
    await say("fail(if_expired) too early", backend.fail("-2", 1, early, if_expired=True))
    await say("fail(if_expired) in time", backend.fail("-2", 1, failure, if_expired=True))
    await say("complete after the lease ran out", backend.complete("-1", 1, value=b"v", now=at(5)))
    await say("cancel a pending task", backend.cancel("2", now=at(6)))
    await say("cancel an ended task", backend.cancel("2", now=at(7)))
    await say("next_due() on the way", backend.next_due())
    await say("claim the retry too early", backend.claim(now=at(2.5), limit=9, lease_expires_at=at(4)))
    await say("claim the retry", backend.claim(now=at(3), limit=9, lease_expires_at=at(4)))
    await say("fail for good", backend.fail("-2", 2, new_failure(2, failed_at=at(4), retry_at=at(5))))
    await say("counts()", backend.counts())
    await say("purge what ended before", backend.purge(finished_before=at(5), limit=9))
    await say("purge it again", backend.purge(finished_before=at(5), limit=9))
    for task in tasks:
        await say(f"get({task.id!r}) in the end", backend.get(task.id))
    said.append(("tasks() in the end", await listing(backend)))
    await say("next_due() in the end", backend.next_due())
    return said


def _expect_same(said: Sequence[tuple[str, Any]], expected: Sequence[tuple[str, Any]], where: str) -> None:
    for (what, answer), (_, wanted) in zip(said, expected, strict=True):
        expect_equal(f"{what} {where}", answer, wanted, breaks="E4")


CLOCKS: Final = {
    "1980": datetime(1980, 6, 15, 3, 0, tzinfo=UTC),
    "the same hour": NOON + timedelta(minutes=25),
    "2200": datetime(2200, 2, 3, 4, 5, 6, tzinfo=UTC),
}


@check("E4", "Frozen at any time, the host's clock changes no outcome", cases=CLOCKS, look=LOOK_AT_CLOCK)
async def the_hosts_clock_changes_nothing(lab: Lab, clock: datetime) -> None:
    expected = await _life(lab, await lab.handle())
    ignore = ["_pytest.timing", *lab.harness.real_time_modules]
    with freezegun.freeze_time(clock, real_asyncio=True, ignore=ignore) as frozen:
        backend = await lab.handle(store=lab.new_store())
        _expect_same(await _life(lab, backend), expected, f"with the host's clock at {clock}")
        frozen.tick(timedelta(days=40000) if clock < NOON else timedelta(days=1))
        again = await lab.handle(store=lab.new_store())
        _expect_same(await _life(lab, again), expected, f"with the host's clock well after {clock}")


@check("E4", "The host's time zone changes no outcome", cases=ZONES, look=LOOK_AT_CLOCK)
async def the_hosts_zone_changes_nothing(lab: Lab, zone: str) -> None:
    # Around the hour that happens twice in New York.
    start = datetime(2030, 11, 3, 6, 0, tzinfo=UTC)
    expected = await _life(lab, await lab.handle(), start=start)
    with _zone(zone):
        backend = await lab.handle(store=lab.new_store())
        _expect_same(await _life(lab, backend, start=start), expected, f"with TZ={zone}")


@check(
    "E4",
    "What is due, expired or old depends on the given instant alone, decades from the host's clock",
    cases={"1975": datetime(1975, 1, 1, tzinfo=UTC), "2500": datetime(2500, 1, 1, tzinfo=UTC)},
    look=LOOK_AT_CLOCK,
)
async def only_the_given_instant_counts(lab: Lab, then: datetime) -> None:
    backend = await lab.handle()
    # A second to either side of each boundary: whether equality counts is for others to say.
    due, undue = new_task("due", available_at=then - SECOND), new_task("undue", available_at=then + SECOND)
    await lab.put(backend, due, undue)
    claimed = await backend.claim(now=then, limit=10, lease_expires_at=then + 2 * SECOND)
    await lab.expect_claimed(backend, claimed, [due], now=then)
    held = after_claim(due, now=then, lease=then + 2 * SECOND)
    expect_claim("the task that claim returned", claimed[0], held)
    early = await backend.expired(now=then + SECOND, limit=10)
    await lab.expect_expired(backend, early, [], now=then + SECOND)
    expired = await backend.expired(now=then + 3 * SECOND, limit=10)
    await lab.expect_expired(backend, expired, ["due"], now=then + 3 * SECOND)
    call = backend.fail("due", 1, new_failure(failed_at=then + SECOND), if_expired=True)
    await lab.expect_not_recovered(backend, "fail(if_expired=True) before the lease has run out", call)
    extended = await backend.extend([("due", 1)], lease_expires_at=then)
    expect_equal("extend() to an earlier instant", extended, [("due", 1)], breaks="L2")
    failure = new_failure(failed_at=then + 3 * SECOND, retry_at=then - SECOND)
    failed = await lab.expect_recovered(backend, backend.fail("due", 1, failure, if_expired=True))
    expect_task("the task that fail returned", failed, after_fail(held, failure), breaks="R2")
    claimed = await backend.claim(now=then, limit=10, lease_expires_at=then)
    await lab.expect_claimed(backend, claimed, [due], now=then)
    await backend.complete("due", claimed[0].attempts, value=b"", now=then)
    removed = await backend.purge(finished_before=then - SECOND, limit=10)
    expect_equal("purge() of what ended a second earlier", removed, 0, breaks="E4")
    removed = await backend.purge(finished_before=then + SECOND, limit=10)
    expect_equal("purge() of what ended before the next second", removed, 1, breaks="E4")


@check("E4", "now may go backwards between calls", look="anything that remembers the latest now, or takes a maximum")
async def now_may_go_backwards(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    instants = [NOON - number * YEAR for number in range(5)]
    tasks = [new_task(f"{number}", available_at=at - SECOND) for number, at in enumerate(instants)]
    for task, now in zip(tasks, instants, strict=True):
        # The backend has seen a later now already; the task of this year was not there then.
        await lab.put(backend, task)
        before = now - 2 * SECOND
        claimed = await other.claim(now=before, limit=10, lease_expires_at=now)
        await lab.expect_claimed(other, claimed, [], now=before)
        claimed = await other.claim(now=now, limit=10, lease_expires_at=now)
        await lab.expect_claimed(other, claimed, [task], now=now)
        expect_claim("the task that claim returned", claimed[0], after_claim(task, now=now, lease=now))
        later = now + SECOND
        await lab.expect_expired(backend, await backend.expired(now=later, limit=10), [task.id], now=later)
    for task, now in zip(tasks, instants, strict=True):
        held = after_claim(task, now=now, lease=now)
        failure = new_failure(failed_at=now - YEAR, retry_at=now - 2 * YEAR)
        retried = after_fail(held, failure)
        expect_task("the task that fail returned", await backend.fail(task.id, 1, failure), retried, breaks="R2")
        again = now - 2 * YEAR + SECOND
        claimed = await other.claim(now=again, limit=10, lease_expires_at=EPOCH)
        await lab.expect_claimed(other, claimed, [retried], now=again)
        held = after_claim(retried, now=again, lease=EPOCH)
        expect_claim("the task that the second claim returned", claimed[0], held)
        await backend.complete(task.id, held.attempts, value=b"", now=now - 3 * YEAR)
        ended = after_complete(held, value=b"", now=now - 3 * YEAR)
        await expect_stored(other, ended, when="after complete, years before it was claimed", breaks="E4")
    oldest = instants[-1] - 3 * YEAR
    removed = await backend.purge(finished_before=oldest + SECOND, limit=10)
    expect_equal(f"purge() of what ended up to {oldest}", removed, 1, breaks="E4")
