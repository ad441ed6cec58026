"""The layer schedules: calls on several handles, interleaved step by step, and their history checked."""

from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

from taskqueue import Task
from taskqueue_conformance.check import check
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.stage import Stage

HANDLES: Final = 3
SECOND: Final = timedelta(seconds=1)
LATER: Final = NOON + timedelta(hours=1)

Actor = Coroutine[Any, Any, None]
Scene = Callable[[Stage], Awaitable[list[Actor]]]
"""Prepares the store of one run, and returns what then happens side by side."""


async def _explore(lab: Lab, scene: Scene) -> None:
    """Play a scene in as many orders as the profile asks for."""
    stage = Stage(lab, handles=HANDLES)
    for _ in range(lab.effort.schedules):
        await stage.clear()
        await stage.play(*await scene(stage))
    lab.notes.update(
        schedules=lab.effort.schedules,
        required_schedules=lab.effort.schedules,
        suspensions=stage.suspensions,
        switches=stage.switches,
    )


# What actors do. Which handle, how many and in which order comes from the seed.


async def _claimer(stage: Stage, handle: int, *limits: int) -> None:
    for limit in limits:
        await stage.call(handle, "claim", now=NOON, limit=limit, lease_expires_at=NOON + LEASE)


async def _worker(stage: Stage, handle: int, rounds: int) -> None:
    """Claim and record outcomes, some of them failures that are retried at once."""
    for _ in range(rounds):
        claimed = await stage.call(handle, "claim", now=NOON, limit=1, lease_expires_at=NOON + LEASE)
        for task in claimed:
            if stage.rng.random() < 0.7:
                await stage.call(
                    handle, "fail", task.id, task.attempts, new_failure(task.attempts, retry_at=NOON - SECOND)
                )
            else:
                await _complete(stage, handle, task.id, task.attempts)


async def _complete(stage: Stage, handle: int, task_id: str, attempt: int) -> None:
    value = f"{task_id} {attempt} by handle {handle + 1}".encode()
    await stage.call(handle, "complete", task_id, attempt, value=value, now=NOON + SECOND)


async def _fail(stage: Stage, handle: int, task_id: str, *, retry: bool = True) -> None:
    failure = new_failure(1, failed_at=NOON + SECOND, retry_at=NOON + 2 * SECOND if retry else None)
    await stage.call(handle, "fail", task_id, 1, failure)


async def _cancel(stage: Stage, handle: int, task_id: str) -> None:
    await stage.call(handle, "cancel", task_id, now=NOON + SECOND)


async def _extend(stage: Stage, handle: int, *task_ids: str, until: timedelta = 10 * LEASE) -> None:
    await stage.call(handle, "extend", [(task_id, 1) for task_id in task_ids], lease_expires_at=NOON + until)


async def _recover(stage: Stage, handle: int, task_id: str, attempt: int = 1) -> None:
    at = NOON + LEASE
    failure = new_failure(attempt, error="the lease ran out", traceback=None, failed_at=at, retry_at=at)
    await stage.call(handle, "fail", task_id, attempt, failure, if_expired=True)


async def _recoverer(stage: Stage, handle: int) -> None:
    """Fail what has expired, and take it."""
    at = NOON + LEASE
    for task in await stage.call(handle, "expired", now=at, limit=10):
        await _recover(stage, handle, task.id, task.attempts)
    for task in await stage.call(handle, "claim", now=at, limit=2, lease_expires_at=at + LEASE):
        await _complete(stage, handle, task.id, task.attempts)


async def _enqueuer(stage: Stage, handle: int, *tasks: Task) -> None:
    await stage.call(handle, "enqueue", list(tasks))


async def _reader(stage: Stage, handle: int, *task_ids: str) -> None:
    for task_id in task_ids:
        await stage.call(handle, "get", task_id)


async def _lister(stage: Stage, handle: int, limit: int) -> None:
    cursor: str | None = None
    for _ in range(20):
        answer = await stage.call(handle, "tasks", after=cursor, limit=limit)
        cursor = answer[1]
        if cursor is None:
            return


async def _counter(stage: Stage, handle: int) -> None:
    await stage.call(handle, "counts")
    await stage.call(handle, "next_due")
    await stage.call(handle, "expired", now=NOON + LEASE, limit=10)


async def _purger(stage: Stage, handle: int, *limits: int) -> None:
    for limit in limits:
        await stage.call(handle, "purge", finished_before=NOON, limit=limit)


def _numbered(count: int, **changes: Any) -> list[Task]:
    return [new_task(f"t{number}", **changes) for number in range(1, count + 1)]


