"""The kit's own commands: ``python -m taskqueue_conformance COMMAND``."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m taskqueue_conformance",
        description="What the conformance suite is worth. To test a backend, run pytest --conformance=TARGET.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defects = commands.add_parser("defects", help="run the suite against planted defects")
    try:
        from taskqueue_conformance.defects import command  # noqa: PLC0415 - says below what is missing
    except ModuleNotFoundError as error:
        parser.error(f"{error.name!r} is not installed: pip install 'taskqueue-spec[conformance]'")
    command.add_arguments(defects)
    defects.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
