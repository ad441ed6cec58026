"""The harnesses of the backends that come with taskqueue."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from taskqueue import Backend
from taskqueue.backends.memory import MemoryBackend
from taskqueue_conformance.harness import BaseHarness

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a directory of its own is made in there
_ROOM_BYTES = 512 * 1024 * 1024


def _has_room() -> bool:
    try:
        return os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM_BYTES
    except OSError:
        return False


class MemoryHarness(BaseHarness):
    """``--conformance=memory``: stores that live as long as a handle on them, in one process."""

    capabilities: frozenset[str] = frozenset()

    def backend(self, store: str) -> Backend:
        """Return a handle on the store of this name."""
        return MemoryBackend(store)


class SQLiteHarness(BaseHarness):
    """``--conformance=sqlite``: files in a temporary directory, which goes when the run ends.

    That SQLite syncs them before it acknowledges is a check of its own (``kills``), which counts the calls.
    """

    _FOLDER = "TASKQUEUE_CONFORMANCE_SQLITE_FOLDER"

    def start(self) -> Mapping[str, str]:
        """Make the directory: in memory where there is room, since many small stores are synced again and again."""
        folder = tempfile.mkdtemp(prefix="taskqueue-conformance-", dir=_SHARED_MEMORY if _has_room() else None)
        return {self._FOLDER: folder}

    def stop(self) -> None:
        """Remove the directory."""
        shutil.rmtree(os.environ[self._FOLDER], ignore_errors=True)

    def backend(self, store: str) -> Backend:
        """Return a handle on the file of this name."""
        # Not before it is needed: the driver is no dependency of those who test another backend.
        from taskqueue.backends.sqlite import SQLiteBackend  # noqa: PLC0415

        return SQLiteBackend(self._path(store))

    async def drop(self, store: str) -> None:
        """Delete the file and what SQLite keeps beside it."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path(store)}{suffix}")  # noqa: PTH108 - the suffix is no part of a path

    def _path(self, store: str) -> Path:
        return Path(os.environ[self._FOLDER]) / f"{store}.db"
