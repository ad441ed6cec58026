"""``python -m taskqueue``: the same as the command ``taskqueue``."""

from taskqueue.cli import main

main("python -m taskqueue")
