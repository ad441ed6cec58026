"""The planted defects: well-formed, really different from a correct backend, and measured as they are."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from taskqueue_conformance.defects.catalogue import LAYERS, MODULE, by_clause, catalogue, planted, substituted
from taskqueue_conformance.defects.clauses import IMPOSSIBLE
from taskqueue_conformance.defects.matrix import Finding, Kill, Matrix, markdown
from taskqueue_conformance.defects.measure import Failure, Job, Run
from taskqueue_conformance.defects.plain_memory import Store
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite
from taskqueue_conformance.requirements import REQUIREMENTS
from taskqueue_conformance.suite import LAYERS as SUITE_LAYERS

ROOT = Path(__file__).parents[2]


def command(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "taskqueue_conformance", "defects", *arguments],
        capture_output=True, text=True, timeout=120, cwd=folder, check=False, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


def test_there_are_many_and_each_says_what_it_is() -> None:
    defects = catalogue()
    assert len(defects) >= 90
    for defect in defects.values():
        assert defect.breaks in REQUIREMENTS
        assert defect.layer in LAYERS
        assert defect.does
        assert defect.breaks not in defect.also, defect.id
        assert defect.command.startswith(f"pytest --conformance={MODULE}:")
    assert tuple(LAYERS) == tuple(SUITE_LAYERS)


def test_every_invariant_has_planted_defects() -> None:
    planted_for = Counter(defect.breaks for defect in catalogue().values())
    assert {requirement for requirement in REQUIREMENTS if planted_for[requirement] < 1} == set()


def test_every_layer_is_expected_to_catch_some() -> None:
    expected = Counter(defect.layer for defect in catalogue().values())
    # The harness of the planted defects can restart no server.
    assert all(expected[layer] >= 5 for layer in LAYERS if layer != "restarts"), expected


def test_every_clause_has_a_defect_planted_for_it_or_a_reason() -> None:
    manifest = json.loads((ROOT / "features" / "clauses.json").read_text())
    clauses = {clause["id"] for clause in manifest["clauses"]}
    assert clauses == set(by_clause(catalogue().values())) | set(IMPOSSIBLE)


def test_every_statement_that_was_replaced_says_something_else() -> None:
    statements = {name: text for name, text in vars(PlainSQLite).items() if name.isupper()}
    changed = 0
    for defect in catalogue().values():
        if defect.id.startswith("sql-") and defect.base == "sqlite":
            harness: Any = defect.harness()
            wrong = harness._factory
            assert issubclass(wrong, PlainSQLite)
            own = {name for name in vars(wrong) if name in statements}
            assert all(vars(wrong)[name] != statements[name] for name in own), defect.id
            changed += bool(own)
    assert changed > 60


def test_a_substitution_that_changes_nothing_is_refused() -> None:
    assert substituted("a < b", "<", "<=") == "a <= b"
    for old, new in (("c", "d"), ("<", "<"), ("", "x")):
        with pytest.raises(ValueError, match="exactly once"):
            substituted("a < b", old, new)


def test_a_defect_of_an_unknown_requirement_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        planted("X9", "breaks nothing that is known")(type("Nonsense", (Store,), {}))


def test_a_few_are_caught_for_their_own_reason(tmp_path: Path) -> None:
    chosen = ("equality-is-not-due", "complete-unguarded", "payload-as-text", "sql-claim-without-limit")
    only = [word for each in chosen for word in ("--only", each)]
    ended = command(*only, "--layers", "scenarios,edges", "--json", "found.json", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] is True
    assert [defect["id"] for defect in found["defects"]] == list(chosen)
    assert {defect["outcome"] for defect in found["defects"]} == {"caught"}


def test_a_defect_that_is_none_is_a_survivor_and_the_status_says_so(tmp_path: Path) -> None:
    (tmp_path / "planting.py").write_text(
        "import sys\n"
        "from taskqueue_conformance.__main__ import main\n"
        "from taskqueue_conformance.defects.catalogue import planted\n"
        "from taskqueue_conformance.defects import command\n"
        "from taskqueue_conformance.defects.plain_memory import Store\n"
        "command.PROGRESS_S = 0\n"
        "planted('E1', 'is right in truth')(type('RightInTruth', (Store,), {}))\n"
        "sys.exit(main(['defects', '--only', 'right-in-truth', '--layers', 'scenarios']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "planting.py"], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    told = ended.stdout.index("SURVIVED: right-in-truth")
    assert told < ended.stdout.index("1 of 1 runs have ended after")


@pytest.mark.parametrize("name", ["null_empty", "null_raising", "null_forgetful"])
def test_a_backend_that_does_nothing_passes_no_scenario(name: str, tmp_path: Path) -> None:
    target = f"{MODULE}:{name}"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--conformance={target}",
         f"--conformance-report={tmp_path}", "conformance/scenarios"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "conformance.json").read_text())
    outcomes = Counter(check["outcome"] for each in report["requirements"] for check in each["checks"])
    assert outcomes["passed"] == 0
    assert outcomes["failed"] > 50


def test_an_unknown_name_is_refused_with_a_word(tmp_path: Path) -> None:
    ended = command("--only", "no-such-thing", folder=tmp_path)
    assert ended.returncode != 0
    assert "no defect is called no-such-thing" in ended.stderr


def test_the_verdict_does_not_need_what_only_the_command_imports() -> None:
    code = "import sys, taskqueue_conformance.run; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def _finding(breaks: str | None, *, verdict: str = "NOT CONFORMANT", problem: str = "") -> Finding:
    defect = catalogue()["equality-is-not-due"]
    failures = [] if breaks is None else [Failure("edges/E1/x", "edges", "E1", breaks, (), "")]
    run = Run(job=Job(target=defect.target), seconds=1.0, verdict=verdict, failures=failures, problem=problem)
    return Finding(defect, run)


def test_what_a_run_means() -> None:
    assert _finding("E1").kill is Kill.CAUGHT
    assert _finding("G1").kill is Kill.MISNAMED
    assert _finding(None, verdict="CONFORMANT").kill is Kill.SURVIVED
    assert _finding(None, verdict="none", problem="it crashed").kill is Kill.UNDECIDED


def test_one_defect_that_is_misnamed_is_enough_to_fail() -> None:
    right = Matrix(findings=[_finding("E1")], clause_runs=[], controls=[], full=False, seconds=1)
    wrong = Matrix(findings=[_finding("E1"), _finding("G1")], clause_runs=[], controls=[], full=False, seconds=1)
    assert right.passed
    assert not wrong.passed
    assert "`equality-is-not-due`" in markdown(wrong)
