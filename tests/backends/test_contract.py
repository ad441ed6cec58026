"""A smoke test of the contract on both stores. The conformance suite judges it in full."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from taskqueue import (
    Backend,
    Failure,
    InvalidArgument,
    NotConnected,
    StaleClaim,
    Task,
    TaskExists,
    TaskNotFound,
    TaskStatus,
)

T0 = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = T0 + 30 * SECOND

Run = Callable[..., None]


def new(task_id: str, *, due: datetime = T0, max_retries: int = 0, payload: bytes = b"call") -> Task:
    return Task(id=task_id, payload=payload, enqueued_at=T0, available_at=due, max_retries=max_retries)


def failure(attempt: int, *, retry_at: datetime | None = None, failed_at: datetime = T0) -> Failure:
    return Failure(attempt=attempt, error="boom é\n'\"", failed_at=failed_at, traceback="tb", retry_at=retry_at)


def test_it_is_a_backend(backend: Backend) -> None:
    assert isinstance(backend, Backend)


def test_a_task_lives_its_life(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a", max_retries=2)])
        (first,) = await backend.claim(now=T0, limit=5, lease_expires_at=LEASE)
        assert (first.id, first.status, first.attempts, first.started_at) == ("a", TaskStatus.RUNNING, 1, T0)
        retry_at = T0 + SECOND
        retried = await backend.fail("a", 1, failure(1, retry_at=retry_at))
        assert (retried.status, retried.available_at, retried.failures) == (
            TaskStatus.PENDING,
            retry_at,
            (failure(1, retry_at=retry_at),),
        )
        assert not await backend.claim(now=retry_at - timedelta(microseconds=1), limit=1, lease_expires_at=LEASE)
        assert await backend.next_due() == retry_at
        (second,) = await backend.claim(now=retry_at, limit=1, lease_expires_at=LEASE)
        await backend.complete("a", 2, value=b"", now=retry_at)
        ended = await backend.get("a")
        assert ended is not None
        assert (second.attempts, ended.status, ended.value, ended.finished_at) == (2, "success", b"", retry_at)
        assert await backend.next_due() is None
        assert (await backend.counts())[TaskStatus.SUCCESS] == 1

    run(backend, scenario)


def test_the_last_failure_has_no_retry(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a", max_retries=1)])
        await backend.claim(now=T0, limit=1, lease_expires_at=LEASE)
        failed = await backend.fail("a", 1, failure(1, retry_at=T0 + SECOND))
        assert (failed.status, failed.finished_at, failed.failures) == ("failed", T0, (failure(1),))
        assert failed == await backend.get("a")

    run(backend, scenario)


def test_if_expired_is_checked_in_the_same_step(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a", max_retries=2)])
        (task,) = await backend.claim(now=T0, limit=1, lease_expires_at=LEASE)
        early = failure(1, failed_at=LEASE - timedelta(microseconds=1))
        with pytest.raises(StaleClaim) as refused:
            await backend.fail("a", 1, early, if_expired=True)
        assert (refused.value.status, refused.value.lease_expires_at) == (TaskStatus.RUNNING, LEASE)
        assert await backend.get("a") == task
        assert list(await backend.expired(now=LEASE, limit=1)) == [task]
        assert (await backend.fail("a", 1, failure(1, failed_at=LEASE), if_expired=True)).status == "failed"

    run(backend, scenario)


def test_claims_come_in_order_of_their_instant_then_of_enqueueing(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("late", due=T0 + SECOND), new("b"), new("c")])
        await backend.enqueue([new("a"), new("future", due=T0 + 2 * SECOND)])
        claimed = await backend.claim(now=T0 + SECOND, limit=3, lease_expires_at=LEASE)
        assert [task.id for task in claimed] == ["b", "c", "a"]
        claimed = await backend.claim(now=T0 + SECOND, limit=2**70, lease_expires_at=LEASE)
        assert [task.id for task in claimed] == ["late"]

    run(backend, scenario)


def test_refusals_change_nothing(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a")])
        with pytest.raises(TaskExists) as known:
            await backend.enqueue([new("x"), new("a"), new("y"), new("y")])
        assert known.value.task_ids == ("a", "y")
        with pytest.raises(StaleClaim):
            await backend.complete("a", 1, value=b"v", now=T0)
        for call in (
            backend.complete("none", 1, value=b"v", now=T0),
            backend.fail("none", 1, failure(1)),
            backend.cancel("none", now=T0),
        ):
            with pytest.raises(TaskNotFound):
                await call
        assert list(await backend.extend([("none", 1), ("a", 1)], lease_expires_at=LEASE)) == []
        assert await backend.tasks(limit=9) == ([new("a")], None)
        with pytest.raises(InvalidArgument):
            await backend.tasks(after="no cursor", limit=1)

    run(backend, scenario)


def test_a_cancelled_task_is_fenced(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a")])
        await backend.claim(now=T0, limit=1, lease_expires_at=LEASE)
        assert await backend.cancel("a", now=T0 + SECOND)
        assert not await backend.cancel("a", now=T0 + 2 * SECOND)
        with pytest.raises(StaleClaim) as stale:
            await backend.complete("a", 1, value=b"", now=T0)
        assert (stale.value.status, stale.value.attempts) == (TaskStatus.CANCELLED, 1)
        ended = await backend.get("a")
        assert ended is not None
        assert (ended.finished_at, ended.lease_expires_at) == (T0 + SECOND, None)

    run(backend, scenario)


def test_extend_never_shortens(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new(str(number)) for number in range(1000)])
        claims = [(t.id, t.attempts) for t in await backend.claim(now=T0, limit=1000, lease_expires_at=LEASE)]
        assert list(await backend.extend([*claims, ("0", 2)], lease_expires_at=LEASE - SECOND)) == claims
        assert await backend.next_due() == LEASE
        assert list(await backend.extend(claims[::-1], lease_expires_at=LEASE + SECOND)) == claims[::-1]
        assert await backend.next_due() == LEASE + SECOND

    run(backend, scenario)


def test_purge_takes_the_longest_ended_and_the_listing_goes_on(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new(name) for name in "abcd"])
        for delay, name in enumerate("cab"):
            await backend.cancel(name, now=T0 + delay * SECOND)
        page, cursor = await backend.tasks(limit=2)
        assert [task.id for task in page] == ["a", "b"]
        assert await backend.purge(finished_before=T0 + 2 * SECOND, limit=1) == 1
        assert await backend.get("c") is None
        assert await backend.purge(finished_before=T0 + 2 * SECOND, limit=5) == 1
        page, end = await backend.tasks(after=cursor, limit=5)
        assert ([task.id for task in page], end) == (["d"], None)
        cancelled, _ = await backend.tasks(status=TaskStatus.CANCELLED, limit=5)
        assert [task.id for task in cancelled] == ["b"]
        await backend.enqueue([new("a")])
        assert (await backend.counts())[TaskStatus.PENDING] == 2

    run(backend, scenario)


def test_nothing_is_taken_where_nothing_is_asked_for(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await backend.enqueue([new("a"), new("b")])
        await backend.cancel("b", now=T0)
        await backend.enqueue([])
        assert list(await backend.claim(now=T0, limit=0, lease_expires_at=LEASE)) == []
        assert list(await backend.extend([], lease_expires_at=LEASE)) == []
        assert list(await backend.expired(now=T0, limit=0)) == []
        assert await backend.purge(finished_before=LEASE, limit=0) == 0
        assert await backend.tasks(after="1", limit=0) == ([], "1")
        assert (await backend.counts())[TaskStatus.PENDING] == 1

    run(backend, scenario)


def test_values_are_exact_and_not_shared(backend: Backend, run: Run) -> None:
    payload = bytearray(range(256))
    odd_id = "é\u0301 \U0001f600 A"
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    first = datetime(1970, 1, 1, tzinfo=UTC)

    async def scenario(backend: Backend) -> None:
        task = Task(id=odd_id, payload=payload, enqueued_at=first, available_at=last, max_retries=2**62)  # type: ignore[arg-type]  # a caller's mistake that must do no harm
        await backend.enqueue([task, new(odd_id.lower())])
        payload[0] = 7
        stored = await backend.get(odd_id)
        assert stored is not None
        assert (stored.payload, stored.enqueued_at, stored.available_at) == (bytes(range(256)), first, last)
        assert (type(stored.payload), type(stored.available_at), stored.available_at.tzinfo) == (bytes, datetime, UTC)
        assert await backend.next_due() == T0

    run(backend, scenario)


def test_a_task_moves_in_with_its_history(backend: Backend, run: Run) -> None:
    moved = Task(
        id="m",
        payload=b"",
        enqueued_at=T0,
        available_at=T0,
        max_retries=3,
        attempts=1,
        started_at=T0,
        failures=(failure(1, retry_at=T0),),
    )

    async def scenario(backend: Backend) -> None:
        await backend.enqueue([moved])
        assert await backend.get("m") == moved

    run(backend, scenario)


def test_calls_need_a_connection(backend: Backend) -> None:
    async def refused() -> None:
        for call in (backend.counts(), backend.wait(0), backend.enqueue([]), backend.get("a")):
            with pytest.raises(NotConnected):
                await call

    async def main() -> None:
        await refused()
        await asyncio.gather(backend.connect(), backend.connect())
        await backend.connect()
        await backend.enqueue([new("a")])
        thread = threading.Thread(target=lambda: asyncio.run(refused()))
        thread.start()
        await asyncio.to_thread(thread.join)
        closing = asyncio.gather(backend.close(), backend.close())
        await asyncio.sleep(0)
        await refused()
        await closing
        await refused()
        await backend.close()
        await backend.connect()
        assert await backend.get("a") == new("a")
        await backend.close()

    asyncio.run(main())


def test_a_handle_can_be_connected_on_two_loops(backend: Backend) -> None:
    async def elsewhere() -> None:
        await backend.connect()
        await backend.enqueue([new("from elsewhere")])
        await backend.close()

    async def main() -> None:
        await backend.connect()
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert await backend.get("from elsewhere") is not None
        await backend.close()

    asyncio.run(main())


def test_wait_ends_with_a_change_on_any_handle(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        loop = asyncio.get_running_loop()
        other = backend.clone()
        await other.connect()
        for number, handle in enumerate((backend, other)):
            started = loop.time()
            waiting = asyncio.create_task(backend.wait(30))
            await asyncio.sleep(0)
            await handle.enqueue([new(str(number))])
            await waiting
            assert loop.time() - started < 5
        await other.close()

    run(backend, scenario)


def test_wait_ends_with_a_change_from_another_thread(backend: Backend, run: Run) -> None:
    async def produce() -> None:
        other = backend.clone()
        await other.connect()
        await other.enqueue([new("a")])
        await other.close()

    async def scenario(backend: Backend) -> None:
        waiting = asyncio.create_task(backend.wait(30))
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: asyncio.run(produce()))
        await asyncio.wait_for(waiting, 5)

    run(backend, scenario)


def test_wait_lasts_where_nothing_changes_and_close_ends_it(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        loop = asyncio.get_running_loop()
        await backend.enqueue([new("a")])
        for _ in range(5):  # it may end early, but not always
            started = loop.time()
            await backend.wait(0.1)
            if lasted := loop.time() - started >= 0.09:
                break
        assert lasted
        await backend.wait(0)
        waiting = asyncio.create_task(backend.wait(30))
        await asyncio.sleep(0.01)
        await backend.counts()
        await backend.close()
        await asyncio.wait_for(waiting, 5)

    run(backend, scenario)


def test_ten_thousand_concurrent_enqueues(backend: Backend, run: Run) -> None:
    async def scenario(backend: Backend) -> None:
        await asyncio.gather(*(backend.enqueue([new(str(number))]) for number in range(10_000)))
        assert (await backend.counts())[TaskStatus.PENDING] == 10_000

    run(backend, scenario)
