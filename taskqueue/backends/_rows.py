"""The columns of a stored task, the same in every table, and how a task is written to them and read from them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from taskqueue._make_task import make_task
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

_FIELDS: Final = (
    "id",
    "status",
    "enqueued_at",
    "available_at",
    "max_retries",
    "attempts",
    "started_at",
    "lease_expires_at",
    "finished_at",
    "failures",
    "payload",
    "value",
)
COLUMNS: Final = ", ".join(_FIELDS)
"""The columns from which :func:`task_of_row` makes a task, in its order."""

# Under frozen time the name `datetime` may stand for a subclass; what is handed out is of the type itself.
_DATETIME: Final = next(kind for kind in datetime.__mro__ if kind.__name__ == "datetime")
_EPOCH: Final[datetime] = _DATETIME(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


# Twice as fast as the class.
_STATUSES: Final = {str(status): status for status in TaskStatus}


class DamagedRow(Exception):
    """A row that no task can be made of."""


def microseconds(instant: datetime) -> int:
    """Return the whole microseconds from 1970 to ``instant``, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def optional_microseconds(instant: datetime | None) -> int | None:
    """Return the same as :func:`microseconds`, or None for None."""
    return None if instant is None else (instant - _EPOCH) // _MICROSECOND


@lru_cache(maxsize=128)  # the tasks of one claim have several instants in common
def instant_of(stored: int) -> datetime:
    """Return the instant, in UTC, that lies ``stored`` microseconds after 1970, exactly."""
    return _EPOCH + timedelta(microseconds=stored)


def _optional_instant(stored: int | None) -> datetime | None:
    return None if stored is None else instant_of(stored)


def with_stored_instants(tasks: Iterable[Task]) -> Iterator[tuple[Task, int, int]]:
    """Yield each task with its ``enqueued_at`` and ``available_at`` as they are stored.

    The tasks of one call share an instant, which is converted once.
    """
    instant, stored = None, 0
    for task in tasks:
        if task.enqueued_at is not instant:
            instant = task.enqueued_at
            stored = microseconds(instant)
        yield task, stored, stored if task.available_at is instant else microseconds(task.available_at)


def row_of_task(task: Task) -> tuple[object, ...]:
    """Return the values of ``COLUMNS`` for a task; nothing in it can be changed from outside any more."""
    return (
        task.id,
        str(task.status),
        microseconds(task.enqueued_at),
        microseconds(task.available_at),
        task.max_retries,
        task.attempts,
        optional_microseconds(task.started_at),
        optional_microseconds(task.lease_expires_at),
        optional_microseconds(task.finished_at),
        "".join(map(line_of_failure, task.failures)),
        bytes(task.payload),
        None if task.value is None else bytes(task.value),
    )


def task_of_row(row: Sequence[Any]) -> Task:
    """Return the task in a row of ``COLUMNS``; columns behind them are ignored.

    Raises:
        DamagedRow: Something other than this package has written it.
    """
    failures: str = row[9]
    try:
        return make_task(
            row[0],
            row[10],
            enqueued_at=instant_of(row[2]),
            available_at=instant_of(row[3]),
            max_retries=row[4],
            status=_STATUSES[row[1]],
            attempts=row[5],
            started_at=_optional_instant(row[6]),
            lease_expires_at=_optional_instant(row[7]),
            finished_at=_optional_instant(row[8]),
            value=row[11],
            failures=tuple(map(_failure_of_line, failures.split("\n")[:-1])) if failures else (),
        )
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError) as error:
        raise DamagedRow(f"task {row[0]!r} is damaged ({error}); something else has written to the file") from error


def line_of_failure(failure: Failure) -> str:
    """Return a failure as one line of ASCII JSON with its line feed."""
    fields = (
        failure.attempt,
        failure.error,
        failure.traceback,
        microseconds(failure.failed_at),
        optional_microseconds(failure.retry_at),
    )
    return json.dumps(fields, separators=(",", ":")) + "\n"


def _failure_of_line(line: str) -> Failure:
    attempt, error, traceback, failed_at, retry_at = json.loads(line)
    return Failure(
        attempt=attempt,
        error=error,
        traceback=traceback,
        failed_at=instant_of(failed_at),
        retry_at=_optional_instant(retry_at),
    )
