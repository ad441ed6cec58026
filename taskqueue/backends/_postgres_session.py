"""What a handle has while it is connected on one event loop: a connection, and the calls under way."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from taskqueue.backends import _postgres_store as store
from taskqueue.backends._postgres_connection import (
    Connection,
    ConnectionLost,
    Server,
    driver_error,
    reach,
    reason,
    retriable,
)
from taskqueue.backends._postgres_listener import Listener
from taskqueue.backends._postgres_operations import Operation, Table
from taskqueue.backends._rows import DamagedRow
from taskqueue.backends._session import BaseSession, finished
from taskqueue.errors import StoreUnavailable, TaskQueueError

T = TypeVar("T")

_LARGEST_BATCH: Final = 1000
_LARGEST_BATCH_BYTES: Final = 4 * 1024 * 1024
_REPETITIONS: Final = 3
"""How often a statement is sent again after its connection was lost, where that does no harm."""
_DEADLOCKS: Final = 10
_NOTIFY_EVERY: Final = 0.01
"""How many seconds lie between two notifications of a handle at least."""
_LINGER_SECONDS: Final = 0.01
"""How long the task that answers calls waits for more, about: to begin a new one for each would cost more."""
_POLL_SECONDS: Final = 0.5


class _Call(NamedTuple):
    operation: Operation[Any]
    answer: "asyncio.Future[Any]"


class Session(BaseSession):
    """One connected period of a handle, on the running event loop and in this process. It begins to open at once.

    Calls are queued by their kinds, and a task of the session's own takes them from the queues: one alone, or as one
    statement all of a kind that have come together in the meantime, with a claim that waits beside completions: a
    worker's next tasks come with the answer to the last ones. There is one connection for all, so a call that was
    cancelled while its statement was under way is over before the next one begins; and a caller's cancellation never
    reaches a statement. A connection that is lost is opened again for the next call.

    Others are told of changes after the answers have been given, at most once in 10 ms: a notification inside the
    transaction would make all transactions of the database commit one after the other.

    Args:
        server: Where the store is.
        schema: Its namespace.
        create: Whether to create or upgrade the tables where that is needed.

    Attributes:
        table: Its table.
    """

    def __init__(self, server: Server, schema: str, *, create: bool) -> None:
        self._server = server
        self._schema = schema
        self._create = create
        self.table = Table(f'"{schema}"')
        self._connection: Connection | None = None
        self._calls: dict[type[Operation[Any]], deque[_Call]] = {}
        self._drainer: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._ending = False
        self._changed = False
        self._quiet_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._channel = channel_of(schema)
        self._listener = Listener(server, self._channel, self._wake)
        super().__init__()

    def submit(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Queue an operation. The future gets its outcome; cancelled before the operation has begun, it prevents it."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._calls.setdefault(type(operation), deque()).append(_Call(operation, answer))
        if self._drainer is None:
            self._start_draining()
        else:
            self._stop_idling()
        return answer

    async def wait(self, seconds: float) -> None:
        """Wait for a notification, for ``close``, or until the time is up.

        The first wait begins to listen, and ends as soon as that has succeeded, since a change may have come before.
        Behind a proxy that gives each transaction another connection nobody can listen: there a wait is short.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            if self._server.pooled:
                seconds = min(seconds, _POLL_SECONDS)
            elif seconds > 0:
                self._listener.start()
            await asyncio.wait((waiter,), timeout=seconds)
        finally:
            self._waiters.discard(waiter)
            waiter.cancel()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Opening and closing

    def _give_up_opening(self) -> None:
        self._opening.cancel()

    async def _open_store(self) -> None:
        try:
            connection = await self._reconnect()
            await store.check(connection, self._server.location, self._schema, create=self._create)
        except TaskQueueError:
            self._drop_connection()
            raise
        except Exception as error:
            self._drop_connection()
            if not driver_error(error):
                raise
            raise self._unavailable(error) from error
        except BaseException:
            self._drop_connection()
            raise

    async def _close_store(self) -> None:
        await self._listener.stop()
        self._ending = True
        self._stop_idling()
        if self._drainer is not None:
            await finished(self._drainer)
        await self._drain()  # what is left where the task was cancelled
        if self._timer is not None:
            self._timer.cancel()
        self._drop_connection()
        await asyncio.sleep(0)  # the event loop closes the socket in its next turn

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _reconnect(self) -> Connection:
        self._drop_connection()
        self._connection = await reach(self._server, given_up=lambda: self._closing is not None)
        return self._connection

    # Calls

    def _start_draining(self) -> None:
        self._drainer = self._loop.create_task(self._drain(), name="taskqueue-postgres")
        self._drainer.add_done_callback(self._drained)

    def _drained(self, _: "asyncio.Task[None]") -> None:
        self._drainer = None
        if self._calls and self._closing is None:  # it was cancelled, as at the end of asyncio.run
            self._start_draining()

    async def _drain(self) -> None:
        """Answer calls and tell of changes, until there have been none for a while."""
        while True:
            if self._calls and (calls := self._next_calls()):
                await self._answer_all(calls)
            if self._changed and (self._ending or self._loop.time() >= self._quiet_until):
                await self._notify()
            elif not self._calls:
                if self._ending:
                    return
                await self._idle_a_while()
                if not (self._calls or self._changed or self._ending):
                    return

    async def _idle_a_while(self) -> None:
        """Wait for a call, for the end, or until it is time to look again."""
        when = self._quiet_until if self._changed else self._loop.time() + _LINGER_SECONDS
        # The timer stays when calls come: to set one for each of them would take longer than to look too early.
        if self._timer is None or self._timer.when() > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._time_is_up)
        self._idle = self._loop.create_future()
        try:
            await self._idle
        finally:
            self._idle = None

    def _time_is_up(self) -> None:
        self._timer = None
        self._stop_idling()

    def _stop_idling(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _next_calls(self) -> list[_Call]:
        """Take calls of one kind that can run as one, the kinds in turn, and one that the kind takes along."""
        kind = next(iter(self._calls))
        queue = self._calls.pop(kind)
        calls: list[_Call] = []
        keys: set[str] = set()
        room = _LARGEST_BATCH_BYTES
        while queue and len(calls) < (_LARGEST_BATCH if kind.groups else 1):
            call = queue[0]
            if not call.answer.done():
                room -= call.operation.size
                key = call.operation.key
                if calls and (room < 0 or key in keys):
                    break
                if key is not None:
                    keys.add(key)
                calls.append(call)
            queue.popleft()
        if queue:
            self._calls[kind] = queue
        if calls and kind.companion is not None and kind.companion in self._calls:
            calls += self._first_of(kind.companion)
        return calls

    def _first_of(self, kind: type[Operation[Any]]) -> list[_Call]:
        """Take the first call of a kind; none if nobody wants its answer any more."""
        queue = self._calls[kind]
        call = queue.popleft()
        if not queue:
            del self._calls[kind]
        return [] if call.answer.done() else [call]

    async def _answer_all(self, calls: Sequence[_Call]) -> None:
        try:
            outcomes = await self._outcomes([call.operation for call in calls])
        except BaseException:
            # Only the end of the event loop cancels this task. The statement is given up with its connection.
            self._drop_connection()
            for call in calls:
                call.answer.cancel()
            raise
        for call, outcome in zip(calls, outcomes, strict=True):
            self._changed |= call.operation.announces and not isinstance(outcome, Exception)
            self._answer(call.answer, outcome)

    async def _outcomes(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        """Run operations of one kind as one; if that is refused, one by one, so that each harms only its caller."""
        try:
            return await self._run(operations)
        except (ConnectionLost, StoreUnavailable) as error:
            return [error] * len(operations)
        except Exception as error:  # noqa: BLE001 - it is delivered to the caller
            if len(operations) == 1:
                return [error]
        return [outcome for operation in operations for outcome in await self._outcomes([operation])]

    async def _run(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        kind = type(operations[0])
        lost = deadlocks = 0
        while True:
            connection = self._connection
            if connection is None or connection.closed:
                connection = await self._reconnect()
            try:
                return await kind.run(connection, self.table, operations)
            except ConnectionLost:
                lost += 1
                if not kind.repeatable or lost > _REPETITIONS:
                    raise
            except Exception as error:
                deadlocks += 1
                if not retriable(error) or deadlocks > _DEADLOCKS:
                    raise

    async def _notify(self) -> None:
        self._changed = False
        self._quiet_until = self._loop.time() + _NOTIFY_EVERY
        if self._connection is not None and not self._connection.closed:
            with suppress(Exception):  # a hint; who waits looks again all the same
                await self._connection.execute(f'NOTIFY "{self._channel}"')  # without arguments: sent in one piece

    def _explained(self, error: BaseException) -> Exception | None:
        ours = isinstance(error, TaskQueueError) or not (driver_error(error) or isinstance(error, DamagedRow))
        return None if ours else self._unavailable(error)

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        unknown = "; the call may have happened or not" if isinstance(error, ConnectionLost) else ""
        return StoreUnavailable(self._server.location, f"{reason(error)}{unknown}")


def channel_of(schema: str) -> str:
    """Return the channel on which changes of a store are announced; an identifier has at most 63 bytes."""
    name = f"taskqueue_{schema}"
    return name if len(name) < 64 else f"taskqueue_{hashlib.sha256(schema.encode()).hexdigest()[:40]}"  # noqa: PLR2004 - see above
