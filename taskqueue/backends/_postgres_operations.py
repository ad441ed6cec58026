"""What each method of the contract does to a PostgreSQL database.

An operation is one call, with a copy of its arguments. Calls of one kind that have come together run as one: see
:meth:`Operation.run`. Every statement is a transaction of its own, so nothing is left open, and each is written so
that it is right however its steps mix with those of others at the isolation level READ COMMITTED: a row is changed
only after it has been locked and looked at again. Several rows are locked in the order of their ids, so that two
statements do not wait for each other; a claim waits for none.
"""

import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from taskqueue.backends._postgres_connection import Connection, Row, UniqueViolation, Unsettled
from taskqueue.backends._rows import (
    COLUMNS,
    DamagedRow,
    instant_of,
    line_of_failure,
    microseconds,
    optional_microseconds,
    task_of_row,
    with_stored_instants,
)
from taskqueue.errors import InvalidArgument, StaleClaim, TaskExists, TaskNotFound, TooLarge
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

T = TypeVar("T")

LARGEST_CALL: Final = 256 * 1024 * 1024
"""How many bytes the records of one call may have in all."""
_LARGEST_INTEGER: Final = 2**63 - 1
_LOG: Final = logging.getLogger("taskqueue.backends.postgres")


class Table:
    """The table of one store, for statements that name it ``@tasks``.

    They call its columns ``@columns``, what is read of a row ``@task``, and the type of its status ``@type``. A row is
    read of the alias ``t``.

    Attributes:
        name: The table with its namespace, quoted.
    """

    def __init__(self, schema: str) -> None:
        self.name = f"{schema}.tasks"
        self._type = f"{schema}.task_status"
        self._statements: dict[str, str] = {}

    def sql(self, statement: str) -> str:
        """Return a statement with the names filled in."""
        if statement not in self._statements:
            filled = statement.replace("@tasks", self.name).replace("@task", _READ)
            self._statements[statement] = filled.replace("@columns", COLUMNS).replace("@type", self._type)
        return self._statements[statement]


