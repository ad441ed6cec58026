"""The layer restarts passes a correct server, and fails on each one that is wrong in its way, for its own reason."""

import asyncio
import random
from dataclasses import replace

import pytest

from taskqueue_conformance.check import CHECKS
from taskqueue_conformance.checks import restarts
from taskqueue_conformance.defects.catalogue import Defect, catalogue
from taskqueue_conformance.defects.plain_served import ServedHarness
from taskqueue_conformance.effort import DEFAULT
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.violation import Violation

LAYER = [check for check in CHECKS.values() if check.layer == "restarts"]
DEFECTS = [defect for defect in catalogue().values() if defect.layer == "restarts"]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(restarts, "_LONG_S", 0.5)
    monkeypatch.setattr(restarts, "_EARLY_S", 0.4)
    monkeypatch.setattr(restarts, "_SETTLING_S", 0.02)


def violations(harness: Harness, seed: int) -> list[Violation]:
    """Run every check of the layer, and return what was found."""
    found = []
    for check in LAYER:
        lab = Lab(harness, rng=random.Random(seed), effort=replace(DEFAULT, restarts=5, calls_between_restarts=40))  # noqa: S311 - repeatable on purpose
        try:
            asyncio.run(_run(lab, check.id))
        except Violation as violation:
            violation.requirement = violation.requirement or check.requirement
            found.append(violation)
    return found


async def _run(lab: Lab, check_id: str) -> None:
    try:
        await CHECKS[check_id].run(lab)
        lab.confirm_witnessed()
    finally:
        await lab.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_comes_back_as_it_was_passes(seed: int) -> None:
    assert violations(ServedHarness(), seed) == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.id)
def test_a_server_that_does_not_is_caught(defect: Defect) -> None:
    found = violations(defect.harness(), seed=0)
    assert found
    assert {violation.requirement for violation in found} <= defect.reasons, [str(each) for each in found]


def test_a_restart_needs_a_harness_that_can() -> None:
    assert all("restart" in check.needs for check in LAYER)
    assert len(LAYER) >= 3
