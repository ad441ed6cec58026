"""What a type checker says of a backend. It must refuse the lines that end in ``# refused``, and no others."""

from collections.abc import Mapping
from datetime import datetime

from taskqueue import Backend, Task, TaskQueue
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue_conformance.harness import BaseHarness, Harness


class Late(MemoryBackend):
    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> list[Task]:
        return list(await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at))


class Forgetful:
    async def connect(self) -> None: ...


class MyHarness(BaseHarness):
    capabilities = frozenset({"durable"})

    def start(self) -> Mapping[str, str]:
        return {}

    def backend(self, store: str) -> Late:
        return Late(store)


def fits() -> None:
    backend: Backend = MemoryBackend()
    backend = SQLiteBackend("tasks.db")
    backend = Late()
    TaskQueue(backend)
    backend = Forgetful()  # refused
    TaskQueue(Forgetful())  # refused
    harness: Harness = MyHarness()
    harness.backend("store")
    harness.backend(5)  # refused
