"""Rounds of measurements, and what is made of them."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Measurement:
    """What one process measures.

    Attributes:
        module: ``floors`` or ``workloads``.
        function: Its function.
        arguments: Makes its arguments, and the empty store that it works on.
    """

    module: str
    function: str
    arguments: Callable[[], dict[str, Any]]

    def run(self) -> Figures:
        """Do it, and return its figures."""
        script = str(Path(__file__).with_name("measure.py"))
        command = [sys.executable, script, self.module, self.function, json.dumps(self.arguments())]
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        figures: Figures = json.loads(answer.stdout or "{}")
        return figures


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: The workload; the first word is a short name.
        aim: What the ratio (or the time) is meant to be, as a text.
        workload: The measurement.
        floor: What it is compared with.
        in_seconds: Whether times are shown, and not rates.
    """

    name: str
    aim: str
    workload: Measurement
    floor: Measurement
    in_seconds: bool = False

    def ratios(self, rounds: Sequence[Figures]) -> list[float]:
        """Return the ratio of each round: of the rates, or of the median times."""
        key = "p50" if self.in_seconds else "rate"
        return [each[f"workload.{key}"] / each[f"floor.{key}"] for each in rounds]

    def cells(self, rounds: Sequence[Figures]) -> list[str]:
        """Return the cells of the table behind the name."""
        ratios = self.ratios(rounds)
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        return [f"{statistics.median(ratios):.2f}", spread, self.aim, *map(self._shown(rounds), ("workload", "floor"))]

    def _shown(self, rounds: Sequence[Figures]) -> Callable[[str], str]:
        def shown(whose: str) -> str:
            medians = {
                key.removeprefix(f"{whose}."): statistics.median(each[key] for each in rounds)
                for key in rounds[0]
                if key.startswith(f"{whose}.")
            }
            if not self.in_seconds:
                return f"{medians['rate']:,.0f} / s"
            text = f"p50 {1000 * medians['p50']:.1f} ms, p99 {1000 * medians['p99']:.1f} ms"
            return f"{text}, idle {100 * medians['idle']:.1f} %" if "idle" in medians else text

        return shown


def measured(rows: Sequence[Row], number: int, *, say: Callable[[str], object]) -> dict[str, list[Figures]]:
    """Measure the rows in interleaved rounds, every other one backwards; return the figures of each row by round.

    A floor that several rows share is measured for each, right beside it.
    """
    found: dict[str, list[Figures]] = {row.name: [] for row in rows}
    for number_of_round in range(number):
        for row in reversed(rows) if number_of_round % 2 else rows:
            floor = row.floor.run()
            workload = row.workload.run()
            figures = {f"floor.{key}": value for key, value in floor.items()}
            figures |= {f"workload.{key}": value for key, value in workload.items()}
            found[row.name].append(figures)
            say(f"round {number_of_round + 1}: {row.name}: {row.ratios([figures])[0]:.3f}")
    return found
