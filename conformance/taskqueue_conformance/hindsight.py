"""Which answer was the first wrong one: the calls of a failed check, made again on the model of the contract.

A check sees a breach where it looks, which may be long after it happened and under another heading. The model knows
every answer that the contract allows, as long as one call followed the other; so the first answer that differs says
which requirement was broken, whatever the check was about.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import permutations
from typing import Any, Final

from taskqueue import NotConnected, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.blame import by_difference
from taskqueue_conformance.model import Model
from taskqueue_conformance.violation import difference, differing_fields, shown

LONGEST: Final = 5000
"""How many calls are remembered. A check that makes more has mostly been running in circles."""

_REFUSALS = (StaleClaim, TaskExists, TaskNotFound)
_READS: Final = frozenset({"get", "tasks", "counts", "next_due", "expired"})
_TRIED: Final = 3
"""Of how many overlapping calls every order is tried."""
_HARMLESS: Final = _READS | {"connect", "close", "wait"}
_SUMMARIES: Final = frozenset({"counts", "next_due"})
_STEPS: Final[Mapping[str, str]] = {
    "enqueue": "API", "claim": "C2", "extend": "L2", "complete": "V1", "fail": "R2", "cancel": "L1", "purge": "G1",
    "expired": "D3", "next_due": "LISTING", "get": "API", "tasks": "LISTING", "counts": "LISTING", "reopen": "D1",
}  # fmt: skip
_RAISED: Final[Mapping[str, str]] = {**_STEPS, "claim": "C3", "fail": "V2"}


@dataclass(slots=True)
class Call:
    """One call of a method: what it was given, and what came of it.

    Attributes:
        handle: The name of the handle.
        store: The name of the store.
        method: The method's name.
        arguments: Its arguments by name.
        answer: What it returned, or the exception that it raised.
        ended: Whether it has.
        began: Its place among all beginnings and ends.
        finished: The place of its end.
    """

    handle: str
    store: str
    method: str
    arguments: Mapping[str, Any]
    answer: Any = None
    ended: bool = False
    began: int = 0
    finished: int = 0


@dataclass(slots=True)
class Record:
    """The calls of one check, in the order in which they began."""

    calls: list[Call] = field(default_factory=list)
    ticks: int = 0

    def begin(self, handle: str, store: str, method: str, arguments: Mapping[str, Any]) -> Call:
        """Note that a call begins."""
        self.ticks += 1
        call = Call(handle, store, method, {name: _copied(value) for name, value in arguments.items()})
        call.began = call.finished = self.ticks
        if len(self.calls) < LONGEST:
            self.calls.append(call)
        return call

    def end(self, call: Call, answer: Any) -> None:
        """Note what came of a call."""
        self.ticks += 1
        call.answer, call.ended, call.finished = answer, True, self.ticks


@dataclass(frozen=True, slots=True)
class Breach:
    """The first answer that the contract does not allow.

    Attributes:
        requirement: The requirement that it breaks.
        call: The call that it answered.
        expected: What the contract says.
    """

    requirement: str
    call: Call
    expected: object

    @property
    def in_a_summary(self) -> bool:
        """Whether the answer sums up what is stored, so that the store may be wrong as well."""
        return self.call.method in _SUMMARIES

    def __str__(self) -> str:
        """Say what was called, what it answered, and what the contract says."""
        call = self.call
        arguments = ", ".join(f"{name}={shown(value)}" for name, value in call.arguments.items())
        wanted, got = difference(self.expected, call.answer)
        answered = f"raised {type(call.answer).__name__}" if isinstance(call.answer, BaseException) else f"-> {got}"
        return f"{call.method}({arguments})\n{answered}\nthe contract says: {wanted}"


def first_breach(calls: Sequence[Call]) -> Breach | None:
    """Return the first wrong answer, or None if there is none, or if it cannot be told which one it is.

    Calls that overlapped may have taken effect in any order: their answers are wrong if no order explains them.
    """
    stores: dict[str, _Retrial] = {}
    connected: set[str] = set()
    suspicion: Breach | None = None
    for group in _overlapping(calls):
        told = [call for call in group if not isinstance(call.answer, NotConnected)]
        for call in group:
            if call.handle in connected and call not in told and len(group) == 1:
                return Breach("HANDLES", call, "the handle is connected")
            _follow(connected, call)
        orders = _orders(told)
        if orders is None:
            break
        if not told:
            continue
        retrial = stores.setdefault(told[0].store, _Retrial())
        outcomes = [retrial.copy().judge_all(order) for order in orders]
        right = min(range(len(orders)), key=lambda number: _weight(outcomes[number]))
        retrial.judge_all(orders[right], to_the_end=True)
        if (breach := outcomes[right]) is not None:
            alike = [other for other in outcomes if other is not None and _weight(other) == _weight(breach)]
            if len({other.requirement for other in alike}) > 1:
                break  # each order would break another requirement: the check itself knows better
            if not breach.in_a_summary:
                return breach
            # A sum may be right about a store that is wrong: what was stored comes first.
            suspicion = suspicion or breach
        if retrial.lost:
            break
    return _issued_twice(calls) or suspicion


def _weight(breach: Breach | None) -> int:
    """Return how much an order of calls with this breach leaves unexplained."""
    if breach is None:
        return 0
    return 1 if breach.in_a_summary else 2


def _overlapping(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Yield the calls in groups: each call of a group began before another one of it had ended."""
    group: list[Call] = []
    end = 0
    for call in calls:
        if call.method == "wait":
            continue
        if group and call.began > end:
            yield group
            group = []
        group.append(call)
        end = max(end, call.finished) if call.ended else call.began
    if group:
        yield group


