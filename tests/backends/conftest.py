import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskqueue.backend import Backend
from taskqueue.backends.memory import MemoryBackend
from taskqueue.backends.postgres import PostgresBackend
from taskqueue.backends.sqlite import SQLiteBackend

Scenario = Callable[[Backend], Coroutine[Any, Any, None]]


@pytest.fixture(params=["memory", "sqlite", "sqlite without syncs", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "postgres":
        return PostgresBackend.from_url(request.getfixturevalue("postgres_store"))
    if request.param == "memory":
        return MemoryBackend()
    return SQLiteBackend(tmp_path / "tasks.db", synchronous="FULL" if request.param == "sqlite" else "NORMAL")


@pytest.fixture
def run() -> Callable[[Backend, Scenario], None]:
    """Run a coroutine function with a connected backend, and close it."""

    def run(backend: Backend, scenario: Scenario) -> None:
        async def main() -> None:
            await backend.connect()
            try:
                await scenario(backend)
            finally:
                await backend.close()

        asyncio.run(main())

    return run
