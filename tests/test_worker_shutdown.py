"""The grace period, what is interrupted after it, and signals."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from taskqueue import InvalidArgument, Task, TaskQueue, Worker, current_task
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.sqlite import SQLiteBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MakeQueue = Callable[..., TaskQueue]

GRACE = timedelta(seconds=0.2)
OVER = "interrupted: the worker was stopped and its grace period of 0.2 s was over"


class World:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.release = threading.Event()


world = World()


@pytest.fixture(autouse=True)
def new_world() -> Iterator[None]:
    world.__init__()
    yield
    world.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("taskqueue-worker"):
            thread.join(10)


async def note(what: Any = None) -> Any:
    world.log.append(what)
    return what


async def forever() -> None:
    world.log.append("began")
    try:
        await asyncio.Event().wait()
    finally:
        world.log.append(("cancelled", current_task().cancelled))


async def swallows() -> str:
    world.log.append("began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "returned all the same"
    raise AssertionError


async def goes_on() -> None:
    world.log.append("began")
    deadline = time.monotonic() + 10  # where a test fails before it releases this, the loop waits for it
    while not world.release.is_set() and time.monotonic() < deadline:
        try:
            await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            world.log.append("ignored")


def block() -> str:
    world.log.append("began")
    assert world.release.wait(10)
    return "done"


def heeds() -> str:
    world.log.append("began")
    deadline = time.monotonic() + 10
    while not current_task().cancelled and time.monotonic() < deadline:
        time.sleep(0.001)
    world.log.append("heeded")
    return "done"


async def take(seconds: float) -> str:
    world.log.append("began")
    await asyncio.sleep(seconds)
    return "done"


# ---------------------------------------------------------------- grace


def test_what_is_left_after_the_grace_period_is_interrupted_and_recorded(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        quick = await queue.enqueue(take, 0.05)
        coroutine, kept, thread = [await queue.enqueue(func, max_retries=2) for func in (forever, swallows, block)]
        worker = Worker(queue, grace=GRACE)
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log.count("began") == 4)
        began = asyncio.get_running_loop().time()
        worker.stop()
        await running
        assert asyncio.get_running_loop().time() - began >= GRACE.total_seconds()
        assert ("cancelled", True) in world.log
        assert (await queue.get_result(quick, 0)).unwrap() == "done"
        assert (await queue.get_result(kept, 0)).unwrap() == "returned all the same"
        for task_id, how in (
            (coroutine, "before the task had ended"),
            (thread, "while the function ran in a thread, which cannot be interrupted and runs on"),
        ):
            task = await queue.get_task(task_id)
            assert (task.status, task.attempts) == ("pending", 1)
            assert task.failures[0].error == f"{OVER} {how}"
        assert set(worker.interrupted) == {coroutine, thread}
        assert worker.abandoned == (thread,)

    run(main())


def test_a_worker_that_ends_by_itself_in_time_has_interrupted_nothing(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(take, 0.05)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        assert (worker.interrupted, worker.abandoned) == ((), ())
        assert (await queue.get_result(task_id, 0)).unwrap() == "done"

    run(main())


def test_without_grace_everything_is_interrupted_at_once(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(forever)
        worker = Worker(queue, grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        error = "interrupted: the worker was stopped and its grace period of 0 s was over before the task had ended"
        assert (await queue.get_result(task_id, 0)).error == error

    run(main())


def block_and_return_a_coroutine() -> Any:
    block()
    return note("not to run")


def test_a_coroutine_that_an_interrupted_function_returns_is_not_run(run: Run, queue: TaskQueue) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        await queue.enqueue(block_and_return_a_coroutine)
        worker = Worker(queue, grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        world.release.set()
        await until(lambda: set(threading.enumerate()) == before)
        gc.collect()  # a coroutine that was never awaited would warn here
        assert world.log == ["began"]

    run(main())


def test_a_function_that_heeds_its_cancellation_leaves_no_thread_behind(run: Run, queue: TaskQueue) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        await queue.enqueue(heeds)
        worker = Worker(queue, grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        await until(lambda: set(threading.enumerate()) == before)
        assert world.log == ["began", "heeded"]

    run(main())


def test_a_coroutine_that_ignores_its_interruption_does_not_keep_the_worker(
    run: Run, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue._attempt.PATIENCE", 0.05)

    async def main() -> None:
        task_id = await queue.enqueue(goes_on)
        worker = Worker(queue, grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        error = (await queue.get_result(task_id, 0)).error
        assert error.endswith("while the coroutine ran, which ignored its cancellation and goes on")
        assert (worker.interrupted, worker.abandoned) == ((task_id,), (task_id,))
        world.release.set()
        await until(lambda: not any(task.get_name().startswith("taskqueue") for task in asyncio.all_tasks()))

    run(main())


def test_a_function_that_timed_out_and_runs_on_is_abandoned(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(block, timeout=0.01)
        worker = Worker(queue, grace=GRACE)
        running = asyncio.create_task(worker.run())
        await queue.get_result(task_id, 10)
        worker.stop()
        await running
        assert (worker.interrupted, worker.abandoned) == ((), (task_id,))

    run(main())


def test_what_a_claim_in_flight_takes_has_the_whole_grace_period(run: Run, make_queue: MakeQueue) -> None:
    class Slow(MemoryBackend):
        async def claim(self, **arguments: Any) -> Sequence[Task]:
            tasks = await super().claim(**arguments)
            if tasks:
                world.log.append("claimed")
                await asyncio.sleep(2 * GRACE.total_seconds())
            return tasks

    async def main() -> None:
        queue = make_queue(backend=Slow())
        task_id = await queue.enqueue(take, 0.05)
        worker = Worker(queue, grace=GRACE)
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        assert (await queue.get_result(task_id, 0)).unwrap() == "done"

    run(main())


# ---------------------------------------------------------------- signals


WORKER = """
import asyncio, sys, time
from datetime import timedelta
from pathlib import Path
from taskqueue import TaskQueue, Worker
from taskqueue.backends.sqlite import SQLiteBackend

