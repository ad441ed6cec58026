"""The layer kills: processes that SIGKILL ends in the middle of a call, and what a new process finds then.

SIGKILL ends a process, not the machine: what the operating system has taken over is written all the same. So nothing in
here says anything about a loss of power.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from taskqueue import Task, TaskStatus
from taskqueue_conformance.check import NotVerified, check
from taskqueue_conformance.checks._children import answer, apply, witness
from taskqueue_conformance.child import END_OF_TIME, Acknowledged, Call, Raised, Seen, puppet
from taskqueue_conformance.children import Child, ChildDied
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, new_failure, new_task
from taskqueue_conformance.model import Model
from taskqueue_conformance.violation import Violation, differing_fields, expect, expect_equal, shown

SECOND: Final = timedelta(seconds=1)
LOOK_AT_COMMIT: Final = "one transaction for each call, committed before the call returns"
LOOK_AT_REMAINS: Final = "what a process that was killed leaves behind: locks, half-written files, a half-made schema"
_SETTLING_S: Final = 0.3
_DRAINING_S: Final = 10.0


def _instant(number: int) -> datetime:
    """Return the instant around which the round of this number happens: earlier than those of all rounds before."""
    return NOON - number * SECOND


def _ids(number: int) -> tuple[str, str]:
    return f"{number}a", f"{number}b"


def _tasks(number: int) -> list[Task]:
    due = [new_task(task_id, available_at=_instant(number)) for task_id in _ids(number)]
    return [*due, new_task(f"{number} kept", available_at=NOON + timedelta(days=1))]


def _enqueued(number: int) -> list[Call]:
    return [Call("enqueue", (_tasks(number),))]


def _claimed(number: int) -> list[Call]:
    return [*_enqueued(number), _claim(number)]


def _completed(number: int) -> list[Call]:
    at = _instant(number)
    ended = [Call("complete", (task_id, 1), {"value": b"done", "now": at}) for task_id in _ids(number)]
    return [*_claimed(number), *ended]


def _claim(number: int) -> Call:
    at = _instant(number)
    return Call("claim", (), {"now": at, "limit": 2, "lease_expires_at": at + LEASE})


def _fail(number: int, *, retry_at: datetime | None, **options: Any) -> Call:
    failure = new_failure(1, failed_at=_instant(number) + LEASE, retry_at=retry_at)
    return Call("fail", (_ids(number)[0], 1, failure), options)


@dataclass(frozen=True, slots=True)
class Scene:
    """A call to kill, and the calls before it that are acknowledged in the same process.

    Rounds are numbered, and each has tasks of its own: two that are due, and one that no call touches.
    """

    call: Callable[[int], Call]
    before: Callable[[int], Sequence[Call]] = _claimed


LATER: Final = NOON + timedelta(hours=1)

SCENES: Final[Mapping[str, Scene]] = {
    "enqueue": Scene(
        lambda n: Call("enqueue", ([new_task(f"{n} {x}", available_at=LATER) for x in "xyz"],)), before=_enqueued
    ),
    "claim": Scene(_claim, before=_enqueued),
    "extend": Scene(lambda n: Call("extend", ([(each, 1) for each in _ids(n)],), {"lease_expires_at": LATER})),
    "complete": Scene(lambda n: Call("complete", (_ids(n)[0], 1), {"value": b"value", "now": _instant(n)})),
    "fail with a retry": Scene(lambda n: _fail(n, retry_at=LATER)),
    "fail for good": Scene(lambda n: _fail(n, retry_at=None)),
    "fail an expired claim": Scene(lambda n: _fail(n, retry_at=LATER, if_expired=True)),
    "cancel a pending task": Scene(lambda n: Call("cancel", (_ids(n)[0],), {"now": _instant(n)}), before=_enqueued),
    "cancel a running task": Scene(lambda n: Call("cancel", (_ids(n)[0],), {"now": _instant(n)})),
    "purge": Scene(
        lambda n: Call("purge", (), {"finished_before": _instant(n) + MICROSECOND, "limit": 10}), before=_completed
    ),
}

Stored = Mapping[str, Task | None]


@dataclass(slots=True)
class Round:
    """One process that was killed in one call.

    Attributes:
        call: The call.
        how: When it was killed, for the message.
        before: The tasks of this round before the call, as the model has them.
        after: The same after it.
        acknowledged: Whether the call had returned.
        happened: Whether its effect has been seen.
    """

    call: Call
    how: str
    before: Stored
    after: Stored
    acknowledged: bool = False
    happened: bool = False


@dataclass(slots=True)
class Tally:
    """What the kills of one check showed. ``before`` and ``after`` count only calls that had not returned."""

    kills: int = 0
    acknowledged: int = 0
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class Victims:
    """Processes that work on one store, one after the other, and are killed in a call.

    Each first looks at what the one before has left behind: every round's tasks must be as the model has them before
    the call or after it.
    """

    lab: Lab
    scene: Scene
    rounds: list[Round] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    async def survivor(self) -> Child:
        """Return a new process that has connected, and in which everything was as it must be."""
        what = f"connect() in a new process{self._after()}"
        child = await self.lab.child(puppet, self.lab.store)
        await _answer(child.receive(what=what), what)
        await self._inspect(child)
        return child

    async def sacrifice(self, *, fatal: int | None = None, delay_s: float | None = None) -> Acknowledged | None:
        """Let a new process make the call and be killed; return what it said if the call had returned by then.

        Args:
            fatal: Just before which callback of the event loop, counted from the beginning of the call.
            delay_s: How many seconds after its beginning. If neither is given, or the call is quicker than that, the
                process dies as soon as the call has returned.
        """
        child = await self.survivor()
        number = len(self.rounds) + 1
        round_ = _expectations(self.scene, number)
        round_.how = _how(fatal, delay_s)
        for call in self.scene.before(number):
            what = f"{call.method}() in a new process{self._after()}"
            await _answer(child.ask("call", call, what=what), what)
        self.rounds.append(round_)
        said = await _fate(child, round_.call, fatal, delay_s)
        self.tally.kills += 1
        if said is not None:
            round_.acknowledged = round_.happened = True
            round_.how = "after the acknowledgement"
        self.tally.acknowledged += round_.acknowledged
        return said

    def _after(self) -> str:
        return f" after a SIGKILL {self.rounds[-1].how} of {self.rounds[-1].call.method}()" if self.rounds else ""

    async def _inspect(self, child: Child) -> None:
        """Compare everything with the model, a second time after a while if a server may still be busy with it."""
        try:
            self._compare(await self._seen(child))
        except Violation:
            await asyncio.sleep(_SETTLING_S)
            self._compare(await self._seen(child))
        if self.rounds and not (last := self.rounds[-1]).acknowledged:
            self.tally.after += last.happened
            self.tally.before += not last.happened

    async def _seen(self, child: Child) -> Seen:
        what = f"reading the store{self._after()}"
        seen: Seen = await _answer(child.ask("look", what=what), what)
        return seen

    def _compare(self, seen: Seen) -> None:
        expected: dict[str, Task] = {}
        for round_ in self.rounds:
            found = {task_id: seen.tasks.get(task_id) for task_id in round_.after}
            if not round_.happened and found == round_.after:
                round_.happened = True
            wanted = round_.after if round_.happened else round_.before
            if found != wanted:
                raise _violation(round_, found)
            expected.update((task_id, task) for task_id, task in wanted.items() if task is not None)
        after = self._after()
        surplus = sorted(seen.tasks.keys() - expected.keys())
        expect(f"the ids in the store{after}", not surplus, expected="no others", actual=surplus, breaks="D2")
        self._compare_reads(seen, list(expected.values()), after)

    @staticmethod
    def _compare_reads(seen: Seen, expected: Sequence[Task], after: str) -> None:
        counts = {status: sum(task.status is status for task in expected) for status in TaskStatus}
        expect_equal(f"counts(){after}", dict(seen.counts), counts, breaks="D2")
        running = [task for task in expected if task.status is TaskStatus.RUNNING]
        ids = sorted(task.id for task in running)
        expect_equal(f"the ids in expired() at the end of time{after}", sorted(seen.expired), ids, breaks="D3")
        due = [task.available_at for task in expected if task.status is TaskStatus.PENDING]
        due += [task.lease_expires_at for task in running if task.lease_expires_at is not None]
        expect_equal(f"next_due(){after}", seen.next_due, min(due, default=None), breaks="D2")


def _expectations(scene: Scene, number: int) -> Round:
    model = Model()
    for call in scene.before(number):
        apply(model, call)
    before = dict(model.stored)
    call = scene.call(number)
    apply(model, call)
    ids = [*dict.fromkeys([*before, *model.stored])]
    return Round(
        call=call,
        how="",
        before={task_id: before.get(task_id) for task_id in ids},
        after={task_id: model.stored.get(task_id) for task_id in ids},
    )


def _violation(round_: Round, found: Stored) -> Violation:
    """Say which task is wrong, and what that breaks."""
    options = [round_.after] if round_.acknowledged else [round_.before, round_.after]
    # A task that is neither; or, where the state is a mixture, one that does not fit the others.
    wrong = next(
        (task_id for task_id in found if all(found[task_id] != option[task_id] for option in options)),
        next(task_id for task_id in found if found[task_id] != options[0][task_id]),
    )
    allowed = [*dict.fromkeys(option[wrong] for option in options)]
    wanted, got = allowed[-1], found[wrong]
    acknowledged = len(allowed) == 1
    if wanted is not None and got is not None and _uncounted(got, wanted, acknowledged=acknowledged):
        breaks = "R1"
    elif wanted is not None and wanted.status is TaskStatus.RUNNING and _lost(got):
        breaks = "D3"
    else:
        breaks = "D1" if acknowledged else "D2"
    names = sorted({name for option in allowed for name in differing_fields(option, got)})
    mixture = ", as the other tasks of the call are or are not" if got in allowed else ""
    return Violation(
        f"task {wrong!r} in a new process after a SIGKILL {round_.how} of {shown(str(round_.call))}",
        expected=" or ".join(_told(option, names) for option in allowed) + mixture,
        actual=_told(got, names),
        breaks=breaks,
        look="claim: attempts is stored together with the status" if breaks == "R1" else LOOK_AT_COMMIT,
    )


def _told(task: Task | None, names: Sequence[str]) -> str:
    if task is None:
        return "nothing under this id"
    return ", ".join(f"{name}={shown(getattr(task, name))}" for name in names) or shown(task)


def _lost(task: Task | None) -> bool:
    """Whether a task that should be RUNNING cannot be recovered."""
    return task is None or (task.status is TaskStatus.RUNNING and task.lease_expires_at is None)


def _uncounted(got: Task, wanted: Task, *, acknowledged: bool) -> bool:
    """Whether an attempt is missing that happened: it was acknowledged, or the task is RUNNING by it."""
    return got.attempts < wanted.attempts and (acknowledged or got.status is TaskStatus.RUNNING)


def _how(fatal: int | None, delay_s: float | None) -> str:
    if fatal is not None:
        return f"at the callback {fatal}"
    return "after the acknowledgement" if delay_s is None else f"{delay_s * 1e6:.0f} us after the beginning"


def _sleep(seconds: float) -> None:
    """Wait exactly; a sleep would be too coarse, and nothing else is going on."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def _fate(child: Child, call: Call, fatal: int | None, delay_s: float | None) -> Acknowledged | None:
    """Let a child make a call and be killed; return what it said if the call had returned by then."""
    what = f"{call.method}() in a process that is about to be killed"
    said: Any = None
    child.send("suffer", call, fatal)
    try:
        await child.receive(what=what)
        if delay_s is not None:
            _sleep(delay_s)
            child.kill()
        said = await _answer(child.receive(what=what), what)
        await child.receive(what=what)
    except ChildDied as death:
        expect_equal(f"how the process with {what} ended", death.status, -signal.SIGKILL)
    return said if isinstance(said, Acknowledged) else None


