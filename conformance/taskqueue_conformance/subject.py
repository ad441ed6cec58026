"""A handle of the backend under test, watched: every call has a deadline and is remembered for the message."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Self

from taskqueue import Backend, Failure, Task, TaskStatus
from taskqueue_conformance.hindsight import Record
from taskqueue_conformance.violation import Violation, said, shown

DEADLINE_S = 20.0
"""How long one call may take, in seconds, before it counts as hanging."""

METHODS: Mapping[str, tuple[str, ...]] = {
    name: tuple(parameter for parameter in inspect.signature(getattr(Backend, name)).parameters if parameter != "self")
    for name in (
        "connect", "close", "clone", "enqueue", "claim", "extend", "complete", "fail", "cancel", "expired", "next_due",
        "get", "tasks", "counts", "purge", "wait",
    )
}  # fmt: skip
"""The sixteen methods of the contract with the names of their parameters."""


class Journal:
    """What one check did to the backend, and whether it saw a write of its own come back."""

    def __init__(self) -> None:
        self.calls: deque[str] = deque(maxlen=12)
        self.written: dict[str, Task] = {}
        self.witnessed = False
        self.record = Record()

    def wrote(self, tasks: Sequence[Task]) -> None:
        """Remember what was enqueued."""
        self.written.update((task.id, task) for task in tasks)

    def read(self, task: object) -> None:
        """Take note of a task that ``get`` returned."""
        if isinstance(task, Task):
            mine = self.written.get(task.id)
            if mine is not None and (task.id, task.payload, task.enqueued_at) == (
                mine.id,
                mine.payload,
                mine.enqueued_at,
            ):
                self.witnessed = True


class Subject:
    """A :class:`~taskqueue.Backend` that passes every call on to the backend under test.

    Exceptions pass through as they are. A call that does not return within the deadline, or whose answer has the
    wrong shape, is a :class:`~taskqueue_conformance.violation.Violation`.
    """

    def __init__(self, backend: Backend, journal: Journal, *, name: str = "backend", store: str = "") -> None:
        self.backend = backend
        self.journal = journal
        self.name = name
        self.store = store
        self.deadline = DEADLINE_S

    async def connect(self) -> None:
        """Pass on."""
        await self._call("connect")

    async def close(self) -> None:
        """Pass on."""
        await self._call("close")

    def clone(self) -> Self:
        """Pass on; the clone is watched too."""
        clone = self.backend.clone()
        self.journal.calls.append(f"{self.name}.clone() -> {shown(clone)}")
        missing = missing_methods(clone)
        if missing:
            raise Violation("clone()", expected="an unconnected handle", actual=f"{shown(clone)}", breaks="HANDLES")
        return type(self)(clone, self.journal, name=f"{self.name}'", store=self.store)

    async def enqueue(self, tasks: Sequence[Task]) -> None:
        """Pass on."""
        await self._call("enqueue", tasks)
        self.journal.wrote(tasks)

    async def claim(self, *, now: datetime, limit: int, lease_expires_at: datetime) -> Sequence[Task]:
        """Pass on."""
        return _tasks("claim", await self._call("claim", now=now, limit=limit, lease_expires_at=lease_expires_at))

    async def extend(
        self, claims: Sequence[tuple[str, int]], *, lease_expires_at: datetime
    ) -> Sequence[tuple[str, int]]:
        """Pass on."""
        held = await self._call("extend", claims, lease_expires_at=lease_expires_at)
        if not _sequence(held) or any(not isinstance(claim, tuple) for claim in held):
            raise _shape("extend", "a sequence of (task_id, attempt) pairs", held)
        return [*held]

    async def complete(self, task_id: str, attempt: int, *, value: bytes, now: datetime) -> None:
        """Pass on."""
        await self._call("complete", task_id, attempt, value=value, now=now)

    async def fail(self, task_id: str, attempt: int, failure: Failure, *, if_expired: bool = False) -> Task:
        """Pass on."""
        options = {"if_expired": True} if if_expired else {}
        return _task("fail", await self._call("fail", task_id, attempt, failure, **options))

    async def cancel(self, task_id: str, *, now: datetime) -> bool:
        """Pass on."""
        ended = await self._call("cancel", task_id, now=now)
        if not isinstance(ended, bool):
            raise _shape("cancel", "True or False", ended)
        return ended

    async def expired(self, *, now: datetime, limit: int) -> Sequence[Task]:
        """Pass on."""
        return _tasks("expired", await self._call("expired", now=now, limit=limit))

    async def next_due(self) -> datetime | None:
        """Pass on."""
        due = await self._call("next_due")
        if due is not None:
            _instant("next_due", "the answer", due)
        return due  # type: ignore[no-any-return]  # _instant has looked

    async def get(self, task_id: str) -> Task | None:
        """Pass on."""
        found = await self._call("get", task_id)
        if found is None:
            return None
        task = _task("get", found)
        self.journal.read(task)
        return task

    async def tasks(
        self, *, status: TaskStatus | None = None, after: str | None = None, limit: int
    ) -> tuple[Sequence[Task], str | None]:
        """Pass on."""
        answer = await self._call("tasks", status=status, after=after, limit=limit)
        if not isinstance(answer, tuple) or len(answer) != 2:  # noqa: PLR2004 - a pair
            raise _shape("tasks", "a pair (tasks, cursor)", answer)
        page, cursor = answer
        if cursor is not None and not isinstance(cursor, str):
            raise _shape("tasks", "a cursor that is a str or None", cursor)
        return _tasks("tasks", page), cursor

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Pass on."""
        counts = await self._call("counts")
        if not isinstance(counts, Mapping):
            raise _shape("counts", "a mapping from the five statuses to numbers", counts)
        return counts

    async def purge(self, *, finished_before: datetime, limit: int) -> int:
        """Pass on."""
        removed = await self._call("purge", finished_before=finished_before, limit=limit)
        if not isinstance(removed, int):
            raise _shape("purge", "the number of tasks removed", removed)
        return removed

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the contract's own signature
        """Pass on."""
        await self._call("wait", timeout, deadline=timeout + self.deadline)

    async def _call(self, method: str, *args: Any, deadline: float | None = None, **kwargs: Any) -> Any:
        call = f"{self.name}.{method}({_arguments(args, kwargs)})"
        bound: Callable[..., Awaitable[Any]] = getattr(self.backend, method)
        seconds = self.deadline if deadline is None else deadline
        timer = asyncio.timeout(seconds)
        recorded = self.journal.record.begin(self.name, self.store, method, _named_arguments(method, args, kwargs))
        try:
            async with timer:
                awaitable = bound(*args, **kwargs)
                if not inspect.isawaitable(awaitable):
                    raise _shape(method, "a coroutine to await", awaitable)  # noqa: TRY301 - it has its place in the journal
                answer = await awaitable
        except BaseException as error:
            self.journal.record.end(recorded, error)
            self.journal.calls.append(f"{call} raised {_refusal(error)}")
            if timer.expired():
                raise Violation(
                    f"{method}()",
                    expected="an answer",
                    actual=f"none within {seconds:g} s",
                    look=f"{method}: what it waits for",
                ) from error
            raise
        self.journal.record.end(recorded, answer)
        self.journal.calls.append(f"{call} -> {shown(answer)}")
        return answer


