"""Calls that are made at once on one handle, of which some have to be refused.

Backends put such calls into one statement, which has guards and answers apart from those of a statement for one call.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from taskqueue import Backend, Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskQueueError, TaskStatus
from taskqueue_conformance.checks._shared import HOUR, after_cancel, after_complete, after_fail, outcomes
from taskqueue_conformance.checks._states import LATER, LIVE, every_state
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect, expect_equal, expect_task

_LOOK: Final = "the statement for several calls at once: its guards, and which answer goes to which call"
_BETWEEN: Final = NOON + LEASE
"""When of the two leases of :func:`every_state` one has run out."""


def _at(number: int) -> datetime:
    return LATER + timedelta(microseconds=number)


def _failure(attempt: int, number: int, **changes: Any) -> Failure:
    return new_failure(attempt, **({"error": f"of call {number}", "failed_at": _at(number)} | changes))


_Call = Callable[[Backend, str, int, int], Awaitable[object]]
_After = Callable[[Task, int], Task]
_OUTCOMES: Final[Mapping[str, tuple[_Call, _After, str]]] = {
    "complete": (
        lambda backend, name, attempt, n: backend.complete(name, attempt, value=b"of call %d" % n, now=_at(n)),
        lambda task, n: after_complete(task, value=b"of call %d" % n, now=_at(n)),
        "V1",
    ),
    "fail": (
        lambda backend, name, attempt, n: backend.fail(name, attempt, _failure(attempt, n)),
        lambda task, n: after_fail(task, _failure(task.attempts, n)),
        "R2",
    ),
    "fail with a retry": (
        lambda backend, name, attempt, n: backend.fail(name, attempt, _failure(attempt, n, retry_at=_at(n) + HOUR)),
        lambda task, n: after_fail(task, _failure(task.attempts, n, retry_at=_at(n) + HOUR)),
        "R2",
    ),
    "fail if expired": (
        lambda backend, name, attempt, n: backend.fail(
            name, attempt, _failure(attempt, n, failed_at=_BETWEEN), if_expired=True
        ),
        lambda task, n: after_fail(task, _failure(task.attempts, n, failed_at=_BETWEEN)),
        "R2",
    ),
}


async def expect_each_as_alone(lab: Lab) -> None:
    """Check every method that changes single tasks, in a store of its own each time."""
    for kind in _OUTCOMES:
        await _outcomes(lab, kind)
    await _cancels(lab)
    await _extends(lab)
    await _enqueues(lab)


async def _outcomes(lab: Lab, kind: str) -> None:
    """Record outcomes for every attempt of a task in every state, and of one that there is not."""
    call, after, breaks = _OUTCOMES[kind]
    backend = await lab.handle(store=lab.new_store())
    tasks = await every_state(lab, backend)
    claims = [(name, attempt) for name, task in tasks.items() for attempt in range(1, task.attempts + 2)]
    claims.insert(len(claims) // 2, ("unknown", 1))
    answers = await _together(*(call(backend, name, attempt, n) for n, (name, attempt) in enumerate(claims)))
    expected = dict(tasks)
    for n, ((name, attempt), answer) in enumerate(zip(claims, answers, strict=True)):
        task = tasks.get(name)
        if task is None:
            _expect_refusal(f"{kind} of a task that there is not", answer, TaskNotFound, "L3")
            continue
        what = f"{kind} of attempt {attempt} of {name!r}, at attempt {task.attempts}"
        lease = task.lease_expires_at
        if task.status is not TaskStatus.RUNNING:
            _expect_refusal(what, answer, StaleClaim, "L1")
        elif attempt != task.attempts:
            _expect_refusal(what, answer, StaleClaim, "L2")
        elif kind == "fail if expired" and lease is not None and lease > _BETWEEN:
            _expect_refusal(what, answer, StaleClaim, "D3")
        else:
            expected[name] = after(task, n)
            expect_equal(what, answer, None if kind == "complete" else expected[name], breaks=breaks, look=_LOOK)
    await _expect_stored(backend, expected, after=kind, breaks=breaks)


async def _cancels(lab: Lab) -> None:
    backend = await lab.handle(store=lab.new_store())
    tasks = await every_state(lab, backend)
    names = [*tasks, "unknown"]
    answers = await _together(*(backend.cancel(name, now=_at(n)) for n, name in enumerate(names)))
    expected = dict(tasks)
    _expect_refusal("cancel of a task that there is not", answers.pop(), TaskNotFound, "L3")
    for n, (name, answer) in enumerate(zip(tasks, answers, strict=True)):
        expect_equal(f"cancel of {name!r}", answer, name in LIVE, breaks="L1", look=_LOOK)
        if name in LIVE:
            expected[name] = after_cancel(tasks[name], now=_at(n))
    await _expect_stored(backend, expected, after="cancel", breaks="L1")


async def _extends(lab: Lab) -> None:
    backend = await lab.handle(store=lab.new_store())
    tasks = await every_state(lab, backend)
    claims = [(name, attempt) for name, task in tasks.items() for attempt in range(1, task.attempts + 2)]
    answers = await _together(
        *(backend.extend([claim, ("unknown", 1)], lease_expires_at=_at(n)) for n, claim in enumerate(claims))
    )
    expected = dict(tasks)
    for n, ((name, attempt), answer) in enumerate(zip(claims, answers, strict=True)):
        task = tasks[name]
        held = task.status is TaskStatus.RUNNING and attempt == task.attempts
        what = f"the claims in the answer of extend for attempt {attempt} of {name!r}, at attempt {task.attempts}"
        still: Any = answer
        expect(what, isinstance(still, Sequence), expected="claims", actual=still, breaks="L2", look=_LOOK)
        expect_equal(
            what, [tuple(claim) for claim in still], [(name, attempt)] if held else [], breaks="L2", look=_LOOK
        )
        if held:
            expected[name] = replace(task, lease_expires_at=_at(n))
    await _expect_stored(backend, expected, after="extend", breaks="L2")


async def _enqueues(lab: Lab) -> None:
    """Lists of tasks that have nothing in common, between some that must be refused as a whole."""
    backend = await lab.handle(store=lab.new_store())
    tasks = await every_state(lab, backend)
    moved = new_task(
        "moved",
        attempts=1,
        started_at=NOON,
        max_retries=7,
        available_at=_at(5),
        failures=(new_failure(1, retry_at=_at(5)),),
    )
    good = [new_task("late", available_at=_at(1)), moved, new_task("early", enqueued_at=NOON, available_at=NOON)]
    lists = [
        [good[0]],
        [new_task("beside"), new_task("success")],
        [good[1], good[2]],
        [new_task("twice"), new_task("other"), new_task("twice")],
        [new_task("plain", max_retries=0)],
        [new_task("new")],
    ]
    answers = await _together(*map(backend.enqueue, lists))
    for answer, offending in zip(answers, [(), ("success",), (), ("twice",), (), ("new",)], strict=True):
        what = f"enqueue of a list with {len(offending)} known ids"
        if offending:
            _expect_refusal(what, answer, TaskExists, "L1")
            carried = answer.task_ids if isinstance(answer, TaskExists) else ()
            expect_equal(f"the ids that TaskExists carries after {what}", tuple(carried), offending, breaks="L1")
        else:
            expect_equal(what, answer, None, breaks="API", look=_LOOK)
    expected = {**tasks, **{task.id: task for task in (*good, *lists[4])}}
    await _expect_stored(backend, expected, after="enqueue", breaks=None)
    for name in ("beside", "twice", "other"):
        expect_equal(f"get({name!r}) after enqueue was refused", await backend.get(name), None, breaks="L1", look=_LOOK)


async def _together(*calls: Awaitable[object]) -> list[object]:
    return await outcomes(*calls, refusals=(StaleClaim, TaskNotFound, TaskExists), look=_LOOK)


def _expect_refusal(what: str, answer: object, error: type[TaskQueueError], breaks: str) -> None:
    expect(
        f"{what}, beside other calls",
        isinstance(answer, error),
        expected=error.__name__,
        actual=answer,
        breaks=breaks,
        look=_LOOK,
    )


async def _expect_stored(backend: Backend, expected: Mapping[str, Task], *, after: str, breaks: str | None) -> None:
    for name, task in expected.items():
        expect_task(f"get({name!r}) after {after} beside other calls", await backend.get(name), task, breaks=breaks)
