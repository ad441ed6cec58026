"""Recovery: finds claims whose worker has died, and records them as failed attempts."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from taskqueue._text import log_text
from taskqueue.errors import StaleClaim, TaskNotFound
from taskqueue.queue import TaskQueue, lost_lease

Seen = tuple[str, int, datetime | None]

logger = logging.getLogger("taskqueue.worker")

SHARE_OF_LEASE: Final = 0.2
"""How long after a pass the next one comes, as a share of the lease."""
PASSES: Final = 3
"""How many passes in a row have to see a lease as run out."""

_SHORTEST_INTERVAL: Final = 0.005
_PAGE: Final = 1000


class Recovery:
    """Recovers the expired leases of others, so that neither a clock that steps nor a machine that slept harms anybody.

    A claim is recovered once ``PASSES`` passes in a row have seen the same expired lease: the first and the last of
    them are two fifths of a lease apart, and whoever lives has extended it in between, since it does so every three
    tenths. Passes are counted, and time is measured by the event loop only in what lies between two of them, so that
    a jump of that clock shortens one rest and not all.

    A pass is one read where nothing has expired. It looks at the 1,000 oldest leases that have run out.

    Args:
        queue: Whose tasks to recover.
        lease: The lease that the queue's workers use.
        is_own: Tells whether this worker itself holds a claim; such a one is never recovered.
    """

    def __init__(self, queue: TaskQueue, *, lease: timedelta, is_own: Callable[[tuple[str, int]], bool]) -> None:
        self.interval = max(lease.total_seconds() * SHARE_OF_LEASE, _SHORTEST_INTERVAL)
        self._queue = queue
        self._is_own = is_own
        self._seen: dict[Seen, int] = {}

    async def run_pass(self) -> None:
        """Look once, and recover what has been seen often enough."""
        seen: dict[Seen, int] = {}
        for task in await self._queue.expired(_PAGE):
            if self._is_own((task.id, task.attempts)):
                continue
            key = (task.id, task.attempts, task.lease_expires_at)
            seen[key] = self._seen.get(key, 0) + 1
            if seen[key] < PASSES:
                continue
            try:
                stored = await self._queue.fail_task(task.id, task.attempts, lost_lease(task), if_expired=True)
            except (StaleClaim, TaskNotFound) as refusal:
                logger.debug("task %s: attempt %d needs no recovery: %s", task.id, task.attempts, log_text(refusal))
                continue
            what = "was the last" if stored.status.ended else f"due again at {stored.available_at}"
            logger.warning("task %s: recovered, %s: %s", task.id, what, log_text(stored.failures[-1].error))
        self._seen = seen
