"""APScheduler 4's data store on PostgreSQL, presented through the contract.

    PYTHONPATH=docs/examples/engines pytest --conformance=apscheduler_backend:Harness

It speaks to ``SQLAlchemyDataStore``, the layer under ``AsyncScheduler``, and does in ``claim`` what the scheduler does:
``acquire_schedules``, ``add_job`` for each, ``release_schedules``, ``acquire_jobs``. A task is a schedule with a
``DateTrigger``, whose id is the task's. What the store has: ids of the caller's, instants to the microsecond, leases
that a scheduler extends and that run out, results and exceptions.

What it has no counterpart for: retries, attempts that are counted, cancelling a job, several tasks added in one step. A
result is deleted when it is read, which its documentation says; so ``get`` shows an outcome once, and what counts or
lists ended tasks is not offered here. APScheduler 4 is a pre-release, and says of itself that it is not for production.

It reads Python's clock. The adapter puts a class in the place of ``datetime`` in that one module of APScheduler, whose
``now()`` is the caller's during a call.
"""

# ruff: noqa: ARG002 - the parameters are those of the contract, also where an engine has no use for them

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from logging import getLogger
from typing import Any, Final

import apscheduler.datastores.sqlalchemy as store_module
import asyncpg
from apscheduler import ConflictingIdError, ConflictPolicy, Event, Job, JobOutcome, JobResult, Schedule, ScheduleResult
from apscheduler import Task as FunctionTask
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.local import LocalEventBroker
from apscheduler.triggers.date import DateTrigger
from engine_backend import EngineBackend, EngineHarness, NotInEngine, from_fields, to_fields

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.postgres_server import PostgresServer

_SERVER: Final = "TASKQUEUE_ENGINES_POSTGRES"
_KEPT: Final = timedelta(days=3650)
_FUNCTION: Final = "conformance"
_now: ContextVar[datetime | None] = ContextVar("now", default=None)


class _Clock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override] # a plain datetime, as stored
        return _now.get() or datetime.now(tz)


store_module.datetime = _Clock


class _NoEvents(LocalEventBroker):
    """Events are left out: the task group that delivers them would have to live in one task of asyncio's."""

    async def publish(self, event: Event) -> None:
        del event