def _threats(lab: Lab, measured: Acknowledged) -> Iterator[Mapping[str, Any]]:
    """Yield when to kill: at callbacks, the last of them included, then after delays up to the usual duration."""
    callbacks = range(1, measured.callbacks + 1)
    step = max(1, -(-len(callbacks) // lab.effort.kill_callbacks))
    yield from ({"fatal": fatal} for fatal in reversed(callbacks[::-step]))
    delays = lab.effort.kill_delays
    yield from ({"delay_s": (number + 0.5) / delays * measured.seconds} for number in range(delays))


async def _answer(pending: Awaitable[Any], what: str) -> Any:
    """Return the answer; where it is an exception, that is a violation."""
    return await answer(pending, what, breaks="D2", look=LOOK_AT_REMAINS)


@check(
    "D1",
    "What a process wrote is there when SIGKILL ends it as soon as the call has returned",
    layer="kills",
    needs=("durable", "multiprocess"),
    cases=SCENES,
    look="commit before returning, in the call itself",
)
async def acknowledged_is_kept(lab: Lab, scene: Scene) -> None:
    await witness(lab)
    victims = Victims(lab, scene)
    for _ in range(2):
        said = await victims.sacrifice()
        expect("the call", said is not None, expected="an answer", actual="the process ended")
    (await victims.survivor()).end()
    lab.notes["kills"] = victims.tally.kills


@check(
    "D2",
    "A process that SIGKILL ends in the middle of a call leaves the state before it or after it",
    layer="kills",
    needs=("durable", "multiprocess"),
    cases=SCENES,
    look=LOOK_AT_COMMIT,
)
async def before_or_after(lab: Lab, scene: Scene) -> None:
    await witness(lab)
    victims = Victims(lab, scene)
    measured = await victims.sacrifice()
    assert measured is not None  # noqa: S101 - without a threat the call ends, or has raised
    for threat in _threats(lab, measured):
        await victims.sacrifice(**threat)
    survivor = await victims.survivor()
    for delay_s in _more_delays(lab, victims.tally, measured.seconds):
        survivor.end()
        await victims.sacrifice(delay_s=delay_s)
        survivor = await victims.survivor()
    await _drain(survivor, victims)
    tally = victims.tally
    lab.notes |= {"kills": tally.kills, "before": tally.before, "after": tally.after}
    if not (tally.before and tally.after):
        raise NotVerified(
            f"of {tally.kills} kills, {tally.before} showed the state before the call, {tally.after} the state after "
            f"it, and {tally.acknowledged} came after the acknowledgement; both are needed to judge"
        )


def _more_delays(lab: Lab, tally: Tally, usual_s: float) -> Iterator[float]:
    """Draw further delays as long as a before or an after is missing: short ones, or ones about as long as a call."""
    for _ in range(lab.effort.kill_retries):
        if tally.before and tally.after:
            return
        yield lab.rng.uniform(0, 0.5 * usual_s) if not tally.before else lab.rng.uniform(0.3, 1.3) * usual_s


async def _drain(child: Child, victims: Victims) -> None:
    """Recover and finish whatever is left; each task ends, with no more attempts than were seen to be made."""
    attempts = {
        task_id: task.attempts
        for round_ in victims.rounds
        for task_id, task in (round_.after if round_.happened else round_.before).items()
        if task is not None
    }
    deadline = time.monotonic() + _DRAINING_S
    what = "draining the store after kills"
    while True:
        running = await _answer(
            child.ask("call", Call("expired", (), {"now": END_OF_TIME, "limit": 1000}), what=what), what
        )
        await _together(child, [_recovery(task) for task in running], what)
        claim = Call("claim", (), {"now": END_OF_TIME, "limit": 1000, "lease_expires_at": END_OF_TIME})
        claimed = await _answer(child.ask("call", claim, what=what), what)
        for task in claimed:
            attempts[task.id] += 1
            expect_equal(f"attempts of task {task.id!r}", task.attempts, attempts[task.id], breaks="R1")
        done = {"value": b"drained", "now": END_OF_TIME}
        await _together(child, [Call("complete", (task.id, task.attempts), done) for task in claimed], what)
        seen: Seen = await _answer(child.ask("look", what=what), what)
        live = [task for task in seen.tasks.values() if not task.status.ended]
        if not live:
            break
        expect(what, time.monotonic() < deadline, expected="every task ends", actual=live, breaks="D3")
    expect_equal("the ids after draining the store", sorted(seen.tasks), sorted(attempts), breaks="D1")
    for task in seen.tasks.values():
        expect_equal(f"attempts of task {task.id!r} in the end", task.attempts, attempts[task.id], breaks="R1")


def _recovery(task: Task) -> Call:
    failure = new_failure(task.attempts, error="its worker was lost", failed_at=END_OF_TIME, retry_at=LATER)
    return Call("fail", (task.id, task.attempts, failure), {"if_expired": True})


async def _together(child: Child, calls: Sequence[Call], what: str) -> None:
    for call, said in zip(calls, await _answer(child.ask("together", calls, what=what), what), strict=True):
        refused = isinstance(said, Raised)
        expect(f"{shown(str(call))}, {what}", not refused, expected="no exception", actual=said, breaks="D3")


@check(
    "R1",
    "However often its workers are killed, a task is claimed max(1, max_retries) times at most, and ends",
    layer="kills",
    needs=("durable", "multiprocess"),
    look="claim counts the attempt, as durably as anything acknowledged, before it returns",
)
async def budgets_hold_across_crashes(lab: Lab) -> None:
    await witness(lab)
    budgets = {f"budget {budget}": budget for budget in (0, 1, 2, 3)}
    tasks = [new_task(task_id, max_retries=budget) for task_id, budget in budgets.items()]
    claim = Call("claim", (), {"now": END_OF_TIME, "limit": 4, "lease_expires_at": END_OF_TIME})
    what = "a call after a SIGKILL of a worker"

    async def process() -> Child:
        child = await lab.child(puppet, lab.store)
        await _answer(child.receive(what=f"connect(), {what}"), what)
        return child

    child = await process()
    await _answer(child.ask("call", Call("enqueue", (tasks,))), "enqueue() in a new process")
    claims = dict.fromkeys(budgets, 0)
    for _ in range(max(budgets.values()) + 1):
        claimed = await _answer(child.ask("call", claim, what=what), what)
        for task in claimed:
            claims[task.id] += 1
        child.end()
        child = await process()
        listing = Call("expired", (), {"now": END_OF_TIME, "limit": 1000})
        running = await _answer(child.ask("call", listing, what=what), what)
        ids = sorted(task.id for task in running)
        expect_equal(
            "the ids in expired() after a SIGKILL of their worker", ids, sorted(t.id for t in claimed), breaks="D3"
        )
        attempts = {task.id: task.attempts for task in running}
        counted = {task_id: claims[task_id] for task_id in ids}
        expect_equal("attempts after a SIGKILL of the worker", attempts, counted, breaks="R1")
        await _together(child, [_recovery(task) for task in running], "recovering after a SIGKILL")
    allowed = {task_id: max(1, budget) for task_id, budget in budgets.items()}
    expect_equal("how often each task was claimed while workers were killed", claims, allowed, breaks="R1")
    seen: Seen = await _answer(child.ask("look", what=what), what)
    for task in tasks:
        last = seen.tasks.get(task.id)
        status = None if last is None else last.status
        expect_equal(f"the status of {task.id!r} in the end", status, TaskStatus.FAILED, breaks="D3")
        expect_equal(f"attempts of {task.id!r} in the end", last and last.attempts, allowed[task.id], breaks="R1")


class Openings:
    """Processes that are killed while they connect or close, each followed by one that looks for its task."""

    def __init__(self, lab: Lab, method: str) -> None:
        self._lab = lab
        self._call = Call(method)
        self._what = f"a call in a new process after a SIGKILL in {method}()"
        self.store = lab.store
        self.kills = 0

    async def process(self) -> Child:
        """Return a new process that has connected."""
        child = await self._lab.child(puppet, self.store)
        await _answer(child.receive(what=f"connect(), {self._what}"), f"connect(), {self._what}")
        return child

    async def stranger(self) -> Child:
        """Return a new process that has not connected yet."""
        return await self._lab.child(puppet, self.store, False)  # noqa: FBT003 - it travels by position

    async def put(self, child: Child) -> Task:
        """Enqueue a new task."""
        task = new_task(f"{self.kills}")
        await _answer(child.ask("call", Call("enqueue", ([task],)), what=self._what), self._what)
        return task

    async def sacrifice(
        self, victim: Child, task: Task | None, *, fatal: int | None = None, delay_s: float | None = None
    ) -> Acknowledged | None:
        """Kill a process in the call; a new one must connect, find the task, and be able to put one."""
        said = await _fate(victim, self._call, fatal, delay_s)
        self.kills += 1
        survivor = await self.process()
        task = task or await self.put(survivor)
        found = await _answer(survivor.ask("call", Call("get", (task.id,)), what=self._what), self._what)
        expect_equal(f"get({task.id!r}), {self._what}", found, task, breaks="D1")
        survivor.end()
        return said


async def _connecting(openings: Openings) -> tuple[Child, Task | None]:
    child = await openings.process()
    task = await openings.put(child)
    child.end()
    return await openings.stranger(), task


async def _connecting_first(openings: Openings) -> tuple[Child, Task | None]:
    return await openings.stranger(), None


async def _closing(openings: Openings) -> tuple[Child, Task | None]:
    child = await openings.process()
    return child, await openings.put(child)


@check(
    "D2",
    "A process that SIGKILL ends while it connects or closes harms neither the store nor the next process",
    layer="kills",
    needs=("durable", "multiprocess"),
    cases={
        "connect": ("connect", _connecting),
        "connect to a new store": ("connect", _connecting_first),
        "close": ("close", _closing),
    },
    look="making the schema in one transaction; what an open or a close leaves behind when it is interrupted",
)
async def opening_and_closing(
    lab: Lab, case: tuple[str, Callable[[Openings], Awaitable[tuple[Child, Task | None]]]]
) -> None:
    await witness(lab)
    method, prepare = case
    openings = Openings(lab, method)
    measured = await openings.sacrifice(*await prepare(openings))
    assert measured is not None  # noqa: S101 - without a threat the call ends, or has raised
    for threat in _threats(lab, measured):
        if prepare is _connecting_first:
            openings.store = lab.new_store()
        await openings.sacrifice(*await prepare(openings), **threat)
    lab.notes["kills"] = openings.kills
