"""The wheel, installed into a new virtual environment outside the checkout, does the main job."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_three_parts_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"taskqueue", "taskqueue_conformance"}
    for needed in (
        "taskqueue/py.typed",
        "taskqueue_conformance/py.typed",
        "taskqueue_conformance/report.schema.json",
        "taskqueue_conformance/suite_versions/1.txt",
        "taskqueue_conformance/suite_versions/withdrawn.txt",
        "taskqueue_conformance/templates/report.html.j2",
        "taskqueue_conformance/templates/new/backend.py.j2",
        "taskqueue_conformance/features/clauses.json",
        "taskqueue_conformance/features/eta_scheduling_semantics.feature",
    ):
        assert needed in names


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "[console_scripts]\ntaskqueue = taskqueue.cli:main\n" in archive.read(name).decode()


def test_the_main_job_runs_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = tmp_path / "venv" / "bin"
    install = [str(bin_folder / "pip"), "install", "--quiet", f"{wheel}[conformance]"]
    subprocess.run(install, check=True, capture_output=True)
    work = tmp_path / "elsewhere"
    work.mkdir()
    # Checks of every layer on the quicker backend, and some on the one that has a driver. Not all: what could be
    # missing is a file, or something that is not installed.
    for options, verdict in (
        (["--conformance=memory", "--conformance-profile=quick"], "INCOMPLETE: memory passed"),
        (["--conformance=sqlite", "-k", "E1 or V1"], "INCOMPLETE: sqlite passed"),
    ):
        run = subprocess.run(
            [str(bin_folder / "pytest"), *options], cwd=work, check=False, capture_output=True, text=True
        )
        assert run.returncode == 1, run.stdout[-3000:]
        assert " failed" not in run.stdout
        assert any(line.startswith(verdict) for line in run.stdout.splitlines()), run.stdout[-500:]
    assert list(work.iterdir()) in ([], [work / ".pytest_cache"]), "the suite left files behind"
