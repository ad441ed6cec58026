"""``make_task`` and ``Task`` make the same records."""

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from taskqueue import Failure, Task, TaskStatus
from taskqueue._make_task import make_task

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
WHOLE = Task(
    id="a",
    payload=b"payload",
    enqueued_at=NOON,
    available_at=NOON + timedelta(seconds=1),
    max_retries=3,
    status=TaskStatus.SUCCESS,
    attempts=2,
    started_at=NOON + timedelta(seconds=2),
    lease_expires_at=NOON + timedelta(seconds=3),
    finished_at=NOON + timedelta(seconds=4),
    value=b"value",
    failures=(Failure(attempt=1, error="boom", failed_at=NOON),),
)


def test_every_field_is_where_it_belongs() -> None:
    fields = {field.name: getattr(WHOLE, field.name) for field in dataclasses.fields(Task)}
    made = make_task(fields.pop("id"), **fields)
    assert (made, type(made)) == (WHOLE, Task)


def test_the_defaults_are_those_of_a_new_task() -> None:
    assert make_task("a", b"", NOON, NOON, 0) == Task(id="a", payload=b"", enqueued_at=NOON, available_at=NOON)


def test_what_is_made_is_frozen_and_can_be_copied() -> None:
    made = make_task("a", b"", NOON, NOON, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.id = "b"  # type: ignore[misc]  # which is the point
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == dataclasses.replace(made) == made
    assert hash(made) == hash(dataclasses.replace(made))
