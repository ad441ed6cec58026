"""What the tests of the kit share."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from taskqueue_conformance.check import CHECKS
from taskqueue_conformance.children import stop_servers
from taskqueue_conformance.effort import DEFAULT
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.suite import required_checks
from taskqueue_conformance.target import resolve
from taskqueue_conformance.violation import Violation

LITTLE = replace(DEFAULT, raced_tasks=60, cycles=60, kill_delays=4)

# Before pytester takes its snapshot of the imported modules: what it drops would be registered a second time.
required_checks()


@pytest.fixture(scope="module")
def fork_servers() -> Iterator[None]:
    """Leave no process behind."""
    yield
    stop_servers()


@pytest.fixture
def check_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fork_servers: None,  # noqa: ARG001 - it ends them
) -> Callable[[str, str], Violation | None]:
    """Run one check on one of the backends in ``file_backends.py``, and return what it finds."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("FILE_BACKENDS_FOLDER", str(tmp_path))

    def check_on(backend: str, check_id: str) -> Violation | None:
        monkeypatch.setenv("FILE_BACKENDS_NAME", backend)
        target = "file_backends:Harness"
        lab = Lab(resolve(target), rng=random.Random(0), target=target, effort=LITTLE)  # noqa: S311 - repeatable on purpose
        try:
            asyncio.run(_run(lab, check_id))
        except Violation as found:
            return found
        return None

    return check_on


async def _run(lab: Lab, check_id: str) -> None:
    try:
        await CHECKS[check_id].run(lab)
        lab.confirm_witnessed()
    finally:
        await lab.close()
