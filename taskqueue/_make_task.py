"""Making the records of tasks quickly: each call of a queue makes at least one."""

from datetime import datetime
from typing import Final

from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

_PENDING: Final = TaskStatus.PENDING


class _Unfrozen:
    """A task before it is frozen. A frozen dataclass sets each field by ``object.__setattr__``, which takes long."""

    __slots__ = Task.__slots__

    def __init__(  # noqa: PLR0917 - keywords take longer
        self,
        task_id: str,
        payload: bytes,
        enqueued_at: datetime,
        available_at: datetime,
        max_retries: int,
        status: TaskStatus,
        attempts: int,
        started_at: datetime | None,
        lease_expires_at: datetime | None,
        finished_at: datetime | None,
        value: bytes | None,
        failures: tuple[Failure, ...],
    ) -> None:
        self.id = task_id
        self.payload = payload
        self.enqueued_at = enqueued_at
        self.available_at = available_at
        self.max_retries = max_retries
        self.status = status
        self.attempts = attempts
        self.started_at = started_at
        self.lease_expires_at = lease_expires_at
        self.finished_at = finished_at
        self.value = value
        self.failures = failures


def make_task(  # noqa: PLR0917 - as above
    task_id: str,
    payload: bytes,
    enqueued_at: datetime,
    available_at: datetime,
    max_retries: int,
    status: TaskStatus = _PENDING,
    attempts: int = 0,
    started_at: datetime | None = None,
    lease_expires_at: datetime | None = None,
    finished_at: datetime | None = None,
    value: bytes | None = None,
    failures: tuple[Failure, ...] = (),
) -> Task:
    """Return what ``Task`` returns for the same fields, in a quarter of the time."""
    made = _Unfrozen(
        task_id,
        payload,
        enqueued_at,
        available_at,
        max_retries,
        status,
        attempts,
        started_at,
        lease_expires_at,
        finished_at,
        value,
        failures,
    )
    made.__class__ = Task  # type: ignore[assignment]  # they have the same slots
    return made  # type: ignore[return-value]  # as above
