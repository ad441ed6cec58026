"""Wrong ways to put a record into columns of SQLite."""

import re
import sqlite3
from datetime import UTC, datetime
from typing import Any

from taskqueue import Failure, Task
from taskqueue_conformance.defects.catalogue import planted
from taskqueue_conformance.defects.plain_sqlite import EPOCH, PlainSQLite


@planted("E3", "Instants are stored as REAL seconds", seen_in="river#760", also="E1")
class SqlInstantsAsReal(PlainSQLite):
    def stored_instant(self, instant: datetime) -> Any:
        return (instant - EPOCH).total_seconds()

    def read_instant(self, stored: Any) -> datetime:
        return datetime.fromtimestamp(stored, UTC)


@planted(
    "E1",
    "Instants are stored as text that ends in Z and leaves out microseconds of zero, and compared as text",
    also="C3 D3 E3",
)
class SqlInstantsAsText(PlainSQLite):
    TASKS = re.sub(r"(\w+_at) INTEGER", r"\1 TEXT", PlainSQLite.TASKS)

    def stored_instant(self, instant: datetime) -> Any:
        return instant.isoformat().replace("+00:00", "Z")

    def read_instant(self, stored: Any) -> datetime:
        return datetime.fromisoformat(stored)


@planted("E3", "Instants are stored in milliseconds", seen_in="APScheduler", also="E1")
class SqlInstantsInMilliseconds(PlainSQLite):
    def stored_instant(self, instant: datetime) -> Any:
        return super().stored_instant(instant) // 1000

    def read_instant(self, stored: Any) -> datetime:
        return super().read_instant(stored * 1000)


@planted("E3", "An instant of zero is stored as NULL, and read as the epoch only where it must be", also="D3 R2")
class SqlZeroIsNull(PlainSQLite):
    def stored_or_none(self, instant: datetime | None) -> Any:
        return super().stored_or_none(instant) or None


@planted("E3", "A NULL lease is stored where the claim's lease lies at the epoch", also="D3 C2 L2")
class SqlZeroLeaseIsNull(PlainSQLite):
    CLAIM = PlainSQLite.CLAIM.replace("lease_expires_at = :lease", "lease_expires_at = nullif(:lease, 0)")


@planted("V2", "Errors are stored as bytes that are decoded with replacement of what Latin-1 lacks")
class SqlErrorsInLatin1(PlainSQLite):
    def failure_row(self, task_id: str, failure: Failure) -> dict[str, Any]:
        row = super().failure_row(task_id, failure)
        return row | {"error": failure.error.encode("latin-1", "replace").decode("latin-1")}


@planted("V2", "An error with a quote breaks the statement: text is formatted in", also="R2 RESULT")
class SqlTextFormattedIn(PlainSQLite):
    def do_fail(
        self, db: sqlite3.Connection, task_id: str, attempt: int, failure: Failure, *, if_expired: bool
    ) -> Task:
        db.execute(f"SELECT '{failure.error}'")
        return super().do_fail(db, task_id, attempt, failure, if_expired=if_expired)


@planted("API", "More than 500 variables: lists of ids are checked in one statement with a limit of its own")
class SqlTooManyVariables(PlainSQLite):
    def do_enqueue(self, db: sqlite3.Connection, tasks: Any) -> None:
        if len(tasks) > 999:  # noqa: PLR2004 - SQLite's old limit of variables
            raise sqlite3.OperationalError("too many SQL variables")
        super().do_enqueue(db, tasks)


@planted("LISTING", "The cursor is an OFFSET: after a purge a listing leaves tasks out")
class SqlOffsetAsCursor(PlainSQLite):
    PAGE = PlainSQLite.PAGE.replace("seq > :after AND", "").replace("LIMIT :limit", "LIMIT :limit OFFSET :after")

    def do_page(self, db: sqlite3.Connection, status: Any, after: str | None, limit: int) -> Any:
        tasks, cursor = super().do_page(db, status, after, limit)
        return tasks, cursor if cursor is None or limit == 0 else str(int(after or 0) + limit)


@planted("C3", "Claimed tasks are returned in the order in which RETURNING happens to give them")
class SqlReturningOrder(PlainSQLite):
    def claim_order(self, row: Any) -> Any:
        return row[2]


@planted(
    "G1", "Failures of purged tasks stay, and come back with a number that is given again", also="V2 LISTING R1 API C3"
)
class SqlFailuresSurvivePurge(PlainSQLite):
    TASKS = PlainSQLite.TASKS.replace("PRIMARY KEY AUTOINCREMENT", "PRIMARY KEY")
    FORGET_FAILURES = "DELETE FROM failures WHERE task = :seq AND 0"
