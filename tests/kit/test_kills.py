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
        ("TwoSteps", "kills/D2/before-or-after[complete]", "D2", "status=success, value=None"),
        ("OneByOne", "kills/D2/before-or-after[enqueue]", "D2", "as the other tasks of the call are"),
        ("CountedByFailureToo", "kills/R1/budgets-hold-across-crashes", "R1", "attempts after a SIGKILL"),
        ("ForgetsLeases", "kills/R1/budgets-hold-across-crashes", "D3", "expired() after a SIGKILL"),
        ("HalfMade", "kills/D2/opening-and-closing[connect to a new store]", "D2", "a SIGKILL in connect()"),
        ("LosesOnClose", "kills/D2/opening-and-closing[close]", "D1", "a SIGKILL in close()"),
    ],
)
def test_what_a_kill_shows(check_on: CheckOn, wrong: str, check_id: str, requirement: str, words: str) -> None:
    found = check_on(wrong, check_id)
    assert found is not None
    assert (found.requirement, words in str(found)) == (requirement, True), str(found)


SYNCED = "kills/D1/acknowledged-is-synced"


@pytest.fixture
def syncs_on(check_on: CheckOn) -> CheckOn:
    def syncs_on(backend: str) -> Violation | None:
        try:
            return check_on(backend, SYNCED)
        except NotVerified as undecided:
            if "cannot be watched here" in str(undecided):
                pytest.skip(str(undecided))
            raise

    return syncs_on


def test_a_backend_that_syncs_before_it_acknowledges_passes(syncs_on: CheckOn) -> None:
    assert syncs_on("Synced") is None


@pytest.mark.parametrize(
    ("wrong", "words"), [("Correct", "none in 17 of them"), ("SyncedAtFirst", "none in 4 of them: fail, cancel, claim")]
)
def test_a_missing_sync_is_seen(syncs_on: CheckOn, wrong: str, words: str) -> None:
    found = syncs_on(wrong)
    assert found is not None
    assert words in str(found)


def test_a_sync_that_comes_later_is_not_verified(syncs_on: CheckOn) -> None:
    with pytest.raises(NotVerified, match="synced, but later than calls return"):
        syncs_on("SyncedOnClose")


def test_a_store_in_no_file_is_not_verified(syncs_on: CheckOn) -> None:
    with pytest.raises(NotVerified, match="the payload is in no file that the processes wrote"):
        syncs_on("Elsewhere")


def test_a_method_that_showed_no_before_and_after_is_not_verified(
    check_on: CheckOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object) -> Sequence[Any]:
        return ()

    monkeypatch.setattr(kills, "_threats", nowhere)
    monkeypatch.setattr(kills, "_more_delays", nowhere)
    with pytest.raises(NotVerified, match="of 1 kills, 0 showed the state before the call, 0 the state after it"):
        check_on("Correct", "kills/D2/before-or-after[extend]")
