"""The command ``taskqueue`` as a process: signals, exit statuses, pipes, a terminal, and what it costs to start."""

import asyncio
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue import Task, TaskQueue
from taskqueue.backends.sqlite import SQLiteBackend

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")

Start = Callable[..., subprocess.Popen[str]]
COMMAND = [sys.executable, "-W", "ignore", "-m", "taskqueue"]
TASKS = """
import asyncio, time

async def doze(seconds):
    open("began", "w").close()
    await asyncio.sleep(seconds)

def block(seconds):
    open("began", "w").close()
    time.sleep(seconds)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("TASKQUEUE_URL", "TASKQUEUE_SIGNING_KEY", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONDEVMODE"):
        monkeypatch.delenv(name, raising=False)
    # With it Python takes a write that the pipe has cut short for a whole one.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "cli_process_tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start the command in ``folder``; what still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, text=True, **pipes | options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def enqueued(name: str, *arguments: object, task_id: str | None = None) -> str:
    """Enqueue a call of a function in the folder's module, in ``taskqueue.db``."""
    code = (
        "import asyncio, sys, cli_process_tasks as tasks, taskqueue\n"
        "async def main():\n"
        "    async with taskqueue.TaskQueue() as queue:\n"
        f"        print(await queue.options(task_id={task_id!r}).enqueue(tasks.{name}, *{arguments!r}))\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def stored(task_id: str) -> Task:
    async def main() -> Task:
        async with TaskQueue(SQLiteBackend("taskqueue.db")) as queue:
            return await queue.get_task(task_id)

    return asyncio.run(main())


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("call", "grace", "status"),
    [(("doze", 0.3), "20s", 0), (("doze", 60), "0.1s", 3), (("block", 60), "0.1s", 4)],
    ids=["finished", "interrupted", "abandoned"],
)
def test_the_exit_status_of_a_stopped_worker_says_how_its_tasks_ended(
    start: Start, folder: Path, call: tuple[str, float], grace: str, status: int
) -> None:
    task_id = enqueued(*call)
    worker = start("worker", "--grace", grace)
    wait_for(folder / "began", worker)
    worker.send_signal(signal.SIGTERM)
    code, out, err = ended(worker)
    assert (code, out) == (status, ""), err
    assert "Traceback" not in err
    assert stored(task_id).status == ("failed" if status else "success")
    assert (f"ending the process under what cannot be interrupted: {task_id}" in err) is (status == 4)


def test_a_second_signal_ends_the_worker_by_that_signal(start: Start, folder: Path) -> None:
    enqueued("doze", 60)
    worker = start("worker")
    wait_for(folder / "began", worker)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # two signals that are pending at a time are not two
    worker.send_signal(signal.SIGINT)
    code, _out, err = ended(worker)
    assert code == -signal.SIGINT
    assert "Traceback" not in err


def test_what_a_worker_logs_has_its_instant_in_utc_its_level_and_its_logger(start: Start) -> None:
    enqueued("doze")
    code, out, err = ended(start("worker", "--burst"))
    assert (code, out) == (0, "")
    assert json.dumps(err).count("\\u001b") == 0
    failed = next(line for line in err.splitlines() if "ERROR" in line)
    instant, level, logger, _message = failed.split(maxsplit=3)
    assert (level, logger) == ("ERROR", "taskqueue.worker:")
    assert time.strptime(instant[:19], "%Y-%m-%dT%H:%M:%S")
    assert instant[-1] == "Z"
    assert "TypeError" in failed


def test_no_task_can_pass_for_another_line_of_the_log(start: Start) -> None:
    enqueued("doze", task_id="a\n2026-01-01T00:00:00.000Z ERROR   taskqueue.cli: forged")
    _code, _out, err = ended(start("worker", "--burst"))
    assert "\n    2026-01-01T00:00:00.000Z ERROR   taskqueue.cli: forged" in err
    assert "\n2026-01-01" not in err


