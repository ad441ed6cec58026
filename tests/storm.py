"""A storm: workers and a producer are killed again and again, and at the end every task must be accounted for.

    python tests/storm.py                                     # a minute on a new SQLite file
    python tests/storm.py --url postgresql://… --chaos my_chaos:restart_the_server

Worker processes share one store. A producer enqueues tasks of many kinds throughout, cancels some of them, and writes
down in a file, synced, what has been acknowledged. Every 200 ms on average one of the workers, and sometimes the
producer, is ended by SIGKILL and replaced. Every execution of a task appends a line to a log when it begins and
another when it ends. In the end workers that nobody kills run what is left; then the store, what was acknowledged and
the log are held against each other, and everything that does not fit is printed. The exit status is 0 if all fits, 1
if not, and 2 for a wrong command line.

The seed decides what is enqueued, and when who is killed. Processes run as they please, so it repeats the storm, not
each of its drops.

A chaos function is called in a thread as ``chaos(url, rng, ended)``, with the store's URL, a ``random.Random`` and a
``threading.Event`` that is set when the time is up, and it has to return soon after that. It may do to the store
whatever a store should survive. What it raises is a failure of the storm.
"""

import argparse
import asyncio
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console
from rich.table import Table

from taskqueue import (
    RetryPolicy,
    Task,
    TaskExists,
    TaskQueue,
    TaskQueueError,
    TaskStatus,
    Worker,
    current_task,
)

LEASE: Final = timedelta(seconds=1)
POLL: Final = timedelta(seconds=0.5)
GRACE: Final = timedelta(seconds=5)
RETRIES: Final = RetryPolicy(base=timedelta(seconds=0.05), cap=timedelta(seconds=1))
CONCURRENCY: Final = 8
BUDGETS: Final = (0, 1, 3, 5)
LONGEST_ETA_S: Final = 3.0
TIMEOUT_S: Final = 0.05
CLOCK_TOLERANCE_S: Final = 0.001
"""``time.time`` is a double, and an eta has microseconds."""
SHOWN: Final = 20

_PROCESSES: Final = multiprocessing.get_context("forkserver")
_LOG_VARIABLE: Final = "STORM_LOG"


# ---------------------------------------------------------------- tasks


def note(what: str) -> list[Any]:
    """Append a line about the present attempt to the log, in one write; return the attempt's name."""
    task = current_task()
    assert task is not None, "a task of the storm runs in a worker"
    line = {"id": task.id, "attempt": task.attempt, "what": what, "pid": os.getpid(), "at": time.time()}
    append(os.environ[_LOG_VARIABLE], line)
    return [task.id, task.attempt]


