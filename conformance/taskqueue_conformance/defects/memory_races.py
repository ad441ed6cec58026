"""Right as long as calls come one after another: looks first and acts later, with others in between (C1, L1, L2, …)."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import PlainMemory

PART = 100
"""How many tasks of a long list some of these change at a time."""


async def elsewhere(turns: int = 1) -> None:
    """Let others run."""
    for _ in range(turns):
        await asyncio.sleep(0)


@planted("C1", "claim selects, then updates without a guard", also="R1 C2 L2", seen_in="huey#123")
class SelectThenUpdate(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            chosen = store.choose(now, limit)
        await elsewhere()
        with self.use() as store:
            taken: list[Task] = store.take(chosen, now, lease_expires_at)
            return taken


@planted("C1", "claim selects, and much later updates without a guard", also="R1 C2 L2 L1", layer="schedules")
class SelectLongBeforeUpdate(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        await elsewhere(9)
        with self.use() as store:
            chosen = store.choose(now, limit)
        await elsewhere()
        with self.use() as store:
            taken: list[Task] = store.take(chosen, now, lease_expires_at)
            return taken


@planted("C1", "claim locks its handle, not the store: two handles take the same task", also="R1 C2 L2")
class HandleLock(PlainMemory):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lock = asyncio.Lock()

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        async with self.lock:
            with self.use() as store:
                chosen = store.choose(now, limit)
            await elsewhere()
            with self.use() as store:
                taken: list[Task] = store.take(chosen, now, lease_expires_at)
                return taken


@planted("C2", "claim returns what it had selected, also what somebody else took meanwhile", also="C1")
class ReturnsWhatWasSelected(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            chosen = store.choose(now, limit)
        await elsewhere()
        with self.use() as store:
            free = [task for task in chosen if store.stored.get(task.id) == task]
            store.take(free, now, lease_expires_at)
            return [store.claimed(task, now, lease_expires_at) for task in chosen]


@planted("C2", "claim marks its tasks, then reads back what is RUNNING under its now and lease", also="C1")
class ReadsBackByLease(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            number = len(store.claim(now, limit, lease_expires_at))
        await elsewhere()
        with self.use() as store:
            mine = [
                task for task in store.stored.values()
                if (task.status, task.started_at, task.lease_expires_at) == (TaskStatus.RUNNING, now, lease_expires_at)
            ]  # fmt: skip
            return sorted(mine, key=store.claim_order) if number else []


@planted("L1", "claim revives a task that was cancelled between look and take", also="C1 C2", layer="schedules")
class ClaimRevivesCancelled(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            chosen = store.choose(now, limit)
        await elsewhere()
        with self.use() as store:
            free = [
                task for task in chosen if task.id in store.stored and store.stored[task.id].attempts == task.attempts
            ]
            taken: list[Task] = store.take(free, now, lease_expires_at)
            return taken


@planted("L1", "complete looks, then writes: a cancel in between is overwritten", also="L2 V1", seen_in="dbos#703")
class CompleteLooksThenWrites(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        with self.use() as store:
            task = store.known(task_id)
            if not store.holds(task, attempt):
                raise store.stale(task, attempt)
        await elsewhere()
        with self.use() as store:
            store.put(store.completed(task, value, now))
            store.changed()


@planted("L1", "cancel looks, then writes: a success in between is overwritten", also="V1 L2", seen_in="dbos#767")
class CancelLooksThenWrites(PlainMemory):
    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        with self.use() as store:
            task = store.known(task_id)
            if not store.may_cancel(task):
                return False
        await elsewhere()
        with self.use() as store:
            store.put(store.cancelled(task, now))
            store.changed()
        return True


@planted("L1", "cancel of a PENDING task is lost if it is claimed meanwhile", also="C1 L2 C2")
class CancelLosesToClaim(PlainMemory):
    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        with self.use() as store:
            task = store.known(task_id)
            if not store.may_cancel(task):
                return False
        await elsewhere()
        with self.use() as store:
            if store.stored.get(task_id) == task:
                store.cancel(task_id, now)
        return True


@planted("L2", "fail looks, then writes: what happened in between is overwritten", also="L1 R2 V1")
class FailLooksThenWrites(PlainMemory):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
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
    "A recoverer looks at the lease first, and fails the task after it was extended",
    also="L2 C1 R2",
    layer="schedules",
)
class LeaseIsCheckedFirst(PlainMemory):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        if if_expired:
            with self.use() as store:
                task = store.known(task_id)
                lease = task.lease_expires_at
                if store.holds(task, attempt) and lease > failure.failed_at:
                    raise StaleClaim(task_id, attempt, status=task.status, attempts=attempt, lease_expires_at=lease)
            await elsewhere()
        return await super().fail(task_id, attempt, failure)


@planted("R2", "fail takes two steps: others see the task FAILED before it is PENDING again", also="L1 LIFECYCLE X1")
class FailedInBetween(PlainMemory):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        with self.use() as store:
            before = store.stored.get(task_id)
            after: Task = store.fail(task_id, attempt, failure, if_expired=if_expired)
            if after.status is TaskStatus.FAILED:
                return after
            store.put(store.failed(before, failure))
        await elsewhere()
        with self.use() as store:
            store.put(after)
            return after


@planted("V1", "complete takes two steps: others see SUCCESS before there is a value", also="L1 X1", seen_in="rq#1724")
class ValueComesLater(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        with self.use() as store:
            store.complete(task_id, attempt, value, now)
            done = store.stored[task_id]
            store.put(replace(done, value=b""))
        await elsewhere()
        with self.use() as store:
            store.put(done)
            store.changed()


@planted("L2", "extend writes back the whole record that it had read", also="L1 V1", layer="schedules")
class ExtendWritesTheRecord(PlainMemory):
    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        with self.use() as store:
            held = [
                (store.stored[one], attempt)
                for one, attempt in claims
                if one in store.stored and store.holds(store.stored[one], attempt)
            ]
        await elsewhere()
        with self.use() as store:
            for task, _ in held:
                store.put(store.extended(task, lease_expires_at))
            store.changed()
        return [(task.id, attempt) for task, attempt in held]


@planted(
    "L1",
    "enqueue looks for the ids, then inserts: of two calls with one id both succeed",
    also="API D1",
    layer="schedules",
)
class ExistsIsCheckedFirst(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        with self.use() as store:
            offending = store.offending(own)
            if offending:
                raise TaskExists(offending)
        await elsewhere()
        with self.use() as store:
            for task in own:
                store.add(task)
            store.changed()


@planted("D2", "A list is enqueued task by task: others see half of it", also="API C3 X1 L1 E2")
class EnqueuedOneByOne(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        with self.use() as store:
            offending = store.offending(own)
            if offending:
                raise TaskExists(offending)
        for task in own:
            with self.use() as store:
                store.enqueue([task])
            await elsewhere()


@planted(
    "C3",
    "Numbers are drawn first and tasks are added later, so an earlier list lands later",
    also="LISTING X1",
    layer="schedules",
)
class NumbersDrawnFirst(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        with self.use() as store:
            offending = store.offending(own)
            if offending:
                raise TaskExists(offending)
        for task in own:
            with self.use() as store:
                if task.id in store.stored:
                    raise TaskExists([task.id])
                store.add(task)
            await elsewhere()
        with self.use() as store:
            store.changed()


@planted(
    "G1",
    "purge selects ids, then deletes them: one that was enqueued anew meanwhile is lost",
    also="D1 L1 C2",
    layer="schedules",
)
class PurgeDeletesById(PlainMemory):
    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        with self.use() as store:
            old = sorted(
                (t for t in store.stored.values() if store.may_purge(t, finished_before)), key=store.purge_order
            )
        await elsewhere()
        with self.use() as store:
            gone = [task for task in old[:limit] if task.id in store.stored]
            for task in gone:
                store.remove(store.stored[task.id])
            return len(gone)


@planted(
    "LISTING",
    "counts counts status by status: a task that moves meanwhile counts twice or never",
    also="E4 L1",
    layer="schedules",
)
class CountsOneByOne(PlainMemory):
    async def counts(self) -> Any:
        counted = {}
        for status in TaskStatus:
            with self.use() as store:
                counted[status] = store.counts()[status]
            await elsewhere()
        return counted


@planted("R1", "claim counts the attempt a step after it took the task", also="L2 C1 C2 V1 L1 X1")
class AttemptCountedLater(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            taken: list[Task] = store.claim(now, limit, lease_expires_at)
            for task in taken:
                store.put(replace(task, attempts=task.attempts - 1))
        await elsewhere()
        with self.use() as store:
            for task in taken:
                store.put(task)
        return taken


@planted(
    "C2",
    "A claim of several gives up after the first if somebody waits, with the others RUNNING",
    also="D3 C1 E2",
    layer="schedules",
)
class BatchInterleaves(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            version = store.last_number, sum(t.attempts for t in store.stored.values())
            taken: list[Task] = store.claim(now, limit, lease_expires_at)
            total = sum(t.attempts for t in store.stored.values())
        await elsewhere()
        with self.use() as store:
            moved = sum(t.attempts for t in store.stored.values()) != total
        del version
        return taken[:1] if moved else taken


@planted("X1", "A call that meets another on its store raises 'locked'", also="C1 L1 E2 HANDLES", seen_in="huey#445")
class LockedAtOnce(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        with self.use() as store:
            if getattr(store, "locked", False):
                raise RuntimeError("database is locked")
            store.locked = True
        try:
            await elsewhere()
            await super().enqueue(own)
        finally:
            store.locked = False


@planted("D2", "extend lets others run between two claims of its list", also="L2 X1")
class ExtendsInParts(PlainMemory):
    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        held: list[tuple[str, int]] = []
        for start in range(0, len(claims), PART):
            if start:
                await elsewhere()
            held += await super().extend(claims[start : start + PART], lease_expires_at=lease_expires_at)
        return held


@planted("D2", "claim takes a long list in parts, with others in between", also="C1 E2 X1 C2")
class ClaimsInParts(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        taken: list[Task] = []
        while True:
            part = min(limit - len(taken), PART)
            more = await super().claim(now=now, limit=part, lease_expires_at=lease_expires_at)
            taken += more
            if len(more) < PART or len(taken) >= limit:
                return taken
            await elsewhere()
