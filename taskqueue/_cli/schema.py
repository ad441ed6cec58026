"""``taskqueue schema``: the tables of a store in PostgreSQL."""

import asyncio
from typing import Any

import click

from taskqueue._cli.command import Command, CommandGroup
from taskqueue._cli.parameters import url_option
from taskqueue._url import without_password


@click.group(
    cls=CommandGroup,
    short_help="Create or print the tables of a store in PostgreSQL.",
    epilog="""
    Example:
      taskqueue schema sql --schema jobs > taskqueue.sql
    """,
)
def schema() -> None:
    """Create, upgrade or print the tables of a store in PostgreSQL.

    The application does so by itself when it first connects, unless its URL says create=false.
    """


@schema.command(
    cls=Command,
    short_help="Create the tables, or upgrade them.",
    epilog="""
    Example:
      taskqueue schema apply --url 'postgresql://admin@db/app?schema=jobs'
    """,
)
@url_option
def apply(*, url: str | None) -> None:
    """Create the tables of a store, or upgrade them to the version of this taskqueue.

    It happens wholly or not at all, and changes nothing where all is as it should be. Processes of an older version go
    on as before only if the changelog says so.
    """
    postgres = _postgres()
    if url is None or url.partition("://")[0].lower() not in {"postgresql", "postgres"}:
        given = "" if url is None else f", not {without_password(url)}"
        raise click.BadParameter(f"name a store in PostgreSQL, such as postgresql://user@host/database{given}")
    asyncio.run(postgres.apply_schema(url))
    click.echo(f"{without_password(url)} has schema version {postgres.SCHEMA_VERSION}")


@schema.command(
    cls=Command,
    short_help="Print the SQL that does it.",
    epilog="""
    Example:
      taskqueue schema sql --schema jobs > taskqueue.sql
    """,
)
@click.option("--schema", "name", default="taskqueue", show_default=True, metavar="NAME", help="The namespace.")
def sql(*, name: str) -> None:
    """Print the SQL with which `apply` creates or upgrades the tables, for review or to be run by other means."""
    click.echo(_postgres().schema_sql(name), nl=False)


def _postgres() -> Any:
    """Return the backend's module; without its driver there is a clear message."""
    try:
        from taskqueue.backends import postgres  # noqa: PLC0415 - needed by nothing else
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error
    return postgres
