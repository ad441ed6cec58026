"""What a check works with: a store of its own, handles on it, and tasks to put there."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from taskqueue import Backend, Failure, StaleClaim, Task
from taskqueue_conformance import blame
from taskqueue_conformance.children import Child, fork_server
from taskqueue_conformance.effort import DEFAULT, Effort
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.subject import Journal, Subject
from taskqueue_conformance.violation import Violation, expect_equal, expect_refused, expect_task

NOON = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
"""The instant around which checks happen; far from the host's clock, so that reading it shows."""
MICROSECOND = timedelta(microseconds=1)
LEASE = timedelta(seconds=30)

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Lab:
    """One check's surroundings. Its store is new and empty; whatever it opened is closed at the end.

    Attributes:
        harness: How the backend under test is made.
        rng: What a check draws at random comes from here, so that a seed repeats it.
        target: What ``--conformance`` was given, by which child processes find the backend; None if there is no such.
        effort: How much the random layers do.
        store: The name of this check's own store.
        journal: The calls that were made.
        notes: What the check wants in the report beside its outcome; must be fit for JSON.
    """

    def __init__(
        self,
        harness: Harness,
        *,
        rng: random.Random | None = None,
        target: str | None = None,
        effort: Effort = DEFAULT,
    ) -> None:
        self.harness = harness
        self.rng = rng or random.Random(0)  # noqa: S311 - repeatable on purpose
        self.target = target
        self.effort = effort
        self.store = new_store_name()
        self.journal = Journal()
        self._stores = [self.store]
        self.notes: dict[str, Any] = {}
        self._opened: list[Subject] = []
        self._issued: set[tuple[str, int]] = set()
        self._children: list[Child] = []

    def unconnected(self, *, store: str | None = None) -> Subject:
        """Return a new handle on this check's store, or on another one, that is not connected yet."""
        subject = Subject(
            self.harness.backend(store or self.store),
            self.journal,
            name=f"handle{len(self._opened) + 1}",
            store=store or self.store,
        )
        self._opened.append(subject)
        return subject

    async def handle(self, *, store: str | None = None) -> Subject:
        """Return a new connected handle on this check's store, or on another one."""
        subject = self.unconnected(store=store)
        await subject.connect()
        return subject

    def new_store(self) -> str:
        """Return the name of another store, new and empty, that is dropped with this lab."""
        self._stores.append(new_store_name())
        return self._stores[-1]

    def adopt(self, subject: Subject) -> Subject:
        """Close this handle (a clone, say) with the others, and return it."""
        self._opened.append(subject)
        return subject

    async def child(self, main: Callable[..., None], *args: Any, environment: Mapping[str, str] = _NOTHING) -> Child:
        """Start a child process that runs ``main(harness, channel, *args)``; it ends with the lab at the latest.

        Args:
            main: A function of a module, so that it can be found by its name.
            args: What else to call it with.
            environment: Variables that the child's process has had from its beginning.

        Raises:
            NotVerified: There can be no child processes here.
        """
        server = await fork_server(self.target, environment)
        self._children.append(server.fork(main, *args))
        return self._children[-1]

    @property
    def has_children(self) -> bool:
        """Whether child processes were started, whose calls are in no journal."""
        return bool(self._children)

    async def put(self, backend: Backend, *tasks: Task) -> None:
        """Enqueue tasks in one call and read each of them back, field by field.

        This is how every check begins: what must not happen can never pass where nothing happens.
        """
        await backend.enqueue(tasks)
        await self.expect_stored(backend, *tasks, when="after enqueue")

    async def expect_stored(self, backend: Backend, *tasks: Task, when: str) -> None:
        """Read tasks back and compare every stored field of each; ``when`` says after what, for the message."""
        for task in tasks:
            expect_task(f"get({task.id!r}) {when}", await backend.get(task.id), task)

    async def running(
        self, backend: Backend, *tasks: Task, now: datetime = NOON, lease_expires_at: datetime = NOON + LEASE
    ) -> Sequence[Task]:
        """Put tasks that are due at ``now``, claim them all, and return them as they now are."""
        await self.put(backend, *tasks)
        claimed = await backend.claim(now=now, limit=len(tasks), lease_expires_at=lease_expires_at)
        await self.expect_claimed(backend, claimed, tasks, now=now)
        return claimed

    async def expect_claimed(
        self, backend: Backend, claimed: Sequence[Task], expected: Sequence[Task], *, now: datetime, breaks: str = "E2"
    ) -> None:
        """Compare the ids that a claim at ``now`` returned, in any order, with those of ``expected``.

        Where they differ, find out by further claims which requirement is broken: ``breaks``, unless a task was handed
        out again (C1), another time than ``now`` decided (E4), or the comparison with ``now`` is wrong (E1).
        """
        got, wanted = sorted(t.id for t in claimed), sorted(t.id for t in expected)
        issued = [(t.id, t.attempts) for t in claimed]
        again = [claim for claim in issued if claim in self._issued]
        self._issued.update(issued)
        if got == wanted:
            return
        extra = [task for task in claimed if task.id not in wanted]
        if again or len(set(got)) < len(got) or any(task.attempts > 1 + len(task.failures) for task in extra):
            breaks = "C1"
        elif any(task.available_at > now for task in extra):
            breaks = await self.diagnose(blame.for_claim(backend)) or "E1"
        elif not extra:
            missing = {task.id for task in expected if task.id not in got}
            if await self._claimed_only_later(backend, missing, now=now):
                breaks = "E1"
            else:
                breaks = await self.diagnose(blame.for_claim(backend)) or breaks
        expect_equal(f"the ids that claim(now={now}) returned", got, wanted, breaks=breaks)

    async def expect_expired(
        self, backend: Backend, found: Sequence[Task], expected: Sequence[str], *, now: datetime, what: str = ""
    ) -> None:
        """Compare the ids, in order, that ``expired`` listed at ``now``: D3, or E4 if another time decided."""
        ids = [task.id for task in found]
        if ids != list(expected):
            breaks = None if sorted(ids) == sorted(expected) else await self.diagnose(blame.for_expired(backend))
            what = what or f"the ids in expired(now={now})"
            expect_equal(what, ids, list(expected), breaks=breaks or "D3")

    async def expect_not_recovered(self, backend: Backend, what: str, call: Awaitable[Any]) -> StaleClaim:
        """Await a ``fail(if_expired=True)`` that comes too early: R2 if it is not refused, or E4 if a clock decided."""
        try:
            return await expect_refused(what, call, StaleClaim, breaks="R2")
        except Violation as violation:
            violation.requirement = await self.diagnose(blame.for_recovery(backend)) or "R2"
            raise

    async def expect_recovered(self, backend: Backend, call: Awaitable[Task]) -> Task:
        """Await a ``fail(if_expired=True)`` in time and return its answer: R2 if refused, or E4 if a clock decided."""
        try:
            return await call
        except StaleClaim as refused:
            raise Violation(
                "fail(if_expired=True) of a claim whose lease has run out",
                expected="the stored task",
                actual=f"StaleClaim: {refused}",
                breaks=await self.diagnose(blame.for_recovery(backend)) or "R2",
            ) from refused

    async def diagnose(self, experiment: Awaitable[str | None]) -> str | None:
        """Await an experiment on a backend that has failed already: what it raises adds nothing."""
        try:
            return await experiment
        except Exception:  # noqa: BLE001 - the first failure is the one to report
            return None

    async def _claimed_only_later(self, backend: Backend, missing: set[str], *, now: datetime) -> bool:
        """Whether the missing tasks are left out by a second claim at ``now`` and returned by one a little later."""
        ahead = datetime.max.replace(tzinfo=UTC) - now
        for later in (timedelta(0), MICROSECOND, timedelta(seconds=1), timedelta(days=400)):
            if later <= ahead:
                claimed = await backend.claim(now=now + later, limit=1000, lease_expires_at=NOON + LEASE)
                if missing & {task.id for task in claimed}:
                    return bool(later)
        return False

    async def close(self) -> None:
        """Close every handle and drop the stores. Errors of a backend in here are its own affair by now."""
        for child in self._children:
            child.end()
        for subject in reversed(self._opened):
            subject.deadline = 5.0
            await _quietly(subject.close())
        for store in self._stores:
            await _quietly(self.harness.drop(store))

    def confirm_witnessed(self) -> None:
        """Raise a violation if this check never saw a write of its own come back through ``get``."""
        if not self.journal.witnessed:
            raise Violation(
                "a write of the check's own",
                expected="a task that was enqueued and came back from get with its payload",
                actual="none, so nothing else that was seen counts",
                look="enqueue and get",
            )


