"""What each method of the contract does to an SQLite database.

An operation is made on the event loop, where it takes a copy of its arguments, and called with the database in the
thread of the connection. One that writes is called inside a transaction that somebody else has begun and will
commit; it raises an exception of taskqueue only before it has changed anything, so that the other operations in the
transaction are not harmed. After a rollback it may be called again.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, Final, Generic, TypeVar

from taskqueue.backends._rows import (
    COLUMNS,
    DamagedRow,
    instant_of,
    line_of_failure,
    microseconds,
    optional_microseconds,
    row_of_task,
    task_of_row,
    with_stored_instants,
)
from taskqueue.backends._sqlite_schema import to_json
from taskqueue.errors import InvalidArgument, StaleClaim, TaskExists, TaskNotFound, TaskQueueError, TooLarge
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

T = TypeVar("T")

_LOG: Final = logging.getLogger("taskqueue.backends.sqlite")
_LARGEST_INTEGER: Final = 2**63 - 1
_SHORT_ROWS: Final = 20
_SHORT_BYTES: Final = 20_000


@dataclass(slots=True, eq=False)
class Operation(Generic[T]):
    """One call of a method, with its arguments bound. Not changed once it is made; frozen, it would cost twice as much.

    Attributes:
        run: Does it and returns the result.
        writes: Whether it needs a transaction. One that does not is a single SELECT.
        single: Whether, if it writes, it is a single statement, which is a transaction by itself.
        short: Whether it reads and writes no more than a few rows and some kilobytes, as far as can be told before.
    """

    run: Callable[[sqlite3.Connection], T]
    writes: bool
    single: bool = False
    short: bool = False


@dataclass(slots=True, eq=False)
class Enqueue(Operation[None]):
    """A call of ``enqueue`` with new tasks. Neighbours can run as one: see :func:`enqueue_all`.

    Attributes:
        rows: The tasks, as arguments of the statement.
    """

    rows: Sequence[tuple[Any, ...]] = ()


@dataclass(slots=True, eq=False)
class Complete(Operation[None]):
    """A call of ``complete``. Calls that stand next to each other can run as one: see :func:`complete_all`.

    Attributes:
        arguments: Those of the statement.
    """

    arguments: Sequence[Any] = ()


_KNOWN_IDS: Final = "SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?))"

_INSERT: Final = f"INSERT INTO tasks ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - names of columns

_INSERT_NEW: Final = """
    INSERT INTO tasks (id, enqueued_at, available_at, max_retries, payload, status, attempts)
    VALUES (?, ?, ?, ?, ?, 'pending', 0)
"""

# Many rows in one statement cost half of what as many statements cost. Few sizes, so that few statements are kept.
_INSERT_NEW_BY_SIZE: Final = {size: _INSERT_NEW + ", (?, ?, ?, ?, ?, 'pending', 0)" * (size - 1) for size in (50, 10)}

# INDEXED BY: without statistics SQLite may take another index, and sort. If the index cannot serve the query, the
# statement is an error, never a slow success.
CLAIM: Final = f"""
    UPDATE tasks
    SET status = 'running', attempts = attempts + 1, started_at = :now, lease_expires_at = :lease_expires_at
    WHERE seq IN (
        SELECT seq FROM tasks INDEXED BY tasks_due
        WHERE status = 'pending' AND available_at <= :now
        ORDER BY available_at, seq
        LIMIT :limit
    )
    RETURNING {COLUMNS}, seq
"""  # noqa: S608 - names of columns

EXTEND: Final = """
    UPDATE tasks
    SET lease_expires_at = max(lease_expires_at, :lease_expires_at)
    WHERE id = :id AND status = 'running' AND attempts = :attempt
"""

COMPLETE: Final = """
    UPDATE tasks
    SET status = 'success', value = ?, finished_at = ?, lease_expires_at = NULL
    WHERE id = ? AND status = 'running' AND attempts = ?