def _orders(group: Sequence[Call]) -> list[Sequence[Call]] | None:
    """Return the orders in which calls may have taken effect, or None where there are too many, or it is unclear."""
    changing = [call for call in group if call.method not in _HARMLESS]
    if any(_unclear(call) for call in changing):
        return None
    if len(group) > _TRIED:
        group = changing
    group = [call for call in group if not _unclear(call)]
    if len(group) > _TRIED or len({call.store for call in group}) > 1:
        return None
    return list(permutations(group)) or [()]


def _unclear(call: Call) -> bool:
    return not call.ended or isinstance(call.answer, asyncio.CancelledError)


def _follow(connected: set[str], call: Call) -> None:
    if call.method == "connect":
        connected.add(call.handle)
    elif call.method == "close":
        connected.discard(call.handle)


def _issued_twice(calls: Sequence[Call]) -> Breach | None:
    """Return the breach of a task that was given to two callers, which is one in whatever order things happened.

    Either as the same attempt, or as the next one though nobody had tried to fail the one before.
    """
    issued: set[tuple[str, str, int]] = set()
    for call in calls:
        if call.method == "purge":
            break
        if call.method == "claim" and call.ended and not isinstance(call.answer, BaseException):
            for task in call.answer:
                claim = (call.store, task.id, task.attempts)
                if claim in issued:
                    return Breach("C1", call, f"no task that another call was given as attempt {task.attempts}")
                before = (call.store, task.id, task.attempts - 1)
                if before in issued and not any(_may_have_failed(other, call, before) for other in calls):
                    return Breach("C1", call, f"no task whose attempt {task.attempts - 1} still holds it")
                issued.add(claim)
    return None


def _may_have_failed(call: Call, claim: Call, attempt: tuple[str, str, int]) -> bool:
    """Tell whether ``call`` may have ended an attempt before ``claim`` took effect."""
    store, task_id, number = attempt
    if call.method != "fail" or call.store != store or (claim.ended and call.began > claim.finished):
        return False
    return (call.arguments["task_id"], call.arguments["attempt"]) == (task_id, number)


