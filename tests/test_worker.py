import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import pytest
import waiting

from taskqueue import (
    InvalidArgument,
    NotConnected,
    RetryPolicy,
    StoreUnavailable,
    Task,
    TaskQueue,
    TaskQueueError,
    TaskStatus,
    TooLarge,
    Worker,
    current_task,
)
from taskqueue.backends.memory import MemoryBackend

until = partial(waiting.until, seconds=10)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MakeQueue = Callable[..., TaskQueue]


class World:
    """What the tasks below see and change; they are pickled by reference, so it is the same here and there."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.worker: Worker | None = None
        self.queue: TaskQueue | None = None

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


world = World()


@pytest.fixture(autouse=True)
def new_world() -> Iterator[None]:
    world.__init__()
    yield
    world.release.set()
    # A function that was left running in its thread would write into the world of the next test.
    for thread in threading.enumerate():
        if thread.name.startswith("taskqueue-worker"):
            thread.join(10)


def note(what: Any = None) -> Any:
    world.log.append(what)
    return what


async def anote(what: Any = None) -> Any:
    await asyncio.sleep(0)
    return note(what)


def where() -> tuple[bool, Any]:
    return threading.current_thread() is threading.main_thread(), current_task()


async def awhere() -> tuple[bool, Any]:
    await asyncio.sleep(0)
    return await asyncio.create_task(nested())


async def nested() -> tuple[bool, Any]:
    return where()


def overlap() -> None:
    world.enter()
    time.sleep(0.005)
    world.leave()


async def aoverlap() -> None:
    world.enter()
    await asyncio.sleep(0.005)
    world.leave()


def block() -> str:
    note("began")
    assert world.release.wait(10)
    note("ended")
    return "done"


async def ablock() -> str:
    note("began")
    await until(world.release.is_set)
    note("ended")
    return "done"


async def forever() -> NoReturn:
    note("began")
    try:
        await asyncio.Event().wait()
    finally:
        note("cleaned")
    raise AssertionError


async def stubborn() -> str:
    note("began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "returned all the same"
    raise AssertionError


def raise_it(error: type[BaseException], *args: Any) -> NoReturn:
    raise error(*args)


async def araise_it(error: type[BaseException], *args: Any) -> NoReturn:
    await asyncio.sleep(0)
    raise error(*args)


async def cancel_itself() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def cancel_itself_at_the_end() -> None:
    asyncio.current_task().cancel()


async def leave_a_cancellation_behind(seconds: float) -> str:
    asyncio.get_running_loop().call_later(seconds, asyncio.current_task().cancel)
    return "done"


async def leave_many_cancellations_behind() -> str:
    async def cancel(task: asyncio.Task[Any]) -> None:
        for _ in range(100):
            task.cancel()
            await asyncio.sleep(0)

    world.keep = asyncio.create_task(cancel(asyncio.current_task()))
    await asyncio.sleep(0)
    return "never"


async def outlive_its_cancellation() -> str:
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    return "done"


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def paint() -> str:
    before = colour.get()
    colour.set("red")
    return before


def returns_a_lock() -> Any:
    return threading.Lock()


class ExitsWhenPickled:
    def __reduce__(self) -> NoReturn:
        sys.exit(3)


class CancelsWhenPickled:
    def __reduce__(self) -> NoReturn:
        raise asyncio.CancelledError


class AsyncCallable:
    async def __call__(self, what: Any) -> Any:
        return await anote(what)


class SyncReturningCoroutine:
    def __call__(self, what: Any) -> Any:
        return anote(what)


def stop_the_worker() -> None:
    world.worker.stop()
    note("stopped")


async def astop_the_worker() -> None:
    stop_the_worker()


async def enqueue_another() -> None:
    await world.queue.enqueue(note, "another")


async def result(queue: TaskQueue, task_id: str) -> Any:
    found = await queue.get_result(task_id, 0)
    assert found is not None, await queue.get_task(task_id)
    return found


# ---------------------------------------------------------------- what is run, and where


@pytest.mark.parametrize(
    "func",
    [
        note,
        anote,
        functools.partial(note),
        functools.partial(anote),
        functools.partial(functools.partial(anote)),
        AsyncCallable(),
        functools.partial(AsyncCallable()),
        SyncReturningCoroutine(),
        lambda what: anote(what),  # noqa: PLW0108 - a plain function that returns a coroutine is the point
        lambda what: note(what),  # noqa: PLW0108 - pickled by value
    ],
)
def test_every_kind_of_callable_runs_and_returns_its_value(run: Run, queue: TaskQueue, func: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(func, "value")
        await Worker(queue).run_until_idle()
        assert (await result(queue, task_id)).unwrap() == "value"

    run(main())


def test_coroutines_run_on_the_loop_and_functions_in_threads_and_both_know_their_task(
    run: Run, queue: TaskQueue
) -> None:
    async def main() -> None:
        for func, on_loop in ((where, False), (awhere, True)):
            task_id = await queue.enqueue(func, context={"request": func.__name__})
            await Worker(queue).run_until_idle()
            main_thread, current = (await result(queue, task_id)).unwrap()
            assert main_thread is on_loop
            assert (current.id, current.attempt, current.context) == (task_id, 1, {"request": func.__name__})

    run(main())


def test_outside_of_a_worker_there_is_no_current_task() -> None:
    assert current_task() is None


def test_the_attempt_is_counted_and_the_context_is_the_same_each_time(
    run: Run, make_queue: MakeQueue, clock: Any
) -> None:
    async def main() -> None:
        queue = make_queue()
        task_id = await queue.enqueue(fail_twice, context={"a": [1]}, max_retries=3)
        for _ in range(3):
            await Worker(queue).run_until_idle()
            clock.advance(hours=1)
        assert world.log == [(1, {"a": [1]}), (2, {"a": [1]}), (3, {"a": [1]})]
        assert (await result(queue, task_id)).attempts == 3

    run(main())


def fail_twice() -> None:
    current = current_task()
    note((current.attempt, dict(current.context)))
    if current.attempt < 3:
        raise ValueError(current.attempt)


@pytest.mark.parametrize("func", [overlap, aoverlap])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_tasks_run_at_a_time_than_the_concurrency_allows(
    run: Run, queue: TaskQueue, func: Any, concurrency: int
) -> None:
    async def main() -> None:
        await queue.enqueue_many(func, [()] * 12)
        await Worker(queue, concurrency=concurrency).run_until_idle()
        assert world.most == concurrency
        assert (await queue.counts())[TaskStatus.SUCCESS] == 12

    run(main())


def test_it_claims_no_more_than_it_has_free_places_for(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        await queue.enqueue_many(ablock, [()] * 5)
        worker = Worker(queue, concurrency=2)
        running = asyncio.create_task(worker.run())
        await until(lambda: len(world.log) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        counts = await queue.counts()
        assert (counts[TaskStatus.RUNNING], counts[TaskStatus.PENDING]) == (2, 3)
        worker.stop()
        world.release.set()
        await running
        counts = await queue.counts()
        assert (counts[TaskStatus.SUCCESS], counts[TaskStatus.PENDING]) == (2, 3)

    run(main())


def test_the_claim_holds_the_worker_s_lease(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(ablock)
        worker = Worker(queue, lease=timedelta(minutes=7))
        running = asyncio.create_task(worker.run_until_idle())
        await until(lambda: world.log)
        assert (await queue.get_task(task_id)).lease_expires_at == clock.now + timedelta(minutes=7)
        world.release.set()
        await running

    run(main())


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("func", [raise_it, araise_it])
@pytest.mark.parametrize(
    ("error", "args", "text"),
    [
        (ValueError, ("bad",), "ValueError: bad"),
        (ValueError, (), "ValueError"),
        (SystemExit, (3,), "SystemExit: 3"),
        (KeyboardInterrupt, (), "KeyboardInterrupt"),
        (GeneratorExit, (), "GeneratorExit"),
        (asyncio.CancelledError, (), "CancelledError"),
        (BaseException, ("base",), "BaseException: base"),
        (MemoryError, (), "MemoryError"),
        (StopAsyncIteration, (), "StopAsyncIteration"),
        (BaseExceptionGroup, ("two", [SystemExit(1), ValueError("x")]), "BaseExceptionGroup: two (2 sub-exceptions)"),
    ],
)
def test_whatever_a_task_raises_ends_that_task_only(
    run: Run, queue: TaskQueue, *, func: Any, error: type[BaseException], args: Any, text: str
) -> None:
    async def main() -> None:
        bad = await queue.enqueue(func, error, *args)
        good = await queue.enqueue(anote, "fine", eta=datetime(2030, 1, 1, 12, tzinfo=UTC))
        await Worker(queue, concurrency=1).run_until_idle()
        failed = await result(queue, bad)
        assert (failed.status, failed.error, failed.attempts) == ("failed", text, 1)
        assert func.__name__ in failed.traceback
        assert (await result(queue, good)).unwrap() == "fine"

    run(main())


def test_a_stop_iteration_is_a_failure_like_any_other(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        plain, coroutine = await queue.enqueue(raise_it, StopIteration), await queue.enqueue(araise_it, StopIteration)
        await Worker(queue).run_until_idle()
        assert (await result(queue, plain)).error == "StopIteration"
        assert (await result(queue, coroutine)).error == "RuntimeError: coroutine raised StopIteration"

    run(main())


@pytest.mark.parametrize("func", [cancel_itself, cancel_itself_at_the_end])
def test_a_task_that_cancels_itself_has_failed(run: Run, queue: TaskQueue, func: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(func)
        good = await queue.enqueue(note, "fine")
        await Worker(queue, concurrency=1).run_until_idle()
        assert (await result(queue, task_id)).error == "CancelledError"
        assert (await result(queue, good)).unwrap() == "fine"

    run(main())


@pytest.mark.parametrize("seconds", [0, 0.005, 0.015])
def test_what_cancels_a_task_after_its_end_does_not_harm_its_outcome(
    run: Run, make_queue: MakeQueue, seconds: float
) -> None:
    async def main() -> None:
        queue = make_queue(backend=LongToRecord())
        task_id = await queue.enqueue(leave_a_cancellation_behind, seconds)
        await Worker(queue).run_until_idle()
        await asyncio.sleep(0.02)
        assert (await result(queue, task_id)).unwrap() == "done"

    run(main())


def test_a_task_that_is_cancelled_again_and_again_has_failed(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(backend=LongToRecord())
        task_id = await queue.enqueue(leave_many_cancellations_behind)
        await Worker(queue).run_until_idle()
        assert (await result(queue, task_id)).error == "CancelledError"
        await world.keep

    run(main())


def test_a_task_that_outlives_its_own_cancellation_succeeds(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(backend=LongToRecord())
        task_id = await queue.enqueue(outlive_its_cancellation)
        await Worker(queue).run_until_idle()
        assert (await result(queue, task_id)).unwrap() == "done"

    run(main())


def test_what_a_task_does_to_its_context_reaches_no_other_task(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        ids = [await queue.enqueue(paint) for _ in range(3)]
        await Worker(queue, concurrency=1).run_until_idle()
        assert [(await result(queue, task_id)).unwrap() for task_id in ids] == ["none"] * 3
        assert colour.get() == "none"

    run(main())


def test_a_listener_to_transitions_is_in_no_task(run: Run, make_queue: MakeQueue) -> None:
    heard: list[Any] = []

    async def main() -> None:
        queue = make_queue(on_transition=lambda step: heard.append((step.target, current_task())))
        await queue.enqueue(anote, "fine")
        await queue.enqueue(araise_it, ValueError)
        await Worker(queue, concurrency=1).run_until_idle()

    run(main())
    assert [target for target, _ in heard].count(TaskStatus.SUCCESS) == 1
    assert {current for _, current in heard} == {None}


def test_the_trace_begins_at_the_task_s_own_code(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        ids = [await queue.enqueue(func, ValueError, "bad") for func in (raise_it, araise_it)]
        await Worker(queue).run_until_idle()
        for task_id in ids:
            lines = (await result(queue, task_id)).traceback.splitlines()
            assert lines[0] == "Traceback (most recent call last):"
            assert "test_worker.py" in lines[1]

    run(main())


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (returns_a_lock, "SerializationError.*return value of task.*lock"),
        (ExitsWhenPickled, "SystemExit: 3"),
        (CancelsWhenPickled, "CancelledError"),
    ],
)
def test_a_value_that_cannot_be_serialised_is_a_failed_attempt(
    run: Run, queue: TaskQueue, value: Any, error: str
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(value)
        good = await queue.enqueue(note, "fine")
        await Worker(queue, concurrency=1).run_until_idle()
        with pytest.raises(TaskQueueError, match=error):
            (await result(queue, task_id)).unwrap()
        assert (await result(queue, good)).unwrap() == "fine"

    run(main())


def test_a_value_that_is_too_large_is_a_failed_attempt(run: Run, make_queue: MakeQueue) -> None:
    class Small(MemoryBackend):
        async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
            if len(value) > 100:
                raise TooLarge("the value", size=len(value), limit=100)
            await super().complete(task_id, attempt, value=value, now=now)

    async def main() -> None:
        queue = make_queue(backend=Small())
        task_id = await queue.enqueue(note, "x" * 200)
        await Worker(queue).run_until_idle()
        assert (await result(queue, task_id)).error.startswith("TooLarge: the value has")

    run(main())


def test_a_payload_that_cannot_be_loaded_fails_its_own_task_only(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        exits = b"csys\nexit\n(I3\ntR."
        for number, payload in enumerate([b"garbage", b"cno_such_module\nx\n.", exits]):
            task = Task(id=f"bad-{number}", payload=payload, enqueued_at=clock.now, available_at=clock.now)
            await queue.wait(0)
            await queue.backend.enqueue([task])
        good = await queue.enqueue(note, "fine")
        await Worker(queue, concurrency=1).run_until_idle()
        for number, text in enumerate(["DeserializationError", "no_such_module", "SystemExit: 3"]):
            failed = await result(queue, f"bad-{number}")
            assert failed.status == "failed"
            assert text in failed.error
            assert ("--app-dir" in failed.error) == (text == "no_such_module")
        assert (await result(queue, good)).unwrap() == "fine"

    run(main())


def test_the_queue_computes_the_eta_and_the_worker_logs_it(
    run: Run, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Scripted(TaskQueue):
        async def fail_task(self, *args: Any, **kwargs: Any) -> Task:
            failed.append((args[:2], kwargs))
            return await super().fail_task(*args, **kwargs)

    failed: list[Any] = []

    async def main() -> None:
        policy = RetryPolicy(base=timedelta(seconds=1234))
        queue = Scripted(MemoryBackend(), clock=clock, retry_policy=policy, max_retries=2)
        task_id = await queue.enqueue(raise_it, ValueError, "bad")
        await Worker(queue).run_until_idle()
        assert [args for args, _ in failed] == [(task_id, 1)]
        task = await queue.get_task(task_id)
        assert task.available_at == clock.now + timedelta(seconds=1234)
        assert f"due again at {task.available_at}: ValueError: bad" in caplog.text
        clock.now = task.available_at
        await Worker(queue).run_until_idle()
        assert (await result(queue, task_id)).attempts == 2

    with caplog.at_level(logging.INFO, "taskqueue"):
        run(main())


@pytest.mark.parametrize("refused", ["cancelled", "purged", "taken over"])
@pytest.mark.parametrize("func", [ablock, block])
def test_an_outcome_that_is_refused_is_dropped_and_logged(
    run: Run, queue: TaskQueue, clock: Any, caplog: pytest.LogCaptureFixture, *, refused: str, func: Any
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(func, max_retries=2)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        if refused == "taken over":
            clock.advance(minutes=1)
            await queue.recover_expired()
        else:
            await queue.cancel(task_id)
            if refused == "purged":
                await queue.purge(finished_before=clock.now + timedelta(seconds=1))
        worker.stop()
        world.release.set()
        await running
        if refused != "purged":
            task = await queue.get_task(task_id)
            assert (task.status, task.value) == ("pending" if refused == "taken over" else "cancelled", None)

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert "is dropped" in caplog.text


# ---------------------------------------------------------------- going idle


def test_run_until_idle_on_an_empty_queue_returns(run: Run, queue: TaskQueue) -> None:
    run(Worker(queue).run_until_idle())


def test_run_until_idle_leaves_later_etas_and_may_be_called_again(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        await queue.enqueue(note, "later", eta=clock.now + timedelta(microseconds=1))
        await queue.enqueue(note, "now", eta=clock.now)
        worker = Worker(queue)
        await worker.run_until_idle()
        assert world.log == ["now"]
        clock.advance(microseconds=1)
        await worker.run_until_idle()
        assert world.log == ["now", "later"]

    run(main())


def test_run_until_idle_runs_what_its_tasks_enqueue(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        world.queue = queue
        await queue.enqueue(enqueue_another)
        await Worker(queue).run_until_idle()
        assert world.log == ["another"]

    run(main())


class Deaf(MemoryBackend):
    """Never says that anything has changed."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's signature
        await asyncio.sleep(timeout)


