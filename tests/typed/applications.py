"""What a type checker says of an application. It must refuse the lines that end in ``# refused``, and no others."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from taskqueue import (
    CloudpickleSerializer,
    Result,
    RetryPolicy,
    SyncTaskQueue,
    Task,
    TaskQueue,
    TaskStatus,
    Worker,
    current_task,
)


def add(a: int, b: int = 0) -> int:
    return a + b


async def greet(name: str, /, *, eta: datetime | None = None) -> str:
    return f"{name} {eta}"


class Greeter:
    def __call__(self, name: str) -> str:
        return name


async def enqueueing(queue: TaskQueue) -> None:
    later = queue.options(eta=datetime.now(UTC), max_retries=3, timeout=timedelta(seconds=5))
    assert_type(await later.enqueue(add, 1), str)
    await later.enqueue(add, 1, b=2)
    await later.enqueue(Greeter(), "Ada")
    await later.enqueue(greet, "Ada", eta=datetime.now(UTC))
    await later.enqueue(print, "anything", sep="")

    await later.enqueue(add)  # refused
    await later.enqueue(add, "1")  # refused
    await later.enqueue(add, 1, 2, 3)  # refused
    await later.enqueue(add, 1, c=2)  # refused
    await later.enqueue(add, 1, eta=datetime.now(UTC))  # refused
    await later.enqueue(greet, name="Ada")  # refused
    await later.enqueue(greet, "Ada", eta="soon")  # refused
    await later.enqueue(Greeter(), 1)  # refused
    await later.enqueue("add", 1)  # refused

    # The short form takes options and arguments together, which no signature can say; it checks the options.
    assert_type(await queue.enqueue(add, 1, max_retries=3, eta=datetime.now(UTC)), str)
    await queue.enqueue(add, 1, eta="soon")  # refused
    await queue.enqueue(add, 1, max_retries="3")  # refused
    queue.options(eta=5)  # refused
    queue.options(retries=3)  # refused

    assert_type(await queue.enqueue_many(add, [(1,), {"a": 1}]), list[str])
    await queue.enqueue_many(add, [1])  # refused


async def outcomes(queue: TaskQueue) -> None:
    result = await queue.get_result("id", timeout=1)
    assert_type(result, Result | None)
    result.unwrap()  # refused
    if result is not None:
        assert_type(result.unwrap(), Any)
        assert_type(result.value, bytes | None)
        assert_type(result.status, TaskStatus)
        assert_type(result.error, str | None)
        assert_type(result.finished_at, datetime)
        result.status = TaskStatus.FAILED  # refused
        _ = result.outcome  # refused
    assert_type(await queue.get_task("id"), Task)
    assert_type(await queue.cancel("id"), bool)
    assert_type(await queue.counts(), Mapping[TaskStatus, int])


def without_a_loop(queue: SyncTaskQueue) -> None:
    assert_type(queue.options(max_retries=3).enqueue(add, 1, b=2), str)
    queue.options().enqueue(add, "1")  # refused
    queue.options().enqueue(add, 1, c=2)  # refused
    assert_type(queue.get_result("id"), Result | None)


async def working(queue: TaskQueue) -> None:
    worker = Worker(queue, concurrency=5)
    await worker.run_until_idle()
    Worker(queue, concurrency="5")  # refused
    _ = current_task().attempt  # refused
    if task := current_task():
        assert_type(task.attempt, int)


def settings() -> None:
    TaskQueue(
        serializer=CloudpickleSerializer(),
        default_result_timeout=timedelta(seconds=1),
        retry_policy=RetryPolicy(),
        clock=lambda: datetime.now(UTC),
    )
    TaskQueue(clock=lambda: 5)  # refused
    TaskQueue(serializer=object())  # refused
