"""Edges of looking at a store: LISTING (tasks, counts, next_due) and D3 (expired and next_due see what runs)."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from taskqueue import Backend, Task, TaskStatus
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
    expect_next_due,
    expect_stored,
    expect_tasks,
    ids,
    listing,
)
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect, expect_equal, expect_task

PAST: Final = NOON - SECOND
NAMES: Final = tuple(f"{(number * 5) % 11}" for number in range(11))
"""The ids of eleven tasks, out of alphabetical order."""

# tasks -----------------------------------------------------------------------------------------------------------

LOOK_AT_TASKS: Final = "tasks: order by the sequence number of enqueueing; a cursor is a place in it, not a task"


async def _mixed(lab: Lab, backend: Backend) -> list[Task]:
    """Put eleven tasks, bring them to all statuses, and return them as stored, in the order of enqueueing."""
    tasks = {name: new_task(name, available_at=NOON - int(name) * SECOND, max_retries=2) for name in NAMES}
    await lab.put(backend, *list(tasks.values())[:6])
    await lab.put(backend, *list(tasks.values())[6:])
    now = NOON - 3 * SECOND
    claimed = await claim(backend, now=now, limit=100)
    await lab.expect_claimed(backend, claimed, [tasks[f"{n}"] for n in range(3, 11)], now=now)
    for number in range(3, 11):
        tasks[f"{number}"] = after_claim(tasks[f"{number}"], now=now)
    # In each status the one that was enqueued later comes first in every other order.
    for name, ended_at in (("9", NOON), ("4", NOON + SECOND)):
        await backend.complete(name, 1, value=b"v", now=ended_at)
        tasks[name] = after_complete(tasks[name], value=b"v", now=ended_at)
    for name, failed_at, retry_at in (("3", NOON, None), ("10", NOON + SECOND, None), ("7", NOON, NOON + HOUR)):
        failure = new_failure(failed_at=failed_at, retry_at=retry_at)
        await backend.fail(name, 1, failure)
        tasks[name] = after_fail(tasks[name], failure)
    for name, ended_at in (("5", NOON), ("0", NOON + SECOND)):
        await backend.cancel(name, now=ended_at)
        tasks[name] = after_cancel(tasks[name], now=ended_at)
    await backend.extend([("8", 1)], lease_expires_at=NOON + HOUR)
    tasks["8"] = replace(tasks["8"], lease_expires_at=NOON + HOUR)
    return list(tasks.values())


SIZES: Final = {str(size): size for size in (1, 2, 3, 5, 10, 11, 12, 1000)}


@check("LISTING", "A listing shows every task once, whole, in the order of enqueueing", cases=SIZES, look=LOOK_AT_TASKS)
async def a_listing_shows_every_task(lab: Lab, limit: int) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = await _mixed(lab, backend)
    for handle in (backend, other):
        expect_tasks(f"a listing of {limit} a page", await listing(handle, limit=limit), tasks, breaks="LISTING")
    await expect_stored(other, *tasks, when="after a listing", breaks="LISTING")


@check(
    "LISTING",
    "A listing by status shows the tasks that have it",
    cases=dict(zip(TaskStatus, TaskStatus, strict=True)),
    look=LOOK_AT_TASKS,
)
async def a_listing_by_status(lab: Lab, status: TaskStatus) -> None:
    backend = await lab.handle()
    expected = [task for task in await _mixed(lab, backend) if task.status is status]
    for limit in (1, 2, 100):
        found = await listing(backend, limit=limit, status=status)
        expect_tasks(f"tasks(status={status}), {limit} a page", found, expected, breaks="LISTING")


@check("LISTING", "A listing of an empty store, or of a status that no task has, is empty", look=LOOK_AT_TASKS)
async def an_empty_listing(lab: Lab) -> None:
    backend = await lab.handle()
    expect_equal("a listing of an empty store", await listing(backend, limit=3), [])
    await lab.put(backend, new_task())
    for status in TaskStatus:
        expected = [new_task()] if status is TaskStatus.PENDING else []
        expect_equal(f"tasks(status={status})", await listing(backend, limit=3, status=status), expected)


@check("LISTING", "A page of limit 0 is empty, and its cursor is the one that was given", look=LOOK_AT_TASKS)
async def a_page_of_limit_0(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.put(backend, *(new_task(name) for name in "abc"))
    page, cursor = await backend.tasks(limit=0)
    expect_equal("tasks(limit=0)", (list(page), cursor), ([], None))
    page, after = await backend.tasks(limit=1)
    expect("the cursor of the first of three tasks", after is not None, expected="a string", actual=after)
    page, cursor = await backend.tasks(after=after, limit=0)
    expect_equal("tasks(after=…, limit=0)", (list(page), cursor), ([], after))
    rest = await listing(backend, after=cursor, limit=9)
    expect_equal("the ids after that", ids(rest), ["b", "c"])


@check("LISTING", "A cursor gives the same page through any handle, as often as it is used", look=LOOK_AT_TASKS)
async def a_cursor_can_be_used_again(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, *(new_task(name) for name in NAMES))
    first, cursor = await backend.tasks(limit=4)
    rest = list(NAMES[len(first) :])
    for handle in (backend, other, backend):
        expect_equal("the ids after the first page", ids(await listing(handle, after=cursor, limit=100)), rest)


@check("LISTING", "Many tasks are listed in the order of enqueueing", look=LOOK_AT_TASKS)
async def many_tasks_are_listed(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [
        new_task(f"{number * 7 % 230}", available_at=NOON - number * SECOND, enqueued_at=NOON - number * HOUR)
        for number in range(230)
    ]
    await lab.put(backend, tasks[0])
    await backend.enqueue(tasks[1:])
    for limit in (9, 115, 230):
        found = await listing(backend, limit=limit)
        expect_tasks(f"a listing of {limit} a page", found, tasks)


@check("LISTING", "What changes during a listing appears at most once, all else exactly once", look=LOOK_AT_TASKS)
async def changes_during_a_listing(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    for limit in (1, 2, 3):
        names = [f"{limit}-{number}" for number in range(12)]
        await lab.put(backend, *(new_task(name, available_at=PAST) for name in names))
        touched = [names[2], names[0], names[7], names[8]]
        steps: list[Callable[[], Awaitable[object]]] = [
            partial(other.cancel, names[2], now=EPOCH),
            partial(other.cancel, names[0], now=EPOCH),
            partial(other.purge, finished_before=NOON, limit=1),
            partial(other.cancel, names[7], now=EPOCH),
            partial(other.purge, finished_before=NOON, limit=10),
            partial(other.enqueue, [new_task(f"{limit}-late", available_at=NOON + HOUR)]),
            partial(other.cancel, names[8], now=EPOCH),
        ]

        async def between(steps: list[Callable[[], Awaitable[object]]] = steps) -> None:
            if steps:
                await steps.pop(0)()

        found = ids(await listing(backend, limit=limit, between=between))
        twice = sorted({name for name in found if found.count(name) > 1})
        expect("tasks that a listing showed twice", not twice, expected="none", actual=twice)
        kept = [name for name in found if name in names and name not in touched]
        expect_equal("the unchanged tasks in a listing", kept, [name for name in names if name not in touched])
        await _clear(backend)


async def _clear(backend: Backend) -> None:
    for task in await listing(backend, limit=100):
        await backend.cancel(task.id, now=EPOCH)
    await backend.purge(finished_before=END_OF_TIME, limit=100)


@check("LISTING", "A change of status during a listing by status hides no other task", look=LOOK_AT_TASKS)
async def changes_of_status_hide_nothing(lab: Lab) -> None:
    backend = await lab.handle()
    names = [f"{number}" for number in range(9)]
    await lab.put(backend, *(new_task(name, available_at=PAST) for name in names))
    listed, cursor = await backend.tasks(status=TaskStatus.PENDING, limit=3)
    for task in listed:
        # An offset into what is PENDING now would leave out as many tasks as have ended meanwhile.
        await backend.cancel(task.id, now=NOON)
    rest = await listing(backend, status=TaskStatus.PENDING, after=cursor, limit=2)
    expect_equal("the ids on all pages", ids([*listed, *rest]), names)


GONE: Final = {"purged": (1, False), "purged with all before": (3, False), "enqueued anew": (1, True)}


@check("LISTING", "A cursor outlives the task that it was made from", cases=GONE, look=LOOK_AT_TASKS)
async def a_cursor_outlives_its_task(lab: Lab, case: tuple[int, bool]) -> None:
    how_many, anew = case
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, *(new_task(name) for name in NAMES))
    page, cursor = await backend.tasks(limit=3)
    gone = ids(page)[-how_many:]
    for name in gone:
        await other.cancel(name, now=PAST)
    removed = await other.purge(finished_before=NOON, limit=100)
    expect_equal("how many were purged", removed, len(gone), breaks="G1")
    if anew:
        await lab.put(other, *(new_task(name) for name in gone))
    found = ids(await listing(backend, after=cursor, limit=2))
    kept = [name for name in found if name not in gone]
    expect_equal("the ids after a cursor whose task was purged", kept, list(NAMES[len(page) :]))
    expect("tasks that appear twice", len(set(found)) == len(found), expected="none", actual=found)


@check("LISTING", "A cursor stays good when all that was there is purged", look=LOOK_AT_TASKS)
async def a_cursor_outlives_all_tasks(lab: Lab) -> None:
    backend = await lab.handle()
    await lab.put(backend, *(new_task(name) for name in "abcd"))
    _, cursor = await backend.tasks(limit=2)
    for name in "abcd":
        await backend.cancel(name, now=PAST)
    expect_equal("how many were purged", await backend.purge(finished_before=NOON, limit=9), 4, breaks="G1")
    expect_equal("the ids after the cursor", ids(await listing(backend, after=cursor, limit=9)), [])


# counts ----------------------------------------------------------------------------------------------------------

LOOK_AT_COUNTS: Final = "counts: all five statuses, zeros included, in step with every transition"


async def _expect_counts(backends: Sequence[Backend], when: str, **expected: int) -> None:
    wanted = {status: expected.get(status.name.lower(), 0) for status in TaskStatus}
    for backend in backends:
        counts = dict(await backend.counts())
        strays: list[object] = [key for key in counts if type(key) is not TaskStatus]
        strays += [number for number in counts.values() if type(number) is not int]
        expect("counts()", not strays, expected="int by TaskStatus", actual=counts)
        expect_equal(f"counts() {when}", counts, wanted)


@check("LISTING", "The counts follow every transition, zeros included", look=LOOK_AT_COUNTS)
async def counts_follow_every_transition(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    both = (backend, other)
    await _expect_counts(both, "of an empty store")
    await lab.put(backend, *(new_task(name, available_at=PAST, max_retries=2) for name in "abcdef"))
    await _expect_counts(both, "after enqueue", pending=6)
    # The tasks that a claim of four takes are a to d: ties in the order of the list.
    await claim(backend, limit=4)
    await _expect_counts(both, "after claim", pending=2, running=4)
    await other.complete("a", 1, value=b"", now=NOON)
    await _expect_counts(both, "after complete", pending=2, running=3, success=1)
    await other.fail("b", 1, new_failure())
    await _expect_counts(both, "after a final failure", pending=2, running=2, success=1, failed=1)
    await backend.fail("c", 1, new_failure(retry_at=NOON + HOUR))
    await _expect_counts(both, "after a failure with a retry", pending=3, running=1, success=1, failed=1)
    await backend.cancel("d", now=NOON)
    await _expect_counts(both, "after a task was cancelled that ran", pending=3, success=1, failed=1, cancelled=1)
    await other.cancel("e", now=NOON)
    await _expect_counts(both, "after a waiting one was cancelled", pending=2, success=1, failed=1, cancelled=2)
    await other.cancel("e", now=NOON)
    await backend.claim(now=PAST - HOUR, limit=9, lease_expires_at=NOON)
    await backend.expired(now=END_OF_TIME, limit=9)
    await _expect_counts(both, "after calls that change nothing", pending=2, success=1, failed=1, cancelled=2)
    await backend.purge(finished_before=NOON + SECOND, limit=3)
    counts = await other.counts()
    expect_equal("how many tasks there are after a purge of 3", sum(counts.values()), 3, breaks="G1")
    await backend.purge(finished_before=NOON + SECOND, limit=3)
    await _expect_counts(both, "after a purge of all", pending=2)
    await lab.put(other, new_task("a"))
    await _expect_counts(both, "after an id was used again", pending=3)


# next_due --------------------------------------------------------------------------------------------------------

LOOK_AT_NEXT: Final = "next_due: the least of available_at where PENDING and lease_expires_at where RUNNING"


@check("LISTING", "next_due is the earliest eta of what waits and lease of what runs, or None", look=LOOK_AT_NEXT)
async def next_due_follows_every_transition(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()

    async def expect_next(when: str, expected: datetime | None, *, breaks: str = "LISTING") -> None:
        for handle in (backend, other):
            expect_next_due(f"next_due() {when}", await handle.next_due(), expected, breaks=breaks)

    await expect_next("of an empty store", None)
    await lab.put(backend, new_task("a", available_at=NOON + 2 * HOUR))
    await expect_next("with one task waiting", NOON + 2 * HOUR)
    await lab.put(backend, new_task("b", available_at=NOON + 3 * HOUR), new_task("c", available_at=PAST))
    await expect_next("with an earlier one among three", PAST)
    await backend.claim(now=NOON, limit=1, lease_expires_at=NOON + 4 * HOUR)
    await expect_next("with a lease after what waits", NOON + 2 * HOUR)
    await other.cancel("a", now=NOON)
    await expect_next("after the earliest was cancelled", NOON + 3 * HOUR)
    await backend.cancel("b", now=NOON)
    await expect_next("with nothing but a lease", NOON + 4 * HOUR, breaks="D3")
    await backend.extend([("c", 1)], lease_expires_at=NOON + 5 * HOUR)
    await expect_next("after the lease was extended", NOON + 5 * HOUR, breaks="D3")
    await lab.put(backend, new_task("d", available_at=NOON + 6 * HOUR))
    await expect_next("with a lease before what waits", NOON + 5 * HOUR, breaks="D3")
    await backend.fail("c", 1, new_failure(retry_at=NOON - YEAR))
    await expect_next("after a retry that lies in the past", NOON - YEAR)
    await backend.claim(now=NOON, limit=1, lease_expires_at=EPOCH)
    await expect_next("with a lease at the epoch", EPOCH, breaks="D3")
    await backend.complete("c", 2, value=b"", now=NOON)
    await expect_next("after that task ended", NOON + 6 * HOUR)
    await backend.cancel("d", now=NOON)
    await expect_next("once everything has ended", None)
    await backend.purge(finished_before=END_OF_TIME, limit=9)
    await expect_next("once everything is purged", None)


@check("LISTING", "next_due is the earliest of instants of every kind", look=LOOK_AT_NEXT)
async def next_due_compares_instants(lab: Lab) -> None:
    backend = await lab.handle()
    moments = list(MOMENTS.items())
    for name, moment in reversed(moments):
        await lab.put(backend, new_task(name, available_at=moment))
        expect_next_due(f"next_due() with {name}", await backend.next_due(), moment, breaks="LISTING")
    for name, moment in moments:
        expect_next_due(f"next_due() from {name} on", await backend.next_due(), moment, breaks="LISTING")
        await backend.cancel(name, now=NOON)


# expired ---------------------------------------------------------------------------------------------------------

LOOK_AT_EXPIRED: Final = "expired: RUNNING and lease_expires_at <= now, oldest lease first, then the limit"


async def _leased(lab: Lab, backend: Backend, leases: dict[str, datetime]) -> dict[str, Task]:
    """Put tasks and claim each with its own lease; return them as stored."""
    stored = {}
    for number, (name, lease) in enumerate(leases.items()):
        task = new_task(name, available_at=NOON - (len(leases) - number) * SECOND)
        await lab.put(backend, task)
        claimed = await backend.claim(now=NOON, limit=1, lease_expires_at=lease)
        await lab.expect_claimed(backend, claimed, [task], now=NOON)
        stored[name] = after_claim(task, lease=lease)
    return stored


@check("D3", "A lease has expired from its microsecond on, and not one earlier", cases=MOMENTS, look=LOOK_AT_EXPIRED)
async def a_lease_expires_at_its_microsecond(lab: Lab, lease: datetime) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = (await _leased(lab, backend, {"a": lease}))["a"]
    await expect_stored(other, task, when="after claim", breaks="D3")
    nows = [(lease, True), (END_OF_TIME, True)]
    if lease > EPOCH:
        nows += [(lease - MICROSECOND, False)]
    if lease < END_OF_TIME:
        nows += [(lease + MICROSECOND, True)]
    for now, expected in nows:
        for handle in (backend, other):
            found = await handle.expired(now=now, limit=9)
            await lab.expect_expired(backend, found, ["a"] if expected else [], now=now)
            for each in found:
                expect_task("the task in expired()", each, task, breaks="D3")
    await expect_stored(other, task, when="after expired()", breaks="D3")


@check("D3", "expired lists every RUNNING task whose lease has run out, oldest lease first", look=LOOK_AT_EXPIRED)
async def expired_lists_the_oldest_leases_first(lab: Lab) -> None:
    backend = await lab.handle()
    names = list(MOMENTS)
    shuffled = names.copy()
    lab.rng.shuffle(shuffled)
    tasks = await _leased(lab, backend, {name: MOMENTS[name] for name in shuffled})
    for now in (NOON - YEAR, NOON, NOON + SECOND, END_OF_TIME):
        due = [name for name in names if MOMENTS[name] <= now]
        for limit in (0, 1, 2, len(due) - 1, len(due), 1000):
            found = await backend.expired(now=now, limit=limit)
            await lab.expect_expired(backend, found, due[:limit], now=now)
    found = await backend.expired(now=END_OF_TIME, limit=1000)
    expect_tasks("expired()", found, [tasks[name] for name in names], breaks="D3")
    await expect_stored(backend, *tasks.values(), when="after expired()", breaks="D3")


@check("D3", "Equal leases are all listed, up to the limit", look=LOOK_AT_EXPIRED)
async def equal_leases_are_all_listed(lab: Lab) -> None:
    backend = await lab.handle()
    names = [f"{number}" for number in range(6)]
    await lab.running(backend, *(new_task(name, available_at=PAST) for name in names))
    for limit in (0, 1, 5, 6, 7):
        found = ids(await backend.expired(now=NOON + LEASE, limit=limit))
        expect_equal(f"how many expired(limit={limit}) listed", len(set(found)), min(limit, 6), breaks="D3")
        expect_equal(
            f"how often it listed a task at most, with limit={limit}", len(found), len(set(found)), breaks="D3"
        )


@check("D3", "expired lists what runs, and nothing else", look=LOOK_AT_EXPIRED)
async def expired_lists_only_what_runs(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    ended = ("completed", "failed", "cancelled", "retried")
    await lab.running(backend, *(new_task(name, available_at=PAST) for name in (*ended, "running", "again")))
    await lab.put(backend, new_task("new", available_at=PAST))
    await backend.complete("completed", 1, value=b"", now=NOON)
    await backend.fail("failed", 1, new_failure())
    await backend.cancel("cancelled", now=NOON)
    await backend.fail("retried", 1, new_failure(retry_at=NOON + HOUR))
    await backend.fail("again", 1, new_failure(retry_at=PAST - SECOND))
    await lab.expect_claimed(backend, await claim(backend), [new_task("again", available_at=PAST - SECOND)], now=NOON)
    for handle in (backend, other):
        found = await handle.expired(now=END_OF_TIME, limit=99)
        expect_equal("the ids in expired()", sorted(ids(found)), ["again", "running"], breaks="D3")


@check("D3", "A lease that was extended expires when it says now", look="extend, and what expired looks at")
async def an_extended_lease_expires_later(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await _leased(lab, backend, {"a": NOON + SECOND, "b": NOON + 2 * SECOND})
    await backend.extend([("a", 1)], lease_expires_at=NOON + 3 * SECOND)
    for now, expected in (
        (NOON + SECOND, []),
        (NOON + 2 * SECOND, ["b"]),
        (NOON + 3 * SECOND - MICROSECOND, ["b"]),
        (NOON + 3 * SECOND, ["b", "a"]),
    ):
        for handle in (backend, other):
            found = await handle.expired(now=now, limit=9)
            await lab.expect_expired(backend, found, expected, now=now)


@check("D3", "Whatever runs is recovered: it expires, is failed, and is claimed again", look=LOOK_AT_EXPIRED)
async def whatever_runs_is_recovered(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = [new_task(f"{number}", available_at=PAST, max_retries=2 if number % 2 else 1) for number in range(12)]
    await lab.put(backend, *tasks)
    for limit in (5, 4, 3):
        await backend.claim(now=NOON, limit=limit, lease_expires_at=NOON + LEASE)
    now = NOON + LEASE + SECOND
    recovered = 0
    while found := await other.expired(now=now, limit=5):
        for task in found:
            failure = new_failure(error="the lease ran out", traceback=None, failed_at=now, retry_at=NOON)
            await other.fail(task.id, task.attempts, failure, if_expired=True)
        recovered += len(found)
        expect("how many leases were recovered", recovered <= 12, expected="12", actual=recovered, breaks="D3")
    expect_equal("how many leases were recovered", recovered, 12, breaks="D3")
    again = await claim(other, limit=99)
    expected = [task for task in tasks if task.max_retries == 2]
    expect_equal("the ids that can be claimed again", sorted(ids(again)), sorted(ids(expected)), breaks="R2")
