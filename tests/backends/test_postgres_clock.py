"""The clock that follows the server's."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from taskqueue import InvalidArgument, NotConnected, StoreUnavailable, TaskQueue
from taskqueue.backends._postgres_clock import Measurement, ServerClock
from taskqueue.backends.postgres import PostgresBackend, server_clock


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 20))


def test_it_tells_the_servers_time(run: Any, postgres_url: str) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(postgres_url)
        async with server_clock(postgres_url) as clock:
            for _ in range(20):
                before = await connection.fetchval("SELECT clock_timestamp()")
                told, error = clock(), clock.error
                after = await connection.fetchval("SELECT clock_timestamp()")
                assert before - error <= told <= after + error
                assert told.tzinfo is UTC
                assert timedelta(0) < error < timedelta(seconds=5)
        await connection.close()

    run(main())


def test_it_goes_on_evenly_while_the_wall_clock_steps(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    clock = ServerClock(PostgresBackend(postgres_url)._server, host_seconds=lambda: seconds)
    clock._last = Measurement(server=1_900_000_000.0, host=100.0, error=0.001)
    assert clock() == datetime(2030, 3, 17, 17, 46, 40, tzinfo=UTC)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    seconds = 110.0
    assert clock() == datetime(2030, 3, 17, 17, 46, 50, tzinfo=UTC)
    assert clock.error == timedelta(seconds=0.003)
    assert clock.offset == timedelta(seconds=1_900_000_010)


def test_the_best_of_several_looks_counts(run: Any, postgres_url: str) -> None:
    # Each question takes two readings: the third one is the quickest.
    readings = iter([0.0, 9.0, 10.0, 14.0, 20.0, 20.5, 30.0, 39.0, 40.0, 49.0, *[50.0] * 10])
    clock = ServerClock(PostgresBackend(postgres_url)._server, host_seconds=lambda: next(readings))
    run(clock.measure())
    assert clock._last is not None
    assert (clock._last.host, clock._last.error) == (20.25, 0.25)


def test_it_is_set_again_and_again(run: Any, postgres_url: str) -> None:
    async def main() -> None:
        async with server_clock(postgres_url, every=0.02) as clock:
            first = clock._last
            while clock._last is first:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    run(main())


def test_without_a_server_it_goes_on(run: Any, postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with server_clock(postgres_url, every=0.02) as clock:
            clock._server = PostgresBackend("postgresql://127.0.0.1:1/none", connect_timeout=0.5)._server
            while "goes on without the server" not in caplog.text:  # noqa: ASYNC110 - the log tells of it
                await asyncio.sleep(0.01)
            assert abs(clock() - datetime.now(UTC)) < timedelta(days=1)
            with pytest.raises(StoreUnavailable):
                await clock.measure()

    run(main())


def test_it_waits_for_a_server_that_is_just_starting(
    run: Any, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [ConnectionRefusedError("not yet")] * 3
    connect = asyncpg.connect

    async def sometimes(*arguments: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await connect(*arguments, **options)

    async def main() -> None:
        monkeypatch.setattr(asyncpg, "connect", sometimes)
        async with server_clock(postgres_url) as clock:
            assert not refusals
            assert clock().tzinfo is UTC

    run(main())


def test_before_it_was_set_it_says_so(postgres_url: str) -> None:
    with pytest.raises(NotConnected, match="measure"):
        server_clock(postgres_url)()


def test_a_pause_that_is_none_is_refused(postgres_url: str) -> None:
    with pytest.raises(InvalidArgument):
        server_clock(postgres_url, every=0)


def test_a_queue_takes_it(run: Any, postgres_store: str) -> None:
    async def main() -> None:
        async with server_clock(postgres_store) as clock:
            clock._last = Measurement(server=1_900_000_000.0, host=clock._host_seconds(), error=0.0)
            async with TaskQueue.from_url(postgres_store, clock=clock) as queue:
                task_id = await queue.enqueue(print, "hello")
                assert (await queue.get_task(task_id)).enqueued_at.year == 2030

    run(main())
