"""An aiosqlite connection that runs whole functions in its thread, and that no cancellation can leave half open."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import aiosqlite

from taskqueue.backends._sqlite_file import StoreFile
from taskqueue.backends._sqlite_fork import running

T = TypeVar("T")


class FileThread:
    """A :class:`StoreFile` and the thread that it lives in, on the event loop that opens it.

    Args:
        opener: Opens the file. Called in the thread.
    """

    def __init__(self, opener: Callable[[], StoreFile]) -> None:
        self._opener = opener
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._file: StoreFile | None = None
        self._error: Exception | None = None
        self._connection = aiosqlite.Connection(self._connect, iter_chunk_size=64)
        # Up to aiosqlite 0.21 the connection is itself the thread.
        connection: Any = self._connection
        self._thread: threading.Thread = getattr(connection, "_thread", connection)
        # An event loop that ended without close() must not keep the interpreter from ending.
        self._thread.daemon = True

    @property
    def file(self) -> StoreFile:
        """The open file, to be used in the thread."""
        assert self._file is not None, "not open"  # noqa: S101 - for the type checker; Session opens before it uses
        return self._file

    def _connect(self) -> sqlite3.Connection:
        # An exception here would make aiosqlite stop its thread without waiting for it, hence the stand-in.
        try:
            with running():
                self._file = self._opener()
        except Exception as error:  # noqa: BLE001 - open() raises it
            self._error = error
        finally:
            with suppress(RuntimeError):  # the event loop has been closed
                self._opened.get_loop().call_soon_threadsafe(self._opened.set_result, None)
        return sqlite3.connect(":memory:", check_same_thread=False) if self._file is None else self._file.db

    async def open(self) -> None:
        """Start the thread and open the file. Cancelled, it leaves nothing open.

        Raises:
            IncompatibleStore: As :class:`StoreFile`.
            StoreUnavailable: As :class:`StoreFile`.
        """
        try:
            await self._connection
        except asyncio.CancelledError:
            await finished(self._opened)
            if self._file is not None:
                self._file.close()
            raise
        if self._error is not None:
            await self.close()
            raise self._error

    async def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the thread, after everything before it, and return its result.

        A cancellation has no effect: the function runs to its end, and so does this.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                with running():
                    results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        # _execute is how aiosqlite itself calls a function in its thread; there is no public name for it, and its
        # public methods take one hop for each statement. It hands the function over before it first suspends, and
        # the thread keeps the order: so after a cancellation, waiting for any later call waits for this one too.
        connection: Any = self._connection
        job: Callable[[], None] = call
        while True:
            try:
                await connection._execute(job)  # noqa: SLF001 - see above
                break
            except asyncio.CancelledError:
                job = _nothing
        if errors:
            raise errors[0]
        return results[0]

    async def close(self) -> None:
        """Close the file after everything before, and end the thread. A cancellation has no effect. Idempotent.

        Also from another event loop, if the one that opened it is closed.
        """
        file, self._file = self._file, None
        if not self._thread.is_alive():  # an event loop that was closed during a call takes the thread along
            if file is not None:
                file.close()
            return
        if file is not None:
            with suppress(sqlite3.Error):  # there is nobody left to whom it could matter
                await self.run(file.close)
        await finished(asyncio.ensure_future(self._connection.close()))
        # Its last answer comes a moment before its end, and who closes expects to find no thread.
        while self._thread.is_alive():
            await finished(asyncio.ensure_future(asyncio.sleep(0)))


async def finished(future: "asyncio.Future[Any]") -> None:
    """Wait until ``future`` is done, however often the waiting task is cancelled. Raises nothing."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((future,))


def _nothing() -> None:
    pass