async def _running(stage: Stage, *tasks: Task) -> None:
    await stage.put(*tasks)
    await stage.call(0, "claim", now=NOON, limit=len(tasks), lease_expires_at=NOON + LEASE)


# The scenes.


@check(
    "C1",
    "Claims that race share the due tasks among them, in order, and no task goes to two",
    layer="schedules",
)
async def claims_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        count = stage.rng.randint(2, 5)
        earlier = stage.rng.randint(1, count)
        await stage.put(
            *(
                new_task(f"t{number}", available_at=NOON - SECOND * (number == earlier))
                for number in range(1, count + 1)
            )
        )
        return [
            _claimer(stage, handle % HANDLES, *(stage.rng.randint(1, 2) for _ in range(stage.rng.randint(1, 2))))
            for handle in range(stage.rng.randint(2, 4))
        ]

    await _explore(lab, scene)


@check(
    "L1", "Of outcomes, cancels and extends that race, one ends the task, and the others are refused", layer="schedules"
)
async def outcomes_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await _running(stage, *_numbered(2))
        rng = stage.rng
        actors = [
            _complete(stage, 0, "t1", 1),
            _complete(stage, 1, "t1", 1),
            _fail(stage, 1, "t1", retry=rng.random() < 0.7),
            _fail(stage, 2, "t1", retry=rng.random() < 0.7),
            _cancel(stage, 2, "t1"),
            _cancel(stage, 0, "t1"),
            _extend(stage, 1, "t2", "t1"),
            _reader(stage, 0, "t1", "t1"),
            _cancel(stage, 1, "t2"),
        ]
        if rng.random() < 0.5:
            return _some(stage, actors, 2, 2, among=6)
        return _some(stage, actors, 3, 5)

    await _explore(lab, scene)


