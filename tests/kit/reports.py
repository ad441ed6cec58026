"""Reports to test with: of a run, and of results that were made up."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskqueue_conformance.harness import CAPABILITIES
from taskqueue_conformance.report import SCHEMA_PATH, RunInfo, as_json
from taskqueue_conformance.suite import required_checks
from taskqueue_conformance.verdict import Outcome, Tally

BACKENDS = """
from datetime import timedelta
from taskqueue.backends.memory import MemoryBackend

class Early(MemoryBackend):
    async def claim(self, *, now, limit, lease_expires_at):
        return await super().claim(now=now + timedelta(microseconds=1), limit=limit, lease_expires_at=lease_expires_at)

def early(store): return Early(store)
"""
HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> \x00 \ud800 \u202e & 'a' \"b\""


def run_suite(folder: Path, *options: str, select: str = "E1 or agrees-with") -> Any:
    """Run part of the suite on a backend that claims too early, in a process of its own, and return the data."""
    (folder / "backends.py").write_text(BACKENDS)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "--conformance=backends:early", "-k", select, *options,
            "--conformance-profile=quick", "--conformance-report=out", "-p", "no:cacheprovider", "-q",
        ],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    written = folder / "out" / "conformance.json"
    assert written.exists(), done.stdout + done.stderr
    return json.loads(written.read_text("utf-8"))


def info(**changes: Any) -> RunInfo:
    return RunInfo(
        **{
            "target": "mypackage.testing:Harness",
            "backend_class": "mypackage.backend.MyBackend",
            "capabilities": sorted(set(CAPABILITIES) - {"multiprocess"}),
            "not_claimed": ["multiprocess"],
            "seed": 7,
            "profile": "default",
            "repeat": "pytest --conformance=mypackage.testing:Harness --conformance-seed=7",
            "versions": {"python": "3.13.1", "pytest": "9.0.0", "taskqueue-spec": "0.1.0"},
            "platform": "Linux 6.1, x86_64",
            "started_at": datetime(2030, 1, 1, 12, tzinfo=UTC),
            "duration_s": 42.5,
        }
        | changes
    )


def conformant(not_claimed: str | None = "multiprocess") -> dict[str, Any]:
    """Return the data of a run in which every check passed, but for those that need what was not claimed."""
    lacking = {not_claimed} - {None}
    tally = Tally(required_checks())
    for number, result in enumerate(tally.results.values()):
        if lacking & result.check.needs:
            result.outcome = Outcome.NOT_CLAIMED
            result.message = f"needs {not_claimed}, which the harness disclaims"
            continue
        result.outcome = Outcome.PASSED
        result.duration_s = 0.0123
        result.started_at = 1_893_499_200 + number / 50
        if result.check.scenario is not None:
            result.notes = {
                "steps": [
                    {"keyword": step.keyword, "text": step.text, "outcome": "passed", "duration_s": 0.0004}
                    for step in result.check.scenario.steps
                ]
            }
    told = info(capabilities=sorted(set(CAPABILITIES) - lacking), not_claimed=sorted(lacking))
    return json.loads(json.dumps(as_json(told, tally)))  # type: ignore[no-any-return]  # JSON is any


def hostile() -> dict[str, Any]:
    """Return the data of a run whose target and whose failure are written against whoever reads them."""
    tally = Tally(required_checks())
    first = next(iter(tally.results.values()))
    first.outcome = Outcome.FAILED
    first.message = HOSTILE
    first.breaks = "E1"
    pieces = json.loads(SCHEMA_PATH.read_text())["$defs"]["failure"]["properties"]
    first.failure = dict.fromkeys(pieces, HOSTILE) | {"requirement": "E1", "calls": [HOSTILE]}
    second = list(tally.results.values())[1]
    second.outcome, second.message = Outcome.NOT_VERIFIED, HOSTILE
    third = list(tally.results.values())[2]
    third.outcome, third.message = Outcome.FAILED, HOSTILE
    return as_json(info(target=HOSTILE, repeat=HOSTILE, not_claimed=[HOSTILE]), tally)


def checks(report: Any) -> Iterator[Any]:
    return (check for requirement in report["requirements"] for check in requirement["checks"])