def test_an_idle_worker_starts_a_new_task_at_once(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        worker = Worker(queue, poll=timedelta(hours=1))
        running = asyncio.create_task(worker.run())
        for number in range(3):
            await asyncio.sleep(0.01)
            found = await queue.get_result(await queue.enqueue(anote, number), 5)
            assert found.unwrap() == number
        worker.stop()
        await running

    run(main())


def test_a_lost_notification_delays_a_task_by_the_poll_at_most(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(backend=Deaf())
        worker = Worker(queue, poll=timedelta(seconds=0.05))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.02)
        await queue.enqueue(note)
        await until(lambda: world.log)
        worker.stop()
        await running

    run(main())


def test_an_idle_worker_starts_a_task_at_its_eta_and_not_at_the_next_poll(run: Run) -> None:
    async def main() -> None:
        queue = TaskQueue(Deaf())
        eta = queue.now() + timedelta(seconds=0.1)
        task_id = await queue.enqueue(note, eta=eta)
        worker = Worker(queue, poll=timedelta(hours=1))
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        await running
        assert eta <= (await queue.get_task(task_id)).started_at < eta + timedelta(seconds=1)

    run(main())


def test_an_expired_lease_of_somebody_else_keeps_no_worker_busy(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    class Counting(MemoryBackend):
        claims = 0

        async def claim(self, **arguments: Any) -> Any:
            self.claims += 1
            return await super().claim(**arguments)

    async def main() -> None:
        queue = make_queue(backend=Counting())
        await queue.enqueue(note)
        await queue.claim()
        clock.advance(hours=1)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.1)
        assert queue.backend.claims < 6
        worker.stop()
        await running

    run(main())


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("func", [block, ablock])
def test_stop_lets_running_tasks_finish_and_claims_no_more(run: Run, queue: TaskQueue, func: Any) -> None:
    async def main() -> None:
        running_id = await queue.enqueue(func)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await until(lambda: world.log)
        worker.stop()
        worker.stop()
        later = await queue.enqueue(note)
        await asyncio.sleep(0.02)
        assert not running.done()
        world.release.set()
        await running
        assert (await result(queue, running_id)).unwrap() == "done"
        assert (await queue.get_task(later)).status == "pending"

    run(main())


@pytest.mark.parametrize("func", [stop_the_worker, astop_the_worker])
def test_a_task_may_stop_its_worker(run: Run, queue: TaskQueue, func: Any) -> None:
    async def main() -> None:
        world.worker = Worker(queue, concurrency=1)
        await queue.enqueue_many(func, [()] * 3)
        await world.worker.run()
        assert world.log == ["stopped"]

    run(main())


def test_stop_before_run_is_heeded_and_a_stopped_worker_stays_stopped(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        await queue.enqueue(note)
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        worker.stop()
        await running
        await worker.run_until_idle()
        assert world.log == []

    run(main())


class Slow(MemoryBackend):
    """Its claims take until they are let go, after they have taken effect."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed = asyncio.Event()
        self.let_go = asyncio.Event()

    async def claim(self, **arguments: Any) -> Any:
        tasks = await super().claim(**arguments)
        self.claimed.set()
        await self.let_go.wait()
        return tasks


def test_what_a_claim_in_flight_takes_is_run_when_the_worker_stops(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        backend = Slow()
        queue = make_queue(backend=backend)
        task_id = await queue.enqueue(note, "ran")
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await backend.claimed.wait()
        worker.stop()
        await asyncio.sleep(0.01)
        assert not running.done()
        backend.let_go.set()
        await running
        assert (await result(queue, task_id)).unwrap() == "ran"

    run(main())


def test_what_a_claim_in_flight_takes_is_recorded_when_the_run_is_cancelled(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        backend = Slow()
        queue = make_queue(backend=backend)
        ids = await queue.enqueue_many(note, [()] * 3)
        running = asyncio.create_task(Worker(queue).run())
        await backend.claimed.wait()
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0.002)
        assert not running.done()
        backend.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert world.log == []
        for task_id in ids:
            assert (await result(queue, task_id)).error == "interrupted: the worker was cancelled before the task began"

    run(main())


def test_cancelling_the_run_interrupts_its_tasks_and_records_them(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        coroutine, thread, kept = [await queue.enqueue(func, max_retries=2) for func in (forever, block, stubborn)]
        running = asyncio.create_task(Worker(queue).run())
        await until(lambda: len(world.log) == 3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert "cleaned" in world.log
        for task_id, text in ((coroutine, "before the task had ended"), (thread, "runs on")):
            task = await queue.get_task(task_id)
            assert (task.status, task.attempts) == ("pending", 1)
            assert task.failures[0].error.startswith("interrupted: the worker was cancelled")
            assert text in task.failures[0].error
        assert (await result(queue, kept)).unwrap() == "returned all the same"

    run(main())


def test_the_end_of_the_loop_records_what_was_running(make_queue: MakeQueue) -> None:
    async def main() -> None:
        world.task_id = await queue.enqueue(forever)
        world.keep = asyncio.create_task(Worker(queue).run())
        await until(lambda: world.log)

    queue = make_queue()
    asyncio.run(main())
    found = asyncio.run(queue.get_result(world.task_id, 0))
    assert found.error == "interrupted: the worker was cancelled before the task had ended"


def test_the_end_of_the_loop_keeps_an_outcome_that_is_being_recorded(make_queue: MakeQueue) -> None:
    async def main() -> None:
        world.task_id = await queue.enqueue(note, "fine")
        world.keep = asyncio.create_task(Worker(queue).run())
        await queue.backend.began.wait()

    queue = make_queue(backend=LongToRecord())
    asyncio.run(main())
    assert asyncio.run(queue.get_result(world.task_id, 0)).unwrap() == "fine"


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_thread_is_left_behind(run: Run, queue: TaskQueue, *, cancelled: bool) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        await queue.enqueue_many(note, [()] * 20)
        running = asyncio.create_task(Worker(queue).run())
        await until(lambda: len(world.log) == 20)
        world.worker = Worker(queue)
        await queue.enqueue(stop_the_worker)
        await world.worker.run()
        if cancelled:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await until(lambda: set(threading.enumerate()) == before)
        else:
            running.cancel()
            await asyncio.wait([running])

    run(main())
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) != before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---------------------------------------------------------------- trouble with the store


class Flaky(MemoryBackend):
    """The methods named in ``away`` fail as often as it says."""

    def __init__(self, error: Exception | None = None, **away: int) -> None:
        super().__init__()
        self.error = error or StoreUnavailable("here", "it is away")
        self.away = away

    def fails(self, method: str) -> None:
        if self.away.get(method, 0) > 0:
            self.away[method] -= 1
            raise self.error

    async def claim(self, **arguments: Any) -> Any:
        self.fails("claim")
        return await super().claim(**arguments)

    async def complete(self, *args: Any, **kwargs: Any) -> None:
        self.fails("complete")
        await super().complete(*args, **kwargs)
        self.fails("answer")

    async def fail(self, *args: Any, **kwargs: Any) -> Task:
        self.fails("fail")
        return await super().fail(*args, **kwargs)

    async def next_due(self) -> datetime | None:
        self.fails("next_due")
        return await super().next_due()


@pytest.fixture
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue._run._FIRST_REST", 0.001)
    monkeypatch.setattr("taskqueue._attempt._FIRST_REST", 0.001)


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("method", ["claim", "complete", "answer", "fail"])
def test_a_store_that_is_away_for_a_while_costs_nothing(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    async def main() -> None:
        queue = make_queue(backend=Flaky(**{method: 3}))
        good, bad = await queue.enqueue(note, "fine"), await queue.enqueue(raise_it, ValueError, "bad")
        await Worker(queue).run_until_idle()
        assert (await result(queue, good)).unwrap() == "fine"
        assert (await result(queue, bad)).error == "ValueError: bad"
        assert world.log == ["fine"]

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert "it is away" in caplog.text or method == "answer"
    assert "Traceback" not in caplog.text


ENDS_BY: dict[str, tuple[Any, ...]] = {"complete": (note, "fine"), "fail": (raise_it, ValueError, "bad")}


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("method", ENDS_BY)
def test_an_outcome_is_kept_for_as_long_as_the_store_is_away_and_logged_twice(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("taskqueue._attempt._LONGEST_REST", 0.002)

    async def main() -> None:
        queue = make_queue(backend=Flaky(**{method: 50}))
        task_id = await queue.enqueue(*ENDS_BY[method])
        worker = Worker(queue)
        await worker.run_until_idle()
        task = await queue.get_task(task_id)
        assert (task.status, task.attempts) == ("success" if method == "complete" else "failed", 1)
        assert worker.interrupted == ()

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    about = [message for message in caplog.messages if "outcome" in message]
    assert [message.partition(": ")[2].partition(",")[0] for message in about] == [
        "cannot record its outcome",
        "recorded its outcome",
    ]


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("method", ENDS_BY)
def test_an_outcome_that_cannot_be_recorded_does_not_keep_a_worker_that_ends(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("taskqueue._attempt.PATIENCE", 0.05)

    async def main() -> None:
        queue = make_queue(backend=Flaky(**{method: 1_000_000_000}))
        task_id = await queue.enqueue(*ENDS_BY[method])
        worker = Worker(queue, grace=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: "cannot record its outcome" in caplog.text)
        worker.stop()
        await asyncio.wait_for(running, 10)
        assert worker.interrupted == (task_id,)
        assert (await queue.get_task(task_id)).status == "running"

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert "cannot be recorded, so its lease will run out" in caplog.text


@pytest.mark.usefixtures("no_rests")
def test_an_outcome_that_can_never_be_recorded_does_not_keep_its_worker_for_ever(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue._attempt._LONGEST_RECORDING", 0.05)

    async def main() -> None:
        queue = make_queue(backend=Flaky(complete=1_000_000_000))
        task_id = await queue.enqueue(note, "fine")
        await Worker(queue).run_until_idle()
        assert (await queue.get_task(task_id)).status == "running"

    run(main())
    assert "cannot be recorded, so its lease will run out" in caplog.text


def test_what_a_task_says_is_one_line_of_the_log_and_not_a_long_one(
    run: Run, queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(raise_it, ValueError, "two\nlines and " + "more " * 1000)
        await Worker(queue).run_until_idle()
        assert len((await queue.get_task(task_id)).failures[-1].error) > 5000

    run(main())
    [message] = [message for message in caplog.messages if "attempt 1 failed" in message]
    assert "ValueError: two lines and more" in message
    assert len(message) < 700
    assert message.endswith(" ...")


@pytest.mark.usefixtures("no_rests")
def test_a_failure_that_cannot_be_recorded_is_logged_and_the_worker_goes_on(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        queue = make_queue(backend=Flaky(RuntimeError("a bug of the backend"), fail=6))
        bad = await queue.enqueue(raise_it, ValueError, "bad")
        good = await queue.enqueue(note, "fine")
        await Worker(queue, concurrency=1).run_until_idle()
        assert (await queue.get_task(bad)).status == "running"
        assert (await result(queue, good)).unwrap() == "fine"

    run(main())
    assert "cannot be recorded" in caplog.text
    assert "ValueError: bad" in caplog.text


def test_a_store_that_cannot_be_reached_at_the_start_is_an_error(run: Run, make_queue: MakeQueue) -> None:
    with pytest.raises(StoreUnavailable):
        run(Worker(make_queue(backend=Flaky(next_due=1))).run())


def test_closing_the_queue_ends_its_worker(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        running = asyncio.create_task(Worker(queue).run())
        await asyncio.sleep(0.01)
        await queue.close()
        with pytest.raises(NotConnected):
            await running

    run(main())


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": 1.5},
        {"lease": timedelta(0)},
        {"lease": 30},
        {"poll": timedelta(0)},
        {"poll": 5},
    ],
)
def test_options_that_mean_nothing_are_refused(queue: TaskQueue, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(InvalidArgument, match=rf"^{name}="):
        Worker(queue, **options)


def test_a_worker_needs_a_queue() -> None:
    with pytest.raises(InvalidArgument, match=r"^queue="):
        Worker(MemoryBackend())


def test_a_worker_runs_once_at_a_time(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        worker = Worker(queue)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        with pytest.raises(TaskQueueError, match="runs already"):
            await worker.run()
        worker.stop()
        await running

    run(main())


def test_stop_is_a_plain_method() -> None:
    assert not inspect.iscoroutinefunction(Worker.stop)


def test_two_workers_share_a_queue_and_each_task_runs_once(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        await queue.enqueue_many(anote, [(number,) for number in range(100)])
        await asyncio.gather(*(Worker(queue, concurrency=3).run_until_idle() for _ in range(2)))
        assert sorted(world.log) == list(range(100))

    run(main())


# ---------------------------------------------------------------- claiming while outcomes are recorded


class LongToRecord(MemoryBackend):
    """Takes a while to record a success."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()

    async def complete(self, *args: Any, **named: Any) -> None:
        self.began.set()
        await asyncio.sleep(0.01)
        await super().complete(*args, **named)


class SlowToRecord(MemoryBackend):
    """Records no success before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def complete(self, *args: Any, **named: Any) -> None:
        await self.may.wait()
        await super().complete(*args, **named)


def test_a_place_is_free_while_an_outcome_is_recorded_but_not_without_limit(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(backend=SlowToRecord())
        await queue.enqueue_many(anote, [(number,) for number in range(6)])
        worker = Worker(queue, concurrency=2)
        running = asyncio.create_task(worker.run_until_idle())
        for _ in range(200):
            await asyncio.sleep(0)
        # Two are recorded while two others run; then the store has to keep up.
        assert world.log == [0, 1, 2, 3]
        queue.backend.may.set()
        await running
        assert sorted(world.log) == [0, 1, 2, 3, 4, 5]
        assert (await queue.counts())[TaskStatus.SUCCESS] == 6
        await queue.close()

    run(main())


def test_what_runs_is_never_more_than_the_concurrency_while_outcomes_are_recorded(
    run: Run, make_queue: MakeQueue
) -> None:
    async def main() -> None:
        queue = make_queue(backend=SlowToRecord())
        await queue.enqueue_many(aoverlap, [()] * 12)
        running = asyncio.create_task(Worker(queue, concurrency=3).run_until_idle())
        await asyncio.sleep(0.05)
        queue.backend.may.set()
        await running
        assert world.most == 3
        await queue.close()

    run(main())


class SlowLook(MemoryBackend):
    """Whoever asks what is due next hears it late."""

    async def next_due(self) -> datetime | None:
        due = await super().next_due()
        for _ in range(50):
            await asyncio.sleep(0)
        return due


def test_a_retry_that_is_recorded_while_the_worker_asks_what_is_due_is_not_late() -> None:
    async def main() -> None:
        policy = RetryPolicy(base=timedelta(milliseconds=10))
        async with TaskQueue(SlowLook(), retry_policy=policy) as queue:
            task_id = await queue.enqueue(fail_twice, max_retries=3)
            worker = Worker(queue, poll=timedelta(seconds=60))
            running = asyncio.create_task(worker.run())
            assert await queue.get_result(task_id, timeout=20) is not None
            worker.stop()
            await running

    asyncio.run(main())
