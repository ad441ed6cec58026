"""Linux's inotify on the files of an SQLite store: the kernel tells when any process writes to the log."""

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any, Final
from weakref import WeakSet, finalize

from taskqueue.backends._sqlite_fork import in_child

_IN_MODIFY: Final = 0x002
_IN_ATTRIB: Final = 0x004
_IN_MOVE_SELF: Final = 0x800
_BUFFER_BYTES: Final = 65536

_WATCHES: "WeakSet[LogWatch]" = WeakSet()


class LogWatch:
    """A descriptor that is readable once somebody has written to a store's log, or has taken away one of its files.

    A write is told of before its transaction is visible: the commit follows, perhaps only after a sync of the disk.

    Args:
        path: The store's file, without symbolic links. It must be open, so that its log is there.

    Raises:
        OSError: There is no inotify here, or the user has no more of it (``fs.inotify.max_user_instances``).
    """

    def __init__(self, path: str) -> None:
        libc = _libc()
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        # Also closes it when nobody has: an event loop may end before anybody could.
        self._close = finalize(self, os.close, descriptor)
        self._descriptor: int = descriptor
        _WATCHES.add(self)
        for name, events in ((f"{path}-wal", _IN_MODIFY), (path, 0)):
            events |= _IN_ATTRIB | _IN_MOVE_SELF  # noqa: PLW2901 - of both
            if libc.inotify_add_watch(descriptor, os.fsencode(name), events) < 0:
                number = ctypes.get_errno()
                self.close()
                raise OSError(number, "inotify_add_watch", name)

    def fileno(self) -> int:
        """Return the descriptor, for an event loop to watch."""
        return self._descriptor

    def drain(self) -> None:
        """Forget what has happened until now."""
        with suppress(BlockingIOError):
            while len(os.read(self._descriptor, _BUFFER_BYTES)) > _BUFFER_BYTES // 2:
                pass

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        self._close()


@cache
def _libc() -> Any:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "inotify is a part of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        raise OSError(errno.ENOSYS, "this C library has no inotify")
    return libc


def _close_inherited() -> None:
    for watch in list(_WATCHES):
        watch.close()


in_child(_close_inherited)
