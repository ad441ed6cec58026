import asyncio
import hashlib
import logging
import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time

from taskqueue import (
    Failure,
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    StoreUnavailable,
    Task,
    TaskExists,
    TaskStatus,
    TooLarge,
)
from taskqueue.backends import _sqlite_operations as operations
from taskqueue.backends._sqlite_commit import execute
from taskqueue.backends._sqlite_schema import SCHEMA, SCHEMA_VERSION
from taskqueue.backends.sqlite import SQLiteBackend

T0 = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = T0 + timedelta(seconds=30)
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


def new(task_id: str, **fields: Any) -> Task:
    return Task(**{"id": task_id, "payload": b"call", "enqueued_at": T0, "available_at": T0} | fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


def create(path: Path, *tasks: Task) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue(tasks)
        await backend.close()

    asyncio.run(main())


def in_another_process(body: str, *arguments: object) -> str:
    code = "import asyncio, sys\nfrom taskqueue.backends.sqlite import SQLiteBackend\n" + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


# Files


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_new_file_belongs_to_its_owner_only(path: Path, umask: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue([new("a")])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == {"tasks.db": 0o600, "tasks.db-wal": 0o600, "tasks.db-shm": 0o600}
        await backend.close()
        await backend.connect()
        await backend.close()

    before = os.umask(umask)
    try:
        with caplog.at_level(logging.INFO, logger="taskqueue.backends.sqlite"):
            asyncio.run(main())
    finally:
        os.umask(before)
    assert [record.getMessage() for record in caplog.records] == [f"created {path}"]


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE tasks (id)")


def foreign_database_in_wal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE tasks (id)")


def newer_store(path: Path) -> None:
    create(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def text_file(path: Path) -> None:
    path.write_text("dear diary\n" * 100)


def short_file(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def damaged_magic(path: Path) -> None:
    create(path)
    path.write_bytes(b"?" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (foreign_database, None),
        (foreign_database_in_wal, None),
        (newer_store, SCHEMA_VERSION + 1),
        (text_file, None),
        (short_file, None),
        (damaged_magic, None),
    ],
)
def test_what_is_not_ours_is_refused_and_left_untouched(
    path: Path, make: Callable[[Path], None], found: int | None
) -> None:
    def state() -> dict[str, tuple[str, int]]:
        return {
            file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
            for file in path.parent.iterdir()
        }

    make(path)
    before = state()
    with pytest.raises(IncompatibleStore) as refused:
        asyncio.run(SQLiteBackend(path).connect())
    assert (refused.value.location, refused.value.found, refused.value.supported) == (str(path), found, SCHEMA_VERSION)
    assert state() == before


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleStore):
        asyncio.run(SQLiteBackend(tmp_path).connect())


def test_the_directory_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"create the directory .*missing first"):
        asyncio.run(SQLiteBackend(tmp_path / "missing" / "tasks.db").connect())
    assert not list(tmp_path.iterdir())


def test_damage_behind_the_header_is_reported(path: Path) -> None:
    create(path, new("a"))
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="malformed"):
        create(path, new("b"))


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    create(path, new("a"))
    assert path.stat().st_size


