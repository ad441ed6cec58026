"""What a call acknowledged is seen by everybody at once, and is there after a reopen (D1, D2)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from taskqueue import Backend, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import (
    LATER,
    MUCH_LATER,
    STATES,
    Snapshot,
    claim_all,
    every_state,
    expect_unchanged,
    late_failure,
    snapshot,
)
from taskqueue_conformance.lab import NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_refused


@dataclass(frozen=True, slots=True)
class Write:
    """A call that changes a store of :func:`every_state`, and the id of a task that is changed."""

    call: Callable[[Backend], Awaitable[object]]
    changes: str


WRITES: Final[Mapping[str, Write]] = {
    "enqueue": Write(lambda backend: backend.enqueue([new_task("fresh"), new_task("fresh2")]), "fresh"),
    "claim": Write(lambda backend: backend.claim(now=LATER, limit=2, lease_expires_at=MUCH_LATER), "new"),
    "extend": Write(lambda backend: backend.extend([("running", 1)], lease_expires_at=LATER), "running"),
    "complete": Write(lambda backend: backend.complete("running", 1, value=b"", now=LATER), "running"),
    "fail": Write(lambda backend: backend.fail("running", 1, late_failure(1)), "running"),
    "fail with a retry": Write(
        lambda backend: backend.fail("running_again", 2, late_failure(2, retry_at=MUCH_LATER)), "running_again"
    ),
    "cancel": Write(lambda backend: backend.cancel("new", now=LATER), "new"),
    "purge": Write(lambda backend: backend.purge(finished_before=LATER, limit=10), "success"),
}
"""Every call that changes something."""

_ALL_IDS: Final = (*STATES, "fresh", "fresh2")


async def _seen(backend: Backend) -> Snapshot:
    return await snapshot(backend, *_ALL_IDS)


async def _written(lab: Lab, backend: Backend, name: str) -> Snapshot:
    """Do one of :data:`WRITES`, which must be the last call, and return what the store then is.

    What it should be is found out in a store of its own, where reads may follow the write.
    """
    rehearsal = await lab.handle(store=lab.new_store())
    await every_state(lab, rehearsal)
    before = await _seen(rehearsal)
    await WRITES[name].call(rehearsal)
    expected = await _seen(rehearsal)
    changed = WRITES[name].changes
    expect(
        f"{name} of {changed!r}",
        before.tasks[changed] != expected.tasks[changed],
        expected="a change that its own handle sees",
        actual="none",
    )
    await every_state(lab, backend)
    await WRITES[name].call(backend)
    return expected


@check(
    "D1",
    "What a call acknowledged is seen through every other handle at once",
    cases={name: name for name in WRITES},
    look="commit before returning, in the call itself",
)
async def others_see_it_at_once(lab: Lab, name: str) -> None:
    """Without any further call on the handle that wrote, and whatever the other handle has read before."""
    reader, writer = await lab.handle(), await lab.handle()
    expect_equal("counts() of an empty store", sum((await reader.counts()).values()), 0, breaks="LISTING")
    expected = await _written(lab, writer, name)
    await expect_unchanged(reader, expected, after=f"{name} through another handle")


@check(
    "D1",
    "What a call acknowledged is there after all handles were closed",
    cases={name: name for name in WRITES},
    needs=("durable",),
    look="commit before returning; close must not lose or delete",
)
async def it_is_there_after_a_reopen(lab: Lab, name: str) -> None:
    """It was the last call before close, and every field of every task is compared."""
    backend = await lab.handle()
    expected = await _written(lab, backend, name)
    await backend.close()
    reopened = await lab.handle()
    await expect_unchanged(reopened, expected, after=f"{name}, close() and a reopen")
    await backend.connect()
    await expect_unchanged(backend, expected, after=f"{name}, close() and connect() of the same handle")


@check("D1", "Closing and reopening an idle store any number of times changes nothing", needs=("durable",))
async def reopening_changes_nothing(lab: Lab) -> None:
    """RUNNING tasks stay RUNNING: a reopen is no recovery."""
    backend = await lab.handle()
    await every_state(lab, backend)
    before = await _seen(backend)
    for _ in range(3):
        await backend.close()
        backend = await lab.handle()
        await expect_unchanged(backend, before, after="a reopen")
    await backend.complete("running", 1, value=b"after a reopen", now=LATER)
    held = await backend.extend([("running_again", 2)], lease_expires_at=MUCH_LATER)
    expect_equal("extend() of a claim made before a reopen", held, [("running_again", 2)])


@check(
    "C3", "The order of enqueueing is kept over a reopen", needs=("durable",), look="where the sequence number lives"
)
async def the_order_survives_a_reopen(lab: Lab) -> None:
    """What is enqueued after it comes behind, also where the latest tasks have been purged, and a cursor stays good."""
    backend = await lab.handle()
    await lab.put(backend, new_task("z"), new_task("y"))
    await lab.put(backend, new_task("x"), new_task("gone"))
    page, cursor = await backend.tasks(limit=2)
    expect_equal("the first page", [task.id for task in page], ["z", "y"], breaks="LISTING")
    await backend.cancel("gone", now=NOON)
    await backend.purge(finished_before=LATER, limit=1)
    await backend.close()

    backend = await lab.handle()
    await lab.put(backend, new_task("b"))
    await lab.put(backend, new_task("a"))
    page, _ = await backend.tasks(after=cursor, limit=10)
    expect_equal("the page after a reopen", [task.id for task in page], ["x", "b", "a"], breaks="LISTING")
    claimed = await backend.claim(now=NOON, limit=10, lease_expires_at=LATER)
    expect_equal("the claim after a reopen", [task.id for task in claimed], ["z", "y", "x", "b", "a"])


@check("D1", "A store lives as long as a handle object on it, connected or not", look="close must not lose or delete")
async def a_store_lives_with_its_handles(lab: Lab) -> None:
    """Closed handles, unconnected ones and clones keep a store that is not durable."""
    unconnected = lab.unconnected()
    first, second = await lab.handle(), await lab.handle()
    await every_state(lab, first)
    before = await _seen(first)
    await first.close()
    await expect_unchanged(second, before, after="close() of one of two handles")
    await second.close()
    await unconnected.connect()
    await expect_unchanged(unconnected, before, after="close() of all connected handles")
    await unconnected.close()
    third = await lab.handle()
    await expect_unchanged(third, before, after="close() of all handles, and a new one")
    clone = lab.adopt(first.clone())
    await clone.connect()
    await expect_unchanged(clone, before, after="close() of all handles, and a clone of one")


@check(
    "D1",
    "A call that is refused takes nothing with it of what others wrote on the same handle",
    look="a rollback of one call must not undo another's writes on a shared connection",
)
async def a_refused_call_takes_nothing_with_it(lab: Lab) -> None:
    """Good calls and bad ones at the same time, over and over."""
    backend, reader = await lab.handle(), await lab.handle()
    await lab.put(reader, new_task("known", available_at=MUCH_LATER))
    for number in range(6):
        good = [new_task(f"good{number}_{index}") for index in range(6)]
        answers = await asyncio.gather(
            *(
                call
                for task in good
                for call in (
                    backend.enqueue([task]),
                    backend.enqueue([new_task(f"bad_{task.id}"), new_task("known")]),
                    backend.complete("unknown", 1, value=b"", now=NOON),
                    backend.fail("known", 1, new_failure()),
                )
            ),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, Violation):
                raise answer
            refused = isinstance(answer, TaskExists | TaskNotFound | StaleClaim)
            expect("one of many calls", answer is None or refused, expected="its own answer", actual=repr(answer),
                breaks="X1")  # fmt: skip
        kinds = [type(answer) for answer in answers]
        wanted = [type(None), TaskExists, TaskNotFound, StaleClaim] * len(good)
        expect_equal("the answers of good calls and bad ones", kinds, wanted, breaks="X1")
        for task in good:
            expect_equal(f"get({task.id!r}), enqueued beside calls that were refused", await reader.get(task.id), task)
            bad = await reader.get(f"bad_{task.id}")
            expect_equal("a task of an enqueue that was refused", bad, None, breaks="L1")


@check("D1", "A call that is refused leaves nothing open behind it", look="roll back when a call is refused")
async def a_refused_call_leaves_nothing_open(lab: Lab) -> None:
    """What was acknowledged before and after it is seen by others at once, and they can write."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.running(backend, new_task("running"))
    refusals: Mapping[str, tuple[Callable[[], Awaitable[object]], type[Exception]]] = {
        "enqueue": (lambda: backend.enqueue([new_task("x"), new_task("running")]), TaskExists),
        "complete": (lambda: backend.complete("running", 2, value=b"", now=NOON), StaleClaim),
        "fail": (lambda: backend.fail("running", 2, new_failure(2)), StaleClaim),
        "fail if expired": (lambda: backend.fail("running", 1, new_failure(), if_expired=True), StaleClaim),
        "cancel": (lambda: backend.cancel("unknown", now=NOON), TaskNotFound),
    }
    for name, (refused, error) in refusals.items():
        before, after, others = (new_task(f"{place} {name}") for place in ("before", "after", "other"))
        await backend.enqueue([before])
        await expect_refused(name, refused(), error, breaks="L1")
        await lab.put(other, others)
        expect_equal(f"what was enqueued before a refused {name}", await other.get(before.id), before)
        await backend.enqueue([after])
        expect_equal(f"what was enqueued after a refused {name}", await other.get(after.id), after)


