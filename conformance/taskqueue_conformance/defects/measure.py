"""Measures targets: each in a forked child that runs the suite as anybody would, through pytest."""

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

from taskqueue_conformance.machine import storage_elsewhere
from taskqueue_conformance.report import FILE_NAME
from taskqueue_conformance.scratch import scratch_folder
from taskqueue_conformance.suite import LAYERS, required_checks

TIME_LIMIT_S: Final = 180.0
"""How long one target may take, in seconds, before it counts as hanging; times three where nothing stops it early."""
_TICK_S: Final = 0.02
_TAIL: Final = 2000


@dataclass(frozen=True, slots=True)
class Failure:
    """One check that failed.

    Attributes:
        check: Its id.
        layer: Its layer.
        requirement: The requirement that it proves.
        breaks: The requirement that its message names.
        clauses: The clauses of the specification that it proves.
        message: What it says.
    """

    check: str
    layer: str
    requirement: str
    breaks: str
    clauses: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One target to measure.

    Attributes:
        target: What ``--conformance`` is given.
        stop: Whether the first failure ends the run.
        layers: The layers to run.
    """

    target: str
    stop: bool = True
    layers: tuple[str, ...] = LAYERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of a job.

    Attributes:
        job: The job.
        seconds: How long it took.
        verdict: The suite's verdict, or why there is none.
        failures: The checks that failed, in the order of the suite.
        passed: The ids of the checks that passed.
        problem: What went wrong with the run itself; empty if nothing did.
    """

    job: Job
    seconds: float
    verdict: str
    failures: Sequence[Failure] = ()
    passed: Sequence[str] = ()
    problem: str = ""


@dataclass(slots=True)
class _Child:
    job: Job
    pid: int
    folder: Path
    begun: float = field(default_factory=time.perf_counter)


def preload() -> None:
    """Import everything that a run needs, so that children start with it."""
    required_checks()
    for name in ("freezegun.api", "hypothesis.stateful", "taskqueue_conformance.run", "taskqueue.backends.sqlite"):
        importlib.import_module(name)
    _warm_up()
    gc.freeze()


def _warm_up() -> None:
    """Let Hypothesis look for constants in the modules that are loaded, which it does once in a process."""

    @settings(max_examples=20, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(strategies.integers())
    def draw(_: int) -> None: ...

    with storage_elsewhere():
        draw()


def measure(jobs: Iterable[Job], *, parallel: int) -> Iterator[Run]:
    """Run jobs in forked children, ``parallel`` of them at a time, and yield what became of each as it ends."""
    waiting = list(jobs)[::-1]
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_start(waiting.pop()))
            time.sleep(_TICK_S)
            for child in list(running):
                run = _ended(child)
                if run is not None:
                    running.remove(child)
                    yield run
    finally:
        for child in running:
            _kill(child)
            shutil.rmtree(child.folder, ignore_errors=True)


def _start(job: Job) -> _Child:
    folder = Path(scratch_folder("taskqueue-defects-"))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(job, folder)
    return _Child(job, pid, folder)


def _in_child(job: Job, folder: Path) -> None:
    status = 70
    try:
        os.setpgid(0, 0)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = str(folder)
        os.chdir(folder)
        # An empty file of settings: neither this project's nor anybody's may change what a target shows.
        (folder / "pytest.ini").write_text("[pytest]\n")
        status = pytest.main(
            [
                *("-q", "-p", "no:cacheprovider", "--tb=no", "--no-header"),
                f"--conformance={job.target}",
                f"--conformance-report={folder / FILE_NAME}",
                *(["-x"] if job.stop else []),
                *([] if job.layers == LAYERS else [f"conformance/{layer}" for layer in job.layers]),
            ]
        )
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        print(f"{type(error).__name__}: {error}", flush=True)  # noqa: T201 - into the child's log
    finally:
        sys.stdout.flush()
        os._exit(status)


def _ended(child: _Child) -> Run | None:
    pid, _ = os.waitpid(child.pid, os.WNOHANG)
    seconds = time.perf_counter() - child.begun
    limit = TIME_LIMIT_S * (1 if child.job.stop else 3)
    if pid == 0 and seconds < limit:
        return None
    problem = ""
    if pid == 0:
        _kill(child)
        problem = f"no end within {limit:g} s"
    try:
        _kill_group(child)
        return _read(child, seconds, problem)
    finally:
        shutil.rmtree(child.folder, ignore_errors=True)


def _read(child: _Child, seconds: float, problem: str) -> Run:
    try:
        report: dict[str, Any] = json.loads((child.folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        log = child.folder / "log"
        said = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:] if log.exists() else ""
        return Run(job=child.job, seconds=seconds, verdict="none", problem=problem or said or "no report")
    found = [
        check | {"requirement": requirement["id"]}
        for requirement in report["requirements"]
        for check in requirement["checks"]
    ]
    order = {check_id: number for number, check_id in enumerate(required_checks())}
    found.sort(key=lambda check: order[check["id"]])
    return Run(
        job=child.job,
        seconds=seconds,
        verdict=report["verdict"],
        failures=[
            Failure(
                check=check["id"],
                layer=check["layer"],
                requirement=check["requirement"],
                breaks=check["breaks"] or check["requirement"],
                clauses=tuple(check["clauses"]),
                message=check["message"],
            )
            for check in found
            if check["outcome"] in {"failed", "known deviation", "outdated deviation"}
        ],
        passed=[check["id"] for check in found if check["outcome"] == "passed"],
        problem=problem,
    )


def _kill(child: _Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def _kill_group(child: _Child) -> None:
    """End what a target left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
