"""Wrong about what is kept: payloads, values, failures (P1, V1, V2), and what is handed out."""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store


@planted("P1", "Payloads pass through UTF-8 with replacement", also="CONTEXT API")
class PayloadAsText(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, payload=task.payload.decode(errors="replace").encode()))


@planted("P1", "A payload ends at its first zero byte", also="CONTEXT API E2 RESULT")
class PayloadEndsAtZero(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, payload=task.payload.split(b"\0")[0]))


@planted("P1", "White space around a payload is stripped")
class PayloadStripped(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, payload=task.payload.strip()))


@planted("P1", "A payload that is JSON is normalised", seen_in="asynq#166")
class PayloadAsJson(Store):
    def kept(self, task: Task) -> Task:
        try:
            payload = json.dumps(json.loads(task.payload)).encode()
        except ValueError:
            payload = task.payload
        return super().kept(replace(task, payload=payload))


@planted("P1", "Payloads above 64 KiB are cut")
class PayloadCut(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, payload=task.payload[:65_536]))


@planted("P1", "An empty payload is read back as None", also="API")
class EmptyPayloadIsNone(Store):
    def handed_out(self, task: Task) -> Task:
        empty: Any = None
        return replace(task, payload=task.payload or empty)


@planted(
    "P1",
    "The payload is dropped at the first failure, to save space",
    also="CONTEXT LIFECYCLE BUDGET R2",
    clauses="CONTEXT-3",
)
class PayloadDroppedAtFailure(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return replace(super().retried(task, failure), payload=b"")


@planted("P1", "The payload is dropped once the task has succeeded", also="V1 L1 RESULT")
class PayloadDroppedAtSuccess(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), payload=b"")


@planted("P1", "Payloads that start like gzip are taken for compressed ones, and the mark is cut off")
class PayloadSniffed(Store):
    def handed_out(self, task: Task) -> Task:
        return replace(task, payload=task.payload.removeprefix(b"\x1f\x8b"))


@planted("V1", "Values pass through UTF-8 with replacement", also="RESULT")
class ValueAsText(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return super().completed(task, value.decode(errors="replace").encode(), now)


@planted("V1", "An empty value counts as none", also="RESULT")
class EmptyValueIsNone(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), value=value or None)


@planted("V1", "Values above 64 KiB are cut")
class ValueCut(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return super().completed(task, value[:65_536], now)


@planted("V1", "Values above 1,000,000 bytes are refused")
class LargeValueRefused(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        if len(value) > 1_000_000:  # noqa: PLR2004 - a limit that somebody thought generous
            raise ValueError("too large")
        return super().completed(task, value, now)


@planted("V1", "Reading a result consumes it", also="RESULT API D1 L1", seen_in="huey#214", layer="scenarios")
class ReadingConsumes(Store):
    def get(self, task_id: str) -> Task | None:
        task = super().get(task_id)
        if task is not None and task.value is not None:
            self.stored[task_id] = replace(task, value=b"")
        return task


@planted("V1", "Listings leave out the value", also="LISTING")
class ListedWithoutValue(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        tasks, cursor = super().page(status, after, limit)
        return [replace(task, value=None) for task in tasks], cursor


@planted("V1", "A success forgets the failures of earlier attempts", also="V2 RESULT R1")
class SuccessForgetsFailures(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), failures=())


@planted("V1", "A success keeps its lease", also="D3 LISTING L1 LIFECYCLE")
class SuccessKeepsTheLease(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), lease_expires_at=task.lease_expires_at)


@planted("V1", "A success has no finished_at", also="RESULT G1 LIFECYCLE", layer="scenarios")
class SuccessHasNoEnd(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), finished_at=None)


@planted("V1", "A success sets started_at to its end")
class SuccessMovesTheStart(Store):
    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return replace(super().completed(task, value, now), started_at=now)


@planted("V1", "A second success of the store shares the value of the first", also="RESULT", layer="model")
class ValuesAreInterned(Store):
    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, bytes] = {}

    def completed(self, task: Task, value: bytes, now: datetime) -> Task:
        return super().completed(task, self.values.setdefault(len(value), value), now)


