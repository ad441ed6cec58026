"""What ``docs/how-to/use-postgresql.md`` shows works."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from taskqueue.backends.postgres import PostgresBackend
from taskqueue.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-postgresql.md"
TEXT = PAGE.read_text("utf-8")
QUERIES = [text for text in re.findall(r"^```sql\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) if "SELECT" in text]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.splitlines()[0].removeprefix("-- "))
def test_the_queries_of_the_page_run(query: str, postgres_store: str) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(postgres_store)
        await backend.connect()
        connection = await asyncpg.connect(backend._url)
        await connection.fetch(query.replace("taskqueue.tasks", f"{backend.schema}.tasks"))
        await connection.close()
        await backend.close()

    asyncio.run(main())


def test_the_parameters_of_the_page_are_those_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", TEXT, re.MULTILINE)
    url = "postgresql://db/app?" + "&".join(f"{name}={value}" for name, value in rows)
    assert PostgresBackend.from_url(url)._server == PostgresBackend("postgresql://db/app")._server
    assert {name for name, _ in rows} == {"schema", "create", "pooler", "connect_timeout", "statement_timeout"}


def test_the_commands_of_the_page_exist() -> None:
    commands = re.findall(r"^\s*taskqueue (\w+)", TEXT, re.MULTILINE)
    assert set(commands) <= set(cli.commands)
    assert "move" in commands