def new_store_name() -> str:
    """Return a store name that nobody has used: ``[a-z0-9_]``, at most 40 characters."""
    return f"conformance_{uuid.uuid4().hex[:20]}"


def new_task(task_id: str = "a", **changes: Any) -> Task:
    """Return a new PENDING task that is due at NOON, with ``changes`` to its fields."""
    given: dict[str, Any] = {
        "id": task_id,
        "payload": b"payload of " + task_id.encode(),
        "enqueued_at": NOON - timedelta(hours=1),
        "available_at": NOON,
        "max_retries": 3,
    }
    return Task(**(given | changes))


def moved_task(task_id: str, *, enqueued_at: datetime, available_at: datetime, max_retries: int, attempts: int) -> Task:
    """Return a PENDING task, with the history of one that comes from another store where ``attempts`` is not 0.

    More attempts than the budget leaves room for are cut to what it does.
    """
    attempts = min(attempts, max(1, max_retries) - 1)
    return new_task(
        task_id,
        enqueued_at=enqueued_at,
        available_at=available_at,
        max_retries=max_retries,
        attempts=attempts,
        started_at=NOON - timedelta(days=1) if attempts else None,
        failures=tuple(new_failure(attempt, retry_at=available_at) for attempt in range(1, attempts + 1)),
    )


def new_failure(attempt: int = 1, **changes: Any) -> Failure:
    """Return a failure recorded at NOON that proposes no retry, with ``changes`` to its fields."""
    given: dict[str, Any] = {
        "attempt": attempt,
        "error": f"ValueError: attempt {attempt}",
        "failed_at": NOON,
        "traceback": "Traceback (most recent call last):\n  ...\nValueError\n",
    }
    return Failure(**(given | changes))


async def _quietly(call: Any) -> None:
    try:
        await call
    except asyncio.CancelledError:
        raise
    except Exception:  # noqa: BLE001, S110 - the check has its verdict; cleaning up must not change it
        pass
