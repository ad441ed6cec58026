"""What a handle has while it is connected on one event loop: a file in its thread, and the calls under way."""

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from taskqueue.backends._rows import DamagedRow
from taskqueue.backends._session import BaseSession, finished
from taskqueue.backends._sqlite_changes import announce
from taskqueue.backends._sqlite_commit import execute, execute_patiently, refused_as_busy
from taskqueue.backends._sqlite_file import StoreFile, unavailable
from taskqueue.backends._sqlite_fork import running
from taskqueue.backends._sqlite_lookout import Lookout
from taskqueue.backends._sqlite_operations import Operation
from taskqueue.backends._sqlite_quick import QuickCalls
from taskqueue.backends._sqlite_thread import FileThread

T = TypeVar("T")

_LARGEST_BATCH: Final = 1000


class _Call(NamedTuple):
    operation: Operation[Any]
    answer: "asyncio.Future[Any]"


class _Done(NamedTuple):
    version: int | None
    changed: bool
    outcomes: Sequence[Any]


class Session(BaseSession):
    """One connected period of a handle, on the running event loop and in this process. It begins to open at once.

    Calls are queued, and handed to the thread whenever it has nothing to do: one alone, or in one transaction all that
    have come together in the meantime. So the order of the calls is kept, a caller's cancellation never reaches a
    transaction, and answers are given only after the commit. Callbacks do it all: a task of its own would cost a call
    two more turns of the event loop. Where writes are not synced, a few short calls run on the event loop itself; and
    one that comes alone, the first in a turn of the loop, runs before it is queued.

    Args:
        path: The absolute path of the file.
        opener: Opens the file. Called in a thread.
        syncs: Whether a commit waits for the disk.
    """

    def __init__(self, path: str, opener: Callable[[], StoreFile], *, syncs: bool) -> None:
        self._path = path
        self._store = os.path.realpath(path)
        self._thread = FileThread(opener)
        self._calls: deque[_Call] = deque()
        self._flushing = False
        self._working = False
        self._checkpointing = False
        self._at_rest: asyncio.Future[None] | None = None
        self._quick = None if syncs else QuickCalls(asyncio.get_running_loop())
        self._lookout = Lookout(self._store, self.submit)
        super().__init__()

    async def reap(self) -> None:
        """Close the file of a session whose event loop has been closed."""
        self._lookout.close()
        await self._thread.close()

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation, at once if it comes alone and may, and return its result.

        Gives way to others at least once, whatever happens. Cancelled before the operation has begun, this prevents it.
        """
        if self._quick is None or self._flushing or self._working or not self._quick.may((operation,)):
            return await self.submit(operation)
        (outcome,) = self._run_quickly((operation,), self._quick)
        if refused_as_busy(outcome):
            return await self.submit(operation)
        # From now on, and until the next turn of the event loop, calls are gathered.
        self._flushing = True
        self._loop.call_soon(self._flush)
        await asyncio.sleep(0)
        if isinstance(outcome, BaseException):
            raise self._to_raise(outcome)
        result: T = outcome
        return result

    def submit(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Queue an operation. The future gets its outcome; cancelled before the operation has begun, it prevents it."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._calls.append(_Call(operation, answer))
        if not (self._flushing or self._working):
            # Not at once, so that calls of the same turn of the event loop share a transaction.
            self._flushing = True
            self._loop.call_soon(self._flush)
        return answer

    async def wait(self, seconds: float) -> None:
        """Wait for a change by whichever process, for ``close``, or until the time is up."""
        await self._lookout.wait(seconds)

    def _give_up_opening(self) -> None:
        """It goes on in its thread to the end, and is closed then."""

    def _wake(self) -> None:
        self._lookout.wake()

    async def _open_store(self) -> None:
        await self._thread.open()

    async def _close_store(self) -> None:
        while self._flushing or self._working:
            self._at_rest = self._loop.create_future()
            await finished(self._at_rest)
        self._lookout.close()
        await self._thread.close()

    def _flush(self) -> None:
        """Run what has gathered: here if it is quick, or else in the thread."""
        self._flushing = False
        calls = self._next_calls()
        if calls and self._quick is not None and self._quick.may(_operations(calls)):
            busy: list[_Call] = []
            for call, outcome in zip(calls, self._run_quickly(_operations(calls), self._quick), strict=True):
                if refused_as_busy(outcome):
                    busy.append(call)
                else:
                    self._answer(call.answer, outcome)
            calls = busy
        if calls:
            self._working = True
            self._thread.begin(partial(self._execute, _operations(calls), quick=False), partial(self._worked, calls))
        elif self._quick is not None and not self._checkpointing and self._quick.checkpoint_is_due():
            self._checkpointing = True
            self._thread.begin(
                partial(self._thread.file.checkpoint, only_writer=self._thread.file.is_only_writer()),
                self._checkpointed,
            )
        elif self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    def _run_quickly(self, operations: Sequence[Operation[Any]], quick: QuickCalls) -> Sequence[Any]:
        """Run operations on the event loop; those for which a lock would have to be waited for are refused as busy."""
        began = self._loop.time()
        result, error = None, None
        try:
            with running():
                result = self._execute(operations, quick=True, look=quick.look_is_due(began))
        except Exception as raised:  # noqa: BLE001 - it is delivered to the callers
            error = raised
        quick.took(self._loop.time() - began, wrote=result is not None and result.changed)
        return self._outcomes(len(operations), result, error)

    def _checkpointed(self, _result: object, _error: BaseException | None) -> None:
        # One that failed is tried again after as many writes, or by the last handle that closes.
        self._checkpointing = False

    def _worked(self, calls: Sequence[_Call], result: _Done | None, error: BaseException | None) -> None:
        outcomes = self._outcomes(len(calls), result, error)
        self._working = False
        self._flush()  # first, so that the thread goes on while the callers take their answers
        for call, outcome in zip(calls, outcomes, strict=True):
            self._answer(call.answer, outcome)

    def _outcomes(self, number: int, result: _Done | None, error: BaseException | None) -> Sequence[Any]:
        if result is None:
            return [error] * number
        self._lookout.see(result.version, changed=result.changed)
        return result.outcomes

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        while self._calls and len(calls) < _LARGEST_BATCH:
            call = self._calls.popleft()
            if not call.answer.done():  # else it was cancelled
                calls.append(call)
        return calls

    def _execute(self, operations: Sequence[Operation[Any]], *, quick: bool, look: bool = True) -> _Done:
        """Run in the thread, or on the event loop, where it must be quick and wait for nothing.

        Args:
            operations: What to run.
            quick: Whether this is on the event loop.
            look: Whether to look first if all files are in place.
        """
        file = self._thread.file
        file.set_checkpoints(not quick)
        if look:
            file.check_in_place()
        # Before the operations: a change that comes after it was read must not count as seen. Only reads pay for it,
        # since who waits has read before.
        reads = not all(operation.writes for operation in operations)
        version = file.db.execute("PRAGMA data_version").fetchone()[0] if reads else None
        changes = file.db.total_changes
        outcomes = execute(file.db, operations) if quick else execute_patiently(file.db, operations, file.busy_timeout)
        changed = file.db.total_changes != changes
        if changed:
            file.check_present()  # before anything is acknowledged
            announce(self._store)
        return _Done(version, changed, outcomes)

    def _explained(self, error: BaseException) -> Exception | None:
        return unavailable(self._path, error) if isinstance(error, (sqlite3.Error, DamagedRow)) else None


def _operations(calls: Sequence[_Call]) -> list[Operation[Any]]:
    return [call.operation for call in calls]
