"""How a wait on an SQLite store ends: by the kernel's notice, and by looking where there is none."""

import asyncio
import os
import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from taskqueue import StoreUnavailable
from taskqueue.backends import _sqlite_lookout
from taskqueue.backends._sqlite_inotify import LogWatch
from taskqueue.backends.sqlite import SQLiteBackend

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="inotify is a part of Linux")
SOON_S = 0.2
"""Well below the half second after which a wait looks by itself."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@contextmanager
def other_program(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that knows nothing of taskqueue, so announces nothing: as in another process."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)) as db:
        yield db


def insert(db: sqlite3.Connection, task_id: str, payload: bytes = b"") -> None:
    db.execute(
        "INSERT INTO tasks (id, status, enqueued_at, available_at, max_retries, attempts, payload)"
        " VALUES (?, 'pending', 0, 0, 0, 0, ?)",
        (task_id, payload),
    )


async def opened(path: Path) -> SQLiteBackend:
    backend = SQLiteBackend(path)
    await backend.connect()
    await backend.counts()  # what is seen here is what a wait compares with
    return backend


async def time_of_wait(backend: SQLiteBackend, change: Callable[[], object]) -> float:
    """Return the seconds from a change until the wait, which is well under way then, has ended."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(backend.wait(30))
    await asyncio.sleep(0.03)
    began = loop.time()
    await asyncio.to_thread(change)
    await waiting
    return loop.time() - began


