"""Connections to a PostgreSQL server: how they are opened, what runs on them, and how their failures are told."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import asyncpg

from taskqueue.errors import StoreUnavailable

Row = Sequence[Any]

UniqueViolation: Final = asyncpg.UniqueViolationError

# Plans: a plan made while the table was small, or not analysed yet, is kept for as long as the connection lives. With
# these it is the same whatever the statistics say: along the indexes, as every statement of ours can be executed.
# Sequential scans remain where there is no other way.
_PLANNER: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
_SESSION: Final = {
    "application_name": "taskqueue",
    "default_transaction_isolation": "read committed",
    # The server notices a client whose machine is gone, and gives up its locks.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_BEGIN: Final = "; ".join(
    ("BEGIN ISOLATION LEVEL READ COMMITTED", *(f"SET LOCAL {name} = {value}" for name, value in _PLANNER.items()))
)
_GRACE_SECONDS: Final = 5.0
_FIRST_DELAY: Final = 0.02
_LONGEST_DELAY: Final = 1.0

_DISCONNECTING: Final = ("08", "57P", "25006")
"""SQLSTATEs, or their beginnings, after which a connection is of no use: it is ending, or the server is read-only."""
_TRANSIENT: Final = ("08", "57P03", "57P01", "57P02", "53300", "25006")
"""SQLSTATEs, or their beginnings, of a server that may let us in a moment later."""
_PROTOCOL_VIOLATION: Final = "08P01"
"""The SQLSTATE of a proxy that refuses the settings of a session."""
_RETRIABLE: Final = ("40001", "40P01")
"""SQLSTATEs of a statement that was rolled back and may be sent again: a serialisation failure, a deadlock."""


class ConnectionLost(Exception):
    """A connection ended, or did not answer in time, while a statement was under way: whether it ran is unknown."""


class Unsettled(Exception):
    """A statement changed nothing for no reason that can be seen: a trigger or a policy on the table, perhaps."""


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach a server.

    Attributes:
        dsn: A URL for the driver.
        location: How to call it in messages: without a password.
        connect_timeout: In seconds.
        statement_timeout: In seconds.
        pooled: Whether a proxy stands in between that gives each transaction another connection.
    """

    dsn: str = field(repr=False)  # there may be a password in it
    location: str
    connect_timeout: float
    statement_timeout: float
    pooled: bool


