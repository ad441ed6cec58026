"""Who waits for a change of a store, within this process."""

import asyncio
import os
import threading
from collections import defaultdict
from contextlib import suppress

_LOCK = threading.Lock()
_WAITING: "defaultdict[str, set[asyncio.Future[None]]]" = defaultdict(set)


def listen(store: str, waiter: "asyncio.Future[None]") -> None:
    """Have ``waiter`` resolved by the next :func:`announce` of the store. Call on the waiter's event loop."""
    with _LOCK:
        _WAITING[store].add(waiter)


def unlisten(store: str, waiter: "asyncio.Future[None]") -> None:
    """Forget a waiter. Idempotent."""
    with _LOCK:
        _WAITING[store].discard(waiter)
        if not _WAITING[store]:
            del _WAITING[store]


def announce(store: str) -> None:
    """Resolve the waiters of a store, on whatever event loops they are. Callable from any thread."""
    with _LOCK:
        waiters = _WAITING.pop(store, set())
    for waiter in waiters:
        with suppress(RuntimeError):  # its event loop has been closed
            waiter.get_loop().call_soon_threadsafe(wake, waiter)


def wake(waiter: "asyncio.Future[None]") -> None:
    """Resolve one waiter, unless it is done. Call on its event loop."""
    if not waiter.done():
        waiter.set_result(None)


def _forget_the_parents() -> None:
    global _LOCK  # noqa: PLW0603 - another thread of the parent's may have held it
    _LOCK = threading.Lock()
    _WAITING.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