# The driver would ask the server, once for each connection, what an enumeration is.
_READ: Final = ", ".join(f"t.{name}::text" if name == "status" else f"t.{name}" for name in COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of a method, with its arguments bound.

    Attributes:
        groups: Whether several may run as one.
        repeatable: Whether it may be executed again where it is unknown whether it was.
        announces: Whether somebody may be waiting for what it changes.
        companion: The kind of which one call may come last in a group, and run with the others as one.
    """

    groups: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False
    announces: ClassVar[bool] = False
    companion: ClassVar["type[Operation[Any]] | None"] = None

    @property
    def key(self) -> str | None:
        """What only one operation of a group may have; None where there is no such thing."""
        return None

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return 0

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Execute operations of one kind, and behind them one that is their companion; one alone unless they group.

        Returns:
            The outcome of each: what to return to its caller, or the exception to raise there. Once something has
            been changed, exceptions are outcomes too: what is raised has changed nothing, or it is a connection that
            was lost.
        """
        raise NotImplementedError


# Enqueueing -------------------------------------------------------------------------------------------------------

_INSERT: Final = """
    INSERT INTO @tasks (@columns)
    SELECT id, 'pending', enqueued_at, available_at, max_retries, attempts, started_at, NULL, NULL, failures, payload,
        NULL
    FROM unnest(
        $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::bytea[]
    ) AS v (id, enqueued_at, available_at, max_retries, attempts, started_at, failures, payload)
"""
_INSERT_ALIKE: Final = """
    INSERT INTO @tasks (@columns)
    SELECT unnest($1::text[]), 'pending', $2::bigint, $3::bigint, $4::bigint, $5::bigint, $6::bigint, NULL, NULL,
        $7::text, unnest($8::bytea[]), NULL
"""
_INSERT_ONE: Final = """
    INSERT INTO @tasks (@columns)
    VALUES ($1, 'pending', $2, $3, $4, $5, $6, NULL, NULL, $7, $8, NULL)
"""
KNOWN: Final = "SELECT id FROM @tasks WHERE id = ANY ($1::text[])"


@dataclass(frozen=True, slots=True)
class Enqueue(Operation[None]):
    """Add PENDING tasks, all or none."""

    groups: ClassVar[bool] = True
    announces: ClassVar[bool] = True
    rows: Sequence[Sequence[Any]]
    bytes_sent: int

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Self:
        """Copy the tasks.

        Raises:
            InvalidArgument: A budget is beyond what a bigint can hold.
            TooLarge: They are more than one call can take.
        """
        rows: list[Sequence[Any]] = []
        size = 0
        for task, enqueued_at, available_at in with_stored_instants(tasks):
            if task.max_retries > _LARGEST_INTEGER:
                raise InvalidArgument("max_retries", task.max_retries, "PostgreSQL keeps integers up to 2**63 - 1")
            failures = "".join(map(line_of_failure, task.failures)) if task.failures else ""
            payload, started_at = bytes(task.payload), optional_microseconds(task.started_at)
            rows.append(
                (task.id, enqueued_at, available_at, task.max_retries, task.attempts, started_at, failures, payload)
            )
            size += len(failures) + len(payload) + 400
        _check_size("the list of tasks", size)
        return cls(rows=rows, bytes_sent=size)

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return self.bytes_sent

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Insert the rows of all calls; if an id is known, find out which calls that concerns, and insert the rest."""
        ids = [row[0] for operation in operations for row in operation.rows]
        if len(ids) == 1:
            return [await cls._insert_one(db, table, *operations[0].rows)]
        # A list that cannot be stored is refused with all the ids that are wrong in it, hence the look.
        known = await cls._known(db, table, ids) if len(set(ids)) < len(ids) else frozenset()
        while True:
            rows, refusals = _accepted(operations, known)
            try:
                await cls._insert(db, table, rows)
            except UniqueViolation:
                known = await cls._known(db, table, ids)
            else:
                return refusals

    @staticmethod
    async def _known(db: Connection, table: Table, ids: Sequence[str]) -> frozenset[str]:
        return frozenset(row[0] for row in await db.fetch(table.sql(KNOWN), ids))

    @staticmethod
    async def _insert_one(db: Connection, table: Table, row: Sequence[Any]) -> TaskExists | None:
        try:
            await db.fetch(table.sql(_INSERT_ONE), *row)
        except UniqueViolation:
            return TaskExists((row[0],))
        return None

    @staticmethod
    async def _insert(db: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            alike = rows[0][1:-1]
            if all(row[1:-1] == alike for row in rows):
                # As from `enqueue_many`. The driver takes as long for an element of an array as the server for a row.
                await db.fetch(table.sql(_INSERT_ALIKE), [row[0] for row in rows], *alike, [row[-1] for row in rows])
            else:
                await db.fetch(table.sql(_INSERT), *map(list, zip(*rows, strict=True)))


def _accepted(
    operations: Sequence[Enqueue], known: frozenset[str]
) -> tuple[list[Sequence[Any]], list[TaskExists | None]]:
    """Return the rows of the calls that can be stored one after the other, and each call's refusal, or None."""
    taken = set(known)
    rows: list[Sequence[Any]] = []
    refusals: list[TaskExists | None] = []
    for operation in operations:
        own: set[str] = set()
        offending: dict[str, None] = {}
        for row in operation.rows:
            if row[0] in taken or row[0] in own:
                offending[row[0]] = None
            own.add(row[0])
        if offending:
            refusals.append(TaskExists(tuple(offending)))
        else:
            refusals.append(None)
            rows += operation.rows
            taken |= own
    return rows, refusals


def _check_size(what: str, size: int) -> None:
    if size > LARGEST_CALL:
        raise TooLarge(what, size=size, limit=LARGEST_CALL)


# Claiming ---------------------------------------------------------------------------------------------------------

# What others are changing is passed over, never waited for; and what they have changed since this statement began is
# looked at again before it is taken.
_CLAIM: Final = """
    UPDATE @tasks t
    SET status = 'running', attempts = attempts + 1, started_at = $1, lease_expires_at = $3
    WHERE seq = ANY (ARRAY (
        SELECT seq FROM @tasks
        WHERE status = 'pending' AND available_at <= $1
        ORDER BY available_at, seq
        LIMIT $2
        FOR NO KEY UPDATE SKIP LOCKED
    ))
    RETURNING @task, t.seq
"""


@dataclass(frozen=True, slots=True)
class Claim(Operation[Sequence[Task]]):
    """Take due tasks."""

    now: datetime
    limit: int
    lease_expires_at: datetime

    @property
    def arguments(self) -> tuple[int, int, int]:
        """What the statement is executed with."""
        return microseconds(self.now), min(self.limit, _LARGEST_INTEGER), microseconds(self.lease_expires_at)

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Choose, lock and change the rows in one statement; RETURNING has an order of its own."""
        (call,) = operations
        return [cls.claimed(await db.fetch(table.sql(_CLAIM), *call.arguments))]

    @staticmethod
    def claimed(rows: Iterable[Row]) -> list[Task]:
        """Return the tasks in the rows that were claimed, in the order of their claim."""
        return _tasks(sorted(rows, key=_claim_order))


def _claim_order(row: Row) -> tuple[int, int]:
    return row[3], row[12]


# Outcomes ---------------------------------------------------------------------------------------------------------

_MOST_ROUNDS: Final = 20
_STATE: Final = "SELECT id, status::text, attempts, lease_expires_at FROM @tasks WHERE id = ANY ($1::text[])"


async def _settle(
    db: Connection,
    table: Table,
    operations: Sequence[Any],
    step: Callable[[Connection, Table, Sequence[Any]], Coroutine[Any, Any, Mapping[str, Any]]],
) -> list[Any]:
    """Let ``step`` change what can be changed, and find out why the rest was refused.

    ``step`` returns the answers of those that it accepted, by id. The state of the others is read afterwards. Where
    that gives no reason to refuse, the task has come to be changeable in between, and it is tried again.
    """
    answers: dict[str, Any] = {}
    left = list(operations)
    for _ in range(_MOST_ROUNDS):
        try:
            answers |= await step(db, table, left)
            left = [operation for operation in left if operation.task_id not in answers]
            if not left:
                break
            ids = [operation.task_id for operation in left]
            states = {row[0]: row for row in await db.fetch(table.sql(_STATE), ids)}
        except Exception as error:
            if not answers:
                raise
            answers |= {operation.task_id: error for operation in left}
            break
        refusals = {operation.task_id: operation.refusal(states.get(operation.task_id)) for operation in left}
        answers |= {task_id: refusal for task_id, refusal in refusals.items() if refusal is not None}
        left = [operation for operation in left if operation.task_id not in answers]
        if not left:
            break
    unsettled = Unsettled("the task can be changed as it stands, but no change of it takes place")
    answers |= {operation.task_id: unsettled for operation in left if operation.task_id not in answers}
    return [None if (found := answers[operation.task_id]) is _DONE else found for operation in operations]


_DONE: Final = object()


@dataclass(frozen=True, slots=True)
class _OfOneTask(Operation[T]):
    """A call that changes one task."""

    groups: ClassVar[bool] = True
    announces: ClassVar[bool] = True
    task_id: str

    @property
    def key(self) -> str:
        return self.task_id


def _refusal(task_id: str, attempt: int, state: Row | None, *, holding: bool = False) -> Exception | None:
    """Return why a claim is not held, or with ``holding`` that its lease still holds; None if it is held."""
    if state is None:
        return TaskNotFound(task_id)
    _, status, attempts, lease = state
    held = status == TaskStatus.RUNNING and attempts == attempt
    if held and not holding:
        return None
    return StaleClaim(
        task_id,
        attempt,
        status=TaskStatus(status),
        attempts=attempts,
        lease_expires_at=instant_of(lease) if held else None,
    )


_COMPLETE: Final = """
    UPDATE @tasks t
    SET status = 'success', value = v.value, finished_at = v.now, lease_expires_at = NULL
    FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[]) AS v (id, attempt, value, now)
    WHERE t.id = ANY (ARRAY[v.id]) AND t.status = 'running' AND t.attempts = v.attempt
    RETURNING t.id
