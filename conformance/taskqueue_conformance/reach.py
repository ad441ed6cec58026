"""What another user can reach: where a folder above a program is closed to it, it needs a copy elsewhere."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def can_use(path: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether a user can run a program, or enter a folder.

    The system is asked, as that user: every folder above, access lists and mounts have a say, not the mode alone.

    Args:
        path: The program or the folder.
        identity: The user, as arguments for ``subprocess.run``; empty for the one who asks, who is taken to be able to.
    """
    if not identity:
        return True
    question = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
    return subprocess.run(question, cwd="/", check=False, **identity).returncode == 0  # noqa: S603 - a fixed command


def open_to_all(folder: Path) -> None:
    """Let every user who gets to a folder read and run everything in it, whatever the umask was when it was made."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
