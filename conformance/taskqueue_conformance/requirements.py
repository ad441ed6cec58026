"""The requirements that checks and scenarios prove: the specification's own, then what the contract adds."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of the verdict.

    Attributes:
        id: A short code: a word for a requirement of the specification, a letter and a digit for an invariant.
        title: The specification's own title, or the gist of the invariant.
        look: Where an implementer should look first when it is broken.
    """

    id: str
    title: str
    look: str


SPEC_VERSION: Final = "1"
"""The version of the specification that the features transcribe."""

_ALL: Final = (
    Requirement("API", "Async TaskQueue API", "enqueue and get: is what was enqueued stored and found again?"),
    Requirement("RESULT", "Result model", "complete, fail and get: value, failures, enqueued_at and finished_at"),
    Requirement("ETA", "ETA scheduling semantics", "claim: the comparison of available_at with now, both in UTC"),
    Requirement("CONFIG", "TaskQueue configuration and defaults", "connect and close; wait, which get_result leans on"),
    Requirement("CONTEXT", "Task context support", "enqueue and claim: is the payload kept byte for byte?"),
    Requirement("LIFECYCLE", "Task Status Lifecycle", "fail: RUNNING to FAILED, and on to PENDING, in one atomic step"),
    Requirement(
        "BUDGET", "Retry Budget Semantics", "claim, which counts the attempt; fail: retry iff attempts < max_retries"
    ),
    Requirement(
        "POLICY", "Retry Policy Ownership", "fail: is failure.retry_at stored as available_at, as it was given?"
    ),
    Requirement(
        "E1", "A claim returns a task only if available_at <= now; equality is due", "claim: the comparison with now"
    ),
    Requirement("E2", "A claim returns exactly min(due, limit) tasks", "claim: filter on what is due before limiting"),
    Requirement(
        "E3", "An instant read back is the same instant", "how datetimes are stored: UTC, whole microseconds, no floats"
    ),
    Requirement(
        "E4",
        "The outcome depends on the state and the arguments alone",
        "any use of a clock: time only comes as an argument",
    ),
    Requirement(
        "C1",
        "No two claims hold one task, and no attempt is issued twice",
        "claim: choose and mark the task in one atomic step",
    ),
    Requirement(
        "C2", "What a claim made RUNNING was returned to its caller", "claim: nothing taken beyond what is returned"
    ),
    Requirement(
        "C3",
        "Claims take the earliest available_at, ties as enqueued",
        "claim: order by available_at, then a sequence number kept for life",
    ),
    Requirement(
        "L1",
        "An ended task never changes; a refused call changes nothing",
        "the guard on the status in complete, fail and cancel",
    ),
    Requirement(
        "L2",
        "Only the current claim may complete, fail or extend",
        "the guard on the attempt in complete, fail and extend",
    ),
    Requirement(
        "L3", "Calls on unknown ids create nothing", "complete, fail, extend and cancel of an id that is not there"
    ),
    Requirement(
        "R1",
        "Claims per task never exceed max(1, max_retries)",
        "claim counts the attempt; fail compares attempts < max_retries",
    ),
    Requirement(
        "R2", "A failure ends in PENDING at the stated instant or in FAILED", "fail: both steps in one transaction"
    ),
    Requirement(
        "V1",
        "A result is byte-exact, written once, and read again and again",
        "complete and get: the value, with the status, in one step",
    ),
    Requirement("V2", "Any failure can be recorded, and is kept exactly", "fail: how error and traceback are stored"),
    Requirement(
        "P1",
        "The payload comes back byte-exact, on every attempt",
        "enqueue, claim and get: bytes in, the same bytes out",
    ),
    Requirement(
        "D1",
        "What a call acknowledged is there after a reopen",
        "commit before returning; close must not lose or delete",
    ),
    Requirement("D2", "A crash leaves the state before the call or after it", "one transaction per call"),
    Requirement("D3", "Every RUNNING task can be recovered", "claim stores the lease; expired and next_due see it"),
    Requirement(
        "X1",
        "Cancelling a call leaves before or after, and the handle usable",
        "roll back, or finish, when CancelledError comes",
    ),
    Requirement(
        "G1", "Purge removes only what it should", "purge: ended, finished_at < finished_before, longest ended first"
    ),
    Requirement(
        "T1",
        "A task enqueued in the application's transaction exists if and only if it commits",
        "enqueue_on: everything on the connection that was passed, and neither a commit nor a rollback",
    ),
    Requirement("W1", "Notifications are only hints", "wait: ends on a change, in time without one, and blocks nobody"),
    Requirement(
        "HANDLES",
        "Handles connect, close, clone and share a store",
        "connect, close and clone; NotConnected outside of them",
    ),
    Requirement("LISTING", "Listing and counting tell the truth", "tasks, counts and next_due"),
)

REQUIREMENTS: Final[Mapping[str, Requirement]] = MappingProxyType({each.id: each for each in _ALL})
"""All requirements by id, in the order of the verdict."""
