"""``python -m taskqueue_conformance defects``: runs the suite against every planted defect, and says what it caught."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from taskqueue_conformance.defects.catalogue import MODULE, Defect, catalogue
from taskqueue_conformance.defects.clauses import IMPOSSIBLE
from taskqueue_conformance.defects.controls import NULLS
from taskqueue_conformance.defects.matrix import Control, Finding, Kill, Matrix, markdown, requirements_without
from taskqueue_conformance.defects.measure import Job, Run, measure, preload
from taskqueue_conformance.suite import LAYERS

PROGRESS_S = 30.0
"""How often the command says how far it is where there is no terminal, in seconds."""
_CHEAP = frozenset({"scenarios", "edges"})
"""The layers that nearly every defect is run against, and that take the least time."""
_WIDTH = 170  # of a file or a pipe
_EXAMPLE = Path("docs") / "examples" / "lmdb_backend.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the kill matrix as Markdown to FILE")
    parser.add_argument("--only", action="append", metavar="ID", help="only this defect; may be repeated")
    parser.add_argument("--full", action="store_true", help="run every check against each defect, not up to the first")
    parser.add_argument(
        "--in-order",
        action="store_true",
        help="run the layers in the suite's order, up to the first check that fails; by default the layer that is "
        "expected to catch a defect runs first, and the others only if it does not",
    )
    parser.add_argument("--layers", default=",".join(LAYERS), metavar="NAMES", help="only these layers of the suite")
    jobs = (os.cpu_count() or 1) + 1  # a run waits for a fifth of its time
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"how many at a time (default: {jobs})")
    parser.add_argument("--list", action="store_true", help="list the defects, with the command that repeats each")


def run(options: argparse.Namespace) -> int:
    """Measure and report; return the exit status: 0 only if every defect is caught for its own reason."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    chosen = _chosen(options.only)
    if options.list:
        for defect in chosen:
            console.print(f"{defect.id:<36} {defect.breaks:<10} {defect.does}\n    {defect.command}", markup=False)
        return 0
    layers = tuple(layer for layer in LAYERS if layer in options.layers.split(","))
    if not layers:
        raise SystemExit(f"--layers takes some of {','.join(LAYERS)}")
    matrix = _measured(
        chosen,
        layers=layers,
        order=_Order.ALL if options.full else _Order.SUITE if options.in_order else _Order.EXPECTED,
        jobs=options.jobs,
        controls=not options.only,
        console=console,
    )
    _print(matrix, console)
    if options.json is not None:
        options.json.write_text(json.dumps(matrix.as_json(), indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(markdown(matrix), encoding="utf-8")
    return 0 if matrix.passed else 1


def _chosen(only: Iterable[str] | None) -> list[Defect]:
    known = catalogue()
    if only is None:
        return list(known.values())
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise SystemExit(f"no defect is called {', '.join(unknown)}; --list shows them")
    return [known[each] for each in only]


class _Order(Enum):
    """Which checks are run against a defect, and in which order."""

    EXPECTED = "the layer that is expected to catch it first"
    SUITE = "the suite's order, up to the first that fails"
    ALL = "the suite's order, all of them"

    def job(self, defect: Defect, layers: tuple[str, ...]) -> Job:
        """Return the first job for a defect."""
        if self is _Order.EXPECTED and defect.layer in layers and defect.layer not in _CHEAP:
            layers = (defect.layer,)
        return Job(target=defect.target, stop=self is not _Order.ALL, layers=layers)


def _measured(
    chosen: Sequence[Defect], *, layers: tuple[str, ...], order: _Order, jobs: int, controls: bool, console: Console
) -> Matrix:
    begun = time.perf_counter()
    preload()
    full = order is _Order.ALL
    correct = _correct() if controls else []
    nulls = [f"{MODULE}:{name}" for name in NULLS] if controls else []
    # The longest first, so that nobody waits for them in the end.
    work = [Job(target=target, layers=layers) for target in correct]
    work += [Job(target=target, stop=False, layers=layers) for target in nulls]
    scenarios = [
        Job(target=each.target, stop=False, layers=("scenarios",)) for each in chosen if each.clauses and not full
    ]
    work += scenarios
    work += [order.job(each, layers) for each in sorted(chosen, key=_lasts, reverse=True)]
    by_target = {each.target: each for each in chosen}
    done: dict[Job, Run] = {}
    findings: dict[str, Finding] = {}
    with _Watch(len(work), console) as watch:
        while work:
            again: list[Job] = []
            for each in measure(work, parallel=jobs):
                done[each.job] = each
                target = each.job.target
                finding = None
                if each.job not in scenarios and target in by_target:
                    finding = findings[target] = Finding(by_target[target], each)
                    if finding.kill is not Kill.CAUGHT and each.job.layers != layers:
                        again.append(Job(target=target, layers=layers))
                        finding = None
                watch.tell(target, finding)
            watch.more(len(again))
            work = again
    return Matrix(
        findings=[findings[each.target] for each in chosen],
        clause_runs=[Finding(by_target[job.target], done[job]) for job in scenarios]
        if not full
        else list(findings.values()),
        controls=[
            *(Control(target, done[Job(target=target, stop=False, layers=layers)], null=True) for target in nulls),
            *(Control(target, done[Job(target=target, layers=layers)], null=False) for target in correct),
        ],
        full=full,
        in_order=order is not _Order.EXPECTED,
        seconds=time.perf_counter() - begun,
    )


def _lasts(defect: Defect) -> tuple[int, bool]:
    """By how long it takes to catch a defect: more layers, and files."""
    return LAYERS.index(defect.layer), defect.base == "sqlite"


class _Watch:
    """Says how far the run is: a bar on a terminal, elsewhere a line now and then. Trouble is told at once."""

    def __init__(self, total: int, console: Console) -> None:
        self._console = console
        self._total = total
        self._ended = 0
        self._begun = self._told = time.monotonic()
        columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._progress.add_task("defects", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def more(self, runs: int) -> None:
        """Take note that there is more to do."""
        self._total += runs
        self._progress.update(self._bar, total=self._total)

    def tell(self, target: str, finding: Finding | None) -> None:
        """Take note that one run has ended, and of what it found if it was that of a defect."""
        self._ended += 1
        self._progress.update(self._bar, advance=1, description=target.partition(":")[2] or target)
        if finding is not None and finding.kill is not Kill.CAUGHT:
            _print_trouble(finding, self._console)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told >= PROGRESS_S:
            self._told = now
            spent = f"{now - self._begun:.0f} s"
            self._console.print(f"{self._ended} of {self._total} runs have ended after {spent}", markup=False)


def _correct() -> list[str]:
    """Return the targets of the correct backends that can be reached here."""
    targets = ["memory", "sqlite", f"{MODULE}:plain_memory_backend", f"{MODULE}:plain_sqlite_backend"]
    example = Path(__file__).resolve().parents[3] / _EXAMPLE
    if example.exists():
        try:
            import lmdb  # noqa: F401, PLC0415 - only whether it is there
        except ModuleNotFoundError:
            return targets
        sys.path.append(str(example.parent))
        targets.append(f"{example.stem}:make_backend")
    return targets


def _print(matrix: Matrix, console: Console) -> None:
    if len(matrix.findings) <= 400 or matrix.full:  # noqa: PLR2004 - no table is read beyond
        console.print(_table(matrix))
    _print_requirements(matrix, console)
    _print_clauses(matrix, console)
    for control in matrix.controls:
        style = "green" if control.right else "bold red"
        console.print(f"{control.name}: {control.said}", style=style, markup=False)
    for kill in (Kill.SURVIVED, Kill.MISNAMED, Kill.UNDECIDED):
        for finding in matrix.of(kill):
            _print_trouble(finding, console)
    totals = ", ".join(f"{len(matrix.of(kill))} {kill}" for kill in Kill)
    layers = ", ".join(f"{layer} {len(found)}" for layer, found in matrix.by_layer().items())
    how = "caught first in" if matrix.in_order else "caught in"
    console.print(f"{how}: {layers}", markup=False)
    style = "bold green" if matrix.passed else "bold red"
    console.print(f"{len(matrix.findings)} defects: {totals}; {matrix.seconds:.0f} s", style=style, markup=False)


def _table(matrix: Matrix) -> Table:
    table = Table("defect", "breaks", *(layer[:5] for layer in LAYERS), "first caught by", "names", "s", box=None)
    for finding in matrix.findings:
        first, caught = finding.first, finding.caught_in
        table.add_row(
            finding.defect.id,
            finding.defect.breaks,
            *(_cell(layer, caught.get(layer, 0), finding, full=matrix.full) for layer in LAYERS),
            first.check.replace("[", "\\[") if first else finding.kill.upper(),
            first.breaks if first else "",
            f"{finding.run.seconds:.1f}",
            style="" if finding.kill is Kill.CAUGHT else "bold red",
        )
    return table


def _cell(layer: str, number: int, finding: Finding, *, full: bool) -> str:
    if number:
        return str(number) if full else "x"
    first = finding.first
    if not full and first is not None and LAYERS.index(layer) > LAYERS.index(first.layer):
        return ""  # not run
    return "-" if layer in finding.run.job.layers else ""


def _print_requirements(matrix: Matrix, console: Console) -> None:
    if len(matrix.findings) < len(catalogue()):
        return
    missing = requirements_without(matrix.findings)
    if missing:
        console.print(f"requirements that no defect was planted for: {', '.join(missing)}", markup=False)
    if matrix.full:
        shared = [each for each, found in matrix.by_requirement().items() if found and not matrix.alone(each)]
        console.print(f"requirements with no defect that only they catch: {', '.join(shared) or 'none'}", markup=False)


def _print_clauses(matrix: Matrix, console: Console) -> None:
    for clause, proofs in sorted(matrix.proofs().items()):
        if not proofs and clause not in IMPOSSIBLE:
            console.print(f"{clause}: no defect fails the scenarios that prove it, and no others", markup=False)


def _print_trouble(finding: Finding, console: Console) -> None:
    defect, first = finding.defect, finding.first
    console.print(f"{finding.kill.upper()}: {defect.id} ({defect.does})", style="red", markup=False)
    reasons = ", ".join(sorted(defect.reasons))
    if first is not None:
        console.print(f"  must name {reasons}; {first.check} names {first.breaks}", markup=False)
    elif finding.run.problem:
        console.print(f"  {finding.run.problem.strip()[-400:]}", markup=False)
    else:
        console.print(f"  breaks {reasons}, expected in the layer {defect.layer}", markup=False)
    console.print(f"  {defect.command}", markup=False)