"""

_RETRIED: Final = ":retry_at IS NOT NULL AND attempts < max_retries"

FAIL: Final = f"""
    UPDATE tasks
    SET status = CASE WHEN {_RETRIED} THEN 'pending' ELSE 'failed' END,
        available_at = CASE WHEN {_RETRIED} THEN :retry_at ELSE available_at END,
        finished_at = CASE WHEN {_RETRIED} THEN NULL ELSE :failed_at END,
        failures = failures || CASE WHEN {_RETRIED} THEN :proposed ELSE :last END,
        lease_expires_at = NULL
    WHERE id = :id AND status = 'running' AND attempts = :attempt
    AND (NOT :if_expired OR lease_expires_at <= :failed_at)
    RETURNING {COLUMNS}
"""  # noqa: S608 - names of columns

CANCEL: Final = """
    UPDATE tasks
    SET status = 'cancelled', finished_at = :now, lease_expires_at = NULL
    WHERE id = :id AND status IN ('pending', 'running')
"""

_CLAIM_OF: Final = "SELECT status, attempts, lease_expires_at FROM tasks WHERE id = ?"

EXPIRED: Final = f"""
    SELECT {COLUMNS} FROM tasks INDEXED BY tasks_leased
    WHERE status = 'running' AND lease_expires_at <= :now
    ORDER BY lease_expires_at
    LIMIT :limit
"""  # noqa: S608 - names of columns

NEXT_DUE: Final = """
    SELECT
        (SELECT min(available_at) FROM tasks INDEXED BY tasks_due WHERE status = 'pending'),
        (SELECT min(lease_expires_at) FROM tasks INDEXED BY tasks_leased WHERE status = 'running')
"""

_GET: Final = f"SELECT {COLUMNS} FROM tasks WHERE id = ?"  # noqa: S608 - names of columns

PAGE: Final = f"SELECT {COLUMNS}, seq FROM tasks WHERE seq > :after ORDER BY seq LIMIT :limit"  # noqa: S608 - names of columns

# Those that may be many are looked for among all tasks, which for a listing that reads on is no more than it reads.
_WHERE_TO_LOOK: Final = {
    TaskStatus.PENDING: "NOT INDEXED",
    TaskStatus.RUNNING: "INDEXED BY tasks_leased",
    TaskStatus.SUCCESS: "NOT INDEXED",
    TaskStatus.FAILED: "INDEXED BY tasks_unsuccessful",
    TaskStatus.CANCELLED: "INDEXED BY tasks_unsuccessful",
}

PAGES: Final = {
    status: f"""
    SELECT {COLUMNS}, seq FROM tasks {where}
    WHERE status = '{status}' AND seq > :after
    ORDER BY seq
    LIMIT :limit
"""  # noqa: S608 - names of columns
    for status, where in _WHERE_TO_LOOK.items()
}

# Pending and successful tasks, which may be many, are what is left, so that no row of theirs has to be read.
COUNTS: Final = """
    SELECT known - running - ended, running, ended - failed - cancelled, failed, cancelled
    FROM (SELECT count(*) AS known FROM tasks),
        (SELECT count(*) AS running FROM tasks INDEXED BY tasks_leased WHERE status = 'running'),
        (SELECT count(*) AS ended FROM tasks INDEXED BY tasks_ended WHERE finished_at IS NOT NULL),
        (SELECT count(*) AS failed FROM tasks INDEXED BY tasks_unsuccessful WHERE status = 'failed'),
        (SELECT count(*) AS cancelled FROM tasks INDEXED BY tasks_unsuccessful WHERE status = 'cancelled')
"""

_COUNTED: Final = (
    TaskStatus.PENDING,
    TaskStatus.RUNNING,
    TaskStatus.SUCCESS,
    TaskStatus.FAILED,
    TaskStatus.CANCELLED,
)

PURGE: Final = """
    DELETE FROM tasks WHERE seq IN (
        SELECT seq FROM tasks INDEXED BY tasks_ended
        WHERE finished_at < :finished_before
        ORDER BY finished_at
        LIMIT :limit
    )
