"""How calls and return values become bytes."""

import pickle
from typing import Any, Protocol, runtime_checkable

import cloudpickle

from taskqueue.errors import DeserializationError, SerializationError


@runtime_checkable
class Serializer(Protocol):
    """Turns objects into bytes and back.

    The queue passes two kinds of objects: a call, which is a ``dict`` with the keys ``func`` (a callable), ``args``
    (a tuple), ``kwargs`` (a dict with ``str`` keys) and ``context`` (a dict or None); and a return value, which is
    anything.
    """

    def dumps(self, obj: Any) -> bytes:
        """Return ``obj`` as bytes, from which ``loads`` makes an equal object.

        Raises:
            SerializationError: This object cannot be serialised.
        """
        ...

    def loads(self, data: bytes) -> Any:
        """Return the object that ``dumps`` was given.

        Raises:
            DeserializationError: The bytes are damaged, or need code that is not to be had here.
        """
        ...


class CloudpickleSerializer:
    """The default: pickles nearly everything, lambdas and local functions included.

    **Loading a pickle runs code.** Whoever can write to the store can run code in every worker and in every client
    that calls ``Result.unwrap``. Keep the store as private as the application itself.

    Spec: TaskQueue configuration and defaults / Construct TaskQueue with defaults.
    """

    def dumps(self, obj: Any) -> bytes:
        """Return ``obj`` pickled: importable functions by reference, others by value.

        Raises:
            SerializationError: The object cannot be pickled; says why.
        """
        try:
            data: bytes = cloudpickle.dumps(obj)
        except Exception as error:
            raise SerializationError(f"an object of type {type(obj).__qualname__}", _reason(error)) from error
        return data

    def loads(self, data: bytes) -> Any:
        """Return the unpickled object. Runs code that the pickle names.

        Raises:
            DeserializationError: The pickle is damaged, or names code that cannot be imported here.
        """
        try:
            return pickle.loads(data)  # noqa: S301 - the class says so
        except Exception as error:
            raise DeserializationError(f"a pickle of {len(data)} bytes", _reason(error)) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
