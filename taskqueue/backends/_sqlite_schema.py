"""How tasks lie in an SQLite file: the tables."""

import json
from collections.abc import Iterable
from typing import Final

from taskqueue.status import TaskStatus

APPLICATION_ID: Final = 0x74736B71
"""The file's ``application_id``: "tskq" in ASCII."""

SCHEMA_VERSION: Final = 1
"""The file's ``user_version``. A file with a higher one is refused."""

_LAST_INSTANT: Final = 253_402_300_799_999_999

# Not IN, for which SQLite builds a table anew for each row that it checks.
_KNOWN_STATUS: Final = " OR ".join(f"status = '{status}'" for status in TaskStatus)

SCHEMA: Final = (
    # seq is the order of enqueueing. Once the newest tasks are purged, their numbers are given again, which listings do
    # not mind. AUTOINCREMENT would prevent that, and write one page more for every insert.
    # The blobs come last, since SQLite reads a row from its beginning.
    f"""
    CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE CHECK (typeof(id) = 'text'),
        status TEXT NOT NULL CHECK ({_KNOWN_STATUS}),
        enqueued_at INTEGER NOT NULL CHECK (enqueued_at BETWEEN 0 AND {_LAST_INSTANT}),
        available_at INTEGER NOT NULL CHECK (available_at BETWEEN 0 AND {_LAST_INSTANT}),
        max_retries INTEGER NOT NULL CHECK (typeof(max_retries) = 'integer'),
        attempts INTEGER NOT NULL CHECK (typeof(attempts) = 'integer'),
        started_at INTEGER CHECK (started_at BETWEEN 0 AND {_LAST_INSTANT}),
        lease_expires_at INTEGER CHECK (lease_expires_at BETWEEN 0 AND {_LAST_INSTANT}),
        finished_at INTEGER CHECK (finished_at BETWEEN 0 AND {_LAST_INSTANT}),
        failures TEXT NOT NULL DEFAULT '' CHECK (typeof(failures) = 'text'), -- one line of JSON for each, oldest first
        payload BLOB NOT NULL CHECK (typeof(payload) = 'blob'),
        value BLOB CHECK (typeof(value) IN ('blob', 'null'))
    )
    """,
    # Partial indexes: a task that has ended costs a claim nothing. Each ends in seq, as every index does.
    "CREATE INDEX tasks_due ON tasks (available_at) WHERE status = 'pending'",
    "CREATE INDEX tasks_leased ON tasks (lease_expires_at) WHERE status = 'running'",
    "CREATE INDEX tasks_ended ON tasks (finished_at) WHERE finished_at IS NOT NULL",
    # No index on every status: each step of every task's life would pay for it, and only listings would use it.
    "CREATE INDEX tasks_unsuccessful ON tasks (status) WHERE status = 'failed' OR status = 'cancelled'",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def to_json(values: Iterable[object]) -> str:
    """Return the values as an array for ``json_each``: one variable, however many values there are."""
    return json.dumps(list(values))
