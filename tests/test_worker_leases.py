"""Heartbeats, stalls and lost claims. The leases here are real and short: what is shown happens in threads."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from taskqueue import StoreUnavailable, Task, TaskQueue, TaskQueueError, Worker, current_task
from taskqueue._heartbeat import Heartbeat
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.sqlite import SQLiteBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MakeQueue = Callable[..., TaskQueue]

LEASE = timedelta(seconds=0.6)
SHORT = timedelta(seconds=0.1)


class World:
    """What the tasks below see and change; they are pickled by reference, so it is the same here and there."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.release = threading.Event()
        self.began = threading.Event()
        self.in_flight = threading.Event()
        self.extensions = 0
        self.failures_left = 0


world = World()


@pytest.fixture(autouse=True)
def new_world() -> Iterator[None]:
    world.__init__()
    yield
    world.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("taskqueue-worker"):
            thread.join(10)


async def block_the_loop(seconds: float) -> str:
    world.began.set()
    world.log.append("began")
    time.sleep(seconds)  # noqa: ASYNC251 - blocking the loop is the point
    world.log.append("ended")
    return "done"


def sleep_in_a_thread(seconds: float) -> str:
    world.began.set()
    world.log.append("began")
    time.sleep(seconds)
    world.log.append("ended")
    return "done"


async def note(what: Any = None) -> None:
    world.log.append(what)


async def forever() -> None:
    world.log.append("began")
    try:
        await asyncio.Event().wait()
    finally:
        world.log.append("cancelled")


def until_told() -> str:
    world.log.append("began")
    deadline = time.monotonic() + 10
    while not current_task().cancelled and time.monotonic() < deadline:
        time.sleep(0.001)
    world.log.append(("told", current_task().cancelled))
    return "returned all the same"


async def until_released() -> str:
    world.log.append("began")
    await until(world.release.is_set)
    return "done"


def block_until_released() -> str:
    world.log.append("began")
    assert world.release.wait(10)
    return "done"


@contextmanager
def onlooker(queue: TaskQueue, after: threading.Event | None = None, **options: Any) -> Iterator[None]:
    """Run another worker on the same store, on an event loop of its own that no task of the first one can block."""
    other = TaskQueue(queue.backend.clone())
    worker = Worker(other, **{"lease": LEASE} | options)

    async def main() -> None:
        if after is not None:
            assert await asyncio.to_thread(after.wait, 15)
        async with other:
            await worker.run()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()


# ---------------------------------------------------------------- what is long, or blocks, runs once


@pytest.mark.parametrize(
    ("func", "durable"), [(block_the_loop, False), (block_the_loop, True), (sleep_in_a_thread, True)]
)
def test_a_task_of_three_leases_runs_once(run: Run, tmp_path: Path, *, func: Any, durable: bool) -> None:
    async def main() -> None:
        async with TaskQueue(SQLiteBackend(tmp_path / "q.db") if durable else MemoryBackend()) as queue:
            task_id = await queue.enqueue(func, 3 * LEASE.total_seconds(), max_retries=3)
            with onlooker(queue, after=world.began):
                await Worker(queue, lease=LEASE).run_until_idle()
            assert world.log == ["began", "ended"]
            task = await queue.get_task(task_id)
            assert (task.status, task.attempts, task.failures) == ("success", 1, ())

    run(main())


class AnswersLate(MemoryBackend):
    """The answer to a claim that takes something, of the worker on the main thread, is in flight for a while."""

    async def claim(self, **arguments: Any) -> Sequence[Task]:
        tasks = await super().claim(**arguments)
        if tasks and threading.current_thread() is threading.main_thread() and world.log:
            world.in_flight.set()
            await asyncio.sleep(0.05)
        return tasks


async def block_while_a_claim_is_in_flight(seconds: float) -> None:
    world.log.append("began")
    await until(world.in_flight.is_set)
    time.sleep(seconds)  # noqa: ASYNC251 - blocking the loop is the point
    world.log.append("ended")


def test_a_claim_whose_answer_waits_for_a_blocked_loop_keeps_its_lease(run: Run) -> None:
    async def main() -> None:
        async with TaskQueue(AnswersLate()) as queue:
            await queue.enqueue(block_while_a_claim_is_in_flight, 3 * LEASE.total_seconds())
            running = asyncio.create_task(Worker(queue, lease=LEASE).run_until_idle())
            await until(lambda: world.log)
            ids = await queue.enqueue_many(note, [("in flight",)] * 3, max_retries=3)
            with onlooker(queue, after=world.in_flight):
                await running
            assert world.log == ["began", "ended", *["in flight"] * 3]
            for task_id in ids:
                task = await queue.get_task(task_id)
                assert (task.status, task.attempts) == ("success", 1)

    run(main())


