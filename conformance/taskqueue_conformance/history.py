"""Whether a recorded history keeps the contract, and if not, the shortest part of it that shows why.

Pure functions over data. What goes wrong in a typical way has a rule of its own, which names the requirement and shows
the two or three calls that matter; whatever no rule speaks of is found by trying to put the calls in an order.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Final

from taskqueue import StaleClaim, Task, TaskStatus
from taskqueue_conformance.linearization import READS, Contradiction, given_up, told, unexplained
from taskqueue_conformance.recording import REFUSALS, Call


def contradiction(calls: Sequence[Call]) -> Contradiction | None:
    """Return what contradicts the contract in the history of a store that was empty, or None.

    Calls may overlap. Every call that was made on the store must be there, whatever came of it.
    """
    history = _History(calls)
    for rule in _RULES:
        for found in rule(history):
            return found
    return unexplained(history.calls)


class _History:
    """The calls, in the order of their starts, and what is looked up in them again and again."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = sorted(calls, key=lambda call: call.start)
        self.accepted = [call for call in self.calls if call.accepted]
        self.lost = [call for call in self.calls if call.lost]
        enqueues = sorted(self._of("enqueue", lost=True), key=lambda call: call.accepted)
        self.enqueued = {task.id: (call, task) for call in enqueues for task in call.arguments["tasks"]}
        self.claims = [(call, task) for call in self._of("claim") for task in call.answer]
        self.reads = sorted(self._reads(), key=lambda read: read[0].start)
        self.endings = [call for call in self.accepted if _ended_by(call) is not None]
        self.retries = [call for call in self._of("fail") if not call.answer.status.ended]
        purged = any(call.method == "purge" and (call.lost or call.answer) for call in self.calls)
        self.forever = not purged
        """Whether no task can have been removed, so that an id means one task."""

    def _of(self, method: str, *, lost: bool = False) -> list[Call]:
        return [call for call in self.calls if call.method == method and (call.accepted or (lost and call.lost))]

    def _reads(self) -> Iterator[tuple[Call, Task]]:
        for call in self.accepted:
            if call.method == "get" and call.answer is not None:
                yield call, call.answer
            elif call.method == "tasks":
                yield from ((call, task) for task in call.answer[0])

    def on(self, method: str, task_id: str, attempt: int, *, lost: bool = True) -> list[Call]:
        """Return the calls that were accepted, or may have been, for one claim."""
        return [
            call
            for call in self.calls
            if call.method == method
            and (call.accepted or (lost and call.lost))
            and (call.arguments["task_id"], call.arguments["attempt"]) == (task_id, attempt)
        ]

    def lost_between(self, first: Call, last: Call) -> list[Call]:
        """Return the calls without an answer that can have done something after ``first`` began and before ``last``."""
        return [
            call for call in self.lost if call.start < last.end and given_up(self.calls, call) > first.start
            and call.method not in READS
        ]  # fmt: skip

    def lost_claims(self, before: Call) -> bool:
        """Whether a claim whose answer was lost began before ``before`` ended."""
        return any(call.method == "claim" and call.start < before.end for call in self.lost)


def _ended_by(call: Call) -> TaskStatus | None:
    """Return the status in which an accepted call ended its task, or None if it did not."""
    if call.method == "complete":
        return TaskStatus.SUCCESS
    if call.method == "cancel" and call.answer is True:
        return TaskStatus.CANCELLED
    if call.method == "fail" and call.answer.status.ended:
        return TaskStatus.FAILED
    return None


def _broken(requirement: str, expected: str, *calls: Call) -> Contradiction:
    return Contradiction(requirement, expected, tuple(sorted(set(calls), key=lambda call: call.start)))


def _unknown_errors(history: _History) -> Iterator[Contradiction]:
    for call in history.calls:
        if call.error is not None and not isinstance(call.error, REFUSALS):
            beside = [other for other in history.calls if other.overlaps(call)]
            yield _broken("X1", f"an answer beside other calls, and not {told(call.error)}", *beside)


