"""Whether a history can be explained: is there an order of its calls in which the model of the contract agrees?

Each call takes effect at one instant between its start and its end, so a call that ended before another one began comes
before it, and calls that overlap may come in either order. The search tries the orders that remain, and the model says
what each call would have answered. Two freedoms that the contract gives are kept: a claim may pass over tasks that an
unfinished call is changing, and tasks that were enqueued by overlapping calls may stand in either order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from taskqueue import StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.blame import by_difference
from taskqueue_conformance.model import Model
from taskqueue_conformance.recording import REFUSALS, Call
from taskqueue_conformance.violation import differing_fields

READS: Final = frozenset({"get", "tasks", "counts", "next_due", "expired"})

_AGGREGATES: Final = frozenset({"counts", "next_due"})


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Calls that no order explains.

    Attributes:
        requirement: The id of the requirement that they contradict.
        expected: What the contract demands of them.
        calls: The shortest part of the history that shows it, in the order in which the calls began.
    """

    requirement: str
    expected: str
    calls: tuple[Call, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.calls))


class Mismatch(Exception):
    """A call does not fit where it was tried."""

    def __init__(self, requirement: str, expected: str) -> None:
        super().__init__(expected)
        self.requirement = requirement
        self.expected = expected


def unexplained(calls: Sequence[Call]) -> Contradiction | None:
    """Return the shortest part of a history of an empty store that no order explains, or None if there is an order."""
    calls = sorted(calls, key=lambda call: call.start)
    whole = _Whole(calls)
    if _Search(calls, whole).explains():
        return None
    # Where single tasks show it, they say more than numbers do.
    telling = [call for call in calls if call.method not in _AGGREGATES]
    if not _Search(telling, whole).explains():
        calls = telling
    culprit = _first_unexplained(calls, whole)
    part = [call for call in calls if call.start < culprit.end]
    part = _without_bystanders(part, culprit, whole)
    part = _narrowed(part, culprit, whole)
    part = _without_bystanders(part, culprit, whole)
    misfit = _Search(part, whole, until=culprit.end).misfit_of(culprit)
    # What only a call without an answer can have done is that call's affair.
    requirement = "X1" if any(call.lost for call in part) else misfit.requirement
    shown = {call.start for call in part}
    return Contradiction(requirement, misfit.expected, tuple(call for call in calls if call.start in shown))


def given_up(calls: Sequence[Call], call: Call) -> float:
    """Return when a lost call can take effect no more: when the next call on its handle, or close, has returned."""
    return min(
        (other.end for other in calls if other.handle == call.handle and other.start > call.end and not other.lost),
        default=math.inf,
    )


class _Store(Model):
    """The model, and by which call each task was enqueued."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[str, tuple[Call, int]] = {}
        self.gone: frozenset[str] = frozenset()

    def forget(self, task_ids: Iterable[str]) -> None:
        """Remember which tasks were removed, too."""
        gone = [*task_ids]
        super().forget(gone)
        self.gone |= frozenset(gone)

    def copy(self) -> "_Store":
        other = _Store()
        other.stored = dict(self.stored)
        other.origin = dict(self.origin)
        other.gone = self.gone
        return other


class _Whole:
    """What is known from the whole history, also where a part of it is looked at.

    Attributes:
        calls: All calls in the order of their starts.
        ends: Until when each can have taken effect, by its start.
        orphans: The claims that were seen and that no call returned: lost claims have made them.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.ends = {call.start: given_up(calls, call) if call.lost else call.end for call in calls}
        self.orphans = _orphans(calls)
        self._names = {call.start: _names(call) for call in calls}

    def changing(self, claim: Call, task_id: str) -> bool:
        """Whether another call, which overlaps ``claim``, may be changing the task."""
        return any(
            other.start != claim.start
            and other.start < self.ends[claim.start]
            and claim.start < self.ends[other.start]
            and (task_id in self._names[other.start] or (other.lost and other.method == "claim"))
            for other in self.calls
        )


