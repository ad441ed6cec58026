"""``taskqueue stats``."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from taskqueue._cli.command import Command
from taskqueue._cli.output import STYLES, console, print_json, show
from taskqueue._cli.parameters import Duration, json_option, url_option
from taskqueue._cli.store import Store, find_store
from taskqueue._cli.text import printable, readable, short, shown_id
from taskqueue.queue import TaskQueue
from taskqueue.status import OUTCOMES, TaskStatus

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True)
class Sample:
    """What was seen at one instant, nearly: the parts are read one after another.

    Attributes:
        at: When, by this machine's clock.
        clock: The same in seconds of a clock that never steps.
        counts: The number of tasks in each status.
        next_due: The earliest instant at which a PENDING task is due or a lease runs out.
        oldest_lease: The id of the RUNNING task whose lease ran out first, and when; or None.
    """

    at: datetime
    clock: float
    counts: dict[TaskStatus, int]
    next_due: datetime | None
    oldest_lease: tuple[str, datetime] | None

    @property
    def ended(self) -> int:
        """The number of tasks that have their outcome."""
        return sum(self.counts[status] for status in OUTCOMES)

    @property
    def waiting_since(self) -> datetime | None:
        """Since when the PENDING task that is due longest has been so; or None.

        A lease that ran out before hides it: the store tells the earliest instant only.
        """
        if self.next_due is None or self.next_due > self.at:
            return None
        if self.oldest_lease is not None and self.oldest_lease[1] <= self.next_due:
            return None
        return self.next_due


@click.command(
    cls=Command,
    short_help="Count tasks, and measure lateness and throughput.",
    epilog="""
    Examples:
      taskqueue stats
      taskqueue stats --watch --interval 5s
    """,
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval",
    type=Duration(zero=True),
    default="1s",
    show_default=True,
    help="The time between two looks, such as 0.5s or 1m, over which throughput is measured. 0, without --watch: look "
    "once, and measure no throughput.",
)
@json_option
@url_option
def stats(*, watch: bool, interval: timedelta, as_json: bool, url: str | None) -> None:
    """Show how many tasks there are in each status, how late the oldest due task is, and the throughput.

    Throughput is the number of tasks that ended between two looks; purging meanwhile makes it too low. With --watch
    and --json there is one document a line.
    """
    if watch and not interval:
        raise click.BadParameter("--watch needs more than zero", param_hint="--interval")
    store = find_store(url)

    async def look_twice(queue: TaskQueue) -> None:
        before = await _look(queue)
        if not interval:
            _print(store, before, None, as_json=as_json)
            return
        await asyncio.sleep(interval.total_seconds())
        _print(store, await _look(queue), before, as_json=as_json)

    async def keep_looking(queue: TaskQueue) -> None:
        if as_json:
            await _watch_plainly(queue, store, interval, as_json=True)
        elif (on := console()).is_terminal:
            from rich.live import Live  # noqa: PLC0415 - only this needs it

            before = await _look(queue)
            with Live(_text(store, before, None), console=on, auto_refresh=False) as live:
                live.refresh()
                while True:
                    await asyncio.sleep(interval.total_seconds())
                    now = await _look(queue)
                    live.update(_text(store, now, before), refresh=True)
                    before = now
        else:
            await _watch_plainly(queue, store, interval, as_json=False)

    store.use(keep_looking if watch else look_twice)


async def _watch_plainly(queue: TaskQueue, store: Store, interval: timedelta, *, as_json: bool) -> None:
    before: Sample | None = None
    while True:
        now = await _look(queue)
        _print(store, now, before, as_json=as_json)
        before = now
        await asyncio.sleep(interval.total_seconds())


async def _look(queue: TaskQueue) -> Sample:
    counts = await queue.counts()
    clock = time.monotonic()
    next_due = await queue.next_due()
    at = queue.now()
    expired = await queue.backend.expired(now=at, limit=1)
    oldest = None
    if expired and expired[0].lease_expires_at is not None:
        oldest = (expired[0].id, expired[0].lease_expires_at)
    return Sample(at, clock, dict(counts), next_due, oldest)


def _throughput(now: Sample, before: Sample | None) -> dict[str, Any] | None:
    if before is None:
        return None
    ended, seconds = now.ended - before.ended, now.clock - before.clock
    # Fewer than before: tasks were purged meanwhile, so nothing can be said.
    if ended < 0 or seconds <= 0:
        return None
    return {"ended": ended, "seconds": round(seconds, 3), "per_second": round(ended / seconds, 3)}


def _print(store: Store, now: Sample, before: Sample | None, *, as_json: bool) -> None:
    if not as_json:
        show(_text(store, now, before), console())
        return
    since = now.waiting_since
    print_json(
        {
            "at": now.at,
            "store": store.location,
            "counts": {status.value: count for status, count in now.counts.items()},
            "total": sum(now.counts.values()),
            "oldest_due": None if since is None else {"due_at": since, "late_seconds": now.at - since},
            "oldest_expired_lease": None
            if now.oldest_lease is None
            else {"id": now.oldest_lease[0], "expired_at": now.oldest_lease[1]},
            "next_due": now.next_due if now.next_due is not None and now.next_due > now.at else None,
            "throughput": _throughput(now, before),
        }
    )


def _text(store: Store, now: Sample, before: Sample | None) -> "Text":
    from rich.text import Text  # noqa: PLC0415 - only what people read needs it

    text = Text(f"{printable(store.location)} at {readable(now.at)}\n\n")
    for status, count in now.counts.items():
        text.append(f"{status.upper():<12}", STYLES[status]).append(f"{count:>9,}\n")
    text.append(f"{'in all':<12}{sum(now.counts.values()):>9,}\n\n")
    since = now.waiting_since
    if now.oldest_lease is not None:
        task_id, expired = now.oldest_lease
        text.append(
            "oldest due  not known beside an expired lease\n"
            if since is None
            else f"oldest due  for {short(now.at - since)}, since {readable(since)}\n"
        )
        text.append(
            f"lost        {shown_id(task_id)}\n"
            f"            its lease ran out {short(now.at - expired)} ago; a worker recovers it\n",
            "red",
        )
    elif since is not None:
        text.append(f"oldest due  for {short(now.at - since)}, since {readable(since)}\n")
    elif now.next_due is not None:
        what = "a task is due, or a lease ends" if now.counts[TaskStatus.RUNNING] else "a task is due"
        text.append(f"next due    in {short(now.next_due - now.at)}, at {readable(now.next_due)}: {what}\n")
    else:
        text.append("next due    nothing\n")
    rate = _throughput(now, before)
    if rate is None:
        text.append("throughput  not measured")
    else:
        text.append(
            f"throughput  {rate['per_second']:,.1f} tasks ended a second, measured over {rate['seconds']:.1f} s"
        )
    return text
