"""The first wrong answer, found by making the calls again on the model."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from taskqueue import NotConnected, StaleClaim, Task, TaskStatus
from taskqueue_conformance.hindsight import Record, first_breach
from taskqueue_conformance.lab import LEASE, NOON, new_failure, new_task

A, B = new_task("a"), new_task("b", available_at=NOON + timedelta(microseconds=1))
RUNNING = replace(A, status=TaskStatus.RUNNING, attempts=1, started_at=NOON, lease_expires_at=NOON + LEASE)
CLAIM = {"now": NOON, "limit": 5, "lease_expires_at": NOON + LEASE}


def recorded(*calls: tuple[str, dict[str, Any], Any]) -> Record:
    record = Record()
    for method, arguments, answer in calls:
        record.end(record.begin("handle", "store", method, arguments), answer)
    return record


ENQUEUED = ("enqueue", {"tasks": [A, B]}, None)
CLAIMED = ("claim", CLAIM, [RUNNING])
CLAIMED_WITH_BUDGET = ("claim", CLAIM, [replace(RUNNING, max_retries=2)])


def test_no_breach_is_found_where_every_answer_is_right() -> None:
    record = recorded(
        ENQUEUED,
        CLAIMED,
        ("complete", {"task_id": "a", "attempt": 2, "value": b"", "now": NOON},
         StaleClaim("a", 2, status=TaskStatus.RUNNING, attempts=1)),
        ("get", {"task_id": "a"}, RUNNING),
        ("next_due", {}, B.available_at),
    )  # fmt: skip
    assert first_breach(record.calls) is None


@pytest.mark.parametrize(
    ("breaks", "lease"),
    [("L2", LEASE - timedelta(microseconds=1)), ("E3", LEASE - timedelta(microseconds=2)), ("L2", timedelta(0))],
)
def test_a_lease_is_shortened_where_extend_stores_what_it_is_given_and_else_stored_badly(
    breaks: str, lease: timedelta
) -> None:
    asked = NOON + LEASE - timedelta(microseconds=1)
    record = recorded(
        ENQUEUED,
        CLAIMED,
        ("extend", {"claims": [("a", 1)], "lease_expires_at": asked}, [("a", 1)]),
        ("get", {"task_id": "a"}, replace(RUNNING, lease_expires_at=NOON + lease)),
    )
    breach = first_breach(record.calls)
    assert breach is not None
    assert breach.requirement == breaks


@pytest.mark.parametrize(
    ("breaks", "answer"),
    [
        ("E2", []),
        ("E1", [RUNNING, replace(RUNNING, id="b", payload=B.payload, available_at=B.available_at)]),
        ("E3", [replace(RUNNING, available_at=NOON - timedelta(microseconds=1))]),
        ("P1", [replace(RUNNING, payload=b"")]),
        ("C2", [A]),
        ("C3", ValueError("undecodable")),
    ],
)
def test_a_wrong_claim_is_named_by_what_is_wrong_with_it(breaks: str, answer: Any) -> None:
    breach = first_breach(recorded(ENQUEUED, ("claim", CLAIM, answer)).calls)
    assert breach is not None
    assert breach.requirement == breaks
    assert "claim(" in str(breach)


def test_a_record_that_is_wrong_later_is_put_down_to_the_call_that_wrote_it() -> None:
    done = replace(
        RUNNING, status=TaskStatus.SUCCESS, value=b"", finished_at=NOON, lease_expires_at=None, started_at=None
    )
    completed = ("complete", {"task_id": "a", "attempt": 1, "value": b"", "now": NOON}, None)
    breach = first_breach(recorded(ENQUEUED, CLAIMED, completed, ("get", {"task_id": "a"}, done)).calls)
    assert breach is not None
    assert breach.requirement == "V1"


def test_what_is_lost_by_closing_is_a_matter_of_durability() -> None:
    reopened = (("close", {}, None), ("connect", {}, None), ("get", {"task_id": "a"}, None))
    breach = first_breach(recorded(ENQUEUED, *reopened).calls)
    assert breach is not None
    assert breach.requirement == "D1"


def test_a_listing_that_is_empty_after_reopening_is_a_matter_of_durability() -> None:
    listed = ("tasks", {"status": None, "after": None, "limit": 5}, ([], None))
    reopened = (("close", {}, None), ("connect", {}, None))
    assert (breach := first_breach(recorded(ENQUEUED, *reopened, listed).calls)) is not None
    assert breach.requirement == "D1"
    assert (breach := first_breach(recorded(ENQUEUED, listed).calls)) is not None
    assert breach.requirement == "LISTING"


@pytest.mark.parametrize(
    ("answer", "breaks"),
    [
        (replace(A, started_at=NOON), "R1"),
        (A, "R1"),
        (replace(RUNNING, started_at=None), "C2"),
    ],
)
def test_a_claim_that_left_the_attempt_uncounted_breaks_the_budget(answer: Task, breaks: str) -> None:
    breach = first_breach(recorded(ENQUEUED, CLAIMED, ("get", {"task_id": "a"}, answer)).calls)
    assert breach is not None
    assert breach.requirement == breaks


@pytest.mark.parametrize(("attempts", "breaks"), [(1, "R2"), (2, "C2")])
def test_a_task_that_is_still_running_after_its_failure_breaks_the_retry(attempts: int, breaks: str) -> None:
    task = replace(A, max_retries=3)
    running = replace(RUNNING, max_retries=3)
    failure = new_failure(1, retry_at=NOON + timedelta(hours=1))
    waiting = replace(task, attempts=1, started_at=NOON, available_at=NOON + timedelta(hours=1), failures=(failure,))
    failed = ("fail", {"task_id": "a", "attempt": 1, "failure": failure}, waiting)
    seen = ("get", {"task_id": "a"}, replace(running, attempts=attempts))
    enqueued = ("enqueue", {"tasks": [task, B]}, None)
    breach = first_breach(recorded(enqueued, ("claim", CLAIM, [running]), failed, seen).calls)
    assert breach is not None
    assert breach.requirement == breaks


@pytest.mark.parametrize(
    ("answer", "breaks"),
    [
        ([replace(RUNNING, id="b", payload=B.payload, available_at=NOON - timedelta(hours=1))], "E3"),
        ([replace(RUNNING, available_at=NOON - timedelta(hours=1))], "C2"),
    ],
)
def test_tasks_that_were_chosen_by_another_instant_were_stored_with_it(answer: Any, breaks: str) -> None:
    claim = CLAIM | {"now": NOON + timedelta(seconds=1), "limit": 1}
    answer = [replace(task, started_at=claim["now"]) for task in answer]
    breach = first_breach(recorded(ENQUEUED, ("claim", claim, answer)).calls)
    assert breach is not None
    assert breach.requirement == breaks


def test_a_wrong_sum_counts_only_if_no_record_is_wrong() -> None:
    counts: dict[str, Any] = {}
    alone = recorded(ENQUEUED, ("counts", {}, counts))
    assert (breach := first_breach(alone.calls)) is not None
    assert breach.requirement == "LISTING"
    gone = recorded(ENQUEUED, CLAIMED, ("counts", {}, counts), ("get", {"task_id": "a"}, None))
    assert (breach := first_breach(gone.calls)) is not None
    assert breach.requirement == "C2"


def _overlapped(record: Record) -> None:
    calls = [record.begin("handle", "store", "claim", CLAIM) for _ in range(4)]
    for call in calls:
        record.end(call, [])


def _cancelled(record: Record) -> None:
    record.end(record.begin("handle", "store", "claim", CLAIM), asyncio.CancelledError())


def _of_somebody_else(record: Record) -> None:
    record.end(record.begin("handle", "store", "get", {"task_id": "c"}), new_task("c"))


@pytest.mark.parametrize("unclear", [_overlapped, _cancelled, _of_somebody_else])
def test_nothing_is_said_once_the_order_or_the_state_is_unclear(unclear: Callable[[Record], None]) -> None:
    record = recorded(ENQUEUED)
    unclear(record)
    record.end(record.begin("handle", "store", "get", {"task_id": "a"}), None)
    assert first_breach(record.calls) is None


def test_a_connected_handle_that_says_it_is_not_breaks_what_handles_promise() -> None:
    record = recorded(("connect", {}, None), ("claim", CLAIM, NotConnected("no")))
    assert (breach := first_breach(record.calls)) is not None
    assert breach.requirement == "HANDLES"


def test_an_instant_that_is_kept_wrongly_is_named() -> None:
    wrong = replace(A, available_at=NOON.replace(tzinfo=None), enqueued_at=A.enqueued_at + timedelta(hours=1))
    breach = first_breach(recorded(ENQUEUED, ("get", {"task_id": "a"}, wrong)).calls)
    assert breach is not None
    assert breach.requirement == "E3"


@pytest.mark.parametrize(("answers", "breaks"), [(([], [RUNNING]), None), (([RUNNING], []), None), (([], []), "E2")])
def test_calls_that_overlapped_may_have_happened_in_any_order(answers: Any, breaks: str | None) -> None:
    record = recorded(ENQUEUED)
    calls = [record.begin("handle", "store", "claim", CLAIM) for _ in answers]
    for call, answer in zip(calls, answers, strict=True):
        record.end(call, answer)
    record.end(record.begin("handle", "store", "get", {"task_id": "a"}), RUNNING)
    breach = first_breach(record.calls)
    assert (breach and breach.requirement) == breaks


def test_a_wrong_answer_beside_a_sum_is_named_in_either_order() -> None:
    """The sum was right of the wrong store: it is only wrong if the other call is put behind it."""
    failure = new_failure(1, retry_at=NOON + timedelta(seconds=1))
    failed = {"task_id": "a", "attempt": 1, "failure": failure, "if_expired": False}
    wrong = replace(RUNNING, status=TaskStatus.PENDING, failures=(failure,), lease_expires_at=None, available_at=NOON)
    record = recorded(("enqueue", {"tasks": [replace(A, max_retries=2)]}, None), CLAIMED_WITH_BUDGET)
    asking = record.begin("handle", "store", "next_due", {})
    failing = record.begin("handle", "store", "fail", failed)
    record.end(asking, NOON)
    record.end(failing, replace(wrong, max_retries=2))
    breach = first_breach(record.calls)
    assert breach is not None
    assert breach.requirement == "R2"


def test_a_wrong_sum_beside_another_call_counts_if_some_order_explains_the_rest() -> None:
    record = recorded(ENQUEUED)
    claiming = record.begin("handle", "store", "claim", CLAIM)
    asking = record.begin("handle", "store", "next_due", {})
    getting = record.begin("handle", "store", "get", {"task_id": "a"})
    record.end(asking, NOON - timedelta(days=1))
    record.end(getting, A)
    record.end(claiming, [RUNNING])
    breach = first_breach(record.calls)
    assert breach is not None
    assert (breach.requirement, breach.call.method) == ("LISTING", "next_due")


def test_a_claim_that_two_callers_were_given_is_named_in_any_disorder() -> None:
    record = recorded(ENQUEUED)
    calls = [record.begin("handle", "store", "claim", CLAIM) for _ in range(5)]
    for call in calls:
        record.end(call, [RUNNING])
    assert (breach := first_breach(record.calls)) is not None
    assert breach.requirement == "C1"


def test_a_refused_connection_changes_nothing() -> None:
    record = recorded(ENQUEUED, ("claim", CLAIM, NotConnected("no")), CLAIMED, ("get", {"task_id": "a"}, RUNNING))
    assert first_breach(record.calls) is None


def test_stores_are_kept_apart() -> None:
    record = recorded(ENQUEUED)
    record.end(record.begin("handle", "another", "get", {"task_id": "a"}), None)
    assert first_breach(record.calls) is None


def test_a_failure_with_budget_left_must_go_back_to_pending() -> None:
    failure = new_failure(1, retry_at=NOON + timedelta(hours=1))
    failed = replace(
        RUNNING, status=TaskStatus.FAILED, finished_at=NOON, lease_expires_at=None,
        failures=(replace(failure, retry_at=None),),
    )  # fmt: skip
    call = ("fail", {"task_id": "a", "attempt": 1, "failure": failure}, failed)
    breach = first_breach(recorded(ENQUEUED, CLAIMED, call).calls)
    assert breach is not None
    assert breach.requirement == "R2"


def test_the_arguments_are_those_of_the_call_even_if_the_list_changes_later() -> None:
    record, tasks = Record(), [A]
    record.end(record.begin("handle", "store", "enqueue", {"tasks": tasks}), None)
    tasks.append(Task(id="z", payload=b"", enqueued_at=NOON, available_at=NOON))
    record.end(record.begin("handle", "store", "get", {"task_id": "a"}), A)
    record.end(record.begin("handle", "store", "tasks", {"status": None, "after": None, "limit": 5}), ([A], None))
    assert first_breach(record.calls) is None


@pytest.mark.parametrize("failed", [False, True])
def test_a_task_that_is_claimed_again_before_its_attempt_has_failed_has_two_holders(failed: bool) -> None:  # noqa: FBT001
    """Whatever else overlapped."""
    record = recorded(ENQUEUED, CLAIMED)
    others = [record.begin("handle", "store", "enqueue", {"tasks": [new_task(f"other {n}")]}) for n in range(5)]
    completing = record.begin("handle", "store", "complete", {"task_id": "a", "attempt": 1, "value": b"", "now": NOON})
    if failed:
        failing = record.begin(
            "handle", "store", "fail", {"task_id": "a", "attempt": 1, "failure": new_failure(), "if_expired": False}
        )
        record.end(failing, ValueError("unclear"))
    again = record.begin("handle", "store", "claim", CLAIM)
    record.end(again, [replace(RUNNING, attempts=2)])
    record.end(completing, StaleClaim("a", 1, status=TaskStatus.RUNNING, attempts=2))
    for other in others:
        record.end(other, None)
    breach = first_breach(record.calls)
    assert (breach is not None and breach.requirement == "C1") is not failed


def test_what_a_call_should_have_answered_is_what_it_asked_for() -> None:
    record = recorded(ENQUEUED, ("tasks", {"status": None, "after": None, "limit": 1}, IndexError("page[-1]")))
    breach = first_breach(record.calls)
    assert breach is not None
    assert breach.requirement == "LISTING"
    assert breach.expected == [A]
    assert str(breach).splitlines()[1] == "raised IndexError"
