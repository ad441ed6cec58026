"""``timeout=`` of a task, and cancellation that races the end of a task."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import waiting

from taskqueue import InvalidArgument, Task, TaskQueue, Worker, current_task
from taskqueue.backends.sqlite import SQLiteBackend

until = partial(waiting.until, seconds=10)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

TEXT = "TimeoutError: the task ran longer than its timeout of 0.05 s"


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
    try:
        await asyncio.Event().wait()
    finally:
        world.log.append(("cancelled", current_task().cancelled))


async def swallows() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "returned all the same"
    raise AssertionError


async def raises_instead() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        raise ValueError("while it cleaned up") from error


async def goes_on() -> None:
    deadline = time.monotonic() + 10  # where a test fails before it releases this, the loop waits for it
    while not world.release.is_set() and time.monotonic() < deadline:
        try:
            await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            world.log.append("ignored")
    world.log.append("ended")


def block_until_released() -> str:
    world.log.append("began")
    assert world.release.wait(10)
    world.log.append(("told", current_task().cancelled))
    return "done"


def quick() -> str:
    return "done"


async def block_the_loop() -> str:
    time.sleep(0.1)  # noqa: ASYNC251 - blocking the loop is the point
    return "done"


def takes_timeout(timeout: Any) -> Any:
    return timeout


@pytest.mark.parametrize("func", [forever, swallows, raises_instead])
@pytest.mark.parametrize("timeout", [0.05, timedelta(seconds=0.05)])
def test_a_coroutine_that_runs_too_long_is_cancelled_and_has_failed(
    run: Run, queue: TaskQueue, func: Any, timeout: Any
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(func, timeout=timeout)
        await Worker(queue).run_until_idle()
        failed = await queue.get_result(task_id, 0)
        assert (failed.status, failed.error) == ("failed", TEXT)
        if func is forever:
            assert world.log == [("cancelled", True)]
            assert "in forever" in failed.traceback

    run(main())


def test_a_timeout_is_an_attempt_like_any_other(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        [task_id] = await queue.enqueue_many(forever, [()], timeout=0.01, max_retries=2)
        for attempt in (1, 2):
            await Worker(queue).run_until_idle()
            assert (await queue.get_task(task_id)).attempts == attempt
            clock.advance(hours=1)
        assert (await queue.get_task(task_id)).status == "failed"

    run(main())


def test_a_coroutine_that_ignores_its_timeout_is_waited_for_and_has_failed(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(goes_on, timeout=0.05)
        running = asyncio.create_task(Worker(queue, concurrency=1).run_until_idle())
        await until(lambda: world.log)
        assert (await queue.get_task(task_id)).status == "running"
        world.release.set()
        await running
        assert world.log == ["ignored", "ended"]
        assert (await queue.get_result(task_id, 0)).error == TEXT

    run(main())


def test_a_function_that_runs_too_long_has_failed_at_once_and_keeps_its_place(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(block_until_released, timeout=0.05)
        worker = Worker(queue, concurrency=1)
        running = asyncio.create_task(worker.run_until_idle())
        failed = await queue.get_result(task_id, 10)
        assert failed.error == f"{TEXT}; its thread cannot be interrupted, and runs on"
        await queue.enqueue(note, "next")
        await asyncio.sleep(0.1)
        assert world.log == ["began"]
        world.release.set()
        await running
        assert world.log == ["began", ("told", True), "next"]
        assert (worker.interrupted, worker.abandoned) == ((), ())

    run(main())


@pytest.mark.parametrize("func", [quick, note, block_the_loop])
def test_what_returns_before_it_can_be_cancelled_has_succeeded(run: Run, queue: TaskQueue, func: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(func, timeout=0.05 if func is block_the_loop else 5)
        await Worker(queue).run_until_idle()
        assert (await queue.get_result(task_id, 0)).status == "success"

    run(main())


def test_a_function_with_a_parameter_called_timeout_gets_it_by_options(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.options(timeout=timedelta(minutes=1)).enqueue(takes_timeout, timeout="its own")
        task = await queue.get_task(task_id)
        assert queue.load_call(task).timeout == 60.0
        await Worker(queue).run_until_idle()
        assert (await queue.get_result(task_id, 0)).unwrap() == "its own"

    run(main())


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True, timedelta(0), timedelta(-1)])
def test_timeouts_that_mean_nothing_are_refused(run: Run, queue: TaskQueue, timeout: Any) -> None:
    async def main() -> None:
        for enqueue in (
            lambda: queue.enqueue(note, timeout=timeout),
            lambda: queue.options(timeout=timeout).enqueue(note),
            lambda: queue.enqueue_many(note, [()], timeout=timeout),
        ):
            with pytest.raises(InvalidArgument, match=r"^timeout="):
                await enqueue()
        assert not [task async for task in queue.tasks()]

    run(main())


def test_a_payload_without_a_timeout_or_with_none_has_no_limit(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        call = {"func": quick, "args": (), "kwargs": {}, "context": None}
        for number, payload in enumerate([call, call | {"timeout": None}]):
            task = Task(
                id=str(number), payload=cloudpickle.dumps(payload), enqueued_at=clock.now, available_at=clock.now
            )
            await queue.wait(0)
            await queue.backend.enqueue([task])
            assert queue.load_call(task).timeout is None
        await Worker(queue).run_until_idle()
        assert (await queue.counts())["success"] == 2

    run(main())


def test_a_payload_with_a_timeout_that_means_nothing_fails_its_task(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        call = {"func": quick, "args": (), "kwargs": {}, "context": None, "timeout": "soon"}
        await queue.wait(0)
        await queue.backend.enqueue(
            [Task(id="bad", payload=cloudpickle.dumps(call), enqueued_at=clock.now, available_at=clock.now)]
        )
        await Worker(queue).run_until_idle()
        assert (await queue.get_result("bad", 0)).error.startswith("DeserializationError")

    run(main())


# ---------------------------------------------------------------- cancel races completion


def test_of_a_cancellation_and_a_completion_exactly_one_wins_and_says_so(run: Run, tmp_path: Path) -> None:
    rng = random.Random(7)  # noqa: S311 - a seed, not a secret

    async def cancel_some(queue: TaskQueue, ids: list[str]) -> dict[str, bool]:
        done = {}
        for task_id in ids:
            done[task_id] = await queue.cancel(task_id)
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        return done

    async def main() -> None:
        path = tmp_path / "q.db"
        async with TaskQueue(SQLiteBackend(path)) as queue, TaskQueue(SQLiteBackend(path)) as other:
            ids = await queue.enqueue_many(note, [(number,) for number in range(200)])
            running = asyncio.create_task(Worker(queue, concurrency=20).run_until_idle())
            await until(lambda: len(world.log) > 20)  # so some of the first have ended
            # Each of these cancels every task, so that they race each other as well; the last are cancelled at once.
            answers = await asyncio.gather(cancel_some(queue, ids), cancel_some(other, ids[::-1]))
            await running
            wins = dict.fromkeys(("success", "cancelled"), 0)
            for task_id in ids:
                task = await queue.get_task(task_id)
                assert [answer[task_id] for answer in answers].count(True) == (task.status == "cancelled")
                wins[task.status] += 1
            assert wins["success"] > 0
            assert wins["cancelled"] > 0
            # A task that succeeded has run once; one that was cancelled once at most.
            assert len(world.log) == len(set(world.log))

    run(main())


def test_a_pending_task_is_cancelled_at_once_and_never_runs(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(note)
        assert await queue.cancel(task_id) is True
        assert await queue.cancel(task_id) is False
        await Worker(queue).run_until_idle()
        assert world.log == []

    run(main())
