"""The worker: claims due tasks, runs them, and tells the queue what became of each."""

import contextlib
from datetime import timedelta

from taskqueue import _check
from taskqueue._run import Run, Settings
from taskqueue._signals import stopping_on_signals
from taskqueue.errors import InvalidArgument, TaskQueueError
from taskqueue.queue import DEFAULT_LEASE, TaskQueue


class Worker:
    """Runs the tasks of a queue: coroutines on the event loop, plain functions in threads.

    It claims no more tasks than it has free places for. How a task ends is always recorded through the queue, which
    alone decides about retries. What a task raises ends that task and never the worker, ``SystemExit`` included; a
    payload that cannot be loaded, or a return value that cannot be stored, is a failed attempt.

    **Leases.** A thread of the worker's own extends the leases of what runs about every third of the lease, so a task
    may run for any time, and may block the event loop; only code that holds Python's global lock for most of a lease
    gets in the way. When the loop has not turned for ``stall_timeout``, which is looked at with each heartbeat, the
    leases are given up: others take the tasks over, and the log names the task that blocks the loop. Give every
    worker of a queue the same lease.

    **Lost claims.** A claim that was lost (its task was cancelled, recovered by another worker, or purged) is noticed
    with the next heartbeat, or about half a second after a change of the store while the worker has free places. Its
    coroutine is cancelled and its outcome dropped; a function in a thread finds ``current_task().cancelled`` true.

    **Recovery.** Every worker looks for expired leases of others five times per lease, and records a failed attempt
    for one that three looks in a row have seen unchanged. So a task whose worker has died is recovered after 1.6
    leases at the latest, and no step of a clock, nor a machine's sleep, costs anybody a claim that is still extended.

    **Timeouts.** A task that was enqueued with ``timeout=`` and runs longer is cancelled, and its attempt has failed
    with a ``TimeoutError``, even if its coroutine returns after that. A coroutine that goes on in spite of its
    cancellation is waited for. A function in a thread cannot be stopped: its attempt is recorded as failed at once and
    ``current_task().cancelled`` becomes true, but it runs on, and its place stays taken until it ends. What returns
    before it can be cancelled, because it blocks the event loop, has not timed out.

    A worker does not close its queue. Once stopped it stays stopped; make a new one to go on.

    Args:
        queue: Whose tasks to run. Its backend is cloned for the heartbeats, and its clock is read in two threads.
        concurrency: How many tasks run at a time; also the number of threads.
        lease: How long a claim holds if it is not extended, and so how long it takes to miss a worker that died.
        poll: How long an idle worker waits at most before it looks again. A notification, or the eta of a task that
            it knows of, wakes it earlier.
        grace: How long running tasks may go on once the worker was stopped. What is left then is interrupted and
            recorded as a failed attempt; coroutines have 5 more seconds to clean up, and outcomes as many to be
            recorded if the store is away. Zero interrupts at once.
        stall_timeout: After how long without a turn of the event loop its leases are given up; by default ten leases.
        purge_after: Remove tasks, with their results, once they have ended longer ago than this: at the start and
            again after a tenth of it, but not more often than every minute nor less often than every hour. By default
            everything is kept until somebody calls ``purge``.

    Raises:
        InvalidArgument: An argument cannot mean anything.

    Spec: Retry Policy Ownership / Worker delegates to queue.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        concurrency: int = 10,
        lease: timedelta = DEFAULT_LEASE,
        poll: timedelta = timedelta(seconds=5),
        grace: timedelta = timedelta(seconds=25),
        stall_timeout: timedelta | None = None,
        purge_after: timedelta | None = None,
    ) -> None:
        given: object = queue
        if not isinstance(given, TaskQueue):
            raise InvalidArgument("queue", given, "pass a TaskQueue")
        self.queue = queue
        self.concurrency = _check.integer("concurrency", concurrency, least=1)
        self.lease = _check.duration("lease", lease)
        self.poll = _check.duration("poll", poll)
        self.grace = _check.duration("grace", grace, zero=True)
        self.stall_timeout = (
            _ten_times(self.lease) if stall_timeout is None else _check.duration("stall_timeout", stall_timeout)
        )
        self.purge_after = None if purge_after is None else _check.duration("purge_after", purge_after, zero=True)
        self._running: Run | None = None
        self._stopped = False
        self._interrupted: tuple[str, ...] = ()
        self._abandoned: tuple[str, ...] = ()

    @property
    def interrupted(self) -> tuple[str, ...]:
        """The ids of the tasks that the last run interrupted, because its grace period was over or it was cancelled.

        Each was recorded as a failed attempt whose error says so. Those whose outcome could not be recorded, since the
        store was away when the run ended, are here too: their leases run out. Empty before the end of a run.
        """
        return self._interrupted

    @property
    def abandoned(self) -> tuple[str, ...]:
        """The ids of the tasks that still ran when the last run ended: functions in threads, which cannot be stopped.

        They were interrupted, or had timed out, or lost their claim; a coroutine that ignores its cancellation counts
        too. The process cannot end by itself before they do, only by ``os._exit`` or a signal. Empty before the end of
        a run.
        """
        return self._abandoned

    async def run(self, *, handle_signals: bool = False) -> None:
        """Run tasks until ``stop`` is called; then let the running ones finish within the grace period, and return.

        If this is cancelled, the tasks that run are interrupted at once and recorded as failed attempts. A function in
        a thread cannot be interrupted: it is recorded as failed and runs on.

        Args:
            handle_signals: Call ``stop`` on the first SIGTERM or SIGINT; the second one, of either kind, ends the
                process at once, as if nobody handled it, unless it comes within a tenth of a second. The handlers
                that were there before are back when this returns. A task that blocks the event loop in Python delays
                nothing of this; while a call into C code that never returns has the main thread, the first signal
                waits, and only SIGKILL ends the process.

        Raises:
            InvalidArgument: ``handle_signals`` outside of the main thread.
            StoreUnavailable: The store cannot be reached at the start. Later such errors are logged and waited out.
            NotConnected: The queue was closed.
            TaskQueueError: This worker runs already, or the thread that extends leases cannot be started or crashed.
        """
        await self._run(until_idle=False, handle_signals=handle_signals)

    async def run_until_idle(self, *, handle_signals: bool = False) -> None:
        """Run what is due, and return once nothing is due at the queue's clock and nothing runs, or after ``stop``.

        Tasks with a later eta stay, retries that are not due yet among them. May be called again and again. With
        ``purge_after`` it purges once before it returns.

        Args:
            handle_signals: As in ``run``.

        Raises:
            The same as ``run``.
        """
        await self._run(until_idle=True, handle_signals=handle_signals)

    def stop(self) -> None:
        """Claim no more, and let what runs finish within the grace period; then ``run`` returns.

        Idempotent. May be called from a task, from a thread, from a signal handler, and before ``run``, which then
        returns at once. A claim in flight is awaited, and what it took is run; the grace period begins after that.
        """
        self._stopped = True
        if (running := self._running) is not None:
            running.stop()

    async def _run(self, *, until_idle: bool, handle_signals: bool) -> None:
        if self._running is not None:
            raise TaskQueueError("this worker runs already; make another one to run beside it")
        self._interrupted = self._abandoned = ()
        settings = Settings(
            concurrency=self.concurrency,
            lease=self.lease,
            poll=self.poll,
            grace=self.grace,
            stall_timeout=self.stall_timeout,
            purge_after=self.purge_after,
        )
        running = Run(self.queue, settings)
        self._running = running
        try:
            # Asked now that `stop`, called by a thread or by a signal, would find the run.
            if self._stopped:
                return
            with stopping_on_signals(self.stop) if handle_signals else contextlib.nullcontext():
                await running.serve(until_idle=until_idle)
        finally:
            self._running = None
            self._interrupted = tuple(running.interrupted)
            self._abandoned = tuple(running.abandoned)


def _ten_times(lease: timedelta) -> timedelta:
    return 10 * lease if lease < timedelta.max / 10 else timedelta.max
