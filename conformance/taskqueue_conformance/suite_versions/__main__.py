"""Writes the version that is being made: ``python -m taskqueue_conformance.suite_versions``.

It counts every check that there is. It is the newest version as long as that is not released, and the one after it
otherwise.
"""

import sys

from taskqueue_conformance.suite import every_check
from taskqueue_conformance.suite_versions import FOLDER, versions, withdrawn


def text() -> str:
    """Return the file of a version that counts every check there is."""
    ids = sorted(set(every_check()) - set(withdrawn()))
    return "\n".join(["# not released", *ids, ""])


def main() -> int:
    """Write the file."""
    last = max(versions().values(), key=lambda each: each.number)
    path = FOLDER / f"{last.number + last.released}.txt"
    path.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{path.name}: {len(text().splitlines()) - 1} checks\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
