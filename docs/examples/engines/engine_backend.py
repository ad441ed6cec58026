"""What the adapters in this folder share: how a handle is connected, and how a task is written into a message.

An adapter presents an existing queue through the contract of ``taskqueue/backend.py``, so that the conformance suite
can be run against it. Four rules keep the adapters honest:

* What changes the store goes through the engine's own API, one call for one step. An adapter never repairs with SQL of
  its own what the engine does not do.
* What only looks may read the engine's tables where its API has no such look-up; each place says so.
* What a worker would keep in its own memory, because the engine has no place for it, the handle that claimed keeps in
  its memory: the end of a lease, for one. Other handles do not see it, and it is gone with the handle.
* What the engine has no counterpart for raises :class:`NotInEngine`; what it does otherwise is left as it does it.

An engine that reads a clock of its own is given the caller's ``now`` for the time of a call where it has a place for
that; each adapter says where.
"""

import asyncio
import base64
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from taskqueue import NotConnected, Task
from taskqueue_conformance.harness import BaseHarness

T = TypeVar("T")
_FOLDER: Final = "TASKQUEUE_ENGINES_FOLDER"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class NotInEngine(NotImplementedError):
    """The contract asks for something that the engine has no counterpart for."""


@dataclass
class _Session:
    """What ``connect`` makes and ``close`` ends, on one event loop of one process."""

    engine: "asyncio.Future[Any]"
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    closed: "asyncio.Future[None] | None" = None


class EngineBackend:
    """A handle whose calls follow each other. A call that is cancelled runs to its end before the next begins.

    Args:
        store: The name of the store; handles with the same name share it.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], _Session] = {}

    async def open(self, thread: ThreadPoolExecutor) -> Any:
        """Return the engine's own object for this store; ``thread`` is the one in which blocking calls run."""
        raise NotImplementedError

    async def shut(self, engine: Any, thread: ThreadPoolExecutor) -> None:
        """Release what ``open`` returned."""
        raise NotImplementedError

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same store."""
        return type(self)(self._store)

    async def connect(self) -> None:
        """Open the engine. Concurrent calls share one attempt."""
        session = self._sessions.get(_here())
        if session is not None and session.closing.is_set():
            await self.close()
            session = self._sessions.get(_here())
        if session is None:
            thread = ThreadPoolExecutor(1)
            session = _Session(asyncio.ensure_future(self.open(thread)), thread)
            self._sessions[_here()] = session
        try:
            await asyncio.shield(session.engine)
        except Exception:
            self._sessions.pop(_here(), None)
            session.thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Let calls in flight finish, end every ``wait``, and release the engine."""
        session = self._sessions.get(_here())
        if session is None:
            return
        if session.closed is None:
            session.closing.set()
            session.closed = asyncio.ensure_future(self._release(session))
        await asyncio.shield(session.closed)

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name; a hint is no deadline
        """Sleep, or end early when the handle is closed.

        The adapters leave the engines' notifications alone: that a change does not end this is the adapter's gap.
        """
        closing = self._session().closing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await closing.wait()

    async def run(self, step: Callable[[Any], Awaitable[T]]) -> T:
        """Await ``step(engine)`` when it is its turn."""
        session = self._session()

        async def in_turn() -> T:
            async with session.turn:
                return await step(session.engine.result())

        return await asyncio.shield(asyncio.ensure_future(in_turn()))

    async def run_blocking(self, step: Callable[[Any], T]) -> T:
        """Run ``step(engine)`` in the handle's thread when it is its turn."""
        session = self._session()
        loop = asyncio.get_running_loop()
        return await self.run(lambda engine: loop.run_in_executor(session.thread, step, engine))

    def missing(self, what: str) -> NotInEngine:
        """Return the exception to raise, if the handle is connected: that comes first."""
        self._session()
        return NotInEngine(what)

    def _session(self) -> _Session:
        session = self._sessions.get(_here())
        if session is None or session.closing.is_set() or not session.engine.done():
            raise NotConnected(f"{self!r} is not connected in this process on this event loop: await connect() first")
        return session

    async def _release(self, session: _Session) -> None:
        async with session.turn:
            await self.shut(await session.engine, session.thread)
            session.thread.shutdown()
            if self._sessions.get(_here()) is session:
                del self._sessions[_here()]


class EngineHarness(BaseHarness):
    """Stores in a directory of the run's own."""

    def start(self) -> Mapping[str, str]:
        """Make the directory."""
        return {_FOLDER: tempfile.mkdtemp(prefix="taskqueue-engines-")}

    def stop(self) -> None:
        """Remove it."""
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)


def folder() -> Path:
    """Return the directory of this run."""
    return Path(os.environ.get(_FOLDER, tempfile.gettempdir()))


def to_fields(task: Task) -> dict[str, Any]:
    """Return what an engine carries in a message for us, as plain JSON: what never changes, and ``available_at``.

    Raises:
        NotInEngine: The task has a history: an engine counts attempts by itself, from nothing.
    """
    if task.attempts:
        raise NotInEngine("a task that comes with attempts: the engine counts them itself, from 0")
    return {
        "id": task.id,
        "payload": base64.b64encode(task.payload).decode(),
        "enqueued_at": to_microseconds(task.enqueued_at),
        "available_at": to_microseconds(task.available_at),
        "max_retries": task.max_retries,
    }


def from_fields(fields: Mapping[str, Any], **state: Any) -> Task:
    """Return the task of a message, in the state that the engine says it has; its instants in UTC."""
    utc = {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in state.items()}
    return Task(
        **{
            "id": fields["id"],
            "payload": base64.b64decode(fields["payload"]),
            "enqueued_at": from_microseconds(fields["enqueued_at"]),
            "available_at": from_microseconds(fields["available_at"]),
            "max_retries": fields["max_retries"],
            **utc,
        }
    )


def to_microseconds(instant: datetime) -> int:
    """Return an instant as microseconds since 1970."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds: int) -> datetime:
    """Return the instant of so many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()
