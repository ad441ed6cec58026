"""Enqueueing on a connection of the application's to the same SQLite file, in its transaction."""

import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from taskqueue.backends._sqlite_operations import enqueue
from taskqueue.errors import InvalidArgument
from taskqueue.task import Task

_SAVEPOINT: Final = "taskqueue_enqueue"


async def enqueue_on(connection: Any, path: str, tasks: Iterable[Task]) -> None:
    """Insert tasks in the transaction that is open on a connection, or that Python's sqlite3 opens with a change.

    Raises:
        InvalidArgument: It is no connection to this file, or it commits by itself and no transaction is open on it.
        TaskExists: Ids are known, or stand twice in the list. Nothing has changed, and the transaction goes on.
        TooLarge: A task is larger than SQLite takes. Nothing has changed, and the transaction goes on.
        sqlite3.Error: What SQLite raises comes out as it is: the transaction is the application's.
    """
    add = enqueue(tasks).run

    def insert(db: sqlite3.Connection) -> None:
        _check_file(connection, db, path)
        _begin(connection, db)
        row_factory, text_factory = db.row_factory, db.text_factory
        db.row_factory, db.text_factory = None, str
        try:
            _wholly_or_not_at_all(add, db)
        finally:
            db.row_factory, db.text_factory = row_factory, text_factory

    if isinstance(connection, sqlite3.Connection):
        insert(connection)  # in this thread: most connections refuse to be used in another one
    elif _is_of_aiosqlite(connection):
        # aiosqlite has no public method that runs a function in its thread.
        execute: Any = connection._execute  # noqa: SLF001 - see above
        await execute(insert, connection._conn)  # noqa: SLF001 - the same
    else:
        raise InvalidArgument(
            "connection", connection, "pass a connection of sqlite3 or aiosqlite to this queue's file"
        )


def _is_of_aiosqlite(connection: object) -> bool:
    aiosqlite = sys.modules.get("aiosqlite")  # who has a connection has imported it, and nobody else needs it
    return aiosqlite is not None and isinstance(connection, aiosqlite.Connection)


def _check_file(connection: object, db: sqlite3.Connection, path: str) -> None:
    cursor = db.cursor()
    cursor.row_factory = None
    files: Sequence[Any] = [os.fsdecode(row[2]) for row in cursor.execute("PRAGMA database_list") if row[0] == 0]
    if not files or not files[0] or not Path(files[0]).samefile(path):
        raise InvalidArgument("connection", connection, f"it must be a connection to the queue's own file, {path}")


def _begin(connection: object, db: sqlite3.Connection) -> None:
    """See that a transaction is open. By default Python opens one before a change, but not before a savepoint."""
    if db.in_transaction:
        return
    # Since Python 3.12 `autocommit` can say so as well.
    if db.isolation_level is None or getattr(db, "autocommit", None) is True:
        raise InvalidArgument(
            "connection",
            connection,
            "no transaction is open on it; begin one, so that the task exists if and only if it is committed",
        )
    db.execute(f"BEGIN {db.isolation_level}")


def _wholly_or_not_at_all(add: Any, db: sqlite3.Connection) -> None:
    db.execute(f"SAVEPOINT {_SAVEPOINT}")
    try:
        add(db)
    except BaseException:
        if db.in_transaction:  # some errors make SQLite roll all of it back
            db.execute(f"ROLLBACK TO {_SAVEPOINT}")
        raise
    finally:
        if db.in_transaction:
            db.execute(f"RELEASE {_SAVEPOINT}")
