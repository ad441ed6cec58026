"""The storm in short, and that it can fail."""

import dataclasses
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import storm

from taskqueue import Failure, Task, TaskStatus

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def run_storm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(storm.__file__)), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def keep_the_lock(url: str, rng: random.Random, ended: threading.Event) -> None:
    """Chaos: another program keeps the store locked for some time, again and again."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)) as db:
        while not ended.wait(rng.uniform(0, 0.5)):
            db.execute("BEGIN IMMEDIATE")
            ended.wait(rng.uniform(0, 0.3))
            db.execute("COMMIT")


def test_a_short_storm_loses_nothing() -> None:
    done = run_storm("--seconds", "3", "--tasks", "200", "--seed", "1", "--chaos", "test_storm:keep_the_lock")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every task is accounted for" in done.stdout


def test_a_claim_that_is_not_atomic_does_not_weather_it() -> None:
    broken = "taskqueue_conformance.defects.sqlite_processes:SqlClaimLocksTheProcess"
    done = run_storm("--seconds", "3", "--tasks", "200", "--seed", "1", "--drain", "1", "--backend", broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "--seed 1" in done.stdout


def test_a_wrong_command_line_is_told_so() -> None:
    assert run_storm("--seconds", "0").returncode == 2


# The reckoning


def failure(attempt: int, *, last: bool = False) -> Failure:
    return Failure(attempt=attempt, error="no", failed_at=T0, retry_at=None if last else T0 + timedelta(seconds=1))


def record(task_id: str, status: TaskStatus, **fields: Any) -> Task:
    given: dict[str, Any] = {
        "payload": b"",
        "enqueued_at": T0,
        "available_at": T0,
        "max_retries": 3,
        "finished_at": T0,
        "attempts": 1,
    }
    return Task(**{"id": task_id, "status": status} | given | fields)


def ran(task_id: str, *attempts: int, at: float = 2e9, end: bool = False) -> list[dict[str, Any]]:
    whats = ("begin", "end") if end else ("begin",)
    lines = [{"id": task_id, "attempt": attempt, "pid": 1, "at": at} for attempt in attempts]
    return [line | {"what": what} for line in lines for what in whats]


def told(task_id: str, kind: str, *more: str, budget: int = 3, eta: float | None = None) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"what": "enqueued", "id": task_id, "kind": kind, "budget": budget, "eta": eta}
    return [first, *({"what": what, "id": task_id} for what in more)]


DONE = record("done", TaskStatus.SUCCESS, attempts=2, value=b"v", failures=(failure(1),))
FAILED = record(
    "failed", TaskStatus.FAILED, attempts=3, failures=(failure(1), failure(2), failure(3, last=True))
)  # fmt: skip
CANCELLED = record("cancelled", TaskStatus.CANCELLED)


def evidence(*tasks: Task, **changes: Any) -> storm.Evidence:
    listed = Counter(task.status for task in tasks)
    good = storm.Evidence(
        tasks=tasks,
        values={"done": ["done", 2]},
        counts={status: listed[status] for status in TaskStatus},
        acknowledged=told("done", "failing at first")
        + told("failed", "failing")
        + told("cancelled", "slow", "cancelling", "cancelled"),
        executions=ran("done", 1) + ran("done", 2, end=True) + ran("failed", 1, 2, 3) + ran("cancelled", 1),
    )
    return dataclasses.replace(good, **changes)


def test_what_is_right_is_not_objected_to() -> None:
    assert storm.contradictions(evidence(DONE, FAILED, CANCELLED)) == []


def changed(task: Task, **fields: Any) -> storm.Evidence:
    return evidence(*(dataclasses.replace(each, **fields) if each is task else each for each in ALL))


ALL = (DONE, FAILED, CANCELLED)
GOOD = evidence(*ALL)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (evidence(DONE, FAILED), "cancelled was acknowledged, and is gone"),
        (evidence(*ALL, DONE), "done is in the listing 2 times"),
        (evidence(*ALL, executions=[*GOOD.executions, *ran("other", 1)]), "other ran, and is in no listing"),
        (evidence(*ALL, counts=dict.fromkeys(TaskStatus, 0)), "counts() says"),
        (changed(DONE, status=TaskStatus.RUNNING), "has not ended: running"),
        (changed(DONE, status=TaskStatus.PENDING), "has not ended: pending"),
        (changed(DONE, max_retries=1), "was claimed 2 times, with a budget of 1"),
        (changed(FAILED, max_retries=5), "was given up after 3 attempts, with a budget of 5"),
        (changed(DONE, failures=()), "with 0 failures"),
        (changed(FAILED, failures=(failure(1), failure(1), failure(3, last=True))), "failures of the attempts [1, 1"),
        (changed(FAILED, failures=(failure(1), failure(2), failure(3))), "has a retry recorded where there was none"),
        (changed(DONE, failures=(failure(1, last=True),)), "or none where there was one"),
        (changed(DONE, lease_expires_at=T0), "ended at"),
        (changed(CANCELLED, finished_at=None), "ended at"),
        (changed(DONE, value=None), "is success and has no value"),
        (changed(FAILED, value=b""), "is failed and has a value"),
        (evidence(*ALL, executions=[*GOOD.executions, *ran("failed", 3)]), "ran 2 times as attempt 3"),
        (evidence(*ALL, executions=[*GOOD.executions, *ran("failed", 4)]), "ran 4 times, with a budget of 3"),
        (evidence(*ALL, executions=[*GOOD.executions, *ran("cancelled", 2)]), "ran as attempt 2, and has 1 attempts"),
        (evidence(*ALL, executions=ran("done", 1, 2)), "never got to its end"),
        (evidence(*ALL, values={"done": ["done", 1]}), "not that of its last attempt"),
        (
            evidence(*ALL, acknowledged=told("cancelled", "slow")),
            "cancelled is cancelled, and nobody cancelled it",
        ),
        (
            evidence(*ALL, acknowledged=told("done", "slow", "cancelling", "cancelled")),
            "was cancelled, and is success",
        ),
        (
            evidence(*ALL, acknowledged=told("cancelled", "slow", "cancelling", "too late")),
            "told that it was too late",
        ),
        (evidence(*ALL, acknowledged=told("done", "slow", budget=5)), "was given 5"),
        (evidence(*ALL, acknowledged=told("done", "failing")), "is a success, and of the kind 'failing'"),
        (evidence(*ALL, acknowledged=told("done", "slow", eta=3e9)), "ran before its eta"),
    ],
)
def test_what_is_wrong_is_found(wrong: storm.Evidence, said: str) -> None:
    assert any(said in problem for problem in storm.contradictions(wrong)), storm.contradictions(wrong)
