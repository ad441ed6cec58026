"""Looking at tasks as they are stored."""

from datetime import datetime
from typing import Any

from taskqueue import TaskNotFound, TaskQueueError, TaskStatus
from taskqueue_conformance.steps.parameters import TaskRef
from taskqueue_conformance.steps.registry import then
from taskqueue_conformance.steps.world import WITNESS, World
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_task, shown


@then("{task} is {status}")
async def has_status(world: World, task: TaskRef, status: TaskStatus) -> None:
    """The task's status, as read through `TaskQueue.get_task`."""
    stored = await world.task(task)
    expect_equal(f"the status of {stored.id!r}", stored.status.name, status.name)


@then("{task} has {options}")
async def has_fields(world: World, task: TaskRef, options: dict[str, Any]) -> None:
    """These fields of the task, exactly."""
    stored = await world.task(task)
    for name, wanted in options.items():
        expect_equal(f"{name} of {stored.id!r}", getattr(stored, name), wanted)


@then("{task} has recorded {int} failure(s)")
async def failures(world: World, task: TaskRef, number: int) -> None:
    """How many failures are stored with the task."""
    stored = await world.task(task)
    expect_equal(f"the number of failures of {stored.id!r}", len(stored.failures), number)


@then("failure {int} of {task} has {options}")
async def failure_has(world: World, number: int, task: TaskRef, options: dict[str, Any]) -> None:
    """These fields of one stored failure, exactly; the first is number 1."""
    stored = await world.task(task)
    if len(stored.failures) < number:
        raise Violation(
            f"the failures of {stored.id!r}", expected=f"{number} or more", actual=f"{len(stored.failures)}"
        )
    for name, wanted in options.items():
        expect_equal(f"{name} of failure {number} of {stored.id!r}", getattr(stored.failures[number - 1], name), wanted)


@then("{task} went through {statuses}")
def went_through(world: World, task: TaskRef, statuses: tuple[TaskStatus, ...]) -> None:
    """Every status that the queue's `on_transition` was told of, in order."""
    task_id = world.id_of(task)
    steps = tuple(step.target for step in world.transitions if step.task_id == task_id)
    expect_equal(f"the statuses of {task_id!r}", ", ".join(s.name for s in steps), ", ".join(s.name for s in statuses))


@then("{task} is unchanged")
async def unchanged(world: World, task: TaskRef) -> None:
    """Every field of the task is as it was when the scenario last looked at it."""
    before = world.seen[world.id_of(task)]
    expect_task(f"get({before.id!r})", await world.task(task), before, breaks="L1")


@then("{task} is unknown")
async def unknown(world: World, task: TaskRef) -> None:
    """There is no task with this id."""
    try:
        stored = await world.queue.get_task(world.id_of(task))
    except TaskNotFound:
        return
    raise Violation(f"get({world.id_of(task)!r})", expected="None", actual=shown(stored))


@then("the payload of {task} carries the context {value}")
async def payload_carries(world: World, task: TaskRef, context: object) -> None:
    """The stored payload, deserialised with the queue's serializer, holds this context."""
    stored = await world.task(task)
    expect_equal(f"the context in the payload of {stored.id!r}", world.queue.load_call(stored).context, context)


@then("the store holds {int} {status} task(s)")
async def holds(world: World, number: int, status: TaskStatus) -> None:
    """`TaskQueue.counts`, without the task that every scenario begins with."""
    counts = await world.queue.counts()
    witness = world.lab.journal.written[WITNESS]
    expect_equal(f"the number of {status.name} tasks", counts.get(status, 0) - (witness.status is status), number)


@then("nothing is due before {instant}")
async def next_due(world: World, instant: datetime) -> None:
    """`TaskQueue.next_due` returns this instant: the earliest eta of a PENDING task or lease of a RUNNING one."""
    expect_equal("next_due()", await world.queue.next_due(), instant)


@then("the call is refused with {error}", refusal=True)
def refused(world: World, error: type[TaskQueueError]) -> None:
    """The step before raised this exception; no other step may raise."""
    actual, world.refusal = world.refusal, None
    expect(
        "the call before",
        isinstance(actual, error),
        expected=error.__name__,
        actual="no exception" if actual is None else f"{type(actual).__name__}: {actual}",
    )
