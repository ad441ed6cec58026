"""Wrong only where a call is cancelled: half done, landing late, or leaving something behind (X1)."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from taskqueue import Failure, Task, TaskExists, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import PlainMemory, Store


class _Locked(PlainMemory):
    """Every change is made under a lock of the store, in which others wait; reads need none."""

    class _Store(Store):
        def __init__(self) -> None:
            super().__init__()
            self.lock: asyncio.Lock | None = None

    store_class = _Store

    def lock(self) -> asyncio.Lock:
        with self.use() as store:
            store.lock = store.lock or asyncio.Lock()
            lock: asyncio.Lock = store.lock
            return lock


@planted("X1", "A cancelled claim leaves the lock taken", also="C1 E2")
class ClaimKeepsTheLock(_Locked):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        lock = self.lock()
        await lock.acquire()
        await asyncio.sleep(0)
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        lock.release()
        return claimed


@planted("X1", "A cancelled purge leaves the handle busy for ever", also="G1", layer="interruptions")
class PurgeStaysBusy(PlainMemory):
    busy = False

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        while self.busy:
            await asyncio.sleep(0.001)
        self.busy = True
        try:
            await asyncio.sleep(0)
            removed = await super().purge(finished_before=finished_before, limit=limit)
        except Exception:
            self.busy = False
            raise
        self.busy = False
        return removed


@planted("X1", "A list whose enqueueing is cancelled is stored in part", also="D2 API L1 C3")
class CancelledListIsHalf(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)
        with self.use() as store:
            offending = store.offending(own)
            if offending:
                raise TaskExists(offending)
        added: list[Task] = []
        for task in own:
            with self.use() as store:
                store.enqueue([task])
            added.append(task)
            await asyncio.sleep(0)


@planted("X1", "A cancelled fail has recorded the failure, but the task stays RUNNING", also="R2 D2 L1 V2")
class CancelledFailIsHalf(PlainMemory):
    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        with self.use() as store:
            before = store.stored.get(task_id)
            after: Task = store.fail(task_id, attempt, failure, if_expired=if_expired)
            store.put(replace(before, failures=after.failures))
        await asyncio.sleep(0)
        with self.use() as store:
            store.put(after)
            return after


@planted("X1", "A cancelled complete has cleared the lease, but the task stays RUNNING", also="V1 D3 L1 D2")
class CancelledCompleteIsHalf(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        with self.use() as store:
            before = store.stored.get(task_id)
            store.complete(task_id, attempt, value, now)
            after = store.stored[task_id]
            store.put(replace(before, lease_expires_at=None))
        await asyncio.sleep(0)
        with self.use() as store:
            store.put(after)
            store.changed()


@planted("X1", "A cancelled extend has lengthened some of the leases only", also="L2 D2", layer="interruptions")
class CancelledExtendIsHalf(PlainMemory):
    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        held: list[tuple[str, int]] = []
        for claim in list(claims):
            held += await super().extend([claim], lease_expires_at=lease_expires_at)
            await asyncio.sleep(0)
        return held


@planted("X1", "A cancelled purge has removed some of its tasks only", also="G1 D2", layer="interruptions")
class CancelledPurgeIsHalf(PlainMemory):
    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        removed = 0
        while removed < limit and await super().purge(finished_before=finished_before, limit=1):
            removed += 1
            await asyncio.sleep(0)
        return removed


@planted("X1", "A cancelled cancel has ended the task without its finished_at", also="L1 D2", layer="interruptions")
class CancelledCancelIsHalf(PlainMemory):
    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        with self.use() as store:
            ended: bool = store.cancel(task_id, now)
            after = store.stored[task_id]
            if ended:
                store.put(replace(after, finished_at=None))
        await asyncio.sleep(0)
        with self.use() as store:
            store.put(after)
        return ended


@planted("X1", "A cancelled claim has counted the attempts, but the tasks stay PENDING", also="R1 C2 D2")
class CancelledClaimCounts(PlainMemory):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.use() as store:
            taken: list[Task] = store.claim(now, limit, lease_expires_at)
            for task in taken:
                store.put(replace(task, status=TaskStatus.PENDING, lease_expires_at=None))
        await asyncio.sleep(0)
        with self.use() as store:
            for task in taken:
                store.put(task)
        return taken


@planted("X1", "A call that was cancelled lands later, from a task of its own", also="D1 L1", layer="interruptions")
class CancelledCompletionLandsLate(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        async def late() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            await super(CancelledCompletionLandsLate, self).complete(task_id, attempt, value=value, now=now)

        running = asyncio.ensure_future(late())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


@planted(
    "X1", "A cancelled enqueue lands later, after the next call on the handle", also="D1 API L1", layer="interruptions"
)
class CancelledEnqueueLandsLate(PlainMemory):
    async def enqueue(self, tasks: Sequence[Task]) -> None:
        own = list(tasks)

        async def late() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            await super(CancelledEnqueueLandsLate, self).enqueue(own)

        running = asyncio.ensure_future(late())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


@planted("X1", "A cancelled call closes the handle's connection", also="HANDLES", layer="interruptions")
class CancellationDisconnects(PlainMemory):
    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        try:
            await asyncio.sleep(0)
            return await super().extend(claims, lease_expires_at=lease_expires_at)
        except asyncio.CancelledError:
            await self.close()
            raise


@planted("X1", "A cancelled call swallows the cancellation", also="D3", layer="interruptions")
class CancellationIsSwallowed(PlainMemory):
    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return []
        return await super().expired(now=now, limit=limit)


@planted("X1", "A cancelled connect leaves the handle unable to connect", also="HANDLES", layer="interruptions")
class CancelledConnectSticks(PlainMemory):
    connecting = False

    async def connect(self) -> None:
        while self.connecting:
            await asyncio.sleep(0.001)
        self.connecting = True
        await asyncio.sleep(0)
        await super().connect()
        self.connecting = False
