"""The report of a run: data, which ``report.schema.json`` describes, and the files that are made from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from taskqueue_conformance import feature_files
from taskqueue_conformance.feature_files import Scenario
from taskqueue_conformance.requirements import REQUIREMENTS, SPEC_VERSION
from taskqueue_conformance.scenarios import features_folder
from taskqueue_conformance.suite import SUITE_VERSION
from taskqueue_conformance.verdict import CheckResult, RequirementResult, Tally, summed_up

FORMAT: Final = "taskqueue-conformance/1"
"""The name and version of the report's format. A version may gain fields; it changes when one goes or means another."""
FILE_NAME: Final = "conformance.json"
PAGE_NAME: Final = "index.html"
BADGE_NAME: Final = "badge.svg"
MESSAGES_NAME: Final = "messages.ndjson"
SCHEMA_PATH: Final = Path(__file__).with_name("report.schema.json")
"""The JSON Schema of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run was: everything in the report but the results.

    Attributes:
        target: What ``--conformance`` was given, without a password.
        backend_class: The dotted name of the class under test.
        capabilities: What the harness claims, sorted.
        not_claimed: What it disclaims, sorted.
        suite_version: The version of the suite whose checks count.
        seed: The seed of what was drawn at random.
        profile: How much was to run.
        repeat: The command that repeats the run.
        versions: The versions of Python, pytest and taskqueue-spec.
        platform: The operating system and the processor.
        started_at: When the run began, in UTC.
        duration_s: How long the run took, in seconds.
    """

    target: str
    backend_class: str
    capabilities: list[str]
    not_claimed: list[str]
    seed: int
    profile: str
    repeat: str
    versions: dict[str, str]
    platform: str
    started_at: datetime
    duration_s: float
    suite_version: str = str(SUITE_VERSION)


def as_json(info: RunInfo, tally: Tally) -> dict[str, Any]:
    """Return the report as what ``json.dumps`` takes."""
    clauses = json.loads((features_folder() / "clauses.json").read_text(encoding="utf-8"))["clauses"]
    return {
        "format": FORMAT,
        "suite_version": info.suite_version,
        "spec_version": SPEC_VERSION,
        "backend": info.target,
        "backend_class": info.backend_class,
        "capabilities": info.capabilities,
        "not_claimed": info.not_claimed,
        "versions": info.versions,
        "platform": info.platform,
        "verdict": tally.verdict,
        "profile": info.profile,
        "seed": info.seed,
        "repeat": info.repeat,
        "started_at": info.started_at.isoformat(),
        "duration_s": round(info.duration_s, 3),
        "done": tally.done(),
        "features": _features([*tally.results.values(), *tally.newer.values()]),
        "requirements": [_requirement(group, clauses, tally) for group in tally.requirements()],
        "newer": [_check(result) for result in tally.newer.values()],
    }


def complaint(place: Path) -> str | None:
    """Say why no report can be written to ``place``, before the run that it would be about, or return None."""
    if _data_alone(place):
        return f"{place} is a folder" if place.is_dir() else None
    if place.exists() and not place.is_dir():
        return f"{place} is a file; name a folder, or a file that ends in .json for the data alone"
    if find_spec("jinja2") is None:
        return "the pages need 'jinja2', which is not installed: pip install 'taskqueue-spec[conformance]'"
    return None


def write(place: Path, info: RunInfo, tally: Tally) -> Path:
    """Write the report, and return the path of what to open.

    The data come first, so that a fault in what is made from them cannot take the results along.

    Args:
        place: A folder, which is made where there is none; or a file that ends in ``.json``, for the data alone.
        info: What the run was.
        tally: What came of it.
    """
    report = as_json(info, tally)
    data = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if _data_alone(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        return _write(place, data)
    place.mkdir(parents=True, exist_ok=True)
    _write(place / FILE_NAME, data)
    # Whoever writes no pages needs no template library.
    from taskqueue_conformance import badge, messages, page  # noqa: PLC0415 - see above

    _write(place / BADGE_NAME, badge.render(report["verdict"]))
    _write(place / MESSAGES_NAME, messages.render(report))
    return _write(place / PAGE_NAME, page.render(report))


def _data_alone(place: Path) -> bool:
    return place.suffix == ".json"


def _write(path: Path, text: str) -> Path:
    # What a backend says may hold lone surrogates, which no file can.
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return path


def _features(results: Iterable[CheckResult]) -> list[dict[str, str]]:
    paths = dict.fromkeys(result.check.scenario.path for result in results if result.check.scenario is not None)
    found = [feature_files.read(path) for path in paths]
    return [{"file": each.path.name, "title": each.title, "prose": each.prose} for each in found]


def _requirement(group: RequirementResult, clauses: Iterable[Mapping[str, Any]], tally: Tally) -> dict[str, Any]:
    return {
        "id": group.id,
        "title": group.title,
        "look": REQUIREMENTS[group.id].look,
        "verdict": group.outcome,
        "clauses": [_clause(each, tally) for each in clauses if each["requirement"] == group.id],
        "checks": [_check(result) for result in group.results],
        "also_broken_in": [result.check.id for result in group.named_by],
    }


def _clause(clause: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    proofs = [result for result in tally.results.values() if clause["id"] in result.check.clauses]
    return {
        "id": clause["id"],
        "text": clause["text"],
        "outcome": summed_up(result.outcome for result in proofs),
        "checks": [result.check.id for result in proofs],
        "untestable": clause.get("untestable", ""),
    }


def _check(result: CheckResult) -> dict[str, Any]:
    notes = dict(result.notes)
    steps = notes.pop("steps", None)
    scenario = result.check.scenario
    began = result.started_at
    return {
        "id": result.check.id,
        "layer": result.check.layer,
        "title": result.check.title,
        "clauses": list(result.check.clauses),
        "needs": sorted(result.check.needs),
        "outcome": result.outcome,
        "breaks": result.breaks,
        "message": result.message,
        "failure": None if result.failure is None else dict(result.failure),
        "started_at": None if began is None else datetime.fromtimestamp(began, UTC).isoformat(),
        "duration_s": round(result.duration_s, 4),
        "notes": notes,
        "scenario": None if scenario is None else _scenario(scenario, steps),
    }


def _scenario(scenario: Scenario, steps: list[dict[str, Any]] | None) -> dict[str, Any]:
    ran = steps or [{"outcome": "not reached", "duration_s": 0.0} for _ in scenario.steps]
    return {
        "feature": scenario.path.name,
        "line": scenario.line,
        "title": scenario.title,
        "description": scenario.description,
        "examples": scenario.examples,
        "example": dict(scenario.example),
        "steps": [
            {
                "keyword": step.keyword,
                "text": step.text,
                "clauses": list(step.clauses),
                "outcome": did["outcome"],
                "duration_s": did["duration_s"],
            }
            for step, did in zip(scenario.steps, ran, strict=True)
        ],
    }
