"""The program of a process that races with others for the tasks of one store, and writes down what it did."""

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from taskqueue import Backend, StaleClaim, Task, TaskNotFound
from taskqueue_conformance.child import Raised
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import LEASE, NOON, new_failure

_DUE: Final = NOON + timedelta(hours=1)
_MOST: Final = 6
_PAUSE_S: Final = 0.002
_IDLE_S: Final = 5.0


class Event(NamedTuple):
    """A call on one task.

    Attributes:
        kind: ``claim``, ``complete``, ``fail``, ``recover`` or ``cancel``.
        task_id: The task.
        attempt: The attempt that was claimed or ended; 0 for a cancellation.
        began: When the call began, on the clock that all processes of a machine share, in seconds.
        ended: When it had returned.
        task: The task that a claim or a failure returned, or None.
        done: Whether the call did what it was for; False if it was refused.
    """

    kind: str
    task_id: str
    attempt: int
    began: float
    ended: float
    task: Task | None
    done: bool


def race(harness: Harness, channel: Connection, store: str, name: str, ids: Sequence[str]) -> None:
    """Claim and end tasks until none is left; then send the list of events, or what was raised."""
    asyncio.run(_race(harness.backend(store), channel, name, ids))


async def _race(backend: Backend, channel: Connection, name: str, ids: Sequence[str]) -> None:
    racer = _Racer(backend, name, ids)
    try:
        await backend.connect()
        channel.send("ready")
        await asyncio.to_thread(channel.recv)  # the barrier
        await racer.run()
    except Exception as error:  # noqa: BLE001 - the parent decides what it means
        channel.send(Raised(type(error).__name__, str(error)))
    else:
        channel.send(racer.events)
    await backend.close()


class _Racer:
    def __init__(self, backend: Backend, name: str, ids: Sequence[str]) -> None:
        self.events: list[Event] = []
        self._backend = backend
        self._name = name
        self._ids = ids
        self._rng = random.Random(name)  # noqa: S311 - repeatable on purpose

    async def run(self) -> None:
        """Go on until every task has ended, or nothing could be claimed for a while."""
        deadline = time.monotonic() + _IDLE_S
        while time.monotonic() < deadline:
            claimed = await self._claim()
            if claimed:
                deadline = time.monotonic() + _IDLE_S
            others = [self._cancel()] if self._rng.random() < 0.2 else []  # noqa: PLR2004 - a share
            others += [self._recover()] if self._rng.random() < 0.2 else []  # noqa: PLR2004 - a share
            await asyncio.gather(*(self._end(task) for task in claimed), *others)
            if not claimed:
                counts = await self._backend.counts()
                if not any(count for status, count in counts.items() if not status.ended):
                    return
                await asyncio.sleep(_PAUSE_S)

    async def _claim(self) -> Sequence[Task]:
        began = time.monotonic()
        limit = self._rng.randint(1, _MOST)
        claimed = await self._backend.claim(now=_DUE, limit=limit, lease_expires_at=NOON + LEASE)
        ended = time.monotonic()
        self.events += [Event("claim", task.id, task.attempts, began, ended, task, done=True) for task in claimed]
        return claimed

    async def _end(self, task: Task) -> None:
        draw = self._rng.random()
        if draw < 0.5:  # noqa: PLR2004 - a share
            value = f"{self._name}, {task.id}, attempt {task.attempts}".encode()
            call = self._backend.complete(task.id, task.attempts, value=value, now=_DUE)
            await self._record("complete", task.id, task.attempts, call)
        else:
            retry_at = NOON if draw < 0.9 else None  # noqa: PLR2004 - a share
            await self._fail("fail", task, retry_at=retry_at)

    async def _fail(self, kind: str, task: Task, **changes: Any) -> None:
        recovery = {"if_expired": True} if kind == "recover" else {}
        error = f"{kind} by {self._name}, {task.id}, attempt {task.attempts}"
        failure = new_failure(task.attempts, error=error, failed_at=_DUE, **changes)
        await self._record(
            kind, task.id, task.attempts, self._backend.fail(task.id, task.attempts, failure, **recovery)
        )

    async def _recover(self) -> None:
        for task in await self._backend.expired(now=_DUE, limit=1):
            await self._fail("recover", task, retry_at=NOON)

    async def _cancel(self) -> None:
        task_id = self._rng.choice(self._ids)
        await self._record("cancel", task_id, 0, self._backend.cancel(task_id, now=_DUE))

    async def _record(self, kind: str, task_id: str, attempt: int, call: Any) -> None:
        began = time.monotonic()
        said: Any = None
        try:
            said = await call
            done = said is not False
        except (StaleClaim, TaskNotFound):
            done = False
        task = said if isinstance(said, Task) else None
        self.events.append(Event(kind, task_id, attempt, began, time.monotonic(), task, done=done))
