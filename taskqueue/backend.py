"""The contract of a backend: what a store must do so that the queue can keep its promises.

This module is the normative text. A backend is any class with the methods of :class:`Backend`; it need not inherit
from it. Whether a backend fulfils the contract is decided by ``pytest --conformance=MODULE:FACTORY``.

Words
    A *handle* is one backend object. Many handles, in many processes, share a *store*. A *claim* is the pair
    ``(task_id, attempt)``; the attempt number is the fencing token. A claim is *held* while the task is RUNNING and
    ``task.attempts == attempt``; that its lease has run out changes nothing by itself. *Due* means PENDING and
    ``available_at <= now``; equality is due. A task has *ended* once it is SUCCESS, FAILED or CANCELLED.

What every method promises
    * **Atomic and linearizable.** Each call takes effect at one instant between its start and its return, across all
      handles and processes, wholly or not at all. A call that raises has changed nothing. What a call acknowledged
      by returning is still there after a crash of any process, if the store is durable (D1, D2). A durable store in
      local files also has them synced to the disk before it acknowledges, unless its user chose otherwise.
    * **No clock.** A backend never reads a clock, neither Python's nor the database's. The outcome of a call depends
      on the stored state and the arguments alone (E4). ``now`` may be decades away from the host's time and may go
      backwards between calls. The one exception is ``wait``, whose seconds are measured by the event loop.
    * **Exact.** Payloads, values, ids, errors and tracebacks come back byte for byte; instants come back to the
      microsecond, from 1970-01-01 to 9999-12-31 (E3, P1, V1). Nothing handed out is shared with the store.
    * **Cancellation.** A call that is cancelled at any await has happened or has not happened, never half, and the
      handle stays usable. Such a call may still take effect until the next call on the same handle that reads or writes
      tasks, or ``close``, returns; never later (X1).
    * **The event loop runs on.** No method blocks it: I/O happens elsewhere or asynchronously.

What a backend may take for granted
    The queue checks arguments before they get here, and the suite passes no others: every instant is a plain
    ``datetime`` (exactly that type) with ``tzinfo=datetime.UTC``, from year 1970 to 9999; instants come in any order
    and a past ``available_at`` is stored as given; ``limit >= 0``; ``attempt >= 1``; ``failure.attempt == attempt``;
    ids are 1 to 255 bytes of UTF-8 without NUL, and are equal only if byte-equal; text is well-formed Unicode
    without NUL. An empty list is a no-op and ``limit=0`` returns nothing and changes nothing (beware SQL's
    ``LIMIT -1``).

Sizes
    A backend must accept payloads and values of 1 MiB, errors and tracebacks of 64 KiB each as UTF-8, and 1,000 tasks
    in one call: each of these, though not all of them at once. Beyond that it may raise
    :class:`~taskqueue.errors.TooLarge`, with nothing changed. A store that is full, or has gone away, raises
    :class:`~taskqueue.errors.StoreUnavailable`, with nothing changed.

Fields by status
    ``id``, ``payload``, ``enqueued_at`` and ``max_retries`` never change. ``len(failures) == attempts``, less one while
    RUNNING, after SUCCESS, and where the task was cancelled while RUNNING.

    ================ ============ ============== ================= ================= =============== ================
    field            PENDING, new PENDING, retry RUNNING           SUCCESS           FAILED          CANCELLED
    ================ ============ ============== ================= ================= =============== ================
    attempts         0            >= 1           >= 1              >= 1              >= 1            >= 0
    available_at     as given     ``retry_at``   kept              kept              kept            kept
    started_at       None         kept           the claim's now   kept              kept            kept
    lease_expires_at None         None           set               None              None            None
    finished_at      None         None           None              complete's now    ``failed_at``   cancel's now
    value            None         None           None              bytes, b"" too    None            None
    failures         ()           last has       kept              kept              last has no     kept
                                  ``retry_at``                                       ``retry_at``
    ================ ============ ============== ================= ================= =============== ================

Invariants
    The codes name the checks of the suite.

    * **E1** A claim returns a task only if ``available_at <= now``; equality is due.
    * **E2** Without concurrency a claim returns exactly ``min(due, limit)`` tasks; no task hides another.
    * **E3** An instant read back is the same instant.
    * **E4** The outcome depends on (state, arguments) alone.
    * **C1** The periods in which two claims hold one task never overlap; an ``(id, attempt)`` is issued once, until the
      task is purged.
    * **C2** Every task that a returned claim made RUNNING was returned to its caller, and no other was.
    * **C3** Claims take the earliest ``available_at`` first, ties in the order of enqueueing, for retried and recovered
      tasks too. "Enqueued earlier" means calls that do not overlap, then list order, and is kept for life. A
      concurrent claim may pass over tasks that an unfinished call is changing. No valid record stops a claim.
    * **L1** An ended task never changes; a refused call changes no stored field.
    * **L2** Only the current claim may complete, fail or extend; after its lease has run out it still may, until
      somebody else takes the task.
    * **L3** Calls on unknown ids create nothing.
    * **R1** Claims per task never exceed ``max(1, max_retries)``, crashes included: the attempt is counted, as durably
      as anything acknowledged, before ``claim`` returns.
    * **R2** A failure, or an expired lease, ends either in PENDING at the stated instant or, with the budget spent, in
      FAILED with a result.
    * **V1** A result is byte-exact, written once, there iff the task is SUCCESS or FAILED, and can be read again and
      again.
    * **V2** Any failure can be recorded, whatever its text.
    * **P1** The payload comes back byte-exact, on every attempt.
    * **D1** What a call acknowledged is there after a reopen. **D2** A crash leaves the state before the call or after
      it. **D3** Every RUNNING task can be recovered.
    * **X1** Cancelling a call at any await leaves before or after too, and the handle usable.
    * **G1** Purge removes only what it should.
    * **T1** A task that was enqueued in the application's transaction exists if and only if that commits; see
      :class:`TransactionalBackend`, which is optional.
    * **W1** Notifications are only hints.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, Self, runtime_checkable

from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

MAX_ID_BYTES = 255
"""The longest id, in bytes of UTF-8."""
MAX_PAYLOAD_BYTES = 1024 * 1024
"""The size of payloads and values that every backend accepts, in bytes."""
MAX_TEXT_BYTES = 64 * 1024
"""The size of an error, and of a traceback, that every backend accepts, in bytes of UTF-8."""
MAX_TASKS_PER_CALL = 1000
"""The number of tasks in one call that every backend accepts."""


@runtime_checkable
class Backend(Protocol):
    """One handle on a store of tasks. See the module's docstring for what holds for every method.

    Every method but ``connect``, ``close`` and ``clone`` raises :class:`~taskqueue.errors.NotConnected` before
    ``connect`` has returned, from the moment ``close`` is called, on an event loop other than the one that
    connected, and in a forked child of the process that connected.
    """

    async def connect(self) -> None:
        """Open the store, creating it where there is none. Idempotent.

        Concurrent calls share one attempt. ``connect`` after ``close`` works again. On another event loop, or in a
        forked child, it opens afresh for that loop or process and leaves the other's resources alone: both stay
        connected, each until it is closed there.

        Raises:
            IncompatibleStore: What is there is not a store of this kind, or a newer one; it is left untouched.
            StoreUnavailable: The store cannot be opened.
        """
        ...

    async def close(self) -> None:
        """Let calls in flight finish, end every ``wait`` of this handle early, and release all resources.

        Idempotent; does nothing on a handle that is not connected. Never deletes data: a store that is not durable
        lives as long as any handle object on it, connected or not.
        """
        ...

    def clone(self) -> Self:
        """Return a new, unconnected handle on the same store. Callable from any thread, connected or not."""
        ...

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks, all of them or none.

        Each has ``status`` PENDING, no lease, no ``finished_at``, no value, and
        ``attempts == len(failures) < max(1, max_retries)``. Nearly always both are 0; a task that comes from another
        store brings its ``attempts``, ``failures`` and ``started_at``, which are stored as given. The order of the
        calls, then of the list, is the order of enqueueing that C3 speaks of.

        Raises:
            TaskExists: One or more ids are known (whatever the status), or stand twice in ``tasks``; the exception
                carries those ids. Nothing has changed.
            TooLarge: Beyond the sizes that every backend accepts. Nothing has changed.

        If the answer was lost, repeat the call: ``TaskExists`` for every id means that it had landed.

        Spec: Async TaskQueue API / Enqueue task with default settings.
        """
        ...

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Take up to ``limit`` due tasks and make them RUNNING.

        Chosen are the due tasks with the earliest ``available_at``, ties in the order of enqueueing (C3). Each gets
        ``attempts + 1``, ``started_at = now`` and ``lease_expires_at`` as given; nothing else changes. The attempt is
        counted, as durably as anything acknowledged, before this returns (R1).

        Returns:
            The tasks as they now are, in the order of claiming. Without concurrent calls exactly ``min(due, limit)``;
            a concurrent claim may pass over tasks that an unfinished call is changing, but no task is ever returned
            to two callers for one attempt. ``lease_expires_at`` need not lie after ``now``.

        If the answer was lost, the tasks are recovered through their leases and have spent an attempt.

        Spec: ETA scheduling semantics / Delayed task scheduling; Retry Budget Semantics / Attempts count total
        executions.
        """
        ...

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Lengthen the leases of the claims that are still held: a worker's heartbeat.

        A lease becomes ``max(lease_expires_at, what it was)``: never shorter. A lease that has run out is lengthened
        too while its claim is still held. Claims that are not held, of whatever reason, unknown ids included, are
        left out of the answer; nothing is created or revived.

        Args:
            claims: Pairs ``(task_id, attempt)``.
            lease_expires_at: The instant until which the claims shall hold.

        Returns:
            Those of ``claims`` that are still held, in the order given, also those whose lease was later already.
        """
        ...

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """End a task that this claim holds: RUNNING to SUCCESS, with its value, in one step.

        Sets ``finished_at = now`` and ``value`` (``b""`` is a value) and clears the lease. An expired lease does not
        matter while the claim is held.

        Raises:
            StaleClaim: The claim is not held; carries the task's status and attempts. Nothing has changed.
            TaskNotFound: The id is unknown. Nothing has been created.
            TooLarge: The value is larger than this backend takes. Nothing has changed.

        If the answer was lost, repeat the call: ``StaleClaim`` with SUCCESS and the same attempts means that it had
        landed.

        Spec: Result model / Successful result.
        """
        ...

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Record a failed attempt of a task that this claim holds, and retry the task if its budget allows.

        In one step, append ``failure`` and take the task RUNNING to FAILED. Then, iff ``failure.retry_at`` is set and
        ``attempts < max_retries``, on to PENDING with ``available_at = failure.retry_at``; nobody can see the task
        FAILED in between. Otherwise the task stays FAILED with ``finished_at = failure.failed_at``, and the stored
        failure's ``retry_at`` is None whatever was proposed. Either way the lease is cleared. A retried task keeps its
        id, its place in the order of enqueueing, ``attempts`` and ``started_at``.

        Args:
            task_id: The task.
            attempt: The attempt number of the claim, equal to ``failure.attempt``.
            failure: What to record; its ``retry_at`` is the instant proposed for a retry.
            if_expired: Record only if ``lease_expires_at <= failure.failed_at``, checked in the same step. This is
                how a recoverer fails somebody else's claim without harming one that has just been extended.

        Returns:
            The task as it is now stored.

        Raises:
            StaleClaim: The claim is not held; carries the task's status and attempts. Or, with ``if_expired``, its
                lease holds still: then it carries RUNNING and that lease. Nothing has changed.
            TaskNotFound: The id is unknown. Nothing has been created.
            TooLarge: The texts are larger than this backend takes. Nothing has changed.

        If the answer was lost, repeat the call; on ``StaleClaim`` give up.

        Spec: Task Status Lifecycle; Retry Budget Semantics / Retry budget enforcement.
        """
        ...

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """End a PENDING or RUNNING task as CANCELLED, with ``finished_at = now`` and the lease cleared.

        A RUNNING task is fenced at once: its worker's ``complete``, ``fail`` and ``extend`` are refused from then on.

        Returns:
            True if this call ended the task; False if it had ended already, and then nothing has changed.

        Raises:
            TaskNotFound: The id is unknown.
        """
        ...

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List up to ``limit`` RUNNING tasks with ``lease_expires_at <= now``, the oldest lease first.

        Changes nothing. The order among equal leases is free.
        """
        ...

    async def next_due(self) -> datetime | None:
        """Return the earliest ``available_at`` of PENDING and ``lease_expires_at`` of RUNNING tasks, or None.

        The instant may lie in the past. It tells an idle worker how long it may sleep.
        """
        ...

    async def get(self, task_id: str) -> Task | None:
        """Return the whole task, with value and failures, or None if the id is unknown. Reading changes nothing."""
        ...

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List tasks in the order of enqueueing, a page at a time.

        A task that does not change during a whole listing appears in it exactly once; others appear at most once.

        Args:
            status: List only tasks that have this status, or all if None.
            after: The cursor that the page before returned, or None for the first page. A cursor stays good when
                tasks, including the one it was made from, are purged.
            limit: The number of tasks in this page; without concurrent calls it is shorter only where no more are
                left. With 0 the page is empty and the cursor is ``after``.

        Returns:
            ``(tasks, cursor)``. The cursor is an opaque string, or None once no task is left to list; a cursor with
            nothing but an empty page behind it is allowed.
        """
        ...

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of tasks in each of the five statuses, zeros included."""
        ...

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Remove at most ``limit`` ended tasks with ``finished_at < finished_before``, the longest ended first.

        In one step. A purged id is unknown from then on and may be enqueued anew. The order among equal
        ``finished_at`` is free. Tasks that have not ended are never removed.

        Returns:
            How many were removed; less than ``limit`` means that none is left.
        """
        ...

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a hint that may end early is no deadline
        """Return when a change of the store becomes visible, or after ``timeout`` seconds, whichever comes first.

        A change is one that becomes visible after ``wait`` was called, through any handle in any process. It may
        return early without a change, but not always. It blocks no other call on the handle, which goes on beside it,
        and ``close`` ends it early. It is a hint: nothing may depend on it, and a missed change is no error as long as
        ``timeout`` bounds the delay.

        Args:
            timeout: Seconds on the event loop's clock, zero or more. With 0 it returns at once.
        """
        ...


@runtime_checkable
class TransactionalBackend(Backend, Protocol):
    """A backend that can also enqueue in a transaction of the application's. This is optional."""

    async def enqueue_on(self, connection: Any, tasks: Sequence[Task]) -> None:
        """Add PENDING tasks, all of them or none, in the transaction that is open on ``connection``.

        The tasks exist if and only if the application commits it. Until then nobody else sees them, they are never
        claimed, and their ids may be taken by somebody else only once it has been rolled back. With the commit they
        are there as if ``enqueue`` had been called at that instant, and a ``wait`` ends; their place in the order of
        enqueueing is that of the call or of the commit. Calls on one connection keep their order (C3).

        Neither commits nor rolls back, nor leaves anything changed in the settings of the connection, which is the
        application's and not used by anybody else meanwhile.

        Args:
            connection: An open connection of a driver that the backend names, to the same store.
            tasks: As for ``enqueue``.

        Raises:
            InvalidArgument: It is no such connection, or no transaction is open on it. Nothing has changed.
            TaskExists: As for ``enqueue``. Nothing has changed, and the transaction can go on.
            TooLarge: As for ``enqueue``; the same.

        What the driver itself raises comes out as it is, and the application rolls back as after a statement of its
        own.
        """
        ...
