"""The lifecycle steps that a queue announces to its ``on_transition``."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from taskqueue.errors import InvalidArgument
from taskqueue.status import TaskStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step in the life of a task.

    Attributes:
        task_id: The task.
        source: The status before; None for a new task. (Also None in the one case where it cannot be known: a
            cancelled task that was purged before it could be read.)
        target: The status after.
        at: The instant of the step by the queue's clock (timezone-aware UTC).
        attempt: How often the task had been claimed, this step included: 0 for a new task.

    Spec: Task Status Lifecycle.
    """

    task_id: str
    source: TaskStatus | None
    target: TaskStatus
    at: datetime
    attempt: int


class Announcer:
    """Tells a listener of transitions; whatever the listener does, the task goes on.

    Attributes:
        heard: Whether anybody listens. Asked first where every task would pay for the telling.
    """

    def __init__(self, listener: Callable[[Transition], object] | None) -> None:
        given: object = listener
        if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
            raise InvalidArgument("on_transition", listener, "pass a plain function of one argument; it is not awaited")
        self._listener = listener
        self.heard = listener is not None

    def announce(self, task_id: str, at: datetime, attempt: int, *path: TaskStatus | None) -> None:
        """Tell of each step along ``path``, in order; the first status is the one before."""
        if self._listener is None:
            return
        for source, target in pairwise(path):
            if target is None:
                continue
            step = Transition(task_id=task_id, source=source, target=target, at=at, attempt=attempt)
            try:
                self._listener(step)
            except BaseException:
                # SystemExit too: what was claimed or recorded just now must reach its caller.
                logger.exception("on_transition raised for %s; the task is not affected", step)
