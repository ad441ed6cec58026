"""Claims and leases: what a worker does, one call at a time."""

from datetime import timedelta
from typing import Any

from taskqueue_conformance.steps.parameters import TaskRef
from taskqueue_conformance.steps.registry import then, when
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import expect_equal


@when("worker {string} claims up to {int} task(s)")
async def claim(world: World, worker: str, limit: int) -> None:
    """Calls `TaskQueue.claim`; the lease is 30 seconds."""
    await claim_with(world, worker, limit, timedelta(seconds=30))


@when("worker {string} claims up to {int} task(s) for {duration}")
async def claim_with(world: World, worker: str, limit: int, lease: timedelta) -> None:
    """The same with a lease of this length."""
    claimed = await world.queue.claim(limit, lease=lease)
    world.last_claim[worker] = [task.id for task in claimed]
    world.claims.setdefault(worker, {}).update({task.id: task.attempts for task in claimed})


@then("worker {string} was given {tasks}")
def was_given(world: World, worker: str, names: tuple[str, ...]) -> None:
    """What this worker's last claim returned, in order."""
    expect_equal(f"the claim of {worker!r}", world.last_claim[worker], list(names))


@when("worker {string} completes {task} with {value}")
async def complete(world: World, worker: str, task: TaskRef, value: Any) -> None:
    """Calls `TaskQueue.complete_task` under the claim that this worker was given, whoever holds the task now."""
    await world.queue.complete_task(*_claim(world, worker, task), value)


@when("worker {string} fails {task} with {string}")
async def fail(world: World, worker: str, task: TaskRef, error: str) -> None:
    """Calls `TaskQueue.fail_task` under the claim that this worker was given."""
    await world.queue.fail_task(*_claim(world, worker, task), error)


@when("worker {string} extends its lease on {task} to {duration} from now")
async def extend(world: World, worker: str, task: TaskRef, lease: timedelta) -> None:
    """Calls `TaskQueue.extend`; the answer is whether the claim is still held."""
    claim = _claim(world, worker, task)
    world.answer = claim in await world.queue.extend([claim], lease=lease)


@when("expired leases are recovered")
async def recover(world: World) -> None:
    """Calls `TaskQueue.recover_expired`; the answer is how many tasks it recovered."""
    world.answer = len(await world.queue.recover_expired())


def _claim(world: World, worker: str, task: TaskRef) -> tuple[str, int]:
    task_id = world.id_of(task)
    return task_id, world.claims[worker][task_id]
