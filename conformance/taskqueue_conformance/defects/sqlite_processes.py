"""Right within one process, wrong between several: locks, counters and caches of a process, missing transactions."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, Final

from taskqueue import Task, TaskExists, TaskStatus
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite
from taskqueue_conformance.defects.sqlite_kills import TwoTransactions

_IN_PROCESS: Final = threading.RLock()


class LockOfTheProcess(TwoTransactions):
    """Commits in the middle of a call, under a lock that only the handles of this process respect."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.gate:
            yield


@planted(
    "C1",
    "claim selects and updates under a lock of the process: two processes take the same task",
    also="R1 C2 L2 L1",
    layer="processes",
)
class SqlClaimLocksTheProcess(LockOfTheProcess):
    def do_claim(self, db: sqlite3.Connection, now: datetime, limit: int, lease: datetime) -> list[Task]:
        arguments = {"now": self.stored_instant(now), "lease": self.stored_instant(lease), "limit": limit}
        rows = db.execute(
            "SELECT id, available_at, seq FROM tasks WHERE status = 'pending' AND available_at <= :now "
            "ORDER BY available_at, seq LIMIT :limit",
            arguments,
        ).fetchall()
        self.commit_and_go_on(db)
        for task_id, _, _ in rows:
            db.execute(
                "UPDATE tasks SET status = 'running', attempts = attempts + 1, started_at = :now, "
                "lease_expires_at = :lease WHERE id = :id",
                arguments | {"id": task_id},
            )
        return self.all_of(db, [task_id for task_id, *_ in rows])


@planted(
    "L1",
    "cancel looks and writes under a lock of the process: a success of another process is overwritten",
    also="L2 V1 C1",
    layer="processes",
)
class SqlCancelLocksTheProcess(LockOfTheProcess):
    pause_s = 0.02

    def do_cancel(self, db: sqlite3.Connection, task_id: str, now: datetime) -> bool:
        task = self.find(db, task_id)
        if task is None or task.status.ended:
            return super().do_cancel(db, task_id, now)
        self.commit_and_go_on(db)
        db.execute(
            "UPDATE tasks SET status = 'cancelled', finished_at = :now, lease_expires_at = NULL, value = NULL "
            "WHERE id = :id",
            {"id": task_id, "now": self.stored_instant(now)},
        )
        return True


@planted("L1", "complete looks and writes under a lock of the process", also="L2 V1 C1", layer="processes")
class SqlCompleteLocksTheProcess(LockOfTheProcess):
    def do_complete(self, db: sqlite3.Connection, task_id: str, attempt: int, value: bytes, now: datetime) -> None:
        task = self.find(db, task_id)
        if task is None or task.status is not TaskStatus.RUNNING or task.attempts != attempt:
            raise self.refusal(db, task_id, attempt)
        self.commit_and_go_on(db)
        db.execute(
            "UPDATE tasks SET status = 'success', value = :value, finished_at = :now, lease_expires_at = NULL "
            "WHERE id = :id",
            {"id": task_id, "value": value, "now": self.stored_instant(now)},
        )


@planted(
    "X1",
    "No busy timeout: a call that meets one of another process raises 'database is locked'",
    seen_in="huey#445",
    also="C1 HANDLES",
    layer="processes",
)
class SqlNoBusyTimeout(PlainSQLite):
    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        with _IN_PROCESS:
            db.execute("PRAGMA busy_timeout = 0")
            try:
                return super().in_transaction(work, db)
            finally:
                db.execute(f"PRAGMA busy_timeout = {int(self.busy_s * 1000)}")


@planted(
    "X1",
    "BEGIN without IMMEDIATE: a read that becomes a write meets another writer and fails",
    also="C1 HANDLES D2 L1 E2",
    seen_in="huey#445",
)
class SqlDeferredBegin(PlainSQLite):
    BEGIN = "BEGIN"


_IDS: Final[dict[str, set[str]]] = {}


