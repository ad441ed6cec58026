"""A PostgreSQL backend that does something else than it should: the defects planted in SQLite, ported, and its own.

Each is a target by itself, ``postgres_defects:NAME``, also in child processes: a harness that changes the backend as
long as it lives. It uses the server in ``POSTGRES_DEFECTS_URL``, whose socket must lie in the server's directory where
a check restarts it.
"""

import asyncio
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from taskqueue.backends import (
    _postgres_connection,
    _postgres_operations,
    _postgres_schema,
    _postgres_session,
    _postgres_transactional,
)
from taskqueue_conformance.harnesses import PostgresURLHarness
from taskqueue_conformance.postgres_server import PostgresServer

URL: Final = "POSTGRES_DEFECTS_URL"
_MODULES: Final = (_postgres_operations, _postgres_transactional, _postgres_schema, _postgres_session)


class Defect(NamedTuple):
    """Statements that have been changed.

    Attributes:
        check: The id of a check that catches it.
        reasons: The requirements that the check may name.
        statement: Which ones are changed.
        old: The text to replace, wherever it stands in them.
        new: What by.
    """

    check: str
    reasons: str
    statement: str
    old: str
    new: str

    def plant(self, set_: Callable[[Any, str, Any], None]) -> None:
        """Make the backend wrong; ``set_`` sets an attribute, and remembers what it was."""
        for name in self.statement.split():
            module = _home(name)
            set_(module, name, _changed(_original(module, name), self.old, self.new))


class Wrong(NamedTuple):
    """Something else than a statement that has been changed.

    Attributes:
        check: The id of a check that catches it.
        reasons: The requirements that the check may name.
        owner: A module, or a class.
        name: Its attribute.
        instead: What it is from now on.
    """

    check: str
    reasons: str
    owner: Any
    name: str
    instead: Any

    def plant(self, set_: Callable[[Any, str, Any], None]) -> None:
        """Make the backend wrong; ``set_`` sets an attribute, and remembers what it was."""
        set_(self.owner, self.name, self.instead)


async def _tell_nobody(session: Any) -> None:
    session._changed = False


