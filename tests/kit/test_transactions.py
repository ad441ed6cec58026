"""The checks of enqueueing in a transaction pass a correct backend, and fail on each one that is wrong in its way."""

import asyncio
import os
import random

import pytest

from taskqueue_conformance.check import CHECKS
from taskqueue_conformance.defects.catalogue import Defect, TransactionalDefectHarness, catalogue
from taskqueue_conformance.defects.plain_transactional import Transacting
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.violation import Violation

CHOSEN = [check for check in CHECKS.values() if "transactional" in check.needs]
DEFECTS = [defect for defect in catalogue().values() if defect.breaks == "T1"]


def violations(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[Violation]:
    monkeypatch.setattr(os, "environ", dict(os.environ) | harness.start())
    found = []
    try:
        for check in CHOSEN:
            try:
                asyncio.run(_run(Lab(harness, rng=random.Random(0)), check.id))  # noqa: S311 - repeatable on purpose
            except Violation as violation:
                violation.requirement = violation.requirement or check.requirement
                found.append(violation)
    finally:
        harness.stop()
    return found


async def _run(lab: Lab, check_id: str) -> None:
    try:
        await CHECKS[check_id].run(lab)
        lab.confirm_witnessed()
    finally:
        await lab.close()


def test_a_correct_backend_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(CHOSEN) >= 8
    assert violations(TransactionalDefectHarness(Transacting), monkeypatch) == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.id)
def test_one_that_is_wrong_is_caught(defect: Defect, monkeypatch: pytest.MonkeyPatch) -> None:
    found = violations(defect.harness(), monkeypatch)
    assert found
    assert {violation.requirement for violation in found} <= defect.reasons, [str(each) for each in found]
