"""Wrong about what a claim takes, and in which order (E2, C1, C2, C3)."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store


@planted("E2", "LIMIT comes before the filter on what is due", seen_in="saq#237")
class LimitBeforeFilter(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        pending = [task for task in self.stored.values() if task.status is TaskStatus.PENDING]
        return sorted((task for task in pending[:limit] if self.is_due(task, now)), key=self.claim_order)


@planted("E2", "A claim takes one task more than its limit")
class LimitPlusOne(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return super().choose(now, limit + 1 if limit > 1 else limit)


@planted("E2", "A claim of several takes one task less than its limit")
class LimitLessOne(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return super().choose(now, limit - 1 if limit > 1 else limit)


@planted("E2", "A limit of 0 means no limit, as with SQL's LIMIT -1")
class ZeroMeansAll(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return super().choose(now, limit or 10**9)


@planted("E2", "A claim never takes more than 100 tasks")
class AtMostAHundred(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return super().choose(now, min(limit, 100))


@planted("E2", "Only the first 500 tasks of the table are looked at", layer="hygiene", also="C3")
class LooksAtTheFirstOnly(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        first = [task for task in list(self.stored.values())[:500] if task.status is TaskStatus.PENDING]
        return sorted((task for task in first if self.is_due(task, now)), key=self.claim_order)[:limit]


@planted("E2", "Tasks whose budget says 0 are never claimed", also="R1 BUDGET", seen_in="faktory#317")
class ZeroBudgetNeverRuns(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return super().is_due(task, now) and task.max_retries > 0


@planted("E2", "Tasks with an empty payload are never claimed", also="P1 C3")
class EmptyPayloadNeverRuns(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return super().is_due(task, now) and bool(task.payload)


@planted("E2", "One task hides others of the same instant: due times are kept as keys", also="C3")
class DueTimesAreKeys(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        chosen = {task.available_at: task for task in reversed(super().choose(now, 10**9))}
        return sorted(chosen.values(), key=self.claim_order)[:limit]


@planted("E2", "Cancelled tasks count against the limit of a claim", also="C3")
class CancelledHidesOthers(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        candidates = [
            task for task in self.stored.values() if task.status in (TaskStatus.PENDING, TaskStatus.CANCELLED)
        ]
        candidates = sorted((task for task in candidates if self.is_due(task, now)), key=self.claim_order)[:limit]
        return [task for task in candidates if task.status is TaskStatus.PENDING]


@planted("C1", "A task whose lease is over is handed out again", also="R1 D3 C2 E2")
class ExpiredIsClaimable(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        over = [
            task for task in self.stored.values()
            if task.lease_expires_at is not None and self.is_over(task.lease_expires_at, now)
        ]  # fmt: skip
        return [*super().choose(now, limit), *over][:limit]


@planted(
    "C1",
    "A RUNNING task is handed out again an hour after it started, heartbeat or not",
    seen_in="river#350",
    also="R1 E2 C2",
)
class LongJobsAreRescued(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        old = [
            task for task in self.stored.values()
            if task.status is TaskStatus.RUNNING
            and task.started_at is not None
            and task.started_at < now - timedelta(hours=1)
        ]  # fmt: skip
        return [*super().choose(now, limit), *old][:limit]


@planted(
    "C1",
    "A claim leaves the status as it was, so that the next one takes the task again",
    also="LIFECYCLE C2 BUDGET",
    layer="scenarios",
)
class ClaimLeavesPending(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return replace(super().claimed(task, now, lease_expires_at), status=TaskStatus.PENDING, lease_expires_at=None)


@planted("C1", "Every claim of a task has the attempt number 1", also="R1 BUDGET L2")
class AttemptIsAlwaysOne(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return replace(super().claimed(task, now, lease_expires_at), attempts=1)


@planted("C2", "A claim takes a batch of ten and hands out what was asked for", seen_in="pgqueuer#693", also="E2 D3")
class PrefetchesTen(Store):
    def claim(self, now: datetime, limit: int, lease_expires_at: datetime) -> list[Task]:
        return super().claim(now, max(limit, 10) if limit else 0, lease_expires_at)[:limit]


@planted("C2", "A claim returns the tasks as they were before it", also="BUDGET L2")
class ReturnsTheStateBefore(Store):
    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        super().take(chosen, now, lease_expires_at)
        return list(chosen)


@planted("C2", "A claim returns its tasks without their failures", also="V2 R1")
class ReturnsWithoutFailures(Store):
    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        return [replace(task, failures=()) for task in super().take(chosen, now, lease_expires_at)]


@planted(
    "C2",
    "A task that was claimed is deleted from the store",
    also="D3 L2 LIFECYCLE V1 API",
    seen_in="huey#253",
    layer="scenarios",
)
class PopsBeforeRunning(Store):
    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        taken = super().take(chosen, now, lease_expires_at)
        for task in taken:
            self.remove(task)
        return taken


@planted("C2", "A batch of claims that meets a task with failures stops there, with the rest RUNNING", also="E2")
class BatchStopsAtFailures(Store):
    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        taken = super().take(chosen, now, lease_expires_at)
        marked = [number for number, task in enumerate(taken) if task.failures]
        return taken[: marked[0] + 1] if marked else taken


@planted("C3", "Claims are ordered by enqueued_at instead of available_at")
class OrderedByEnqueuedAt(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.enqueued_at, self.number[task.id]


@planted("C3", "Ties are broken by enqueued_at, which the caller chooses, not by the order of enqueueing")
class TiesByEnqueuedAt(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at, task.enqueued_at, self.number[task.id]


@planted("C3", "Ties are broken by id", seen_in="solid_queue")
class TiesById(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at, task.id


@planted("C3", "The latest enqueued comes first among equals", seen_in="BullMQ#2597")
class LastInFirstOut(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at, -self.number[task.id]


@planted("C3", "First enqueued, first claimed: available_at only says whether")
class OrderedByNumber(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return (self.number[task.id],)


@planted("C3", "The order looks at whole seconds", also="E3")
class OrderedBySeconds(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at.replace(microsecond=0), self.number[task.id]


@planted(
    "C3", "A retried task gets a new sequence number, behind all fresh work", also="LISTING", seen_in="pgqueuer#684"
)
class RetryGoesToTheEnd(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        self.last_number += 1
        self.number[task.id] = self.last_number
        return super().retried(task, failure)


@planted("C3", "Retried tasks come after fresh ones of the same instant")
class FreshBeforeRetried(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at, bool(task.failures), self.number[task.id]


@planted("C3", "The budget works as a priority")
class BudgetIsPriority(Store):
    def claim_order(self, task: Task) -> tuple[Any, ...]:
        return task.available_at, -task.max_retries, self.number[task.id]


@planted("C3", "A list of tasks is enqueued from its end")
class ListEnqueuedBackwards(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        super().enqueue(list(reversed(tasks)))


@planted("C3", "Claimed tasks are returned in the order of their ids")
class ReturnedById(Store):
    def take(self, chosen: Sequence[Task], now: datetime, lease_expires_at: datetime) -> list[Task]:
        return sorted(super().take(chosen, now, lease_expires_at), key=lambda task: task.id)


@planted("C3", "A claim fails at a payload that is no UTF-8", also="P1 E2 V1 API", seen_in="huey#815")
class ClaimDecodes(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        chosen = super().choose(now, limit)
        for task in chosen:
            task.payload.decode()
        return chosen


@planted("API", "Ids are folded to lower case", also="P1 E2 C3 L3")
class IdsCaseFolded(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        known = {task_id.casefold() for task_id in self.stored}
        return [task.id for task in tasks if task.id.casefold() in known] or super().offending(tasks)


@planted("API", "Ids that are equal after Unicode normalisation count as one", also="P1 L3")
class IdsNormalised(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        known = {unicodedata.normalize("NFC", task_id) for task_id in self.stored}
        return [task.id for task in tasks if unicodedata.normalize("NFC", task.id) in known] or super().offending(tasks)


@planted("API", "White space around ids is stripped", also="P1 L3")
class IdsStripped(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, id=task.id.strip()))


@planted("API", "Ids that begin with the same 64 characters count as one", also="P1 L3 C2")
class IdsCut(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        known = {task_id[:64] for task_id in self.stored}
        return [task.id for task in tasks if task.id[:64] in known] or super().offending(tasks)
