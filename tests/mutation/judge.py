"""Let the conformance suite judge mutants of the SQLite reference, each in a copy of the project.

A mutant is one changed module. It is *killed* if the suite says NOT CONFORMANT, and *survives* if every check passes.
The checkout itself is never touched: each job has a copy of it in a temporary folder, and runs what is in there.
"""

import argparse
import compileall
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).parents[2]
BACKENDS: Final = Path("taskqueue/backends")
TIME_LIMIT_SECONDS: Final = 300.0
"""How long a run of the suite may take; an unchanged reference needs less than a sixth of it."""

KILLED: Final = "killed"
TIMEOUT: Final = "timeout"
"""Killed because a call, a check or the whole run did not end. On a busy machine that deserves a second look."""
SURVIVED: Final = "survived"
STILLBORN: Final = "stillborn"
"""The module cannot even be imported. Such a mutant says nothing about the suite and does not count."""
BROKEN: Final = "broken"
"""The run of the suite itself came to no verdict; somebody has to look. Does not count as killed."""

_USAGE_ERROR: Final = 4
_COPIED: Final = ("taskqueue", "conformance", "features")
_SURVIVORS: Final = Path(__file__).with_name("survivors.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One small change to one module.

    Attributes:
        id: What names it, in the order of the source; stays the same where the code around it changes.
        module: The file, relative to the project.
        operator: The kind of change.
        line: The first line that differs, from 1.
        before: What stood there.
        after: What stands there now.
        source: The whole changed module.
    """

    id: str
    module: Path
    operator: str
    line: int
    before: str
    after: str
    source: str

    @property
    def digest(self) -> str:
        """A short name for the changed module's text: a result holds for as long as it is the same."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:12]


def modules() -> list[Path]:
    """Return the modules that the SQLite reference is made of, relative to the project."""
    found = [
        *(PROJECT / BACKENDS).glob("*sqlite*.py"),
        PROJECT / BACKENDS / "_rows.py",
        PROJECT / BACKENDS / "_session.py",
    ]
    return sorted(path.relative_to(PROJECT) for path in found)


class Copy:
    """A copy of the project in which one module at a time is changed."""

    def __init__(self, folder: Path, checks: str) -> None:
        self.root = folder / "project"
        self._checks = checks
        self._folder = folder
        self.root.mkdir(parents=True)
        for name in _COPIED:
            shutil.copytree(PROJECT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        # Only the suite judges, not this project's settings, such as the one that makes a warning an error.
        (self.root / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        compileall.compile_dir(self.root, quiet=2)

    def judge(self, mutant: Mutant | None) -> dict[str, Any]:
        """Run the suite against a mutant, or against the unchanged reference, and return what came of it."""
        if mutant is None:
            return self._run()
        path = self.root / mutant.module
        original = path.read_text(encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        path.write_text(mutant.source, encoding="utf-8")
        try:
            return self._run()
        finally:
            path.write_text(original, encoding="utf-8")

    def _run(self) -> dict[str, Any]:
        started = time.monotonic()
        scratch = Path(tempfile.mkdtemp(dir=self._folder))
        report = scratch / "report"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TASKQUEUE"))
        }
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "conformance")]),
            # The mutated module changes within a second, which a cached file's time would not show.
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(scratch),
        }
        command = [
            sys.executable, "-m", "pytest", "--conformance=sqlite", f"--conformance-report={report}",
            "-x", "-q", "-p", "no:cacheprovider", "-k", self._checks,
        ]  # fmt: skip
        log = scratch / "log"
        try:
            with log.open("wb") as output:
                status = _status(command, cwd=self.root, environment=environment, output=output)
            result = _result(status, report / "conformance.json", log, partial=bool(self._checks))
            return result | {"seconds": round(time.monotonic() - started, 1)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _status(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: Any) -> int | None:
    """Run a command in a group of processes of its own, and return its status, or None once the time is up."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait(TIME_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.wait()


def _result(status: int | None, report: Path, log: Path, *, partial: bool) -> dict[str, Any]:
    if status is None:
        return {"outcome": TIMEOUT}
    if report.exists():
        told = json.loads(report.read_text(encoding="utf-8"))
        for requirement in told["requirements"]:
            for check in requirement["checks"]:
                if check["outcome"] == "failed":
                    hangs = "none within" in check["message"]
                    return {
                        "outcome": TIMEOUT if hangs else KILLED,
                        "check": check["id"],
                        "layer": check["layer"],
                        "requirement": check["breaks"] or requirement["id"],
                        "message": check["message"][:2000],
                    }
        if told["verdict"] == "CONFORMANT" or (partial and told["verdict"] == "INCOMPLETE"):
            return {"outcome": SURVIVED}
    text = log.read_text(encoding="utf-8", errors="replace")
    # A target that cannot be imported is a usage error of pytest's.
    outcome = STILLBORN if status == _USAGE_ERROR and "importing" in text else BROKEN
    return {"outcome": outcome, "status": status, "message": text[-2000:]}


def run(mutants: Sequence[Mutant], results: Path, *, jobs: int, checks: str = "") -> dict[str, dict[str, Any]]:
    """Judge the mutants that ``results`` does not have yet, and append each result to it as a line of JSON.

    Args:
        mutants: What to judge.
        results: The file.
        jobs: How many runs of the suite there are at a time.
        checks: The checks that run, as pytest's ``-k`` takes them. What a part of the suite kills, the whole kills;
            what survives a part is not kept in the file.

    Returns:
        The results of all these mutants, by id.

    Raises:
        RuntimeError: The unchanged reference does not pass here, so nothing could be learned from its mutants.
    """
    known = {told["id"]: told for told in _lines(results)}
    done = {each.id: known[each.id] for each in mutants if known.get(each.id, {}).get("digest") == each.digest}
    todo = [each for each in mutants if each.id not in done]
    if not todo:
        return done
    lock = threading.Lock()
    with _copies(jobs, checks) as copies, ThreadPoolExecutor(jobs) as pool:
        baseline = _with(copies, None)
        if baseline["outcome"] != SURVIVED:
            raise RuntimeError(f"the unchanged reference does not pass: {baseline}")
        _say(f"unchanged: passes in {baseline['seconds']} s; {len(todo)} mutants to judge")

        def judge(mutant: Mutant) -> None:
            told = {"id": mutant.id, "digest": mutant.digest, "module": str(mutant.module), "line": mutant.line}
            told |= {"operator": mutant.operator, "before": mutant.before, "after": mutant.after}
            told |= _with(copies, mutant)
            with lock:
                done[mutant.id] = told
                if not checks or told["outcome"] != SURVIVED:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(told, ensure_ascii=False) + "\n")
                where = told.get("check", "")
                _say(f"{len(done)}/{len(mutants)} {told['outcome']:9} {told['seconds']:6} s  {mutant.id}  {where}")

        for _ in pool.map(judge, todo):
            pass
    return done


def _lines(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        yield from map(json.loads, results.read_text(encoding="utf-8").splitlines())


@contextmanager
def _copies(number: int, checks: str) -> Iterator["queue.Queue[Copy]"]:
    with tempfile.TemporaryDirectory(prefix="taskqueue-mutation-", ignore_cleanup_errors=True) as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for index in range(number):
            copies.put(Copy(Path(folder) / str(index), checks))
        yield copies


def _with(copies: "queue.Queue[Copy]", mutant: Mutant | None) -> dict[str, Any]:
    copy = copies.get()
    try:
        return copy.judge(mutant)
    finally:
        copies.put(copy)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a mutant may survive.

    Attributes:
        kind: ``equivalent``, ``performance``, ``beyond`` (the contract says nothing about it) or ``gap``.
        why: One sentence.
    """

    kind: str
    why: str


def explanations() -> Mapping[str, Explanation]:
    """Return the explanations by the beginning of a mutant's id, from ``survivors.toml``."""
    told = tomllib.loads(_SURVIVORS.read_text(encoding="utf-8"))
    return {
        prefix: Explanation(kind, why) for kind, group in told.items() for why, ids in group.items() for prefix in ids
    }


def explanation_of(mutant_id: str, known: Mapping[str, Explanation]) -> Explanation | None:
    """Return the explanation with the longest beginning of this id."""
    fitting = [prefix for prefix in known if mutant_id == prefix or mutant_id.startswith(prefix + "/")]
    return known[max(fitting, key=len)] if fitting else None


def show(results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Print the score and the survivors, and return whether 95 % of the mutants that matter were killed."""
    outcomes = Counter(told["outcome"] for told in results.values())
    known = explanations()
    survivors = {each: explanation_of(each, known) for each, told in results.items() if told["outcome"] == SURVIVED}
    kinds = Counter("unexplained" if each is None else each.kind for each in survivors.values())
    killed = outcomes[KILLED] + outcomes[TIMEOUT]
    alive = kinds["gap"] + kinds["unexplained"]
    _say(f"\n{len(results)} mutants: " + ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items())))
    _say("survivors: " + (", ".join(f"{number} {name}" for name, number in sorted(kinds.items())) or "none"))
    counted = killed + alive + kinds["performance"] + kinds["beyond"]
    _say(f"killed of all that are not equivalent: {killed} of {counted}{_percent(killed, counted)}")
    _say(f"killed of those that break the contract: {killed} of {killed + alive}{_percent(killed, killed + alive)}")
    layers = Counter(told["layer"] for told in results.values() if "layer" in told)
    _say("killed first by: " + ", ".join(f"{name} {number}" for name, number in layers.most_common()))
    for each, explanation in survivors.items():
        told = results[each]
        _say(f"\n{each} (line {told['line']}): {told['before']!r} -> {told['after']!r}")
        _say("    " + ("unexplained" if explanation is None else f"{explanation.kind}: {explanation.why}"))
    for each, told in results.items():
        if told["outcome"] in {TIMEOUT, BROKEN}:
            _say(f"\n{each}: {told['outcome']} {told.get('check', '')}")
    return not outcomes[BROKEN] and not kinds["unexplained"] and killed >= 0.95 * (killed + alive)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is what the command is for


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""


def add_options(parser: argparse.ArgumentParser, results: str) -> None:
    """Add the options that both commands have."""
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs of the suite at a time"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants that have TEXT in their id")
    parser.add_argument(
        "--json", type=Path, default=Path(results), metavar="FILE",
        help="results, a line of JSON each; those in it already are not measured again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--checks", default="", metavar="EXPRESSION",
        help="let only these checks judge, as pytest's -k names them; what they do not kill is not kept",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")


def main(mutants: Iterable[Mutant], arguments: argparse.Namespace) -> int:
    """Do what the command line says and return the exit status."""
    chosen = [each for each in mutants if arguments.only in each.id]
    if arguments.list:
        for each in chosen:
            _say(f"{each.id} (line {each.line}): {each.before!r} -> {each.after!r}")
        _say(f"{len(chosen)} mutants")
        return 0
    return 0 if show(run(chosen, arguments.json, jobs=arguments.jobs, checks=arguments.checks)) else 1
