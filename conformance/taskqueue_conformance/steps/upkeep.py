"""Cancelling and purging."""

from datetime import timedelta
from typing import Any

from taskqueue_conformance.steps.parameters import TaskRef
from taskqueue_conformance.steps.registry import then, when
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import expect_equal


@when("a caller cancels {task}")
async def cancel(world: World, task: TaskRef) -> None:
    """Calls `TaskQueue.cancel`; the answer is whether this call ended the task."""
    world.answer = await world.queue.cancel(world.id_of(task))


@when("tasks that ended more than {duration} ago are purged")
async def purge(world: World, age: timedelta) -> None:
    """Calls `TaskQueue.purge`; the answer is how many tasks it removed."""
    world.answer = await world.queue.purge(age)


@then("the answer is {value}")
def answer(world: World, value: Any) -> None:
    """What the last call that says so answered."""
    expect_equal("the answer", world.answer, value)