def test_a_file_that_is_removed_or_replaced_is_noticed(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue([new("a")])
        await asyncio.to_thread(path.unlink)
        with pytest.raises(StoreUnavailable, match="removed"):
            await backend.enqueue([new("b")])
        await asyncio.to_thread(path.touch)
        with pytest.raises(StoreUnavailable, match="replaced"):
            await backend.wait(5)
        await backend.close()
        await backend.connect()
        assert await backend.get("a") is None
        await backend.close()

    asyncio.run(main())


def test_the_settings_hold_on_every_connection(path: Path) -> None:
    async def main() -> None:
        for synchronous, level in (("FULL", 2), ("NORMAL", 1)):
            backend = SQLiteBackend(path, synchronous=synchronous)  # type: ignore[arg-type]  # both are
            for handle in (backend, backend.clone()):
                await handle.connect()
                (session,) = handle._sessions.values()
                db = session._thread.file.db
                pragmas = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
                assert pragmas == [level, "wal"]
                await handle.close()

    asyncio.run(main())


def test_a_lock_that_somebody_keeps_ends_in_a_clear_error(path: Path) -> None:
    create(path)

    async def main() -> None:
        backend = SQLiteBackend(path, busy_timeout=0.05)
        await backend.connect()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(
                *(backend.enqueue([new(name)]) for name in "ab"), backend.counts(), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
            assert (await backend.counts())[TaskStatus.PENDING] == 0
        await backend.enqueue([new("a")])
        await backend.close()

    asyncio.run(main())


def test_a_full_disk_is_reported_and_harms_nothing(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue([new("a")])
        (session,) = backend._sessions.values()
        db = session._thread.file.db
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 5}")
        outcomes = await asyncio.gather(
            backend.enqueue([new("big", payload=bytes(100_000))]), backend.enqueue([new("b")]), return_exceptions=True
        )
        assert isinstance(outcomes[0], StoreUnavailable)
        assert "full" in str(outcomes[0])
        assert outcomes[1] is None
        assert (await backend.counts())[TaskStatus.PENDING] == 2
        await backend.close()

    asyncio.run(main())


# Arguments


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert SQLiteBackend.from_url("sqlite:///a/b%20%23.db").path == str(tmp_path / "a/b #.db")
    assert SQLiteBackend.from_url("sqlite:////srv/tasks.db").path == "/srv/tasks.db"
    assert SQLiteBackend.from_url("sqlite:////t.db?synchronous=NORMAL").clone()._synchronous == "NORMAL"
    assert SQLiteBackend().path == str(tmp_path / "taskqueue.db")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://tasks.db",
        "sqlite://host/tasks.db",
        "sqlite:///t.db#x",
        "sqlite:///:memory:",
        "sqlite:///t.db?mode=ro",
        "sqlite:///t.db?synchronous=OFF",
        "sqlite:///t.db?synchronous",
        "sqlite:///t.db?synchronous=FULL&synchronous=NORMAL",
        "sqlite:///t%00.db",
        "postgresql:///t.db",
    ],
)
def test_wrong_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        SQLiteBackend.from_url(url)


@pytest.mark.parametrize(
    "arguments", [{"path": ""}, {"path": ":memory:"}, {"synchronous": "OFF"}, {"busy_timeout": -1}]
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        SQLiteBackend(**arguments)


# Group commit


@pytest.fixture
def db() -> Any:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in SCHEMA:
            db.execute(statement)
        yield db


def test_one_bad_call_harms_only_its_own_caller(db: sqlite3.Connection) -> None:
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    outcomes = execute(
        db,
        [
            operations.enqueue([new("a")]),
            operations.enqueue([new("b"), new("big", payload=bytes(20_000))]),
            operations.enqueue([new("c"), new("a")]),
            operations.cancel("a", now=T0),
            operations.complete("a", 1, value=b"", now=T0),
            operations.get("c"),
        ],
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], TooLarge)
    assert outcomes[1].limit == 10_000
    assert isinstance(outcomes[2], TaskExists)
    assert outcomes[3] is True
    assert [type(outcome).__name__ for outcome in outcomes[4:]] == ["StaleClaim", "NoneType"]
    assert db.execute("SELECT id, status FROM tasks").fetchall() == [("a", "cancelled")]
    assert not db.in_transaction


def test_too_large_values_and_failures_are_refused(db: sqlite3.Connection) -> None:
    execute(db, [operations.enqueue([new("a")]), operations.claim(now=T0, limit=1, lease_expires_at=LEASE)])
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    failure = Failure(attempt=1, error="e" * 20_000, failed_at=T0)
    for operation in (
        operations.complete("a", 1, value=bytes(20_000), now=T0),
        operations.fail("a", 1, failure, if_expired=False),
    ):
        assert isinstance(execute(db, [operation])[0], TooLarge)
    assert db.execute("SELECT status, failures FROM tasks").fetchall() == [("running", "")]


def test_a_damaged_row_does_not_stop_the_others(db: sqlite3.Connection, caplog: pytest.LogCaptureFixture) -> None:
    execute(db, [operations.enqueue([new("a"), new("damaged"), new("b")])])
    db.execute("UPDATE tasks SET failures = 'not json' || char(10) WHERE id = 'damaged'")
    (claimed,) = execute(db, [operations.claim(now=T0, limit=9, lease_expires_at=LEASE)])
    assert [task.id for task in claimed] == ["a", "b"]
    assert "'damaged'" in caplog.text


