"""Bytes that only holders of a key can write."""

import hmac
import os
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn, Self

from taskqueue.errors import InvalidArgument, SerializationError, SignatureError
from taskqueue.serializers._cloudpickle import CloudpickleSerializer
from taskqueue.serializers._protocol import PreparingSerializer, Serializer

LEAST_KEY_BYTES: Final = 16
KEY_VARIABLE: Final = "TASKQUEUE_SIGNING_KEY"
"""The environment variable that ``SignedSerializer.from_env`` reads."""

_VERSION: Final = b"\x01"
_SIGNATURE_BYTES: Final = 32
# So that a signature made with the same key for another purpose means nothing here.
_PURPOSE: Final = b"taskqueue.SignedSerializer\0"
_MAKE_A_KEY: Final = 'python -c "import secrets; print(secrets.token_hex(32))"'
_ADVICE: Final = (
    f"pass bytes, at least {LEAST_KEY_BYTES} and better 32 random ones, or several such keys of which the first signs. "
    f"To make one: {_MAKE_A_KEY}; to use it: bytes.fromhex(…)"
)


class SignedSerializer:
    """Signs what another serializer writes, and lets it load only what carries a valid signature.

    Whoever can write to the store, and has no key, can then no longer choose what is loaded: a payload that was
    changed, cut, signed with another key or not signed at all fails its own task, with an error that says so, and
    nothing of it reaches the inner serializer. The same holds for the value behind ``Result.unwrap``.

    **What a signature does not cover.** It says that a holder of the key wrote these bytes, and not for what. Who can
    write to the store can still delete tasks, delay them, mark them as done, change how often they are tried, and store
    what was signed once a second time: the payload of one task under another id, an old payload again, the value of
    one task as that of another. Make tasks safe to repeat, and put into the arguments what a call must be bound to. A
    payload and a value are told apart by a ``JSONSerializer`` inside, but not by a ``CloudpickleSerializer``: there,
    a return value that is itself a dict with the keys of a call, a callable among them, could be stored as a payload.
    Nothing is encrypted: who can read the store can read arguments and return values.

    To change the key: give all processes ``[old, new]``, then all ``[new, old]``, and ``new`` alone once no task that
    was signed with the old one is left.

    An object of this class may be used from several threads and after a fork. It cannot be pickled or copied, since
    its keys would go along: into the store, for example, with a task that refers to it.

    The format is a version byte (1), 32 bytes of HMAC-SHA-256 and the inner bytes; what is signed is the text
    ``taskqueue.SignedSerializer``, a NUL, the version byte and the inner bytes.

    Args:
        key: One key or several, each of at least 16 bytes; all are accepted, and the first signs.
        inner: What turns objects into bytes and back.

    Raises:
        InvalidArgument: A key is a string or too short, or there is none, or ``inner`` is not a serializer. The
            message never shows a key.
    """

    def __init__(self, key: bytes | Iterable[bytes], inner: Serializer | None = None) -> None:
        if inner is not None and (isinstance(inner, type) or not isinstance(inner, Serializer)):
            raise InvalidArgument("inner", inner, "pass an object with the methods dumps and loads")
        self._keys = _checked_keys(key)
        self.inner: Serializer = CloudpickleSerializer() if inner is None else inner

    @classmethod
    def from_env(cls, variable: str = KEY_VARIABLE, inner: Serializer | None = None) -> Self:
        """Return a serializer with the keys that an environment variable holds.

        Args:
            variable: Its name. Its value is one key or several, as hexadecimal digits, with commas or white space
                between them; the first signs.
            inner: What turns objects into bytes and back.

        Raises:
            InvalidArgument: The variable is not set, or does not hold such keys. The message never shows them.
        """
        texts = [text for text in re.split(r"[,\s]+", os.environ.get(variable, "")) if text]
        if not texts:
            raise InvalidArgument(
                "variable", variable, f"set this environment variable to a key of hexadecimal digits: {_MAKE_A_KEY}"
            )
        try:
            keys = [bytes.fromhex(text) for text in texts]
        except ValueError:
            # Without its context, which shows where the key goes wrong.
            raise InvalidArgument(
                "variable", variable, f"its value has to be keys of hexadecimal digits; to make one: {_MAKE_A_KEY}"
            ) from None
        return cls(keys, inner)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{len(self._keys)} key(s)>, inner={self.inner!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a SignedSerializer cannot be pickled or copied, since its keys would go along; make one in each process, "
            "and refer to none from a task's function or arguments"
        )

    def dumps(self, obj: Any) -> bytes:
        """Return ``obj`` as bytes of the inner serializer, signed with the first key.

        Raises:
            SerializationError: The inner serializer cannot serialise the object.
        """
        data = self.inner.dumps(obj)
        if not isinstance(data, bytes):
            raise SerializationError(
                f"an object of type {type(obj).__qualname__}",
                f"the inner serializer returned {type(data).__name__} instead of bytes",
            )
        return _VERSION + _signature(self._keys[0], data) + data

    def prepared(self, func: Any) -> Any:
        """Return what the inner serializer lets stand for ``func``, or ``func``.

        Raises:
            SerializationError: The inner serializer cannot serialise the function.
        """
        return self.inner.prepared(func) if isinstance(self.inner, PreparingSerializer) else func

    def loads(self, data: bytes) -> Any:
        """Return the object, once the signature has been found to hold.

        Raises:
            SignatureError: It does not hold; nothing was loaded.
            DeserializationError: It holds, and the inner serializer cannot load what was signed.
        """
        what = f"signed data of {len(data)} bytes"
        if data[:1] != _VERSION:
            raise SignatureError(
                what,
                "they are not signed as this SignedSerializer does it. They were stored without it, by a newer one, or "
                "by somebody who has no key. Give all processes the same serializer, and enqueue the task again",
            )
        end = len(_VERSION) + _SIGNATURE_BYTES
        signature, inner = data[len(_VERSION) : end], data[end:]
        holds = False
        for key in self._keys:  # all of them, so that the time taken does not tell which
            holds |= hmac.compare_digest(_signature(key, inner), signature)
        if not holds:
            raise SignatureError(
                what,
                f"the signature holds with none of the {len(self._keys)} key(s) given here: the bytes were changed or "
                "cut, or signed with another key. If the key was replaced, give the old one too: SignedSerializer([new,"
                " old]). If not, find out who else can write to the store",
            )
        return self.inner.loads(inner)


def _signature(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + _VERSION + data, "sha256")


def _checked_keys(key: object) -> tuple[bytes, ...]:
    given = (key,) if isinstance(key, bytes | str) or not isinstance(key, Iterable) else tuple(key)
    if not given:
        raise InvalidArgument("key", given, _ADVICE)
    for each in given:
        # Neither the message nor the exception may carry a key.
        if not isinstance(each, bytes):
            raise InvalidArgument("key", _Unshown(f"an object of type {type(each).__name__}"), _ADVICE)
        if len(each) < LEAST_KEY_BYTES:
            raise InvalidArgument("key", _Unshown(f"{len(each)} bytes"), _ADVICE)
    return tuple(each for each in given if isinstance(each, bytes))


class _Unshown:
    def __init__(self, description: str) -> None:
        self._description = description

    def __repr__(self) -> str:
        return f"<{self._description}, not shown>"
