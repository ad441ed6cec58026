"""The kit in the hands of somebody else: a backend of their own, a folder of their own, settings of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from taskqueue_conformance.suite import required_checks

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "lmdb_backend.py"
PAGE = ROOT / "docs" / "how-to" / "write-a-backend.md"
SELECTION = "E1 or CONFIG or HANDLES"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the suite left behind."""

    status: int
    output: str
    verdict: str
    outcomes: Mapping[str, str]


def conformance(folder: Path, target: str, *options: str) -> Run:
    """Run the suite in ``folder`` as an adopter does, with nothing of this run's own settings."""
    report = folder / "report"
    ours = ("PYTEST_", "PYTHON", "CI", "BUILD_NUMBER")  # with the last two pytest cuts no line
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    # In memory where the system offers it: a commit waits for the disk, which is not what these tests are about.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as stores:  # noqa: S108
        done = subprocess.run(
            [sys.executable, "-m", "pytest", f"--conformance={target}", f"--conformance-report={report}", *options],
            cwd=folder,
            env=environment | {"LMDB_BACKEND_FOLDER": stores, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    output = done.stdout + done.stderr
    written = report / "conformance.json"
    assert written.exists(), output
    found = json.loads(written.read_text(encoding="utf-8"))
    outcomes = {check["id"]: check["outcome"] for each in found["requirements"] for check in each["checks"]}
    return Run(done.returncode, output, found["verdict"], outcomes)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A project whose own tests, folders and settings have nothing to do with the suite."""
    folder = tmp_path / "hostile"
    for name in ("conformance", "features", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "conformance" / "__init__.py").write_text("raise RuntimeError('not your conformance')\n")
    (folder / "features" / "test_own.py").write_text("raise RuntimeError('not your features')\n")
    (folder / "features" / "own.feature").write_text("This is not Gherkin.\n")
    (folder / "tests" / "verify_own.py").write_text("def verify_nothing():\n    assert False\n")
    (folder / "conftest.py").write_text(
        dedent("""
        import pytest


        @pytest.fixture(autouse=True)
        def everywhere():
            raise RuntimeError("a fixture of the adopter's")


        @pytest.fixture
        def event_loop():
            raise RuntimeError("another one")
        """)
    )
    (folder / "pytest.ini").write_text(
        dedent("""
        [pytest]
        testpaths = tests
        python_files = verify_*.py
        python_classes = Verify
        python_functions = verify_*
        markers = own: a marker of the adopter's
        norecursedirs = conformance features
        """)
    )
    return folder


def test_the_example_passes_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """The quick profile only: with the defects, in CI, the example has to pass every check."""
    shutil.copy(EXAMPLE, tmp_path)

    run = conformance(tmp_path, "lmdb_backend:make_backend", "--conformance-profile=quick", "-n", "2", "-W", "error")

    assert run.verdict == "INCOMPLETE", run.output  # which it can only be if nothing failed
    # A plain factory cannot claim what takes a method of a Harness.
    assert set(run.outcomes.values()) == {"passed", "not run", "not claimed"}
    assert "not claimed: restart, transactional (" in run.output


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--strict-markers", "-W", "error", "-p", "no:cacheprovider", "-n", "2"], id="flags"),
        pytest.param(["-o", "asyncio_mode=auto", "-o", "addopts=--import-mode=importlib", "-s", "-vv"], id="ini"),
    ],
)
def test_an_adopters_settings_change_nothing(hostile: Path, tmp_path: Path, options: list[str]) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()

    without = conformance(plain, "memory", "-k", SELECTION)
    among_them = conformance(hostile, "memory", "-k", SELECTION, *options)

    assert "passed" in among_them.outcomes.values()
    assert among_them.outcomes == without.outcomes, among_them.output
    assert (among_them.verdict, among_them.status) == (without.verdict, without.status) == ("INCOMPLETE", 1)


def test_node_ids_of_the_suite_can_be_given_beside_a_folder_of_that_name(hostile: Path) -> None:
    run = conformance(hostile, "memory", "conformance/edges::E1-no-other-field-makes-a-task-due")

    assert [check for check, outcome in run.outcomes.items() if outcome != "not run"] == [
        "edges/E1/no-other-field-makes-a-task-due"
    ]


def test_a_wrong_backend_is_told_what_is_wrong(tmp_path: Path) -> None:
    right, wrong = "each[0] <= instant", "each[0] < instant"
    source = EXAMPLE.read_text(encoding="utf-8")
    assert right in source
    (tmp_path / "wrong.py").write_text(source.replace(right, wrong), encoding="utf-8")

    run = conformance(tmp_path, "wrong:make_backend", "-k", "E1", "-x")

    assert (run.verdict, run.status) == ("NOT CONFORMANT", 1)
    assert "E1: A claim returns a task only if available_at <= now; equality is due" in run.output


def test_the_pages_skeleton_runs_and_passes_nothing(tmp_path: Path) -> None:
    skeleton = next(block for block in _blocks("python") if "raise NotImplementedError" in block)
    (tmp_path / "my_backend.py").write_text(skeleton, encoding="utf-8")

    run = conformance(tmp_path, "my_backend:make_backend", "-q", "--tb=no")

    assert run.verdict == "NOT CONFORMANT"
    assert "passed" not in run.outcomes.values()


def test_a_run_of_the_skeleton_prints_what_the_page_says(tmp_path: Path) -> None:
    skeleton = next(block for block in _blocks("python") if "raise NotImplementedError" in block)
    (tmp_path / "my_backend.py").write_text(skeleton, encoding="utf-8")
    (shown,) = (block for block in _blocks("console") if "--conformance=my_backend:make_backend -x" in block)

    run = conformance(tmp_path, "my_backend:make_backend", "-x")

    assert _missing(shown, run.output) == []


def test_a_failure_reads_as_on_the_page(tmp_path: Path) -> None:
    right, wrong = "lease_expires_at=max(lease_expires_at, _lease(task))", "lease_expires_at=lease_expires_at"
    source = EXAMPLE.read_text(encoding="utf-8")
    assert right in source
    (tmp_path / "lmdb_backend.py").write_text(source.replace(right, wrong), encoding="utf-8")
    (shown,) = (block for block in _blocks("console") if "-k L2- --tb=short" in block)

    run = conformance(tmp_path, "lmdb_backend:make_backend", "conformance/edges", "-k", "L2-", "--tb=short")

    assert _missing(shown, run.output) == []


def test_the_numbers_of_the_page_are_those_of_the_suite() -> None:
    checks = required_checks().values()
    by_requirement = Counter(check.requirement for check in checks)
    page = PAGE.read_text(encoding="utf-8")

    assert set(re.findall(r"collected (\d+) items\n", page)) == {str(len(checks))}
    assert set(re.findall(r"passed \d+ of (\d+) checks of version", page)) == {str(len(checks))}
    rows = re.findall(r"^([A-Z]+\d?) +\S.* \d+/(\d+)  ", page, re.MULTILINE)
    assert {requirement for requirement, _ in rows} == set(by_requirement)
    assert {(requirement, int(number)) for requirement, number in rows} == set(by_requirement.items())


def test_the_pages_harness_cleans_up(tmp_path: Path) -> None:
    harness = next(block for block in _blocks("python") if "class Harness" in block)
    harness = harness.replace("mkdtemp(", f"mkdtemp(dir={str(tmp_path / 'kept')!r}, ")
    (tmp_path / "kept").mkdir()
    (tmp_path / "lmdb_testing.py").write_text(harness, encoding="utf-8")
    shutil.copy(EXAMPLE, tmp_path)

    run = conformance(tmp_path, "lmdb_testing:Harness", "-k", "E2-")

    assert (run.verdict, run.status) == ("INCOMPLETE", 1)
    assert "passed" in run.outcomes.values()
    assert not any((tmp_path / "kept").iterdir())


def test_what_the_page_shows_of_the_example_is_in_it() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- from lmdb_backend.py -->\n```python\n(.*?)```", page, re.DOTALL)

    assert quoted
    for block in quoted:
        assert block in source


def _missing(shown: str, output: str) -> list[str]:
    """Return the lines of a block that do not come in this order in the output, but for times, places and rules."""
    printed = iter(_told(output))
    lines = [line for line in _told(shown) if line and line != "…" and not line.startswith("$ ")]
    return [line for line in lines if line not in printed]


def _told(text: str) -> list[str]:
    text = re.sub(r"\d+\.\d+ ?s", "1 s", text)
    text = re.sub(r"\S+/(\w+\.py:\d+)", r"\1", text)
    return [line.strip("=_! ") for line in text.splitlines()]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
