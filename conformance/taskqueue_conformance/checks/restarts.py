"""The layer restarts: the server behind a store is restarted in the middle of a workload.

While it is away, any call may raise StoreUnavailable, and then its caller does not know whether it has happened. So the
actors in here do what the contract tells callers to do: they repeat what can be repeated, and leave a claim whose
answer was lost to its lease.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeVar

from taskqueue import Backend, StaleClaim, StoreUnavailable, Task, TaskExists, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.child import END_OF_TIME
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, shown

T = TypeVar("T")

LOOK_AT_RECONNECTING: Final = "what a handle does once its connection is gone: the next call must open another one"
_PATIENCE_S: Final = 30.0
"""How long after a restart a handle may go on raising StoreUnavailable, in seconds: the server may have work to do."""
_PAUSE_S: Final = 0.02
_BUDGET: Final = 1000
_LONG_S: Final = 5.0
_EARLY_S: Final = 4.0
_SETTLING_S: Final = 0.3
_LATER: Final = NOON + timedelta(days=1)


async def _patiently(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that may be repeated until it is answered; a refusal is an answer too."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    while True:
        try:
            return await call()
        except StoreUnavailable as error:
            if loop.time() > deadline:
                raise Violation(
                    what,
                    expected=f"an answer within {_PATIENCE_S:g} s of a restart of the server",
                    actual=f"StoreUnavailable: {shown(str(error))}",
                    breaks="HANDLES",
                    look=LOOK_AT_RECONNECTING,
                ) from error
        await asyncio.sleep(_PAUSE_S)


@dataclass(slots=True)
class _Workload:
    """Producers and workers, each with a handle of its own, and what they were told.

    Attributes:
        enqueued: The ids that are known to be in the store.
        claims: The attempts of each task that a claim returned, in the order of the answers.
        values: The value of each task that is known to have been completed.
        failed: The attempts of each task that are known to have been failed.
        unknown: The attempts of each task of which it is unknown how they ended.
        answers: How many calls were answered.
        lost: How many were not.
    """

    lab: Lab
    enqueued: set[str] = field(default_factory=set)
    claims: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, bytes] = field(default_factory=dict)
    failed: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    unknown: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    answers: int = 0
    lost: int = 0
    over: bool = False

    async def produce(self, backend: Backend, name: str) -> None:
        """Enqueue, two tasks at a time, until it is over."""
        number = 0
        while not self.over:
            tasks = [new_task(f"{name} {number + each}", max_retries=_BUDGET) for each in range(2)]
            number += 2
            await self._enqueue(backend, tasks)
            self.enqueued.update(task.id for task in tasks)
            await asyncio.sleep(0)

    async def _enqueue(self, backend: Backend, tasks: Sequence[Task]) -> None:
        ids = sorted(task.id for task in tasks)
        lost = False

        async def enqueue() -> None:
            nonlocal lost
            try:
                await self._counted(backend.enqueue(tasks))
            except StoreUnavailable:
                lost = True
                raise
            except TaskExists as known:
                expect(
                    f"enqueue() of the new ids {ids}",
                    lost and sorted(known.task_ids) == ids,
                    expected="accepted, or refused with all of them if an earlier answer was lost",
                    actual=f"TaskExists: {known}",
                    breaks="D2",
                )

        await _patiently("enqueue()", enqueue)

    async def work(self, backend: Backend, name: str) -> None:
        """Claim, and complete or fail what comes, until it is over."""
        while not self.over:
            try:
                claimed = await self._counted(backend.claim(now=NOON, limit=3, lease_expires_at=NOON + LEASE))
            except StoreUnavailable:  # what it took, if anything, comes back through the lease
                await asyncio.sleep(_PAUSE_S)
                continue
            for task in claimed:
                self.claims[task.id].append(task.attempts)
                if self.lab.rng.random() < 0.3:
                    await self._fail(backend, task)
                else:
                    await self._complete(backend, task, f"{task.id}, attempt {task.attempts}, by {name}".encode())
            await asyncio.sleep(0)

    async def drain(self, backend: Backend) -> None:
        """Recover what was lost and complete everything; the server runs by now."""
        while True:
            for task in await backend.expired(now=END_OF_TIME, limit=1000):
                failure = new_failure(task.attempts, failed_at=END_OF_TIME, retry_at=NOON)
                await backend.fail(task.id, task.attempts, failure, if_expired=True)
                self.failed[task.id].add(task.attempts)
            claimed = await backend.claim(now=END_OF_TIME, limit=1000, lease_expires_at=END_OF_TIME)
            if not claimed:
                return
            for task in claimed:
                self.claims[task.id].append(task.attempts)
                await self._complete(backend, task, f"{task.id}, attempt {task.attempts}, at last".encode())

    async def _complete(self, backend: Backend, task: Task, value: bytes) -> None:
        lost = False

        async def complete() -> None:
            nonlocal lost
            try:
                await self._counted(backend.complete(task.id, task.attempts, value=value, now=NOON))
            except StoreUnavailable:
                lost = True
                raise
            except StaleClaim as stale:
                landed = stale.status is TaskStatus.SUCCESS and stale.attempts == task.attempts
                expect(
                    f"complete() of the claim ({task.id!r}, {task.attempts})",
                    lost and landed,
                    expected="accepted, or refused with SUCCESS if an earlier answer was lost",
                    actual=f"StaleClaim: {stale}",
                    breaks="D1",
                )

        await _patiently("complete()", complete)
        self.values[task.id] = value

    async def _fail(self, backend: Backend, task: Task) -> None:
        failure = new_failure(task.attempts, retry_at=NOON)
        lost = False

        async def fail() -> bool:
            nonlocal lost
            try:
                await self._counted(backend.fail(task.id, task.attempts, failure))
            except StoreUnavailable:
                lost = True
                raise
            except StaleClaim as stale:
                what = f"fail() of the claim ({task.id!r}, {task.attempts})"
                expect(what, lost, expected="accepted", actual=f"StaleClaim: {stale}", breaks="D1")
            return True

        await _patiently("fail()", fail)
        self.failed[task.id].add(task.attempts)

    async def _counted(self, call: Awaitable[T]) -> T:
        try:
            answer = await call
        except StoreUnavailable:
            self.lost += 1
            raise
        self.answers += 1
        return answer

    def judge(self, stored: Mapping[str, Task]) -> None:
        """Compare what is stored with what was acknowledged."""
        missing = sorted(self.enqueued - stored.keys())
        expect("tasks whose enqueue was acknowledged", not missing, expected="stored", actual=missing, breaks="D1")
        surplus = sorted(stored.keys() - self.enqueued)
        expect("the ids in the store", not surplus, expected="no others", actual=surplus, breaks="L3")
        for task_id, task in stored.items():
            self._judge(task_id, task)

    def _judge(self, task_id: str, task: Task) -> None:
        about = f"task {task_id!r}"
        claims = self.claims[task_id]
        expect(
            f"the attempts of {about} that claims returned",
            len(set(claims)) == len(claims),
            expected="each number once",
            actual=claims,
            breaks="C1",
        )
        expect(
            f"attempts of {about}",
            task.attempts >= max(claims, default=0),
            expected=f"at least {max(claims, default=0)}, which a claim returned",
            actual=task.attempts,
            breaks="R1",
        )
        expect_equal(f"the status of {about} in the end", task.status, TaskStatus.SUCCESS, breaks="D1")
        expect_equal(f"the value of {about}", task.value, self.values.get(task_id), breaks="D1")
        attempts = [failure.attempt for failure in task.failures]
        expect_equal(f"the attempts in the failures of {about}", attempts, [*range(1, task.attempts)], breaks="D2")
        expect(
            f"the failures of {about} that were acknowledged",
            self.failed[task_id] <= set(attempts),
            expected=sorted(self.failed[task_id]),
            actual=attempts,
            breaks="D1",
        )


@check(
    "D1",
    "Restarts of the server in the middle of a workload lose nothing that was acknowledged, and double nothing",
    layer="restarts",
    needs=("restart",),
    look="what the server has written, and synced, before a call is acknowledged; and calls that are sent twice",
)
async def a_workload_survives_restarts(lab: Lab) -> None:
    """Two producers and three workers go on while the server is restarted; then the rest is recovered and completed."""
    backend = await lab.handle()
    await lab.put(backend, new_task("witness", available_at=_LATER, max_retries=_BUDGET))
    workload = _Workload(lab, enqueued={"witness"})
    actors = [asyncio.ensure_future(workload.produce(await lab.handle(), f"producer {number}")) for number in range(2)]
    actors += [asyncio.ensure_future(workload.work(await lab.handle(), f"worker {number}")) for number in range(3)]
    try:
        for _ in range(lab.effort.restarts):
            await _progress(workload, actors)
            await lab.harness.restart()
        await _progress(workload, actors)
        workload.over = True
        await asyncio.gather(*actors)
    finally:
        for actor in actors:
            actor.cancel()
        await asyncio.gather(*actors, return_exceptions=True)
    await _patiently("counts()", backend.counts)
    await workload.drain(backend)
    workload.judge(await _all_tasks(backend))
    lab.notes |= {"restarts": lab.effort.restarts, "answers": workload.answers, "answers_lost": workload.lost}


async def _progress(workload: _Workload, actors: Sequence["asyncio.Future[None]"]) -> None:
    """Let some calls be answered; raise what an actor raised."""
    wanted = workload.answers + workload.lab.effort.calls_between_restarts
    deadline = asyncio.get_running_loop().time() + 2 * _PATIENCE_S
    while workload.answers < wanted:
        for actor in actors:
            if actor.done():
                actor.result()
        late = asyncio.get_running_loop().time() > deadline
        expect(
            "a workload of producers and workers",
            not late,
            expected=f"{wanted} answers",
            actual=f"{workload.answers} within {2 * _PATIENCE_S:g} s",
            breaks="HANDLES",
            look=LOOK_AT_RECONNECTING,
        )
        await asyncio.sleep(0.005)


async def _all_tasks(backend: Backend) -> Mapping[str, Task]:
    stored: dict[str, Task] = {}
    cursor: str | None = None
    while True:
        page, cursor = await backend.tasks(after=cursor, limit=500)
        stored.update((task.id, task) for task in page)
        if cursor is None:
            return stored


_CALLS: Final[Mapping[str, Callable[[Backend], Awaitable[Any]]]] = {
    "enqueue": lambda backend: backend.enqueue([new_task("fresh", available_at=_LATER)]),
    "claim": lambda backend: backend.claim(now=NOON - LEASE, limit=1, lease_expires_at=NOON),
    "extend": lambda backend: backend.extend([("running", 1)], lease_expires_at=NOON + LEASE),
    "complete": lambda backend: backend.complete("running", 1, value=b"value", now=NOON),
    "fail": lambda backend: backend.fail("running", 1, new_failure()),
    "cancel": lambda backend: backend.cancel("running", now=NOON),
    "purge": lambda backend: backend.purge(finished_before=NOON - LEASE, limit=1),
    "get": lambda backend: backend.get("running"),
    "tasks": lambda backend: backend.tasks(limit=1),
    "counts": lambda backend: backend.counts(),
    "expired": lambda backend: backend.expired(now=NOON, limit=1),
    "next_due": lambda backend: backend.next_due(),
}


@check(
    "HANDLES",
    "After a restart of the server, handles that were connected before it work again, whatever they are asked first",
    layer="restarts",
    needs=("restart",),
    look=LOOK_AT_RECONNECTING,
)
async def handles_come_back(lab: Lab) -> None:
    """The first call on each may raise StoreUnavailable. The next one is answered, as if nothing had been."""
    witness = await lab.handle()
    await lab.running(witness, new_task("running"))
    handles: dict[str, Subject] = {}
    for method in _CALLS:
        handles[method] = await lab.handle(store=lab.new_store())
        await lab.running(handles[method], new_task("running"))
    await lab.harness.restart()
    for method, call in _CALLS.items():
        handle = handles[method]
        try:
            await call(handle)
        except StoreUnavailable:
            try:
                await call(handle)
            except StoreUnavailable as again:
                raise Violation(
                    f"the second {method}() on a handle after a restart of the server",
                    expected="its answer",
                    actual=f"StoreUnavailable: {shown(str(again))}",
                    look=LOOK_AT_RECONNECTING,
                ) from again
            except (StaleClaim, TaskExists):
                pass  # the first had landed
        found = await handle.get("running")
        expect(f"get() after {method}()", found is not None, expected="the task", actual=found, breaks="D1")


@check(
    "W1",
    "After a restart of the server, a change ends a wait again, also one that had begun before",
    layer="restarts",
    needs=("restart",),
    look="wait: the connection that hears of changes must notice its own end, and be opened again",
)
async def waits_come_back(lab: Lab) -> None:
    """A wait may end early, or with StoreUnavailable, at the restart; of those begun later not all may last."""
    waiter, other = await lab.handle(), await lab.handle()
    await lab.put(other, new_task("witness", available_at=_LATER))
    before = asyncio.ensure_future(waiter.wait(_LONG_S))
    await asyncio.sleep(_SETTLING_S)
    await lab.harness.restart()
    await _patiently("get()", lambda: other.get("witness"))
    took = []
    for number in range(4):
        task = new_task(f"task {number}", available_at=_LATER)
        began = asyncio.get_running_loop().time()
        waiting = asyncio.ensure_future(_patiently("wait()", lambda: waiter.wait(_LONG_S)))
        await asyncio.sleep(_SETTLING_S)
        await other.enqueue([task])
        await waiting
        took.append(asyncio.get_running_loop().time() - began)
        if took[-1] < _EARLY_S:
            break
    (ended,) = await asyncio.gather(before, return_exceptions=True)
    expect(
        "a wait that had begun before a restart of the server",
        ended is None or isinstance(ended, StoreUnavailable),
        expected="an end, or StoreUnavailable",
        actual=repr(ended),
    )
    expect(
        "how long a wait took that a change should have ended, after a restart of the server",
        min(took) < _EARLY_S,
        expected=f"well under {_LONG_S:g} s, at least once in a while",
        actual=", ".join(f"{each:.2f} s" for each in took),
    )
