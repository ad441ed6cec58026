"""A task that is enqueued in the application's transaction exists if and only if that commits (T1)."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from taskqueue import InvalidArgument, StaleClaim, Task, TaskExists, TransactionalBackend
from taskqueue_conformance.check import check
from taskqueue_conformance.lab import LEASE, NOON, Lab, moved_task, new_task
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_refused

NEEDS: Final = ("transactional",)
_LONG_S: Final = 5.0
_EARLY_S: Final = 4.0
_UNDER_WAY_S: Final = 0.05
_LATER: Final = NOON + timedelta(days=1)


class _Rollback(Exception):
    """What a check raises to have a transaction rolled back."""


async def _enqueue_on(handle: Subject, connection: Any, *tasks: Task) -> None:
    backend = handle.backend
    if not isinstance(backend, TransactionalBackend):
        raise Violation(
            "a backend that claims to be transactional",
            expected="a method enqueue_on(connection, tasks)",
            actual=f"{type(backend).__name__} has none",
        )
    await backend.enqueue_on(connection, list(tasks))


async def _expect_none(handle: Subject, ids: Sequence[str], when: str) -> None:
    """Look in every way that changes nothing, as long as the application may hold the lock on the store."""
    for task_id in ids:
        expect_equal(f"get({task_id!r}) {when}", await handle.get(task_id), None)
    listed, _ = await handle.tasks(limit=100)
    seen = sorted({task.id for task in listed} & set(ids))
    expect_equal(f"the ids in tasks() {when}", seen, [])


async def _expect_claimed(handle: Subject, ids: Sequence[str], when: str) -> None:
    claimed = await handle.claim(now=NOON, limit=100, lease_expires_at=NOON + LEASE)
    expect_equal(f"the ids that a claim returned {when}", [task.id for task in claimed], list(ids))


@check("T1", "What was enqueued in a transaction is there, exactly, once it commits", needs=NEEDS)
async def a_commit_enqueues(lab: Lab) -> None:
    """New tasks and moved ones, through another handle too; in the order of enqueueing; and then they live on."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    moved = moved_task("c", enqueued_at=NOON, available_at=NOON, max_retries=3, attempts=2)
    tasks = [new_task("b", payload=bytes(range(256))), new_task("a", max_retries=0), moved]
    async with lab.harness.transaction(lab.store) as connection:
        await _enqueue_on(backend, connection, *tasks)
        await _enqueue_on(backend, connection, new_task("d"))
        await _enqueue_on(backend, connection)
    for handle in (backend, other):
        await lab.expect_stored(handle, *tasks, new_task("d"), when="after enqueue_on() and a commit")
    await lab.put(other, new_task("e"))
    await _expect_claimed(other, ["b", "a", "c", "d", "e"], "after enqueue_on() and a commit")
    await other.complete("a", 1, value=b"value", now=NOON)


@check("T1", "What was enqueued in a transaction is gone when it is rolled back, and the ids are free", needs=NEEDS)
async def a_rollback_leaves_nothing(lab: Lab) -> None:
    """As if nothing had been."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    try:
        async with lab.harness.transaction(lab.store) as connection:
            await _enqueue_on(backend, connection, new_task("a"), new_task("b"))
            raise _Rollback  # noqa: TRY301 - what is tried is the transaction
    except _Rollback:
        pass
    for handle in (backend, other):
        await _expect_none(handle, ["a", "b"], "after enqueue_on() and a rollback")
    await _expect_claimed(other, [], "after enqueue_on() and a rollback")
    await lab.put(other, new_task("a", payload=b"another one"))
    await _expect_claimed(backend, ["a"], "when its id had been rolled back before")


@check("T1", "Nobody sees what was enqueued in a transaction before it commits", needs=NEEDS)
async def nobody_sees_it_before_the_commit(lab: Lab) -> None:
    """Through the same handle and another one."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    async with lab.harness.transaction(lab.store) as connection:
        await _enqueue_on(backend, connection, new_task("a", available_at=NOON - LEASE))
        for handle in (backend, other):
            await _expect_none(handle, ["a"], "before the transaction of enqueue_on() commits")
            expect_equal("next_due() before the transaction commits", await handle.next_due(), _LATER)
            expect_equal("counts() before the transaction commits", sum((await handle.counts()).values()), 1)
    await _expect_claimed(other, ["a"], "after the commit")


