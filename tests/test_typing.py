"""The annotations, as two type checkers see them: the programs in tests/typed are refused just where they say so."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue_conformance.scaffold import create

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "tests" / "typed").glob("*.py"))
CHECKERS = ("mypy", "pyright")


def complaints(checker: str, *paths: Path, folder: Path = ROOT) -> set[tuple[str, int, str]]:
    """Return name of the file, line and message of each error."""
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: pip install -e '.[dev]'")
    options = {
        "mypy": ["--strict", "--config-file=", "--no-incremental", "--no-pretty", "--no-error-summary"],
        "pyright": ["--pythonpath", sys.executable, "--outputjson"],
    }
    done = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], *map(str, paths)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    if checker == "mypy":
        found = re.findall(r"^(\S+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
        assert bool(found) == bool(done.returncode), done.stdout + done.stderr
        return {(Path(path).name, int(line), message) for path, line, message in found}
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] >= len(paths)
    errors = (each for each in told["generalDiagnostics"] if each["severity"] == "error")
    return {(Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"]) for each in errors}


def refused(program: Path) -> set[tuple[str, int]]:
    lines = program.read_text("utf-8").splitlines()
    return {(program.name, number) for number, line in enumerate(lines, 1) if line.endswith("  # refused")}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_refuses_what_is_wrong_and_nothing_else(checker: str) -> None:
    found = complaints(checker, *PROGRAMS)
    assert {(name, line) for name, line, _ in found} == set().union(*map(refused, PROGRAMS)), sorted(found)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_package_that_new_has_written_has_no_type_errors(checker: str, tmp_path: Path) -> None:
    package = create("fresh_store", tmp_path)
    assert complaints(checker, package / "fresh_store", package / "tests", folder=package) == set()