class _Search:
    """The search for an order in which the model explains every call.

    Args:
        calls: A part of the history, in the order of their starts.
        whole: The history.
        until: What had not returned by then need not have taken effect.
    """

    def __init__(self, calls: Sequence[Call], whole: _Whole, *, until: float = math.inf) -> None:
        self._calls = calls
        self._whole = whole
        self._ends = [whole.ends[call.start] for call in calls]
        self._optional = [call.lost or call.end > until for call in calls]
        self._dead_ends: set[tuple[int, tuple[Task, ...]]] = set()
        self._misfits: dict[int, tuple[int, Mismatch]] = {}

    def explains(self) -> bool:
        # What changed nothing and got no answer needs no place.
        placed = [i for i, call in enumerate(self._calls) if not (self._optional[i] and _idle(call))]
        return self._from(_Store(), sum(1 << i for i in placed))

    def misfit_of(self, call: Call) -> Mismatch:
        """Return why ``call`` did not fit, where most other calls did."""
        self.explains()
        deepest = max(self._misfits.values(), key=lambda each: each[0])
        return self._misfits.get(call.start, deepest)[1]

    def _from(self, store: _Store, left: int) -> bool:
        left = self._take_reads(store, left)
        waiting = [i for i in self._members(left) if not self._optional[i]]
        if not waiting:
            return True
        state = (left, tuple(store.stored.values()))
        if state in self._dead_ends:
            return False
        for index in self._next(left):
            for after in self._tried(store, index, left):
                if self._from(after, self._without(left, index)):
                    return True
        self._dead_ends.add(state)
        return False

    def _take_reads(self, store: _Store, left: int) -> int:
        """Take every call that changes nothing and fits, unless that makes it too late for a call without an answer."""
        found = True
        while found:
            found = False
            for index in self._next(left):
                harmless = _idle(self._calls[index]) and not self._overdue(left, index)
                if harmless and any(True for _ in self._tried(store, index, left)):
                    left = self._without(left, index)
                    found = True
        return left

    def _next(self, left: int) -> list[int]:
        """Return which calls may come next: those that began before any that is left had ended."""
        members = self._members(left)
        horizon = min((self._ends[i] for i in members if not self._optional[i]), default=math.inf)
        return sorted((i for i in members if self._calls[i].start < horizon), key=lambda i: self._ends[i])

    def _without(self, left: int, index: int) -> int:
        for taken in (index, *self._overdue(left, index)):
            left &= ~(1 << taken)
        return left

    def _overdue(self, left: int, index: int) -> list[int]:
        """Return which calls without an answer cannot take effect any more after this one."""
        start = self._calls[index].start
        return [i for i in self._members(left) if self._optional[i] and self._ends[i] < start]

    def _members(self, left: int) -> list[int]:
        return [i for i in range(len(self._calls)) if left >> i & 1]

    def _tried(self, store: _Store, index: int, left: int) -> Iterator[_Store]:
        call = self._calls[index]
        try:
            yield from self._effects(store, index)
        except Mismatch as misfit:
            depth = len(self._calls) - left.bit_count()
            if call.start not in self._misfits or self._misfits[call.start][0] <= depth:
                self._misfits[call.start] = (depth, misfit)

    def _effects(self, store: _Store, index: int) -> Iterator[_Store]:
        """Yield what the store can be after a call, or raise Mismatch."""
        call = self._calls[index]
        if call.method in READS:
            if not call.lost:
                _READERS[call.method](self, store, call)
            yield store
        elif call.method == "claim" and call.lost:
            yield from self._lost_claim(store, index)
        elif call.method == "claim":
            after = store.copy()
            self._check_claimed(call, self._claim(after, index, [task.id for task in call.answer]))
            yield after
        elif call.method == "purge":
            yield from _purged(store, call)
        else:
            after = store.copy()
            _write(after, call)
            yield after

    def _lost_claim(self, store: _Store, index: int) -> Iterator[_Store]:
        orphans = [task for task in store.stored.values() if (task.id, task.attempts + 1) in self._whole.orphans]
        orphans.sort(key=lambda task: task.available_at)
        for size in range(1, min(len(orphans), self._calls[index].arguments["limit"]) + 1):
            for chosen in combinations(orphans, size):
                after = store.copy()
                with suppress(Mismatch):
                    self._claim(after, index, [task.id for task in chosen])
                    yield after

    def _claim(self, store: _Store, index: int, ids: Sequence[str]) -> list[Task]:
        call = self._calls[index]
        now, limit = call.arguments["now"], call.arguments["limit"]
        if len(set(ids)) < len(ids):
            raise Mismatch("C1", "a claim that takes no task twice")
        if len(ids) > limit:
            raise Mismatch("E2", f"at most {limit} tasks")
        for task_id in ids:
            _claimable(store, task_id, now)
        for first, second in combinations(ids, 2):
            if self._precedes(store, second, first):
                raise Mismatch("C3", f"{second} before {first}")
        self._check_passed_over(store, call, ids)
        taken = []
        for task_id in ids:
            task = store.stored[task_id]
            store.stored[task_id] = replace(
                task,
                status=TaskStatus.RUNNING,
                attempts=task.attempts + 1,
                started_at=now,
                lease_expires_at=call.arguments["lease_expires_at"],
            )
            taken.append(store.stored[task_id])
        return taken

    def _check_passed_over(self, store: _Store, call: Call, ids: Sequence[str]) -> None:
        for task in store.stored.values():
            due = task.status is TaskStatus.PENDING and task.available_at <= call.arguments["now"]
            if not due or task.id in ids or self._whole.changing(call, task.id):
                continue
            if len(ids) < call.arguments["limit"]:
                raise Mismatch("E2", f"{task.id} among the claimed: it is due, and no other call is changing it")
            later = next((other for other in ids if self._precedes(store, task.id, other)), None)
            if later is not None:
                raise Mismatch("C3", f"{task.id}, which comes before {later} and which no other call is changing")

    @staticmethod
    def _check_claimed(call: Call, taken: Sequence[Task]) -> None:
        for got, wanted in zip(call.answer, taken, strict=True):
            if got != wanted:
                requirement = "R1" if got.attempts != wanted.attempts else "C2"
                raise Mismatch(requirement, f"{wanted.id} returned as it is stored from then on")

    def _precedes(self, store: _Store, one: str, other: str) -> bool:
        """Whether a claim must take ``one`` before ``other``."""
        first, second = store.stored[one], store.stored[other]
        if first.available_at != second.available_at:
            return first.available_at < second.available_at
        return _enqueued_earlier(store, one, other)

    # How reads are compared.

    def read_get(self, store: _Store, call: Call) -> None:
        task_id = call.arguments["task_id"]
        _compare(store, call, task_id, call.answer)

    def read_tasks(self, store: _Store, call: Call) -> None:
        page, cursor = call.answer
        status = call.arguments.get("status")
        listed = [task.id for task in page]
        for task in page:
            _compare(store, call, task.id, task)
        if call.arguments.get("after") is None and cursor is None:
            for task in store.tasks(status):
                if task.id not in listed:
                    _compare(store, call, task.id, None)
        for first, second in combinations(listed, 2):
            if first == second or _enqueued_earlier(store, second, first):
                raise Mismatch("LISTING", f"{second} before {first}")

    def read_counts(self, store: _Store, call: Call) -> None:
        if dict(call.answer) != store.counts():
            told = ", ".join(f"{count} {status.upper()}" for status, count in store.counts().items() if count)
            raise Mismatch("LISTING", f"the counts at one instant, such as {told or 'zeros'}")

    def read_next_due(self, store: _Store, call: Call) -> None:
        if call.answer != store.next_due():
            raise Mismatch("LISTING", f"the earliest instant, {store.next_due()}")

    def read_expired(self, store: _Store, call: Call) -> None:
        limit = call.arguments["limit"]
        every = store.expired(now=call.arguments["now"])
        wanted = [task.lease_expires_at for task in every][:limit]
        if [task.lease_expires_at for task in call.answer] != wanted or any(task not in every for task in call.answer):
            raise Mismatch("D3", f"the expired leases of {', '.join(task.id for task in every) or 'no task'}")