@pytest.fixture
def many(folder: Path) -> Path:
    async def main() -> None:
        async with TaskQueue(SQLiteBackend("taskqueue.db")) as queue:
            await queue.enqueue_many(operator.add, [(1, 2)] * 1000)
            await queue.cancel(await queue.enqueue(operator.add, 1, 2))

    asyncio.run(main())
    return folder


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_of_a_pipe_that_goes_away_is_no_traceback(start: Start, many: Path, options: list[str]) -> None:
    assert many.exists()
    lister = start("list", "--limit", "2000", *options)
    assert lister.stdout is not None
    assert lister.stdout.read(10)
    lister.stdout.close()
    assert lister.wait(20) == 1
    assert lister.stderr is not None
    assert lister.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["stats", "--interval", "0"]], ids="-".join)
def test_an_output_that_cannot_be_written_is_one_line(many: Path, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "taskqueue", *command]
        done = subprocess.run(arguments, check=False, stdout=full, stderr=subprocess.PIPE, text=True, cwd=many)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


@pytest.mark.usefixtures("many")
def test_ctrl_c_ends_a_watch_quietly_with_130(start: Start) -> None:
    watch = start("stats", "--watch", "--json", "--interval", "0.05")
    assert watch.stdout is not None
    first, second = json.loads(watch.stdout.readline()), json.loads(watch.stdout.readline())
    watch.send_signal(signal.SIGINT)
    code, _out, err = ended(watch)
    assert (code, err) == (130, "")
    assert (
        first["counts"]
        == second["counts"]
        == {
            "pending": 1000,
            "running": 0,
            "success": 0,
            "failed": 0,
            "cancelled": 1,
        }
    )
    assert (first["throughput"], second["throughput"]["ended"]) == (None, 0)


def test_conformance_returns_the_status_of_pytest_and_warns_of_nothing(start: Start, folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    code, out, err = ended(start("conformance", "no_such_module:make"))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "there is no module 'no_such_module'" in out + err


def on_a_terminal(folder: Path, *arguments: str, columns: int, **environment: str) -> str:
    import fcntl  # noqa: PLC0415 - POSIX alone has these
    import pty  # noqa: PLC0415 - the same
    import struct  # noqa: PLC0415 - the same
    import termios  # noqa: PLC0415 - the same

    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
        )
        os.close(slave)
        slave = -1
        output = b""
        while True:
            try:
                block = os.read(master, 65536)
            except OSError:  # how Linux says that nobody has the other end any more
                block = b""
            if not block:
                break
            output += block
        assert process.wait(20) == 0
        return output.decode().replace("\r\n", "\n")
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_a_terminal_of_80_columns_has_whole_ids_and_one_line_for_each_task(folder: Path, many: Path) -> None:
    output = on_a_terminal(many, "list", "--newest", "--limit", "3", columns=80, NO_COLOR="1")
    lines = output.splitlines()[:4]
    assert "\x1b" not in output
    assert all(len(line) <= 80 for line in lines)
    assert [len(line.split()[0]) for line in lines] == [2, 36, 36, 36]
    coloured = on_a_terminal(folder, "list", "--limit", "3", columns=80)
    assert "\x1b[33mPENDING" in coloured


def test_importing_the_package_loads_no_library_of_the_command_and_its_help_no_tables() -> None:
    code = "import sys, taskqueue; a = set(sys.modules); import taskqueue.cli; print(*a, '|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    package, command = (set(names.split()) for names in done.stdout.split("|"))
    assert {"click", "rich", "taskqueue._cli"}.isdisjoint(package)
    assert "click" in command
    assert {"rich", "pytest", "sqlite3", "aiosqlite"}.isdisjoint(command)


def test_python_m_taskqueue_is_the_same_command(start: Start) -> None:
    code, out, _err = ended(start("--version"))
    assert (code, out.split()[0]) == (0, "taskqueue")
    code, out, _err = ended(start("worker", "--help"))
    assert out.startswith("Usage: python -m taskqueue worker")