class _Retrial:
    """One store as the model has it."""

    def __init__(self) -> None:
        self.model = Model()
        self.lost = False
        self.last: dict[str, str] = {}
        self.purged: set[str] = set()
        self.refused: set[str] = set()
        self.confirmed: set[str] = set()
        self.latest = "enqueue"
        self.asked: dict[str, datetime] = {}

    def copy(self) -> "_Retrial":
        """Return another one with the same store, on which something can be tried."""
        other = _Retrial()
        other.model.stored = dict(self.model.stored)
        other.last, other.latest, other.asked = dict(self.last), self.latest, dict(self.asked)
        other.purged, other.refused, other.confirmed = set(self.purged), set(self.refused), set(self.confirmed)
        return other

    def judge_all(self, calls: Sequence[Call], *, to_the_end: bool = False) -> Breach | None:
        """Make calls one after another and return the first breach, in a summary only if there is no other.

        Stop at it, unless ``to_the_end``.
        """
        first: Breach | None = None
        for call in calls:
            breach = self.judge(call)
            if _weight(breach) > _weight(first):
                first = breach
            if first is not None and not first.in_a_summary and not to_the_end:
                break
        return first

    def judge(self, call: Call) -> Breach | None:
        """Make the call on the model, and return the breach if its answer is not the same."""
        if call.method in {"connect", "close"}:
            self.latest = "reopen"
            return None
        if call.method == "wait":
            return None
        if call.method not in _READS:
            self.latest = call.method
        try:
            expected = getattr(self, f"_{call.method}", self._plain)(call)
        except _REFUSALS as refusal:
            return self._refusal(call, refusal)
        if isinstance(call.answer, BaseException):
            return Breach(_unwanted(call), call, _page_of(call, expected))
        broken = self._compare(call, expected)
        return None if broken is None else Breach(broken, call, expected)

    def _plain(self, call: Call) -> Any:
        return getattr(self.model, call.method)(**call.arguments)

    def _enqueue(self, call: Call) -> None:
        self.model.enqueue(call.arguments["tasks"])
        self._touched("enqueue", *(task.id for task in call.arguments["tasks"]))

    def _claim(self, call: Call) -> list[Task]:
        expected = self.model.claim(**call.arguments)
        self._touched("claim", *(task.id for task in expected))
        return expected

    def _extend(self, call: Call) -> list[tuple[str, int]]:
        expected = self.model.extend(**call.arguments)
        self.refused.update(task_id for task_id, _ in call.arguments["claims"] if task_id not in self.model.stored)
        self._touched("extend", *(task_id for task_id, _ in expected))
        self.asked |= dict.fromkeys((task_id for task_id, _ in expected), call.arguments["lease_expires_at"])
        return expected

    def _complete(self, call: Call) -> None:
        self.model.complete(**call.arguments)
        self._touched("complete", call.arguments["task_id"])

    def _fail(self, call: Call) -> Task:
        expected = self.model.fail(**call.arguments)
        self._touched("fail", call.arguments["task_id"])
        return expected

    def _cancel(self, call: Call) -> bool:
        expected = self.model.cancel(**call.arguments)
        if expected:
            self._touched("cancel", call.arguments["task_id"])
        return expected

    def _get(self, call: Call) -> Task | None:
        return self.model.stored.get(call.arguments["task_id"])

    def _expired(self, call: Call) -> list[Task]:
        return self.model.expired(now=call.arguments["now"])

    def _tasks(self, call: Call) -> list[Task]:
        return self.model.tasks(call.arguments["status"])

    def _purge(self, call: Call) -> int:
        limit: int = call.arguments["limit"]
        may_go = self.model.purgeable(finished_before=call.arguments["finished_before"])
        if limit < len(may_go) and limit and may_go[limit - 1].finished_at == may_go[limit].finished_at:
            self.lost = True  # which of them went is free
        gone = [task.id for task in may_go[:limit]]
        self.model.forget(gone)
        self.purged.update(gone)
        return len(gone)

    def _touched(self, method: str, *task_ids: str) -> None:
        self.confirmed.difference_update(task_ids)
        for task_id in task_ids:
            self.last[task_id] = method
            self.purged.discard(task_id)

    def _refusal(self, call: Call, expected: Exception) -> Breach | None:
        actual = call.answer
        if isinstance(expected, TaskNotFound):
            self.refused.add(expected.task_id)
        if type(actual) is type(expected) and _told(actual) == _told(expected):
            return None
        if isinstance(expected, TaskNotFound):
            requirement = "G1" if expected.task_id in self.purged else "L3"
        elif isinstance(expected, TaskExists):
            requirement = "L1" if set(expected.task_ids) & set(self.model.stored) else "API"
        elif isinstance(expected, StaleClaim) and expected.lease_expires_at is not None:
            requirement = "D3"
        else:
            running = isinstance(expected, StaleClaim) and expected.status is TaskStatus.RUNNING
            requirement = "L2" if running else "L1"
        return Breach(requirement, call, expected)

    def _compare(self, call: Call, expected: Any) -> str | None:
        compare: Callable[[Call, Any], str | None] = getattr(self, f"_compare_{call.method}", _compare_plainly)
        return compare(call, expected)

    def _compare_get(self, call: Call, _expected: object) -> str | None:
        return self._stored(call.arguments["task_id"], call.answer)

    def _compare_claim(self, call: Call, expected: Sequence[Task]) -> str | None:
        return self._claimed(expected, [*call.answer], now=call.arguments["now"], limit=call.arguments["limit"])

    def _compare_fail(self, call: Call, expected: Task) -> str | None:
        return None if call.answer == expected else _difference(expected, call.answer) or "R2"

    def _compare_extend(self, call: Call, expected: object) -> str | None:
        if any(task_id not in self.model.stored for task_id, _ in call.answer):
            return "L3"
        return None if [*call.answer] == expected else "L2"

    def _compare_tasks(self, call: Call, expected: Sequence[Task]) -> str | None:
        return self._page(call, expected)

    def _compare_expired(self, call: Call, expected: Sequence[Task]) -> str | None:
        return self._listed_expired(call, expected)

    def _stored(self, task_id: str, actual: Task | None) -> str | None:
        expected = self.model.stored.get(task_id)
        if actual == expected:
            self.confirmed.add(task_id)
            return None
        if expected is None:
            self.lost = task_id not in self.purged | self.refused  # somebody else has enqueued it
            return "G1" if task_id in self.purged else "L3" if task_id in self.refused else None
        if actual is not None and (expected.status, actual.status) == (TaskStatus.PENDING, TaskStatus.RUNNING):
            unrecorded = self.last[task_id] == "fail" and actual.attempts == expected.attempts
            return "R2" if unrecorded else "C2"
        if actual is not None and (expected.status, actual.status) == (TaskStatus.RUNNING, TaskStatus.PENDING):
            uncounted = self.last[task_id] == "claim" and actual.attempts < expected.attempts
            if uncounted and actual.failures == expected.failures:
                return "R1"
        # A record that was right after its own last change was spoilt by a call that should have left it alone.
        spoilt = task_id in self.confirmed or (actual is None and self.latest == "reopen")
        culprit = self.latest if spoilt else self.last[task_id]
        if culprit == "enqueue" and _only_instants_differ(expected, actual):
            return "E3"
        asked = self.asked.get(task_id) if culprit == "extend" else None
        return _difference(expected, actual, asked=asked) or _STEPS[culprit]

    def _claimed(self, expected: Sequence[Task], actual: Sequence[Task], *, now: datetime, limit: int) -> str | None:
        if actual == expected:
            return None
        chosen_otherwise = [task.id for task in actual] != [task.id for task in expected]
        for task in actual:
            if task.id not in self.model.stored:
                self.lost = True
                return None
            mine = self.model.stored[task.id]
            kept = replace(task, payload=mine.payload, enqueued_at=mine.enqueued_at, available_at=mine.available_at)
            if kept != task:
                # Where it changed the choice, the task had another instant before the claim.
                stored_so = chosen_otherwise and differing_fields(kept, task) == ["available_at"]
                return by_difference(kept, task) or ("E3" if stored_so else "C2")
        if chosen_otherwise:
            return _wrong_choice(expected, actual, now=now, limit=limit)
        differing = next((one, other) for one, other in zip(expected, actual, strict=True) if one != other)
        return _difference(*differing) or "C2"

    def _page(self, call: Call, expected: Sequence[Task]) -> str | None:
        page, _ = call.answer
        for task in page:
            if (requirement := self._stored(task.id, task)) is not None or self.lost:
                return requirement
        ids, limit = [task.id for task in expected], call.arguments["limit"]
        if call.arguments["after"] is None:
            if ids and limit and not page and self.latest == "reopen":
                return "D1"
            return None if [task.id for task in page] == ids[:limit] else "LISTING"
        return None if all(task.id in ids for task in page) else "LISTING"

    def _listed_expired(self, call: Call, expected: Sequence[Task]) -> str | None:
        limit = call.arguments["limit"]
        leases = [task.lease_expires_at for task in expected[:limit]]
        for task in call.answer:
            if task not in expected:
                return self._stored(task.id, task) or (None if self.lost else "D3")
        return None if [task.lease_expires_at for task in call.answer] == leases else "D3"