"""
_COMPLETE_ONE: Final = """
    UPDATE @tasks
    SET status = 'success', value = $3, finished_at = $4, lease_expires_at = NULL
    WHERE id = $1 AND status = 'running' AND attempts = $2
    RETURNING id
"""


@cache
def _with_claim(complete: str, claim: str) -> str:
    """Return a statement that completes and claims: its arguments, and its rows, are those of the one, then the other.

    Each row is changed by one of the two at most, since they see the same state. What the first has to wait for, it
    waits for before the second has locked anything.
    """
    behind = re.sub(r"\$(\d+)", lambda found: f"${int(found[1]) + 4}", claim)
    nothing = ", NULL" * len(COLUMNS.split(", "))  # in the place of the other columns, and of seq
    return f"""
        WITH completed AS ({complete}), claimed AS ({behind})
        SELECT id{nothing} FROM completed
        UNION ALL SELECT * FROM claimed
    """  # noqa: S608 - of our own statements


@dataclass(frozen=True, slots=True)
class Complete(_OfOneTask[None]):
    """End a held task as SUCCESS."""

    companion: ClassVar[type[Operation[Any]] | None] = Claim
    attempt: int
    value: bytes
    now: int

    @classmethod
    def of(cls, task_id: str, attempt: int, *, value: bytes, now: datetime) -> Self:
        """Copy the arguments.

        Raises:
            TooLarge: The value is more than one call can take.
        """
        _check_size("the value", len(value))
        return cls(task_id, attempt, bytes(value), microseconds(now))

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return len(self.value)

    def refusal(self, state: Row | None) -> Exception | None:
        """Return why the claim is not held, or None if it is."""
        return _refusal(self.task_id, self.attempt, state)

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self | Claim]) -> Sequence[Any]:
        """Complete the tasks whose claims are held; and claim others with the same statement."""
        claim = operations[-1]
        if not isinstance(claim, Claim):
            return await _settle(db, table, operations, cls._complete)
        claimed: list[Task] | None = None

        async def complete_and_claim(db: Connection, table: Table, calls: "Sequence[Complete]") -> Mapping[str, Any]:
            nonlocal claimed
            if claimed is not None:  # the second time, for what was refused
                return await cls._complete(db, table, calls)
            statement = table.sql(_with_claim(_COMPLETE, _CLAIM))
            rows = await db.fetch(statement, *_columns(call.row for call in calls), *claim.arguments)
            claimed = Claim.claimed(row for row in rows if row[1] is not None)
            return {row[0]: _DONE for row in rows if row[1] is None}

        try:
            return [*await _settle(db, table, operations[:-1], complete_and_claim), claimed]
        except Exception as error:
            if claimed is None:
                raise
            return [*[error] * (len(operations) - 1), claimed]

    @property
    def row(self) -> tuple[Any, ...]:
        """The arguments, as the statement takes them."""
        return self.task_id, _integer(self.attempt), self.value, self.now

    @staticmethod
    async def _complete(db: Connection, table: Table, calls: "Sequence[Complete]") -> Mapping[str, Any]:
        if len(calls) == 1:
            (call,) = calls
            return {call.task_id: _DONE} if await db.fetch(table.sql(_COMPLETE_ONE), *call.row) else {}
        done = await db.fetch(table.sql(_COMPLETE), *_columns(call.row for call in calls))
        return {row[0]: _DONE for row in done}


def _columns(rows: Iterable[tuple[Any, ...]]) -> Iterable[list[Any]]:
    """Return the columns of rows for a statement that changes them: in the order of their ids, which come first."""
    return map(list, zip(*sorted(rows), strict=True))


def _integer(value: int) -> int:
    """Return what a bigint can hold; no attempt has such a number."""
    return min(value, _LARGEST_INTEGER)


_RETRIED: Final = "v.retry_at IS NOT NULL AND t.attempts < t.max_retries"
_FAIL: Final = f"""
    UPDATE @tasks t
    SET status = CASE WHEN {_RETRIED} THEN 'pending'::@type ELSE 'failed' END,
        available_at = CASE WHEN {_RETRIED} THEN v.retry_at ELSE t.available_at END,
        finished_at = CASE WHEN {_RETRIED} THEN NULL ELSE v.failed_at END,
        failures = t.failures || CASE WHEN {_RETRIED} THEN v.proposed ELSE v.last END,
        lease_expires_at = NULL
    FROM unnest(
        $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::boolean[]
    ) AS v (id, attempt, failed_at, retry_at, proposed, last, if_expired)
    WHERE t.id = ANY (ARRAY[v.id]) AND t.status = 'running' AND t.attempts = v.attempt
    AND (NOT v.if_expired OR t.lease_expires_at <= v.failed_at)
    RETURNING @task
