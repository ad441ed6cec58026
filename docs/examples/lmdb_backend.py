"""A complete taskqueue backend on LMDB, to read and to copy. ``docs/how-to/write-a-backend.md`` builds it step by step.

LMDB keeps ordered keys in one memory-mapped file: its transactions are atomic, durable once committed, and shared by
all processes of a machine. So a store is a file, and a call is a transaction. What remains to do is in three parts:
how tasks are laid out as keys and values, who may have the file open, and how asyncio waits for it.

    pip install 'lmdb>=1.8' 'taskqueue-spec[conformance]'
    pytest --conformance=lmdb_backend:make_backend
"""

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import lmdb

from taskqueue import (
    Failure,
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    StaleClaim,
    StoreUnavailable,
    Task,
    TaskExists,
    TaskNotFound,
    TaskStatus,
)

T = TypeVar("T")

FORMAT: Final = 1
"""The version of the layout below, kept in the file."""
MAP_SIZE: Final = 16 * 2**30
"""The largest size of a file in bytes. This reserves addresses, not memory: the file grows as needed."""
MAX_READERS: Final = 1024
"""How many read transactions, of all processes, may be open at once on one file."""
POLL_S: Final = 0.01
"""How often ``wait`` looks for a change, in seconds: LMDB has no notifications, and a look takes a microsecond."""


