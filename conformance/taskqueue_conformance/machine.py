"""A Hypothesis state machine that drives a twin, and writes down what it does as Gherkin."""

import asyncio
import os
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.lab import LEASE, MICROSECOND, NOON, Lab, moved_task, new_failure
from taskqueue_conformance.twin import HANDLES, Twin
from taskqueue_conformance.violation import Violation

STEPS: Final = 30
"""The largest number of calls in one example."""
SHRINKING_S: Final = 10.0
"""How long a counterexample is made smaller, in seconds."""
LATE: Final = NOON + timedelta(days=2)
"""When nearly everything is due."""

INSTANTS: Final = (
    NOON,
    NOON - MICROSECOND,
    NOON + MICROSECOND,
    NOON + LEASE,
    NOON + LEASE - MICROSECOND,
    NOON + LEASE + MICROSECOND,
    NOON - timedelta(hours=1),
    NOON + timedelta(seconds=1),
    NOON + timedelta(days=1),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
)
"""Few instants that lie close together, so that edges meet; in no order, so that time goes backwards too."""
IDS: Final = tuple("abcdefghijkl")

_STORAGE: Final = "HYPOTHESIS_STORAGE_DIRECTORY"

_handles = st.sampled_from(HANDLES)
_instants = st.sampled_from(INSTANTS)
_picks = st.integers(min_value=0, max_value=23)
_limits = st.sampled_from((1, 2, 100, 0, 3))
_offsets = st.sampled_from((0, 0, 0, 0, -1, 1))
_retries = st.one_of(_instants, st.none())
_outcomes = st.sampled_from(("complete", "fail", "extend"))
_values = st.sampled_from((b"value", b"", b"\x00\xff"))
_new_tasks = st.tuples(_picks, _instants, _instants, st.sampled_from((3, 3, 2, 1, 0)), st.sampled_from((0, 0, 0, 1, 2)))


def written_instant(instant: datetime) -> str:
    """Return an instant as a step of a scenario has it: UTC, with microseconds where there are any."""
    text = f"{instant:%Y-%m-%d %H:%M:%S.%f}"
    return text.removesuffix(".000000")


