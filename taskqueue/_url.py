"""Which backend a URL means."""

import re
from importlib.metadata import entry_points
from typing import Final

from taskqueue.backend import Backend
from taskqueue.errors import InvalidArgument, UnknownScheme

ENTRY_POINT_GROUP: Final = "taskqueue.backends"
"""Packages register a scheme in this group; the entry point is a callable: URL -> unconnected backend."""


def backend_from_url(url: str) -> Backend:
    """Return a new, unconnected backend for ``url``, made by the entry point that is named like its scheme.

    Schemes are the same in either case; the entry point gets it in lower case.

    Raises:
        UnknownScheme: No installed package registers this scheme; carries the schemes that are known.
        InvalidArgument: ``url`` is not a string, or what the entry point returned is not a backend.
    """
    if not isinstance(url, str):
        raise InvalidArgument("url", url, "pass a string, for example sqlite:///taskqueue.db")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    registered = entry_points(group=ENTRY_POINT_GROUP)
    found = [point for point in registered if separator and point.name == scheme]
    if not found:
        raise UnknownScheme(without_password(url), sorted({point.name for point in registered}))
    return checked_backend(found[0].load()(f"{scheme}://{rest}"), argument="url")


def checked_backend(value: object, *, argument: str) -> Backend:
    """Check that ``value`` is an object with all methods of a backend.

    Raises:
        InvalidArgument: It is not; says which methods are missing.
    """
    if isinstance(value, str):
        raise InvalidArgument(argument, without_password(value), "for a URL there is TaskQueue.from_url(url)")
    if isinstance(value, type):
        raise InvalidArgument(argument, value, "this is a class; pass an object of it")
    methods = [name for name, member in vars(Backend).items() if not name.startswith("_") and callable(member)]
    missing = [name for name in methods if not callable(getattr(value, name, None))]
    if missing:
        raise InvalidArgument(argument, value, f"this is not a backend; it lacks: {', '.join(missing)}")
    return value  # type: ignore[return-value]  # checked just now, method by method


def without_password(url: str) -> str:
    """Return ``url`` with passwords in it replaced, or a text with one URL in it: messages end up in logs."""
    hidden = re.sub(r"(://[^/@:?#\s]*):\S*@", r"\1:***@", url)  # also where a character in it should be encoded
    return re.sub(r"([?&](?:ssl)?password=)[^&#\s]*", r"\1***", hidden)
