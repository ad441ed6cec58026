"""Histories that are made up: what the contract allows passes, and each kind of breach is named and shown shortly."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskStatus
from taskqueue_conformance.history import contradiction
from taskqueue_conformance.lab import LEASE, NOON, new_failure, new_task
from taskqueue_conformance.recording import Call

SECOND = timedelta(seconds=1)


@dataclass
class Made:
    """A history as it is made up: each call says where it begins and ends; left out, it follows the last one."""

    calls: list[Call] = field(default_factory=list)
    lost_claim: bool = False

    def call(self, method: str, answer: Any = None, *, at: tuple[int, int] | None = None, **rest: Any) -> Call:
        after = max((call.end for call in self.calls), default=0)
        start, end = at or (after + 1, after + 2)
        outcome = {name: rest.pop(name) for name in ("error", "lost") if name in rest}
        handle = rest.pop("handle", f"handle{start % 3 + 1}")
        self.calls.append(Call(handle, method, rest, start, end, answer, **outcome))
        return self.calls[-1]

    def enqueue(self, *tasks: Task, **rest: Any) -> Call:
        return self.call("enqueue", tasks=tasks, **rest)

    def claim(self, *answer: Task, limit: int = 1, **rest: Any) -> Call:
        return self.call("claim", list(answer), now=NOON, limit=limit, lease_expires_at=NOON + LEASE, **rest)

    def complete(self, task_id: str, attempt: int = 1, value: bytes = b"value", **rest: Any) -> Call:
        return self.call("complete", task_id=task_id, attempt=attempt, value=value, now=NOON, **rest)

    def fail(self, task: Task, failure: Failure | None = None, **rest: Any) -> Call:
        failure = failure or new_failure(task.attempts, retry_at=NOON)
        answer = None if "error" in rest else failed(task, failure)
        return self.call("fail", answer, task_id=task.id, attempt=task.attempts, failure=failure, **rest)

    def cancel(self, task_id: str, *, done: bool = True, **rest: Any) -> Call:
        return self.call("cancel", done, task_id=task_id, now=NOON, **rest)

    def get(self, task_id: str, answer: Task | None, **rest: Any) -> Call:
        return self.call("get", answer, task_id=task_id, **rest)

    def tasks(self, *answer: Task, cursor: str | None = None, **rest: Any) -> Call:
        return self.call("tasks", (list(answer), cursor), limit=rest.pop("limit", 10), **rest)


def running(task: Task) -> Task:
    return replace(
        task,
        status=TaskStatus.RUNNING,
        attempts=task.attempts + 1,
        started_at=NOON,
        lease_expires_at=NOON + LEASE,
    )


def failed(task: Task, failure: Failure) -> Task:
    failures = (*task.failures, failure)
    if failure.retry_at is not None and task.attempts < task.max_retries:
        at = failure.retry_at
        return replace(task, status=TaskStatus.PENDING, available_at=at, lease_expires_at=None, failures=failures)
    failures = (*task.failures, replace(failure, retry_at=None))
    end = {"lease_expires_at": None, "finished_at": failure.failed_at, "failures": failures}
    return replace(task, status=TaskStatus.FAILED, **end)


def completed(task: Task, value: bytes = b"value") -> Task:
    return replace(task, status=TaskStatus.SUCCESS, lease_expires_at=None, finished_at=NOON, value=value)


def cancelled(task: Task) -> Task:
    return replace(task, status=TaskStatus.CANCELLED, lease_expires_at=None, finished_at=NOON)


A, B, C = new_task("a"), new_task("b"), new_task("c")
A1 = running(A)
RETRY = failed(A1, new_failure(1, retry_at=NOON))
A2 = running(RETRY)

Story = Callable[[Made], object]


def told(story: Story) -> Made:
    made = Made()
    for _ in [story(made)]:
        pass
    return made


def one_after_another(h: Made) -> Iterable[object]:
    return (
        h.enqueue(A, B), h.claim(A1), h.fail(A1), h.claim(A2, running(B), limit=5), h.get("a", A2),
        h.complete("a", 2), h.cancel("b"), h.cancel("b", done=False), h.get("a", completed(A2)),
        h.tasks(completed(A2), cancelled(running(B))),
    )  # fmt: skip


def claims_that_share(h: Made) -> Iterable[object]:
    return h.enqueue(A, B), h.claim(A1, at=(10, 20)), h.claim(running(B), at=(11, 19)), h.claim(at=(12, 18))


def a_claim_that_passes_over_what_is_cancelled(h: Made) -> Iterable[object]:
    return h.enqueue(A, B), h.claim(running(B), at=(10, 20)), h.cancel("a", at=(11, 25))


def enqueues_that_overlap_in_either_order(h: Made) -> Iterable[object]:
    # Seen alone first, and yet claimed second.
    return (
        h.enqueue(A, at=(1, 10)), h.enqueue(B, at=(2, 6)), h.tasks(B, at=(7, 8)),
        h.claim(A1), h.claim(running(B)),
    )  # fmt: skip


def a_complete_that_wins_against_a_cancel(h: Made) -> Iterable[object]:
    return (
        h.enqueue(A), h.claim(A1), h.complete("a", at=(10, 20)), h.cancel("a", done=False, at=(11, 21)),
        h.get("a", A1, at=(12, 13)), h.get("a", completed(A1), at=(14, 15)),
    )  # fmt: skip


def a_cancelled_claim_that_took_effect(h: Made) -> Iterable[object]:
    return h.enqueue(A), h.call("claim", now=NOON, limit=1, lease_expires_at=NOON + LEASE, lost=True), h.get("a", A1)


def a_cancelled_enqueue_that_did_not(h: Made) -> Iterable[object]:
    return h.enqueue(A), h.enqueue(B, lost=True), h.tasks(A)


def a_cancelled_call_that_lands_before_the_next(h: Made) -> Iterable[object]:
    return (
        h.enqueue(B), h.enqueue(A, lost=True, handle="x"), h.tasks(B, handle="y"),
        h.get("a", None, handle="x", at=(10, 20)), h.get("a", A, handle="y", at=(15, 16)),
    )  # fmt: skip


def a_cancelled_claim_that_is_seen_long_after_it_was_settled(h: Made) -> Iterable[object]:
    return (
        h.enqueue(A),
        h.call("claim", now=NOON, limit=1, lease_expires_at=NOON + LEASE, lost=True, handle="x"),
        h.get("b", None, handle="x"),
        h.get("c", None, handle="y"),
        h.call("tasks", limit=1, lost=True, handle="x"),
        h.get("a", A1, handle="y"),
    )


def a_purge(h: Made) -> Iterable[object]:
    return (
        h.enqueue(A, B), h.cancel("a"), h.cancel("b"),
        h.call("purge", 1, finished_before=NOON + SECOND, limit=1, at=(10, 20)),
        h.call("purge", 1, finished_before=NOON + SECOND, limit=5, at=(11, 19)),
        h.tasks(), h.enqueue(A), h.tasks(A),
    )  # fmt: skip


@pytest.mark.parametrize(
    "story",
    [
        one_after_another,
        claims_that_share,
        a_claim_that_passes_over_what_is_cancelled,
        enqueues_that_overlap_in_either_order,
        a_complete_that_wins_against_a_cancel,
        a_cancelled_claim_that_took_effect,
        a_cancelled_claim_that_is_seen_long_after_it_was_settled,
        a_cancelled_enqueue_that_did_not,
        a_cancelled_call_that_lands_before_the_next,
        a_purge,
    ],
)
def test_what_the_contract_allows_is_no_contradiction(story: Story) -> None:
    assert contradiction(told(story).calls) is None


def test_an_empty_history_is_no_contradiction() -> None:
    assert contradiction([]) is None


BREACHES: dict[str, tuple[str, int, Story]] = {
    # what happened: the requirement, how many calls show it, the history
    "one attempt twice": ("C1", 2, lambda h: (h.enqueue(A, B), h.claim(A1, at=(10, 20)), h.claim(A1, at=(11, 19)))),
    "claimed while it is held": ("C1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.claim(replace(A1, attempts=2)))),
    "an attempt that nobody got": ("C2", 2, lambda h: (h.enqueue(A), h.claim(limit=0), h.get("a", A1))),
    "the later one first": (
        "C3", 3,
        lambda h: (
            h.enqueue(replace(A, available_at=NOON - SECOND)), h.enqueue(B),
            h.claim(running(B)), h.get("b", running(B)),
        ),
    ),
    "the one enqueued later first": (
        "C3", 3, lambda h: (h.enqueue(A), h.enqueue(B), h.enqueue(C), h.claim(running(C))),
    ),
    "the list's order turned round": ("C3", 2, lambda h: (h.enqueue(A, B), h.claim(running(B), A1, limit=2))),
    "a claim that returned nothing": ("E2", 2, lambda h: (h.enqueue(A), h.claim(), h.get("a", A))),
    "claimed too early": (
        "E1", 2, lambda h: (h.enqueue(late := replace(A, available_at=NOON + SECOND)), h.claim(running(late))),
    ),
    "ended twice": (
        "L1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.complete("a", at=(10, 20)), h.cancel("a", at=(11, 21))),
    ),
    "retried after a cancel": ("L1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.cancel("a"), h.fail(A1))),
    "completed and failed": (
        "L1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.complete("a", at=(10, 20)), h.fail(A1, at=(11, 21))),
    ),
    "claimed after the end": ("L1", 2, lambda h: (h.enqueue(A), h.cancel("a"), h.claim(A1))),
    "one id enqueued twice": (
        "L1", 2, lambda h: (h.enqueue(C), h.enqueue(A, at=(10, 20)), h.enqueue(B, A, at=(11, 21)), h.get("c", C)),
    ),
    "a late complete accepted": (
        "L2", 2, lambda h: (h.enqueue(A), h.claim(A1), h.fail(A1), h.claim(A2), h.complete("a", 1)),
    ),
    "a late heartbeat accepted": (
        "L2", 2,
        lambda h: (
            h.enqueue(A), h.claim(A1), h.fail(A1), h.claim(A2),
            h.call("extend", [("a", 1)], claims=[("a", 1)], lease_expires_at=NOON + LEASE),
        ),
    ),
    "a claim that is held refused": (
        "L2", 3,
        lambda h: (
            h.enqueue(A), h.claim(A1),
            h.complete("a", error=StaleClaim("a", 1, status=TaskStatus.RUNNING, attempts=1)),
        ),
    ),
    "a value that comes later": (
        "V1", 2,
        lambda h: (
            h.enqueue(A), h.claim(A1), h.complete("a", at=(10, 20)),
            h.get("a", completed(A1, b""), at=(11, 12)),
        ),
    ),
    "another's value": (
        "V1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.complete("a"), h.get("a", completed(A1, b"other"))),
    ),
    "FAILED on the way to a retry": (
        "R2", 2,
        lambda h: (
            h.enqueue(A), h.claim(A1), h.fail(A1, at=(10, 20)),
            h.get("a", failed(A1, new_failure(1)), at=(11, 12)),
        ),
    ),
    "one claim too many": (
        "R1", 2,
        lambda h: (
            h.enqueue(a := replace(A, max_retries=1)), h.claim(running(a)),
            h.call("fail", replace(a, attempts=1), task_id="a", attempt=1, failure=new_failure(1, retry_at=NOON)),
            h.claim(replace(running(a), attempts=2)),
        ),
    ),
    "an enqueue forgotten": ("D1", 2, lambda h: (h.enqueue(A), h.get("a", None))),
    "an enqueue not listed": ("LISTING", 2, lambda h: (h.enqueue(A), h.enqueue(B), h.tasks(A))),
    "a complete forgotten": ("D1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.complete("a"), h.get("a", A1))),
    "a claim forgotten": ("D1", 2, lambda h: (h.enqueue(A), h.claim(A1), h.get("a", A))),
    "a cancel undone by a heartbeat": (
        "L1", 3,
        lambda h: (
            h.enqueue(A), h.claim(A1),
            h.call("extend", [("a", 1)], claims=[("a", 1)], lease_expires_at=NOON + LEASE, at=(10, 20)),
            h.cancel("a", at=(11, 12)), h.get("a", A1),
        ),
    ),
    "an error of the driver's": (
        "X1", 2,
        lambda h: (
            h.enqueue(A), h.cancel("a", at=(10, 20)),
            h.get("a", None, at=(11, 12), error=OSError("database is locked")), h.get("a", cancelled(A)),
        ),
    ),
    "half of an enqueue": (
        "API", 2, lambda h: (h.enqueue(A, B, at=(1, 20)), h.tasks(A, at=(5, 6)), h.tasks(A, B)),
    ),
    "counts that add up to nothing": (
        "LISTING", 2,
        lambda h: (h.enqueue(A), h.call("counts", dict.fromkeys(TaskStatus, 0), at=(10, 20))),
    ),
    "a listing that leaves one out": (
        "LISTING", 3,
        lambda h: (
            h.enqueue(A, B, C), h.tasks(A, cursor="1", handle="x", limit=1, after=None),
            h.tasks(C, handle="x", limit=1, after="1"),
        ),
    ),
    "a listing with one twice": (
        "LISTING", 2,
        lambda h: (
            h.enqueue(A, B), h.tasks(A, cursor="1", handle="x", limit=1, after=None),
            h.tasks(A, B, handle="x", limit=2, after="1"),
        ),
    ),
    "a purge that counts what another removed": (
        "G1", 5,
        lambda h: (
            h.enqueue(A), h.enqueue(B), h.cancel("a"),
            h.call("purge", 1, finished_before=NOON + SECOND, limit=5, at=(10, 20)),
            h.call("purge", 1, finished_before=NOON + SECOND, limit=5, at=(11, 19)), h.tasks(B),
        ),
    ),
    "a purged task that is still there": (
        "G1", 4,
        lambda h: (
            h.enqueue(A), h.cancel("a"), h.call("purge", 1, finished_before=NOON + SECOND, limit=5),
            h.get("a", cancelled(A)),
        ),
    ),
    "a refusal with the wrong ids": (
        "L1", 2, lambda h: (h.enqueue(A, B), h.enqueue(A, B, error=TaskExists(["a"])), h.get("a", A)),
    ),
    "a cancelled call that lands after the next one": (
        "X1", 3,
        lambda h: (
            h.enqueue(B), h.enqueue(A, lost=True, handle="x"), h.tasks(B, handle="x"),
            h.get("a", None, handle="y"), h.get("a", A, handle="y"),
        ),
    ),
    "a cancelled call that takes half": (
        "X1", 2, lambda h: (h.enqueue(C), h.enqueue(A, B, lost=True, handle="x"), h.tasks(C, A, handle="x")),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("requirement", "size", "story"), BREACHES.values(), ids=BREACHES)
def test_a_breach_is_named_and_shown_by_the_calls_that_matter(requirement: str, size: int, story: Story) -> None:
    found = contradiction(told(story).calls)
    assert found is not None
    assert (found.requirement, len(found.calls)) == (requirement, size), f"{found.expected}\n{found}"


def test_a_contradiction_can_be_read() -> None:
    found = contradiction(told(BREACHES["one attempt twice"][2]).calls)
    assert found is not None
    assert found.expected == "attempt 1 of a for one claim only"
    first, second = str(found).splitlines()
    assert first.startswith(" 10-20  handle2.claim(now=12:00:00, limit=1, ")
    assert second.startswith(" 11-19  handle3.claim(")
    assert second.endswith("-> [<a RUNNING, attempt 1 of 3, available 12:00:00>]")


def test_what_happened_before_and_beside_is_left_out() -> None:
    made = Made()
    bystanders = [new_task(f"x{number}") for number in range(8)]
    made.enqueue(*bystanders)
    for task in bystanders:
        made.get(task.id, task)
    made.enqueue(A)
    made.cancel("x3")
    made.claim(running(bystanders[0]))
    made.get("a", A)
    made.cancel("a", done=False)
    for task in bystanders[4:]:
        made.get(task.id, task)
    found = contradiction(made.calls)
    assert found is not None
    assert [call.method for call in found.calls] == ["enqueue", "cancel"]
