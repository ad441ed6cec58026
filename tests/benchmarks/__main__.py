"""How fast taskqueue is, against what nothing can beat on the same machine.

    python tests/benchmarks --help

Prints a table. Each row is a workload; its figure is the ratio of its rate to that of a floor: the same work in a bare
loop over the driver (``floors.py``). Every measurement is made in a process of its own, on a new store in the
temporary directory (``TMPDIR``). The rounds are interleaved: each measures the floors and the workloads one after the
other, so that a ratio compares what was measured within the same seconds. Given are the median of the rounds and the
range. The machine is named by its cores only, since rates mean nothing elsewhere and ratios do. Never a test: nothing
passes or fails by its time.
"""

import argparse
import json
import os
import platform
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rounds import Row, measured
from rows import ALL_ROWS, postgres_rows, sqlite_rows

_OUT = Console(highlight=False, width=150)


def main() -> None:
    """Run the measurements that the command line asks for."""
    arguments = _arguments()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="taskqueue-benchmark-"))
        if arguments.scaling:
            from scaling import measure_and_plot  # noqa: PLC0415 - needs matplotlib

            measure_and_plot(folder, arguments.plots, largest=arguments.largest, say=_OUT.print)
            return
        rows = sqlite_rows(Path(folder))
        if not arguments.no_postgres:
            rows += postgres_rows(stack, say=_OUT.print)
        if arguments.only:
            rows = [row for row in rows if row.name.split(" ")[0] in arguments.only]
        found = measured(rows, arguments.rounds, say=_OUT.print if arguments.verbose else _nothing)
    _OUT.print(_table(rows, found))
    cores, version = os.cpu_count(), platform.python_version()
    _OUT.print(f"{cores} cores, Python {version}, SQLite {sqlite3.sqlite_version}, {arguments.rounds} rounds")
    if arguments.json:
        summary = {row.name: found[row.name] for row in rows}
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n")
    if arguments.plots:
        from plots import plot_table  # noqa: PLC0415 - needs matplotlib

        arguments.plots.mkdir(parents=True, exist_ok=True)
        plot_table(arguments.plots / "performance.svg", rows, found)


def _table(rows: list[Row], found: dict[str, list[dict[str, float]]]) -> Table:
    table = Table("workload", "ratio", "range", "aim", "measured", "floor")
    for row in rows:
        if row.name in found:
            table.add_row(row.name, *row.cells(found[row.name]))
    return table


def _nothing(_: str) -> None:
    pass


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"only these rows, of {' '.join(ALL_ROWS)}")
    parser.add_argument("--no-postgres", action="store_true", help="leave out the rows for PostgreSQL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of each round to this file")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the figures (needs matplotlib)")
    parser.add_argument("--scaling", action="store_true", help="instead, how rates change with size; takes long")
    parser.add_argument(
        "--largest",
        type=int,
        default=1_000_000,
        help="with --scaling: tasks in the store at most (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="print every measurement")
    arguments = parser.parse_args()
    if arguments.scaling and arguments.plots is None:
        parser.error("--scaling draws plots: say where to, with --plots FOLDER")
    return arguments


if __name__ == "__main__":
    main()
