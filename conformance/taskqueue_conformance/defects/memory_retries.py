"""Wrong about retries and their budget (R1, R2, BUDGET, LIFECYCLE, POLICY), and about recovery (D3)."""

from dataclasses import replace
from datetime import datetime, timedelta

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store


@planted(
    "BUDGET",
    "The budget counts retries after the first execution: attempts <= max_retries",
    also="R1",
    layer="scenarios",
    seen_in="dramatiq#734",
)
class BudgetCountsRetries(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return failure.retry_at is not None and task.attempts <= task.max_retries


@planted(
    "BUDGET",
    "The last attempt of the budget is never made: attempts + 1 < max_retries",
    also="R1 LIFECYCLE R2",
    layer="scenarios",
)
class BudgetLessOne(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return failure.retry_at is not None and task.attempts + 1 < task.max_retries


@planted("BUDGET", "A budget of zero means a default of three", also="R1", layer="scenarios", seen_in="faktory#317")
class ZeroBudgetMeansThree(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return failure.retry_at is not None and task.attempts < (task.max_retries or 3)


@planted("BUDGET", "A budget of one allows a second execution", also="R1", layer="scenarios")
class OneBudgetMeansTwo(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return failure.retry_at is not None and task.attempts < max(2 * (task.max_retries == 1), task.max_retries)


@planted("R1", "Budgets above 255 are cut, as in a column of one byte", also="API BUDGET")
class BudgetInOneByte(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, max_retries=min(task.max_retries, 255)))


@planted(
    "R1",
    "The attempt is counted when it fails, so that a crash costs nothing",
    also="BUDGET C1 L2 C2",
    layer="scenarios",
    seen_in="sidekiq#4069",
)
class CountedAtFailure(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return replace(super().claimed(task, now, lease_expires_at), attempts=max(1, task.attempts))

    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), attempts=task.attempts + 1)


@planted("BUDGET", "A retry resets attempts", also="R1", layer="scenarios")
class RetryResetsAttempts(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), attempts=0)


@planted("BUDGET", "A retry gives its attempt back", also="R1 C1", layer="scenarios")
class RetryGivesBack(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), attempts=task.attempts - 1)


@planted(
    "R1", "An attempt that was recovered after its lease does not count", also="BUDGET C1 R2 D3", seen_in="good_job#922"
)
class RecoveryIsFree(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        task = super().fail(task_id, attempt, failure, if_expired=if_expired)
        if if_expired and task.status is TaskStatus.PENDING:
            self.put(replace(task, attempts=task.attempts - 1))
        return self.stored[task_id]


@planted("R1", "A moved task starts with attempts of zero", also="BUDGET API")
class MovedTaskStartsAnew(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, attempts=0))


