"""Which checks count: a released version never changes, and what is newer is told and not held against anybody."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from taskqueue_conformance.suite import SUITE_VERSION, every_check, required_checks
from taskqueue_conformance.suite_versions import FOLDER, newest, versions, withdrawn
from taskqueue_conformance.suite_versions.__main__ import text

FROZEN: Final[Mapping[int, str]] = {}
"""The SHA-256 of the file of each released version. To release one: its first line becomes ``# released DATE``, and the
digest that the test below then asks for goes in here, in the same commit."""


@pytest.mark.parametrize("number", versions())
def test_a_released_version_never_changes(number: int) -> None:
    if not versions()[number].released:
        assert number not in FROZEN, f"version {number} was released, and its first line says otherwise"
        return
    digest = hashlib.sha256((FOLDER / f"{number}.txt").read_bytes()).hexdigest()
    assert FROZEN.get(number) == digest, "a released version is frozen: a new check counts from the next version on"


def test_the_version_that_is_being_made_counts_every_check() -> None:
    last = max(versions())
    if not versions()[last].released:
        written = (FOLDER / f"{last}.txt").read_text(encoding="utf-8")
        assert written == text(), "checks came or went: run python -m taskqueue_conformance.suite_versions"


@pytest.mark.parametrize("number", versions())
def test_every_check_that_counts_is_there(number: int) -> None:
    assert versions()[number].ids <= set(every_check()), "ids of checks are kept for life; or withdraw them"
    assert set(required_checks(number)) == versions()[number].ids


def test_versions_are_numbered_without_gaps_and_only_the_last_may_be_open() -> None:
    assert list(versions()) == list(range(1, len(versions()) + 1))
    assert all(each.released for each in list(versions().values())[:-1])
    assert newest() == SUITE_VERSION


def test_what_was_withdrawn_has_a_reason() -> None:
    assert all(reason for reason in withdrawn().values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1.txt").write_text("# released 2030-01-01\nedges/E1/a\nedges/E1/b\n")
    (tmp_path / "2.txt").write_text("# not released\nedges/E1/a\nedges/E1/b\nedges/E1/c\n")
    (tmp_path / "withdrawn.txt").write_text("# text\nedges/E1/b: it asked for too much\n")
    return tmp_path


def test_a_version_that_is_being_made_is_not_the_default(folder: Path) -> None:
    assert newest(folder) == 1
    (folder / "2.txt").write_text("# released 2031-01-01\nedges/E1/a\n")
    assert newest(folder) == 2


def test_what_was_withdrawn_counts_in_no_version(folder: Path) -> None:
    found = {number: set(each.ids) for number, each in versions(folder).items()}
    assert found == {1: {"edges/E1/a"}, 2: {"edges/E1/a", "edges/E1/c"}}


CONFTEST = """
from taskqueue_conformance import suite_versions
original = suite_versions.versions

def versions():
    (one,) = original().values()
    ids = frozenset(each for each in one.ids if each.startswith("edges/E2/"))
    return {1: suite_versions.SuiteVersion(1, True, ids), 2: one}

import taskqueue_conformance.suite, taskqueue_conformance.run
taskqueue_conformance.suite.versions = taskqueue_conformance.run.versions = versions
"""
BACKENDS = """
from datetime import timedelta
from taskqueue.backends.memory import MemoryBackend

class Early(MemoryBackend):
    async def claim(self, *, now, limit, lease_expires_at):
        return await super().claim(now=now + timedelta(microseconds=1), limit=limit, lease_expires_at=lease_expires_at)

def early(store): return Early(store)
"""
SUITE: Final = ("-p", "versions", "-p", "no:cacheprovider", "conformance/edges", "-k", "E1- or E2-")


@pytest.fixture
def adopter(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with a backend that fails checks of E1, and a plugin by which version 1 counts those of E2 alone."""
    pytester.makepyfile(backends=BACKENDS, versions=CONFTEST)
    pytester.syspathinsert()
    return pytester


def test_what_is_newer_runs_and_does_not_count(adopter: pytest.Pytester) -> None:
    result = adopter.runpytest_subprocess(
        "--conformance=backends:early", "--conformance-suite=1", "--conformance-report=out", *SUITE
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["newer than version 1, not counted: * passed", "  failed: edges/E1/*", "CONFORMANT: * checks of version 1;*"]
    )
    report = json.loads((adopter.path / "out" / "conformance.json").read_text())
    assert report["suite_version"] == "1"
    assert report["verdict"] == "CONFORMANT"
    assert {"passed", "failed"} <= {check["outcome"] for check in report["newer"]}
    assert "edges/E1/" in (adopter.path / "out" / "index.html").read_text()
    assert "--conformance-suite" not in report["repeat"]


def test_it_counts_from_the_version_on_that_requires_it(adopter: pytest.Pytester) -> None:
    result = adopter.runpytest_subprocess("--conformance=backends:early", "--conformance-suite=2", *SUITE)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["NOT CONFORMANT: * checks of version 2, *"])
    result.stdout.no_fnmatch_line("newer than*")


def test_a_configuration_can_name_the_version(adopter: pytest.Pytester) -> None:
    adopter.makeini("[pytest]\nconformance_suite = 2")
    result = adopter.runpytest_subprocess("--conformance=backends:early", *SUITE)
    result.stdout.fnmatch_lines(["NOT CONFORMANT: * checks of version 2, *"])


@pytest.mark.parametrize("given", ["0", "7", "new"])
def test_an_unknown_version_is_refused_with_those_that_there_are(pytester: pytest.Pytester, given: str) -> None:
    result = pytester.runpytest_subprocess("--conformance=memory", f"--conformance-suite={given}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: there is no version {given} of the suite here; --conformance-suite takes 1"])
