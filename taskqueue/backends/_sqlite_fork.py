"""Forking a process that has SQLite files open.

A child inherits no locks, but SQLite's memory, in which it holds those of the parent. A connection that the child
opened to the same file would rely on them; and once the parent had closed its own, the write-ahead log would be
removed under the child, with what the child had acknowledged. So a child first closes what it has inherited. That
harms nobody: the parent's locks stay, and they keep the child away from the log. It is safe only while SQLite is not
in the middle of something; so a fork waits until no call is running.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

_PATIENCE_SECONDS: Final = 5.0

_lock: Final = threading.Lock()
_changed: Final = threading.Condition(_lock)
_running = 0
_forking = 0
_in_child: Final[list[Callable[[], None]]] = []


class running:  # noqa: N801 - used as a context manager, and a class is the cheapest kind, for every call pays it
    """Mark a call into SQLite. Waits while the process forks."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _running  # noqa: PLW0603 - forking is a matter of the whole process
        with _lock:
            _running += 1

    def __exit__(self, *_: object) -> None:
        global _running  # noqa: PLW0603 - as above
        with _lock:
            _running -= 1
            if _forking:
                _changed.notify_all()


def in_child(action: Callable[[], None]) -> None:
    """Have ``action`` called in every forked child, before anything else can happen there."""
    _in_child.append(action)


def _before() -> None:
    global _forking  # noqa: PLW0603 - as above
    _changed.acquire()
    _forking += 1
    # Where somebody else's lock keeps a call waiting for long, the fork goes ahead, and the child's inheritance stays.
    _changed.wait_for(lambda: not _running, timeout=_PATIENCE_SECONDS)


def _after_in_parent() -> None:
    global _forking  # noqa: PLW0603 - as above
    _forking -= 1
    _changed.release()


def _after_in_child() -> None:
    global _forking, _running
    quiet, _running, _forking = not _running, 0, 0
    _changed.release()
    if quiet:
        for action in _in_child:
            action()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
