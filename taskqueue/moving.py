"""Moving the tasks that have not ended from one store to another.

Each task is first written into a journal, then cancelled in the source, then enqueued in the target with its id,
attempts and failures. So at no instant can it be claimed in both stores; and whenever the move is interrupted, it goes
on with the same journal where it was: every task is still in the source, or in the target, or in the journal.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from taskqueue._instants import system_clock, to_utc
from taskqueue._moving_journal import Journal, JournalError, Plan
from taskqueue.backend import Backend
from taskqueue.errors import TaskExists, TaskNotFound, TaskQueueError
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

__all__ = ["Journal", "JournalError", "Moved", "StillRunning", "move"]

_BATCH: Final = 100
_BATCH_BYTES: Final = 16 * 1024 * 1024
_ERROR: Final = "the task was moved to another store while an attempt was under way"


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did.

    Attributes:
        moved: How many tasks are in the target, those of earlier runs with the same journal included.
        interrupted: The ids of tasks that a worker took while they were being moved, and whose budget was spent by
            that: they stay in the source, CANCELLED. None if the source's workers had been stopped, as they must be.
    """

    moved: int
    interrupted: Sequence[str]


class StillRunning(TaskQueueError):
    """Tasks of the source are RUNNING, so it cannot be moved; what had been moved by then stays moved.

    Attributes:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} task(s) of the source are RUNNING. Stop its workers, let them finish, and repeat the move with "
            "the same journal. If a worker died, its tasks stay RUNNING until their leases have run out: then recover "
            "them, by TaskQueue.recover_expired() or by running a worker for a moment"
        )
        self.count = count


async def move(
    source: Backend, target: Backend, journal: Journal, *, clock: Callable[[], datetime] = system_clock
) -> Moved:
    """Move every PENDING task of ``source`` to ``target``, in the order of enqueueing.

    The source's workers must have been stopped; those of the target may run. Nothing may enqueue in the source
    meanwhile, or the move may have to be repeated. Tasks that have ended stay where they are, with their results; so
    does the record of each task that is moved, as CANCELLED: ``get_result`` of the source raises TaskCancelled.

    Interrupted at any point, even by a crash, it goes on when it is called with the same journal. That must be before
    anything that was moved is purged from either store.

    Args:
        source: An unconnected handle; it is closed at the end.
        target: The same.
        journal: Where to write what is about to be done.
        clock: Returns the instant under which tasks are cancelled in the source.

    Raises:
        StillRunning: Tasks of the source are RUNNING.
        TaskExists: Ids are known in the target, as those of other tasks. They, and what would have come after them,
            are in the source still.
        TaskQueueError: What a backend raises. The move can be repeated with the same journal.
    """
    mover = _Mover(source, target, journal, clock)
    try:
        await source.connect()
        await target.connect()
        await mover.run()
    finally:
        await source.close()
        await target.close()
    return Moved(journal.moved, tuple(mover.interrupted))


class _Mover:
    def __init__(self, source: Backend, target: Backend, journal: Journal, clock: Callable[[], datetime]) -> None:
        self._source = source
        self._target = target
        self._journal = journal
        self._clock = clock
        self.interrupted: list[str] = []

    async def run(self) -> None:
        await self._check_quiet()
        while self._journal.unfinished:
            await self._carry_out(self._journal.unfinished[0])
        # Always from the beginning: what has been moved is not PENDING any more.
        while tasks := await self._next_tasks():
            cancel_at = to_utc("clock", self._clock())
            await self._carry_out(await asyncio.to_thread(self._journal.plan, tasks, cancel_at=cancel_at))
        await self._check_quiet()

    async def _check_quiet(self) -> None:
        running = (await self._source.counts())[TaskStatus.RUNNING]
        if running:
            raise StillRunning(running)

    async def _next_tasks(self) -> Sequence[Task]:
        """Return the next tasks to move, none of whose ids is known in the target."""
        found, _ = await self._source.tasks(status=TaskStatus.PENDING, limit=_BATCH)
        tasks: list[Task] = []
        room = _BATCH_BYTES
        for task in found:
            room -= len(task.payload)
            if tasks and room < 0:
                break
            tasks.append(task)
        known = await asyncio.gather(*(self._target.get(task.id) for task in tasks))
        taken = [task.id for task, other in zip(tasks, known, strict=True) if other is not None]
        if taken:
            raise TaskExists(taken)
        return tasks

    async def _carry_out(self, plan: Plan) -> None:
        taken = [await self._take(task, plan.cancel_at) for task in plan.tasks]
        tasks = [task for task in taken if task is not None]
        await self._put(tasks)
        await asyncio.to_thread(self._journal.done, plan, moved=len(tasks))

    async def _take(self, task: Task, cancel_at: datetime) -> Task | None:
        """Cancel a task in the source, if that has not been done; return what to enqueue, or None for nothing."""
        try:
            await self._source.cancel(task.id, now=cancel_at)
        except TaskNotFound:
            return task  # cancelled by an earlier run, and purged since: nothing else ends it while no worker runs
        left = await self._source.get(task.id)
        if left is None:
            return task
        if left.status is not TaskStatus.CANCELLED or left.finished_at != cancel_at:
            return None  # it has ended by itself
        if left.attempts == len(left.failures):
            return replace(
                task,
                available_at=left.available_at,
                attempts=left.attempts,
                started_at=left.started_at,
                failures=left.failures,
            )
        return self._interrupted(left, cancel_at)

    def _interrupted(self, left: Task, at: datetime) -> Task | None:
        """Return a task that was RUNNING when it was cancelled, with a failed attempt, unless its budget is spent."""
        if left.attempts >= max(1, left.max_retries):
            self.interrupted.append(left.id)
            return None
        failure = Failure(attempt=left.attempts, error=_ERROR, failed_at=at, retry_at=at)
        return Task(
            id=left.id,
            payload=left.payload,
            enqueued_at=left.enqueued_at,
            available_at=at,
            max_retries=left.max_retries,
            attempts=left.attempts,
            started_at=left.started_at,
            failures=(*left.failures, failure),
        )

    async def _put(self, tasks: Sequence[Task]) -> None:
        """Enqueue in the target what is not there yet."""
        known = await asyncio.gather(*(self._target.get(task.id) for task in tasks))
        strangers = [
            task.id
            for task, other in zip(tasks, known, strict=True)
            if other is not None and (other.payload, other.enqueued_at) != (task.payload, task.enqueued_at)
        ]
        if strangers:
            raise TaskExists(strangers)
        missing = [task for task, other in zip(tasks, known, strict=True) if other is None]
        if missing:
            await self._target.enqueue(missing)
