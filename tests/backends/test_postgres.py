"""What PostgreSQL adds to the contract: its schema, its failures, its statements, its connections."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest
from pooling_proxy import PoolingProxy

from taskqueue import (
    Failure,
    IncompatibleStore,
    InvalidArgument,
    StaleClaim,
    StoreUnavailable,
    Task,
    TaskExists,
    TaskNotFound,
    TaskStatus,
    TooLarge,
)
from taskqueue.backends import (
    _postgres_connection,
    _postgres_listener,
    _postgres_operations,
    _postgres_schema,
    _postgres_session,
    _postgres_store,
)
from taskqueue.backends.postgres import SCHEMA_VERSION, PostgresBackend, apply_schema, schema_sql
from taskqueue_conformance.postgres_server import PostgresServer

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LEASE = NOW + timedelta(seconds=30)
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def new_task(task_id: str, **changes: Any) -> Task:
    return Task(**({"id": task_id, "payload": b"p", "enqueued_at": NOW, "available_at": NOW} | changes))


@pytest.fixture
def run() -> Run:
    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(coroutine, 30))

    return run


@asynccontextmanager
async def connected(url: str, **options: Any) -> Any:
    given = PostgresBackend.from_url(url)
    backend = PostgresBackend(given._url, schema=given.schema, **options) if options else given
    await backend.connect()
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def raw(url: str) -> Any:
    """A connection of the application's, or of an administrator's."""
    connection = await asyncpg.connect(PostgresBackend.from_url(url)._url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def like_a_session(backend: PostgresBackend) -> Any:
    """A connection with the settings of a handle's own, which is only for the handle: it sends when it likes."""
    connection = await _postgres_connection.Connection.open(backend._server)
    try:
        yield connection
    finally:
        connection.terminate()


def schema_of(url: str) -> str:
    return dict(parse_qsl(urlsplit(url).query))["schema"]


async def kill_connections(url: str, **where: str) -> int:
    """End the connections of taskqueues to this server, as an administrator does."""
    condition = "".join(f" AND {name} LIKE '{pattern}'" for name, pattern in where.items())
    async with raw(url) as admin:
        killed = await admin.fetch(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'taskqueue'{condition}"
        )
    return len(killed)


# Addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_with_own_and_foreign_parameters(scheme: str) -> None:
    backend = PostgresBackend.from_url(
        f"{scheme}://me:secret@db:5433/app?schema=jobs&sslmode=require&statement_timeout=2.5&create=false"
    )
    assert backend.schema == "jobs"
    assert backend._url == f"{scheme}://me:secret@db:5433/app?sslmode=require"
    assert (backend._server.statement_timeout, backend._create) == (2.5, False)
    assert repr(backend) == "PostgresBackend('postgresql://me@db:5433/app?schema=jobs')"


def test_a_clone_has_the_same_settings() -> None:
    url = "postgresql://db/app?schema=jobs&pooler=transaction&connect_timeout=3&create=false"
    backend = PostgresBackend.from_url(url)
    clone = backend.clone()
    assert clone is not backend
    assert (clone._server, clone._create, clone.schema) == (backend._server, backend._create, backend.schema)


@pytest.mark.parametrize(
    ("url", "argument"),
    [
        ("sqlite:///x.db", "url"),
        ("postgresql:/x", "url"),
        ("postgresql://db/app?schema=No", "schema"),
        ("postgresql://db/app?schema=", "schema"),
        ("postgresql://db/app?schema=" + "s" * 51, "schema"),
        ("postgresql://db/app?schema=pg_mine", "schema"),
        ('postgresql://db/app?schema=a";drop', "schema"),
        ("postgresql://db/app?create=perhaps", "create"),
        ("postgresql://db/app?pooler=session", "pooler"),
        ("postgresql://db/app?connect_timeout=0", "connect_timeout"),
        ("postgresql://db/app?statement_timeout=soon", "statement_timeout"),
        ("postgresql://db/app?statement_timeout=nan", "statement_timeout"),
        ("postgresql://db:port/app", "url"),
        ("postgresql://one:5432,two:5432x/app", "url"),
    ],
)
def test_a_url_that_means_nothing_is_refused(url: str, argument: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        PostgresBackend.from_url(url)
    assert refused.value.argument == argument


@pytest.mark.parametrize("host", ["db", "db:5433", "[::1]:5433", "one:5432,two:5433", "", "%2Fvar%2Frun"])
def test_hosts_are_those_of_the_driver(host: str) -> None:
    PostgresBackend.from_url(f"postgresql://me:se%23cret@{host}/app")


@pytest.mark.parametrize("password", ["12#34", "qqq#xxx", "12/34", "qqq/xxx", "12?34", "qqq?xxx"])
def test_a_password_that_is_not_encoded_is_refused_and_no_part_of_it_shown(password: str) -> None:
    with pytest.raises(InvalidArgument, match="%23") as refused:
        PostgresBackend.from_url(f"postgresql://me:{password}@db/app")
    assert "qqq" not in str(refused.value)
    assert "xxx" not in str(refused.value)
    assert refused.value.value == "(not shown: it may hold a password)"


def test_no_password_is_shown(run: Run) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/app?password=secret&connect_timeout=0.1"
    backend = PostgresBackend.from_url(url)
    with pytest.raises(StoreUnavailable) as refused:
        run(backend.connect())
    assert (
        "secret"
        not in f"{backend!r} {backend._server!r} {refused.value} {refused.value.location} {refused.value.reason}"
    )
    assert "127.0.0.1:1" in refused.value.location


def test_a_server_that_is_not_there_is_waited_for_only_so_long(run: Run, tmp_path: Path) -> None:
    async def main() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable):
            await PostgresBackend(f"postgresql://u@/d?host={tmp_path}", connect_timeout=0.3).connect()
        return asyncio.get_running_loop().time() - began

    assert run(main()) < 10


