"""Purging removes ended tasks that are old enough, and no trace of them is left (G1)."""

from datetime import UTC, datetime, timedelta
from typing import Final

from taskqueue import Backend, TaskNotFound, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import (
    ENDED,
    LATER,
    LIVE,
    MUCH_LATER,
    OUTCOMES,
    STATES,
    claim_all,
    every_state,
    expect_unchanged,
    snapshot,
    stored,
)
from taskqueue_conformance.lab import MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect_equal, expect_refused

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def _ended(lab: Lab, backend: Backend, name: str, *, at: datetime, how: TaskStatus) -> None:
    await lab.running(backend, new_task(name))
    if how is TaskStatus.SUCCESS:
        await backend.complete(name, 1, value=name.encode(), now=at)
    elif how is TaskStatus.FAILED:
        await backend.fail(name, 1, new_failure(failed_at=at))
    else:
        await backend.cancel(name, now=at)


async def _left(backend: Backend, names: list[str]) -> list[str]:
    return [name for name in names if await backend.get(name) is not None]


@check(
    "G1",
    "Only tasks with finished_at < finished_before are removed, by the microsecond",
    cases={status.name: status for status in (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)},
    look="purge: strictly less, and on finished_at",
)
async def the_boundary_is_strict(lab: Lab, how: TaskStatus) -> None:
    """A microsecond before the boundary goes; at the boundary, and after it, stays."""
    backend = await lab.handle()
    await _ended(lab, backend, "before", at=LATER - MICROSECOND, how=how)
    await _ended(lab, backend, "equal", at=LATER, how=how)
    await _ended(lab, backend, "after", at=LATER + MICROSECOND, how=how)
    names = ["before", "equal", "after"]
    kept = await snapshot(backend, "equal", "after")
    removed = await backend.purge(finished_before=LATER - MICROSECOND, limit=10)
    expect_equal("purge() before anything is old enough", (removed, await _left(backend, names)), (0, names))
    removed = await backend.purge(finished_before=LATER, limit=10)
    expect_equal("purge() at the boundary", (removed, await _left(backend, names)), (1, ["equal", "after"]))
    for name in names[1:]:
        expect_equal(f"get({name!r}) after purge()", await backend.get(name), kept.tasks[name])
    removed = await backend.purge(finished_before=LATER + MICROSECOND, limit=10)
    expect_equal("purge() a microsecond later", (removed, await _left(backend, names)), (1, ["after"]))


@check(
    "G1", "Tasks that have not ended are never removed, however old", look="purge: the status, or finished_at is set"
)
async def live_tasks_stay(lab: Lab) -> None:
    """PENDING and RUNNING ones stay as they are; all others go, and are counted."""
    backend = await lab.handle()
    await every_state(lab, backend)
    ancient = new_task("ancient", enqueued_at=EPOCH, available_at=EPOCH)
    await lab.put(backend, ancient)
    await backend.claim(now=EPOCH, limit=1, lease_expires_at=EPOCH)
    names = (*LIVE, "ancient")
    before = {name: await backend.get(name) for name in names}
    removed = await backend.purge(finished_before=MUCH_LATER, limit=1000)
    expect_equal("the number of tasks removed", removed, len(ENDED))
    for name, was in before.items():
        expect_equal(f"get({name!r}) after purge()", await backend.get(name), was)
    expect_equal("the ended tasks that are left", await _left(backend, list(ENDED)), [])
    listed, _ = await backend.tasks(limit=100)
    expect_equal("the ids listed after purge()", sorted(task.id for task in listed), sorted(names))
    counts = {status: number for status, number in (await backend.counts()).items() if number}
    expect_equal("counts() after purge()", counts, {TaskStatus.PENDING: 2, TaskStatus.RUNNING: 3})
    expect_equal("a second purge()", await backend.purge(finished_before=MUCH_LATER, limit=1000), 0)
    expired = sorted(task.id for task in await backend.expired(now=MUCH_LATER, limit=100))
    expect_equal("the ids in expired() after purge()", expired, ["ancient", "running", "running_again"])
    await backend.complete("running", 1, value=b"", now=LATER)
    await backend.fail("running_again", 2, new_failure(2, retry_at=LATER))
    task = await stored(backend, "running_again")
    expect_equal("the number of failures of a task beside purged ones", len(task.failures), 2)


