import pytest

from taskqueue import TaskStatus
from taskqueue.status import OUTCOMES, TRANSITIONS


def test_there_are_exactly_the_five_statuses_of_the_specification() -> None:
    assert [status.name for status in TaskStatus] == ["PENDING", "RUNNING", "SUCCESS", "FAILED", "CANCELLED"]


@pytest.mark.parametrize("status", TaskStatus)
def test_a_status_equals_its_name_in_lower_case(status: TaskStatus) -> None:
    assert status == status.name.lower()
    assert f"{status}" == status.name.lower()
    assert TaskStatus(status.name.lower()) is status


def test_a_task_has_ended_in_three_of_them() -> None:
    assert {status for status in TaskStatus if status.ended} == {"success", "failed", "cancelled"} == OUTCOMES


def test_every_status_has_its_successors_and_only_a_failed_outcome_has_one() -> None:
    assert set(TRANSITIONS) == set(TaskStatus)
    assert {(a, b) for a, following in TRANSITIONS.items() for b in following} == {
        ("pending", "running"),
        ("pending", "cancelled"),
        ("running", "success"),
        ("running", "failed"),
        ("running", "cancelled"),
        ("failed", "pending"),
    }