folder, grace = Path(sys.argv[1]), float(sys.argv[2])

async def take(number, seconds):
    Path(folder, f"began-{number}").touch()
    await asyncio.sleep(seconds)
    return number

async def block(number, seconds):
    Path(folder, f"began-{number}").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)

async def main():
    async with TaskQueue(SQLiteBackend(folder / "q.db")) as queue:
        func = {"take": take, "block": block}[sys.argv[3]]
        for number in range(int(sys.argv[5])):
            await queue.enqueue(func, number, float(sys.argv[4]), task_id=str(number), max_retries=2)
        worker = Worker(queue, concurrency=20, lease=timedelta(seconds=0.6), grace=timedelta(seconds=grace))
        await worker.run(handle_signals=True)
        print(len(worker.interrupted), len(worker.abandoned), flush=True)

asyncio.run(main())
"""


class Child:
    """A worker in a process of its own, with tasks that run."""

    def __init__(self, folder: Path, *, grace: float, func: str, seconds: float, tasks: int) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(grace), func, str(seconds), str(tasks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while len(list(folder.glob("began-*"))) < tasks:
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ends(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=30)
        assert "Traceback" not in err
        return self.process.returncode, out.strip()

    def tasks(self) -> list[Task]:
        async def main() -> list[Task]:
            async with TaskQueue(SQLiteBackend(self.folder / "q.db")) as queue:
                return [task async for task in queue.tasks()]

        return asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_twenty_running_tasks_finish(tmp_path: Path, number: int) -> None:
    child = Child(tmp_path, grace=30, func="take", seconds=0.5, tasks=20)
    child.signal(number)
    assert child.ends() == (0, "0 0")
    assert {task.status for task in child.tasks()} == {"success"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_sent_twice_at_once_counts_once(tmp_path: Path, number: int) -> None:
    """As GNU timeout does it, and supervisors that signal the process and its group."""
    child = Child(tmp_path, grace=30, func="take", seconds=0.5, tasks=20)
    for _ in range(2):
        child.signal(number)
        time.sleep(0.005)
    assert child.ends() == (0, "0 0")


def test_a_signal_interrupts_twenty_tasks_after_the_grace_period(tmp_path: Path) -> None:
    child = Child(tmp_path, grace=0.1, func="take", seconds=60, tasks=20)
    child.signal(signal.SIGTERM)
    assert child.ends() == (0, "20 0")
    for task in child.tasks():
        assert (task.status, task.attempts) == ("pending", 1)
        assert task.failures[0].error.startswith("interrupted: the worker was stopped and its grace period of 0.1 s")


@pytest.mark.parametrize("func", ["take", "block"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once(tmp_path: Path, func: str, second: int) -> None:
    child = Child(tmp_path, grace=60, func=func, seconds=60, tasks=20 if func == "take" else 1)
    child.signal(signal.SIGTERM)
    # At first the two would count as one.
    time.sleep(0.3)
    assert child.process.poll() is None
    began = time.monotonic()
    child.signal(second)
    assert child.ends() == (-second, "")
    assert time.monotonic() - began < 20


async def all_have_failed(queue: TaskQueue) -> bool:
    return all([task.failures async for task in queue.tasks()])


def test_what_a_killed_worker_ran_is_recovered_by_another(tmp_path: Path) -> None:
    child = Child(tmp_path, grace=60, func="take", seconds=60, tasks=5)
    child.signal(signal.SIGKILL)
    assert child.ends()[0] == -signal.SIGKILL

    async def main() -> None:
        async with TaskQueue(SQLiteBackend(tmp_path / "q.db")) as queue:
            worker = Worker(queue, lease=timedelta(seconds=0.6), grace=timedelta(0))
            running = asyncio.create_task(worker.run())
            await until(lambda: all_have_failed(queue))
            worker.stop()
            await running
            for task in [task async for task in queue.tasks()]:
                assert task.failures[0].error.startswith("the lease of attempt 1 ran out at ")

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_handlers_before_are_back_after_the_run(run: Run, queue: TaskQueue) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    async def main() -> None:
        during = asyncio.create_task(Worker(queue).run(handle_signals=True))
        await asyncio.sleep(0.05)
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
        os.kill(os.getpid(), signal.SIGTERM)
        await during

    run(main())
    asyncio.run(Worker(queue).run_until_idle(handle_signals=True))
    assert {number: signal.getsignal(number) for number in before} == before


def test_without_being_told_it_handles_no_signals(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        before = signal.getsignal(signal.SIGTERM)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.02)
        assert signal.getsignal(signal.SIGTERM) == before
        worker.stop()
        await running

    run(main())


def test_signals_outside_of_the_main_thread_are_a_clear_error(queue: TaskQueue) -> None:
    async def main() -> None:
        with pytest.raises(InvalidArgument, match="main thread"):
            await Worker(queue).run(handle_signals=True)
        world.log.append("refused")

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    assert world.log == ["refused"]
