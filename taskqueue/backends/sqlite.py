"""The default store: an SQLite file, shared by many processes of one machine."""

import asyncio
import os
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from taskqueue.backends import _sqlite_operations as operations
from taskqueue.backends._sqlite_file import Identity, StoreFile, Synchronous
from taskqueue.backends._sqlite_session import Session
from taskqueue.backends._sqlite_transactional import enqueue_on
from taskqueue.errors import InvalidArgument, NotConnected
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

DEFAULT_PATH: Final = "taskqueue.db"
"""The file that is used where none is named, in the working directory."""


class SQLiteBackend:
    """A handle on a store in an SQLite file.

    It fulfils the whole contract of :class:`~taskqueue.backend.Backend`: durable, and shared by any number of handles
    and processes on one machine (SQLite's write-ahead log does not work over a network). Concurrent calls on a handle
    share one transaction, so throughput grows with concurrency. A handle that is connected on several event loops has
    a connection for each.

    A file that is missing is created by ``connect``, readable and writable by its owner only, and its absolute path
    is logged at level INFO by the logger ``taskqueue.backends.sqlite``. The directory must exist.

    A call raises StoreUnavailable, and acknowledges nothing, once the file, its log (``-wal``) or the log's index
    (``-shm``) has been removed or replaced while it was open. What was acknowledged before a log was removed is kept
    by closing all handles on it. Move or restore a store only while nobody has it open.

    Args:
        path: The file. A relative path is resolved now, against the working directory.
        synchronous: ``"FULL"`` keeps what was acknowledged even if the machine loses power. With ``"NORMAL"`` that
            may take back the last acknowledged calls; a crash of processes takes nothing.
        busy_timeout: How many seconds a call waits for a lock that another process holds, before it raises
            StoreUnavailable.

    Raises:
        InvalidArgument: The path is empty, ``:memory:`` or has a NUL in it; ``synchronous`` or ``busy_timeout`` has
            another value.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 30.0,
    ) -> None:
        given = os.fspath(path)
        if given == ":memory:":
            raise InvalidArgument("path", given, "a store in memory is MemoryBackend, or memory:// as a URL")
        if not given or "\0" in given:
            raise InvalidArgument("path", given, "name a file, for example taskqueue.db")
        if synchronous not in get_args(Synchronous):
            raise InvalidArgument("synchronous", synchronous, "pass 'FULL' or 'NORMAL'")
        if not 0 <= busy_timeout <= _LONGEST_TIMEOUT:
            raise InvalidArgument("busy_timeout", busy_timeout, f"pass seconds from 0 to {_LONGEST_TIMEOUT}")
        self._path = str(Path(given).absolute())
        self._synchronous: Synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._pid = os.getpid()
        self._identity: Identity | None = None
        self._origin: weakref.ref[SQLiteBackend] | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return a handle for ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with ``?synchronous=NORMAL``.

        A ``?``, ``#`` or ``%`` in the path is written ``%3F``, ``%23`` or ``%25``.

        Raises:
            InvalidArgument: The URL has another form or another parameter.
        """
        parts = urlsplit(url)
        if parts.scheme != "sqlite" or parts.netloc or parts.fragment or len(parts.path) < len("/a"):
            raise InvalidArgument("url", url, _URL_ADVICE)
        try:
            parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:
            raise InvalidArgument("url", url, _URL_ADVICE) from None
        synchronous: Synchronous = "FULL"
        for name, value in parameters:
            if name != "synchronous" or len(parameters) > 1:
                raise InvalidArgument("url", url, "the only parameter is synchronous=FULL or synchronous=NORMAL")
            if value not in {"FULL", "NORMAL"}:
                raise InvalidArgument("url", url, "write synchronous=FULL or synchronous=NORMAL")
            synchronous = "FULL" if value == "FULL" else "NORMAL"
        return cls(unquote(parts.path[1:]), synchronous=synchronous)

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        return self._path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same file, with the same settings.

        While this handle is open, the new one creates no file and opens no other one: its ``connect`` raises
        StoreUnavailable if the file was removed or replaced.
        """
        other = type(self)(self._path, synchronous=self._synchronous, busy_timeout=self._busy_timeout)
        other._origin = weakref.ref(self)  # noqa: SLF001 - of its own class
        return other

    async def connect(self) -> None:
        """Open the file, creating it if it is missing. See :meth:`taskqueue.backend.Backend.connect`.

        Raises:
            IncompatibleStore: What is there is no taskqueue's file, or a newer one's. It has not been touched.
            StoreUnavailable: The file cannot be opened; the message says why.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._sessions = {}  # the parent's; _sqlite_session keeps them from being collected
        loop = asyncio.get_running_loop()
        await self._reap_closed_loops()
        while (session := self._sessions.get(loop)) is not None and session.closing is not None:
            await asyncio.wait((session.closing,))
            self._forget(loop, session)
        if session is None:
            if not self._sessions:
                self._identity = None
            session = self._sessions[loop] = Session(self._path, self._open, syncs=self._synchronous == "FULL")
        try:
            await session.connected()
        finally:
            if session.closing is not None and session.closing.done():
                self._forget(loop, session)

    async def close(self) -> None:
        """Answer the calls under way, end every ``wait``, and close the file. Idempotent; the data stays."""
        session = self._sessions.get(asyncio.get_running_loop()) if self._pid == os.getpid() else None
        if session is not None:
            closing = session.close()
            await asyncio.wait((closing,))
            self._forget(asyncio.get_running_loop(), session)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks, all of them or none. See :meth:`taskqueue.backend.Backend.enqueue`."""
        session = self._session()
        if tasks:
            await session.run(operations.enqueue(tasks))

    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks in the application's transaction. See :class:`taskqueue.backend.TransactionalBackend`.

        While that transaction is open, SQLite lets nobody else write to the file: keep it short.

        Args:
            connection: A connection of aiosqlite or sqlite3 to this file, whose tables the application has put there
                beside the queue's. One of sqlite3 is used in the thread that calls, and blocks it where it has to wait
                for a lock.
            tasks: As for ``enqueue``.
        """
        self._session()
        if tasks:
            await enqueue_on(connection, self._path, tasks)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Take up to ``limit`` due tasks. See :meth:`taskqueue.backend.Backend.claim`."""
        session = self._session()
        if not limit:
            return []
        return await session.run(operations.claim(now=now, limit=limit, lease_expires_at=lease_expires_at))

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Lengthen the leases still held. See :meth:`taskqueue.backend.Backend.extend`."""
        session = self._session()
        if not claims:
            return []
        return await session.run(operations.extend(claims, lease_expires_at=lease_expires_at))

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a held task as SUCCESS. See :meth:`taskqueue.backend.Backend.complete`."""
        # A worker's outcomes come together, and its next claim with them: they are to share a transaction.
        await self._session().submit(operations.complete(task_id, attempt, value=value, now=now))

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failed attempt. See :meth:`taskqueue.backend.Backend.fail`."""
        return await self._session().submit(operations.fail(task_id, attempt, failure, if_expired=if_expired))

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a task as CANCELLED. See :meth:`taskqueue.backend.Backend.cancel`."""
        return await self._session().run(operations.cancel(task_id, now=now))

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List RUNNING tasks whose lease has run out. See :meth:`taskqueue.backend.Backend.expired`."""
        session = self._session()
        return await session.run(operations.expired(now=now, limit=limit)) if limit else []

    async def next_due(self) -> datetime | None:
        """Return the next instant of interest. See :meth:`taskqueue.backend.Backend.next_due`."""
        return await self._session().run(operations.next_due())

    async def get(self, task_id: str) -> Task | None:
        """Return a task, or None. See :meth:`taskqueue.backend.Backend.get`."""
        return await self._session().run(operations.get(task_id))

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List tasks in the order of enqueueing. See :meth:`taskqueue.backend.Backend.tasks`.

        Raises:
            InvalidArgument: ``after`` is not a cursor of this backend.
        """
        session = self._session()
        operation = operations.page(status=status, after=after, limit=limit)
        return await session.run(operation) if limit else ([], after)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks for each status. See :meth:`taskqueue.backend.Backend.counts`."""
        return await self._session().run(operations.counts())

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Remove ended tasks. See :meth:`taskqueue.backend.Backend.purge`."""
        session = self._session()
        return await session.run(operations.purge(finished_before=finished_before, limit=limit)) if limit else 0

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name; a hint is no deadline
        """Wait for a change. See :meth:`taskqueue.backend.Backend.wait`."""
        await self._session().wait(timeout)

    def _open(self) -> StoreFile:
        origin = self._origin() if self._origin is not None else None
        file = StoreFile(
            self._path,
            synchronous=self._synchronous,
            busy_timeout=self._busy_timeout,
            expected=origin._open_file() if origin is not None else None,  # noqa: SLF001 - of its own class
        )
        self._identity = file.identity
        return file

    def _open_file(self) -> Identity | None:
        """Return which file this handle has open, if any. Called from the threads of clones."""
        return self._identity if self._sessions and self._pid == os.getpid() else None

    def _session(self) -> Session:
        session = self._sessions.get(asyncio.get_running_loop()) if self._pid == os.getpid() else None
        if session is None or not session.usable:
            raise NotConnected(f"{self!r} is not connected on this event loop: await connect() first")
        return session

    def _forget(self, loop: asyncio.AbstractEventLoop, session: Session) -> None:
        if self._sessions.get(loop) is session:
            del self._sessions[loop]

    async def _reap_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._sessions) if loop.is_closed()]:
            session = self._sessions.pop(loop, None)
            if session is not None:
                await session.reap()


_LONGEST_TIMEOUT: Final = 2_000_000
_URL_ADVICE: Final = (
    "write sqlite:///file.db for a file in the working directory, or sqlite:////directory/file.db for an absolute path"
)
