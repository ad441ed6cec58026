"""Watching a child process write to files and have them synced, without privileges: Linux's seccomp notifications.

The child asks the kernel to hold it at each of some system calls until its parent, who is told of them, lets it go on.
Nothing about the calls is changed.
"""

import ctypes
import errno
import os
import platform
import select
import socket
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, NamedTuple, Self

from taskqueue_conformance.child import Raised, puppet
from taskqueue_conformance.harness import Harness

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    seccomp: int
    writes: frozenset[int]
    syncs: frozenset[int]
    syncs_all: frozenset[int]


# write, pwrite64, writev, pwritev, pwritev2; fsync, fdatasync, sync_file_range; msync, sync, syncfs. An io_uring, whose
# writes and syncs cannot be seen, is refused, as many kernels do anyway.
_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {
    "x86_64": _Architecture(
        0xC000003E, 317, frozenset({1, 18, 20, 296, 328}), frozenset({74, 75, 277}), frozenset({26, 162, 306})
    ),
    "aarch64": _Architecture(
        0xC00000B7, 277, frozenset({64, 68, 66, 70, 287}), frozenset({82, 83, 84}), frozenset({227, 81, 267})
    ),
}
_IO_URING_SETUP: Final = 425

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY, _REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_CONTINUE: Final = 1
_SYNCED_WRITES: Final = os.O_DSYNC | os.O_SYNC if sys.platform == "linux" else 0


class File(NamedTuple):
    """What stays the same of a file whatever its name."""

    device: int
    inode: int


def watched_puppet(harness: Harness, channel: Connection, store: str) -> None:
    """Have every write and sync of this process held for the parent; then be a puppet that is not connected yet."""
    with socket.socket(fileno=os.dup(channel.fileno())) as way:
        try:
            listener = _install()
        except OSError as error:
            way.send(b"\0")
            channel.send(Raised("OSError", str(error)))
            return
        # Not through the channel, which writes: nobody lets this process go on yet.
        socket.send_fds(way, [b"\0"], [listener])
    os.close(listener)
    puppet(harness, channel, store, connected=False)


def _install() -> int:
    """Install the filter in this thread, for all threads to come as well; return the listener's descriptor."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or architecture is None:
        raise OSError(errno.ENOSYS, f"not known how to on {sys.platform}, {platform.machine()}")
    held = sorted(architecture.writes | architecture.syncs | architecture.syncs_all)
    rules = [(_LOAD_WORD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture.audit), (_RETURN, 0, 0, _ALLOW)]
    rules += [(_LOAD_WORD, 0, 0, 0), (_JUMP_IF_EQUAL, 0, 1, _IO_URING_SETUP), (_RETURN, 0, 0, _REFUSE)]
    for number in held:
        rules += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    rules += [(_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
    program = struct.pack("@HP", len(rules), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(architecture.seccomp, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return listener


class Watch:
    """Lets the calls of a watched process go on, in a thread, and remembers which files they wrote and synced.

    A call that the process has acknowledged has been remembered by then.

    Args:
        listener: The descriptor that the process sent; closed in the end.
    """

    def __init__(self, listener: int) -> None:
        self.wrote: list[File] = []
        self.synced: list[File | None] = []
        self._listener = listener
        self._architecture = _ARCHITECTURES[platform.machine()]
        self._files: dict[File, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conformance-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._listener)
        for descriptor in self._files.values():
            os.close(descriptor)

    def begin(self) -> None:
        """Forget what was written and synced so far, but not in which files."""
        self.wrote, self.synced = [], []

    def files_with(self, marker: bytes) -> set[File]:
        """Return the files that have been written and in which ``marker`` can be read."""
        return {file for file, descriptor in self._files.items() if marker in _contents(descriptor)}

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._ended.is_set():
            for _, events in poll.poll(50):
                if not events & select.POLLIN:
                    return
                self._let_go()

    def _let_go(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer)
        except OSError:  # it was killed in the meantime
            return
        identity, pid, _, number, _, _, descriptor, *_ = _NOTIFICATION.unpack(buffer)
        with suppress(OSError):
            self._remember(number, pid, descriptor)
        with suppress(OSError):
            fcntl.ioctl(self._listener, _SEND, _RESPONSE.pack(identity, 0, 0, _CONTINUE))

    def _remember(self, number: int, pid: int, descriptor: int) -> None:
        if number in self._architecture.syncs_all:
            self.synced.append(None)
            return
        path = f"/proc/{pid}/fd/{descriptor}"
        found = os.stat(path)  # noqa: PTH116 - a link into another process
        if not stat.S_ISREG(found.st_mode):
            return
        file = File(found.st_dev, found.st_ino)
        if number in self._architecture.syncs:
            self.synced.append(file)
            return
        self.wrote.append(file)
        if file not in self._files:
            self._files[file] = os.open(path, os.O_RDONLY)
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as info:  # noqa: PTH123 - the same
            flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        if flags & _SYNCED_WRITES:
            self.synced.append(file)


def _contents(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
