"""From what ``--conformance`` was given to a harness, with a clear word where that is impossible."""

import asyncio
import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from taskqueue import Backend, TaskQueueError
from taskqueue_conformance.harness import CAPABILITIES, BaseHarness, FactoryHarness, Harness
from taskqueue_conformance.lab import new_store_name, new_task
from taskqueue_conformance.subject import METHODS, missing_methods

GROUP: Final = "taskqueue_conformance.harnesses"
"""The entry-point group in which a package registers a harness under the scheme of its URLs."""

_PREFLIGHT_S = 20.0


class TargetError(Exception):
    """The target of ``--conformance`` cannot be tested; the message says what to change."""


def resolve(target: str) -> Harness:
    """Return the harness that ``target`` names.

    Args:
        target: ``MODULE:NAME`` of a factory or a harness, or a registered scheme.

    Raises:
        TargetError: It names nothing that could be tested.
    """
    module, colon, name = target.partition(":")
    if name.startswith("//"):
        return _harness_for_url(target, module)
    if colon and name and module.endswith(".py"):
        dotted = module.removesuffix(".py").replace(os.sep, ".")
        raise TargetError(f"--conformance={target}: name the module, not its file: {dotted}:{name}")
    if colon and module and name and os.sep not in target:
        return _harness(target, _import(target, module, name))
    if os.sep in target or Path(target).exists() or target.endswith(".py"):
        raise TargetError(
            f"--conformance={target}: this is a path, not a backend. --conformance takes the word that follows it; "
            f"to give paths, write --conformance=TARGET {target}. {_usage()}"
        )
    schemes = entry_points(group=GROUP)
    for entry in schemes:
        if entry.name == target:
            return _harness(target, entry.load())
    known = ", ".join(sorted({entry.name for entry in schemes}))
    raise TargetError(f"--conformance={target}: no scheme of this name is registered; known here: {known}. {_usage()}")


def _harness_for_url(target: str, scheme: str) -> Harness:
    """Return what a registered harness makes of a URL of its scheme, if it can: a server has room for many stores."""
    found = [entry.load() for entry in entry_points(group=GROUP) if entry.name == scheme]
    if not found or not hasattr(found[0], "for_url"):
        raise TargetError(f"--conformance={target}: a URL names one store, and the suite needs many. {_usage()}")
    return _harness(target, found[0].for_url(target))


def preflight(target: str, harness: Harness) -> str:
    """Look at the backends that the harness makes before any check does, and return the name of their class.

    Raises:
        TargetError: It raises, returns something that is no backend, or does not keep the stores apart.
    """
    backend = _made(target, harness, new_store_name())
    missing = missing_methods(backend)
    if missing:
        raise TargetError(
            f"--conformance={target} returned {_described(backend)}, which lacks {_listed(missing)}. "
            "taskqueue/backend.py says what each must do"
        )
    wrong = [complaint for method in METHODS if (complaint := _signature_complaint(backend, method))]
    if wrong:
        raise TargetError(
            f"--conformance={target} returned {_described(backend)}, whose signatures differ from the contract's: "
            + "; ".join(wrong)
        )
    complaint = asyncio.run(_isolation_complaint(target, harness))
    if complaint:
        raise TargetError(f"--conformance={target}: {complaint}")
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


class _Completed(BaseHarness):
    """A harness of somebody's own, with the defaults for what it leaves out."""

    def __init__(self, target: str, inner: Any) -> None:
        self._inner = inner
        self.capabilities = frozenset(getattr(inner, "capabilities", BaseHarness.capabilities))
        self.deviations = getattr(inner, "deviations", BaseHarness.deviations)
        self.real_time_modules = tuple(getattr(inner, "real_time_modules", BaseHarness.real_time_modules))
        unknown = sorted(self.capabilities - CAPABILITIES.keys())
        if unknown:
            raise TargetError(
                f"--conformance={target} claims the unknown capabilities {_listed(unknown)}; "
                f"known are {_listed(sorted(CAPABILITIES))}"
            )
        if not isinstance(self.deviations, Mapping):
            raise TargetError(f"--conformance={target}: deviations must map check ids to reasons")
        for name in ("start", "stop", "drop", "restart", "transaction"):
            if callable(getattr(inner, name, None)):
                setattr(self, name, getattr(inner, name))

    def backend(self, store: str) -> Backend:
        made: Backend = self._inner.backend(store)
        return made


