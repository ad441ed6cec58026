"""The exceptions of taskqueue. Each carries its data as attributes, and a message that says what to do next."""

from collections.abc import Sequence
from datetime import datetime

from taskqueue.status import TaskStatus


class TaskQueueError(Exception):
    """The base of every exception that taskqueue raises by itself."""

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the attributes, so that subclasses with other signatures can be pickled and copied."""
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(kind: type[TaskQueueError], args: tuple[object, ...], state: dict[str, object]) -> TaskQueueError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidArgument(TaskQueueError, ValueError):
    """An argument that cannot mean anything; nothing was stored.

    Attributes:
        argument: The parameter's name.
        value: What was passed.
    """

    def __init__(self, argument: str, value: object, advice: str) -> None:
        super().__init__(f"{argument}={_shown(value)}: {advice}")
        self.argument = argument
        self.value = value


class NotConnected(TaskQueueError):
    """A backend was used before ``connect``, after ``close``, on another event loop or in a forked child."""


class TaskNotFound(TaskQueueError, LookupError):
    """No task has this id: it was never enqueued here, or has been purged.

    Attributes:
        task_id: The unknown id.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"no task has the id {_shown(task_id)}: it was never enqueued in this store, or it has been purged"
        )
        self.task_id = task_id


class TaskExists(TaskQueueError):
    """``enqueue`` was given ids that are known already, or one id twice; nothing was stored.

    Attributes:
        task_ids: The offending ids, each once; their order is free.
    """

    def __init__(self, task_ids: Sequence[str]) -> None:
        super().__init__(
            f"already enqueued: {', '.join(map(_shown, task_ids))}. Nothing was stored. If an earlier enqueue of "
            "yours was interrupted, it had landed; otherwise choose another task_id"
        )
        self.task_ids = tuple(task_ids)


class StaleClaim(TaskQueueError):
    """The claim ``(task_id, attempt)`` does not hold the task any more; nothing was changed.

    Attributes:
        task_id: The task.
        attempt: The attempt number of the claim that was refused.
        status: The status that the task has.
        attempts: The number of claims that the task has seen; above ``attempt`` where somebody else took it since.
        lease_expires_at: The lease that still holds where ``if_expired`` was the reason; otherwise None.
    """

    def __init__(
        self,
        task_id: str,
        attempt: int,
        *,
        status: TaskStatus,
        attempts: int,
        lease_expires_at: datetime | None = None,
    ) -> None:
        held = "" if lease_expires_at is None else f" and its lease holds until {lease_expires_at.isoformat()}"
        super().__init__(
            f"attempt {attempt} of task {_shown(task_id)} is refused: the task is {status.upper()} after {attempts} "
            f"attempt(s){held}. Drop this outcome: the task belongs to somebody else, or has ended"
        )
        self.task_id = task_id
        self.attempt = attempt
        self.status = status
        self.attempts = attempts
        self.lease_expires_at = lease_expires_at


class TooLarge(TaskQueueError):
    """A record or a list of records is beyond what the backend can take; nothing was stored.

    Attributes:
        what: What was too large.
        size: Its size, in ``unit``.
        limit: The largest size that this backend takes, in ``unit``.
        unit: ``"bytes"`` or ``"tasks"``.
    """

    def __init__(self, what: str, *, size: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(
            f"{what} has {size} {unit}, and this backend takes {limit} at most. "
            + ("Split the call" if unit == "tasks" else "Store the data elsewhere and pass a reference to it")
        )
        self.what = what
        self.size = size
        self.limit = limit
        self.unit = unit


class TaskCancelled(TaskQueueError):
    """A result was asked for, and the task had been cancelled.

    Attributes:
        task_id: The cancelled task.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {_shown(task_id)} was cancelled; it has no result")
        self.task_id = task_id


class TaskNotEnded(TaskQueueError):
    """A task was to be enqueued again that is still to run, or runs; nothing was stored.

    Attributes:
        task_id: The task.
        status: Its status, PENDING or RUNNING.
    """

    def __init__(self, task_id: str, *, status: TaskStatus) -> None:
        super().__init__(
            f"task {_shown(task_id)} is {status.upper()}: only a task that has ended can be enqueued again. "
            "Wait for its outcome, or cancel it first"
        )
        self.task_id = task_id
        self.status = status


class TaskFailed(TaskQueueError):
    """``Result.unwrap`` of a task that failed.

    Attributes:
        task_id: The failed task.
        error: The error of its last attempt.
        remote_traceback: The formatted stack trace from where the task ran, or None where there is none.
    """

    def __init__(self, task_id: str, error: str, remote_traceback: str | None) -> None:
        where = "" if remote_traceback is None else f"\n\nTraceback of the task:\n{remote_traceback}"
        super().__init__(f"task {_shown(task_id)} failed: {error}{where}")
        self.task_id = task_id
        self.error = error
        self.remote_traceback = remote_traceback


class SerializationError(TaskQueueError):
    """A call or a return value cannot be serialised; nothing was stored.

    Attributes:
        what: What could not be serialised.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be serialised: {reason}")
        self.what = what


class DeserializationError(TaskQueueError):
    """Stored bytes cannot be loaded: the code that they need is missing here, or they are damaged.

    Attributes:
        what: What could not be loaded.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be loaded: {reason}")
        self.what = what


class SignatureError(DeserializationError):
    """The signature of stored bytes does not hold, so nothing of them was loaded.

    Attributes:
        what: What could not be loaded.
    """


class UnknownScheme(InvalidArgument):
    """A URL names no registered backend.

    Attributes:
        url: The URL as it was given, with ``***`` for a password in it.
        known: The schemes that are registered here, sorted.
    """

    def __init__(self, url: str, known: Sequence[str]) -> None:
        super().__init__(
            "url",
            url,
            f"no backend is registered for this scheme; known here: {', '.join(known)}. Install the package that "
            "provides it, or write for example sqlite:///taskqueue.db",
        )
        self.url = url
        self.known = tuple(known)


class IncompatibleStore(TaskQueueError):
    """A store is not one of ours, or was written by a newer taskqueue; it was left untouched.

    Attributes:
        location: The file or server.
        found: The schema version found, or None where the store is not a taskqueue's.
        supported: The schema version that this taskqueue reads and writes.
    """

    def __init__(self, location: str, *, found: int | None, supported: int) -> None:
        super().__init__(
            f"{location} holds something other than a taskqueue, or a damaged one; it was left untouched. Choose "
            "another path, or restore a copy"
            if found is None
            else f"{location} has schema version {found}, and this taskqueue knows versions up to {supported}; it was "
            "left untouched. Upgrade taskqueue here, or choose another path"
        )
        self.location = location
        self.found = found
        self.supported = supported


class StoreUnavailable(TaskQueueError):
    """The store cannot be opened or does not answer; the message names it and the reason.

    Attributes:
        location: The file or server.
        reason: What the driver said.
    """

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location} is not available: {reason}")
        self.location = location
        self.reason = reason


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."  # noqa: PLR2004 - a message is for reading
