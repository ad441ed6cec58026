"""Pickles, functions by value included: the default."""

import io
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
            return _dumps(obj)
        except Exception as error:
            raise SerializationError(f"an object of type {type(obj).__qualname__}", _reason(error)) from error

    def prepared(self, func: Any) -> Any:
        """Return what may stand for ``func`` in many objects, pickled once if that has to be by value.

        Raises:
            SerializationError: The function cannot be pickled; says why.
        """
        # A subclass may write something else, which does not know what would stand for the function.
        if _is_found(func) or type(self).dumps is not CloudpickleSerializer.dumps:
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


class _PlainPickler(pickle.Pickler):
    """Writes what pickle and cloudpickle write alike, in a tenth of the time that cloudpickle takes.

    That is what consists of builtin values, of which it is not even asked, and of functions that are found in their
    modules. Whatever else there is, cloudpickle has to see all of it.
    """

    def __init__(self) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, cloudpickle.DEFAULT_PROTOCOL)

    def dumps(self, obj: Any) -> bytes:
        """Return the pickle of ``obj``.

        Raises:
            _NotPlainError: It is for cloudpickle. This pickler cannot be used any more.
        """
        self.dump(obj)
        data = self._file.getvalue()
        self.clear_memo()  # which would keep alive what was pickled
        self._file.seek(0)
        self._file.truncate()
        return data

    def reducer_override(self, obj: Any) -> Any:
        if _is_found(obj) or type(obj) is _Pickled or obj is pickle.loads:
            return NotImplemented
        raise _NotPlainError


class _NotPlainError(Exception):
    pass


# Those that nobody uses at the moment, since to make one takes as long as to use it.
_picklers: Final[list[_PlainPickler]] = []
_MOST_BYTES_KEPT: Final = 100_000

_PICKLED_NONE: Final = pickle.dumps(None, cloudpickle.DEFAULT_PROTOCOL)


def _dumps(obj: Any) -> bytes:
    if obj is None:
        return _PICKLED_NONE  # what most tasks return
    try:
        pickler = _picklers.pop()  # in one step, whichever threads do it
    except IndexError:
        pickler = _PlainPickler()
    try:
        data = pickler.dumps(obj)
    except _NotPlainError:
        by_value: bytes = cloudpickle.dumps(obj)
        return by_value
    if len(data) <= _MOST_BYTES_KEPT:
        _picklers.append(pickler)
    return data


def _is_found(obj: Any) -> bool:
    """Tell whether this is a function that cloudpickle writes as the name under which its module has it."""
    if type(obj) is not types.FunctionType:
        return False
    name = obj.__module__
    if name == "__main__" or type(name) is not str or cloudpickle.list_registry_pickle_by_value():
        return False
    module = sys.modules.get(name)
    return type(module) is types.ModuleType and module.__dict__.get(obj.__qualname__) is obj


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
