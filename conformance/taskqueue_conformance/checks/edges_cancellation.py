"""Calls that are cancelled at any moment have happened or have not, and many calls at once get on (X1)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from taskqueue import Backend, NotConnected, StaleClaim, Task, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import LATER, MUCH_LATER, SECOND, claim_all, stored
from taskqueue_conformance.checks._together import expect_each_as_alone
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, shown


@dataclass(frozen=True, slots=True)
class Delay:
    """For how long a call runs before it is cancelled: some turns of the event loop, or some seconds."""

    turns: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.seconds else f"{self.turns} turns of the loop"

    async def pause(self) -> None:
        """Let it pass."""
        if self.seconds:
            await asyncio.sleep(self.seconds)
        for _ in range(self.turns):
            await asyncio.sleep(0)


# Cancelled within a few turns of the loop, a job for a thread often does not even start: hence the seconds.
DELAYS: Final = (
    *(Delay(turns=turns) for turns in (0, 1, 2, 3, 5, 8)),
    *(Delay(seconds=seconds) for seconds in (0.0001, 0.0003, 0.001, 0.003)),
)
SETTLED_S: Final = 0.003
"""How long nothing may land any more, once the next call on the handle has returned, in seconds."""

Pair = tuple[Task | None, Task | None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is cancelled: a call on the two tasks of a round, after they have been brought to a status.

    One that ``lasts`` changes nothing and takes its time: there is no use in running it to its end.
    """

    start: TaskStatus | None
    call: Callable[[Backend, str, str], Awaitable[object]]
    lasts: bool = False


_OLD: Final = NOON - LEASE
"""When the tasks of the purge's rounds ended: before those of all other rounds."""

SCENES: Final[Mapping[str, Scene]] = {
    "enqueue": Scene(None, lambda backend, a, b: backend.enqueue([new_task(a), new_task(b)])),
    "claim": Scene(
        TaskStatus.PENDING, lambda backend, _a, _b: backend.claim(now=NOON, limit=2, lease_expires_at=NOON + LEASE)
    ),
    "extend": Scene(TaskStatus.RUNNING, lambda backend, a, b: backend.extend([(a, 1), (b, 1)], lease_expires_at=LATER)),
    "complete": Scene(TaskStatus.RUNNING, lambda backend, a, _: backend.complete(a, 1, value=b"value", now=NOON)),
    "fail": Scene(TaskStatus.RUNNING, lambda backend, a, _: backend.fail(a, 1, new_failure())),
    "fail with a retry": Scene(
        TaskStatus.RUNNING, lambda backend, a, _: backend.fail(a, 1, new_failure(retry_at=NOON))
    ),
    "cancel": Scene(TaskStatus.RUNNING, lambda backend, a, _: backend.cancel(a, now=NOON)),
    "purge": Scene(TaskStatus.CANCELLED, lambda backend, _a, _b: backend.purge(finished_before=_OLD + SECOND, limit=2)),
    "expired": Scene(TaskStatus.RUNNING, lambda backend, _a, _b: backend.expired(now=LATER, limit=10)),
    "next_due": Scene(TaskStatus.PENDING, lambda backend, _a, _b: backend.next_due()),
    "get": Scene(TaskStatus.PENDING, lambda backend, a, _: backend.get(a)),
    "tasks": Scene(TaskStatus.PENDING, lambda backend, _a, _b: backend.tasks(limit=10)),
    "counts": Scene(TaskStatus.PENDING, lambda backend, _a, _b: backend.counts()),
    "wait": Scene(TaskStatus.PENDING, lambda backend, _a, _b: backend.wait(5), lasts=True),
}
"""Every method that needs a connection; the tasks and what is done to them are the same in every round."""


