"""The command ``taskqueue``."""

import io
import os
import sys

import click

from taskqueue._cli.changing import cancel, purge, retry
from taskqueue._cli.command import CommandGroup
from taskqueue._cli.conformance import conformance
from taskqueue._cli.errors import Status
from taskqueue._cli.listing import list_tasks
from taskqueue._cli.moving import move
from taskqueue._cli.schema import schema
from taskqueue._cli.showing import show_task
from taskqueue._cli.stats import stats
from taskqueue._cli.working import worker


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    Example:
      taskqueue worker --url sqlite:///taskqueue.db
      taskqueue list --status failed
    """,
)
@click.version_option(package_name="taskqueue-spec", message="taskqueue %(version)s")
def cli() -> None:
    """Run and look after the tasks of a queue.

    The application names the same store, as TaskQueue.from_url(…) or in the environment variable TASKQUEUE_URL, which
    every command heeds.
    """


for command in (worker, list_tasks, show_task, stats, cancel, retry, purge, move, schema, conformance):
    cli.add_command(command)


def main(program: str = "taskqueue") -> None:
    """Run the command with the arguments of this process, and end the process.

    Args:
        program: What the command is called in its own messages.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is escaped, and never an error.
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name=program)
    except KeyboardInterrupt:
        sys.exit(Status.CTRL_C)
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # The command has told of it. What is left in the buffer must not fail once more at the end of Python.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
