"""procrastinate: a task queue in PostgreSQL, presented through the contract.

    PYTHONPATH=docs/examples/engines pytest --conformance=procrastinate_backend:Harness

It speaks to procrastinate's ``JobManager``, the layer under its ``App`` and ``Worker``. What that has: jobs deferred in
one statement, all or none; ``scheduled_at``, to the microsecond; ``fetch_job``, one at a time, with SKIP LOCKED;
finish, retry at an instant, cancel while waiting, a request to abort while running; workers with heartbeats.

What it has no counterpart for: results and error texts (its workers log them), ids of the caller's (the adapter puts
the id into ``queueing_lock``, which is unique among waiting jobs only), leases of single jobs (a job is held while its
worker's heart beats; the adapter takes the 30 seconds that are procrastinate's default), several jobs in one fetch, and
a claim that can be told from the next one of the same job. Jobs go by priority and id, not by when they are due.

It reads the server's clock. The adapter puts a function ``now()`` of its own before PostgreSQL's on the search path and
sets what it returns before each call.

What the adapter reads from the tables itself: when a job was started and ended (``procrastinate_events``), and when
its worker's heart last beat.
"""

# ruff: noqa: ARG002 - the parameters are those of the contract, also where an engine has no use for them

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from engine_backend import EngineBackend, EngineHarness, NotInEngine, from_fields, to_fields
from procrastinate import PsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.schema import SchemaManager
from psycopg import sql

from taskqueue import Failure, StaleClaim, Task, TaskExists, TaskNotFound, TaskStatus
from taskqueue_conformance.postgres_server import PostgresServer

_SERVER: Final = "TASKQUEUE_ENGINES_POSTGRES"
_STALLED: Final = timedelta(seconds=30)
_STATUS: Final = {
    "todo": TaskStatus.PENDING,
    "doing": TaskStatus.RUNNING,
    "succeeded": TaskStatus.SUCCESS,
    "failed": TaskStatus.FAILED,
    "cancelled": TaskStatus.CANCELLED,
    "aborted": TaskStatus.CANCELLED,
}
_CLOCK: Final = """
CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce(nullif(current_setting('taskqueue.now', true), '')::timestamptz, pg_catalog.now())
$$
"""
_TIMES: Final = """
SELECT job.id,
       max(event.at) FILTER (WHERE event.type = 'started') AS started_at,
       max(event.at) FILTER (WHERE event.type IN ('succeeded', 'failed', 'cancelled', 'aborted')) AS finished_at,
       (SELECT last_heartbeat FROM procrastinate_workers worker WHERE worker.id = job.worker_id) AS heartbeat
  FROM procrastinate_jobs job JOIN procrastinate_events event ON event.job_id = job.id
 WHERE job.id = ANY(%(ids)s) GROUP BY job.id
"""


@dataclass
class _Engine:
    connector: PsycopgConnector
    manager: JobManager
    worker_id: int

    async def at(self, now: datetime) -> None:
        """Let the server's ``now()`` be this instant, until it is set anew."""
        await self.connector.execute_query_async(
            "SELECT set_config('taskqueue.now', %(now)s, false)", now=now.isoformat()
        )

    async def find(self, task_id: str) -> Job:
        """Return the newest job with this id."""
        jobs = list(await self.manager.list_jobs_async(queueing_lock=task_id))
        if not jobs:
            raise TaskNotFound(task_id)
        return jobs[-1]

    async def held(self, task_id: str, attempt: int) -> Job:
        """Return the job, or raise StaleClaim unless it runs for the ``attempt``-th time: a look before the step."""
        job = await self.find(task_id)
        task = await self.task(job)
        if task.status is not TaskStatus.RUNNING or task.attempts != attempt:
            raise StaleClaim(task_id, attempt, status=task.status, attempts=task.attempts)
        return job

    async def task(self, job: Job) -> Task:
        return (await self.tasks([job]))[0]

    async def tasks(self, jobs: Sequence[Job]) -> list[Task]:
        rows = await self.connector.execute_query_all_async(_TIMES, ids=[job.id for job in jobs])
        times = {row["id"]: row for row in rows}
        return [_task(job, times[job.id]) for job in jobs]


