"""Which store a command works on, and what it loads payloads with."""

import asyncio
import importlib
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from taskqueue._cli.errors import Failed
from taskqueue._text import error_text
from taskqueue._url import backend_from_url, without_password
from taskqueue.backend import Backend
from taskqueue.errors import InvalidArgument
from taskqueue.queue import DEFAULT_PATH, URL_VARIABLE, TaskQueue
from taskqueue.serializers import CloudpickleSerializer, Serializer, SignedSerializer
from taskqueue.serializers._signed import KEY_VARIABLE

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """A store that a command was pointed at.

    Attributes:
        backend: A handle on it, not connected.
        location: Its URL as it was given, without a password.
    """

    backend: Backend
    location: str

    def use(self, work: Callable[[TaskQueue], Awaitable[T]], *, serializer: Serializer | None = None) -> T:
        """Run ``work`` with a queue on this store, on an event loop of its own, and close the queue after it."""

        async def main() -> T:
            async with TaskQueue(self.backend, serializer) as queue:
                return await work(queue)

        return asyncio.run(main())

    def unknown(self, task_id: str) -> Failed:
        """Return the error for an id that this store does not know."""
        return Failed(f"no task {task_id!r} in {self.location}")


def find_store(url: str | None, *, create: bool = False) -> Store:
    """Return the store that ``url`` names, or that in ``taskqueue.db`` in the working directory if that file exists.

    Args:
        url: What ``--url`` or ``TASKQUEUE_URL`` gave, if anything.
        create: Whether an SQLite file that ``url`` names may be created.

    Raises:
        click.UsageError: Nothing names a store, or the URL cannot be one.
        Failed: The SQLite file does not exist.
    """
    if url is None:
        if not Path(DEFAULT_PATH).exists():
            raise click.UsageError(
                f"no store is named, and there is no {DEFAULT_PATH} in {Path.cwd()}. Pass --url or set "
                f"{URL_VARIABLE}, for example --url sqlite:///{DEFAULT_PATH}, the same that the application uses"
            )
        url = f"sqlite:///{DEFAULT_PATH}"
    try:
        backend = backend_from_url(url)
    except InvalidArgument as error:
        raise click.BadParameter(without_password(str(error)), param_hint="--url") from error
    except ImportError as error:  # the driver is an extra, and the message says of which one
        raise Failed(f"{url}: {error}") from error
    location = without_password(url)
    scheme = url.partition("://")[0].lower()
    if scheme == "memory":
        raise click.BadParameter(
            f"{location}: a store in memory belongs to the process that made it, and a command would find a new, "
            f"empty one. Name a file, for example sqlite:///{DEFAULT_PATH}",
            param_hint="--url",
        )
    if scheme == "sqlite" and not create:
        _check_present(backend, location)
    return Store(backend, location)


def _check_present(backend: Backend, location: str) -> None:
    path = getattr(backend, "path", None)
    if isinstance(path, str) and not os.path.lexists(path):
        raise Failed(
            f"there is no file {path} ({location}); nothing was created. The application creates it with its first "
            "task, and `taskqueue worker --url …` when it starts"
        )


def use_app_dir(app_dir: str) -> None:
    """Put the folder of the application's modules first on ``sys.path``."""
    path = str(Path(app_dir).absolute())
    if sys.path[:1] != [path]:
        sys.path.insert(0, path)


def find_serializer(name: str | None) -> Serializer:
    """Return the serializer that ``--serializer`` and ``TASKQUEUE_SIGNING_KEY`` ask for.

    The keys sign around what the option names, unless that is a ``SignedSerializer`` itself.

    Raises:
        click.UsageError: The name leads to no serializer, or the variable holds no keys.
    """
    serializer = CloudpickleSerializer() if name is None else _load(name)
    return _signed(serializer) if os.environ.get(KEY_VARIABLE) else serializer


def _load(name: str) -> Serializer:
    hint = "--serializer"
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise click.BadParameter(f"{name!r}: write MODULE:OBJECT, for example myapp.tasks:serializer", param_hint=hint)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{name!r}: {error}; is --app-dir right?", param_hint=hint) from error
    except Exception as error:
        raise click.BadParameter(f"importing {name!r} failed: {_with_place(error)}", param_hint=hint) from error
    if callable(found) and (isinstance(found, type) or not isinstance(found, Serializer)):
        try:
            found = found()
        except Exception as error:
            raise click.BadParameter(f"calling {name!r} failed: {_with_place(error)}", param_hint=hint) from error
    if isinstance(found, type) or not isinstance(found, Serializer):
        raise click.BadParameter(
            f"{name!r} gives {type(found).__name__}, which lacks the methods dumps and loads", param_hint=hint
        )
    return found


def _with_place(error: Exception) -> str:
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error_text(error)} (in {innermost.filename}, line {innermost.lineno})"


def _signed(inner: Serializer) -> Serializer:
    if isinstance(inner, SignedSerializer):
        return inner
    try:
        return SignedSerializer.from_env(KEY_VARIABLE, inner)
    except InvalidArgument as error:
        raise click.UsageError(f"{KEY_VARIABLE}: {error}") from error
