"""What the tests of single checks share: stores in memory that pause in the wrong places, and a way to run a check."""

import asyncio
import importlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from taskqueue import Backend, Task
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.check import CHECKS
from taskqueue_conformance.effort import DEFAULT, Effort
from taskqueue_conformance.harness import FactoryHarness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.violation import Violation

EFFORT = replace(DEFAULT, schedules=25, cancel_points=6, disturbances=40)
LITTLE = replace(EFFORT, schedules=5, disturbances=5)
"""Enough for a backend that is correct."""


class Open(MemoryBackend):
    """A correct store whose inside a wrong one can reach, between two pauses."""

    @property
    def store(self) -> Any:
        return self._connected()

    def look(self, task_id: str) -> Task | None:
        number = self.store._seq_of.get(task_id)
        return None if number is None else self.store._tasks[number]

    def put(self, task: Task) -> None:
        if task.id in self.store._seq_of:
            self.store._put(self.store._seq_of[task.id], task)

    def all(self) -> list[Task]:
        return [*self.store._tasks.values()]


async def pause() -> None:
    await asyncio.sleep(0)


def violation(
    check_id: str, factory: Callable[[str], Backend], *, seed: int = 0, effort: Effort = EFFORT
) -> Violation | None:
    """Run one check; return the violation that it found, or None if it passed."""
    for layer in ("schedules", "interruptions"):
        importlib.import_module(f"taskqueue_conformance.checks.{layer}")
    lab = Lab(FactoryHarness(factory), rng=random.Random(seed), effort=effort)  # noqa: S311 - repeatable on purpose

    async def run() -> None:
        try:
            await CHECKS[check_id].run(lab)
            lab.confirm_witnessed()
        finally:
            await lab.close()

    try:
        asyncio.run(run())
    except Violation as found:
        found.requirement = found.requirement or CHECKS[check_id].requirement
        return found
    return None


Method = Callable[..., Coroutine[Any, Any, Any]]


def planted(method: str, defect: Method) -> Callable[[str], Backend]:
    """Return a factory of stores of which one method is wrong."""
    return type(f"With{defect.__name__}", (Open,), {method: defect})
