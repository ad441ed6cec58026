"""``compare``: the reports of several backends, or of several runs, side by side."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskqueue_conformance.report import FILE_NAME, FORMAT
from taskqueue_conformance.requirements import REQUIREMENTS

_STYLES: Final = {"good": "green", "bad": "red", "open": "yellow"}
_ASIDE: Final = ("not claimed", "not verified", "skipped", "not run")


class CompareError(Exception):
    """Something that cannot be compared; the message says what."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one report says of one requirement.

    Attributes:
        passed: How many checks passed.
        total: How many there are.
        verdict: The word for all of them, such as ``passed`` or ``not claimed``.
        aside: What neither passed nor failed: ``2 not claimed``.
    """

    passed: int
    total: int
    verdict: str
    aside: tuple[str, ...]

    def __str__(self) -> str:
        """Return the cell as one line: checks passed and checks, the verdict, what is neither."""
        aside = [each for each in self.aside if not each.endswith(f" {self.verdict}")]
        return " · ".join([f"{self.passed}/{self.total}", self.verdict, *aside])


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement; a cell is None where a report does not know it."""

    id: str
    title: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Requirements by backends.

    Attributes:
        labels: What the columns are called, each once.
        reports: The reports, in the order given.
        rows: The requirements, in the order of the specification.
        totals: What each report says of all checks together, with the run's verdict.
        warnings: Why the columns may not be comparable.
    """

    labels: tuple[str, ...]
    reports: tuple[Mapping[str, Any], ...]
    rows: tuple[Row, ...]
    totals: tuple[Cell, ...]
    warnings: tuple[str, ...]


_NEEDED: Final = {
    "backend", "backend_class", "verdict", "requirements", "not_claimed",
    "suite_version", "spec_version", "versions", "profile", "seed", "duration_s",
}  # fmt: skip
"""What a comparison shows of a report."""


def read(path: Path) -> Mapping[str, Any]:
    """Return the report in a file, or in the folder that ``--conformance-report`` was given.

    Raises:
        CompareError: There is none, or it has a format that this version does not know.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        report: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CompareError(f"{file} is no JSON: {error}") from error
    found = report.get("format") if isinstance(report, dict) else None
    if found != FORMAT:
        raise CompareError(
            f"{file} is not a report that this version reads: its format is {found!r}, and not {FORMAT!r}. "
            "Reports are written by pytest --conformance=TARGET --conformance-report=DIR"
        )
    if lacking := _NEEDED - report.keys():
        raise CompareError(f"{file} lacks {', '.join(sorted(lacking))}, which a report of the format {FORMAT!r} has")
    known: Mapping[str, Any] = report
    return known


def compared(paths: Sequence[Path]) -> Comparison:
    """Return the comparison of the reports in these files, in the order given.

    Raises:
        CompareError: One of them cannot be read.
    """
    reports = tuple(map(read, paths))
    labels = _labels([report["backend"] for report in reports], paths)
    titles = {each["id"]: each["title"] for report in reports for each in report["requirements"]}
    order = [each for each in REQUIREMENTS if each in titles] + [each for each in titles if each not in REQUIREMENTS]
    by_id = [{each["id"]: each for each in report["requirements"]} for report in reports]
    rows = [
        Row(each, titles[each], tuple(_cell(found[each]) if each in found else None for found in by_id))
        for each in order
    ]
    totals = tuple(
        _cell({"verdict": report["verdict"], "checks": [c for each in report["requirements"] for c in each["checks"]]})
        for report in reports
    )
    return Comparison(labels, reports, tuple(rows), totals, tuple(_warnings(labels, reports)))


def _labels(backends: Sequence[str], paths: Sequence[Path]) -> tuple[str, ...]:
    repeated = {name for name, count in Counter(backends).items() if count > 1}
    return tuple(
        f"{backend} ({path})" if backend in repeated else backend
        for backend, path in zip(backends, paths, strict=True)
    )  # fmt: skip