"""  # noqa: S608 - a condition on columns


@dataclass(frozen=True, slots=True)
class Fail(_OfOneTask[Task]):
    """Record a failure of a held task, and retry it if its budget allows."""

    attempt: int
    failed_at: int
    retry_at: int | None
    proposed: str
    last: str
    if_expired: bool

    @classmethod
    def of(cls, task_id: str, attempt: int, failure: Failure, *, if_expired: bool) -> Self:
        """Copy the arguments.

        Raises:
            TooLarge: The texts are more than one call can take.
        """
        last = Failure(
            attempt=failure.attempt, error=failure.error, failed_at=failure.failed_at, traceback=failure.traceback
        )
        lines = line_of_failure(failure), line_of_failure(last)
        _check_size("the failure", len(lines[0]))
        retry_at = optional_microseconds(failure.retry_at)
        return cls(task_id, attempt, microseconds(failure.failed_at), retry_at, *lines, if_expired)

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return 2 * len(self.last)

    def refusal(self, state: Row | None) -> Exception | None:
        """Return why the claim is not held, or does not have to be given up yet; None if neither."""
        holding = self.if_expired and state is not None and state[3] is not None and state[3] > self.failed_at
        return _refusal(self.task_id, self.attempt, state, holding=holding)

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Fail the tasks whose claims are held."""
        return await _settle(db, table, operations, cls._fail)

    @staticmethod
    async def _fail(db: Connection, table: Table, calls: "Sequence[Fail]") -> Mapping[str, Any]:
        columns = _columns(
            (c.task_id, _integer(c.attempt), c.failed_at, c.retry_at, c.proposed, c.last, c.if_expired) for c in calls
        )
        stored = await db.fetch(table.sql(_FAIL), *columns)
        return {row[0]: _task_or_error(row) for row in stored}


