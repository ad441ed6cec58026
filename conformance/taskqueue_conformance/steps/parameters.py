"""The typed values in phrases: instants, durations, tasks, calls and so on."""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cucumber_expressions.parameter_type import ParameterType
from cucumber_expressions.parameter_type_registry import ParameterTypeRegistry

import taskqueue
from taskqueue import TaskQueueError, TaskStatus
from taskqueue_conformance.lab import NOON

_CLOCK = r"\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?"
_INSTANT = rf"(?:\d{{4}}-\d\d-\d\d )?{_CLOCK}(?:[+-]\d\d:\d\d| without a time zone)?"
_UNITS: Mapping[str, timedelta] = {
    "microsecond": timedelta(microseconds=1),
    "millisecond": timedelta(milliseconds=1),
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_DURATION = rf"\d+(?:\.\d+)? (?:{'|'.join(_UNITS)})s?"
_STATUS = "|".join(status.name for status in TaskStatus)
_NAMES = r'"[^"]*"(?:(?:, | and )"[^"]*")*'
_LITERAL = r'None|True|False|-?\d+(?:\.\d+)?|"[^"]*"|b"[^"]*"|\[.*\]|\{.*\}'


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task as a step names it.

    Attributes:
        name: The id that it was enqueued under, or None for the latest task of the scenario.
    """

    name: str | None


@dataclass(frozen=True, slots=True)
class CallText:
    """A call as a step writes it: ``add(2, 3)``."""

    name: str
    args: tuple[Any, ...]


def instant(text: str) -> datetime:
    """Return the datetime in ``text``: the scenario's day and UTC where it names no others."""
    text, naive, _ = text.partition(" without a time zone")
    day, _, clock = text.rpartition(" ")
    moment = datetime.fromisoformat(f"{day or NOON.date().isoformat()}T{clock}")
    return moment if naive or moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """Return the timedelta in ``text``: ``30 seconds``."""
    number, unit = text.split(" ")
    return float(number) * _UNITS[unit.removesuffix("s")]


def options(text: str) -> dict[str, Any]:
    """Return the named values in ``text``: ``eta=13:00 and max_retries=3``."""
    pairs = (pair.partition("=") for pair in re.split(r"(?:, | and )(?=[a-z_]+=)", text))
    return {name: _value(value) for name, _, value in pairs}


def call(text: str) -> CallText:
    """Return the function's name and the arguments in ``text``."""
    name, _, arguments = text.partition("(")
    return CallText(name, ast.literal_eval(f"({arguments.removesuffix(')')},)") if arguments != ")" else ())


def _value(text: str) -> Any:
    readers: Mapping[str, Callable[[str], Any]] = {
        _INSTANT: instant,
        _DURATION: duration,
        _STATUS: _status,
        _LITERAL: ast.literal_eval,
    }
    for pattern, reader in readers.items():
        if re.fullmatch(pattern, text):
            return reader(text)
    raise ValueError(f"{text!r} is neither an instant, nor a duration, nor a status, nor a literal")


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r'"([^"]*)"', text))


def _task(text: str) -> TaskRef:
    return TaskRef(_names(text)[0] if '"' in text else None)


def _error(text: str) -> type[TaskQueueError]:
    error = getattr(taskqueue, text, None)
    if isinstance(error, type) and issubclass(error, TaskQueueError):
        return error
    raise ValueError(f"taskqueue has no exception called {text}")


def _status(text: str) -> TaskStatus:
    return TaskStatus[text]


def _statuses(text: str) -> tuple[TaskStatus, ...]:
    return tuple(map(_status, text.split(", ")))


@dataclass(frozen=True, slots=True)
class Parameter:
    """A type of value in the vocabulary.

    Attributes:
        name: What stands between the braces of a phrase.
        pattern: A regular expression without groups that it matches.
        read: Turns the text into the value.
        example: How it may look.
    """

    name: str
    pattern: str
    read: Callable[[str], Any]
    example: str


PARAMETERS: Final = (
    Parameter("instant", _INSTANT, instant, "`13:00`, `12:00:00.000001`, `2031-06-01 12:00`, `15:00+02:00`"),
    Parameter("duration", _DURATION, duration, "`30 seconds`, `1 microsecond`, `0.05 seconds`"),
    Parameter("status", _STATUS, _status, "`PENDING`"),
    Parameter("statuses", rf"(?:{_STATUS})(?:, (?:{_STATUS}))*", _statuses, "`PENDING, RUNNING, SUCCESS`"),
    Parameter("task", r'the task|task "[^"]*"', _task, '`the task` (the latest one), `task "a"` (by its id)'),
    Parameter("tasks", rf"no task|(?:task|tasks) {_NAMES}", _names, '`no task`, `task "a"`, `tasks "a", "b"`'),
    Parameter("call", r"[a-z_]+\([^()]*\)", call, "`add(2, 3)`"),
    Parameter("options", r"[a-z_]+=.+", options, "`eta=13:00 and max_retries=3`"),
    Parameter("value", _LITERAL, ast.literal_eval, '`5`, `"text"`, `None`, `[1, 2]`'),
    Parameter("error", "[A-Z][A-Za-z]+", _error, "`StaleClaim`"),
)
"""The types of this vocabulary; `{int}`, `{word}` and `{string}` are Cucumber's own."""


def _registry() -> ParameterTypeRegistry:
    registry = ParameterTypeRegistry()
    for parameter in PARAMETERS:
        registry.define_parameter_type(
            ParameterType(parameter.name, f"(?:{parameter.pattern})", object, parameter.read, False, False)  # noqa: FBT003 - its own parameters, positional in old versions
        )
    return registry


PARAMETER_TYPES: Final = _registry()
"""The same, for Cucumber expressions."""