class ProcrastinateBackend(EngineBackend):
    """A handle on a schema in which procrastinate is installed. Each handle is one of its workers."""

    async def open(self, thread: ThreadPoolExecutor) -> _Engine:
        """Install procrastinate where it is not, and register a worker."""
        del thread
        await _install(self._store)
        connector = PsycopgConnector(
            conninfo=_url(), kwargs={"options": f"-c search_path={self._store},pg_catalog"}, min_size=1, max_size=1
        )
        await connector.open_async()
        manager = JobManager(connector)
        return _Engine(connector, manager, await manager.register_worker())

    async def shut(self, engine: _Engine, thread: ThreadPoolExecutor) -> None:
        """Close the connection. The worker stays registered, as one that was killed would."""
        await engine.connector.close_async()

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Defer the jobs in one statement. An id is refused only while a job with it waits."""
        jobs = [
            Job(
                queue="conformance",
                lock=None,
                queueing_lock=task.id,
                task_name="task",
                task_kwargs=to_fields(task),
                scheduled_at=task.available_at,
            )
            for task in tasks
        ]

        async def step(engine: _Engine) -> None:
            if jobs:
                try:
                    await engine.manager.batch_defer_jobs_async(jobs)
                except AlreadyEnqueued as error:
                    known = [each.id for each in tasks if await engine.manager.list_jobs_async(queueing_lock=each.id)]
                    twice = {each.id for each in tasks if sum(other.id == each.id for other in tasks) > 1}
                    raise TaskExists(list(dict.fromkeys([*known, *twice]))) from error

        await self.run(step)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Fetch up to ``limit`` jobs, each in a step of its own. The lease is the worker's heartbeat."""
        del lease_expires_at

        async def step(engine: _Engine) -> list[Task]:
            await engine.at(now)
            if limit:
                await engine.manager.update_heartbeat(engine.worker_id)
            claimed: list[Task] = []
            while len(claimed) < limit:
                job = await engine.manager.fetch_job(queues=None, worker_id=engine.worker_id)
                if job is None:
                    break
                claimed.append(await engine.task(job))
            return claimed

        return await self.run(step)

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Let the worker's heart beat, so that what it holds is not stalled before this instant."""

        async def step(engine: _Engine) -> list[tuple[str, int]]:
            held, leases = [], []
            for task_id, attempt in claims:
                try:
                    task = await engine.task(await engine.held(task_id, attempt))
                except (StaleClaim, TaskNotFound):
                    continue
                held.append((task_id, attempt))
                leases.append(task.lease_expires_at)
            if any(lease is not None and lease < lease_expires_at for lease in leases):
                await engine.at(lease_expires_at - _STALLED)
                await engine.manager.update_heartbeat(engine.worker_id)
            return held

        return await self.run(step)

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Finish the job. The value is lost: procrastinate keeps no results."""
        del value

        async def step(engine: _Engine) -> None:
            job = await engine.held(task_id, attempt)
            await engine.at(now)
            await engine.manager.finish_job(job, Status.SUCCEEDED, delete_job=False)

        await self.run(step)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Retry the job at ``retry_at`` or finish it as failed. The failure itself is lost."""

        async def step(engine: _Engine) -> Task:
            job = await engine.held(task_id, attempt)
            await engine.at(failure.failed_at)
            if if_expired:
                task = await engine.task(job)
                if job.id not in {each.id for each in await _stalled(engine)}:
                    raise StaleClaim(
                        task_id,
                        attempt,
                        status=task.status,
                        attempts=task.attempts,
                        lease_expires_at=task.lease_expires_at,
                    )
            if failure.retry_at is not None and attempt < job.task_kwargs["max_retries"]:
                await engine.manager.retry_job(job, retry_at=failure.retry_at)
            else:
                await engine.manager.finish_job(job, Status.FAILED, delete_job=False)
            return await engine.task(await engine.find(task_id))

        return await self.run(step)

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Cancel a job that waits; one that runs is asked to abort, and goes on until it looks."""

        async def step(engine: _Engine) -> bool:
            job = await engine.find(task_id)
            assert job.id is not None  # noqa: S101 - it has been stored
            await engine.at(now)
            return await engine.manager.cancel_job_by_id_async(job.id, abort=True)

        return await self.run(step)

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """List the jobs of workers whose heart has not beaten for 30 seconds."""

        async def step(engine: _Engine) -> list[Task]:
            await engine.at(now)
            return (await engine.tasks(await _stalled(engine)))[:limit]

        return await self.run(step)

    async def next_due(self) -> datetime | None:
        """Look through what waits and what runs: there is no such question in the API."""

        async def step(engine: _Engine) -> datetime | None:
            tasks = [
                await engine.tasks(list(await engine.manager.list_jobs_async(status=s))) for s in ("todo", "doing")
            ]
            instants = [task.lease_expires_at or task.available_at for some in tasks for task in some]
            return min(instants, default=None)

        return await self.run(step)

    async def get(self, task_id: str) -> Task | None:
        """List the jobs with this id."""

        async def step(engine: _Engine) -> Task | None:
            try:
                return await engine.task(await engine.find(task_id))
            except TaskNotFound:
                return None

        return await self.run(step)

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """List all jobs, and cut a page out of them."""

        async def step(engine: _Engine) -> tuple[list[Task], str | None]:
            jobs = [
                job
                for job in await engine.manager.list_jobs_async()
                if (job.id or 0) > int(after or 0) and status in {None, _STATUS[job.status or ""]}
            ]
            page = jobs[:limit]
            if not limit:
                return [], after
            return await engine.tasks(page), str(page[-1].id) if len(jobs) > limit else None

        return await self.run(step)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """List all jobs and count them: procrastinate counts by queue or by task."""

        async def step(engine: _Engine) -> dict[TaskStatus, int]:
            found = [_STATUS[job.status or ""] for job in await engine.manager.list_jobs_async()]
            return {status: found.count(status) for status in TaskStatus}

        return await self.run(step)

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Look how many there are, and delete all; raise if these are more than ``limit``."""

        async def step(engine: _Engine) -> int:
            jobs = [job for job in await engine.manager.list_jobs_async() if _STATUS[job.status or ""].ended]
            found = [
                task for task in await engine.tasks(jobs) if task.finished_at and task.finished_at < finished_before
            ]
            if len(found) > limit > 0:
                raise NotInEngine("procrastinate's delete_old_jobs has no limit")
            if limit:
                await engine.at(finished_before)
                await engine.manager.delete_old_jobs(
                    nb_hours=0, include_failed=True, include_cancelled=True, include_aborted=True
                )
                return len(found)
            return 0

        return await self.run(step)