"""


def enqueue(tasks: Iterable[Task]) -> Operation[None]:
    """Add PENDING tasks."""
    given = list(tasks)
    for task in given:
        if task.max_retries > _LARGEST_INTEGER:
            raise InvalidArgument("max_retries", task.max_retries, "SQLite keeps integers up to 2**63 - 1")
    if any(task.attempts or task.started_at for task in given):
        return Operation(partial(_enqueue_moved, [row_of_task(task) for task in given]), writes=True)
    rows = [
        (task.id, enqueued_at, available_at, task.max_retries, bytes(task.payload))
        for task, enqueued_at, available_at in with_stored_instants(given)
    ]
    short = len(rows) <= _SHORT_ROWS and sum(len(row[-1]) for row in rows) <= _SHORT_BYTES
    if len(rows) == 1:
        return Enqueue(partial(_enqueue_one, rows[0]), writes=True, single=True, short=short, rows=rows)
    return Enqueue(partial(_enqueue_new, rows), writes=True, short=short, rows=rows)


def _enqueue_one(row: tuple[Any, ...], db: sqlite3.Connection) -> None:
    try:
        with _sizes_checked(db, "the largest task", row):
            db.execute(_INSERT_NEW, row)
    except sqlite3.IntegrityError as error:
        if _is_duplicate(error):
            raise TaskExists((row[0],)) from None
        raise


def _enqueue_new(rows: Sequence[tuple[Any, ...]], db: sqlite3.Connection) -> None:
    (refusal,) = enqueue_all(db, [rows])
    if refusal is not None:
        raise refusal


def enqueue_all(db: sqlite3.Connection, calls: Sequence[Sequence[tuple[Any, ...]]]) -> Sequence[TaskExists | None]:
    """Add the new tasks of several calls, those of each call wholly or not at all; return each's refusal, or None."""
    rows = list(chain.from_iterable(calls))
    try:
        with _savepoint(db), _sizes_checked(db, "the largest task", *rows):
            _insert_new(db, rows)
    except sqlite3.IntegrityError as error:
        if not _is_duplicate(error):
            raise
        return _enqueue_some(db, calls)
    return [None] * len(calls)


