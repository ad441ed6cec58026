r"""How an exception becomes text that any backend can store.

The text is never empty, is well-formed Unicode without NUL, and has at most ``MAX_TEXT_BYTES`` bytes as UTF-8. NUL and
lone surrogates are escaped (``\x00``, ``\udc80``), never dropped; what is longer is cut, with a mark that says so.
"""

import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from taskqueue.backend import MAX_TEXT_BYTES

_OWN_FILES: Final = str(Path(__file__).parent)
_NO_MESSAGE: Final = "failed without a message"
_LONGEST_LINE: Final = 500


def error_text(error: BaseException | str) -> str:
    """Return what went wrong, for a person to read: ``ValueError: bad``, or the text given; never empty.

    An exception without a message gives the name of its class. Whatever its ``__str__`` does, there is a text.
    """
    return storable(error if isinstance(error, str) else _described(error), tail=0) or _NO_MESSAGE


def log_text(error: BaseException | str) -> str:
    """Return the same for a log: on one line, and cut to 500 characters. The whole is in the task's record."""
    text = " ".join(error_text(error).split())
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE - 4]} ..."


def traceback_text(error: BaseException) -> str:
    """Return the formatted stack trace, with causes, notes and the members of groups.

    It begins at the first frame that is not taskqueue's own, if there is one.
    """
    try:
        text = "".join(traceback.format_exception(type(error), error, _first_foreign(error.__traceback__)))
    except BaseException as broken:  # noqa: BLE001 - the exception's own code may raise anything, and is not the task
        text = f"{_described(error)}\n(its stack trace cannot be formatted: {type(broken).__name__})\n"
    # The end of a stack trace is the exception, and its beginning tells where the call came from: both are kept.
    return storable(text, tail=MAX_TEXT_BYTES // 2)


def storable(text: str, *, tail: int = 0) -> str:
    """Return ``text`` well-formed, without NUL, and cut to ``MAX_TEXT_BYTES`` bytes of UTF-8 with a mark.

    Args:
        text: Any text, lone surrogates included.
        tail: How many of the bytes that are kept come from the end of ``text``; the mark then stands in the middle.
    """
    length = str.__len__(text)
    # A character is at least one byte, so what lies beyond this many is cut in any case: megabytes cost nothing.
    if length > 2 * MAX_TEXT_BYTES:
        start, end = str.__getitem__(text, slice(MAX_TEXT_BYTES)), str.__getitem__(text, slice(-MAX_TEXT_BYTES, None))
        return _cut(_escaped(start), _escaped(end), length, tail)
    data = _escaped(text)
    return data.decode() if len(data) <= MAX_TEXT_BYTES else _cut(data, data, length, tail)


def _cut(start: bytes, end: bytes, length: int, tail: int) -> str:
    mark = f"... [cut: {length} characters in all]"
    if tail:
        mark = f"\n{mark} ...\n"
    room = MAX_TEXT_BYTES - len(mark)
    tail = min(tail, room)
    # Dropping incomplete bytes at the two edges leaves whole characters.
    head = start[: room - tail].decode(errors="ignore")
    return head + mark + (end[-tail:].decode(errors="ignore") if tail else "")


def _escaped(text: str) -> bytes:
    return str.encode(text, "utf-8", "backslashreplace").replace(b"\0", b"\\x00")


def _described(error: BaseException) -> str:
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException as broken:  # noqa: BLE001 - as above
        message = f"(its message cannot be shown: {type(broken).__name__} in __str__)"
    if not str.strip(message):
        return name
    # With a message of megabytes this is one copy of it.
    return f"{name}: {str.__str__(message)}"


def _first_foreign(trace: TracebackType | None) -> TracebackType | None:
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        found = found.tb_next
    return found or trace