@check(
    "X1",
    "A call that is cancelled has happened or has not, and the handle stays usable",
    cases=SCENES,
    look="what happens to a transaction, a lock or a thread's job when CancelledError comes in the middle",
)
async def a_cancelled_call_is_before_or_after(lab: Lab, scene: Scene) -> None:
    """A first round runs undisturbed and shows what "before" and "after" are; then it is cancelled sooner or later."""
    victim, observer = await lab.handle(), await lab.handle()
    await lab.put(observer, new_task("witness", available_at=MUCH_LATER))

    a, b = await _prepare(lab, observer, scene, "control")
    before = await _pair(observer, a, b)
    if scene.start is not None:
        expect("the round that is not cancelled", None not in before, expected="two tasks", actual=before, breaks="API")
    if not scene.lasts:
        await scene.call(victim, a, b)
    after = await _pair(observer, a, b)
    if scene.start is TaskStatus.CANCELLED:
        expect("purge() that is not cancelled", after == (None, None), expected="no task", actual=after, breaks="G1")
    await _clean_up(observer, a, b)

    for number, delay in enumerate(DELAYS):
        a, b = await _prepare(lab, observer, scene, f"round{number}")
        what = f"the call that was cancelled after {delay}"
        completed = await _cancelled(what, scene.call(victim, a, b), delay)
        await _usable(victim, what, victim.get("witness"))

        wanted = [_like(after, a, b)] if completed else [_like(before, a, b), _like(after, a, b)]
        seen = await _pair(observer, a, b)
        expect(
            f"the tasks after {what}",
            seen in wanted,
            expected=" or ".join(map(_told, wanted)),
            actual=f"{_told(seen)}, where the call {'returned' if completed else 'was cancelled'}",
        )
        await asyncio.sleep(SETTLED_S)
        later = await _pair(observer, a, b)
        expect_equal(f"the tasks some time after {what} and another call on its handle", _told(later), _told(seen))
        await _clean_up(observer, a, b)
        await _works(victim, what, f"probe{number}")


async def _prepare(lab: Lab, backend: Backend, scene: Scene, name: str) -> tuple[str, str]:
    a, b = f"{name}a", f"{name}b"
    if scene.start is not None:
        await backend.enqueue([new_task(a), new_task(b)])
    if scene.start is TaskStatus.RUNNING:
        await claim_all(lab, backend, [a, b])
    if scene.start is TaskStatus.CANCELLED:
        for task_id in (a, b):
            await backend.cancel(task_id, now=_OLD)
    return a, b


async def _pair(backend: Backend, a: str, b: str) -> Pair:
    return await backend.get(a), await backend.get(b)


def _like(pair: Pair, *ids: str) -> Pair:
    """Return the two tasks of the first round with the ids and payloads of another round."""
    a, b = (
        None if task is None else replace(task, id=task_id, payload=new_task(task_id).payload)
        for task, task_id in zip(pair, ids, strict=True)
    )
    return a, b


def _told(pair: Pair) -> str:
    told = []
    for task in pair:
        if task is None:
            told.append("no task")
        else:
            facts = [task.status.upper(), f"attempts {task.attempts}", f"{len(task.failures)} failures"]
            facts += [
                f"{name}={getattr(task, name)}"
                for name in ("available_at", "started_at", "lease_expires_at", "finished_at", "value")
                if getattr(task, name) is not None
            ]
            told.append(" ".join(facts))
    return f"[{'; '.join(told)}]"


async def _cancelled(what: str, call: Awaitable[object], delay: Delay) -> bool:
    """Start a call, cancel it after a delay, and return whether it completed."""
    running = asyncio.ensure_future(call)
    await delay.pause()
    running.cancel()
    (answer,) = await asyncio.gather(running, return_exceptions=True)
    if isinstance(answer, Violation):
        raise answer
    completed = not isinstance(answer, BaseException)
    expect(
        what,
        completed or isinstance(answer, asyncio.CancelledError),
        expected="its answer, or CancelledError",
        actual=f"{type(answer).__name__}: {shown(str(answer))}",
    )
    return completed


