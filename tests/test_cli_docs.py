"""``docs/reference/command-line.md`` shows the help as the command prints it.

``python tests/test_cli_docs.py`` writes the help into the page anew.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from click.testing import CliRunner

from taskqueue._cli.errors import Status
from taskqueue.cli import cli

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "command-line.md"
HEADING: Final = "## The commands\n"


def helps() -> str:
    """Return the last part of the page: the help of every command."""
    parts = []
    for arguments in _commands(cli):
        result = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="taskqueue", terminal_width=80)
        title = " ".join(["taskqueue", *arguments])
        parts.append(f"\n### `{title}`\n\n```\n{result.stdout.rstrip()}\n```\n")
    return "".join(parts)


def _commands(group: click.Group) -> Iterator[list[str]]:
    """Yield the arguments that lead to every command, the group itself first."""
    yield []
    for name, command in group.commands.items():
        inner = _commands(command) if isinstance(command, click.Group) else [[]]
        yield from ([name, *arguments] for arguments in inner)


def test_the_page_shows_the_help_as_the_command_prints_it() -> None:
    _prose, heading, shown = PAGE.read_text().partition(HEADING)
    assert heading
    assert shown == helps(), "run: python tests/test_cli_docs.py"


def test_the_page_explains_every_exit_status_of_ours() -> None:
    prose = PAGE.read_text().partition(HEADING)[0]
    for status in Status:
        assert f"\n| {status.value} |" in prose


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0] + HEADING + helps())