def _named_arguments(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    named: dict[str, Any] = dict(zip(METHODS[method], args, strict=False))
    return named | kwargs


def missing_methods(backend: object) -> list[str]:
    """Return the names of the contract's methods that ``backend`` lacks, in the contract's order."""
    return [name for name in METHODS if not callable(getattr(backend, name, None))]


_INSTANTS = ("enqueued_at", "available_at", "started_at", "lease_expires_at", "finished_at")
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "id": str, "payload": bytes, "max_retries": int, "status": TaskStatus, "attempts": int,
    "value": (bytes, type(None)), "failures": tuple,
}  # fmt: skip
_KEPT_BY: Mapping[str, str] = {"id": "P1", "payload": "P1", "value": "V1"}


def _task(method: str, task: object) -> Task:
    if not isinstance(task, Task):
        raise _shape(method, "a taskqueue.Task", task)
    for name, kind in _TYPES.items():
        value = getattr(task, name)
        if not isinstance(value, kind):
            raise Violation(
                f"the answer of {method}()",
                expected=f"a task whose {name} is {_named(kind)}",
                actual=f"{type(value).__name__} {shown(value)}",
                breaks=_KEPT_BY.get(name),
                look=f"{method}: what it returns",
            )
    for name in _INSTANTS:
        value = getattr(task, name)
        if value is not None:
            _instant(method, name, value)
    for failure in task.failures:
        if not isinstance(failure, Failure):
            raise _shape(method, "failures that are taskqueue.Failure", failure)
        for field in fields(failure):
            value = getattr(failure, field.name)
            if field.name.endswith("_at") and value is not None:
                _instant(method, f"failures[].{field.name}", value)
    return task


def _tasks(method: str, tasks: object) -> Sequence[Task]:
    if not _sequence(tasks):
        raise _shape(method, "a sequence of taskqueue.Task", tasks)
    return [_task(method, task) for task in tasks]  # type: ignore[attr-defined]  # _sequence has looked


def _instant(method: str, name: str, value: object) -> None:
    if not isinstance(value, datetime) or value.tzinfo is not UTC:
        raise Violation(
            f"{name} in the answer of {method}()",
            expected="a datetime with tzinfo=datetime.UTC",
            actual=shown(value),
            breaks="E3",
        )


def _refusal(error: BaseException) -> str:
    # What an unwritten method has to say is told once, beside the calls.
    return type(error).__name__ if isinstance(error, NotImplementedError) else said(error)


def _sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _named(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("None" if each is type(None) else each.__name__ for each in kinds)


def _shape(method: str, expected: str, actual: object) -> Violation:
    return Violation(
        f"the answer of {method}()", expected=expected, actual=shown(actual), look=f"{method}: what it returns"
    )


def _arguments(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    return ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])
