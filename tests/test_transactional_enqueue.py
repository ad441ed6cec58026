"""A task that is enqueued with `connection=` exists if and only if the application commits."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row

from taskqueue import InvalidArgument, TaskExists, TaskQueue, TaskStatus
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.postgres import PostgresBackend
from taskqueue.backends.sqlite import SQLiteBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def greet(name: str) -> str:
    return f"hello {name}"


def connect_to(connection: str) -> str:
    return connection


# Each opens a connection, and yields it with what begins, commits and rolls back a transaction on it.


@asynccontextmanager
async def with_asyncpg(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(PostgresBackend.from_url(url)._url)
    yield connection, *(lambda word=word: connection.execute(word) for word in ("BEGIN", "COMMIT", "ROLLBACK"))
    await connection.close()


@asynccontextmanager
async def with_asyncpg_pool(url: str) -> AsyncIterator[Any]:
    pool = await asyncpg.create_pool(PostgresBackend.from_url(url)._url, min_size=1, max_size=1)
    async with pool, pool.acquire() as connection:
        yield connection, *(lambda word=word: connection.execute(word) for word in ("BEGIN", "COMMIT", "ROLLBACK"))


@asynccontextmanager
async def with_psycopg(url: str) -> AsyncIterator[Any]:
    address = PostgresBackend.from_url(url)._url
    async with await psycopg.AsyncConnection.connect(address, row_factory=dict_row) as connection:  # type: ignore[arg-type]
        yield connection, _nothing, connection.commit, connection.rollback


@asynccontextmanager
async def with_psycopg_in_a_thread(url: str) -> AsyncIterator[Any]:
    with psycopg.connect(PostgresBackend.from_url(url)._url) as connection:
        yield connection, _nothing, _soon(connection.commit), _soon(connection.rollback)


@asynccontextmanager
async def with_aiosqlite(url: str) -> AsyncIterator[Any]:
    async with aiosqlite.connect(SQLiteBackend.from_url(url).path) as connection:
        connection.row_factory = sqlite3.Row
        yield connection, _nothing, connection.commit, connection.rollback


@asynccontextmanager
async def with_sqlite3(url: str) -> AsyncIterator[Any]:
    connection = sqlite3.connect(SQLiteBackend.from_url(url).path, isolation_level=None)
    connection.row_factory = lambda _cursor, row: {"row": row}
    connection.text_factory = bytes
    yield connection, *(_soon(lambda word=word: connection.execute(word)) for word in ("BEGIN", "COMMIT", "ROLLBACK"))
    assert connection.text_factory is bytes
    connection.close()


async def _nothing() -> None:
    """The driver begins a transaction by itself."""


def _soon(call: Callable[[], object]) -> Callable[[], Coroutine[Any, Any, None]]:
    async def soon() -> None:
        call()

    return soon


DRIVERS = {
    "asyncpg": with_asyncpg,
    "a pool of asyncpg": with_asyncpg_pool,
    "psycopg": with_psycopg,
    "psycopg without asyncio": with_psycopg_in_a_thread,
    "aiosqlite": with_aiosqlite,
    "sqlite3": with_sqlite3,
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db" if "sqlite" in driver else str(request.getfixturevalue("postgres_store"))


def test_a_task_exists_if_and_only_if_the_application_commits(run: Run, driver: str, url: str) -> None:
    async def main() -> None:
        async with TaskQueue.from_url(url) as queue, DRIVERS[driver](url) as (connection, begin, commit, roll_back):
            await begin()
            lost = await queue.enqueue(greet, "nobody", connection=connection)
            await roll_back()
            await begin()
            kept = await queue.enqueue(greet, "you", connection=connection)
            other = await queue.options(connection=connection, task_id="mine").enqueue(greet, "us")
            several = await queue.enqueue_many(greet, [("a",), ("b",)], connection=connection)
            with pytest.raises(TaskExists) as refused:
                await queue.enqueue_many(greet, [("a",), ("b",)], task_ids=["mine", "fresh"], connection=connection)
            assert refused.value.task_ids == ("mine",)
            assert (await queue.counts())[TaskStatus.PENDING] == 0
            await commit()
            claimed = await queue.claim(limit=10)
            assert [task.id for task in claimed] == [kept, other, *several]
            assert await queue.backend.get(lost) is None
            assert queue.load_call(claimed[0]).args == ("you",)

    run(main())


def test_what_the_application_wrote_is_part_of_it(run: Run, driver: str, url: str) -> None:
    async def main() -> None:
        async with TaskQueue.from_url(url) as queue, DRIVERS[driver](url) as (connection, begin, commit, roll_back):

            async def execute(statement: str) -> None:
                done = connection.execute(statement)
                if asyncio.iscoroutine(done) or hasattr(done, "__await__"):
                    await done

            table = "orders" if "sqlite" in driver else f"{queue.backend.schema}.orders"  # type: ignore[attr-defined]
            await begin()
            await execute(f"CREATE TABLE {table} (id integer)")
            await commit()
            for end in (roll_back, commit):
                await begin()
                await execute(f"INSERT INTO {table} VALUES (1)")
                await queue.enqueue(greet, "you", connection=connection)
                await end()
            await begin()
            await execute(f"DELETE FROM {table} WHERE id = 1")
            await commit()
            assert (await queue.counts())[TaskStatus.PENDING] == 1

    run(main())


def test_an_id_that_another_transaction_is_committing(run: Run, postgres_store: str) -> None:
    async def main() -> None:
        queue = TaskQueue.from_url(postgres_store)
        async with queue, with_asyncpg(postgres_store) as (one, *_), with_asyncpg(postgres_store) as (two, *_):
            transaction = one.transaction()
            await transaction.start()
            await queue.enqueue(greet, "x", task_id="x", connection=one)
            async with two.transaction():
                calls = [("y",), ("x",), ("z",)]
                waiting = asyncio.ensure_future(
                    queue.enqueue_many(greet, calls, task_ids=["y", "x", "z"], connection=two)
                )
                await asyncio.sleep(0.1)
                assert not waiting.done()
                await transaction.commit()
                with pytest.raises(TaskExists) as refused:
                    await waiting
                assert refused.value.task_ids == ("x",)
                await queue.enqueue(greet, "w", task_id="w", connection=two)
            assert sorted(task.id for task in await queue.claim(limit=10)) == ["w", "x"]

    run(main())


def test_a_connection_without_a_transaction_is_refused(run: Run, driver: str, url: str) -> None:
    async def main() -> None:
        async with TaskQueue.from_url(url) as queue, DRIVERS[driver](url) as (connection, *_):
            if isinstance(connection, psycopg.AsyncConnection):
                await connection.set_autocommit(True)
            elif isinstance(connection, psycopg.Connection):
                connection.autocommit = True
            elif isinstance(connection, aiosqlite.Connection):
                await connection._execute(lambda: setattr(connection._conn, "isolation_level", None))
            with pytest.raises(InvalidArgument, match="no transaction is open"):
                await queue.enqueue(greet, "you", connection=connection)
            assert (await queue.counts())[TaskStatus.PENDING] == 0

    run(main())


def test_a_connection_to_another_file_is_refused(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with TaskQueue.from_url(f"sqlite:///{tmp_path}/one.db") as queue:
            for other in (tmp_path / "other.db", ":memory:"):
                async with aiosqlite.connect(other) as connection:
                    with pytest.raises(InvalidArgument, match=r"one\.db"):
                        await queue.enqueue(greet, "you", connection=connection)

    run(main())


def test_a_backend_that_cannot_do_it_says_so(run: Run) -> None:
    async def main() -> None:
        async with TaskQueue(MemoryBackend()) as queue:
            with pytest.raises(InvalidArgument, match="transaction"):
                await queue.enqueue(greet, "you", connection=object())

    run(main())


def test_a_function_with_a_parameter_of_that_name(run: Run) -> None:
    async def main() -> None:
        async with TaskQueue(MemoryBackend()) as queue:
            await queue.options().enqueue(connect_to, connection="there")
            (task,) = await queue.claim()
            assert queue.load_call(task).kwargs == {"connection": "there"}

    run(main())


def test_nobody_is_told_of_a_task_that_may_not_come_to_be(run: Run, tmp_path: Path) -> None:
    told: list[Any] = []

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/app.db"
        async with TaskQueue.from_url(url, on_transition=told.append) as queue, with_aiosqlite(url) as (db, *_):
            await queue.enqueue(greet, "you", connection=db)
            await db.rollback()

    run(main())
    assert told == []
