"""Getting results."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from taskqueue import Result
from taskqueue_conformance.steps.parameters import TaskRef
from taskqueue_conformance.steps.registry import then, when
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import Violation, expect, expect_equal, shown


@when("a caller gets the result of {task} with {options}")
async def get_result(world: World, task: TaskRef, options: dict[str, Any]) -> None:
    """Calls `TaskQueue.get_result` with this `timeout`, in seconds; `None` leaves it to the queue's default."""
    world.result = await world.timed(world.queue.get_result(world.id_of(task), **options))


@when("a worker polls {duration} after a caller began to get the result of {task} with {options}")
async def get_result_meanwhile(world: World, pause: timedelta, task: TaskRef, options: dict[str, Any]) -> None:
    """The same, while a worker runs the task after this long, by the event loop's clock."""
    getting = asyncio.create_task(get_result(world, task, options))
    try:
        await asyncio.sleep(pause.total_seconds())
        await world.run_worker()
        await getting
    finally:
        getting.cancel()
        await asyncio.wait([getting])


@then("the result is None")
def no_result(world: World) -> None:
    """`get_result` returned `None`."""
    expect_equal("the result", world.result, None)


@then("the result has {options}")
def result_has(world: World, options: dict[str, Any]) -> None:
    """`get_result` returned a `Result` with these attributes; instants are in UTC."""
    result = _result(world)
    for name, wanted in options.items():
        actual = getattr(result, name)
        expect_equal(f"Result.{name}", actual, wanted)
        if isinstance(actual, datetime):
            expect(f"the zone of Result.{name}", actual.tzinfo is UTC, expected="UTC", actual=actual.tzinfo)


@then("the result belongs to {task}")
def result_of(world: World, task: TaskRef) -> None:
    """`Result.task_id` is the id of this task."""
    expect_equal("Result.task_id", _result(world).task_id, world.id_of(task))


@then("the result's value is {value}, serialised")
def result_value(world: World, value: Any) -> None:
    """`Result.value` is bytes, from which the queue's serializer makes this value."""
    data = _result(world).value
    expect("Result.value", isinstance(data, bytes), expected="the serialised value, as bytes", actual=data)
    expect_equal("Result.value, deserialised", world.queue.serializer.loads(data or b""), value)


@then("the result's {word} contains {string}")
def result_contains(world: World, name: str, text: str) -> None:
    """An attribute of the `Result` is a string with this text in it."""
    actual = getattr(_result(world), name)
    expect(f"Result.{name}", isinstance(actual, str) and text in actual, expected=f"text with {text!r}", actual=actual)


@then("the caller has waited at least {duration} and less than {duration}")
def waited(world: World, least: timedelta, most: timedelta) -> None:
    """How long the last `get_result` took, by the event loop's clock, which is not frozen."""
    seconds = world.waited.total_seconds()
    expect(
        "how long get_result waited",
        # A loop's timers may fire up to one tick of its clock early.
        least.total_seconds() - 0.002 <= seconds < most.total_seconds(),
        expected=f"from {least.total_seconds():g} s to {most.total_seconds():g} s",
        actual=f"{seconds:.3f} s",
    )


def _result(world: World) -> Result:
    if not isinstance(world.result, Result):
        raise Violation("get_result()", expected="a Result", actual=shown(world.result))
    return world.result
