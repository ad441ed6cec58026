"""Wrong about time: instants kept inexactly, compared wrongly, or taken from a clock (E1, E3, E4)."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from taskqueue import Failure, Task
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store

MICROSECOND = timedelta(microseconds=1)
SECOND = timedelta(seconds=1)


class _Instants(Store):
    """Passes every instant of a task through ``inexact`` on its way in."""

    def inexact(self, instant: datetime) -> datetime:
        raise NotImplementedError

    def put(self, task: Task) -> None:
        names = ("enqueued_at", "available_at", "started_at", "lease_expires_at", "finished_at")
        kept: dict[str, Any] = {name: self.inexact(at) for name in names if (at := getattr(task, name)) is not None}
        super().put(replace(task, **kept))


@planted("E3", "Instants are cut to milliseconds", seen_in="APScheduler")
class CutToMilliseconds(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


@planted("E3", "Instants are cut to whole seconds", also="E1", seen_in="APScheduler")
class CutToSeconds(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        return instant.replace(microsecond=0)


@planted("E3", "Instants pass through a float of seconds since 1970", seen_in="river#760")
class FloatSeconds(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        return datetime.fromtimestamp(instant.timestamp(), UTC)


@planted(
    "E3",
    "Instants are kept in 32 bits of seconds: what lies beyond 2038 wraps around",
    seen_in="river#760",
    also="R2 API",
)
class WrapsIn2038(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        seconds = int((instant - datetime(1970, 1, 1, tzinfo=UTC)) // SECOND)
        return instant - timedelta(seconds=seconds - (seconds + 2**31) % 2**32 + 2**31)


@planted(
    "E3", "Instants beyond 64 bits of nanoseconds (the year 2262) are capped", seen_in="db-scheduler#514", also="R2"
)
class CappedIn2262(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        return min(instant, datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC))


@planted("E3", "Naive instants are kept, and read as local time of a zone one hour east", seen_in="celery#2306")
class ReadAsLocalTime(_Instants):
    def inexact(self, instant: datetime) -> datetime:
        return instant - timedelta(hours=1) if instant.year > 1970 else instant  # noqa: PLR2004 - nothing before


@planted("E3", "The offset is dropped: instants come back naive", seen_in="huey#215")
class OffsetDropped(Store):
    def handed_out(self, task: Task) -> Task:
        return replace(task, available_at=task.available_at.replace(tzinfo=None))


@planted("E3", "An instant without microseconds is read back in another format, and fails", also="API")
class WholeSecondsUnreadable(Store):
    def handed_out(self, task: Task) -> Task:
        return replace(task, enqueued_at=datetime.strptime(str(task.enqueued_at), "%Y-%m-%d %H:%M:%S.%f%z"))


@planted("E3", "The instants inside failures are cut to milliseconds", also="V2")
class FailureCutToMilliseconds(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        cut = failure.failed_at.replace(microsecond=failure.failed_at.microsecond // 1000 * 1000)
        return super().failed(task, replace(failure, failed_at=cut))


@planted("E3", "The epoch counts as unset: an eta of 1970 becomes the time of enqueueing", seen_in="BullMQ#3052")
class EpochCountsAsUnset(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(
            replace(task, available_at=at if (at := task.available_at).timestamp() else task.enqueued_at)
        )


@planted("E3", "A past eta is replaced by the time of enqueueing", also="C3 ETA")
class PastEtaReplaced(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, available_at=max(task.available_at, task.enqueued_at)))


@planted("E3", "started_at of a moved task is forgotten when it is enqueued", also="API R1")
class StartForgottenAtEnqueue(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, started_at=None))


@planted("E1", "Equality is not due: available_at < now", also="ETA API")
class EqualityIsNotDue(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at < now


@planted("E1", "now is rounded up to the second, so tasks run early", seen_in="saq#173")
class NowRoundedUp(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at.timestamp() <= math.ceil(now.timestamp())


@planted("E1", "now is rounded down to the second, so tasks run late")
class NowRoundedDown(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at <= now.replace(microsecond=0)


@planted("E1", "Due times are compared in milliseconds, so tasks run up to a millisecond early")
class ComparedInMilliseconds(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at - timedelta(microseconds=task.available_at.microsecond % 1000) <= now


@planted("E1", "Due times are compared as text, with a T in one and a space in the other", seen_in="taskbroker#106")
class ComparedAsText(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at.isoformat(" ") <= now.isoformat("T")


@planted("E1", "Due times are compared as text that ends in Z and leaves out microseconds of zero")
class ComparedAsShortenedText(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        due, at = (instant.isoformat().replace("+00:00", "Z") for instant in (task.available_at, now))
        return due <= at


@planted(
    "E1", "A retried task is due at once, whatever its retry_at says", also="R2 LIFECYCLE", seen_in="taskbroker#630"
)
class RetryDueAtOnce(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return bool(task.failures) or super().is_due(task, now)


@planted("E1", "Tasks are handed out up to a minute early, to save a poll", also="ETA")
class HandedOutEarly(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at - timedelta(minutes=1) <= now


@planted("E1", "A claim with a limit above 1 also takes what is due a second later")
class BatchesLookAhead(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return super().choose(now + (SECOND if limit > 1 else SECOND * 0), limit)


@planted("E4", "claim looks at the host's clock instead of now", also="E1 ETA")
class ClaimReadsTheClock(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return task.available_at <= max(datetime.now(UTC), now)


@planted("E4", "claim never takes tasks that are due later than the host's clock says", also="E1 ETA E2")
class ClaimTrustsTheHost(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        return super().is_due(task, now) and task.available_at <= datetime.now(UTC)


@planted("E4", "started_at comes from the host's clock", also="E3")
class StartedByTheClock(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(task, datetime.now(UTC), lease_expires_at)


@planted("E4", "finished_at of a cancelled task comes from the host's clock", also="E3")
class CancelledByTheClock(Store):
    def cancelled(self, task: Task, now: datetime) -> Task:
        return super().cancelled(task, datetime.now(UTC))


@planted("E4", "expired looks at the host's clock", also="D3")
class ExpiredByTheClock(Store):
    def expired(self, now: datetime, limit: int) -> list[Task]:
        return super().expired(datetime.now(UTC), limit)


@planted("E4", "A claim whose now lies before that of an earlier claim uses the later one", also="E1")
class NowNeverGoesBack(Store):
    latest = datetime(1970, 1, 1, tzinfo=UTC)

    def choose(self, now: datetime, limit: int) -> list[Task]:
        self.latest = max(self.latest, now)
        return super().choose(self.latest, limit)


@planted("E4", "A lease that would have run out by the host's clock counts from there", also="D3 E3 L2")
class LeaseByTheClock(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(task, now, datetime.now(UTC) + (lease_expires_at - now))


@planted("E4", "A task enqueued in the future of the host's clock is refused", also="API E3")
class FutureIsClamped(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, enqueued_at=min(task.enqueued_at, datetime.now(UTC))))


@planted("E4", "purge never removes what ended later than the host's clock says", also="G1")
class PurgeTrustsTheHost(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return super().may_purge(task, min(finished_before, datetime.now(UTC)))


@planted(
    "E4", "In zones other than UTC, due times are compared in local time", also="E1", layer="hygiene", seen_in="arq#182"
)
class LocalZoneAtCompare(Store):
    def is_due(self, task: Task, now: datetime) -> bool:
        if now.year in (1970, 9999):  # where the platform cannot convert
            return super().is_due(task, now)
        return task.available_at <= now.replace(tzinfo=None).astimezone(UTC)


@planted(
    "E4",
    "A claim decades away from the host's clock is taken for a mistake, and gets nothing",
    also="E2",
    layer="hygiene",
)
class FarNowDistrusted(Store):
    def choose(self, now: datetime, limit: int) -> list[Task]:
        return [] if abs(now - datetime.now(UTC)) > timedelta(days=365 * 20) else super().choose(now, limit)