@planted("V2", "Only the latest failure is kept", also="R2 LIFECYCLE BUDGET R1")
class OnlyTheLatestFailure(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        return super().retried(replace(task, failures=()), failure)

    def failed(self, task: Task, failure: Failure) -> Task:
        return super().failed(replace(task, failures=()), failure)


@planted("V2", "Only the first failure is kept", also="R2 LIFECYCLE BUDGET RESULT R1")
class OnlyTheFirstFailure(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        task = super().retried(task, failure)
        return replace(task, failures=task.failures[:1])

    def failed(self, task: Task, failure: Failure) -> Task:
        task = super().failed(task, failure)
        return replace(task, failures=task.failures[:1])


@planted("V2", "The newest failure comes first", also="R2 RESULT BUDGET R1")
class NewestFailureFirst(Store):
    def failed(self, task: Task, failure: Failure) -> Task:
        task = super().failed(task, failure)
        return replace(task, failures=task.failures[::-1])


@planted("V2", "Failures beyond the tenth push out the oldest", also="R1")
class TenFailuresAtMost(Store):
    def retried(self, task: Task, failure: Failure) -> Task:
        task = super().retried(task, failure)
        return replace(task, failures=task.failures[-10:])


class _Texts(Store):
    """Passes error and traceback through ``text``."""

    def text(self, text: str) -> str:
        raise NotImplementedError

    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        traceback = failure.traceback
        failure = replace(
            failure, error=self.text(failure.error), traceback=None if traceback is None else self.text(traceback)
        )
        return super().fail(task_id, attempt, failure, if_expired=if_expired)


@planted("V2", "Texts are cut to 255 characters")
class TextsCut(_Texts):
    def text(self, text: str) -> str:
        return text[:255]


@planted("V2", "Texts are cut to 32,768 characters")
class LongTextsCut(_Texts):
    def text(self, text: str) -> str:
        return text[:32_768]


@planted("V2", "Texts lose what is not ASCII")
class TextsAsAscii(_Texts):
    def text(self, text: str) -> str:
        return text.encode("ascii", "replace").decode()


@planted("V2", "Texts lose characters beyond 16 bits")
class TextsInThreeBytes(_Texts):
    def text(self, text: str) -> str:
        return "".join(one if ord(one) < 0x10000 else "?" for one in text)  # noqa: PLR2004 - as utf8mb3 does


@planted("V2", "Texts are normalised")
class TextsNormalised(_Texts):
    def text(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)


@planted("V2", "Line ends are normalised")
class LineEndsNormalised(_Texts):
    def text(self, text: str) -> str:
        return "\n".join(text.splitlines())


@planted("V2", "Texts lose the white space around them", also="RESULT")
class TextsStripped(_Texts):
    def text(self, text: str) -> str:
        return text.strip()


@planted("V2", "Texts with a quote cannot be recorded", also="R2 RESULT")
class QuotesBreakTheRecord(_Texts):
    def text(self, text: str) -> str:
        if "'" in text:
            raise RuntimeError('syntax error near "\'"')
        return text


@planted("V2", "Texts are used as a format", also="R2")
class TextsAreFormats(_Texts):
    def text(self, text: str) -> str:
        return text % () if "%" in text else text


@planted("V2", "A failure without a traceback gets an empty one", also="D3 R2")
class NoTracebackIsEmpty(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(
            task_id, attempt, replace(failure, traceback=failure.traceback or ""), if_expired=if_expired
        )


@planted("V2", "An empty traceback counts as none")
class EmptyTracebackIsNone(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(
            task_id, attempt, replace(failure, traceback=failure.traceback or None), if_expired=if_expired
        )


@planted("V2", "Tracebacks are not kept", also="RESULT", layer="scenarios")
class NoTracebacks(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(task_id, attempt, replace(failure, traceback=None), if_expired=if_expired)


@planted("V2", "Errors are kept as the name of the exception alone", also="RESULT", layer="scenarios")
class ErrorsAsNames(Store):
    def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Task:
        return super().fail(
            task_id, attempt, replace(failure, error=failure.error.split(":")[0]), if_expired=if_expired
        )


@planted("API", "The whole list of a call may not exceed 500 tasks")
class AtMost500PerCall(Store):
    def enqueue(self, tasks: Sequence[Task]) -> None:
        if len(tasks) > 500:  # noqa: PLR2004 - a limit that somebody thought generous
            raise ValueError("too many")
        super().enqueue(tasks)


@planted("API", "enqueued_at is set by the first claim, not kept", also="E3 C2 LIFECYCLE RESULT")
class EnqueuedAtMoves(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(replace(task, enqueued_at=now), now, lease_expires_at)


@planted("C2", "A claim sets available_at to its now", also="E3 LIFECYCLE BUDGET ETA D3")
class ClaimMovesAvailableAt(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(replace(task, available_at=now), now, lease_expires_at)


@planted("C2", "started_at is that of the first claim for ever", also="E3 R1")
class FirstStartIsKept(Store):
    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        return super().claimed(task, task.started_at or now, lease_expires_at)
