"""The report of a run of the scenarios on the SQLite reference, for the pages to show."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("taskqueue", "conformance", "features")
SECONDS: Final = 300


class NoReport(Exception):
    """There is no report to show. The message says why."""


def report(given: str, cache: Path) -> dict[str, Any]:
    """Return the report in the file ``given``; where that is empty, of a run that this call starts.

    Such a run is kept as ``cache``, and used again for as long as nothing that it ran has changed.

    Raises:
        NoReport: The file cannot be read, or the run did not end in a report.
    """
    path = Path(given) if given else cache
    if not given and not _is_current(cache):
        _run(cache)
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NoReport(f"{path} is no report of --conformance-report: {error}") from error
    return found


def _is_current(cache: Path) -> bool:
    if not cache.exists():
        return False
    made = cache.stat().st_mtime
    files = (file for folder in SOURCES for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts)
    return all(file.stat().st_mtime < made for file in files)


def _run(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "--conformance=sqlite", f"--conformance-report={place.resolve()}", "conformance/scenarios",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TASKQUEUE"))}
    # The exit status is not 0 either way: scenarios alone are no verdict on a backend.
    done = subprocess.run(  # noqa: S603 - our own command, in full
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    if not place.exists():
        raise NoReport(f"the scenarios did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
