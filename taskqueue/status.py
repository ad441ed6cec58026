"""The five statuses of a task and the transitions between them."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class TaskStatus(StrEnum):
    """Where a task is in its life. Members equal their lower-case values: ``TaskStatus.SUCCESS == "success"``.

    Spec: Task Status Lifecycle.
    """

    PENDING = "pending"
    """Waits for its ``available_at``, then for a claim."""
    RUNNING = "running"
    """Claimed, and held by that claim until an outcome is recorded or the lease is found expired."""
    SUCCESS = "success"
    """Ended with a value."""
    FAILED = "failed"
    """Ended with an error: its retry budget is spent."""
    CANCELLED = "cancelled"
    """Ended by a call of ``cancel``."""

    @property
    def ended(self) -> bool:
        """Whether a task in this status has its outcome, and so never changes again."""
        return self in OUTCOMES


OUTCOMES: Final = frozenset({TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED})
"""The statuses in which a task ends."""

TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = MappingProxyType(
    {
        TaskStatus.PENDING: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
        TaskStatus.RUNNING: frozenset({TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED}),
        TaskStatus.SUCCESS: frozenset(),
        TaskStatus.FAILED: frozenset({TaskStatus.PENDING}),
        TaskStatus.CANCELLED: frozenset(),
    }
)
"""The statuses that may follow each status.

``FAILED`` is followed by ``PENDING`` only inside the one atomic step of a failure that is retried; a task that
can be *seen* ``FAILED`` has ended.
"""
