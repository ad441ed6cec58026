import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from taskqueue import (
    DeserializationError,
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    SerializationError,
    SignatureError,
    StaleClaim,
    StoreUnavailable,
    TaskCancelled,
    TaskExists,
    TaskFailed,
    TaskNotEnded,
    TaskNotFound,
    TaskQueueError,
    TaskStatus,
    TooLarge,
    UnknownScheme,
    errors,
)

EXAMPLES = [
    InvalidArgument("eta", 3, "pass a datetime"),
    NotConnected("call connect() first"),
    TaskNotFound("t-1"),
    TaskExists(["t-1", "t-2"]),
    StaleClaim("t-1", 2, status=TaskStatus.RUNNING, attempts=3, lease_expires_at=datetime(2030, 1, 1, tzinfo=UTC)),
    TooLarge("the payload", size=5, limit=4),
    TaskCancelled("t-1"),
    TaskFailed("t-1", "ValueError: bad", "Traceback …"),
    SerializationError("a lock", "it cannot be pickled"),
    DeserializationError("a value", "it is cut short"),
    UnknownScheme("nosuch://x", ["memory", "sqlite"]),
    IncompatibleStore("/x.db", found=9, supported=1),
    StoreUnavailable("/x.db", "is a directory"),
    TaskNotEnded("t-1", status=TaskStatus.RUNNING),
    SignatureError("a payload", "no key fits"),
]


def test_every_error_of_ours_has_an_example_here() -> None:
    ours = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TaskQueueError)}
    assert {type(example) for example in EXAMPLES} == ours - {TaskQueueError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_keep_their_data_when_copied_and_pickled(
    error: TaskQueueError, duplicate: Callable[[TaskQueueError], TaskQueueError]
) -> None:
    again = duplicate(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(InvalidArgument("a", 1, "b"), ValueError), (TaskNotFound("x"), LookupError), (EXAMPLES[10], ValueError)],
)
def test_errors_are_caught_as_the_built_in_that_people_expect(error: TaskQueueError, builtin: type[Exception]) -> None:
    assert isinstance(error, builtin)
    assert isinstance(error, TaskQueueError)


def test_a_message_does_not_grow_with_the_value() -> None:
    assert len(str(InvalidArgument("payload", "x" * 10**6, "too long"))) < 200


def test_a_failure_shows_where_the_task_raised() -> None:
    assert "remote frame" in str(TaskFailed("t", "ValueError: bad", "remote frame"))
    assert "None" not in str(TaskFailed("t", "lease ran out", None))
