"""A small, exact async task queue: the reference implementation of an executable specification."""

from taskqueue.backend import Backend
from taskqueue.errors import (
    DeserializationError,
    IncompatibleStore,
    InvalidArgument,
    NotConnected,
    SerializationError,
    StaleClaim,
    StoreUnavailable,
    TaskCancelled,
    TaskExists,
    TaskFailed,
    TaskNotFound,
    TaskQueueError,
    TooLarge,
    UnknownScheme,
)
from taskqueue.retry import RetryPolicy
from taskqueue.serializers import CloudpickleSerializer, Serializer
from taskqueue.status import TaskStatus
from taskqueue.task import Failure, Task

__all__ = [
    "Backend",
    "CloudpickleSerializer",
    "DeserializationError",
    "Failure",
    "IncompatibleStore",
    "InvalidArgument",
    "NotConnected",
    "RetryPolicy",
    "SerializationError",
    "Serializer",
    "StaleClaim",
    "StoreUnavailable",
    "Task",
    "TaskCancelled",
    "TaskExists",
    "TaskFailed",
    "TaskNotFound",
    "TaskQueueError",
    "TaskStatus",
    "TooLarge",
    "UnknownScheme",
]