def test_all_attempts_to_connect_share_one_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    connect = asyncpg.connect

    async def noted(*arguments: Any, timeout: float, **options: Any) -> Any:  # noqa: ASYNC109 - the driver's
        allowed.append(timeout)
        return await connect(*arguments, timeout=timeout, **options)

    monkeypatch.setattr(asyncpg, "connect", noted)
    with pytest.raises(StoreUnavailable):
        run(PostgresBackend(f"postgresql://u@/d?host={tmp_path}", connect_timeout=0.3).connect())
    assert len(allowed) > 2
    assert allowed[0] <= 0.3
    assert allowed == sorted(allowed, reverse=True)
    assert allowed[-1] < 0.3


def test_a_database_that_does_not_exist_is_not_waited_for(run: Run, postgres_url: str) -> None:
    url = postgres_url.replace("/postgres?", "/nowhere?")
    if url == postgres_url:
        pytest.skip("the database of TASKQUEUE_TEST_POSTGRES has another name")
    with pytest.raises(StoreUnavailable, match="nowhere"):
        run(PostgresBackend(url).connect())


# The schema ---------------------------------------------------------------------------------------------------------


def test_ten_handles_may_make_the_same_store_at_once(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        handles = [PostgresBackend.from_url(postgres_store) for _ in range(10)]
        await asyncio.gather(*(handle.connect() for handle in handles))
        await asyncio.gather(*(handle.enqueue([new_task(f"{n}")]) for n, handle in enumerate(handles)))
        assert (await handles[0].counts())[TaskStatus.PENDING] == 10
        for handle in handles:
            await handle.close()

    run(main())


def test_who_waited_for_the_tables_to_be_made_does_not_make_them_again(run: Run, postgres_store: str) -> None:
    """On a connection that has looked for them, and that has made others before, as behind a proxy."""
    schema, before = schema_of(postgres_store), f"{schema_of(postgres_store)}_before"

    async def main() -> None:
        async with raw(postgres_store) as one, raw(postgres_store) as other:
            await other.execute(schema_sql(before))
            with pytest.raises(asyncpg.UndefinedTableError):
                await other.fetch(f"SELECT version FROM {schema}.schema_version")
            async with one.transaction():
                await one.execute(schema_sql(schema))
                waiting = asyncio.create_task(other.execute(schema_sql(schema)))
                while not await one.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
            await waiting
            await other.execute(f"DROP SCHEMA {before} CASCADE")

    run(main())


def test_the_sql_that_is_printed_makes_a_store(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with raw(postgres_store) as admin:
            for _ in range(2):  # a second time it changes nothing
                await admin.execute(schema_sql(schema_of(postgres_store)))
        async with connected(postgres_store, create=False) as backend:
            await backend.enqueue([new_task("a")])

    run(main())


def test_a_store_is_made_only_where_that_is_wanted(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        with pytest.raises(StoreUnavailable, match="taskqueue schema apply"):
            async with connected(postgres_store, create=False):
                pass
        async with raw(postgres_store) as admin:
            assert await admin.fetchval("SELECT to_regnamespace($1)", schema_of(postgres_store)) is None
        await apply_schema(f"{postgres_store}&create=false")
        async with connected(postgres_store, create=False) as backend:
            await backend.enqueue([new_task("a")])

    run(main())


def test_an_older_store_is_upgraded_once_by_whoever_comes_first(
    run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a step that there is not yet: the tables get a column, and the tasks stay."""
    step = """
    ALTER TABLE @schema.tasks ADD COLUMN later integer NOT NULL DEFAULT 7;
    UPDATE @schema.schema_version SET version = 2;
    """
    schema = schema_of(postgres_store)

    async def main() -> None:
        async with connected(postgres_store) as old:
            await old.enqueue([new_task("a")])
            for module in (_postgres_store, _postgres_schema):
                monkeypatch.setattr(module, "SCHEMA_VERSION", 2)
            monkeypatch.setattr(_postgres_schema, "_STEPS", (*_postgres_schema._STEPS, step))
            with pytest.raises(StoreUnavailable, match=r"older version 1.*taskqueue schema apply"):
                async with connected(postgres_store, create=False):
                    pass
            handles = [old.clone() for _ in range(10)]
            await asyncio.gather(*(handle.connect() for handle in handles))
            assert [await handle.get("a") for handle in handles] == [await old.get("a")] * 10
            await asyncio.gather(*(handle.close() for handle in handles))
        async with raw(postgres_store) as admin:
            assert await admin.fetchval(f"SELECT version FROM {schema}.schema_version") == 2
            assert await admin.fetchval(f"SELECT later FROM {schema}.tasks") == 7

    run(main())


def test_a_newer_store_is_refused_and_left_alone(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        schema = schema_of(postgres_store)
        await apply_schema(postgres_store)
        async with raw(postgres_store) as admin:
            await admin.execute(f"UPDATE {schema}.schema_version SET version = {SCHEMA_VERSION + 1}")
            for attempt in (apply_schema, lambda url: PostgresBackend.from_url(url).connect()):
                with pytest.raises(IncompatibleStore) as refused:
                    await attempt(postgres_store)
                assert (refused.value.found, refused.value.supported) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)
            assert await admin.fetchval(f"SELECT version FROM {schema}.schema_version") == SCHEMA_VERSION + 1

    run(main())


def test_other_tables_of_that_name_are_left_alone(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        schema = schema_of(postgres_store)
        async with raw(postgres_store) as admin:
            await admin.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.tasks (mine text)")
            with pytest.raises(IncompatibleStore) as refused:
                await apply_schema(postgres_store)
            assert refused.value.found is None
            tables = await admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
            assert [table[0] for table in tables] == ["tasks"]

    run(main())


def test_a_role_that_owns_only_its_schema_is_enough(run: Run, postgres_store: str) -> None:
    schema = schema_of(postgres_store)
    role = f"limited_{schema[5:]}"

    async def main() -> None:
        async with raw(postgres_store) as admin:
            if not await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
                pytest.skip("only a superuser can make roles")
            await admin.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA {schema} AUTHORIZATION {role}")
            url = postgres_store.replace("postgres@", f"{role}@", 1)
            try:
                async with connected(url) as backend:
                    await backend.enqueue([new_task("a")])
                    (task,) = await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)
                    await backend.complete(task.id, 1, value=b"", now=NOW)
                with pytest.raises(StoreUnavailable, match="CREATE SCHEMA"):
                    await PostgresBackend.from_url(url.replace(schema, f"{schema}_other")).connect()
            finally:
                await admin.execute(f"DROP SCHEMA {schema} CASCADE; DROP ROLE {role}")

    run(main())


def test_a_database_that_cannot_store_every_text_is_refused(run: Run, postgres_server: PostgresServer) -> None:
    async def main() -> None:
        admin = await asyncpg.connect(postgres_server.url)
        await admin.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
        await admin.close()
        with pytest.raises(StoreUnavailable, match="SQL_ASCII"):
            await PostgresBackend(postgres_server.url.replace("/postgres?", "/ascii?")).connect()

    run(main())


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_statements_go_along_their_indexes_whatever_the_statistics_say(
    run: Run, postgres_store: str, rows: int
) -> None:
    names = (
        "_CLAIM",
        "_COMPLETE",
        "_COMPLETE_ONE",
        "_FAIL",
        "_CANCEL",
        "_EXTEND",
        "_EXPIRED",
        "_PURGE",
        "_GET_SEVERAL",
    )

    async def main() -> dict[str, str]:
        plans = {}
        async with connected(postgres_store) as backend, like_a_session(backend) as own:
            await backend.enqueue([new_task(f"{n}") for n in range(rows)])
            await backend.claim(now=NOW, limit=rows // 2, lease_expires_at=LEASE)
            async with raw(postgres_store) as admin:
                await admin.execute(f"VACUUM ANALYZE {schema_of(postgres_store)}.tasks")  # it fits into one page
            session = backend._session()
            statements = {name: getattr(_postgres_operations, name) for name in names}
            statements["_COMPLETE_AND_CLAIM"] = _postgres_operations._with_claim(
                statements["_COMPLETE"], statements["_CLAIM"]
            )
            for name, template in statements.items():
                statement = session.table.sql(template)
                await own.fetch(f"PREPARE {name} AS {statement}")
                arguments = ", ".join("NULL" for number in range(1, 10) if f"${number}" in statement)
                plan = await own.fetch(f"EXPLAIN EXECUTE {name} ({arguments})")
                plans[name] = "\n".join(row[0] for row in plan)
        return plans

    for name, plan in run(main()).items():
        assert "Seq Scan" not in plan, (name, plan)
        # Each index is entered at a key, and none read from end to end.
        assert plan.count("Index Scan using") == plan.count("Index Cond") > 0, (name, plan)
        if name == "_CLAIM":
            assert "Index Scan using tasks_due" in plan
            assert "Sort" not in plan


def test_a_listing_of_few_tasks_does_not_read_those_that_have_ended(run: Run, postgres_store: str) -> None:
    """Whether there are statistics or not."""
    ended, schema = 2000, schema_of(postgres_store)

    async def main() -> list[str]:
        async with connected(postgres_store) as backend, raw(postgres_store) as admin, like_a_session(backend) as own:
            await backend.enqueue([new_task(f"{n}") for n in range(1000)])
            await backend.enqueue([new_task(f"{n}") for n in range(1000, ended)])
            for table_is in ("unknown", "analysed"):
                for task in await backend.claim(now=NOW, limit=ended, lease_expires_at=LEASE):
                    await backend.cancel(task.id, now=NOW)
                await backend.enqueue([new_task(f"{table_is}-{n}") for n in range(10)])
                await backend.claim(now=NOW, limit=5, lease_expires_at=LEASE)
                table = backend._session().table
                for status in (TaskStatus.PENDING, TaskStatus.RUNNING):
                    statement = table.sql(_postgres_operations.Page.statement(status))
                    name = f"page_{table_is}_{status}"
                    await own.fetch(f"PREPARE {name} AS {statement}")
                    plan = await own.fetch(f"EXPLAIN EXECUTE {name} (0, 10)")
                    plans.append("\n".join(row[0] for row in plan))
                await admin.execute(f"VACUUM ANALYZE {schema}.tasks")
        return plans

    plans: list[str] = []
    for plan, index in zip(run(main()), ["tasks_due", "tasks_leased"] * 2, strict=True):
        assert f"Index Scan using {index}" in plan, plan


# Failures of the server and the network -----------------------------------------------------------------------------


def test_a_connection_that_was_ended_while_idle_is_opened_again(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task("a")])
            assert await kill_connections(postgres_store) >= 1
            assert await backend.get("a") is not None  # a read is repeated, so nobody notices
            assert await kill_connections(postgres_store) >= 1
            await asyncio.sleep(0.05)  # by now the end of the connection has been seen
            await backend.enqueue([new_task("b")])
            assert (await backend.counts())[TaskStatus.PENDING] == 2

    run(main())


def test_a_call_whose_connection_ends_says_that_its_outcome_is_unknown(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        schema = schema_of(postgres_store)
        async with connected(postgres_store) as backend, raw(postgres_store) as other:
            await backend.enqueue([new_task("a")])
            await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)
            async with other.transaction():
                await other.execute(f"SELECT 1 FROM {schema}.tasks FOR UPDATE")
                completing = asyncio.ensure_future(backend.complete("a", 1, value=b"", now=NOW))
                while not await kill_connections(postgres_store, wait_event_type="Lock"):  # noqa: ASYNC110 - of the server
                    await asyncio.sleep(0.01)
                with pytest.raises(StoreUnavailable, match="may have happened or not"):
                    await completing
            await backend.complete("a", 1, value=b"again", now=NOW)
            task = await backend.get("a")
            assert task is not None
            assert task.value == b"again"

    run(main())


def test_a_statement_that_waits_too_long_changes_nothing(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        schema = schema_of(postgres_store)
        async with connected(postgres_store, statement_timeout=0.1) as backend, raw(postgres_store) as other:
            await backend.enqueue([new_task("a"), new_task("b")])
            await backend.claim(now=NOW, limit=2, lease_expires_at=LEASE)
            async with other.transaction():
                await other.execute(f"SELECT 1 FROM {schema}.tasks WHERE id = 'a' FOR UPDATE")
                answers = await asyncio.gather(
                    *(backend.complete(task_id, 1, value=b"", now=NOW) for task_id in "ab"), return_exceptions=True
                )
                assert isinstance(answers[0], StoreUnavailable)
                assert "57014" in answers[0].reason
                assert answers[1] is None  # what one waits for harms nobody else
            assert (await backend.counts())[TaskStatus.RUNNING] == 1
            await backend.complete("a", 1, value=b"", now=NOW)

    run(main())


def test_an_answer_that_does_not_come_in_time_is_given_up(
    run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_connection, "_GRACE_SECONDS", -19.9)  # the server itself would take longer

    async def main() -> None:
        async with connected(postgres_store, statement_timeout=20.0) as backend, raw(postgres_store) as other:
            await backend.enqueue([new_task("a")])
            await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)
            async with other.transaction():
                await other.execute(f"SELECT 1 FROM {schema_of(postgres_store)}.tasks FOR UPDATE")
                with pytest.raises(StoreUnavailable, match="no answer in time; the call may have happened or not"):
                    await backend.complete("a", 1, value=b"", now=NOW)
            monkeypatch.undo()
            assert (await backend.get("a")) is not None

    run(main())


def test_a_table_that_was_changed_is_used_on(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend, raw(postgres_store) as admin:
            await backend.enqueue([new_task("a")])
            assert await backend.get("a") is not None
            await admin.execute(f"ALTER TABLE {schema_of(postgres_store)}.tasks ALTER max_retries TYPE integer")
            task = await backend.get("a")  # what was prepared is of no use any more
            assert task is not None
            assert task.max_retries == 0

    run(main())


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_calls_wait_for_a_server_that_is_restarted(
    run: Run, postgres_server: PostgresServer, postgres_store: str, mode: Any
) -> None:
    url = f"{postgres_server.url}&schema={schema_of(postgres_store)}"

    async def main() -> None:
        async with connected(url) as backend:
            await backend.enqueue([new_task("a")])
            restart = asyncio.create_task(asyncio.to_thread(postgres_server.restart, mode))
            while not restart.done():
                task = await backend.get("a")  # which may be repeated, so it only takes longer
                assert task is not None
                await asyncio.sleep(0.01)
            await restart
            await backend.enqueue([new_task("b")])

    run(main())


def test_who_waits_hears_of_changes_again_after_the_connection_was_lost(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend, connected(postgres_store) as other:
            await backend.wait(10)  # which begins to listen, and ends as soon as it does
            # It is killed several times, since a listener may be about to ask whether it is alive.
            for number in range(3):
                waiting = asyncio.ensure_future(backend.wait(20))
                await asyncio.sleep(0.05)
                await kill_connections(postgres_store, query="%LISTEN%")
                await kill_connections(postgres_store, query="SELECT 1")
                await waiting  # what was missed is unknown, so it ends early
                waiting = asyncio.ensure_future(backend.wait(20))
                await asyncio.sleep(0.05)
                with suppress(StoreUnavailable):
                    await other.enqueue([new_task(f"{number}")])
                await asyncio.wait_for(waiting, 10)

    run(main())


@pytest.mark.parametrize("answers", [True, False])
def test_close_lets_a_listener_finish_connecting_but_not_for_ever(
    run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    """Cancelled in the middle of it, the driver leaves an exception behind that nobody hears."""
    opened = _postgres_connection.Connection.open
    left: list[str] = []

    async def main() -> None:
        connecting, closing = asyncio.Event(), asyncio.Event()

        async def held(server: Any, seconds: float | None = None) -> Any:
            if seconds is not None:
                return await opened(server, seconds)
            connecting.set()
            try:
                await closing.wait()
                if not answers:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                left.append("cancelled")
                raise
            left.append("connected")
            return await opened(server)

        async with connected(postgres_store) as backend:
            monkeypatch.setattr(_postgres_connection.Connection, "open", held)
            waiting = asyncio.ensure_future(backend.wait(20))
            await connecting.wait()
            asyncio.get_running_loop().call_later(0.05, closing.set)
        await waiting

    run(main())
    assert left == ["connected" if answers else "cancelled"]


def test_a_listener_that_cannot_connect_says_so_once(
    run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ConnectionRefusedError("nobody there")] * 3
    opened = _postgres_connection.Connection.open

    async def sometimes(server: Any, seconds: float | None = None) -> Any:
        if failures and seconds is None:  # the listener's
            raise failures.pop()
        return await opened(server, seconds)

    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.wait(20)  # it ends as soon as somebody listens

    monkeypatch.setattr(_postgres_connection.Connection, "open", sometimes)
    monkeypatch.setattr(_postgres_listener, "_FIRST_DELAY", 0.001)
    run(main())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert not failures
    assert len(warnings) == 2, warnings
    assert "cannot listen" in warnings[0]
    assert "nobody there" in warnings[0]
    assert warnings[1].endswith("again")


def test_a_deadlock_is_tried_again(run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = 0

    async def main() -> None:
        nonlocal raised
        original = _postgres_connection.Connection.fetch

        async def unlucky(self: Any, statement: str, *arguments: Any) -> Any:
            nonlocal raised
            if "INSERT" in statement and raised < 2:
                raised += 1
                raise asyncpg.DeadlockDetectedError("somebody had to give way")
            return await original(self, statement, *arguments)

        async with connected(postgres_store) as backend:
            monkeypatch.setattr(_postgres_connection.Connection, "fetch", unlucky)
            await backend.enqueue([new_task("a")])
            assert await backend.get("a") is not None

    run(main())
    assert raised == 2


# Calls together -----------------------------------------------------------------------------------------------------


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to the server."""
    sent: list[str] = []
    for name in ("fetch", "execute"):
        original = getattr(_postgres_connection.Connection, name)

        async def watched(self: Any, statement: str, *arguments: Any, original: Any = original) -> Any:
            if not statement.startswith("NOTIFY"):
                sent.append(statement)
            return await original(self, statement, *arguments)

        monkeypatch.setattr(_postgres_connection.Connection, name, watched)
    return sent


def test_calls_that_come_together_share_a_statement(run: Run, postgres_store: str, statements: list[str]) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            statements.clear()
            await asyncio.gather(*(backend.enqueue([new_task(f"{n}")]) for n in range(100)))
            await backend.claim(now=NOW, limit=100, lease_expires_at=LEASE)
            await asyncio.gather(
                *(backend.complete(f"{n}", 1, value=f"{n}".encode(), now=NOW) for n in range(0, 100, 2)),
                *(backend.fail(f"{n}", 1, Failure(attempt=1, error=f"{n}", failed_at=NOW)) for n in range(1, 100, 2)),
            )
            found = await asyncio.gather(*(backend.get(f"{n}") for n in range(100)))
            assert len(statements) == 5
            for n, task in enumerate(found):
                assert task is not None
                assert task.value == (None if n % 2 else f"{n}".encode())
                assert [failure.error for failure in task.failures] == ([f"{n}"] if n % 2 else [])

    run(main())


def test_a_claim_beside_completions_shares_their_statement(
    run: Run, postgres_store: str, statements: list[str]
) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task(f"{n:02}") for n in range(30)])
            await backend.claim(now=NOW, limit=10, lease_expires_at=LEASE)
            statements.clear()
            *completed, claimed = await asyncio.gather(
                *(backend.complete(f"{n:02}", 1, value=b"v", now=NOW) for n in range(10)),
                backend.claim(now=NOW, limit=15, lease_expires_at=LEASE),
            )
            assert len(statements) == 1
            assert completed == [None] * 10
            assert [task.id for task in claimed] == [f"{n:02}" for n in range(10, 25)]
            counts = await backend.counts()
            assert [counts[TaskStatus(each)] for each in ("success", "running", "pending")] == [10, 15, 5]

    run(main())


@pytest.mark.parametrize("kinds", [[StaleClaim, TaskNotFound], [StoreUnavailable] * 2], ids=["why", "nobody knows why"])
def test_a_claim_beside_completions_that_are_refused_has_its_answer(
    run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch, kinds: list[type]
) -> None:
    if StoreUnavailable in kinds:
        monkeypatch.setattr(_postgres_operations, "_STATE", "SELECT * FROM nowhere WHERE id = ANY ($1::text[])")

    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task("a"), new_task("b")])
            await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)
            *refused, claimed = await asyncio.gather(
                backend.complete("a", 2, value=b"", now=NOW),
                backend.complete("unknown", 1, value=b"", now=NOW),
                backend.claim(now=NOW, limit=5, lease_expires_at=LEASE),
                return_exceptions=True,
            )
            assert [type(each) for each in refused] == kinds
            assert [(task.id, task.attempts) for task in claimed] == [("b", 1)]

    run(main())


