"""What is the same for every command: examples stand in its help as written, and errors of ours are one line."""

import errno
import inspect
from typing import Any

import click

from taskqueue._cli.errors import Failed, Status
from taskqueue.errors import TaskQueueError


class Command(click.Command):
    """A command whose epilog is shown as it is written, without filling its lines."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the epilog."""
        _write_verbatim(self.epilog, formatter)


class CommandGroup(click.Group):
    """Commands, listed in the order in which they were added, whose errors of ours end in one line."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the epilog."""
        _write_verbatim(self.epilog, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the names in the order of ``add_command``."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a ``TaskQueueError``, or what the system refuses, is status 1, and Ctrl-C quietly 130."""
        try:
            return super().invoke(ctx)
        except TaskQueueError as error:
            raise Failed(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly
            raise Failed(str(error)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(Status.CTRL_C) from None


def _write_verbatim(text: str | None, formatter: click.HelpFormatter) -> None:
    if text:
        formatter.write_paragraph()
        formatter.write(inspect.cleandoc(text) + "\n")
