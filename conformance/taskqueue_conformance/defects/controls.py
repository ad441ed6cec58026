"""What the measurement is checked against: backends that do nothing, and correct backends that defects are made of."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, Self

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import (
    FileDefectHarness,
    MemoryDefectHarness,
    TransactionalDefectHarness,
)
from taskqueue_conformance.defects.plain_memory import PlainMemory
from taskqueue_conformance.defects.plain_served import ServedHarness
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite
from taskqueue_conformance.defects.plain_transactional import Transacting
from taskqueue_conformance.harness import BaseHarness


class NullEmpty:
    """Returns the empty value of each method's type."""

    def __init__(self, store: str) -> None:
        self.store = store

    def clone(self) -> Self:
        """Return another one."""
        return type(self)(self.store)

    async def connect(self) -> None:
        """Do nothing, as all of them."""

    async def close(self) -> None:
        """Do nothing."""

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Do nothing."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Return nothing."""
        return []

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Return nothing."""
        return []

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Do nothing."""

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Return an empty task."""
        return Task(id=task_id, payload=b"", enqueued_at=failure.failed_at, available_at=failure.failed_at)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Return False."""
        return False

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """Return nothing."""
        return []

    async def next_due(self) -> datetime | None:
        """Return None."""
        return None

    async def get(self, task_id: str) -> Task | None:
        """Return None."""
        return None

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """Return nothing."""
        return [], None

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return zeros."""
        return dict.fromkeys(TaskStatus, 0)

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Return zero."""
        return 0

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        """Return at once."""


class NullRaising(NullEmpty):
    """Raises NotImplementedError from each method but ``clone``."""

    async def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    connect = close = enqueue = claim = extend = complete = fail = cancel = _raise
    expired = next_due = get = tasks = counts = purge = wait = _raise


class NullForgetful(NullEmpty):
    """Says yes to everything, and keeps nothing."""

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Say that all are held."""
        return list(claims)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Say yes."""
        return True

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Say that as many as could be were removed."""
        return limit


HARNESSES: Final[Mapping[str, Callable[[], BaseHarness]]] = {
    "null_empty": lambda: MemoryDefectHarness(NullEmpty),
    "null_raising": lambda: MemoryDefectHarness(NullRaising),
    "null_forgetful": lambda: MemoryDefectHarness(NullForgetful),
    "plain_memory_backend": lambda: MemoryDefectHarness(PlainMemory),
    "plain_sqlite_backend": lambda: FileDefectHarness(PlainSQLite),
    "plain_transactional_backend": lambda: TransactionalDefectHarness(Transacting),
    "plain_served_backend": ServedHarness,
}
"""Targets beside the defects: what must pass nothing, and what must pass everything."""
NULLS: Final = ("null_empty", "null_raising", "null_forgetful")