def _task_or_error(row: Row) -> Task | DamagedRow:
    try:
        return task_of_row(row)
    except DamagedRow as damaged:
        return damaged


_CANCEL: Final = """
    UPDATE @tasks t
    SET status = 'cancelled', finished_at = v.now, lease_expires_at = NULL
    FROM unnest($1::text[], $2::bigint[]) AS v (id, now)
    WHERE t.id = ANY (ARRAY[v.id]) AND t.status IN ('pending', 'running')
    RETURNING t.id
"""


@dataclass(frozen=True, slots=True)
class Cancel(_OfOneTask[bool]):
    """End a task as CANCELLED."""

    now: datetime

    def refusal(self, state: Row | None) -> Exception | bool | None:
        """Return False for a task that had ended, or None if it has not."""
        if state is None:
            return TaskNotFound(self.task_id)
        return False if TaskStatus(state[1]).ended else None

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Cancel the tasks that have not ended."""
        return await _settle(db, table, operations, cls._cancel)

    @staticmethod
    async def _cancel(db: Connection, table: Table, calls: "Sequence[Cancel]") -> Mapping[str, Any]:
        columns = _columns((call.task_id, microseconds(call.now)) for call in calls)
        return {row[0]: True for row in await db.fetch(table.sql(_CANCEL), *columns)}


_EXTEND: Final = """
    UPDATE @tasks t
    SET lease_expires_at = greatest(t.lease_expires_at, v.lease_expires_at)
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS v (id, attempt, lease_expires_at)
    WHERE t.id = ANY (ARRAY[v.id]) AND t.status = 'running' AND t.attempts = v.attempt
    RETURNING t.id, t.attempts
