"""What a handle is: connect, close and clone, on this event loop, on another one, and in a forked child (HANDLES)."""

import asyncio
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from taskqueue import Backend, NotConnected, Task
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import LATER, claim_all, expect_unchanged, snapshot, stored
from taskqueue_conformance.lab import NOON, Lab, new_failure, new_task
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_refused

CALLS: Final[Mapping[str, Callable[[Backend], Awaitable[object]]]] = {
    "enqueue": lambda backend: backend.enqueue([new_task("forbidden")]),
    "claim": lambda backend: backend.claim(now=LATER, limit=10, lease_expires_at=LATER),
    "extend": lambda backend: backend.extend([("running", 1)], lease_expires_at=LATER),
    "complete": lambda backend: backend.complete("running", 1, value=b"forbidden", now=NOON),
    "fail": lambda backend: backend.fail("running", 1, new_failure(retry_at=LATER)),
    "cancel": lambda backend: backend.cancel("pending", now=NOON),
    "expired": lambda backend: backend.expired(now=LATER, limit=10),
    "next_due": lambda backend: backend.next_due(),
    "get": lambda backend: backend.get("pending"),
    "tasks": lambda backend: backend.tasks(limit=10),
    "counts": lambda backend: backend.counts(),
    "purge": lambda backend: backend.purge(finished_before=LATER, limit=10),
    "wait": lambda backend: backend.wait(0.01),
}
"""Every method that needs a connection, with arguments that would do something in the store of :func:`_inhabited`."""

CHILD_S: Final = 15.0
"""How long a forked child may take, in seconds."""


async def _inhabited(lab: Lab) -> Subject:
    """Return a handle on a store with a task for each of :data:`CALLS` to change."""
    backend = await lab.handle()
    await lab.running(backend, new_task("running"))
    await lab.put(backend, new_task("pending"), new_task("ended"))
    await backend.cancel("ended", now=NOON)
    return backend


async def _expect_all_refused(backend: Backend, when: str) -> None:
    for method, call in CALLS.items():
        await expect_refused(f"{method}() {when}", call(backend), NotConnected, look=f"{method}: is it connected?")


@check("HANDLES", "Before connect, every method raises NotConnected", look="each method: is the handle connected?")
async def nothing_works_before_connect(lab: Lab) -> None:
    """And changes nothing."""
    witness = await _inhabited(lab)
    before = await snapshot(witness, "running", "pending", "ended", "forbidden")
    await _expect_all_refused(lab.unconnected(), "before connect()")
    await _expect_all_refused(lab.adopt(witness.clone()), "of a clone before connect()")
    await expect_unchanged(witness, before, after="calls on a handle that is not connected")


@check("HANDLES", "After close, every method raises NotConnected", look="close: does the handle forget its connection?")
async def nothing_works_after_close(lab: Lab) -> None:
    """And changes nothing."""
    witness, backend = await _inhabited(lab), await lab.handle()
    before = await snapshot(backend, "running", "pending", "ended", "forbidden")
    await backend.close()
    await _expect_all_refused(backend, "after close()")
    await expect_unchanged(witness, before, after="calls on a closed handle")


