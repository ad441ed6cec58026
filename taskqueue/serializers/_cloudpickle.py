"""Pickles, functions by value included: the default."""

import pickle
from typing import Any

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
