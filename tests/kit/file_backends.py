"""A small correct backend on one pickled file, and wrong ones made from it, for processes that have to import them.

Which one a process gets, the environment says: so one fork server does for all.
"""

import asyncio
import contextlib
import fcntl
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskqueue import Backend, NotConnected, Task, TaskStatus
from taskqueue_conformance.harness import BaseHarness
from taskqueue_conformance.model import Model

FOLDER = "FILE_BACKENDS_FOLDER"
NAME = "FILE_BACKENDS_NAME"


class Correct:
    """Every call is one step under a lock: read the file, let the model do it, replace the file."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.path = Path(os.environ[FOLDER]) / store
        self.connected = False

    @contextlib.contextmanager
    def step(self, *, write: bool = True) -> Iterator[Model]:
        if not self.connected:
            raise NotConnected("connect first")
        with self.lock():
            model = self.read()
            yield model
            if write:
                self.write(model)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self) -> Model:
        loaded: Model = pickle.loads(self.path.read_bytes())
        return loaded

    def write(self, model: Model) -> None:
        new = self.path.with_suffix(f".{os.getpid()}")
        new.write_bytes(pickle.dumps(model))
        new.replace(self.path)

    async def do(self, method: str, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        with self.step() as model:
            answer = getattr(model, method)(*args, **options)
        await asyncio.sleep(0)
        return answer

    async def connect(self) -> None:
        with self.lock():
            if not self.path.exists():
                self.write(Model())
        self.connected = True

    async def close(self) -> None:
        self.connected = False

    def clone(self) -> Any:
        return type(self)(self.store)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        await self.do("enqueue", tasks)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed: list[Task] = await self.do("claim", now=now, limit=limit, lease_expires_at=lease_expires_at)
        return claimed

    async def extend(self, claims: Any, *, lease_expires_at: datetime) -> Any:
        return await self.do("extend", claims, lease_expires_at=lease_expires_at)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        await self.do("complete", task_id, attempt, value=value, now=now)

    async def fail(self, task_id: str, attempt: int, failure: Any, *, if_expired: bool = False) -> Any:
        return await self.do("fail", task_id, attempt, failure, if_expired=if_expired)

    async def cancel(self, task_id: str, *, now: datetime) -> Any:
        return await self.do("cancel", task_id, now=now)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        with self.step(write=False) as model:
            return model.expired(now=now)[:limit]

    async def next_due(self) -> datetime | None:
        with self.step(write=False) as model:
            return model.next_due()

    async def get(self, task_id: str) -> Task | None:
        with self.step(write=False) as model:
            return model.stored.get(task_id)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        with self.step(write=False) as model:
            page = model.tasks(status)[int(after or 0) :]
        return page[:limit], str(int(after or 0) + limit) if len(page) > limit else None

    async def counts(self) -> Mapping[TaskStatus, int]:
        with self.step(write=False) as model:
            return model.counts()

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        await asyncio.sleep(0)
        with self.step() as model:
            gone = model.purgeable(finished_before=finished_before)[:limit]
            model.forget(task.id for task in gone)
        await asyncio.sleep(0)
        return len(gone)

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name
        before, end = self.path.stat().st_ino, time.monotonic() + timeout
        while self.path.stat().st_ino == before and time.monotonic() < end:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.01)


class Synced(Correct):
    """It has each new version synced, while ``syncing``."""

    syncing = True

    def write(self, model: Model) -> None:
        new = self.path.with_suffix(f".{os.getpid()}")
        with new.open("wb") as file:
            file.write(pickle.dumps(model))
            file.flush()
            if self.syncing:
                os.fsync(file.fileno())
        new.replace(self.path)


class Elsewhere(Correct):
    """What it writes cannot be read by others, as if a server had it."""

    def write(self, model: Model) -> None:
        new = self.path.with_suffix(f".{os.getpid()}")
        new.write_bytes(bytes(byte ^ 0xFF for byte in pickle.dumps(model)))
        new.replace(self.path)

    def read(self) -> Model:
        loaded: Model = pickle.loads(bytes(byte ^ 0xFF for byte in self.path.read_bytes()))
        return loaded


# Wrong when the power fails.


class SyncedAtFirst(Synced):
    """What keeps a new version safe is set on the first connection only."""

    async def close(self) -> None:
        self.syncing = False
        await super().close()


class SyncedOnClose(Synced):
    """Later than acknowledged, but always."""

    syncing = False

    async def close(self) -> None:
        self.syncing = True
        self.write(self.read())
        self.syncing = False
        await super().close()


# Wrong when killed.


class Deferred(Correct):
    """What a call changes is written with the next one: acknowledged before it is kept."""

    _pending: Model | None = None

    def read(self) -> Model:
        if self._pending is not None:
            super().write(self._pending)
        return super().read()

    def write(self, model: Model) -> None:
        self._pending = model

    async def connect(self) -> None:
        if not self.path.exists():
            super().write(Model())
        self.connected = True

    async def close(self) -> None:
        self.read()


class CountedLater(Correct):
    """A claim returns the new number of attempts, and stores it a moment later."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        with self.step() as model:
            model.stored.update((task.id, replace(task, attempts=task.attempts - 1)) for task in claimed)

        def count() -> None:
            with self.step() as model:
                model.stored.update((task.id, task) for task in claimed)

        asyncio.get_running_loop().call_later(0.0001, count)
        return claimed


