"""Statements of the PostgreSQL backend that say something else than they should: the defects planted in SQLite, ported.

Each is a target by itself, ``postgres_defects:NAME``, also in child processes: a harness that changes the statements as
long as it lives. It uses the server in ``POSTGRES_DEFECTS_URL``.
"""

import os
from typing import Any, Final, NamedTuple

from taskqueue.backends import _postgres_operations as operations
from taskqueue_conformance.defects.catalogue import substituted
from taskqueue_conformance.harnesses import PostgresURLHarness

URL: Final = "POSTGRES_DEFECTS_URL"


class Defect(NamedTuple):
    """One changed statement.

    Attributes:
        check: The id of a check that catches it.
        reasons: The requirements that the check may name.
        statement: Which one is changed.
        old: The text to replace.
        new: What by.
    """

    check: str
    reasons: str
    statement: str
    old: str
    new: str


DEFECTS: Final = {
    "claim_excludes_now": Defect(
        "edges/E1/a-task-is-due-from-its-microsecond-on[the epoch]",
        "E1",
        "_CLAIM",
        "available_at <= $1",
        "available_at < $1",
    ),
    "claim_ignores_eta": Defect(
        "edges/E1/a-task-is-due-from-its-microsecond-on[the epoch]",
        "E1",
        "_CLAIM",
        "AND available_at <= $1",
        "AND $1 > 0",
    ),
    "claim_uses_the_servers_clock": Defect(
        "edges/E4/only-the-given-instant-counts[1975]",
        "E4",
        "_CLAIM",
        "available_at <= $1",
        "available_at <= (extract(epoch FROM now()) * 1000000)::bigint + 0 * $1::bigint",
    ),
    "claim_without_order": Defect(
        "edges/C3/the-earliest-is-first[one at a time]", "C3", "_CLAIM", "ORDER BY available_at, seq", "ORDER BY seq"
    ),
    "claim_without_tie_break": Defect(
        "edges/C3/ties-follow-the-list[one at a time]",
        "C3",
        "_CLAIM",
        "ORDER BY available_at, seq",
        "ORDER BY available_at, seq DESC",
    ),
    "claim_without_limit": Defect(
        "edges/E2/a-claim-returns-min-of-due-and-limit[1]", "E2", "_CLAIM", "LIMIT $2", "LIMIT $2 + 1000"
    ),
    "claim_without_lock": Defect("processes/C1/processes-race", "C1 R1", "_CLAIM", "FOR NO KEY UPDATE SKIP LOCKED", ""),
    "claim_takes_what_runs": Defect(
        "edges/C1/a-held-task-is-not-claimed",
        "C1",
        "_CLAIM",
        "WHERE status = 'pending'",
        "WHERE status IN ('pending', 'running')",
    ),
    "claim_takes_what_failed": Defect(
        "edges/L1/one-outcome-wins[fail, cancel]",
        "E2 L1",
        "_CLAIM",
        "WHERE status = 'pending'",
        "WHERE status IN ('pending', 'failed')",
    ),
    "claim_counts_nothing": Defect(
        "edges/R1/a-failing-task-spends-its-budget[2]", "R1", "_CLAIM", "attempts + 1", "greatest(attempts, 1)"
    ),
    "claim_sets_no_lease": Defect(
        "edges/D3/a-thousand-expired-leases-are-listed",
        "D3",
        "_CLAIM",
        "lease_expires_at = $3",
        "lease_expires_at = nullif($3::bigint, $3)",
    ),
    "complete_without_attempt": Defect(
        "edges/L2/only-the-current-claim-records[complete]",
        "L2",
        "_COMPLETE_ONE",
        "WHERE id = $1 AND status = 'running' AND attempts = $2",
        "WHERE id = $1 AND status = 'running' AND $2 > 0",
    ),
    "complete_without_status": Defect(
        "edges/L1/one-outcome-wins[cancel, complete]",
        "L1",
        "_COMPLETE_ONE",
        "WHERE id = $1 AND status = 'running' AND attempts = $2",
        "WHERE id = $1 AND attempts = $2",
    ),
    "complete_keeps_the_lease": Defect(
        "edges/L1/one-outcome-wins[complete, cancel]", "L1", "_COMPLETE_ONE", ", lease_expires_at = NULL", ""
    ),
    "fail_without_attempt": Defect(
        "edges/L2/only-the-current-claim-records[fail]", "L2", "_FAIL", "AND t.attempts = v.attempt", ""
    ),
    "fail_without_status": Defect(
        "edges/L1/one-outcome-wins[cancel, fail]", "L1", "_FAIL", "t.status = 'running' AND t.attempts", "t.attempts"
    ),
    "fail_ignores_the_lease": Defect(
        "edges/R2/if-expired-waits-for-the-lease[at noon]",
        "R2",
        "_FAIL",
        "AND (NOT v.if_expired OR t.lease_expires_at <= v.failed_at)",
        "",
    ),
    "fail_at_the_lease_is_too_early": Defect(
        "edges/R2/if-expired-waits-for-the-lease[at noon]",
        "R2",
        "_FAIL",
        "t.lease_expires_at <= v.failed_at",
        "t.lease_expires_at < v.failed_at",
    ),
    "fail_forgets_failures": Defect(
        "edges/R1/a-moved-task-has-the-rest-of-its-budget[1 of 3]",
        "D1 R2",
        "_FAIL",
        "failures = t.failures || CASE",
        "failures = CASE",
    ),
    "fail_ignores_the_retry_instant": Defect(
        "edges/R2/a-retry-is-due-at-the-stated-instant[the epoch]",
        "R2",
        "_FAIL",
        "THEN v.retry_at ELSE",
        "THEN t.available_at ELSE",
    ),
    "cancel_revives_nothing_but_ends_again": Defect(
        "edges/L1/one-outcome-wins[complete, cancel]", "L1", "_CANCEL", "AND t.status IN ('pending', 'running')", ""
    ),
    "cancel_spares_what_runs": Defect(
        "edges/L1/one-outcome-wins[cancel, complete]", "L1 X1", "_CANCEL", "IN ('pending', 'running')", "IN ('pending')"
    ),
    "extend_shortens": Defect(
        "edges/L2/extend-never-shortens",
        "L2",
        "_EXTEND",
        "greatest(t.lease_expires_at, v.lease_expires_at)",
        "v.lease_expires_at",
    ),
    "extend_without_attempt": Defect(
        "edges/L2/only-the-current-claim-extends", "L2", "_EXTEND", "AND t.attempts = v.attempt", ""
    ),
    "expired_excludes_now": Defect(
        "edges/D3/a-thousand-expired-leases-are-listed",
        "D3",
        "_EXPIRED",
        "lease_expires_at <= $1",
        "lease_expires_at < $1",
    ),
    "expired_without_order": Defect(
        "edges/D3/expired-lists-the-oldest-leases-first",
        "D3",
        "_EXPIRED",
        "ORDER BY lease_expires_at",
        "ORDER BY lease_expires_at DESC",
    ),
    "next_due_without_leases": Defect(
        "edges/LISTING/next-due-follows-every-transition",
        "D3 LISTING",
        "_NEXT_DUE",
        "status = 'running'",
        "status = 'success'",
    ),
    "purge_includes_the_instant": Defect(
        "edges/G1/the-boundary-is-strict[SUCCESS]", "G1", "_PURGE", "finished_at < $1", "finished_at <= $1"
    ),
    "purge_takes_the_latest": Defect(
        "edges/G1/the-longest-ended-go-first", "G1", "_PURGE", "ORDER BY finished_at", "ORDER BY finished_at DESC"
    ),
    "purge_without_limit": Defect("edges/G1/the-longest-ended-go-first", "G1", "_PURGE", "LIMIT $2", "LIMIT $2 + 1000"),
    "page_skips_one": Defect(
        "edges/LISTING/a-listing-shows-every-task[1]", "LISTING", "_PAGE", "seq > $1", "seq > $1 + 1"
    ),
}

_ORIGINAL: Final[dict[str, str]] = {}


class DefectHarness(PostgresURLHarness):
    """The server, with another statement."""

    def __init__(self, name: str) -> None:
        super().__init__(os.environ[URL])
        defect = DEFECTS[name]
        original = _ORIGINAL.setdefault(defect.statement, getattr(operations, defect.statement))
        setattr(operations, defect.statement, substituted(original, defect.old, defect.new))


def restore() -> None:
    """Put every statement back."""
    for statement, original in _ORIGINAL.items():
        setattr(operations, statement, original)


def __getattr__(name: str) -> Any:
    if name in DEFECTS:
        return DefectHarness(name)
    raise AttributeError(name)
