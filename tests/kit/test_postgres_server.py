"""The server that the harness and the tests start."""

import asyncio
import os
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from taskqueue_conformance import postgres_server
from taskqueue_conformance.postgres_server import NoServer, PostgresServer


def ask(server: PostgresServer, question: str) -> Any:
    async def main() -> Any:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(question)
        finally:
            await connection.close()

    return asyncio.run(main())


def test_it_starts_restarts_and_leaves_nothing() -> None:
    server = PostgresServer.start()
    try:
        assert ask(server, "SHOW fsync") == "on"  # what is acknowledged is synced
        assert ask(server, "SHOW listen_addresses") == ""  # nobody reaches it over the network
        assert ask(server, "CREATE TABLE kept (id int)") is None
        started = ask(server, "SELECT pg_postmaster_start_time()")
        for mode in ("fast", "immediate"):
            PostgresServer(server.folder).restart(mode)  # as another process does
            again = ask(server, "SELECT pg_postmaster_start_time()")
            assert again > started
            started = again
        assert ask(server, "SELECT count(*) FROM kept") == 0
        if os.geteuid() == 0:
            assert Path(server.folder).stat().st_uid != 0  # PostgreSQL does not run as root
    finally:
        server.stop()
    assert not Path(server.folder).exists()
    server.stop()  # once more does no harm


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "PACKAGE", "no-such-package")
    with pytest.raises(NoServer, match=r"taskqueue-spec\[test\]"):
        PostgresServer.start()


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres_server._SETTINGS, "shared_buffers", "much")
    with pytest.raises(NoServer, match="shared_buffers"):
        PostgresServer.start()
