"""``SyncTaskQueue`` with a blocking connection of the application's."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskqueue import InvalidArgument, NotConnected, SyncTaskQueue, TaskExists
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.sqlite import SQLiteBackend


def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[SyncTaskQueue]:
    with SyncTaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        yield queue


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.commit()
        yield connection


def test_the_task_exists_once_the_application_commits(queue: SyncTaskQueue, connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO orders VALUES (1)")
    queue.enqueue(add, 1, 2, task_id="a", connection=connection)
    queue.options(task_id="b", connection=connection).enqueue(add, 1, 2)
    queue.enqueue_many(add, [(1, 2), (3, 4)], task_ids=["c", "d"], connection=connection)
    assert sum(queue.counts().values()) == 0
    connection.commit()
    assert [task.id for task in queue.tasks()] == ["a", "b", "c", "d"]


def test_a_rollback_takes_the_task_along(queue: SyncTaskQueue, connection: sqlite3.Connection) -> None:
    queue.enqueue(add, 1, 2, connection=connection)
    connection.rollback()
    assert sum(queue.counts().values()) == 0


def test_a_known_id_is_refused_and_the_transaction_goes_on(
    queue: SyncTaskQueue, connection: sqlite3.Connection
) -> None:
    queue.enqueue(add, 1, 2, task_id="a")
    connection.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(TaskExists):
        queue.enqueue(add, 1, 2, task_id="a", connection=connection)
    connection.commit()
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


class Asynchronous:
    async def execute(self, statement: str) -> None: ...


def test_what_cannot_be_used_is_a_clear_error(queue: SyncTaskQueue, connection: sqlite3.Connection) -> None:
    with pytest.raises(InvalidArgument, match="pass a blocking connection"):
        queue.enqueue(add, 1, 2, connection=Asynchronous())
    with pytest.raises(InvalidArgument, match="connection"):
        queue.enqueue(add, 1, 2, connection="sqlite://")
    with SyncTaskQueue(MemoryBackend()) as memory, pytest.raises(InvalidArgument, match="cannot take part"):
        memory.enqueue(add, 1, 2, connection=connection)
    queue.close()
    with pytest.raises(NotConnected):
        queue.enqueue(add, 1, 2, connection=connection)