_READERS: Final[Mapping[str, Any]] = {method: getattr(_Search, f"read_{method}") for method in READS}


def _claimable(store: _Store, task_id: str, now: Any) -> None:
    task = store.stored.get(task_id)
    if task is None:
        raise Mismatch("C2", f"{task_id} not claimed: it is not there")
    if task.status is TaskStatus.RUNNING:
        raise Mismatch("C1", f"{task_id} not claimed: somebody else holds it")
    if task.status.ended:
        raise Mismatch("L1", f"{task_id} not claimed: it has ended as {task.status.upper()}")
    if task.available_at > now:
        raise Mismatch("E1", f"{task_id} not claimed: it is not due")


def _enqueued_earlier(store: _Store, one: str, other: str) -> bool:
    (first, place), (second, position) = store.origin[one], store.origin[other]
    return place < position if first is second else first.end < second.start and not first.lost


def _write(store: _Store, call: Call) -> None:
    """Make a call on the model, and compare its answer or its refusal."""
    arguments = dict(call.arguments)
    try:
        wanted = getattr(store, call.method)(**arguments)
    except REFUSALS as refusal:
        if call.lost:
            return
        if call.error is None or not same_refusal(call.error, refusal):
            raise Mismatch(_refusal_breaks(refusal), f"{call.method} refused: {told(refusal)}") from refusal
        return
    if call.lost:
        _remember(store, call)
        return
    if call.error is not None:
        breaks = {"enqueue": "API", "complete": "L2", "fail": "L2"}.get(call.method, "L1")
        raise Mismatch(breaks, f"{call.method} accepted, since nothing stands against it")
    if call.method == "fail" and call.answer != wanted:
        raise Mismatch("R2", f"the answer {wanted}")
    if call.method in {"cancel", "extend"} and call.answer != wanted:
        raise Mismatch("L1" if call.method == "cancel" else "L2", f"the answer {wanted}")
    _remember(store, call)


