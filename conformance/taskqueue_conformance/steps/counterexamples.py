"""The phrases of counterexamples: the calls of the contract itself, each compared with the model at once.

They are no part of the features' vocabulary: nobody is meant to write them by hand.
"""

import re
from datetime import datetime
from typing import Final

from taskqueue import Failure
from taskqueue_conformance.lab import NOON, Lab, moved_task, new_failure
from taskqueue_conformance.steps.parameters import instant
from taskqueue_conformance.steps.registry import Vocabulary
from taskqueue_conformance.twin import Twin

TAG: Final = "counterexample"
"""The tag of the scenarios that are written in these phrases."""
COUNTEREXAMPLES: Final = Vocabulary()
"""The phrases."""

_TASK: Final = re.compile(
    r'"(?P<id>[^"]*)" \(enqueued (?P<enqueued>[^,]*), available (?P<available>[^,]*), '
    r"budget (?P<budget>\d+), attempts (?P<attempts>\d+)\)"
)
_CLAIM: Final = re.compile(r'attempt (?P<attempt>\d+) of task "(?P<id>[^"]*)"')


class TwinWorld:
    """What the steps of one counterexample share.

    Attributes:
        twin: The backend and the model.
        refusal: What a step raised that the next one expects; never, here.
    """

    def __init__(self, lab: Lab, _clock: object) -> None:
        self.twin = Twin(lab, lab.store)
        self.refusal: Exception | None = None

    def close(self) -> None:
        """Leave the handles to the lab."""


@COUNTEREXAMPLES.given("an empty store with the handles A and B, watched by the model of the contract")
async def _empty_store(world: TwinWorld) -> None:
    """Connects both handles."""
    await world.twin.connect()


@COUNTEREXAMPLES.when("handle {word} enqueues {}")
async def _enqueue(world: TwinWorld, handle: str, written: str) -> None:
    """Enqueues the tasks in one call."""
    tasks = [
        moved_task(
            row["id"],
            enqueued_at=plain_instant(row["enqueued"]),
            available_at=plain_instant(row["available"]),
            max_retries=int(row["budget"]),
            attempts=int(row["attempts"]),
        )
        for row in _TASK.finditer(written)
    ]
    await world.twin.enqueue(handle, tasks)


@COUNTEREXAMPLES.when("at {instant} handle {word} claims up to {int} tasks with a lease until {instant}")
async def _claim(world: TwinWorld, now: datetime, handle: str, limit: int, lease: datetime) -> None:
    """Claims."""
    await world.twin.claim(handle, now=now, limit=limit, lease_expires_at=lease)


@COUNTEREXAMPLES.when("at {instant} handle {word} completes attempt {int} of task {string} with the value {value}")
async def _complete(  # noqa: PLR0917 - the values stand in the phrase in this order
    world: TwinWorld, now: datetime, handle: str, attempt: int, task_id: str, value: bytes
) -> None:
    """Completes."""
    await world.twin.complete(handle, task_id, attempt, value=value, now=now)


@COUNTEREXAMPLES.when("at {instant} handle {word} fails attempt {int} of task {string}, proposing no retry")
async def _fail(world: TwinWorld, now: datetime, handle: str, attempt: int, task_id: str) -> None:
    """Fails for good."""
    await world.twin.fail(handle, task_id, attempt, new_failure(attempt, failed_at=now))


@COUNTEREXAMPLES.when("at {instant} handle {word} fails attempt {int} of task {string}, proposing a retry at {instant}")
async def _fail_and_retry(  # noqa: PLR0917 - the values stand in the phrase in this order
    world: TwinWorld, now: datetime, handle: str, attempt: int, task_id: str, retry_at: datetime
) -> None:
    """Fails, proposing a retry."""
    await world.twin.fail(handle, task_id, attempt, new_failure(attempt, failed_at=now, retry_at=retry_at))


@COUNTEREXAMPLES.when("at {instant} handle {word} recovers attempt {int} of task {string}, proposing no retry")
async def _recover(world: TwinWorld, now: datetime, handle: str, attempt: int, task_id: str) -> None:
    """Fails for good, if the lease has run out."""
    await world.twin.fail(handle, task_id, attempt, lost(attempt, now, None), if_expired=True)


@COUNTEREXAMPLES.when(
    "at {instant} handle {word} recovers attempt {int} of task {string}, proposing a retry at {instant}"
)
async def _recover_and_retry(  # noqa: PLR0917 - the values stand in the phrase in this order
    world: TwinWorld, now: datetime, handle: str, attempt: int, task_id: str, retry_at: datetime
) -> None:
    """Fails, proposing a retry, if the lease has run out."""
    await world.twin.fail(handle, task_id, attempt, lost(attempt, now, retry_at), if_expired=True)


@COUNTEREXAMPLES.when("at {instant} handle {word} cancels task {string}")
async def _cancel(world: TwinWorld, now: datetime, handle: str, task_id: str) -> None:
    """Cancels."""
    await world.twin.cancel(handle, task_id, now=now)


@COUNTEREXAMPLES.when("handle {word} extends until {instant} {}")
async def _extend(world: TwinWorld, handle: str, lease: datetime, written: str) -> None:
    """Extends the claims in one call."""
    claims = [(claim["id"], int(claim["attempt"])) for claim in _CLAIM.finditer(written)]
    await world.twin.extend(handle, claims, lease_expires_at=lease)


@COUNTEREXAMPLES.when("at {instant} handle {word} lists up to {int} expired leases")
async def _expired(world: TwinWorld, now: datetime, handle: str, limit: int) -> None:
    """Lists expired leases."""
    await world.twin.expired(handle, now=now, limit=limit)


@COUNTEREXAMPLES.when("handle {word} purges up to {int} tasks that ended before {instant}")
async def _purge(world: TwinWorld, handle: str, limit: int, before: datetime) -> None:
    """Purges."""
    await world.twin.purge(handle, finished_before=before, limit=limit)


@COUNTEREXAMPLES.when("handle {word} is closed and connected again")
async def _reopen(world: TwinWorld, handle: str) -> None:
    """Closes and connects a handle."""
    await world.twin.reopen(handle)


@COUNTEREXAMPLES.then("every answer and every stored field was as the model has it")
async def _as_the_model_has_it(world: TwinWorld) -> None:
    """Says what every step before it has looked at already, and looks once more."""
    await world.twin.compare()


def plain_instant(text: str) -> datetime:
    """Return the instant in ``text`` as a plain datetime: under frozen time, parsing gives freezegun's own kind."""
    return NOON + (instant(text) - NOON)


def lost(attempt: int, now: datetime, retry_at: datetime | None) -> Failure:
    """Return the failure of an attempt whose lease ran out."""
    return new_failure(attempt, failed_at=now, retry_at=retry_at, traceback=None)