@check("L2", "A worker that comes back and a recoverer race: one of them has the task", layer="schedules")
async def recovery_races_the_holder(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await _running(stage, *_numbered(2))
        if stage.rng.random() < 0.4:
            return [_extend(stage, 0, "t1"), _recover(stage, 1, "t1")]

        async def holder() -> None:
            if stage.rng.random() < 0.6:
                await _extend(stage, 0, "t1", "t2")
            await _complete(stage, 0, "t1", 1)
            await _fail(stage, 0, "t2")

        return [holder(), *_some(stage, [_recoverer(stage, 1), _recoverer(stage, 2), _recoverer(stage, 1)], 1, 2)]

    await _explore(lab, scene)


@check(
    "L1", "Enqueues of the same ids race: each id is enqueued once, each list wholly or not at all", layer="schedules"
)
async def enqueues_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await stage.put(new_task("t0", available_at=LATER))
        rng = stage.rng

        def tasks() -> list[Task]:
            ids = rng.sample(["t1", "t2", "t3", "t4"], rng.randint(1, 3))
            return [new_task(task_id, payload=rng.randbytes(4)) for task_id in ids]

        enqueuers = [_enqueuer(stage, handle % HANDLES, *tasks()) for handle in range(rng.randint(2, 3))]
        others = [
            _counter(stage, 2),
            _lister(stage, 1, 10),
            _claimer(stage, 0, 2),
            _cancel(stage, 2, "t1"),
            _reader(stage, 0, "t1", "t2"),
        ]
        return enqueuers + _some(stage, others, 1, 2)

    await _explore(lab, scene)


@check(
    "R1", "Workers that fail and retry race: each claim is counted once, and none exceeds the budget", layer="schedules"
)
async def retries_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await stage.put(*(new_task(f"t{number}", max_retries=stage.rng.randint(0, 3)) for number in (1, 2, 3)))
        return [_worker(stage, handle % HANDLES, 3) for handle in range(stage.rng.randint(2, 3))]

    await _explore(lab, scene)


@check(
    "G1", "Purges race each other and everything else: each removes what it counts, and only that", layer="schedules"
)
async def purges_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await stage.put(*_numbered(5, available_at=LATER))
        rng = stage.rng
        for place, number in enumerate(rng.sample([1, 2, 3, 4], rng.randint(2, 4))):
            await stage.call(0, "cancel", f"t{number}", now=NOON - SECOND * (10 - place))
        others = [
            _purger(stage, 2, 10),
            _lister(stage, 0, 10),
            _counter(stage, 2),
            _enqueuer(stage, 0, new_task("t1", payload=b"anew", available_at=LATER)),
            _reader(stage, 1, "t1", "t2"),
            _late_cancel(stage, 2, "t5"),
        ]
        return [
            _purger(stage, 0, rng.randint(1, 3)),
            _purger(stage, 1, rng.randint(1, 3)),
            *_some(stage, others, 1, 2),
        ]

    await _explore(lab, scene)


async def _late_cancel(stage: Stage, handle: int, task_id: str) -> None:
    await stage.call(handle, "cancel", task_id, now=NOON - SECOND)


@check("LISTING", "Listings and counts tell the truth while tasks come, change and end", layer="schedules")
async def listings_race(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await stage.put(*_numbered(4))
        rng = stage.rng
        others = [
            _claimer(stage, 0, 1, 1),
            _cancel(stage, 1, f"t{rng.randint(1, 4)}"),
            _enqueuer(stage, 0, new_task("t5"), new_task("t6", available_at=NOON - LEASE)),
            _worker(stage, 1, 2),
            _counter(stage, 2),
        ]
        return [_lister(stage, 2, rng.randint(1, 3)), *_some(stage, others, 2, 3)]

    await _explore(lab, scene)


@check("LISTING", "Sums of one task that is claimed, retried and ended are those of one moment", layer="schedules")
async def sums_race_one_task(lab: Lab) -> None:
    """A task that is alone shows it when a sum adds up two moments: it is in neither, or in both."""

    async def scene(stage: Stage) -> list[Actor]:
        await stage.put(new_task("t1", available_at=NOON - SECOND, max_retries=3))
        return [_worker(stage, 0, 2), _summer(stage, 1), _summer(stage, 2)]

    await _explore(lab, scene)


async def _summer(stage: Stage, handle: int) -> None:
    for method in stage.rng.sample(["next_due", "next_due", "counts"], 3):
        await stage.call(handle, method)


@check("V1", "A result is seen whole or not at all, and is the one that was recorded", layer="schedules")
async def results_race_readers(lab: Lab) -> None:
    async def scene(stage: Stage) -> list[Actor]:
        await _running(stage, *_numbered(2))
        first = _complete(stage, 0, "t1", 1) if stage.rng.random() < 0.5 else _fail(stage, 0, "t1")
        others = [
            _reader(stage, 1, "t1", "t1", "t1"),
            _lister(stage, 1, 10),
            _complete(stage, 0, "t2", 1),
            _fail(stage, 2, "t2", retry=False),
            _counter(stage, 2),
        ]
        return [first, _reader(stage, 2, "t1", "t1"), *_some(stage, others, 1, 3)]

    await _explore(lab, scene)


@check(
    "X1",
    "Calls of every kind, side by side on one handle, do not disturb each other",
    layer="schedules",
    look="what calls on one handle share: a connection and its transaction, a lock, a batch",
)
async def one_handle_serves_many_calls(lab: Lab) -> None:
    await _explore(lab, mixed_calls)


async def mixed_calls(stage: Stage) -> list[Actor]:
    """Prepare some tasks, and return some calls of every kind, most of them on one handle."""
    await _running(stage, *_numbered(2))
    await stage.put(*(new_task(f"u{number}") for number in (1, 2)))
    actors = [
        _enqueuer(stage, 0, new_task("u3"), new_task("u4")),
        _enqueuer(stage, 0, new_task("u5"), new_task("u1")),
        _claimer(stage, 0, 2),
        _claimer(stage, 0, 1),
        _complete(stage, 0, "t1", 1),
        _complete(stage, 1, "t1", 1),
        _complete(stage, 0, "t1", 2),
        _fail(stage, 0, "t2"),
        _cancel(stage, 0, "t2"),
        _cancel(stage, 0, "unknown"),
        _extend(stage, 0, "t1", "t2", "unknown"),
        _lister(stage, 0, 2),
        _counter(stage, 0),
        _purger(stage, 0, 1),
    ]
    return _some(stage, actors, 3, 6)


async def accepted_writes(stage: Stage) -> list[Actor]:
    """Prepare some tasks, and return calls on one handle of which each would be accepted, whatever the others do."""
    await _running(stage, *_numbered(4))
    await stage.put(new_task("u1", available_at=LATER))
    actors = [
        _enqueuer(stage, 0, new_task("v1"), new_task("v2")),
        _enqueuer(stage, 0, new_task("w1"), new_task("w2")),
        _claimer(stage, 0, 4),
        _complete(stage, 0, "t1", 1),
        _fail(stage, 0, "t2"),
        _cancel(stage, 0, "u1"),
        _extend(stage, 0, "t3", "t4"),
        _complete(stage, 1, "t4", 1),
    ]
    return _some(stage, actors, 3, 6)


def _some(stage: Stage, actors: list[Actor], least: int, most: int, *, among: int | None = None) -> list[Actor]:
    """Draw some of the actors, or of the first ``among`` of them; the others never begin."""
    chosen = stage.rng.sample(actors[:among], stage.rng.randint(least, most))
    for actor in actors:
        if actor not in chosen:
            actor.close()
    return chosen
