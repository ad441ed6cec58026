"""What a running task can know of itself."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


class Cancellation:
    """Whether an attempt shall end early; set once, by any thread, and never taken back."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False


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
    _cancellation: Cancellation = field(default_factory=Cancellation, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall end early, since nothing that it returns will be recorded. May be read anywhere.

        It becomes true, and stays so, once the worker has learnt that its claim is lost (the task was cancelled,
        recovered by somebody else or purged), when the attempt has run longer than its timeout, and when it is
        interrupted as the worker is stopped. A coroutine is cancelled besides, as asyncio does it. A function in a
        thread cannot be stopped by Python: one that may run for long should look here now and then, and return. A
        worker learns of a lost claim with its next heartbeat, so within about a third of the lease.
        """
        return self._cancellation.requested


running: ContextVar[CurrentTask | None] = ContextVar("taskqueue_current_task", default=None)


def current_task() -> CurrentTask | None:
    """Return the task that this code runs in, or None outside of a worker, as ``asyncio.current_task`` does.

    It works in coroutines and what they start, and in plain functions, which run in threads. A thread that a task
    starts by itself has to be given the context (``contextvars.copy_context().run``, or ``asyncio.to_thread``).

    Spec: Task context support / Preserve task context in payload.
    """
    return running.get()
