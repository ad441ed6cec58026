import copy
import dataclasses
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue import DeserializationError, Result, TaskFailed, TaskResult, TaskStatus

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def refuse(data: bytes) -> Any:
    raise RuntimeError(f"cannot read {data!r}")


def make(**changes: Any) -> Result:
    return Result(
        **{
            "task_id": "t-1",
            "status": TaskStatus.SUCCESS,
            "value": b"42",
            "enqueued_at": NOON,
            "finished_at": NOON,
            "attempts": 1,
            "_loads": int,
        }
        | changes
    )


FAILED = {"status": TaskStatus.FAILED, "value": None, "error": "ValueError: bad", "traceback": "Traceback: here"}


def test_the_specification_s_other_name_is_the_same_class() -> None:
    assert TaskResult is Result


def test_status_compares_as_text_and_as_member() -> None:
    assert make().status == "success"
    assert make(**FAILED).status is TaskStatus.FAILED


def test_unwrap_gives_the_value_and_value_stays_serialised() -> None:
    result = make()
    assert result.unwrap() == 42
    assert result.value == b"42"
    assert result.unwrap() == 42


def test_unwrap_of_an_empty_value_loads_it() -> None:
    assert make(value=b"", _loads=len).unwrap() == 0


def test_unwrap_of_a_failure_raises_with_the_remote_trace() -> None:
    with pytest.raises(TaskFailed, match="ValueError: bad") as caught:
        make(**FAILED).unwrap()
    assert (caught.value.task_id, caught.value.error) == ("t-1", "ValueError: bad")
    assert caught.value.remote_traceback == "Traceback: here"


def test_unwrap_says_which_value_cannot_be_loaded() -> None:
    with pytest.raises(DeserializationError, match=r"t-1.*RuntimeError"):
        make(_loads=refuse).unwrap()


def test_the_loader_is_outside_equality_hash_and_repr() -> None:
    assert make(_loads=int) == make(_loads=float)
    assert hash(make(_loads=int)) == hash(make(_loads=float))
    assert "loads" not in repr(make())


def test_a_pickled_result_is_equal_and_leaves_the_loader_behind() -> None:
    again = pickle.loads(pickle.dumps(make(_loads=lambda data: data)))
    assert again == make()
    with pytest.raises(DeserializationError, match=r"unwrap\(queue\.serializer\.loads\)"):
        again.unwrap()
    assert again.unwrap(int) == 42


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, dataclasses.replace])
def test_a_copy_can_be_unwrapped(duplicate: Callable[[Result], Result]) -> None:
    assert duplicate(make()).unwrap() == 42


def test_a_result_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().status = TaskStatus.FAILED
