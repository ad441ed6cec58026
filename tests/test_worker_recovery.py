"""Recovery of what dead workers held, and that nobody who lives is rescued when clocks jump."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from waiting import until

from taskqueue import StoreUnavailable, Task, TaskQueue, Worker
from taskqueue.backends.memory import MemoryBackend

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MakeQueue = Callable[..., TaskQueue]

LEASE = timedelta(seconds=0.5)
SHORT = timedelta(seconds=0.1)


class World:
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.release = False


world = World()


@pytest.fixture(autouse=True)
def new_world() -> Iterator[None]:
    world.__init__()
    yield
    world.release = True


async def note(what: Any = None) -> Any:
    world.log.append(what)
    return what


async def until_released() -> str:
    world.log.append("began")
    while not world.release:  # noqa: ASYNC110 - without a timeout, since the clocks jump
        await asyncio.sleep(0.001)
    return "done"


async def has_status(queue: TaskQueue, task_id: str, status: str) -> bool:
    return (await queue.get_task(task_id)).status == status


async def count_is(queue: TaskQueue, status: str, number: int) -> bool:
    return (await queue.counts())[status] == number


async def stopped(worker: Worker, running: "asyncio.Task[None]") -> None:
    worker.stop()
    await running


def test_what_a_dead_worker_held_is_retried_as_its_budget_allows(
    run: Run, queue: TaskQueue, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        again = await queue.enqueue(note, "again", max_retries=2)
        spent = await queue.enqueue(note, "spent")
        assert len(await queue.claim(2, lease=timedelta(minutes=1))) == 2
        worker = Worker(queue, lease=SHORT)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(3 * SHORT.total_seconds())
        assert (await queue.get_task(spent)).status == "running"
        expired_at = (await queue.get_task(spent)).lease_expires_at
        clock.now = expired_at
        failed = await queue.get_result(spent, 10)
        assert failed.error == (
            f"the lease of attempt 1 ran out at {expired_at}: its worker died, lost contact with the store, or "
            "was blocked by a task for longer than its stall timeout"
        )
        await until(lambda: has_status(queue, again, "pending"))
        clock.now = (await queue.get_task(again)).available_at
        assert (await queue.get_result(again, 10)).attempts == 2
        assert world.log == ["again"]
        await stopped(worker, running)

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    assert caplog.text.count(": recovered, ") == 2


def test_a_dead_worker_is_missed_after_three_looks_and_no_earlier(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> float:
        task_id = await queue.enqueue(note)
        await queue.claim(lease=SHORT)
        clock.advance(seconds=1)
        worker = Worker(queue, lease=LEASE)
        began = asyncio.get_running_loop().time()
        running = asyncio.create_task(worker.run())
        await queue.get_result(task_id, 10)
        took = asyncio.get_running_loop().time() - began
        await stopped(worker, running)
        return took

    took = run(main())
    assert LEASE.total_seconds() / 3 <= took
    # The looks are a fifth of the lease apart; a loaded machine has the rest of the lease.
    assert took < 5 * LEASE.total_seconds()


@pytest.mark.parametrize("jump", [timedelta(hours=5), timedelta(hours=-5)])
def test_nobody_who_lives_is_rescued_when_the_clock_steps(
    run: Run, queue: TaskQueue, clock: Any, jump: timedelta
) -> None:
    async def main() -> None:
        task_id = await queue.enqueue(until_released, max_retries=5)
        holder = Worker(queue, lease=LEASE, concurrency=1)
        holding = asyncio.create_task(holder.run_until_idle())
        await until(lambda: world.log)
        other = Worker(TaskQueue(queue.backend.clone(), clock=clock), lease=LEASE, concurrency=1)
        looking = asyncio.create_task(other.run())
        for _ in range(2):
            clock.now += jump
            await asyncio.sleep(1.5 * LEASE.total_seconds())
        world.release = True
        await holding
        await stopped(other, looking)
        task = await queue.get_task(task_id)
        assert (task.status, task.attempts, task.failures) == ("success", 1, ())

    run(main())


def test_nobody_who_lives_is_rescued_when_the_machine_wakes_from_sleep(
    queue: TaskQueue, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the event loop and that of the queue jump together, so everything that waits is due at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        true_time, slept = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: true_time() + slept)
        task_id = await queue.enqueue(until_released, max_retries=5)
        holder = Worker(queue, lease=LEASE, concurrency=1)
        holding = asyncio.create_task(holder.run_until_idle())
        await until(lambda: world.log)
        other = Worker(TaskQueue(queue.backend.clone(), clock=clock), lease=LEASE, concurrency=1)
        looking = asyncio.create_task(other.run())
        for _ in range(3):
            await asyncio.sleep(1.1 * LEASE.total_seconds())
            slept += 7200
            clock.advance(hours=2)
        await asyncio.sleep(1.1 * LEASE.total_seconds())
        world.release = True
        await holding
        await stopped(other, looking)
        task = await queue.get_task(task_id)
        assert (task.status, task.attempts, task.failures) == ("success", 1, ())

    asyncio.run(main())


def test_a_worker_does_not_recover_what_it_runs_itself(run: Run, make_queue: MakeQueue, clock: Any) -> None:
    class NeverExtends(MemoryBackend):
        async def extend(self, *_args: Any, **_kwargs: Any) -> Sequence[tuple[str, int]]:
            raise StoreUnavailable("here", "it is away")

    async def main() -> None:
        queue = make_queue(backend=NeverExtends())
        task_id = await queue.enqueue(until_released, max_retries=2)
        running = asyncio.create_task(Worker(queue, lease=SHORT).run_until_idle())
        await until(lambda: world.log)
        clock.advance(hours=1)
        await asyncio.sleep(5 * SHORT.total_seconds())
        world.release = True
        await running
        task = await queue.get_task(task_id)
        assert (task.status, task.attempts) == ("success", 1)

    run(main())


def test_racing_recoverers_record_one_failure(run: Run, queue: TaskQueue, clock: Any) -> None:
    async def main() -> None:
        ids = await queue.enqueue_many(note, [()] * 20, max_retries=3)
        await queue.claim(20, lease=SHORT)
        clock.advance(seconds=1)
        workers = [Worker(TaskQueue(queue.backend.clone(), clock=clock), lease=SHORT) for _ in range(4)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        await until(lambda: count_is(queue, "running", 0))
        await asyncio.sleep(3 * SHORT.total_seconds())
        for worker in workers:
            worker.stop()
        await asyncio.gather(*running)
        for task_id in ids:
            task = await queue.get_task(task_id)
            assert (task.status, task.attempts, len(task.failures)) == ("pending", 1, 1)

    run(main())


def test_more_than_one_page_of_expired_leases_is_recovered(
    run: Run, queue: TaskQueue, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue._recovery._PAGE", 7)

    async def main() -> None:
        await queue.enqueue_many(note, [()] * 20)
        await queue.claim(20, lease=SHORT)
        clock.advance(seconds=1)
        worker = Worker(queue, lease=SHORT)
        running = asyncio.create_task(worker.run())
        await until(lambda: count_is(queue, "failed", 20))
        await stopped(worker, running)

    run(main())


def test_a_look_that_fails_is_logged_once_and_the_worker_goes_on(
    run: Run, make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class CannotLook(MemoryBackend):
        looks = 0

        async def expired(self, **arguments: Any) -> Sequence[Task]:
            self.looks += 1
            if self.looks < 5:
                raise StoreUnavailable("here", "it is away")
            return await super().expired(**arguments)

    async def main() -> None:
        queue = make_queue(backend=CannotLook())
        worker = Worker(queue, lease=SHORT)
        running = asyncio.create_task(worker.run())
        await until(lambda: queue.backend.looks > 5)
        assert (await queue.get_result(await queue.enqueue(note, "ran"), 10)).unwrap() == "ran"
        await stopped(worker, running)

    with caplog.at_level(logging.WARNING, "taskqueue"):
        run(main())
    messages = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert messages == [
        "looking for tasks of workers that died failed",
        "looking for tasks of workers that died works again",
    ]


# ---------------------------------------------------------------- purging


def test_a_worker_purges_what_ended_long_ago_and_only_if_it_is_told(
    run: Run, queue: TaskQueue, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        old = await queue.enqueue_many(note, [()] * 600)
        await Worker(queue, concurrency=600).run_until_idle()
        clock.advance(hours=2)
        await queue.enqueue(note, "new")
        await Worker(queue).run_until_idle()
        clock.advance(minutes=30)
        assert (await queue.counts())["success"] == len(old) + 1
        await Worker(queue, purge_after=timedelta(hours=1)).run_until_idle()
        assert [task.id for task in [task async for task in queue.tasks()] if task.id in old] == []
        assert (await queue.counts())["success"] == 1
        worker = Worker(queue, purge_after=timedelta(0))
        running = asyncio.create_task(worker.run())
        await until(lambda: count_is(queue, "success", 0))
        await stopped(worker, running)

    with caplog.at_level(logging.INFO, "taskqueue"):
        run(main())
    assert "purged 600 tasks that ended more than 1:00:00 ago" in caplog.text


def test_a_worker_purges_again_and_a_failure_does_not_end_it(
    run: Run, make_queue: MakeQueue, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CannotPurge(MemoryBackend):
        purges = 0

        async def purge(self, **arguments: Any) -> int:
            self.purges += 1
            if self.purges == 1:
                raise StoreUnavailable("here", "it is away")
            return await super().purge(**arguments)

    monkeypatch.setattr("taskqueue._run._SECONDS_BETWEEN_PURGES", (0.01, 0.01))

    async def main() -> None:
        queue = make_queue(backend=CannotPurge())
        worker = Worker(queue, purge_after=timedelta(hours=1))
        running = asyncio.create_task(worker.run())
        for _ in range(2):
            await queue.get_result(await queue.enqueue(note), 10)
            clock.advance(hours=2)
            await until(lambda: count_is(queue, "success", 0))
        await stopped(worker, running)

    run(main())
