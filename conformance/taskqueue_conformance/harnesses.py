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


class MemoryHarness(BaseHarness):
    """``--conformance=memory``: stores that live as long as a handle on them, in one process."""

    capabilities: frozenset[str] = frozenset()

    def backend(self, store: str) -> Backend:
        """Return a handle on the store of this name."""
        return MemoryBackend(store)


class SQLiteHarness(BaseHarness):
    """``--conformance=sqlite``: files in a temporary directory, which goes when the run ends."""

    _FOLDER = "TASKQUEUE_CONFORMANCE_SQLITE_FOLDER"

    def start(self) -> Mapping[str, str]:
        """Make the directory."""
        return {self._FOLDER: tempfile.mkdtemp(prefix="taskqueue-conformance-")}

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