def test_reading_a_damaged_row_says_so(path: Path) -> None:
    create(path, new("damaged"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE tasks SET failures = '[1]' || char(10)")
        db.commit()

    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        with pytest.raises(StoreUnavailable, match="task 'damaged' is damaged"):
            await backend.get("damaged")
        await backend.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (operations.CLAIM, "tasks_due"),
        (operations.EXPIRED, "tasks_leased"),
        (operations.PURGE, "tasks_ended"),
        (operations.NEXT_DUE, "tasks_due"),
        (operations.NEXT_DUE, "tasks_leased"),
        (operations.PAGES[TaskStatus.PENDING], "INTEGER PRIMARY KEY"),
        (operations.PAGES[TaskStatus.SUCCESS], "INTEGER PRIMARY KEY"),
        (operations.PAGES[TaskStatus.FAILED], "tasks_unsuccessful"),
        (operations.PAGES[TaskStatus.CANCELLED], "tasks_unsuccessful"),
        (operations.COUNTS, "SCAN tasks USING COVERING INDEX"),
        (operations.COUNTS, "INDEX tasks_leased"),
        (operations.COUNTS, "COVERING INDEX tasks_ended"),
        (operations.COUNTS, "COVERING INDEX tasks_unsuccessful"),
        (operations.EXTEND, "sqlite_autoindex_tasks_1"),
        (operations.COMPLETE, "sqlite_autoindex_tasks_1"),
        (operations.FAIL, "sqlite_autoindex_tasks_1"),
        (operations.CANCEL, "sqlite_autoindex_tasks_1"),
    ],
)
def test_no_statement_reads_what_it_does_not_need(db: sqlite3.Connection, statement: str, index: str) -> None:
    arguments: Any = dict.fromkeys(re.findall(r":(\w+)", statement), 1) or [1] * statement.count("?")
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", arguments)]
    assert any(index in step for step in plan), plan
    assert not any(step.startswith("SCAN tasks") and "INDEX" not in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_instants_are_plain_under_frozen_time(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue([new("a")])
        (task,) = await backend.claim(now=T0, limit=1, lease_expires_at=LEASE)
        assert {type(task.available_at), type(task.lease_expires_at), type(await backend.next_due())} == {type(T0)}
        await backend.close()

    with freeze_time("2001-01-01", real_asyncio=True):
        asyncio.run(main())


# Cancellation and leftovers


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 5, 8, 13, 0.0001, 0.0003, 0.001])
def test_a_cancelled_call_has_happened_or_not(path: Path, delay: float) -> None:
    async def pause() -> None:
        if isinstance(delay, int):
            for _ in range(delay):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(delay)

    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        await backend.enqueue([new("a")])
        call = asyncio.create_task(backend.enqueue([new("x"), new("y")]))
        await pause()
        call.cancel()
        await asyncio.wait([call])
        there = [await backend.get(name) is not None for name in "xy"]
        assert there in ([True, True], [False, False])
        assert call.cancelled() or there == [True, True]
        claim = asyncio.create_task(backend.claim(now=T0, limit=1, lease_expires_at=LEASE))
        await pause()
        claim.cancel()
        await asyncio.wait([claim])
        before = await backend.get("a")
        await asyncio.sleep(0.005)
        assert await backend.get("a") == before
        await backend.close()

    asyncio.run(main())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6])
def test_a_cancelled_connect_leaves_nothing_open(path: Path, steps: int) -> None:
    async def main() -> None:
        threads = threading.active_count()
        backend = SQLiteBackend(path)
        connecting = asyncio.create_task(backend.connect())
        for _ in range(steps):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        if connecting.cancelled():
            with pytest.raises(NotConnected):
                await backend.counts()
            await asyncio.sleep(0.01)
            assert threading.active_count() == threads
        await backend.connect()
        await backend.enqueue([new("a")])
        await backend.close()

    asyncio.run(main())