@check("G1", "At most limit tasks are removed, the longest ended first", look="purge: ORDER BY finished_at, LIMIT")
async def the_longest_ended_go_first(lab: Lab) -> None:
    """Whatever the order in which they were enqueued, due or started; and the number is returned."""
    backend = await lab.handle()
    hours = {"c": 3, "a": 1, "e": 5, "b": 2, "d": 4}
    ways = [TaskStatus.CANCELLED, TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.SUCCESS, TaskStatus.CANCELLED]
    for (name, hour), how in zip(hours.items(), ways, strict=True):
        await _ended(lab, backend, name, at=NOON + timedelta(hours=hour), how=how)
    everything = NOON + timedelta(hours=5)
    for limit, removed, left in ((0, 0, "abcde"), (1, 1, "bcde"), (2, 2, "de"), (10, 1, "e"), (10, 0, "e")):
        answer = await backend.purge(finished_before=everything, limit=limit)
        expect_equal(f"the answer of purge(limit={limit})", answer, removed)
        expect_equal(f"the tasks left after purge(limit={limit})", await _left(backend, sorted(hours)), [*left])


@check("G1", "A task that ended in 1970 is removed like any other", look="zero is an instant, not an unset value")
async def the_epoch_is_an_instant(lab: Lab) -> None:
    """At the epoch itself, and a microsecond after; and a purge before the epoch's next microsecond takes just one."""
    backend = await lab.handle()
    await _ended(lab, backend, "zero", at=EPOCH, how=TaskStatus.SUCCESS)
    await _ended(lab, backend, "one", at=EPOCH + MICROSECOND, how=TaskStatus.FAILED)
    names = ["zero", "one"]
    removed = await backend.purge(finished_before=EPOCH, limit=10)
    expect_equal("purge() before the epoch", (removed, await _left(backend, names)), (0, names))
    removed = await backend.purge(finished_before=EPOCH + MICROSECOND, limit=10)
    expect_equal("purge() just after the epoch", (removed, await _left(backend, names)), (1, ["one"]))
    removed = await backend.purge(finished_before=NOON, limit=10)
    expect_equal("purge() of what ended in 1970", (removed, await _left(backend, names)), (1, []))


@check("G1", "A purged id is unknown everywhere", look="purge: what is kept beside the task itself")
async def a_purged_id_is_unknown(lab: Lab) -> None:
    """get, complete, fail, cancel, extend and the listings know nothing of it, and nothing comes back."""
    backend, other = await lab.handle(), await lab.handle()
    tasks = await every_state(lab, backend)
    await backend.purge(finished_before=MUCH_LATER, limit=100)
    before = await snapshot(other, *STATES)
    for name in ENDED:
        expect_equal(f"get({name!r}) after purge()", before.tasks[name], None)
        attempt = max(1, tasks[name].attempts)
        for what, record in OUTCOMES.items():
            await expect_refused(f"{what} of a purged task", record(other, name, attempt), TaskNotFound)
        await expect_refused("cancel of a purged task", other.cancel(name, now=LATER), TaskNotFound)
        held = await other.extend([(name, attempt)], lease_expires_at=MUCH_LATER)
        expect_equal("extend of a purged task", held, [])
    await expect_unchanged(backend, before, after="calls on purged tasks")


@check("G1", "A purged id may be enqueued anew, as a fresh task", look="purge: failures and values go with the task")
async def a_purged_id_begins_anew(lab: Lab) -> None:
    """No failure, value or attempt of the former task is left; its first claim is attempt 1, and it comes last."""
    backend = await lab.handle()
    await every_state(lab, backend)
    await backend.purge(finished_before=MUCH_LATER, limit=100)
    fresh = [new_task(name, payload=b"anew " + name.encode(), max_retries=2) for name in ENDED]
    await backend.enqueue(fresh)
    for task in fresh:
        expect_equal(f"get({task.id!r}), enqueued anew", await backend.get(task.id), task)
    listed, _ = await backend.tasks(limit=100)
    expect_equal("the ids listed", [task.id for task in listed][-len(ENDED) :], list(ENDED))
    claimed = await claim_all(lab, backend, ENDED)
    for task in claimed:
        got = (task.attempts, task.failures, task.value, task.finished_at)
        expect_equal(f"(attempts, failures, value, finished_at) of {task.id!r}", got, (1, (), None, None))
    await backend.complete("success", 1, value=b"another value", now=NOON)
    expect_equal("the value of the task enqueued anew", (await stored(backend, "success")).value, b"another value")
    answer = await backend.fail("failed", 1, new_failure(retry_at=LATER))
    expect_equal("the failures of the task enqueued anew", len(answer.failures), 1)
    expect_equal("fail() of the task enqueued anew", await backend.get("failed"), answer)
