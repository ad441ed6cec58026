"""The runner of scenarios: what it refuses to load, how it runs, what it reports."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import StaleClaim, TaskNotFound
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.check import Check
from taskqueue_conformance.feature_files import FeatureError
from taskqueue_conformance.harness import FactoryHarness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.scenarios import START, features_folder, load
from taskqueue_conformance.steps.registry import Vocabulary
from taskqueue_conformance.steps.world import World
from taskqueue_conformance.violation import Violation

Loader = Callable[..., list[Check]]

vocabulary = Vocabulary()
seen: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@vocabulary.given("a step that says {word}")
def say(_world: World, word: str) -> None:
    """Remembers the word."""
    seen.append(word)


@vocabulary.when("it awaits and then fails")
async def fail_late(_world: World) -> None:
    """Fails after a suspension."""
    await asyncio.sleep(0)
    raise Violation("the world", expected="peace", actual="war", breaks="E1", look="here")


@vocabulary.when("it fails without ever suspending")
async def fail_at_once(_world: World) -> None:
    """Fails in a coroutine that never suspends."""
    raise LookupError("a bug")


@vocabulary.when("a call is refused")
async def refuse(_world: World) -> None:
    """Raises an error of the queue."""
    raise TaskNotFound("nobody")


@vocabulary.then("it was a {word}", refusal=True)
def was(world: World, name: str) -> None:
    """Looks at the refusal."""
    assert type(world.refusal).__name__ == name
    world.refusal = None


@vocabulary.then("the clock is remembered")
async def clock(world: World) -> None:
    """Remembers the time of the queue, of Python and of the loop."""
    seen.append((world.queue.now(), datetime.now(UTC), asyncio.get_running_loop().time()))


@vocabulary.when("it sleeps")
async def sleep(_world: World) -> None:
    """Sleeps in real time."""
    await asyncio.sleep(0.01)


@vocabulary.when("it never ends")
async def never(_world: World) -> None:
    """Hangs."""
    await asyncio.Event().wait()


@pytest.fixture
def write(tmp_path: Path) -> Loader:
    def write(*lines: str, tags: str = "@E1") -> list[Check]:
        path = tmp_path / "some.feature"
        path.write_text("\n".join([tags, "Feature: Some feature", "  Prose.", "", *lines]), encoding="utf-8")
        return load([path], vocabulary)

    return write


def run(check: Check) -> Lab:
    lab = Lab(FactoryHarness(MemoryBackend))

    async def body() -> None:
        try:
            await check.run(lab)
        finally:
            await lab.close()

    asyncio.run(body())
    return lab


def failure(check: Check) -> Violation:
    with pytest.raises(Violation) as caught:
        run(check)
    return caught.value


def test_a_scenario_is_a_check(write: Loader) -> None:
    (check,) = write(
        "@ETA-4 @needs-durable", "Scenario: It's a Title", "Given a step that says a", "* a step that says b"
    )
    assert check.id == "scenarios/E1/it-s-a-title"
    assert (check.layer, check.requirement, check.look) == ("scenarios", "E1", None)
    assert check.title == "Some feature / It's a Title"
    assert check.clauses == ("ETA-4",)
    assert check.needs == {"durable"}
    assert check.steps == ("Given a step that says a", "* a step that says b")
    run(check)
    assert seen == ["a", "b"]


def test_without_a_tag_it_is_about_the_lifecycle(write: Loader) -> None:
    (check,) = write("Scenario: One", "Given a step that says a", tags="@unknown")
    assert check.requirement == "LIFECYCLE"


def test_examples_and_background_are_expanded_and_named_by_as_few_columns_as_tell_them_apart(write: Loader) -> None:
    checks = write(
        "Background:", "Given a step that says before",
        "Scenario Outline: One", "Given a step that says <x>", "And a step that says <y>",
        "Examples:", "| x | y |", '| "1" | 2 |', "| 3 | 2 |",
        "Scenario Outline: Two", "Given a step that says <x>", "And a step that says <y>",
        "Examples:", "| x | y |", "| 1 | 2 |", "Examples:", "| x | y |", "| 1 | 3 |",
    )  # fmt: skip
    assert [check.id.removeprefix("scenarios/E1/") for check in checks] == [
        "one[x=1]", "one[x=3]", "two[x=1,y=2]", "two[x=1,y=3]",
    ]  # fmt: skip
    run(checks[1])
    assert seen == ["before", "3", "2"]


def test_an_async_step_that_fails_fails_the_scenario_and_is_named(write: Loader) -> None:
    (check,) = write(
        "@ETA-4", "Scenario: One", "Given a step that says a", "# ETA-4", "When it awaits and then fails",
        "Then a step that says b",
    )  # fmt: skip
    violation = failure(check)
    assert violation.what == "some.feature:9, step 'When it awaits and then fails', which proves ETA-4: the world"
    assert (violation.expected, violation.actual) == ("peace", "war")
    assert (violation.requirement, violation.look) == ("E1", "here")
    assert seen == ["a"]


def test_an_async_step_that_never_suspends_fails_too(write: Loader) -> None:
    (check,) = write("Scenario: One", "When it fails without ever suspending")
    violation = failure(check)
    assert violation.actual == "LookupError: a bug"
    assert isinstance(violation.__cause__, LookupError)


def test_it_reports_step_by_step_in_real_seconds(write: Loader) -> None:
    (check,) = write("Scenario: One", "When it sleeps", "And it awaits and then fails", "Then a step that says b")
    lab = Lab(FactoryHarness(MemoryBackend))
    with pytest.raises(Violation):
        asyncio.run(check.run(lab))
    steps = lab.notes["steps"]
    assert [(step["keyword"], step["text"], step["outcome"]) for step in steps] == [
        ("When", "it sleeps", "passed"),
        ("And", "it awaits and then fails", "failed"),
        ("Then", "a step that says b", "not reached"),
    ]
    assert 0.009 < steps[0]["duration_s"] < 5
    asyncio.run(lab.close())


def test_time_stands_still_for_the_queue_and_python_but_not_for_the_loop(write: Loader) -> None:
    (check,) = write("Scenario: One", "Given the clock is remembered", "When it sleeps", "Then the clock is remembered")
    run(check)
    (queue, python, loop), (queue_later, python_later, loop_later) = seen
    assert queue == python == queue_later == python_later == START
    assert loop_later - loop > 0.009
    assert datetime.now(UTC) != START


def test_the_clock_runs_again_after_a_failure(write: Loader) -> None:
    (check,) = write("Scenario: One", "When it awaits and then fails")
    failure(check)
    assert datetime.now(UTC) != datetime.now(UTC).replace(year=START.year)


def test_a_refusal_is_for_the_next_step_to_judge(write: Loader) -> None:
    (check,) = write("Scenario: One", "When a call is refused", "Then it was a TaskNotFound")
    run(check)


def test_a_refusal_that_no_step_expects_fails_the_step_that_raised(write: Loader) -> None:
    (check,) = write("Scenario: One", "When a call is refused", "Then a step that says b")
    violation = failure(check)
    assert "step 'When a call is refused'" in violation.what
    assert violation.actual.startswith("TaskNotFound: ")


def test_the_refusal_must_be_the_one_that_the_step_names() -> None:
    path = features_folder() / "cancellation.feature"
    check = next(check for check in load([path]) if "nobody-gets" in check.id)

    class Stale(MemoryBackend):
        async def get(self, task_id: str) -> Any:
            task = await super().get(task_id)
            if task is not None and task.status == "cancelled":
                raise StaleClaim(task_id, 1, status=task.status, attempts=1)
            return task

    async def body(lab: Lab) -> None:
        await check.run(lab)

    with pytest.raises(Violation, match="expected TaskCancelled, got StaleClaim"):
        asyncio.run(body(Lab(FactoryHarness(Stale))))


def test_a_step_that_never_ends_is_ended(write: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue_conformance.scenarios.STEP_LIMIT_S", 0.05)
    (check,) = write("Scenario: One", "When it never ends")
    assert failure(check).actual == "none within 0.05 s"


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["Scenario: One", "Given a step that says a", "Given nothing of the kind"], 7, "no phrase matches"),
        (["Scenario: One", "Given a step that says"], 6, "The nearest are: a step that says {word}"),
        (["Scenario: One"], 5, "this scenario has no steps"),
        (["Background:", "Scenario: One", "* a step that says a"], 5, "this background has no steps"),
        (["Scenario: One", "Gven a step that says a", "And a step that says b"], 6, "is no step"),
        (["Scenario: One", "* a step that says a", "Gven a step that says a"], 7, "expected"),
        (["Scenario Outline: One", "* a step that says <x>"], 5, "no examples"),
        (["Scenario Outline: One", "* a step that says <x>", "Examples:", "| x |"], 5, "no examples"),
        (["Scenario Outline: One", "* a step that says <y>", "Examples:", "| x |", "| 1 |"], 6, "no column"),
        (["Scenario: One", "* a step that says a", "| a | table |"], 6, "no step takes a table"),
        (["Scenario: One", "* a step that says a", "Scenario: one!", "* a step that says a"], 7, "has the id"),
    ],
)  # fmt: skip
def test_what_would_run_as_less_than_is_written_is_an_error(
    write: Loader, lines: list[str], line: int, message: str
) -> None:
    with pytest.raises(FeatureError) as caught:
        write(*lines)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{caught.value.path}:{line}: ")
    assert message in str(caught.value)


def test_a_file_without_a_feature_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.feature").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(FeatureError, match="no Feature"):
        load([tmp_path])


def test_prose_in_a_scenario_is_set_off_by_an_empty_line(write: Loader) -> None:
    (check,) = write("Scenario: One", "Gentle prose.", "", "Given a step that says a")
    run(check)
    assert seen == ["a"]


def test_a_value_that_makes_no_sense_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.feature"
    path.write_text("Feature: F\n  Scenario: S\n    Given it is 25:00\n", encoding="utf-8")
    with pytest.raises(FeatureError, match=r"bad\.feature:3: a value in 'it is 25:00' makes no sense"):
        load([path])


def test_an_ambiguous_step_is_an_error_that_names_the_phrases(tmp_path: Path) -> None:
    both = Vocabulary()
    both.given("a {word} step")(say)
    both.given("a nice step")(lambda_step)
    path = tmp_path / "two.feature"
    path.write_text("Feature: F\n  Scenario: S\n    Given a nice step\n", encoding="utf-8")
    with pytest.raises(FeatureError, match=r"ambiguous: 'a \{word\} step' and 'a nice step' match it"):
        load([path], both)


def lambda_step(_world: World) -> None:
    """Does nothing."""


def test_a_step_needs_a_docstring_and_takes_what_its_phrase_has() -> None:
    def bare(_world: World) -> None: ...

    with pytest.raises(ValueError, match="docstring"):
        Vocabulary().given("a bare step")(bare)
    with pytest.raises(ValueError, match="each value"):
        Vocabulary().given("a step with {int} value too many")(lambda_step)
    twice = Vocabulary()
    twice.given("a step")(lambda_step)
    with pytest.raises(ValueError, match="two steps"):
        twice.when("a step")(lambda_step)


def test_one_file_can_be_run_by_itself() -> None:
    checks = load([features_folder() / "eta_scheduling_semantics.feature"])
    assert {check.requirement for check in checks} == {"ETA"}
    for check in checks:
        lab = run(check)
        assert {step["outcome"] for step in lab.notes["steps"]} == {"passed"}
        lab.confirm_witnessed()


class Empty:
    """Answers every call with the empty value of its type."""

    def __init__(self, _store: str) -> None: ...

    def __getattr__(self, name: str) -> Any:
        answers = {
            "claim": [],
            "extend": [],
            "expired": [],
            "cancel": False,
            "tasks": ([], None),
            "counts": {},
            "purge": 0,
        }

        async def method(*_args: Any, **_kwargs: Any) -> Any:
            return answers.get(name)

        return method


class Unwritten(Empty):
    """Implements nothing."""

    def __getattr__(self, name: str) -> Any:
        async def method(*_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError(name)

        return method


@pytest.mark.parametrize("backend", [Empty, Unwritten])
def test_no_scenario_passes_where_nothing_happens(backend: type[Any]) -> None:
    passed = []
    for check in load([features_folder()]):
        try:
            asyncio.run(check.run(Lab(FactoryHarness(backend))))
        except Violation:
            continue
        passed.append(check.id)
    assert passed == []


class Early(MemoryBackend):
    """Gives tasks out a second before they are due."""

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Any:
        return await super().claim(now=now + timedelta(seconds=1), limit=limit, lease_expires_at=lease_expires_at)


class Breaking(MemoryBackend):
    """Raises in every claim, which a worker would wait out."""

    async def claim(self, **_kwargs: Any) -> Any:
        raise OSError("the disk is gone")


def run_on(backend: type[MemoryBackend], check_id: str) -> Violation:
    (check,) = (check for check in load([features_folder()]) if check.id == check_id)
    with pytest.raises(Violation) as caught:
        asyncio.run(check.run(Lab(FactoryHarness(backend))))
    return caught.value


def test_a_defect_is_named_with_the_clause_that_it_breaks() -> None:
    violation = run_on(Early, "scenarios/ETA/delayed-task-scheduling")
    assert violation.what.endswith("which proves ETA-5: executions of add(2, 3)")
    assert (violation.expected, violation.actual) == ("0", "1")


def test_a_worker_does_not_wait_out_a_backend_that_raises() -> None:
    violation = run_on(Breaking, "scenarios/ETA/immediate-task-scheduling")
    assert "which proves ETA-1, ETA-3" in violation.what
    assert violation.actual == "OSError: the disk is gone"
