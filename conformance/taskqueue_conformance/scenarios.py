"""The layer of scenarios: every scenario of the features is a check."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from freezegun import freeze_time

from taskqueue_conformance.check import Check
from taskqueue_conformance.feature_files import CLAUSE_ID, Feature, FeatureError, Scenario, Step, read
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import NOON, Lab
from taskqueue_conformance.requirements import REQUIREMENTS
from taskqueue_conformance.steps import VOCABULARY, counterexamples
from taskqueue_conformance.steps.counterexamples import TwinWorld
from taskqueue_conformance.steps.registry import BoundStep, StepError, Vocabulary
from taskqueue_conformance.steps.world import Clock, World
from taskqueue_conformance.violation import Violation, said

START: Final = NOON
"""The instant at which time stands still when a scenario begins."""
ELSEWHEN: Final = NOON + timedelta(days=500)
"""Where the clock stands for counterexamples: far from their instants, which tells a backend that reads it."""
STEP_LIMIT_S: Final = 10.0
"""How long one step may take, in seconds of the event loop's clock."""
DEFAULT_REQUIREMENT: Final = "LIFECYCLE"
"""What a scenario is about whose tags name no requirement."""

_NEEDS = "needs-"


def features_folder() -> Path:
    """Return where the features are: beside the kit once it is installed, at the top of the checkout otherwise."""
    kit = Path(__file__).resolve().parent
    places = (kit / "features", kit.parents[1] / "features")
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the features of the suite are missing: looked in {places[0]} and {places[1]}")


def load(paths: Iterable[Path], vocabulary: Vocabulary = VOCABULARY) -> list[Check]:
    """Return a check for every scenario in ``paths``: feature files, or folders of them in alphabetical order.

    A scenario with the tag ``@counterexample`` is written in phrases of its own, which the layer model prints.

    Raises:
        FeatureError: A file is no Gherkin, a step is undefined or ambiguous or has values that make no sense, or two
            scenarios would get one id. Names the file and the line.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.feature")) if path.is_dir() else [path])]
    checks: dict[str, Check] = {}
    for feature in map(read, files):
        for scenario in feature.scenarios:
            check = _check(feature, scenario, vocabulary)
            if check.id in checks:
                raise FeatureError(scenario.path, scenario.line, f"another scenario has the id {check.id} already")
            checks[check.id] = check
    return list(checks.values())


def _check(feature: Feature, scenario: Scenario, vocabulary: Vocabulary) -> Check:
    requirement = next((tag for tag in scenario.tags if tag in REQUIREMENTS), DEFAULT_REQUIREMENT)
    # Fit for a command line in double quotes.
    case = ",".join(f"{name}={value}" for name, value in scenario.case.items())
    case = case.replace('"', "").replace(", ", ",").replace(" ", "-")
    world: type[World | TwinWorld] = World
    if counterexamples.TAG in scenario.tags:
        vocabulary, world = counterexamples.COUNTEREXAMPLES, counterexamples.TwinWorld
    return Check(
        id=f"scenarios/{requirement}/{_slug(scenario.title)}" + (f"[{case}]" if case else ""),
        layer="scenarios",
        requirement=requirement,
        title=f"{feature.title} / {scenario.title}" + (f" ({case})" if case else ""),
        needs=frozenset(tag.removeprefix(_NEEDS) for tag in scenario.tags if tag.startswith(_NEEDS)),
        look=None,
        run=_Run(scenario, tuple(_bind(scenario, step, vocabulary) for step in scenario.steps), world),
        clauses=tuple(tag for tag in scenario.tags if CLAUSE_ID.fullmatch(tag)),
        steps=tuple(map(str, scenario.steps)),
        scenario=scenario,
    )


def _bind(scenario: Scenario, step: Step, vocabulary: Vocabulary) -> BoundStep:
    try:
        return vocabulary.bind(step.text)
    except StepError as error:
        raise FeatureError(scenario.path, step.line, str(error)) from error


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class _Run:
    """A scenario that is ready to run."""

    scenario: Scenario
    bound: tuple[BoundStep, ...]
    world: type[World | TwinWorld]

    async def __call__(self, lab: Lab) -> None:
        """Run the steps in order under frozen time, and note for the report what became of each."""
        notes: list[dict[str, Any]] = [
            {"keyword": step.keyword, "text": step.text, "outcome": "not reached", "duration_s": 0.0}
            for step in self.scenario.steps
        ]
        lab.notes["steps"] = notes
        start = ELSEWHEN if self.world is TwinWorld else START
        with _frozen(lab.harness, start) as clock:
            world = self.world(lab, clock)
            try:
                for number, step in enumerate(self.scenario.steps):
                    await self._run_step(number, step, world, notes[number])
            finally:
                world.close()

    async def _run_step(self, number: int, step: Step, world: World | TwinWorld, note: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        note["outcome"] = "failed"
        try:
            await self._guarded(number, world)
        except Exception as error:
            raise self._explained(step, error) from error
        else:
            note["outcome"] = "passed"
        finally:
            note["duration_s"] = round(loop.time() - begun, 6)

    async def _guarded(self, number: int, world: World | TwinWorld) -> None:
        following = self.bound[number + 1 : number + 2]
        timer = asyncio.timeout(STEP_LIMIT_S)
        try:
            async with timer:
                await self.bound[number].run(world)
        except Violation:
            raise
        except Exception as error:
            if timer.expired():
                raise Violation("the step", expected="an end", actual=f"none within {STEP_LIMIT_S:g} s") from error
            if not any(bound.phrase.refusal for bound in following):
                raise
            world.refusal = error

    def _explained(self, step: Step, error: Exception) -> Violation:
        where = f"{self.scenario.path.name}:{step.line}, step {str(step)!r}"
        if step.clauses:
            where += f", which proves {', '.join(step.clauses)}"
        if isinstance(error, Violation):
            return Violation(
                f"{where}: {error.what}",
                expected=error.expected,
                actual=error.actual,
                breaks=error.requirement,
                look=error.look,
            )
        return Violation(where, expected="no exception", actual=said(error))


_TOOLS: Final = ("hypothesis", "_hypothesis", "rich.", "pygments", "gherkin", "cucumber_expressions", "pluggy")


@contextmanager
def _frozen(harness: Harness, start: datetime) -> Iterator[Clock]:
    # Without real_asyncio every sleep would hang; without _pytest.timing durations would come out as decades.
    # Starting is slow where many modules are loaded: it happens once, and then the clock is moved; and what has
    # nothing to do with backends is not looked through.
    freezer = freeze_time(start, real_asyncio=True, ignore=["_pytest.timing", *_TOOLS, *harness.real_time_modules])
    with freezer as clock:
        yield clock
