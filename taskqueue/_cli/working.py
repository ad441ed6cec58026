"""``taskqueue worker``."""

import asyncio
import logging
import os
import sys
from datetime import timedelta
from typing import NoReturn

import click

from taskqueue._cli import logs
from taskqueue._cli.command import Command
from taskqueue._cli.errors import Failed, Status
from taskqueue._cli.parameters import Duration, loading_options, url_option
from taskqueue._cli.store import Store, find_serializer, find_store, use_app_dir
from taskqueue.errors import TaskQueueError
from taskqueue.queue import TaskQueue
from taskqueue.worker import Worker

logger = logging.getLogger("taskqueue.cli")


@click.command(
    cls=Command,
    short_help="Run tasks until SIGTERM or Ctrl-C.",
    epilog="""
    Examples:
      taskqueue worker --url sqlite:///taskqueue.db --app-dir src
      taskqueue worker --burst --log-level warning     # from cron

    Exit status:
      0  all tasks that ran have ended
      1  an error, such as a store that is not available
      2  wrong usage
      3  tasks were interrupted when the grace period was over, or
         could not be recorded, since the store was away
      4  a function in a thread, or a coroutine that ignores its
         cancellation, could not be interrupted, and the process
         ended under it; it is recorded as failed
    A second signal ends the process by that signal (a shell says 128 + its number).
    """,
)
@url_option
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="How many tasks run at a time; also the number of threads.",
)
@click.option(
    "--lease",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long a claim holds without a heartbeat. A task whose worker has died is recovered after it.",
)
@click.option(
    "--poll",
    type=Duration(),
    default="5s",
    show_default=True,
    help="How long to wait at most before looking again, should a notification be lost.",
)
@click.option(
    "--grace",
    type=Duration(zero=True),
    default="25s",
    show_default=True,
    help="How long running tasks may go on after SIGTERM or Ctrl-C. Keep it below the patience of what stops you.",
)
@click.option(
    "--stall-timeout",
    type=Duration(),
    help="Give up the leases when a task has kept the event loop from running for so long; by default ten leases.",
)
@click.option(
    "--purge-after",
    type=Duration(zero=True),
    help="Remove tasks, with their results, that ended so long ago. By default they are kept.",
)
@click.option("--burst", is_flag=True, help="Run what is due, then end. Later tasks stay, retries among them.")
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    metavar="LEVEL",
    default="info",
    show_default=True,
    help="What to log to standard error: debug, info, warning or error.",
)
@loading_options
def worker(
    *,
    url: str | None,
    concurrency: int,
    lease: timedelta,
    poll: timedelta,
    grace: timedelta,
    stall_timeout: timedelta | None,
    purge_after: timedelta | None,
    burst: bool,
    log_level: str,
    serializer: str | None,
    app_dir: str,
) -> None:
    """Run tasks until SIGTERM or Ctrl-C.

    The first signal stops the claiming of tasks and lets the running ones finish within --grace; then they are
    interrupted, which is a failed attempt. A second signal ends the process at once. An SQLite file that --url names
    is created if it is missing. Loading a task runs code that the writers of the store chose.

    A DURATION is 30 or 30s for seconds, or 5m, 2h, 7d.
    """
    store = find_store(url, create=True)
    use_app_dir(app_dir)
    queue = TaskQueue(store.backend, find_serializer(serializer))
    logs.configure(log_level)
    works = Worker(
        queue,
        concurrency=concurrency,
        lease=lease,
        poll=poll,
        grace=grace,
        stall_timeout=stall_timeout,
        purge_after=purge_after,
    )
    asyncio.run(_run(works, store, burst=burst))
    raise click.exceptions.Exit(Status.INTERRUPTED if works.interrupted else Status.DONE)


async def _run(works: Worker, store: Store, *, burst: bool) -> None:
    try:
        await _work(works, store, burst=burst)
    except TaskQueueError as error:
        logger.debug("in full:", exc_info=error)
        if not works.abandoned:
            raise
        Failed(str(error)).show()
        _leave(Status.ERROR)
    except Exception:
        if not works.abandoned:
            raise
        logger.exception("the worker has crashed")
        _leave(Status.ERROR)
    if works.abandoned:
        logger.error("ending the process under what cannot be interrupted: %s", ", ".join(works.abandoned))
        _leave(Status.ABANDONED)


async def _work(works: Worker, store: Store, *, burst: bool) -> None:
    async with works.queue:
        where = getattr(store.backend, "path", store.location)
        logger.info("working on %s, %d tasks at a time, as process %d", where, works.concurrency, os.getpid())
        await (works.run_until_idle if burst else works.run)(handle_signals=True)
        logger.info("stopped")


def _leave(status: Status) -> NoReturn:
    """End the process now: the end of the event loop, and of Python, would wait for what cannot be interrupted."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
