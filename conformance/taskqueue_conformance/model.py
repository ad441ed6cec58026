"""The contract's second statement: what every call does, without storage, concurrency or time.

``taskqueue/backend.py`` says it in words; this says it in code that is meant to be read. A call either returns what
a backend must return, or raises what a backend must raise, and in that case changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus


class Model:
    """A store as the contract describes it.

    Attributes:
        stored: Every task by id. Dictionaries keep the order of insertion, and a task is never re-inserted: so this is
            the order of enqueueing.
    """

    def __init__(self) -> None:
        self.stored: dict[str, Task] = {}

    def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add all of the tasks, or none."""
        ids = [task.id for task in tasks]
        offending = [task_id for task_id in ids if task_id in self.stored or ids.count(task_id) > 1]
        if offending:
            raise TaskExists([*dict.fromkeys(offending)])
        self.stored.update((task.id, task) for task in tasks)

    def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> list[Task]:
        """Take the due tasks that became available first; ``sorted`` keeps ties in the order of enqueueing."""
        due = [task for task in self._with(TaskStatus.PENDING) if task.available_at <= now]
        chosen = sorted(due, key=lambda task: task.available_at)[:limit]
        return [
            self._put(
                replace(
                    task,
                    status=TaskStatus.RUNNING,
                    attempts=task.attempts + 1,
                    started_at=now,
                    lease_expires_at=lease_expires_at,
                )
            )
            for task in chosen
        ]

    def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> list[tuple[str, int]]:
        """Lengthen the leases that are still held; a lease is never shortened."""
        held = [claim for claim in claims if self._holds(*claim)]
        for task_id, _ in held:
            task = self.stored[task_id]
            assert task.lease_expires_at is not None  # noqa: S101 - a held task is RUNNING
            self._put(replace(task, lease_expires_at=max(task.lease_expires_at, lease_expires_at)))
        return held

    def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a held task with its value."""
        task = self._held(task_id, attempt)
        self._put(replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None))

    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failed attempt; retry iff a retry is proposed and the budget is not spent."""
        task = self._held(task_id, attempt)
        lease = task.lease_expires_at
        if if_expired and lease is not None and lease > failure.failed_at:
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts, lease_expires_at=lease)
        if failure.retry_at is not None and task.attempts < task.max_retries:
            return self._put(
                replace(
                    task,
                    status=TaskStatus.PENDING,
                    available_at=failure.retry_at,
                    lease_expires_at=None,
                    failures=(*task.failures, failure),
                )
            )
        return self._put(
            replace(
                task,
                status=TaskStatus.FAILED,
                finished_at=failure.failed_at,
                lease_expires_at=None,
                failures=(*task.failures, replace(failure, retry_at=None)),
            )
        )

    def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a task that has not ended."""
        task = self._known(task_id)
        if task.status.ended:
            return False
        self._put(replace(task, status=TaskStatus.CANCELLED, finished_at=now, lease_expires_at=None))
        return True

    def expired(self, *, now: datetime) -> list[Task]:
        """Return every RUNNING task whose lease has run out, the oldest lease first; ties are free."""
        running = [(task.lease_expires_at, task) for task in self._with(TaskStatus.RUNNING)]
        over = [(lease, task) for lease, task in running if lease is not None and lease <= now]
        return [task for _, task in sorted(over, key=lambda pair: pair[0])]

    def next_due(self) -> datetime | None:
        """Return the earliest instant at which something can happen."""
        available = [task.available_at for task in self._with(TaskStatus.PENDING)]
        leases = [task.lease_expires_at for task in self._with(TaskStatus.RUNNING) if task.lease_expires_at]
        return min([*available, *leases], default=None)

    def tasks(self, status: TaskStatus | None = None) -> list[Task]:
        """Return every task, or those of one status, in the order of enqueueing."""
        return [task for task in self.stored.values() if status in (None, task.status)]

    def counts(self) -> dict[TaskStatus, int]:
        """Return the number of tasks in each status, zeros included."""
        return {status: len(self._with(status)) for status in TaskStatus}

    def purgeable(self, *, finished_before: datetime) -> list[Task]:
        """Return the tasks that a purge may remove, the longest ended first; ties are free."""
        ended = [(task.finished_at, task) for task in self.stored.values() if task.status.ended]
        old = [(finished, task) for finished, task in ended if finished is not None and finished < finished_before]
        return [task for _, task in sorted(old, key=lambda pair: pair[0])]

    def forget(self, task_ids: Iterable[str]) -> None:
        """Remove tasks: what a purge chose among those that it may remove."""
        for task_id in task_ids:
            del self.stored[task_id]

    def _with(self, status: TaskStatus) -> list[Task]:
        return [task for task in self.stored.values() if task.status is status]

    def _put(self, task: Task) -> Task:
        self.stored[task.id] = task
        return task

    def _known(self, task_id: str) -> Task:
        if task_id not in self.stored:
            raise TaskNotFound(task_id)
        return self.stored[task_id]

    def _holds(self, task_id: str, attempt: int) -> bool:
        task = self.stored.get(task_id)
        return task is not None and task.status is TaskStatus.RUNNING and task.attempts == attempt

    def _held(self, task_id: str, attempt: int) -> Task:
        task = self._known(task_id)
        if not self._holds(task_id, attempt):
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return task