class Scribe:
    """Writes down calls as the steps of a scenario, in the phrases of ``steps/counterexamples.py``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def enqueue(self, handle: str, tasks: Sequence[Task]) -> None:
        """Write a call of enqueue."""
        written = ", ".join(
            f'"{task.id}" (enqueued {written_instant(task.enqueued_at)}, '
            f"available {written_instant(task.available_at)}, budget {task.max_retries}, attempts {task.attempts})"
            for task in tasks
        )
        self._step(f"handle {handle} enqueues {written}")

    def claim(self, handle: str, *, now: datetime, limit: int, lease_expires_at: datetime) -> None:
        """Write a call of claim."""
        until = written_instant(lease_expires_at)
        self._step(f"at {written_instant(now)} handle {handle} claims up to {limit} tasks with a lease until {until}")

    def complete(self, handle: str, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Write a call of complete."""
        written = f'b"{repr(value)[2:-1]}"'
        at = written_instant(now)
        self._step(f"at {at} handle {handle} completes {self._attempt(task_id, attempt)} with the value {written}")

    def fail(self, handle: str, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> None:
        """Write a call of fail."""
        retry = "no retry" if failure.retry_at is None else f"a retry at {written_instant(failure.retry_at)}"
        does = "recovers" if if_expired else "fails"
        at = written_instant(failure.failed_at)
        self._step(f"at {at} handle {handle} {does} {self._attempt(task_id, attempt)}, proposing {retry}")

    def cancel(self, handle: str, task_id: str, *, now: datetime) -> None:
        """Write a call of cancel."""
        self._step(f'at {written_instant(now)} handle {handle} cancels task "{task_id}"')

    def extend(self, handle: str, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> None:
        """Write a call of extend."""
        written = ", ".join(self._attempt(*claim) for claim in claims)
        self._step(f"handle {handle} extends until {written_instant(lease_expires_at)} {written}")

    def expired(self, handle: str, *, now: datetime, limit: int) -> None:
        """Write a call of expired."""
        self._step(f"at {written_instant(now)} handle {handle} lists up to {limit} expired leases")

    def purge(self, handle: str, *, finished_before: datetime, limit: int) -> None:
        """Write a call of purge."""
        self._step(f"handle {handle} purges up to {limit} tasks that ended before {written_instant(finished_before)}")

    def reopen(self, handle: str) -> None:
        """Write that a handle was closed and connected again."""
        self._step(f"handle {handle} is closed and connected again")

    def scenario(self, title: str, comment: str, requirement: str | None) -> str:
        """Return a feature file whose one scenario makes these calls."""
        return "\n".join(
            [
                f"# {comment}",
                "@counterexample" if requirement is None else f"@counterexample @{requirement}",
                "Feature: A counterexample to the contract",
                "",
                f"  Scenario: {title}",
                "    Given an empty store with the handles A and B, watched by the model of the contract",
                *self.lines,
                "    Then every answer and every stored field was as the model has it",
                "",
            ]
        )

    def _step(self, text: str) -> None:
        self.lines.append(f"    When {text}")

    @staticmethod
    def _attempt(task_id: str, attempt: int) -> str:
        return f'attempt {attempt} of task "{task_id}"'


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an example: a method of both :class:`~taskqueue_conformance.twin.Twin` and :class:`Scribe`."""

    method: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def on(self, target: Twin | Scribe) -> Any:
        """Make the call on a twin, or write it down."""
        return getattr(target, self.method)(*self.args, **self.options)


class ContractMachine(RuleBasedStateMachine):
    """Calls in any order, on either handle, with arguments that meet at the edges."""

    def __init__(self, exploration: "_Exploration") -> None:
        super().__init__()
        self._exploration = exploration
        self._calls: list[Call] = []
        self._twin = exploration.new_twin()

    @rule(handle=_handles, rows=st.lists(_new_tasks, min_size=1, max_size=4))
    def enqueue(self, handle: str, rows: list[tuple[int, datetime, datetime, int, int]]) -> None:
        """Enqueue tasks: new ones mostly, known ids and one id twice among them."""
        known = set(self._twin.model.stored)
        order = [task_id for task_id in IDS if task_id not in known] * 3 + sorted(known)
        tasks = [
            moved_task(
                # Ids that differ, unless the draw says otherwise: a refused call teaches little.
                order[(pick + position) % len(order)],
                enqueued_at=enqueued_at,
                available_at=available_at,
                max_retries=max_retries,
                attempts=attempts,
            )
            for position, (pick, enqueued_at, available_at, max_retries, attempts) in enumerate(rows)
        ]
        self._do("enqueue", handle, tasks)

    @precondition(lambda self: self.has(TaskStatus.PENDING))
    @rule(handle=_handles, now=_instants, limit=_limits, lease=_instants)
    def claim(self, handle: str, now: datetime, limit: int, lease: datetime) -> None:
        """Claim with any limit and any lease, also one that has run out already."""
        self._do("claim", handle, now=now, limit=limit, lease_expires_at=lease)

    @precondition(lambda self: self.has(TaskStatus.PENDING))
    @rule(handle=_handles, limit=st.sampled_from((100, 2)), lease=_instants)
    def claim_late(self, handle: str, limit: int, lease: datetime) -> None:
        """Claim when nearly everything is due, so that there is something to go on with."""
        self._do("claim", handle, now=LATE, limit=limit, lease_expires_at=lease)

    @precondition(lambda self: self.has(TaskStatus.PENDING))
    @rule(
        handle=_handles,
        leases=st.tuples(_instants, _instants, _instants),
        late=st.sampled_from((1, 0)),
        method=_outcomes,
        value=_values,
    )
    def claim_again(self, handle: str, leases: Sequence[datetime], late: int, method: str, value: bytes) -> None:
        """Claim and fail until some tasks are at their third attempts; then their holder, or a former one, acts."""
        for lease in leases:
            for task in self._twin.model.tasks(TaskStatus.RUNNING)[:3]:
                failure = new_failure(task.attempts, failed_at=NOON, retry_at=NOON + task.attempts * LEASE)
                self._do("fail", handle, task.id, task.attempts, failure, if_expired=False)
            self._do("claim", handle, now=LATE, limit=3, lease_expires_at=lease)
        running = self._twin.model.tasks(TaskStatus.RUNNING)
        if running:
            oldest = max(running, key=lambda task: task.attempts)
            self._outcome(handle, oldest.id, max(1, oldest.attempts - late), method, value)
        waiting = [task for task in self._twin.model.tasks(TaskStatus.PENDING) if task.failures]
        if waiting:
            self._do("cancel", handle, max(waiting, key=lambda task: task.attempts).id, now=NOON)

    @precondition(lambda self: self.has(TaskStatus.RUNNING))
    @rule(handle=_handles, pick=_picks, offset=_offsets, value=_values, now=_instants)
    def complete(self, handle: str, pick: int, offset: int, value: bytes, now: datetime) -> None:
        """Complete with the current attempt, a stale one or one that was never issued."""
        self._do("complete", handle, *self._claim(pick, offset), value=value, now=now)

    @precondition(lambda self: self.has(TaskStatus.RUNNING))
    @rule(handle=_handles, claim=st.tuples(_picks, _offsets), failed_at=_instants, retry_at=_retries)
    def fail(self, handle: str, claim: tuple[int, int], failed_at: datetime, retry_at: datetime | None) -> None:
        """Fail with any attempt, proposing any retry."""
        task_id, attempt = self._claim(*claim)
        failure = new_failure(attempt, failed_at=failed_at, retry_at=retry_at)
        self._do("fail", handle, task_id, attempt, failure, if_expired=False)

    @precondition(lambda self: self.has(TaskStatus.RUNNING))
    @rule(handle=_handles, claim=st.tuples(_picks, _offsets), failed_at=_instants, retry_at=_retries)
    def recover(self, handle: str, claim: tuple[int, int], failed_at: datetime, retry_at: datetime | None) -> None:
        """Fail as a recoverer does."""
        task_id, attempt = self._claim(*claim)
        failure = new_failure(attempt, failed_at=failed_at, retry_at=retry_at, traceback=None)
        self._do("fail", handle, task_id, attempt, failure, if_expired=True)

    @precondition(lambda self: self.has(*TaskStatus))
    @rule(handle=_handles, pick=_picks, now=_instants)
    def cancel(self, handle: str, pick: int, now: datetime) -> None:
        """Cancel in any status."""
        self._do("cancel", handle, self._claim(pick, 0)[0], now=now)

    @precondition(lambda self: self.has(TaskStatus.RUNNING))
    @rule(
        handle=_handles,
        chosen=st.lists(st.tuples(_picks, _offsets), min_size=1, max_size=4),
        lease=_instants,
    )
    def extend(self, handle: str, chosen: list[tuple[int, int]], lease: datetime) -> None:
        """Extend several claims, held or not, to any instant."""
        self._do("extend", handle, [self._claim(*one) for one in chosen], lease_expires_at=lease)

    @precondition(lambda self: self.has(TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED))
    @rule(handle=_handles, pick=_picks, offset=_offsets, method=_outcomes)
    def disturb(self, handle: str, pick: int, offset: int, method: str) -> None:
        """Complete, fail or extend what is not RUNNING, as likely as not."""
        tasks = [task for task in self._twin.model.tasks() if task.status is not TaskStatus.RUNNING]
        task = tasks[pick % len(tasks)]
        attempt = max(1, task.attempts + offset)
        self._outcome(handle, task.id, attempt, method, b"disturbance")

    @precondition(lambda self: self.has(TaskStatus.RUNNING))
    @rule(handle=_handles, now=_instants, limit=_limits)
    def expired(self, handle: str, now: datetime, limit: int) -> None:
        """List expired leases."""
        self._do("expired", handle, now=now, limit=limit)

    @precondition(lambda self: self.has(TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED))
    @rule(handle=_handles, finished_before=_instants, limit=_limits)
    def purge(self, handle: str, finished_before: datetime, limit: int) -> None:
        """Purge before any instant."""
        self._do("purge", handle, finished_before=finished_before, limit=limit)

    @precondition(lambda self: self.has(*TaskStatus))
    @rule(handle=_handles)
    def reopen(self, handle: str) -> None:
        """Close a handle and connect it again."""
        self._do("reopen", handle)

    def has(self, *statuses: TaskStatus) -> bool:
        """Return whether any task has one of these statuses."""
        return any(task.status in statuses for task in self._twin.model.tasks())

    def teardown(self) -> None:
        """Close the handles."""
        self._exploration.run(self._twin.close())

    def _claim(self, pick: int, offset: int) -> tuple[str, int]:
        """Return a claim: on a RUNNING task mostly, since on others little happens."""
        tasks = self._twin.model.tasks()
        running = [task.id for task in tasks if task.status is TaskStatus.RUNNING]
        candidates = running * 4 + [task.id for task in tasks] + ["unknown"]
        task_id = candidates[pick % len(candidates)]
        task = self._twin.model.stored.get(task_id)
        return task_id, max(1, (1 if task is None else task.attempts) + offset)

    def _outcome(self, handle: str, task_id: str, attempt: int, method: str, value: bytes) -> None:
        """Complete, fail or extend a claim that may not be held."""
        if method == "complete":
            self._do("complete", handle, task_id, attempt, value=value, now=LATE)
        elif method == "fail":
            failure = new_failure(attempt, failed_at=LATE, retry_at=LATE)
            self._do("fail", handle, task_id, attempt, failure, if_expired=False)
        else:
            self._do("extend", handle, [(task_id, attempt)], lease_expires_at=LATE)

    def _do(self, method: str, *args: Any, **options: Any) -> None:
        self._calls.append(Call(method, args, options))
        self._exploration.step(self._twin, self._calls)


class _Exploration:
    """What all examples share. Its methods are called from the thread of the machine, and block it."""

    def __init__(self, lab: Lab, loop: asyncio.AbstractEventLoop) -> None:
        self.examples = 0
        self.steps = 0
        self.found: tuple[list[Call], Exception] | None = None
        self._lab = lab
        self._loop = loop

    def new_twin(self) -> Twin:
        """Return a connected twin on an empty store."""
        self.examples += 1
        twin = Twin(self._lab, self._lab.new_store())
        self.run(twin.connect())
        return twin

    def run(self, call: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the event loop of the check."""
        asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def step(self, twin: Twin, calls: Sequence[Call]) -> None:
        """Make the last of ``calls``, and remember them all if it fails."""
        self.steps += 1
        try:
            self.run(calls[-1].on(twin))
        except Exception as error:
            self.found = ([*calls], error)
            raise

    def fails(self, calls: Sequence[Call]) -> tuple[list[Call], Exception] | None:
        """Make all of ``calls`` on an empty store; return those up to the first that fails, with what it raised."""
        twin = self.new_twin()
        try:
            for number, call in enumerate(calls):
                try:
                    self.run(call.on(twin))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
                    return [*calls[: number + 1]], error
            return None
        finally:
            self.run(twin.close())

    def reduce(self, calls: list[Call], error: Exception) -> tuple[list[Call], Exception]:
        """Leave out calls, many at once at first, as long as the same requirement is broken and time allows."""
        deadline = time.monotonic() + SHRINKING_S
        size = len(calls) // 2
        while size:
            start = 0
            while start < len(calls) and time.monotonic() < deadline:
                without = self.fails(calls[:start] + calls[start + size :])
                if without is not None and _broken(without[1]) == _broken(error):
                    calls, error = without
                else:
                    start += size
            size //= 2
        return self._reduce_rows(calls, error, deadline)

    def _reduce_rows(self, calls: list[Call], error: Exception, deadline: float) -> tuple[list[Call], Exception]:
        """Leave out single tasks and single claims of calls that take several."""
        for number, call in enumerate(calls):
            row = 0
            while isinstance(rows := calls[number].args[-1], list) and 1 < len(rows) > row:
                if time.monotonic() > deadline:
                    return calls, error
                shorter = replace(call, args=(*call.args[:-1], rows[:row] + rows[row + 1 :]))
                without = self.fails([*calls[:number], shorter, *calls[number + 1 :]])
                if without is not None and len(without[0]) == len(calls) and _broken(without[1]) == _broken(error):
                    calls, error = without
                else:
                    row += 1
        return calls, error


def _broken(error: Exception) -> str | None:
    return error.requirement if isinstance(error, Violation) else type(error).__name__


def _violation(calls: Sequence[Call], error: Exception, origin: str) -> Violation:
    if isinstance(error, Violation):
        found = error
    else:
        found = Violation(f"{calls[-1].method}()", expected="no exception", actual=f"{type(error).__name__}: {error}")
    scribe = Scribe()
    for call in calls:
        call.on(scribe)
    found.counterexample = scribe.scenario(f"{found.requirement or 'a call'} is broken", origin, found.requirement)
    return found


@contextmanager
def storage_elsewhere() -> Iterator[None]:
    """Keep Hypothesis from leaving a folder of its own in the adopter's working directory."""
    before = os.environ.get(_STORAGE)
    with tempfile.TemporaryDirectory(prefix="taskqueue-conformance-") as folder:
        os.environ[_STORAGE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_STORAGE]
            else:
                os.environ[_STORAGE] = before


async def explore(lab: Lab, *, examples: int, seed_number: int) -> dict[str, int]:
    """Run the machine against the lab's backend, and return how many examples and steps that took.

    Raises:
        Violation: The backend differs from the model; carries the smallest counterexample found as a scenario.
    """
    exploration = _Exploration(lab, asyncio.get_running_loop())

    @seed(seed_number)
    def machine() -> ContractMachine:
        return ContractMachine(exploration)

    def run() -> None:
        with storage_elsewhere():
            search()

    def search() -> None:
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # any factory will do, as its documentation says
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=False,
                print_blob=False,
                report_multiple_bugs=False,
                verbosity=Verbosity.quiet,
                # Leaving out whole calls, below, is quicker and gives shorter scenarios than shrinking the draws.
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )

    try:
        # Hypothesis is synchronous; in a thread of its own it leaves the loop to the backend.
        await asyncio.to_thread(run)
    except Exception:
        if exploration.found is None:
            raise
    if exploration.found is not None:
        calls, error = await asyncio.to_thread(exploration.reduce, *exploration.found)
        raise _violation(calls, error, f"Found with the seed {seed_number}.")
    return {"examples": exploration.examples, "steps": exploration.steps}