DEFECTS: Final[dict[str, Defect | Wrong]] = {
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
    "claim_latest_first": Defect(
        "edges/C3/the-earliest-is-first[one at a time]",
        "C3",
        "_CLAIM",
        "ORDER BY available_at, seq",
        "ORDER BY available_at DESC, seq",
    ),
    "claim_counts_twice": Defect(
        "edges/R1/a-failing-task-spends-its-budget[1]", "R1", "_CLAIM", "attempts + 1", "attempts + 2"
    ),
    "claim_keeps_the_first_start": Defect(
        "edges/C2/a-claim-keeps-the-rest-of-the-task",
        "C2",
        "_CLAIM",
        "started_at = $1",
        "started_at = coalesce(started_at, $1)",
    ),
    "claim_makes_it_due_now": Defect(
        "edges/C2/a-claim-keeps-the-rest-of-the-task",
        "C2",
        "_CLAIM",
        "started_at = $1",
        "started_at = $1, available_at = $1",
    ),
    "claim_raises_the_lease": Defect(
        "edges/D3/a-lease-expires-at-its-microsecond[the epoch]",
        "D3",
        "_CLAIM",
        "lease_expires_at = $3",
        "lease_expires_at = greatest($3, $1)",
    ),
    "claim_cuts_the_lease_to_seconds": Defect(
        "edges/E3/every-field-keeps-the-instant[the epoch and 1 us]",
        "E3",
        "_CLAIM",
        "lease_expires_at = $3",
        "lease_expires_at = $3 / 1000000 * 1000000",
    ),
    "claim_returns_them_as_stored": Wrong(
        "edges/C3/the-earliest-is-first[all at once]", "C3", _postgres_operations, "_claim_order", lambda row: -row[12]
    ),
    "complete_several_without_attempt": Defect(
        "edges/X1/many-calls-at-once-get-on", "L2", "_COMPLETE", "AND t.attempts = v.attempt", ""
    ),
    "complete_several_without_status": Defect(
        "edges/X1/many-calls-at-once-get-on", "L1", "_COMPLETE", "AND t.status = 'running'", ""
    ),
    "complete_several_keeps_the_lease": Defect(
        "edges/X1/many-calls-at-once-get-on", "V1", "_COMPLETE", ", lease_expires_at = NULL", ""
    ),
    "complete_sets_no_end": Defect(
        "edges/V1/a-value-comes-back[empty]", "V1", "_COMPLETE_ONE", "finished_at = $4", "finished_at = nullif($4, $4)"
    ),
    "complete_drops_an_empty_value": Defect(
        "edges/V1/a-value-comes-back[empty]",
        "V1",
        "_COMPLETE_ONE _COMPLETE",
        "value = ",
        "value = nullif(''::bytea, '') || ",
    ),
    "fail_counts_retries": Defect(
        "edges/R1/a-failing-task-spends-its-budget[2]",
        "R1",
        "_FAIL",
        "t.attempts < t.max_retries",
        "t.attempts <= t.max_retries",
    ),
    "fail_without_budget": Defect(
        "edges/R1/a-failing-task-spends-its-budget[2]", "R1", "_FAIL", " AND t.attempts < t.max_retries", ""
    ),
    "fail_resets_the_attempts": Defect(
        "edges/R1/a-failing-task-spends-its-budget[2]",
        "R1",
        "_FAIL",
        "lease_expires_at = NULL",
        "lease_expires_at = NULL, attempts = 0",
    ),
    "fail_keeps_the_lease": Defect(
        "edges/R2/a-retry-is-due-at-the-stated-instant[the epoch]",
        "R2",
        "_FAIL",
        "ELSE v.last END,\n        lease_expires_at = NULL",
        "ELSE v.last END",
    ),
    "fail_promises_a_retry_that_does_not_come": Defect(
        "edges/R2/with-the-budget-spent-a-failure-is-final[1]", "R2", "_FAIL", "ELSE v.last END", "ELSE v.proposed END"
    ),
    "fail_cuts_the_retry_to_a_double": Defect(
        "edges/E3/every-field-keeps-the-instant[9 digits of seconds]",
        "E3",
        "_FAIL",
        "THEN v.retry_at ELSE",
        "THEN (v.retry_at / 1e6)::real::numeric * 1000000 ELSE",
    ),
    "cancel_keeps_the_lease": Defect(
        "edges/L1/one-outcome-wins[cancel, complete]", "L1", "_CANCEL", ", lease_expires_at = NULL", ""
    ),
    "cancel_by_pattern": Defect(
        "edges/L3/an-unknown-id-is-refused[cancel]", "L3", "_CANCEL", "t.id = ANY (ARRAY[v.id])", "t.id LIKE v.id"
    ),
    "extend_only_what_becomes_longer": Defect(
        "edges/L2/extend-never-shortens",
        "L2",
        "_EXTEND",
        "AND t.attempts = v.attempt",
        "AND t.attempts = v.attempt AND t.lease_expires_at < v.lease_expires_at",
    ),
    "extend_without_status": Defect(
        "edges/L2/only-the-current-claim-extends", "L2", "_EXTEND", "AND t.status = 'running'", ""
    ),
    "next_due_latest": Defect(
        "edges/LISTING/next-due-follows-every-transition", "LISTING", "_NEXT_DUE", "least(", "greatest("
    ),
    "next_due_of_any_status": Defect(
        "edges/LISTING/next-due-follows-every-transition",
        "LISTING",
        "_NEXT_DUE",
        "WHERE status = 'pending'",
        "WHERE true",
    ),
    "page_by_id": Defect(
        "edges/LISTING/a-listing-shows-every-task[1]", "LISTING", "_PAGE", "ORDER BY seq", "ORDER BY id"
    ),
    "page_by_the_instant_of_enqueueing": Defect(
        "edges/LISTING/many-tasks-are-listed", "LISTING", "_PAGE", "ORDER BY seq", "ORDER BY enqueued_at, seq"
    ),
    "page_includes_the_cursor": Defect(
        "edges/LISTING/a-listing-shows-every-task[1]", "LISTING", "_PAGE", "seq > $1", "seq >= $1"
    ),
    "page_of_a_status_along_an_index": Defect(
        "edges/LISTING/a-listing-by-status[pending]",
        "LISTING",
        "_PAGE_OF_STATUS",
        "ORDER BY @order",
        "ORDER BY coalesce(lease_expires_at, available_at), seq",
    ),
    "page_of_ended_by_their_end": Defect(
        "edges/LISTING/a-listing-by-status[success]",
        "LISTING",
        "_PAGE_OF_STATUS",
        "ORDER BY @order",
        "ORDER BY finished_at, seq",
    ),
    "counts_leave_some_out": Defect(
        "edges/LISTING/counts-follow-every-transition", "LISTING", "_COUNTS", "count(*)", "count(started_at)"
    ),
    "counts_are_estimated": Defect(
        "edges/LISTING/counts-follow-every-transition",
        "LISTING",
        "_COUNTS",
        "SELECT status::text, count(*) FROM @tasks GROUP BY status",
        "SELECT 'pending', reltuples::bigint FROM pg_class WHERE oid = '@tasks'::regclass",
    ),
    "purge_of_any_status": Defect(
        "edges/G1/the-boundary-is-strict[SUCCESS]", "G1", "_PURGE", "finished_at < $1", "enqueued_at < $1"
    ),
    "purge_spares_the_cancelled": Defect(
        "edges/G1/the-boundary-is-strict[CANCELLED]",
        "G1",
        "_PURGE",
        "finished_at < $1",
        "finished_at < $1 AND status <> 'cancelled'",
    ),
    "purge_without_order": Defect(
        "edges/G1/the-longest-ended-go-first", "G1", "_PURGE", "ORDER BY finished_at", "ORDER BY seq"
    ),
    "purge_counts_what_it_looked_at": Defect(
        "edges/G1/the-longest-ended-go-first",
        "G1",
        "_PURGE",
        "SELECT count(*) FROM removed",
        "SELECT count(*) FROM @tasks WHERE finished_at < $1",
    ),
    "enqueue_passes_over_known_ids": Defect(
        "edges/L1/a-known-id-is-refused", "L1", "_INSERT_ONE", ", NULL)\n", ", NULL) ON CONFLICT (id) DO NOTHING\n"
    ),
    "enqueue_replaces": Defect(
        "edges/L1/a-known-id-is-refused",
        "L1",
        "_INSERT_ONE",
        ", NULL)\n",
        ", NULL) ON CONFLICT (id) DO UPDATE SET payload = EXCLUDED.payload\n",
    ),
    "enqueue_in_the_order_of_ids": Defect(
        "edges/C3/a-returning-task-keeps-its-place[retried]",
        "C3",
        "_INSERT_ALIKE",
        "$7::text, unnest($8::bytea[]), NULL",
        "$7::text, unnest($8::bytea[]), NULL ORDER BY 1",
    ),
    "enqueue_several_forgets_failures": Defect(
        "edges/X1/many-calls-at-once-get-on", "X1 API D1", "_INSERT", "NULL, NULL, failures,", "NULL, NULL, '',"
    ),
    "enqueue_cuts_instants_to_milliseconds": Defect(
        "edges/E3/every-field-keeps-the-instant[the epoch and 1 us]",
        "E3",
        "_INSERT_ONE",
        "$2, $3,",
        "$2, $3 / 1000 * 1000,",
    ),
    "ids_are_trimmed": Defect(
        "edges/API/a-thousand-tasks-are-enqueued", "API", "_STEPS", "id text COLLATE", "id character(255) COLLATE"
    ),
    "a_table_that_is_not_logged": Defect(
        "restarts/D1/a-workload-survives-restarts",
        "D1",
        "_STEPS",
        "CREATE TABLE @schema.tasks",
        "CREATE UNLOGGED TABLE @schema.tasks",
    ),
    "acknowledged_before_it_is_written": Wrong(
        "restarts/D1/a-workload-survives-restarts",
        "D1 C1 V1 R2",
        _postgres_connection,
        "_SESSION",
        {**_postgres_connection._SESSION, "synchronous_commit": "off"},
    ),
    "nobody_is_told": Wrong(
        "edges/W1/a-change-ends-a-wait[enqueue]", "W1", _postgres_session.Session, "_notify", _tell_nobody
    ),
    "in_a_transaction_what_was_added_stays": Defect(
        "edges/T1/a-refusal-leaves-the-transaction-usable",
        "T1",
        "_ADD _REMOVE",
        "id = ANY ($1::text[])",
        "id = ANY ($1::text[]) AND false",
    ),
}

