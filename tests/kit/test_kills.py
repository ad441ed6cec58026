"""Each check of the layer kills fails on a backend that is wrong in its way, and says which requirement is broken."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from taskqueue_conformance.check import NotVerified
from taskqueue_conformance.checks import kills
from taskqueue_conformance.violation import Violation

CheckOn = Callable[..., Violation | None]


@pytest.mark.parametrize(
    "check_id",
    [
        "kills/D1/acknowledged-is-kept[claim]",
        "kills/D2/before-or-after[enqueue]",
        "kills/D2/before-or-after[purge]",
        "kills/R1/budgets-hold-across-crashes",
        "kills/D2/opening-and-closing[connect to a new store]",
        "kills/D2/opening-and-closing[close]",
    ],
)
def test_a_correct_backend_passes(check_on: CheckOn, check_id: str) -> None:
    assert check_on("Correct", check_id) is None


@pytest.mark.parametrize(
    ("wrong", "check_id", "requirement", "words"),
    [
        ("Deferred", "kills/D1/acknowledged-is-kept[enqueue]", "D1", "after the acknowledgement"),
        ("Deferred", "kills/D1/acknowledged-is-kept[complete]", "D1", "after the acknowledgement"),
        ("CountedByFailure", "kills/D1/acknowledged-is-kept[claim]", "R1", "attempts=1"),
        ("CountedByFailure", "kills/R1/budgets-hold-across-crashes", "D3", "expired() after a SIGKILL"),
        ("PopBeforeRun", "kills/D1/acknowledged-is-kept[claim]", "D3", "nothing under this id"),
        ("CountedLater", "kills/D1/acknowledged-is-kept[claim]", "R1", "attempts=1"),
        ("CountedLater", "kills/D2/before-or-after[claim]", "R1", "attempts=1"),
        ("TwoSteps", "kills/D2/before-or-after[complete]", "D2", "status=SUCCESS"),
        ("OneByOne", "kills/D2/before-or-after[enqueue]", "D2", "like the rest of the call"),
        ("ForgetsLeases", "kills/R1/budgets-hold-across-crashes", "D3", "expired() after a SIGKILL"),
        ("HalfMade", "kills/D2/opening-and-closing[connect to a new store]", "D2", "a SIGKILL in connect()"),
        ("LosesOnClose", "kills/D2/opening-and-closing[close]", "D1", "a SIGKILL in close()"),
    ],
)
def test_what_a_kill_shows(check_on: CheckOn, wrong: str, check_id: str, requirement: str, words: str) -> None:
    found = check_on(wrong, check_id)
    assert found is not None
    assert (found.requirement, words in str(found)) == (requirement, True), str(found)


def test_a_method_that_showed_no_before_and_after_is_not_verified(
    check_on: CheckOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object) -> Sequence[Any]:
        return ()

    monkeypatch.setattr(kills, "_threats", nowhere)
    monkeypatch.setattr(kills, "_more_delays", nowhere)
    with pytest.raises(NotVerified, match="of 1 kills, 0 showed the state before the call, 0 the state after it"):
        check_on("Correct", "kills/D2/before-or-after[extend]")