def append(path: str, line: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append one line of JSON, wholly or not at all as far as other processes can see."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Deliberate(Exception):
    """What a failing task raises."""


async def quick() -> list[Any]:
    """A coroutine that does nothing."""
    note("begin")
    return note("end")


def in_thread() -> list[Any]:
    """A plain function, which runs in a thread."""
    note("begin")
    time.sleep(0.005)
    return note("end")


async def slow() -> list[Any]:
    """Likely to be running when its worker is killed."""
    note("begin")
    await asyncio.sleep(0.3)
    return note("end")


async def longer_than_a_lease() -> list[Any]:
    """Kept by heartbeats."""
    note("begin")
    await asyncio.sleep(1.6 * LEASE.total_seconds())
    return note("end")


async def failing() -> None:
    """Fails every time."""
    note("begin")
    raise Deliberate("always")


def failing_in_thread() -> None:
    """Fails every time."""
    note("begin")
    raise Deliberate("always")


async def failing_at_first() -> list[Any]:
    """Fails once, then succeeds."""
    note("begin")
    task = current_task()
    if task is not None and task.attempt == 1:
        raise Deliberate("only once")
    return note("end")


async def overrunning() -> None:
    """Has a timeout, and takes longer."""
    note("begin")
    await asyncio.sleep(20 * TIMEOUT_S)


@dataclass(frozen=True)
class Kind:
    """A sort of task: what it calls, how frequent it is, and whether it can ever succeed."""

    func: Callable[[], Any]
    weight: int
    succeeds: bool = True
    timeout: float | None = None


KINDS: Final[Mapping[str, Kind]] = {
    "quick": Kind(quick, 40),
    "in a thread": Kind(in_thread, 20),
    "slow": Kind(slow, 10),
    "longer than a lease": Kind(longer_than_a_lease, 1),
    "failing": Kind(failing, 8, succeeds=False),
    "failing in a thread": Kind(failing_in_thread, 4, succeeds=False),
    "failing at first": Kind(failing_at_first, 12),
    "overrunning": Kind(overrunning, 5, succeeds=False, timeout=TIMEOUT_S),
}


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Plan:
    """What every process has to know.

    Attributes:
        url: The store's URL, or None where ``backend`` makes it.
        backend: ``MODULE:FACTORY`` of a backend that has no URL; called with ``store``.
        store: The path for ``backend``.
        folder: Where the files of the storm lie.
        seed: What decides about everything that is drawn.
    """

    url: str | None
    backend: str | None
    store: str
    folder: str
    seed: int

    @property
    def log(self) -> str:
        """The log of executions."""
        return f"{self.folder}/executions.jsonl"

    @property
    def acknowledged(self) -> str:
        """What was acknowledged to producers."""
        return f"{self.folder}/acknowledged.jsonl"

    def random(self, *parts: object) -> random.Random:
        """Return a generator for one purpose."""
        return random.Random(hashlib.sha256(repr((self.seed, parts)).encode()).digest())  # noqa: S311 - no secret

    def queue(self) -> TaskQueue:
        """Return a queue on the store."""
        if self.backend is not None:
            return TaskQueue(named(self.backend)(self.store), retry_policy=RETRIES)
        assert self.url is not None
        return TaskQueue.from_url(self.url, retry_policy=RETRIES)


def named(name: str) -> Any:
    """Return what ``MODULE:NAME`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _begin_process(plan: Plan) -> None:
    os.environ[_LOG_VARIABLE] = plan.log
    # Not closed: the process ends by a signal.
    logging.basicConfig(filename=f"{plan.folder}/log.txt", level=logging.WARNING, format="%(process)d %(message)s")


def work(plan: Plan) -> None:
    """Run a worker until the process is killed."""
    _begin_process(plan)

    async def main() -> None:
        while True:
            try:
                async with plan.queue() as queue:
                    await Worker(queue, concurrency=CONCURRENCY, lease=LEASE, poll=POLL, grace=GRACE).run()
            except TaskQueueError:  # a server that is being restarted while this one starts
                await asyncio.sleep(0.1)

    asyncio.run(main())


def produce(plan: Plan, incarnation: int, number: int, seconds: float) -> None:
    """Enqueue ``number`` tasks within ``seconds``, and cancel some of them a little later."""
    _begin_process(plan)
    asyncio.run(_produce(plan, incarnation, number, seconds))


_GROUP: Final = 10


async def _produce(plan: Plan, incarnation: int, number: int, seconds: float) -> None:
    rng = plan.random("producer", incarnation)
    began = time.monotonic()
    async with plan.queue() as queue:
        cancelling: list[asyncio.Task[None]] = []
        for first in range(0, number, _GROUP):
            await asyncio.sleep(max(0.0, began + seconds * first / number - time.monotonic()))
            group = range(first, min(first + _GROUP, number))
            doomed = await asyncio.gather(*(_enqueue(plan, queue, rng, f"{incarnation}-{each}") for each in group))
            cancelling += [
                asyncio.create_task(_cancel(plan, queue, task_id, rng.uniform(0, 0.6)))
                for task_id in doomed
                if task_id is not None
            ]
        if cancelling:
            await asyncio.wait(cancelling)


async def _enqueue(plan: Plan, queue: TaskQueue, rng: random.Random, task_id: str) -> str | None:
    """Enqueue one task; return its id if it is to be cancelled."""
    (name,) = rng.choices(list(KINDS), weights=[kind.weight for kind in KINDS.values()])
    budget = rng.choice(BUDGETS)
    now = datetime.now(UTC)
    eta = now + timedelta(seconds=rng.uniform(0.05, LONGEST_ETA_S)) if rng.random() < 0.15 else None
    doomed = rng.random() < 0.05
    kind = KINDS[name]
    while True:
        try:
            await queue.enqueue(kind.func, task_id=task_id, max_retries=budget, eta=eta, timeout=kind.timeout)
        except TaskExists:  # the answer to an earlier try was lost, and it had landed
            pass
        except TaskQueueError:
            await asyncio.sleep(0.05)
            continue
        break
    line = {"what": "enqueued", "id": task_id, "kind": name, "budget": budget, "eta": eta and eta.timestamp()}
    append(plan.acknowledged, line, sync=True)
    return task_id if doomed else None


async def _cancel(plan: Plan, queue: TaskQueue, task_id: str, delay: float) -> None:
    await asyncio.sleep(delay)
    append(plan.acknowledged, {"what": "cancelling", "id": task_id}, sync=True)
    lost = False
    while True:
        try:
            done = await queue.cancel(task_id)
        except TaskQueueError:
            lost = True
            await asyncio.sleep(0.05)
            continue
        break
    if done or not lost:  # after a lost answer, False may mean that this call itself did it
        append(plan.acknowledged, {"what": "cancelled" if done else "too late", "id": task_id}, sync=True)


class Chaos(Protocol):
    """What else happens to the store."""

    def __call__(self, url: str, rng: random.Random, ended: threading.Event, /) -> None: ...


class Storm:
    """The processes of a storm, and who kills them.

    Args:
        plan: What the processes have to know.
        workers: How many worker processes there are at a time.
        tasks: How many tasks shall be acknowledged.
        kill_every: The mean number of seconds between two kills.
        chaos: What else happens to the store.
    """

    def __init__(self, plan: Plan, *, workers: int, tasks: int, kill_every: float, chaos: Chaos | None) -> None:
        self.plan = plan
        self.tasks = tasks
        self.kill_every = kill_every
        self.chaos = chaos
        self.kills: Counter[str] = Counter()
        self.problems: list[str] = []
        self._ended = threading.Event()
        self._rng = plan.random("storm")
        self._workers = [self._worker() for _ in range(workers)]
        self._incarnations = 0
        self._producer: BaseProcess | None = None

    def rage(self, seconds: float) -> None:
        """Let it rage for that long."""
        began = time.monotonic()
        chaos = threading.Thread(target=self._chaos, daemon=True)
        chaos.start()
        strikes = began
        while (left := began + seconds - time.monotonic()) > 0:
            if self._producer is None or not self._producer.is_alive():
                self._producer = self._next_producer(left)
            strikes += self._rng.expovariate(1 / self.kill_every)
            time.sleep(max(0.0, min(began + seconds, strikes) - time.monotonic()))
            self._replace_dead_workers()
            if self._producer is not None and self._rng.random() < 0.1:
                self._producer.kill()
                self._producer.join()
                self.kills["producer"] += 1
            else:
                victim = self._rng.randrange(len(self._workers))
                self._kill(self._workers[victim])
                self._workers[victim] = self._worker()
        self._ended.set()
        chaos.join(60)
        if chaos.is_alive():
            self.problems.append("the chaos function has not returned a minute after the end")

    def calm(self, seconds: float) -> None:
        """Let the producer finish, and the workers that are left run everything; that long at most."""
        deadline = time.monotonic() + seconds
        while (missing := self._missing()) and time.monotonic() < deadline:
            self._producer = self._producer or self._next_producer(missing / 500)
            if self._producer is None or not self._producer.is_alive():
                self._producer = self._next_producer(missing / 500)
            elif self._producer is not None:
                self._producer.join(0.1)
        if self._producer is not None:
            self._producer.join(max(0.0, deadline - time.monotonic()))
        left = asyncio.run(self._drained(deadline))
        if left:
            self.problems.append(f"{left} tasks had not ended {seconds:g} s after the storm")

    def end(self) -> None:
        """End every process."""
        self._ended.set()
        for process in [*self._workers, *filter(None, [self._producer])]:
            process.kill()
            process.join()

    def _worker(self) -> BaseProcess:
        process = _PROCESSES.Process(target=work, args=(self.plan,), daemon=True)
        process.start()
        return process

    def _kill(self, worker: BaseProcess) -> None:
        worker.kill()
        worker.join()
        self.kills["worker"] += 1

    def _replace_dead_workers(self) -> None:
        for place, worker in enumerate(self._workers):
            if not worker.is_alive():
                self.problems.append(f"a worker ended by itself, with exit code {worker.exitcode}")
                self._workers[place] = self._worker()

    def _missing(self) -> int:
        return self.tasks - sum(1 for line in lines_of(self.plan.acknowledged) if line["what"] == "enqueued")

    def _next_producer(self, seconds: float) -> BaseProcess | None:
        missing = self._missing()
        if missing <= 0:
            return None
        self._incarnations += 1
        process = _PROCESSES.Process(
            target=produce, args=(self.plan, self._incarnations, missing, 0.9 * seconds), daemon=True
        )
        process.start()
        return process

    def _chaos(self) -> None:
        if self.chaos is None:
            return
        try:
            self.chaos(self.plan.url or self.plan.store, self.plan.random("chaos"), self._ended)
        except Exception as error:  # noqa: BLE001 - it is reported
            self.problems.append(f"the chaos function raised {error!r}")

    async def _drained(self, deadline: float) -> int:
        async with self.plan.queue() as queue:
            while True:
                counts = await queue.counts()
                left: int = counts[TaskStatus.PENDING] + counts[TaskStatus.RUNNING]
                if not left or time.monotonic() > deadline:
                    return left
                self._replace_dead_workers()
                await asyncio.sleep(0.1)


# ---------------------------------------------------------------- the reckoning


def lines_of(path: str) -> list[dict[str, Any]]:
    """Return the lines of JSON in a file; a missing one is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Evidence:
    """What is known at the end.

    Attributes:
        tasks: All tasks in the store.
        values: What each successful task returned, by its id.
        counts: The store's own numbers.
        acknowledged: What the producers wrote down: lines with ``what`` and ``id``.
        executions: What the tasks wrote down: lines with ``what``, ``id``, ``attempt``, ``pid`` and ``at``.
    """

    tasks: Sequence[Task]
    values: Mapping[str, Any]
    counts: Mapping[TaskStatus, int]
    acknowledged: Sequence[Mapping[str, Any]]
    executions: Sequence[Mapping[str, Any]]


async def gathered(plan: Plan) -> Evidence:
    """Read the store and the files."""
    async with plan.queue() as queue:
        tasks = [task async for task in queue.tasks()]
        values = {}
        for task in tasks:
            if task.status is TaskStatus.SUCCESS and (result := await queue.get_result(task.id, timeout=0)):
                values[task.id] = result.unwrap()
        counts = await queue.counts()
    return Evidence(tasks, values, counts, lines_of(plan.acknowledged), lines_of(plan.log))


def contradictions(evidence: Evidence) -> list[str]:
    """Return everything that must not be so."""
    found: list[str] = []
    begun: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    ended = set()
    for line in evidence.executions:
        if line["what"] == "begin":
            begun[line["id"]].append(line)
        else:
            ended.add((line["id"], line["attempt"]))
    words: defaultdict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in evidence.acknowledged:
        words[line["id"]][line["what"]] = line
    stored = Counter(task.id for task in evidence.tasks)
    found += [f"{task_id} is in the listing {number} times" for task_id, number in stored.items() if number > 1]
    found += [
        f"{each} was acknowledged, and is gone" for each in words if "enqueued" in words[each] and not stored[each]
    ]
    found += [f"{task_id} ran, and is in no listing" for task_id in begun if not stored[task_id]]
    listed = Counter(task.status for task in evidence.tasks)
    if any(evidence.counts[status] != listed[status] for status in TaskStatus):
        found.append(f"counts() says {dict(evidence.counts)}, and the listing has {dict(listed)}")
    for task in evidence.tasks:
        found += [f"{task.id} {problem}" for problem in _of_record(task)]
        found += [f"{task.id} {problem}" for problem in _of_executions(task, begun[task.id])]
        found += [f"{task.id} {problem}" for problem in _of_words(task, words[task.id], begun[task.id])]
        if task.status is TaskStatus.SUCCESS:
            name = (task.id, task.attempts)
            if name not in ended:
                found.append(f"{task.id} is a success, and attempt {task.attempts} never got to its end")
            if evidence.values.get(task.id) != list(name):
                found.append(
                    f"{task.id} has the value {evidence.values.get(task.id)}, and not that of its last attempt"
                )
    return found


def _of_record(task: Task) -> Iterable[str]:
    """Check a record against the contract's table of fields."""
    most = max(1, task.max_retries)
    failed = {
        TaskStatus.SUCCESS: {task.attempts - 1},
        TaskStatus.FAILED: {task.attempts},
        TaskStatus.CANCELLED: {task.attempts, max(0, task.attempts - 1)},
    }.get(task.status)
    if failed is None:
        yield f"has not ended: {task.status}"
        return
    if task.attempts > most:
        yield f"was claimed {task.attempts} times, with a budget of {task.max_retries}"
    if task.status is TaskStatus.FAILED and task.attempts != most:
        yield f"was given up after {task.attempts} attempts, with a budget of {task.max_retries}"
    if len(task.failures) not in failed:
        yield f"is {task.status} after {task.attempts} attempts, with {len(task.failures)} failures"
    if [failure.attempt for failure in task.failures] != list(range(1, len(task.failures) + 1)):
        yield f"has failures of the attempts {[failure.attempt for failure in task.failures]}"
    last = len(task.failures) - (task.status is TaskStatus.FAILED)
    if [failure.retry_at is not None for failure in task.failures] != [n < last for n in range(len(task.failures))]:
        yield "has a retry recorded where there was none, or none where there was one"
    if task.finished_at is None or task.lease_expires_at is not None:
        yield f"ended at {task.finished_at} with the lease {task.lease_expires_at}"
    if (task.value is not None) != (task.status is TaskStatus.SUCCESS):
        yield f"is {task.status} and has {'a' if task.value is not None else 'no'} value"


def _of_executions(task: Task, begun: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    attempts = Counter(line["attempt"] for line in begun)
    for attempt, number in attempts.items():
        if number > 1:
            yield f"ran {number} times as attempt {attempt}, in the processes {[line['pid'] for line in begun]}"
    if len(begun) > max(1, task.max_retries):
        yield f"ran {len(begun)} times, with a budget of {task.max_retries}"
    if attempts and max(attempts) > task.attempts:
        yield f"ran as attempt {max(attempts)}, and has {task.attempts} attempts"


def _of_words(task: Task, words: Mapping[str, Mapping[str, Any]], begun: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Check a task against what its producer was told."""
    cancelled = task.status is TaskStatus.CANCELLED
    if cancelled and "cancelling" not in words:
        yield "is cancelled, and nobody cancelled it"
    if "cancelled" in words and not cancelled:
        yield f"was cancelled, and is {task.status}"
    if "too late" in words and cancelled:
        yield "is cancelled, and the one who tried was told that it was too late"
    if (line := words.get("enqueued")) is None:
        return
    if task.max_retries != line["budget"]:
        yield f"has a budget of {task.max_retries}, and was given {line['budget']}"
    if task.status is TaskStatus.SUCCESS and not KINDS[line["kind"]].succeeds:
        yield f"is a success, and of the kind {line['kind']!r}"
    if task.status is TaskStatus.SUCCESS and line["kind"] == "failing at first" and task.attempts == 1:
        yield "succeeded at its first attempt, which fails"
    if line["eta"] is not None and any(each["at"] < line["eta"] - CLOCK_TOLERANCE_S for each in begun):
        yield f"ran before its eta {line['eta']}"


def _summary(plan: Plan, storm: Storm, evidence: Evidence, seconds: float) -> Table:
    statuses = Counter(task.status for task in evidence.tasks)
    errors = [failure.error for task in evidence.tasks for failure in task.failures]
    lost = sum(error.startswith("the lease of attempt") for error in errors)
    table = Table(title=f"storm of {seconds:.0f} s, seed {plan.seed}", show_header=False)
    rows: list[tuple[str, object]] = [
        ("acknowledged tasks", sum(line["what"] == "enqueued" for line in evidence.acknowledged)),
        ("tasks in the store", len(evidence.tasks)),
        *((f"  {status.value}", statuses[status]) for status in TaskStatus if statuses[status]),
        ("executions begun", sum(line["what"] == "begin" for line in evidence.executions)),
        ("failed attempts", len(errors)),
        ("  of workers that died", lost),
        ("worker processes killed", storm.kills["worker"]),
        ("producers killed", storm.kills["producer"]),
    ]
    for name, number in rows:
        table.add_row(name, f"{number:,}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store, which must be empty (default: a new SQLite file)")
    parser.add_argument("--backend", metavar="MODULE:FACTORY", help="a backend without a URL; called with a path")
    parser.add_argument("--workers", type=int, default=3, help="worker processes at a time (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=5000, help="how many to enqueue (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long it rages (default: %(default)s)")
    parser.add_argument("--kill-every", type=float, default=0.2, metavar="SECONDS", help="mean (default: %(default)s)")
    parser.add_argument(
        "--drain", type=float, default=120, metavar="SECONDS", help="for the rest (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat this storm (default: a new one)")
    parser.add_argument("--chaos", metavar="MODULE:FUNCTION", help="what else happens to the store; see above")
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.tasks < 1 or options.seconds <= 0 or options.kill_every <= 0:
        parser.error("pass numbers above zero")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True) as folder:
        store = f"{folder}/storm.db"
        url = options.url or (None if options.backend else f"sqlite:///{store}")
        plan = Plan(url=url, backend=options.backend, store=store, folder=folder, seed=seed)
        chaos = named(options.chaos) if options.chaos else None
        asyncio.run(_create(plan))
        began = time.monotonic()
        storm = Storm(plan, workers=options.workers, tasks=options.tasks, kill_every=options.kill_every, chaos=chaos)
        try:
            storm.rage(options.seconds)
            storm.calm(options.drain)
        finally:
            storm.end()
        evidence = asyncio.run(gathered(plan))
        problems = storm.problems + contradictions(evidence)
        if not storm.kills["worker"]:
            problems.append("nobody was killed, so this shows nothing: let it rage for longer")
        console.print(_summary(plan, storm, evidence, time.monotonic() - began))
        log = Path(folder, "log.txt")
        if problems and log.exists():
            console.print("\n".join(log.read_text().splitlines()[-SHOWN:]), markup=False, highlight=False)
    for problem in problems[:SHOWN]:
        console.print(problem, style="red", markup=False, highlight=False)
    if problems:
        console.print(
            f"{len(problems)} contradiction{'s' * (len(problems) > 1)}. The same storm again: --seed {seed}",
            style="bold red",
        )
        return 1
    console.print("every task is accounted for", style="green")
    return 0


async def _create(plan: Plan) -> None:
    async with plan.queue() as queue:
        if any((await queue.counts()).values()):
            raise SystemExit("the store is not empty: a storm needs one of its own")


if __name__ == "__main__":
    # Under its own name, so that tasks are pickled by reference and not by value.
    import storm

    sys.exit(storm.main())
