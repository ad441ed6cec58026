"""wait is a hint: it ends on a change, ends in time without one, and blocks nobody (W1)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from taskqueue import Backend, NotConnected
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import LATER
from taskqueue_conformance.lab import NOON, Lab, new_failure, new_task
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import expect, expect_equal

LONG_S: Final = 5.0
"""A wait that nothing should let last so long, in seconds."""
EARLY_S: Final = 4.0
"""What counts as having ended early, in seconds: a backend may look for changes now and then only."""
SHORT_S: Final = 0.05
TRIES: Final = 2
"""A change may be missed on occasion: only a wait that always lasts is an error."""
UNDER_WAY_S: Final = 0.02
"""How long it may take until a wait is under way, in seconds."""


async def _timed(call: Awaitable[object]) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await call
    return loop.time() - began


@check("W1", "wait(0) returns at once", look="wait: zero is a timeout, not an unset value")
async def zero_seconds_are_none(lab: Lab) -> None:
    """Also several times over, and with other calls going on."""
    backend = await lab.handle()
    backend.deadline = LONG_S
    await lab.put(backend, new_task())
    for _ in range(3):
        took = await _timed(asyncio.gather(backend.wait(0), backend.counts(), backend.wait(0)))
        expect("how long wait(0) took", took < EARLY_S, expected="no time", actual=f"{took:.3f} s")


@check("W1", "Without a change, wait ends when its timeout is over, and not always earlier", look="wait: its timeout")
async def a_wait_ends_in_time(lab: Lab) -> None:
    """In seconds on the event loop's clock."""
    backend = await lab.handle()
    backend.deadline = LONG_S
    await lab.put(backend, new_task())
    took = []
    for _ in range(8):
        took.append(await _timed(backend.wait(SHORT_S)))
        if took[-1] >= 0.8 * SHORT_S:
            break
    expect(
        f"how long wait({SHORT_S}) took while nothing changed",
        max(took) >= 0.8 * SHORT_S,
        expected=f"about {SHORT_S} s, at least once in a while",
        actual=", ".join(f"{each:.3f} s" for each in took),
    )
    expect(
        f"how long wait({SHORT_S}) took", max(took) < EARLY_S, expected=f"about {SHORT_S} s", actual=f"{max(took)} s"
    )


CHANGES: Final[Mapping[str, Callable[[Backend, str], Awaitable[object]]]] = {
    "enqueue": lambda backend, name: backend.enqueue([new_task(f"fresh {name}")]),
    "complete": lambda backend, name: backend.complete(name, 1, value=b"", now=NOON),
    "fail": lambda backend, name: backend.fail(name, 1, new_failure()),
    "fail with a retry": lambda backend, name: backend.fail(name, 1, new_failure(retry_at=LATER)),
    "cancel": lambda backend, name: backend.cancel(name, now=NOON),
}
"""The changes that somebody waits for: work to do, or an outcome."""


@check(
    "W1",
    "wait ends early when something changes, through whichever handle",
    cases=CHANGES,
    look="wait: what wakes it, for each call that changes something",
)
async def a_change_ends_a_wait(lab: Lab, change: Callable[[Backend, str], Awaitable[object]]) -> None:
    """Through the handle itself, and through another one."""
    waiter, other = await lab.handle(), await lab.handle()
    for source, backend in {"the same handle": waiter, "another handle": other}.items():
        took = []
        for number in range(TRIES):
            name = f"{source} {number}"
            await lab.running(other, new_task(name))
            await waiter.wait(UNDER_WAY_S)
            waiting = asyncio.ensure_future(_timed(waiter.wait(LONG_S)))
            await asyncio.sleep(UNDER_WAY_S)
            await change(backend, name)
            took.append(await waiting)
            await other.cancel(f"fresh {name}", now=NOON) if await other.get(f"fresh {name}") else None
            if took[-1] < EARLY_S:
                break
        _expect_early(f"wait({LONG_S:g}), during which something changed through {source}", min(took))