def _remember(store: _Store, call: Call) -> None:
    if call.method == "enqueue":
        store.origin.update((task.id, (call, place)) for place, task in enumerate(call.arguments["tasks"]))


def _purged(store: _Store, call: Call) -> Iterator[_Store]:
    """Yield what may be left; which of several that ended at the same instant goes first is free."""
    limit = call.arguments["limit"]
    may_go = store.purgeable(finished_before=call.arguments["finished_before"])
    count = min(limit, len(may_go))
    if not call.lost and call.answer != count:
        raise Mismatch("G1", f"{count} removed, since {len(may_go)} may go")
    if count == 0:
        yield store
        return
    last = may_go[count - 1].finished_at
    sure = [task.id for task in may_go[:count] if task.finished_at != last]
    tied = [task.id for task in may_go if task.finished_at == last]
    for chosen in combinations(tied, count - len(sure)):
        after = store.copy()
        after.forget([*sure, *chosen])
        yield after


def _compare(store: _Store, call: Call, task_id: str, got: Task | None) -> None:
    wanted = store.stored.get(task_id)
    if got == wanted:
        return
    if wanted is None:
        raise Mismatch("G1" if task_id in store.gone else "L1", f"no task {task_id}")
    if got is None:
        # Not acknowledged yet, but seen in part: all or none is what enqueue promises.
        raise Mismatch("API" if store.origin[task_id][0].overlaps(call) else "D1", f"the task {task_id}")
    if got.status is not wanted.status:
        requirement = "L1" if wanted.status.ended and got.status.ended else "D1"
    elif got.value != wanted.value:
        requirement = "V1"
    elif got.attempts != wanted.attempts:
        requirement = "R1"
    else:
        requirement = "R2" if got.failures != wanted.failures else "D1"
    names = differing_fields(wanted, got)
    facts = ", ".join(f"{name}={getattr(wanted, name)}" for name in names)
    raise Mismatch(by_difference(wanted, got) or requirement, f"{task_id} with {facts}")


def told(refusal: Exception) -> str:
    """Return a refusal for a message."""
    return f"{type(refusal).__name__}: {refusal}"


def same_refusal(one: Exception, other: Exception) -> bool:
    """Whether two refusals are of one type and carry the same data."""
    if isinstance(one, TaskExists) and isinstance(other, TaskExists):
        return sorted(one.task_ids) == sorted(other.task_ids)
    if isinstance(one, StaleClaim) and isinstance(other, StaleClaim):
        # With if_expired, whether a lease is carried says why.
        facts = ("task_id", "attempt", "status", "attempts", "lease_expires_at")
        return all(getattr(one, fact) == getattr(other, fact) for fact in facts)
    return isinstance(one, TaskNotFound) and isinstance(other, TaskNotFound) and one.task_id == other.task_id


def _refusal_breaks(refusal: Exception) -> str:
    if isinstance(refusal, StaleClaim):
        return "L1" if refusal.status.ended else "L2"
    return "L3" if isinstance(refusal, TaskNotFound) else "L1"


def _names(call: Call) -> frozenset[str]:
    """Return the ids of the tasks that a call may change."""
    if call.method in READS:
        return frozenset()
    arguments = call.arguments
    if call.method == "enqueue":
        return frozenset(task.id for task in arguments["tasks"])
    if call.method == "extend":
        return frozenset(task_id for task_id, _ in arguments["claims"])
    if call.method == "claim":
        return frozenset() if call.answer is None else frozenset(task.id for task in call.answer)
    return frozenset({arguments["task_id"]}) if "task_id" in arguments else frozenset()


def _idle(call: Call) -> bool:
    """Whether a call has changed nothing, whenever it took effect."""
    return (
        call.method in READS or call.error is not None or (call.method == "claim" and not call.lost and not call.answer)
    )


