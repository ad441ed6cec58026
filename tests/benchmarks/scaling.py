"""How rates change with the size of things: what is in the store, the concurrency, the payloads, the workers.

The figures are ratios to the floor with which each was measured, so that a slow minute of the machine is no bend in a
curve.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from plots import plot_curves
from rounds import Measurement

_ROUNDS: Final = 2
_STORED: Final = (0, 1_000, 10_000, 100_000, 1_000_000)
_CONCURRENCY: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_PAYLOADS: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
_WORKERS: Final = (1, 2, 3, 4)

_Points = dict[float, list[float]]
_Make = Callable[[float], tuple[str, dict[str, Any]]]


def measure_and_plot(folder: str, plots: Path, *, largest: int, say: Callable[[str], object]) -> None:
    """Measure each curve in interleaved rounds, and draw it."""
    place = _Place(Path(folder))
    stored = [number for number in _STORED if number <= largest]
    curves: list[tuple[str, str, dict[str, tuple[Sequence[float], _Make]]]] = [
        (f"scaling-{name}.svg", f"{name} tasks in the store", _beside(place, status, stored))
        for status, name in (("success", "finished"), ("pending", "pending"))
    ]

    def draining(**arguments: Any) -> tuple[str, dict[str, Any]]:
        return "drain", place.empty() | {"number": 4_000} | arguments

    def sized(function: str, payload: float) -> tuple[str, dict[str, Any]]:
        return function, place.empty() | {"number": _fewer(payload), "payload": int(payload)}

    def shared(workers: float) -> tuple[str, dict[str, Any]]:
        return "drain_by_processes", place.empty() | {"number": 8_000, "workers": int(workers)}

    curves += [
        (
            "scaling-concurrency.svg",
            "concurrency of the worker",
            {"drain": (_CONCURRENCY, lambda x: draining(concurrency=int(x)))},
        ),
        (
            "scaling-payload.svg",
            "bytes of payload",
            {name: (_PAYLOADS, partial(sized, name)) for name in ("enqueue", "drain")},
        ),
        ("scaling-workers.svg", "worker processes", {"drain": (_WORKERS, shared)}),
    ]
    plots.mkdir(parents=True, exist_ok=True)
    for file, label, lines in curves:
        drawn = {name: _measured(xs, make, name, place, say) for name, (xs, make) in lines.items()}
        plot_curves(plots / file, drawn, label, "ratio to the floor")


def _beside(place: "_Place", status: str, stored: Sequence[float]) -> dict[str, tuple[Sequence[float], _Make]]:
    """Return the curves for the number of tasks that are in the store already."""

    def enqueue(x: float) -> tuple[str, dict[str, Any]]:
        return "enqueue", place.holding(int(x), status) | {"number": 2_000}

    def drain(x: float) -> tuple[str, dict[str, Any]]:
        return "drain", place.holding(int(x), status) | {"number": 4_000, "stop_early": True}

    return {"enqueue": (stored, enqueue), "drain": (stored, drain)}


def _measured(xs: Sequence[float], make: _Make, name: str, place: "_Place", say: Callable[[str], object]) -> _Points:
    points: _Points = {x: [] for x in xs}
    floor = {"synchronous": "NORMAL", "number": 10_000} | ({"batch": 1} if name == "enqueue" else {})
    for number_of_round in range(_ROUNDS):
        for x in reversed(xs) if number_of_round % 2 else xs:
            bare = Measurement("floors", f"sqlite_{name}", lambda: place.bare() | floor).run()["rate"]
            function, arguments = make(x)
            rate = Measurement("workloads", function, lambda given=arguments: given).run()["rate"]
            points[x].append(rate / bare)
            say(f"{function} at {x:,.0f}: {rate:,.0f} / s, {rate / bare:.3f}")
    return points


def _fewer(payload: float) -> int:
    return int(max(50, min(2_000, 50_000_000 / payload)))


class _Place:
    """Where the stores are: each takes the place of the last; what took long to make is kept and copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def bare(self) -> dict[str, Any]:
        return {"folder": str(self._emptied())}

    def empty(self) -> dict[str, Any]:
        return {"url": f"sqlite:///{self._emptied() / 'store.db'}?synchronous=NORMAL"}

    def holding(self, number: int, status: str) -> dict[str, Any]:
        path = self._emptied() / "store.db"
        if number:
            template = self._folder / f"{status}-{number}.db"
            if not template.exists():
                arguments = {"path": str(template), "number": number, "status": status}
                Measurement("workloads", "filled_store", lambda: arguments).run()
            shutil.copyfile(template, path)
        return {"url": f"sqlite:///{path}?synchronous=NORMAL"}

    def _emptied(self) -> Path:
        place = self._folder / "present"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place
