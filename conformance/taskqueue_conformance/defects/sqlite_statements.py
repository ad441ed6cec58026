"""Statements of SQL that say something else than they should, in a copy of a correct SQLite backend."""

from taskqueue_conformance.defects.catalogue import statement

statement(
    "sql-claim-excludes-now",
    "E1",
    "WHERE available_at < :now",
    also="ETA API",
    CLAIM=("available_at <= :now", "available_at < :now"),
    layer="scenarios",
)
statement(
    "sql-claim-ignores-eta",
    "E1",
    "No WHERE on available_at",
    also="ETA",
    CLAIM=("AND available_at <= :now", ""),
    layer="scenarios",
)
statement(
    "sql-claim-uses-the-databases-clock",
    "E4",
    "available_at is compared with strftime('now')",
    also="E1 ETA E2 API",
    layer="scenarios",
    CLAIM=("available_at <= :now", "available_at <= strftime('%s', 'now') * 1000000"),
)
statement("sql-claim-without-order", "C3", "ORDER BY seq alone", CLAIM=("ORDER BY available_at, seq", "ORDER BY seq"))
statement(
    "sql-claim-without-tie-break",
    "C3",
    "ORDER BY available_at, then the latest",
    seen_in="solid_queue",
    CLAIM=("ORDER BY available_at, seq", "ORDER BY available_at, seq DESC"),
)
statement(
    "sql-claim-latest-first",
    "C3",
    "ORDER BY available_at DESC",
    CLAIM=("ORDER BY available_at, seq", "ORDER BY available_at DESC, seq"),
)
statement("sql-claim-without-limit", "E2", "LIMIT is missing", also="C2", CLAIM=("LIMIT :limit", ""))
statement(
    "sql-claim-limit-zero-is-all",
    "E2",
    "LIMIT nullif(:limit, 0)",
    CLAIM=("LIMIT :limit", "LIMIT coalesce(nullif(:limit, 0), -1)"),
)
statement(
    "sql-claim-takes-anything-not-ended",
    "C1",
    "status IN ('pending', 'running')",
    also="R1 C2 E2 L2",
    CLAIM=("WHERE status = 'pending'", "WHERE status IN ('pending', 'running')"),
    layer="scenarios",
)
statement(
    "sql-claim-takes-failed",
    "L1",
    "Failed tasks are claimed again",
    also="R1 C1 BUDGET LIFECYCLE RESULT",
    CLAIM=("WHERE status = 'pending'", "WHERE status IN ('pending', 'failed')"),
    layer="scenarios",
)
statement(
    "sql-claim-counts-nothing",
    "R1",
    "attempts stays as it is",
    also="BUDGET C1 L2",
    CLAIM=("attempts = attempts + 1", "attempts = max(attempts, 1)"),
    layer="scenarios",
)
statement(
    "sql-claim-counts-twice",
    "R1",
    "attempts + 2",
    also="BUDGET C1 L2 LIFECYCLE",
    CLAIM=("attempts = attempts + 1", "attempts = attempts + 2"),
    layer="scenarios",
)
statement(
    "sql-claim-sets-started-once",
    "C2",
    "started_at = coalesce(started_at, :now)",
    also="E3 R1",
    CLAIM=("started_at = :now", "started_at = coalesce(started_at, :now)"),
)
statement(
    "sql-claim-sets-available",
    "C2",
    "available_at = :now as well",
    also="E3 ETA D3",
    CLAIM=("started_at = :now", "started_at = :now, available_at = :now"),
)
statement(
    "sql-claim-sets-no-lease",
    "D3",
    "The lease is not stored",
    also="C2 L2 E3",
    CLAIM=("lease_expires_at = :lease", "lease_expires_at = NULL"),
    layer="scenarios",
)
statement(
    "sql-claim-lease-at-least-now",
    "D3",
    "lease = max(:lease, :now)",
    also="C2 E3",
    CLAIM=("lease_expires_at = :lease", "lease_expires_at = max(:lease, :now)"),
)
statement("sql-extend-shortens", "L2", "lease = :lease", also="D3", EXTEND=("max(lease_expires_at, :lease)", ":lease"))
statement(
    "sql-extend-only-longer",
    "L2",
    "AND lease_expires_at < :lease",
    also="D3",
    EXTEND=("AND status = 'running'", "AND status = 'running' AND lease_expires_at < :lease"),
)
statement(
    "sql-extend-without-attempt",
    "L2",
    "extend ignores the attempt",
    EXTEND=("AND attempts = :attempt", "AND :attempt > 0"),
)
statement(
    "sql-complete-without-status",
    "L1",
    "complete ignores the status",
    also="L2 V1",
    COMPLETE=("AND status = 'running' ", ""),
)
statement(
    "sql-complete-without-attempt",
    "L2",
    "complete ignores the attempt",
    also="R1",
    COMPLETE=("AND attempts = :attempt", "AND :attempt > 0"),
)
statement(
    "sql-complete-keeps-lease",
    "V1",
    "The lease is not cleared",
    also="D3 L1 LISTING LIFECYCLE",
    COMPLETE=(", finished_at = :now,\n        lease_expires_at = NULL", ", finished_at = :now"),
)
statement(
    "sql-complete-sets-no-end",
    "V1",
    "finished_at is not set",
    also="RESULT G1 LIFECYCLE",
    COMPLETE=("finished_at = :now,", ""),
    layer="scenarios",
)
statement(
    "sql-complete-drops-empty-value",
    "V1",
    "nullif(:value, x'')",
    also="RESULT",
    COMPLETE=("value = :value", "value = nullif(:value, x'')"),
)
statement(
    "sql-retry-counts-retries",
    "BUDGET",
    "attempts <= max_retries",
    also="R1",
    seen_in="dramatiq#734",
    RETRY=("attempts < max_retries", "attempts <= max_retries"),
    layer="scenarios",
)
statement(
    "sql-retry-without-budget",
    "BUDGET",
    "No look at max_retries",
    also="R1",
    RETRY=("AND attempts < max_retries", ""),
    layer="scenarios",
)
statement(
    "sql-retry-keeps-eta",
    "POLICY",
    "available_at is kept",
    also="R2 LIFECYCLE E1",
    RETRY=("available_at = :retry_at, ", ""),
    layer="scenarios",
)
statement(
    "sql-retry-keeps-lease",
    "R2",
    "The lease is not cleared",
    also="D3 LISTING LIFECYCLE",
    RETRY=("available_at = :retry_at, lease_expires_at = NULL", "available_at = :retry_at"),
)
statement(
    "sql-retry-resets-attempts",
    "BUDGET",
    "attempts = 0",
    also="R1 L2",
    RETRY=("lease_expires_at = NULL", "lease_expires_at = NULL, attempts = 0"),
    layer="scenarios",
)
statement(
    "sql-retry-without-attempt",
    "L2",
    "A stale failure reschedules the task",
    also="R2 C1",
    RETRY=("AND attempts = :attempt", "AND :attempt > 0"),
)
statement(
    "sql-retry-without-status",
    "L1",
    "A failure reschedules what is not running",
    also="L2 R2",
    RETRY=("AND status = 'running'", "AND :attempt > 0"),
)
statement(
    "sql-recovery-without-lease",
    "D3",
    "if_expired is ignored where there is budget",
    also="L2 C1 R2",
    RETRY=(":if_expired OR lease_expires_at <= :failed_at", "0 OR :if_expired IS NOT NULL"),
)
statement(
    "sql-recovery-after-the-instant",
    "D3",
    "lease < failed_at",
    also="R2",
    RETRY=("lease_expires_at <= :failed_at", "lease_expires_at < :failed_at"),
    FAIL=("lease_expires_at <= :failed_at", "lease_expires_at < :failed_at"),
)
statement(
    "sql-last-recovery-after-the-instant",
    "D3",
    "lease < failed_at, for the last attempt only",
    also="R2 R1",
    FAIL=("lease_expires_at <= :failed_at", "lease_expires_at < :failed_at"),
)
statement(
    "sql-fail-without-status",
    "L1",
    "A cancelled task becomes FAILED",
    also="L2 V1",
    FAIL=("AND status = 'running'", "AND :attempt > 0"),
)
statement(
    "sql-fail-keeps-lease",
    "R2",
    "The lease of a failed task is kept",
    also="D3 L1 LISTING LIFECYCLE",
    FAIL=("finished_at = :failed_at, lease_expires_at = NULL", "finished_at = :failed_at"),
)
statement(
    "sql-cancel-pending-only",
    "L1",
    "RUNNING tasks are not cancelled",
    also="L2",
    CANCEL=("IN ('pending', 'running')", "IN ('pending')"),
)
statement(
    "sql-cancel-without-status",
    "L1",
    "cancel ends what has ended",
    also="V1",
    CANCEL=("AND status IN ('pending', 'running')", ""),
)
statement(
    "sql-cancel-keeps-lease",
    "L1",
    "The lease of a cancelled task is kept",
    also="D3 LISTING",
    CANCEL=("finished_at = :now, lease_expires_at = NULL", "finished_at = :now"),
)
statement(
    "sql-cancel-by-pattern",
    "L3",
    "WHERE id LIKE :id",
    also="L1 L2 P1 API",
    CANCEL=("WHERE id = :id", "WHERE id LIKE :id"),
)
statement(
    "sql-expired-excludes-now",
    "D3",
    "lease_expires_at < :now",
    EXPIRED=("lease_expires_at <= :now", "lease_expires_at < :now"),
)
statement("sql-expired-unordered", "D3", "No ORDER BY", EXPIRED=("ORDER BY lease_expires_at", "ORDER BY seq"))
statement(
    "sql-expired-newest-first",
    "D3",
    "ORDER BY lease_expires_at DESC",
    EXPIRED=("ORDER BY lease_expires_at", "ORDER BY lease_expires_at DESC"),
)
statement(
    "sql-expired-any-status",
    "D3",
    "No look at the status, with leases that nobody clears",
    also="L1 R2 V1 LISTING LIFECYCLE",
    EXPIRED=("status = 'running' AND", ""),
    CANCEL=(", lease_expires_at = NULL", ""),
)
statement(
    "sql-next-due-without-leases",
    "LISTING",
    "Leases are left out",
    also="D3",
    NEXT_DUE=("UNION ALL SELECT lease_expires_at FROM tasks WHERE status = 'running'", ""),
)
statement("sql-next-due-latest", "LISTING", "max instead of min", NEXT_DUE=("min(at)", "max(at)"))
statement("sql-next-due-any-status", "LISTING", "Ended tasks count", NEXT_DUE=("WHERE status = 'pending'", ""))
statement("sql-page-by-id", "LISTING", "ORDER BY id", PAGE=("ORDER BY seq", "ORDER BY id"))
statement("sql-page-includes-the-cursor", "LISTING", "seq >= :after", PAGE=("seq > :after", "seq >= :after"))
statement(
    "sql-page-by-enqueued-at",
    "LISTING",
    "ORDER BY enqueued_at",
    also="C3",
    PAGE=("ORDER BY seq", "ORDER BY enqueued_at, seq"),
)
statement(
    "sql-page-of-running-by-lease",
    "LISTING",
    "A page of the RUNNING tasks comes in the order of the index that it is read along",
    PAGE=("ORDER BY seq", "ORDER BY CASE WHEN :status = 'running' THEN lease_expires_at END, seq"),
)
statement(
    "sql-page-of-ended-by-end",
    "LISTING",
    "A page of tasks that have ended comes in the order in which they did",
    PAGE=("ORDER BY seq", "ORDER BY CASE WHEN :status IS NOT NULL THEN finished_at END, seq"),
)
statement(
    "sql-counts-one-short", "LISTING", "count(value), which leaves out NULL", COUNTS=("count(*)", "count(started_at)")
)
statement(
    "sql-ids-without-case",
    "API",
    "COLLATE NOCASE",
    also="L3 P1",
    TASKS=("id TEXT NOT NULL UNIQUE", "id TEXT NOT NULL COLLATE NOCASE UNIQUE"),
)
statement(
    "sql-ids-trimmed",
    "API",
    "COLLATE RTRIM",
    also="L3 P1",
    TASKS=("id TEXT NOT NULL UNIQUE", "id TEXT NOT NULL COLLATE RTRIM UNIQUE"),
)
statement(
    "sql-ids-numeric",
    "API",
    "A column type with numeric affinity: '007' becomes 7",
    also="L3 P1",
    TASKS=("id TEXT NOT NULL UNIQUE", "id STRING NOT NULL UNIQUE"),
)
statement(
    "sql-enqueue-replaces",
    "L1",
    "INSERT OR REPLACE, and no look at the ids",
    also="API V1",
    seen_in="arq#137",
    INSERT=("INSERT INTO", "INSERT OR REPLACE INTO"),
    KNOWN=("WHERE id = :id", "WHERE id = :id AND 0"),
    layer="edges",
)
statement(
    "sql-enqueue-ignores",
    "L1",
    "INSERT OR IGNORE, and no look at the ids",
    also="API",
    INSERT=("INSERT INTO", "INSERT OR IGNORE INTO"),
    KNOWN=("WHERE id = :id", "WHERE id = :id AND 0"),
)
statement(
    "sql-purge-includes-the-instant",
    "G1",
    "finished_at <= :before",
    PURGEABLE=("finished_at < :before", "finished_at <= :before"),
)
statement(
    "sql-purge-any-status",
    "G1",
    "By enqueued_at, whatever the status",
    also="D1",
    PURGEABLE=(
        "status IN ('success', 'failed', 'cancelled')\n        AND finished_at < :before",
        "enqueued_at < :before",
    ),
)
statement(
    "sql-purge-spares-cancelled",
    "G1",
    "Cancelled tasks stay",
    PURGEABLE=("'success', 'failed', 'cancelled'", "'success', 'failed'"),
)
statement("sql-purge-unordered", "G1", "ORDER BY seq", PURGEABLE=("ORDER BY finished_at", "ORDER BY seq"))
statement(
    "sql-purge-newest-first",
    "G1",
    "ORDER BY finished_at DESC",
    PURGEABLE=("ORDER BY finished_at", "ORDER BY finished_at DESC"),
)
statement("sql-purge-without-limit", "G1", "LIMIT is missing", PURGEABLE=("LIMIT :limit", ""))
statement(
    "sql-failures-newest-first",
    "V2",
    "Failures are read newest first",
    also="R2 RESULT BUDGET R1 LIFECYCLE",
    FAILURES_OF=("ORDER BY rowid", "ORDER BY rowid DESC"),
)
statement(
    "sql-failures-by-time",
    "V2",
    "Failures are read by failed_at",
    also="R1",
    FAILURES_OF=("ORDER BY rowid", "ORDER BY failed_at"),
    layer="model",
)
statement("sql-failures-ten", "V2", "LIMIT 10", also="R1", FAILURES_OF=("ORDER BY rowid", "ORDER BY rowid LIMIT 10"))
statement("sql-errors-as-varchar", "V2", "substr(:error, 1, 255)", RECORD=(":error,", "substr(:error, 1, 255),"))
statement(
    "sql-empty-traceback-is-null", "V2", "nullif(:traceback, '')", RECORD=(":traceback,", "nullif(:traceback, ''),")
)
statement(
    "sql-synchronised-by-second",
    "E3",
    "Due times are stored in whole seconds",
    also="E1 C3",
    INSERT=(":available_at,", ":available_at / 1000000 * 1000000,"),
)
