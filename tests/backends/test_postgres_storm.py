"""The storm in short, on a PostgreSQL server that is restarted and whose connections are ended."""

import subprocess
import sys
from pathlib import Path

import storm

from taskqueue_conformance.postgres_server import PostgresServer


def test_a_short_storm_with_restarts_loses_nothing(postgres_server: PostgresServer, postgres_store: str) -> None:
    url = f"{postgres_server.url}&{postgres_store.rpartition('&')[2]}"
    chaos = "postgres_chaos:restarts_and_kills"
    command = [sys.executable, storm.__file__, "--url", url, "--chaos", chaos, "--seconds", "6", "--tasks", "200"]
    folder = Path(storm.__file__).parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every task is accounted for" in done.stdout
    assert "chaos: 0 restarts" not in done.stderr
