"""A correct backend that enqueues in a transaction of the application's: :class:`PlainSQLite` with one method more."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from taskqueue import InvalidArgument, Task
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite


class Transacting(PlainSQLite):
    """A handle; applications use sqlite3."""

    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        """See the contract."""
        if not isinstance(connection, sqlite3.Connection):
            raise InvalidArgument("connection", connection, "pass a connection of sqlite3")
        await self.counts()  # which raises NotConnected
        self.insert_all(connection, tasks)

    def insert_all(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        """Insert the tasks, or none of them."""
        db.execute("SAVEPOINT enqueue")
        try:
            self.do_enqueue(db, tasks)
        except BaseException:
            db.execute("ROLLBACK TO enqueue")
            raise
        finally:
            db.execute("RELEASE enqueue")
