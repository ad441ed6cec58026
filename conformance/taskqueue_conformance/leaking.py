"""The program of a process that does the same many times over, and counts what the process holds before and after."""

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from taskqueue import Backend, StaleClaim, TaskExists, TaskNotFound
from taskqueue_conformance.child import Raised
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import LEASE, NOON, new_failure, new_task

_SETTLING_S: Final = 0.02
_LONG_AGO: Final = NOON - LEASE
_OPEN_FILES: Final = next((path for path in map(Path, ("/proc/self/fd", "/dev/fd")) if path.is_dir()), None)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds.

    Attributes:
        descriptors: Open file descriptors, or None where the platform does not tell.
        threads: Threads of Python's.
        tasks: Tasks of the event loop.
    """

    descriptors: int | None
    threads: int
    tasks: int


def count(harness: Harness, channel: Connection, store: str, kind: str, cycles: int) -> None:
    """Run ``cycles`` cycles of a kind; send the holdings after the first tenth of them and after the last."""
    asyncio.run(_count(harness, channel, store, CYCLES[kind], cycles))


async def _count(
    harness: Harness, channel: Connection, store: str, cycle: "Callable[[_Surroundings], Awaitable[None]]", cycles: int
) -> None:
    surroundings = _Surroundings(harness, store)
    try:
        await surroundings.begin()
        for number in range(cycles):
            if number == cycles // 10:
                before = await _holdings()
            await cycle(surroundings)
        channel.send((before, await _holdings()))
    except Exception as error:  # noqa: BLE001 - the parent decides what it means
        channel.send(Raised(type(error).__name__, str(error)))
    await surroundings.end()


async def _holdings() -> Holdings:
    await asyncio.sleep(_SETTLING_S)
    gc.collect()
    return Holdings(
        descriptors=None if _OPEN_FILES is None else len(os.listdir(_OPEN_FILES)),  # noqa: PTH208 - no paths are needed
        threads=threading.active_count(),
        tasks=len(asyncio.all_tasks()),
    )


class _Surroundings:
    """A handle that stays open, on a store with a task that is running and one that has ended."""

    def __init__(self, harness: Harness, store: str) -> None:
        self.harness = harness
        self.store = store
        self.open = harness.backend(store)
        self.reopened = harness.backend(store)
        self.turns = 0

    async def begin(self) -> None:
        await self.open.connect()
        await self.open.enqueue([new_task("running"), new_task("ended")])
        await self.open.claim(now=NOON, limit=2, lease_expires_at=NOON + LEASE)
        await self.open.cancel("ended", now=NOON)

    async def end(self) -> None:
        await self.open.close()
        await self.reopened.close()


async def _use(backend: Backend) -> None:
    await backend.connect()
    await backend.get("running")
    await backend.extend([("running", 1)], lease_expires_at=NOON + LEASE)
    await backend.close()


async def _new_handle(here: _Surroundings) -> None:
    await _use(here.open.clone())
    await _use(here.harness.backend(here.store))


async def _same_handle(here: _Surroundings) -> None:
    await _use(here.reopened)


async def _wait(here: _Surroundings) -> None:
    await here.open.wait(0)
    waiting = asyncio.ensure_future(here.open.wait(60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])


async def _returned(here: _Surroundings) -> None:
    await here.open.tasks(limit=1)
    await here.open.expired(now=NOON, limit=10)
    await here.open.claim(now=NOON, limit=1, lease_expires_at=NOON)
    await here.open.enqueue([new_task(name) for name in "abc"])
    await here.open.claim(now=NOON, limit=3, lease_expires_at=NOON + LEASE)
    await here.open.complete("a", 1, value=b"", now=_LONG_AGO)
    await here.open.fail("b", 1, new_failure(failed_at=_LONG_AGO))
    await here.open.cancel("c", now=_LONG_AGO)
    await here.open.purge(finished_before=NOON, limit=3)


async def _refused(here: _Surroundings) -> None:
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: here.open.enqueue([new_task("new"), new_task("running")]),
        lambda: here.open.complete("running", 2, value=b"", now=NOON),
        lambda: here.open.fail("running", 1, new_failure(failed_at=NOON), if_expired=True),
        lambda: here.open.fail("ended", 1, new_failure()),
        lambda: here.open.complete("unknown", 1, value=b"", now=NOON),
        lambda: here.open.cancel("unknown", now=NOON),
    )
    for call in calls:
        with suppress(StaleClaim, TaskExists, TaskNotFound):
            await call()


async def _cancelled(here: _Surroundings) -> None:
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: here.open.get("running"),
        lambda: here.open.tasks(limit=1),
        lambda: here.open.extend([("running", 1)], lease_expires_at=NOON + LEASE),
        lambda: here.open.claim(now=NOON, limit=1, lease_expires_at=NOON),
        lambda: here.open.complete("running", 2, value=b"", now=NOON),
        lambda: here.open.cancel("ended", now=NOON),
    )
    here.turns = here.turns % 3 + 1
    for call in calls:
        running = asyncio.ensure_future(call())
        for _ in range(here.turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await here.open.get("running")


CYCLES: Final[Mapping[str, Callable[[_Surroundings], Awaitable[None]]]] = {
    "new handles connect and close": _new_handle,
    "the same handle connects and closes": _same_handle,
    "a wait ends, and another one is cancelled": _wait,
    "calls that return": _returned,
    "refused calls": _refused,
    "cancelled calls": _cancelled,
}
"""What can be done over and over, by its name."""