class LMDBBackend:
    """A handle on the store in the file ``path``, which is created, readable by its owner only, where there is none.

    The file has to lie on a local disk: LMDB does not work on network file systems.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.realpath(path)
        # The keys carry the process and the event loop, so nothing that belongs to another one is ever found.
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], _Session] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same file."""
        return type(self)(self._path)

    async def connect(self) -> None:
        """Open the file for this event loop. Raises IncompatibleStore or StoreUnavailable."""
        here = _here()
        while (session := self._sessions.get(here)) is not None and session.closing:
            await self._end(session)
        if session is None:
            session = self._sessions[here] = _Session(self._path)
        try:
            # Shielded, since others may be waiting for the same attempt.
            await asyncio.shield(asyncio.wrap_future(session.file))
        except Exception:
            await self._end(session)
            raise

    async def close(self) -> None:
        """Finish the calls in flight, end every ``wait``, and close the file if nobody else in this process uses it."""
        session = self._sessions.get(_here())
        if session is not None:
            await self._end(session)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add the tasks, or raise TaskExists with those that are known or given twice."""
        given = tuple(tasks)  # the caller may go on changing its list if this call is cancelled

        def step(txn: _Transaction) -> None:
            known: dict[str, None] = {}
            for task in given:
                if txn.key(task.id) is None:
                    txn.add(task)
                else:
                    known[task.id] = None
            if known:
                raise TaskExists(tuple(known))

        await self._write(step)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Take the tasks that are due, the earliest first."""

        def step(txn: _Transaction) -> list[Task]:
            taken = {"status": TaskStatus.RUNNING, "started_at": now, "lease_expires_at": lease_expires_at}
            due = txn.until(now, limit, TaskStatus.PENDING)
            return [txn.change(key, task, attempts=task.attempts + 1, **taken) for key, task in due]

        return await self._write(step)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Lengthen the leases of the claims that are held, and return these."""
        given = tuple(claims)

        def step(txn: _Transaction) -> list[tuple[str, int]]:
            held = []
            for task_id, attempt in given:
                with suppress(StaleClaim, TaskNotFound):
                    key, task = txn.held(task_id, attempt)
                    held.append((task_id, attempt))
                    txn.change(key, task, lease_expires_at=max(lease_expires_at, _lease(task)))
            return held

        return await self._write(step)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a task with its value, or raise StaleClaim or TaskNotFound."""

        def step(txn: _Transaction) -> None:
            key, task = txn.held(task_id, attempt)
            txn.change(key, task, status=TaskStatus.SUCCESS, value=value, finished_at=now, lease_expires_at=None)

        await self._write(step)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failure and retry the task if its budget allows, or raise StaleClaim or TaskNotFound."""

        def step(txn: _Transaction) -> Task:
            key, task = txn.held(task_id, attempt)
            if if_expired and (lease := _lease(task)) > failure.failed_at:
                raise StaleClaim(task_id, attempt, status=task.status, attempts=attempt, lease_expires_at=lease)
            changes: dict[str, Any]
            if failure.retry_at is not None and task.attempts < task.max_retries:
                changes = {"status": TaskStatus.PENDING, "available_at": failure.retry_at}
                failures = (*task.failures, failure)
            else:
                changes = {"status": TaskStatus.FAILED, "finished_at": failure.failed_at}
                failures = (*task.failures, replace(failure, retry_at=None))
            return txn.change(key, task, failures=failures, lease_expires_at=None, **changes)

        return await self._write(step)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a task that has not ended and return True; False if it had. Raises TaskNotFound."""

        def step(txn: _Transaction) -> bool:
            key, task = txn.find(task_id)
            if not task.status.ended:
                txn.change(key, task, status=TaskStatus.CANCELLED, finished_at=now, lease_expires_at=None)
            return not task.status.ended

        return await self._write(step)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List the tasks whose lease has run out, the oldest lease first."""
        return await self._read(lambda txn: [task for _, task in txn.until(now, limit, TaskStatus.RUNNING)])

    async def next_due(self) -> datetime | None:
        """Return when the next task is due or the next lease runs out."""
        return await self._read(lambda txn: next((at for at, _ in txn.by_instant(*_UNENDED)), None))

    async def get(self, task_id: str) -> Task | None:
        """Return a task, or None."""

        def step(txn: _Transaction) -> Task | None:
            key = txn.key(task_id)
            return None if key is None else txn.task(key)

        return await self._read(step)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List tasks in the order of enqueueing. A cursor is the sequence number of the last task of its page."""
        if after is not None and not (after.isascii() and after.isdecimal()):
            raise InvalidArgument("after", after, "pass a cursor that tasks() returned, or None")

        def step(txn: _Transaction) -> tuple[list[Task], str | None]:
            page: list[Task] = []
            cursor = after
            for key, task in txn.by_sequence(0 if after is None else int(after) + 1):
                if len(page) == limit:
                    return page, cursor
                if status is None or task.status is status:
                    page.append(task)
                cursor = str(int.from_bytes(key, "big"))
            return page, (after if limit == 0 else None)

        return await self._read(step)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks in each status; LMDB keeps them, one for each index."""
        return await self._read(lambda txn: {status: txn.count(status) for status in TaskStatus})

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Remove ended tasks, the longest ended first, and return how many."""

        def step(txn: _Transaction) -> int:
            ended = txn.until(finished_before - _MICROSECOND, limit, *_ENDED)
            for key, task in ended:
                txn.remove(key, task)
            return len(ended)

        return await self._write(step)

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name; a hint is no deadline
        """Return after the next commit by anybody, after ``timeout`` seconds, or when the handle is closed."""
        session = self._session()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        seen = session.last_commit()
        # A counter in shared memory can only be polled: there is no event to wait for.
        while not session.closing and (left := deadline - loop.time()) > 0 and session.last_commit() == seen:  # noqa: ASYNC110
            await asyncio.sleep(min(left, POLL_S))

    async def _read(self, step: "Callable[[_Transaction], T]") -> T:
        return await self._session().run(step, write=False)

    async def _write(self, step: "Callable[[_Transaction], T]") -> T:
        return await self._session().run(step, write=True)

    def _session(self) -> "_Session":
        session = self._sessions.get(_here())
        if session is None or session.closing or not session.file.done():
            raise NotConnected(f"{self!r} is not connected in this process on this event loop: await connect() first")
        return session

    async def _end(self, session: "_Session") -> None:
        await session.close()
        if self._sessions.get(_here()) is session:
            del self._sessions[_here()]


def make_backend(store: str) -> LMDBBackend:
    """Return a handle on the store of this name: the factory for ``--conformance=lmdb_backend:make_backend``."""
    return LMDBBackend(Path(os.environ.get("LMDB_BACKEND_FOLDER", tempfile.gettempdir())) / f"{store}.lmdb")


# How asyncio waits for it.


