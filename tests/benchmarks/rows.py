"""The rows of the table: workloads, floors and aims."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from rounds import Measurement, Row

ALL_ROWS: Final = (
    *("W1", "W2-bulk", "W2-calls", "W3", "W1-full", "W3-full", "W4", "W4-full", "W5-enqueue", "W5-drain", "W6"),
    *("PG-W1", "PG-W2", "PG-W3", "PG-W4"),
)
_FINISHED: Final = 200_000


def sqlite_rows(folder: Path) -> list[Row]:
    """Return the rows for SQLite; the stores are made in ``folder``, each measurement's in the place of the last."""
    store = _Stores(folder)

    def floor(function: str, synchronous: str = "NORMAL", **arguments: Any) -> Measurement:
        return Measurement("floors", function, lambda: store.bare() | {"synchronous": synchronous} | arguments)

    def work(function: str, synchronous: str = "NORMAL", *, finished: bool = False, **arguments: Any) -> Measurement:
        return Measurement(
            "workloads", function, lambda: {"url": store.url(synchronous, finished=finished)} | arguments
        )

    one = partial(floor, "sqlite_enqueue", batch=1)
    hundred = floor("sqlite_enqueue", batch=100, number=50_000)
    drain = partial(floor, "sqlite_drain")
    return [
        Row("W1 enqueue, one by one", "0.25, then 0.40", work("enqueue", number=5_000), one(number=20_000)),
        Row("W2-bulk enqueue_many, 1,000 a call", "0.50", work("enqueue_many", number=50_000), hundred),
        Row("W2-calls 10,000 concurrent enqueue", "0.25", work("enqueue_concurrently", number=10_000), hundred),
        Row("W3 drain, concurrency 10", "1.0", work("drain", number=10_000), drain(number=10_000)),
        Row("W1-full W1, synchronous FULL", "0.6", work("enqueue", "FULL", number=3_000), one("FULL", number=3_000)),
        Row("W3-full W3, synchronous FULL", "2.0", work("drain", "FULL", number=5_000), drain("FULL", number=2_000)),
        Row(
            "W4 idle pick-up, two processes",
            "2 ms, p99 5 ms, idle 1 %",
            work("pick_up", number=100, idle=2),
            floor("sqlite_pickup", number=100),
            in_seconds=True,
        ),
        Row(
            "W4-full W4, synchronous FULL",
            "2 ms, p99 5 ms, idle 1 %",
            work("pick_up", "FULL", number=100, idle=2),
            floor("sqlite_pickup", "FULL", number=100),
            in_seconds=True,
        ),
        Row(
            "W5-enqueue W1, 200,000 finished / empty",
            "0.95",
            work("enqueue", finished=True, number=5_000),
            work("enqueue", number=5_000),
        ),
        Row(
            "W5-drain W3, 200,000 finished / empty",
            "0.95",
            work("drain", finished=True, number=10_000),
            work("drain", number=10_000),
        ),
        Row(
            "W6 drain, two workers / one",
            "0.9, nothing twice",
            work("drain_by_processes", number=10_000, workers=2),
            work("drain_by_processes", number=10_000, workers=1),
        ),
    ]


def postgres_rows(stack: ExitStack, *, say: Callable[[str], object]) -> list[Row]:
    """Start a PostgreSQL server and return its rows; none, and a word about why, where there cannot be one."""
    try:
        from taskqueue_conformance.postgres_server import NoServer, PostgresServer  # noqa: PLC0415 - may be missing
    except ImportError:
        say("no rows for PostgreSQL: install taskqueue-spec[test]")
        return []
    try:
        server = PostgresServer.start()
    except NoServer as error:
        say(f"no rows for PostgreSQL: {error}")
        return []
    stack.callback(server.stop)

    def floor(function: str, **arguments: Any) -> Measurement:
        return Measurement("floors", function, lambda: {"url": server.url} | arguments)

    def work(function: str, **arguments: Any) -> Measurement:
        separator = "&" if "?" in server.url else "?"
        return Measurement(
            "workloads",
            function,
            lambda: {"url": f"{server.url}{separator}schema=benchmark_{uuid4().hex[:8]}"} | arguments,
        )

    one, hundred = floor("postgres_enqueue", number=5_000, batch=1), floor("postgres_enqueue", number=50_000, batch=100)
    return [
        Row("PG-W1 enqueue, one by one", "0.6", work("enqueue", number=3_000), one),
        Row("PG-W2 enqueue_many, 1,000 a call", "0.4", work("enqueue_many", number=30_000), hundred),
        Row(
            "PG-W3 drain, concurrency 10",
            "4",
            work("drain", number=5_000),
            floor("postgres_drain", number=3_000),
        ),
        Row(
            "PG-W4 idle pick-up, two processes",
            "3 ms",
            work("pick_up", number=100, idle=2),
            floor("postgres_pickup", number=100),
            in_seconds=True,
        ),
    ]


class _Stores:
    """The place of the stores: each new one takes it from the last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._template = folder / "finished" / "store.db"

    def bare(self) -> dict[str, Any]:
        return {"folder": str(self._emptied())}

    def url(self, synchronous: str, *, finished: bool) -> str:
        path = self._emptied() / "store.db"
        if finished:
            if not self._template.exists():
                self._template.parent.mkdir()
                arguments = {"path": str(self._template), "number": _FINISHED, "status": "success"}
                Measurement("workloads", "filled_store", lambda: arguments).run()
            shutil.copyfile(self._template, path)
            with path.open("rb") as copy:
                os.fsync(copy.fileno())  # or the first checkpoint would wait for the system to write all of it
        return f"sqlite:///{path}?synchronous={synchronous}"

    def _emptied(self) -> Path:
        place = self._folder / "present"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place
