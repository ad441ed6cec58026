"""The workloads, through taskqueue's public API. Each function does one measurement, in a process of its own.

Times are taken after a warm-up, in which everything is connected and imported. A rate is in tasks a second.
"""

import asyncio
import json
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import jobs
import pickup

from taskqueue import TaskQueue, TaskStatus, Transition, Worker

_WARM_UP: Final = 200
_OVERHEAD: Final = 100
_BATCH: Final = 1000
_LARGEST_CALL_BYTES: Final = 8_000_000


def enqueue(url: str, *, number: int, payload: int = 200) -> dict[str, float]:
    """Enqueue tasks, each awaited before the next."""
    argument = _argument(payload)

    async def work(queue: TaskQueue, size: int) -> None:
        for _ in range(size):
            await queue.enqueue(jobs.noop, argument)

    return asyncio.run(_enqueued(url, number, work))


def enqueue_many(url: str, *, number: int) -> dict[str, float]:
    """Enqueue tasks by ``enqueue_many``, 1,000 in each call."""
    calls = [(_argument(),)] * _BATCH

    async def work(queue: TaskQueue, size: int) -> None:
        for start in range(0, size, _BATCH):
            await queue.enqueue_many(jobs.noop, calls[: size - start])

    return asyncio.run(_enqueued(url, number, work))


def enqueue_concurrently(url: str, *, number: int) -> dict[str, float]:
    """Make all the calls of ``enqueue`` at once, and await them together."""
    argument = _argument()

    async def work(queue: TaskQueue, size: int) -> None:
        await asyncio.gather(*(queue.enqueue(jobs.noop, argument) for _ in range(size)))

    return asyncio.run(_enqueued(url, number, work))


def drain(
    url: str, *, number: int, concurrency: int = 10, payload: int = 200, stop_early: bool = False
) -> dict[str, float]:
    """Have one worker run tasks that wait already, and store their results.

    Args:
        url: The store. What is in it stays; with ``stop_early`` that may be tasks that wait.
        number: How many tasks are added and run.
        concurrency: That of the worker.
        payload: The size of each task's payload, about, in bytes.
        stop_early: Stop the worker once ``number`` tasks have run, though others are due.
    """
    return asyncio.run(_drained(url, number, concurrency, payload, stop_early=stop_early))


def drain_by_processes(url: str, *, number: int, workers: int) -> dict[str, float]:
    """Have some worker processes run tasks that wait already.

    Fails if a task was claimed twice.
    """
    asyncio.run(_filled(url, number))
    processes = [_process("drain_on_command", url) for _ in range(workers)]
    for process in processes:
        _hear(process)
    began = time.perf_counter()
    for process in processes:
        _tell(process, "go")
    claimed = [int(_hear(process)) for process in processes]
    seconds = time.perf_counter() - began
    for process in processes:
        process.communicate()
    if sum(claimed) != number:
        raise AssertionError(f"{number} tasks were claimed {sum(claimed)} times: {claimed}")
    return {"rate": number / seconds}