def _orphans(calls: Sequence[Call]) -> frozenset[tuple[str, int]]:
    """Return the claims that were seen and that no call returned: a lost claim has made them."""
    returned = {
        (task.id, task.attempts) for call in calls if call.method == "claim" and call.accepted for task in call.answer
    }
    seen: set[tuple[str, int]] = set()
    for call in calls:
        tasks: Sequence[Any] = ()
        if call.accepted and call.method == "get":
            tasks = [call.answer]
        elif call.accepted and call.method == "tasks":
            tasks = call.answer[0]
        elif call.accepted and call.method in {"claim", "expired"}:
            tasks = call.answer
        seen.update((task.id, attempt) for task in tasks if task is not None for attempt in range(1, task.attempts + 1))
    return frozenset(seen - returned)


# How a history is made shorter. Every step keeps it unexplainable, and would keep an explainable one explainable.


def _first_unexplained(calls: Sequence[Call], whole: _Whole) -> Call:
    """Return the call with whose answer the history stops being explainable."""
    ends = sorted((call for call in calls if not call.lost), key=lambda call: call.end)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        end = ends[middle].end
        begun = [call for call in calls if call.start < end]
        if _Search(begun, whole, until=end).explains():
            low = middle + 1
        else:
            high = middle
    return ends[high]


def _without_bystanders(calls: Sequence[Call], culprit: Call, whole: _Whole) -> list[Call]:
    """Leave out calls that changed nothing, wherever it stays unexplainable."""
    kept = list(calls)
    for call in calls:
        if call.start != culprit.start and _idle(call):
            fewer = [other for other in kept if other is not call]
            if not _Search(fewer, whole, until=culprit.end).explains():
                kept = fewer
    return kept


def _narrowed(calls: Sequence[Call], culprit: Call, whole: _Whole) -> list[Call]:
    """Return what the calls say about one or two tasks alone, if that is enough."""
    purged = any(call.method == "purge" and (call.answer or call.lost) for call in calls)
    if purged or culprit.method in {"counts", "next_due", "purge"}:
        return list(calls)

    def explains(part: Sequence[Call]) -> bool:
        return _Search(part, whole, until=culprit.end).explains()

    ids = list(dict.fromkeys(task_id for call in calls for task_id in sorted(_names(call))))
    for size in (1, 2):
        for chosen in combinations(ids, size):
            narrow = [_restricted(call, frozenset(chosen)) for call in calls]
            fewer = [call for call in narrow if call is not None]
            if any(call.start == culprit.start for call in fewer) and not explains(fewer):
                return fewer
    return list(calls)


def _restricted(call: Call, ids: frozenset[str]) -> Call | None:
    """Return what a call says about some tasks alone, or None if that is nothing."""
    if call.method in _RESTRICTIONS:
        return _RESTRICTIONS[call.method](call, ids)
    return call if call.arguments.get("task_id") in ids else None


def _restricted_enqueue(call: Call, ids: frozenset[str]) -> Call | None:
    tasks = [task for task in call.arguments["tasks"] if task.id in ids]
    error = call.error
    if isinstance(error, TaskExists):
        offending = [task_id for task_id in error.task_ids if task_id in ids]
        if not offending:
            return None
        error = TaskExists(offending)
    return replace(call, arguments={"tasks": tasks}, error=error) if tasks else None


def _restricted_answer(call: Call, ids: frozenset[str]) -> Call | None:
    if call.lost:
        return call
    answer = [task for task in call.answer if task.id in ids]
    limit = call.arguments["limit"] - (len(call.answer) - len(answer))
    return replace(call, arguments={**call.arguments, "limit": limit}, answer=answer) if limit else None


def _restricted_extend(call: Call, ids: frozenset[str]) -> Call | None:
    claims = [claim for claim in call.arguments["claims"] if claim[0] in ids]
    answer = None if call.answer is None else [claim for claim in call.answer if claim[0] in ids]
    return replace(call, arguments={**call.arguments, "claims": claims}, answer=answer) if claims else None


def _restricted_page(call: Call, ids: frozenset[str]) -> Call | None:
    if call.lost:
        return None
    page, cursor = call.answer
    return replace(call, answer=([task for task in page if task.id in ids], cursor))


_RESTRICTIONS: Final[Mapping[str, Callable[[Call, frozenset[str]], Call | None]]] = {
    "enqueue": _restricted_enqueue,
    "claim": _restricted_answer,
    "expired": _restricted_answer,
    "extend": _restricted_extend,
    "tasks": _restricted_page,
}
