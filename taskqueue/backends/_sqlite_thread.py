"""The thread in which an SQLite file is open: every call that may block is made there, one after another."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from taskqueue.backends._session import finished
from taskqueue.backends._sqlite_file import StoreFile
from taskqueue.backends._sqlite_fork import running

T = TypeVar("T")

Done = Callable[[Any, BaseException | None], object]
"""Hears of the end of a call, on the event loop: of its result, or of what it raised."""

_LOOK_SECONDS: Final = 0.05


class FileThread:
    """A :class:`StoreFile` and the thread that it lives in, for the event loop that opens it.

    A call is handed over by a queue, and its end by ``call_soon_threadsafe``: the least that it can cost, which for one
    statement is most of the time. The thread ends with ``close``, or when nothing refers to this object any more.

    Args:
        opener: Opens the file. Called in the thread.
    """

    def __init__(self, opener: Callable[[], StoreFile]) -> None:
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._file: StoreFile | None = None
        # A daemon: an event loop that ended without close() must not keep the interpreter from ending.
        self._thread = threading.Thread(target=_serve, args=(self._jobs,), name="taskqueue-sqlite", daemon=True)

    @property
    def file(self) -> StoreFile:
        """The open file, to be used in the thread."""
        assert self._file is not None, "not open"  # noqa: S101 - for the type checker; Session opens before it uses
        return self._file

    async def open(self) -> None:
        """Start the thread and open the file. Cancelled, it leaves nothing open.

        Raises:
            IncompatibleStore: As :class:`StoreFile`.
            StoreUnavailable: As :class:`StoreFile`.
        """
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None).atexit = False
        opening: asyncio.Future[StoreFile] = self._loop.create_future()
        self.begin(self._opener, partial(_resolve, opening))
        cancelled = False
        while not opening.done():
            try:
                await asyncio.wait((opening,))
            except asyncio.CancelledError:
                cancelled = True
        if opening.exception() is None:
            self._file = opening.result()
        if cancelled or self._file is None:
            await self.close()
        if cancelled:
            raise asyncio.CancelledError
        opening.result()

    def begin(self, function: Callable[[], Any], done: Done) -> None:
        """Have ``function`` called in the thread, after everything before it, and then ``done`` on the event loop.

        Nobody is told if the event loop has been closed meanwhile.
        """
        self._jobs.put(partial(_do, self._loop, function, done))

    async def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the thread, after everything before it, and return its result.

        A cancellation has no effect: the function runs to its end, and so does this.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        self.begin(function, partial(_resolve, answer))
        await finished(answer)
        return answer.result()

    async def close(self) -> None:
        """Close the file after everything before, and end the thread. A cancellation has no effect. Idempotent.

        Also from another event loop, if the one that opened it is closed.
        """
        file, self._file = self._file, None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put(partial(_close, file, asyncio.get_running_loop(), partial(_resolve, ended)))
        self._jobs.put(None)
        while self._thread.is_alive() and not ended.done():
            # Had somebody closed it before, the thread may end without an answer.
            await finished(asyncio.ensure_future(asyncio.wait((ended,), timeout=_LOOK_SECONDS)))
        # Its last answer comes a moment before its end, and who closes expects to find no thread.
        while self._thread.is_alive():
            await finished(asyncio.ensure_future(asyncio.sleep(0)))


def _serve(jobs: "SimpleQueue[Callable[[], object] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # which may be what keeps the owner of this thread alive


def _do(loop: asyncio.AbstractEventLoop, function: Callable[[], Any], done: Done) -> None:
    result, error = None, None
    try:
        with running():
            result = function()
    except BaseException as raised:  # noqa: BLE001 - it is delivered to the caller
        error = raised
    with suppress(RuntimeError):  # the event loop has been closed
        loop.call_soon_threadsafe(done, result, error)


def _close(file: StoreFile | None, loop: asyncio.AbstractEventLoop, done: Done) -> None:
    # There is nobody left to whom an error of closing could matter.
    _do(loop, _nothing if file is None else file.close, done)


def _resolve(answer: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
        answer.exception()  # seen: nobody need ask


def _nothing() -> None:
    pass