@check("W1", "A change right after wait was called is not lost", look="wait: it compares with what was seen before")
async def a_change_at_once_is_not_lost(lab: Lab) -> None:
    """The worker's pattern: start waiting, find nothing to claim, and only then sleep."""
    waiter, other = await lab.handle(), await lab.handle()
    await lab.put(other, new_task("witness", available_at=LATER))
    for source, backend in {"the same handle": waiter, "another handle": other}.items():
        for turns in (1, 2, 4):
            took = []
            for number in range(TRIES + 1):
                waiting = asyncio.ensure_future(_timed(waiter.wait(LONG_S)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await backend.enqueue([new_task(f"{source} {turns} {number}", available_at=LATER)])
                took.append(await waiting)
                if took[-1] < EARLY_S:
                    break
            _expect_early(f"wait({LONG_S:g}), {turns} turns of the loop before a change through {source}", min(took))


@check("W1", "One change ends every wait, on every handle", look="wait: notify all that wait, not one of them")
async def a_change_ends_every_wait(lab: Lab) -> None:
    """Three on one handle and one on another; and the next change ends the next waits."""
    waiter, other = await lab.handle(), await lab.handle()
    await lab.put(other, new_task("witness", available_at=LATER))
    rounds = []
    for number in range(2 * TRIES):
        waits = [waiter.wait(LONG_S), waiter.wait(LONG_S), other.wait(LONG_S), waiter.wait(LONG_S)]
        waiting = asyncio.gather(*map(_timed, waits))
        await asyncio.sleep(UNDER_WAY_S)
        await other.enqueue([new_task(f"task{number}", available_at=LATER)])
        rounds.append(max(await waiting))
        if len([took for took in rounds if took < EARLY_S]) == 2:
            return
    _expect_early("the longest of four waits that one change should have ended", sorted(rounds)[1])


@check("W1", "A wait blocks no other call on its handle", look="wait: it must not hold the connection or a lock")
async def a_wait_blocks_nobody(lab: Lab) -> None:
    """Reads, writes and other waits go on beside it."""
    backend = await lab.handle()
    await lab.put(backend, new_task())
    calls: Mapping[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: backend.get("a"),
        "claim": lambda: backend.claim(now=NOON, limit=1, lease_expires_at=LATER),
        "enqueue": lambda: backend.enqueue([new_task("b", available_at=LATER)]),
        "a short wait": lambda: backend.wait(SHORT_S),
    }
    for name, call in calls.items():
        waiting = asyncio.ensure_future(_quiet(backend.wait(LONG_S)))
        try:
            await asyncio.sleep(UNDER_WAY_S)
            took = await _timed(call())
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        _expect_early(f"{name} beside a wait on the same handle", took)
    expect_equal("get() after calls beside a wait", (await backend.counts())["running"], 1, breaks="LISTING")  # type: ignore[index]  # a StrEnum's value


async def _quiet(call: Awaitable[object]) -> None:
    await call


@check("W1", "close ends a wait early", look="close: it must not wait for the timeout of a wait")
async def close_ends_a_wait(lab: Lab) -> None:
    """And another handle's wait goes on."""
    keeper = await lab.handle()
    await lab.put(keeper, new_task())
    backend = await lab.handle()
    waiting = [asyncio.ensure_future(_timed(_ended(backend))) for _ in range(2)]
    others = asyncio.ensure_future(_quiet(keeper.wait(LONG_S)))
    await asyncio.sleep(UNDER_WAY_S)
    _expect_early("close() of a handle with a wait under way", await _timed(backend.close()))
    for took in await asyncio.gather(*waiting):
        _expect_early("a wait whose handle was closed", took)
    others.cancel()
    (answer,) = await asyncio.gather(others, return_exceptions=True)
    expect(
        "a wait on another handle while one was closed",
        answer is None or isinstance(answer, asyncio.CancelledError),
        expected="no exception",
        actual=repr(answer),
        breaks="HANDLES",
    )


async def _ended(backend: Subject) -> None:
    # As good an end as any: the handle is not connected any more.
    with contextlib.suppress(NotConnected):
        await backend.wait(LONG_S)


@check("W1", "A wait that is cancelled takes no other with it, and the handle works", look="wait: what waiters share")
async def a_cancelled_wait_leaves_others(lab: Lab) -> None:
    """Cancelled before it is under way, while it is, and beside others."""
    backend = await lab.handle()
    await lab.put(backend, new_task("witness", available_at=LATER))
    longest = []
    for turns in (0, 1, 3):
        # Tasks of their own: one that is cancelled before it began still owns its coroutine.
        waits = [asyncio.ensure_future(backend.wait(LONG_S)) for _ in range(3)]
        waiting = [asyncio.ensure_future(_timed(wait)) for wait in waits]
        for _ in range(turns):
            await asyncio.sleep(0)
        waits[1].cancel()
        await asyncio.sleep(UNDER_WAY_S)
        await backend.enqueue([new_task(f"task{turns}", available_at=LATER)])
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        took = []
        for answer in (answers[0], answers[2]):
            if isinstance(answer, BaseException):
                raise answer
            took.append(answer)
        longest.append(max(took))
        await lab.expect_stored(backend, new_task(f"task{turns}", available_at=LATER), when="after a cancelled wait")
    _expect_early("a wait that something ended, beside one that was cancelled,", min(longest))


def _expect_early(what: str, took: float) -> None:
    expect(f"how long {what} took", took < EARLY_S, expected=f"well under {LONG_S:g} s", actual=f"{took:.2f} s")
