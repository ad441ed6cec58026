"""Enqueueing on a connection of the application's, in its transaction, with asyncpg or psycopg: whichever it uses."""

import asyncio
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from taskqueue.backends._postgres_connection import Row
from taskqueue.backends._postgres_operations import KNOWN, Enqueue, Table
from taskqueue.errors import InvalidArgument, TaskExists

# One statement for the usual case, and none that could fail and so end the application's transaction: where an id is
# known nothing is inserted, and one that others are just committing is passed over.
_ADD: Final = """
    WITH known AS (
        SELECT id FROM @tasks WHERE id = ANY ($1::text[])
    ), added AS (
        INSERT INTO @tasks (@columns)
        SELECT id, 'pending', enqueued_at, available_at, max_retries, attempts, started_at, NULL, NULL, failures,
            payload, NULL
        FROM unnest(
            $1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::bytea[]
        ) AS v (id, enqueued_at, available_at, max_retries, attempts, started_at, failures, payload)
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (id) DO NOTHING
        RETURNING id
    )
    SELECT id, true FROM known
    UNION ALL SELECT id, false FROM added
    UNION ALL SELECT pg_notify($9::text, '')::text, NULL
"""
_REMOVE: Final = "DELETE FROM @tasks WHERE id = ANY ($1::text[]) RETURNING id"


async def enqueue_on(connection: Any, table: Table, operation: Enqueue, channel: str) -> None:
    """Insert tasks in the transaction that is open on a connection; who waits hears of them when it commits.

    Raises:
        InvalidArgument: It is no connection of a driver that we know, or no transaction is open on it.
        TaskExists: Ids are known, or stand twice in the list. Nothing has changed, and the transaction goes on.
        Exception: What the driver raises comes out as it is: the transaction is the application's.
    """
    run = _Runner(connection)
    ids = [row[0] for row in operation.rows]
    if len(set(ids)) < len(ids):
        known = {row[0] for row in await run.fetch(table.sql(KNOWN), ids)}
        raise TaskExists([each for each in dict.fromkeys(ids) if ids.count(each) > 1 or each in known])
    rows = await run.fetch(table.sql(_ADD), *map(list, zip(*operation.rows, strict=True)), channel)
    known = {task_id for task_id, was_known in rows if was_known}
    added = [task_id for task_id, was_known in rows if was_known is False]
    if len(added) < len(ids):
        if added:
            await run.fetch(table.sql(_REMOVE), added)
        raise TaskExists([each for each in ids if each in known or (not known and each not in added)])


class _Runner:
    """Executes statements of ours on a connection of the application's.

    Raises:
        InvalidArgument: It is none that can be used.
    """

    def __init__(self, connection: Any) -> None:
        psycopg = sys.modules.get("psycopg")
        if isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
            self.fetch = connection.fetch
            open_ = connection.is_in_transaction()
        elif psycopg is not None and isinstance(connection, psycopg.AsyncConnection | psycopg.Connection):
            self._tuples = psycopg.rows.tuple_row
            self._connection: Any = connection
            asynchronous = isinstance(connection, psycopg.AsyncConnection)
            self.fetch = self._fetch if asynchronous else self._fetch_in_thread
            # Unless it commits by itself, psycopg begins a transaction with the first statement.
            open_ = not connection.autocommit or connection.info.transaction_status != 0
        else:
            raise InvalidArgument(
                "connection",
                connection,
                "pass a connection of asyncpg or psycopg to the database that this queue is in",
            )
        if not open_:
            raise InvalidArgument(
                "connection",
                connection,
                "no transaction is open on it; begin one, so that the task exists if and only if it is committed",
            )

    async def _fetch(self, statement: str, *arguments: Any) -> Sequence[Row]:
        async with self._connection.cursor(row_factory=self._tuples) as cursor:
            await cursor.execute(_named(statement), _by_name(arguments))
            rows: Sequence[Row] = await cursor.fetchall()
            return rows

    async def _fetch_in_thread(self, statement: str, *arguments: Any) -> Sequence[Row]:
        def fetch() -> Sequence[Row]:
            with self._connection.cursor(row_factory=self._tuples) as cursor:
                cursor.execute(_named(statement), _by_name(arguments))
                rows: Sequence[Row] = cursor.fetchall()
                return rows

        return await asyncio.to_thread(fetch)


def _named(statement: str) -> str:
    """Return a statement with psycopg's placeholders in place of PostgreSQL's own."""
    return re.sub(r"\$(\d+)", r"%(p\1)s", statement)


def _by_name(arguments: Sequence[Any]) -> dict[str, Any]:
    return {f"p{number}": argument for number, argument in enumerate(arguments, start=1)}
