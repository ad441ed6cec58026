"""What nothing can beat on this machine: the same work in bare loops over the driver, without a queue.

Each function does one measurement, in a process of its own, and returns a rate in operations a second. The tables have
what any queue needs and no more: a number, a payload, a status, a result, and an index on what is pending. A task is
drained in two operations: it is claimed, and its result is stored.
"""

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PAYLOAD: Final = b"x" * 200

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS floor (id {key}, payload {blob}, status INTEGER, result {blob})",
    "CREATE INDEX IF NOT EXISTS floor_pending ON floor (id) WHERE status = 0",
)
_INSERT: Final = "INSERT INTO floor (payload, status) VALUES ({p}, 0)"
_CLAIM: Final = (
    "UPDATE floor SET status = 1 WHERE id = (SELECT id FROM floor WHERE status = 0 ORDER BY id LIMIT 1 {lock}) "
    "RETURNING id, payload"
)
_FINISH: Final = "UPDATE floor SET status = 2, result = {p} WHERE id = {p}"
_WARM_UP: Final = 200


def sqlite_enqueue(folder: str, *, number: int, batch: int, synchronous: str) -> dict[str, float]:
    """Insert ``number`` rows, ``batch`` in a transaction."""
    with _sqlite(folder, synchronous) as db:
        insert = _INSERT.format(p="?")
        return _timed(number, lambda size: _in_batches(db, size, batch, lambda: db.execute(insert, (PAYLOAD,))))


def sqlite_drain(folder: str, *, number: int, synchronous: str) -> dict[str, float]:
    """Claim and finish ``number`` rows one by one, each step in a transaction of its own."""
    claim, finish = _CLAIM.format(lock=""), _FINISH.format(p="?")
    with _sqlite(folder, synchronous) as db:
        insert = _INSERT.format(p="?")
        _in_batches(db, number + _WARM_UP, 1000, lambda: db.execute(insert, (PAYLOAD,)))

        def drain(size: int) -> None:
            for _ in range(size):
                ((key, _payload),) = db.execute(claim).fetchall()
                db.execute(finish, (b"result", key))

        return _timed(number, drain)


