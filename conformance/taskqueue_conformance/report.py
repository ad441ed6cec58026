"""The report in JSON; ``report.schema.json`` beside this file describes it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskqueue_conformance.requirements import SPEC_VERSION
from taskqueue_conformance.suite import SUITE_VERSION
from taskqueue_conformance.verdict import CheckResult, Tally

FORMAT: Final = "taskqueue-conformance/1"
"""The name and version of the report's format."""
FILE_NAME: Final = "conformance.json"
SCHEMA_PATH: Final = Path(__file__).with_name("report.schema.json")
"""The JSON Schema of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run was: everything in the report but the results.

    Attributes:
        target: What ``--conformance`` was given.
        backend_class: The dotted name of the class under test.
        capabilities: What the harness claims, sorted.
        not_claimed: What it disclaims, sorted.
        seed: The seed of what was drawn at random.
        profile: How much was to run.
        versions: The versions of Python, pytest and taskqueue-spec.
        duration_s: How long the run took, in seconds.
    """

    target: str
    backend_class: str
    capabilities: list[str]
    not_claimed: list[str]
    seed: int
    profile: str
    versions: dict[str, str]
    duration_s: float


def as_json(info: RunInfo, tally: Tally) -> dict[str, Any]:
    """Return the report as what ``json.dumps`` takes."""
    return {
        "format": FORMAT,
        "suite_version": SUITE_VERSION,
        "spec_version": SPEC_VERSION,
        "backend": info.target,
        "backend_class": info.backend_class,
        "capabilities": info.capabilities,
        "not_claimed": info.not_claimed,
        "versions": info.versions,
        "verdict": tally.verdict,
        "profile": info.profile,
        "seed": info.seed,
        "duration_s": round(info.duration_s, 3),
        "done": tally.done(),
        "requirements": [
            {
                "id": group.id,
                "title": group.title,
                "verdict": group.outcome,
                "checks": [_check_as_json(result) for result in group.results],
                "also_broken_in": [result.check.id for result in group.named_by],
            }
            for group in tally.requirements()
        ],
    }


def write(folder: Path, info: RunInfo, tally: Tally) -> Path:
    """Write the report into ``folder``, which is made where there is none, and return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_text(json.dumps(as_json(info, tally), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _check_as_json(result: CheckResult) -> dict[str, Any]:
    return {
        "id": result.check.id,
        "layer": result.check.layer,
        "title": result.check.title,
        "clauses": list(result.check.clauses),
        "outcome": result.outcome,
        "breaks": result.breaks,
        "message": result.message,
        "duration_s": round(result.duration_s, 4),
        "notes": dict(result.notes),
    }