def test_every_call_alone_is_one_statement(run: Run, postgres_store: str, statements: list[str]) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda: backend.enqueue([new_task(each, max_retries=2) for each in "abc"]),
                lambda: backend.enqueue([new_task("d")]),
                lambda: backend.claim(now=NOW, limit=4, lease_expires_at=LEASE),
                lambda: backend.extend([("a", 1), ("b", 1)], lease_expires_at=LEASE + timedelta(seconds=1)),
                lambda: backend.complete("a", 1, value=b"", now=NOW),
                lambda: backend.fail("b", 1, Failure(attempt=1, error="e", failed_at=NOW, retry_at=NOW)),
                lambda: backend.cancel("c", now=NOW),
                lambda: backend.expired(now=LEASE, limit=10),
                backend.next_due,
                lambda: backend.get("a"),
                lambda: backend.tasks(limit=10),
                backend.counts,
                lambda: backend.purge(finished_before=LEASE, limit=10),
            ]
            for call in calls:
                statements.clear()
                await call()
                assert len(statements) == 1, statements

    run(main())


def test_a_record_that_cannot_be_stored_harms_no_other_call(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            answers = await asyncio.gather(
                backend.enqueue([new_task("a")]),
                backend.enqueue([new_task("half of a pair: \ud800")]),
                backend.enqueue([new_task("b")]),
                return_exceptions=True,
            )
            assert [type(answer) for answer in answers] == [type(None), UnicodeEncodeError, type(None)] or isinstance(
                answers[1], Exception
            )
            assert (answers[0], answers[2]) == (None, None)
            assert (await backend.counts())[TaskStatus.PENDING] == 2

    run(main())


def test_of_calls_that_come_together_each_has_an_outcome_of_its_own(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task("known")])
            answers = await asyncio.gather(
                backend.enqueue([new_task("x"), new_task("known")]),
                backend.enqueue([new_task("x")]),
                backend.enqueue([new_task("x")]),
                backend.enqueue([new_task("twice"), new_task("twice"), new_task("known")]),
                return_exceptions=True,
            )
            refused = [answer.task_ids if isinstance(answer, TaskExists) else answer for answer in answers]
            assert refused == [("known",), None, ("x",), ("twice", "known")]
            await backend.claim(now=NOW, limit=2, lease_expires_at=LEASE)
            ends = await asyncio.gather(
                *(backend.complete("x", 1, value=f"{n}".encode(), now=NOW) for n in range(3)), return_exceptions=True
            )
            assert sum(end is None for end in ends) == 1
            assert [(end.status, end.attempts) for end in ends if isinstance(end, StaleClaim)] == [
                (TaskStatus.SUCCESS, 1)
            ] * 2

    run(main())


