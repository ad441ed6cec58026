import asyncio
import gc
import logging
import operator
import threading
import warnings
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time

from taskqueue import (
    Call,
    CloudpickleSerializer,
    DeserializationError,
    InvalidArgument,
    NotConnected,
    RetryPolicy,
    SerializationError,
    StaleClaim,
    StoreUnavailable,
    Task,
    TaskCancelled,
    TaskExists,
    TaskFailed,
    TaskNotFound,
    TaskQueue,
    TaskStatus,
    Transition,
    UnknownScheme,
)
from taskqueue.backends.memory import MemoryBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MakeQueue = Callable[..., TaskQueue]
SECOND = timedelta(seconds=1)
LATEST = datetime.max.replace(tzinfo=UTC)


def greet(name: str = "nobody", *, eta: str = "soon", context: str = "none") -> str:
    return f"{name} {eta} {context}"


async def stored(queue: TaskQueue) -> list[Task]:
    return [task async for task in queue.tasks()]


async def claim_one(queue: TaskQueue) -> Task:
    [task] = await queue.claim()
    return task


# ---------------------------------------------------------------- enqueue


def test_enqueue_stores_a_pending_task_that_is_due_now(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(operator.add, 1, 2)
        task = await queue.get_task(task_id)
        assert (task.id, task.status, task.attempts, task.max_retries) == (task_id, "pending", 0, 0)
        assert task.enqueued_at == task.available_at == clock.now
        assert [each.id for each in await queue.claim()] == [task_id]

    run(main())


def test_the_payload_is_the_call_with_its_context(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet, "Ada", eta=None, context={"request_id": "abc"})
        task = await queue.get_task(task_id)
        assert CloudpickleSerializer().loads(task.payload) == {
            "func": greet,
            "args": ("Ada",),
            "kwargs": {},
            "context": {"request_id": "abc"},
        }
        assert queue.load_call(task) == Call(greet, ("Ada",), {}, {"request_id": "abc"})

    run(main())


def test_ids_are_unique_and_random_by_default(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        ids = [await queue.enqueue(greet) for _ in range(100)]
        assert len(set(ids)) == 100

    run(main())


def test_arguments_are_taken_as_they_are_at_the_call(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        names, context = ["a"], {"k": "v"}
        enqueueing = asyncio.create_task(queue.enqueue(len, names, context=context))
        await asyncio.sleep(0)
        names.append("b")
        context["k"] = "changed"
        call = queue.load_call(await queue.get_task(await enqueueing))
        assert (call.args, call.context) == ((["a"],), {"k": "v"})

    run(main())


@pytest.mark.parametrize("context", [None, {}, {"a": {"nested": [1, b"\0", None]}}])
def test_the_context_comes_back_as_it_was(run: Run, queue: TaskQueue, context: dict[str, Any] | None) -> None:
    async def main() -> None:
        task = await queue.get_task(await queue.enqueue(greet, context=context))
        assert queue.load_call(task).context == context

    run(main())


def test_an_eta_of_another_zone_is_stored_as_the_same_instant_in_utc(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        eta = datetime(2031, 6, 1, 12, 0, 0, 123456, timezone(timedelta(hours=5, minutes=30)))
        task = await queue.get_task(await queue.enqueue(greet, eta=eta))
        assert task.available_at == eta
        assert task.available_at.isoformat() == "2031-06-01T06:30:00.123456+00:00"

    run(main())


def test_a_task_is_claimed_at_its_eta_and_not_a_microsecond_before(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        eta = clock.now + timedelta(hours=1)
        await queue.enqueue(greet, eta=eta)
        clock.now = eta - timedelta(microseconds=1)
        assert await queue.claim() == []
        clock.now = eta
        assert len(await queue.claim()) == 1

    run(main())


def test_a_past_eta_is_stored_as_given_and_due_at_once(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        eta = clock.now - timedelta(days=365)
        task = await queue.get_task(await queue.enqueue(greet, eta=eta))
        assert task.available_at == eta
        assert len(await queue.claim()) == 1

    run(main())


def test_the_budget_is_the_queue_s_unless_the_call_names_one(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(max_retries=3)
        budgets = [
            (await queue.get_task(await queue.enqueue(greet, max_retries=given))).max_retries for given in (None, 0, 5)
        ]
        assert budgets == [3, 0, 5]

    run(main())


INVALID_OPTIONS = [
    ("eta", datetime(2030, 1, 1)),  # noqa: DTZ001 - wrong on purpose
    ("eta", timedelta(seconds=5)),
    ("eta", datetime(1969, 12, 31, tzinfo=UTC)),
    ("context", [("a", 1)]),
    ("context", {1: "a"}),
    ("context", "abc"),
    ("max_retries", -1),
    ("max_retries", True),
    ("max_retries", 1.0),
    ("max_retries", 2**31),
    ("task_id", ""),
    ("task_id", 7),
    ("task_id", "a\0b"),
    ("task_id", "\udc80"),
    ("task_id", "x" * 256),
    ("task_id", "ü" * 128),
]


@pytest.mark.parametrize(("option", "value"), INVALID_OPTIONS)
def test_an_invalid_option_is_refused_by_name_and_nothing_is_stored(
    run: Run, queue: TaskQueue, option: str, value: object
) -> None:
    async def main() -> None:
        with pytest.raises(InvalidArgument, match=f"^{option}=") as caught:
            await queue.enqueue(greet, **{option: value})
        assert caught.value.argument == option
        with pytest.raises(InvalidArgument, match=f"^{option}="):
            queue.options(**{option: value})
        if option == "task_id":
            with pytest.raises(InvalidArgument, match=r"^task_ids\[1\]="):
                await queue.enqueue_many(greet, [(), ()], task_ids=["good", value])
            with pytest.raises(InvalidArgument, match=r"^task_id="):
                await queue.get_result(value, 0)
        else:
            with pytest.raises(InvalidArgument, match=f"^{option}="):
                await queue.enqueue_many(greet, [()], **{option: value})
        assert await stored(queue) == []

    run(main())


@pytest.mark.parametrize(
    ("func", "advice"),
    [("greet", "not its name"), (None, "callable"), (42, "callable")],
)
def test_what_cannot_be_called_is_refused(run: Run, queue: TaskQueue, func: Any, advice: str) -> None:
    async def main() -> None:
        with pytest.raises(InvalidArgument, match=f"^func=.*{advice}"):
            await queue.enqueue(func)
        assert await stored(queue) == []

    run(main())


def test_a_coroutine_object_is_refused_and_gives_no_second_warning(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        with pytest.raises(InvalidArgument, match=r"enqueue\(func, 1, x=2\)"):
            await queue.enqueue(asyncio.sleep(1))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    assert caught == []


@pytest.mark.parametrize("wrong", [{"args": (threading.Lock(),)}, {"context": {"lock": threading.Lock()}}])
def test_what_cannot_be_serialised_names_the_function_and_stores_nothing(
    run: Run, queue: TaskQueue, wrong: dict[str, Any]
) -> None:
    async def main() -> None:
        with pytest.raises(SerializationError, match=r"the call of greet cannot be serialised: TypeError.*lock"):
            await queue.enqueue(greet, *wrong.get("args", ()), context=wrong.get("context"))
        assert await stored(queue) == []

    run(main())


def test_a_known_id_is_refused_and_the_task_stays_as_it_was(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        assert await queue.enqueue(greet, "first", task_id="ü-1") == "ü-1"
        before = await stored(queue)
        with pytest.raises(TaskExists) as caught:
            await queue.enqueue(greet, "second", task_id="ü-1")
        assert caught.value.task_ids == ("ü-1",)
        assert await stored(queue) == before

    run(main())


def test_an_id_may_have_255_bytes(run: Run, queue: TaskQueue) -> None:
    assert run(queue.enqueue(greet, task_id="x" * 255)) == "x" * 255


def test_options_passes_arguments_of_the_same_names_on_to_the_function(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        enqueuer = queue.options(eta=clock.now + SECOND, context={"a": 1}, max_retries=2, task_id="mine")
        assert await enqueuer.enqueue(greet, "Ada", eta="never", context="kept") == "mine"
        task = await queue.get_task("mine")
        assert (task.available_at, task.max_retries) == (clock.now + SECOND, 2)
        assert queue.load_call(task) == Call(greet, ("Ada",), {"eta": "never", "context": "kept"}, {"a": 1})

    run(main())


def test_arguments_called_self_and_func_reach_the_function(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        first = await queue.enqueue(dict, self=1, func=2)
        second = await queue.options().enqueue(dict, self=1, func=2, queue=3)
        assert queue.load_call(await queue.get_task(first)).kwargs == {"self": 1, "func": 2}
        assert queue.load_call(await queue.get_task(second)).kwargs == {"self": 1, "func": 2, "queue": 3}

    run(main())


def test_enqueue_many_stores_tuples_and_mappings_in_order_in_one_call(run: Run, make_queue: MakeQueue) -> None:
    class Counting(MemoryBackend):
        calls = 0

        async def enqueue(self, tasks: Any) -> None:
            self.calls += 1
            await super().enqueue(tasks)

    async def main() -> None:
        backend = Counting()
        queue = make_queue(backend=backend, max_retries=4)
        ids = await queue.enqueue_many(greet, [("a",), {"name": "b", "eta": "x"}, ()], context={"c": 1})
        assert backend.calls == 1
        tasks = await stored(queue)
        assert [task.id for task in tasks] == ids
        assert [queue.load_call(task) for task in tasks] == [
            Call(greet, ("a",), {}, {"c": 1}),
            Call(greet, (), {"name": "b", "eta": "x"}, {"c": 1}),
            Call(greet, (), {}, {"c": 1}),
        ]
        assert {task.max_retries for task in tasks} == {4}
        assert await queue.enqueue_many(greet, [("a",)], task_ids=["own"]) == ["own"]
        assert await queue.enqueue_many(greet, []) == []
        assert backend.calls == 2

    run(main())


@pytest.mark.parametrize(
    ("calls", "options", "error"),
    [
        ([("a",), "b"], {}, r"^calls\[1\]='b': pass a tuple"),
        ([["a"]], {}, r"^calls\[0\]="),
        ([("a",), {1: "b"}], {}, r"^calls\[1\]=.*strings"),
        ([("a",)], {"task_ids": ["x", "y"]}, "^task_ids=.*1 ids"),
        ([("a",)], {"task_ids": "x"}, "^task_ids="),
    ],
)
def test_enqueue_many_refuses_what_it_cannot_read(
    run: Run, queue: TaskQueue, calls: Any, options: dict[str, Any], error: str
) -> None:
    async def main() -> None:
        with pytest.raises(InvalidArgument, match=error):
            await queue.enqueue_many(greet, calls, **options)
        assert await stored(queue) == []

    run(main())


def test_enqueue_many_is_all_or_none(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        with pytest.raises(SerializationError):
            await queue.enqueue_many(greet, [("a",), (threading.Lock(),)])
        with pytest.raises(TaskExists):
            await queue.enqueue_many(greet, [("a",), ("b",)], task_ids=["same", "same"])
        assert await stored(queue) == []

    run(main())


# ---------------------------------------------------------------- results


def test_a_finished_task_has_a_result_that_can_be_read_again(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(operator.add, 1, 2)
        enqueued_at = clock.now
        task = await claim_one(queue)
        await queue.complete_task(task_id, task.attempts, {"sum": 3})
        finished_at = clock.now
        for _ in range(2):
            result = await queue.get_result(task_id)
            assert (result.task_id, result.status, result.attempts) == (task_id, "success", 1)
            assert (result.error, result.traceback) == (None, None)
            assert (result.enqueued_at, result.finished_at) == (enqueued_at, finished_at)
            assert CloudpickleSerializer().loads(result.value) == result.unwrap() == {"sum": 3}
            clock.advance(days=1)

    run(main())


def test_a_failed_task_has_the_error_and_the_trace(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        await queue.claim()
        finished_at = clock.advance(minutes=1)
        try:
            int("bad")
        except ValueError as error:
            await queue.fail_task(task_id, 1, error)
        result = await queue.get_result(task_id)
        assert (result.status, result.value, result.finished_at) == ("failed", None, finished_at)
        assert result.error == "ValueError: invalid literal for int() with base 10: 'bad'"
        assert result.traceback.startswith("Traceback (most recent call last)")
        assert 'int("bad")' in result.traceback
        with pytest.raises(TaskFailed, match="invalid literal"):
            result.unwrap()

    run(main())


def test_timeout_zero_looks_once(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        assert await queue.get_result(task_id, 0) is None
        await queue.claim()
        assert await queue.get_result(task_id, timeout=timedelta(0)) is None
        await queue.complete_task(task_id, 1, None)
        assert (await queue.get_result(task_id, 0)).unwrap() is None

    run(main())


def test_none_comes_back_when_the_time_is_up_and_not_before(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task_id = await queue.enqueue(greet)
        begun = loop.time()
        assert await queue.get_result(task_id, 0.05) is None
        assert 0.05 <= loop.time() - begun < 1

    run(main())


class Deaf(MemoryBackend):
    """Never says that anything has changed."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's signature
        await asyncio.sleep(timeout)


class Broken(MemoryBackend):
    """Its notifications fail."""

    async def wait(self, timeout: float) -> None:  # noqa: ARG002, ASYNC109 - the contract's signature
        raise StoreUnavailable("here", "no notifications")


@pytest.mark.parametrize("backend", [Deaf, Broken])
def test_the_last_look_is_at_the_deadline(run: Run, make_queue: MakeQueue, backend: type[MemoryBackend]) -> None:
    async def main() -> None:
        queue = make_queue(backend=backend())
        task_id = await queue.enqueue(greet)
        await queue.claim()
        waiting = asyncio.create_task(queue.get_result(task_id, 0.1))
        await asyncio.sleep(0.02)
        await queue.complete_task(task_id, 1, "late")
        assert (await waiting).unwrap() == "late"

    run(main())


def test_a_result_arrives_as_soon_as_it_is_there(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        await queue.claim()
        waiting = [asyncio.create_task(queue.get_result(task_id)) for _ in range(20)]
        await asyncio.sleep(0.01)
        begun = asyncio.get_running_loop().time()
        await queue.complete_task(task_id, 1, "there")
        assert {result.unwrap() for result in await asyncio.gather(*waiting)} == {"there"}
        assert asyncio.get_running_loop().time() - begun < 0.5

    run(main())


def test_a_task_that_is_retried_has_no_result_yet(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet, max_retries=2)
        await queue.claim()
        await queue.fail_task(task_id, 1, "first")
        assert await queue.get_result(task_id, 0) is None
        clock.advance(hours=1)
        await queue.claim()
        await queue.fail_task(task_id, 2, "second")
        result = await queue.get_result(task_id, 0)
        assert (result.error, result.attempts) == ("second", 2)

    run(main())


def test_the_default_timeout_is_used_and_a_timeout_overrides_it(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for default, given, least, most in [
            (0.05, None, 0.05, 1),
            (timedelta(seconds=0.05), None, 0.05, 1),
            (0, None, 0, 1),
            (60, 0.05, 0.05, 1),
            (60, 0, 0, 1),
            (0, 0.05, 0.05, 1),
        ]:
            queue = make_queue(default_result_timeout=default)
            task_id = await queue.enqueue(greet)
            begun = loop.time()
            assert await queue.get_result(task_id, timeout=given) is None
            assert least <= loop.time() - begun < most

    run(main())


def test_without_any_timeout_it_waits_on(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        waiting = asyncio.create_task(queue.get_result(task_id))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await queue.claim()
        await queue.complete_task(task_id, 1, 7)
        assert (await waiting).unwrap() == 7

    run(main())


def test_waiting_is_measured_on_the_loop_s_clock_also_while_time_is_frozen(run: Run) -> None:
    async def main() -> None:
        queue = TaskQueue(MemoryBackend())
        task_id = await queue.enqueue(greet)
        assert (await queue.get_task(task_id)).enqueued_at == datetime(2031, 1, 1, tzinfo=UTC)
        assert await queue.get_result(task_id, 0.05) is None
        await queue.claim()
        await queue.complete_task(task_id, 1, 7)
        result = await queue.get_result(task_id, 60)
        assert result.finished_at == datetime(2031, 1, 1, tzinfo=UTC)

    with freeze_time("2031-01-01", real_asyncio=True):
        run(main())


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("inf"), True, "5", 10**400, timedelta(seconds=-1)])
def test_a_timeout_that_means_nothing_is_refused(run: Run, queue: TaskQueue, timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout="):
        run(queue.get_result("any", timeout))
    with pytest.raises(InvalidArgument, match=r"^default_result_timeout="):
        TaskQueue(MemoryBackend(), default_result_timeout=timeout)


def test_an_unknown_id_is_an_error_at_once_and_creates_nothing(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        for call in (
            queue.get_result("nobody"),
            queue.get_task("nobody"),
            queue.cancel("nobody"),
            queue.complete_task("nobody", 1, None),
            queue.fail_task("nobody", 1, "error"),
        ):
            with pytest.raises(TaskNotFound) as caught:
                await call
            assert caught.value.task_id == "nobody"
        assert await queue.extend([("nobody", 1)]) == []
        assert await stored(queue) == []

    run(main())


def test_waiting_for_a_task_that_is_cancelled_or_purged_ends_with_an_error(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        first, second = [await queue.enqueue(greet) for _ in range(2)]
        waiting = asyncio.create_task(queue.get_result(first, 60))
        await asyncio.sleep(0.01)
        assert await queue.cancel(first) is True
        with pytest.raises(TaskCancelled):
            await waiting
        assert await queue.cancel(second) is True
        assert await queue.purge(finished_before=LATEST) == 2
        with pytest.raises(TaskNotFound):
            await queue.get_result(second)

    run(main())


def test_a_cancelled_get_result_leaves_nothing_behind(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get_result(task_id), 0.02)
        # The fixture looks for tasks that are left.

    run(main())


def test_many_waiters_together_do_not_keep_the_store_busy(run: Run, make_queue: MakeQueue) -> None:
    class Counting(MemoryBackend):
        looks = 0

        async def get(self, task_id: str) -> Task | None:
            self.looks += 1
            return await super().get(task_id)

    async def main() -> None:
        queue = make_queue(backend=Counting())
        task_id = await queue.enqueue(greet)
        waiting = [asyncio.create_task(queue.get_result(task_id, 60)) for _ in range(200)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        # If each change made each of them look, that would be 20,000 looks.
        for _ in range(100):
            await queue.enqueue(greet)
            await asyncio.sleep(0.001)
        seconds = loop.time() - began
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        # The first look and the one that follows it, and 1,000 a second in between, twice over.
        assert queue.backend.looks < 2 * 200 + 2 * (200 + 1000 * seconds)

    run(main())


def test_closing_the_queue_ends_a_waiting_get_result(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        waiting = asyncio.create_task(queue.get_result(task_id))
        await asyncio.sleep(0.01)
        await queue.close()
        with pytest.raises(NotConnected):
            await waiting

    run(main())


# ---------------------------------------------------------------- the worker's side


@pytest.mark.parametrize(("budget", "executions"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_the_budget_counts_executions(run: Run, queue: TaskQueue, clock: Any, budget: int, executions: int) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet, max_retries=budget)
        for attempt in range(1, executions + 1):
            task = await claim_one(queue)
            assert task.attempts == attempt
            failed = await queue.fail_task(task_id, attempt, f"error {attempt}")
            assert failed.status == ("failed" if attempt == executions else "pending")
            clock.advance(hours=2)
        assert await queue.claim() == []
        assert [failure.error for failure in (await queue.get_task(task_id)).failures] == [
            f"error {attempt}" for attempt in range(1, executions + 1)
        ]

    run(main())


def test_fail_task_computes_the_eta_by_the_policy(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    async def main() -> None:
        queue = make_queue(retry_policy=RetryPolicy(base=10 * SECOND, factor=3, cap=50 * SECOND), max_retries=10)
        task_id = await queue.enqueue(greet)
        for attempt, delay in enumerate((10, 30, 50, 50), 1):
            await queue.claim()
            now = clock.advance(seconds=5)
            task = await queue.fail_task(task_id, attempt, "error")
            assert task.available_at == task.failures[-1].retry_at == now + delay * SECOND
            clock.now = task.available_at - timedelta(microseconds=1)
            assert await queue.claim() == []
            clock.now = task.available_at

    run(main())


def test_a_retry_is_never_due_at_the_instant_of_the_failure(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    async def main() -> None:
        queue = make_queue(retry_policy=RetryPolicy(base=timedelta(0)), max_retries=2)
        task_id = await queue.enqueue(greet)
        await queue.claim()
        task = await queue.fail_task(task_id, 1, "error")
        assert task.available_at == clock.now + timedelta(microseconds=1)
        assert await queue.claim() == []

    run(main())


def test_a_retry_at_the_end_of_time_is_capped(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    async def main() -> None:
        queue = make_queue(retry_policy=RetryPolicy(base=timedelta.max, cap=timedelta.max), max_retries=2)
        task_id = await queue.enqueue(greet)
        await queue.claim(lease=timedelta.max)
        assert (await queue.fail_task(task_id, 1, "error")).available_at == LATEST
        clock.now = LATEST
        assert (await claim_one(queue)).lease_expires_at == LATEST

    run(main())


@pytest.mark.parametrize(
    ("error", "text", "trace"),
    [
        (ValueError(), "ValueError", "ValueError\n"),
        (SystemExit(3), "SystemExit: 3", "SystemExit: 3\n"),
        ("plain text", "plain text", None),
        ("nul \0 and \udc80", "nul \\x00 and \\udc80", None),
        ("", "failed without a message", None),
    ],
)
def test_any_error_can_be_recorded(
    run: Run, queue: TaskQueue, error: BaseException | str, text: str, trace: str | None
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        await queue.claim()
        [failure] = (await queue.fail_task(task_id, 1, error)).failures
        assert (failure.error, failure.traceback) == (text, trace)

    run(main())


def test_a_trace_that_is_given_is_recorded_storable(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        await queue.claim()
        await queue.fail_task(task_id, 1, "error", traceback="remote\0" + "x" * 10**6)
        result = await queue.get_result(task_id)
        assert result.traceback.startswith("remote\\x00x")
        assert len(result.traceback.encode()) <= 65536

    run(main())


def test_outcomes_of_a_claim_that_does_not_hold_are_refused(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        for attempt in (1, 2):
            for call in (queue.complete_task(task_id, attempt, 1), queue.fail_task(task_id, attempt, "error")):
                with pytest.raises(StaleClaim):
                    await call
        await queue.claim()
        await queue.complete_task(task_id, 1, "kept")
        for call in (queue.complete_task(task_id, 1, "other"), queue.fail_task(task_id, 1, "error")):
            with pytest.raises(StaleClaim) as caught:
                await call
            assert (caught.value.status, caught.value.attempts) == ("success", 1)
        assert await queue.cancel(task_id) is False
        assert (await queue.get_result(task_id)).unwrap() == "kept"

    run(main())


def test_a_value_that_cannot_be_serialised_leaves_the_task_running(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet)
        await queue.claim()
        with pytest.raises(SerializationError, match=f"return value of task '{task_id}'"):
            await queue.complete_task(task_id, 1, threading.Lock())
        assert (await queue.get_task(task_id)).status == "running"

    run(main())


def test_a_serializer_s_own_errors_and_types_are_reported_as_ours(run: Run, make_queue: MakeQueue) -> None:
    class Odd:
        def dumps(self, obj: Any) -> Any:
            if "error" in obj["args"]:
                raise ZeroDivisionError
            return "text"

        def loads(self, data: bytes) -> Any:  # noqa: ARG002 - the protocol's signature
            raise ZeroDivisionError

    async def main() -> None:
        queue = make_queue(serializer=Odd())
        with pytest.raises(SerializationError, match="returned str instead of bytes"):
            await queue.enqueue(greet)
        with pytest.raises(SerializationError, match="ZeroDivisionError"):
            await queue.enqueue(greet, "error")
        task = Task(id="t", payload=b"", enqueued_at=LATEST, available_at=LATEST)
        with pytest.raises(DeserializationError, match=r"payload of task 't'.*ZeroDivisionError"):
            queue.load_call(task)

    run(main())


@pytest.mark.parametrize("payload", [b"", b"garbage", CloudpickleSerializer().dumps(5)])
def test_a_payload_that_is_no_call_is_a_clear_error(queue: TaskQueue, payload: bytes) -> None:
    task = Task(id="t-1", payload=payload, enqueued_at=LATEST, available_at=LATEST)
    with pytest.raises(DeserializationError, match="the payload of task 't-1'"):
        queue.load_call(task)


def test_claim_takes_the_limit_and_holds_the_lease(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        ids = await queue.enqueue_many(greet, [()] * 5)
        assert await queue.claim(0) == []
        tasks = await queue.claim(3, lease=timedelta(minutes=5))
        assert [task.id for task in tasks] == ids[:3]
        assert {task.lease_expires_at for task in tasks} == {clock.now + timedelta(minutes=5)}
        assert len(await queue.claim(10)) == 2

    run(main())


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.claim(-1),
        lambda queue: queue.claim(limit=True),
        lambda queue: queue.claim(1.0),
        lambda queue: queue.claim(lease=timedelta(0)),
        lambda queue: queue.claim(lease=30),
        lambda queue: queue.extend([("t", 1)], lease=timedelta(0)),
        lambda queue: queue.extend([("t", 0)]),
        lambda queue: queue.extend([("", 1)]),
        lambda queue: queue.complete_task("t", 0, None),
        lambda queue: queue.complete_task("t", attempt=True, value=None),
        lambda queue: queue.fail_task("t", 0, "error"),
        lambda queue: queue.fail_task("t", 1, None),
        lambda queue: queue.fail_task("t", 1, "error", traceback=b"bytes"),
        lambda queue: queue.purge(),
        lambda queue: queue.purge(SECOND, finished_before=LATEST),
        lambda queue: queue.purge(-SECOND),
        lambda queue: queue.purge(60),
        lambda queue: queue.purge(finished_before=datetime(2030, 1, 1)),  # noqa: DTZ001 - wrong on purpose
        lambda queue: queue.wait(-1),
        lambda queue: anext(queue.tasks("done")),
    ],
)
def test_arguments_that_mean_nothing_are_refused(run: Run, queue: TaskQueue, call: Callable[..., Any]) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(greet, task_id="t")
        before = await queue.get_task(task_id)
        with pytest.raises(InvalidArgument):
            await call(queue)
        assert await stored(queue) == [before]

    run(main())


def test_extend_lengthens_held_claims_and_leaves_out_lost_ones(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        held, ended = await queue.enqueue_many(greet, [()] * 2)
        await queue.claim(2)
        await queue.complete_task(ended, 1, None)
        clock.advance(seconds=20)
        assert await queue.extend([(ended, 1), (held, 2), (held, 1)]) == [(held, 1)]
        assert (await queue.get_task(held)).lease_expires_at == clock.now + timedelta(seconds=30)

    run(main())


def test_recover_expired_is_immediate_and_spends_the_budget(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        once, twice = await queue.enqueue(greet), await queue.enqueue(greet, max_retries=2)
        await queue.claim(2)
        lives = await queue.enqueue(greet)
        expires = clock.advance(seconds=30)
        clock.now -= timedelta(microseconds=1)
        await queue.claim()
        assert await queue.recover_expired() == []
        clock.now = expires
        recovered = await queue.recover_expired()
        assert {(task.id, task.status) for task in recovered} == {(once, "failed"), (twice, "pending")}
        assert (await queue.get_task(lives)).status == "running"
        result = await queue.get_result(once)
        assert "lease of attempt 1 ran out at 2030-01-01 12:00:30+00:00" in result.error
        assert result.traceback is None
        assert (await queue.get_task(twice)).available_at == expires + SECOND
        assert await queue.recover_expired() == []

    run(main())


def test_recover_expired_goes_through_all_pages(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        await queue.enqueue_many(greet, [()] * 1201)
        assert len(await queue.claim(1201)) == 1201
        clock.advance(hours=1)
        assert len(await queue.recover_expired()) == 1201
        assert (await queue.counts())[TaskStatus.FAILED] == 1201

    run(main())


@pytest.mark.parametrize("rival", ["completes", "extends", "recovers", "purges"])
def test_a_recoverer_leaves_alone_what_somebody_else_took_meanwhile(
    run: Run, make_queue: MakeQueue, clock: Any, rival: str
) -> None:
    class Raced(MemoryBackend):
        raced = False

        async def expired(self, *, now: datetime, limit: int) -> Any:
            found = await super().expired(now=now, limit=limit)
            if found and not self.raced:
                self.raced = True
                if rival == "extends":
                    await queue.extend([("t", 1)])
                elif rival == "recovers":
                    assert len(await queue.recover_expired()) == 1
                else:
                    await queue.complete_task("t", 1, None)
                    if rival == "purges":
                        await queue.purge(finished_before=LATEST)
            return found

    async def main() -> None:
        await queue.enqueue(greet, task_id="t")
        await queue.claim()
        clock.advance(hours=1)
        assert await queue.recover_expired() == []
        assert queue.backend.raced

    queue = make_queue(backend=Raced())
    run(main())


def test_a_recoverer_ends_when_the_clock_steps_back_meanwhile(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        ids = await queue.enqueue_many(greet, [()] * 3)
        await queue.claim(3)
        instants = iter([clock.now + timedelta(hours=1)])
        stepping = TaskQueue(queue.backend, clock=lambda: next(instants, clock.now))
        assert {task.id for task in await stepping.recover_expired()} == set(ids)

    run(main())


# ---------------------------------------------------------------- cancel, purge, listings


def test_cancel_ends_pending_and_running_tasks_and_fences_the_worker(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        running, pending = await queue.enqueue(greet), await queue.enqueue(greet)
        await queue.claim()
        assert [await queue.cancel(running), await queue.cancel(pending)] == [True, True]
        assert [await queue.cancel(running), await queue.cancel(pending)] == [False, False]
        with pytest.raises(StaleClaim) as caught:
            await queue.complete_task(running, 1, None)
        assert caught.value.status == "cancelled"
        for task_id in (running, pending):
            with pytest.raises(TaskCancelled) as cancelled:
                await queue.get_result(task_id)
            assert cancelled.value.task_id == task_id
        assert await queue.claim() == []

    run(main())


def test_purge_removes_what_ended_before_and_nothing_else(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        old, recent, running, pending = await queue.enqueue_many(greet, [()] * 4, eta=clock.now - SECOND)
        await queue.claim(3)
        await queue.complete_task(old, 1, None)
        clock.advance(microseconds=1)
        await queue.complete_task(recent, 1, None)
        clock.advance(days=7)
        assert await queue.purge(timedelta(days=7)) == 1
        assert [task.id for task in await stored(queue)] == [recent, running, pending]
        assert await queue.purge(older_than=timedelta.max) == 0
        assert await queue.purge(timedelta(0)) == 1
        assert [task.id for task in await stored(queue)] == [running, pending]

    run(main())


def test_purge_and_listings_go_through_all_pages(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        ids = await queue.enqueue_many(greet, [()] * 1001)
        for task_id in ids[:999]:
            await queue.cancel(task_id)
        assert [task.id for task in await stored(queue)] == ids
        assert [task.id async for task in queue.tasks("pending")] == ids[999:]
        assert len([task async for task in queue.tasks(TaskStatus.CANCELLED)]) == 999
        clock.advance(seconds=1)
        assert await queue.purge(timedelta(0)) == 999
        assert dict(await queue.counts()) == {
            "pending": 2,
            "running": 0,
            "success": 0,
            "failed": 0,
            "cancelled": 0,
        }

    run(main())


def test_next_due_is_the_earliest_eta_or_lease(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        assert await queue.next_due() is None
        await queue.enqueue(greet, eta=clock.now + timedelta(hours=1))
        assert await queue.next_due() == clock.now + timedelta(hours=1)
        await queue.enqueue(greet)
        await queue.claim()
        assert await queue.next_due() == clock.now + timedelta(seconds=30)

    run(main())


# ---------------------------------------------------------------- transitions


def test_every_step_is_announced_in_order(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    steps: list[Transition] = []

    async def main() -> None:
        queue = make_queue(on_transition=steps.append)
        begun = clock.now
        await queue.enqueue(greet, task_id="t", max_retries=2)
        await queue.claim()
        failed = clock.advance(seconds=1)
        await queue.fail_task("t", 1, "error")
        claimed = clock.advance(hours=1)
        await queue.claim()
        await queue.fail_task("t", 2, "error")
        assert [(step.source, step.target, step.at, step.attempt) for step in steps] == [
            (None, "pending", begun, 0),
            ("pending", "running", begun, 1),
            ("running", "failed", failed, 1),
            ("failed", "pending", failed, 1),
            ("pending", "running", claimed, 2),
            ("running", "failed", claimed, 2),
        ]
        assert {step.task_id for step in steps} == {"t"}

    run(main())


def test_cancel_is_announced_with_the_status_before_and_refusals_are_not(run: Run, make_queue: MakeQueue) -> None:
    steps: list[Transition] = []

    async def main() -> None:
        queue = make_queue(on_transition=steps.append)
        await queue.enqueue_many(greet, [(), (), ()], task_ids=["running", "pending", "done"])
        await queue.claim()
        [done] = [task for task in await queue.claim(2) if task.id == "done"]
        await queue.fail_task("pending", 1, "not retried, so it has failed")
        await queue.enqueue(greet, task_id="new")
        steps.clear()
        await queue.cancel("running")
        await queue.cancel("new")
        await queue.complete_task("done", done.attempts, None)
        assert await queue.cancel("done") is False
        for call in (queue.complete_task("done", 1, None), queue.enqueue(greet, task_id="done")):
            with pytest.raises((StaleClaim, TaskExists)):
                await call
        assert [(step.task_id, step.source, step.target, step.attempt) for step in steps] == [
            ("running", "running", "cancelled", 1),
            ("new", "pending", "cancelled", 0),
            ("done", "running", "success", 1),
        ]

    run(main())


def test_a_recovered_task_is_announced(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    steps: list[Transition] = []

    async def main() -> None:
        queue = make_queue(on_transition=steps.append, max_retries=2)
        await queue.enqueue(greet)
        await queue.claim()
        clock.advance(hours=1)
        await queue.recover_expired()
        assert [(step.source, step.target) for step in steps[2:]] == [("running", "failed"), ("failed", "pending")]

    run(main())


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
def test_an_exception_in_the_callback_is_logged_and_harms_no_task(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def listener(step: Transition) -> None:
        raise error(step.target)

    async def main() -> None:
        queue = make_queue(on_transition=listener)
        task_id = await queue.enqueue(greet)
        task = await claim_one(queue)
        await queue.complete_task(task_id, task.attempts, "fine")
        assert (await queue.get_result(task_id)).unwrap() == "fine"

    with caplog.at_level(logging.ERROR, "taskqueue"):
        run(main())
    assert len(caplog.records) == 3


def test_a_coroutine_function_cannot_listen() -> None:
    async def listener(step: Transition) -> None: ...

    with pytest.raises(InvalidArgument, match=r"^on_transition="):
        TaskQueue(MemoryBackend(), on_transition=listener)


# ---------------------------------------------------------------- construction and connections


def test_the_default_is_a_sqlite_file_in_the_working_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKQUEUE_URL", raising=False)

    async def main() -> None:
        queue = TaskQueue()
        assert isinstance(queue.serializer, CloudpickleSerializer)
        assert not (tmp_path / "taskqueue.db").exists()
        async with queue:
            await queue.enqueue(greet)
        async with TaskQueue() as other:
            assert len(await stored(other)) == 1

    run(main())
    assert (tmp_path / "taskqueue.db").is_file()


def test_the_environment_names_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKQUEUE_URL", "memory://")
    assert isinstance(TaskQueue().backend, MemoryBackend)
    monkeypatch.setenv("TASKQUEUE_URL", "nosuch://x")
    with pytest.raises(UnknownScheme):
        TaskQueue()


def test_from_url_makes_a_queue_with_options(run: Run) -> None:
    queue = TaskQueue.from_url("MEMORY://", max_retries=3)
    assert isinstance(queue.backend, MemoryBackend)
    assert queue.max_retries == 3
    run(queue.enqueue(greet))


@pytest.mark.parametrize("url", ["nosuch://x", "memory", "", "://", "taskqueue.db"])
def test_an_unknown_scheme_names_those_that_are_known(url: str) -> None:
    with pytest.raises(UnknownScheme, match=r"memory.*sqlite") as caught:
        TaskQueue.from_url(url)
    assert caught.value.url == url
    assert {"memory", "sqlite"} <= set(caught.value.known)


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://user:secret@host/db",
        *(f"nosuch://user:secret{odd}secret@host/db" for odd in "@/#?:"),
        "nosuch://host/db?password=secret&a=b",
        "nosuch://host/db?a=b&sslpassword=secret",
    ],
)
def test_a_password_in_a_url_does_not_show(url: str) -> None:
    with pytest.raises(UnknownScheme) as caught:
        TaskQueue.from_url(url)
    assert "host/db" in str(caught.value)
    assert "secret" not in str(caught.value) + repr(vars(caught.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "sqlite:///x.db"}, r"^backend=.*TaskQueue\.from_url"),
        ({"backend": MemoryBackend}, "^backend=.*this is a class"),
        ({"backend": object()}, "^backend=.*lacks: connect, close, clone, enqueue, claim"),
        ({"serializer": CloudpickleSerializer}, "^serializer="),
        ({"serializer": object()}, "^serializer="),
        ({"max_retries": -1}, "^max_retries="),
        ({"max_retries": None}, "^max_retries="),
        ({"retry_policy": 5}, "^retry_policy="),
        ({"clock": datetime(2030, 1, 1, tzinfo=UTC)}, "^clock="),
        ({"on_transition": 5}, "^on_transition="),
    ],
)
def test_the_constructor_refuses_what_means_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        TaskQueue(**{"backend": MemoryBackend()} | options)


def test_a_clock_that_returns_a_naive_time_is_a_clear_error(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(clock=datetime.now)
        with pytest.raises(InvalidArgument, match=r"^clock=.*without a time zone"):
            await queue.enqueue(greet)
        assert await stored(queue) == []

    run(main())


class Counted(MemoryBackend):
    """Counts connections, and takes a moment for each."""

    connects = 0
    closes = 0

    async def connect(self) -> None:
        self.connects += 1
        await asyncio.sleep(0.01)
        await super().connect()

    async def close(self) -> None:
        self.closes += 1
        await super().close()


def test_it_connects_on_first_use_and_once(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        backend = Counted()
        queue = make_queue(backend=backend)
        assert backend.connects == 0
        await queue.counts()
        for _ in range(3):
            await queue.enqueue(greet)
        assert backend.connects == 1

    run(main())


def test_concurrent_first_uses_all_work(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue(backend=Counted())
        assert len(set(await asyncio.gather(*(queue.enqueue(greet) for _ in range(50))))) == 50
        assert (await queue.counts())[TaskStatus.PENDING] == 50

    run(main())


def test_async_with_connects_and_closes(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        backend = Counted()
        queue = make_queue(backend=backend)
        async with queue as entered:
            assert entered is queue
            assert backend.connects == 1
            await queue.enqueue(greet)
            assert (backend.connects, backend.closes) == (1, 0)
        assert backend.closes == 1
        with pytest.raises(NotConnected):
            await backend.counts()
        with pytest.raises(ZeroDivisionError):
            await leave_with_an_error(queue)
        assert backend.closes == 2

    async def leave_with_an_error(queue: TaskQueue) -> None:
        async with queue:
            raise ZeroDivisionError

    run(main())


def test_after_close_it_stays_closed_until_connect(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        queue = make_queue()
        await queue.enqueue(greet)
        await queue.close()
        await queue.close()
        for call in (queue.enqueue(greet), queue.counts(), queue.claim(), queue.get_result("x")):
            with pytest.raises(NotConnected, match=r"connect\(\)"):
                await call
        await queue.connect()
        assert (await queue.counts())[TaskStatus.PENDING] == 1

    run(main())


def test_closing_while_it_connects_leaves_it_closed(run: Run, make_queue: MakeQueue) -> None:
    async def main() -> None:
        backend = Counted()
        queue = make_queue(backend=backend)
        enqueueing = asyncio.create_task(queue.enqueue(greet))
        await asyncio.sleep(0)
        await queue.close()
        with pytest.raises(NotConnected):
            await enqueueing
        with pytest.raises(NotConnected):
            await backend.counts()

    run(main())


def test_one_queue_serves_several_event_loops_one_after_another(make_queue: MakeQueue) -> None:
    queue = make_queue()
    asyncio.run(queue.enqueue(greet))
    asyncio.run(queue.enqueue(greet))
    assert asyncio.run(queue.counts())[TaskStatus.PENDING] == 2