class _Session:
    """What ``connect`` makes and ``close`` ends: a thread in which the transactions of one handle follow each other.

    LMDB blocks: writers wait for each other, and a commit waits for the disk. A call that is cancelled leaves its
    transaction to the thread, which finishes it, or never begins it, before it takes up the next one.
    """

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lmdb")
        self._closed: Future[None] | None = None
        self.file: Future[_File] = self._thread.submit(_File.acquire, path)

    @property
    def closing(self) -> bool:
        return self._closed is not None

    async def run(self, step: "Callable[[_Transaction], T]", *, write: bool) -> T:
        return await asyncio.wrap_future(self._thread.submit(self.file.result().transact, step, write=write))

    def last_commit(self) -> int:
        """Return the number of the last transaction that changed the file. It does not block."""
        return self.file.result().env.info()["last_txnid"]

    async def close(self) -> None:
        if self._closed is None:
            self._closed = self._thread.submit(self._release)
            self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closed))
        self._thread.shutdown()  # all its work is done: this waits for no more than the end of the thread

    def _release(self) -> None:
        if self.file.exception() is None:
            self.file.result().release()


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


# Who may have the file open.

# Held for the length of a transaction, so that a fork, which waits for it, never copies one in progress.
_LOCK: Final = threading.Lock()
_OPEN: Final[dict[str, "_File"]] = {}


class _File:
    """An open environment. LMDB allows one for a file in a process, so all the sessions in a process share it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.users = 0
        try:
            self.env = lmdb.open(
                path,
                subdir=False,
                mode=0o600,
                map_size=MAP_SIZE,
                max_dbs=len(TaskStatus) + 2,
                max_readers=MAX_READERS,
                max_spare_txns=0,  # a spare one would be shared with forked children
            )
        except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise IncompatibleStore(path, found=None, supported=FORMAT) from error
        except lmdb.Error as error:
            raise StoreUnavailable(path, str(error)) from error
        try:
            self.env.reader_check()  # frees what killed processes held
            with self.env.begin(write=True) as txn:
                self._open_databases(txn)
        except BaseException:
            self.env.close()
            raise

    @classmethod
    def acquire(cls, path: str) -> "_File":
        """Return the environment of ``path`` to one more user."""
        with _LOCK:
            file = _OPEN.get(path)
            if file is None:
                file = _OPEN[path] = cls(path)
            file.users += 1
            return file

    def release(self) -> None:
        """Have one user less, and close the file after the last."""
        with _LOCK:
            self.users -= 1
            if self.users == 0:
                del _OPEN[self.path]
                self.env.close()

    def transact(self, step: "Callable[[_Transaction], T]", *, write: bool) -> T:
        """Run ``step`` in a transaction, which is on the disk once this returns, and undone if ``step`` raises."""
        try:
            with _LOCK, self.env.begin(write=write) as txn:
                return step(_Transaction(self, txn))
        except lmdb.MapFullError as error:
            raise StoreUnavailable(self.path, f"its {MAP_SIZE} bytes are full; raise MAP_SIZE") from error
        except lmdb.Error as error:
            raise StoreUnavailable(self.path, str(error)) from error

    def _open_databases(self, txn: "lmdb.Transaction[bytes]") -> None:
        found = txn.get(b"format")
        if found is None and txn.stat()["entries"]:
            raise IncompatibleStore(self.path, found=None, supported=FORMAT)
        if found is not None and int(found) != FORMAT:
            raise IncompatibleStore(self.path, found=int(found), supported=FORMAT)
        if found is None:
            txn.put(b"format", str(FORMAT).encode())
        self.tasks = self.env.open_db(b"tasks", txn=txn)
        self.ids = self.env.open_db(b"ids", txn=txn)
        self.places = {status: self.env.open_db(status.encode(), txn=txn) for status in TaskStatus}


def _close_inherited() -> None:
    """In a forked child, give back the parent's environments: they are of no use here, and in the way of new ones."""
    for file in _OPEN.values():
        file.env.close()
    _OPEN.clear()
    _LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_close_inherited)


# How tasks are laid out. A key is 8 bytes, big-endian, so that bytes sort as numbers do.
#
#   tasks      sequence number -> record
#   ids        id -> sequence number
#   pending    available_at, sequence number -> nothing       and likewise, each task in the one of its status:
#   running    lease_expires_at, sequence number -> nothing
#   success, failed, cancelled    finished_at, sequence number -> nothing

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ENDED: Final = tuple(status for status in TaskStatus if status.ended)
_UNENDED: Final = tuple(status for status in TaskStatus if not status.ended)


