"""The harnesses of the backends that come with taskqueue."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from taskqueue import Backend
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.harness import BaseHarness
from taskqueue_conformance.postgres_server import PostgresServer
from taskqueue_conformance.scratch import scratch_folder


class MemoryHarness(BaseHarness):
    """``--conformance=memory``: stores that live as long as a handle on them, in one process."""

    capabilities: frozenset[str] = frozenset()

    def backend(self, store: str) -> Backend:
        """Return a handle on the store of this name."""
        return MemoryBackend(store)


class SQLiteHarness(BaseHarness):
    """``--conformance=sqlite``: files in a temporary directory, which goes when the run ends.

    That SQLite syncs them before it acknowledges is a check of its own (``kills``), which counts the calls.
    """

    capabilities: frozenset[str] = frozenset({"durable", "multiprocess", "transactional"})

    _FOLDER = "TASKQUEUE_CONFORMANCE_SQLITE_FOLDER"

    def start(self) -> Mapping[str, str]:
        """Make the directory."""
        folder = scratch_folder("taskqueue-conformance-")
        return {self._FOLDER: folder}

    def stop(self) -> None:
        """Remove the directory."""
        shutil.rmtree(os.environ[self._FOLDER], ignore_errors=True)

    def backend(self, store: str) -> Backend:
        """Return a handle on the file of this name."""
        # Not before it is needed: the driver is no dependency of those who test another backend.
        from taskqueue.backends.sqlite import SQLiteBackend  # noqa: PLC0415

        return SQLiteBackend(self._path(store))

    async def drop(self, store: str) -> None:
        """Delete the file and what SQLite keeps beside it."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path(store)}{suffix}")  # noqa: PTH108 - the suffix is no part of a path

    def transaction(self, store: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """Begin a transaction with a connection of its own."""
        return sqlite_transaction(self._path(store))

    def _path(self, store: str) -> Path:
        return Path(os.environ[self._FOLDER]) / f"{store}.db"


@contextlib.asynccontextmanager
async def sqlite_transaction(path: str | Path) -> AsyncIterator[sqlite3.Connection]:
    """Begin an application's transaction on a file; commit it unless it has been ended, and undo it on an error."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        yield connection
        if connection.in_transaction:
            connection.execute("COMMIT")


class PostgresHarness(BaseHarness):
    """``--conformance=postgres``: a server of the run's own. Each store is a namespace in its database.

    The server's files lie in memory where there is room. It syncs them before it acknowledges, as servers do; whether
    a disk keeps its word is not tested here.
    """

    capabilities: frozenset[str] = frozenset({"durable", "multiprocess", "restart", "transactional"})

    _FOLDER = "TASKQUEUE_CONFORMANCE_POSTGRES_FOLDER"

    def __init__(self) -> None:
        self._restarts = 0

    @classmethod
    def for_url(cls, url: str) -> "PostgresURLHarness":
        """Return the harness for ``--conformance=postgresql://…``."""
        return PostgresURLHarness(url)

    def start(self) -> Mapping[str, str]:
        """Start the server."""
        return {self._FOLDER: PostgresServer.start().folder}

    def stop(self) -> None:
        """End it, and delete its files."""
        self._server().stop()

    def backend(self, store: str) -> Backend:
        """Return a handle on the namespace of this name."""
        return _postgres_backend(self._server().url, store)

    async def drop(self, store: str) -> None:
        """Delete the namespace."""
        await _drop_namespace(self._server().url, store)

    def transaction(self, store: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """Begin a transaction with a connection of its own."""
        del store  # they are all in one database
        return _postgres_transaction(self._server().url)

    async def restart(self) -> None:
        """Restart the server, in good order and as if the machine had gone down, by turns."""
        self._restarts += 1
        await asyncio.to_thread(self._server().restart, "fast" if self._restarts % 2 else "immediate")

    def _server(self) -> PostgresServer:
        return PostgresServer(os.environ[self._FOLDER])


class PostgresURLHarness(BaseHarness):
    """``--conformance=postgresql://…``: a server that runs already. Each store is a namespace in the database.

    The role must be allowed to create namespaces there. What is there already stays untouched.

    Args:
        url: The database.
    """

    capabilities: frozenset[str] = frozenset({"durable", "multiprocess", "transactional"})

    def __init__(self, url: str) -> None:
        self._url = url

    def backend(self, store: str) -> Backend:
        """Return a handle on the namespace of this name."""
        return _postgres_backend(self._url, store)

    async def drop(self, store: str) -> None:
        """Delete the namespace."""
        await _drop_namespace(self._url, store)

    def transaction(self, store: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """Begin a transaction with a connection of its own."""
        del store  # they are all in one database
        return _postgres_transaction(self._url)


@contextlib.asynccontextmanager
async def _postgres_transaction(url: str) -> AsyncIterator[Any]:
    import asyncpg  # noqa: PLC0415 - not before it is needed

    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


def _postgres_backend(url: str, store: str) -> Backend:
    # Not before it is needed: the driver is no dependency of those who test another backend.
    from taskqueue.backends.postgres import PostgresBackend  # noqa: PLC0415

    separator = "&" if "?" in url else "?"
    return PostgresBackend.from_url(f"{url}{separator}schema={store}")


async def _drop_namespace(url: str, store: str) -> None:
    import asyncpg  # noqa: PLC0415 - the same

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{store}" CASCADE')
    finally:
        await connection.close()
