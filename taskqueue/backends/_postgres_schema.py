"""The tables of a store in PostgreSQL, and how they are created, upgraded and checked."""

import re
from collections.abc import Sequence
from typing import Final

from taskqueue.errors import InvalidArgument

SCHEMA_VERSION: Final = 1
"""The version that this module writes. A store with a higher one is refused."""
DEFAULT_SCHEMA: Final = "taskqueue"
"""The namespace that is used where none is named."""
FOREIGN: Final = "TQ001"
"""The SQLSTATE with which the script says that the namespace holds tables which are not a taskqueue's."""

# What leads from each version to the next one, the first from nothing. A step that has been released never changes.
_STEPS: Final[Sequence[str]] = (
    """
    CREATE TYPE @schema.task_status AS ENUM ('pending', 'running', 'success', 'failed', 'cancelled');
    CREATE TABLE @schema.tasks (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order of enqueueing
        id text COLLATE "C" NOT NULL UNIQUE,
        status @schema.task_status NOT NULL, -- a text with a constraint would cost each statement a tenth more
        enqueued_at bigint NOT NULL, -- this and the other instants: microseconds since 1970-01-01 UTC
        available_at bigint NOT NULL,
        max_retries bigint NOT NULL,
        attempts bigint NOT NULL,
        started_at bigint,
        lease_expires_at bigint,
        finished_at bigint,
        failures text NOT NULL, -- one line of JSON for each, oldest first
        payload bytea NOT NULL,
        value bytea
    ) WITH (
        -- Each task leaves two or three dead rows behind, and a claim reads past those that are not vacuumed yet.
        autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.05
    );
    -- Partial indexes: a task that has ended costs a claim nothing.
    CREATE INDEX tasks_due ON @schema.tasks (available_at, seq) WHERE status = 'pending';
    -- Not WHERE status = 'running': who looks for one task that runs must not be led through all that do.
    CREATE INDEX tasks_leased ON @schema.tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
    CREATE INDEX tasks_ended ON @schema.tasks (finished_at) WHERE finished_at IS NOT NULL;
    -- For listings; of the other statuses there are few tasks, or most of all.
    CREATE INDEX tasks_unsuccessful ON @schema.tasks (status, seq) WHERE status IN ('failed', 'cancelled');
    CREATE TABLE @schema.schema_version (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        version integer NOT NULL
    );
    INSERT INTO @schema.schema_version (version) VALUES (1);
    """,
)

# The lock is one for all namespaces of the database, and given up with the transaction. The statements of a function
# each see what was committed before they began, so whoever waited for the lock sees what its holder has made: in the
# catalogue, which is therefore read first. to_regnamespace would answer from a cache, filled before the wait.
_SCRIPT: Final = """\
DO $taskqueue$
DECLARE
    found integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(7306936710571061616);
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '@name') THEN
        CREATE SCHEMA @schema;
    END IF;
    IF to_regclass('@schema.schema_version') IS NOT NULL THEN
        SELECT version INTO STRICT found FROM @schema.schema_version;
    ELSIF to_regclass('@schema.tasks') IS NOT NULL THEN
        RAISE EXCEPTION 'there is a table @schema.tasks that is not a taskqueue''s' USING ERRCODE = '@foreign';
    END IF;
@steps
END
$taskqueue$;
"""


def quoted(schema: str) -> str:
    """Return a namespace as an identifier for SQL.

    Raises:
        InvalidArgument: It is not 1 to 50 lower-case letters, digits and underscores, beginning with no digit.
    """
    if not re.fullmatch("[a-z_][a-z0-9_]{0,49}", schema) or schema.startswith("pg_"):
        raise InvalidArgument(
            "schema",
            schema,
            "name a namespace with 1 to 50 lower-case letters, digits and underscores, beginning with a letter; "
            "the prefix pg_ is PostgreSQL's own",
        )
    return f'"{schema}"'


def schema_sql(schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that creates or upgrades a store: for people who review such things, or run them themselves.

    It is one statement, so it happens wholly or not at all; it waits for others that do the same; and where all is
    as it should be, or newer, it changes nothing.

    Raises:
        InvalidArgument: ``schema`` cannot be the name of a namespace.
    """
    steps = "\n".join(
        f"    IF found < {version} THEN{step.rstrip()}\n    END IF;" for version, step in enumerate(_STEPS, start=1)
    )
    script = _SCRIPT.replace("@steps", steps).replace("@foreign", FOREIGN).replace("@name", schema)
    return script.replace("@schema", quoted(schema))