def _insert_new(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    begin = 0
    for size, statement in _INSERT_NEW_BY_SIZE.items():
        while begin + size <= len(rows):
            db.execute(statement, tuple(chain.from_iterable(rows[begin : begin + size])))
            begin += size
    db.executemany(_INSERT_NEW, rows[begin:])


def _enqueue_moved(rows: Sequence[tuple[Any, ...]], db: sqlite3.Connection) -> None:
    """Add tasks of which some have been attempted in another store."""
    try:
        with _savepoint(db), _sizes_checked(db, "the largest task", *rows):
            db.executemany(_INSERT, rows)
    except sqlite3.IntegrityError as error:
        if not _is_duplicate(error):
            raise
        raise TaskExists(_offending(rows, _known(db, rows))) from None


def _enqueue_some(db: sqlite3.Connection, calls: Sequence[Sequence[tuple[Any, ...]]]) -> Sequence[TaskExists | None]:
    """Do what ``enqueue_all`` does where ids are known, or stand there twice."""
    known = _known(db, chain.from_iterable(calls))
    accepted: list[tuple[Any, ...]] = []
    refusals: list[TaskExists | None] = []
    for rows in calls:
        offending = _offending(rows, known)
        if offending:
            refusals.append(TaskExists(offending))
        else:
            refusals.append(None)
            accepted += rows
            known.update(row[0] for row in rows)
    _insert_new(db, accepted)
    return refusals


def _known(db: sqlite3.Connection, rows: Iterable[tuple[Any, ...]]) -> set[str]:
    return {task_id for (task_id,) in db.execute(_KNOWN_IDS, (to_json(row[0] for row in rows),))}


def _offending(rows: Iterable[tuple[Any, ...]], known: set[str]) -> tuple[str, ...]:
    """Return the ids that are known, or stand there twice, each once."""
    own: set[str] = set()
    offending: dict[str, None] = {}
    for row in rows:
        if row[0] in known or row[0] in own:
            offending[row[0]] = None
        own.add(row[0])
    return tuple(offending)


def _is_duplicate(error: sqlite3.IntegrityError) -> bool:
    return error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE


def claim(*, now: datetime, limit: int, lease_expires_at: datetime) -> Operation[Sequence[Task]]:
    """Take due tasks."""
    arguments = {
        "now": microseconds(now),
        "lease_expires_at": microseconds(lease_expires_at),
        "limit": min(limit, _LARGEST_INTEGER),
    }

    def run(db: sqlite3.Connection) -> Sequence[Task]:
        rows = db.execute(CLAIM, arguments).fetchall()
        rows.sort(key=_claim_order)  # RETURNING has an order of its own
        return _tasks(rows)

    return Operation(run, writes=True, single=True, short=limit <= _SHORT_ROWS)


def _claim_order(row: Sequence[Any]) -> tuple[int, int]:
    return row[3], row[12]


def extend(claims: Iterable[tuple[str, int]], *, lease_expires_at: datetime) -> Operation[Sequence[tuple[str, int]]]:
    """Lengthen the leases of claims that are held."""
    pairs = [(task_id, attempt) for task_id, attempt in claims]
    lease = microseconds(lease_expires_at)

    def run(db: sqlite3.Connection) -> Sequence[tuple[str, int]]:
        return [
            (task_id, attempt)
            for task_id, attempt in pairs
            if db.execute(EXTEND, {"id": task_id, "attempt": attempt, "lease_expires_at": lease}).rowcount
        ]

    return Operation(run, writes=True, short=len(pairs) <= _SHORT_ROWS)


def complete(task_id: str, attempt: int, *, value: bytes, now: datetime) -> Operation[None]:
    """End a held task as SUCCESS."""
    arguments = (bytes(value), microseconds(now), task_id, attempt)
    return Complete(
        partial(_complete_one, arguments), writes=True, short=len(value) <= _SHORT_BYTES, arguments=arguments
    )


def _complete_one(arguments: tuple[bytes, int, str, int], db: sqlite3.Connection) -> None:
    value, _, task_id, attempt = arguments
    with _sizes_checked(db, "the value", (value,)):
        changed = db.execute(COMPLETE, arguments).rowcount
    if not changed:
        raise _refusal(db, task_id, attempt)


def complete_all(db: sqlite3.Connection, calls: Sequence[Complete]) -> Sequence[TaskQueueError | None]:
    """Run several calls of ``complete``; return each call's refusal, or None."""
    try:
        with _savepoint(db):
            changed = db.executemany(COMPLETE, [call.arguments for call in calls]).rowcount
            if changed != len(calls):
                raise _SomeRefusedError  # noqa: TRY301 - which is how the savepoint is undone
    except _SomeRefusedError:
        return [_refusal_of(call, db) for call in calls]
    return [None] * len(calls)


class _SomeRefusedError(Exception):
    pass


def _refusal_of(call: Complete, db: sqlite3.Connection) -> TaskQueueError | None:
    try:
        call.run(db)
    except TaskQueueError as refusal:
        return refusal
    return None


def fail(task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Operation[Task]:
    """Record a failure of a held task, and retry it if its budget allows."""
    last = Failure(
        attempt=failure.attempt, error=failure.error, failed_at=failure.failed_at, traceback=failure.traceback
    )
    arguments = {
        "id": task_id,
        "attempt": attempt,
        "failed_at": microseconds(failure.failed_at),
        "retry_at": optional_microseconds(failure.retry_at),
        "proposed": line_of_failure(failure),
        "last": line_of_failure(last),
        "if_expired": if_expired,
    }

    def run(db: sqlite3.Connection) -> Task:
        with _sizes_checked(db, "the failure", (arguments["proposed"],)):
            rows = db.execute(FAIL, arguments).fetchall()
        if not rows:
            raise _refusal(db, task_id, attempt)
        return task_of_row(rows[0])

    return Operation(run, writes=True, short=True)


def cancel(task_id: str, *, now: datetime) -> Operation[bool]:
    """End a task as CANCELLED."""
    arguments = {"id": task_id, "now": microseconds(now)}

    def run(db: sqlite3.Connection) -> bool:
        if db.execute(CANCEL, arguments).rowcount:
            return True
        if db.execute(_CLAIM_OF, (task_id,)).fetchone() is None:
            raise TaskNotFound(task_id)
        return False

    return Operation(run, writes=True, short=True)


def _refusal(db: sqlite3.Connection, task_id: str, attempt: int) -> TaskNotFound | StaleClaim:
    row = db.execute(_CLAIM_OF, (task_id,)).fetchone()
    if row is None:
        return TaskNotFound(task_id)
    status, attempts, lease = row
    held = status == TaskStatus.RUNNING and attempts == attempt
    return StaleClaim(
        task_id,
        attempt,
        status=TaskStatus(status),
        attempts=attempts,
        lease_expires_at=instant_of(lease) if held else None,
    )


def expired(*, now: datetime, limit: int) -> Operation[Sequence[Task]]:
    """List RUNNING tasks whose lease has run out."""
    arguments = {"now": microseconds(now), "limit": min(limit, _LARGEST_INTEGER)}

    def run(db: sqlite3.Connection) -> Sequence[Task]:
        return _tasks(db.execute(EXPIRED, arguments).fetchall())

    return Operation(run, writes=False)


def next_due() -> Operation[datetime | None]:
    """Find the earliest instant at which a task becomes due or a lease runs out."""

    def run(db: sqlite3.Connection) -> datetime | None:
        instants = [stored for stored in db.execute(NEXT_DUE).fetchone() if stored is not None]
        return instant_of(min(instants)) if instants else None

    return Operation(run, writes=False, short=True)


def get(task_id: str) -> Operation[Task | None]:
    """Read one task."""

    def run(db: sqlite3.Connection) -> Task | None:
        row = db.execute(_GET, (task_id,)).fetchone()
        return None if row is None else task_of_row(row)

    return Operation(run, writes=False, short=True)


def page(*, status: TaskStatus | None, after: str | None, limit: int) -> Operation[tuple[Sequence[Task], str | None]]:
    """Read a page of the tasks in the order of enqueueing.

    Raises:
        InvalidArgument: ``after`` is not a cursor of this backend.
    """
    if after is not None and not (after.isascii() and after.isdecimal() and int(after) <= _LARGEST_INTEGER):
        raise InvalidArgument("after", after, "pass a cursor that tasks() returned, or None")
    arguments = {
        "after": 0 if after is None else int(after),
        "limit": min(limit, _LARGEST_INTEGER),
    }
    statement = PAGE if status is None else PAGES[status]

    def run(db: sqlite3.Connection) -> tuple[Sequence[Task], str | None]:
        rows = db.execute(statement, arguments).fetchall()
        return _tasks(rows), str(rows[-1][12]) if len(rows) == limit else None

    return Operation(run, writes=False)


def counts() -> Operation[Mapping[TaskStatus, int]]:
    """Count the tasks in each status."""

    def run(db: sqlite3.Connection) -> Mapping[TaskStatus, int]:
        return dict(zip(_COUNTED, db.execute(COUNTS).fetchone(), strict=True))

    return Operation(run, writes=False)


def purge(*, finished_before: datetime, limit: int) -> Operation[int]:
    """Remove ended tasks."""
    arguments = {"finished_before": microseconds(finished_before), "limit": min(limit, _LARGEST_INTEGER)}

    def run(db: sqlite3.Connection) -> int:
        return db.execute(PURGE, arguments).rowcount

    return Operation(run, writes=True)


def nothing() -> Operation[None]:
    """Read nothing: whoever runs it looks for changes of other connections on the way."""
    return Operation(lambda _: None, writes=False, short=True)


def _tasks(rows: Iterable[Sequence[Any]]) -> list[Task]:
    """Make tasks of rows. One that is damaged is logged and left out, so that it does not take the others along."""
    tasks = []
    for row in rows:
        try:
            tasks.append(task_of_row(row))
        except DamagedRow:
            _LOG.exception("a task has been left out")
    return tasks


class _savepoint:  # noqa: N801 - a context manager, and a class is the cheapest kind
    """Undo what was done inside if it raises; inside a transaction."""

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("SAVEPOINT taskqueue_group")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._db.in_transaction:  # some errors make SQLite roll all of it back
            return
        if kind is not None:
            self._db.execute("ROLLBACK TO taskqueue_group")
        self._db.execute("RELEASE taskqueue_group")


class _sizes_checked:  # noqa: N801 - as above
    """Turn SQLite's refusal of a value that is too large into ours."""

    __slots__ = ("_db", "_rows", "_what")

    def __init__(self, db: sqlite3.Connection, what: str, *rows: Sequence[Any]) -> None:
        self._db = db
        self._what = what
        self._rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, (sqlite3.DataError, OverflowError)):
            return
        limit = self._db.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        cells = (sum(len(cell) for cell in row if isinstance(cell, (str, bytes))) for row in self._rows)
        size = max(cells, default=0)
        if size > limit:
            raise TooLarge(self._what, size=size, limit=limit) from error
