"""Group commit: several operations in one transaction, and each with an outcome of its own."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from taskqueue.backends._sqlite_file import is_busy, pauses
from taskqueue.backends._sqlite_operations import Complete, Enqueue, Operation, complete_all, enqueue_all
from taskqueue.errors import TaskQueueError


def execute_patiently(db: sqlite3.Connection, operations: Sequence[Operation[Any]], patience: float) -> list[Any]:
    """Do what :func:`execute` does, and try those again for which another connection's lock was in the way.

    Args:
        db: The connection.
        operations: What to run.
        patience: For how many seconds to try.
    """
    outcomes = execute(db, operations)
    for pause in pauses(patience):
        busy = [number for number, outcome in enumerate(outcomes) if refused_as_busy(outcome)]
        if not busy:
            break
        time.sleep(pause)
        again = execute(db, [operations[number] for number in busy])
        for number, outcome in zip(busy, again, strict=True):
            outcomes[number] = outcome
    return outcomes


def refused_as_busy(outcome: Any) -> bool:
    """Tell whether an operation was not run since another connection's lock was in the way."""
    return isinstance(outcome, sqlite3.Error) and is_busy(outcome)


def execute(db: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    """Run the operations in order, in one transaction if any of them writes, and commit.

    A single statement that comes alone is a transaction by itself.

    Returns:
        The outcome of each: its result, or the exception to raise to its caller. An operation that was refused has
        changed nothing. If anything else goes wrong, the transaction is rolled back and each operation runs again in
        one of its own, so that it harms no caller but its own.
    """
    single = len(operations) == 1 and operations[0].single
    if single or not any(operation.writes for operation in operations):
        return [_alone(db, operation) for operation in operations]
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return [error] * len(operations)
    try:
        outcomes = _outcomes(db, operations)
        db.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - it is delivered to the caller
        _roll_back(db)
        if len(operations) == 1:
            return [error]
        return [outcome for operation in operations for outcome in execute(db, [operation])]
    except BaseException:
        _roll_back(db)
        raise
    return outcomes


def _alone(db: sqlite3.Connection, operation: Operation[Any]) -> Any:
    try:
        return operation.run(db)
    except Exception as error:  # noqa: BLE001 - it is delivered to the caller
        return error


def _outcomes(db: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    outcomes: list[Any] = []
    for kind, group in groupby(operations, key=type):
        neighbours: list[Any] = list(group)
        if len(neighbours) > 1 and kind is Enqueue:
            outcomes += enqueue_all(db, [operation.rows for operation in neighbours])
        elif len(neighbours) > 1 and kind is Complete:
            outcomes += complete_all(db, neighbours)
        else:
            outcomes += [_unless_refused(db, operation) for operation in neighbours]
    return outcomes


def _unless_refused(db: sqlite3.Connection, operation: Operation[Any]) -> Any:
    try:
        return operation.run(db)
    except TaskQueueError as refusal:
        return refusal


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:  # after some errors SQLite has done it already
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
