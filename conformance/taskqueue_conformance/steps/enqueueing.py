"""Enqueueing tasks."""

from typing import Any

from taskqueue_conformance.steps.calls import FUNCTIONS
from taskqueue_conformance.steps.parameters import CallText
from taskqueue_conformance.steps.registry import then, when
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import expect


@when("a caller enqueues {call}")
async def enqueue(world: World, call: CallText) -> None:
    """Calls `TaskQueue.enqueue(func, *args)`; from here on *the task* is this one."""
    await enqueue_with(world, call, {})


@when("a caller enqueues {call} with {options}")
async def enqueue_with(world: World, call: CallText, options: dict[str, Any]) -> None:
    """The same with `eta`, `context`, `max_retries` or `task_id`."""
    world.task_ids.append(await world.queue.enqueue(FUNCTIONS[call.name], *call.args, **options))


@when("a caller enqueues {call} in one step as {tasks}")
async def enqueue_many(world: World, call: CallText, names: tuple[str, ...]) -> None:
    """Calls `TaskQueue.enqueue_many` for as many tasks, with these ids."""
    calls = [call.args] * len(names)
    world.task_ids += await world.queue.enqueue_many(FUNCTIONS[call.name], calls, task_ids=names)


@then("every task has an id of its own")
def ids_differ(world: World) -> None:
    """The ids that `enqueue` returned are not empty, and all different."""
    ids = world.task_ids
    expect(
        "the ids that enqueue returned",
        all(ids) and len(set(ids)) == len(ids),
        expected=f"{len(ids)} different strings that are not empty",
        actual=ids,
    )