class _Transaction:
    """What the methods of the contract are made of. Keeps a task and its place in the indexes together."""

    def __init__(self, file: _File, txn: "lmdb.Transaction[bytes]") -> None:
        self._file = file
        self._txn = txn

    def key(self, task_id: str) -> bytes | None:
        return self._txn.get(task_id.encode(), db=self._file.ids)

    def task(self, key: bytes) -> Task:
        return _decode(self._txn.get(key, b"", db=self._file.tasks))

    def find(self, task_id: str) -> tuple[bytes, Task]:
        key = self.key(task_id)
        if key is None:
            raise TaskNotFound(task_id)
        return key, self.task(key)

    def held(self, task_id: str, attempt: int) -> tuple[bytes, Task]:
        key, task = self.find(task_id)
        if task.status is not TaskStatus.RUNNING or task.attempts != attempt:
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return key, task

    def by_instant(self, *statuses: TaskStatus) -> Iterator[tuple[datetime, bytes]]:
        """Yield when each task of these statuses matters next, earliest first, ties as enqueued, and its key."""
        places = (self._txn.cursor(db=self._file.places[status]).iternext(values=False) for status in statuses)
        return ((_instant(int.from_bytes(place[:8], "big")), place[8:]) for place in merge(*places))

    def until(self, instant: datetime, limit: int, *statuses: TaskStatus) -> list[tuple[bytes, Task]]:
        found = takewhile(lambda each: each[0] <= instant, self.by_instant(*statuses))
        return [(key, self.task(key)) for _, key in islice(found, limit)]

    def by_sequence(self, start: int) -> Iterator[tuple[bytes, Task]]:
        cursor = self._txn.cursor(db=self._file.tasks)
        found = cursor.iternext() if cursor.set_range(_number(start)) else ()
        return ((key, _decode(record)) for key, record in found)

    def count(self, status: TaskStatus) -> int:
        return self._txn.stat(self._file.places[status])["entries"]

    def add(self, task: Task) -> None:
        key = _number(int.from_bytes(self._txn.get(b"sequence", b""), "big") + 1)
        self._txn.put(b"sequence", key)
        self._txn.put(task.id.encode(), key, db=self._file.ids)
        self._put(key, task)

    def change(self, key: bytes, task: Task, **changes: Any) -> Task:
        self._txn.delete(_place(key, task), db=self._file.places[task.status])
        changed = replace(task, **changes)
        self._put(key, changed)
        return changed

    def remove(self, key: bytes, task: Task) -> None:
        self._txn.delete(_place(key, task), db=self._file.places[task.status])
        self._txn.delete(task.id.encode(), db=self._file.ids)
        self._txn.delete(key, db=self._file.tasks)

    def _put(self, key: bytes, task: Task) -> None:
        self._txn.put(_place(key, task), b"", db=self._file.places[task.status])
        self._txn.put(key, _encode(task), db=self._file.tasks)


def _place(key: bytes, task: Task) -> bytes:
    at = task.available_at if task.status is TaskStatus.PENDING else task.finished_at or _lease(task)
    return _number(_microseconds(at)) + key


def _lease(task: Task) -> datetime:
    assert task.lease_expires_at is not None  # noqa: S101 - the table of fields in taskqueue/backend.py has it so
    return task.lease_expires_at


def _encode(task: Task) -> bytes:
    """Return a line of JSON, in which instants are whole microseconds, then the payload and the value as they are."""
    head = asdict(task)
    payload, value = head.pop("payload"), head.pop("value")
    head |= {"payload_size": len(payload), "has_value": value is not None}
    return b"\n".join((json.dumps(head, default=_microseconds).encode(), payload + (value or b"")))


def _decode(record: bytes) -> Task:
    line, _, body = record.partition(b"\n")
    head = json.loads(line, object_hook=_with_instants)
    size, has_value = head.pop("payload_size"), head.pop("has_value")
    head["status"] = TaskStatus(head["status"])
    head["failures"] = tuple(Failure(**failure) for failure in head["failures"])
    return Task(**head, payload=body[:size], value=body[size:] if has_value else None)


def _with_instants(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _instant(value) if name.endswith("_at") and value is not None else value for name, value in fields.items()
    }


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")