class Harness(EngineHarness):
    """``--conformance=procrastinate_backend:Harness``: a server of the run's own, a schema for each store."""

    def start(self) -> Mapping[str, str]:
        """Start the server."""
        return {_SERVER: PostgresServer.start().folder}

    def stop(self) -> None:
        """End it."""
        PostgresServer(os.environ[_SERVER]).stop()

    def backend(self, store: str) -> ProcrastinateBackend:
        """Return a handle on the schema of this name."""
        return ProcrastinateBackend(store)

    async def drop(self, store: str) -> None:
        """Drop the schema."""
        async with await psycopg.AsyncConnection.connect(_url(), autocommit=True) as connection:
            await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(store)))


async def _install(schema: str) -> None:
    async with await psycopg.AsyncConnection.connect(_url()) as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(1)")
        found = await connection.execute("SELECT to_regclass(%s)", (f"{schema}.procrastinate_jobs",))
        if (await found.fetchone() or (None,))[0] is None:
            name = sql.Identifier(schema)
            await connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            await connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(name))
            await connection.execute(_CLOCK)
            await connection.execute(SchemaManager.get_schema())


async def _stalled(engine: _Engine) -> list[Job]:
    # A microsecond less than the timeout, since procrastinate asks for more than it, and the contract for as much.
    timeout = (_STALLED - timedelta(microseconds=1)).total_seconds()
    return list(await engine.manager.get_stalled_jobs(seconds_since_heartbeat=timeout))


def _task(job: Job, times: Mapping[str, Any]) -> Task:
    status = _STATUS[job.status or ""]
    running = status is TaskStatus.RUNNING
    return from_fields(
        job.task_kwargs,
        status=status,
        attempts=job.attempts + running,
        available_at=job.scheduled_at,
        started_at=times["started_at"],
        lease_expires_at=_later(times["heartbeat"]) if running else None,
        finished_at=times["finished_at"] if status.ended else None,
    )


def _later(heartbeat: datetime) -> datetime:
    try:
        return heartbeat.astimezone(UTC) + _STALLED
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _url() -> str:
    return PostgresServer(os.environ[_SERVER]).url
