"""The records that a store keeps: a task and its failures."""

from dataclasses import dataclass, field
from datetime import datetime

from taskqueue.status import TaskStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt of a task.

    Attributes:
        attempt: The number of the attempt that failed, counted from 1.
        error: What went wrong, for a person to read; never empty; text without NUL and without lone surrogates.
        failed_at: When the failure was recorded (timezone-aware UTC).
        traceback: The formatted stack trace, or None where there is none (a lease that ran out).
        retry_at: When the task is due again (timezone-aware UTC), or None if this failure was the last.
            In an argument of ``Backend.fail`` it is a proposal; in a stored failure it is what happened.
    """

    attempt: int
    error: str
    failed_at: datetime
    traceback: str | None = None
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One call to run later, with all that is known of it. A snapshot: it does not follow the store.

    All datetimes are timezone-aware UTC with microsecond resolution.

    Attributes:
        id: 1 to 255 bytes of UTF-8 without NUL; two ids are the same task only if they are byte-equal.
        payload: The serialised call, context included; opaque to a backend.
        enqueued_at: When the task was first enqueued; never changes.
        available_at: The instant from which the task is due; the ``retry_at`` of the last failure for a retry.
        max_retries: The retry budget. **It counts executions in all, not retries after the first**: a failed task
            is retried iff ``attempts < max_retries``. 3 means three executions; 0 and 1 both mean one.
        status: Where the task is in its life.
        attempts: How often the task has been claimed; never reset, never reduced.
        started_at: The ``now`` of the latest claim, or None before the first.
        lease_expires_at: Until when the present claim holds; set iff the status is RUNNING.
        finished_at: When the task ended; set iff the status is SUCCESS, FAILED or CANCELLED.
        value: The serialised return value (possibly ``b""``); set iff the status is SUCCESS.
        failures: The failed attempts, oldest first.
    """

    id: str
    payload: bytes = field(repr=False)
    enqueued_at: datetime
    available_at: datetime
    max_retries: int = 0
    status: TaskStatus = TaskStatus.PENDING
    attempts: int = 0
    started_at: datetime | None = None
    lease_expires_at: datetime | None = None
    finished_at: datetime | None = None
    value: bytes | None = field(default=None, repr=False)
    failures: tuple[Failure, ...] = ()