@check("D2", "An enqueue of many tasks is seen whole or not at all", look="one transaction for the whole call")
async def many_tasks_appear_together(lab: Lab) -> None:
    """Another handle looks while they are being stored."""
    backend, reader = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=MUCH_LATER))
    for number in range(3):
        tasks = [new_task(f"task{number}_{index}", available_at=LATER) for index in range(300)]
        before = sum((await reader.counts()).values())
        storing = asyncio.ensure_future(backend.enqueue(tasks))
        seen = []
        while not storing.done():
            seen.append(sum((await reader.counts()).values()))
            await asyncio.sleep(0)
        await storing
        partly = [each for each in seen if each not in {before, before + len(tasks)}]
        expect_equal("how many of 300 tasks were seen while they were being enqueued", partly, [])
        expect_equal("how many are seen afterwards", sum((await reader.counts()).values()), before + 300, breaks="D1")


_MANY: Final = 900


async def _running(backend: Backend) -> object:
    return (await backend.counts())[TaskStatus.RUNNING]


async def _ended(backend: Backend) -> object:
    return (await backend.counts())[TaskStatus.CANCELLED]


async def _leases(backend: Backend) -> object:
    page, _ = await backend.tasks(status=TaskStatus.RUNNING, limit=_MANY)
    return sorted({str(task.lease_expires_at) for task in page})


