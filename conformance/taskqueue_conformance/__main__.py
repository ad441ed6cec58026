"""The kit's own commands: ``python -m taskqueue_conformance COMMAND``."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = {
    "new": ("scaffold", "write a package to begin a backend with"),
    "compare": ("compare", "show the reports of several backends side by side"),
    "defects": ("defects.command", "run the suite against planted defects"),
}
"""By name: the module with ``add_arguments`` and ``run``, and what the command does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m taskqueue_conformance",
        description="What goes with the conformance suite. To test a backend, run pytest --conformance=TARGET.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, does) in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=does)
        try:
            found: Any = importlib.import_module(f"taskqueue_conformance.{module}")
        except ModuleNotFoundError as error:
            parser.error(f"{error.name!r} is not installed: pip install 'taskqueue-spec[conformance]'")
        found.add_arguments(command)
        command.set_defaults(run=found.run)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
