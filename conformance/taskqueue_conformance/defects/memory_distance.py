"""Looks in one step and acts in the next, where calls that begin together do not meet: only some orders show it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from taskqueue import Failure, StaleClaim, Task, TaskExists
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.memory_races import elsewhere
from taskqueue_conformance.defects.plain_memory import PlainMemory


class Distant(PlainMemory):
    """Handles at different distances from the store: each has one connection, and needs some turns to get through.

    Of calls that begin at the same time, one has acted before the next one looks.
    """

    numbers: ClassVar = count()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.distance = 3 * (next(self.numbers) % 3)
        self.connections: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    def connection(self) -> asyncio.Lock:
        """Return the lock that is held from the look to the act."""
        return self.connections.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def travel(self) -> None:
        """Take the handle's time."""
        await elsewhere(self.distance)


@planted("C1", "claim selects and updates without a guard; handles are unequally far", also="R1 C2 L2 L1")
class DistantSelectThenUpdate(Distant):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        async with self.connection():
            await self.travel()
            with self.use() as store:
                chosen = store.choose(now, limit)
            await elsewhere()
            with self.use() as store:
                taken: list[Task] = store.take(chosen, now, lease_expires_at)
                return taken


@planted("L1", "complete looks, then writes; handles are unequally far", also="L2 V1")
class DistantCompleteOverwrites(Distant):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        async with self.connection():
            await self.travel()
            with self.use() as store:
                task = store.known(task_id)
                if not store.holds(task, attempt):
                    raise store.stale(task, attempt)
            await elsewhere()
            with self.use() as store:
                store.put(store.completed(task, value, now))
                store.changed()


@planted("L1", "cancel looks, then writes; handles are unequally far", also="V1 L2 R2")
class DistantCancelOverwrites(Distant):
    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        async with self.connection():
            await self.travel()
            with self.use() as store:
                task = store.known(task_id)
                if not store.may_cancel(task):
                    return False
            await elsewhere()
            with self.use() as store:
                store.put(store.cancelled(task, now))
                store.changed()
            return True


@planted("L2", "extend writes back what it had read; handles are unequally far", also="L1 V1 R2")
class DistantExtendOverwrites(Distant):
    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        own = list(claims)
        async with self.connection():
            await self.travel()
            with self.use() as store:
                held = [
                    (store.stored[one], attempt)
                    for one, attempt in own
                    if one in store.stored and store.holds(store.stored[one], attempt)
                ]
            await elsewhere()
            with self.use() as store:
                for task, _ in held:
                    store.put(store.extended(task, lease_expires_at))
                store.changed()
            return [(task.id, attempt) for task, attempt in held]


@planted("L1", "enqueue looks for ids, then inserts; handles are unequally far", also="API D1", layer="schedules")
class DistantEnqueueReplaces(Distant):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        async with self.connection():
            await self.travel()
            with self.use() as store:
                offending = store.offending(own)
                if offending:
                    raise TaskExists(offending)
            await elsewhere(2)
            with self.use() as store:
                for task in own:
                    store.add(task)
                store.changed()


@planted("L2", "fail looks, then writes; handles are unequally far", also="L1 R2 V1 V2")
class DistantFailOverwrites(Distant):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        async with self.connection():
            await self.travel()
            with self.use() as store:
                task = store.known(task_id)
                if not store.holds(task, attempt):
                    raise store.stale(task, attempt)
                lease = task.lease_expires_at
                if if_expired and lease > failure.failed_at:
                    raise StaleClaim(task_id, attempt, status=task.status, attempts=attempt, lease_expires_at=lease)
            await elsewhere()
            with self.use() as store:
                after: Task = (
                    store.retried(task, failure) if store.may_retry(task, failure) else store.failed(task, failure)
                )
                store.put(after)
                store.changed()
                return after


@planted(
    "D3",
    "expired selects ids, then reads the tasks: also those that have ended meanwhile",
    also="L1",
    layer="schedules",
)
class ExpiredReadsLater(PlainMemory):
    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        with self.use() as store:
            ids = [task.id for task in store.expired(now, limit)]
        await elsewhere()
        with self.use() as store:
            return [store.stored[one] for one in ids if one in store.stored]


@planted(
    "LISTING", "next_due looks at leases, then at etas: a task claimed in between is in neither", layer="schedules"
)
class NextDueInTwoSteps(PlainMemory):
    async def next_due(self) -> datetime | None:
        with self.use() as store:
            leases = [t.lease_expires_at for t in store.stored.values() if t.lease_expires_at is not None]
        await elsewhere()
        with self.use() as store:
            etas = [t.available_at for t in store.stored.values() if t.status == "pending"]
        return min([*leases, *etas], default=None)


@planted("G1", "purge counts what it had selected, also what another purge removed meanwhile", layer="schedules")
class PurgeCountsWhatItSelected(PlainMemory):
    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        with self.use() as store:
            old = [task for task in store.stored.values() if store.may_purge(task, finished_before)]
            chosen = sorted(old, key=store.purge_order)[:limit]
        await elsewhere()
        with self.use() as store:
            for task in chosen:
                if store.stored.get(task.id) is task:
                    store.remove(task)
            store.changed()
        return len(chosen)


@planted("LISTING", "A page is read task by task: it shows a state that never was", also="D1 D2 L1")
class PageReadsOneByOne(PlainMemory):
    async def tasks(self, **options: Any) -> Any:
        page, cursor = await super().tasks(**options)
        seen = []
        for task in page[:10]:
            await elsewhere()
            with self.use() as store:
                seen.append(store.stored.get(task.id, task))
        return [*seen, *page[10:]], cursor


@planted("V2", "get reads the task, then its failures: the record is older than they are", also="L1 R2 D2")
class GetReadsFailuresLater(PlainMemory):
    async def get(self, task_id: str) -> Task | None:
        task = await super().get(task_id)
        await elsewhere()
        with self.use() as store:
            now = store.stored.get(task_id)
        return task if task is None or now is None else replace(task, failures=now.failures)
