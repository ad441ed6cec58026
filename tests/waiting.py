"""Waiting for what happens beside a test: in other tasks, threads and processes."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Wait until ``condition()`` is true, or what it is when it is awaited; for so many seconds, then TimeoutError."""

    async def met() -> Any:
        found = condition()
        return await found if inspect.isawaitable(found) else found

    async with asyncio.timeout(seconds):
        while not await met():  # noqa: ASYNC110 - what is waited for happens in threads too
            await asyncio.sleep(0.001)
