"""Right for a task's first and second attempt, and for each call by itself: wrong in combinations (R1, C3, L2, …)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import PlainMemory, Store

SECOND: Final = 2
THIRD: Final = 3


@planted("D3", "expired leaves out tasks at their third attempt", also="R2", layer="model")
class ThirdAttemptNeverExpires(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return [task for task in super().expired(now, len(self.stored)) if task.attempts < THIRD][:limit]


@planted("R2", "From the second retry on, a task is never due earlier than it was before", also="C3 E3")
class SecondRetryOnlyLater(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        after = super().retried(task, failure)
        if task.attempts < SECOND:
            return after
        return replace(after, available_at=max(task.available_at, after.available_at))


@planted("C2", "From the third attempt on, started_at stays what it was", also="R1")
class ThirdStartIsNotStored(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        after = super().claimed(task, now, lease_expires_at)
        return after if after.attempts < THIRD else replace(after, started_at=task.started_at)


@planted(
    "D3", "A claim after a retry keeps the lease of the attempt before if that was longer", also="C2", layer="model"
)
class LongerLeaseIsKept(Store):
    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[tuple[str, datetime], datetime] = {}

    def retried(self, task: Task, failure: Failure) -> Task:
        if task.lease_expires_at is not None and task.attempts >= SECOND:
            self.leases[task.id, task.enqueued_at] = task.lease_expires_at
        return super().retried(task, failure)

    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        before = self.leases.get((task.id, task.enqueued_at), lease_expires_at)
        return super().claimed(task, now, max(before, lease_expires_at))


@planted("G1", "purge leaves tasks that needed three attempts", layer="model")
class PurgeLeavesTheHard(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return super().may_purge(task, finished_before) and task.attempts < THIRD


@planted("L2", "A task that was recovered can be claimed again, but not extended", also="D3")
class RecoveredIsNotExtended(Store):
    def may_extend(self, task: Task, attempt: int) -> bool:
        recovered = bool(task.failures) and task.failures[-1].traceback is None
        return super().may_extend(task, attempt) and not recovered


@planted("LISTING", "next_due leaves out tasks that wait for their second retry", also="R2", layer="model")
class NextDueForgetsSecondRetries(Store):
    def next_due(self) -> datetime | None:
        pending = [
            task.available_at for task in self.stored.values()
            if task.status is TaskStatus.PENDING and len(task.failures) < SECOND
        ]  # fmt: skip
        leases = [task.lease_expires_at for task in self.stored.values() if task.lease_expires_at is not None]
        return min([*pending, *leases], default=None)


@planted("C3", "Reopening a handle orders equals by id, as an index that is built again", also="LISTING D1")
class ReopeningSortsById(PlainMemory):
    async def connect(self) -> None:
        await super().connect()
        with self.use() as store:
            tied = sorted(store.number)
            store.number = dict(zip(tied, sorted(store.number.values()), strict=True))
            store.stored = {one: store.stored[one] for one in sorted(store.stored, key=store.number.__getitem__)}


@planted(
    "L1", "Cancelling a task that waits for its second retry takes its failures along", also="R2 V2", layer="model"
)
class CancelForgetsRetries(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        waits = task.status is TaskStatus.PENDING and len(task.failures) >= SECOND
        return super().cancelled(replace(task, failures=()) if waits else task, now)


@planted("E2", "After a purge, a claim passes over as many tasks as were removed", also="C3 G1")
class PurgeSkipsAhead(Store):
    removed = 0

    def purge(self, finished_before: datetime, limit: int) -> int:
        gone = super().purge(finished_before, limit)
        self.removed = gone if gone > 1 else 0
        return gone

    def choose(self, now: datetime, limit: int) -> list[Task]:
        skipped, self.removed = self.removed, 0
        due = super().choose(now, len(self.stored))
        return due[skipped:][:limit] if len(due) > skipped else due[:limit]


@planted("L2", "An extend of several claims of one task answers for all if one is held", also="L1")
class ExtendLooksAtIdsOnly(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        asked: Sequence[tuple[str, int]] = list(claims)
        held = {task_id for task_id, _ in super().extend(asked, lease_expires_at)}
        return [claim for claim in asked if claim[0] in held]


@planted("R1", "A moved task that fails counts only the attempts made here", also="R2")
class MovedAttemptsDoNotCount(Store):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, int] = {}

    def kept(self, task: Task) -> Task:
        self.made[task.id] = -task.attempts if task.attempts >= SECOND else 0
        return super().kept(task)

    def may_retry(self, task: Task, failure: Failure) -> bool:
        return failure.retry_at is not None and task.attempts + self.made[task.id] < task.max_retries
