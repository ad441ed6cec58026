"""The queue for code without an event loop: Flask, Django, scripts."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar
from weakref import finalize

from taskqueue._instants import system_clock
from taskqueue._loop_thread import LoopThread
from taskqueue._url import backend_from_url
from taskqueue.backend import Backend
from taskqueue.errors import InvalidArgument, NotConnected, TaskQueueError
from taskqueue.queue import DEFAULT_LEASE, Call, Enqueuer, TaskQueue
from taskqueue.result import Result
from taskqueue.retry import RetryPolicy
from taskqueue.serializers import Serializer
from taskqueue.status import TaskStatus
from taskqueue.task import Task
from taskqueue.transition import Transition

P = ParamSpec("P")
T = TypeVar("T")

_PAGE: Final = 500


class SyncEnqueuer:
    """What ``SyncTaskQueue.options`` returns: enqueues with options that were given before."""

    def __init__(self, queue: "SyncTaskQueue", enqueuer: Enqueuer) -> None:
        self._queue = queue
        self._enqueuer = enqueuer

    def enqueue(self, func: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str:
        """As ``Enqueuer.enqueue``, blocking."""
        enqueuer = self._enqueuer
        tasks = enqueuer._prepare(func, args, kwargs)  # noqa: SLF001 - parts of one thing
        return self._queue._store(tasks, enqueuer._options.connection)[0]  # noqa: SLF001 - as above


class SyncTaskQueue:
    """A ``TaskQueue`` whose methods block instead of being awaited. The same methods, arguments and errors.

    It has an event loop in a daemon thread of its own, which starts on first use and ends with ``close``; ``with``
    connects and closes. A process that ends without ``close`` loses nothing that was acknowledged, and does not hang:
    what is open is closed at exit.

    It may be used from any number of threads; their calls run at the same time and share commits where the backend
    groups them. In a forked child it opens the store afresh on first use, so it may be made before a server forks its
    workers. A call that is interrupted (Ctrl-C) is cancelled; like any call whose answer is lost, it may have taken
    effect. ``close`` ends calls of other threads that would wait for longer; they raise ``NotConnected``.

    A call and its arguments are serialised in the thread that enqueues them, and ``Result.unwrap`` loads in the one
    that calls it, so the serializer and the clock may be called by several threads at the same time. All else,
    ``on_transition`` too, is called in the thread of the loop.

    Args:
        backend: As in ``TaskQueue``.
        serializer: As in ``TaskQueue``.
        default_result_timeout: As in ``TaskQueue``.
        max_retries: As in ``TaskQueue``. **It counts executions.**
        retry_policy: As in ``TaskQueue``.
        clock: As in ``TaskQueue``.
        on_transition: As in ``TaskQueue``.

    Raises:
        InvalidArgument: As in ``TaskQueue``.

    Every method that talks to the backend raises ``TaskQueueError`` in a thread in which an event loop runs, since it
    would stop that loop: use ``TaskQueue`` there.
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
        self._queue = TaskQueue(
            backend,
            serializer,
            default_result_timeout=default_result_timeout,
            max_retries=max_retries,
            retry_policy=retry_policy,
            clock=clock,
            on_transition=on_transition,
        )
        self._closed = False
        # By process: a forked child inherits neither the thread nor anybody who could release the lock.
        self._here: dict[int, _Here] = {}
        finalize(self, _forget, self._here).atexit = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """As ``TaskQueue.from_url``; ``options`` are the other arguments of ``SyncTaskQueue``."""
        return cls(backend_from_url(url), **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.backend!r}>"

    @property
    def backend(self) -> Backend:
        """Where tasks are kept. It is connected on the event loop of this object; ``clone()`` it for other uses."""
        return self._queue.backend

    @property
    def serializer(self) -> Serializer:
        """What turns calls and return values into bytes."""
        return self._queue.serializer

    @property
    def default_result_timeout(self) -> float | timedelta | None:
        """How long ``get_result`` waits when it is not told."""
        return self._queue.default_result_timeout

    @property
    def max_retries(self) -> int:
        """The retry budget of tasks that do not name one."""
        return self._queue.max_retries

    @property
    def retry_policy(self) -> RetryPolicy:
        """How long to wait before each retry."""
        return self._queue.retry_policy

    def connect(self) -> None:
        """As ``TaskQueue.connect``, blocking."""
        _refuse_running_loop()
        here = self._in_this_process()
        with here.lock:
            self._closed = False
            started = here.thread is None
            thread = self._started(here)
            try:
                thread.run(self._queue.connect)
            except BaseException:
                if started:
                    here.thread = None
                    thread.stop()
                raise

    def close(self) -> None:
        """As ``TaskQueue.close``, blocking. It ends the thread too."""
        _refuse_running_loop()
        here = self._in_this_process()
        with here.lock:
            self._closed = True
            thread, here.thread = here.thread, None
            if thread is not None:
                thread.stop()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def now(self) -> datetime:
        """As ``TaskQueue.now``."""
        return self._queue.now()

    # ---------------------------------------------------------------- for applications

    def enqueue(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_id: str | None = None,
        timeout: float | timedelta | None = None,
        connection: Any = None,
        **kwargs: Any,
    ) -> str:
        """As ``TaskQueue.enqueue``, blocking: when it returns, the task is stored.

        ``connection`` is a blocking one, of sqlite3 or psycopg, and is used in the thread that calls. Each such call
        opens a handle of its own for as long as it lasts.

        Raises:
            InvalidArgument: An argument cannot mean anything.
            SerializationError: The function, an argument or the context cannot be serialised.
            TaskExists: ``task_id`` is known already.
            TooLarge: The payload is larger than the backend takes.
        """
        options = self.options(
            eta=eta,
            context=context,
            max_retries=max_retries,
            task_id=task_id,
            timeout=timeout,
            connection=connection,
        )
        return options.enqueue(func, *args, **kwargs)

    def options(
        self,
        *,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_id: str | None = None,
        timeout: float | timedelta | None = None,
        connection: Any = None,
    ) -> SyncEnqueuer:
        """As ``TaskQueue.options``; the ``enqueue`` of what it returns blocks."""
        return SyncEnqueuer(
            self,
            self._queue.options(
                eta=eta,
                context=context,
                max_retries=max_retries,
                task_id=task_id,
                timeout=timeout,
                connection=connection,
            ),
        )

    def enqueue_many(
        self,
        func: Callable[..., Any],
        calls: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        /,
        *,
        eta: datetime | None = None,
        context: dict[str, Any] | None = None,
        max_retries: int | None = None,
        task_ids: Sequence[str] | None = None,
        timeout: float | timedelta | None = None,
        connection: Any = None,
    ) -> list[str]:
        """As ``TaskQueue.enqueue_many``, blocking: when it returns, all of the tasks are stored.

        Raises:
            InvalidArgument: An argument cannot mean anything, or there are not as many ids as calls.
            SerializationError: A call cannot be serialised.
            TaskExists: Ids are known already, or given twice.
            TooLarge: A payload is larger than the backend takes, or there are too many of them.
        """
        queue = self._queue
        options = queue._checked_options(eta, context, max_retries, None, timeout)  # noqa: SLF001 - the same class, blocking
        return self._store(queue._prepare_many(func, calls, options, task_ids), connection)  # noqa: SLF001 - as above

    def _store(self, tasks: Sequence[Task], connection: Any) -> list[str]:
        if connection is None:
            return self._run(partial(self._queue._store, tasks))  # noqa: SLF001 - as above
        if any(iscoroutinefunction(getattr(connection, name, None)) for name in ("execute", "commit")):
            raise InvalidArgument(
                "connection", connection, "pass a blocking connection, of sqlite3 or psycopg, or use TaskQueue"
            )
        # Connects, so that a queue that is closed, or a running event loop, is refused as by every other method.
        self._run(self._queue.next_due)
        asyncio.run(self._store_here(tasks, connection))
        return [task.id for task in tasks]

    async def _store_here(self, tasks: Sequence[Task], connection: Any) -> None:
        """Store them from the thread that calls: most blocking connections can be used in no other one."""
        async with TaskQueue(self._queue.backend.clone(), clock=self._queue.now) as queue:
            await queue._store_on(connection, tasks)  # noqa: SLF001 - as above

    def get_result(self, task_id: str, timeout: float | timedelta | None = None) -> Result | None:
        """As ``TaskQueue.get_result``, blocking.

        Raises:
            InvalidArgument: The timeout is negative, infinite or not a number, or the id cannot be one.
            TaskNotFound: The id is unknown, or was purged while this waited.
            TaskCancelled: The task was cancelled.
        """
        return self._run(partial(self._queue.get_result, task_id, timeout))

    def get_task(self, task_id: str) -> Task:
        """As ``TaskQueue.get_task``, blocking.

        Raises:
            TaskNotFound: The id is unknown.
        """
        return self._run(partial(self._queue.get_task, task_id))

    def tasks(self, status: TaskStatus | str | None = None) -> Iterator[Task]:
        """As ``TaskQueue.tasks``, as a plain iterator, which blocks once for each page.

        Raises:
            InvalidArgument: There is no such status.
        """
        cursor: str | None = None
        while True:
            page, cursor = self._run(partial(self._queue._page, status, cursor))  # noqa: SLF001 - as above
            yield from page
            if cursor is None:
                return

    def counts(self) -> Mapping[TaskStatus, int]:
        """As ``TaskQueue.counts``, blocking."""
        return self._run(self._queue.counts)

    def cancel(self, task_id: str) -> bool:
        """As ``TaskQueue.cancel``, blocking.

        Raises:
            TaskNotFound: The id is unknown.
        """
        return self._run(partial(self._queue.cancel, task_id))

    def enqueue_again(self, task_id: str, *, eta: datetime | None = None, max_retries: int | None = None) -> str:
        """As ``TaskQueue.enqueue_again``, blocking.

        Raises:
            TaskNotFound: The id is unknown.
            TaskNotEnded: The task has not ended.
        """
        return self._run(partial(self._queue.enqueue_again, task_id, eta=eta, max_retries=max_retries))

    def purge(self, older_than: timedelta | None = None, *, finished_before: datetime | None = None) -> int:
        """As ``TaskQueue.purge``, blocking.

        Raises:
            InvalidArgument: Not exactly one argument, a negative duration, or a naive datetime.
        """
        return self._run(partial(self._queue.purge, older_than, finished_before=finished_before))

    # ---------------------------------------------------------------- for workers

    def claim(self, limit: int = 1, *, lease: timedelta = DEFAULT_LEASE) -> list[Task]:
        """As ``TaskQueue.claim``, blocking."""
        return self._run(partial(self._queue.claim, limit, lease=lease))

    def load_call(self, task: Task) -> Call:
        """As ``TaskQueue.load_call``; in the calling thread.

        Raises:
            DeserializationError: The payload is damaged, or needs code that is not to be had here.
        """
        return self._queue.load_call(task)

    def complete_task(self, task_id: str, attempt: int, value: Any) -> None:
        """As ``TaskQueue.complete_task``, blocking.

        Raises:
            SerializationError: The value cannot be serialised; nothing was recorded.
            StaleClaim: The claim does not hold the task any more; nothing was recorded.
            TaskNotFound: The id is unknown.
        """
        self._run(partial(self._queue.complete_task, task_id, attempt, value))

    def fail_task(
        self,
        task_id: str,
        attempt: int,
        error: BaseException | str,
        *,
        traceback: str | None = None,
        if_expired: bool = False,
    ) -> Task:
        """As ``TaskQueue.fail_task``, blocking.

        Raises:
            StaleClaim: The claim does not hold the task any more, or with ``if_expired`` its lease still holds;
                nothing was recorded.
            TaskNotFound: The id is unknown.
        """
        return self._run(
            partial(self._queue.fail_task, task_id, attempt, error, traceback=traceback, if_expired=if_expired)
        )

    def extend(self, claims: Iterable[tuple[str, int]], *, lease: timedelta = DEFAULT_LEASE) -> list[tuple[str, int]]:
        """As ``TaskQueue.extend``, blocking."""
        return self._run(partial(self._queue.extend, claims, lease=lease))

    def expired(self, limit: int = _PAGE) -> list[Task]:
        """As ``TaskQueue.expired``, blocking."""
        return self._run(partial(self._queue.expired, limit))

    def recover_expired(self) -> list[Task]:
        """As ``TaskQueue.recover_expired``, blocking."""
        return self._run(self._queue.recover_expired)

    def next_due(self) -> datetime | None:
        """As ``TaskQueue.next_due``, blocking."""
        return self._run(self._queue.next_due)

    def wait(self, timeout: float) -> None:
        """As ``TaskQueue.wait``, blocking."""
        self._run(partial(self._queue.wait, timeout))

    # ---------------------------------------------------------------- the loop

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        _refuse_running_loop()
        here = self._in_this_process()
        thread = here.thread
        if thread is None:
            with here.lock:
                thread = self._started(here)
        return thread.run(work)

    def _started(self, here: "_Here") -> LoopThread:
        if self._closed:
            raise NotConnected("this queue was closed; call connect() or use `with queue:` to open it again")
        if here.thread is None:
            here.thread = LoopThread(self._queue.close)
        return here.thread

    def _in_this_process(self) -> "_Here":
        pid = os.getpid()
        return self._here.get(pid) or self._here.setdefault(pid, _Here())


class _Here:
    """What a queue has in one process. The lock is held while the thread is made or ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: LoopThread | None = None


def _forget(here: dict[int, _Here]) -> None:
    for each in here.values():
        if each.thread is not None:
            each.thread.request_stop()


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise TaskQueueError(
        "a SyncTaskQueue was called in a thread in which an event loop runs, and would stop that loop: use TaskQueue "
        "and await there, or call this in another thread, as with asyncio.to_thread"
    )
