"""A run of the suite as an adopter sees it: verdict, exit status, table, report."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from taskqueue_conformance.report import SCHEMA_PATH

BACKENDS = """
from dataclasses import replace
from datetime import timedelta
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.harness import BaseHarness

def correct(store): return MemoryBackend(store)

class Early(MemoryBackend):
    async def claim(self, *, now, limit, lease_expires_at):
        return await super().claim(now=now + timedelta(microseconds=1), limit=limit, lease_expires_at=lease_expires_at)
def early(store): return Early(store)

class Raising(MemoryBackend):
    async def claim(self, *, now, limit, lease_expires_at):
        raise OSError("the disk is gone")
def raising(store): return Raising(store)

class Begun(MemoryBackend):
    async def claim(self, *, now, limit, lease_expires_at):
        raise NotImplementedError
def begun(store): return Begun(store)

class Disclaiming(BaseHarness):
    capabilities = frozenset({"multiprocess"})
    def backend(self, store): return MemoryBackend(store)

class Known(BaseHarness):
    capabilities = frozenset()
    def backend(self, store): return Early(store)

class Outdated(BaseHarness):
    capabilities = frozenset()
    def backend(self, store): return MemoryBackend(store)
"""
SELECTION = "E1"


@pytest.fixture
def outsider(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(backends=BACKENDS)
    pytester.syspathinsert()
    return pytester


def read_report(pytester: pytest.Pytester) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((pytester.path / "out" / "conformance.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA_PATH.read_text()))
    return report


def last_line(result: pytest.RunResult) -> str:
    return next(line for line in reversed(result.outlines) if line.startswith(("CONFORMANT", "NOT", "INCOMPLETE")))


def test_a_selection_that_passes_is_incomplete_and_not_a_success(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:correct", "-k", SELECTION, "--conformance-report=out")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert last_line(result).startswith("INCOMPLETE: backends:correct passed ")
    report = read_report(outsider)
    assert report["verdict"] == "INCOMPLETE"
    verdicts = {requirement["id"]: requirement["verdict"] for requirement in report["requirements"]}
    assert verdicts["G1"] == "not run"


@pytest.mark.parametrize("extra", [(), ("-x",)])
def test_one_failure_is_enough_also_when_the_run_stops_there(outsider: pytest.Pytester, extra: tuple[str, ...]) -> None:
    result = outsider.runpytest_inprocess(
        "--conformance=backends:early", "-k", SELECTION, "--conformance-report=out", *extra
    )
    assert result.ret != pytest.ExitCode.OK
    assert last_line(result).startswith("NOT CONFORMANT: backends:early passed ")
    report = read_report(outsider)
    assert report["verdict"] == "NOT CONFORMANT"
    (e1,) = (requirement for requirement in report["requirements"] if requirement["id"] == "E1")
    assert e1["verdict"] == "failed"
    failed = [check for check in e1["checks"] if check["outcome"] == "failed"]
    assert failed
    for check in failed:
        assert check["message"]


def test_a_failure_says_what_is_broken_what_was_expected_what_happened_and_where_to_look(
    outsider: pytest.Pytester,
) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:early", "-k", SELECTION, "-x")
    result.stdout.re_match_lines(
        [
            r"E1: A claim returns a task only if available_at <= now; equality is due",
            r"  check +(edges|scenarios)/E1/.+: .+",
            r"  expected +.+",
            r"  actual +.+",
            r"  look at +.*claim.*",
            r"  calls +.+",
            r" +\w+\.enqueue\(.+",
            r'  repeat +pytest --conformance=backends:early "conformance/(edges|scenarios)::E1-.+"',
        ],
        consecutive=False,
    )


def test_the_command_that_a_failure_prints_repeats_that_check_alone(outsider: pytest.Pytester) -> None:
    listed = outsider.runpytest_inprocess("--conformance=backends:early", "--collect-only", "-q", "-k", "edges and E1")
    node_id = next(line for line in listed.outlines if line.startswith("conformance/edges::E1-"))
    result = outsider.runpytest_inprocess("--conformance=backends:correct", node_id)
    result.assert_outcomes(passed=1)
    assert last_line(result).startswith("INCOMPLETE")


def test_a_backend_that_raises_is_told_so_with_the_place_and_without_a_traceback(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:raising", "-k", "edges and E1", "-x")
    text = result.stdout.str()
    assert "OSError: the disk is gone" in text
    assert "backends.py:" in text
    assert "Traceback (most recent call last)" not in text


@pytest.mark.parametrize("selection", ["edges and E1", "scenarios and ETA"])
def test_a_method_that_is_not_written_yet_is_named_as_what_to_look_at(
    outsider: pytest.Pytester, selection: str
) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:begun", "-k", selection, "-x")
    result.stdout.re_match_lines(
        [
            r"  expected +no exception",
            r"  actual +NotImplementedError",
            r"  look at +claim, which is not written yet",
            r"  raised at \S+backends.py:\d+ in claim: raise NotImplementedError",
            r"  calls +.+",
        ],
        consecutive=False,
    )
    assert "NotImplementedError:" not in result.stdout.str()


def test_what_is_disclaimed_is_named_and_not_counted_as_passed(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:Disclaiming", "-k", "D1", "--conformance-report=out")
    report = read_report(outsider)
    skipped = [
        check for each in report["requirements"] for check in each["checks"] if check["outcome"] == "not claimed"
    ]
    assert f"not claimed: durable, restart, transactional ({len(skipped)} checks);" in last_line(result)
    assert report["not_claimed"] == ["durable", "restart", "transactional"]
    (d1,) = (requirement for requirement in report["requirements"] if requirement["id"] == "D1")
    assert "not claimed" in {check["outcome"] for check in d1["checks"]}


def test_what_is_disclaimed_is_named_without_a_number_where_no_check_of_it_was_selected(
    outsider: pytest.Pytester,
) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:Disclaiming", "-k", "edges and E1")
    assert "not claimed: durable, restart, transactional;" in last_line(result)


def first_check(pytester: pytest.Pytester) -> str:
    """Return the id of a check of E1 that fails for a backend that claims too early."""
    pytester.runpytest_inprocess("--conformance=backends:early", "-k", SELECTION, "--conformance-report=out")
    requirements = read_report(pytester)["requirements"]
    failed = [check["id"] for each in requirements for check in each["checks"] if check["outcome"] == "failed"]
    return str(failed[0])


def declare(pytester: pytest.Pytester, harness: str, check_id: str) -> None:
    pytester.makepyfile(
        declared=f"""
        import backends
        class Harness(backends.{harness}):
            deviations = {{{check_id!r}: "known since 2031: https://example.org/7"}}
        """
    )


def test_a_known_deviation_is_named_and_still_a_failure(outsider: pytest.Pytester) -> None:
    check_id = first_check(outsider)
    declare(outsider, "Known", check_id)
    result = outsider.runpytest_inprocess("--conformance=declared:Harness", "-k", SELECTION, "--conformance-report=out")
    assert last_line(result).startswith("NOT CONFORMANT")
    assert f"known deviation: {check_id}" in result.outlines
    assert "known since 2031: https://example.org/7" in result.stdout.str()
    outcomes = {c["id"]: c["outcome"] for each in read_report(outsider)["requirements"] for c in each["checks"]}
    assert outcomes[check_id] == "known deviation"


def test_a_deviation_that_is_out_of_date_is_an_error(outsider: pytest.Pytester) -> None:
    check_id = first_check(outsider)
    declare(outsider, "Outdated", check_id)
    result = outsider.runpytest_inprocess("--conformance=declared:Harness", "-k", SELECTION)
    assert last_line(result).startswith("NOT CONFORMANT")
    assert f"outdated deviation: {check_id}" in result.outlines


def test_paths_beside_the_target_are_run_instead_of_the_suite(outsider: pytest.Pytester) -> None:
    path = outsider.makepyfile(test_mine="def test_mine(): pass")
    result = outsider.runpytest_inprocess("--conformance=backends:correct", str(path))
    result.assert_outcomes(passed=1)
    assert "there will be no verdict" in result.stdout.str()


def test_a_feature_of_somebodys_own_runs_against_the_target(outsider: pytest.Pytester, features: Path) -> None:
    text = (features / "eta_scheduling_semantics.feature").read_text()
    (outsider.path / "found.feature").write_text(text)
    result = outsider.runpytest_inprocess("--conformance=backends:correct", "found.feature")
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] > 1
    assert outsider.runpytest_inprocess("--conformance=backends:early", "found.feature").ret != pytest.ExitCode.OK


@pytest.fixture
def features() -> Path:
    return Path(__file__).parents[2] / "features"


def test_xdist_need_not_be_there(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("-p", "no:xdist", "--conformance=backends:correct", "-k", SELECTION)
    assert last_line(result).startswith("INCOMPLETE")
    assert result.parseoutcomes()["passed"] > 1


@pytest.mark.parametrize("spread", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_driver_that_is_imported_late_never_sees_frozen_time(outsider: pytest.Pytester, spread: list[str]) -> None:
    """As those do that check the size of what they were compiled with; in each process that runs checks."""
    outsider.makepyfile(
        driver="""
        from datetime import datetime
        assert datetime.__module__ == "datetime", "imported under frozen time"
        """,
        lazy="""
        from taskqueue.backends.memory import MemoryBackend

        class Lazy(MemoryBackend):
            async def connect(self):
                import driver
                await super().connect()

        def make(store):
            return Lazy(store)
        """,
    )
    result = outsider.runpytest_subprocess("--conformance=lazy:make", *spread, "-k", "preserve-task-context")
    outcomes = result.parseoutcomes()
    outcomes.pop("deselected", None)
    assert outcomes == {"passed": 1}


def test_without_the_option_the_plugin_imports_nothing_but_pytest(outsider: pytest.Pytester) -> None:
    outsider.makepyfile(
        test_plain="""
        import sys
        def test_plain():
            ours = {name for name in sys.modules if name.split(".")[0] in {"taskqueue", "taskqueue_conformance"}}
            assert ours == {"taskqueue_conformance", "taskqueue_conformance.plugin"}
            assert not {"freezegun", "gherkin", "cucumber_expressions"} & set(sys.modules)
        """
    )
    outsider.runpytest_subprocess("test_plain.py").assert_outcomes(passed=1)


def test_a_row_says_how_many_of_its_checks_were_not_claimed(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance=backends:Disclaiming", "-k", "edges and D1")
    (row,) = (line for line in result.outlines if line.startswith("D1  "))
    assert re.search(r" \d+/\d+  not run, [1-9]\d* not claimed$", row), row