def _difference(expected: Task, actual: Task | None, *, asked: datetime | None = None) -> str | None:
    """Return the requirement that the kind of a difference betrays, or None."""
    if differing_fields(expected, actual) == ["failures"] and actual is not None:
        wanted, got = ([replace(each, retry_at=None) for each in task.failures] for task in (expected, actual))
        if wanted != got and by_difference(expected, actual) is None:
            return "V2"
    return by_difference(expected, actual, asked=asked)


def _only_instants_differ(expected: Task, actual: Task | None) -> bool:
    pairs = [(getattr(expected, name), getattr(actual, name)) for name in differing_fields(expected, actual)]
    return bool(pairs) and all(isinstance(one, datetime) and isinstance(other, datetime) for one, other in pairs)


def _wrong_choice(expected: Sequence[Task], actual: Sequence[Task], *, now: datetime, limit: int) -> str:
    """Return the requirement that a wrong choice of tasks, or a wrong order, breaks."""
    wanted, got = {task.id for task in expected}, [task.id for task in actual]
    extra = [task for task in actual if task.id not in wanted]
    early = [task for task in extra if task.available_at > now]
    if early:
        host = datetime.now(UTC)
        return "E4" if now < host and all(task.available_at <= host for task in early) else "E1"
    if len(set(got)) < len(got) or any(task.attempts > 1 + len(task.failures) for task in extra):
        return "C1"
    if len(got) > limit or len(got) < len(wanted):
        return "E2"
    return "C1" if extra and len(got) > len(wanted) else "C3"


def _page_of(call: Call, expected: Any) -> Any:
    """Return the part of a list that the call had asked for, as far as that can be told."""
    limit = call.arguments.get("limit")
    return expected[:limit] if isinstance(expected, list) and call.arguments.get("after") is None else expected


def _unwanted(call: Call) -> str:
    """Return the requirement that an exception breaks where the contract has an answer."""
    if isinstance(call.answer, StaleClaim):
        return "D3" if call.arguments.get("if_expired") else "L2"
    return _RAISED[call.method]


def _compare_plainly(call: Call, expected: object) -> str | None:
    actual = dict(call.answer) if isinstance(call.answer, Mapping) else call.answer
    return None if actual == expected else _STEPS[call.method]


def _told(refusal: Exception) -> Mapping[str, Any]:
    return {
        name: frozenset(value) if name == "task_ids" else value
        for name, value in vars(refusal).items()
        if not name.startswith("_")
    }


def _copied(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
