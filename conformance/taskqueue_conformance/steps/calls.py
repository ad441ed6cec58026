"""The functions that tasks of the features call. Importable, so that every serializer can name them."""

from typing import Any, Final

from taskqueue import CurrentTask, current_task

EXECUTIONS: Final[list[tuple[str, tuple[Any, ...]]]] = []
"""The calls that have been executed in this process since the scenario began, oldest first."""


async def add(left: int, right: int) -> int:
    """Return the sum; a coroutine function, so that it runs on the worker's event loop."""
    EXECUTIONS.append(("add", (left, right)))
    return left + right


def echo(value: Any) -> Any:
    """Return the argument; a plain function, so that it runs in a thread."""
    EXECUTIONS.append(("echo", (value,)))
    return value


async def fail(message: str = "") -> None:
    """Raise ``ValueError`` with this message, or without any."""
    EXECUTIONS.append(("fail", (message,) if message else ()))
    raise ValueError(message) if message else ValueError


async def fail_before_attempt(attempt: int) -> str:
    """Fail until the attempt with this number, which succeeds."""
    EXECUTIONS.append(("fail_before_attempt", (attempt,)))
    now = _current().attempt
    if now < attempt:
        raise RuntimeError(f"attempt {now} fails")
    return f"attempt {now} succeeds"


async def request_id() -> Any:
    """Return what the context of the running task says."""
    EXECUTIONS.append(("request_id", ()))
    context = _current().context
    return None if context is None else context["request_id"]


def _current() -> CurrentTask:
    current = current_task()
    if current is None:
        raise RuntimeError("current_task() is None inside a task")
    return current


FUNCTIONS: Final = {each.__name__: each for each in (add, echo, fail, fail_before_attempt, request_id)}
"""The functions by the name that a step uses."""
