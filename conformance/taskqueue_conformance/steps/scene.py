"""Setting the scene: the clock, the queue and its configuration, connecting and closing."""

import contextlib
import os
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from taskqueue import CloudpickleSerializer, NotConnected, RetryPolicy, TaskQueue
from taskqueue_conformance.steps.calls import FUNCTIONS
from taskqueue_conformance.steps.registry import given, then, when
from taskqueue_conformance.steps.world import WITNESS, World
from taskqueue_conformance.violation import Violation, expect, expect_equal


@given("a queue on the backend under test")
async def queue_on_backend(world: World) -> None:
    """A `TaskQueue` on a new, empty store of the backend under test, with its defaults; it is 12:00 on 2030-01-01."""
    await world.queue.connect()


@given("the queue reads back what it writes")
async def queue_reads_back(world: World) -> None:
    """Enqueues a task that is due in the year 2100 and compares every field of it, as read through `get`."""
    await world.witness()


@given("the queue is configured with {options}")
def configure(world: World, options: dict[str, Any]) -> None:
    """Passes these arguments to `TaskQueue`; a `serializer` is named by what it is: `"reversing"`."""
    if options.get("serializer") == "reversing":
        options = options | {"serializer": ReversingSerializer()}
    world.queue = world.new_queue(world.subject, **options)


@given("a retry waits {duration} at first, {int} times longer after each further attempt, and at most {duration}")
def configure_backoff(world: World, base: timedelta, factor: int, cap: timedelta) -> None:
    """Passes a `RetryPolicy` with this base, factor and cap to `TaskQueue`."""
    world.queue = world.new_queue(world.subject, retry_policy=RetryPolicy(base=base, factor=factor, cap=cap))


@when("it is {instant}")
def set_clock(world: World, instant: datetime) -> None:
    """Moves the frozen clock, forwards or backwards."""
    world.clock.move_to(instant)


@when("the store is opened again")
async def reopen(world: World) -> None:
    """Closes the queue, and goes on with a new one on a new handle of the same store."""
    await world.queue.close()
    world.subject = await world.lab.handle()
    world.queue = world.new_queue(world.subject)


@when('a caller enters "async with" on a new queue')
async def enter(world: World) -> None:
    """Enters the context of a `TaskQueue` on a handle that is not connected yet."""
    world.subject = world.lab.unconnected()
    world.queue = world.new_queue(world.subject)
    await world.block.enter_async_context(world.queue)


@when("the block ends")
async def leave(world: World) -> None:
    """Leaves the context of the queue."""
    await world.block.aclose()


@when("the block ends with an exception")
async def leave_with_exception(world: World) -> None:
    """Leaves the context of the queue with a `RuntimeError`, which must come out unchanged."""
    error, outcome = RuntimeError("raised in the block"), None
    try:
        async with world.block:
            raise error
    except RuntimeError as raised:
        outcome = raised
    expect("the end of the block", outcome is error, expected=repr(error), actual=repr(outcome))


@then("the backend is connected")
async def is_connected(world: World) -> None:
    """The handle answers a `get` without being connected by it."""
    try:
        await world.subject.get(WITNESS)
    except NotConnected as error:
        raise Violation("the backend", expected="connected", actual=f"NotConnected: {error}", look="connect") from error


@then("the backend is closed")
async def is_closed(world: World) -> None:
    """The handle refuses a `get` with `NotConnected`."""
    try:
        task = await world.subject.get(WITNESS)
    except NotConnected:
        return
    raise Violation(
        "get() after close", expected="NotConnected", actual=f"{task!r}", look="close: refuse every other call"
    )


@when("a caller constructs a TaskQueue without arguments")
def construct(world: World) -> None:
    """Calls `TaskQueue()` in an empty working directory, with no `TASKQUEUE_URL` set; does not connect it."""
    folder = tempfile.TemporaryDirectory()
    world.at_end(folder.cleanup)
    url = os.environ.pop("TASKQUEUE_URL", None)
    try:
        # Only for this one call, which does not wait: the working directory is the whole process's.
        with contextlib.chdir(folder.name):
            world.constructed = TaskQueue()
        world.folder = Path(folder.name)
    finally:
        if url is not None:
            os.environ["TASKQUEUE_URL"] = url


@then("its backend is an SQLiteBackend that keeps {string} in the working directory")
async def default_backend(world: World, name: str) -> None:
    """The class of the default backend, and the file that it makes when the queue is used."""
    queue = _constructed(world)
    expect_equal("the default backend", type(queue.backend).__name__, "SQLiteBackend")
    async with queue:
        task_id = await queue.enqueue(FUNCTIONS["echo"], "seen")
        expect_equal("the task in the default backend", (await queue.get_task(task_id)).status.name, "PENDING")
    files = sorted(path.name for path in world.folder.iterdir())
    expect(f"the file {name}", name in files, expected=name, actual=files)


@then("its serializer is a CloudpickleSerializer, for payloads and results")
def default_serializer(world: World) -> None:
    """The class of the default serializer, and that it brings back a call and a value."""
    serializer = _constructed(world).serializer
    expect_equal("the default serializer", type(serializer), CloudpickleSerializer)
    for value in ({"func": len, "args": ([1],), "kwargs": {}, "context": None}, 5):
        expect_equal("what the serializer brings back", serializer.loads(serializer.dumps(value)), value)


class ReversingSerializer(CloudpickleSerializer):
    """A serializer that can be told from the default one: its bytes stand in reverse."""

    def dumps(self, obj: Any) -> bytes:
        """Return the default's bytes, reversed."""
        return super().dumps(obj)[::-1]

    def loads(self, data: bytes) -> Any:
        """Return the object of ``dumps``."""
        return super().loads(data[::-1])


def _constructed(world: World) -> TaskQueue:
    if world.constructed is None:
        raise LookupError("no TaskQueue has been constructed in this scenario")
    return world.constructed