@planted(
    "L1",
    "The known ids are cached in the process: an id of another process is enqueued twice",
    also="API D1 HANDLES C1",
    layer="processes",
)
class SqlKnownIdsAreCached(PlainSQLite):
    TASKS = PlainSQLite.TASKS.replace("id TEXT NOT NULL UNIQUE", "id TEXT NOT NULL")

    def do_enqueue(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        known = _IDS.setdefault(self.path, {row[0] for row in db.execute("SELECT id FROM tasks")})
        ids = [task.id for task in tasks]
        offending = [one for one in ids if one in known or ids.count(one) > 1]
        if offending:
            raise TaskExists(list(dict.fromkeys(offending)))
        db.executemany(self.INSERT, [self.row_of(task) for task in tasks])
        db.executemany(self.RECORD, [self.failure_row(task.id, each) for task in tasks for each in task.failures])
        known.update(ids)

    def do_purge(self, db: sqlite3.Connection, before: datetime, limit: int) -> int:
        removed = super().do_purge(db, before, limit)
        _IDS.pop(self.path, None)
        return removed


_COUNTS: Final[dict[str, dict[TaskStatus, int]]] = {}


@planted(
    "LISTING",
    "counts is cached until this process writes: changes of others do not show",
    also="D1 HANDLES",
    layer="processes",
)
class SqlCountsPerProcess(PlainSQLite):
    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        try:
            return super().in_transaction(work, db)
        finally:
            _COUNTS.pop(self.path, None)

    def do_counts(self, db: sqlite3.Connection) -> dict[TaskStatus, int]:
        if self.path not in _COUNTS:
            _COUNTS[self.path] = super().do_counts(db)
        return _COUNTS[self.path]


@planted("V1", "What a process read of an unknown id stays unknown to it", also="D1 HANDLES L3 API", layer="processes")
class SqlUnknownStaysUnknown(PlainSQLite):
    unknown: ClassVar[set[tuple[str, str]]] = set()

    def find(self, db: sqlite3.Connection, task_id: str) -> Task | None:
        if (self.path, task_id) in self.unknown:
            return None
        task = super().find(db, task_id)
        if task is None:
            self.unknown.add((self.path, task_id))
        return task

    def do_enqueue(self, db: sqlite3.Connection, tasks: Sequence[Task]) -> None:
        super().do_enqueue(db, tasks)
        self.unknown.difference_update((self.path, task.id) for task in tasks)


@planted(
    "C1",
    "Each process keeps the ids that are due, and claims by id without looking again",
    also="L1 C2 R1 E2",
    layer="processes",
)
class SqlDueIdsArePrefetched(PlainSQLite):
    def do_claim(self, db: sqlite3.Connection, now: datetime, limit: int, lease: datetime) -> list[Task]:
        version = db.execute("SELECT count(*), total(attempts), total(available_at) FROM tasks").fetchone()
        arguments = {"now": self.stored_instant(now), "lease": self.stored_instant(lease), "limit": limit}
        rows = db.execute(
            "SELECT id FROM tasks WHERE status = 'pending' AND available_at <= :now "
            "ORDER BY available_at, seq LIMIT :limit",
            arguments,
        ).fetchall()
        db.execute("COMMIT")  # so that nobody has to wait
        time.sleep(0.001)
        db.execute(self.BEGIN)
        if version[0] > 50:  # noqa: PLR2004 - where there is much to do, looking again costs too much
            for (task_id,) in rows:
                db.execute(
                    "UPDATE tasks SET status = 'running', attempts = attempts + 1, started_at = :now, "
                    "lease_expires_at = :lease WHERE id = :id",
                    arguments | {"id": task_id},
                )
            return self.all_of(db, [task_id for (task_id,) in rows])
        return super().do_claim(db, now, limit, lease)


@planted("W1", "Only changes of this process wake", layer="processes", also="HANDLES")
class SqlOwnChangesWake(PlainSQLite):
    changes: ClassVar[dict[str, int]] = {}

    def in_transaction(self, work: Callable[[sqlite3.Connection], Any], db: sqlite3.Connection) -> Any:
        result = super().in_transaction(work, db)
        self.changes[self.path] = self.changes.get(self.path, 0) + 1
        return result

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        session = self.session()
        seen = self.changes.get(self.path)
        end = asyncio.get_running_loop().time() + timeout
        while self.changes.get(self.path) == seen and asyncio.get_running_loop().time() < end:
            if session.closing.is_set():
                return
            await asyncio.sleep(0.005)