def test_of_outcomes_that_come_together_only_those_of_claims_that_are_held_count(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task(each, max_retries=5) for each in "abcdef"])
            await backend.claim(now=NOW, limit=4, lease_expires_at=LEASE)
            for each in "cd":
                await backend.fail(each, 1, Failure(attempt=1, error="e", failed_at=NOW, retry_at=NOW))
                await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)  # takes it again
            outcomes = await asyncio.gather(
                *(backend.complete(each, 1, value=each.encode(), now=NOW) for each in "acx"),
                *(backend.fail(each, 1, Failure(attempt=1, error=each, failed_at=NOW)) for each in "bdy"),
                *(backend.cancel(each, now=NOW) for each in "ez"),
                return_exceptions=True,
            )
            kinds = [type(each).__name__ for each in outcomes]
            assert kinds == [
                "NoneType", "StaleClaim", "TaskNotFound", "Task", "StaleClaim", "TaskNotFound", "bool", "TaskNotFound",
            ]  # fmt: skip
            held = await backend.extend([("c", 1), ("c", 2), ("a", 1), ("x", 1)], lease_expires_at=LEASE)
            assert [*held] == [("c", 2)]
            listed, _ = await backend.tasks(limit=10)
            statuses = {task.id: task.status.value for task in listed}
            assert statuses == {
                "a": "success", "b": "failed", "c": "running", "d": "running", "e": "cancelled", "f": "pending",
            }  # fmt: skip

    run(main())


