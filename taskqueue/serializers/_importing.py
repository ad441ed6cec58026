"""Functions by name, from modules that are on a list."""

import functools
import importlib
import types
from collections.abc import Callable, Iterable
from typing import Any, Final

from taskqueue.errors import DeserializationError, InvalidArgument, SerializationError

_MAIN: Final = "__main__"
_ADVICE: Final = 'pass a list of names of modules or packages, for example ["myapp.tasks"]'
_DEFINE_IT: Final = "pass a function that is defined at the top level of a module"


class Importer:
    """Names functions as ``module:qualname``, and finds functions that are named so, in modules that are allowed.

    A name is accepted only if what it leads to has that very name as its ``__module__`` and ``__qualname__``; so each
    function has one name, and nothing that a module has imported from elsewhere can be reached through it. Between
    the module and the function there may be classes, of which the same holds. No attribute is computed on the way.

    Args:
        allow: Names of modules; each allows the modules below it too.

    Raises:
        InvalidArgument: There are none, or one cannot be a module's name.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        given: object = allow
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InvalidArgument("allow", given, _ADVICE)
        self.allow: tuple[str, ...] = tuple(_module_name(name) for name in given)
        if not self.allow:
            raise InvalidArgument("allow", self.allow, _ADVICE)

    def name(self, func: Callable[..., Any]) -> str:
        """Return the name by which ``load`` finds ``func``.

        Raises:
            SerializationError: It has none, or its module is not allowed, or its name leads to something else.
        """
        module, qualname = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
        if isinstance(func, functools.partial) or not isinstance(module, str) or not isinstance(qualname, str):
            raise SerializationError(f"an object of type {type(func).__qualname__}", f"it has no name; {_DEFINE_IT}")
        path = f"{module}:{qualname}"
        what = f"the function {path}"
        if isinstance(func, types.MethodType) and not isinstance(func.__self__, type):
            raise SerializationError(
                what, "it is bound to an object, which would not go along; pass a function, and the object's data"
            )
        if module == _MAIN:
            raise SerializationError(
                what, "a worker cannot import the program that was started here; move the function to a module"
            )
        if "<" in qualname:
            raise SerializationError(what, f"it is a lambda, or defined in a function; {_DEFINE_IT}")
        if not self._allows(module):
            raise SerializationError(
                what, f"its module is not among {list(self.allow)!r}; if it is meant to be, add it to allow"
            )
        try:
            found = _resolved(module, qualname)
        except _NotFoundError as error:
            raise SerializationError(what, str(error)) from error.__cause__
        if found is not func and not (isinstance(func, types.MethodType) and found == func):
            raise SerializationError(
                what,
                "another object is found there: it was decorated, replaced or reloaded since, or is inherited. Pass "
                "what is found there now",
            )
        return path

    def load(self, path: str) -> Callable[..., Any]:
        """Return the function that ``path`` names. Imports its module, if that is allowed.

        Raises:
            DeserializationError: The module is not allowed or cannot be imported, or there is no such function in it.
        """
        what = f"the function {path!r}"
        module, _, qualname = path.partition(":")
        if not self._allows(module):
            raise DeserializationError(
                what, f"its module is not among {list(self.allow)!r}; if it is meant to be, add it to allow"
            )
        try:
            found: object = _resolved(module, qualname)
        except _NotFoundError as error:
            raise DeserializationError(what, str(error)) from error.__cause__
        if not callable(found):
            raise DeserializationError(what, f"it is of type {type(found).__qualname__}, which cannot be called")
        return found

    def _allows(self, module: str) -> bool:
        parts = module.split(".")
        return (
            all(part.isidentifier() for part in parts)
            and _MAIN not in parts
            and any(module == name or module.startswith(f"{name}.") for name in self.allow)
        )


def _module_name(name: object) -> str:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise InvalidArgument(
            "allow", name, f"{_ADVICE}; a name allows the modules below it too, so it needs no wildcard"
        )
    if _MAIN in name.split("."):
        raise InvalidArgument(
            "allow", name, "a worker cannot import the program that was started here; move its tasks to a module"
        )
    return name


class _NotFoundError(LookupError):
    """Why a name leads to nothing; the cause is what went wrong in an import, if that is it."""


def _resolved(module: str, qualname: str) -> Any:
    try:
        holder: Any = importlib.import_module(module)
    except Exception as error:
        raise _NotFoundError(f"its module cannot be imported here: {type(error).__name__}: {error}") from error
    found: Any = None
    walked: list[str] = []
    for part in qualname.split("."):
        if walked and not isinstance(holder, type):
            raise _NotFoundError(f"{'.'.join(walked)} is not a class, and a name leads only through classes")
        walked.append(part)
        # Not by getattr: a module's or a class's own code could make up any attribute that it is asked for.
        found = getattr(holder, "__dict__", {}).get(part)
        if isinstance(found, staticmethod):
            found = found.__func__
        elif isinstance(found, classmethod):
            found = found.__get__(None, holder)
        if found is None:
            raise _NotFoundError(f"there is no {'.'.join(walked)} in {module}")
        if _own_name(found) != (module, ".".join(walked)):
            raise _NotFoundError(f"{'.'.join(walked)} is not defined in {module}; it is there under that name only")
        holder = found
    return found


def _own_name(found: object) -> tuple[object, object] | None:
    try:
        return getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    except Exception:  # noqa: BLE001 - a module or an instance that is asked may raise anything, and is no function
        return None
