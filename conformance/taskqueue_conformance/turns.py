"""Who may use the server when: a check that restarts it has it to itself, also where xdist runs several processes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where no harness of ours can restart anything
    fcntl = None  # type: ignore[assignment]  # looked at before it is used

_RUN = "PYTEST_XDIST_TESTRUNUID"
"""What xdist calls the run, in the environment of its workers."""


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait for those who want the server alone, or, with ``alone``, for everybody."""
    file = _file()
    if file is None:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def clean_up() -> None:
    """Remove the file; who has it open already goes on with it."""
    file = _file()
    if file is not None:
        Path(file.name).unlink(missing_ok=True)
        file.close()
    _file.cache_clear()


@cache
def _file() -> IO[bytes] | None:
    run = os.environ.get(_RUN)
    if run is None or fcntl is None:
        return None
    return Path(tempfile.gettempdir(), f"taskqueue-conformance-{run}.lock").open("ab")
