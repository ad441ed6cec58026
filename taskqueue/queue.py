"""The queue: what applications call to enqueue tasks and to read results, and workers to run them."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, NamedTuple, ParamSpec, Self

from taskqueue import _check
from taskqueue._hint import watching
from taskqueue._ids import new_ids
from taskqueue._instants import earlier, later, system_clock, to_utc
from taskqueue._make_task import make_task
from taskqueue._text import error_text, storable, traceback_text
from taskqueue._url import backend_from_url, checked_backend
from taskqueue.backend import MAX_TEXT_BYTES, Backend, TransactionalBackend
from taskqueue.errors import (
    DeserializationError,
    InvalidArgument,
    NotConnected,
    SerializationError,
    StaleClaim,
    TaskCancelled,
    TaskNotEnded,
    TaskNotFound,
)
from taskqueue.result import Result, result_of
from taskqueue.retry import RetryPolicy
from taskqueue.serializers import CloudpickleSerializer, PreparingSerializer, Serializer
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task
from taskqueue.transition import Announcer, Transition

P = ParamSpec("P")

DEFAULT_PATH: Final = "taskqueue.db"
"""The SQLite file of ``TaskQueue()``, in the working directory."""
URL_VARIABLE: Final = "TASKQUEUE_URL"
"""The environment variable whose URL ``TaskQueue()`` uses instead, if it is set and not empty."""
DEFAULT_LEASE: Final = timedelta(seconds=30)

_SHORTEST_DELAY: Final = timedelta(microseconds=1)
_LONGEST_REST_SECONDS: Final = 1.0
_RESULT_POLL_SECONDS: Final = 1.0
_SECONDS_PER_LOOK: Final = 0.001
_LOOKS_AT_ONCE: Final = 3
_PAGE: Final = 500
_CALL_OF: Final = "the call of"


@dataclass(frozen=True, slots=True)
class Call:
    """What a task's payload says: which function to call, with what.

    Attributes:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        context: The context that the task was enqueued with, or None.
        timeout: How many seconds an execution may take, or None for no limit.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: dict[str, Any] | None
    timeout: float | None = None


class _Options(NamedTuple):
    """How to enqueue, checked."""

    eta: datetime | None
    context: dict[str, Any] | None
    max_retries: int
    task_id: str | None
    timeout: float | None
    connection: Any = None