_REMEMBERED: Final[dict[tuple[int, str], tuple[Any, str, Any]]] = {}


def _home(statement: str) -> ModuleType:
    return next(module for module in _MODULES if hasattr(module, statement))


def _original(owner: Any, name: str) -> Any:
    remembered = _REMEMBERED.get((id(owner), name))
    return getattr(owner, name) if remembered is None else remembered[2]


def _set(owner: Any, name: str, value: Any) -> None:
    _REMEMBERED.setdefault((id(owner), name), (owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _changed(statement: Any, old: str, new: str) -> Any:
    """Return a statement, or the first of several, with ``old`` replaced wherever it stands."""
    if not isinstance(statement, str):
        return (_changed(statement[0], old, new), *statement[1:])
    if old not in statement or old == new:
        raise ValueError(f"{old!r} must stand in {statement!r}, and change")
    return statement.replace(old, new)


class DefectHarness(PostgresURLHarness):
    """The server, with a backend that is wrong."""

    def __init__(self, name: str) -> None:
        super().__init__(os.environ[URL])
        self._restarts = 0
        DEFECTS[name].plant(_set)

    async def restart(self) -> None:
        """Restart the server, in good order and as if the machine had gone down, by turns."""
        self._restarts += 1
        server = PostgresServer(parse_qs(urlsplit(os.environ[URL]).query)["host"][0])
        await asyncio.to_thread(server.restart, "fast" if self._restarts % 2 else "immediate")


def restore() -> None:
    """Make the backend right again."""
    while _REMEMBERED:
        owner, name, value = _REMEMBERED.popitem()[1]
        setattr(owner, name, value)


def __getattr__(name: str) -> Any:
    if name in DEFECTS:
        return DefectHarness(name)
    raise AttributeError(name)
