"""``taskqueue list``."""

from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from taskqueue._cli.command import Command
from taskqueue._cli.output import STYLES, console, print_json, show, task_document
from taskqueue._cli.parameters import json_option, url_option
from taskqueue._cli.store import find_store
from taskqueue._cli.text import due, one_line, short, shown_id
from taskqueue.queue import TaskQueue
from taskqueue.status import TaskStatus
from taskqueue.task import Task

if TYPE_CHECKING:
    from rich.table import Table

_GAP: Final = 2
_NARROWEST_NOTE: Final = 8


@click.command(
    "list",
    cls=Command,
    short_help="List tasks, the oldest first.",
    epilog="""
    Examples:
      taskqueue list
      taskqueue list --status failed --newest --limit 10
    """,
)
@click.option(
    "--status",
    type=click.Choice([status.value for status in TaskStatus], case_sensitive=False),
    metavar="STATUS",
    help="Only tasks that are pending, running, success, failed or cancelled.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Show at most N tasks."
)
@click.option(
    "--newest", is_flag=True, help="Show the tasks enqueued last; this reads through all of the listing to its end."
)
@json_option
@url_option
def list_tasks(*, status: str | None, limit: int, newest: bool, as_json: bool, url: str | None) -> None:
    """List tasks in the order in which they were enqueued, the oldest first."""
    store = find_store(url)

    async def read(queue: TaskQueue) -> tuple[list[Task], bool, datetime]:
        tasks = queue.tasks(status)
        kept, more = await (_last(tasks, limit) if newest else _first(tasks, limit))
        return kept, more, queue.now()

    tasks, more, now = store.use(read)
    if as_json:
        print_json({"tasks": [task_document(task) for task in tasks], "more": more})
        return
    if tasks:
        on = console()
        show(_table(tasks, now, on.width), on)
    else:
        click.echo(f"no {status.lower() + ' ' if status else ''}tasks in {store.location}", err=True)
    if more:
        where = "older ones" if newest else "newer ones (--newest begins with them)"
        click.echo(f"there are {where}; --limit shows more than {limit}", err=True)


async def _first(tasks: AsyncIterator[Task], limit: int) -> tuple[list[Task], bool]:
    kept: list[Task] = []
    async for task in tasks:
        if len(kept) == limit:
            return kept, True
        kept.append(task)
    return kept, False


async def _last(tasks: AsyncIterator[Task], limit: int) -> tuple[list[Task], bool]:
    kept: deque[Task] = deque(maxlen=limit)
    count = 0
    async for task in tasks:
        kept.append(task)
        count += 1
    return list(kept), count > limit


def _table(tasks: list[Task], now: datetime, width: int) -> "Table":
    from rich.cells import cell_len  # noqa: PLC0415 - only tables need it
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    rows = [
        (
            Text(shown_id(task.id)),
            Text(task.status.upper(), STYLES[task.status]),
            Text(f"{task.attempts}/{max(1, task.max_retries)}"),
            Text(short(now - task.enqueued_at)),
            Text(_note(task, now)),
        )
        for task in tasks
    ]
    heads = ("ID", "STATUS", "ATTEMPTS", "AGE")
    widths = [max(len(head), *(cell_len(row[column].plain) for row in rows)) for column, head in enumerate(heads)]
    room = width - sum(widths) - len(heads) * _GAP
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for head, needed in zip(heads, widths, strict=True):
        # An id is never cut: one that is wider than the terminal is folded.
        table.add_column(head, overflow="fold", min_width=min(needed, width // 2))
    table.add_column("WHAT HAPPENED", no_wrap=True, overflow="ellipsis", max_width=max(room, _NARROWEST_NOTE))
    for row in rows:
        table.add_row(*row)
    return table


def _note(task: Task, now: datetime) -> str:
    error = one_line(task.failures[-1].error) if task.failures else ""
    if task.status is TaskStatus.PENDING:
        return f"{due(task.available_at, now)}{error and ' after '}{error}"
    if task.status is TaskStatus.RUNNING and task.started_at and task.lease_expires_at:
        if task.lease_expires_at <= now:
            return f"lease ran out {short(now - task.lease_expires_at)} ago"
        return f"began {short(now - task.started_at)} ago"
    ended = f"ended {short(now - task.finished_at)} ago" if task.finished_at else "ended"
    # The error first: a narrow terminal has room for little more.
    return f"{error}; {ended}" if task.status is TaskStatus.FAILED else ended
