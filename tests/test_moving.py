"""Moving unfinished tasks: whatever interrupts it, each is enqueued in the target once, and nowhere else claimable."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import Failure, StoreUnavailable, Task, TaskExists, TaskStatus
from taskqueue.backend import Backend
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.postgres import PostgresBackend
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue.moving import Journal, JournalError, Moved, StillRunning, move

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
LEASE = NOW + timedelta(seconds=30)
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def new_task(task_id: str, **changes: Any) -> Task:
    fields: dict[str, Any] = {"id": task_id, "payload": task_id.encode() * 3, "enqueued_at": NOW, "available_at": NOW}
    return Task(**fields | {"max_retries": 3} | changes)


RETRIED = new_task(
    "retried ü",
    available_at=LATER,
    attempts=2,
    started_at=NOW,
    failures=tuple(
        Failure(attempt=n, error=f"é{n}", failed_at=NOW, traceback=None if n == 1 else "tb\n", retry_at=LATER)
        for n in (1, 2)
    ),
)
TASKS = [new_task("a"), RETRIED, new_task("b", payload=bytes(range(256)), max_retries=0), new_task("c")]


class Interrupted(BaseException):
    """Stands for a crash."""


class Fragile:
    """A handle that crashes at the n-th step of a test, before or after the step was done."""

    def __init__(self, inner: Backend, steps: "Steps") -> None:
        self._inner = inner
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in {"connect", "close", "clone"}:
            return method

        async def stepped(*args: Any, **kwargs: Any) -> Any:
            self._steps.take()
            answer = await method(*args, **kwargs)
            self._steps.take()
            return answer

        return stepped


class FragileJournal(Journal):
    steps: "Steps"

    def _write(self, document: Any) -> None:
        if hasattr(self, "steps"):
            self.steps.take()
        super()._write(document)
        if hasattr(self, "steps"):
            self.steps.take()


class Steps:
    def __init__(self, fatal: int | None = None) -> None:
        self.taken = 0
        self.fatal = fatal

    def take(self) -> None:
        self.taken += 1
        if self.taken == self.fatal:
            raise Interrupted


def journal(folder: Path, **options: Any) -> Journal:
    return Journal(folder / "journal", **{"source": "one", "target": "two"} | options)


async def filled(backend: Backend) -> None:
    """Put the tasks there, and beside them some that have ended."""
    await backend.connect()
    await backend.enqueue([*TASKS, new_task("done", available_at=NOW - timedelta(days=1)), new_task("cancelled")])
    await backend.cancel("cancelled", now=NOW)
    await backend.claim(now=NOW - timedelta(days=1), limit=1, lease_expires_at=LEASE)
    await backend.complete("done", 1, value=b"kept", now=NOW)
    await backend.close()


async def expect_moved(source: Backend, target: Backend) -> None:
    await source.connect()
    await target.connect()
    listed, _ = await target.tasks(limit=100)
    assert [*listed] == TASKS
    assert dict(await source.counts()) == {
        TaskStatus.PENDING: 0, TaskStatus.RUNNING: 0, TaskStatus.SUCCESS: 1, TaskStatus.FAILED: 0,
        TaskStatus.CANCELLED: len(TASKS) + 1,
    }  # fmt: skip
    done = await source.get("done")
    assert done is not None
    assert done.value == b"kept"
    await source.close()
    await target.close()


@pytest.mark.parametrize("kinds", ["sqlite postgres", "postgres sqlite", "memory memory"])
def test_what_has_not_ended_is_moved(run: Run, tmp_path: Path, kinds: str, request: pytest.FixtureRequest) -> None:
    def backend(kind: str) -> Backend:
        if kind == "postgres":
            return PostgresBackend.from_url(request.getfixturevalue("postgres_store"))
        return MemoryBackend() if kind == "memory" else SQLiteBackend(tmp_path / "tasks.db")

    async def main() -> None:
        source, target = map(backend, kinds.split())
        await filled(source)
        with journal(tmp_path) as written:
            assert await move(source, target, written) == Moved(len(TASKS), ())
        await expect_moved(source, target)
        with journal(tmp_path) as written:  # a second time there is nothing to do
            assert await move(source, target, written) == Moved(len(TASKS), ())
        await expect_moved(source, target)

    run(main())
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o600


def test_more_tasks_than_fit_into_a_batch(run: Run, tmp_path: Path) -> None:
    tasks = [new_task(f"{n}") for n in range(250)] + [new_task(f"big{n}", payload=bytes(9_000_000)) for n in range(3)]

    async def main() -> None:
        source, target = MemoryBackend(), MemoryBackend()
        await source.connect()
        await source.enqueue(tasks)
        with journal(tmp_path) as written:
            assert (await move(source, target, written)).moved == 253
        await target.connect()
        listed, _ = await target.tasks(limit=1000)
        assert [task.id for task in listed] == [task.id for task in tasks]
        await target.close()

    run(main())


def test_interrupted_at_every_step_it_loses_and_doubles_nothing(run: Run, tmp_path: Path) -> None:
    async def attempt(fatal: int | None, folder: Path) -> int:
        source, target = MemoryBackend(), MemoryBackend()
        await filled(source)
        steps = Steps(fatal)
        for _ in range(2):  # the second attempt is not interrupted
            with FragileJournal(folder / "journal", source="one", target="two") as written:
                written.steps = steps
                try:
                    await move(Fragile(source, steps), Fragile(target, steps), written)  # type: ignore[arg-type]
                except Interrupted:
                    await expect_nothing_doubled(source, target)
                    continue
                break
        await expect_moved(source, target)
        return steps.taken

    async def main() -> None:
        (tmp_path / "whole").mkdir()
        count = await attempt(None, tmp_path / "whole")
        assert count > 30
        for fatal in range(1, count + 1):
            folder = tmp_path / str(fatal)
            folder.mkdir()
            await attempt(fatal, folder)

    run(main())


async def expect_nothing_doubled(source: Backend, target: Backend) -> None:
    """No task may be claimable in both stores, at any moment."""
    await source.connect()
    await target.connect()
    (here, _), (there, _) = await source.tasks(status=TaskStatus.PENDING, limit=99), await target.tasks(limit=99)
    assert {task.id for task in here} & {task.id for task in there} == set()
    await source.close()
    await target.close()


def test_a_journal_that_was_cut_off_anywhere_is_good(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        source, target = MemoryBackend(), MemoryBackend()
        await filled(source)
        with journal(tmp_path) as written:
            await move(source, target, written)
        whole = (tmp_path / "journal").read_bytes()
        lines = whole.splitlines(keepends=True)
        # What was cut off had not been acknowledged: the end of the last line, wherever.
        for kept in range(len(whole) - len(lines[-1]), len(whole)):
            (tmp_path / "journal").write_bytes(whole[:kept])
            with journal(tmp_path) as written:
                assert len(written.unfinished) == 1
                assert (await move(source, target, written)).moved == len(TASKS)
            await expect_moved(source, target)

    run(main())


PROGRAM = """
import asyncio, sys
from pathlib import Path
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue.moving import Journal, move
folder = Path(sys.argv[1])
print("ready", flush=True)
with Journal(folder / "journal", source="one", target="two") as journal:
    asyncio.run(move(SQLiteBackend(folder / "one.db"), SQLiteBackend(folder / "two.db"), journal))
