"""``taskqueue show``."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import click

from taskqueue._cli.command import Command
from taskqueue._cli.errors import Status
from taskqueue._cli.output import STYLES, console, print_json, task_document
from taskqueue._cli.parameters import TaskId, json_option, loading_options, url_option
from taskqueue._cli.store import Store, find_serializer, find_store, use_app_dir
from taskqueue._cli.text import due, printable, readable, short, shown_id
from taskqueue.errors import DeserializationError, TaskNotFound
from taskqueue.queue import Call, TaskQueue
from taskqueue.serializers import Serializer
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

_STAMP_WIDTH: Final = len("2030-01-01 12:00:00.000Z  ")


@click.command(
    "show",
    cls=Command,
    short_help="Show one task with its timeline.",
    epilog="""
    Example:
      taskqueue show 77ab3c8e-1a0d-4b3c-9c77-0f5a6b1de001 --traceback
    """,
)
@click.argument("task_id", metavar="ID", type=TaskId())
@click.option("--traceback", "with_traceback", is_flag=True, help="Show the stack trace of each failed attempt.")
@click.option(
    "--load",
    is_flag=True,
    help="Show the call, and what it returned. This loads them, which runs code that the store's writers chose.",
)
@click.option("--base64", "with_bytes", is_flag=True, help="With --json: the payload and the value in base64 too.")
@json_option
@loading_options
@url_option
def show_task(
    task_id: str,
    *,
    with_traceback: bool,
    load: bool,
    with_bytes: bool,
    as_json: bool,
    serializer: str | None,
    app_dir: str,
    url: str | None,
) -> None:
    """Show one task: its timeline, with each attempt, its error and when it is tried again.

    What the task calls is not shown by default: to know it the payload has to be loaded, and loading runs code.
    """
    store = find_store(url)
    loader: Serializer | None = None
    if load:
        use_app_dir(app_dir)
        loader = find_serializer(serializer)

    async def read(queue: TaskQueue) -> tuple[Task, datetime, dict[str, Any]]:
        try:
            task = await queue.get_task(task_id)
        except TaskNotFound:
            raise store.unknown(task_id) from None
        return task, queue.now(), _loaded(queue, task) if load else {}

    task, now, loaded = store.use(read, serializer=loader)
    if as_json:
        print_json(task_document(task, with_bytes=with_bytes) | loaded)
    else:
        _print_task(store, task, now, loaded, with_traceback=with_traceback)
    if loaded.get("load_error") is not None:
        raise click.exceptions.Exit(Status.ERROR)


def _loaded(queue: TaskQueue, task: Task) -> dict[str, Any]:
    loaded: dict[str, Any] = {"call": None, "returned": None, "load_error": None}
    try:
        loaded["call"] = _call_document(queue.load_call(task))
        if task.value is not None:
            loaded["returned"] = _repr(queue.serializer.loads(task.value))
    except DeserializationError as error:
        loaded["load_error"] = str(error)
    except Exception as error:  # noqa: BLE001 - a serializer of somebody's own may raise anything
        loaded["load_error"] = f"the value cannot be loaded: {type(error).__name__}: {error}"
    return loaded


def _call_document(call: Call) -> dict[str, Any]:
    module, name = getattr(call.func, "__module__", None), getattr(call.func, "__qualname__", None)
    return {
        "function": f"{module}:{name}" if module and name else _repr(call.func),
        "args": [_repr(each) for each in call.args],
        "kwargs": {name: _repr(each) for name, each in call.kwargs.items()},
        "timeout": call.timeout,
        "context": None if call.context is None else {name: _repr(each) for name, each in call.context.items()},
    }


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - the value's own code may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


def _print_task(store: Store, task: Task, now: datetime, loaded: dict[str, Any], *, with_traceback: bool) -> None:
    from rich.text import Text  # noqa: PLC0415 - only what people read needs it

    on = console()
    head: list[tuple[str, Text]] = [
        ("task", Text(shown_id(task.id))),
        ("store", Text(printable(store.location))),
        ("status", Text(task.status.upper(), STYLES[task.status])),
        ("attempts", Text(f"{task.attempts} of at most {max(1, task.max_retries)}")),
        *((name, Text(text)) for name, text in _contents(task, loaded)),
    ]
    lines = [Text(f"{name:<11}").append_text(text) for name, text in head]
    lines.append(Text())
    for at, text, failure in _timeline(task, now):
        stamp = f"{'' if at is None else readable(at):<{_STAMP_WIDTH}}"
        lines.append(Text.assemble((stamp, "dim"), text.replace("\n", "\n" + " " * _STAMP_WIDTH)))
        if failure is not None and with_traceback:
            trace = failure.traceback or "(there is no stack trace)"
            lines.extend(Text(f"    {line}") for line in printable(trace).splitlines())
    for line in lines:
        on.print(line, soft_wrap=True)


def _contents(task: Task, loaded: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not loaded:
        yield "payload", f"{len(task.payload)} bytes, not loaded, since loading runs code (--load)"
        if task.value is not None:
            yield "value", f"{len(task.value)} bytes, not loaded"
        return
    if (call := loaded["call"]) is not None:
        arguments = [*call["args"], *(f"{name}={each}" for name, each in call["kwargs"].items())]
        yield "call", printable(f"{call['function']}({', '.join(arguments)})")
        if call["timeout"] is not None:
            yield "timeout", f"{call['timeout']:g} s for each attempt"
        if call["context"] is not None:
            yield "context", printable(", ".join(f"{name}={each}" for name, each in call["context"].items()))
    if loaded["returned"] is not None:
        yield "returned", printable(loaded["returned"])
    if loaded["load_error"] is not None:
        yield "not loaded", printable(loaded["load_error"])


def _timeline(task: Task, now: datetime) -> Iterator[tuple[datetime | None, str, Failure | None]]:
    """Tell what is known of a task, in order. The starts of attempts before the latest are not stored."""
    yield task.enqueued_at, f"enqueued{_first_eta(task)}", None
    for failure in task.failures:
        if failure.attempt == task.attempts and task.started_at is not None:
            yield task.started_at, f"attempt {failure.attempt} began", None
        yield failure.failed_at, f"attempt {failure.attempt} failed: {printable(failure.error)}", failure
        if failure.retry_at is not None:
            yield None, f"to be tried again at {readable(failure.retry_at)}", None
    if len(task.failures) < task.attempts and task.started_at is not None:
        yield task.started_at, f"attempt {task.attempts} began", None
    if task.status is TaskStatus.PENDING:
        yield task.available_at, due(task.available_at, now), None
    elif task.status is TaskStatus.RUNNING and task.lease_expires_at is not None:
        yield task.lease_expires_at, _lease(task.lease_expires_at, now), None
    elif task.finished_at is not None:
        during = ""
        if task.status is TaskStatus.CANCELLED and len(task.failures) < task.attempts:
            during = f" during attempt {task.attempts}, whose outcome is dropped"
        yield task.finished_at, f"ended as {task.status.upper()}{during}", None


def _first_eta(task: Task) -> str:
    if any(failure.retry_at is not None for failure in task.failures):
        return ""  # a retry has overwritten it
    return f", due at {readable(task.available_at)}" if task.available_at > task.enqueued_at else ", due at once"


def _lease(expires: datetime, now: datetime) -> str:
    if expires > now:
        return f"the lease ends, in {short(expires - now)}, unless the worker extends it"
    return f"the lease ran out, {short(now - expires)} ago, and no worker has recovered the task yet"