class Connection:
    """An open connection. One statement at a time."""

    def __init__(self, driver: Any, server: Server) -> None:
        self._driver = driver
        self._pooled = server.pooled
        self._seconds = server.statement_timeout + _GRACE_SECONDS
        # The driver's own cache is a longer way for each statement, and so would be a timer for each.
        self._prepared: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._overdue = False

    @classmethod
    async def open(cls, server: Server, seconds: float | None = None) -> Self:
        """Connect, within so many seconds; within those that the server is given, unless told.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError: See :func:`transient`.
        """
        # A proxy refuses settings that it does not know; there they are made in each transaction.
        session = _SESSION | _PLANNER | {"statement_timeout": f"{max(1, round(server.statement_timeout * 1000))}"}
        driver = await asyncpg.connect(
            server.dsn,
            timeout=server.connect_timeout if seconds is None else seconds,
            server_settings=None if server.pooled else session,
            statement_cache_size=0 if server.pooled else 200,
            max_cached_statement_lifetime=0,
        )
        return cls(driver, server)

    @property
    def closed(self) -> bool:
        """Whether it is known to have ended."""
        return bool(self._driver.is_closed())

    @property
    def encoding(self) -> str:
        """The encoding of the database."""
        return str(self._driver.get_settings().server_encoding)

    async def fetch(self, statement: str, *arguments: Any) -> Sequence[Row]:
        """Execute a statement in a transaction of its own and return its rows.

        Raises:
            ConnectionLost: Whether it was executed is unknown.
            asyncpg.PostgresError: It was refused; nothing has changed.
        """
        try:
            if self._pooled:
                async with _Transaction(self._driver, self._seconds):
                    rows: Sequence[Row] = await self._driver.fetch(statement, *arguments, timeout=self._seconds)
            else:
                prepared = self._prepared.get(statement) or await self._prepare(statement)
                self._begin()
                rows = await prepared.fetch(*arguments)
        except BaseException as error:
            self._end_after(error)
            raise
        finally:
            self._began = None
        return rows

    async def execute(self, statement: str) -> None:
        """Execute a statement without arguments, once: it is not prepared. Raises as `fetch`."""
        try:
            if self._pooled:
                async with _Transaction(self._driver, self._seconds):
                    await self._driver.execute(statement, timeout=self._seconds)
            else:
                await self._driver.execute(statement, timeout=self._seconds)
        except BaseException as error:
            self._end_after(error)
            raise

    async def listen(self, channel: str, heard: Callable[[], None], ended: Callable[[], None]) -> None:
        """Have ``heard`` called for every notification on a channel, and ``ended`` when the connection ends."""
        self._driver.add_termination_listener(lambda *_: ended())
        try:
            await self._driver.add_listener(channel, lambda *_: heard())
        except BaseException as error:
            self._end_after(error)
            raise

    def terminate(self) -> None:
        """Say good-bye and close at once, also where nobody answers. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self._driver.is_closed():
            self._driver.terminate()

    async def _prepare(self, statement: str) -> Any:
        prepared = self._prepared[statement] = await self._driver.prepare(statement, timeout=self._seconds)
        return prepared

    def _begin(self) -> None:
        """Take note of when a statement is sent."""
        self._began = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        """Close the connection if the answer to a statement is overdue; otherwise look again when it would be."""
        self._watch = None
        if self._began is not None:
            left = self._began + self._seconds - self._loop.time()
            if left > 0:
                self._watch = self._loop.call_later(left, self._look)
            else:
                self._overdue = True
                self.terminate()

    def _end_after(self, error: BaseException) -> None:
        """Close the connection after an error that leaves it in an unknown state.

        Raises:
            ConnectionLost: That it has ended, or is of no use any more, is what the error says.
        """
        if self._overdue and isinstance(error, Exception):
            raise ConnectionLost("no answer in time") from error
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            self._prepared.clear()  # the table has been changed
        elif isinstance(error, asyncpg.PostgresError):
            if str(error.sqlstate).startswith(_DISCONNECTING):
                self.terminate()
                raise ConnectionLost(reason(error)) from error
        else:
            self.terminate()
            if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
                raise ConnectionLost(reason(error)) from error


class _Transaction:
    """A transaction around one statement: a proxy keeps it on one connection of the server's, settings included."""

    def __init__(self, driver: Any, seconds: float) -> None:
        self._driver = driver
        self._seconds = seconds

    async def __aenter__(self) -> None:
        await self._driver.execute(_BEGIN, timeout=self._seconds)

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            await self._driver.execute("COMMIT", timeout=self._seconds)
        elif isinstance(error, asyncpg.PostgresError | asyncpg.DataError) and not self._driver.is_closed():
            await self._driver.execute("ROLLBACK", timeout=self._seconds)


async def reach(server: Server, *, given_up: Callable[[], bool] = lambda: False) -> Connection:
    """Connect; where the server is not there yet, try again until the time for connecting is up, or it is given up.

    Raises:
        StoreUnavailable: The server cannot be reached, or refuses us; the message says why.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + server.connect_timeout
    delay = _FIRST_DELAY
    while True:
        try:
            return await Connection.open(server, deadline - clock())
        except Exception as error:
            if given_up() or clock() + delay > deadline or not transient(error):
                raise StoreUnavailable(server.location, reason(error)) from error
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


def transient(error: BaseException) -> bool:
    """Whether connecting may work a moment later."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(_TRANSIENT) and error.sqlstate != _PROTOCOL_VIOLATION
    return isinstance(error, OSError)  # which a timeout is too


def retriable(error: BaseException) -> bool:
    """Whether a statement was rolled back for the sake of another one, or not begun, and may be sent again."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _RETRIABLE


def driver_error(error: BaseException) -> bool:
    """Whether this comes from the driver or the server."""
    return isinstance(error, (ConnectionLost, Unsettled, OSError, asyncpg.PostgresError, asyncpg.InterfaceError))


def reason(error: BaseException) -> str:
    """Say in one line what happened."""
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    text = " ".join(str(error).split())
    state = getattr(error, "sqlstate", None)
    advice = (
        "; behind a proxy such as PgBouncer, add pooler=transaction to the URL" if state == _PROTOCOL_VIOLATION else ""
    )
    return f"{text or type(error).__name__}{f' (SQLSTATE {state})' if state else ''}{advice}"
