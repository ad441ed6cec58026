"""The layer model: what it finds, how it says so, and that what it prints runs again."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance import scenarios
from taskqueue_conformance.harness import FactoryHarness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.machine import explore
from taskqueue_conformance.violation import Violation

EXAMPLES = 30


class ClampsRetries(MemoryBackend):
    """Moves a retry in the past to the instant of the failure."""

    async def fail(self, task_id: str, attempt: int, failure: Any, *, if_expired: bool = False) -> Any:
        if failure.retry_at is not None and failure.retry_at < failure.failed_at:
            failure = replace(failure, retry_at=failure.failed_at)
        return await super().fail(task_id, attempt, failure, if_expired=if_expired)


class RoundsUp(MemoryBackend):
    """Rounds the present up."""

    async def claim(self, *, now: Any, limit: int, lease_expires_at: Any) -> Any:
        now = min(now, now.replace(year=9998)) + timedelta(microseconds=1)
        return await super().claim(now=now, limit=limit, lease_expires_at=lease_expires_at)


class ForgetsOnReopen(MemoryBackend):
    """Cancels what is due last when a handle comes back."""

    async def connect(self) -> None:
        await super().connect()
        tasks, _ = await self.tasks(limit=100)
        if getattr(self, "was_open", False) and tasks:
            await self.cancel(tasks[-1].id, now=tasks[-1].enqueued_at)
        self.was_open = True


class RaisesOnEmptyValue(MemoryBackend):
    """Has no way to store an empty value."""

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: Any) -> None:
        if not value:
            raise OSError("empty value")
        await super().complete(task_id, attempt, value=value, now=now)


def find(run: Callable[..., Any], backend: type[MemoryBackend], seed: int = 0) -> Violation | dict[str, int]:
    async def look() -> dict[str, int]:
        lab = Lab(FactoryHarness(backend))
        try:
            return await explore(lab, examples=EXAMPLES, seed_number=seed)
        finally:
            await lab.close()

    try:
        found: dict[str, int] = run(look())
    except Violation as violation:
        return violation
    return found


WRONG = [(ClampsRetries, "R2"), (RoundsUp, "E3"), (ForgetsOnReopen, "D1"), (RaisesOnEmptyValue, None)]


@pytest.mark.parametrize(("backend", "breaks"), WRONG)
def test_a_wrong_backend_is_found_and_the_counterexample_runs_again(
    run: Callable[..., Any], backend: type[MemoryBackend], breaks: str | None, tmp_path: Path
) -> None:
    violation = find(run, backend)
    assert isinstance(violation, Violation)
    assert violation.requirement == breaks
    assert violation.counterexample is not None
    saved = tmp_path / "found.feature"
    saved.write_text(violation.counterexample)
    (scenario,) = scenarios.load([saved])
    assert len(scenario.steps) < 9, "the counterexample was not made small"

    async def replay(kind: type[MemoryBackend]) -> None:
        lab = Lab(FactoryHarness(kind))
        try:
            await scenario.run(lab)
        finally:
            await lab.close()

    with pytest.raises(Violation) as again:
        run(replay(backend))
    assert again.value.requirement == violation.requirement
    assert again.value.expected.endswith(violation.expected)
    run(replay(MemoryBackend))


def test_a_correct_backend_passes(run: Callable[..., Any]) -> None:
    found = find(run, MemoryBackend)
    assert isinstance(found, dict)
    assert found["examples"] >= EXAMPLES
    assert found["steps"] > 10 * EXAMPLES


def test_the_same_seed_finds_the_same_counterexample(run: Callable[..., Any]) -> None:
    texts = set()
    for _ in range(2):
        violation = find(run, ClampsRetries, seed=0)
        assert isinstance(violation, Violation)
        texts.add(violation.counterexample)
    assert len(texts) == 1
