"""Where schedules are played: some handles on one store, a recorder, and an empty store for each run."""

import asyncio
import random
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from taskqueue import Task
from taskqueue_conformance.history import contradiction
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.recording import Recorder
from taskqueue_conformance.stepper import Stepper
from taskqueue_conformance.subject import Subject
from taskqueue_conformance.violation import Violation, expect_task, shown

_LAST: Final = datetime(9999, 1, 1, tzinfo=UTC)
_AFTER_LAST: Final = datetime(9999, 1, 2, tzinfo=UTC)


class Stage:
    """Handles on one store, and the history of one run at a time.

    Attributes:
        rng: What a run draws at random.
        handles: Connected handles on the store.
        recorder: Makes the calls of this run.
        suspensions: How often the calls of all runs have suspended.
        switches: How often the stepper has let another call go on than before, in all runs.
    """

    def __init__(self, lab: Lab, *, handles: int) -> None:
        self.rng: random.Random = lab.rng
        self.handles: list[Subject] = []
        self.recorder = Recorder()
        self.suspensions = 0
        self.switches = 0
        self._lab = lab
        self._count = handles

    async def clear(self) -> None:
        """Begin a new run on an empty store."""
        self.recorder = Recorder()
        if self.handles and await self._emptied():
            return
        for handle in self.handles:
            await handle.close()
        store = self._lab.new_store()
        self.handles = [await self._lab.handle(store=store) for _ in range(self._count)]

    async def put(self, *tasks: Task) -> None:
        """Enqueue tasks through the first handle and read each of them back through the last."""
        await self.call(0, "enqueue", tasks)
        for task, found in zip(
            tasks, await asyncio.gather(*(self.call(-1, "get", task.id) for task in tasks)), strict=True
        ):
            expect_task(f"get({task.id!r}) after enqueue", found, task)

    async def call(self, handle: int, method: str, *args: Any, **options: Any) -> Any:
        """Make one recorded call through one of the handles."""
        return await self.recorder.call(self.handles[handle], method, *args, **options)

    async def play(self, *actors: Coroutine[Any, Any, Any], stepper: Stepper | None = None) -> None:
        """Run the actors under a stepper, look at what they left, and check the whole history.

        Raises:
            Violation: The history contradicts the contract.
        """
        stepper = stepper or Stepper(self.rng)
        answers = await stepper.run(*actors)
        self.suspensions += stepper.suspensions
        self.switches += stepper.switches
        for answer in answers:
            if isinstance(answer, Violation):
                raise answer
        await self._look()
        found = contradiction(self.recorder.calls)
        if found is not None:
            raise Violation(
                "calls side by side, each with when it began and ended",
                expected=found.expected,
                actual=f"\n{found}",
                breaks=found.requirement,
            )

    async def _look(self) -> None:
        """Read everything through two handles, once nobody writes any more."""
        ids = dict.fromkeys(
            task.id
            for call in self.recorder.calls
            if call.method == "enqueue"
            for task in call.arguments["tasks"]
        )  # fmt: skip
        # Also the settling point of calls that were cancelled.
        await asyncio.gather(*(self.call(index, "tasks", limit=1000) for index in range(len(self.handles))))
        await asyncio.gather(
            self.call(0, "counts"),
            self.call(0, "next_due"),
            *(self.call(-1, "get", task_id) for task_id in ids),
        )

    async def _emptied(self) -> bool:
        """Try to empty the store; a backend that cannot gets another one."""
        first = self.handles[0]
        listed, _ = await first.tasks(limit=1000)
        for answer in await asyncio.gather(
            *(first.cancel(task.id, now=_LAST) for task in listed if not task.status.ended), return_exceptions=True
        ):
            if isinstance(answer, Exception):
                raise Violation(
                    "several cancels side by side on one handle",
                    expected="an answer to each",
                    actual=f"{type(answer).__name__}: {shown(str(answer))}",
                    breaks="X1",
                ) from answer
        if listed:
            await first.purge(finished_before=_AFTER_LAST, limit=1000)
        return not any((await first.counts()).values())