def _cell(requirement: Mapping[str, Any]) -> Cell:
    outcomes = Counter(check["outcome"] for check in requirement["checks"])
    aside = tuple(f"{outcomes[outcome]} {outcome}" for outcome in _ASIDE if outcomes[outcome])
    return Cell(outcomes["passed"], outcomes.total(), requirement["verdict"], aside)


def _warnings(labels: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    for key, name in (
        ("suite_version", "versions of the suite"),
        ("spec_version", "versions of the specification"),
        ("profile", "profiles"),
    ):
        if len({report[key] for report in reports}) > 1:
            told = ", ".join(f"{label} {report[key]}" for label, report in zip(labels, reports, strict=True))
            warnings.append(f"different {name}: {told}")
    checks = [{c["id"] for each in report["requirements"] for c in each["checks"]} for report in reports]
    everything = set().union(*checks)
    for label, found in zip(labels, checks, strict=True):
        if missing := len(everything - found):
            warnings.append(f"{label} lacks {missing} of the checks that others have")
    return warnings


def as_table(comparison: Comparison) -> Table:
    """Return the comparison for a terminal."""
    caption = "checks passed / checks · verdict · what neither passed nor failed"
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("requirement", "all", no_wrap=True)
    for label, total in zip(comparison.labels, comparison.totals, strict=True):
        table.add_column(Text(label, overflow="fold"), _styled(total))
    for row in comparison.rows:
        table.add_row(row.id, *map(_styled, row.cells))
    return table


def _styled(cell: Cell | None) -> Text:
    return Text("unknown to it", "yellow") if cell is None else Text(str(cell), _STYLES[_kind(cell.verdict)])


def _kind(verdict: str) -> str:
    if verdict in {"passed", "CONFORMANT"}:
        return "good"
    return "bad" if verdict in {"failed", "NOT CONFORMANT"} else "open"


def as_markdown(comparison: Comparison) -> str:
    """Return the comparison as a table in Markdown, with what stands against it above."""
    head = ["requirement", *comparison.labels]
    lines = [f"> {_plain(warning)}\n" for warning in comparison.warnings]
    lines += [_line(head), _line(["---"] * len(head))]
    lines += [
        _line([f"**{row.id}** {row.title}", *("unknown to it" if each is None else str(each) for each in row.cells)])
        for row in comparison.rows
    ]
    lines.append(_line(["**all**", *(f"**{each}**" for each in comparison.totals)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def as_html(comparison: Comparison) -> str:
    """Return the comparison as a page, made like the report's own."""
    # A template library is needed for this alone.
    from taskqueue_conformance import page  # noqa: PLC0415 - see above

    return page.environment().get_template("compare.html.j2").render(page.printable(_data(comparison)))


def _data(comparison: Comparison) -> dict[str, Any]:
    return {
        "labels": list(comparison.labels),
        "warnings": list(comparison.warnings),
        "reports": list(comparison.reports),
        "rows": [
            {"id": row.id, "title": row.title, "cells": [_cell_data(each) for each in row.cells]}
            for row in comparison.rows
        ],
        "totals": [_cell_data(each) for each in comparison.totals],
    }


def _cell_data(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {"passed": cell.passed, "total": cell.total, "verdict": cell.verdict, "aside": list(cell.aside)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="a conformance.json, or the folder that it is in"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it as a table in Markdown")


def run(options: argparse.Namespace) -> int:
    """Print the comparison, write the files that were asked for, and return 0; 2 if a report cannot be read."""
    try:
        comparison = compared(options.reports)
    except CompareError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a command
        return 2
    console = Console()
    console.print(as_table(comparison))
    for warning in comparison.warnings:
        console.print(f"not alike: {warning}", style="yellow", markup=False, highlight=False)
    for path, write in ((options.html, as_html), (options.markdown, as_markdown)):
        if path is not None:
            path.write_text(write(comparison), encoding="utf-8", newline="\n")
    return 0
