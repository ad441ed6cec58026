"""A small, exact async task queue: the reference implementation of an executable specification."""

from taskqueue.backend import Backend, TransactionalBackend
from taskqueue.current import CurrentTask, current_task
from taskqueue.errors import (
    DeserializationError,
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    SerializationError,
    SignatureError,
    StaleClaim,
    StoreUnavailable,
    TaskCancelled,
    TaskExists,
    TaskFailed,
    TaskNotEnded,
    TaskNotFound,
    TaskQueueError,
    TooLarge,
    UnknownScheme,
)
from taskqueue.queue import AsyncTaskQueue, Call, Enqueuer, TaskQueue
from taskqueue.result import Result
from taskqueue.retry import RetryPolicy
from taskqueue.serializers import CloudpickleSerializer, JSONSerializer, Serializer, SignedSerializer
from taskqueue.status import TaskStatus
from taskqueue.sync import SyncEnqueuer, SyncTaskQueue
from taskqueue.task import Failure, Task
from taskqueue.transition import Transition
from taskqueue.worker import Worker

TaskResult = Result
"""Another name of ``Result``, which the specification uses too."""

__all__ = [
    "AsyncTaskQueue",
    "Backend",
    "Call",
    "CloudpickleSerializer",
    "CurrentTask",
    "DeserializationError",
    "Enqueuer",
    "Failure",
    "IncompatibleStore",
    "InvalidArgument",
    "JSONSerializer",
    "NotConnected",
    "Result",
    "RetryPolicy",
    "SerializationError",
    "Serializer",
    "SignatureError",
    "SignedSerializer",
    "StaleClaim",
    "StoreUnavailable",
    "SyncEnqueuer",
    "SyncTaskQueue",
    "Task",
    "TaskCancelled",
    "TaskExists",
    "TaskFailed",
    "TaskNotEnded",
    "TaskNotFound",
    "TaskQueue",
    "TaskQueueError",
    "TaskResult",
    "TaskStatus",
    "TooLarge",
    "TransactionalBackend",
    "Transition",
    "UnknownScheme",
    "Worker",
    "current_task",
]