class Failed(Exception):
    """What a task ended with: APScheduler keeps the exception, and this one carries the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass
class _Engine:
    store: SQLAlchemyDataStore
    stack: AsyncExitStack
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)


class APSchedulerBackend(EngineBackend):
    """A handle on a schema with APScheduler's tables. Each connection is one scheduler."""

    def __init__(self, store: str) -> None:
        super().__init__(store)
        self._started: dict[str, datetime] = {}

    async def open(self, thread: ThreadPoolExecutor) -> _Engine:
        """Start the data store, as a scheduler does."""
        del thread
        stack = AsyncExitStack()
        broker = _NoEvents()
        url = f"postgresql+asyncpg://postgres@/postgres?host={os.environ[_SERVER]}"
        store = SQLAlchemyDataStore(url, schema=self._store)
        await store.start(stack, broker, getLogger("apscheduler"))
        await store.add_task(FunctionTask(id=_FUNCTION, func="builtins:print", job_executor="async"))
        return _Engine(store, stack)

    async def shut(self, engine: _Engine, thread: ThreadPoolExecutor) -> None:
        """End its connections."""
        del thread
        await engine.stack.aclose()

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Add a schedule for each task, one after the other."""

        async def step(engine: _Engine) -> None:
            for task in tasks:
                schedule = Schedule(
                    id=task.id,
                    task_id=_FUNCTION,
                    trigger=DateTrigger(task.available_at),
                    kwargs=to_fields(task),
                    job_executor="async",
                    job_result_expiration_time=_KEPT,
                    next_fire_time=task.available_at,
                )
                try:
                    await engine.store.add_schedule(schedule, ConflictPolicy.exception)
                except ConflictingIdError as error:
                    raise TaskExists([task.id]) from error

        await self.run(step)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Make jobs of the schedules that are due, and acquire up to ``limit`` jobs."""

        async def step(engine: _Engine) -> list[Task]:
            if not limit:
                return []
            store, lease = engine.store, lease_expires_at - now
            with _at(now):
                due = await store.acquire_schedules(engine.identity, lease, 1000)
                for schedule in due:
                    await store.add_job(
                        Job(
                            id=_job_id(schedule.id),
                            task_id=_FUNCTION,
                            kwargs=schedule.kwargs,
                            schedule_id=schedule.id,
                            scheduled_fire_time=schedule.next_fire_time,
                            executor="async",
                            result_expiration_time=schedule.job_result_expiration_time,
                        )
                    )
                results = [
                    ScheduleResult(
                        schedule_id=schedule.id,
                        task_id=_FUNCTION,
                        trigger=schedule.trigger,
                        last_fire_time=schedule.next_fire_time,
                        next_fire_time=None,
                    )
                    for schedule in due
                ]
                await store.release_schedules(engine.identity, results)
                jobs = await store.acquire_jobs(engine.identity, lease, limit)
            self._started.update((job.schedule_id, now) for job in jobs)
            return [self._running(job) for job in jobs]

        return await self.run(step)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Extend the leases of this scheduler's jobs that end earlier."""

        async def step(engine: _Engine) -> list[tuple[str, int]]:
            jobs = {job.schedule_id: job for job in await engine.store.get_jobs()}
            held = [
                (task_id, attempt)
                for task_id, attempt in claims
                if task_id in jobs and jobs[task_id].acquired_by == engine.identity and attempt == 1
            ]
            shorter = {jobs[each].id for each, _ in held if jobs[each].acquired_until < lease_expires_at}
            with _at(lease_expires_at):
                await engine.store.extend_acquired_job_leases(engine.identity, shorter, timedelta())
            return held

        return await self.run(step)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Release the job with its result."""

        async def step(engine: _Engine) -> None:
            await self._let_go(engine, task_id, attempt, now, JobOutcome.success, return_value=value)

        await self.run(step)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Release the job with its exception; there are no retries."""

        async def step(engine: _Engine) -> Task:
            job = await self._held(engine, task_id, attempt)
            running = self._running(job)
            if if_expired and running.lease_expires_at is not None and running.lease_expires_at > failure.failed_at:
                raise StaleClaim(
                    task_id, attempt, status=running.status, attempts=1, lease_expires_at=running.lease_expires_at
                )
            if failure.retry_at is not None and attempt < running.max_retries:
                raise NotInEngine("APScheduler does not retry")
            last = replace(failure, retry_at=None)
            at = failure.failed_at
            await self._let_go(engine, task_id, attempt, at, JobOutcome.error, exception=Failed(last))
            return replace(running, status=TaskStatus.FAILED, lease_expires_at=None, finished_at=at, failures=(last,))

        return await self.run(step)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Remove the schedule of a task that waits; nothing stays of it. A job cannot be cancelled in the store."""

        async def step(engine: _Engine) -> bool:
            if await engine.store.get_jobs({_job_id(task_id)}):
                raise NotInEngine("APScheduler's store cannot cancel a job")
            schedules = await engine.store.get_schedules({task_id})
            if not schedules:
                raise TaskNotFound(task_id)
            if schedules[0].next_fire_time is None:
                return False
            await engine.store.remove_schedules([task_id])
            return True

        return await self.run(step)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """Look through the jobs."""

        async def step(engine: _Engine) -> list[Task]:
            jobs = [job for job in await engine.store.get_jobs() if job.acquired_until and job.acquired_until <= now]
            return [self._running(job) for job in sorted(jobs, key=lambda job: job.acquired_until)][:limit]

        return await self.run(step)

    async def next_due(self) -> datetime | None:
        """Ask for the next schedule, and look through the jobs."""

        async def step(engine: _Engine) -> datetime | None:
            jobs = await engine.store.get_jobs()
            instants = [job.acquired_until or job.scheduled_fire_time for job in jobs]
            instants.append(await engine.store.get_next_schedule_run_time())
            return min((instant for instant in instants if instant is not None), default=None)

        return await self.run(step)

    async def get(self, task_id: str) -> Task | None:
        """Look for the job, then for its result, which that deletes, then for the schedule."""

        async def step(engine: _Engine) -> Task | None:
            if jobs := await engine.store.get_jobs({_job_id(task_id)}):
                return self._running(jobs[0])
            schedules = await engine.store.get_schedules({task_id})
            if not schedules:
                return None
            if schedules[0].next_fire_time is not None:
                return from_fields(schedules[0].kwargs)
            result = await engine.store.get_job_result(_job_id(task_id))
            return None if result is None else _ended(schedules[0], result)

        return await self.run(step)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """Raise: to look at a result is to delete it."""
        raise self.missing("APScheduler deletes a result when it is read")

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Raise: to look at a result is to delete it."""
        raise self.missing("APScheduler deletes a result when it is read")

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Raise: ``cleanup`` removes what has expired, and tells no number."""
        raise self.missing("APScheduler's cleanup has no limit and does not say how many it removed")

    async def _held(self, engine: _Engine, task_id: str, attempt: int) -> Job:
        jobs = await engine.store.get_jobs({_job_id(task_id)})
        if not jobs:
            schedules = await engine.store.get_schedules({task_id})
            if not schedules:
                raise TaskNotFound(task_id)
            waits = schedules[0].next_fire_time is not None
            raise StaleClaim(
                task_id, attempt, status=TaskStatus.PENDING if waits else TaskStatus.SUCCESS, attempts=0 if waits else 1
            )
        if jobs[0].acquired_by != engine.identity or attempt != 1:
            task = self._running(jobs[0])
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return jobs[0]

    async def _let_go(
        self, engine: _Engine, task_id: str, attempt: int, at: datetime, outcome: JobOutcome, **what: Any
    ) -> None:
        job = await self._held(engine, task_id, attempt)
        result = JobResult.from_job(job, outcome, finished_at=at, started_at=self._started.get(task_id, at), **what)
        await engine.store.release_job(engine.identity, job, result)

    def _running(self, job: Job) -> Task:
        assert job.schedule_id is not None  # noqa: S101 - this adapter adds no other jobs
        if job.acquired_by is None:
            return from_fields(job.kwargs)
        return from_fields(
            job.kwargs,
            status=TaskStatus.RUNNING,
            attempts=1,
            started_at=self._started.get(job.schedule_id),
            lease_expires_at=job.acquired_until,
        )


class Harness(EngineHarness):
    """``--conformance=apscheduler_backend:Harness``: a server of the run's own, a schema for each store."""

    def start(self) -> Mapping[str, str]:
        """Start the server."""
        return {_SERVER: PostgresServer.start().folder}

    def stop(self) -> None:
        """End it."""
        PostgresServer(os.environ[_SERVER]).stop()

    def backend(self, store: str) -> APSchedulerBackend:
        """Return a handle on the schema of this name."""
        return APSchedulerBackend(store)

    async def drop(self, store: str) -> None:
        """Drop the schema."""
        connection = await asyncpg.connect(PostgresServer(os.environ[_SERVER]).url)
        try:
            await connection.execute(f'DROP SCHEMA IF EXISTS "{store}" CASCADE')
        finally:
            await connection.close()


@contextmanager
def _at(now: datetime) -> Iterator[None]:
    token = _now.set(now)
    try:
        yield
    finally:
        _now.reset(token)


def _job_id(task_id: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, task_id)


def _ended(schedule: Schedule, result: JobResult) -> Task:
    failed = isinstance(result.exception, Failed)
    return from_fields(
        schedule.kwargs,
        status=TaskStatus.FAILED if failed else TaskStatus.SUCCESS,
        attempts=1,
        started_at=result.started_at,
        finished_at=result.finished_at,
        value=result.return_value,
        failures=(result.exception.failure,) if failed else (),
    )