"""


@dataclass(frozen=True, slots=True)
class Extend(Operation[Sequence[tuple[str, int]]]):
    """Lengthen the leases of claims that are held."""

    groups: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True
    claims: Sequence[tuple[str, int]]
    lease_expires_at: datetime

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return 300 * len(self.claims)

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Extend each claim to the latest instant that any of the calls asks for."""
        leases: dict[tuple[str, int], int] = {}
        for call in operations:
            lease = microseconds(call.lease_expires_at)
            for task_id, attempt in call.claims:
                leases[task_id, attempt] = max(lease, leases.get((task_id, attempt), 0))
        columns = _columns((task_id, _integer(attempt), lease) for (task_id, attempt), lease in leases.items())
        rows = await db.fetch(table.sql(_EXTEND), *columns)
        held = {(task_id, attempts) for task_id, attempts in rows}
        return [[claim for claim in call.claims if claim in held] for call in operations]


# Reading ----------------------------------------------------------------------------------------------------------

_EXPIRED: Final = """
    SELECT @task FROM @tasks t
    WHERE status = 'running' AND lease_expires_at <= $1
    ORDER BY lease_expires_at
    LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class Expired(Operation[Sequence[Task]]):
    """List RUNNING tasks whose lease has run out."""

    repeatable: ClassVar[bool] = True
    now: datetime
    limit: int

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Read them."""
        (call,) = operations
        return [_tasks(await db.fetch(table.sql(_EXPIRED), microseconds(call.now), _integer(call.limit)))]


_NEXT_DUE: Final = """
    SELECT least(
        (SELECT available_at FROM @tasks WHERE status = 'pending' ORDER BY available_at LIMIT 1),
        (
            SELECT lease_expires_at FROM @tasks
            WHERE status = 'running' AND lease_expires_at IS NOT NULL
            ORDER BY lease_expires_at LIMIT 1
        )
    )
"""


@dataclass(frozen=True, slots=True)
class NextDue(Operation[datetime | None]):
    """Find the earliest instant at which a task becomes due or a lease runs out."""

    groups: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Read it once for all calls."""
        ((earliest,),) = await db.fetch(table.sql(_NEXT_DUE))
        return [None if earliest is None else instant_of(earliest)] * len(operations)


_GET: Final = "SELECT @task FROM @tasks t WHERE id = $1"
_GET_SEVERAL: Final = "SELECT @task FROM @tasks t WHERE id = ANY ($1::text[])"


@dataclass(frozen=True, slots=True)
class Get(Operation[Task | None]):
    """Read one task."""

    groups: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True
    task_id: str

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Read all that are asked for at once."""
        ids = [*{call.task_id for call in operations}]
        one = len(ids) == 1
        rows = await db.fetch(table.sql(_GET if one else _GET_SEVERAL), ids[0] if one else ids)
        found = {row[0]: _task_or_error(row) for row in rows}
        return [found.get(call.task_id) for call in operations]