class TwoSteps(Correct):
    """The status is written before the value."""

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        await super().complete(task_id, attempt, value=value, now=now)
        with self.step() as model:
            done = model.stored[task_id]
            model.stored[task_id] = replace(done, value=None)
        await asyncio.sleep(0)
        with self.step() as model:
            model.stored[task_id] = done


class OneByOne(Correct):
    """Each task of an enqueue is written by itself."""

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            await super().enqueue([task])


class PopBeforeRun(Correct):
    """A claim takes the tasks out of the file; the worker's process has them."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        with self.step() as model:
            model.forget(task.id for task in claimed)
        return claimed


class CountedByFailure(Correct):
    """A claim does not count the attempt: the failure does, which never comes if the worker dies."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        with self.step() as model:
            model.stored.update(
                (task.id, replace(task, attempts=task.attempts - 1, status=TaskStatus.PENDING)) for task in claimed
            )
        return claimed


class CountedByFailureToo(Correct):
    """The task is RUNNING, but its attempt is counted when it fails."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        with self.step() as model:
            model.stored.update((task.id, replace(task, attempts=task.attempts - 1)) for task in claimed)
        return claimed


class ForgetsLeases(Correct):
    """Which leases run is known to the process that claimed."""

    _mine: frozenset[str] = frozenset()

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        claimed = await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        self._mine |= {task.id for task in claimed}
        return claimed

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        return [task for task in await super().expired(now=now, limit=limit) if task.id in self._mine]


class HalfMade(Correct):
    """A new store is an empty file first, which cannot be read."""

    async def connect(self) -> None:
        if not self.path.exists():
            self.path.touch()
            await asyncio.sleep(0)
            self.write(Model())
        self.connected = True


class LosesOnClose(Correct):
    """close writes everything anew, not in one step."""

    async def close(self) -> None:
        model = self.read()
        self.write(Model())
        await asyncio.sleep(0)
        self.write(model)
        self.connected = False


# Wrong where several processes work.


class ChoosesThenMarks(Correct):
    """A claim chooses in one step, and marks in another."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        with self.step(write=False) as model:
            claimed = model.claim(now=now, limit=limit, lease_expires_at=lease_expires_at)
        await asyncio.sleep(0.001)
        with self.step() as model:
            model.stored.update((task.id, task) for task in claimed if not model.stored[task.id].status.ended)
        return claimed


class LooksThenInserts(Correct):
    """An enqueue looks for known ids in one step, and inserts in another."""

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        with self.step(write=False) as model:
            model.enqueue(tasks)
        await asyncio.sleep(0.05)  # longer than the processes are apart, on a busy machine too
        with self.step() as model:
            model.stored.update((task.id, task) for task in tasks)


class Remembers(Correct):
    """What get and the listings have read once, the process does not read again."""

    _read: Model | None = None

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        if self._read is None:
            with self.step(write=False) as model:
                self._read = model
        return self._read.tasks(status)[int(after or 0) :][:limit], None

    def write(self, model: Model) -> None:
        super().write(model)
        self._read = model


class EachMakesItsOwn(Correct):
    """connect makes a store where it has seen none, whatever others have done since."""

    async def connect(self) -> None:
        if not self.path.exists():
            await asyncio.sleep(0.01 * (os.getpid() % 4))
            self.write(Model())
        self.connected = True


class GivesUp(Correct):
    """A lock that another process holds is an error."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


class HearsItselfOnly(Correct):
    """wait ends on changes made in the same process."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's name
        await asyncio.sleep(timeout)


# Wrong over time, and elsewhere.


class LeaksPerFailure(Correct):
    """A connection is not given back when a call is refused."""

    leaked: list[Any] = []  # noqa: RUF012 - what leaks is reachable from somewhere

    async def do(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return await super().do(method, *args, **options)
        except Exception:
            self.leaked.append(self.path.open("rb"))
            raise


class LeaksPerConnect(Correct):
    """close forgets a thread."""

    async def connect(self) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        await super().connect()


class LeaksPerCancel(Correct):
    """A call that is cancelled leaves its task waiting for ever."""

    leaked: list[Any] = []  # noqa: RUF012 - what leaks is reachable from somewhere

    async def extend(self, claims: Any, *, lease_expires_at: datetime) -> Any:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.leaked.append(asyncio.ensure_future(asyncio.Event().wait()))
            raise
        return await super().extend(claims, lease_expires_at=lease_expires_at)


class LocalTime(Correct):
    """Instants are kept in local time, without a zone."""

    def write(self, model: Model) -> None:
        super().write(_changed(model, lambda at: at.astimezone().replace(tzinfo=None, fold=0)))

    def read(self) -> Model:
        return _changed(super().read(), lambda at: at.astimezone(UTC))


def _changed(model: Model, change: Callable[[datetime], datetime]) -> Model:
    changed = Model()
    for task in model.stored.values():
        changed.stored[task.id] = replace(task, available_at=change(task.available_at))
    return changed


class Harness(BaseHarness):
    """Backends in the folder, and of the class, that the environment names."""

    def backend(self, store: str) -> Backend:
        made: Backend = globals()[os.environ.get(NAME, "Correct")](store)
        return made
