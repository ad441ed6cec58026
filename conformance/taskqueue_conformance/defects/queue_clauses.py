"""Wrong queues, workers and results on a correct backend: clauses that no backend can break by itself."""

import dataclasses
import logging
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from taskqueue import Result, RetryPolicy, TaskQueue, TaskStatus, Transition
from taskqueue.backends.sqlite import SQLiteBackend
from taskqueue_conformance.defects.catalogue import wrong_queue

_RUNNING, _CANCELLED = TaskStatus.RUNNING, TaskStatus.CANCELLED


def _changed(owner: type, name: str, wrong: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a method by what ``wrong`` makes of it, up to the end."""
    original = getattr(owner, name)
    setattr(owner, name, wrong(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _result(change: Callable[[Result], Result]) -> Iterator[None]:
    """Change every result that ``get_result`` returns."""

    def wrong(original: Any) -> Any:
        async def get_result(self: TaskQueue, *args: Any, **kwargs: Any) -> Result | None:
            found: Result | None = await original(self, *args, **kwargs)
            return None if found is None else change(found)

        return get_result

    return _changed(TaskQueue, "get_result", wrong)


@wrong_queue(
    "API",
    "A call that was enqueued before is not enqueued again: the caller gets the first one's id",
    clauses="API-1 API-2 API-3",
)
def queue_merges_equal_calls() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def enqueue(self: TaskQueue, func: Any, /, *args: Any, **kwargs: Any) -> str:
            seen = self.__dict__.setdefault("seen_calls", {})
            key = (func, repr(args), repr(kwargs))
            if kwargs or key not in seen:
                seen[key] = await original(self, func, *args, **kwargs)
            return str(seen[key])

        return enqueue

    return _changed(TaskQueue, "enqueue", wrong)


@wrong_queue("API", "A result does not say which task it belongs to", clauses="API-4")
def result_without_its_task() -> Iterator[object]:
    return _result(lambda result: dataclasses.replace(result, task_id=""))


@wrong_queue("API", "Whoever waits for a result sees success, whatever it was", clauses="API-5")
def waiting_means_success() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def get_result(self: TaskQueue, task_id: str, timeout: Any = None) -> Result | None:  # noqa: ASYNC109 - the queue's own
            task = await self.get_task(task_id)
            found: Result | None = await original(self, task_id, timeout)
            waited = found is not None and not task.status.ended
            return dataclasses.replace(found, status=TaskStatus.SUCCESS) if waited and found is not None else found

        return get_result

    return _changed(TaskQueue, "get_result", wrong)


@wrong_queue("API", "A task that waits for a retry has a result already", clauses="API-6")
def retry_has_a_result() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def get_result(self: TaskQueue, task_id: str, timeout: Any = None) -> Result | None:  # noqa: ASYNC109 - the queue's own
            task = await self.get_task(task_id)
            if task.status is TaskStatus.PENDING and task.failures:
                return Result(
                    task_id=task_id, status=TaskStatus.FAILED, value=None, error=task.failures[-1].error,
                    traceback=None, enqueued_at=task.enqueued_at, finished_at=task.failures[-1].failed_at,
                    attempts=task.attempts,
                )  # fmt: skip
            found: Result | None = await original(self, task_id, timeout)
            return found

        return get_result

    return _changed(TaskQueue, "get_result", wrong)


@wrong_queue("RESULT", "Values that count as false are not serialised", clauses="RESULT-1 RESULT-2 RESULT-3")
def false_values_are_lost() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def complete_task(self: TaskQueue, task_id: str, attempt: int, value: Any) -> None:
            await original(self, task_id, attempt, value or None)

        return complete_task

    return _changed(TaskQueue, "complete_task", wrong)


@wrong_queue("RESULT", "A success has an empty error instead of none", clauses="RESULT-4")
def success_has_an_error() -> Iterator[object]:
    return _result(lambda result: dataclasses.replace(result, error=result.error or ""))


@wrong_queue("RESULT", "finished_at of a success is cut to milliseconds", clauses="RESULT-5")
def result_in_milliseconds() -> Iterator[object]:
    def cut(result: Result) -> Result:
        at = result.finished_at
        return (
            dataclasses.replace(result, finished_at=at.replace(microsecond=at.microsecond // 1000 * 1000))
            if result.status is TaskStatus.SUCCESS
            else result
        )

    return _result(cut)


@wrong_queue("RESULT", "A first failure is told as success in the result", clauses="RESULT-6", also="API")
def failure_without_a_value_is_success() -> Iterator[object]:
    def told(result: Result) -> Result:
        seconds = (result.finished_at - result.enqueued_at).total_seconds()
        return dataclasses.replace(result, status=TaskStatus.SUCCESS) if seconds % 1 else result

    return _result(told)


@wrong_queue("RESULT", "The error of a result is its type alone", clauses="RESULT-7", also="LIFECYCLE")
def error_is_its_type() -> Iterator[object]:
    return _result(
        lambda result: (
            result
            if result.error is None or "disk" not in result.error
            else dataclasses.replace(result, error=result.error.partition(":")[0])
        )
    )


@wrong_queue("RESULT", "The traceback of a result lacks its last frame", clauses="RESULT-8")
def traceback_lacks_a_frame() -> Iterator[object]:
    def short(result: Result) -> Result:
        return result if not result.traceback else dataclasses.replace(result, traceback=result.traceback[:40])

    return _result(short)


@wrong_queue("RESULT", "finished_at of a failure is cut to seconds", clauses="RESULT-9")
def failure_ends_on_the_second() -> Iterator[object]:
    def cut(result: Result) -> Result:
        at = result.finished_at.replace(microsecond=0)
        return dataclasses.replace(result, finished_at=at) if result.status is TaskStatus.FAILED else result

    return _result(cut)


@wrong_queue("ETA", "An immediate task is due at the next whole second", clauses="ETA-1 ETA-2 ETA-3")
def immediate_is_rounded_up() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def enqueue(self: TaskQueue, func: Any, /, *args: Any, **kwargs: Any) -> str:
            now = self.now()
            if kwargs.get("eta") is None and now.microsecond:
                kwargs["eta"] = now.replace(microsecond=0) + timedelta(seconds=1)
            return str(await original(self, func, *args, **kwargs))

        return enqueue

    return _changed(TaskQueue, "enqueue", wrong)


@wrong_queue("ETA", "The offset of an eta is dropped", clauses="ETA-4 ETA-5", seen_in="huey#215")
def eta_loses_its_offset() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def enqueue(self: TaskQueue, func: Any, /, *args: Any, **kwargs: Any) -> str:
            if isinstance(kwargs.get("eta"), datetime) and kwargs["eta"].tzinfo is not None:
                kwargs["eta"] = kwargs["eta"].replace(tzinfo=UTC)
            return str(await original(self, func, *args, **kwargs))

        return enqueue

    return _changed(TaskQueue, "enqueue", wrong)


@wrong_queue("CONFIG", "The default file has another name", clauses="CONFIG-1 CONFIG-2")
def another_default_file() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, backend: Any = None, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            original(self, SQLiteBackend("queue.db") if backend is None else backend, *args, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue("CONFIG", "The default serializer is another one", clauses="CONFIG-3")
def another_default_serializer() -> Iterator[object]:
    import cloudpickle  # noqa: PLC0415 - a dependency of taskqueue's

    class Plain:
        dumps = staticmethod(cloudpickle.dumps)
        loads = staticmethod(cloudpickle.loads)

    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, backend: Any = None, serializer: Any = None, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            original(self, backend, Plain() if serializer is None else serializer, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue("CONFIG", "The default timeout is doubled", clauses="CONFIG-4", also="API")
def default_timeout_is_ignored() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            if kwargs.get("default_result_timeout") is not None:
                kwargs["default_result_timeout"] = 0
            original(self, *args, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue(
    "CONFIG",
    "A timeout of zero falls back on the default: timeout or default",
    clauses="CONFIG-5",
    seen_in="BullMQ#3052",
)
def zero_timeout_means_default() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def get_result(self: TaskQueue, task_id: str, timeout: Any = None) -> Result | None:  # noqa: ASYNC109 - the queue's own
            found: Result | None = await original(self, task_id, timeout or self.default_result_timeout or 0)
            return found

        return get_result

    return _changed(TaskQueue, "get_result", wrong)


@wrong_queue("CONFIG", "Entering the block does not connect", clauses="CONFIG-6")
def entering_does_not_connect() -> Iterator[object]:
    def wrong(_: Any) -> Any:
        async def __aenter__(self: TaskQueue) -> TaskQueue:  # noqa: N807 - it takes its place
            return self

        return __aenter__

    return _changed(TaskQueue, "__aenter__", wrong)


@wrong_queue("CONFIG", "Leaving the block does not close", clauses="CONFIG-7")
def leaving_does_not_close() -> Iterator[object]:
    def wrong(_: Any) -> Any:
        async def __aexit__(self: TaskQueue, *_: object) -> None:  # noqa: N807 - it takes its place
            return

        return __aexit__

    return _changed(TaskQueue, "__aexit__", wrong)


@wrong_queue("CONTEXT", "A first attempt does not see the context", clauses="CONTEXT-1 CONTEXT-3")
def first_attempt_has_no_context() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def load_call(self: TaskQueue, task: Any) -> Any:
            call = original(self, task)
            return dataclasses.replace(call, context={"request_id": None}) if task.attempts == 1 else call

        return load_call

    return _changed(TaskQueue, "load_call", wrong)


@wrong_queue("CONTEXT", "An empty context counts as none", clauses="CONTEXT-2")
def empty_context_is_none() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def enqueue(self: TaskQueue, func: Any, /, *args: Any, **kwargs: Any) -> str:
            if "context" in kwargs:
                kwargs["context"] = kwargs["context"] or None
            return str(await original(self, func, *args, **kwargs))

        return enqueue

    return _changed(TaskQueue, "enqueue", wrong)


@wrong_queue("LIFECYCLE", "A cancellation of a RUNNING task is not announced", clauses="LIFECYCLE-1", also="L1")
def cancellation_is_silent() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, *args: Any, on_transition: Any = None, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            def told(step: Transition) -> None:
                if on_transition is not None and (step.source, step.target) != (_RUNNING, _CANCELLED):
                    on_transition(step)

            original(self, *args, on_transition=told, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue(
    "LIFECYCLE",
    "The error of a failure is recorded without its type",
    clauses="LIFECYCLE-2 LIFECYCLE-3 LIFECYCLE-4 LIFECYCLE-5",
    also="RESULT",
)
def error_without_its_type() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        async def fail_task(self: TaskQueue, task_id: str, attempt: int, error: Any, **kwargs: Any) -> Any:
            if isinstance(error, BaseException) and str(error):
                kwargs["traceback"] = kwargs.get("traceback") or "".join(traceback.format_exception(error))
                error = str(error)
            return await original(self, task_id, attempt, error, **kwargs)

        return fail_task

    return _changed(TaskQueue, "fail_task", wrong)


@wrong_queue("BUDGET", "The queue's own budget is ignored", clauses="BUDGET-1")
def own_budget_is_ignored() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            kwargs.pop("max_retries", None)
            original(self, *args, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue("POLICY", "The default policy waits the same time again and again", clauses="POLICY-2")
def constant_delay_by_default() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def __init__(self: TaskQueue, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes its place
            kwargs.setdefault("retry_policy", RetryPolicy(factor=1))
            original(self, *args, **kwargs)

        return __init__

    return _changed(TaskQueue, "__init__", wrong)


@wrong_queue("POLICY", "The cap of the policy is ignored", clauses="POLICY-1 POLICY-3 POLICY-4")
def cap_is_ignored() -> Iterator[object]:
    def wrong(original: Any) -> Any:
        def delay(self: RetryPolicy, attempt: int) -> timedelta:
            longer = dataclasses.replace(self, cap=timedelta(days=1))
            found: timedelta = original(longer, attempt)
            return found

        return delay

    return _changed(RetryPolicy, "delay", wrong)


@wrong_queue("POLICY", "A worker does not log when the retry is due", clauses="POLICY-5 POLICY-6 POLICY-7")
def worker_logs_no_eta() -> Iterator[object]:
    def silent(record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().partition("20")[0], ()
        return True

    logger = logging.getLogger("taskqueue.worker")
    logger.addFilter(silent)
    try:
        yield None
    finally:
        logger.removeFilter(silent)