def test_a_cancelled_connect_does_not_disturb_the_others(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        one, other = (asyncio.create_task(backend.connect()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        await other
        assert one.cancelled() or one.done()
        await backend.enqueue([new("a")])
        closing_call = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        closing_call.cancel()
        await asyncio.wait([closing_call])
        with pytest.raises(NotConnected):
            await backend.counts()
        await backend.connect()
        assert await backend.get("a") is not None
        await backend.close()

    asyncio.run(main())


def test_close_answers_the_calls_under_way(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        calls = [asyncio.create_task(backend.enqueue([new(str(number))])) for number in range(50)]
        await asyncio.sleep(0)
        await backend.close()
        assert [await call for call in calls] == [None] * 50

    asyncio.run(main())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (50,)


def test_a_loop_that_ends_without_close_leaves_nothing_open(path: Path) -> None:
    backend = SQLiteBackend(path)

    async def main() -> None:
        await backend.connect()
        await backend.enqueue([new("a")])
        _calls.append(asyncio.create_task(backend.wait(60)))
        _calls.append(asyncio.create_task(backend.enqueue([new("b")])))
        await asyncio.sleep(0)

    _calls: list[asyncio.Task[None]] = []
    threads = threading.active_count()
    asyncio.run(main())
    assert threading.active_count() == threads
    assert not path.with_name("tasks.db-wal").exists()


def test_a_handle_whose_loop_is_dead_connects_on_another(path: Path) -> None:
    backend = SQLiteBackend(path)
    loop = asyncio.new_event_loop()
    threads = threading.active_count()
    loop.run_until_complete(backend.connect())
    loop.run_until_complete(backend.enqueue([new("a")]))
    loop.close()

    async def main() -> None:
        await backend.connect()
        assert await backend.get("a") is not None
        await backend.close()

    asyncio.run(main())
    assert threading.active_count() == threads


def test_many_cycles_leave_no_thread_and_no_descriptor(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        for _ in range(30):
            await backend.connect()
            await backend.wait(0.001)
            await backend.close()

    asyncio.run(main())
    before = threading.active_count(), descriptors()
    asyncio.run(main())
    assert (threading.active_count(), descriptors()) == before


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


# Many processes


def work(path: str, worker: int) -> list[str]:
    async def main() -> list[str]:
        backend = SQLiteBackend(path)
        await backend.connect()
        ran: list[str] = []
        if worker == 0:
            await asyncio.gather(*(backend.enqueue([new(str(number))]) for number in range(1000)))
        else:
            await backend.enqueue([new(f"{worker}-{number}") for number in range(1000 // 3 + (worker == 1))])
        while True:
            claimed = await backend.claim(now=T0, limit=7, lease_expires_at=LEASE)
            if not claimed and (await backend.counts())[TaskStatus.SUCCESS] == 2000:
                break
            await asyncio.gather(*(backend.complete(t.id, t.attempts, value=b"", now=T0) for t in claimed))
            ran += [task.id for task in claimed]
            if not claimed:
                await backend.wait(0.05)
        await backend.close()
        return ran

    return asyncio.run(main())


def test_four_processes_run_each_task_once(path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        ran = [task_id for ids in pool.map(partial(work, str(path)), range(4)) for task_id in ids]
    assert (len(ran), len(set(ran))) == (2000, 2000)


def connect_and_enqueue(path: str, number: int) -> None:
    create(Path(path), new(str(number)))


def test_ten_processes_create_one_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(10, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for attempt in range(3):
            path = tmp_path / f"{attempt}.db"
            list(pool.map(partial(connect_and_enqueue, str(path)), range(10)))
            with closing(sqlite3.connect(path)) as db:
                assert db.execute("SELECT count(*) FROM tasks").fetchone() == (10,)


def test_wait_notices_another_process(path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(path)
        await backend.connect()
        assert not await backend.claim(now=T0, limit=1, lease_expires_at=LEASE)
        # Between the claim and the wait: it must not be lost.
        await asyncio.to_thread(
            in_another_process,
            """
            from datetime import datetime, UTC
            from taskqueue import Task
            async def main():
                backend = SQLiteBackend(sys.argv[1])
                await backend.connect()
                now = datetime.now(UTC)
                await backend.enqueue([Task(id="a", payload=b"", enqueued_at=now, available_at=now)])
                await backend.close()
            asyncio.run(main())
            """,
            path,
        )
        loop = asyncio.get_running_loop()
        started = loop.time()
        await backend.wait(30)
        assert loop.time() - started < 5
        started = loop.time()
        await backend.wait(0.1)
        assert loop.time() - started >= 0.09
        await backend.close()

    asyncio.run(main())


@FORK
def test_a_forked_child_opens_afresh_and_keeps_its_word(path: Path) -> None:
    backend = SQLiteBackend(path)

    async def child() -> None:
        with pytest.raises(NotConnected):
            await backend.counts()
        await backend.close()
        await backend.connect()
        await backend.enqueue([new("child before")])
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        await backend.enqueue([new("child after")])
        os.kill(os.getpid(), 9)

    async def main() -> None:
        await backend.connect()
        await backend.enqueue([new("parent")])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork with threads
            pid = os.fork()
        if not pid:
            try:
                thread = threading.Thread(target=lambda: asyncio.run(child()))
                thread.start()
                thread.join()
            finally:
                os._exit(1)
        await asyncio.to_thread(os.read, ready[0], 1)
        assert await backend.get("child before") is not None
        await backend.close()  # the child must not take this for the last connection's end
        os.write(go[1], b"x")
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.WTERMSIG(status) == 9
        await backend.connect()
        found, _ = await backend.tasks(limit=9)
        assert [task.id for task in found] == ["parent", "child before", "child after"]
        await backend.close()

    ready, go = os.pipe(), os.pipe()
    asyncio.run(main())
    for descriptor in (*ready, *go):
        os.close(descriptor)
