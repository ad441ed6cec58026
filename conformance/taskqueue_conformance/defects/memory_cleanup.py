"""Wrong where a cancelled call cleans up, is repeated, or has company: cancelled once and alone, all is well."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from taskqueue import Failure, StaleClaim, Task, TaskExists
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.memory_races import elsewhere
from taskqueue_conformance.defects.plain_memory import PlainMemory, Store


class _Exclusive(PlainMemory):
    """Every call, reads too, has the store for itself from its first step to its last."""

    class _Store(Store):
        def __init__(self) -> None:
            super().__init__()
            self.locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    store_class = _Store

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Any]:
        """Give the store to one call of this event loop at a time."""
        with self.use() as store:
            lock = store.locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with lock:
            yield store

    @asynccontextmanager
    async def undone_if_cancelled(self, store: Any) -> AsyncIterator[None]:
        """Put back what was there, task by task, which takes some steps: a second cancellation cuts it short."""
        before = dict(store.stored)
        try:
            yield
        except asyncio.CancelledError:
            for task_id, task in before.items():
                if store.stored.get(task_id) is not task:
                    store.stored[task_id] = task
                    await elsewhere()
            raise

    async def get(self, task_id: str) -> Task | None:
        async with self.alone():
            return await super().get(task_id)

    async def tasks(self, **options: Any) -> Any:
        async with self.alone():
            return await super().tasks(**options)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        async with self.alone():
            return await super().expired(now=now, limit=limit)

    async def next_due(self) -> datetime | None:
        async with self.alone():
            return await super().next_due()

    async def counts(self) -> Any:
        async with self.alone():
            return await super().counts()

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        async with self.alone():
            await super().enqueue(own)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        async with self.alone():
            return await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)

    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        own = list(claims)
        async with self.alone():
            return await super().extend(own, lease_expires_at=lease_expires_at)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        async with self.alone():
            await super().complete(task_id, attempt, value=value, now=now)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        async with self.alone():
            return await super().fail(task_id, attempt, failure, if_expired=if_expired)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        async with self.alone():
            return await super().cancel(task_id, now=now)

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        async with self.alone():
            return await super().purge(finished_before=finished_before, limit=limit)


@planted(
    "X1", "A claim that is cancelled twice has put back some of its tasks only", also="C2 D2", layer="interruptions"
)
class ClaimCleanUpIsCutShort(_Exclusive):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        async with self.alone() as store, self.undone_if_cancelled(store):
            taken: list[Task] = store.claim(now, limit, lease_expires_at)
            await elsewhere()
            return taken


@planted("X1", "An extend that is cancelled twice has put back some leases only", also="L2 D2", layer="interruptions")
class ExtendCleanUpIsCutShort(_Exclusive):
    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        own = list(claims)
        async with self.alone() as store, self.undone_if_cancelled(store):
            held = store.extend(own, lease_expires_at)
            await elsewhere()
            return held


@planted("X1", "A list whose enqueueing is cancelled twice is there in part", also="D2 API", layer="interruptions")
class EnqueueCleanUpIsCutShort(_Exclusive):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        async with self.alone() as store:
            store.enqueue(own)
            try:
                await elsewhere()
            except asyncio.CancelledError:
                for task in own:
                    store.remove(store.stored[task.id])
                    await elsewhere()
                raise


@planted("X1", "A purge that is cancelled twice has put back some tasks only", also="G1 D2", layer="interruptions")
class PurgeCleanUpIsCutShort(_Exclusive):
    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        async with self.alone() as store:
            stored, number = dict(store.stored), dict(store.number)
            removed: int = store.purge(finished_before, limit)
            try:
                await elsewhere()
            except asyncio.CancelledError:
                for task_id in [one for one in stored if one not in store.stored]:
                    store.number[task_id] = number[task_id]
                    store.stored = {each: stored[each] for each in stored if each in {*store.stored, task_id}}
                    await elsewhere()
                raise
            return removed


@planted(
    "X1", "Ids are reserved before they are stored: a repeated enqueue is refused", also="API L1", layer="interruptions"
)
class ReservedIdsStay(PlainMemory):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reserved: set[str] = set()

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        taken = [task.id for task in own if task.id in self.reserved]
        if taken:
            raise TaskExists(taken)
        with self.use() as store:
            if offending := store.offending(own):
                raise TaskExists(offending)
        self.reserved.update(task.id for task in own)
        await elsewhere()
        try:
            await super().enqueue(own)
        finally:
            self.reserved.difference_update(task.id for task in own)


@planted(
    "X1",
    "A handle forgets a claim before its outcome is stored: the repeated one is refused",
    also="L2 L1",
    layer="schedules",
)
class ClaimIsForgottenFirst(PlainMemory):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.given_up: set[tuple[str, int]] = set()

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        with self.use() as store:
            task = store.known(task_id)
            if (task_id, attempt) in self.given_up or not store.holds(task, attempt):
                raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        self.given_up.add((task_id, attempt))
        await elsewhere()
        await super().complete(task_id, attempt, value=value, now=now)
        self.given_up.discard((task_id, attempt))


@planted(
    "X1", "A repeated cancel says False: the handle remembers what it was about to do", also="L1", layer="interruptions"
)
class CancelRemembersItsWord(PlainMemory):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ended: set[str] = set()

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        with self.use() as store:
            store.known(task_id)
        if task_id in self.ended:
            return False
        self.ended.add(task_id)
        await elsewhere()
        done = await super().cancel(task_id, now=now)
        self.ended.discard(task_id)
        return done


@planted(
    "X1",
    "A cancelled complete puts back the store as it was, and other calls' writes are lost",
    also="D1 L1 C2 C1",
    layer="interruptions",
)
class CancelledCallRestoresTheStore(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        with self.use() as store:
            before = dict(store.stored), dict(store.number)
        try:
            await elsewhere(2)
            await super().complete(task_id, attempt, value=value, now=now)
        except asyncio.CancelledError:
            with self.use() as store:
                store.stored, store.number = before
            raise
