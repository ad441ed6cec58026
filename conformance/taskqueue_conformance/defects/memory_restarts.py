"""Right as long as the server runs; wrong once it has been restarted (D1, C1, R1, HANDLES, W1)."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import ClassVar

from taskqueue import StoreUnavailable, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import Store
from taskqueue_conformance.defects.plain_served import Served, ServedStore

_EVERY = 10


class WritesNowAndThen(ServedStore):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[Task] = []
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1
        if self.changes % _EVERY == 0:
            self.written = [*self.stored.values()]
        super().changed()

    def restarted(self) -> None:
        self.put_back(self.written)


@planted("D1", "A restart takes back the last few calls that were acknowledged", also="D2 C1 HANDLES", layer="restarts")
class RestartTakesBackTheLastCalls(Served):
    store_class: ClassVar[type[Store]] = WritesNowAndThen


class GivesBackWhatRuns(ServedStore):
    def restarted(self) -> None:
        self.put_back(
            [
                replace(task, status=TaskStatus.PENDING, lease_expires_at=None, attempts=task.attempts - 1)
                if task.status is TaskStatus.RUNNING
                else task
                for task in self.stored.values()
            ]
        )


@planted(
    "C1",
    "After a restart, tasks that were running are handed out again at once, with the same attempt number",
    also="D1 R1 HANDLES",
    layer="restarts",
)
class RestartGivesBackWhatRuns(Served):
    store_class: ClassVar[type[Store]] = GivesBackWhatRuns


class ForgetsFailures(ServedStore):
    def restarted(self) -> None:
        self.put_back([replace(task, failures=()) for task in self.stored.values()])


@planted("D1", "A restart forgets the failures so far", also="D2", layer="restarts")
class RestartForgetsFailures(Served):
    store_class: ClassVar[type[Store]] = ForgetsFailures


@planted("HANDLES", "A handle never connects again by itself", layer="restarts")
class HandleStaysDisconnected(Served):
    def reconnect(self) -> None:
        pass

    async def connect(self) -> None:
        await super().connect()
        self.connection = self.served.connections


@planted("W1", "After a restart, no change ends a wait of a handle that was connected before", layer="restarts")
class WaitStaysDeaf(Served):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        if self.served.connections:
            await asyncio.sleep(timeout)
        else:
            await super().wait(timeout)


@planted(
    "D2",
    "A handle repeats an enqueue whose answer was lost, and then says that the ids are taken",
    also="D1 API",
    layer="restarts",
)
class EnqueueRepeatsItself(Served):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        try:
            await super().enqueue(tasks)
        except StoreUnavailable:
            await self.until_it_is_back()
            await super().enqueue(tasks)


@planted(
    "D1",
    "A handle repeats a complete whose answer was lost, and then says that the claim is not held",
    also="L2",
    layer="restarts",
)
class CompleteRepeatsItself(Served):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        try:
            await super().complete(task_id, attempt, value=value, now=now)
        except StoreUnavailable:
            await self.until_it_is_back()
            await super().complete(task_id, attempt, value=value, now=now)