def _import(target: str, module: str, name: str) -> object:
    # As with python -m pytest: what lies in the working directory can be named.
    if os.getcwd() not in sys.path:  # noqa: PTH109 - an entry of sys.path is a string
        sys.path.append(os.getcwd())  # noqa: PTH109 - the same
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise TargetError(
                f"--conformance={target}: there is no module {error.name!r} on sys.path. Run pytest where it can be "
                "imported, or install the package that has it"
            ) from error
        raise TargetError(f"--conformance={target}: importing {module} failed: {_where(error)}") from error
    except Exception as error:
        raise TargetError(f"--conformance={target}: importing {module} failed: {_where(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                each for each, value in vars(found).items()
                if callable(value) and not each.startswith("_") and getattr(value, "__module__", None) == module
            ]  # fmt: skip
            offered = difflib.get_close_matches(part, own) or sorted(own)[:10]
            raise TargetError(
                f"--conformance={target}: {_described(found)} has no {part!r}"
                + (f"; it has {_listed(offered)}" if offered else "")
            )
        found = getattr(found, part)
    return found


def _harness(target: str, found: Any) -> Harness:
    if not callable(getattr(found, "backend", None)):
        if not callable(found):
            raise TargetError(f"--conformance={target} is {_described(found)}, which cannot be called. {_usage()}")
        return FactoryHarness(found)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise TargetError(f"--conformance={target}: making the harness failed: {_where(error)}") from error
    return _Completed(target, found)


def _made(target: str, harness: Harness, store: str) -> Backend:
    try:
        backend: Any = harness.backend(store)
    except Exception as error:
        raise TargetError(f"--conformance={target} was called with {store!r} and raised {_where(error)}") from error
    if inspect.iscoroutine(backend):
        backend.close()
        raise TargetError(
            f"--conformance={target} is a coroutine function; write a plain function that returns an unconnected "
            "backend: the suite awaits its connect()"
        )
    made: Backend = backend
    return made


def _signature_complaint(backend: Backend, method: str) -> str | None:
    try:
        parameters = inspect.signature(getattr(backend, method)).parameters
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    positional = [
        name for name, parameter in inspect.signature(getattr(Backend, method)).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
    ]  # fmt: skip
    missing = [name for name in METHODS[method] if name not in parameters and name not in positional]
    accepts = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if inspect.Parameter.VAR_POSITIONAL not in kinds and len(accepts) < len(positional):
        missing = [*positional[len(accepts) :], *missing]
    return f"{method}() does not take {_listed(missing)}" if missing else None


async def _isolation_complaint(target: str, harness: Harness) -> str | None:
    """Say what is wrong if two stores are one, or one store is two; leave every other fault to the checks."""
    names = [new_store_name(), new_store_name()]
    one, same, other = (_made(target, harness, name) for name in (names[0], names[0], names[1]))
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            for backend in (one, same, other):
                await backend.connect()
            await one.enqueue([new_task("preflight")])
            if await one.get("preflight") is None:
                return None
            if await other.get("preflight") is not None:
                return (
                    "a task enqueued in one store is found in another. Equal names must share a store, and a new name "
                    "must be an empty one: use the name that the factory is given, for example as a file's name"
                )
            if await same.get("preflight") is None:
                return (
                    "a task enqueued through one backend is not found through another one made with the same name. "
                    "Equal names must share a store"
                )
    except Exception:  # noqa: BLE001 - a fault of the backend: the checks say which requirement it breaks
        return None
    finally:
        for backend in (one, same, other):
            await _quietly(backend.close)
        for name in names:
            await _quietly(lambda name=name: harness.drop(name))
    return None


async def _quietly(call: Any) -> None:
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            await call()
    except Exception:  # noqa: BLE001 - the checks will meet it again and say what it breaks
        return


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, TaskQueueError) or str(error):
        return f"{type(error).__name__}: {error}{place}"
    return f"{type(error).__name__}{place}"


def _described(value: object) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    return f"{value!r} of type {type(value).__name__}"


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _usage() -> str:
    return (
        "Name a factory (--conformance=mypackage.queue:make_backend), a Harness "
        "(--conformance=mypackage.testing:Harness) or a registered scheme (--conformance=sqlite)"
    )
