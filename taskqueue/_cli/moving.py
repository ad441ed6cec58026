"""``taskqueue move``: from one store to another."""

import asyncio

import click

from taskqueue._cli.command import Command
from taskqueue._cli.errors import Failed, Status
from taskqueue._cli.output import print_json
from taskqueue._cli.parameters import json_option
from taskqueue._cli.store import find_store
from taskqueue.moving import Journal, Moved
from taskqueue.moving import move as move_tasks


@click.command(
    cls=Command,
    short_help="Move unfinished tasks to another store.",
    epilog="""
    Example:
      taskqueue move sqlite:///taskqueue.db postgresql://user@db/app --journal move
    """,
)
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option(
    "--journal",
    type=click.Path(dir_okay=False),
    required=True,
    metavar="FILE",
    help="Where the move is written down, task by task, before anything is changed. It holds the payloads.",
)
@json_option
def move(*, source: str, target: str, journal: str, as_json: bool) -> None:
    """Move the tasks that have not ended from the store SOURCE to the store TARGET, both given as URLs.

    Stop the workers of SOURCE first, and what enqueues there. Each task is cancelled in SOURCE, then enqueued in TARGET
    with its id, its attempts and its failures. Interrupted at any point, the same command with the same journal goes
    on where it was. Tasks that have ended stay in SOURCE.
    """
    here, there = find_store(source), find_store(target, create=True)
    try:
        with Journal(journal, source=here.location, target=there.location) as written:
            moved: Moved = asyncio.run(move_tasks(here.backend, there.backend, written))
    except OSError as error:
        raise Failed(f"{journal}: {error.strerror or error}") from error
    if as_json:
        print_json({"moved": moved.moved, "interrupted": [*moved.interrupted]})
    else:
        click.echo(f"{moved.moved} task{'' if moved.moved == 1 else 's'} moved to {there.location}")
        for task_id in moved.interrupted:
            click.echo(f"{task_id!r} had been taken by a worker and has no attempt left: it stays, cancelled", err=True)
    if moved.interrupted:
        raise click.exceptions.Exit(Status.ERROR)