@check("HANDLES", "From the moment close is called, every method raises NotConnected", look="close: what it does first")
async def nothing_begins_once_close_was_called(lab: Lab) -> None:
    """While close waits for calls in flight, no new ones are let in."""
    witness = await _inhabited(lab)
    before = await snapshot(witness, "running", "pending", "ended", "forbidden")
    for method, call in CALLS.items():
        backend = await lab.handle()
        in_flight = [asyncio.ensure_future(backend.counts()) for _ in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
        try:
            await expect_refused(f"{method}() while close() is running", call(backend), NotConnected)
        finally:
            await asyncio.gather(closing, *in_flight, return_exceptions=True)
    await expect_unchanged(witness, before, after="calls on a handle that was being closed")


@check("HANDLES", "connect is idempotent, and concurrent calls share one attempt", look="connect: when it is connected")
async def connect_may_be_repeated(lab: Lab) -> None:
    """One after another, all at once, and with calls going on; nothing is lost, and one close closes it."""
    backend = await lab.handle()
    await lab.handle()  # a store that is not durable lives on
    await lab.put(backend, new_task("a"))
    before = await snapshot(backend, "a")
    await backend.connect()
    await asyncio.gather(backend.connect(), backend.counts(), backend.connect())
    await expect_unchanged(backend, before, after="connecting again")
    await lab.put(backend, new_task("b"))
    await backend.close()
    await expect_refused("get() after one close() and several connect()", backend.get("a"), NotConnected)

    other = lab.unconnected()
    await asyncio.gather(*(other.connect() for _ in range(5)))
    await lab.put(other, new_task("c"))
    await other.close()
    await expect_refused("get() after one close() and five concurrent connect()", other.get("a"), NotConnected)
    await asyncio.gather(other.connect(), backend.connect())
    for handle in (other, backend):
        await lab.expect_stored(handle, *map(new_task, "abc"), when="after connecting again")


@check("HANDLES", "close is idempotent, and does nothing on a handle that is not connected")
async def close_may_be_repeated(lab: Lab) -> None:
    """Never connected, closed before, or being closed by another call: no exception, and connect works afterwards."""
    backend = await lab.handle()
    await lab.put(backend, new_task("a"))
    never = lab.unconnected()
    await never.close()
    await never.close()
    await asyncio.gather(never.close(), never.close())
    await never.connect()
    await lab.expect_stored(never, new_task("a"), when="through a handle that was closed before it was connected")
    await asyncio.gather(never.close(), never.close(), never.close())
    await never.close()
    await expect_refused("get() after close()", never.get("a"), NotConnected)
    await lab.expect_stored(backend, new_task("a"), when="after another handle was closed repeatedly")


@check("HANDLES", "connect after close works again", look="connect after close: everything must be opened anew")
async def a_closed_handle_connects_again(lab: Lab) -> None:
    """Several times over, with every kind of call in between."""
    keeper, backend = await lab.handle(), lab.unconnected()
    for number in range(3):
        await backend.connect()
        name = f"task{number}"
        await lab.running(backend, new_task(name))
        await backend.complete(name, 1, value=b"done", now=NOON)
        listed, _ = await backend.tasks(limit=10)
        expect_equal("the number of tasks listed", len(listed), number + 1, breaks="D1")
        await backend.wait(0.001)
        await backend.close()
        await expect_refused("get() after close()", backend.get(name), NotConnected)
    expect_equal("the value of the first task", (await stored(keeper, "task0")).value, b"done", breaks="V1")


@check("HANDLES", "Closing one handle leaves the others working", look="close: what handles share")
async def handles_are_closed_one_by_one(lab: Lab) -> None:
    """Clones and strangers alike, whichever is closed first; calls of theirs in flight included."""
    first = await lab.handle()
    await lab.put(first, new_task("a"))
    clone, stranger = lab.adopt(first.clone()), await lab.handle()
    await clone.connect()
    in_flight = asyncio.gather(*(clone.get("a") for _ in range(5)), stranger.enqueue([new_task("b")]))
    await first.close()
    *found, _ = await in_flight
    expect_equal("get() of other handles while one is closed", found, [new_task("a")] * 5)
    for handle in (clone, stranger):
        await lab.expect_stored(handle, new_task("a"), new_task("b"), when="after another handle was closed")
    await clone.close()
    await lab.put(stranger, new_task("c"))
    await first.connect()
    await lab.expect_stored(first, *map(new_task, "abc"), when="after connecting again")


@check("HANDLES", "clone returns a new, unconnected handle on the same store", look="clone: what it copies")
async def a_clone_shares_the_store(lab: Lab) -> None:
    """From a handle that is connected, one that is not, one that was closed, and from a clone; and from any thread."""
    backend = await lab.handle()
    await lab.put(backend, new_task("a"))
    unconnected, closed = lab.unconnected(), await lab.handle()
    await closed.close()
    clones = {
        "a connected handle": backend.clone(),
        "an unconnected handle": unconnected.clone(),
        "a closed handle": closed.clone(),
        "a clone": backend.clone().clone(),
        "a connected handle in another thread": await asyncio.to_thread(backend.clone),
        "an unconnected handle in another thread": await asyncio.to_thread(unconnected.clone),
    }
    for number, (source, clone) in enumerate(clones.items()):
        lab.adopt(clone)
        what = f"the clone of {source}"
        expect(what, clone.backend is not backend.backend, expected="a new object", actual="the handle itself")
        await expect_refused(f"get() of {what} before connect()", clone.get("a"), NotConnected)
        await clone.connect()
        await lab.expect_stored(clone, new_task("a"), when=f"through {what}")
        mine = new_task(f"clone{number}")
        await clone.enqueue([mine])
        await lab.expect_stored(backend, mine, when=f"enqueued through {what}")
        await clone.close()
    await expect_refused("get() of a handle whose clone was connected", unconnected.get("a"), NotConnected)
    await lab.expect_stored(backend, new_task("a"), when="after its clones were closed")


@check("HANDLES", "Stores with different names share nothing", look="the factory: does it use the store's name?")
async def stores_are_isolated(lab: Lab) -> None:
    """The same ids in two stores, claimed, counted, listed and purged apart."""
    mine, other = await lab.handle(), await lab.handle(store=lab.new_store())
    await lab.put(mine, new_task("a"), new_task("b"))
    expect_equal("get() of another store's task", await other.get("a"), None)
    listed, _ = await other.tasks(limit=10)
    expect_equal("tasks() of another store", list(listed), [])
    expect_equal("counts() of another store", sum((await other.counts()).values()), 0)
    expect_equal("next_due() of another store", await other.next_due(), None)
    claimed = await other.claim(now=LATER, limit=10, lease_expires_at=LATER)
    expect_equal("a claim in another store", list(claimed), [])
    twin = new_task("a", payload=b"the other one", max_retries=1)
    await lab.put(other, twin)
    await claim_all(lab, other, ["a"])
    await other.complete("a", 1, value=b"", now=NOON)
    expect_equal("purge() in another store", await other.purge(finished_before=LATER, limit=10), 1, breaks="G1")
    await lab.expect_stored(mine, new_task("a"), new_task("b"), when="after another store's task was purged")


@check("HANDLES", "close waits for calls in flight", look="close: calls that have begun are let finish")
async def close_waits_for_calls_in_flight(lab: Lab) -> None:
    """Each has finished, and is stored; or it came too late, and then nothing is."""
    witness = await lab.handle()
    await lab.put(witness, new_task("witness", available_at=LATER))
    for turns in (0, 1, 2, 5):
        backend = await lab.handle()
        tasks = [new_task(f"after{turns}_{number}") for number in range(8)]
        calls = [asyncio.ensure_future(backend.enqueue([task])) for task in tasks]
        reads = [asyncio.ensure_future(backend.get("witness")) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await backend.close()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for task, answer in zip(tasks, answers, strict=True):
            what = f"enqueue() begun {turns} turns of the loop before close()"
            _expect_finished_or_refused(what, answer)
            wanted = None if isinstance(answer, NotConnected) else task
            expect_equal(
                f"what {what} stored, having answered {answer!r}", await witness.get(task.id), wanted, breaks="D1"
            )
        for read in await asyncio.gather(*reads, return_exceptions=True):
            _expect_finished_or_refused(f"get() begun {turns} turns of the loop before close()", read)


def _expect_finished_or_refused(what: str, answer: object) -> None:
    if isinstance(answer, Violation):
        raise answer
    expect(
        what,
        isinstance(answer, NotConnected) or not isinstance(answer, BaseException),
        expected="its answer, or NotConnected",
        actual=answer,
    )


@check("HANDLES", "On another event loop every method raises NotConnected, until connect opens afresh there")
async def another_loop_connects_for_itself(lab: Lab) -> None:
    """The handle was connected here; there it is refused, then connected, used and closed; and works here again."""
    witness, backend = await _inhabited(lab), await lab.handle()
    before = await snapshot(backend, "running", "pending", "ended", "forbidden")

    async def refused() -> None:
        await _expect_all_refused(backend, "on another event loop")

    async def used(name: str) -> None:
        await backend.connect()
        try:
            await lab.put(backend, new_task(name, available_at=LATER))
        finally:
            await backend.close()

    await asyncio.to_thread(asyncio.run, refused())
    await expect_unchanged(witness, before, after="calls on another event loop")
    await backend.close()
    await asyncio.to_thread(asyncio.run, used("there"))
    await lab.expect_stored(witness, new_task("there", available_at=LATER), when="enqueued on another event loop")
    await asyncio.to_thread(asyncio.run, refused())
    await asyncio.to_thread(asyncio.run, used("there_again"))
    await expect_refused("get() after close()", backend.get("pending"), NotConnected)
    await backend.connect()
    await lab.put(backend, new_task("here", available_at=LATER))


@check("HANDLES", "connect on another event loop leaves the first one's resources alone", look="connect: one per loop")
async def another_loop_takes_nothing_away(lab: Lab) -> None:
    """Connected on both at a time; once the other is done, the handle works here."""
    backend = await lab.handle()
    await lab.put(backend, new_task("here"))
    in_flight = asyncio.gather(*(backend.get("here") for _ in range(5)))

    async def used() -> Task | None:
        await backend.connect()
        try:
            await backend.enqueue([new_task("there")])
            return await backend.get("here")
        finally:
            await backend.close()

    expect_equal("get() on the other loop", await asyncio.to_thread(asyncio.run, used()), new_task("here"))
    expect_equal("calls in flight on the first loop", await in_flight, [new_task("here")] * 5)
    await backend.connect()
    await lab.expect_stored(backend, new_task("here"), new_task("there"), when="on the first loop")


@check("HANDLES", "Handles on several event loops share a store", look="what handles in one process share")
async def loops_share_a_store(lab: Lab) -> None:
    """A worker's heartbeat runs in a thread of its own, with a clone."""
    backend = await lab.handle()
    await lab.running(backend, new_task())
    clone = lab.adopt(backend.clone())

    async def heartbeat() -> list[tuple[str, int]]:
        await clone.connect()
        try:
            return [*await clone.extend([("a", 1)], lease_expires_at=LATER)]
        finally:
            await clone.close()

    beats = await asyncio.gather(asyncio.to_thread(asyncio.run, heartbeat()), backend.counts())
    expect_equal("extend() through a clone on another event loop", beats[0], [("a", 1)])
    expect_equal("the lease after it", (await stored(backend, "a")).lease_expires_at, LATER)


@check(
    "HANDLES",
    "In a forked child every method raises NotConnected, until connect opens afresh there",
    needs=("multiprocess",),
    look="the process id, remembered by connect and compared in each call",
)
async def a_forked_child_connects_for_itself(lab: Lab) -> None:
    """The child then works on the same store, and the parent's handle goes on as if nothing had happened."""
    backend = await lab.handle()
    await lab.put(backend, new_task("parent"))
    if not hasattr(os, "fork") or sys.platform == "darwin":  # where forking this process is not safe, or cannot be done
        lab.notes["fork"] = f"not tried on {sys.platform}"
        return

    async def child() -> None:
        for method, call in CALLS.items():
            await expect_refused(f"{method}() in a forked child", call(backend), NotConnected)
        await backend.connect()
        await lab.expect_stored(backend, new_task("parent"), when="in a forked child that connected")
        await backend.enqueue([new_task("child")])
        await backend.close()

    report = await asyncio.to_thread(_in_forked_child, child)
    expect("a forked child", report == "", expected="NotConnected, and a working handle after connect", actual=report)
    await lab.expect_stored(backend, new_task("parent"), new_task("child"), when="in the parent, after the child ended")
    await lab.put(backend, new_task("parent_again"))


def _in_forked_child(main: Callable[[], Awaitable[None]]) -> str:
    """Fork, run ``main`` on a new event loop in the child, and return what went wrong there, or nothing."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of drivers: they are not used in the child
        pid = os.fork()
    if pid == 0:
        _child(main, writing)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], CHILD_S)
        report = os.read(reading, 65_536).decode() if ready else f"!no answer within {CHILD_S:g} s"
    finally:
        os.close(reading)
        _reap(pid)
    if report == "ok":
        return ""
    return report.removeprefix("!") or "it ended without a word"


def _child(main: Callable[[], Awaitable[None]], writing: int) -> None:
    report = "!it could not be started"
    try:
        asyncio.run(_coroutine(main))
        report = "ok"
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        report = f"!{type(error).__name__}: {error}"
    finally:
        os.write(writing, report.encode(errors="replace")[:65_536])
        os._exit(0)


async def _coroutine(main: Callable[[], Awaitable[None]]) -> None:
    await main()


def _reap(pid: int) -> None:
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
