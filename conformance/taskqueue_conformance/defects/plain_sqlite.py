"""A correct backend on the standard library's sqlite3, made otherwise than the reference: a second statement of how.

Each handle has one thread for each event loop that it is connected on, and one connection; each call is one job in
that thread and one transaction. The statements are attributes of the class, so that one of them can be replaced.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Final, Self, TypeVar
from weakref import WeakSet

from taskqueue import Failure, NotConnected, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus

T = TypeVar("T")
Row = tuple[Any, ...]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
BUSY_S: Final = 30.0
"""How long a transaction waits for those of other processes, in seconds."""
LOOK_S: Final = 0.01
"""How often ``wait`` looks, in seconds."""


class _ForkGate:
    """Lets jobs run side by side, but none beside a fork; no connection is open in the moment of a fork."""

    def __init__(self) -> None:
        self.quiet = threading.Condition()
        self.running = 0
        self.sessions: WeakSet[Session] = WeakSet()
        os.register_at_fork(before=self._before, after_in_parent=self.quiet.release, after_in_child=self.quiet.release)

    @contextmanager
    def job(self) -> Iterator[None]:
        with self.quiet:
            self.running += 1
        try:
            yield
        finally:
            with self.quiet:
                self.running -= 1
                self.quiet.notify_all()

    def _before(self) -> None:
        self.quiet.acquire()
        while self.running:
            self.quiet.wait()
        for session in self.sessions:
            session.disconnect()


class Session:
    """A connection, and the thread that uses it; opened when it is needed, also anew."""

    def __init__(self, opener: Callable[[], sqlite3.Connection]) -> None:
        self._open = opener
        self.db: sqlite3.Connection | None = None
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="plain-sqlite")
        self.opening: asyncio.Future[object] | None = None
        self.ready = False
        self.closing = asyncio.Event()
        self.seen: object = None
        GATE.sessions.add(self)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run a job in the thread. Jobs run in the order in which they came; a cancelled one may yet run."""
        return asyncio.get_running_loop().run_in_executor(self.executor, self._job, work)

    def _job(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with GATE.job():
            if self.db is None:
                self.db = self._open()
            try:
                return work(self.db)
            finally:
                self.seen = version_of(self.db)

    def disconnect(self) -> None:
        """Close the connection; the next job opens another."""
        if self.db is not None:
            self.db.close()
            self.db = None

    def end(self) -> None:
        """Close the connection, as the last job."""
        with GATE.job():
            self.disconnect()


GATE: Final = _ForkGate()


def version_of(db: sqlite3.Connection) -> object:
    """Return what differs after a change: by other connections, and by this one."""
    return db.execute("PRAGMA data_version").fetchone(), db.total_changes


class PlainSQLite:
    """A handle on a file."""

    COLUMNS: ClassVar = (
        "id, payload, enqueued_at, available_at, max_retries, status, attempts, started_at, "
        "lease_expires_at, finished_at, value, seq"
    )
    TASKS: ClassVar = """CREATE TABLE IF NOT EXISTS tasks (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, payload BLOB NOT NULL,
        enqueued_at INTEGER NOT NULL, available_at INTEGER NOT NULL, max_retries INTEGER NOT NULL,
        status TEXT NOT NULL, attempts INTEGER NOT NULL, started_at INTEGER, lease_expires_at INTEGER,
        finished_at INTEGER, value BLOB)"""
    FAILURES: ClassVar = """CREATE TABLE IF NOT EXISTS failures (
        task INTEGER NOT NULL, attempt INTEGER NOT NULL, error TEXT NOT NULL, traceback TEXT,
        failed_at INTEGER NOT NULL, retry_at INTEGER)"""
    INDEXES: ClassVar = (
        "CREATE INDEX IF NOT EXISTS due ON tasks (status, available_at, seq)",
        "CREATE INDEX IF NOT EXISTS failures_of ON failures (task)",
    )
    KNOWN: ClassVar = "SELECT 1 FROM tasks WHERE id = :id"
    INSERT: ClassVar = """INSERT INTO tasks (id, payload, enqueued_at, available_at, max_retries, status, attempts,
        started_at) VALUES (:id, :payload, :enqueued_at, :available_at, :max_retries, 'pending', :attempts,
        :started_at)"""
    RECORD: ClassVar = """INSERT INTO failures (task, attempt, error, traceback, failed_at, retry_at)
        SELECT seq, :attempt, :error, :traceback, :failed_at, :retry_at FROM tasks WHERE id = :id"""
    CLAIM: ClassVar = """UPDATE tasks SET status = 'running', attempts = attempts + 1, started_at = :now,
        lease_expires_at = :lease WHERE seq IN (SELECT seq FROM tasks WHERE status = 'pending'
        AND available_at <= :now ORDER BY available_at, seq LIMIT :limit) RETURNING id, available_at, seq"""
    EXTEND: ClassVar = """UPDATE tasks SET lease_expires_at = max(lease_expires_at, :lease)
        WHERE id = :id AND status = 'running' AND attempts = :attempt"""
    COMPLETE: ClassVar = """UPDATE tasks SET status = 'success', value = :value, finished_at = :now,
        lease_expires_at = NULL WHERE id = :id AND status = 'running' AND attempts = :attempt"""
    RETRY: ClassVar = """UPDATE tasks SET status = 'pending', available_at = :retry_at, lease_expires_at = NULL
        WHERE id = :id AND status = 'running' AND attempts = :attempt AND attempts < max_retries
        AND :retry_at IS NOT NULL AND (NOT :if_expired OR lease_expires_at <= :failed_at)"""
    FAIL: ClassVar = """UPDATE tasks SET status = 'failed', finished_at = :failed_at, lease_expires_at = NULL
        WHERE id = :id AND status = 'running' AND attempts = :attempt
        AND (NOT :if_expired OR lease_expires_at <= :failed_at)"""
    CANCEL: ClassVar = """UPDATE tasks SET status = 'cancelled', finished_at = :now, lease_expires_at = NULL
        WHERE id = :id AND status IN ('pending', 'running')"""
    EXPIRED: ClassVar = """SELECT id FROM tasks WHERE status = 'running' AND lease_expires_at <= :now
        ORDER BY lease_expires_at LIMIT :limit"""
    NEXT_DUE: ClassVar = """SELECT min(at) FROM (SELECT available_at AS at FROM tasks WHERE status = 'pending'
        UNION ALL SELECT lease_expires_at FROM tasks WHERE status = 'running')"""
    GET: ClassVar = f"SELECT {COLUMNS} FROM tasks WHERE id = :id"  # noqa: S608 - names of columns
    FAILURES_OF: ClassVar = """SELECT attempt, error, traceback, failed_at, retry_at FROM failures
        WHERE task = :seq ORDER BY rowid"""
    PAGE: ClassVar = """SELECT id, seq FROM tasks WHERE seq > :after AND (:status IS NULL OR status = :status)
        ORDER BY seq LIMIT :limit"""
    COUNTS: ClassVar = "SELECT status, count(*) FROM tasks GROUP BY status"
    PURGEABLE: ClassVar = """SELECT seq FROM tasks WHERE status IN ('success', 'failed', 'cancelled')
        AND finished_at < :before ORDER BY finished_at LIMIT :limit"""
    FORGET_FAILURES: ClassVar = "DELETE FROM failures WHERE task = :seq"
    FORGET: ClassVar = "DELETE FROM tasks WHERE seq = :seq"

    BEGIN: ClassVar = "BEGIN IMMEDIATE"
    COMMIT: ClassVar = "COMMIT"
    busy_s: ClassVar[float] = BUSY_S

    def __init__(self, path: str) -> None:
        self.path = path
        self.process = os.getpid()
        self.sessions: dict[asyncio.AbstractEventLoop, Session] = {}

    # Connecting.

    def clone(self) -> Self:
        """See the contract, as for every method below."""
        return type(self)(self.path)

    async def connect(self) -> None:
        """See the contract."""
        loop = asyncio.get_running_loop()
        if self.process != os.getpid():
            self.process, self.sessions = os.getpid(), {}
        session = self.sessions.get(loop)
        if session is None:
            session = self.sessions[loop] = Session(self.open)
            session.opening = session.run(lambda _db: None)
        assert session.opening is not None  # noqa: S101 - set together
        try:
            await asyncio.shield(session.opening)
        except sqlite3.Error:
            if self.sessions.get(loop) is session:
                await self.close()
            raise
        session.ready = True

    async def close(self) -> None:
        """See the contract."""
        if self.process == os.getpid():
            session = self.sessions.pop(asyncio.get_running_loop(), None)
            if session is not None:
                await self.end(session)

    async def end(self, session: Session) -> None:
        """Let a session finish its jobs and release everything, also if the caller is cancelled."""
        session.closing.set()
        ended = asyncio.get_running_loop().run_in_executor(session.executor, session.end)
        ended.add_done_callback(lambda _: session.executor.shutdown(wait=True))
        await asyncio.shield(ended)

    def open(self) -> sqlite3.Connection:
        """Open the file, and make the tables where there are none."""
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        # Another thread closes it before a fork.
        db = sqlite3.connect(self.path, timeout=self.busy_s, isolation_level=None, check_same_thread=False)
        try:
            self.prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def prepare(self, db: sqlite3.Connection) -> None:
        """Set up a new connection."""
        deadline = time.monotonic() + self.busy_s
        while True:  # SQLite calls no busy handler where two processes change the mode at once
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        db.execute("PRAGMA synchronous = FULL")
        with self.transaction(db):
            for statement in (self.TASKS, self.FAILURES, *self.INDEXES):
                db.execute(statement)

    def session(self) -> Session:
        """Return the session of this event loop."""
        session = self.sessions.get(asyncio.get_running_loop())
        if self.process != os.getpid() or session is None or not session.ready:
            raise NotConnected("await connect() first, on this event loop and in this process")
        return session

    @contextmanager
    def transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        """Everything or nothing of what happens within."""
        db.execute(self.BEGIN)
        try:
            yield
            db.execute(self.COMMIT)
        except BaseException:
            self.rollback(db)
            raise

    def rollback(self, db: sqlite3.Connection) -> None:
        """Undo the transaction."""
        with suppress(sqlite3.Error):  # it is over already
            db.execute("ROLLBACK")

    def in_transaction(self, work: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
        """Do one call's work."""
        with self.transaction(db):
            return work(db)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a call that writes."""
        return await self.session().run(partial(self.in_transaction, work))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a call that reads, from one snapshot."""

        def snapshot(db: sqlite3.Connection) -> T:
            db.execute("BEGIN")
            try:
                return work(db)
            finally:
                self.rollback(db)

        return await self.session().run(snapshot)

    # Records and rows.

    def stored_instant(self, instant: datetime) -> Any:
        """Return an instant as it is stored."""
        return (instant - EPOCH) // MICROSECOND

    def read_instant(self, stored: Any) -> datetime:
        """Return a stored instant."""
        return EPOCH + timedelta(microseconds=stored)

    def stored_or_none(self, instant: datetime | None) -> Any:
        """Return an instant as it is stored, or None."""
        return None if instant is None else self.stored_instant(instant)

    def read_or_none(self, stored: Any) -> datetime | None:
        """Return a stored instant, or None."""
        return None if stored is None else self.read_instant(stored)

    def row_of(self, task: Task) -> dict[str, Any]:
        """Return what is stored of a new task."""
        return {
            "id": task.id,
            "payload": bytes(task.payload),
            "enqueued_at": self.stored_instant(task.enqueued_at),
            "available_at": self.stored_instant(task.available_at),
            "max_retries": task.max_retries,
            "attempts": task.attempts,
            "started_at": self.stored_or_none(task.started_at),
        }

    def failure_row(self, task_id: str, failure: Failure) -> dict[str, Any]:
        """Return what is stored of a failure."""
        return {
            "id": task_id,
            "attempt": failure.attempt,
            "error": failure.error,
            "traceback": failure.traceback,
            "failed_at": self.stored_instant(failure.failed_at),
            "retry_at": self.stored_or_none(failure.retry_at),
        }

    def task_of(self, db: sqlite3.Connection, row: Row) -> Task:
        """Return the task in a row, with its failures."""
        return Task(
            id=row[0],
            payload=row[1],
            enqueued_at=self.read_instant(row[2]),
            available_at=self.read_instant(row[3]),
            max_retries=row[4],
            status=TaskStatus(row[5]),
            attempts=row[6],
            started_at=self.read_or_none(row[7]),
            lease_expires_at=self.read_or_none(row[8]),
            finished_at=self.read_or_none(row[9]),
            value=row[10],
            failures=tuple(
                Failure(
                    attempt=attempt,
                    error=error,
                    traceback=traceback,
                    failed_at=self.read_instant(failed_at),
                    retry_at=self.read_or_none(retry_at),
                )
                for attempt, error, traceback, failed_at, retry_at in db.execute(self.FAILURES_OF, {"seq": row[11]})
            ),
        )

    def find(self, db: sqlite3.Connection, task_id: str) -> Task | None:
        """Return a task or None."""
        row = db.execute(self.GET, {"id": task_id}).fetchone()
        return None if row is None else self.task_of(db, row)

    def all_of(self, db: sqlite3.Connection, ids: Sequence[str]) -> list[Task]:
        """Return tasks by id."""
        return [task for one in ids if (task := self.find(db, one)) is not None]

    def refusal(self, db: sqlite3.Connection, task_id: str, attempt: int) -> Exception:
        """Return why a claim was refused."""
        task = self.find(db, task_id)
        if task is None:
            return TaskNotFound(task_id)
        held = task.status is TaskStatus.RUNNING and task.attempts == attempt
        lease = task.lease_expires_at if held else None
        return StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts, lease_expires_at=lease)

    # What each call does, within its transaction.

    def do_enqueue(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        """Add all or none."""
        ids = [task.id for task in tasks]
        twice = {one for one in ids if ids.count(one) > 1} if len(set(ids)) < len(ids) else set()
        known = [one for one in ids if one in twice or db.execute(self.KNOWN, {"id": one}).fetchone()]
        if known:
            raise TaskExists(list(dict.fromkeys(known)))
        db.executemany(self.INSERT, [self.row_of(task) for task in tasks])
        db.executemany(self.RECORD, [self.failure_row(task.id, each) for task in tasks for each in task.failures])

    def do_claim(self, db: sqlite3.Connection, now: datetime, limit: int, lease: datetime) -> list[Task]:
        """Take due tasks."""
        arguments = {"now": self.stored_instant(now), "lease": self.stored_instant(lease), "limit": limit}
        rows = db.execute(self.CLAIM, arguments).fetchall()
        return self.all_of(db, [task_id for task_id, *_ in sorted(rows, key=self.claim_order)])

    def claim_order(self, row: Row) -> Row:
        """By what claimed tasks are returned: RETURNING has an order of its own."""
        return row[1:]

    def do_extend(
        self, db: sqlite3.Connection, claims: Sequence[tuple[str, int]], lease: datetime
    ) -> list[tuple[str, int]]:
        """Lengthen leases."""
        at = self.stored_instant(lease)
        return [
            (task_id, attempt)
            for task_id, attempt in claims
            if db.execute(self.EXTEND, {"id": task_id, "attempt": attempt, "lease": at}).rowcount
        ]

    def do_complete(self, db: sqlite3.Connection, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        """End with a value."""
        arguments = {"id": task_id, "attempt": attempt, "value": bytes(value), "now": self.stored_instant(now)}
        if not db.execute(self.COMPLETE, arguments).rowcount:
            raise self.refusal(db, task_id, attempt)

    def do_fail(
        self, db: sqlite3.Connection, task_id: str, attempt: int, failure: Failure, *, if_expired: bool
    ) -> Task:
        """Record a failure."""
        row = self.failure_row(task_id, failure) | {"attempt": attempt, "if_expired": if_expired}
        if not db.execute(self.RETRY, row).rowcount:
            if not db.execute(self.FAIL, row).rowcount:
                raise self.refusal(db, task_id, attempt)
            row["retry_at"] = None
        db.execute(self.RECORD, row)
        return self.all_of(db, [task_id])[0]

    def do_cancel(self, db: sqlite3.Connection, task_id: str, now: datetime) -> bool:
        """End a task that has not ended."""
        if db.execute(self.CANCEL, {"id": task_id, "now": self.stored_instant(now)}).rowcount:
            return True
        if self.find(db, task_id) is None:
            raise TaskNotFound(task_id)
        return False

    def do_page(
        self, db: sqlite3.Connection, status: TaskStatus | None, after: str | None, limit: int
    ) -> tuple[list[Task], str | None]:
        """List a page."""
        arguments = {"after": int(after or 0), "status": status and status.value, "limit": limit}
        rows = db.execute(self.PAGE, arguments).fetchall()
        cursor = after if limit == 0 else str(rows[-1][1]) if len(rows) == limit else None
        return self.all_of(db, [task_id for task_id, _ in rows]), cursor

    def do_counts(self, db: sqlite3.Connection) -> dict[TaskStatus, int]:
        """Count each status."""
        found = dict(db.execute(self.COUNTS).fetchall())
        return {status: found.get(status.value, 0) for status in TaskStatus}

    def do_purge(self, db: sqlite3.Connection, before: datetime, limit: int) -> int:
        """Remove ended tasks."""
        rows = db.execute(self.PURGEABLE, {"before": self.stored_instant(before), "limit": limit}).fetchall()
        db.executemany(self.FORGET_FAILURES, [{"seq": seq} for (seq,) in rows])
        db.executemany(self.FORGET, [{"seq": seq} for (seq,) in rows])
        return len(rows)

    def do_expired(self, db: sqlite3.Connection, now: datetime, limit: int) -> list[Task]:
        """List expired leases."""
        rows = db.execute(self.EXPIRED, {"now": self.stored_instant(now), "limit": limit}).fetchall()
        return self.all_of(db, [task_id for (task_id,) in rows])

    def do_next_due(self, db: sqlite3.Connection) -> datetime | None:
        """Find the earliest instant of interest."""
        return self.read_or_none(db.execute(self.NEXT_DUE).fetchone()[0])

    # The contract.

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """See the contract."""
        own = tuple(tasks)
        await self.write(lambda db: self.do_enqueue(db, own))

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """See the contract."""
        return await self.write(lambda db: self.do_claim(db, now, limit, lease_expires_at))

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """See the contract."""
        own = tuple(claims)
        return await self.write(lambda db: self.do_extend(db, own, lease_expires_at))

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """See the contract."""
        await self.write(lambda db: self.do_complete(db, task_id, attempt, value, now))

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """See the contract."""
        return await self.write(lambda db: self.do_fail(db, task_id, attempt, failure, if_expired=if_expired))

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """See the contract."""
        return await self.write(lambda db: self.do_cancel(db, task_id, now))

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """See the contract."""
        return await self.read(lambda db: self.do_expired(db, now, limit))

    async def next_due(self) -> datetime | None:
        """See the contract."""
        return await self.read(self.do_next_due)

    async def get(self, task_id: str) -> Task | None:
        """See the contract."""
        return await self.read(lambda db: self.find(db, task_id))

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """See the contract."""
        return await self.read(lambda db: self.do_page(db, status, after, limit))

    async def counts(self) -> Mapping[TaskStatus, int]:
        """See the contract."""
        return await self.read(self.do_counts)

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """See the contract."""
        return await self.write(lambda db: self.do_purge(db, finished_before, limit))

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        """See the contract. What the last job saw is the baseline: whatever came later ends the wait at once."""
        session = self.session()
        seen = session.seen
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while session.seen == seen and not session.closing.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(session.closing.wait(), LOOK_S)
                    if not session.closing.is_set():
                        await session.run(lambda _db: None)
