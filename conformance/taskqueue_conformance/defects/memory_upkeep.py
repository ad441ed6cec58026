"""Wrong about purging (G1), listing and counting (LISTING), waiting (W1) and handles (HANDLES, D1)."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from taskqueue import Failure, Task, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import LOCK, PlainMemory, Store, wake


@planted("G1", "Purge takes what ended at the instant itself: finished_at <= finished_before")
class PurgeIncludesTheInstant(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return task.finished_at is not None and task.finished_at <= finished_before


@planted("G1", "Purge looks at enqueued_at")
class PurgeByAge(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return task.status.ended and task.enqueued_at < finished_before


@planted("G1", "Purge takes tasks that were started long ago, whether they ended or not", also="L1 V1")
class PurgeTakesTheRunning(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        at = task.finished_at or task.started_at
        return at is not None and at < finished_before


@planted("G1", "Purge takes PENDING tasks that were due long ago", also="D1", seen_in="arq#320")
class PurgeTakesTheOverdue(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        late = task.status is TaskStatus.PENDING and task.available_at < finished_before
        return late or super().may_purge(task, finished_before)


@planted("G1", "Purge spares failed tasks")
class PurgeSparesFailed(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return super().may_purge(task, finished_before) and task.status is not TaskStatus.FAILED


@planted("G1", "Purge spares cancelled tasks")
class PurgeSparesCancelled(Store):
    def may_purge(self, task: Task, finished_before: datetime) -> bool:
        return super().may_purge(task, finished_before) and task.status is not TaskStatus.CANCELLED


@planted("G1", "Purge ignores its limit")
class PurgeIgnoresTheLimit(Store):
    def purge(self, finished_before: datetime, limit: int) -> int:
        return super().purge(finished_before, 10**9)


@planted("G1", "Purge with a limit of 0 removes everything")
class PurgeZeroMeansAll(Store):
    def purge(self, finished_before: datetime, limit: int) -> int:
        return super().purge(finished_before, limit or 10**9)


@planted("G1", "Purge removes in the order of enqueueing")
class PurgeAsEnqueued(Store):
    def purge_order(self, task: Task) -> Any:
        return self.number[task.id]


@planted("G1", "Purge removes the latest ended first")
class PurgeLatestFirst(Store):
    def purge_order(self, task: Task) -> Any:
        return -(task.finished_at or task.enqueued_at).timestamp()


@planted("G1", "Purge answers how many it could have removed")
class PurgeCountsAll(Store):
    def purge(self, finished_before: datetime, limit: int) -> int:
        count = sum(self.may_purge(task, finished_before) for task in self.stored.values())
        super().purge(finished_before, limit)
        return count


@planted("G1", "Purge removes one less than its limit")
class PurgeLessOne(Store):
    def purge(self, finished_before: datetime, limit: int) -> int:
        return super().purge(finished_before, limit - 1 if limit > 1 else limit)


@planted("G1", "A purged id stays known to enqueue", also="API L1")
class PurgedIdsStayTaken(Store):
    def __init__(self) -> None:
        super().__init__()
        self.purged: set[str] = set()

    def remove(self, task: Task) -> None:
        self.purged.add(task.id)
        super().remove(task)

    def offending(self, tasks: Sequence[Task]) -> list[str]:
        return [*super().offending(tasks), *(task.id for task in tasks if task.id in self.purged)]


@planted("G1", "An id that is enqueued anew after a purge gets its old failures back", also="V2 API R1", layer="model")
class PurgedFailuresComeBack(Store):
    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, tuple[Failure, ...]] = {}

    def remove(self, task: Task) -> None:
        self.left[task.id] = task.failures
        super().remove(task)

    def kept(self, task: Task) -> Task:
        task = super().kept(task)
        from dataclasses import replace  # noqa: PLC0415

        return replace(task, failures=task.failures or self.left.pop(task.id, ()))


@planted("C3", "An id that is enqueued anew after a purge gets its old place", also="LISTING G1")
class PurgedPlaceIsReused(Store):
    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, int] = {}

    def remove(self, task: Task) -> None:
        self.places[task.id] = self.number[task.id]
        super().remove(task)

    def add(self, task: Task) -> None:
        super().add(task)
        self.number[task.id] = self.places.pop(task.id, self.number[task.id])


@planted("LISTING", "The cursor is a position: after a purge a listing leaves tasks out")
class CursorIsAPosition(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        if limit == 0:
            return [], after
        found = [task for task in self.stored.values() if status in (None, task.status)]
        end = int(after or 0) + limit
        return found[int(after or 0) : end], str(end) if len(found) > end else None


@planted("LISTING", "The cursor is the id of the last task: once that is purged, the listing begins anew")
class CursorIsAnId(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        if limit == 0:
            return [], after
        start = self.number.get(after or "", 0)
        found = [
            task for task in self.stored.values() if self.number[task.id] > start and status in (None, task.status)
        ]
        return found[:limit], found[limit - 1].id if len(found) > limit else None


@planted("LISTING", "Listings are in the order of ids", also="API")
class ListedById(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        tasks, cursor = super().page(status, after, limit)
        return sorted(tasks, key=lambda task: task.id), cursor


@planted("LISTING", "The filter on the status comes after the limit")
class FilterAfterLimit(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        tasks, cursor = super().page(None, after, limit)
        found = [task for task in tasks if status in (None, task.status)]
        return found, cursor if found else None


@planted("LISTING", "With a limit of 0 the cursor is lost")
class ZeroLosesTheCursor(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        return super().page(status, after, limit) if limit else ([], None)


@planted("LISTING", "The page after a full one starts one task too late")
class CursorSkipsOne(Store):
    def page(self, status: TaskStatus | None, after: str | None, limit: int) -> tuple[list[Task], str | None]:
        tasks, cursor = super().page(status, after, limit)
        return tasks, None if cursor is None else str(int(cursor) + 1)


@planted("LISTING", "Statuses without tasks are left out of counts")
class CountsWithoutZeros(Store):
    def counts(self) -> dict[TaskStatus, int]:
        return {status: number for status, number in super().counts().items() if number}


@planted("LISTING", "counts counts every task ever enqueued as PENDING once it is retried", layer="model")
class CountsRetriesTwice(Store):
    def counts(self) -> dict[TaskStatus, int]:
        counts = super().counts()
        doubled = [
            task for task in self.stored.values() if task.status is TaskStatus.PENDING and len(task.failures) > 1
        ]
        return counts | {TaskStatus.PENDING: counts[TaskStatus.PENDING] + len(doubled)}


@planted("LISTING", "counts is cached, and purge does not invalidate it", also="G1")
class CountsIgnorePurge(Store):
    purged: int = 0

    def counts(self) -> dict[TaskStatus, int]:
        counts = super().counts()
        return counts | {TaskStatus.SUCCESS: counts[TaskStatus.SUCCESS] + self.purged}

    def remove(self, task: Task) -> None:
        self.purged += task.status is TaskStatus.SUCCESS
        super().remove(task)


@planted("LISTING", "next_due forgets the leases", also="D3")
class NextDueForgetsLeases(Store):
    def next_due(self) -> datetime | None:
        pending = [task.available_at for task in self.stored.values() if task.status is TaskStatus.PENDING]
        return min(pending, default=None)


@planted("LISTING", "next_due forgets PENDING tasks while something runs")
class NextDueForgetsPending(Store):
    def next_due(self) -> datetime | None:
        leases = [task.lease_expires_at for task in self.stored.values() if task.lease_expires_at is not None]
        return min(leases, default=None) or super().next_due()


@planted("LISTING", "next_due looks at tasks that have ended, too")
class NextDueSeesTheEnded(Store):
    def next_due(self) -> datetime | None:
        every = [task.available_at for task in self.stored.values() if task.status is not TaskStatus.RUNNING]
        return min([*every, *filter(None, [super().next_due()])], default=None)


@planted("LISTING", "next_due is a cached minimum that only ever gets earlier", also="D3")
class NextDueNeverForgets(Store):
    earliest: datetime | None = None

    def next_due(self) -> datetime | None:
        due = super().next_due()
        if due is not None and (self.earliest is None or due < self.earliest):
            self.earliest = due
        return self.earliest if due is not None else None


@planted("LISTING", "next_due does not see a lease that was extended", layer="model", also="D3 L2")
class NextDueMissesExtensions(Store):
    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[str, datetime] = {}

    def claimed(self, task: Task, now: datetime, lease_expires_at: datetime) -> Task:
        self.leases[task.id] = lease_expires_at
        return super().claimed(task, now, lease_expires_at)

    def next_due(self) -> datetime | None:
        instants = [task.available_at for task in self.stored.values() if task.status is TaskStatus.PENDING]
        instants += [self.leases[task.id] for task in self.stored.values() if task.status is TaskStatus.RUNNING]
        return min(instants, default=None)


@planted("W1", "A change wakes nobody")
class NobodyIsWoken(Store):
    def changed(self) -> None:
        pass


@planted("W1", "Only one of several waiting handles is woken")
class OneIsWoken(Store):
    def changed(self) -> None:
        waiters, self.waiters = self.waiters, set(list(self.waiters)[1:])
        for waiter in list(waiters)[:1]:
            waiter.get_loop().call_soon_threadsafe(wake, waiter)


@planted("W1", "enqueue wakes, but a completion does not")
class CompletionsWakeNobody(Store):
    def complete(self, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        waiters, self.waiters = self.waiters, set()
        super().complete(task_id, attempt, value, now)
        self.waiters |= waiters


@planted("W1", "wait always returns at once")
class WaitNeverWaits(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use():
            pass


@planted("W1", "wait sleeps for its whole timeout, whatever changes", also="CONFIG API")
class WaitSleeps(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use():
            pass
        await asyncio.sleep(timeout)


@planted("W1", "wait does not look at its timeout", also="CONFIG API HANDLES")
class WaitNeverTimesOut(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        await super().wait(timeout if timeout <= 0 else max(timeout, 3600))


@planted("W1", "wait takes its timeout for milliseconds")
class WaitInMilliseconds(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        await super().wait(timeout / 1000)


@planted("W1", "wait clears the signal when it begins to listen, a turn of the loop late", seen_in="Oban")
class WakeUpIsLost(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use():
            pass
        await asyncio.sleep(0.002)
        await super().wait(timeout)


@planted("W1", "Changes through other handles wake nobody")
class OwnChangesOnly(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use() as store:
            if not hasattr(store, "waited_by"):
                store.waited_by = self
            mine = store.waited_by is self
        if mine:
            await super().wait(timeout)
        else:
            await asyncio.sleep(timeout)


@planted("W1", "While a wait is on, other calls on the handle wait too", also="X1 CONFIG API")
class WaitBlocksTheHandle(PlainMemory):
    waiters = 0

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        self.waiters += 1
        try:
            await super().wait(timeout)
        finally:
            self.waiters -= 1

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        while self.waiters:
            await asyncio.sleep(0.01)
        await super().enqueue(tasks)

    async def counts(self) -> Any:
        while self.waiters:
            await asyncio.sleep(0.01)
        return await super().counts()

    async def get(self, task_id: str) -> Task | None:
        while self.waiters:
            await asyncio.sleep(0.01)
        return await super().get(task_id)


@planted("W1", "close does not end a wait", also="HANDLES")
class CloseLeavesWaits(PlainMemory):
    async def close(self) -> None:
        self.loops.discard(asyncio.get_running_loop())


@planted("HANDLES", "get works before connect", also="CONFIG")
class GetNeedsNoConnection(PlainMemory):
    async def get(self, task_id: str) -> Task | None:
        with LOCK:
            return self.kept_store.get(task_id)


@planted("HANDLES", "wait works after close", also="W1")
class WaitNeedsNoConnection(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        if asyncio.get_running_loop() in self.loops:
            await super().wait(timeout)


@planted("HANDLES", "extend of an empty or unknown list works without a connection", also="L2")
class ExtendNeedsNoConnection(PlainMemory):
    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        with LOCK:
            return self.kept_store.extend(claims, lease_expires_at)


@planted("HANDLES", "next_due works without a connection", also="LISTING")
class NextDueNeedsNoConnection(PlainMemory):
    async def next_due(self) -> datetime | None:
        with LOCK:
            return self.kept_store.next_due()


@planted("HANDLES", "A handle that was connected once works on every event loop")
class AnyLoopWillDo(PlainMemory):
    connected = False

    def use(self) -> Any:
        if self.connected:
            self.loops.add(asyncio.get_running_loop())
        return super().use()

    async def connect(self) -> None:
        self.connected = True
        await super().connect()

    async def close(self) -> None:
        self.connected = False
        await super().close()


@planted("HANDLES", "connect after close is refused", also="D1 X1")
class ConnectsOnce(PlainMemory):
    closed = False

    async def connect(self) -> None:
        if self.closed:
            raise RuntimeError("this handle has been closed")
        await super().connect()

    async def close(self) -> None:
        self.closed = bool(self.loops)
        await super().close()


@planted("HANDLES", "A second close is an error", also="CONFIG")
class SecondCloseRaises(PlainMemory):
    async def close(self) -> None:
        with self.use():
            pass
        await super().close()


@planted("HANDLES", "A clone is connected from the beginning")
class CloneIsConnected(PlainMemory):
    def clone(self) -> Any:
        other = super().clone()
        other.loops = self.loops.copy()
        return other


@planted("HANDLES", "clone returns the handle itself")
class CloneIsTheHandle(PlainMemory):
    def clone(self) -> Any:
        return self


@planted("HANDLES", "A clone has an empty store of its own", also="W1 D1")
class CloneHasItsOwnStore(PlainMemory):
    def clone(self) -> Any:
        return type(self)(f"{self.name}_clone")


@planted("HANDLES", "Closing one handle closes all handles of the store", also="D1 W1")
class CloseClosesAll(PlainMemory):
    async def close(self) -> None:
        self.kept_store.closed_at = self.kept_store.last_number  # type: ignore[attr-defined]  # a mark that all see
        await super().close()

    def use(self) -> Any:
        if getattr(self.kept_store, "closed_at", -1) == self.kept_store.last_number:
            self.loops.discard(asyncio.get_running_loop())
        return super().use()


@planted("HANDLES", "connect reports success twice, and one close is not enough")
class ConnectionsAreCounted(PlainMemory):
    count = 0

    async def connect(self) -> None:
        self.count += 1
        await super().connect()

    async def close(self) -> None:
        self.count -= 1
        if self.count <= 0:
            self.count = 0
            await super().close()


@planted("HANDLES", "complete sleeps on the event loop while it would wait for a lock")
class CompleteBlocksTheLoop(PlainMemory):
    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - this is what is wrong
        await super().complete(task_id, attempt, value=value, now=now)


@planted("HANDLES", "wait sleeps on the event loop between its looks", also="W1 CONFIG API X1")
class WaitBlocksTheLoop(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use():
            pass
        time.sleep(min(timeout, 0.1))  # noqa: ASYNC251 - this is what is wrong


@planted("D1", "close deletes what was enqueued through the handle and not claimed", also="HANDLES")
class CloseDropsPending(PlainMemory):
    async def close(self) -> None:
        if asyncio.get_running_loop() in self.loops:
            with LOCK:
                for task in [t for t in self.kept_store.stored.values() if t.status is TaskStatus.PENDING]:
                    self.kept_store.remove(task)
        await super().close()


@planted("D1", "close puts RUNNING tasks back to PENDING", also="L1 C1 R1 D3 HANDLES L2")
class CloseResetsRunning(PlainMemory):
    async def close(self) -> None:
        from dataclasses import replace  # noqa: PLC0415

        if asyncio.get_running_loop() in self.loops:
            with LOCK:
                for task in [t for t in self.kept_store.stored.values() if t.status is TaskStatus.RUNNING]:
                    self.kept_store.put(replace(task, status=TaskStatus.PENDING, lease_expires_at=None))
        await super().close()


@planted("D1", "connect begins with a cleared store", also="HANDLES")
class ConnectClears(PlainMemory):
    async def connect(self) -> None:
        if asyncio.get_running_loop() not in self.loops:
            with LOCK:
                self.kept_store.stored.clear()
                self.kept_store.number.clear()
        await super().connect()


@planted("D1", "A handle caches what get returned, and never looks again", also="V1 L1 C1 E3 L2 API", layer="scenarios")
class GetIsCached(PlainMemory):
    cache: dict[str, Task]

    async def get(self, task_id: str) -> Task | None:
        self.cache = getattr(self, "cache", {})
        if task_id not in self.cache:
            task = await super().get(task_id)
            if task is None:
                return None
            self.cache[task_id] = task
        return self.cache[task_id]


@planted("V1", "A handle caches ended tasks, and serves them after they were purged", also="G1")
class EndedTasksAreCached(PlainMemory):
    ended: dict[str, Task]

    async def get(self, task_id: str) -> Task | None:
        self.ended = getattr(self, "ended", {})
        task = await super().get(task_id)
        if task is not None and task.status.ended:
            self.ended[task_id] = task
        return task or self.ended.get(task_id)
