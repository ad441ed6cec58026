import asyncio
import contextvars
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import (
    InvalidArgument,
    NotConnected,
    RetryPolicy,
    StaleClaim,
    StoreUnavailable,
    SyncEnqueuer,
    SyncTaskQueue,
    TaskCancelled,
    TaskNotFound,
    TaskQueue,
    TaskQueueError,
    TaskStatus,
    Transition,
    Worker,
)
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue.queue import Enqueuer

SECONDS = 20


def add(a: int, b: int = 0) -> int:
    return a + b


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("taskqueue") or thread.daemon}


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_made_here_is_collected() -> Iterator[None]:
    """A whole run of the tests has so many objects that to look at all of them takes half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = threads()
    yield
    gc.collect()
    deadline = time.monotonic() + SECONDS
    while (left := threads() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def queue(path: Path) -> Iterator[SyncTaskQueue]:
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        yield queue


def work_off(queue: SyncTaskQueue) -> None:
    async def main() -> None:
        async with TaskQueue(queue.backend.clone(), queue.serializer) as other:
            await Worker(other).run_until_idle()

    asyncio.run(main())


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---------------------------------------------------------------- the same methods


def parameters(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["__init__", *(name for name in vars(TaskQueue) if not name.startswith("_"))])
def test_every_method_of_the_queue_is_here_with_the_same_parameters(name: str) -> None:
    there, here = getattr(TaskQueue, name), getattr(SyncTaskQueue, name)
    assert parameters(here) == parameters(there)
    assert not inspect.iscoroutinefunction(here)
    assert here.__doc__ or name == "__init__"


def test_there_are_no_other_methods_and_the_attributes_are_those_of_the_queue() -> None:
    queue = SyncTaskQueue(MemoryBackend(), max_retries=3)
    there = {name for name in dir(TaskQueue(MemoryBackend())) if not name.startswith("_")}
    assert {name for name in dir(queue) if not name.startswith("_")} == there
    for name in ("max_retries", "default_result_timeout", "retry_policy"):
        assert getattr(queue, name) == getattr(TaskQueue(MemoryBackend(), max_retries=3), name)
    assert parameters(SyncEnqueuer.enqueue) == parameters(Enqueuer.enqueue)
    assert "MemoryBackend" in repr(queue)


def test_a_task_from_its_enqueueing_to_its_result(queue: SyncTaskQueue) -> None:
    task_id = queue.enqueue(add, 2, b=3, context={"a": 1}, max_retries=2, task_id="sum")
    assert task_id == "sum"
    task = queue.get_task(task_id)
    assert (task.status, task.max_retries) == (TaskStatus.PENDING, 2)
    assert queue.load_call(task).context == {"a": 1}
    assert queue.get_result(task_id, timeout=0) is None
    assert queue.next_due() == task.available_at
    work_off(queue)
    result = queue.get_result(task_id)
    assert result is not None
    assert result.unwrap() == 5
    assert queue.counts()[TaskStatus.SUCCESS] == 1
    again = queue.enqueue_again(task_id)
    assert [task.id for task in queue.tasks()] == ["sum", again]
    assert [task.id for task in queue.tasks("pending")] == [again]
    assert queue.cancel(again)
    with pytest.raises(TaskCancelled):
        queue.get_result(again)
    assert queue.purge(timedelta(0)) == 2
    with pytest.raises(TaskNotFound):
        queue.get_task(task_id)


def test_options_pass_everything_on(queue: SyncTaskQueue) -> None:
    def about(eta: str, *, task_id: int) -> str:
        return f"{eta} {task_id}"

    eta = datetime(2099, 1, 1, tzinfo=UTC)
    task = queue.get_task(queue.options(eta=eta, timeout=2.5).enqueue(about, "noon", task_id=7))
    call = queue.load_call(task)
    assert (task.available_at, call.args, call.kwargs, call.timeout) == (eta, ("noon",), {"task_id": 7}, 2.5)


def test_many_calls_are_stored_in_one_step_and_listed_over_several_pages(queue: SyncTaskQueue) -> None:
    ids = queue.enqueue_many(add, ((number,) for number in range(600)))
    ids += queue.enqueue_many(add, [{"a": 1}], task_ids=["last"], max_retries=4, timeout=timedelta(seconds=2))
    assert [task.id for task in queue.tasks()] == ids
    assert ids[-1] == "last"
    last = queue.get_task("last")
    assert (last.max_retries, queue.load_call(last).timeout) == (4, 2.0)
    first = next(queue.tasks())
    assert first.id == ids[0]


def test_the_worker_s_side(clock: Any) -> None:
    seen: list[Transition] = []
    with SyncTaskQueue(
        MemoryBackend(), clock=clock, retry_policy=RetryPolicy(base=timedelta(seconds=7)), on_transition=seen.append
    ) as queue:
        assert queue.now() == clock.now
        queue.enqueue_many(add, [(1,), (2,), (3,)], task_ids=["a", "b", "c"], max_retries=2)
        first, second, third = queue.claim(3, lease=timedelta(seconds=10))
        assert queue.extend(((task.id, task.attempts) for task in (first,)), lease=timedelta(minutes=1)) == [("a", 1)]
        queue.complete_task(second.id, 1, [7])
        failed = queue.fail_task(first.id, 1, ValueError("bad"), traceback="where")
        assert failed.available_at == clock.now + timedelta(seconds=7)
        assert failed.failures[0].traceback == "where"
        with pytest.raises(StaleClaim):
            queue.fail_task(third.id, 1, "late", if_expired=True)
        assert queue.expired() == []
        clock.advance(seconds=10)
        assert [task.id for task in queue.expired(limit=1)] == [third.id]
        assert [task.id for task in queue.recover_expired()] == [third.id]
        queue.wait(0)
    assert [step.target for step in seen][:3] == [TaskStatus.PENDING] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda queue: queue.enqueue("add"),
        lambda queue: queue.enqueue(add, eta=datetime(2030, 1, 1)),  # noqa: DTZ001 - what is refused
        lambda queue: queue.options(max_retries=-1),
        lambda queue: queue.enqueue_many(add, [1]),
        lambda queue: queue.get_result("x", timeout=-1),
        lambda queue: next(queue.tasks("no such status")),
        lambda queue: queue.purge(),
        lambda _: SyncTaskQueue("sqlite:///x"),
        lambda _: SyncTaskQueue.from_url("nosuch://x"),
    ],
)
def test_errors_are_those_of_the_queue(queue: SyncTaskQueue, wrong: Callable[[SyncTaskQueue], object]) -> None:
    with pytest.raises(InvalidArgument):
        wrong(queue)


def test_from_url_takes_the_other_arguments(path: Path) -> None:
    with SyncTaskQueue.from_url(f"sqlite:///{path}", max_retries=3) as queue:
        assert queue.get_task(queue.enqueue(add, 1)).max_retries == 3


def test_what_is_enqueued_is_serialised_in_the_thread_of_the_caller(queue: SyncTaskQueue) -> None:
    class Lazy:
        def __reduce__(self) -> tuple[Any, ...]:
            seen.append(threading.current_thread())
            return (int, ())

    seen: list[threading.Thread] = []
    queue.enqueue(add, Lazy())
    queue.enqueue_many(add, [(Lazy(),)])
    queue.options().enqueue(add, Lazy())  # type: ignore[arg-type]  # what it loads as is an int
    assert set(seen) == {threading.current_thread()}


def test_context_variables_of_the_caller_are_seen_by_on_transition() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    request.set("r-1")
    seen: list[str] = []
    with SyncTaskQueue(MemoryBackend(), on_transition=lambda _: seen.append(request.get())) as queue:
        queue.enqueue(add, 1)
    assert seen == ["r-1"]


# ---------------------------------------------------------------- threads


def test_many_threads_use_one_queue_at_the_same_time(path: Path) -> None:
    count = 8
    barrier = threading.Barrier(count)
    queue = SyncTaskQueue(SQLiteBackend(path))

    def use(number: int) -> str:
        barrier.wait(SECONDS)
        ids = [queue.enqueue(add, number, each) for each in range(10)]
        return ids[-1]

    with ThreadPoolExecutor(count) as pool:
        last = list(pool.map(use, range(count)))
    assert len([thread for thread in threading.enumerate() if thread.name == "taskqueue-sync"]) == 1
    assert queue.counts()[TaskStatus.PENDING] == 10 * count
    work_off(queue)
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(queue.get_result, last))
    assert [result.unwrap() for result in results if result] == [number + 9 for number in range(count)]
    queue.close()


def test_a_call_that_waits_holds_up_no_other(queue: SyncTaskQueue) -> None:
    task_id = queue.enqueue(add, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.get_result, task_id)
        for _ in range(3):
            assert not waiting.done()
            queue.enqueue(add, 2)
        queue.cancel(task_id)
        with pytest.raises(TaskCancelled):
            waiting.result(SECONDS)


def test_close_ends_the_calls_of_other_threads(queue: SyncTaskQueue) -> None:
    task_id = queue.enqueue(add, 1)

    def wait_again_and_again() -> None:
        while True:
            queue.wait(SECONDS)  # which may return early, and does where it hears of the task only now

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(queue.get_result, task_id, 2 * SECONDS), pool.submit(wait_again_and_again)]
        until(lambda: len(queue._here[os.getpid()].thread._tasks) == 2)  # type: ignore[union-attr]  # it is connected
        queue.close()
        for each in waiting:
            with pytest.raises(NotConnected):
                each.result(SECONDS / 2)


def test_what_was_acknowledged_before_close_is_stored_and_nothing_else(path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(path))
    acknowledged: list[str] = []

    def enqueue_until_closed() -> None:
        with suppress(NotConnected):
            while True:
                acknowledged.append(queue.enqueue(add, 1))

    with ThreadPoolExecutor(6) as pool:
        enqueuing = [pool.submit(enqueue_until_closed) for _ in range(6)]
        until(lambda: len(acknowledged) > 20)
        queue.close()
        for each in enqueuing:
            each.result(SECONDS)
    with queue:
        assert sorted(task.id for task in queue.tasks()) == sorted(acknowledged)


def test_a_call_of_its_own_thread_is_a_clear_error_and_no_deadlock() -> None:
    errors: list[BaseException] = []

    def ask(_: Transition) -> None:
        try:
            queue.counts()
        except TaskQueueError as error:
            errors.append(error)

    with SyncTaskQueue(MemoryBackend(), on_transition=ask) as queue:
        queue.enqueue(add, 1)
    assert "event loop" in str(errors)


def test_something_that_would_end_the_loop_ends_only_its_own_call() -> None:
    class Leaving(MemoryBackend):
        async def next_due(self) -> datetime | None:
            raise SystemExit(3)

    with SyncTaskQueue(Leaving()) as queue:
        with pytest.raises(SystemExit):
            queue.next_due()
        assert queue.counts()[TaskStatus.PENDING] == 0


# ---------------------------------------------------------------- event loops


@pytest.mark.parametrize(
    "use",
    [
        lambda queue: queue.enqueue(add, 1),
        lambda queue: queue.options().enqueue(add, 1),
        lambda queue: queue.enqueue_many(add, []),
        lambda queue: next(queue.tasks()),
        lambda queue: queue.get_result("x"),
        lambda queue: queue.connect(),
        lambda queue: queue.close(),
        lambda queue: queue.__enter__(),
    ],
)
def test_inside_an_event_loop_it_says_what_to_use(queue: SyncTaskQueue, use: Callable[[SyncTaskQueue], object]) -> None:
    async def main() -> None:
        with pytest.raises(TaskQueueError, match="use TaskQueue and await there"):
            use(queue)

    asyncio.run(main())
    assert queue.counts()[TaskStatus.PENDING] == 0


def test_another_thread_of_a_program_with_an_event_loop_may_use_it(queue: SyncTaskQueue) -> None:
    async def main() -> str:
        return await asyncio.to_thread(queue.enqueue, add, 1)

    assert queue.get_task(asyncio.run(main())).attempts == 0


# ---------------------------------------------------------------- opening and closing


def test_it_starts_nothing_before_it_is_used(path: Path) -> None:
    before = threads()
    queue = SyncTaskQueue(SQLiteBackend(path))
    assert threads() == before
    assert not path.exists()
    queue.close()


def test_close_is_idempotent_ends_all_threads_and_closes_the_files(path: Path) -> None:
    before = threads()
    queue = SyncTaskQueue(SQLiteBackend(path))
    queue.enqueue(add, 1)
    queue.close()
    queue.close()
    assert threads() == before
    assert not path.with_name("tasks.db-wal").exists()


def test_after_close_it_stays_closed_until_it_is_connected_again(path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(path))
    task_id = queue.enqueue(add, 1)
    for _ in range(2):
        queue.close()
        for use in (queue.counts, lambda: queue.enqueue(add, 1), lambda: queue.get_result(task_id)):
            with pytest.raises(NotConnected, match=r"connect\(\)"):
                use()
        queue.connect()
        queue.connect()
        assert queue.counts()[TaskStatus.PENDING] == 1
    with queue:
        assert queue.get_task(task_id).attempts == 0
    with pytest.raises(NotConnected):
        queue.counts()


def test_a_queue_that_was_closed_before_its_first_use_is_closed() -> None:
    queue = SyncTaskQueue(MemoryBackend())
    queue.close()
    with pytest.raises(NotConnected):
        queue.counts()


def test_a_store_that_cannot_be_opened_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    before = threads()
    queue = SyncTaskQueue(SQLiteBackend(tmp_path / "missing" / "tasks.db"))
    with pytest.raises(StoreUnavailable), queue:
        pass
    assert threads() == before
    (tmp_path / "missing").mkdir()
    with queue:
        assert queue.counts()[TaskStatus.PENDING] == 0


def test_connects_and_closes_from_several_threads_do_not_hang_or_leak(path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(path))

    def churn(number: int) -> None:
        for _ in range(10):
            if number % 2:
                queue.connect()
            else:
                queue.close()
            with suppress(NotConnected):
                queue.counts()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(churn, number) for number in range(4)]:
            future.result(SECONDS)
    queue.close()


def test_an_error_of_close_is_raised_and_the_thread_is_gone() -> None:
    class Broken(MemoryBackend):
        async def close(self) -> None:
            raise StoreUnavailable("here", "it is broken")

    queue = SyncTaskQueue(Broken())
    queue.connect()
    with pytest.raises(StoreUnavailable):
        queue.close()
    queue.close()


def test_a_queue_that_is_forgotten_ends_its_thread(path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(path))
    queue.enqueue(add, 1)
    del queue  # the fixture waits for the thread


# ---------------------------------------------------------------- processes

PROGRAM = """
import contextlib, os, sys, threading, time
from taskqueue import NotConnected, SyncTaskQueue
from taskqueue.backends.sqlite import SQLiteBackend