def test_what_was_lost_before_its_claim_was_answered_is_not_run(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class Late(MemoryBackend):
        async def claim(self, **arguments: Any) -> Sequence[Task]:
            tasks = await super().claim(**arguments)
            if tasks:
                await self.cancel(tasks[0].id, now=arguments["now"])
                await asyncio.sleep(SHORT.total_seconds())
            return tasks

    async def main() -> None:
        queue = make_queue(backend=Late())
        await queue.enqueue_many(note, [(1,), (2,)])
        await Worker(queue, lease=SHORT).run_until_idle()
        assert world.log == [2]

    run(main())
    assert "lost before its claim was answered" in caplog.text


# ---------------------------------------------------------------- stalls


async def block_the_first_time() -> str:
    if current_task().attempt == 1:
        deadline = time.monotonic() + 15
        while not world.release.is_set() and time.monotonic() < deadline:
            time.sleep(0.2)  # noqa: ASYNC251 - BLOCKED HERE
    world.release.set()
    return f"attempt {current_task().attempt}"


def test_a_loop_that_has_stalled_loses_its_leases_and_the_log_names_the_task(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with TaskQueue(MemoryBackend()) as queue:
            kept = await queue.enqueue(forever, max_retries=2)
            task_id = await queue.enqueue(block_the_first_time, max_retries=2)
            worker = Worker(queue, lease=LEASE, stall_timeout=LEASE, grace=timedelta(0))
            running = asyncio.create_task(worker.run())
            with onlooker(queue, stall_timeout=LEASE, grace=timedelta(0)):
                found = await queue.get_result(task_id, 15)
                assert found.unwrap() == "attempt 2"
                # The loop is back, and learns what it has lost: its own coroutine of the other task is cancelled.
                await until(lambda: "cancelled" in world.log)
                await queue.get_result(await queue.enqueue(note, "after the stall"), 15)
            worker.stop()
            await running
            assert (await queue.get_task(kept)).attempts == 2

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    [line] = [record.getMessage() for record in caplog.records if "has not turned for" in record.getMessage()]
    assert "attempt 1 of task" in line
    assert "test_worker_leases.py" in line
    assert "BLOCKED HERE" in line
    assert "the event loop turns again" in caplog.text


# ---------------------------------------------------------------- lost claims


async def lose(queue: TaskQueue, clock: Any, task_id: str, how: str) -> None:
    if how == "recovered":
        clock.advance(hours=1)
        # The heartbeat may have extended it meanwhile, and then it is not expired.
        while not await queue.recover_expired():
            clock.advance(hours=1)
    else:
        assert await queue.cancel(task_id)
        if how == "purged":
            await queue.purge(finished_before=clock.now + timedelta(seconds=1))


@pytest.mark.parametrize("how", ["cancelled", "purged", "recovered"])
def test_the_coroutine_of_a_lost_claim_is_cancelled_and_its_outcome_dropped(
    run: Run, queue: TaskQueue, clock: Any, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(forever)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        await until(lambda: world.log)
        await lose(queue, clock, task_id, how)
        await running
        assert world.log == ["began", "cancelled"]
        if how != "purged":
            task = await queue.get_task(task_id)
            assert task.status == ("failed" if how == "recovered" else "cancelled")
            assert len(task.failures) == (how == "recovered")

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert "the outcome of attempt 1 is dropped: its claim was lost" in caplog.text


@pytest.mark.parametrize("how", ["cancelled", "purged"])
@pytest.mark.parametrize("concurrency", [2, 10], ids=["full", "with free places"])
def test_a_worker_notices_a_cancellation_long_before_the_next_heartbeat(
    run: Run, queue: TaskQueue, clock: Any, concurrency: int, how: str
) -> None:
    async def main() -> None:
        lost, kept = await queue.enqueue(forever), await queue.enqueue(forever)
        worker = Worker(queue, concurrency=concurrency, lease=timedelta(hours=1), grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: len(world.log) == 2)
        await lose(queue, clock, lost, how)
        await until(lambda: "cancelled" in world.log)
        # One that comes right after a look is noticed too.
        await queue.cancel(kept)
        await until(lambda: world.log.count("cancelled") == 2)
        worker.stop()
        await running
        assert world.log == ["began", "began", "cancelled", "cancelled"]

    run(main())


def test_a_function_in_a_thread_is_told_of_its_lost_claim(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(until_told)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        await until(lambda: world.log)
        await queue.cancel(task_id)
        await running
        assert world.log == ["began", ("told", True)]
        assert (await queue.get_task(task_id)).status == "cancelled"

    run(main())


def test_a_function_that_runs_on_after_its_claim_was_lost_keeps_its_place(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(block_until_released)
        running = asyncio.create_task(Worker(queue, lease=SHORT, concurrency=1).run_until_idle())
        await until(lambda: world.log)
        await queue.enqueue(note, "next")
        await queue.cancel(task_id)
        await asyncio.sleep(0.2)
        assert world.log == ["began"]
        world.release.set()
        await running
        assert world.log == ["began", "next"]

    run(main())


def test_a_task_is_not_told_that_it_is_cancelled_while_it_is_not(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(is_cancelled, 3 * SHORT.total_seconds())
        await Worker(queue, lease=SHORT).run_until_idle()
        assert (await queue.get_result(task_id, 0)).unwrap() is False

    run(main())


def is_cancelled(seconds: float) -> bool:
    time.sleep(seconds)
    return current_task().cancelled


# ---------------------------------------------------------------- the heartbeat itself


async def extended_to(queue: TaskQueue, task_id: str, instant: datetime) -> bool:
    return (await queue.get_task(task_id)).lease_expires_at == instant


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


class Extends(MemoryBackend):
    """Counts extensions, over all handles, and fails as often as the world says."""

    async def extend(self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime) -> Any:
        if world.failures_left:
            world.failures_left -= 1
            raise StoreUnavailable("here", "it is away")
        world.extensions += 1
        return await super().extend(claims, lease_expires_at=lease_expires_at)


def test_heartbeats_lengthen_the_lease_by_the_queue_s_clock(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(until_released)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        await until(lambda: world.log)
        now = clock.advance(seconds=0.05)
        await until(lambda: extended_to(queue, task_id, now + SHORT))
        world.release.set()
        await running

    run(main())


def test_nothing_is_extended_while_nothing_runs(run: Run, make_queue: MakeQueue) -> None:
    clones = []

    class Counts(Extends):
        def clone(self) -> Any:
            clones.append(1)
            return super().clone()

    async def main() -> None:
        queue = make_queue(backend=Counts())
        worker = Worker(queue, lease=timedelta(seconds=0.02))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.2)
        assert (world.extensions, clones) == (0, [])
        await queue.enqueue(until_released)
        await until(lambda: world.extensions > 2)
        assert clones == [1]
        world.release.set()
        worker.stop()
        await running

    run(main())


def test_an_outage_of_the_store_is_logged_once_and_survived(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        queue = make_queue(backend=Extends())
        task_id = await queue.enqueue(until_released)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        for _ in range(2):
            world.failures_left = 5
            seen = world.extensions
            await until(lambda: world.extensions > seen + 1)  # noqa: B023 - awaited in the same turn
        world.release.set()
        await running
        assert (await queue.get_result(task_id, 0)).unwrap() == "done"

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    messages = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert messages == ["cannot extend leases", "leases are extended again"] * 2
    assert "it is away" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_store_that_does_not_answer_is_asked_again(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class Hangs(Extends):
        async def extend(self, *args: Any, **kwargs: Any) -> Any:
            if world.failures_left:
                world.failures_left -= 1
                await asyncio.Event().wait()
            return await super().extend(*args, **kwargs)

    async def main() -> None:
        world.failures_left = 1
        queue = make_queue(backend=Hangs())
        await queue.enqueue(until_released)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        await until(lambda: world.extensions)
        world.release.set()
        await running

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert ": the store has not answered for 1 s" in caplog.text


def test_a_thread_that_cannot_be_started_is_an_error(run: Run, queue: TaskQueue, monkeypatch: Any) -> None:
    def start(thread: threading.Thread) -> None:
        assert thread.name == "taskqueue-heartbeat"
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TaskQueueError, match="cannot be started"):
        run(Worker(queue).run())


def test_a_crash_of_the_heartbeat_ends_the_worker(run: Run, queue: TaskQueue, monkeypatch: Any) -> None:
    async def crash(_heartbeat: Heartbeat) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(Heartbeat, "_try_to_beat", crash)

    async def main() -> None:
        task_id = await queue.enqueue(forever, max_retries=2)
        with pytest.raises(TaskQueueError, match="crashed"):
            await Worker(queue, lease=SHORT, grace=timedelta(0)).run()
        assert (await queue.get_task(task_id)).status == "pending"

    run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_heartbeat_leaves_nothing_behind(tmp_path: Path, *, cancelled: bool) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
            threads = set(threading.enumerate())
            await queue.enqueue(until_released)
            worker = Worker(queue, lease=SHORT)
            running = asyncio.create_task(worker.run())
            await until(lambda: "taskqueue-heartbeat" in names() and len(names()) > len(threads) + 1)
            if cancelled:
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
            else:
                world.release.set()
                worker.stop()
                await running
            assert set(threading.enumerate()) == threads
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert set(threading.enumerate()) == before


CLOSED_UNDER_ITS_WORKER = """
import asyncio, threading, time
from datetime import timedelta
from taskqueue import TaskQueue, Worker
from taskqueue.backends.memory import MemoryBackend

async def main():
    queue = TaskQueue(MemoryBackend())
    await queue.enqueue(asyncio.sleep, 60)
    kept.append(asyncio.create_task(Worker(queue, lease=timedelta(seconds=0.1)).run()))
    await asyncio.sleep(0.2)

kept = []
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
assert "taskqueue-heartbeat" in {thread.name for thread in threading.enumerate()}
loop.close()
deadline = time.monotonic() + 10
while "taskqueue-heartbeat" in {thread.name for thread in threading.enumerate()}:
    assert time.monotonic() < deadline
    time.sleep(0.01)
print("ended")
"""


def test_a_loop_that_is_closed_under_its_worker_ends_the_heartbeat() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_UNDER_ITS_WORKER], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "ended\n", done.stderr
