"""What the steps of one scenario share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from taskqueue import Result, SerializationError, StaleClaim, Task, TaskNotFound, TaskQueue, TooLarge, Worker
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.steps import calls
from taskqueue_conformance.steps.parameters import TaskRef
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect_task

R = TypeVar("R")

WITNESS = "witness"
"""The id of the task that every scenario begins with; it is due long after everything else."""


class Clock(Protocol):
    """The frozen clock."""

    def move_to(self, target_datetime: datetime) -> None:
        """Set it, forwards or backwards."""


class WatchedQueue(TaskQueue):
    """A queue that remembers what a worker asked of it.

    Attributes:
        failed: The ids of the tasks that ``fail_task`` was called for, in order.
        retry_at: When ``fail_task`` shall schedule every retry, or None for what the policy says.
        broken: Done as soon as a call raised what no worker should have to deal with; a worker would try again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed: list[str] = []
        self.retry_at: datetime | None = None
        self.broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def claim(self, *args: Any, **kwargs: Any) -> list[Task]:
        """Pass on."""
        return await self._watched(super().claim(*args, **kwargs))

    async def complete_task(self, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        await self._watched(super().complete_task(*args, **kwargs))

    async def fail_task(self, task_id: str, *args: Any, **kwargs: Any) -> Task:
        """Remember the call and pass it on."""
        self.failed.append(task_id)
        if self.retry_at is None:
            return await self._watched(super().fail_task(task_id, *args, **kwargs))
        usual, delay = self.retry_policy, self.retry_at - self.now()
        self.retry_policy = type(usual)(base=delay, factor=1, cap=delay)
        try:
            return await self._watched(super().fail_task(task_id, *args, **kwargs))
        finally:
            self.retry_policy = usual

    async def _watched(self, call: Awaitable[R]) -> R:
        try:
            return await call
        except (StaleClaim, TaskNotFound, SerializationError, TooLarge):
            raise
        except Exception as error:
            if not self.broken.done():
                self.broken.set_result(error)
            raise


class World:
    """One scenario's surroundings.

    Attributes:
        lab: The check's lab.
        clock: The frozen clock, which the queue and everything else sees.
        subject: The handle of the backend under test that ``queue`` uses.
        queue: The queue of the scenario.
        block: The "async with" block that a caller is in.
        constructed: A ``TaskQueue()`` that the scenario constructed beside it, in ``folder``.
        folder: The working directory of that moment.
        task_ids: The ids of the tasks that were enqueued, oldest first, without the witness.
        result: What ``get_result`` returned last.
        answer: What the last call that answers with a number or a truth value returned.
        refusal: The exception that the last step raised, where the next one expects it.
        waited: How long the last ``get_result`` took, by the event loop's clock.
        claims: For each worker the claims that it was given, ids to attempts.
        last_claim: For each worker the ids of the tasks that its last claim returned.
        seen: Every task as the scenario last saw it, by id.
        transitions: What ``on_transition`` was told.
        log: The messages that taskqueue logged.
    """

    def __init__(self, lab: Lab, clock: Clock) -> None:
        self.lab = lab
        self.clock = clock
        self.subject: Subject = lab.unconnected()
        self.queue = self.new_queue(self.subject)
        self.block = AsyncExitStack()
        self.constructed: TaskQueue | None = None
        self.folder = Path()
        self.task_ids: list[str] = []
        self.result: Result | None = None
        self.answer: object = None
        self.refusal: Exception | None = None
        self.waited = timedelta(0)
        self.claims: dict[str, dict[str, int]] = {}
        self.last_claim: dict[str, list[str]] = {}
        self.seen: dict[str, Task] = {}
        self.transitions: list[Any]
        self.log = _Log()
        self._at_end: list[Callable[[], object]] = [self.log.detach]
        calls.EXECUTIONS.clear()

    def new_queue(self, subject: Subject, **options: Any) -> WatchedQueue:
        """Return a queue on ``subject`` with ``options``, which reports its transitions to this world."""
        self.transitions = []
        return WatchedQueue(subject, on_transition=self.transitions.append, **options)

    def at_end(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` when the scenario is over."""
        self._at_end.append(undo)

    def close(self) -> None:
        """Undo what the scenario did to the process. The lab closes the handles."""
        while self._at_end:
            self._at_end.pop()()

    def id_of(self, ref: TaskRef) -> str:
        """Return the id of the task that a step means."""
        return ref.name if ref.name is not None else self.task_ids[-1]

    async def task(self, ref: TaskRef) -> Task:
        """Return a task as it is stored now, through the queue.

        Raises:
            Violation: It is unknown.
        """
        task_id = self.id_of(ref)
        try:
            self.seen[task_id] = await self.queue.get_task(task_id)
        except TaskNotFound as unknown:
            raise Violation(
                f"get({task_id!r})", expected="the task", actual="None", look="enqueue and get"
            ) from unknown
        return self.seen[task_id]

    async def witness(self) -> None:
        """Enqueue a task that is due long after the scenario, and read it back field by field.

        Nothing about it is a boundary: who gets boundaries wrong shall fail the scenarios about them, and no others.
        """
        await self.queue.enqueue(
            calls.echo, "seen", task_id=WITNESS, eta=datetime.fromisoformat("2100-01-01T12:00+00:00")
        )
        expect_task(
            f"get({WITNESS!r}) after enqueue", await self.subject.get(WITNESS), self.lab.journal.written[WITNESS]
        )

    async def timed(self, call: Awaitable[R]) -> R:
        """Await ``call`` and note how long it took in ``waited``."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            return await call
        finally:
            self.waited = timedelta(seconds=loop.time() - begun)

    async def run_worker(self) -> None:
        """Let a worker run what is due, until it is idle."""
        running = asyncio.create_task(Worker(self.queue).run_until_idle())
        ends: list[asyncio.Future[Any]] = [running, self.queue.broken]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])
        if self.queue.broken.done():
            raise self.queue.broken.result()
        await running


class _Log(logging.Handler):
    """Keeps what taskqueue logs while a scenario runs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []
        self._logger = logging.getLogger("taskqueue")
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def detach(self) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