def test_a_table_that_takes_no_change_is_no_endless_loop(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        schema = schema_of(postgres_store)
        async with connected(postgres_store) as backend, raw(postgres_store) as admin:
            await backend.enqueue([new_task("a")])
            await admin.execute(
                f"CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                f"CREATE TRIGGER no BEFORE UPDATE ON {schema}.tasks FOR EACH ROW EXECUTE FUNCTION {schema}.no()"
            )
            with pytest.raises(StoreUnavailable, match="no change"):
                await backend.cancel("a", now=NOW)

    run(main())


def test_what_is_too_large_is_refused_at_once(run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task("a")])
            await backend.claim(now=NOW, limit=1, lease_expires_at=LEASE)
            monkeypatch.setattr(_postgres_operations, "LARGEST_CALL", 1000)
            failure = Failure(attempt=1, error="e" * 2000, failed_at=NOW)
            for call in (
                backend.enqueue([new_task("b", payload=bytes(2000))]),
                backend.complete("a", 1, value=bytes(2000), now=NOW),
                backend.fail("a", 1, failure),
            ):
                with pytest.raises(TooLarge) as refused:
                    await call
                assert refused.value.limit == 1000
            assert (await backend.counts())[TaskStatus.RUNNING] == 1

    run(main())


def test_large_calls_are_sent_apart(run: Run, postgres_store: str, statements: list[str]) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            statements.clear()
            await asyncio.gather(*(backend.enqueue([new_task(f"{n}", payload=bytes(3_000_000))]) for n in range(3)))
            assert len(statements) == 3

    run(main())


