"""Short calls on the event loop itself, where writes are not synced."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from taskqueue import Failure, StoreUnavailable, Task, TaskExists, TaskStatus
from taskqueue.backends._sqlite_operations import counts, enqueue, get
from taskqueue.backends._sqlite_quick import QuickCalls
from taskqueue.backends._sqlite_session import Session
from taskqueue.backends.sqlite import SQLiteBackend

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def new(task_id: str, payload: bytes = b"call") -> Task:
    return Task(id=task_id, payload=payload, enqueued_at=T0, available_at=T0, max_retries=0)


def session_of(backend: SQLiteBackend) -> Session:
    (session,) = backend._sessions.values()
    return session


@contextmanager
def thread_kept(backend: SQLiteBackend) -> Iterator[None]:
    """Keep the thread of the store from doing anything inside."""
    release = threading.Event()
    session_of(backend)._thread.begin(lambda: release.wait(10), lambda _result, _error: None)
    try:
        yield
    finally:
        release.set()


@pytest.fixture
def backend(tmp_path: Path) -> SQLiteBackend:
    return SQLiteBackend(tmp_path / "tasks.db", synchronous="NORMAL", busy_timeout=10)


def test_short_calls_need_no_thread_and_long_ones_do(backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.backends._sqlite_quick._LONG_SECONDS", 60)  # however slow the machine is

    async def main() -> None:
        await backend.connect()
        with thread_kept(backend):
            await backend.enqueue([new("a")])
            with pytest.raises(TaskExists):
                await backend.enqueue([new("a")])
            (task,) = await backend.claim(now=T0, limit=10, lease_expires_at=T0 + timedelta(seconds=30))
            await backend.complete("a", task.attempts, value=b"v", now=T0)
            assert await backend.get("a") is not None
            assert await backend.next_due() is None
            counting = asyncio.create_task(backend.counts())  # type: ignore[arg-type]  # a coroutine it is
            large = asyncio.create_task(backend.enqueue([new("b", bytes(1_000_000))]))
            await asyncio.sleep(0.01)
            assert not counting.done()
            assert not large.done()
        assert (await counting)[TaskStatus.SUCCESS] == 1
        await large
        await backend.close()

    asyncio.run(main())


def test_outcomes_share_a_transaction_with_the_claim_that_follows(backend: SQLiteBackend) -> None:
    statements: list[str] = []

    async def main() -> None:
        await backend.connect()
        await backend.enqueue([new("a"), new("b"), new("c")])
        lease = T0 + timedelta(seconds=30)
        assert len(await backend.claim(now=T0, limit=2, lease_expires_at=lease)) == 2
        session_of(backend)._thread.file.db.set_trace_callback(statements.append)
        failure = Failure(attempt=1, error="boom", failed_at=T0)
        *_, claimed = await asyncio.gather(
            backend.complete("a", 1, value=b"v", now=T0),
            backend.fail("b", 1, failure),
            backend.claim(now=T0, limit=2, lease_expires_at=lease),
        )
        assert [task.id for task in claimed] == ["c"]
        await backend.close()

    asyncio.run(main())
    assert [text for text in statements if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]


def test_with_syncs_every_call_goes_to_the_thread(tmp_path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "tasks.db")
        await backend.connect()
        with thread_kept(backend):
            enqueuing = asyncio.create_task(backend.enqueue([new("a")]))
            await asyncio.sleep(0.01)
            assert not enqueuing.done()
        await enqueuing
        await backend.close()

    asyncio.run(main())


def test_a_lock_that_another_process_holds_does_not_stop_the_event_loop(backend: SQLiteBackend) -> None:
    async def main() -> None:
        await backend.connect()
        await backend.enqueue([new("a")])
        with closing(sqlite3.connect(backend.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            enqueuing = asyncio.create_task(backend.enqueue([new("b")]))
            claiming = asyncio.create_task(
                backend.claim(now=T0, limit=1, lease_expires_at=T0 + timedelta(seconds=30))  # type: ignore[arg-type]  # as above
            )
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not enqueuing.done()
            assert not claiming.done()
            other.execute("COMMIT")
        await enqueuing
        assert [task.id for task in await claiming] == ["a"]
        await backend.close()

    asyncio.run(main())


def test_a_lock_that_is_kept_too_long_is_the_same_error_as_ever(tmp_path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(tmp_path / "tasks.db", synchronous="NORMAL", busy_timeout=0.02)
        await backend.connect()
        await backend.enqueue([new("a")])
        with closing(sqlite3.connect(backend.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await backend.cancel("a", now=T0)
        assert await backend.cancel("a", now=T0)
        await backend.close()

    asyncio.run(main())


def test_the_log_does_not_grow_for_ever(backend: SQLiteBackend) -> None:
    sizes: list[int] = []

    async def main() -> None:
        await backend.connect()
        for number in range(6000):
            await backend.enqueue([new(str(number), bytes(500))])
            if not number % 100:
                sizes.append(os.stat(f"{backend.path}-wal").st_size)  # noqa: PTH116 - a Path warns in coroutines
        await backend.close()

    asyncio.run(main())
    assert max(sizes) < 50_000_000  # each of the 6,000 writes at least three pages of 4 kB


class HandLoop:
    now = 100.0

    def time(self) -> float:
        return self.now


def test_after_a_call_that_took_long_the_next_ones_go_to_the_thread() -> None:
    loop = HandLoop()
    quick = QuickCalls(loop)  # type: ignore[arg-type]  # it has the one method that is used
    short = [enqueue([new("a")]), get("a")]
    assert quick.may(short)
    quick.took(0.0005, wrote=True)
    assert quick.may(short)
    quick.took(0.01, wrote=True)
    assert not quick.may(short)
    loop.now += 0.19
    assert not quick.may(short)
    loop.now += 0.02
    assert quick.may(short)


def test_a_long_call_among_quick_ones_is_forgiven_and_many_are_not() -> None:
    loop = HandLoop()
    quick = QuickCalls(loop)  # type: ignore[arg-type]  # as above
    short = [get("a")]
    for _ in range(20):
        quick.took(0.004, wrote=True)
        for _ in range(20):
            quick.took(0.0001, wrote=True)
        assert quick.may(short)
    for _ in range(3):
        assert quick.may(short)
        quick.took(0.002, wrote=True)
    assert not quick.may(short)
    loop.now += 0.15
    assert quick.may(short)


def test_what_is_long_or_many_may_not() -> None:
    quick = QuickCalls(HandLoop())  # type: ignore[arg-type]  # as above
    assert not quick.may([counts()])
    assert not quick.may([get("a"), enqueue([new("a", bytes(100_000))])])
    assert not quick.may([get("a")] * 100)