def sqlite_pickup(folder: str, *, number: int, synchronous: str) -> dict[str, float]:
    """Insert rows one by one and wait for each result; another process and this one look every millisecond."""
    with _sqlite(folder, synchronous) as db:
        worker = subprocess.Popen([sys.executable, __file__, folder, synchronous])  # this file
        try:
            seconds = []
            for _ in range(number):
                time.sleep(0.01)
                began = time.perf_counter()
                key = db.execute(_INSERT.format(p="?"), (PAYLOAD,)).lastrowid
                while db.execute("SELECT result FROM floor WHERE id = ?", (key,)).fetchone() == (None,):
                    time.sleep(0.001)
                seconds.append(time.perf_counter() - began)
        finally:
            worker.kill()
            worker.wait()
    seconds = sorted(seconds[number // 10 :])
    return {"p50": seconds[len(seconds) // 2], "p99": seconds[len(seconds) * 99 // 100]}


def _serve(folder: str, synchronous: str) -> None:
    """Be the other process of ``sqlite_pickup``, until killed."""
    claim, finish = _CLAIM.format(lock=""), _FINISH.format(p="?")
    with _sqlite(folder, synchronous) as db:
        while True:
            if db.execute("SELECT 1 FROM floor WHERE status = 0").fetchone() is None:
                time.sleep(0.001)
                continue
            for key, _payload in db.execute(claim).fetchall():
                db.execute(finish, (b"result", key))


def postgres_enqueue(url: str, *, number: int, batch: int) -> dict[str, float]:
    """Insert ``number`` rows, ``batch`` in a transaction; a batch is one statement."""
    insert = "INSERT INTO floor (payload, status) SELECT unnest($1::bytea[]), 0"

    async def main(db: Any) -> dict[str, float]:
        one = await db.prepare(_INSERT.format(p="$1"))
        many = await db.prepare(insert)

        async def enqueue(size: int) -> None:
            for _ in range(size // batch):
                await (one.fetch(PAYLOAD) if batch == 1 else many.fetch([PAYLOAD] * batch))

        return await _timed_async(number, enqueue)

    return _with_postgres(url, main)


def postgres_drain(url: str, *, number: int) -> dict[str, float]:
    """Claim and finish ``number`` rows one by one, each step in a transaction of its own."""

    async def main(db: Any) -> dict[str, float]:
        await db.execute("INSERT INTO floor (payload, status) SELECT $1, 0 FROM generate_series(1, $2::integer)",
                         PAYLOAD, number + _WARM_UP)  # fmt: skip
        claim = await db.prepare(_CLAIM.format(lock="FOR UPDATE SKIP LOCKED"))
        finish = await db.prepare("UPDATE floor SET status = 2, result = $1 WHERE id = $2")

        async def drain(size: int) -> None:
            for _ in range(size):
                row = await claim.fetchrow()
                await finish.fetch(b"result", row["id"])

        return await _timed_async(number, drain)

    return _with_postgres(url, main)


def postgres_pickup(url: str, *, number: int) -> dict[str, float]:
    """Insert rows one by one and wait for each result; another connection and this one look every millisecond."""
    import asyncpg  # noqa: PLC0415 - as below

    async def serve(other: Any) -> None:
        claim = await other.prepare(_CLAIM.format(lock="FOR UPDATE SKIP LOCKED"))
        finish = await other.prepare("UPDATE floor SET status = 2, result = $1 WHERE id = $2")
        while True:
            while (row := await claim.fetchrow()) is not None:
                await finish.fetch(b"result", row["id"])
            await asyncio.sleep(0.001)

    async def main(db: Any) -> dict[str, float]:
        other = await asyncpg.connect(url)
        serving = asyncio.create_task(serve(other))
        insert = await db.prepare(_INSERT.format(p="$1") + " RETURNING id")
        look = await db.prepare("SELECT result FROM floor WHERE id = $1")
        seconds = []
        for _ in range(number):
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            key = await insert.fetchval(PAYLOAD)
            while await look.fetchval(key) is None and not serving.done():  # noqa: ASYNC110 - polling is the floor
                await asyncio.sleep(0.001)
            seconds.append(time.perf_counter() - began)
        serving.cancel()
        await asyncio.wait([serving])
        await other.close()
        seconds.sort()
        return {"p50": seconds[len(seconds) // 2], "p99": seconds[len(seconds) * 99 // 100]}

    return _with_postgres(url, main)


def _in_batches(db: sqlite3.Connection, number: int, batch: int, insert: Callable[[], object]) -> None:
    for start in range(0, number, batch):
        if batch > 1:
            db.execute("BEGIN IMMEDIATE")
        for _ in range(min(batch, number - start)):
            insert()
        if batch > 1:
            db.execute("COMMIT")


def _timed(number: int, work: Callable[[int], None]) -> dict[str, float]:
    work(_WARM_UP)
    began = time.perf_counter()
    work(number)
    return {"rate": number / (time.perf_counter() - began)}


async def _timed_async(number: int, work: Callable[[int], Any]) -> dict[str, float]:
    await work(_WARM_UP)
    began = time.perf_counter()
    await work(number)
    return {"rate": number / (time.perf_counter() - began)}


@contextmanager
def _sqlite(folder: str, synchronous: str) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(Path(folder) / "floor.db", isolation_level=None, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        for statement in _TABLE:
            db.execute(statement.format(key="INTEGER PRIMARY KEY", blob="BLOB"))
        yield db
    finally:
        db.close()


def _with_postgres(url: str, work: Callable[[Any], Any]) -> dict[str, float]:
    import asyncpg  # noqa: PLC0415 - an extra, which the rows for SQLite do without

    async def main() -> dict[str, float]:
        db = await asyncpg.connect(url)
        try:
            await db.execute("DROP TABLE IF EXISTS floor")
            for statement in _TABLE:
                await db.execute(statement.format(key="BIGSERIAL PRIMARY KEY", blob="BYTEA"))
            found: dict[str, float] = await work(db)
        finally:
            await db.execute("DROP TABLE IF EXISTS floor")
            await db.close()
        return found

    return asyncio.run(main())


if __name__ == "__main__":
    _serve(*sys.argv[1:])
