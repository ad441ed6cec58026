"""What a move has planned and done, in a file that is written before anything is changed."""

import base64
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from taskqueue._instants import EPOCH
from taskqueue.errors import TaskQueueError
from taskqueue.task import Failure, Task

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # looked at before it is used

_FORMAT: Final = 1


class JournalError(TaskQueueError):
    """A journal cannot be used: it belongs to another move, or to one that runs; nothing was changed.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks that are about to be moved.

    Attributes:
        tasks: As they were in the source.
        cancel_at: The instant under which they are cancelled there, by which the cancellation is known again.
    """

    tasks: Sequence[Task]
    cancel_at: datetime


class Journal:
    """The journal of one move, open for as long as the object is; readable by its owner only. Every method blocks.

    A line is on the disk when the method that writes it returns. One that was cut off by a crash counts as not written.

    Args:
        path: The file. If it is there, the move that it belongs to goes on.
        source: Where tasks are taken from, for example a URL without its password; to recognise the move by.
        target: Where they are taken to.

    Raises:
        JournalError: The file is something else, belongs to a move between other stores, or is in use.
        OSError: It cannot be opened or written.

    Attributes:
        unfinished: Plans that are not known to have been carried out, oldest first.
        moved: How many tasks have been moved, in earlier runs too.
    """

    def __init__(self, path: str | os.PathLike[str], *, source: str, target: str) -> None:
        self.path = str(Path(path).absolute())
        self.unfinished: list[Plan] = []
        self.moved = 0
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            self._lock()
            self._read({"taskqueue_move": _FORMAT, "source": source, "target": target})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it stays. Idempotent."""
        self._file.close()

    def plan(self, tasks: Iterable[Task], *, cancel_at: datetime) -> Plan:
        """Write down what is about to be moved."""
        plan = Plan([*tasks], cancel_at)
        self._write({"plan": [_document(task) for task in plan.tasks], "cancel_at": _number(cancel_at)})
        self.unfinished.append(plan)
        return plan

    def done(self, plan: Plan, *, moved: int) -> None:
        """Write down that the oldest plan has been carried out, and how many of its tasks were moved."""
        if self.unfinished[:1] != [plan]:
            raise ValueError("plans are carried out in their order")
        self._write({"done": [task.id for task in plan.tasks], "moved": moved})
        self.unfinished.pop(0)
        self.moved += moved

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JournalError(self.path, "another move is using this journal; wait for it to end") from None

    def _read(self, head: dict[str, Any]) -> None:
        lines = self._file.read().split(b"\n")
        kept = sum(len(line) + 1 for line in lines[:-1])
        if lines[-1]:  # cut off by a crash
            self._file.truncate(kept)
        self._file.seek(kept)
        documents = self._documents(lines[:-1])
        found = next(documents, None)
        if found is None:
            self._write(head)
            _sync_folder(self.path)
        elif found != head:
            raise JournalError(
                self.path,
                f"this is the journal of something else ({str(found)[:200]}); a move from {head['source']} to "
                f"{head['target']} takes a journal of its own",
            )
        for document in documents:
            if "plan" in document:
                tasks = [_task(each) for each in document["plan"]]
                self.unfinished.append(Plan(tasks, _instant(document["cancel_at"])))
            else:
                self.unfinished.pop(0)
                self.moved += document["moved"]

    def _documents(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, start=1):
            try:
                document = json.loads(line)
            except ValueError:
                raise JournalError(self.path, f"line {number} is damaged, or this is no journal of a move") from None
            if not isinstance(document, dict):
                raise JournalError(self.path, "this is no journal of a move")
            yield document

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _sync_folder(path: str) -> None:
    """Make the name of a new file as durable as what is in it, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _number(instant: datetime | None) -> int | None:
    """Return the microseconds since 1970."""
    if instant is None:
        return None
    since = instant - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _instant(number: int) -> datetime:
    return EPOCH + timedelta(microseconds=number)


def _optional_instant(number: int | None) -> datetime | None:
    return None if number is None else _instant(number)


def _document(task: Task) -> dict[str, Any]:
    """Return a PENDING task as JSON."""
    return {
        "id": task.id,
        "payload": base64.b64encode(task.payload).decode(),
        "enqueued_at": _number(task.enqueued_at),
        "available_at": _number(task.available_at),
        "max_retries": task.max_retries,
        "attempts": task.attempts,
        "started_at": _number(task.started_at),
        "failures": [
            [each.attempt, each.error, _number(each.failed_at), each.traceback, _number(each.retry_at)]
            for each in task.failures
        ],
    }


def _task(document: dict[str, Any]) -> Task:
    return Task(
        id=document["id"],
        payload=base64.b64decode(document["payload"]),
        enqueued_at=_instant(document["enqueued_at"]),
        available_at=_instant(document["available_at"]),
        max_retries=document["max_retries"],
        attempts=document["attempts"],
        started_at=_optional_instant(document["started_at"]),
        failures=tuple(
            Failure(
                attempt=attempt,
                error=error,
                failed_at=_instant(failed_at),
                traceback=traceback,
                retry_at=_optional_instant(retry_at),
            )
            for attempt, error, failed_at, traceback, retry_at in document["failures"]
        ),
    )
