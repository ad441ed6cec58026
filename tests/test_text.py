import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from taskqueue._text import error_text, storable, traceback_text
from taskqueue.backend import MAX_TEXT_BYTES


class Mute(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


class Exits(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(3)


class Wrong(Exception):
    def __str__(self) -> str:
        return 42  # noqa: PLE0307 - wrong on purpose


class Deep(Exception):
    def __str__(self) -> str:
        return str(self)


class Sly(str):
    __slots__ = ()

    def encode(self, *_: str) -> NoReturn:
        raise RuntimeError

    __format__ = __len__ = __getitem__ = __str__ = strip = encode


class Subclassed(Exception):
    def __str__(self) -> str:
        return Sly("sly")


class BadNotes(Exception):
    @property
    def __notes__(self) -> NoReturn:
        raise SystemExit


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - to be caught here is the point
    except BaseException as caught:  # noqa: BLE001 - SystemExit and others are tried too
        return caught


def is_storable(text: str) -> bool:
    return type(text) is str and "\0" not in text and 0 < len(text.encode()) <= MAX_TEXT_BYTES


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (ValueError(), "ValueError"),
        (ValueError(""), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        (KeyError("k"), "KeyError: 'k'"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError(2, "No such file"), "FileNotFoundError: [Errno 2] No such file"),
        (ValueError("a\0b"), "ValueError: a\\x00b"),
        (ValueError("a\udc80b\ud83d"), "ValueError: a\\udc80b\\ud83d"),
        (ValueError("ü 漢 😀"), "ValueError: ü 漢 😀"),
        (Subclassed(), "Subclassed: sly"),
        (Mute(), "Mute: (its message cannot be shown: RuntimeError in __str__)"),
        (Exits(), "Exits: (its message cannot be shown: SystemExit in __str__)"),
        (Wrong(), "Wrong: (its message cannot be shown: TypeError in __str__)"),
        (Deep(), "Deep: (its message cannot be shown: RecursionError in __str__)"),
        (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ExceptionGroup: two (2 sub-exceptions)"),
        (type("", (Exception,), {})(), "failed without a message"),
        ("given as text", "given as text"),
        ("", "failed without a message"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_text_names_the_class_and_the_message(error: BaseException | str, expected: str) -> None:
    assert error_text(error) == expected
    assert is_storable(expected)


@pytest.mark.parametrize("character", ["x", "ü", "漢", "😀", "\0", "\udc80"])
@pytest.mark.parametrize("length", [MAX_TEXT_BYTES + 1, 3 * MAX_TEXT_BYTES, 10_000_000])
def test_a_long_message_is_cut_with_a_mark_quickly(character: str, length: int) -> None:
    error = raised(ValueError("start " + character * length))
    begun = time.perf_counter()
    text, trace = error_text(error), traceback_text(error)
    assert time.perf_counter() - begun < 2
    assert is_storable(text)
    assert is_storable(trace)
    assert text.startswith("ValueError: start ")
    assert text.endswith(f"... [cut: {length + len('ValueError: start ')} characters in all]")
    assert trace.startswith("Traceback (most recent call last)")
    assert "[cut: " in trace
    # Both ends of what was there are kept.
    assert len(text.encode()) > MAX_TEXT_BYTES - 4
    assert len(trace.encode()) > MAX_TEXT_BYTES - 8


@pytest.mark.parametrize("over", [-1, 0])
def test_what_just_fits_is_not_cut(over: int) -> None:
    text = "ü" * (MAX_TEXT_BYTES // 2 + over)
    assert storable(text) == text


def test_the_end_of_a_long_trace_is_kept() -> None:
    text = storable("first" + "-" * 200_000 + "last", tail=MAX_TEXT_BYTES // 2)
    assert text.startswith("first-")
    assert text.endswith("-last")
    assert "[cut: 200009 characters in all]" in text


def test_a_trace_has_the_cause_the_notes_and_the_members_of_a_group() -> None:
    group = ExceptionGroup("outer", [ValueError("one"), TypeError("two")])
    group.add_note("a note")
    group.__cause__ = raised(KeyError("inner"))
    trace = traceback_text(raised(group))
    for part in ("KeyError: 'inner'", "direct cause", "outer", "ValueError: one", "TypeError: two", "a note", __file__):
        assert part in trace


def test_a_trace_of_a_recursion_is_short_and_names_the_function() -> None:
    def forever() -> NoReturn:
        forever()

    with pytest.raises(RecursionError) as caught:
        forever()
    trace = traceback_text(caught.value)
    assert "forever()" in trace
    assert "repeated" in trace
    assert len(trace) < 10_000


def test_an_exception_that_was_never_raised_has_a_trace_too() -> None:
    assert traceback_text(ValueError("bad")) == "ValueError: bad\n"


@pytest.mark.parametrize("make", [Mute, Exits, Wrong, Deep, Subclassed, BadNotes])
def test_a_trace_can_be_formatted_whatever_the_exception_does(make: Callable[[], BaseException]) -> None:
    trace = traceback_text(raised(make()))
    assert is_storable(trace)
    assert make.__name__ in trace