@pytest.mark.parametrize("cursor", ["", "-1", "x", "1.0", str(2**63)])
def test_a_cursor_of_another_make_is_refused(run: Run, postgres_store: str, cursor: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            with pytest.raises(InvalidArgument):
                await backend.tasks(after=cursor, limit=1)

    run(main())


def test_a_row_that_something_else_wrote_is_left_out_of_lists(
    run: Run, postgres_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend, raw(postgres_store) as other:
            await backend.enqueue([new_task("good"), new_task("bad")])
            await other.execute(f"UPDATE {schema_of(postgres_store)}.tasks SET failures = 'x\n' WHERE id = 'bad'")
            listed, _ = await backend.tasks(limit=10)
            assert [task.id for task in listed] == ["good"]
            with pytest.raises(StoreUnavailable, match="bad"):
                await backend.get("bad")

    run(main())
    assert "left out" in caplog.text


# Connections --------------------------------------------------------------------------------------------------------


async def count_connections(url: str) -> int:
    async with raw(url) as admin:
        count = 0
        for _ in range(100):
            count = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'taskqueue'")
            if not count:
                break
            await asyncio.sleep(0.02)
        return int(count)


def test_close_leaves_no_connection(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        async with connected(postgres_store) as backend:
            await backend.enqueue([new_task("a")])
            await backend.wait(10)
            async with raw(postgres_store) as admin:
                used = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name='taskqueue'")
            assert used == 2
        assert await count_connections(postgres_store) == 0

    run(main())


def test_an_event_loop_that_ends_without_close_leaves_nothing(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(postgres_store)
        await backend.connect()
        await backend.wait(10)
        asyncio.ensure_future(backend.wait(100))  # noqa: RUF006 - forgotten on purpose
        asyncio.ensure_future(backend.counts())  # noqa: RUF006 - the same
        await asyncio.sleep(0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())
        gc.collect()
    assert run(count_connections(postgres_store)) == 0


def test_notifications_are_few(run: Run, postgres_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0
    original = _postgres_session.Session._notify

    async def counted(self: Any) -> None:
        nonlocal sent
        sent += 1
        await original(self)

    monkeypatch.setattr(_postgres_session.Session, "_notify", counted)
    monkeypatch.setattr(_postgres_session, "_NOTIFY_EVERY", 3600)

    async def main() -> None:
        async with connected(postgres_store) as backend:
            for n in range(50):
                await backend.enqueue([new_task(f"{n}")])
            assert sent == 1
        assert sent == 2  # what is still to be told is told before the end

    run(main())


# Behind a proxy -----------------------------------------------------------------------------------------------------


def test_behind_a_proxy_that_pools_by_transaction(
    run: Run, postgres_server: PostgresServer, postgres_store: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with PoolingProxy(str(tmp_path), postgres_server.folder) as proxy:
            url = f"{proxy.url}&schema={schema_of(postgres_store)}&pooler=transaction"
            async with connected(url) as backend:
                await asyncio.gather(*(backend.enqueue([new_task(f"{n}", max_retries=2)]) for n in range(20)))
                claimed = await backend.claim(now=NOW, limit=20, lease_expires_at=LEASE)
                assert [task.id for task in claimed] == [f"{n}" for n in range(20)]
                with pytest.raises(TaskExists):
                    await backend.enqueue([new_task("1"), new_task("fresh")])
                await asyncio.gather(*(backend.complete(f"{n}", 1, value=b"v", now=NOW) for n in range(10)))
                for n in range(10, 20):
                    await backend.fail(f"{n}", 1, Failure(attempt=1, error="e", failed_at=NOW, retry_at=NOW))
                with pytest.raises(StaleClaim):
                    await backend.complete("1", 1, value=b"", now=NOW)
                counts = await backend.counts()
                assert (counts[TaskStatus.SUCCESS], counts[TaskStatus.PENDING]) == (10, 10)
                await backend.wait(30)  # for half a second: nobody can listen
            assert proxy.switches > 20

    run(main())


def test_a_proxy_that_was_not_mentioned_is_suspected_at_once(
    run: Run, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """It refuses settings that it does not know."""

    async def main() -> None:
        async with PoolingProxy(str(tmp_path), postgres_server.folder) as proxy:
            with pytest.raises(StoreUnavailable, match=r"unsupported startup parameter.*add pooler=transaction"):
                await PostgresBackend(proxy.url, connect_timeout=20).connect()
            assert len(proxy.startup_settings) == 1, "it would be the same a moment later"

    run(main())
