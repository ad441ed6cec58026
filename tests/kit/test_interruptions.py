"""Each check of the layer interruptions is made to fail by a wrong backend."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskqueue import TaskExists, TaskStatus
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance import subject

sys.path.insert(0, str(Path(__file__).parent))  # the tests are run by path, not imported as a package

from planted import LITTLE, Method, Open, pause, planted, violation

EVERY_AWAIT = "interruptions/X1/cancelled-at-every-await"
REPEATED = "interruptions/X1/repeated-after-a-lost-answer"
BESIDE = "interruptions/X1/cancelled-beside-others"


async def claim_one_by_one(self: Open, *, now: Any, limit: int, lease_expires_at: Any) -> Any:
    taken: list[Any] = []
    while len(taken) < limit and (more := self.store.claim(now, 1, lease_expires_at)):
        taken += more
        await pause()
    return taken


async def complete_after_all(self: Open, task_id: str, attempt: int, *, value: bytes, now: Any) -> None:
    _, task = self.store._held(task_id, attempt)
    done = replace(task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None)
    try:
        await pause()
    except asyncio.CancelledError:
        asyncio.get_running_loop().call_later(0.002, self.put, done)
        raise
    self.put(done)


async def cancel_with_a_lock_left_behind(self: Open, task_id: str, *, now: Any) -> bool:
    lock = self.__dict__.setdefault("lock", asyncio.Lock())
    await lock.acquire()
    await pause()
    answer = bool(self.store.cancel(task_id, now))
    lock.release()
    return answer


async def get_that_breaks_the_handle(self: Open, task_id: str) -> Any:
    if self.__dict__.get("broken"):
        raise OSError("cannot start a transaction within a transaction")
    self.__dict__["broken"] = True
    await pause()
    self.__dict__["broken"] = False
    return self.look(task_id)


async def enqueue_that_reserves_ids(self: Open, tasks: Any) -> None:
    reserved = self.store.__dict__.setdefault("reserved", set())
    known = [task.id for task in tasks if task.id in reserved]
    if known:
        raise TaskExists(known)
    reserved |= {task.id for task in tasks}
    await pause()
    self.store.enqueue(tasks)


async def cancel_that_raises_for_it(self: Open, task_id: str, *, now: Any) -> bool:
    try:
        await pause()
    except asyncio.CancelledError:
        raise OSError("interrupted") from None
    return bool(self.store.cancel(task_id, now))


async def extend_and_roll_everything_back(self: Open, claims: Any, *, lease_expires_at: Any) -> Any:
    before = {task.id: task for task in self.all()}
    try:
        for _ in range(3):
            await pause()
    except asyncio.CancelledError:
        for task in before.values():
            self.put(task)
        raise
    return self.store.extend(claims, lease_expires_at)


async def clean_up_once_only(self: Open, *, finished_before: Any, limit: int) -> int:
    if self.__dict__.get("open"):
        raise OSError("a transaction is open")
    self.__dict__["open"] = True
    try:
        await pause()
        return int(self.store.purge(finished_before, limit))
    finally:
        await pause()  # a second cancellation strikes here
        self.__dict__["open"] = False


DEFECTS: list[tuple[str, str, Method, str]] = [
    # the check, the method and what it does instead, and what the message says
    (f"{EVERY_AWAIT}[claim]", "claim", claim_one_by_one, "claim() was cancelled at its await number 1, at once"),
    (f"{EVERY_AWAIT}[complete]", "complete", complete_after_all, "SUCCESS"),
    (f"{EVERY_AWAIT}[cancel a running task]", "cancel", cancel_with_a_lock_left_behind, "none within"),
    (f"{EVERY_AWAIT}[cancel a waiting task]", "cancel", cancel_that_raises_for_it, "OSError: interrupted"),
    (f"{EVERY_AWAIT}[get]", "get", get_that_breaks_the_handle, "cannot start a transaction"),
    (f"{EVERY_AWAIT}[enqueue]", "enqueue", enqueue_that_reserves_ids, "already enqueued"),
    (f"{EVERY_AWAIT}[purge]", "purge", clean_up_once_only, "after one that was cancelled"),
    (f"{REPEATED}[enqueue]", "enqueue", enqueue_that_reserves_ids, "was cancelled at its await number 1"),
    (f"{REPEATED}[claim]", "claim", claim_one_by_one, "the repeated claim()"),
    (BESIDE, "extend", extend_and_roll_everything_back, "cancelled"),
]


@pytest.mark.parametrize(
    ("check", "method", "defect", "message"),
    DEFECTS,
    ids=[f"{each[0].split('/')[2]}-{each[2].__name__}" for each in DEFECTS],
)
def test_a_wrong_backend_is_caught(
    monkeypatch: pytest.MonkeyPatch, check: str, method: str, defect: Method, message: str
) -> None:
    monkeypatch.setattr(subject, "DEADLINE_S", 0.5)
    found = violation(check, planted(method, defect))
    assert found is not None
    assert message in f"{found.what}\n{found.expected}\n{found.actual}"


@pytest.mark.parametrize("check", sorted({each[0] for each in DEFECTS}))
def test_a_correct_backend_passes(check: str) -> None:
    assert violation(check, MemoryBackend, effort=LITTLE) is None
