"""A correct backend behind a server that can be restarted; its memory stands for what a server has on disk.

An answer takes a moment to come back. If the server is restarted meanwhile, or has been since the last call, there is
StoreUnavailable instead; the next call on that handle connects again.
"""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from taskqueue import Failure, StoreUnavailable, Task
from taskqueue_conformance.defects.plain_memory import LOCK, PlainMemory, Store
from taskqueue_conformance.harness import BaseHarness

T = TypeVar("T")

_AWAY_S = 0.005


class ServedStore(Store):
    """A store that hears of restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0
        self.away = False

    def restarted(self) -> None:
        """Start again, with what has been written; who waited hears nothing more of this."""

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Replace all tasks, in their order."""
        self.stored = {task.id: task for task in tasks}


class Served(PlainMemory):
    """A handle on a :class:`ServedStore`."""

    store_class: ClassVar[type[Store]] = ServedStore
    stores: ClassVar["WeakSet[ServedStore]"] = WeakSet()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.served: ServedStore = self.kept_store  # type: ignore[assignment]  # of store_class
        self.stores.add(self.served)
        self.connection = self.served.connections

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Give the store for one step, if the connection to the server still stands."""
        with super().use() as store:
            if self.served.away:
                raise StoreUnavailable("the server", "it is restarting")
            if self.connection != self.served.connections:
                self.reconnect()  # for the next call
                raise StoreUnavailable("the server", "the connection was lost")
            yield store

    def reconnect(self) -> None:
        """Open another connection."""
        self.connection = self.served.connections

    async def connect(self) -> None:
        """See the contract."""
        await super().connect()
        self.reconnect()

    async def until_it_is_back(self) -> None:
        """Wait for the server, and connect to it."""
        while self.served.away:  # noqa: ASYNC110 - a handle hears nothing from a server that is away
            await asyncio.sleep(_AWAY_S)
        self.reconnect()

    async def travel(self, call: Awaitable[T]) -> T:
        """Make a call at the server; the answer may get lost."""
        answer = await call
        connections = self.served.connections
        await asyncio.sleep(0.0005)
        if connections != self.served.connections or self.served.away:
            raise StoreUnavailable("the server", "the connection was lost; the call may have happened or not")
        return answer

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """See the contract."""
        await self.travel(super().enqueue(tasks))

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """See the contract."""
        return await self.travel(super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at))

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """See the contract."""
        await self.travel(super().complete(task_id, attempt, value=value, now=now))

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """See the contract."""
        return await self.travel(super().fail(task_id, attempt, failure, if_expired=if_expired))


class ServedHarness(BaseHarness):
    """Stores of this process, behind a server that can be restarted.

    Args:
        factory: Makes a handle of the store's name.
    """

    capabilities: frozenset[str] = frozenset({"restart"})

    def __init__(self, factory: type[Served] = Served) -> None:
        self._factory = factory

    def backend(self, store: str) -> Served:
        """Return a handle."""
        return self._factory(store)

    async def restart(self) -> None:
        """Be away for a moment; then every connection is gone."""
        stores = [*Served.stores]
        with LOCK:
            for store in stores:
                store.away = True
        await asyncio.sleep(_AWAY_S)
        with LOCK:
            for store in stores:
                store.restarted()
                store.connections += 1
                store.away = False
