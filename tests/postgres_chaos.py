"""What may happen to a PostgreSQL server, for the storm: restarts, and connections that an administrator ends.

    python tests/storm.py --url "$(python tests/postgres_chaos.py)" --chaos postgres_chaos:restarts_and_kills

Called as a program it starts a server for that, which ends when its directory is passed to the word ``stop``.
"""

import asyncio
import random
import sys
import threading
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from taskqueue.backends.postgres import PostgresBackend
from taskqueue_conformance.postgres_server import PostgresServer

_PAUSE_S: Final = 4.0
_KILLS_PER_RESTART: Final = 6


def restarts_and_kills(url: str, rng: random.Random, ended: threading.Event) -> None:
    """Restart the server every few seconds, in good order and immediately by turns, and end connections in between."""
    server = PostgresServer(parse_qs(urlsplit(url).query)["host"][0])
    restarts = kills = 0
    while True:
        for _ in range(_KILLS_PER_RESTART):
            if ended.wait(rng.random() * 2 * _PAUSE_S / _KILLS_PER_RESTART):
                print(f"chaos: {restarts} restarts, {kills} connections ended", file=sys.stderr)  # noqa: T201 - beside the words of the storm
                return
            kills += asyncio.run(_end_a_connection(url, rng))
        server.restart("immediate" if restarts % 2 else "fast")
        restarts += 1


async def _end_a_connection(url: str, rng: random.Random) -> int:
    connection = await asyncpg.connect(PostgresBackend.from_url(url)._url)
    try:
        found = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'taskqueue'")
        if not found:
            return 0
        return int(await connection.fetchval("SELECT pg_terminate_backend($1)", rng.choice(found)[0]))
    finally:
        await connection.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["stop"]:
        PostgresServer(sys.argv[2]).stop()
    else:
        print(PostgresServer.start().url)  # noqa: T201 - for the shell
