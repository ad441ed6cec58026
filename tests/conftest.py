"""Fixtures that the tests of several modules share."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import TaskQueue
from taskqueue.backends.memory import MemoryBackend

sys.path.insert(0, str(Path(__file__).parent))  # for the commands that are tested: import storm


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> datetime:
        self.now += timedelta(**by)
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_queue(clock: HandClock) -> Callable[..., TaskQueue]:
    """Make a queue in memory on the hand-made clock; a new, empty store each time."""

    def make(**options: Any) -> TaskQueue:
        return TaskQueue(**{"backend": MemoryBackend(), "clock": clock} | options)

    return make


@pytest.fixture
def queue(make_queue: Callable[..., TaskQueue]) -> TaskQueue:
    return make_queue()


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end; fail if it leaves a task behind."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def checked() -> Any:
            result = await asyncio.wait_for(coroutine, 20)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left behind: {left}"
            return result

        return asyncio.run(checked())

    return run
