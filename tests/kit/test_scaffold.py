"""``new``: the package that it writes, and what its author sees first."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from taskqueue import Backend
from taskqueue_conformance.__main__ import main
from taskqueue_conformance.scaffold import STAGES, ScaffoldError, create
from taskqueue_conformance.subject import METHODS

ROOT = Path(__file__).parents[2]


def suite(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return create("fresh_store", tmp_path)


def test_the_suite_runs_in_it_at_once_and_says_what_to_write(package: Path) -> None:
    done = suite(package, "--conformance", "-x", "--conformance-profile=quick")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT CONFORMANT: fresh_store.testing:Harness passed 0 of" in done.stdout
    actual, *_ = re.findall(r"  actual    (.*)", done.stdout)
    assert actual == (
        "NotImplementedError: write connect: step 1 of 6, with connect, close, clone, enqueue, get. Then: pytest "
        "--conformance=fresh_store.testing:Harness conformance/edges -x -k 'close-may-be-repeated or clone-shares'"
    )


def test_its_own_tests_pass_at_once(package: Path) -> None:
    done = suite(package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_checks_pass_once_the_methods_are_written(package: Path) -> None:
    (package / "fresh_store" / "backend.py").write_text(
        "from taskqueue.backends.memory import MemoryBackend\n\n"
        "class FreshStoreBackend(MemoryBackend):\n"
        "    def __init__(self, location):\n"
        "        super().__init__(location)\n"
    )
    target = "--conformance=fresh_store.testing:Harness"
    done = suite(package, target, "conformance/edges", "-x", "-k", STAGES[0].select)
    assert done.returncode == 1
    assert "INCOMPLETE" in done.stdout, done.stdout + done.stderr
    assert re.search(r"\n\d+ passed|= \d+ passed", done.stdout)


def test_its_methods_are_those_of_the_contract_with_their_docstrings(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package)
    backend = importlib.import_module("fresh_store").FreshStoreBackend
    for module in ("fresh_store", "fresh_store.backend"):
        del sys.modules[module]  # the next test has its own
    assert isinstance(backend("anywhere"), Backend)
    for name in METHODS:
        wanted, written = getattr(Backend, name), getattr(backend, name)
        assert inspect.getdoc(written) == inspect.getdoc(wanted), name
        assert inspect.signature(written) == inspect.signature(wanted), name
        assert inspect.iscoroutinefunction(written) == inspect.iscoroutinefunction(wanted), name


def test_it_passes_the_usual_linters(package: Path) -> None:
    for command in (["check", "--select", "E,F,I,UP,B"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "."],
            cwd=package, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_settings_name_the_harness_and_what_it_needs(package: Path) -> None:
    settings = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["name"] == "fresh-store"
    assert settings["tool"]["pytest"]["ini_options"]["conformance_backend"] == "fresh_store.testing:Harness"
    assert settings["project"]["optional-dependencies"]["test"][0].startswith("taskqueue-spec[conformance]>=")
    workflow = (package / ".github" / "workflows" / "conformance.yml").read_text("utf-8")
    assert "pytest --conformance --conformance-report=report" in workflow
    assert "${{ matrix.python }}" in workflow


def test_the_stages_have_every_method_once_and_are_those_of_the_guide_and_the_readme(package: Path) -> None:
    methods = [method for stage in STAGES for method in stage.methods]
    assert sorted(methods) == sorted(METHODS)
    guide = (ROOT / "docs" / "how-to" / "write-a-backend.md").read_text("utf-8")
    readme = (package / "README.md").read_text("utf-8")
    for stage in STAGES:
        written = ", ".join(f"`{method}`" for method in stage.methods)
        select = stage.select if " " not in stage.select else f'"{stage.select}"'
        assert f"| {written} | `conformance/edges -k {select}` | {stage.shows} |" in guide
        assert f'| {written} | `-k "{stage.select}"` | {stage.shows} |' in readme


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my-package", "not fit for a package: .*'my_package' would do"),
        ("My", "not fit for a package"),
        ("2nd", "not fit for a package"),
        ("../up", "not fit for a package"),
        ("class", "a word of Python"),
        ("match", "a word of Python"),
        ("queue", "standard library"),
        ("tests", "a folder that means something else"),
        ("taskqueue", "installed here|can be imported here"),
        ("taskqueue_spec", "installed here"),
        ("pytest", "installed here"),
    ],
)
def test_a_name_that_would_make_trouble_is_refused(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ScaffoldError, match=why):
        create(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert main(["new", "mine", "--directory", str(tmp_path)]) == 2
    assert "nothing in it is overwritten" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    assert main(["new", "mine", "--directory", str(tmp_path)]) == 0
    assert "pytest --conformance -x" in capsys.readouterr().out
