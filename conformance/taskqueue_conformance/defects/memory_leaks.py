"""Right in every answer, and something stays behind: tasks, threads, descriptors; and clocks of one time zone only."""

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from taskqueue import Failure, StaleClaim, Task
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import PlainMemory, Store


def _linger() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@planted(
    "X1", "Each cancelled extend leaves a task behind that waits for an answer", also="HANDLES L2", layer="hygiene"
)
class CancelledExtendLeavesATask(PlainMemory):
    left: ClassVar[set[asyncio.Future[Any]]] = set()

    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        own = list(claims)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.left.add(asyncio.ensure_future(asyncio.sleep(3600)))
            raise
        return await super().extend(own, lease_expires_at=lease_expires_at)


@planted("X1", "Each refused outcome leaves a file descriptor open", also="HANDLES L2", layer="hygiene")
class RefusalsLeakDescriptors(PlainMemory):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        try:
            return await super().fail(task_id, attempt, failure, if_expired=if_expired)
        except StaleClaim:
            os.open(os.devnull, os.O_RDONLY)
            raise


@planted("X1", "A listing that is not read to its end keeps its cursor open", also="LISTING HANDLES", layer="hygiene")
class CursorsStayOpen(PlainMemory):
    async def tasks(self, **options: Any) -> Any:
        page, cursor = await super().tasks(**options)
        if cursor is not None:
            os.open(os.devnull, os.O_RDONLY)
        return page, cursor


@planted("X1", "Each completion leaves a file descriptor open", also="HANDLES V1", layer="hygiene")
class CompletionsLeakDescriptors(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        await super().complete(task_id, attempt, value=value, now=now)
        os.open(os.devnull, os.O_RDONLY)


@planted("X1", "A claim that finds nothing leaves a thread that goes on looking", also="HANDLES E2", layer="hygiene")
class EmptyClaimsLeaveThreads(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        if limit and not claimed:
            _linger()
        return claimed


@planted("HANDLES", "Connecting again after close leaves a thread for each time before", also="X1", layer="hygiene")
class ReconnectLeavesAThread(PlainMemory):
    closed = False

    async def connect(self) -> None:
        await super().connect()
        if self.closed:
            _linger()
        self.closed = False

    async def close(self) -> None:
        await super().close()
        self.closed = True


@planted("HANDLES", "A clone's file descriptor is not closed with it", also="X1", layer="hygiene")
class ClonesLeakDescriptors(PlainMemory):
    def clone(self) -> Any:
        other = super().clone()
        os.open(os.devnull, os.O_RDONLY)
        return other


@planted("E4", "Instants are kept in local time, so an hour that happens twice is one", also="E3 ETA")
class LocalTimeForgetsTheFold(Store):
    def kept(self, task: Task) -> Task:
        return super().kept(replace(task, available_at=_by_local_time(task.available_at)))


def _by_local_time(instant: datetime) -> datetime:
    try:
        return instant.astimezone().replace(tzinfo=None, fold=0).astimezone(UTC)
    except OverflowError:  # at the ends of the calendar
        return instant
