"""The kinds of values that options take, and the options that several commands share."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import click

from taskqueue import _check
from taskqueue.errors import InvalidArgument
from taskqueue.queue import URL_VARIABLE
from taskqueue.serializers._signed import KEY_VARIABLE

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS: Final = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII | re.IGNORECASE)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """A duration such as ``30``, ``30s``, ``5m``, ``2h`` or ``7d``; a number alone counts seconds.

    Args:
        zero: Whether zero is one too.
    """

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the timedelta that ``value`` means, or end the command with a message and status 2."""
        if isinstance(value, timedelta):
            return value
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 30 or 30s for seconds, or 5m, 2h, 7d", param, ctx)
        try:
            duration = timedelta(**{_UNITS[match[2].lower()]: float(match[1])})
        except OverflowError:
            self.fail(f"{value!r} is longer than can be counted", param, ctx)
        if not duration and not self._zero:
            self.fail(f"{value!r} must be more than zero", param, ctx)
        return duration


class TaskId(click.ParamType):  # type: ignore[type-arg]  # the same
    """An id that a task can have."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id, or end the command with a message and status 2."""
        try:
            return _check.task_id(value, "ID")
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


def url_option(command: Command) -> Command:
    """Add ``--url``."""
    return click.option(
        "--url",
        envvar=URL_VARIABLE,
        show_envvar=True,
        metavar="URL",
        help="The store, such as sqlite:///path/to/file.db; by default taskqueue.db in the working directory, if it "
        "exists. A URL with a password is safer in the variable.",
    )(command)


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def loading_options(command: Command) -> Command:
    """Add ``--serializer`` and ``--app-dir``, for commands that load what tasks hold."""
    command = click.option(
        "--app-dir",
        type=click.Path(exists=True, file_okay=False),
        default=".",
        metavar="DIR",
        help="Where your modules are: put first on sys.path. By default the working directory.",
    )(command)
    return click.option(
        "--serializer",
        metavar="MODULE:OBJECT",
        help=f"A serializer of your own: an instance, or what returns one when called. With {KEY_VARIABLE} "
        "in the environment, signatures are made and checked around it.",
    )(command)
