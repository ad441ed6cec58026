"""The outcome of a task, as a client sees it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from taskqueue.errors import DeserializationError, TaskFailed
from taskqueue.status import TaskStatus
from taskqueue.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a task ended. A snapshot of what is stored; reading it consumes nothing.

    Two results are equal if all of the attributes below are. A result can be pickled and copied.

    Attributes:
        task_id: The task.
        status: ``TaskStatus.SUCCESS`` or ``TaskStatus.FAILED``; equal to ``"success"`` and ``"failed"``.
        value: The *serialised* return value, which may be ``b""``, or None after a failure. ``unwrap`` gives the
            return value itself.
        error: What went wrong in the last attempt, for a person to read, or None after a success; never empty.
        traceback: The formatted stack trace of the last attempt, or None after a success, and where there is none
            (the worker died).
        enqueued_at: When the task was enqueued (timezone-aware UTC).
        finished_at: When the outcome was recorded (timezone-aware UTC).
        attempts: How often the task was claimed.

    Spec: Result model.
    """

    task_id: str
    status: TaskStatus
    value: bytes | None = field(default=None, repr=False)
    error: str | None = None
    traceback: str | None = field(default=None, repr=False)
    enqueued_at: datetime
    finished_at: datetime
    attempts: int
    _loads: Callable[[bytes], Any] | None = field(default=None, repr=False, compare=False)

    def unwrap(self, loads: Callable[[bytes], Any] | None = None) -> Any:
        """Return what the task returned, or raise what became of it.

        Args:
            loads: What turns the value into an object; by default the serializer of the queue that gave this result.
                A result that has been pickled has lost it, so pass ``queue.serializer.loads``.

        Raises:
            TaskFailed: The task failed; carries its error and the stack trace from where it ran.
            DeserializationError: The value cannot be loaded here, or there is nothing to load it with.

        With the default serializer this loads a pickle, which runs code that the store's writers chose.
        """
        if self.value is None:
            raise TaskFailed(self.task_id, self.error or "", self.traceback)
        loads = loads or self._loads
        what = f"the value of task {self.task_id!r}"
        if loads is None:
            raise DeserializationError(
                what, "this result was pickled, which leaves the serializer behind; pass unwrap(queue.serializer.loads)"
            )
        try:
            return loads(self.value)
        except DeserializationError:
            raise
        except Exception as error:
            raise DeserializationError(what, f"{type(error).__name__}: {error}") from error

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        state = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "_loads"}
        return (_rebuild, (type(self), state))


def _rebuild(kind: type[Result], state: dict[str, Any]) -> Result:
    return kind(**state)


def result_of(task: Task, loads: Callable[[bytes], Any] | None) -> Result:
    """Return the result of a task that has ended as SUCCESS or FAILED."""
    failure = task.failures[-1] if task.status is TaskStatus.FAILED else None
    if task.finished_at is None:
        raise ValueError(f"task {task.id!r} has not ended")
    return Result(
        task_id=task.id,
        status=task.status,
        value=task.value,
        error=None if failure is None else failure.error,
        traceback=None if failure is None else failure.traceback,
        enqueued_at=task.enqueued_at,
        finished_at=task.finished_at,
        attempts=task.attempts,
        _loads=loads,
    )
