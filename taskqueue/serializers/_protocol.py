"""What a serializer has to do."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Serializer(Protocol):
    """Turns objects into bytes and back.

    The queue passes two kinds of objects: a call, which is a ``dict`` with the keys ``func`` (a callable), ``args``
    (a tuple), ``kwargs`` (a dict with ``str`` keys) and ``context`` (a dict or None), and perhaps others whose values
    are plain numbers, texts or None; and a return value, which is anything.
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


@runtime_checkable
class PreparingSerializer(Serializer, Protocol):
    """A serializer for which a function is work that can be done once, for many calls of it."""

    def prepared(self, func: Any) -> Any:
        """Return what may stand for ``func`` in objects given to ``dumps``: ``loads`` makes an equal function of it.

        Raises:
            SerializationError: The function cannot be serialised.
        """
        ...
