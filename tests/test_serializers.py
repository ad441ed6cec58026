import asyncio
import collections
import json
import math
import sys
import threading
import types
from typing import Any

import cloudpickle
import pytest

from taskqueue import (
    CloudpickleSerializer,
    DeserializationError,
    SerializationError,
    Serializer,
    SignedSerializer,
    TaskQueue,
    TaskStatus,
)
from taskqueue.backends.memory import MemoryBackend


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("no thanks")


def test_the_default_fulfils_the_protocol() -> None:
    assert isinstance(CloudpickleSerializer(), Serializer)


@pytest.mark.parametrize("obj", [None, 0, False, "", b"", [], {}, "ü\0", {"a": (1, 2.5)}, b"\x00" * 1024, 10**400])
def test_what_goes_in_comes_out(obj: object) -> None:
    serializer = CloudpickleSerializer()
    data = serializer.dumps(obj)
    assert type(data) is bytes
    loaded = serializer.loads(data)
    assert loaded == obj
    assert type(loaded) is type(obj)


def test_lambdas_closures_and_importable_functions_come_out_callable() -> None:
    serializer = CloudpickleSerializer()
    offset = 3
    assert serializer.loads(serializer.dumps(lambda x: x + offset))(4) == 7
    assert serializer.loads(serializer.dumps(math.sqrt)) is math.sqrt


@pytest.mark.parametrize("obj", [threading.Lock(), Hostile(), (i for i in ())], ids=type)
def test_what_cannot_be_pickled_is_a_clear_error(obj: object) -> None:
    with pytest.raises(SerializationError, match=type(obj).__qualname__) as caught:
        CloudpickleSerializer().dumps(obj)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", CloudpickleSerializer().dumps([1, 2])[:-3], b"cno_such_module\nx\n."]
)
def test_what_cannot_be_loaded_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(DeserializationError, match=f"{len(data)} bytes"):
        CloudpickleSerializer().loads(data)


# ---------------------------------------------------------------- many calls of one function


class Counted:
    """Callable, and tells how often it was pickled."""

    pickled = 0

    def __call__(self, x: int) -> int:
        return x + 1

    def __reduce__(self) -> tuple[object, ...]:
        Counted.pickled += 1
        return (Counted, ())


class Shouting(CloudpickleSerializer):
    """Writes JSON, and knows nothing of what stands for a function."""

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj, default=lambda func: func.__qualname__).upper().encode()


def calls_of(func: Any, serializer: Serializer) -> list[Any]:
    async def main() -> list[Any]:
        async with TaskQueue(MemoryBackend(), serializer=serializer) as queue:
            await queue.enqueue_many(func, [(1,), {"x": 2}, ([3],)], context={"c": 1})
            return [serializer.loads(task.payload) async for task in queue.tasks()]

    return asyncio.run(main())


@pytest.mark.parametrize("serializer", [CloudpickleSerializer(), SignedSerializer(b"k" * 32)], ids=repr)
def test_a_function_of_many_calls_is_pickled_once(serializer: Serializer) -> None:
    Counted.pickled = 0
    offset = 3
    first, second, third = calls_of(Counted(), serializer)
    assert Counted.pickled == 1
    assert (first["func"](1), first["args"], second["kwargs"], third["args"]) == (2, (1,), {"x": 2}, ([3],))
    assert [call["func"](1) for call in calls_of(lambda x: x + offset, serializer)] == [4, 4, 4]
    assert calls_of(math.sqrt, serializer)[0] == {"func": math.sqrt, "args": (1,), "kwargs": {}, "context": {"c": 1}}


def test_a_function_that_cannot_be_pickled_is_a_clear_error_for_many_calls_too() -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"the call of .*lambda.*lock"):
        calls_of(lambda: lock, CloudpickleSerializer())


def test_a_serializer_that_was_derived_gets_the_function_itself() -> None:
    assert Shouting().prepared(calls_of) is calls_of
    assert b"CALLS_OF" in Shouting().dumps(Shouting().prepared(calls_of))


# ---------------------------------------------------------------- pickle in place of cloudpickle


class _Namespace:
    @staticmethod
    def inside() -> None: ...


def _with_another_name() -> None: ...


_with_another_name.__qualname__ = "dumps"


PLAIN_OR_NOT: dict[str, Any] = {
    "a call": {
        "func": json.dumps,
        "args": (1, "a", b"b", 1.5, None, True),
        "kwargs": {"x": [1, (2,)]},
        "context": None,
    },
    "the same object twice": {"args": (shared := ["x" * 10], shared), "func": json.dumps},
    "a lambda": {"func": lambda: 1, "args": ()},
    "a function in a class": {"func": _Namespace.inside, "args": ()},
    "a function under a name that is not its own": {"func": _with_another_name, "args": ()},
    "a class": {"func": dict, "args": (collections.OrderedDict,)},
    "a subclass of a builtin": {"func": json.dumps, "args": (collections.OrderedDict(a=1),)},
    "an enumeration": {"func": json.dumps, "args": (TaskStatus.PENDING,)},
    "many values": {"func": json.dumps, "args": ([0] * 1_000, {1, 2}, frozenset("ab"), bytearray(b"x"))},
    "None": None,
}


@pytest.mark.parametrize("obj", PLAIN_OR_NOT.values(), ids=PLAIN_OR_NOT)
def test_the_bytes_are_those_of_cloudpickle(obj: Any) -> None:
    assert CloudpickleSerializer().dumps(obj) == cloudpickle.dumps(obj)


def test_each_pickle_stands_for_itself_whatever_was_pickled_before() -> None:
    serializer, shared = CloudpickleSerializer(), ["x" * 10]
    for obj in ([shared, shared], [shared, object], [shared], [shared, lambda: 1], [shared], bytes(200_000), [shared]):
        assert serializer.dumps(obj) == cloudpickle.dumps(obj)


def test_nothing_of_what_was_pickled_is_kept() -> None:
    holder = {"x": [*range(3)]}
    before = sys.getrefcount(holder["x"])
    CloudpickleSerializer().dumps(holder)
    after = sys.getrefcount(holder["x"])
    assert after == before


def test_a_value_that_contains_itself_is_pickled_as_cloudpickle_does() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert CloudpickleSerializer().dumps(endless) == cloudpickle.dumps(endless)


@pytest.mark.parametrize("change", ["main", "gone", "replaced", "by value"])
def test_a_function_that_a_worker_would_not_find_goes_by_value(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    module = types.ModuleType("taskqueue_test_module")
    exec("def func(): return 42", vars(module))  # noqa: S102 - a module that can be taken away again
    func = vars(module)["func"]
    call = {"func": func, "args": (), "kwargs": {}, "context": None}
    name = "__main__" if change == "main" else module.__name__
    func.__module__ = name
    monkeypatch.setitem(sys.modules, name, module)
    if change == "gone":
        monkeypatch.delitem(sys.modules, name)
    elif change == "replaced":
        monkeypatch.setattr(module, "func", lambda: 0)
    elif change == "by value":
        cloudpickle.register_pickle_by_value(module)
    try:
        data = CloudpickleSerializer().dumps(call)
        assert data == cloudpickle.dumps(call)
    finally:
        if change == "by value":
            cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert CloudpickleSerializer().loads(data)["func"]() == 42
