"""SQLite stores whose files are damaged, taken away, full or forbidden: a clear error, and nothing lost needlessly."""

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import waiting

from taskqueue import IncompatibleStore, StoreUnavailable, Task, TaskQueue, TaskStatus, Worker
from taskqueue.backends._sqlite_file import StoreFile
from taskqueue.backends.sqlite import SQLiteBackend

until = partial(waiting.until, seconds=60)

T0 = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = T0 + timedelta(seconds=30)
POSIX = pytest.mark.skipif(os.name != "posix", reason="elsewhere an open file cannot be taken away")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def new(task_id: str, payload: bytes = b"") -> Task:
    return Task(id=task_id, payload=payload, enqueued_at=T0, available_at=T0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder / "tasks.db"


async def opened(path: Path, **options: Any) -> SQLiteBackend:
    backend = SQLiteBackend(path, **options)
    await backend.connect()
    return backend


def fill(path: Path, number: int = 60) -> None:
    async def main() -> None:
        backend = await opened(path)
        await backend.enqueue([new(str(each), bytes(3000)) for each in range(number)])
        await backend.close()

    asyncio.run(main())


def in_another_process(body: str, *arguments: object) -> str:
    """Run code with the arguments in ``argv``; return what it prints."""
    before = """
        import asyncio, os, sys
        from datetime import UTC, datetime
        from taskqueue import StoreUnavailable, Task
        from taskqueue.backends.sqlite import SQLiteBackend
        argv, T0 = sys.argv[1:], datetime(2030, 1, 1, tzinfo=UTC)
        def new(task_id, payload=b""):
            return Task(id=task_id, payload=payload, enqueued_at=T0, available_at=T0)
    """
    code = textwrap.dedent(before) + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Taken away while it is open


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-shm")


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_another_store(path: Path) -> None:
    other = path.with_name("other.db")
    fill(other)
    other.replace(path)


@POSIX
@pytest.mark.parametrize(
    ("take_away", "said"),
    [
        (Path.unlink, "tasks.db was removed while it was open"),
        (lambda path: log_of(path).unlink(), "tasks.db-wal was removed"),
        (lambda path: index_of(path).unlink(), "tasks.db-shm was removed"),
        (lambda path: shutil.rmtree(path.parent), "tasks.db was removed"),
        (replace_by_a_directory, "tasks.db was replaced by another"),
        (replace_by_another_store, "tasks.db was replaced by another"),
    ],
)
def test_nothing_is_acknowledged_once_a_file_is_taken_away(
    path: Path, take_away: Callable[[Path], None], said: str
) -> None:
    async def main() -> None:
        backend = await opened(path)
        await backend.enqueue([new("a")])
        await asyncio.to_thread(take_away, path)
        for call in (
            backend.enqueue([new("b")]),
            backend.claim(now=T0, limit=1, lease_expires_at=LEASE),
            backend.get("a"),
            backend.wait(5),
        ):
            with pytest.raises(StoreUnavailable, match="connect again") as refused:
                await call
            assert said in str(refused.value)
            assert refused.value.location == str(path)
        await backend.close()

    asyncio.run(main())


@POSIX
@pytest.mark.parametrize(
    ("take_away", "said"),
    [(Path.unlink, "removed"), (replace_by_a_directory, "replaced"), (replace_by_another_store, "replaced")],
)
def test_a_clone_of_an_open_handle_opens_no_other_file_and_creates_none(
    path: Path, take_away: Callable[[Path], None], said: str
) -> None:
    async def main() -> None:
        backend = await opened(path)
        clone = backend.clone()
        await asyncio.to_thread(take_away, path)
        there = await asyncio.to_thread(path.exists)
        with pytest.raises(StoreUnavailable, match=said):
            await clone.connect()
        assert await asyncio.to_thread(path.exists) == there
        await backend.close()

    asyncio.run(main())


@POSIX
def test_a_clone_of_a_handle_that_was_closed_opens_what_is_there(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        clone = backend.clone()
        await backend.close()
        await asyncio.to_thread(path.unlink)
        await clone.connect()
        await clone.enqueue([new("a")])
        await clone.close()

    asyncio.run(main())


_moved_away = threading.Event()
_ran: list[str] = []


def wait_until_it_was_moved_away() -> str:
    _ran.append("ran")
    assert _moved_away.wait(30)
    return "done"


@POSIX
def test_a_worker_whose_file_is_moved_away_for_a_while_keeps_what_it_runs_and_makes_no_other_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = path.with_name("elsewhere.db")

    async def main() -> None:
        _moved_away.clear()
        async with TaskQueue(SQLiteBackend(path)) as queue:
            task_id = await queue.enqueue(wait_until_it_was_moved_away)
            working = asyncio.create_task(Worker(queue, lease=timedelta(seconds=0.5)).run_until_idle())
            await until(lambda: bool(_ran))
            await asyncio.to_thread(path.rename, away)
            await until(lambda: "cannot extend leases" in caplog.text)
            assert not await asyncio.to_thread(path.exists)
            _moved_away.set()
            await until(lambda: "cannot record its outcome" in caplog.text)
            assert not await asyncio.to_thread(path.exists)
            await asyncio.to_thread(away.rename, path)
            await working
            result = await queue.get_result(task_id, 0)
            assert result is not None
            assert result.unwrap() == "done"

    _ran.clear()
    with caplog.at_level(logging.WARNING, "taskqueue"):
        asyncio.run(asyncio.wait_for(main(), 60))
    assert _ran == ["ran"]


@POSIX
def test_a_file_that_is_taken_away_during_a_call_fails_the_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        backend = await opened(path)
        check = StoreFile.check_in_place

        def check_and_take_away(file: StoreFile) -> None:
            check(file)
            path.unlink()

        monkeypatch.setattr(StoreFile, "check_in_place", check_and_take_away)
        with pytest.raises(StoreUnavailable, match="removed"):
            await backend.enqueue([new("a")])
        await backend.close()

    asyncio.run(main())


@POSIX
@pytest.mark.parametrize("part", [log_of, index_of])
def test_connecting_again_brings_back_all_after_the_log_or_its_index_was_removed(
    path: Path, part: Callable[[Path], Path]
) -> None:
    async def main() -> None:
        one, other = await opened(path), await opened(path)
        await one.enqueue([new("a")])
        await other.enqueue([new("b")])
        await asyncio.to_thread(part(path).unlink)
        for backend in (one, other):
            with pytest.raises(StoreUnavailable):
                await backend.enqueue([new("c")])
        for backend in (one, other):
            await backend.close()
        for backend in (one, other):
            await backend.connect()
        await other.enqueue([new("c")])
        assert [task.id for task in (await one.tasks(limit=9))[0]] == ["a", "b", "c"]
        for backend in (one, other):
            await backend.close()

    asyncio.run(main())


@POSIX
def test_the_log_lies_beside_the_file_and_not_beside_a_link_to_it(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)

    async def main() -> None:
        backend = await opened(link)
        await backend.enqueue([new("a")])
        await asyncio.to_thread(log_of(path).unlink)
        with pytest.raises(StoreUnavailable, match=r"tasks\.db-wal was removed"):
            await backend.enqueue([new("b")])
        await backend.close()

    fill(path)
    asyncio.run(main())


@POSIX
def test_a_file_that_is_put_back_is_used_again(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        await backend.enqueue([new("a")])
        await asyncio.to_thread(path.rename, path.with_name("elsewhere"))
        with pytest.raises(StoreUnavailable):
            await backend.enqueue([new("b")])
        await asyncio.to_thread(path.with_name("elsewhere").rename, path)
        await backend.enqueue([new("b")])
        assert (await backend.counts())[TaskStatus.PENDING] == 2
        await backend.close()

    asyncio.run(main())


@POSIX
def test_a_handle_on_the_old_file_leaves_the_new_one_alone(path: Path) -> None:
    async def main() -> None:
        old = await opened(path)
        await old.enqueue([new("old")])
        for file in (path, log_of(path), index_of(path)):
            await asyncio.to_thread(file.rename, file.with_name(f"old-{file.name}"))
        # Killed, so that what it acknowledged is in the log only.
        await asyncio.to_thread(
            in_another_process,
            """
            async def main():
                backend = SQLiteBackend(argv[0])
                await backend.connect()
                await backend.enqueue([new("new")])
                os._exit(0)
            asyncio.run(main())
            """,
            path,
        )
        with pytest.raises(StoreUnavailable):
            await old.get("old")
        await old.close()
        await old.connect()
        assert [task.id for task in (await old.tasks(limit=9))[0]] == ["new"]
        await old.close()

    asyncio.run(main())


@POSIX
def test_a_worker_says_so_now_and_then_and_goes_on_when_the_file_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with TaskQueue(SQLiteBackend(path)) as queue, TaskQueue(SQLiteBackend(path)) as client:
            worker = Worker(queue, poll=timedelta(seconds=0.4))
            working = asyncio.create_task(worker.run())
            assert await client.get_result(await client.enqueue(asyncio.sleep, 0), timeout=30)
            await asyncio.to_thread(path.rename, path.with_name("elsewhere"))
            with caplog.at_level(logging.INFO, logger="taskqueue"):
                caplog.clear()
                await asyncio.sleep(2)
            await asyncio.to_thread(path.with_name("elsewhere").rename, path)
            assert await client.get_result(await client.enqueue(asyncio.sleep, 0), timeout=30)
            worker.stop()
            await working

    asyncio.run(main())
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(records) < 25, [record.getMessage() for record in records]
    assert not any(record.exc_info for record in records)
    assert any("removed while it was open" in record.getMessage() for record in records)


# Damaged


def overwrite_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(10 * 4096)
        file.write(os.urandom(30 * 4096))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


@pytest.mark.parametrize("damage", [overwrite_the_middle, truncate])
def test_a_damaged_store_says_so(path: Path, damage: Callable[[Path], None]) -> None:
    fill(path)
    damage(path)

    async def read(backend: SQLiteBackend) -> None:
        await backend.connect()
        for number in range(60):
            await backend.get(str(number))
        await backend.claim(now=T0, limit=60, lease_expires_at=LEASE)

    async def main() -> None:
        backend = SQLiteBackend(path)
        with pytest.raises(StoreUnavailable, match=r"malformed.*restore a copy.*\.recover"):
            await read(backend)
        await backend.close()

    asyncio.run(main())


@POSIX
def test_damage_under_an_open_handle_hangs_nothing(path: Path) -> None:
    fill(path)

    async def main() -> None:
        backend = await opened(path)
        # In another process: whoever closes a descriptor of the file here drops the locks of the connection.
        code = "import os, sys; f = open(sys.argv[1], 'r+b'); f.seek(8192); f.write(os.urandom(300_000))"
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], check=True)
        with pytest.raises(StoreUnavailable, match="malformed"):
            await backend.claim(now=T0, limit=60, lease_expires_at=LEASE)
        await backend.wait(0.05)
        await backend.close()

    asyncio.run(main())


@pytest.mark.parametrize("content", ["dear diary\n" * 1000, "x"])
def test_another_file_in_its_place_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(IncompatibleStore, match="left untouched"):
        asyncio.run(SQLiteBackend(path).connect())
    assert path.read_text() == content


# No room


UNTIL_IT_IS_FULL = """
    async def main():
        backend = SQLiteBackend(argv[0])
        await backend.connect()
        acknowledged = []
        try:
            for number in range(1000):
                await backend.enqueue([new(str(number), bytes(50_000))])
                acknowledged.append(str(number))
        except StoreUnavailable as error:
            print(error)
        assert len(acknowledged) < 1000, "it never was full"
        make_room()
        await backend.enqueue([new("later")])
        await backend.close()
        await backend.connect()
        found, _ = await backend.tasks(limit=2000)
        assert [task.id for task in found] == [*acknowledged, "later"], (len(found), len(acknowledged))
        await backend.close()
    asyncio.run(main())
"""


@POSIX
def test_a_limited_file_size_costs_nothing_that_was_acknowledged(path: Path) -> None:
    limit = """
        import resource
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        def make_room():
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    """
    said = in_another_process(textwrap.dedent(limit) + textwrap.dedent(UNTIL_IT_IS_FULL), path)
    assert str(path) in said
    assert "room" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    program, undo = shutil.which("mount"), shutil.which("umount")
    if not ROOT or program is None or undo is None:
        pytest.skip("only root can mount a small disk")
    mount = [program, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this root cannot mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run([undo, str(folder)], check=True)


def test_a_full_disk_costs_nothing_that_was_acknowledged(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    room = "def make_room():\n    os.unlink(argv[1])\n"
    said = in_another_process(room + textwrap.dedent(UNTIL_IT_IS_FULL), small_disk / "tasks.db", filler)
    assert "room" in said


# Forbidden


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can get at; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            Path(folder).chmod(0o700)


@POSIX
@pytest.mark.parametrize(
    ("what", "said"), [("file", "Permission denied; the file must be"), ("folder", "make the file and its directory")]
)
def test_a_store_that_may_not_be_written_is_told_so_at_once(public: Path, what: str, said: str) -> None:
    path = public / "tasks.db"
    fill(path)
    path.chmod(0o444 if what == "file" else 0o666)
    public.chmod(0o555 if what == "folder" else 0o777)
    body = """
        async def main():
            backend = SQLiteBackend(argv[0])
            try:
                await backend.connect()
                await backend.enqueue([new("a")])
            except StoreUnavailable as error:
                print(error)
            await backend.close()
        asyncio.run(main())
    """
    as_somebody = "if os.geteuid() == 0:\n    os.setgroups([])\n    os.setgid(65534)\n    os.setuid(65534)\n"
    printed = in_another_process(as_somebody + textwrap.dedent(body), path)
    assert said in printed
    assert "writable for this user" in printed
    assert str(path) in printed


# Locked


def test_a_lock_that_somebody_keeps_is_named_and_waited_for_only_so_long(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path, busy_timeout=0.1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnavailable, match="another program has kept it locked"):
                await backend.enqueue([new("a")])
            other.execute("COMMIT")
        await backend.enqueue([new("a")])
        await backend.close()

    asyncio.run(main())
