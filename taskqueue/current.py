"""What a running task can know of itself."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentTask:
    """The attempt that is running.

    Attributes:
        id: The task.
        attempt: The number of this attempt, counted from 1.
        context: The context that the task was enqueued with, or None.
    """

    id: str
    attempt: int
    context: dict[str, Any] | None


running: ContextVar[CurrentTask | None] = ContextVar("taskqueue_current_task", default=None)


def current_task() -> CurrentTask | None:
    """Return the task that this code runs in, or None outside of a worker, as ``asyncio.current_task`` does.

    It works in coroutines and what they start, and in plain functions, which run in threads. A thread that a task
    starts by itself has to be given the context (``contextvars.copy_context().run``, or ``asyncio.to_thread``).

    Spec: Task context support / Preserve task context in payload.
    """
    return running.get()
