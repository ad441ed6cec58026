"""Drawings of the figures, as SVG. Needs matplotlib, which the extra ``[dev]`` has."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from rounds import Figures, Row

# Text stays text, and the same figures give the same file.
mpl.use("svg")
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["svg.hashsalt"] = "taskqueue"
_COLOUR = "#2f6f9f"


def plot_table(path: Path, rows: Sequence[Row], found: Mapping[str, Sequence[Figures]]) -> None:
    """Draw the ratio of each row: the median as a bar, the range of the rounds as a line."""
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(rows) + 1))
    for place, row in enumerate(reversed(rows)):
        ratios = row.ratios(found[row.name])
        axes.barh(place, statistics.median(ratios), color=_COLOUR)
        axes.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("ratio to the floor (W4: of times, so less is better)")
    _save(figure, path)


def plot_curves(path: Path, curves: Mapping[str, Mapping[float, Sequence[float]]], x_label: str, y_label: str) -> None:
    """Draw curves over a logarithmic axis: medians joined, the range of the rounds as vertical lines."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for name, points in curves.items():
        places = list(points)
        drawn = [max(place, min((each for each in places if each), default=1) / 10) for place in places]
        (line,) = axes.plot(drawn, [statistics.median(points[place]) for place in places], marker="o", label=name)
        for x, place in zip(drawn, places, strict=True):
            axes.plot([x, x], [min(points[place]), max(points[place])], color=line.get_color(), linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(drawn, [f"{place:,.0f}" for place in places], rotation=30)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
