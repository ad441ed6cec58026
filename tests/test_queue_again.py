"""``TaskQueue.enqueue_again``: the call of an ended task, in a new task."""

import operator
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskqueue import (
    InvalidArgument,
    Task,
    TaskNotEnded,
    TaskNotFound,
    TaskQueue,
    TaskStatus,
    Transition,
    Worker,
)
from taskqueue.backends.memory import MemoryBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LATER = datetime(2031, 5, 5, tzinfo=UTC)


async def ended(queue: TaskQueue, status: TaskStatus) -> str:
    """Enqueue a task and take it to an outcome."""
    task_id = await queue.enqueue(operator.add, 2, 3, context={"request_id": "abc"}, max_retries=1)
    if status is TaskStatus.CANCELLED:
        await queue.cancel(task_id)
        return task_id
    [task] = await queue.claim()
    if status is TaskStatus.SUCCESS:
        await queue.complete_task(task_id, task.attempts, 5)
    else:
        await queue.fail_task(task_id, task.attempts, "no")
    return task_id


async def everything(queue: TaskQueue) -> list[Task]:
    return [task async for task in queue.tasks()]


@pytest.mark.parametrize("status", [TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED])
def test_it_makes_a_new_task_and_leaves_the_ended_one_as_it_is(
    run: Run, queue: TaskQueue, clock: Any, status: TaskStatus
) -> None:
    async def main() -> None:
        old_id = await ended(queue, status)
        old = await queue.get_task(old_id)
        now = clock.advance(hours=1)
        new_id = await queue.enqueue_again(old_id)
        assert new_id != old_id
        assert await queue.get_task(new_id) == Task(
            id=new_id, payload=old.payload, enqueued_at=now, available_at=now, max_retries=1
        )
        assert await queue.get_task(old_id) == old
        assert old.status is status

    run(main())


def test_the_new_task_runs_the_same_call(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        new_id = await queue.enqueue_again(await ended(queue, TaskStatus.FAILED))
        call = queue.load_call(await queue.get_task(new_id))
        assert (call.func, call.args, call.context) == (operator.add, (2, 3), {"request_id": "abc"})
        await Worker(queue).run_until_idle()
        result = await queue.get_result(new_id, timeout=0)
        assert result is not None
        assert result.unwrap() == 5

    run(main())


def test_eta_and_budget_may_be_changed(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        new_id = await queue.enqueue_again(await ended(queue, TaskStatus.SUCCESS), eta=LATER, max_retries=7)
        task = await queue.get_task(new_id)
        assert (task.available_at, task.max_retries) == (LATER, 7)

    run(main())


def test_the_budget_is_the_ended_task_s_not_the_queue_s(run: Run, make_queue: Callable[..., TaskQueue]) -> None:
    async def main() -> None:
        queue = make_queue(max_retries=9)
        new_id = await queue.enqueue_again(await ended(queue, TaskStatus.FAILED))
        assert (await queue.get_task(new_id)).max_retries == 1

    run(main())


def test_a_task_that_has_not_ended_is_refused_and_nothing_stored(run: Run, queue: TaskQueue) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(operator.add, 2, 3)
        with pytest.raises(TaskNotEnded, match=r"PENDING.*cancel it first") as pending:
            await queue.enqueue_again(task_id)
        await queue.claim()
        with pytest.raises(TaskNotEnded, match="RUNNING") as running:
            await queue.enqueue_again(task_id)
        assert [(e.value.task_id, e.value.status) for e in (pending, running)] == [
            (task_id, "pending"),
            (task_id, "running"),
        ]
        assert [task.id for task in await everything(queue)] == [task_id]

    run(main())


def test_an_unknown_id_is_refused(run: Run, queue: TaskQueue) -> None:
    with pytest.raises(TaskNotFound):
        run(queue.enqueue_again("nobody"))


@pytest.mark.parametrize(
    "arguments",
    [{"eta": LATER.replace(tzinfo=None)}, {"eta": timedelta(1)}, {"max_retries": -1}, {"max_retries": True}],
)
def test_arguments_are_checked_and_nothing_is_stored(run: Run, queue: TaskQueue, arguments: dict[str, Any]) -> None:
    async def main() -> None:
        old_id = await ended(queue, TaskStatus.SUCCESS)
        with pytest.raises(InvalidArgument):
            await queue.enqueue_again(old_id, **arguments)
        assert len(await everything(queue)) == 1

    run(main())


def test_the_listener_hears_of_the_new_task_alone(run: Run, clock: Any) -> None:
    async def main() -> None:
        heard: list[Transition] = []
        queue = TaskQueue(MemoryBackend(), clock=clock, on_transition=heard.append)
        old_id = await ended(queue, TaskStatus.CANCELLED)
        heard.clear()
        new_id = await queue.enqueue_again(old_id)
        assert heard == [
            Transition(task_id=new_id, source=None, target=TaskStatus.PENDING, at=clock.now, attempt=0),
        ]

    run(main())
