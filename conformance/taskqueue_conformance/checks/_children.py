"""What the checks with child processes share: answers, looks at a store, and a life of calls."""

from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from taskqueue import TaskQueueError, TaskStatus
from taskqueue_conformance.child import Call, Raised, Seen
from taskqueue_conformance.children import Child
from taskqueue_conformance.lab import LEASE, MICROSECOND, Lab, new_failure, new_task
from taskqueue_conformance.model import Model
from taskqueue_conformance.violation import Violation, expect_equal, expect_task, shown

_HOUR: Final = timedelta(hours=1)


async def answer(pending: Awaitable[Any], what: str, *, breaks: str | None = None, look: str | None = None) -> Any:
    """Return what a child says; an exception in the place of an answer is a violation."""
    said = await pending
    if isinstance(said, Raised):
        raise Violation(what, expected="no exception", actual=shown(str(said)), breaks=breaks, look=look)
    return said


async def witness(lab: Lab) -> None:
    """See a write come back, on a store of its own: on the lab's store only the children shall make calls."""
    await lab.put(await lab.handle(store=lab.new_store()), new_task())


def apply(model: Model, call: Call) -> Any:
    """Make a call on the model, and return its answer; a refusal is returned as a child would tell it."""
    if call.method == "purge":
        gone = model.purgeable(finished_before=call.options["finished_before"])[: call.options["limit"]]
        model.forget(task.id for task in gone)
        return len(gone)
    try:
        return getattr(model, call.method)(*call.args, **call.options)
    except TaskQueueError as refusal:
        return Raised(type(refusal).__name__, str(refusal))


def expect_answer(call: Call, said: Any, expected: Any, *, where: str, breaks: str) -> None:
    """Compare a child's answer with the model's; of a refusal only the kind."""
    what = f"the answer of {call.method}() {where}"
    if isinstance(said, Raised) or isinstance(expected, Raised):
        kinds = [each.kind if isinstance(each, Raised) else "an answer" for each in (said, expected)]
        actual = shown(str(said)) if isinstance(said, Raised) else f"the answer {shown(said)}"
        if kinds[0] != kinds[1]:
            raise Violation(what, expected=kinds[1], actual=actual, breaks=breaks)
    elif isinstance(expected, list):
        expect_equal(what, list(said), expected, breaks=breaks)
    else:
        expect_equal(what, said, expected, breaks=breaks)


def expect_seen(seen: Seen, model: Model, *, where: str, breaks: str) -> None:
    """Compare all that a child saw with the model."""
    expect_equal(f"the ids of the tasks {where}", sorted(seen.tasks), sorted(model.stored), breaks=breaks)
    for task_id, task in model.stored.items():
        expect_task(f"task {task_id!r} {where}", seen.tasks[task_id], task, breaks=breaks)
    expect_equal(f"counts() {where}", dict(seen.counts), model.counts(), breaks=breaks)
    running = sorted(task.id for task in model.stored.values() if task.status is TaskStatus.RUNNING)
    expect_equal(f"the ids in expired() at the end of time {where}", sorted(seen.expired), running, breaks=breaks)
    expect_equal(f"next_due() {where}", seen.next_due, model.next_due(), breaks=breaks)


async def look(child: Child, *, what: str) -> Seen:
    """Return all that a child can read."""
    seen: Seen = await answer(child.ask("look", what=what), what)
    return seen


def life(start: datetime) -> Sequence[Call]:
    """Return calls around ``start`` that use every method that writes, some of them refused."""

    def claim(now: datetime, limit: int) -> Call:
        return Call("claim", (), {"now": now, "limit": limit, "lease_expires_at": now + LEASE})

    after = start + LEASE
    tasks = [
        new_task(f"{number}", enqueued_at=start - _HOUR, available_at=start + number * MICROSECOND, max_retries=2)
        for number in range(6)
    ]
    retry = new_failure(1, failed_at=after, retry_at=start + _HOUR)
    return [
        claim(start, 10),
        Call("enqueue", (tasks,)),
        claim(start - MICROSECOND, 10),
        claim(start + 3 * MICROSECOND, 10),
        Call("extend", ([("0", 1), ("1", 1), ("5", 1)],), {"lease_expires_at": start + _HOUR}),
        Call("complete", ("0", 1), {"value": b"value", "now": after}),
        Call("complete", ("0", 1), {"value": b"again", "now": after}),
        Call("fail", ("1", 1, retry), {"if_expired": True}),
        Call("fail", ("1", 1, retry), {}),
        Call("fail", ("2", 1, retry), {"if_expired": True}),
        # Each ends at an instant of its own: which of several that ended together is purged first is free.
        Call("fail", ("3", 1, new_failure(1, failed_at=after + MICROSECOND)), {}),
        Call("cancel", ("4",), {"now": after + 2 * MICROSECOND}),
        claim(start + _HOUR - MICROSECOND, 1),
        claim(start + _HOUR, 1),
        Call("fail", ("1", 2, new_failure(2, failed_at=start + 2 * _HOUR, retry_at=start + 3 * _HOUR)), {}),
        Call("enqueue", ([new_task("0", available_at=start)],)),
        Call("purge", (), {"finished_before": after + 3 * MICROSECOND, "limit": 1}),
        Call("purge", (), {"finished_before": after + 3 * MICROSECOND, "limit": 10}),
        Call("enqueue", ([new_task("0", enqueued_at=start, available_at=start)],)),
        claim(start, 10),
    ]
