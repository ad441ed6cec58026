"""``taskqueue conformance``."""

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
@click.pass_context
def conformance(ctx: click.Context, target: str | None, arguments: tuple[str, ...]) -> None:
    """Run the conformance suite against a backend: pytest --conformance=TARGET.

    TARGET is MODULE:FACTORY, MODULE:HARNESS or a registered scheme such as sqlite; without it, what the ini option
    conformance_backend names. Every other argument goes to pytest, whose exit status this returns.
    """
    if find_spec("pytest") is None:
        raise Failed(f"the conformance suite needs pytest, which is not installed: {EXTRA}")
    import pytest  # noqa: PLC0415 - an extra, which no other command needs

    if target is None or target.startswith("-"):
        command = ["--conformance", *([] if target is None else [target]), *arguments]
    else:
        command = [f"--conformance={target}", *arguments]
    ctx.exit(int(pytest.main(command)))
