"""Where the files of a run lie: in memory where there is room, since many small stores are synced again and again."""

import os
import shutil
import tempfile
from typing import Final

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - a directory of its own is made in there
_MIB: Final = 1024 * 1024


def scratch_folder(prefix: str, *, room_mib: int = 512, programs: bool = False) -> str:
    """Make a directory, and return its path. Whoever asks for it removes it.

    Args:
        prefix: What its name begins with.
        room_mib: How many MiB have to be free in memory; with less than that the directory is where ``tempfile`` makes
            them.
        programs: Whether programs are to be run from it, which containers often forbid for what is in memory.
    """
    in_memory = _has_room(room_mib * _MIB) and not (programs and os.statvfs(_SHARED_MEMORY).f_flag & os.ST_NOEXEC)
    return tempfile.mkdtemp(prefix=prefix, dir=_SHARED_MEMORY if in_memory else None)


def _has_room(size: int) -> bool:
    try:
        return os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free >= size
    except OSError:
        return False
