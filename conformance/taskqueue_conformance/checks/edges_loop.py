"""No method keeps the event loop from running (HANDLES)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from taskqueue import Backend
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._states import LATER, MUCH_LATER
from taskqueue_conformance.lab import NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import expect

STALL_S: Final = 0.04
"""How long the loop may stand still in every try, in seconds: far above what a call of one task can need."""
_PAUSE_S: Final = 0.001
TRIES: Final = 8
"""A busy machine stalls the loop on occasion: only a call that always does is an error."""

CALLS: Final[Mapping[str, Callable[[Backend, int], Awaitable[object]]]] = {
    "enqueue": lambda backend, number: backend.enqueue([new_task(f"fresh {number}")]),
    "claim": lambda backend, _: backend.claim(now=LATER, limit=1, lease_expires_at=MUCH_LATER),
    "extend": lambda backend, number: backend.extend([(f"running {number}", 1)], lease_expires_at=MUCH_LATER),
    "complete": lambda backend, number: backend.complete(f"running {number}", 1, value=b"value", now=NOON),
    "fail": lambda backend, number: backend.fail(f"running {number}", 1, new_failure(retry_at=LATER)),
    "cancel": lambda backend, number: backend.cancel(f"running {number}", now=NOON),
    "expired": lambda backend, _: backend.expired(now=MUCH_LATER, limit=1),
    "next_due": lambda backend, _: backend.next_due(),
    "get": lambda backend, number: backend.get(f"running {number}"),
    "tasks": lambda backend, _: backend.tasks(limit=1),
    "counts": lambda backend, _: backend.counts(),
    "purge": lambda backend, _: backend.purge(finished_before=LATER, limit=1),
    "wait": lambda backend, _: backend.wait(2 * STALL_S),
}
"""Every method that reads or writes tasks, or waits; each of the tries has a task of its own to change."""


async def _longest_stall(call: Awaitable[object]) -> float:
    """Await a call; return how long the loop stood still at most meanwhile, in seconds."""
    loop = asyncio.get_running_loop()
    awaited = asyncio.ensure_future(call)
    longest, last = 0.0, loop.time()
    while not awaited.done():
        await asyncio.sleep(_PAUSE_S)
        longest, last = max(longest, loop.time() - last - _PAUSE_S), loop.time()
    await awaited
    return longest


@check(
    "HANDLES",
    "No method keeps the event loop from running",
    cases=CALLS,
    look="each method: I/O, locks and sleeps belong into a thread, or are awaited",
)
async def the_loop_runs_on(lab: Lab, call: Callable[[Backend, int], Awaitable[object]]) -> None:
    """In several tries, of which the shortest stall counts."""
    backend = await lab.handle()
    await lab.running(backend, *(new_task(f"running {number}") for number in range(TRIES)))
    await lab.put(backend, *(new_task(f"pending {number}") for number in range(TRIES)))
    stalls = []
    for number in range(TRIES):
        stalls.append(await _longest_stall(call(backend, number)))
        if stalls[-1] < STALL_S:
            return
    expect(
        f"how long the event loop stood still during the call, at the least of {TRIES} tries",
        condition=False,
        expected=f"less than {STALL_S} s",
        actual=f"{min(stalls):.3f} s",
    )
