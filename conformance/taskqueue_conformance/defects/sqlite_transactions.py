"""Wrong about the application's transaction (T1)."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from taskqueue import Task, TaskExists
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_transactional import Transacting


@planted("T1", "Tasks are enqueued beside the application's transaction, not in it", also="API W1")
class SqlIgnoresTheTransaction(Transacting):
    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        if isinstance(connection, sqlite3.Connection):
            await self.enqueue(tasks)
        else:
            await super().enqueue_on(connection, tasks)


@planted("T1", "enqueue_on commits the application's transaction")
class SqlCommitsForTheApplication(Transacting):
    def insert_all(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        super().insert_all(db, tasks)
        db.execute("COMMIT")
        db.execute("BEGIN")


@planted("T1", "enqueue_on with a known id rolls the application's transaction back")
class SqlRollsBackForTheApplication(Transacting):
    def insert_all(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        try:
            super().insert_all(db, tasks)
        except TaskExists:
            db.execute("ROLLBACK")
            db.execute("BEGIN")
            raise


@planted("T1", "enqueue_on with a known id stores the tasks that stand before it in the list", also="L1")
class SqlStoresSomeInATransaction(Transacting):
    def insert_all(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        for task in tasks:
            super().insert_all(db, [task])


@planted("T1", "enqueue_on takes whatever it is given for a connection, and enqueues without one")
class SqlNeedsNoConnection(Transacting):
    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        if isinstance(connection, sqlite3.Connection):
            await super().enqueue_on(connection, tasks)
        else:
            await self.enqueue(tasks)