"""


def test_a_process_that_is_killed_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    tasks = [new_task(f"{n}") for n in range(400)]

    async def fill() -> None:
        source = SQLiteBackend(tmp_path / "one.db")
        await source.connect()
        await source.enqueue(tasks)
        await source.close()

    run(fill())
    killed = 0
    for number in range(40):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        if number < 5:
            time.sleep(0.02 + 0.04 * number)
            process.kill()
        status = process.wait(30)
        process.stdout.close()
        if not status:
            break
        assert status == -signal.SIGKILL
        killed += 1
    assert killed >= 1

    async def look() -> None:
        source, target = SQLiteBackend(tmp_path / "one.db"), SQLiteBackend(tmp_path / "two.db")
        await source.connect()
        await target.connect()
        listed, _ = await target.tasks(limit=1000)
        assert [task.id for task in listed] == [task.id for task in tasks]
        assert (await source.counts())[TaskStatus.CANCELLED] == len(tasks)
        await source.close()
        await target.close()

    run(look())


def test_a_source_whose_tasks_run_is_left_alone(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        source, target = MemoryBackend(), MemoryBackend()
        await source.connect()
        await source.enqueue([new_task("a"), new_task("b")])
        await source.claim(now=NOW, limit=1, lease_expires_at=LEASE)
        with journal(tmp_path) as written, pytest.raises(StillRunning) as refused:
            await move(source, target, written)
        assert refused.value.count == 1
        await target.connect()
        assert sum((await target.counts()).values()) == 0
        await source.connect()
        assert (await source.counts())[TaskStatus.PENDING] == 1
        await source.close()
        await target.close()

    run(main())


def test_an_id_that_the_target_knows_is_not_touched(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        source, target = MemoryBackend(), MemoryBackend()
        await source.connect()
        await target.connect()
        await source.enqueue([new_task("a"), new_task("b")])
        await target.enqueue([new_task("b", payload=b"another one")])
        with journal(tmp_path) as written, pytest.raises(TaskExists) as refused:
            await move(source, target, written)
        assert refused.value.task_ids == ("b",)
        await source.connect()
        assert (await source.counts())[TaskStatus.PENDING] == 2
        await source.close()

    run(main())


class Hasty(MemoryBackend):
    """A store whose worker was not stopped: it takes and perhaps completes a task just before that is cancelled."""

    completes = False

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        for task in await super().claim(now=NOW, limit=1, lease_expires_at=LEASE):
            if self.completes:
                await super().complete(task.id, task.attempts, value=b"", now=NOW)
        return await super().cancel(task_id, now=now)


@pytest.mark.parametrize("completes", [False, True])
def test_a_task_that_a_worker_took_meanwhile_never_exceeds_its_budget(
    run: Run,
    tmp_path: Path,
    completes: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async def main() -> None:
        source, target = Hasty(), MemoryBackend()
        source.completes = completes
        await source.connect()
        await source.enqueue([new_task("spent", max_retries=1), new_task("again", max_retries=2)])
        with journal(tmp_path) as written:
            moved = await move(source, target, written)
        await target.connect()
        listed, _ = await target.tasks(limit=10)
        if completes:
            assert (moved, [*listed]) == (Moved(0, ()), [])
        else:
            assert (moved.moved, moved.interrupted) == (1, ("spent",))
            assert [(task.id, task.attempts, len(task.failures)) for task in listed] == [("again", 1, 1)]
        await target.close()

    run(main())


def test_a_target_that_goes_away_is_no_loss(run: Run, tmp_path: Path) -> None:
    class Away(MemoryBackend):
        async def enqueue(self, tasks: Any) -> None:  # noqa: ARG002 - the contract's
            raise StoreUnavailable("the target", "gone")

    async def main() -> None:
        source, target = MemoryBackend(), MemoryBackend()
        await filled(source)
        with journal(tmp_path) as written, pytest.raises(StoreUnavailable):
            await move(source, Away(), written)
        with journal(tmp_path) as written:
            await move(source, target, written)
        await expect_moved(source, target)

    run(main())


def test_a_journal_serves_one_move_at_a_time_and_one_pair_of_stores(tmp_path: Path) -> None:
    with journal(tmp_path):
        if sys.platform != "win32":
            with pytest.raises(JournalError, match="another move"):
                journal(tmp_path)
    with pytest.raises(JournalError, match="something else"):
        journal(tmp_path, target="three")
    for other in (b"hello\n", b"[1]\n", b'{"x": 1}\n'):
        (tmp_path / "journal").write_bytes(other)
        with pytest.raises(JournalError):
            journal(tmp_path)
        assert (tmp_path / "journal").read_bytes() == other


def test_nothing_is_left_open(run: Run, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208 - to count

    async def main() -> None:
        for number in range(3):
            source, target = SQLiteBackend(tmp_path / f"{number}.db"), MemoryBackend()
            await filled(source)
            with Journal(tmp_path / f"{number}.journal", source="one", target="two") as written:
                await move(source, target, written)
        await asyncio.sleep(0)

    run(main())
    after = len(os.listdir("/proc/self/fd")) if before else 0  # noqa: PTH208 - to count
    assert after <= before
