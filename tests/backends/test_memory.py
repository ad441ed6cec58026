import asyncio
import gc
from datetime import UTC, datetime, timedelta

import pytest

from taskqueue import InvalidArgument, Task
from taskqueue.backends.memory import MemoryBackend

T0 = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def new(task_id: str, due: datetime = T0) -> Task:
    return Task(id=task_id, payload=b"", enqueued_at=T0, available_at=due)


async def ids(backend: MemoryBackend) -> list[str]:
    await backend.connect()
    found, _ = await backend.tasks(limit=10)
    await backend.close()
    return [task.id for task in found]


async def put(backend: MemoryBackend, task_id: str) -> None:
    await backend.connect()
    await backend.enqueue([new(task_id)])
    await backend.close()


def test_handles_of_one_name_share_a_store_as_long_as_one_of_them_lives() -> None:
    async def main() -> None:
        one = MemoryBackend("shared")
        await put(one, "a")
        other = MemoryBackend.from_url("memory://shared")
        del one
        gc.collect()
        assert await ids(other) == ["a"]
        assert await ids(MemoryBackend("another")) == []
        del other
        gc.collect()
        assert await ids(MemoryBackend("shared")) == []

    asyncio.run(main())


def test_a_store_without_a_name_is_shared_with_clones_only() -> None:
    async def main() -> None:
        backend = MemoryBackend.from_url("memory://")
        await put(backend, "a")
        assert await ids(backend.clone()) == ["a"]
        assert await ids(MemoryBackend()) == []

    asyncio.run(main())


@pytest.mark.parametrize("url", ["memory:", "memory:///name", "memory://name?x=1", "sqlite://name"])
def test_wrong_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        MemoryBackend.from_url(url)


def test_a_hundred_thousand_tasks_are_no_trouble() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        await backend.connect()
        for start in range(0, 100_000, 1000):
            await backend.enqueue([new(str(number), T0 + number * SECOND) for number in range(start, start + 1000)])
        for number in range(0, 100_000, 100):
            (task,) = await backend.claim(now=T0 + number * SECOND, limit=1, lease_expires_at=T0)
            assert task.id == str(number // 100)
            assert [task.id for task in await backend.expired(now=T0, limit=1)]
        await backend.close()

    asyncio.run(main())


def test_schedules_do_not_grow_without_end() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        await backend.connect()
        for number in range(1000):
            await backend.enqueue([new(str(number), T0 + 1000 * SECOND)])
            await backend.cancel(str(number), now=T0)
            assert await backend.purge(finished_before=T0 + SECOND, limit=5) == 1
        store = backend._store
        assert max(len(store._order), len(store._due._heap), len(store._ended._heap)) < 200
        await backend.close()

    asyncio.run(main())
