"""What calls were made, when they began and ended, and what came back: the raw material of a history."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound
from taskqueue_conformance.subject import METHODS, Subject
from taskqueue_conformance.violation import Violation, said, shown

REFUSALS = (StaleClaim, TaskExists, TaskNotFound)
"""The exceptions that are answers."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call, from where it began to where it ended in the order of all events of its history.

    Attributes:
        handle: The name of the handle.
        method: The method's name.
        arguments: By the parameters' names.
        start: When it began: an instant is a whole number, and no two events share one.
        end: When it returned, raised, or was given up.
        answer: What it returned.
        error: What it raised, if it did.
        lost: Whether it was cancelled, or its answer lost: then it has happened, or has not, or may still happen.
    """

    handle: str
    method: str
    arguments: Mapping[str, Any]
    start: int
    end: int
    answer: Any = None
    error: Exception | None = None
    lost: bool = False

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items())
        if self.lost:
            outcome = "cancelled"
        elif self.error is not None:
            outcome = f"raised {_refusal(self.error)}"
        else:
            outcome = f"-> {_brief(self.answer)}"
        return f"{self.start:>3}-{self.end:<3} {self.handle}.{self.method}({arguments}) {outcome}"

    @property
    def accepted(self) -> bool:
        """Whether it returned, and did what it does."""
        return not self.lost and self.error is None

    def overlaps(self, other: "Call") -> bool:
        """Whether neither had ended when the other began."""
        return self.start < other.end and other.start < self.end


@dataclass(slots=True)
class Recorder:
    """Makes calls and keeps the history.

    Attributes:
        calls: The calls that have ended, in the order of their ends.
        under_way: The tasks that are in the middle of a call.
    """

    calls: list[Call] = field(default_factory=list)
    under_way: set["asyncio.Task[Any] | None"] = field(default_factory=set)
    _instant: int = 0

    async def call(self, handle: Subject, method: str, *args: Any, **options: Any) -> Any:
        """Make one call and record it.

        Returns:
            The answer; the exception itself where the contract knows it as a refusal.

        Raises:
            Exception: Whatever else the call raised; it has been recorded.
        """
        # A place where another call may come between, also where the backend never suspends.
        await asyncio.sleep(0)
        arguments = dict(zip(METHODS[method], args, strict=False)) | options
        start = self._now()
        bound = getattr(handle, method)
        task = asyncio.current_task()
        self.under_way.add(task)
        try:
            answer = await bound(*args, **options)
        except asyncio.CancelledError:
            self._record(handle, method, arguments, start, lost=True)
            raise
        except Violation:
            raise
        except Exception as error:
            self._record(handle, method, arguments, start, error=error)
            if isinstance(error, REFUSALS):
                return error
            raise
        finally:
            self.under_way.discard(task)
        self._record(handle, method, arguments, start, answer=answer)
        return answer

    def _now(self) -> int:
        self._instant += 1
        return self._instant

    def _record(self, handle: Subject, method: str, arguments: Mapping[str, Any], start: int, **outcome: Any) -> None:
        self.calls.append(Call(handle.name, method, arguments, start, self._now(), **outcome))


def _brief(value: object) -> str:
    """Return what matters of an argument or an answer, short enough for a line of a history."""
    if isinstance(value, Task):
        return _brief_task(value)
    if isinstance(value, Failure):
        retry = "no retry" if value.retry_at is None else f"retry at {_brief(value.retry_at)}"
        return f"<failure {value.attempt}, {retry}>"
    if isinstance(value, datetime):
        return value.strftime("%H:%M:%S") if value.microsecond == 0 else value.strftime("%H:%M:%S.%f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_brief(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = ", ".join(map(_brief, value))
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return shown(value) if not isinstance(value, str) else repr(value)


def _brief_task(task: Task) -> str:
    parts = [f"{task.id} {task.status.upper()}"]
    if task.attempts:
        parts.append(f"attempt {task.attempts} of {max(1, task.max_retries)}")
    if task.value is not None:
        parts.append(f"value {shown(task.value)}")
    if not task.status.ended:
        parts.append(f"available {_brief(task.available_at)}")
    return f"<{', '.join(parts)}>"


def _refusal(error: Exception) -> str:
    if isinstance(error, StaleClaim):
        return f"StaleClaim({error.status.upper()}, attempts {error.attempts})"
    if isinstance(error, TaskExists):
        return f"TaskExists({', '.join(error.task_ids)})"
    if isinstance(error, TaskNotFound):
        return f"TaskNotFound({error.task_id})"
    return said(error)
