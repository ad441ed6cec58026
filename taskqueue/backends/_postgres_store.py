"""Whether the tables of a store are there and of a version that we know, and their creation where they are not."""

import logging
from typing import Final

import asyncpg

from taskqueue.backends._postgres_connection import Connection
from taskqueue.backends._postgres_schema import FOREIGN, SCHEMA_VERSION, quoted, schema_sql
from taskqueue.errors import IncompatibleStore, StoreUnavailable

_LOG: Final = logging.getLogger("taskqueue.backends.postgres")
_ENCODING: Final = "UTF8"


async def check(connection: Connection, location: str, schema: str, *, create: bool) -> None:
    """Check that a store is there, and with ``create`` create or upgrade it where that is needed.

    Raises:
        IncompatibleStore: A newer one, or something else, is there; it has not been touched.
        StoreUnavailable: There is none, or an older one, and it is not to be made or the role may not make it; or
            the database has an encoding in which not every text can be stored.
    """
    if connection.encoding != _ENCODING:
        raise StoreUnavailable(
            location,
            f"the database has the encoding {connection.encoding}, in which not every text can be stored; "
            "create one with ENCODING 'UTF8'",
        )
    found = await _version(connection, schema)
    if found is not None and found > SCHEMA_VERSION:
        raise IncompatibleStore(location, found=found, supported=SCHEMA_VERSION)
    if found == SCHEMA_VERSION:
        return
    if not create:
        there = "there are no tables of a taskqueue" if found is None else f"the tables have the older version {found}"
        raise StoreUnavailable(
            location,
            f"{there}, and they are not to be made here: run `taskqueue schema apply`, or connect without create=false",
        )
    await _apply(connection, location, schema)
    _LOG.info("created or upgraded the tables of the store %s", location)


async def _version(connection: Connection, schema: str) -> int | None:
    try:
        ((version,),) = await connection.fetch(f"SELECT version FROM {quoted(schema)}.schema_version")  # noqa: S608 - a checked identifier
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return None
    except (asyncpg.UndefinedColumnError, ValueError):
        return 0
    return int(version)


async def _apply(connection: Connection, location: str, schema: str) -> None:
    try:
        await connection.execute(schema_sql(schema))
    except asyncpg.PostgresError as error:
        if error.sqlstate == FOREIGN:
            raise IncompatibleStore(location, found=None, supported=SCHEMA_VERSION) from error
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise StoreUnavailable(
                location,
                f"this role may not make the tables ({error}): have somebody run `taskqueue schema apply`, or "
                f"create the namespace and let this role own it: CREATE SCHEMA {schema} AUTHORIZATION …",
            ) from error
        raise
