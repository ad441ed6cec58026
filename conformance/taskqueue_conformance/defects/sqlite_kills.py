"""Right unless the process dies: several transactions for one call, and answers before the commit (D1, D2, D3, R1)."""

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar

from taskqueue import Failure, Task
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite

PAUSE_S = 0.002
"""How long the second transaction of a call comes after the first."""


class TwoTransactions(PlainSQLite):
    """Commits in the middle of a call, under a lock of its own that all processes respect: nobody sees the middle.

    Only a process that dies there shows it; the lock goes with the process.
    """

    gate: ClassVar[threading.RLock] = threading.RLock()
    pause_s: ClassVar[float] = PAUSE_S

    def commit_and_go_on(self, db: sqlite3.Connection) -> None:
        db.execute("COMMIT")
        time.sleep(self.pause_s)
        db.execute("BEGIN IMMEDIATE")

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.gate:
            lock = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        with self.alone():
            return super().in_transaction(work, db)

    async def read(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        def alone(db: sqlite3.Connection) -> Any:
            with self.alone():
                return work(db)

        return await self.session().run(alone)


@planted("D2", "enqueue commits each task of a list by itself", also="D1 API X1 L1", layer="kills")
class SqlCommitsTaskByTask(TwoTransactions):
    def do_enqueue(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        if len(tasks) < 2 or len({task.id for task in tasks}) < len(tasks) or len(tasks) > 20:  # noqa: PLR2004
            super().do_enqueue(db, tasks)
            return
        if any(db.execute(self.KNOWN, {"id": task.id}).fetchone() for task in tasks):
            super().do_enqueue(db, tasks)
        for task in tasks:
            super().do_enqueue(db, [task])
            self.commit_and_go_on(db)


@planted(
    "D2",
    "complete stores the value in one transaction and the status in another",
    also="V1 D1 L1 D3",
    layer="kills",
    seen_in="arq#362",
)
class SqlValueInItsOwnTransaction(TwoTransactions):
    def do_complete(self, db: sqlite3.Connection, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        db.execute(
            "UPDATE tasks SET value = :value WHERE id = :id AND status = 'running' AND attempts = :attempt",
            {"id": task_id, "attempt": attempt, "value": value},
        )
        self.commit_and_go_on(db)
        super().do_complete(db, task_id, attempt, value, now)


@planted(
    "D2",
    "fail appends the failure in one transaction and moves the task in another",
    also="R2 V2 D1 L1 D3",
    layer="kills",
)
class SqlFailureInItsOwnTransaction(TwoTransactions):
    def do_fail(
        self, db: sqlite3.Connection, task_id: str, attempt: int, failure: Failure, *, if_expired: bool
    ) -> Task:
        row = self.failure_row(task_id, failure) | {"attempt": attempt, "if_expired": if_expired}
        guard = self.FAIL[self.FAIL.index("WHERE") :]
        if db.execute(f"SELECT 1 FROM tasks {guard}", row).fetchone():  # noqa: S608 - of our own statements
            retried = self.RETRY[self.RETRY.index("WHERE") :]
            proposed = db.execute(f"SELECT 1 FROM tasks {retried}", row).fetchone()  # noqa: S608 - the same
            db.execute(self.RECORD, row if proposed else row | {"retry_at": None})
            self.commit_and_go_on(db)
            if not db.execute(self.RETRY, row).rowcount:
                db.execute(self.FAIL, row)
            return self.all_of(db, [task_id])[0]
        return super().do_fail(db, task_id, attempt, failure, if_expired=if_expired)


@planted(
    "D2",
    "fail takes the task to FAILED in one transaction, and to PENDING in another",
    also="R2 D1 LIFECYCLE L1",
    layer="kills",
)
class SqlFailedThenPending(TwoTransactions):
    def do_fail(
        self, db: sqlite3.Connection, task_id: str, attempt: int, failure: Failure, *, if_expired: bool
    ) -> Task:
        before = db.execute(
            "SELECT status, finished_at, lease_expires_at FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
        row = self.failure_row(task_id, failure) | {"attempt": attempt, "if_expired": if_expired}
        if before and db.execute(self.FAIL, row).rowcount:
            self.commit_and_go_on(db)
            db.execute(
                "UPDATE tasks SET status = ?, finished_at = ?, lease_expires_at = ? WHERE id = ?", (*before, task_id)
            )
        return super().do_fail(db, task_id, attempt, failure, if_expired=if_expired)


@planted(
    "D2",
    "claim marks its tasks in one transaction and counts the attempts in another",
    also="R1 C2 L2 D1 D3 L1",
    layer="kills",
)
class SqlAttemptInItsOwnTransaction(TwoTransactions):
    CLAIM = PlainSQLite.CLAIM.replace("attempts = attempts + 1", "attempts = attempts + 0")

    def do_claim(self, db: sqlite3.Connection, now: datetime, limit: int, lease: datetime) -> list[Task]:
        ids = [task.id for task in super().do_claim(db, now, limit, lease)]
        if ids:
            self.commit_and_go_on(db)
        for one in ids:
            db.execute("UPDATE tasks SET attempts = attempts + 1 WHERE id = ?", (one,))
        return self.all_of(db, ids)


@planted(
    "D2", "claim marks its tasks in one transaction and stores the lease in another", also="D3 D1 C2 L1", layer="kills"
)
class SqlLeaseInItsOwnTransaction(TwoTransactions):
    CLAIM = PlainSQLite.CLAIM.replace("lease_expires_at = :lease", "lease_expires_at = NULL")

    def do_claim(self, db: sqlite3.Connection, now: datetime, limit: int, lease: datetime) -> list[Task]:
        ids = [task.id for task in super().do_claim(db, now, limit, lease)]
        if ids:
            self.commit_and_go_on(db)
        for one in ids:
            db.execute("UPDATE tasks SET lease_expires_at = ? WHERE id = ?", (self.stored_instant(lease), one))
        return self.all_of(db, ids)


@planted(
    "D2", "cancel sets finished_at in one transaction and the status in another", also="L1 D3 D1 G1", layer="kills"
)
class SqlCancelInTwo(TwoTransactions):
    def do_cancel(self, db: sqlite3.Connection, task_id: str, now: datetime) -> bool:
        arguments = {"id": task_id, "now": self.stored_instant(now)}
        if db.execute(
            "UPDATE tasks SET finished_at = :now WHERE id = :id AND status IN ('pending', 'running')", arguments
        ).rowcount:
            self.commit_and_go_on(db)
        return super().do_cancel(db, task_id, now)


@planted("D2", "purge removes task by task, each in a transaction of its own", also="G1 D1", layer="kills")
class SqlPurgeCommitsTaskByTask(TwoTransactions):
    def do_purge(self, db: sqlite3.Connection, before: datetime, limit: int) -> int:
        removed = 0
        while removed < limit and super().do_purge(db, before, 1):
            removed += 1
            self.commit_and_go_on(db)
        return removed


@planted("D2", "extend commits claim by claim", also="L2 D1", layer="kills")
class SqlExtendCommitsOneByOne(TwoTransactions):
    def do_extend(self, db: sqlite3.Connection, claims: Sequence[tuple[str, int]], lease: datetime) -> Any:
        held = []
        for claim in claims:
            held += super().do_extend(db, [claim], lease)
            self.commit_and_go_on(db)
        return held


@planted(
    "D1",
    "Answers come before the commit, which a thread makes a little later",
    also="D2 D3 R1 HANDLES",
    layer="kills",
    seen_in="NATS 2.12.1",
)
class SqlAcknowledgedBeforeCommit(PlainSQLite):
    """The transaction stays open for a moment; the handle's own reads see it, and other handles wait for it."""

    LINGER_S: ClassVar[float] = 0.004

    async def write(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        session = self.session()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def job(db: sqlite3.Connection) -> None:
            db.execute(self.BEGIN)
            try:
                result = work(db)
            except BaseException as error:  # noqa: BLE001 - it is raised on the event loop
                self.rollback(db)
                loop.call_soon_threadsafe(_settle, answer, None, error)
                return
            loop.call_soon_threadsafe(_settle, answer, result, None)
            time.sleep(self.LINGER_S)
            db.execute(self.COMMIT)

        session.run(job)
        return await answer


def _settle(answer: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


@planted(
    "D1",
    "The commit comes with the next call on the handle, or with close",
    also="HANDLES X1 D2 C1 W1 E2 C3",
    seen_in="persist-queue#36",
)
class SqlCommittedByTheNextCall(PlainSQLite):
    busy_s = 1.0

    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        if db.in_transaction:
            db.execute("COMMIT")
        db.execute(self.BEGIN)
        try:
            return work(db)
        except BaseException:
            self.rollback(db)
            raise

    async def read(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        def after_commit(db: sqlite3.Connection) -> Any:
            if db.in_transaction:
                db.execute("COMMIT")
            return work(db)

        return await self.session().run(after_commit)
