"""``taskqueue conformance``."""

import os
import sys
from importlib.util import find_spec

import click

from taskqueue._cli.command import Command
from taskqueue._cli.errors import Failed

EXTRA = "pip install 'taskqueue-spec[conformance]'"


@click.command(
    cls=Command,
    short_help="Run the conformance suite against a backend.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""
    Examples:
      taskqueue conformance mypackage.testing:make_backend -x
      taskqueue conformance sqlite --conformance-profile=quick
    """,
)
@click.argument("target", required=False, metavar="[TARGET]", type=click.UNPROCESSED)
@click.argument("arguments", nargs=-1, metavar="[PYTEST ARGUMENTS]...", type=click.UNPROCESSED)
def conformance(target: str | None, arguments: tuple[str, ...]) -> None:
    """Run the conformance suite against a backend: pytest --conformance=TARGET.

    TARGET is MODULE:FACTORY, MODULE:HARNESS or a registered scheme such as sqlite; without it, what the ini option
    conformance_backend names. Every other argument goes to pytest, whose exit status this returns.
    """
    if find_spec("pytest") is None:
        raise Failed(f"the conformance suite needs pytest, which is not installed: {EXTRA}")
    if target is None or target.startswith("-"):
        forwarded = ["--conformance", *([] if target is None else [target]), *arguments]
    else:
        forwarded = [f"--conformance={target}", *arguments]
    # Not in this process, where taskqueue is loaded already: pytest warns of modules whose asserts it comes too late to
    # rewrite, and a warning may be an error.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *forwarded])  # noqa: S606 - that is the command's job