def pick_up(url: str, *, number: int, idle: float) -> dict[str, float]:
    """Time single tasks from ``enqueue`` to the result, with an idle worker in another process.

    Returns percentiles in seconds, and the share of a core that the worker uses while it has nothing to do.
    """

    async def main() -> dict[str, float]:
        async with TaskQueue.from_url(url) as queue:
            worker = _process("serve", url)
            try:
                await pickup.time_tasks(queue, 20, seed=1)
                _, seconds = await pickup.time_tasks(queue, number, seed=1)
                share = await pickup.idle_share(queue, idle)
            finally:
                worker.kill()
                worker.wait()
        seconds.sort()
        return {"p50": seconds[len(seconds) // 2], "p99": seconds[len(seconds) * 99 // 100], "idle": share}

    return asyncio.run(main())


def filled_store(path: str, *, number: int, status: str) -> dict[str, float]:
    """Make a store with ``number`` tasks that are "pending", or that have ended as "success".

    One is enqueued, and runs, and its row is copied.
    """
    url = f"sqlite:///{path}"

    async def main() -> None:
        async with TaskQueue.from_url(url) as queue:
            await queue.enqueue(jobs.noop, _argument())
            if status == "success":
                await Worker(queue).run_until_idle()

    asyncio.run(main())
    db = sqlite3.connect(path)
    names = [name for _, name, *_ in db.execute("PRAGMA table_info (tasks)") if name not in {"seq", "id"}]
    row = db.execute(f"SELECT {', '.join(names)} FROM tasks").fetchone()
    db.executemany(
        f"INSERT INTO tasks (id, {', '.join(names)}) VALUES (?{', ?' * len(names)})",
        ((str(uuid.uuid4()), *row) for _ in range(number - 1)),
    )
    db.commit()
    db.execute("PRAGMA wal_checkpoint (TRUNCATE)")
    db.close()
    return {}


def serve(url: str) -> None:
    """Be an idle worker, until killed."""
    pickup.work(url, 10)


def drain_on_command(url: str) -> None:
    """Be one of several workers: say that it is ready, wait for a line, drain, and say how often it claimed a task."""

    async def main() -> None:
        claimed = 0

        def count(step: Transition) -> None:
            nonlocal claimed
            claimed += step.target is TaskStatus.RUNNING

        async with TaskQueue.from_url(url, on_transition=count) as queue:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.readline)
            await Worker(queue).run_until_idle()
        sys.stdout.write(f"{claimed}\n")

    asyncio.run(main())


def _argument(payload: int = 200) -> bytes:
    return b"x" * max(payload - _OVERHEAD, 0)


async def _enqueued(url: str, number: int, work: Callable[[TaskQueue, int], Awaitable[None]]) -> dict[str, float]:
    async with TaskQueue.from_url(url) as queue:
        await work(queue, _WARM_UP)
        before = (await queue.counts())[TaskStatus.PENDING]
        began = time.perf_counter()
        await work(queue, number)
        seconds = time.perf_counter() - began
        stored = (await queue.counts())[TaskStatus.PENDING] - before
    if stored != number:
        raise AssertionError(f"{stored} tasks are stored instead of {number}")
    return {"rate": number / seconds}


async def _filled(url: str, number: int, payload: int = 200) -> None:
    async with TaskQueue.from_url(url) as queue:
        calls = [(_argument(payload),)] * max(1, min(_BATCH, _LARGEST_CALL_BYTES // payload))
        for start in range(0, number, len(calls)):
            await queue.enqueue_many(jobs.noop, calls[: number - start])


async def _drained(url: str, number: int, concurrency: int, payload: int, *, stop_early: bool) -> dict[str, float]:
    async with TaskQueue.from_url(url) as queue:
        if not stop_early:
            await _filled(url, _WARM_UP)
            await Worker(queue, concurrency=concurrency).run_until_idle()
        before = (await queue.counts())[TaskStatus.SUCCESS]
        await _filled(url, number, payload)
        worker = Worker(queue, concurrency=concurrency)
        if stop_early:
            ended = asyncio.Event()
            counted = TaskQueue(queue.backend, on_transition=_setting_after(number, ended))
            worker = Worker(counted, concurrency=concurrency)
            stopping = asyncio.create_task(_stop_when(ended, worker))
        began = time.perf_counter()
        await worker.run_until_idle()
        seconds = time.perf_counter() - began
        if stop_early:
            await stopping
        ran = (await queue.counts())[TaskStatus.SUCCESS] - before
    if ran < number or (ran > number and not stop_early):
        raise AssertionError(f"{ran} tasks ran instead of {number}")
    return {"rate": ran / seconds, "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


async def _stop_when(ended: asyncio.Event, worker: Worker) -> None:
    await ended.wait()
    worker.stop()


def _setting_after(number: int, reached: asyncio.Event) -> Callable[[Transition], None]:
    ended = 0

    def count(step: Transition) -> None:
        nonlocal ended
        ended += step.target is TaskStatus.SUCCESS
        if ended == number:
            reached.set()

    return count


def _process(role: str, url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), "workloads", role, json.dumps({"url": url})]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