async def _extend_all(backend: Backend, names: Sequence[str]) -> None:
    await backend.extend([(name, 1) for name in names], lease_expires_at=MUCH_LATER)


async def _claim_all(backend: Backend, names: Sequence[str]) -> None:
    await backend.claim(now=NOON, limit=len(names), lease_expires_at=LATER)


async def _purge_all(backend: Backend, names: Sequence[str]) -> None:
    await backend.purge(finished_before=LATER, limit=len(names))


@check(
    "D2",
    "A call that changes many tasks is seen whole or not at all",
    cases={
        "claim": (_claim_all, _running),
        "extend": (_extend_all, _leases),
        "purge": (_purge_all, _ended),
    },
    look="one transaction for the whole call, not one for each task",
)
async def many_changes_appear_together(
    lab: Lab,
    case: tuple[Callable[[Backend, Sequence[str]], Awaitable[None]], Callable[[Backend], Awaitable[object]]],
) -> None:
    """Another handle looks while 900 tasks are being changed."""
    change, look = case
    backend, reader = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=MUCH_LATER))
    names = [f"task{index}" for index in range(_MANY)]
    await backend.enqueue([new_task(name) for name in names])
    if change is _extend_all:
        await backend.claim(now=NOON, limit=_MANY, lease_expires_at=LATER)
    elif change is _purge_all:
        await asyncio.gather(*(backend.cancel(name, now=NOON) for name in names))
    before = await look(reader)
    changing = asyncio.ensure_future(change(backend, names))
    seen = []
    while not changing.done():
        seen.append(await look(reader))
        await asyncio.sleep(0)
    await changing
    after = await look(reader)
    expect("what another handle sees after the call", before != after, expected=f"not {before}", actual=after)
    partly = [each for each in seen if each not in (before, after)]
    expect_equal(f"what was seen of {_MANY} tasks in between, besides {before} and {after}", partly, [])


@check("D2", "A task is never seen between two states", look="one transaction, or one statement, for each call")
async def steps_are_seen_whole(lab: Lab) -> None:
    """Another handle looks while a task is claimed, failed, retried, completed."""
    backend, reader = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("a", max_retries=20))
    seen: list[Task] = []

    async def look(until: asyncio.Future[None]) -> None:
        while not until.done():
            task = await reader.get("a")
            assert task is not None  # noqa: S101 - for the type checker; put has looked
            seen.append(task)
            await asyncio.sleep(0)

    async def live() -> None:
        for attempt in range(1, 11):
            await claim_all(lab, backend, ["a"])
            await asyncio.sleep(0)
            if attempt < 10:
                await backend.fail("a", attempt, new_failure(attempt, retry_at=NOON))
            await asyncio.sleep(0)
        await backend.complete("a", 10, value=b"value", now=NOON)

    living = asyncio.ensure_future(live())
    await asyncio.gather(living, look(living))
    for task in seen:
        running, ended = task.status.name == "RUNNING", task.status.name == "SUCCESS"
        whole = (
            task.status.name in {"PENDING", "RUNNING", "SUCCESS"}
            and len(task.failures) == task.attempts - (1 if running or ended else 0)
            and (task.lease_expires_at is not None) is running
            and (task.finished_at is not None) is (task.value is not None) is ended
            and (task.started_at is not None) is (task.attempts > 0)
        )
        expect("a task seen while it goes through its life", whole, expected="a whole state", actual=task,
            breaks="V1" if ended else None)  # fmt: skip
