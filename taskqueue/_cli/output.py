"""What the commands print: tables and lines for people, and JSON documents for programs."""

import base64
import json
import os
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from taskqueue._cli.text import iso
from taskqueue.status import TaskStatus
from taskqueue.task import Task

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES: Final = {
    TaskStatus.PENDING: "yellow",
    TaskStatus.RUNNING: "cyan",
    TaskStatus.SUCCESS: "green",
    TaskStatus.FAILED: "red",
    TaskStatus.CANCELLED: "dim",
}
"""How rich shows each status on a terminal."""

_UNCUT: Final = 100_000


def console() -> "Console":
    """Return a console on standard output that heeds ``NO_COLOR``, and cuts nothing where that is no terminal."""
    from rich.console import Console  # noqa: PLC0415 - half of what the command would need to start

    width = None if sys.stdout.isatty() else _UNCUT
    # By itself rich still writes bold and dim where NO_COLOR is set.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(width=width, color_system=colours, highlight=False, markup=False, emoji=False)


def show(what: "RenderableType", on: "Console") -> None:
    """Print a table or text."""
    with on.capture() as captured:
        on.print(what, soft_wrap=isinstance(what, str))
    # Through click, which ends quietly when the reader of a pipe has gone; rich has decided about colours.
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)


def print_json(document: dict[str, Any]) -> None:
    """Print a document of a command."""
    click.echo(json.dumps(document, default=_plain))


def task_document(task: Task, *, with_bytes: bool = False) -> dict[str, Any]:
    """Return a task as ``--json`` shows it; ``docs/reference/command-line.md`` describes the shape."""
    return {
        "id": task.id,
        "status": task.status.value,
        "attempts": task.attempts,
        "max_retries": task.max_retries,
        "enqueued_at": task.enqueued_at,
        "available_at": task.available_at,
        "started_at": task.started_at,
        "lease_expires_at": task.lease_expires_at,
        "finished_at": task.finished_at,
        "payload": _bytes_document(task.payload, with_bytes=with_bytes),
        "value": None if task.value is None else _bytes_document(task.value, with_bytes=with_bytes),
        "failures": [
            {
                "attempt": failure.attempt,
                "error": failure.error,
                "traceback": failure.traceback,
                "failed_at": failure.failed_at,
                "retry_at": failure.retry_at,
            }
            for failure in task.failures
        ],
    }


def _bytes_document(data: bytes, *, with_bytes: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"bytes": len(data)}
    if with_bytes:
        document["base64"] = base64.b64encode(data).decode("ascii")
    return document


def _plain(value: object) -> str | float:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no place in a document")
