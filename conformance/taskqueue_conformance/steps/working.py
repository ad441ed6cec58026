"""Workers that run what is due."""

from datetime import datetime, timedelta

from taskqueue_conformance.steps import calls
from taskqueue_conformance.steps.parameters import CallText
from taskqueue_conformance.steps.registry import given, then, when
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import Violation, expect_equal


@when("a worker polls")
async def poll(world: World) -> None:
    """A `Worker` claims and runs what is due, until nothing is."""
    await world.run_worker()


@when("a worker polls every {duration} until {instant}")
async def poll_repeatedly(world: World, pause: timedelta, end: datetime) -> None:
    """The same again and again, with the clock moved forward in between."""
    while (now := world.queue.now()) <= end:
        await world.run_worker()
        world.clock.move_to(now + pause)
    world.clock.move_to(end)


@then("{call} has been executed {int} time(s)")
def executed(_world: World, call: CallText, times: int) -> None:
    """How often workers have run this call since the scenario began."""
    count = sum((call.name, call.args) == execution for execution in calls.EXECUTIONS)
    expect_equal(f"executions of {call.name}{call.args!r}", count, times)


@given("fail_task of the queue schedules every retry at {instant}")
def override_fail_task(world: World, instant: datetime) -> None:
    """Replaces the delay that `fail_task` computes, so that a delay from elsewhere shows."""
    world.queue.retry_at = instant


@then("the worker has called fail_task {int} time(s)")
def delegated(world: World, times: int) -> None:
    """How often workers have called `TaskQueue.fail_task`."""
    expect_equal("calls of TaskQueue.fail_task", len(world.queue.failed), times)


@then("the worker has logged {string}")
def logged(world: World, text: str) -> None:
    """A message that taskqueue logged contains this text."""
    if not any(text in message for message in world.log.messages):
        raise Violation("the log", expected=f"a message with {text!r}", actual=repr(world.log.messages))