_PAGE: Final = "SELECT @task, seq FROM @tasks t WHERE seq > $1 ORDER BY seq LIMIT $2"
_PAGE_OF_STATUS: Final = "SELECT @task, seq FROM @tasks t WHERE @condition AND @order > $1 ORDER BY @order LIMIT $2"
# Those that have ended are few, or most of all, or have an index in that order. The others have a partial index, and
# are sorted: to look for those that are pending along the order of all tasks would be to read all that have ended.
_CONDITIONS: Final = {
    TaskStatus.PENDING: ("status = 'pending'", "seq + 0"),
    TaskStatus.RUNNING: ("status = 'running' AND lease_expires_at IS NOT NULL", "seq + 0"),
    TaskStatus.SUCCESS: ("status = 'success'", "seq"),
    TaskStatus.FAILED: ("status = 'failed'", "seq"),
    TaskStatus.CANCELLED: ("status = 'cancelled'", "seq"),
}


@dataclass(frozen=True, slots=True)
class Page(Operation[tuple[Sequence[Task], str | None]]):
    """Read a page of the tasks in the order of enqueueing."""

    repeatable: ClassVar[bool] = True
    status: TaskStatus | None
    after: int
    limit: int

    @classmethod
    def of(cls, *, status: TaskStatus | None, after: str | None, limit: int) -> Self:
        """Check the cursor.

        Raises:
            InvalidArgument: ``after`` is not a cursor of this backend.
        """
        if after is not None and not (after.isascii() and after.isdecimal() and int(after) <= _LARGEST_INTEGER):
            raise InvalidArgument("after", after, "pass a cursor that tasks() returned, or None")
        return cls(status, 0 if after is None else int(after), _integer(limit))

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Read it."""
        (call,) = operations
        rows = await db.fetch(table.sql(cls.statement(call.status)), call.after, call.limit)
        return [(_tasks(rows), str(rows[-1][12]) if len(rows) == call.limit else None)]

    @staticmethod
    def statement(status: TaskStatus | None) -> str:
        """Return the statement for a status: it is part of it, so that the partial index of that status is used."""
        if status is None:
            return _PAGE
        condition, order = _CONDITIONS[TaskStatus(status)]
        return _PAGE_OF_STATUS.replace("@condition", condition).replace("@order", order)


_COUNTS: Final = "SELECT status::text, count(*) FROM @tasks GROUP BY status"


@dataclass(frozen=True, slots=True)
class Counts(Operation[Mapping[TaskStatus, int]]):
    """Count the tasks in each status."""

    repeatable: ClassVar[bool] = True

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Read them all: a statement sees one state of the table."""
        found = {status: count for status, count in await db.fetch(table.sql(_COUNTS))}  # noqa: C416 - a Record is no tuple for the type checker
        return [{status: found.get(str(status), 0) for status in TaskStatus} for _ in operations]


_PURGE: Final = """
    WITH removed AS (
        DELETE FROM @tasks
        WHERE seq = ANY (ARRAY (
            SELECT seq FROM @tasks
            WHERE finished_at < $1
            ORDER BY finished_at
            LIMIT $2
            FOR UPDATE
        ))
        RETURNING seq
    )
    SELECT count(*) FROM removed
"""


@dataclass(frozen=True, slots=True)
class Purge(Operation[int]):
    """Remove ended tasks."""

    finished_before: datetime
    limit: int

    @classmethod
    async def run(cls, db: Connection, table: Table, operations: Sequence[Self]) -> Sequence[Any]:
        """Lock and delete them in one statement."""
        (call,) = operations
        arguments = microseconds(call.finished_before), _integer(call.limit)
        ((removed,),) = await db.fetch(table.sql(_PURGE), *arguments)
        return [removed]


def _tasks(rows: Iterable[Row]) -> list[Task]:
    """Make tasks of rows. One that is damaged is logged and left out, so that it does not take the others along."""
    tasks = []
    for row in rows:
        try:
            tasks.append(task_of_row(row))
        except DamagedRow:
            _LOG.exception("a task has been left out")
    return tasks
