"""Which checks each version of the suite counts. A version that has been released never changes.

A version is a file ``N.txt``: a line that says whether it is released, then the ids of its checks. What no version
names yet, or only a later one, runs all the same and is reported, but does not count. The one thing that may leave a
version is a check that turned out to be wrong: it goes into ``withdrawn.txt``, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
RELEASED: Final = "# released"
"""How the first line of a version begins that is frozen."""


@dataclass(frozen=True, slots=True)
class SuiteVersion:
    """One version of the suite.

    Attributes:
        number: 1 and upwards.
        released: Whether it is frozen.
        ids: The ids of the checks that it counts, without those that were withdrawn.
    """

    number: int
    released: bool
    ids: frozenset[str]


def versions(folder: Path = FOLDER) -> Mapping[int, SuiteVersion]:
    """Return all versions by number, in ascending order."""
    gone = withdrawn(folder)
    found = (_read(path, gone) for path in folder.glob("[0-9]*.txt"))
    return {each.number: each for each in sorted(found, key=lambda each: each.number)}


def newest(folder: Path = FOLDER) -> int:
    """Return the number of the newest version that is released; as long as none is, of the newest."""
    every = versions(folder)
    return max((number for number, each in every.items() if each.released), default=max(every))


def withdrawn(folder: Path = FOLDER) -> Mapping[str, str]:
    """Return the checks that count in no version any more, with the reason."""
    lines = (folder / "withdrawn.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(": ") for line in lines if line and not line.startswith("#"))
    return {check_id: reason for check_id, _, reason in pairs}


def _read(path: Path, gone: Mapping[str, str]) -> SuiteVersion:
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    return SuiteVersion(int(path.stem), first.startswith(RELEASED), frozenset(lines) - set(gone))
