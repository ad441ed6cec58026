"""How outcomes become verdicts."""

import pytest

from taskqueue_conformance.check import Check
from taskqueue_conformance.verdict import Outcome, Tally, Verdict


async def nothing(_lab: object) -> None:
    """Stand in for a check that these tests never run."""


def tally(**outcomes: Outcome) -> Tally:
    checks = {
        name: Check(id=name, layer="edges", requirement=name[:2], title=name, needs=frozenset(), look=None, run=nothing)
        for name in outcomes
    }
    made = Tally(checks)
    for name, outcome in outcomes.items():
        made.results[name].outcome = outcome
    return made


def test_every_required_check_must_have_passed() -> None:
    assert tally(E1a=Outcome.PASSED, E2a=Outcome.PASSED).verdict is Verdict.CONFORMANT


def test_no_check_at_all_is_not_conformance() -> None:
    assert tally().verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize("outcome", [Outcome.NOT_RUN, Outcome.SKIPPED])
def test_a_check_that_did_not_run_leaves_the_verdict_open(outcome: Outcome) -> None:
    assert tally(E1a=Outcome.PASSED, E2a=outcome).verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DEVIATION, Outcome.OUTDATED])
@pytest.mark.parametrize("others", [Outcome.PASSED, Outcome.NOT_RUN])
def test_one_failure_decides_whatever_the_others_did(outcome: Outcome, others: Outcome) -> None:
    assert tally(E1a=others, E2a=outcome).verdict is Verdict.NOT_CONFORMANT


@pytest.mark.parametrize("outcome", [Outcome.NOT_CLAIMED, Outcome.NOT_VERIFIED])
def test_what_is_not_claimed_or_not_verified_is_no_failure_and_no_pass(outcome: Outcome) -> None:
    made = tally(E1a=Outcome.PASSED, D1a=outcome)
    assert made.verdict is Verdict.CONFORMANT
    assert {group.id: group.outcome for group in made.requirements()} == {"E1": Outcome.PASSED, "D1": outcome}


def test_requirements_come_in_the_order_of_the_specification() -> None:
    made = tally(W1a=Outcome.PASSED, E1a=Outcome.PASSED, L1a=Outcome.PASSED)
    assert [group.id for group in made.requirements()] == ["E1", "L1", "W1"]


def test_a_failure_speaks_against_the_requirement_that_it_names_too() -> None:
    made = tally(E1a=Outcome.FAILED, C3a=Outcome.PASSED)
    made.results["E1a"].breaks = "C3"
    failed = {group.id: group.outcome for group in made.requirements()}
    assert failed == {"E1": Outcome.FAILED, "C3": Outcome.FAILED}


def test_a_requirement_with_one_check_not_run_has_not_passed() -> None:
    (group,) = tally(E1a=Outcome.PASSED, E1b=Outcome.NOT_RUN).requirements()
    assert group.outcome is Outcome.NOT_RUN
    assert group.passed == 1