async def _clean_up(backend: Backend, *ids: str) -> None:
    """Leave nothing that the next round could claim or purge."""
    for task_id in ids:
        if await backend.get(task_id) is not None:
            await backend.cancel(task_id, now=NOON)
    await backend.purge(finished_before=_OLD + SECOND, limit=100)


async def _works(backend: Subject, after: str, name: str) -> None:
    await _usable(backend, after, backend.enqueue([new_task(name)]))
    claimed = await _usable(backend, after, backend.claim(now=NOON, limit=5, lease_expires_at=LATER))
    expect_equal(f"the ids that a claim returned after {after}", [task.id for task in claimed], [name])
    await _usable(backend, after, backend.complete(name, 1, value=b"works", now=NOON))
    value = (await stored(backend, name)).value
    expect_equal(f"the value of a task completed after {after}", value, b"works")


async def _usable(backend: Subject, after: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as error:
        raise Violation(
            f"the next call on {backend.name} after {after}",
            expected="its answer",
            actual=f"{type(error).__name__}: {shown(str(error))}",
        ) from error


@check("X1", "A cancelled call takes no other call with it", look="what calls on one handle share: a lock, a batch")
async def a_cancelled_call_leaves_others_alone(lab: Lab) -> None:
    """Of many calls at once on one handle, every third is cancelled: the others return and are stored."""
    backend, observer = await lab.handle(), await lab.handle()
    await lab.put(observer, new_task("witness", available_at=MUCH_LATER))
    for number, delay in enumerate(DELAYS):
        names = [f"task{number}_{index}" for index in range(12)]
        calls = [asyncio.ensure_future(backend.enqueue([new_task(name)])) for name in names]
        reads = [asyncio.ensure_future(backend.get("witness")) for _ in range(3)]
        await delay.pause()
        for call in (*calls[::3], reads[1]):
            call.cancel()
        answers = await asyncio.gather(*calls, *reads, return_exceptions=True)
        await _usable(backend, "some calls were cancelled", backend.get("witness"))
        for index, (name, answer) in enumerate(zip(names, answers, strict=False)):
            what = f"enqueue() of {name} beside calls that were cancelled"
            if isinstance(answer, Violation):
                raise answer
            if isinstance(answer, asyncio.CancelledError) and not index % 3:
                continue
            expect(what, answer is None, expected="its answer", actual=f"{type(answer).__name__}: {answer}")
            await lab.expect_stored(observer, new_task(name), when=f"after {what}")
        found = [answer for index, answer in enumerate(answers[len(names) :]) if index != 1]
        expect_equal(
            "get() beside calls that were cancelled", found, [new_task("witness", available_at=MUCH_LATER)] * 2
        )


@check("X1", "A cancelled connect takes no other with it, and connect works afterwards", look="connect: the attempt")
async def a_cancelled_connect_can_be_repeated(lab: Lab) -> None:
    """Concurrent calls share one attempt: cancelling the one that began it must not cancel the others."""
    witness = await lab.handle()
    await lab.put(witness, new_task("a"))
    for delay in DELAYS:
        alone, shared = lab.unconnected(), lab.unconnected()
        await _cancelled("connect()", alone.connect(), delay)
        await _usable(alone, "a connect() that was cancelled", alone.connect())
        await lab.expect_stored(alone, new_task("a"), when="through a handle whose first connect() was cancelled")

        waiting = [asyncio.ensure_future(shared.connect()) for _ in range(3)]
        cancelled = waiting[len(waiting) // 2 if delay.turns == 1 else 0]
        await delay.pause()
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        for other in waiting:
            if other is not cancelled:
                await _usable(shared, "another connect() was cancelled", other)
        await lab.expect_stored(shared, new_task("a"), when="through a handle of whose connects one was cancelled")
        await alone.close()
        await shared.close()


@check("X1", "A cancelled close can be repeated, and connect works afterwards", look="close: what a cancel leaves open")
async def a_cancelled_close_can_be_repeated(lab: Lab) -> None:
    """With calls in flight, which finish or are refused."""
    witness = await lab.handle()
    await lab.put(witness, new_task("a"))
    for number, delay in enumerate(DELAYS):
        backend = await lab.handle()
        in_flight = asyncio.ensure_future(backend.enqueue([new_task(f"task{number}", available_at=LATER)]))
        await asyncio.sleep(0)
        await _cancelled("close()", backend.close(), delay)
        await _usable(backend, "a close() that was cancelled", backend.close())
        (answer,) = await asyncio.gather(in_flight, return_exceptions=True)
        if isinstance(answer, Violation):
            raise answer
        expect(
            "a call in flight when close() was called, and cancelled",
            answer is None or isinstance(answer, NotConnected),
            expected="its answer, or NotConnected",
            actual=answer,
        )
        if answer is None:
            await lab.expect_stored(witness, new_task(f"task{number}", available_at=LATER), when="after close()")
        await _usable(backend, "a close() that was cancelled, and another", backend.connect())
        await lab.expect_stored(backend, new_task("a"), when="after a cancelled close() and connect()")
        await backend.close()


@check(
    "X1",
    "Many calls at once, of every kind and on several handles, all get their answers",
    look="locks and transactions under load: 'database is locked', deadlocks, one connection for everybody",
)
async def many_calls_at_once_get_on(lab: Lab) -> None:
    """No call fails because of its neighbours; every task is stored, claimed once, and ends once.

    Of calls of one kind that are made together on one handle, each does what it would have done alone.
    """
    first, second = await lab.handle(), await lab.handle()
    await lab.put(first, new_task("witness", available_at=MUCH_LATER))
    names = [f"task{number}" for number in range(50)]
    handles = (first, second)

    async def life(number: int) -> Sequence[Task]:
        backend = handles[number % 2]
        await backend.enqueue([new_task(names[number])])
        claimed = await backend.claim(now=NOON, limit=1, lease_expires_at=NOON + LEASE)
        await backend.get(names[number])
        for task in claimed:
            await backend.extend([(task.id, task.attempts)], lease_expires_at=LATER)
            await backend.complete(task.id, task.attempts, value=task.id.encode(), now=NOON)
        if number % 10 == 0:
            await backend.counts()
            await backend.tasks(limit=5)
            await backend.next_due()
            await backend.expired(now=MUCH_LATER, limit=5)
        return claimed

    answers = await asyncio.gather(*(life(number) for number in range(len(names))), return_exceptions=True)
    claimed = [task.id for tasks in map(_answered, answers) for task in tasks]
    twice = sorted({name for name in claimed if claimed.count(name) > 1})
    expect_equal("the tasks that were claimed twice", twice, [], breaks="C1")
    # A concurrent claim may pass over what an unfinished call is changing: the rest is taken now.
    rest = await first.claim(now=NOON, limit=len(names), lease_expires_at=LATER)
    for task in rest:
        await first.complete(task.id, task.attempts, value=task.id.encode(), now=NOON)
    claimed += [task.id for task in rest]
    expect_equal("the tasks that were claimed", sorted(claimed), sorted(names), breaks="D1")
    for name in names:
        task = await stored(second, name)
        outcome = (task.status, task.attempts, task.value)
        expect_equal(f"(status, attempts, value) of {name}", outcome, (TaskStatus.SUCCESS, 1, name.encode()))
    await expect_each_as_alone(lab)


def _answered(answer: Sequence[Task] | BaseException) -> Sequence[Task]:
    if isinstance(answer, Violation):
        raise answer
    if isinstance(answer, BaseException):
        raise Violation(
            "one of many calls at once",
            expected="its answer",
            actual=f"{type(answer).__name__}: {answer}",
            # Each outcome is that of a claim of its own: it can be refused only if somebody else had the task as well.
            breaks="C1" if isinstance(answer, StaleClaim) else None,
        ) from answer
    return answer
