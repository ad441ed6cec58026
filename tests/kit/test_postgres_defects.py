"""Defects planted in the PostgreSQL backend are caught, each for its own reason."""

import asyncio
import importlib
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskqueue import TaskQueueError
from taskqueue_conformance.check import CHECKS
from taskqueue_conformance.effort import DEFAULT
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.harnesses import PostgresURLHarness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.violation import Violation

sys.path.append(str(Path(__file__).parent))
defects: Any = importlib.import_module("postgres_defects")


@pytest.fixture(autouse=True)
def statements(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(defects.URL, postgres_url)
    yield
    defects.restore()


def finding(harness: Harness, target: str, check_id: str) -> Violation | None:
    lab = Lab(harness, rng=random.Random(0), target=target, effort=replace(DEFAULT, raced_tasks=200))  # noqa: S311 - repeatable on purpose

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
    except TaskQueueError as error:  # as in the suite, what nobody expects speaks against the check's requirement
        return Violation(check_id, expected="no exception", actual=str(error), breaks=CHECKS[check_id].requirement)
    return None


@pytest.mark.parametrize("name", defects.DEFECTS)
def test_a_wrong_backend_is_caught(
    name: str,
    fork_servers: None,  # noqa: ARG001 - it ends them
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    defect = defects.DEFECTS[name]
    if defect.check.startswith("restarts/"):  # of a server of our own
        monkeypatch.setenv(defects.URL, request.getfixturevalue("postgres_server").url)
    harness = defects.DefectHarness(name)
    # A race between processes may be won by chance; nothing else is repeated.
    for _ in range(5 if defect.check.startswith("processes/") else 1):
        found = finding(harness, f"postgres_defects:{name}", defect.check)
        if found is not None:
            break
    assert found is not None
    assert found.requirement in defect.reasons.split(), str(found)


def test_the_right_backend_is_not(postgres_url: str) -> None:
    chosen = sorted({defect.check for defect in defects.DEFECTS.values() if defect.check.startswith("edges")})
    chosen.remove(busy := "edges/X1/many-calls-at-once-get-on")
    for check_id in (busy, *chosen[::4]):
        assert finding(PostgresURLHarness(postgres_url), "postgres", check_id) is None, check_id