@LINUX
def test_a_change_by_another_program_ends_a_wait_at_once(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        with other_program(path) as db:
            took = [await time_of_wait(backend, partial(insert, db, str(n))) for n in range(9)]
        assert inotify_descriptors()  # without it, a look every 30 ms would do as well
        assert sorted(took)[4] < SOON_S, took
        await backend.close()

    asyncio.run(main())


@LINUX
def test_a_link_leads_to_the_same_store(path: Path) -> None:
    path.touch()
    link = path.with_name("link.db")
    link.symlink_to(path)

    async def main() -> None:
        backend = await opened(link)
        with other_program(path) as db:
            took = [await time_of_wait(backend, partial(insert, db, str(n))) for n in range(9)]
        assert inotify_descriptors()  # without it, a look every 30 ms would do as well
        assert sorted(took)[4] < SOON_S, took
        await backend.close()

    asyncio.run(main())


@LINUX
def test_the_log_may_begin_anew(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        with other_program(path) as db:
            took = []
            for number in range(9):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                await backend.counts()
                took.append(await time_of_wait(backend, partial(insert, db, str(number))))
        assert inotify_descriptors()  # without it, a look every 30 ms would do as well
        assert sorted(took)[4] < SOON_S, took
        await backend.close()

    asyncio.run(main())


class Silent:
    """A notifier that is dead: it never tells of anything."""

    def __init__(self, _: str) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def drain(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Bell(Silent):
    """A notifier that tells when it is rung."""

    ringers: ClassVar[list[int]] = []

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.ringers.append(self._write)

    @classmethod
    def ring(cls) -> None:
        os.write(cls.ringers[-1], b"!")

    def drain(self) -> None:
        os.read(self._read, 100)


def test_what_is_committed_after_another_change_has_ended_the_wait_is_seen_as_soon(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a commit waits for the disk, its write may have been told of together with a commit before it."""
    monkeypatch.setattr(_sqlite_lookout, "LogWatch", Bell)
    monkeypatch.setattr(_sqlite_lookout, "_SAFETY_SECONDS", 60.0)

    async def main() -> None:
        backend = await opened(path)
        with other_program(path) as db:
            waiting = asyncio.create_task(backend.wait(30))
            await asyncio.sleep(0.03)
            insert(db, "first")
            Bell.ring()
            await asyncio.wait_for(waiting, 10)
            waiting = asyncio.create_task(backend.wait(30))
            await asyncio.sleep(0.005)
            insert(db, "second")
            await asyncio.wait_for(waiting, 10)
        await backend.close()

    asyncio.run(main())


def missing(_: str) -> LogWatch:
    raise OSError


@pytest.mark.parametrize("notifier", [Silent, missing])
def test_without_the_kernels_notice_a_change_is_seen_a_little_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, notifier: Callable[[str], Any]
) -> None:
    monkeypatch.setattr(_sqlite_lookout, "LogWatch", notifier)

    async def main() -> None:
        backend = await opened(path)
        with other_program(path) as db:
            took = [await time_of_wait(backend, partial(insert, db, str(n))) for n in range(3)]
        assert sorted(took)[1] < 3 * _sqlite_lookout._SAFETY_SECONDS, took
        await backend.close()

    asyncio.run(main())


def test_an_event_loop_that_watches_no_descriptors_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_reader(*_: object) -> None:
        raise NotImplementedError

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        backend = await opened(path)
        with other_program(path) as db:
            assert await time_of_wait(backend, partial(insert, db, "a")) < 5
        await backend.close()

    asyncio.run(main())


def test_a_write_that_is_not_committed_for_long_is_seen_when_it_is(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        with other_program(path) as db:
            db.execute("PRAGMA cache_size = 5")  # pages: the rest goes to the log before the commit
            waiting = asyncio.create_task(backend.wait(30))
            await asyncio.sleep(0.03)
            db.execute("BEGIN")
            for number in range(20):
                insert(db, str(number), bytes(10_000))
            await asyncio.sleep(0.15)
            assert not waiting.done()
            loop = asyncio.get_running_loop()
            committed = loop.time()
            db.execute("COMMIT")
            await waiting
            assert loop.time() - committed < 3 * _sqlite_lookout._SAFETY_SECONDS
        await backend.close()

    asyncio.run(main())


def test_a_store_that_is_always_busy_wakes_nobody_all_the_time(path: Path) -> None:
    async def main() -> int:
        backend = await opened(path)
        loop = asyncio.get_running_loop()
        ended = threading.Event()

        def write() -> None:
            with other_program(path) as db:
                db.execute("PRAGMA synchronous = OFF")
                for number in range(100_000):
                    if ended.is_set():
                        return
                    insert(db, str(number))
                    time.sleep(0.0005)

        writing = loop.run_in_executor(None, write)
        wakes, end = 0, loop.time() + 0.6
        while loop.time() < end:
            await backend.wait(1)
            wakes += 1
        ended.set()
        await writing
        await backend.close()
        return wakes

    wakes = asyncio.run(main())
    assert 3 < wakes < 60, wakes


def test_a_wait_ends_when_the_file_is_taken_away(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        waits = [asyncio.create_task(backend.wait(30)) for _ in range(3)]
        await asyncio.sleep(0.03)
        await asyncio.to_thread(path.unlink)
        for wait in waits:
            with pytest.raises(StoreUnavailable, match="removed"):
                await wait
        await backend.close()

    asyncio.run(main())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@LINUX
@pytest.mark.parametrize("delay", [0, 0.0005, 0.002, 0.01])
def test_a_cancelled_wait_leaves_nothing_behind(path: Path, delay: float) -> None:
    async def main() -> None:
        backend = await opened(path)
        tasks = len(asyncio.all_tasks())
        for _ in range(5):
            waiting = asyncio.create_task(backend.wait(30))
            await asyncio.sleep(delay)
            waiting.cancel()
            await asyncio.wait([waiting])
        await backend.counts()
        assert len(asyncio.all_tasks()) == tasks
        await backend.close()

    asyncio.run(main())
    before = descriptors()
    asyncio.run(main())
    assert descriptors() == before


@LINUX
def test_an_event_loop_that_is_closed_while_somebody_waits_leaves_nothing_open(path: Path) -> None:
    def abandon(backend: SQLiteBackend) -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(backend.connect())
        waiting = loop.create_task(backend.wait(60))
        loop.run_until_complete(asyncio.sleep(0.03))
        loop.close()
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # that it never ends is the point

    async def connect_again(backend: SQLiteBackend) -> None:
        await backend.connect()
        with other_program(path) as db:
            name = os.urandom(4).hex()
            assert await time_of_wait(backend, partial(insert, db, name)) < 5
        await backend.close()

    def cycle() -> None:
        backend = SQLiteBackend(path)
        abandon(backend)
        asyncio.run(connect_again(backend))

    cycle()
    before = descriptors()
    cycle()
    assert descriptors() == before


@LINUX
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_leaves_the_parents_notices_alone(path: Path) -> None:
    async def main() -> None:
        backend = await opened(path)
        await backend.wait(0.02)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork with threads
            pid = os.fork()
        if not pid:
            os._exit(len(inotify_descriptors()))
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert status == 0
        with other_program(path) as db:
            took = [await time_of_wait(backend, partial(insert, db, str(n))) for n in range(3)]
        assert sorted(took)[1] < SOON_S, took
        await backend.close()

    asyncio.run(main())


def inotify_descriptors() -> list[Path]:
    return [each for each in Path("/proc/self/fd").iterdir() if _leads_to(each) == "anon_inode:inotify"]


def _leads_to(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""