queue = SyncTaskQueue(SQLiteBackend(sys.argv[1]))

def wait_for_a():
    with contextlib.suppress(NotConnected):
        queue.get_result("a")
"""


def start(path: Path, *lines: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", PROGRAM + "\n".join(lines), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    with process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize(
    "end",
    [
        "",
        "raise SystemExit",
        "threading.Thread(target=wait_for_a, daemon=True).start(); time.sleep(0.1)",
        "threading.Thread(target=lambda: (time.sleep(0.1), queue.enqueue(print, task_id='b'))).start()",
    ],
)
def test_a_program_that_forgets_to_close_ends_at_once_and_loses_nothing(path: Path, end: str) -> None:
    finish(start(path, "queue.enqueue(print, task_id='a')", end))
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        assert {task.id for task in queue.tasks()} == ({"a", "b"} if "'b'" in end else {"a"})


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_interrupts_a_call_and_the_queue_goes_on(path: Path) -> None:
    process = start(
        path,
        "task_id = queue.enqueue(print)",
        "try:",
        "    print('waiting', flush=True)",
        "    queue.get_result(task_id)",
        "except KeyboardInterrupt:",
        "    thread = queue._here[os.getpid()].thread",
        "    queue.counts()",
        "    while thread._tasks: time.sleep(0.01)",
        "    print('interrupted', sum(queue.counts().values()), flush=True)",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted 1\n"


def in_child(use: Callable[[], object]) -> None:
    """Run ``use`` in a forked child, and fail if it raises or hangs there."""
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(SECONDS)
            use()
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not go on as a second test run
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# Python 3.12 warns of forks in processes with threads; this is about living through one.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@needs_fork
@forks
def test_a_forked_child_opens_afresh_and_leaves_the_parent_alone(queue: SyncTaskQueue) -> None:
    before = queue.enqueue(add, 1)

    def use() -> None:
        queue.enqueue(add, 2, task_id="child")
        assert [task.id for task in queue.tasks()] == [before, "child"]
        with queue:
            queue.cancel(before)
        with pytest.raises(NotConnected):
            queue.counts()

    in_child(use)
    assert queue.get_task("child").status is TaskStatus.PENDING
    assert queue.get_task(before).status is TaskStatus.CANCELLED
    queue.enqueue(add, 3)


@needs_fork
@forks
def test_a_child_may_be_forked_while_other_threads_are_in_calls(queue: SyncTaskQueue) -> None:
    task_id = queue.enqueue(add, 1)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            queue.enqueue(add, 1)

    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(queue.get_result, task_id)
        working = [pool.submit(busy), pool.submit(busy)]
        try:
            for number in range(5):
                in_child(lambda number=number: queue.enqueue(add, 2, task_id=f"child-{number}"))  # type: ignore[misc]  # mypy cannot infer a default
        finally:
            stop.set()
            for each in working:
                each.result(SECONDS)
            queue.cancel(task_id)
        assert isinstance(waiting.exception(SECONDS), TaskCancelled)
    assert {f"child-{number}" for number in range(5)} <= {task.id for task in queue.tasks()}


@needs_fork
@forks
def test_a_child_may_close_and_end_without_having_used_it(queue: SyncTaskQueue) -> None:
    queue.enqueue(add, 1)
    in_child(queue.close)
    in_child(lambda: None)
    queue.enqueue(add, 1)
    assert queue.counts()[TaskStatus.PENDING] == 2


@needs_fork
@forks
def test_a_queue_that_was_closed_is_closed_in_a_child_too(queue: SyncTaskQueue) -> None:
    queue.enqueue(add, 1)
    queue.close()

    def use() -> None:
        with pytest.raises(NotConnected):
            queue.counts()
        queue.connect()
        assert queue.counts()[TaskStatus.PENDING] == 1

    in_child(use)


@needs_fork
def test_a_prefork_server_whose_children_end_by_themselves(path: Path) -> None:
    """Like gunicorn with ``preload_app``: used before the fork, and children run their own ``atexit``."""
    out = finish(
        start(
            path,
            "import warnings; warnings.simplefilter('ignore', DeprecationWarning)",
            "queue.enqueue(print, task_id='parent')",
            "children = []",
            "for number in range(3):",
            "    pid = os.fork()",
            "    if not pid:",
            "        queue.enqueue(print, task_id=f'child {number}')",
            "        sys.exit(0)",
            "    children.append(pid)",
            "print([os.waitpid(pid, 0)[1] for pid in children])",
            "queue.enqueue(print, task_id='parent again')",
            "print(sorted(task.id for task in queue.tasks()))",
        )
    )
    assert out == "[0, 0, 0]\n['child 0', 'child 1', 'child 2', 'parent', 'parent again']\n"
