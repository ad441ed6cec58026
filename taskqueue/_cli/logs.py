"""Logging, which only the command sets up: the library logs under ``taskqueue.*`` and leaves the rest to others."""

import logging
import sys
import time
from typing import Final

from taskqueue._cli.text import printable

LEVELS: Final = ("debug", "info", "warning", "error")

_TALKATIVE: Final = ("asyncio", "aiosqlite")


class _UtcFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        # The errors of tasks may come from anywhere: they must not steer the terminal, nor pass for another line.
        return printable(super().format(record)).replace("\n", "\n    ")


def configure(level: str) -> None:
    """Write what is logged, by the tasks too, to standard error: instant in UTC, level, logger, message.

    Args:
        level: One of ``LEVELS``; what is below it is not shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_UtcFormatter("{asctime} {levelname:<7} {name}: {message}", style="{"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        # Their debugging is about themselves, a line for every statement.
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
