"""``taskqueue move`` and ``taskqueue schema``."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskqueue import TaskQueue, TaskStatus
from taskqueue.cli import cli


def greet(name: str) -> str:
    return f"hello {name}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKQUEUE_URL", raising=False)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="taskqueue", catch_exceptions=False)


def in_store(url: str, work: Any) -> Any:
    async def main() -> Any:
        async with TaskQueue.from_url(url) as queue:
            return await work(queue)

    return asyncio.run(main())


def test_move_takes_what_has_not_ended(postgres_store: str) -> None:
    async def fill(queue: TaskQueue) -> None:
        await queue.enqueue_many(greet, [("a",), ("b",)], task_ids=["a", "b"])

    in_store("sqlite:///one.db", fill)
    result = call("move", "sqlite:///one.db", postgres_store, "--journal", "j")
    assert (result.exit_code, result.output.startswith("2 tasks moved to postgresql://")) == (0, True), result.output
    again = call("move", "sqlite:///one.db", postgres_store, "--journal", "j", "--json")
    assert json.loads(again.output) == {"moved": 2, "interrupted": []}
    assert in_store(postgres_store, lambda queue: queue.counts())[TaskStatus.PENDING] == 2
    assert in_store("sqlite:///one.db", lambda queue: queue.counts())[TaskStatus.CANCELLED] == 2


def test_move_says_what_is_in_the_way() -> None:
    async def fill(queue: TaskQueue) -> None:
        await queue.enqueue(greet, "a")
        await queue.claim()

    in_store("sqlite:///one.db", fill)
    for arguments, says in (
        (("sqlite:///one.db", "sqlite:///two.db", "--journal", "j"), "1 task(s) of the source are RUNNING"),
        (("sqlite:///none.db", "sqlite:///two.db", "--journal", "j"), "there is no file"),
        (("sqlite:///one.db", "sqlite:///three.db", "--journal", "j"), "a journal of its own"),
        (("sqlite:///one.db", "sqlite:///two.db", "--journal", "no/folder"), "no/folder"),
    ):
        result = call("move", *arguments)
        assert (result.exit_code, says in result.output) == (1, True), result.output


def test_schema_apply_makes_a_store_that_others_need_not_make(postgres_store: str) -> None:
    for _ in range(2):
        result = call("schema", "apply", "--url", postgres_store)
        assert (result.exit_code, "has schema version 1" in result.output) == (0, True), result.output
    assert in_store(f"{postgres_store}&create=false", lambda queue: queue.counts())[TaskStatus.PENDING] == 0


def test_schema_apply_takes_no_other_store() -> None:
    for arguments in ((), ("--url", "sqlite:///x.db")):
        result = call("schema", "apply", *arguments)
        assert (result.exit_code, "name a store in PostgreSQL" in result.output) == (2, True), result.output


def test_schema_sql_prints_what_apply_does() -> None:
    result = call("schema", "sql", "--schema", "jobs")
    assert result.exit_code == 0
    assert 'CREATE TABLE "jobs".tasks' in result.output
    assert call("schema", "sql", "--schema", "No").exit_code == 1