def _held_twice(history: _History) -> Iterator[Contradiction]:
    """C1: one claim for each attempt, and the next one not before somebody has failed the one before."""
    if not history.forever:
        return
    for (first, task), (second, other) in combinations(history.claims, 2):
        if task.id != other.id:
            continue
        if task.attempts == other.attempts:
            yield _broken("C1", f"attempt {task.attempts} of {task.id} for one claim only", first, second)
        earlier, later = sorted(((first, task), (second, other)), key=lambda pair: pair[1].attempts)
        if later[1].attempts == earlier[1].attempts + 1:
            released = history.on("fail", task.id, earlier[1].attempts)
            if not any(call.start < later[0].end for call in released):
                yield _broken("C1", f"{task.id} with one holder at a time", first, second)


def _budget_overrun(history: _History) -> Iterator[Contradiction]:
    for call, task in history.claims:
        if task.attempts > max(1, task.max_retries):
            same = [other for other, each in history.claims if each.id == task.id and other.start <= call.start]
            yield _broken("R1", f"at most {max(1, task.max_retries)} claims of {task.id}", *same)


def _taken_from_nobody(history: _History) -> Iterator[Contradiction]:
    """C2: every attempt that was issued was returned to somebody."""
    if not history.forever:
        return
    returned = {(task.id, task.attempts) for _, task in history.claims}
    for call, task in [*history.claims, *history.reads]:
        _, new = history.enqueued.get(task.id, (None, task))
        for attempt in range(new.attempts + 1, task.attempts + 1):
            if (task.id, attempt) not in returned and not history.lost_claims(call):
                begun = [each for each in history.calls if each.method == "claim" and each.start < call.end]
                yield _broken("C2", f"attempt {attempt} of {task.id} in the answer of a claim", *begun, call)


def _ended_twice(history: _History) -> Iterator[Contradiction]:
    """L1: one call ends a task, and nothing comes after it."""
    if not history.forever:
        return
    for first, second in combinations(history.endings, 2):
        if first.arguments["task_id"] == second.arguments["task_id"]:
            yield _broken("L1", f"{first.arguments['task_id']} ended by one call", first, second)
    for end in history.endings:
        task_id = end.arguments["task_id"]
        for call, task in history.claims:
            if task.id == task_id and call.start > end.end:
                yield _broken("L1", f"{task_id} not claimed any more: it had ended", end, call)


def _ended_and_retried(history: _History) -> Iterator[Contradiction]:
    """L1: an attempt ends in one way, and an ended task is not retried."""
    if not history.forever:
        return
    for end, call in product(history.endings, history.retries):
        task_id = end.arguments["task_id"]
        if call.arguments["task_id"] != task_id:
            continue
        if call.start > end.end:
            yield _broken("L1", f"{task_id} not retried any more: it had ended", end, call)
        elif end.arguments.get("attempt") == call.arguments["attempt"]:
            yield _broken("L1", "one outcome for one attempt", end, call)


def _stale_accepted(history: _History) -> Iterator[Contradiction]:
    """L2: only the current claim completes, fails and extends."""
    if not history.forever:
        return
    for call in history.accepted:
        if call.method in {"complete", "fail"}:
            held = [(call.arguments["task_id"], call.arguments["attempt"])]
        elif call.method == "extend":
            held = [*call.answer]
        else:
            continue
        for task_id, attempt in held:
            for claim, task in history.claims:
                if task.id == task_id and task.attempts > attempt and claim.end < call.start:
                    yield _broken(
                        "L2", f"attempt {attempt} of {task_id} refused: the task is somebody else's", claim, call
                    )


def _torn_results(history: _History) -> Iterator[Contradiction]:
    """V1: the value is there with the status, and is the one that was recorded."""
    if not history.forever:
        return
    for call, task in history.reads:
        if task.status is TaskStatus.SUCCESS:
            completed = history.on("complete", task.id, task.attempts)
            if task.value not in [each.arguments["value"] for each in completed]:
                yield _broken("V1", f"{task.id} with the value of the complete that was accepted", *completed, call)
        elif task.value is not None:
            yield _broken("V1", f"{task.id} without a value: it is {task.status.upper()}", call)


def _half_failed(history: _History) -> Iterator[Contradiction]:
    """R2: a task that is retried is never seen FAILED, neither by a read nor in a refusal."""
    if not history.forever:
        return
    seen = [(call, task.id, task.attempts) for call, task in history.reads if task.status is TaskStatus.FAILED]
    refused = [(call, call.error) for call in history.calls if isinstance(call.error, StaleClaim)]
    seen += [(call, error.task_id, error.attempts) for call, error in refused if error.status is TaskStatus.FAILED]
    for call, task_id, attempt in seen:
        failed = history.on("fail", task_id, attempt)
        if failed and not any(each.lost or each.answer.status.ended for each in failed):
            yield _broken("R2", f"{task_id} never FAILED: this failure is followed by a retry", *failed, call)


