"""Pickles, functions by value included: the default."""

import pickle
import sys
import types
from typing import Any, Final

import cloudpickle

from taskqueue.errors import DeserializationError, SerializationError


class CloudpickleSerializer:
    """The default: pickles nearly everything, lambdas and local functions included.

    **Loading a pickle runs code.** Whoever can write to the store can run code in every worker and in every client
    that calls ``Result.unwrap``. Keep the store as private as the application itself, or wrap this in a
    ``SignedSerializer``, or use a ``JSONSerializer``.

    Spec: TaskQueue configuration and defaults / Construct TaskQueue with defaults.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def dumps(self, obj: Any) -> bytes:
        """Return ``obj`` pickled: importable functions by reference, others by value.

        Raises:
            SerializationError: The object cannot be pickled; says why.
        """
        try:
            if _is_plain(obj):
                return pickle.dumps(obj, protocol=cloudpickle.DEFAULT_PROTOCOL)
            data: bytes = cloudpickle.dumps(obj)
        except Exception as error:
            raise SerializationError(f"an object of type {type(obj).__qualname__}", _reason(error)) from error
        return data

    def prepared(self, func: Any) -> Any:
        """Return what may stand for ``func`` in many objects, pickled once if that has to be by value.

        Raises:
            SerializationError: The function cannot be pickled; says why.
        """
        # A subclass may write something else, which does not know what would stand for the function.
        if _is_plain(func) or type(self).dumps is not CloudpickleSerializer.dumps:
            return func
        return _Pickled(self.dumps(func))

    def loads(self, data: bytes) -> Any:
        """Return the unpickled object. Runs code that the pickle names.

        Raises:
            DeserializationError: The pickle is damaged, or names code that cannot be imported here.
        """
        try:
            return pickle.loads(data)  # noqa: S301 - the class says so
        except Exception as error:
            raise DeserializationError(f"a pickle of {len(data)} bytes", _reason(error)) from error


class _Pickled:
    """Stands for what it was made of: in a pickle, as the pickle of that."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return pickle.loads, (self._data,)


# cloudpickle leaves these to pickle, and nobody can give them another meaning.
_ATOMS: Final = frozenset({types.NoneType, bool, int, float, str, bytes, _Pickled})
_MOST_PARTS: Final = 64


def _is_plain(obj: object) -> bool:
    """Tell whether pickle and cloudpickle write the same bytes for ``obj``; pickle takes a fraction of the time.

    So it is for what consists of a few builtin values, and of functions that are found in their modules. Whatever
    else there is, cloudpickle sees all of it.
    """
    parts: list[Any] = [obj]
    for part in parts:
        kind = type(part)
        if kind in _ATOMS:
            continue
        if kind is dict:
            parts += part
            parts += part.values()
        elif kind is tuple or kind is list:
            parts += part
        elif kind is not types.FunctionType or not _is_found(part):
            return False
        if len(parts) > _MOST_PARTS:
            return False
    return True


def _is_found(func: types.FunctionType) -> bool:
    """Tell whether cloudpickle writes this function as the name under which its module has it."""
    name = func.__module__
    if name == "__main__" or type(name) is not str or cloudpickle.list_registry_pickle_by_value():
        return False
    module = sys.modules.get(name)
    return type(module) is types.ModuleType and module.__dict__.get(func.__qualname__) is func


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