@planted("R1", "The budget shrinks with every attempt", also="API BUDGET R2")
class BudgetShrinks(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        task = super().claimed(task, now, lease_expires_at)
        return replace(task, max_retries=max(0, task.max_retries - 1)) if task.attempts > 1 else task


@planted("R1", "The failures are counted instead of the attempts", also="BUDGET R2", layer="model")
class FailuresAreCounted(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return (
            failure.retry_at is not None and sum(1 for each in task.failures if each.traceback) + 1 < task.max_retries
        )


@planted(
    "LIFECYCLE",
    "A task with budget left stays FAILED",
    also="R2 BUDGET POLICY",
    layer="scenarios",
    clauses="LIFECYCLE-4",
)
class NeverRetried(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return False


@planted("R2", "A failure without retry_at is retried at once if the budget allows", also="LIFECYCLE BUDGET")
class RetriedWithoutBeingAsked(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        return task.attempts < task.max_retries

    def retried(self, task: Task, failure: Failure) -> Task:
        return super().retried(task, replace(failure, retry_at=failure.retry_at or failure.failed_at))


@planted(
    "POLICY",
    "A retry keeps its old eta",
    also="R2 LIFECYCLE E1",
    layer="scenarios",
    seen_in="taskbroker#630",
    clauses="POLICY-4",
)
class RetryKeepsTheOldEta(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), available_at=task.available_at)


@planted("POLICY", "The backend adds a second of its own to every retry", also="R2 LIFECYCLE E3", layer="scenarios")
class RetryAddsASecond(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        task = super().retried(task, failure)
        return replace(
            task,
            available_at=min(task.available_at, datetime(9999, 1, 1, tzinfo=task.available_at.tzinfo))
            + timedelta(seconds=1),
        )


@planted("R2", "A retry_at that lies before failed_at is replaced by it", also="E3 POLICY")
class PastRetryIsMoved(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(
            super().retried(task, failure), available_at=max(failure.retry_at or failure.failed_at, failure.failed_at)
        )


@planted("R2", "A failure that was not retried keeps the retry_at that was proposed", also="V2 LIFECYCLE BUDGET")
class LastFailureKeepsItsProposal(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        return replace(super().failed(task, failure), failures=(*task.failures, failure))


@planted("R2", "The failure of a retried attempt loses its retry_at", also="V2 POLICY LIFECYCLE")
class RetriedFailureLosesItsTime(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), failures=(*task.failures, replace(failure, retry_at=None)))


@planted("R2", "A retried task keeps its lease", also="D3 LISTING LIFECYCLE")
class RetryKeepsTheLease(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), lease_expires_at=task.lease_expires_at)


@planted("R2", "A failed task keeps its lease, and is recovered again and again", also="D3 L1 LISTING LIFECYCLE")
class FailedKeepsTheLease(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        return replace(super().failed(task, failure), lease_expires_at=task.lease_expires_at)


@planted("R2", "A retried task forgets when it was started")
class RetryForgetsTheStart(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), started_at=None)


@planted("R2", "A retried task has a finished_at already", also="G1 LIFECYCLE V1")
class RetryIsFinished(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), finished_at=failure.failed_at)


@planted("R2", "A failed task has no finished_at", also="RESULT LIFECYCLE G1 V1", layer="scenarios")
class FailedHasNoEnd(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        return replace(super().failed(task, failure), finished_at=None)


@planted(
    "LIFECYCLE",
    "A task whose budget is spent stays RUNNING",
    also="R2 BUDGET RESULT D3",
    layer="scenarios",
    clauses="LIFECYCLE-6",
)
class SpentStaysRunning(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        return replace(
            super().failed(task, failure),
            status=TaskStatus.RUNNING,
            finished_at=None,
            lease_expires_at=task.lease_expires_at,
        )


@planted(
    "R1",
    "A retried task becomes a new one, with another id",
    also="R2 API LIFECYCLE POLICY L3",
    layer="scenarios",
    seen_in="taskiq#493",
)
class RetryIsANewTask(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        again = super().retried(task, failure)
        self.add(replace(again, id=f"{task.id}~{task.attempts}"))
        return self.failed(task, failure)


@planted("R2", "fail returns the task as it was before", also="POLICY LIFECYCLE")
class FailReturnsTheStateBefore(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        before = self.known(task_id)
        super().fail(task_id, attempt, failure, if_expired=if_expired)
        return before


@planted("D3", "if_expired is ignored: a recoverer fails a task whose lease has just been extended", also="L2 C1 R2")
class RecoveryIgnoresTheLease(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(task_id, attempt, failure, if_expired=False)


@planted(
    "D3",
    "if_expired is assumed: a failure before the end of the lease is refused",
    also="R2 L2 LIFECYCLE V2",
    layer="scenarios",
)
class FailureNeedsAnExpiredLease(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(task_id, attempt, failure, if_expired=True)


@planted("D3", "A lease is over only after its last microsecond: lease < now")
class EqualityIsNotOver(Store):
    def is_over(self, lease: datetime, at: datetime) -> bool:
        return lease < at


@planted("D3", "expired leaves out tasks whose budget is spent, so they stay RUNNING for ever", also="R2")
class SpentIsNotExpired(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return [
            task
            for task in super().expired(now, 10**9)
            if task.attempts < max(1, task.max_retries) or not task.max_retries
        ][:limit]


@planted("D3", "expired leaves out tasks of attempt 1, as if nobody could lose those")
class FirstAttemptsAreNotExpired(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return [task for task in super().expired(now, 10**9) if task.attempts > 1][:limit]


@planted("D3", "expired lists the newest lease first")
class NewestLeaseFirst(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return super().expired(now, 10**9)[::-1][:limit]


@planted("D3", "expired lists in the order of enqueueing")
class ExpiredAsEnqueued(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return sorted(super().expired(now, 10**9), key=lambda task: self.number[task.id])[:limit]


@planted("D3", "expired ignores its limit")
class ExpiredIgnoresTheLimit(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return super().expired(now, 10**9)


@planted("D3", "expired with a limit of 0 lists everything")
class ExpiredZeroMeansAll(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return super().expired(now, limit or 10**9)


@planted("D3", "expired takes what it lists: a second recoverer sees nothing", also="L2")
class ExpiredTakes(Store):
    def __init__(self) -> None:
        super().__init__()
        self.listed: set[tuple[str, int]] = set()

    def expired(self, now: datetime, limit: int) -> list[Task]:
        found = [task for task in super().expired(now, 10**9) if (task.id, task.attempts) not in self.listed][:limit]
        self.listed |= {(task.id, task.attempts) for task in found}
        return found


@planted("D3", "claim keeps the lease of the attempt before, if there was one", also="E3 C2")
class FirstLeaseIsKept(Store):
    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[str, datetime] = {}

    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(task, now, self.leases.setdefault(task.id, lease_expires_at))


@planted("D3", "A lease never ends before the claim's now", also="E3 C2")
class LeaseEndsAfterNow(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(task, now, max(now, lease_expires_at))


@planted(
    "D3", "A lease is stored as a thousand times longer: seconds and milliseconds mixed", also="E3 C2", seen_in="Oban"
)
class LeaseTimesThousand(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        longer = min((lease_expires_at - now).total_seconds() * 1000, 10**10)
        return super().claimed(task, now, now + timedelta(seconds=longer) if now.year < 9000 else lease_expires_at)  # noqa: PLR2004


@planted(
    "D3", "expired compares with the lease at the claim, not with the extended one", layer="model", also="L2 C1 R2"
)
class ExtensionIsNotSeen(Store):
    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[str, datetime] = {}

    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        self.leases[task.id] = lease_expires_at
        return super().claimed(task, now, lease_expires_at)

    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        lease = self.leases.get(task_id)
        over = if_expired and lease is not None and self.is_over(lease, failure.failed_at)
        return super().fail(task_id, attempt, failure, if_expired=if_expired and not over)


@planted(
    "BUDGET",
    "A success counts as the first attempt, whatever went before",
    also="R1 V1 L1",
    layer="scenarios",
    clauses="BUDGET-2 BUDGET-3 BUDGET-4",
)
class SuccessCountsAsFirst(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), attempts=1)


@planted(
    "BUDGET",
    "A budget of one allows a second execution, unless a lease was lost",
    also="R1 L1",
    layer="scenarios",
    clauses="BUDGET-5 BUDGET-6",
)
class OneMoreUnlessLost(Store):
    def may_retry(self, task: Task, failure: Failure) -> bool:
        more = failure.traceback is not None and task.max_retries == 1 and task.attempts == 1
        return failure.retry_at is not None and (more or task.attempts < task.max_retries)


@planted(
    "LIFECYCLE",
    "A task that failed is due again after a month",
    also="L1 R1 C1",
    layer="scenarios",
    clauses="LIFECYCLE-6 LIFECYCLE-7 LIFECYCLE-8",
)
class FailedIsRevived(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        old = [
            task
            for task in self.stored.values()
            if task.status is TaskStatus.FAILED and task.finished_at and (now - task.finished_at).days > 30  # noqa: PLR2004
        ]
        return [*super().choose(now, limit), *old][:limit]
