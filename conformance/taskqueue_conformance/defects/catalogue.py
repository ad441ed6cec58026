"""What is planted: a registry of wrong backends, each one small change to a correct one."""

import contextlib
import importlib
import os
import pkgutil
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from taskqueue import Backend
from taskqueue_conformance import defects
from taskqueue_conformance.defects.plain_memory import PlainMemory, Store
from taskqueue_conformance.defects.plain_served import Served, ServedHarness
from taskqueue_conformance.defects.plain_sqlite import PlainSQLite
from taskqueue_conformance.defects.plain_transactional import Transacting
from taskqueue_conformance.harness import DEFAULT_CAPABILITIES, BaseHarness
from taskqueue_conformance.harnesses import sqlite_transaction
from taskqueue_conformance.requirements import REQUIREMENTS

C = TypeVar("C", bound=type)

LAYERS: Final = (
    "scenarios", "edges", "model", "schedules", "interruptions", "processes", "kills", "restarts", "hygiene",
)  # fmt: skip
"""Every layer in which a defect can be expected to be caught, in the order in which the suite runs them."""
MODULE: Final = defects.__name__
_FOLDER: Final = "TASKQUEUE_CONFORMANCE_DEFECTS_FOLDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One wrong backend, or one wrong queue on a correct backend.

    Attributes:
        id: Unique, in kebab-case; in snake_case it is a target of ``--conformance``.
        breaks: The requirement that it breaks: the reason for which it must be caught.
        also: Other requirements that are broken as much, whose names in the message are as good.
        does: What is wrong, in one line.
        layer: The layer that is expected to catch it first.
        clauses: The clauses of the specification that it breaks, which is why it was planted.
        seen_in: Where the like has happened, or "".
        base: What was changed: ``memory``, ``sqlite`` or ``queue``.
        harness: Makes the harness through which the suite reaches it.
    """

    id: str
    breaks: str
    also: frozenset[str]
    does: str
    layer: str
    clauses: tuple[str, ...] = ()
    seen_in: str = ""
    base: str
    harness: Callable[[], BaseHarness] = field(repr=False)

    @property
    def target(self) -> str:
        """What to give to ``--conformance`` to see it for oneself."""
        return f"{MODULE}:{self.id.replace('-', '_')}"

    @property
    def command(self) -> str:
        """The command that repeats the measurement by hand."""
        return f"pytest --conformance={self.target} -x"

    @property
    def reasons(self) -> frozenset[str]:
        """The requirements that a message may name."""
        return self.also | {self.breaks}


class MemoryDefectHarness(BaseHarness):
    """Stores in this process, through a factory."""

    capabilities: frozenset[str] = frozenset()

    def __init__(self, factory: Callable[[str], Any]) -> None:
        self._factory = factory

    def backend(self, store: str) -> Backend:
        """Call the factory."""
        made: Backend = self._factory(store)
        return made


class FileDefectHarness(BaseHarness):
    """Files in a temporary directory, which goes when the run ends."""

    capabilities: frozenset[str] = DEFAULT_CAPABILITIES

    def __init__(self, factory: Callable[[str], Any]) -> None:
        self._factory = factory

    def start(self) -> Mapping[str, str]:
        """Make the directory."""
        return {_FOLDER: tempfile.mkdtemp(prefix="taskqueue-defects-")}

    def stop(self) -> None:
        """Remove the directory."""
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)

    def backend(self, store: str) -> Backend:
        """Call the factory with the path of the store's file."""
        made: Backend = self._factory(self._path(store))
        return made

    async def drop(self, store: str) -> None:
        """Delete the file and what SQLite keeps beside it."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path(store)}{suffix}")  # noqa: PTH108 - the suffix is no part of a path

    @staticmethod
    def _path(store: str) -> str:
        return str(Path(os.environ[_FOLDER]) / f"{store}.db")


class TransactionalDefectHarness(FileDefectHarness):
    """The same, with transactions of an application's."""

    capabilities: frozenset[str] = DEFAULT_CAPABILITIES | {"transactional"}

    def transaction(self, store: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """Begin one."""
        return sqlite_transaction(self._path(store))


class WrongQueueHarness(MemoryDefectHarness):
    """A correct backend under a wrong ``TaskQueue`` or ``Worker``, which is wrong as long as this harness lives."""

    def __init__(self, patch: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__(PlainMemory)
        self._patch = patch()
        self._patch.__enter__()

    def stop(self) -> None:
        """Undo the change."""
        self._patch.__exit__(None, None, None)


_DEFECTS: Final[dict[str, Defect]] = {}


def catalogue() -> Mapping[str, Defect]:
    """Return every defect by id."""
    for module in sorted(found.name for found in pkgutil.iter_modules(defects.__path__)):
        if module.startswith(("memory_", "sqlite_", "queue_")):
            importlib.import_module(f"{MODULE}.{module}")
    return _DEFECTS


def planted(
    breaks: str,
    does: str,
    *,
    layer: str = "edges",
    also: str = "",
    clauses: str = "",
    seen_in: str = "",
) -> Callable[[C], C]:
    """Register the class below, a wrong ``Store``, ``PlainMemory`` or ``PlainSQLite``, as a defect.

    Its id is the name of the class in kebab-case. ``also`` and ``clauses`` are lists with spaces between.
    """

    def register(wrong: C) -> C:
        base, harness = _reached(wrong)
        _register(
            _kebab(wrong.__name__), breaks, does, layer=layer, also=also, clauses=clauses, seen_in=seen_in, base=base,
            harness=harness,
        )  # fmt: skip
        return wrong

    return register


def statement(
    id_: str,
    breaks: str,
    does: str,
    *,
    layer: str = "edges",
    also: str = "",
    clauses: str = "",
    seen_in: str = "",
    **changes: tuple[str, str],
) -> None:
    """Register a copy of ``PlainSQLite`` some of whose statements say something else.

    Args:
        id_: The defect's id.
        breaks: The requirement that it breaks.
        does: What is wrong.
        layer: The layer expected to catch it.
        also: Other requirements broken as much.
        clauses: The clauses broken.
        seen_in: Where the like has happened.
        changes: For each statement, by its attribute's name, the text to replace and what by.

    Raises:
        ValueError: A text does not stand in its statement exactly once, or nothing changes.
    """
    attributes = {name: substituted(getattr(PlainSQLite, name), *change) for name, change in changes.items()}
    wrong = type("".join(word.capitalize() for word in id_.split("-")), (PlainSQLite,), attributes)
    _register(
        id_, breaks, does, layer=layer, also=also, clauses=clauses, seen_in=seen_in, base="sqlite",
        harness=lambda: FileDefectHarness(wrong),
    )  # fmt: skip


def substituted(text: str, old: str, new: str) -> str:
    """Return ``text`` with ``old``, which must stand there exactly once, replaced by something else."""
    if text.count(old) != 1 or old == new:
        raise ValueError(f"{old!r} must stand exactly once in {text!r}, and change")
    return text.replace(old, new)


def wrong_queue(
    breaks: str, does: str, *, clauses: str, layer: str = "scenarios", also: str = "", seen_in: str = ""
) -> Callable[[Callable[[], Iterator[object]]], Callable[[], Iterator[object]]]:
    """Register the generator function below, which changes ``taskqueue`` up to its ``yield``, as a defect.

    Its id is the name of the function in kebab-case.
    """

    def register(change: Callable[[], Iterator[object]]) -> Callable[[], Iterator[object]]:
        patch = contextlib.contextmanager(change)
        _register(
            change.__name__.replace("_", "-"), breaks, does, layer=layer, also=also, clauses=clauses, seen_in=seen_in,
            base="queue", harness=lambda: WrongQueueHarness(patch),
        )  # fmt: skip
        return change

    return register


def _register(
    id_: str, breaks: str, does: str, *, layer: str, also: str, clauses: str, seen_in: str, base: str,
    harness: Callable[[], BaseHarness],
) -> None:  # fmt: skip
    unknown = {breaks, *also.split()} - REQUIREMENTS.keys() | {layer} - set(LAYERS)
    if unknown or id_ in _DEFECTS:
        raise ValueError(f"{id_}: unknown {sorted(unknown)}, or registered already")
    _DEFECTS[id_] = Defect(
        id=id_,
        breaks=breaks,
        also=frozenset(also.split()),
        does=does,
        layer=layer,
        clauses=tuple(clauses.split()),
        seen_in=seen_in,
        base=base,
        harness=harness,
    )


def _reached(wrong: type) -> tuple[str, Callable[[], BaseHarness]]:
    if issubclass(wrong, Store):
        handle = type(wrong.__name__, (PlainMemory,), {"store_class": wrong})
        return "memory", lambda: MemoryDefectHarness(handle)
    if issubclass(wrong, Served):
        return "memory", lambda: ServedHarness(wrong)
    if issubclass(wrong, PlainMemory):
        return "memory", lambda: MemoryDefectHarness(wrong)
    if issubclass(wrong, Transacting):
        return "sqlite", lambda: TransactionalDefectHarness(wrong)
    if issubclass(wrong, PlainSQLite):
        return "sqlite", lambda: FileDefectHarness(wrong)
    raise TypeError(wrong)


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def by_clause(found: Iterable[Defect]) -> dict[str, list[Defect]]:
    """Return the defects by the clause that they were planted for."""
    clauses: dict[str, list[Defect]] = {}
    for each in found:
        for clause in each.clauses:
            clauses.setdefault(clause, []).append(each)
    return clauses
