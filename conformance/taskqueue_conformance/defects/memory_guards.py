"""Guards that are missing or look at the wrong thing (L1, L2, L3), and batches that are no batches."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from taskqueue import Failure, StaleClaim, Task, TaskNotFound, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store


@planted(
    "L1", "complete does not look at the status: a cancelled task becomes SUCCESS", also="L2 V1", seen_in="dbos#703"
)
class CompleteUnguarded(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return task.attempts == attempt


@planted("L1", "A task that ended FAILED can be completed after all")
class FailedCanBeCompleted(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return super().may_complete(task, attempt) or (task.status is TaskStatus.FAILED and task.attempts == attempt)


@planted("V1", "A second completion replaces the value", also="L1", seen_in="bull#311")
class SecondCompletionWins(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return super().may_complete(task, attempt) or (task.status is TaskStatus.SUCCESS and task.attempts == attempt)


@planted("L1", "A second completion is silently ignored instead of being refused", also="V1")
class SecondCompletionIgnored(Store):
    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        if self.known(task_id).status is not TaskStatus.SUCCESS:
            super().complete(task_id, attempt, value, now)


@planted("L1", "A PENDING retry can be completed by the attempt that failed", also="L2")
class PendingCanBeCompleted(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return task.attempts == attempt and not task.status.ended


@planted("L1", "A cancelled task goes into retry when it fails", also="L2 R2", seen_in="celery#6793")
class CancelledCanFail(Store):
    def may_fail(self, task: Task, attempt: int) -> bool:
        return super().may_fail(task, attempt) or (task.status is TaskStatus.CANCELLED and task.attempts == attempt)


@planted("L1", "A task that succeeded can fail afterwards", also="V1 L2")
class SucceededCanFail(Store):
    def may_fail(self, task: Task, attempt: int) -> bool:
        return super().may_fail(task, attempt) or (task.status is TaskStatus.SUCCESS and task.attempts == attempt)


@planted("L1", "A failed task can be failed, and retried, again", also="R1 R2 L2", seen_in="BullMQ#2576")
class FailedCanFailAgain(Store):
    def may_fail(self, task: Task, attempt: int) -> bool:
        return super().may_fail(task, attempt) or (
            task.status in (TaskStatus.FAILED, TaskStatus.PENDING) and task.attempts == attempt
        )


@planted("L1", "cancel overwrites a success")
class CancelOverwritesSuccess(Store):
    def may_cancel(self, task: Task) -> bool:
        return task.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED)


@planted("L1", "cancel overwrites a failure")
class CancelOverwritesFailure(Store):
    def may_cancel(self, task: Task) -> bool:
        return task.status not in (TaskStatus.SUCCESS, TaskStatus.CANCELLED)


@planted("L1", "Cancelling twice moves finished_at")
class CancelTwiceMoves(Store):
    def cancel(self, task_id: str, now: datetime) -> bool:
        before = self.known(task_id).status
        if before is TaskStatus.CANCELLED:
            self.put(self.cancelled(self.known(task_id), now))
        return super().cancel(task_id, now)


@planted("L1", "cancel says yes though the task had ended", seen_in="dbos#767")
class CancelSaysYes(Store):
    def cancel(self, task_id: str, now: datetime) -> bool:
        super().cancel(task_id, now)
        return True


@planted("L1", "cancel says no though it ended a RUNNING task")
class CancelSaysNo(Store):
    def cancel(self, task_id: str, now: datetime) -> bool:
        running = self.known(task_id).status is TaskStatus.RUNNING
        return super().cancel(task_id, now) and not running


@planted("L1", "A RUNNING task cannot be cancelled", also="L2")
class RunningCannotBeCancelled(Store):
    def may_cancel(self, task: Task) -> bool:
        return task.status is TaskStatus.PENDING


@planted("L1", "A task that waits for a retry cannot be cancelled", also="R2")
class RetryCannotBeCancelled(Store):
    def may_cancel(self, task: Task) -> bool:
        return super().may_cancel(task) and not (task.status is TaskStatus.PENDING and task.attempts)


@planted("L1", "Cancelling a RUNNING task keeps its lease", also="D3 LISTING")
class CancelKeepsTheLease(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        return replace(super().cancelled(task, now), lease_expires_at=task.lease_expires_at)


@planted("L1", "Cancelling a task forgets its failures", also="V2")
class CancelForgetsFailures(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        return replace(super().cancelled(task, now), failures=())


@planted("L1", "Cancelling a task forgets when it was started")
class CancelForgetsTheStart(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        return replace(super().cancelled(task, now), started_at=None)


@planted("L1", "A cancelled task has no finished_at", also="G1")
class CancelSetsNoEnd(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        return replace(super().cancelled(task, now), finished_at=None)


@planted("L1", "A refused complete still keeps the value", also="V1 L2")
class RefusedValueIsKept(Store):
    def stale(self, task: Task, attempt: int) -> StaleClaim:
        self.put(replace(task, value=b"too late"))
        return super().stale(task, attempt)


@planted("L1", "enqueue of a known id overwrites it", also="API", seen_in="arq#137")
class EnqueueOverwrites(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return []


@planted("L1", "enqueue of a known id is silently ignored", also="API")
class EnqueueIgnoresKnown(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        super().enqueue([task for task in tasks if task.id not in self.stored])


@planted("L1", "The id of a task that has ended can be enqueued anew", also="API V1")
class EndedIdsAreFree(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return [one for one in super().offending(tasks) if one not in self.stored or not self.stored[one].status.ended]


@planted("API", "An id that stands twice in one list is stored once", also="L1")
class TwiceInAListIsFine(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return [task.id for task in tasks if task.id in self.stored]


@planted("API", "TaskExists names the first offending id only", also="L1")
class ExistsNamesOne(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return super().offending(tasks)[:1]


@planted("API", "TaskExists names every id of the list", also="L1")
class ExistsNamesAll(Store):
    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return [task.id for task in tasks] if super().offending(tasks) else []


@planted("L1", "A refused list is enqueued up to the known id", also="API D2")
class HalfAListIsStored(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            super().enqueue([task])


@planted("L1", "A refused list stores the ids that were new", also="API D2")
class NewOnesOfARefusedListAreStored(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        offending = self.offending(tasks)
        super().enqueue([task for task in tasks if task.id not in offending])
        super().enqueue([task for task in tasks if task.id in offending])


@planted("L1", "A refused list loses the known task its place in the order", also="API C3 LISTING", layer="model")
class RefusalLosesThePlace(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        for one in self.offending(tasks):
            if one in self.stored and self.stored[one].status is TaskStatus.PENDING and self.stored[one].attempts:
                self.stored[one] = self.stored.pop(one)
                self.last_number += 1
                self.number[one] = self.last_number
        super().enqueue(tasks)


@planted("L2", "complete looks at RUNNING, not at the attempt", seen_in="solid_queue")
class CompleteIgnoresTheAttempt(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return task.status is TaskStatus.RUNNING


@planted("L2", "fail looks at RUNNING, not at the attempt", seen_in="bull#308")
class FailIgnoresTheAttempt(Store):
    def may_fail(self, task: Task, attempt: int) -> bool:
        return task.status is TaskStatus.RUNNING


@planted("L2", "extend looks at RUNNING, not at the attempt")
class ExtendIgnoresTheAttempt(Store):
    def may_extend(self, task: Task, attempt: int) -> bool:
        return task.status is TaskStatus.RUNNING


@planted("L2", "Attempts that were never issued are accepted: attempt >= attempts")
class FutureAttemptsAreAccepted(Store):
    def holds(self, task: Task, attempt: int) -> bool:
        return task.status is TaskStatus.RUNNING and attempt >= task.attempts


@planted("L2", "From the third attempt on, the one before it may still complete", layer="model")
class ThirdAttemptIsNotFenced(Store):
    def may_complete(self, task: Task, attempt: int) -> bool:
        return super().may_complete(task, attempt) or (
            task.status is TaskStatus.RUNNING and task.attempts > 2 and attempt == task.attempts - 1  # noqa: PLR2004
        )


@planted("L2", "The attempts of a moved task count from zero: its first claim here is number 1 too", layer="model")
class MovedTasksAreNotFenced(Store):
    def may_fail(self, task: Task, attempt: int) -> bool:
        imported = task.attempts == 2 and task.started_at is not None and len(task.failures) == 1  # noqa: PLR2004
        return super().may_fail(task, attempt) or (
            imported and task.status is TaskStatus.RUNNING and attempt == 1 and task.max_retries > 2  # noqa: PLR2004
        )


@planted("L2", "extend revives a cancelled task", also="L1")
class ExtendRevives(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        own = list(claims)
        for task_id, attempt in own:
            task = self.stored.get(task_id)
            if task is not None and task.status is TaskStatus.CANCELLED and task.attempts == attempt:
                self.put(replace(task, status=TaskStatus.RUNNING, finished_at=None, lease_expires_at=lease_expires_at))
        return super().extend(own, lease_expires_at)


@planted("L2", "extend can shorten a lease", also="D3")
class ExtendShortens(Store):
    def extended(self, task: Task, lease_expires_at: datetime) -> Task:
        return replace(task, lease_expires_at=lease_expires_at)


@planted("L2", "extend leaves out claims whose lease was later already", also="D3")
class ExtendOmitsLaterLeases(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        later = {
            task.id for task in self.stored.values() if (lease := task.lease_expires_at) and lease > lease_expires_at
        }
        return [claim for claim in super().extend(claims, lease_expires_at) if claim[0] not in later]


@planted("L2", "extend answers with all claims, held or not")
class ExtendAnswersAll(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        own = list(claims)
        super().extend(own, lease_expires_at)
        return own


@planted("L2", "extend stops at the first claim that is not held", also="D3")
class ExtendStopsEarly(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        held = []
        for claim in claims:
            if not super().extend([claim], lease_expires_at):
                break
            held.append(claim)
        return held


@planted("L2", "extend answers in the order of enqueueing, not in the order given")
class ExtendSorts(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        return sorted(super().extend(claims, lease_expires_at), key=lambda claim: self.number[claim[0]])


@planted("L2", "A claim that is extended twice in one call is answered once", layer="model")
class ExtendAnswersOnce(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        return list(dict.fromkeys(super().extend(claims, lease_expires_at)))


@planted("L2", "StaleClaim tells the attempt that was asked for instead of the task's", also="L1")
class StaleTellsTheWrongAttempts(Store):
    def stale(self, task: Task, attempt: int) -> StaleClaim:
        return StaleClaim(task.id, attempt, status=task.status, attempts=attempt)


@planted("L1", "StaleClaim always tells RUNNING", also="L2 V1")
class StaleTellsRunning(Store):
    def stale(self, task: Task, attempt: int) -> StaleClaim:
        return StaleClaim(task.id, attempt, status=TaskStatus.RUNNING, attempts=task.attempts)


@planted("L3", "complete of an unknown id creates a task", also="V1")
class CompleteCreates(Store):
    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        if task_id not in self.stored:
            task = Task(id=task_id, payload=b"", enqueued_at=now, available_at=now, attempts=attempt)
            self.add(self.completed(task, value, now))
            return
        super().complete(task_id, attempt, value, now)


@planted("L3", "fail of an unknown id creates a failed task", also="V2")
class FailCreates(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        if task_id not in self.stored:
            at = failure.failed_at
            self.add(Task(id=task_id, payload=b"", enqueued_at=at, available_at=at, attempts=attempt))
            self.put(self.failed(self.stored[task_id], failure))
            return self.stored[task_id]
        return super().fail(task_id, attempt, failure, if_expired=if_expired)


@planted("L3", "cancel of an unknown id leaves a tombstone, and the id cannot be enqueued any more", also="API")
class CancelLeavesTombstones(Store):
    def cancel(self, task_id: str, now: datetime) -> bool:
        if task_id not in self.stored:
            self.add(self.cancelled(Task(id=task_id, payload=b"", enqueued_at=now, available_at=now), now))
            raise TaskNotFound(task_id)
        return super().cancel(task_id, now)


@planted("L3", "cancel of an unknown id says False")
class CancelUnknownSaysFalse(Store):
    def cancel(self, task_id: str, now: datetime) -> bool:
        return task_id in self.stored and super().cancel(task_id, now)


@planted("L3", "complete of an unknown id is a StaleClaim")
class UnknownIsStale(Store):
    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        if task_id not in self.stored:
            raise StaleClaim(task_id, attempt, status=TaskStatus.PENDING, attempts=0)
        super().complete(task_id, attempt, value, now)


@planted("L3", "extend creates an unknown task")
class ExtendCreates(Store):
    def extend(self, claims: Iterable[tuple[str, int]], lease_expires_at: datetime) -> list[tuple[str, int]]:
        own = list(claims)
        for task_id, attempt in own:
            if task_id not in self.stored:
                at = lease_expires_at
                task = Task(id=task_id, payload=b"", enqueued_at=at, available_at=at, attempts=attempt)
                self.add(replace(task, status=TaskStatus.RUNNING, started_at=at, lease_expires_at=at))
        return super().extend(own, lease_expires_at)
