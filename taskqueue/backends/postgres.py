"""A store in a PostgreSQL database, for more than one machine."""

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

try:
    from taskqueue.backends import _postgres_operations as operations
    from taskqueue.backends._postgres_clock import ServerClock
    from taskqueue.backends._postgres_connection import Server
    from taskqueue.backends._postgres_schema import DEFAULT_SCHEMA, SCHEMA_VERSION, quoted, schema_sql
    from taskqueue.backends._postgres_session import Session, channel_of
    from taskqueue.backends._postgres_transactional import enqueue_on
except ModuleNotFoundError as error:
    if error.name != "asyncpg":
        raise
    raise ModuleNotFoundError(
        "PostgreSQL needs the driver asyncpg: pip install 'taskqueue-spec[postgres]'", name="asyncpg"
    ) from error
from taskqueue.errors import InvalidArgument, NotConnected
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

__all__ = [
    "DEFAULT_SCHEMA",
    "SCHEMA_VERSION",
    "Pooler",
    "PostgresBackend",
    "ServerClock",
    "apply_schema",
    "schema_sql",
    "server_clock",
]

Pooler = Literal["none", "transaction"]
"""What stands between us and the server: nothing that matters, or a proxy that pools by transaction."""


class PostgresBackend:
    """A handle on a store in a PostgreSQL database.

    It fulfils the whole contract of :class:`~taskqueue.backend.Backend`: durable as the server is, and shared by any
    number of handles, processes and machines. Concurrent calls of one kind on a handle share one statement, and so does
    a claim beside completions, so throughput grows with concurrency. A handle that is connected has one connection for
    each event loop, and a second one there from its first ``wait`` on.

    Where an answer is lost together with the connection, the call raises StoreUnavailable, and may have happened or
    not; reads and ``extend`` are then repeated by the handle itself. The contract says what a caller does about the
    others. The next call connects again, and waits for a server that is just starting.

    A call takes records of up to 256 MiB in all; beyond, it raises TooLarge.

    Args:
        url: ``postgresql://user:password@host:port/database``, with the driver's parameters, such as ``sslmode``.
        schema: The namespace of the tables: 1 to 50 lower-case letters, digits and underscores.
        create: Whether ``connect`` creates the tables, or upgrades them to this version. Otherwise it raises
            StoreUnavailable where that is needed, and ``taskqueue schema apply`` does it.
        pooler: ``"transaction"`` behind a proxy that gives each transaction another connection, as PgBouncer does
            with ``pool_mode = transaction``: nothing is prepared or set for a session then, each statement is put in a
            transaction, and since nobody can listen, a ``wait`` ends after half a second.
        connect_timeout: How many seconds connecting may take, waiting for a server that is just starting included.
        statement_timeout: How many seconds a statement may take on the server, waiting for locks included. Behind a
            proxy it is watched from here only.

    Raises:
        InvalidArgument: One of them has another form.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        create: bool = True,
        pooler: Pooler = "none",
        connect_timeout: float = 10.0,
        statement_timeout: float = 30.0,
    ) -> None:
        quoted(schema)
        if pooler not in get_args(Pooler):
            raise InvalidArgument("pooler", pooler, "pass 'none' or 'transaction'")
        for argument, seconds in (("connect_timeout", connect_timeout), ("statement_timeout", statement_timeout)):
            if not 0 < seconds <= _LONGEST_TIMEOUT:
                raise InvalidArgument(argument, seconds, f"pass seconds above 0, up to {_LONGEST_TIMEOUT}")
        self._url = url
        self._schema = schema
        self._create = create
        self._pooler: Pooler = pooler
        self._server = Server(
            dsn=url,
            location=_location(url, schema),
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            pooled=pooler == "transaction",
        )
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._pid = os.getpid()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return a handle for ``postgresql://user:password@host:port/database?schema=taskqueue``, or ``postgres://``.

        The parameters ``schema``, ``create`` (``true`` or ``false``), ``pooler``, ``connect_timeout`` and
        ``statement_timeout`` are those of this class; all others go to the driver.

        Raises:
            InvalidArgument: The URL has another form, or a parameter has no such value.
        """
        parts = urlsplit(url)
        given: dict[str, str] = {}
        rest: list[tuple[str, str]] = []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in _PARAMETERS:
                given[name] = value
            else:
                rest.append((name, value))
        if given.get("create", "true") not in {"true", "false"}:
            raise InvalidArgument("create", given["create"], "write create=true or create=false")
        pooler = given.get("pooler", "none")
        return cls(
            urlunsplit(parts._replace(query=urlencode(rest))),
            schema=given.get("schema", DEFAULT_SCHEMA),
            create=given.get("create", "true") == "true",
            pooler="transaction" if pooler == "transaction" else pooler,  # type: ignore[arg-type]  # __init__ looks
            connect_timeout=_seconds("connect_timeout", given.get("connect_timeout", "10")),
            statement_timeout=_seconds("statement_timeout", given.get("statement_timeout", "30")),
        )

    @property
    def schema(self) -> str:
        """The namespace of the tables."""
        return self._schema

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server.location!r})"

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same store, with the same settings."""
        return type(self)(
            self._url,
            schema=self._schema,
            create=self._create,
            pooler=self._pooler,
            connect_timeout=self._server.connect_timeout,
            statement_timeout=self._server.statement_timeout,
        )

    async def connect(self) -> None:
        """Connect, creating the tables if they are missing. See :meth:`taskqueue.backend.Backend.connect`.

        Processes that connect to a new store at the same time wait for each other.

        Raises:
            IncompatibleStore: The namespace holds something else, or a newer taskqueue's tables; nothing was touched.
            StoreUnavailable: The server cannot be reached, or refuses us; the message says why.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._sessions = {}  # the parent's; _postgres_session keeps them from being collected
        loop = asyncio.get_running_loop()
        for other in [other for other in self._sessions if other.is_closed()]:
            del self._sessions[other]
        while (session := self._sessions.get(loop)) is not None and session.closing is not None:
            await asyncio.wait((session.closing,))
            self._forget(loop, session)
        if session is None:
            session = self._sessions[loop] = Session(self._server, self._schema, create=self._create)
        try:
            await session.connected()
        finally:
            if session.closing is not None and session.closing.done():
                self._forget(loop, session)

    async def close(self) -> None:
        """Answer the calls under way, end every ``wait``, and disconnect. Idempotent; the data stays."""
        session = self._sessions.get(asyncio.get_running_loop()) if self._pid == os.getpid() else None
        if session is not None:
            closing = session.close()
            await asyncio.wait((closing,))
            self._forget(asyncio.get_running_loop(), session)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks, all of them or none. See :meth:`taskqueue.backend.Backend.enqueue`."""
        session = self._session()
        if tasks:
            await session.submit(operations.Enqueue.of(tasks))

    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks in the application's transaction. See :class:`taskqueue.backend.TransactionalBackend`.

        Args:
            connection: A connection of asyncpg (or out of its pool) or of psycopg, asynchronous or not, to the
                database that this store is in. A role of its own needs ``USAGE`` on the namespace, and ``SELECT``,
                ``INSERT`` and ``DELETE`` on its table ``tasks``.
            tasks: As for ``enqueue``.
        """
        session = self._session()
        if tasks:
            await enqueue_on(connection, session.table, operations.Enqueue.of(tasks), channel_of(self._schema))

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Take up to ``limit`` due tasks. See :meth:`taskqueue.backend.Backend.claim`."""
        session = self._session()
        return await session.submit(operations.Claim(now, limit, lease_expires_at)) if limit else []

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Lengthen the leases still held. See :meth:`taskqueue.backend.Backend.extend`."""
        session = self._session()
        if not claims:
            return []
        pairs = tuple((task_id, attempt) for task_id, attempt in claims)
        return await session.submit(operations.Extend(pairs, lease_expires_at))

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a held task as SUCCESS. See :meth:`taskqueue.backend.Backend.complete`."""
        await self._session().submit(operations.Complete.of(task_id, attempt, value=value, now=now))

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failed attempt. See :meth:`taskqueue.backend.Backend.fail`."""
        return await self._session().submit(operations.Fail.of(task_id, attempt, failure, if_expired=if_expired))

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a task as CANCELLED. See :meth:`taskqueue.backend.Backend.cancel`."""
        return await self._session().submit(operations.Cancel(task_id, now))

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List RUNNING tasks whose lease has run out. See :meth:`taskqueue.backend.Backend.expired`."""
        session = self._session()
        return await session.submit(operations.Expired(now, limit)) if limit else []

    async def next_due(self) -> datetime | None:
        """Return the next instant of interest. See :meth:`taskqueue.backend.Backend.next_due`."""
        return await self._session().submit(operations.NextDue())

    async def get(self, task_id: str) -> Task | None:
        """Return a task, or None. See :meth:`taskqueue.backend.Backend.get`."""
        return await self._session().submit(operations.Get(task_id))

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List tasks in the order of enqueueing. See :meth:`taskqueue.backend.Backend.tasks`.

        Raises:
            InvalidArgument: ``after`` is not a cursor of this backend.
        """
        session = self._session()
        operation = operations.Page.of(status=status, after=after, limit=limit)
        return await session.submit(operation) if limit else ([], after)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks for each status. See :meth:`taskqueue.backend.Backend.counts`."""
        return await self._session().submit(operations.Counts())

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Remove ended tasks. See :meth:`taskqueue.backend.Backend.purge`."""
        session = self._session()
        return await session.submit(operations.Purge(finished_before, limit)) if limit else 0

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name; a hint is no deadline
        """Wait for a change. See :meth:`taskqueue.backend.Backend.wait`."""
        await self._session().wait(timeout)

    def _session(self) -> Session:
        session = self._sessions.get(asyncio.get_running_loop()) if self._pid == os.getpid() else None
        if session is None or not session.usable:
            raise NotConnected(f"{self!r} is not connected on this event loop: await connect() first")
        return session

    def _forget(self, loop: asyncio.AbstractEventLoop, session: Session) -> None:
        if self._sessions.get(loop) is session:
            del self._sessions[loop]


async def apply_schema(url: str) -> None:
    """Create the tables of a store, or upgrade them to this version. Changes nothing where they are as they should be.

    Args:
        url: As for :meth:`PostgresBackend.from_url`; its ``schema`` is the namespace.

    Raises:
        InvalidArgument: The URL has another form.
        IncompatibleStore: The namespace holds something else, or a newer taskqueue's tables; nothing was touched.
        StoreUnavailable: The server cannot be reached, or the role may not do it.
    """
    given = PostgresBackend.from_url(url)
    backend = PostgresBackend(given._url, schema=given.schema, pooler=given._pooler)  # noqa: SLF001 - of this class
    try:
        await backend.connect()
    finally:
        await backend.close()


def server_clock(url: str, *, every: float = 60.0) -> ServerClock:
    """Return a clock that follows the server's, for ``TaskQueue(clock=…)`` on hosts whose clocks disagree.

    .. code-block:: python

        async with server_clock(url) as clock:
            queue = TaskQueue.from_url(url, clock=clock)

    Args:
        url: As for :meth:`PostgresBackend.from_url`.
        every: How many seconds lie between two looks at the server's clock.

    Raises:
        InvalidArgument: The URL has another form, or ``every`` is not above zero.
    """
    if not 0 < every <= _LONGEST_TIMEOUT:
        raise InvalidArgument("every", every, f"pass seconds above 0, up to {_LONGEST_TIMEOUT}")
    return ServerClock(PostgresBackend.from_url(url)._server, every=every)  # noqa: SLF001 - of this module


_LONGEST_TIMEOUT: Final = 2_000_000
_PARAMETERS: Final = frozenset({"schema", "create", "pooler", "connect_timeout", "statement_timeout"})
_ADVICE: Final = (
    "write postgresql://user:password@host:port/database, with what has a meaning in a URL percent-encoded in the "
    "user and the password: # is %23, % is %25, / is %2F, : is %3A, ? is %3F, @ is %40"
)
_HOST: Final = r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]*)?"


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InvalidArgument(name, value, "write a number of seconds") from None


def _location(url: str, schema: str) -> str:
    """Return a URL without its password and its parameters, but with the namespace.

    Raises:
        InvalidArgument: It is no URL of PostgreSQL.
    """
    try:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    except (ValueError, AttributeError, TypeError):
        raise InvalidArgument("url", "(not shown: it may hold a password)", _ADVICE) from None
    login, at, hosts = parts.netloc.rpartition("@")
    # Half a password would be taken for a port or a database, and be shown: the other half ends up behind the host.
    cut = "#" in url or "@" in parts.path or any("@" in name for name in parameters)
    ours = parts.scheme in {"postgresql", "postgres"} and "://" in url
    if not ours or cut or not all(re.fullmatch(_HOST, host) for host in hosts.split(",")):
        raise InvalidArgument("url", "(not shown: it may hold a password)", _ADVICE)
    hosts = unquote(hosts) or parameters.get("host", "")
    return f"postgresql://{login.partition(':')[0]}{at}{hosts}{parts.path}?schema={schema}"