@check("T1", "enqueue_on with an id that is known changes nothing, and the transaction goes on", needs=NEEDS)
async def a_refusal_leaves_the_transaction_usable(lab: Lab) -> None:
    """Known from before, from the same transaction, and twice in the list; each with a fresh one beside it."""
    backend = await lab.handle()
    await lab.put(backend, new_task("known", available_at=_LATER))
    async with lab.harness.transaction(lab.store) as connection:
        await _enqueue_on(backend, connection, new_task("mine"))
        for ids, offending in (
            (["fresh", "known"], ["known"]),
            (["mine", "fresh"], ["mine"]),
            (["fresh", "twice", "twice"], ["twice"]),
            (["known", "twice", "twice", "mine"], ["known", "mine", "twice"]),
        ):
            call = _enqueue_on(backend, connection, *map(new_task, ids))
            refused = await expect_refused(f"enqueue_on() of {ids}", call, TaskExists)
            expect_equal(f"the ids in TaskExists for {ids}", sorted(refused.task_ids), offending)
        await _enqueue_on(backend, connection, new_task("last"))
    await lab.expect_stored(backend, new_task("known", available_at=_LATER), when="after enqueue_on() with its id")
    await _expect_none(backend, ["fresh", "twice"], "after refusals in a transaction that was committed")
    await _expect_claimed(backend, ["mine", "last"], "after refusals in a transaction that was committed")


@check("T1", "enqueue_on refuses what is no connection to the store", needs=NEEDS)
async def what_is_no_connection_is_refused(lab: Lab) -> None:
    """And nothing changes."""
    backend = await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    for nonsense in (object(), "connection", backend.backend):
        call = _enqueue_on(backend, nonsense, new_task("a"))
        await expect_refused(f"enqueue_on({nonsense!r})", call, InvalidArgument)
    await _expect_none(backend, ["a"], "after enqueue_on() without a connection")


@check(
    "T1", "A thousand tasks are enqueued in a transaction, with others of the application's around them", needs=NEEDS
)
async def a_thousand_in_a_transaction(lab: Lab) -> None:
    """All or none, in order."""
    backend = await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    tasks = [new_task(f"{number}") for number in range(1000)]
    for commits in (False, True):
        try:
            async with lab.harness.transaction(lab.store) as connection:
                await _enqueue_on(backend, connection, *tasks)
                if not commits:
                    raise _Rollback  # noqa: TRY301 - what is tried is the transaction
        except _Rollback:
            await _expect_none(backend, ["0", "999"], "after a rollback")
    claimed = await backend.claim(now=NOON, limit=2000, lease_expires_at=NOON + LEASE)
    expect_equal("the ids that a claim returned", [task.id for task in claimed], [task.id for task in tasks])


@check("T1", "A task of a transaction runs once: it is claimed after the commit, and completed", needs=NEEDS)
async def a_task_of_a_transaction_runs_once(lab: Lab) -> None:
    """While the transaction was open it could not be claimed."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    async with lab.harness.transaction(lab.store) as connection:
        await _enqueue_on(backend, connection, new_task("a"))
    await _expect_claimed(other, ["a"], "after the commit")
    await _expect_claimed(backend, [], "when it had been claimed")
    await other.complete("a", 1, value=b"done", now=NOON)
    again = backend.complete("a", 1, value=b"again", now=NOON)
    await expect_refused("a second complete()", again, StaleClaim, breaks="L1")


@check("W1", "The commit of a transaction with a task in it ends a wait", needs=NEEDS, look="wait: commits of others")
async def a_commit_ends_a_wait(lab: Lab) -> None:
    """Once in a few tries."""
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER))
    took = []
    for number in range(2):
        began = asyncio.get_running_loop().time()
        waiting = asyncio.ensure_future(other.wait(_LONG_S))
        await asyncio.sleep(_UNDER_WAY_S)
        async with lab.harness.transaction(lab.store) as connection:
            await _enqueue_on(backend, connection, new_task(f"{number}"))
        await waiting
        took.append(asyncio.get_running_loop().time() - began)
        if took[-1] < _EARLY_S:
            break
    expect(
        "how long a wait took that a commit should have ended",
        min(took) < _EARLY_S,
        expected=f"well under {_LONG_S:g} s",
        actual=", ".join(f"{each:.2f} s" for each in took),
    )