class Enqueuer:
    """What ``TaskQueue.options`` returns: enqueues with options that were given before."""

    def __init__(self, queue: "TaskQueue", options: _Options) -> None:
        self._queue = queue
        self._options = options

    async def enqueue(self, func: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Enqueue a call of ``func`` with exactly these arguments, which a type checker checks.

        Raises and returns the same as ``TaskQueue.enqueue``.
        """
        tasks = self._prepare(func, args, kwargs)
        return (await self._queue._store(tasks, self._options.connection))[0]  # noqa: SLF001 - the other half of the same class

    def _prepare(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Task]:
        options = self._options
        return self._queue._prepare(func, [(args, kwargs)], options, [options.task_id])  # noqa: SLF001 - as above


class TaskQueue:
    """An async task queue over a backend. Also known as ``AsyncTaskQueue``.

    It connects on first use, and ``async with`` connects and closes. After ``close`` every use raises
    ``NotConnected`` until ``connect`` (or ``async with``) is called again: a queue never comes back to life by
    itself, since nobody would close it then. One queue may be used from several event loops one after another.

    Every method that takes or records an instant reads the queue's clock, once per call. Every method that talks to
    the backend may raise ``NotConnected``, ``StoreUnavailable`` and ``IncompatibleStore``.

    **The default serializer runs code when it loads**: whoever can write to the store can run code in the worker, and
    in clients that call ``Result.unwrap``.

    Args:
        backend: Where tasks are kept; it is closed by ``close``. By default what the environment variable
            ``TASKQUEUE_URL`` names, or else SQLite in the file ``taskqueue.db`` in the working directory.
        serializer: Turns calls and return values into bytes; by default ``CloudpickleSerializer()``.
        default_result_timeout: How long ``get_result`` waits when it is not told: seconds or a timedelta, or None
            for no limit.
        max_retries: The retry budget of tasks that do not name one. **It counts executions**: 3 means that a task
            runs at most three times; 0 (the default) and 1 both mean once, and then a task whose worker dies ends
            FAILED. Who wants more makes the task idempotent.
        retry_policy: How long to wait before each retry.
        clock: Returns the present time as a timezone-aware datetime; by default the system's UTC clock.
        on_transition: Called with a ``Transition`` for every step that a call of this queue object brought about,
            after it is stored. A plain function, called on the event loop; what it raises is logged.

    Raises:
        InvalidArgument: An argument cannot mean anything; ``UnknownScheme`` for the URL in ``TASKQUEUE_URL``.

    Spec: Async TaskQueue API; TaskQueue configuration and defaults.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        serializer: Serializer | None = None,
        *,
        default_result_timeout: float | timedelta | None = None,
        max_retries: int = 0,
        retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen, so sharing it is safe
        clock: Callable[[], datetime] = system_clock,
        on_transition: Callable[[Transition], object] | None = None,
    ) -> None:
        if default_result_timeout is not None:
            _check.timeout("default_result_timeout", default_result_timeout)
        if not callable(clock):
            raise InvalidArgument("clock", clock, "pass a function that returns an aware datetime")
        if serializer is not None and (isinstance(serializer, type) or not isinstance(serializer, Serializer)):
            raise InvalidArgument("serializer", serializer, "pass an object with the methods dumps and loads")
        if not isinstance(retry_policy, RetryPolicy):
            raise InvalidArgument("retry_policy", retry_policy, "pass a RetryPolicy")
        self.max_retries = _check.max_retries(max_retries)
        self.default_result_timeout = default_result_timeout
        self.retry_policy = retry_policy
        self.serializer: Serializer = CloudpickleSerializer() if serializer is None else serializer
        self._clock = clock
        self._announcer = Announcer(on_transition)
        self.backend = _default_backend() if backend is None else checked_backend(backend, argument="backend")
        self._home: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closings = 0
        self._waiters = 0

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Return a queue on the backend that ``url`` names, such as ``sqlite:///path`` or ``memory://``.

        Backends are found by the URL's scheme in the entry-point group ``taskqueue.backends``, so a scheme that
        another package registers works too.

        Args:
            url: Which backend.
            **options: The other arguments of ``TaskQueue``.

        Raises:
            UnknownScheme: No installed package provides a backend for this scheme.
            InvalidArgument: The backend refuses the URL, or an option is wrong.
        """
        return cls(backend_from_url(url), **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.backend!r}>"

    async def connect(self) -> None:
        """Connect the backend, also after ``close``. Idempotent.

        Raises:
            IncompatibleStore: What is there is not a store of this kind, or a newer one.
            StoreUnavailable: The store cannot be opened.
        """
        self._closed = False
        self._home = None
        await self._ready()

    async def close(self) -> None:
        """Close the backend and release what it holds; calls in flight finish, and nothing stored is lost. Idempotent.

        Spec: TaskQueue configuration and defaults / Use TaskQueue as async context manager.
        """
        self._closed = True
        self._closings += 1
        self._home = None
        await self.backend.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def now(self) -> datetime:
        """Return the present instant by the queue's clock: a plain datetime in UTC.

        Raises:
            InvalidArgument: The clock returned something else than an aware datetime from 1970 to 9999.
        """
        return to_utc("clock", self._clock())

    async def _ready(self) -> Backend:
        if self._closed:
            raise NotConnected("this queue was closed; call connect() or use `async with queue:` to open it again")
        loop = asyncio.get_running_loop()
        if self._home is not loop:
            closings = self._closings
            await self.backend.connect()
            if closings != self._closings:
                # `close` may have come too early to see this connection.
                await self.backend.close()
                raise NotConnected("this queue was closed while it connected; call connect() to open it again")
            self._home = loop
        return self.backend

    # ---------------------------------------------------------------- for applications

    async def enqueue(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_id: str | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - of the task, not of this call
        connection: Any = None,
        **kwargs: Any,
    ) -> str:
        """Store a call of ``func`` to run later, once, and return its id.

        When this returns, the task is stored as durably as the backend can. If it is interrupted, repeat it with the
        same ``task_id``: ``TaskExists`` then means that it had landed.

        Args:
            func: A function or coroutine function, or another callable.
            *args: Its positional arguments.
            eta: Not before when it runs: a timezone-aware datetime of any zone; one in the past means at once, like
                None.
            context: A dict with string keys that travels in the payload, for example request ids; a running task
                finds it in ``current_task().context``.
            max_retries: The retry budget, counting executions; by default that of the queue.
            task_id: An id of your own, 1 to 255 bytes of UTF-8 without NUL; by default a UUID that begins with
                the time.
            timeout: How long one execution may take before it is cancelled and the attempt has failed: seconds or a
                timedelta, above zero; None for no limit. It travels in the payload; ``Worker`` says what it does to
                functions that run in threads.
            connection: A connection of your own to the same database, with a transaction open on it: the task exists
                if and only if you commit. Backends on PostgreSQL (asyncpg, psycopg) and SQLite (aiosqlite, sqlite3)
                can do that; what the driver raises comes out as it is. ``on_transition`` does not hear of such a
                task's being stored, since that is not known here.
            **kwargs: Its keyword arguments. For a function that has a parameter ``eta``, ``context``,
                ``max_retries``, ``task_id``, ``timeout`` or ``connection`` itself there is ``options(…).enqueue(…)``.

        Raises:
            InvalidArgument: An argument cannot mean anything.
            SerializationError: The function, an argument or the context cannot be serialised.
            TaskExists: ``task_id`` is known already.
            TooLarge: The payload is larger than the backend takes.

        Whatever is raised, nothing was stored.

        Spec: Async TaskQueue API / Enqueue task with default settings; ETA scheduling semantics; Task context support.
        """
        options = self._checked_options(eta, context, max_retries, task_id, timeout)
        return (await self._store(self._prepare(func, [(args, kwargs)], options, [options.task_id]), connection))[0]

    def options(
        self,
        *,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_id: str | None = None,
        timeout: float | timedelta | None = None,
        connection: Any = None,
    ) -> Enqueuer:
        """Return an object whose ``enqueue(func, *args, **kwargs)`` enqueues with these options.

        It passes every argument on to the function, also those called ``eta`` or ``context``, and a type checker
        checks them against the function's parameters.

        Raises:
            InvalidArgument: An option cannot mean anything; raised here, not later.
        """
        options = self._checked_options(eta, context, max_retries, task_id, timeout)
        return Enqueuer(self, options._replace(connection=connection))

    async def enqueue_many(
        self,
        func: Callable[..., Any],
        calls: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        /,
        *,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_ids: Sequence[str] | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - of each task, not of this call
        connection: Any = None,
    ) -> list[str]:
        """Store many calls of one function in one step, all or none, and return their ids in order.

        Tasks that are due at the same instant run in the order of ``calls``. A function that has to be pickled by
        value is pickled once for all of them, apart from the arguments: an object that both refer to becomes two.

        Args:
            func: A function or coroutine function, or another callable.
            calls: For each task a tuple of positional arguments or a mapping of keyword arguments.
            eta: As in ``enqueue``, for all of them.
            context: As in ``enqueue``, for all of them.
            max_retries: As in ``enqueue``, for all of them.
            task_ids: An id of your own for each task; by default as in ``enqueue``.
            timeout: As in ``enqueue``, for each of them.
            connection: As in ``enqueue``.

        Raises:
            InvalidArgument: An argument cannot mean anything, or there are not as many ids as calls.
            SerializationError: A call cannot be serialised.
            TaskExists: Ids are known already, or given twice; carries them.
            TooLarge: A payload is larger than the backend takes, or there are too many of them; every backend takes
                1,000.

        Whatever is raised, nothing was stored.
        """
        options = self._checked_options(eta, context, max_retries, None, timeout)
        return await self._store(self._prepare_many(func, calls, options, task_ids), connection)

    def _prepare_many(
        self,
        func: Callable[..., Any],
        calls: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        options: _Options,
        task_ids: Sequence[str] | None,
    ) -> list[Task]:
        checked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        for number, call in enumerate(calls):
            if isinstance(call, tuple):
                checked.append((call, {}))
            elif isinstance(call, Mapping):
                checked.append(((), _check.keywords(f"calls[{number}]", call)))
            else:
                raise InvalidArgument(
                    f"calls[{number}]",
                    call,
                    "pass a tuple of positional arguments, (x,) for a single one, or a mapping of keyword arguments",
                )
        ids: list[str | None] = [None] * len(checked)
        if task_ids is not None:
            if isinstance(task_ids, str) or len(task_ids) != len(checked):
                raise InvalidArgument("task_ids", task_ids, f"pass a sequence of {len(checked)} ids, one for each call")
            ids = [_check.task_id(task_id, f"task_ids[{number}]") for number, task_id in enumerate(task_ids)]
        return self._prepare(func, checked, options, ids)

    def _checked_options(
        self, eta: object, context: object, max_retries: object, task_id: object, timeout: object
    ) -> _Options:
        return _Options(
            eta=None if eta is None else to_utc("eta", eta),
            context=_check.context(context),
            max_retries=self.max_retries if max_retries is None else _check.max_retries(max_retries),
            task_id=None if task_id is None else _check.task_id(task_id),
            timeout=None if timeout is None else _check.timeout("timeout", timeout, zero=False),
        )

    def _prepare(
        self,
        func: Callable[..., Any],
        calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        options: _Options,
        task_ids: Sequence[str | None],
    ) -> list[Task]:
        # No coroutine: the arguments are serialised before the first await, since the caller may change them while
        # this waits; and in the caller's thread, since loading what is lazy in them may depend on the thread.
        func = _check.function(func)
        prepared = func if len(calls) == 1 else self._prepared(func)
        call: dict[str, Any] = {"func": prepared, "args": (), "kwargs": {}, "context": options.context}
        if options.timeout is not None:
            call["timeout"] = options.timeout
        now = self.now()
        available_at = now if options.eta is None else options.eta
        tasks = []
        for (args, kwargs), task_id, new_id in zip(calls, task_ids, new_ids(now, len(calls)), strict=True):
            payload = self._dumps(call | {"args": args, "kwargs": kwargs}, _CALL_OF, func)
            tasks.append(make_task(task_id or new_id, payload, now, available_at, options.max_retries))
        return tasks

    async def _store(self, tasks: Sequence[Task], connection: Any = None) -> list[str]:
        if connection is not None:
            await self._store_on(connection, tasks)
            return [task.id for task in tasks]
        if tasks:
            backend = await self._ready()
            await backend.enqueue(tasks)
        if self._announcer.heard:
            for task in tasks:
                self._announcer.announce(task.id, task.enqueued_at, 0, None, TaskStatus.PENDING)
        return [task.id for task in tasks]

    async def _store_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        if not isinstance(self.backend, TransactionalBackend):
            raise InvalidArgument(
                "connection", connection, f"{self.backend!r} cannot take part in a transaction of the application's"
            )
        await self._ready()
        await self.backend.enqueue_on(connection, tasks)

    async def get_result(self, task_id: str, timeout: float | timedelta | None = None) -> Result | None:  # noqa: ASYNC109 - the specification's signature
        """Wait for the outcome of a task, and return it, or None if the time is up before.

        Reading consumes nothing: any number of clients may ask, any number of times. Time is measured on the event
        loop's clock, never on the wall clock, and the task is looked at once more when it is up.

        Args:
            task_id: The task.
            timeout: Seconds, or a timedelta, zero or more; 0 looks once. None waits for the queue's
                ``default_result_timeout``, and without limit if that is None too.

        Raises:
            InvalidArgument: The timeout is negative, infinite or not a number, or the id cannot be one.
            TaskNotFound: The id is unknown, or was purged while this waited.
            TaskCancelled: The task was cancelled; it has no result.

        Spec: Async TaskQueue API / Get result with timeout, Get result not ready; TaskQueue configuration and
        defaults / Default result timeout.
        """
        task_id = _check.task_id(task_id)
        limit = self.default_result_timeout if timeout is None else timeout
        seconds = None if limit is None else _check.timeout("timeout", limit)
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        backend = await self._ready()
        if (result := await self._look(backend, task_id)) is not None or seconds == 0:
            return result
        self._waiters += 1
        looks = 0
        try:
            while True:
                remaining = math.inf if deadline is None else deadline - loop.time()
                if remaining <= 0:
                    return await self._look(backend, task_id)
                async with watching(backend.wait, min(remaining, _RESULT_POLL_SECONDS)) as change:
                    if (result := await self._look(backend, task_id)) is not None:
                        return result
                    await change
                # Any change wakes every waiter, so they share a rate of 1,000 looks a second: many of them would
                # otherwise keep the store too busy to do the work that they wait for. One alone looks at once at
                # first, since on a quiet store the changes are those of its task.
                hurry = self._waiters == 1 and looks < _LOOKS_AT_ONCE
                if hurry and (result := await self._look(backend, task_id)) is not None:
                    return result
                looks += 1
                rest = 0 if hurry else min(self._waiters * _SECONDS_PER_LOOK, _RESULT_POLL_SECONDS)
                if deadline is not None:
                    rest = min(rest, max(deadline - loop.time(), 0))
                await asyncio.sleep(rest)
        finally:
            self._waiters -= 1

    async def _look(self, backend: Backend, task_id: str) -> Result | None:
        task = await backend.get(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        if task.status is TaskStatus.CANCELLED:
            raise TaskCancelled(task_id)
        return result_of(task, self.serializer.loads) if task.status.ended else None

    async def get_task(self, task_id: str) -> Task:
        """Return the whole task as it is stored now, with its failures.

        Raises:
            InvalidArgument: The id cannot be one.
            TaskNotFound: The id is unknown.
        """
        task_id = _check.task_id(task_id)
        backend = await self._ready()
        task = await backend.get(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        return task

    async def tasks(self, status: TaskStatus | str | None = None) -> AsyncIterator[Task]:
        """Iterate over the tasks in the order of enqueueing, page by page.

        A task that does not change meanwhile appears exactly once; others at most once.

        Args:
            status: Only tasks that have this status, such as ``TaskStatus.FAILED`` or ``"failed"``; all if None.

        Raises:
            InvalidArgument: There is no such status.
        """
        cursor: str | None = None
        while True:
            page, cursor = await self._page(status, cursor)
            for task in page:
                yield task
            if cursor is None:
                return

    async def _page(self, status: TaskStatus | str | None, after: str | None) -> tuple[Sequence[Task], str | None]:
        wanted = None
        if status is not None:
            try:
                wanted = TaskStatus(status)
            except ValueError:
                raise InvalidArgument("status", status, f"pass one of {', '.join(TaskStatus)}") from None
        backend = await self._ready()
        return await backend.tasks(status=wanted, after=after, limit=_PAGE)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks in each of the five statuses, zeros included."""
        backend = await self._ready()
        return await backend.counts()

    async def cancel(self, task_id: str) -> bool:
        """End a task that is PENDING or RUNNING as CANCELLED.

        Of a running task nothing is recorded any more: what its worker reports later is refused.

        Returns:
            True if this call ended the task; False if it had ended already, and then nothing has changed.

        Raises:
            InvalidArgument: The id cannot be one.
            TaskNotFound: The id is unknown.
        """
        task_id = _check.task_id(task_id)
        now = self.now()
        backend = await self._ready()
        done = await backend.cancel(task_id, now=now)
        if done and self._announcer.heard:
            await self._announce_cancelled(backend, task_id, now)
        return done

    async def _announce_cancelled(self, backend: Backend, task_id: str, now: datetime) -> None:
        try:
            task = await backend.get(task_id)
        except Exception:  # noqa: BLE001 - the cancellation is done, and must not look as if it had failed
            task = None
        if task is None:
            self._announcer.announce(task_id, now, 0, None, TaskStatus.CANCELLED)
            return
        # An attempt without its failure was under way: the contract's table says so.
        running = len(task.failures) < task.attempts
        source = TaskStatus.RUNNING if running else TaskStatus.PENDING
        self._announcer.announce(task_id, now, task.attempts, source, TaskStatus.CANCELLED)

    async def enqueue_again(self, task_id: str, *, eta: datetime | None = None, max_retries: int | None = None) -> str:
        """Store a new task that makes the same call as one that has ended, and return the new task's id.

        An ended task is never revived: it stays as it is, with its outcome, and the new one begins with no attempts.
        The payload is copied as it is stored, context and timeout included; nothing is loaded, so no code runs. If
        this is interrupted, the new task may have been stored.

        Args:
            task_id: The task that has ended, however it ended.
            eta: Not before when the new task runs (timezone-aware); at once if None.
            max_retries: The new task's retry budget, counting executions; by default that of the ended task, not
                that of the queue.

        Raises:
            InvalidArgument: An argument cannot mean anything.
            TaskNotFound: The id is unknown.
            TaskNotEnded: The task is PENDING or RUNNING.

        Whatever of these is raised, nothing was stored.

        Spec: Task Status Lifecycle: nothing follows SUCCESS, FAILED and CANCELLED.
        """
        task_id = _check.task_id(task_id)
        eta = None if eta is None else to_utc("eta", eta)
        max_retries = None if max_retries is None else _check.max_retries(max_retries)
        backend = await self._ready()
        ended = await backend.get(task_id)
        if ended is None:
            raise TaskNotFound(task_id)
        if not ended.status.ended:
            raise TaskNotEnded(task_id, status=ended.status)
        now = self.now()
        again = Task(
            id=new_ids(now, 1)[0],
            payload=ended.payload,
            enqueued_at=now,
            available_at=now if eta is None else eta,
            max_retries=ended.max_retries if max_retries is None else max_retries,
        )
        await backend.enqueue([again])
        self._announcer.announce(again.id, now, 0, None, TaskStatus.PENDING)
        return again.id

    async def purge(self, older_than: timedelta | None = None, *, finished_before: datetime | None = None) -> int:
        """Remove tasks that ended long ago, with their results. Pass exactly one of the arguments.

        Until then ended tasks and their results are kept, however old. Tasks that have not ended are never removed.
        Works in batches, and rests after each for as long as it took, so that others get their turn.

        Args:
            older_than: Remove what ended longer ago than this, by the queue's clock.
            finished_before: Remove what ended before this instant (timezone-aware).

        Returns:
            How many tasks were removed.

        Raises:
            InvalidArgument: Not exactly one argument, a negative duration, or a naive datetime.
        """
        if (older_than is None) == (finished_before is None):
            raise InvalidArgument("older_than", older_than, "pass either older_than=timedelta(…) or finished_before=…")
        if older_than is not None:
            before = earlier(self.now(), _check.duration("older_than", older_than, zero=True))
        else:
            before = to_utc("finished_before", finished_before)
        backend = await self._ready()
        loop = asyncio.get_running_loop()
        total = 0
        while True:
            began = loop.time()
            removed = await backend.purge(finished_before=before, limit=_PAGE)
            total += removed
            if removed < _PAGE:
                return total
            await asyncio.sleep(min(loop.time() - began, _LONGEST_REST_SECONDS))

    # ---------------------------------------------------------------- for workers

    async def claim(self, limit: int = 1, *, lease: timedelta = DEFAULT_LEASE) -> list[Task]:
        """Take up to ``limit`` due tasks for execution: they are RUNNING when this returns, and an attempt is spent.

        Whoever claims a task owes it an outcome: ``complete_task`` or ``fail_task`` with its id and ``attempts``.

        Args:
            limit: The largest number of tasks; 0 takes none.
            lease: How long the claim holds, from now, if it is not extended.

        Returns:
            The tasks, earliest ``available_at`` first.

        Raises:
            InvalidArgument: A negative limit, or a lease that is not above zero.

        Spec: ETA scheduling semantics; Retry Budget Semantics / Attempts count total executions.
        """
        limit = _check.integer("limit", limit, least=0)
        lease = _check.duration("lease", lease)
        backend = await self._ready()
        now = self.now()
        tasks = await backend.claim(now=now, limit=limit, lease_expires_at=later(now, lease))
        if self._announcer.heard:
            for task in tasks:
                self._announcer.announce(task.id, now, task.attempts, TaskStatus.PENDING, TaskStatus.RUNNING)
        return list(tasks)

    def load_call(self, task: Task) -> Call:
        """Return what ``task`` calls. With the default serializer this runs code that the payload names.

        Raises:
            DeserializationError: The payload is damaged, or needs code that is not to be had here.
        """
        try:
            call = self.serializer.loads(task.payload)
        except Exception as error:
            raise DeserializationError(_payload_of(task), _reason(error)) from error
        try:
            timeout = call.get("timeout")
            timeout = None if timeout is None else _check.timeout("timeout", timeout, zero=False)
            loaded = Call(call["func"], tuple(call["args"]), dict(call["kwargs"]), call["context"], timeout)
        except Exception as error:
            raise DeserializationError(_payload_of(task), "it does not hold a call; something else wrote it") from error
        if not callable(loaded.func):
            raise DeserializationError(
                _payload_of(task), f"what it would call is {type(loaded.func).__name__}, not a function"
            )
        return loaded

    async def complete_task(self, task_id: str, attempt: int, value: Any) -> None:
        """Record that an attempt succeeded: the task ends as SUCCESS.

        Args:
            task_id: The task.
            attempt: ``attempts`` of the task as it was claimed.
            value: The return value itself; the queue serialises it.

        Raises:
            InvalidArgument: The id cannot be one, or the attempt is not 1 or more.
            SerializationError: The value cannot be serialised; nothing was recorded.
            TooLarge: The value is larger than the backend takes; nothing was recorded.
            StaleClaim: The claim does not hold the task any more; nothing was recorded.
            TaskNotFound: The id is unknown.

        Spec: Result model / Successful result.
        """
        task_id = _check.task_id(task_id)
        attempt = _check.integer("attempt", attempt, least=1)
        data = self._dumps(value, "the return value of task", task_id)
        backend = await self._ready()
        now = self.now()
        await backend.complete(task_id, attempt, value=data, now=now)
        if self._announcer.heard:
            self._announcer.announce(task_id, now, attempt, TaskStatus.RUNNING, TaskStatus.SUCCESS)

    async def fail_task(
        self,
        task_id: str,
        attempt: int,
        error: BaseException | str,
        *,
        traceback: str | None = None,
        if_expired: bool = False,
    ) -> Task:
        """Record that an attempt failed. This is the one place where retries are scheduled.

        The task becomes FAILED; if its budget allows (``attempts < max_retries``) it goes back to PENDING in the same
        step, due at ``now + retry_policy.delay(attempt)``, which is at least a microsecond from now.

        Any failure can be recorded: NUL and lone surrogates in its text are escaped, and texts above 64 KiB of UTF-8
        are cut, with a mark.

        Args:
            task_id: The task.
            attempt: ``attempts`` of the task as it was claimed.
            error: The exception, or a text that says what went wrong.
            traceback: The formatted stack trace; by default that of the exception, and None for a text.
            if_expired: Record only if the lease has run out; this is how a claim of somebody else is recovered.

        Returns:
            The task as it is stored now: FAILED, or PENDING with the new eta in ``available_at``.

        Raises:
            InvalidArgument: The id cannot be one, the attempt is not 1 or more, or the error is neither an exception
                nor a text.
            StaleClaim: The claim does not hold the task any more, or with ``if_expired`` its lease still holds;
                nothing was recorded.
            TaskNotFound: The id is unknown.

        Spec: Task Status Lifecycle; Retry Budget Semantics; Retry Policy Ownership.
        """
        if not isinstance(error, BaseException | str):
            raise InvalidArgument("error", error, "pass the exception, or a text that says what went wrong")
        if traceback is not None and not isinstance(traceback, str):
            raise InvalidArgument("traceback", traceback, "pass the formatted stack trace as a string, or None")
        backend = await self._ready()
        return await self._fail(
            backend, task_id, attempt, error, traceback=traceback, if_expired=if_expired, now=self.now()
        )

    async def _fail(
        self,
        backend: Backend,
        task_id: str,
        attempt: int,
        error: BaseException | str,
        *,
        traceback: str | None,
        if_expired: bool,
        now: datetime,
    ) -> Task:
        task_id = _check.task_id(task_id)
        attempt = _check.integer("attempt", attempt, least=1)
        if traceback is not None:
            traceback = storable(traceback, tail=MAX_TEXT_BYTES // 2)
        elif isinstance(error, BaseException):
            traceback = traceback_text(error)
        failure = Failure(
            attempt=attempt,
            error=error_text(error),
            traceback=traceback,
            failed_at=now,
            # A proposal: whether the budget allows a retry is decided by the store, in the same step.
            retry_at=later(now, max(self.retry_policy.delay(attempt), _SHORTEST_DELAY)),
        )
        task = await backend.fail(task_id, attempt, failure, if_expired=if_expired)
        path = [TaskStatus.RUNNING, TaskStatus.FAILED]
        if task.status is TaskStatus.PENDING:
            path.append(TaskStatus.PENDING)
        self._announcer.announce(task_id, now, attempt, *path)
        return task

    async def extend(
        self, claims: Iterable[tuple[str, int]], *, lease: timedelta = DEFAULT_LEASE
    ) -> list[tuple[str, int]]:
        """Lengthen the leases of claims to ``lease`` from now, where they are shorter: a worker's heartbeat.

        Args:
            claims: Pairs of a task's id and its ``attempts`` as it was claimed.
            lease: How long the claims shall hold, from now.

        Returns:
            Those of ``claims`` that are still held, in order; the others have been lost.

        Raises:
            InvalidArgument: A lease that is not above zero, or a pair that cannot be a claim.
        """
        lease = _check.duration("lease", lease)
        pairs = [
            (_check.task_id(task_id, "claims"), _check.integer("claims", attempt, least=1))
            for task_id, attempt in claims
        ]
        backend = await self._ready()
        return list(await backend.extend(pairs, lease_expires_at=later(self.now(), lease)))

    async def expired(self, limit: int = _PAGE) -> list[Task]:
        """Return up to ``limit`` RUNNING tasks whose lease has run out at the queue's clock, the oldest lease first.

        Changes nothing. A lease that has run out need not mean that a worker has died: clocks step, and machines
        sleep. ``fail_task`` with ``if_expired`` recovers such a task.

        Raises:
            InvalidArgument: A negative limit.
        """
        limit = _check.integer("limit", limit, least=0)
        backend = await self._ready()
        return list(await backend.expired(now=self.now(), limit=limit))

    async def recover_expired(self) -> list[Task]:
        """Record a failed attempt for every RUNNING task whose lease has run out, at once.

        A worker that dies spends the budget like any other failure: the task is retried, or ends FAILED with an error
        that says so. Any number of recoverers may run side by side. Called by hand this is immediate: it takes the
        queue's clock at its word, so call it when that clock can be trusted.

        Returns:
            The tasks that this call recovered, as they are stored now, oldest lease first.
        """
        backend = await self._ready()
        now = self.now()
        recovered: list[Task] = []
        seen: set[tuple[str, int]] = set()
        while True:
            page = await backend.expired(now=now, limit=_PAGE)
            fresh = [task for task in page if (task.id, task.attempts) not in seen]
            for task in fresh:
                seen.add((task.id, task.attempts))
                try:
                    recovered.append(
                        await self._fail(
                            backend,
                            task.id,
                            task.attempts,
                            lost_lease(task),
                            traceback=None,
                            if_expired=True,
                            now=now,
                        )
                    )
                except (StaleClaim, TaskNotFound):
                    continue
            # Without anything new on a page, another recoverer has the rest.
            if len(page) < _PAGE or not fresh:
                return recovered

    async def next_due(self) -> datetime | None:
        """Return the earliest instant at which something is due: a PENDING task, or a lease that runs out; or None."""
        backend = await self._ready()
        return await backend.next_due()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a hint that may end early is no deadline
        """Return when a change of the store becomes visible, or after ``timeout`` seconds; perhaps earlier. A hint."""
        seconds = _check.timeout("timeout", timeout)
        backend = await self._ready()
        await backend.wait(seconds)

    def _prepared(self, func: Any) -> Any:
        if not isinstance(self.serializer, PreparingSerializer):
            return func
        try:
            return self.serializer.prepared(func)
        except Exception as error:
            raise SerializationError(f"{_CALL_OF} {_name_of(func)}", _reason(error)) from error

    def _dumps(self, obj: Any, what: str, whose: object) -> bytes:
        # The message is put together only if it is needed: this is a part of every call.
        try:
            data = self.serializer.dumps(obj)
        except Exception as error:
            raise SerializationError(f"{what} {_name_of(whose)}", _reason(error)) from error
        if not isinstance(data, bytes):
            raise SerializationError(
                f"{what} {_name_of(whose)}", f"the serializer returned {type(data).__name__} instead of bytes"
            )
        return data


def _payload_of(task: Task) -> str:
    return f"the payload of task {task.id!r}"


def _name_of(something: object) -> str:
    return getattr(something, "__qualname__", None) or repr(something)


def lost_lease(task: Task) -> str:
    """Say what is recorded as the error of an attempt whose lease ran out."""
    return (
        f"the lease of attempt {task.attempts} ran out at {task.lease_expires_at}: its worker died, lost contact "
        "with the store, or was blocked by a task for longer than its stall timeout"
    )


def _reason(error: Exception) -> str:
    # The serializer's own error speaks of "an object of type dict"; what lies behind it is what helps.
    inner = error.__cause__ if isinstance(error, SerializationError | DeserializationError) else None
    text = error_text(inner or error)
    if isinstance(error, DeserializationError) and isinstance(inner, ModuleNotFoundError):
        return f"{text}. Start this process where it can be imported: for a worker, see --app-dir"
    return text


def _default_backend() -> Backend:
    url = os.environ.get(URL_VARIABLE)
    if url:
        return backend_from_url(url)
    # Imported here so that `import taskqueue` does not load a driver that another backend has no use for.
    from taskqueue.backends.sqlite import SQLiteBackend  # noqa: PLC0415

    return SQLiteBackend(DEFAULT_PATH)


AsyncTaskQueue = TaskQueue
"""Another name of ``TaskQueue``, which the specification uses too."""
