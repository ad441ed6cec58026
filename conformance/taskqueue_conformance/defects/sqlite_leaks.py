"""Right in every answer, and each call leaves something behind: file descriptors, threads, tasks, connections."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_memory import PlainMemory
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite, Session


@planted("HANDLES", "Each refused call leaves a connection open", also="X1", layer="hygiene", seen_in="saq#100")
class SqlRefusalsLeakConnections(PlainSQLite):
    left: ClassVar[list[sqlite3.Connection]] = []

    def rollback(self, db: sqlite3.Connection) -> None:
        if db.in_transaction and db.total_changes >= 0 and self.refused:
            self.left.append(sqlite3.connect(self.path, check_same_thread=False))
            self.left[-1].execute("SELECT count(*) FROM tasks").fetchone()
        super().rollback(db)

    refused = False

    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        self.refused = True
        try:
            return super().in_transaction(work, db)
        finally:
            self.refused = False


@planted("HANDLES", "close leaves its thread running", layer="hygiene", also="X1")
class SqlCloseLeavesTheThread(PlainSQLite):
    async def end(self, session: Session) -> None:
        session.closing.set()
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(session.executor, session.end))
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@planted("HANDLES", "close leaves the connection open", layer="hygiene", also="X1", seen_in="river#1147")
class SqlCloseLeavesTheConnection(PlainSQLite):
    left: ClassVar[list[sqlite3.Connection | None]] = []

    async def end(self, session: Session) -> None:
        db = await session.run(lambda db: db)
        self.left.append(db)
        session.db = None
        await super().end(session)


@planted("HANDLES", "Each claim leaves a file descriptor open", layer="hygiene", also="X1 C2")
class SqlClaimLeaksDescriptors(PlainSQLite):
    def do_claim(self, db: sqlite3.Connection, *args: Any) -> Any:
        os.open(self.path, os.O_RDONLY)
        return super().do_claim(db, *args)


@planted("W1", "Each wait leaves a task behind", layer="hygiene", also="HANDLES X1")
class WaitLeavesATask(PlainMemory):
    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        with self.use() as store:
            if not hasattr(store, "left"):
                store.left = []
            store.left.append(asyncio.ensure_future(_sleep()))
        await super().wait(timeout)


async def _sleep() -> None:
    await asyncio.sleep(3600)


@planted("HANDLES", "Each connect leaves a thread behind", layer="hygiene", also="X1")
class ConnectLeavesAThread(PlainMemory):
    async def connect(self) -> None:
        await super().connect()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
