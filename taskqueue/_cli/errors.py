"""How the command ends when something goes wrong: one clear line, and a status that scripts can use."""

import sys
from enum import IntEnum
from typing import Any

import click

from taskqueue._cli.text import printable
from taskqueue._url import without_password


class Status(IntEnum):
    """The exit statuses that are ours to choose; click ends with 2 for wrong usage by itself."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    INTERRUPTED = 3
    """Tasks were interrupted when the grace period was over, or their outcomes could not be recorded."""
    ABANDONED = 4
    """The process ended under what cannot be interrupted: a function in a thread, a coroutine that goes on."""
    CTRL_C = 130


class Failed(click.ClickException):
    """Ends the command with status 1 and ``error: …`` on standard error. Passwords in URLs are not shown."""

    exit_code = Status.ERROR

    def __init__(self, message: str) -> None:
        super().__init__(printable(without_password(message)))

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"error: {self.message}", file=sys.stderr if file is None else file)
