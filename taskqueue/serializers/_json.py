"""Calls and values as JSON: nothing but data, and functions by name from modules that are allowed."""

import json
import math
import re
from collections.abc import Iterable
from datetime import date, time, timedelta
from typing import Any, Final, Never, TypeAlias

from taskqueue.errors import DeserializationError, SerializationError
from taskqueue.serializers._importing import Importer

DEEPEST: Final = 100
"""How deep lists and dicts may be nested in one another."""

_VERSION: Final = 1
_PARTS: Final = ("func", "args", "kwargs", "context")
# Two lone surrogates in this order would come back as the one character that they encode.
_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# Of ints up to this size any Python makes digits, whatever limit it is given.
_SURE_BITS: Final = 2000
_ADVICE: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    ((bool, int, float, str, list, dict), "a subclass would come back as its base; pass that"),
    (tuple, "it would come back as a list; pass a list"),
    ((set, frozenset), "pass a sorted list"),
    ((bytes, bytearray, memoryview), "pass text, for example in hexadecimal or base64"),
    ((date, time), "pass text, for example isoformat()"),
    (timedelta, "pass total_seconds()"),
)

# Where something is, from the inside out: a text of it is made only for a refusal.
_Place: TypeAlias = "tuple[_Place | None, str | int]"


class JSONSerializer:
    """Writes calls as a function's name and JSON arguments, for those who will not load pickles.

    **Functions** are named by where they can be imported, as ``myapp.tasks:send`` or ``myapp.tasks:Mailer.send``. They
    must be found again there, and be the same object, already when they are enqueued; so a lambda, a function in a
    function, a method of an instance, a ``functools.partial`` and anything in ``__main__`` are refused. Classes, static
    methods and class methods can be called as well.

    **``allow``** is what bounds the trust in the store: who can write to it can call *every* function and class that
    is defined in a module on the list, with arguments of their choice, and have such a module imported; nothing
    else. ``"myapp.tasks"`` allows this module and all modules below it, but never a module called ``__main__``. Keep
    tasks in modules of their own, and list those, not the whole application. A module's name is looked up in the list
    before anything is imported. A function that a module has only imported from elsewhere (``from os import system``)
    does not count as defined there, and a name leads through no other module and no instance.

    **Arguments and return values** are None, bool, int, finite float, str, list and dict with str keys, nested at
    most 100 deep. What goes in comes out equal and of the same types; what would not is refused, with its place: a
    tuple, a set, a datetime, bytes, NaN, a key that is not a str, a subclass of one of these types. Of an int
    beyond 4,300 digits Python itself refuses the conversion. The order of dicts is kept; an object that occurs
    twice comes back as two equal ones.

    The format is one JSON object in ASCII: ``{"v": 1, "call": {"func": "myapp.tasks:send", "args": [], "kwargs": {},
    "context": null}}`` for a call, ``{"v": 1, "value": …}`` for a return value; UTF-8 is read as well. So a value is
    never taken for a call, whatever is in it.

    Args:
        allow: Names of modules and packages.

    Raises:
        InvalidArgument: A string instead of a list of them, an empty list, or something that is no module's name.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        self._importer = Importer(allow)

    @property
    def allow(self) -> tuple[str, ...]:
        """The modules that functions may come from, each with the modules below it."""
        return self._importer.allow

    def __repr__(self) -> str:
        return f"{type(self).__name__}(allow={list(self.allow)!r})"

    def dumps(self, obj: Any) -> bytes:
        """Return a call or a value as JSON.

        Raises:
            SerializationError: It would not come back equal; says which element, such as ``args[0]['x']``, and what
                to do. Or its function cannot be found again, or is in a module that is not allowed.
        """
        document: dict[str, Any] = {"v": _VERSION}
        if _is_call(obj):
            document["call"] = self._call_to_json(obj)
        else:
            _check(obj, (None, "value"), 0)
            document["value"] = obj
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")

    def loads(self, data: bytes) -> Any:
        """Return the call or the value. Imports the module of a call's function, if it is on the list.

        Raises:
            DeserializationError: This is not what ``dumps`` writes, or the function is not to be had here, or is in a
                module that is not allowed.
        """
        what = f"JSON of {len(data)} bytes"
        try:
            document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DeserializationError(what, f"it is damaged, or is no JSON ({error})") from None
        if not isinstance(document, dict) or document.get("v") != _VERSION or len(document) != 2:  # noqa: PLR2004 - the version and what is versioned
            raise DeserializationError(what, "it was not written by this JSONSerializer, or by a newer one")
        if "value" in document:
            return document["value"]
        call = document.get("call")
        if (
            not isinstance(call, dict)
            or not all(part in call for part in _PARTS)
            or not isinstance(call["func"], str)
            or not isinstance(call["args"], list)
            or not isinstance(call["kwargs"], dict)
            or not isinstance(call["context"], dict | None)
        ):
            raise DeserializationError(what, "it holds neither a value nor a call with func, args, kwargs and context")
        return call | {"func": self._importer.load(call["func"]), "args": tuple(call["args"])}

    def _call_to_json(self, call: dict[str, Any]) -> dict[str, Any]:
        written = call | {"func": self._importer.name(call["func"]), "args": list(call["args"])}
        for part, content in written.items():
            _check(content, (None, part), 0)
        return written


def _is_call(obj: object) -> bool:
    # A dict with a callable in it is no JSON value, so a value can never be mistaken for a call.
    return (
        type(obj) is dict
        and all(part in obj for part in _PARTS)
        and callable(obj["func"])
        and type(obj["args"]) is tuple
        and type(obj["kwargs"]) is dict
    )


def _check(obj: Any, place: _Place, depth: int) -> None:
    """Check that ``obj`` comes back from JSON equal and of the same types."""
    kind = type(obj)
    if kind is dict or kind is list:
        if depth == DEEPEST:
            raise _refusal(place, f"it is nested more than {DEEPEST} deep, or contains itself")
        if kind is dict:
            _check_keys(obj, place)
        for key, each in obj.items() if kind is dict else enumerate(obj):
            _check(each, (place, key), depth + 1)
    elif kind is str:
        _check_text(obj, place)
    elif kind is int:
        _check_int(obj, place)
    elif kind is float:
        if not math.isfinite(obj):
            raise _refusal(place, f"JSON has no {obj}; pass None or a text for it")
    elif obj is not None and kind is not bool:
        raise _refusal(place, f"it is of type {kind.__qualname__}; {_advice(obj)}")


def _check_keys(obj: dict[Any, Any], place: _Place) -> None:
    for key in obj:
        if type(key) is not str:
            raise _refusal(place, f"its key {key!r} is of type {type(key).__qualname__}; JSON has only str")
        _check_text(key, (place, key))


def _check_text(text: str, place: _Place) -> None:
    if not text.isascii() and _SURROGATE_PAIR.search(text):
        raise _refusal(place, "its text has a pair of lone surrogates, which would come back as one character")


def _check_int(number: int, place: _Place) -> None:
    try:
        if number.bit_length() > _SURE_BITS:
            str(number)
    except ValueError as error:
        raise _refusal(place, str(error)) from None


def _advice(obj: object) -> str:
    for kind, advice in _ADVICE:
        if isinstance(obj, kind):
            return advice
    return "pass None, bool, int, float, str, or a list or dict of these"


def _refusal(place: _Place, reason: str) -> SerializationError:
    return SerializationError(_shown(place), reason)


def _shown(place: _Place) -> str:
    outer, key = place
    return str(key) if outer is None else f"{_shown(outer)}[{key!r}]"


def _refuse_constant(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")
