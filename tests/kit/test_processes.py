"""Each check of the layer processes fails on a backend that is wrong in its way, and names what is broken."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskqueue_conformance.violation import Violation

CheckOn = Callable[..., Violation | None]


@pytest.mark.parametrize(
    "check_id",
    [
        "processes/C1/processes-race",
        "processes/HANDLES/processes-connect-at-once",
        "processes/L1/one-enqueue-wins",
        "processes/D1/processes-see-each-other",
        "processes/W1/a-change-ends-a-wait-elsewhere",
    ],
)
def test_a_correct_backend_passes(check_on: CheckOn, check_id: str) -> None:
    assert check_on("Correct", check_id) is None


@pytest.mark.parametrize(
    ("wrong", "check_id", "requirement", "words"),
    [
        ("ChoosesThenMarks", "processes/C1/processes-race", "C1", "attempt"),
        ("GivesUp", "processes/C1/processes-race", "X1", "BlockingIOError"),
        ("LooksThenInserts", "processes/L1/one-enqueue-wins", None, "the processes that enqueued"),
        ("Remembers", "processes/D1/processes-see-each-other", "D1", "in another process"),
        ("EachMakesItsOwn", "processes/HANDLES/processes-connect-at-once", None, "each process sees"),
        ("HearsItselfOnly", "processes/W1/a-change-ends-a-wait-elsewhere", None, "when another process makes a change"),
    ],
)
def test_what_another_process_shows(  # noqa: PLR0917 - the columns of a table
    check_on: CheckOn, wrong: str, check_id: str, requirement: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue_conformance.checks.processes._PROMPT_S", 0.2)
    found = check_on(wrong, check_id)
    assert found is not None
    assert (found.requirement, words in str(found)) == (requirement, True), str(found)


ORPHANS = """
import asyncio, os, signal, sys
from taskqueue_conformance import child, children

async def main():
    server = await children.fork_server("memory", {})
    print(server._process.pid, server.fork(child.puppet, "store").pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
def test_a_run_that_is_killed_leaves_no_process_behind() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    for _ in range(500):
        if not any(_alive(pid) for pid in pids):
            break
        time.sleep(0.01)
    assert [pid for pid in pids if _alive(pid)] == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
