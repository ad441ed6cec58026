"""Each check of the layer hygiene fails on a backend that is wrong in its way, and says which requirement is broken."""

from collections.abc import Callable

import pytest

from taskqueue_conformance.violation import Violation

CheckOn = Callable[..., Violation | None]


@pytest.mark.parametrize(
    "check_id",
    [
        "hygiene/E4/a-process-in-a-zone[America/New_York]",
        "hygiene/E3/zones-agree",
        "hygiene/HANDLES/handles-leave-nothing[the same handle connects and closes]",
        "hygiene/X1/calls-leave-nothing[refused calls]",
    ],
)
def test_a_correct_backend_passes(check_on: CheckOn, check_id: str) -> None:
    assert check_on("Correct", check_id) is None


@pytest.mark.parametrize(
    ("wrong", "check_id", "requirement", "words"),
    [
        ("LocalTime", "hygiene/E4/a-process-in-a-zone[America/New_York]", "E4", "TZ=America/New_York"),
        ("LocalTime", "hygiene/E3/zones-agree", "E3", "where TZ="),
        ("LeaksPerFailure", "hygiene/X1/calls-leave-nothing[refused calls]", None, "descriptors from"),
        ("LeaksPerCancel", "hygiene/X1/calls-leave-nothing[cancelled calls]", None, "tasks from"),
        (
            "LeaksPerConnect",
            "hygiene/HANDLES/handles-leave-nothing[new handles connect and close]",
            None,
            "threads from",
        ),
    ],
)
def test_what_is_left_behind(check_on: CheckOn, wrong: str, check_id: str, requirement: str | None, words: str) -> None:
    found = check_on(wrong, check_id)
    assert found is not None
    assert (found.requirement, words in str(found)) == (requirement, True), str(found)
