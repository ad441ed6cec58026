"""The command ``taskqueue``, called in this process."""

import asyncio
import base64
import importlib
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result
from freezegun import freeze_time

from taskqueue import CloudpickleSerializer, Failure, Task, TaskQueue, TaskStatus
from taskqueue._cli import conformance as conformance_module
from taskqueue._cli.parameters import Duration
from taskqueue._cli.text import one_line, printable, short
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue.cli import cli

Call = Callable[..., Result]
START = datetime(2030, 1, 1, 12, tzinfo=UTC)
KEY = "00" * 32


def step(**by: float) -> datetime:
    return START + timedelta(**by)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with nothing set in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("TASKQUEUE_URL", "TASKQUEUE_SIGNING_KEY", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


@pytest.fixture
def call() -> Iterator[Call]:
    """Call the command, and undo what it does to logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(cli, arguments, prog_name="taskqueue", catch_exceptions=False, **options)

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


def in_store(work: Callable[[TaskQueue], Coroutine[Any, Any, Any]], path: str = "taskqueue.db", **options: Any) -> Any:
    async def main() -> Any:
        async with TaskQueue(SQLiteBackend(path), **options) as queue:
            return await work(queue)

    return asyncio.run(main())


def put(*tasks: Task) -> None:
    """Put tasks into ``taskqueue.db`` as they are, unless they have ended or run: then take them there."""

    async def work(queue: TaskQueue) -> None:
        backend = queue.backend
        for task in tasks:
            new = Task(
                id=task.id,
                payload=task.payload,
                enqueued_at=task.enqueued_at,
                available_at=task.enqueued_at,
                max_retries=task.max_retries,
            )
            if task.status is TaskStatus.PENDING:
                await backend.enqueue([task])
                continue
            await backend.enqueue([new])
            if task.attempts and task.started_at:
                lease = task.lease_expires_at or task.started_at + timedelta(hours=1)
                await backend.claim(now=task.started_at, limit=1, lease_expires_at=lease)
            for failure in task.failures:
                await backend.fail(task.id, task.attempts, failure)
            if task.status is TaskStatus.SUCCESS and task.finished_at and task.value is not None:
                await backend.complete(task.id, 1, value=task.value, now=task.finished_at)
            if task.status is TaskStatus.CANCELLED and task.finished_at:
                await backend.cancel(task.id, now=task.finished_at)
        stored = [each async for each in queue.tasks()]
        assert {each.id: each for each in stored} == {each.id: each for each in tasks}

    in_store(work)


def payload(*args: object, **kwargs: object) -> bytes:
    context = {"request_id": "r-1"}
    return CloudpickleSerializer().dumps({"func": divmod, "args": args, "kwargs": kwargs, "context": context})


FAILURE = Failure(attempt=1, error="ValueError: no\nway", traceback="Traceback\n  line 1", failed_at=step(seconds=3))
PENDING = Task(id="p", payload=payload(7, 2), enqueued_at=START, available_at=step(minutes=5))
RETRIED = Task(
    id="again",
    payload=payload(7, 2),
    enqueued_at=START,
    available_at=step(seconds=13),
    max_retries=3,
    attempts=1,
    started_at=step(seconds=2),
    failures=(Failure(attempt=1, error="ValueError: no", failed_at=step(seconds=3), retry_at=step(seconds=13)),),
)
RUNNING = Task(
    id="run",
    payload=payload(7, 2),
    enqueued_at=START,
    available_at=START,
    status=TaskStatus.RUNNING,
    attempts=1,
    started_at=step(seconds=1),
    lease_expires_at=step(seconds=31),
)
SUCCESS = Task(
    id="done",
    payload=payload(7, 2),
    enqueued_at=START,
    available_at=START,
    status=TaskStatus.SUCCESS,
    attempts=1,
    started_at=step(seconds=1),
    finished_at=step(seconds=2),
    value=CloudpickleSerializer().dumps((3, 1)),
)
FAILED = Task(
    id="lost",
    payload=payload(1, 0),
    enqueued_at=START,
    available_at=START,
    status=TaskStatus.FAILED,
    attempts=1,
    started_at=step(seconds=1),
    finished_at=step(seconds=3),
    failures=(FAILURE,),
)
CANCELLED = Task(
    id="off",
    payload=payload(7, 2),
    enqueued_at=START,
    available_at=START,
    status=TaskStatus.CANCELLED,
    attempts=1,
    started_at=step(seconds=1),
    finished_at=step(seconds=4),
)
ALL = (PENDING, SUCCESS, FAILED, CANCELLED, RUNNING)
"""In an order in which ``put`` can make them: no claim finds another one than the task before it."""


# ---------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604800), ("0.5s", 0.5), ("1.5h", 5400), (" 3 M ", 180)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "s", "-5", "5 weeks", "1e3", "nan", "5mm", "1,5s", "٣s"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 30 or 30s for seconds, or 5m, 2h, 7d"):
        Duration().convert(text, None, None)


def test_zero_is_a_duration_only_where_it_can_mean_something() -> None:
    assert Duration(zero=True).convert("0", None, None) == timedelta(0)
    with pytest.raises(click.BadParameter, match="more than zero"):
        Duration().convert("0", None, None)


def test_a_duration_beyond_counting_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="longer than can be counted"):
        Duration().convert("9" * 12 + "d", None, None)


# ---------------------------------------------------------------- text


def test_what_tasks_say_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\x9bc\td\n") == "a\\x1b[31mb\\x07\\x9bc\td\n"
    assert printable("\u202eevil") == "\\u202eevil"
    assert one_line("a\n  b\rc") == "a b\\x0dc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0.0s"),
        (0.25, "0.2s"),
        (59.99, "59s"),
        (60, "1m"),
        (-190, "3m10s"),
        (3600, "1h"),
        (90061, "1d1h"),
    ],
)
def test_a_length_of_time_is_short_and_cut(seconds: float, text: str) -> None:
    assert short(timedelta(seconds=seconds)) == text


# ---------------------------------------------------------------- which store


READING = [
    ["list"],
    ["show", "x"],
    ["stats"],
    ["cancel", "x"],
    ["retry", "x"],
    ["purge", "--older-than", "1d", "--yes"],
]


@pytest.mark.parametrize("arguments", [*READING, ["worker"]], ids=lambda arguments: arguments[0])
def test_without_a_url_and_a_file_here_it_says_what_to_do_and_creates_none(
    call: Call, folder: Path, arguments: list[str]
) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "no store is named" in result.stderr
    assert "--url sqlite:///taskqueue.db" in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_file_that_is_missing_is_an_error_and_not_created(
    call: Call, folder: Path, arguments: list[str], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "variable":
        monkeypatch.setenv("TASKQUEUE_URL", "sqlite:///missing.db")
        result = call(*arguments)
    else:
        result = call(*arguments, "--url", "sqlite:///missing.db")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: there is no file {folder / 'missing.db'} (sqlite:///missing.db)")
    assert list(folder.iterdir()) == []


def test_the_option_wins_over_the_variable(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    put(PENDING)
    monkeypatch.setenv("TASKQUEUE_URL", "sqlite:///missing.db")
    assert call("list", "--url", "sqlite:///taskqueue.db").exit_code == 0
    monkeypatch.setenv("TASKQUEUE_URL", "")
    assert call("list").exit_code == 0, "an empty variable counts as none"


def test_a_url_with_a_password_is_shown_without_it(call: Call) -> None:
    result = call("list", "--url", "nosuch://ada:secret@host/x")
    assert result.exit_code == 2
    assert "nosuch://ada:***@host/x" in result.stderr
    result = call("list", "--url", "sqlite://ada:secret@host/x")
    assert result.exit_code == 2
    assert "secret" not in result.stderr


def test_a_backend_whose_driver_is_not_installed_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: str) -> NoReturn:
        raise ModuleNotFoundError("it needs a driver: pip install it")

    monkeypatch.setattr("taskqueue._cli.store.backend_from_url", lacking)
    result = call("list", "--url", "postgresql://u:secret@db/app")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: postgresql://u:***@db/app: it needs a driver: pip install it\n"


def test_a_store_in_memory_is_refused(call: Call) -> None:
    result = call("list", "--url", "memory://")
    assert result.exit_code == 2
    assert "belongs to the process that made it" in result.stderr


def test_a_file_of_something_else_is_one_line_of_error(call: Call) -> None:
    Path("taskqueue.db").write_text("not a store, but longer than a header " * 9)
    result = call("list")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------- list


def test_list_shows_tasks_in_the_order_of_enqueueing(call: Call) -> None:
    put(*ALL)
    with freeze_time(step(seconds=11), real_asyncio=True):
        result = call("list")
    assert result.exit_code == 0
    lines = [line.split(maxsplit=4) for line in result.stdout.splitlines()]
    assert lines == [
        ["ID", "STATUS", "ATTEMPTS", "AGE", "WHAT HAPPENED"],
        ["p", "PENDING", "0/1", "11s", "due in 4m49s"],
        ["done", "SUCCESS", "1/1", "11s", "ended 9.0s ago"],
        ["lost", "FAILED", "1/1", "11s", "ValueError: no way; ended 8.0s ago"],
        ["off", "CANCELLED", "1/1", "11s", "ended 7.0s ago"],
        ["run", "RUNNING", "1/1", "11s", "began 10s ago"],
    ]
    assert result.stderr == ""


def test_list_tells_of_retries_and_of_leases_that_ran_out(call: Call) -> None:
    put(RUNNING, RETRIED)
    with freeze_time(step(seconds=41), real_asyncio=True):
        output = call("list").stdout
    assert "lease ran out 10s ago" in output
    assert "1/3" in output
    assert "due for 28s after ValueError: no" in output


def test_list_filters_and_limits_from_either_end(call: Call) -> None:
    put(*ALL)

    def ids(*arguments: str) -> list[str]:
        return [task["id"] for task in json.loads(call("list", "--json", *arguments).stdout)["tasks"]]

    assert ids() == ["p", "done", "lost", "off", "run"]
    assert ids("--limit", "2") == ["p", "done"]
    assert ids("--limit", "2", "--newest") == ["off", "run"]
    assert ids("--status", "FAILED") == ["lost"]
    result = call("list", "--limit", "4")
    assert "there are newer ones (--newest begins with them); --limit shows more than 4" in result.stderr
    assert "there are older ones" in call("list", "--limit", "4", "--newest").stderr
    assert call("list", "--limit", "5").stderr == ""


def test_list_of_nothing_says_so_beside_the_output(call: Call) -> None:
    put()
    result = call("list", "--status", "failed")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no failed tasks in sqlite:///taskqueue.db\n"
    assert json.loads(call("list", "--json").stdout) == {"tasks": [], "more": False}


def test_list_cuts_nothing_where_there_is_no_terminal(call: Call) -> None:
    long_id, error = "i" * 255, "ValueError: " + "e" * 500
    failure = Failure(attempt=1, error=error, failed_at=step(seconds=2))
    put(
        Task(
            id=long_id,
            payload=b"",
            enqueued_at=START,
            available_at=START,
            status=TaskStatus.FAILED,
            attempts=1,
            started_at=START,
            finished_at=step(seconds=2),
            failures=(failure,),
        )
    )
    output = call("list").stdout
    assert long_id in output
    assert error in output
    assert "\x1b" not in output


def test_a_task_as_json_has_every_field_and_only_the_size_of_bytes(call: Call) -> None:
    put(FAILED)
    [document] = json.loads(call("list", "--json").stdout)["tasks"]
    assert document == {
        "id": "lost",
        "status": "failed",
        "attempts": 1,
        "max_retries": 0,
        "enqueued_at": "2030-01-01T12:00:00.000000Z",
        "available_at": "2030-01-01T12:00:00.000000Z",
        "started_at": "2030-01-01T12:00:01.000000Z",
        "lease_expires_at": None,
        "finished_at": "2030-01-01T12:00:03.000000Z",
        "payload": {"bytes": len(FAILED.payload)},
        "value": None,
        "failures": [
            {
                "attempt": 1,
                "error": "ValueError: no\nway",
                "traceback": "Traceback\n  line 1",
                "failed_at": "2030-01-01T12:00:03.000000Z",
                "retry_at": None,
            }
        ],
    }


# ---------------------------------------------------------------- show


def shown(call: Call, *arguments: str, at: datetime) -> list[str]:
    with freeze_time(at, real_asyncio=True):
        result = call("show", *arguments)
    assert result.exit_code == 0
    timeline: list[str] = result.stdout.split("\n\n", 1)[1].splitlines()
    return timeline


def test_show_tells_the_life_of_a_failed_task(call: Call) -> None:
    put(FAILED)
    assert shown(call, "lost", at=step(seconds=9)) == [
        "2030-01-01 12:00:00.000Z  enqueued, due at once",
        "2030-01-01 12:00:01.000Z  attempt 1 began",
        "2030-01-01 12:00:03.000Z  attempt 1 failed: ValueError: no",
        "                          way",
        "2030-01-01 12:00:03.000Z  ended as FAILED",
    ]
    assert "    Traceback" in shown(call, "lost", "--traceback", at=step(seconds=9))


def test_show_tells_when_a_retry_is_due(call: Call) -> None:
    put(RETRIED)
    assert shown(call, "again", at=step(seconds=9)) == [
        "2030-01-01 12:00:00.000Z  enqueued",
        "2030-01-01 12:00:02.000Z  attempt 1 began",
        "2030-01-01 12:00:03.000Z  attempt 1 failed: ValueError: no",
        "                          to be tried again at 2030-01-01 12:00:13.000Z",
        "2030-01-01 12:00:13.000Z  due in 4.0s",
    ]


@pytest.mark.parametrize(
    ("task", "last"),
    [
        (PENDING, "2030-01-01 12:05:00.000Z  due in 4m51s"),
        (RUNNING, "2030-01-01 12:00:31.000Z  the lease ends, in 22s, unless the worker extends it"),
        (SUCCESS, "2030-01-01 12:00:02.000Z  ended as SUCCESS"),
        (CANCELLED, "2030-01-01 12:00:04.000Z  ended as CANCELLED during attempt 1, whose outcome is dropped"),
    ],
    ids=lambda value: value.id if isinstance(value, Task) else "",
)
def test_show_ends_with_what_became_of_the_task(call: Call, task: Task, last: str) -> None:
    put(task)
    assert shown(call, task.id, at=step(seconds=9))[-1] == last


def test_show_tells_that_nobody_has_recovered_a_lease_that_ran_out(call: Call) -> None:
    put(RUNNING)
    assert "no worker has recovered the task" in shown(call, "run", at=step(seconds=32))[-1]


def test_show_loads_nothing_unless_asked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    put(SUCCESS)
    with monkeypatch.context() as patch:
        patch.setattr(CloudpickleSerializer, "loads", lambda *_: pytest.fail("loaded"))
        output = call("show", "done").stdout
    assert f"payload    {len(SUCCESS.payload)} bytes, not loaded, since loading runs code (--load)" in output
    output = call("show", "done", "--load").stdout
    assert "call       builtins:divmod(7, 2)" in output
    assert "context    request_id='r-1'" in output
    assert "returned   (3, 1)" in output


def test_show_as_json_gives_bytes_and_the_call_only_when_asked(call: Call) -> None:
    put(SUCCESS)
    plain = json.loads(call("show", "done", "--json").stdout)
    assert plain["payload"] == {"bytes": len(SUCCESS.payload)}
    assert "call" not in plain
    full = json.loads(call("show", "done", "--json", "--base64", "--load").stdout)
    assert base64.b64decode(full["payload"]["base64"]) == SUCCESS.payload
    assert base64.b64decode(full["value"]["base64"]) == SUCCESS.value
    assert full["call"] == {
        "function": "builtins:divmod",
        "args": ["7", "2"],
        "kwargs": {},
        "timeout": None,
        "context": {"request_id": "'r-1'"},
    }
    assert (full["returned"], full["load_error"]) == ("(3, 1)", None)


def test_show_tells_the_timeout_of_an_attempt(call: Call) -> None:
    in_store(lambda queue: queue.enqueue(divmod, 7, b=2, timeout=1.5, task_id="t"))
    output = call("show", "t", "--load").stdout
    assert "call       builtins:divmod(7, b=2)" in output
    assert "timeout    1.5 s for each attempt" in output


def test_show_of_a_payload_that_cannot_be_loaded_shows_the_rest_and_ends_with_1(call: Call) -> None:
    put(Task(id="p", payload=b"rubbish", enqueued_at=START, available_at=START))
    result = call("show", "p", "--load")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stdout
    assert "enqueued" in result.stdout
    assert json.loads(call("show", "p", "--load", "--json").stdout)["load_error"]


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_an_unknown_id_is_one_clear_line(call: Call, command: str) -> None:
    put()
    result = call(command, "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no task 'nobody' in sqlite:///taskqueue.db\n"


@pytest.mark.parametrize("task_id", ["", "x" * 256])
def test_an_id_that_cannot_be_one_is_wrong_usage(call: Call, task_id: str) -> None:
    put()
    assert call("show", task_id).exit_code == 2


# ---------------------------------------------------------------- serializers


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()


def test_a_serializer_of_one_s_own_is_an_instance_or_what_makes_one(call: Call, folder: Path) -> None:
    put(SUCCESS)
    (folder / "app").mkdir()
    module(
        folder / "app",
        "cli_serializers",
        "from taskqueue import CloudpickleSerializer\n"
        "class Mine(CloudpickleSerializer):\n"
        "    def loads(self, data):\n"
        "        loaded = super().loads(data)\n"
        "        return dict(loaded, args=('mine',)) if isinstance(loaded, dict) else loaded\n"
        "instance = Mine()\n"
        "def make(): return Mine()\n"
        "number = 5\n",
    )
    for name in ("instance", "make", "Mine"):
        result = call("show", "done", "--load", "--app-dir", "app", "--serializer", f"cli_serializers:{name}")
        assert "divmod('mine')" in result.stdout, result.stderr
    for name, why in (("number", "lacks the methods dumps and loads"), ("nothing", "is --app-dir right?")):
        result = call("show", "done", "--load", "--app-dir", "app", "--serializer", f"cli_serializers:{name}")
        assert result.exit_code == 2
        assert why in result.stderr
    assert call("show", "done", "--load", "--serializer", "no_such_module_here:x").exit_code == 2
    module(folder / "app", "cli_fails", "raise RuntimeError('no settings')\n")
    module(folder / "app", "cli_fails_later", "def make():\n    raise RuntimeError('no settings')\n")
    for name, line in (("cli_fails:x", 1), ("cli_fails_later:make", 2)):
        result = call("show", "done", "--load", "--app-dir", "app", "--serializer", name)
        assert result.exit_code == 2
        assert "RuntimeError: no settings" in result.stderr
        assert f"{name.partition(':')[0]}.py, line {line})" in result.stderr
    assert "write MODULE:OBJECT" in call("show", "done", "--load", "--serializer", "dots.only").stderr


def test_with_a_signing_key_only_what_is_signed_is_loaded(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskqueue.serializers import SignedSerializer  # noqa: PLC0415 - what this test is about

    old, new = bytes(range(32)), bytes(32)
    signed = SignedSerializer(old)
    put(SUCCESS)
    in_store(lambda queue: queue.enqueue(divmod, 7, 2, task_id="signed"), serializer=signed)
    monkeypatch.setenv("TASKQUEUE_SIGNING_KEY", f"{new.hex()},{old.hex()}")
    assert "call       builtins:divmod(7, 2)" in call("show", "signed", "--load").stdout
    assert call("show", "done", "--load").exit_code == 1
    monkeypatch.setenv("TASKQUEUE_SIGNING_KEY", new.hex())
    assert call("show", "signed", "--load").exit_code == 1


@pytest.mark.parametrize("key", ["topsecret", "00ff"])
def test_a_bad_signing_key_is_wrong_usage_and_not_shown(call: Call, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    put(SUCCESS)
    monkeypatch.setenv("TASKQUEUE_SIGNING_KEY", key)
    result = call("show", "done", "--load")
    assert result.exit_code == 2
    assert "TASKQUEUE_SIGNING_KEY" in result.stderr
    assert key not in result.stderr


# ---------------------------------------------------------------- stats


def test_stats_counts_and_tells_how_late_the_oldest_due_task_is(call: Call) -> None:
    put(*ALL)
    with freeze_time(step(minutes=5, seconds=7), real_asyncio=True):
        text = call("stats", "--interval", "0").stdout
        document = json.loads(call("stats", "--interval", "0", "--json").stdout)
    assert document["counts"] == dict.fromkeys(["pending", "running", "success", "failed", "cancelled"], 1)
    assert document["total"] == 5
    # The lease that ran out first hides since when the pending task is due.
    assert document["oldest_expired_lease"] == {"id": "run", "expired_at": "2030-01-01T12:00:31.000000Z"}
    assert document["oldest_due"] is None
    assert document["next_due"] is None
    assert document["throughput"] is None
    assert "its lease ran out 4m36s ago" in text
    assert "throughput  not measured" in text


def test_stats_of_a_backlog(call: Call) -> None:
    put(PENDING)
    with freeze_time(step(minutes=5, seconds=7), real_asyncio=True):
        text = call("stats", "--interval", "0").stdout
        document = json.loads(call("stats", "--interval", "0", "--json").stdout)
    assert document["oldest_due"] == {"due_at": "2030-01-01T12:05:00.000000Z", "late_seconds": 7.0}
    assert "oldest due  for 7.0s, since 2030-01-01 12:05:00.000Z" in text


def test_stats_of_a_task_that_is_due_later_and_of_none(call: Call) -> None:
    put(PENDING)
    with freeze_time(START, real_asyncio=True):
        assert (
            "next due    in 5m, at 2030-01-01 12:05:00.000Z: a task is due" in call("stats", "--interval", "0").stdout
        )
        document = json.loads(call("stats", "--interval", "0", "--json").stdout)
    assert (document["next_due"], document["oldest_due"]) == ("2030-01-01T12:05:00.000000Z", None)
    call("cancel", "p")
    assert "next due    nothing" in call("stats", "--interval", "0").stdout


def test_stats_measures_what_ended_between_two_looks(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    put(PENDING)
    looks = 0
    real = TaskQueue.counts

    async def counts(queue: TaskQueue) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            await queue.cancel("p")
        return await real(queue)

    monkeypatch.setattr(TaskQueue, "counts", counts)
    throughput = json.loads(call("stats", "--json", "--interval", "0.05").stdout)["throughput"]
    assert throughput["ended"] == 1
    assert throughput["seconds"] >= 0.05
    assert throughput["per_second"] == pytest.approx(1 / throughput["seconds"], rel=0.05)


def test_stats_says_nothing_of_throughput_when_tasks_were_purged_meanwhile(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(SUCCESS)
    looks = 0
    real = TaskQueue.counts

    async def counts(queue: TaskQueue) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            await queue.purge(finished_before=step(days=1))
        return await real(queue)

    monkeypatch.setattr(TaskQueue, "counts", counts)
    assert "throughput  not measured" in call("stats", "--interval", "0.01").stdout


def test_to_watch_without_an_interval_is_refused(call: Call) -> None:
    put()
    assert call("stats", "--watch", "--interval", "0").exit_code == 2


# ---------------------------------------------------------------- cancel, retry, purge


def statuses() -> dict[str, str]:
    async def work(queue: TaskQueue) -> dict[str, str]:
        return {task.id: task.status.value async for task in queue.tasks()}

    found: dict[str, str] = in_store(work)
    return found


def test_cancel_goes_on_after_an_id_that_it_cannot_cancel(call: Call) -> None:
    put(*ALL)
    result = call("cancel", "done", "nobody", "run", "p", "off")
    assert result.exit_code == 1
    assert result.stdout == "run cancelled\np cancelled\noff was cancelled already\n"
    assert result.stderr.splitlines() == [
        "error: done has ended already, as SUCCESS",
        "error: no task 'nobody' in sqlite:///taskqueue.db",
    ]
    assert statuses() == dict.fromkeys(["p", "run", "off"], "cancelled") | {"done": "success", "lost": "failed"}


def test_cancel_as_json(call: Call) -> None:
    put(*ALL)
    result = call("cancel", "--json", "p", "done")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "tasks": [
            {"id": "p", "cancelled": True, "by_this_call": True, "error": None},
            {
                "id": "done",
                "cancelled": False,
                "by_this_call": False,
                "error": "done has ended already, as SUCCESS",
            },
        ]
    }
    assert call("cancel", "p").exit_code == 0, "what is cancelled already is as it was wanted"


def test_retry_makes_a_new_task_with_the_same_payload_and_leaves_the_old_one(call: Call) -> None:
    put(FAILED, PENDING)
    result = call("retry", "lost")
    assert result.exit_code == 0
    head, new_id = result.stdout.strip().split(" runs again as ")
    assert head == "lost"
    task = in_store(lambda queue: queue.get_task(new_id))
    assert (task.payload, task.status, task.attempts) == (FAILED.payload, "pending", 0)
    assert in_store(lambda queue: queue.get_task("lost")) == FAILED


def test_retry_with_a_delay_and_another_budget_as_json(call: Call) -> None:
    put(FAILED, PENDING)
    with freeze_time(step(hours=1), real_asyncio=True):
        result = call("retry", "--json", "lost", "p", "--delay", "5m", "--max-retries", "4")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)["tasks"]
    task = in_store(lambda queue: queue.get_task(first["new_id"]))
    assert (task.available_at, task.max_retries) == (step(hours=1, minutes=5), 4)
    assert second["new_id"] is None
    assert "only a task that has ended" in second["error"]
    assert len(statuses()) == 3


def test_purge_removes_what_ended_before(call: Call) -> None:
    put(*ALL)
    with freeze_time(step(seconds=63), real_asyncio=True):
        dry = call("purge", "--older-than", "1m", "--dry-run")
        assert dry.stdout == "1 task that ended before 2030-01-01 12:00:03.000Z would be removed\n"
        assert len(statuses()) == 5
        assert json.loads(call("purge", "--older-than", "1m", "--dry-run", "--json").stdout) == {
            "would_remove": 1,
            "finished_before": "2030-01-01T12:00:03.000000Z",
        }
        result = call("purge", "--older-than", "1m", "--yes")
        assert result.stdout == "1 task that ended before 2030-01-01 12:00:03.000Z removed\n"
        again = call("purge", "--older-than", "0", "--yes", "--json")
    assert json.loads(again.stdout) == {"removed": 2, "finished_before": "2030-01-01T12:01:03.000000Z"}
    assert set(statuses()) == {"p", "run"}


def test_purge_does_nothing_where_nobody_can_be_asked(call: Call) -> None:
    put(*ALL)
    result = call("purge", "--older-than", "1s")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert len(statuses()) == 5


@pytest.mark.parametrize(("answer", "left"), [("y", 2), ("n", 5), ("", 5)])
def test_purge_asks_on_a_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, answer: str, left: int) -> None:
    put(*ALL)
    monkeypatch.setattr("taskqueue._cli.changing._can_ask", lambda: True)
    with freeze_time(step(days=8), real_asyncio=True):
        result = call("purge", "--older-than", "7d", input=f"{answer}\n")
    assert "Remove all tasks from sqlite:///taskqueue.db that ended more than 7d ago" in result.stderr
    assert result.exit_code == (0 if answer == "y" else 1)
    assert len(statuses()) == left


# ---------------------------------------------------------------- worker


def test_worker_in_a_burst_runs_what_is_due(call: Call) -> None:
    in_store(lambda queue: queue.enqueue(divmod, 7, 2, task_id="now"))
    in_store(lambda queue: queue.enqueue(divmod, 7, 2, task_id="later", eta=datetime(2090, 1, 1, tzinfo=UTC)))
    result = call("worker", "--burst")
    assert result.exit_code == 0
    assert statuses() == {"now": "success", "later": "pending"}
    assert result.stdout == ""
    assert f"working on {Path.cwd() / 'taskqueue.db'}, 10 tasks at a time" in result.stderr


def test_worker_may_create_a_file_that_is_named_and_logs_where(call: Call, folder: Path) -> None:
    result = call("worker", "--burst", "--url", "sqlite:///new.db")
    assert result.exit_code == 0
    assert (folder / "new.db").stat().st_mode & 0o777 == 0o600
    assert f"INFO    taskqueue.backends.sqlite: created {folder / 'new.db'}" in result.stderr


def test_worker_on_a_store_that_cannot_be_opened_is_one_line(call: Call, folder: Path) -> None:
    url = "sqlite:///no/such/folder/x.db"
    result = call("worker", "--url", url)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {folder}/no/such/folder/x.db is not available: No such file or directory; create the directory "
        f"{folder}/no/such/folder first\n"
    )
    assert "Traceback" in call("worker", "--url", url, "--log-level", "debug").stderr


@pytest.mark.parametrize(
    "arguments",
    [("--concurrency", "0"), ("--lease", "0"), ("--lease", "soon"), ("--poll", "-1"), ("--log-level", "loud")],
)
def test_worker_refuses_what_cannot_mean_anything(call: Call, arguments: tuple[str, str]) -> None:
    put()
    result = call("worker", "--burst", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


# ---------------------------------------------------------------- conformance


@pytest.mark.parametrize(
    ("given", "forwarded"),
    [
        (["pkg:make", "-x", "-k", "eta"], ["--conformance=pkg:make", "-x", "-k", "eta"]),
        (["pkg:make", "--help"], ["--conformance=pkg:make", "--help"]),
        (["-x", "that.feature"], ["--conformance", "-x", "that.feature"]),
        ([], ["--conformance"]),
    ],
)
def test_conformance_hands_everything_to_pytest(
    call: Call, monkeypatch: pytest.MonkeyPatch, given: list[str], forwarded: list[str]
) -> None:
    seen = []
    monkeypatch.setattr("os.execv", lambda *program: seen.append(program))
    call("conformance", *given)
    assert seen == [(sys.executable, [sys.executable, "-m", "pytest", *forwarded])]


def test_conformance_without_pytest_says_which_command_installs_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance_module, "find_spec", lambda _: None)
    result = call("conformance", "sqlite")
    assert result.exit_code == 1
    assert "pip install 'taskqueue-spec[conformance]'" in result.stderr


# ---------------------------------------------------------------- help


def test_the_help_lists_the_commands_in_the_order_of_use(call: Call) -> None:
    result = call("--help")
    listed = result.stdout.split("Commands:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == list(cli.commands)
    assert next(iter(cli.commands)) == "worker"
    assert "..." not in listed, "a description is cut"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_s_help_has_a_short_option_too(call: Call, command: str) -> None:
    assert call(command, "-h").stdout == call(command, "--help").stdout


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_s_help_has_an_example_of_itself(call: Call, command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"  taskqueue {command}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
