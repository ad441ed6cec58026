"""``taskqueue cancel``, ``taskqueue retry`` and ``taskqueue purge``."""

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import click

from taskqueue._cli.command import Command
from taskqueue._cli.errors import Failed, Status
from taskqueue._cli.output import print_json
from taskqueue._cli.parameters import Duration, TaskId, json_option, url_option
from taskqueue._cli.store import Store, find_store
from taskqueue._cli.text import readable, short, shown_id
from taskqueue._instants import earlier, later
from taskqueue.errors import TaskNotEnded, TaskNotFound
from taskqueue.queue import TaskQueue
from taskqueue.status import OUTCOMES, TaskStatus

ids_argument = click.argument("task_ids", metavar="ID...", type=TaskId(), nargs=-1, required=True)


@click.command(
    cls=Command,
    short_help="Cancel tasks that are pending or running.",
    epilog="""
    Example:
      taskqueue cancel 77ab3c8e-1a0d-4b3c-9c77-0f5a6b1de001
    """,
)
@ids_argument
@json_option
@url_option
def cancel(task_ids: tuple[str, ...], *, as_json: bool, url: str | None) -> None:
    """Cancel tasks that are pending or running.

    A running task is fenced at once: whatever its worker reports later is dropped. Its worker learns of it
    within about a second, or at its next heartbeat at the latest, and interrupts a coroutine then; a function in a
    thread runs on. The status is 1 if any of the tasks is unknown or has ended otherwise.
    """
    store = find_store(url)

    async def one(queue: TaskQueue, task_id: str) -> dict[str, Any]:
        try:
            done = await queue.cancel(task_id)
            status = TaskStatus.CANCELLED if done else (await queue.get_task(task_id)).status
        except TaskNotFound:
            raise store.unknown(task_id) from None
        if status is not TaskStatus.CANCELLED:
            raise Failed(f"{shown_id(task_id)} has ended already, as {status.upper()}")
        if not as_json:
            click.echo(f"{shown_id(task_id)} {'cancelled' if done else 'was cancelled already'}")
        return {"id": task_id, "cancelled": True, "by_this_call": done, "error": None}

    _for_each(store, task_ids, one, {"cancelled": False, "by_this_call": False}, as_json=as_json)


@click.command(
    cls=Command,
    short_help="Run ended tasks once more, as new tasks.",
    epilog="""
    Examples:
      taskqueue retry 77ab3c8e-1a0d-4b3c-9c77-0f5a6b1de001 --max-retries 3
      taskqueue list --status failed --json |
        jq -r '.tasks[].id' | xargs taskqueue retry
    """,
)
@ids_argument
@click.option(
    "--delay",
    type=Duration(zero=True),
    default="0",
    help="Run the new task not before this has passed, such as 30s, 5m or 2h; default: 0.",
)
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="The new task's retry budget, which counts executions; by default that of the ended task.",
)
@json_option
@url_option
def retry(
    task_ids: tuple[str, ...], *, delay: timedelta, max_retries: int | None, as_json: bool, url: str | None
) -> None:
    """Run tasks that have ended once more, each as a new task with the same payload.

    An ended task is never revived: it stays as it is, and the new task has an id of its own, which is printed. The
    payload is copied without loading it. The status is 1 if any of the tasks is unknown or has not ended.
    """
    store = find_store(url)

    async def one(queue: TaskQueue, task_id: str) -> dict[str, Any]:
        eta = later(queue.now(), delay) if delay else None
        try:
            new_id = await queue.enqueue_again(task_id, eta=eta, max_retries=max_retries)
        except TaskNotFound:
            raise store.unknown(task_id) from None
        except TaskNotEnded as error:
            raise Failed(str(error)) from error
        if not as_json:
            click.echo(f"{shown_id(task_id)} runs again as {new_id}")
        return {"id": task_id, "new_id": new_id, "error": None}

    _for_each(store, task_ids, one, {"new_id": None}, as_json=as_json)


def _for_each(
    store: Store,
    task_ids: tuple[str, ...],
    work: Callable[[TaskQueue, str], Awaitable[dict[str, Any]]],
    failed: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Do ``work`` for every id, also after one for which it raised ``Failed``; then end with status 1 if any did."""

    async def every(queue: TaskQueue) -> list[dict[str, Any]]:
        documents = []
        for task_id in task_ids:
            try:
                documents.append(await work(queue, task_id))
            except Failed as error:
                error.show()
                documents.append({"id": task_id} | failed | {"error": error.message})
        return documents

    documents = store.use(every)
    if as_json:
        print_json({"tasks": documents})
    if any(document["error"] for document in documents):
        raise click.exceptions.Exit(Status.ERROR)


@click.command(
    cls=Command,
    short_help="Remove tasks that ended long ago.",
    epilog="""
    Examples:
      taskqueue purge --older-than 7d
      taskqueue purge --older-than 7d --yes     # where nobody can be asked
    """,
)
@click.option(
    "--older-than",
    type=Duration(zero=True),
    required=True,
    help="How long ago a task must have ended, such as 12h or 7d; a number alone counts seconds.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; count what would be removed now, by listing it all.")
@json_option
@url_option
def purge(*, older_than: timedelta, yes: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Remove tasks that ended long ago, with their results. What has not ended is never removed."""
    store = find_store(url)

    async def count(queue: TaskQueue) -> tuple[int, datetime]:
        before = earlier(queue.now(), older_than)
        total = 0
        for status in OUTCOMES:
            async for task in queue.tasks(status):
                total += task.finished_at is not None and task.finished_at < before
        return total, before

    async def remove(queue: TaskQueue) -> tuple[int, datetime]:
        before = earlier(queue.now(), older_than)
        return await queue.purge(finished_before=before), before

    if not dry_run and not yes:
        _confirm(store, older_than)
    number, before = store.use(count if dry_run else remove)
    if as_json:
        print_json({"would_remove" if dry_run else "removed": number, "finished_before": before})
    else:
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{number} task{'' if number == 1 else 's'} that ended before {readable(before)} {verb}")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _confirm(store: Store, older_than: timedelta) -> None:
    if not _can_ask():
        raise click.UsageError("nobody can be asked here: pass --yes to remove, or --dry-run to count")
    click.confirm(
        f"Remove all tasks from {store.location} that ended more than {short(older_than)} ago, with their results?",
        abort=True,
        err=True,
    )
