"""Fixtures that the tests of several modules share."""

import asyncio
import faulthandler
import os
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine, Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import TaskQueue
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.postgres_server import PostgresServer

sys.path.insert(0, str(Path(__file__).parent))  # for the commands that are tested: import storm


HANGS = 300  # seconds; the longest of the tests takes less than half of it on a loaded machine
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; processes would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_stderr] = os.dup(2)  # that of the process: while a test runs, its output is captured


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return how many processes ``-n auto`` means: one more than cores, since tests with processes wait for those."""
    # Not for the suite, whose checks keep the cores busy.
    return None if config.getoption("--conformance", None) else (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End the process with the stacks of all its threads where a test hangs: a run that waits for ever names none."""
    if Path(__file__).parent in item.path.parents:
        faulthandler.dump_traceback_later(HANGS, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> datetime:
        self.now += timedelta(**by)
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_queue(clock: HandClock) -> Callable[..., TaskQueue]:
    """Make a queue in memory on the hand-made clock; a new, empty store each time."""

    def make(**options: Any) -> TaskQueue:
        return TaskQueue(**{"backend": MemoryBackend(), "clock": clock} | options)

    return make


@pytest.fixture
def queue(make_queue: Callable[..., TaskQueue]) -> TaskQueue:
    return make_queue()


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end; fail if it leaves a task behind."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def checked() -> Any:
            result = await asyncio.wait_for(coroutine, 20)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left behind: {left}"
            return result

        return asyncio.run(checked())

    return run


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests' own, which may be restarted; one for each process of xdist."""
    server = PostgresServer.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """A database of PostgreSQL: that of TASKQUEUE_TEST_POSTGRES, or else on the tests' own server."""
    given = os.environ.get("TASKQUEUE_TEST_POSTGRES")
    return given or str(request.getfixturevalue("postgres_server").url)


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[str]:
    """The URL of a new, empty store in PostgreSQL."""
    schema = f"test_{uuid.uuid4().hex[:16]}"
    separator = "&" if "?" in postgres_url else "?"
    yield f"{postgres_url}{separator}schema={schema}"

    async def drop() -> None:
        import asyncpg  # noqa: PLC0415 - the conformance suite loads this file too, and needs no driver

        connection = await asyncpg.connect(postgres_url)
        await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await connection.close()

    asyncio.run(drop())
