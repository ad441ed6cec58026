"""The layer interruptions: each call cancelled at each of its awaits, and then the state before it or after it."""

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from taskqueue import Task
from taskqueue_conformance.check import check
from taskqueue_conformance.checks.schedules import accepted_writes, mixed_calls
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.linearization import same_refusal, told
from taskqueue_conformance.model import Model
from taskqueue_conformance.recording import REFUSALS, Recorder
from taskqueue_conformance.stage import Stage
from taskqueue_conformance.stepper import Stepper, Strand
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, shown

SECOND: Final = timedelta(seconds=1)
LATER: Final = NOON + timedelta(hours=1)
LONGEST_DELAY_S: Final = 0.002
"""The longest of the small delays, in seconds: about as long as a job takes in a thread."""
SETTLED_S: Final = 0.005
"""How long nothing may land any more at the end, in seconds."""
WITNESS: Final = new_task("witness", available_at=LATER)


class Moment(StrEnum):
    """When, around its k-th await, a call is cancelled."""

    AT_ONCE = "at once"
    A_LITTLE_LATER = "a little later"
    TWICE = "at once, and again while it cleans up"
    READY = "when what it awaited was there"


Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A call on the tasks of one round, and what must come before it."""

    before: Callable[[str, str], Sequence[Call]]
    call: Callable[[str, str], Call]


def _enqueue(*task_ids: str, **changes: Any) -> Call:
    return "enqueue", {"tasks": [new_task(task_id, **changes) for task_id in task_ids]}


_CLAIM: Final[Call] = ("claim", {"now": NOON, "limit": 100, "lease_expires_at": NOON + LEASE})


def _running(a: str, b: str) -> Sequence[Call]:
    return [_enqueue(a, b), _CLAIM]


def _waiting(a: str, b: str) -> Sequence[Call]:
    return [_enqueue(a, b, available_at=LATER)]


def _ended(a: str, b: str) -> Sequence[Call]:
    cancels = [("cancel", {"task_id": a, "now": NOON - SECOND}), ("cancel", {"task_id": b, "now": NOON - 2 * SECOND})]
    return [*_waiting(a, b), *cancels]


def _fail(task_id: str, **changes: Any) -> Call:
    if_expired = changes.pop("if_expired", False)
    return "fail", {"task_id": task_id, "attempt": 1, "failure": new_failure(**changes), "if_expired": if_expired}


WRITES: Final[Mapping[str, Plan]] = {
    "enqueue": Plan(lambda _a, _b: [], lambda a, b: _enqueue(a, b, available_at=LATER)),
    "claim": Plan(lambda a, b: [_enqueue(a, b)], lambda _a, _b: _CLAIM),
    "extend": Plan(_running, lambda a, b: ("extend", {"claims": [(a, 1), (b, 1)], "lease_expires_at": LATER})),
    "complete": Plan(
        _running, lambda a, _: ("complete", {"task_id": a, "attempt": 1, "value": b"value", "now": NOON + SECOND})
    ),
    "fail": Plan(_running, lambda a, _: _fail(a)),
    "fail with a retry": Plan(_running, lambda a, _: _fail(a, retry_at=LATER)),
    "fail if expired": Plan(_running, lambda a, _: _fail(a, failed_at=LATER, retry_at=LATER, if_expired=True)),
    "cancel a waiting task": Plan(_waiting, lambda a, _: ("cancel", {"task_id": a, "now": NOON + SECOND})),
    "cancel a running task": Plan(_running, lambda a, _: ("cancel", {"task_id": a, "now": NOON + SECOND})),
    "purge": Plan(_ended, lambda _a, _b: ("purge", {"finished_before": NOON, "limit": 10})),
}
"""Every way to change a store."""

READS: Final[Mapping[str, Plan]] = {
    "get": Plan(_running, lambda a, _: ("get", {"task_id": a})),
    "tasks": Plan(_running, lambda _a, _b: ("tasks", {"limit": 10})),
    "counts": Plan(_running, lambda _a, _b: ("counts", {})),
    "next_due": Plan(_running, lambda _a, _b: ("next_due", {})),
    "expired": Plan(_running, lambda _a, _b: ("expired", {"now": LATER, "limit": 10})),
}
"""Every way to read a store; they change nothing, but they can leave something behind."""


@check(
    "X1",
    "A call that is cancelled at its k-th await has happened or has not, and nothing lands later",
    layer="interruptions",
    cases={**WRITES, **READS},
    look="what becomes of a transaction, a lock or a thread's job when CancelledError comes at this await",
)
async def cancelled_at_every_await(lab: Lab, plan: Plan) -> None:
    """Afterwards the other handle repeats the call in some rounds, as a caller does that got no answer.

    At the first await there is a round with and one without: a repetition hides what lands late.
    """
    rounds = await _Rounds.begin(lab, plan)
    for moment in Moment:
        for point in range(1, lab.effort.cancel_points + 1):
            made = False
            for repeat in (False, True) if point == 1 else (bool(point % 2),):
                interruption = _Interruption(moment, point, delay=lab.rng.uniform(0, LONGEST_DELAY_S))
                await rounds.play(interruption, repeat=repeat)
                made |= interruption.made
            if not made:
                break
    await rounds.finish()


@check(
    "X1",
    "A caller that got no answer repeats the call at once: it has happened once in the end",
    layer="interruptions",
    cases=WRITES,
    look="whether a cancelled call can still take effect after the next call on its handle has returned",
)
async def repeated_after_a_lost_answer(lab: Lab, plan: Plan) -> None:
    """On the same handle: the repeated call is what settles the first."""
    rounds = await _Rounds.begin(lab, plan)
    for moment in (Moment.AT_ONCE, Moment.READY):
        for point in range(1, lab.effort.cancel_points + 1):
            interruption = _Interruption(moment, point)
            await rounds.play_and_repeat(interruption)
            if not interruption.made:
                break
    await rounds.finish()


@check(
    "X1",
    "Calls that are cancelled beside others take nothing from these, and are half done never",
    layer="interruptions",
    look="what calls on one handle share: a rollback that takes other calls' writes along, a batch, a lock",
)
async def cancelled_beside_others(lab: Lab) -> None:
    """Random calls on two handles, of which one or two are cancelled at some await; the history must be explainable."""
    stage = Stage(lab, handles=2)
    for _ in range(lab.effort.disturbances):
        await stage.clear()
        actors = await lab.rng.choice((mixed_calls, accepted_writes))(stage)
        await stage.play(*actors, stepper=Stepper(lab.rng, watch=_Disturbance(lab.rng, stage.recorder)))
    lab.notes.update(
        schedules=lab.effort.disturbances,
        required_schedules=lab.effort.disturbances,
        suspensions=stage.suspensions,
    )


class _Interruption:
    """Watches one call and cancels it at its k-th await; its own tasks' awaits are counted with its own.

    Attributes:
        made: Whether the call came that far.
    """

    def __init__(self, moment: Moment, point: int, *, delay: float = 0.0) -> None:
        self.made = False
        self._moment = moment
        self._point = point
        self._delay = delay
        self._seen = 0
        self._again = moment is Moment.TWICE

    def __str__(self) -> str:
        return f"cancelled at its await number {self._point}, {self._moment}"

    def __call__(self, strand: Strand) -> None:
        task = strand.call.task
        if strand.ready is not (self._moment is Moment.READY) or task is None:
            return
        self._seen += 1
        if self._seen == self._point:
            self.made = True
            if self._moment is Moment.A_LITTLE_LATER:
                asyncio.get_running_loop().call_later(self._delay, task.cancel)
            else:
                task.cancel()
        elif self.made and self._again:
            self._again = False
            task.cancel()


class _Disturbance:
    """Cancels one or two calls of a schedule, wherever they are."""

    LIKELIHOOD: Final = 0.25
    MOST: Final = 2

    def __init__(self, rng: random.Random, recorder: Recorder) -> None:
        self._rng = rng
        self._recorder = recorder
        self._left = self.MOST

    def __call__(self, strand: Strand) -> None:
        task = strand.call.task
        if task is None or task not in self._recorder.under_way or not self._left:
            return
        if self._rng.random() < self.LIKELIHOOD:
            self._left -= 1
            task.cancel()


class _Rounds:
    """Interrupts one kind of call again and again on one store, which the model follows.

    The tasks of all rounds stay, so that what lands late is seen in a later round.
    """

    def __init__(self, lab: Lab, plan: Plan, victim: Subject, observer: Subject) -> None:
        self._lab = lab
        self._plan = plan
        self._victim = victim
        self._observer = observer
        self._model = Model()
        self._count = 0
        self._landed = 0
        self._cancelled = 0
        self._before = ""

    @classmethod
    async def begin(cls, lab: Lab, plan: Plan) -> "_Rounds":
        rounds = cls(lab, plan, await lab.handle(), await lab.handle())
        await lab.put(rounds._observer, WITNESS)
        rounds._model.enqueue([WITNESS])
        return rounds

    async def play(self, interruption: _Interruption, *, repeat: bool) -> None:
        """Prepare two tasks, interrupt the call, settle, compare with before and after, and perhaps repeat it."""
        call = await self._prepare()
        what, returned = await self._interrupt(call, interruption)
        await _usable(self._victim, what, self._victim.get(WITNESS.id))
        after = copy.deepcopy(self._model)
        _applied(after, call)
        await self._compare(what, [after] if returned else [self._model, after])
        if repeat:
            expected = _applied(self._model, call)
            answer = await _answered(self._observer, what, call)
            _expect_answer(f"{call[0]}() through the other handle, when {what}", call[0], answer, expected)

    async def play_and_repeat(self, interruption: _Interruption) -> None:
        """Prepare two tasks, interrupt the call, and repeat it: its answer must fit before or after."""
        call = await self._prepare()
        what, returned = await self._interrupt(call, interruption)
        answer = await _answered(self._victim, what, call)
        unhappened, happened = copy.deepcopy(self._model), copy.deepcopy(self._model)
        _applied(happened, call)
        first, second = _applied(unhappened, call), _applied(happened, call)
        method = call[0]
        if returned or not _same_answer(method, answer, first):
            _expect_answer(f"the repeated {method}(), when {what}", method, answer, second, or_else=first)
        self._model = happened
        await self._compare(f"{what} and repeated", [happened])

    async def finish(self) -> None:
        """Use both handles, and compare once more some time later."""
        for handle in (self._victim, self._observer):
            task = new_task(f"probe of {handle.name}", available_at=NOON - LEASE)
            await _usable(handle, "all the cancelled ones", handle.enqueue([task]))
            self._model.enqueue([task])
            arguments: Mapping[str, Any] = dict(_CLAIM[1]) | {"limit": 1}
            claimed = await _usable(handle, "all the cancelled ones", handle.claim(**arguments))
            expect_equal("the claimed task", [*claimed], self._model.claim(**arguments))
            outcome: Mapping[str, Any] = {"value": b"works", "now": NOON}
            await _usable(handle, "all the cancelled ones", handle.complete(task.id, 1, **outcome))
            self._model.complete(task.id, 1, **outcome)
        await asyncio.sleep(SETTLED_S)
        await self._compare("all had been cancelled and some time had passed", [self._model])
        self._lab.notes.update(rounds=self._count, cancelled=self._cancelled, landed=self._landed)

    async def _prepare(self) -> Call:
        self._count += 1
        a, b = f"a{self._count}", f"b{self._count}"
        # Now and then through the handle that was cancelled: it must work as before.
        handle = self._victim if self._count % 2 else self._observer
        for method, arguments in self._plan.before(a, b):
            await _usable(handle, "an earlier one was cancelled", getattr(handle, method)(**arguments))
            getattr(self._model, method)(**arguments)
        return self._plan.call(a, b)

    async def _interrupt(self, call: Call, interruption: _Interruption) -> tuple[str, bool]:
        """Make the call; return what happened, for messages, and whether it returned."""
        method, arguments = call
        stepper = Stepper(self._lab.rng, watch=interruption)
        (answer,) = await stepper.run(getattr(self._victim, method)(**arguments))
        if isinstance(answer, Violation):
            raise answer
        cancelled = isinstance(answer, asyncio.CancelledError)
        what = f"{method}() was {interruption}" if interruption.made else f"{method}() had run to its end"
        if not interruption.made and self._before:
            what += f", after one that was {self._before}"
        self._before = str(interruption)
        expect(
            f"the outcome, when {what}",
            cancelled or not isinstance(answer, BaseException),
            expected="the answer, or CancelledError",
            actual=f"{type(answer).__name__}: {shown(str(answer))}",
        )
        self._cancelled += cancelled
        if not cancelled:
            expected = _applied(copy.deepcopy(self._model), call)
            _expect_answer(f"the answer of {method}(), when {what}", method, answer, expected)
        return what, not cancelled

    async def _compare(self, what: str, allowed: Sequence[Model]) -> None:
        """Read everything through both handles; it must be one of the models, which is followed from then on."""
        seen = await asyncio.gather(
            _usable(self._victim, what, self._victim.tasks(limit=1000)),
            _usable(self._observer, what, self._observer.tasks(limit=1000)),
        )
        for handle, (listed, _) in zip((self._victim, self._observer), seen, strict=True):
            tasks = {task.id: task for task in listed}
            fitting = [model for model in allowed if model.stored == tasks]
            if fitting:
                allowed = fitting[:1]
                continue
            differing = sorted(
                (
                    {task_id for task_id in {*tasks, *model.stored} if tasks.get(task_id) != model.stored.get(task_id)}
                    for model in allowed
                ),
                key=len,
            )
            names = sorted(set().union(*differing))
            raise Violation(
                f"the store, read through {handle.name}, when {what}",
                expected="\nor ".join(dict.fromkeys(_facts(names, model.stored) for model in allowed)),
                actual=_facts(names, tasks),
            )
        self._landed += allowed[0].stored != self._model.stored
        self._model = allowed[0]


def _applied(model: Model, call: Call) -> Any:
    """Make a call on the model; return its answer, or the refusal."""
    method, arguments = call
    try:
        if method == "purge":
            gone = model.purgeable(finished_before=arguments["finished_before"])[: arguments["limit"]]
            model.forget(task.id for task in gone)
            return len(gone)
        if method == "tasks":
            return model.tasks()[: arguments["limit"]]
        if method == "expired":
            return model.expired(now=arguments["now"])[: arguments["limit"]]
        if method == "get":
            return model.stored.get(arguments["task_id"])
        return getattr(model, method)(**arguments)
    except REFUSALS as refusal:
        return refusal


async def _answered(handle: Subject, after: str, call: Call) -> Any:
    method, arguments = call
    try:
        return await getattr(handle, method)(**arguments)
    except REFUSALS as refusal:
        return refusal
    except Violation:
        raise
    except Exception as error:
        raise _unusable(handle, after, error) from error


def _same_answer(method: str, answer: Any, expected: Any) -> bool:
    if isinstance(answer, Exception) or isinstance(expected, Exception):
        return (
            isinstance(answer, Exception) and isinstance(expected, Exception) and same_refusal(answer, expected)
        )  # fmt: skip
    if method == "tasks":
        answer = answer[0]
    if method in {"tasks", "claim", "expired"}:
        # Ties in expired() are free.
        return sorted(task.id for task in answer) == sorted(task.id for task in expected)
    return bool((dict(answer) if isinstance(answer, Mapping) else answer) == expected)


def _expect_answer(what: str, method: str, answer: Any, expected: Any, *, or_else: Any = None) -> None:
    if not _same_answer(method, answer, expected):
        wanted = _told(expected) if or_else is None or or_else == expected else f"{_told(expected)} or {_told(or_else)}"
        raise Violation(what, expected=wanted, actual=_told(answer))


def _told(answer: Any) -> str:
    return told(answer) if isinstance(answer, Exception) else f"the answer {shown(answer)}"


def _facts(names: Sequence[str], tasks: Mapping[str, Task]) -> str:
    """Tell what is stored under some ids, with the fields that a call sets."""
    told_of = []
    for name in names:
        task = tasks.get(name)
        if task is None:
            told_of.append(f"no task {name}")
            continue
        fields = ("attempts", "lease_expires_at", "finished_at", "value")
        facts = ", ".join(f"{field}={getattr(task, field)}" for field in fields if getattr(task, field) is not None)
        told_of.append(f"{name} {task.status.upper()} ({facts}, {len(task.failures)} failures)")
    return "; ".join(told_of) or "the tasks in another order"


async def _usable(handle: Subject, after: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Violation:
        raise
    except Exception as error:
        raise _unusable(handle, after, error) from error


def _unusable(handle: Subject, after: str, error: Exception) -> Violation:
    return Violation(
        f"the next call on {handle.name}, when {after}",
        expected="its answer",
        actual=f"{type(error).__name__}: {shown(str(error))}",
    )
