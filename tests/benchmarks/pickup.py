"""How soon an idle worker in another process starts a task, and what it costs to wait for one.

    python tests/benchmarks/pickup.py --help

Two real processes share one store: a client that enqueues single tasks at irregular intervals and waits for each
result, and a worker that is idle in between. Printed are percentiles of two times, in milliseconds: from the call of
``enqueue`` until the worker claims the task, and until the client has seen its result; then the CPU time that the
waiting worker uses, as a share of one core, while nothing happens and, with ``--busy``, while the client enqueues
tasks for tomorrow as fast as it can, one by one. Numbers depend on the machine and on what else runs on it: never a
test.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from taskqueue import TaskQueue, Worker

_OUT = Console(highlight=False)


def work(url: str, concurrency: int) -> None:
    """What the other process does until it is killed."""
    asyncio.run(_work(url, concurrency))


async def _work(url: str, concurrency: int) -> None:
    async with TaskQueue.from_url(url) as queue:
        await Worker(queue, concurrency=concurrency).run()


async def time_tasks(queue: TaskQueue, number: int, seed: int) -> tuple[list[float], list[float]]:
    """Return the seconds from ``enqueue`` to the claim and to the result of each task."""
    intervals = random.Random(seed)  # noqa: S311 - no secret
    until_claim, until_result = [], []
    for _ in range(number):
        await asyncio.sleep(intervals.uniform(0.02, 0.08))
        began = time.perf_counter()
        task_id = await queue.enqueue(asyncio.sleep, 0)
        await _value(queue, task_id)
        until_result.append(time.perf_counter() - began)
        task = await queue.get_task(task_id)
        if task.started_at is not None:
            until_claim.append((task.started_at - task.enqueued_at).total_seconds())
    return until_claim, until_result


async def _value(queue: TaskQueue, task_id: str) -> Any:
    result = await queue.get_result(task_id, timeout=60)
    if result is None:
        raise TimeoutError("the worker has not run the task")
    return result.unwrap()


async def _cpu_seconds(queue: TaskQueue) -> float:
    """What the worker's process has used until now."""
    seconds: float = await _value(queue, await queue.enqueue(time.process_time))
    return seconds


async def idle_share(queue: TaskQueue, seconds: float) -> float:
    """Return the share of a core that the worker uses while nothing happens."""
    before, began = await _cpu_seconds(queue), time.perf_counter()
    await asyncio.sleep(seconds)
    return (await _cpu_seconds(queue) - before) / (time.perf_counter() - began)


async def _busy_share(queue: TaskQueue, seconds: float) -> tuple[float, float]:
    """Return the worker's share of a core, and how many calls a second the client got through meanwhile."""
    tomorrow = queue.now() + timedelta(days=1)
    before, began = await _cpu_seconds(queue), time.perf_counter()
    calls = 0
    while time.perf_counter() < began + seconds:
        await queue.enqueue(asyncio.sleep, 0, eta=tomorrow)
        calls += 1
    return (await _cpu_seconds(queue) - before) / (time.perf_counter() - began), calls / seconds


def _percentiles(name: str, seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    numbers = "  ".join(f"p{cut} {1000 * cuts[cut - 1]:6.2f} ms" for cut in (50, 90, 99))
    return f"{name:16}  {numbers}  max {1000 * max(seconds):6.2f} ms"


async def _measure(url: str, arguments: argparse.Namespace) -> None:
    async with TaskQueue.from_url(url) as queue:
        await time_tasks(queue, 20, arguments.seed)
        until_claim, until_result = await time_tasks(queue, arguments.tasks, arguments.seed)
        _OUT.print(_percentiles("until the claim", until_claim))
        _OUT.print(_percentiles("until the result", until_result))
        if arguments.idle:
            _OUT.print(f"idle worker       {100 * await idle_share(queue, arguments.idle):.2f} % of a core")
        if arguments.busy:
            share, rate = await _busy_share(queue, arguments.busy)
            _OUT.print(f"beside a writer   {100 * share:.1f} % of a core, at {rate:,.0f} writes a second")


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store (default: a new SQLite file)")
    parser.add_argument("--tasks", type=int, default=300, help="how many tasks to time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="how many worker processes (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=10, help="seconds to watch it idle (default: %(default)s)")
    parser.add_argument("--busy", type=float, default=0, help="seconds to write beside it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="for the intervals (default: %(default)s)")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.url or f"sqlite:///{Path(folder) / 'pickup.db'}"
        workers = [spawn.Process(target=work, args=(url, 10), daemon=True) for _ in range(arguments.workers)]
        for worker in workers:
            worker.start()
        try:
            asyncio.run(_measure(url, arguments))
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


if __name__ == "__main__":
    main()