def _lost_tasks(history: _History) -> Iterator[Contradiction]:
    """D1: what had been enqueued is found. X1: and no call that was cancelled takes it away."""
    if not history.forever:
        return
    for call in history.accepted:
        if call.method == "get" and call.answer is None:
            enqueue, _ = history.enqueued.get(call.arguments["task_id"], (call, None))
            if enqueue.accepted and enqueue.end < call.start:
                lost = history.lost_between(enqueue, call)
                expected = f"{call.arguments['task_id']}, which had been enqueued"
                yield _broken("X1" if lost else "D1", expected, enqueue, *lost, call)


def _lost_endings(history: _History) -> Iterator[Contradiction]:
    """D1: what ended a task is seen by later reads. L1: and no other call undoes it."""
    if not history.forever:
        return
    for end in history.endings:
        task_id, status = end.arguments["task_id"], _ended_by(end)
        for call, task in history.reads:
            if task.id == task_id and call.start > end.end and task.status is not status:
                others = [each for each in history.accepted if _changed(each, task_id) and each.end > end.start]
                others = [each for each in others if each is not end and each.start < call.end]
                lost = history.lost_between(end, call)
                requirement = "L1" if others else "X1" if lost else "D1"
                yield _broken(requirement, f"{task_id} {status} from then on", end, *others, *lost, call)


def _lost_claims(history: _History) -> Iterator[Contradiction]:
    """D1: what was claimed is seen claimed by later reads."""
    if not history.forever:
        return
    for claim, task in history.claims:
        for call, seen in history.reads:
            if seen.id == task.id and call.start > claim.end and seen.attempts < task.attempts:
                expected = f"{task.id} with {task.attempts} attempts or more, since it had been claimed"
                lost = history.lost_between(claim, call)
                yield _broken("X1" if lost else "D1", expected, claim, *lost, call)


def _changed(call: Call, task_id: str) -> bool:
    if call.method == "claim":
        return any(task.id == task_id for task in call.answer)
    if call.method == "extend":
        return any(each == task_id for each, _ in call.answer)
    return (
        call.method in {"complete", "fail", "cancel"}
        and call.arguments["task_id"] == task_id
        and call.answer is not False
    )


def _lame_listings(history: _History) -> Iterator[Contradiction]:
    """LISTING: over all pages, what did not change in the meantime appears once, and anything else at most once."""
    for pages in _page_chains(history.accepted):
        seen: dict[str, Call] = {}
        for page in pages:
            for task in page.answer[0]:
                if task.id in seen and history.forever:
                    yield _broken("LISTING", f"{task.id} once in a listing", seen[task.id], page)
                seen[task.id] = page
        if pages[-1].answer[1] is not None or pages[0].arguments.get("status") is not None or not history.forever:
            continue
        for task_id, (enqueue, _) in history.enqueued.items():
            if task_id in seen or not enqueue.accepted or enqueue.end > pages[0].start:
                continue
            meanwhile = [
                call
                for call in history.calls
                if (call.lost or _changed(call, task_id))
                and call.start < pages[-1].end
                and (call.lost or call.end > pages[0].start)
            ]
            if not meanwhile:
                yield _broken("LISTING", f"{task_id} in the listing: it was there all the time", enqueue, *pages)


def _page_chains(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Yield the pages of each listing: each continues where the one before on the same handle ended."""
    pages = [call for call in calls if call.method == "tasks"]
    for first in pages:
        if first.arguments.get("after") is not None:
            continue
        chain = [first]
        while (cursor := chain[-1].answer[1]) is not None:
            following = (
                page
                for page in pages
                if page.handle == first.handle and page.start > chain[-1].end and page.arguments.get("after") == cursor
            )
            page = next(following, None)
            if page is None:
                break
            chain.append(page)
        yield chain


_RULES: Final[tuple[Callable[[_History], Iterator[Contradiction]], ...]] = (
    _unknown_errors,
    _held_twice,
    _budget_overrun,
    _stale_accepted,
    _ended_twice,
    _ended_and_retried,
    _half_failed,
    _torn_results,
    _taken_from_nobody,
    _lost_tasks,
    _lost_endings,
    _lost_claims,
    _lame_listings,
)
