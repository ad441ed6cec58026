import asyncio
import enum
import functools
import importlib
import json
import math
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskqueue import (
    DeserializationError,
    InvalidArgument,
    JSONSerializer,
    SerializationError,
    Serializer,
    SignedSerializer,
    TaskQueue,
    TaskStatus,
    Worker,
)
from taskqueue.backends.memory import MemoryBackend

TASKS = """
import functools, os
from os import path, system
from subprocess import Popen
from collections import OrderedDict

IMPORTED = []

def add(a, b=0): return a + b
async def later(a): return [a]
@functools.wraps(add)
def wrapper(*args): return add(*args)
@functools.lru_cache
def cached(a): return a
def local():
    def inner(): pass
    return inner
anonymous = lambda: None
renamed = add
constant = 7
nothing = None
partial = functools.partial(add, 1)
execute = system

class Mailer:
    def __init__(self, *args): self.args = args
    def send(self): return "sent"
    @staticmethod
    def static(a): return a
    @classmethod
    def make(cls, a): return [cls.__name__, a]
    @property
    def computed(self): raise RuntimeError("computed")
    class Inner:
        @staticmethod
        def deep(): return "deep"
    shell = Popen
    environment = os

class Loud(Mailer): pass

mailer = Mailer()

def __getattr__(name):
    raise RuntimeError("asked for " + name)
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    package = tmp_path / "json_app"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(TASKS)
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "more.py").write_text("def more(): return 'more'\n")
    (package / "__main__.py").write_text("raise SystemExit('the program ran')\n")
    (package / "broken.py").write_text("raise RuntimeError('broken on import')\n")
    (tmp_path / "json_app_evil.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield importlib.import_module("json_app.tasks")
    for name in set(sys.modules) - before:
        if name.startswith("json_app"):
            del sys.modules[name]


@pytest.fixture
def serializer() -> JSONSerializer:
    return JSONSerializer(allow=["json_app"])


def call(func: Any, *args: Any, context: Any = None, **kwargs: Any) -> dict[str, Any]:
    return {"func": func, "args": args, "kwargs": kwargs, "context": context}


def payload(path: object) -> bytes:
    return json.dumps({"v": 1, "call": {"func": path, "args": [], "kwargs": {}, "context": None}}).encode()


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, in the same order, and with the same zeros."""
    return type(one) is type(other) and (
        len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
        if isinstance(one, list)
        else same([list(pair) for pair in one.items()], [list(pair) for pair in other.items()])
        if isinstance(one, dict)
        else repr(one) == repr(other)
    )


pytestmark = pytest.mark.usefixtures("tasks")


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, -1, 10**400, -(2**63), 2**53 + 1, 0.0, -0.0, 0.1, 1e308, 5e-324, 2.0, "", 'ü\0\n"\\',
        "\U0001f600", "\ud83d", "\ude00\ud83d", "\ud83d\U0001f600", "\U0001f600\ude00", [], {}, [[], {}, [None]],
        {"": 1, "b": 2, "a": {"c": [1.5]}}, {"\ud83d": 1}, {"v": 1, "value": 2}, {"v": 1, "call": {"func": "x:y"}},
        {"func": "json_app.tasks:add", "args": [], "kwargs": {}, "context": None}, [1] * 1000, "x" * 2**20,
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_what_goes_in_comes_out_equal_and_of_the_same_types(serializer: JSONSerializer, value: Any) -> None:
    data = serializer.dumps(value)
    assert type(data) is bytes
    assert data.isascii()
    assert same(serializer.loads(data), value)


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


Point = namedtuple("Point", "x")  # noqa: PYI024 - the kind of object that people pass
CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ((1, 2), "list"),
        (Point(1), "list"),
        ({1}, "sorted list"),
        (frozenset(), "sorted list"),
        (b"x", "hexadecimal"),
        (bytearray(), "hexadecimal"),
        (datetime(2030, 1, 1, tzinfo=UTC), "isoformat"),
        (date(2030, 1, 1), "isoformat"),
        (timedelta(1), "total_seconds"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (Colour.RED, "subclass"),
        (Number.ONE, "subclass"),
        (OrderedDict(), "subclass"),
        (1j, "complex"),
        (object(), "object"),
        (len, "builtin_function"),
        (Path(), "Path"),
        ({1: 2}, "key 1 is of type int"),
        ({None: 2}, "key None"),
        ({Colour.RED: 2}, "Colour"),
        ("\ud83d\ude00", "surrogates"),
        ({"\ud83d\ude00": 1}, "surrogates"),
        (10**5000, "digits"),
        (CYCLE, "contains itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_would_not_come_back_equal_is_refused_with_its_place(
    serializer: JSONSerializer, tasks: ModuleType, value: Any, advice: str
) -> None:
    for place, obj in {
        "value": value,
        "value['x'][1]": {"x": [0, value]},
        "args[0]['x']": call(tasks.add, {"x": value}),
        "kwargs['b'][0]": call(tasks.add, 1, b=[value]),
        "context['c']": call(tasks.add, context={"c": value}),
        "timeout": call(tasks.add) | {"timeout": value},
    }.items():
        with pytest.raises(SerializationError, match=advice) as caught:
            serializer.dumps(obj)
        assert caught.value.what.startswith(place)


def test_nesting_is_taken_to_the_documented_depth_and_no_deeper(serializer: JSONSerializer) -> None:
    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 1

    assert same(serializer.loads(serializer.dumps(nested(100))), nested(100))
    with pytest.raises(SerializationError, match="100 deep"):
        serializer.dumps(nested(101))


# ---------------------------------------------------------------- calls


def test_a_call_comes_back_as_it_was(serializer: JSONSerializer, tasks: ModuleType) -> None:
    given = call(tasks.add, 1, [None, "x"], context={"a": 1}, b=2.5)
    assert serializer.loads(serializer.dumps(given)) == given
    timed = given | {"timeout": 2.5}
    assert serializer.loads(serializer.dumps(timed)) == timed
    assert serializer.loads(serializer.dumps(given | {"timeout": None})) == given | {"timeout": None}


def test_the_format_is_as_documented(serializer: JSONSerializer, tasks: ModuleType) -> None:
    assert json.loads(serializer.dumps(call(tasks.add, 1, b=2))) == {
        "v": 1,
        "call": {"func": "json_app.tasks:add", "args": [1], "kwargs": {"b": 2}, "context": None},
    }
    assert serializer.loads('{"v": 1, "value": "ü"}'.encode()) == "ü"


@pytest.mark.parametrize(
    "path", ["add", "later", "cached", "Mailer", "Mailer.send", "Mailer.static", "Mailer.make", "Mailer.Inner.deep"]
)
def test_functions_classes_and_their_methods_are_found_again(
    serializer: JSONSerializer, tasks: ModuleType, path: str
) -> None:
    func = functools.reduce(getattr, path.split("."), tasks)
    data = serializer.dumps(call(func))
    assert json.loads(data)["call"]["func"] == f"json_app.tasks:{path}"
    assert serializer.loads(data)["func"] == func


def test_an_inherited_class_method_is_refused_since_its_name_is_that_of_the_parent(
    serializer: JSONSerializer, tasks: ModuleType
) -> None:
    with pytest.raises(SerializationError, match="inherited"):
        serializer.dumps(call(tasks.Loud.make))


@pytest.mark.parametrize(
    ("choose", "advice"),
    [
        (lambda tasks: tasks.anonymous, "lambda"),
        (lambda tasks: tasks.local(), "defined in a function"),
        (lambda tasks: tasks.partial, "top level"),
        (lambda tasks: tasks.mailer.send, "bound to an object"),
        (lambda tasks: tasks.system, "not among"),
        (lambda tasks: tasks.OrderedDict, "not among"),
        (lambda _: test_the_format_is_as_documented, "not among"),
        (lambda _: len, "not among"),
        (lambda _: "".join, "no name"),
        (lambda tasks: tasks.wrapper, "another object"),
    ],
)
def test_a_function_that_a_worker_would_not_find_is_refused_when_it_is_enqueued(
    serializer: JSONSerializer, tasks: ModuleType, choose: Callable[[ModuleType], Any], advice: str
) -> None:
    with pytest.raises(SerializationError, match=advice):
        serializer.dumps(call(choose(tasks)))


def test_a_function_of_the_program_itself_is_refused_with_advice(
    serializer: JSONSerializer, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.add, "__module__", "__main__")
    with pytest.raises(SerializationError, match="move the function to a module"):
        serializer.dumps(call(tasks.add))


def test_a_function_that_was_replaced_is_refused(
    serializer: JSONSerializer, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tasks.add
    monkeypatch.setattr(tasks, "add", tasks.later)
    with pytest.raises(SerializationError, match="not defined in"):
        serializer.dumps(call(old))


# ---------------------------------------------------------------- what somebody may have written to the store


@pytest.mark.parametrize(
    "path",
    [
        "os:system", "posix:system", "builtins:eval", "builtins:exec", "subprocess:Popen", "json_app_evil:x",
        "json_appx:x", "json_app.tasks:os.system", "json_app.tasks:system", "json_app.tasks:execute",
        "json_app.tasks:path.join", "json_app.tasks:Popen", "json_app.tasks:Mailer.shell",
        "json_app.tasks:Mailer.environment.system", "json_app.tasks:OrderedDict.fromkeys",
        "json_app.tasks:functools.reduce", "json_app.tasks:renamed", "json_app.tasks:constant",
        "json_app.tasks:partial", "json_app.tasks:OrderedDict", "json_app.tasks:nothing",
        "json_app.tasks:missing", "json_app.tasks:mailer", "json_app.tasks:mailer.send",
        "json_app.tasks:Mailer.computed", "json_app.tasks:Mailer.__class__", "json_app.tasks:Mailer.mro",
        "json_app.tasks:Mailer.__subclasses__", "json_app.tasks:Mailer.__base__",
        "json_app.tasks:Mailer.__dict__", "json_app.tasks:Mailer.__init__.__globals__",
        "json_app.tasks:add.__globals__", "json_app.tasks:add.__code__", "json_app.tasks:add.__call__",
        "json_app.tasks:__builtins__", "json_app.tasks:__builtins__.eval", "json_app.tasks:__loader__",
        "json_app.tasks:__spec__", "json_app.tasks:__getattr__.x", "json_app.tasks:local.<locals>.inner",
        "json_app.tasks:<lambda>", "json_app.tasks:Loud.make", "json_app.tasks:Loud.send", "json_app.tasks:",
        "json_app.tasks", "json_app.tasks:add:add", "json_app.tasks:.add", "json_app.tasks:add.",
        "json_app:tasks", "json_app:tasks.add", "json_app.tasks.add:add", "json_app.__main__:x",
        "json_app.sub.__main__:x", "json_app.broken:x", "json_app.missing:x", ".tasks:add",
        "json_app..tasks:add", "json_app.tasks :add", "json_app.tasks\n:add", "../json_app/tasks:add",
        "json_app/tasks:add", "", ":", ":add", "__main__:add", "json_app.tasks\0:add", "json_app.\ud800:add",
        "json_app.tasks:\ud800",
    ],
    ids=ascii,
)  # fmt: skip
def test_no_name_leads_out_of_what_is_allowed(serializer: JSONSerializer, path: str) -> None:
    modules = set(sys.modules)
    with pytest.raises(DeserializationError, match="the function"):
        serializer.loads(payload(path))
    assert {name for name in set(sys.modules) - modules if not name.startswith("json_app.")} == set()


def test_the_list_is_looked_at_before_anything_is_imported(serializer: JSONSerializer) -> None:
    with pytest.raises(DeserializationError, match=r"not among \['json_app.tasks'\]") as caught:
        JSONSerializer(allow=["json_app.tasks"]).loads(payload("json_app.broken:x"))
    assert caught.value.__cause__ is None
    with pytest.raises(DeserializationError, match="broken on import"):
        serializer.loads(payload("json_app.broken:x"))


def test_a_package_on_the_list_allows_what_is_below_it_and_a_module_only_itself() -> None:
    path = payload("json_app.sub.more:more")
    assert JSONSerializer(allow=["json_app"]).loads(path)["func"]() == "more"
    assert JSONSerializer(allow=["math", "json_app.sub"]).loads(path)["func"]() == "more"
    for allow in (["json_app.tasks"], ["json_app.su"], ["json_app.sub.mor"], ["sub"], ["more"]):
        with pytest.raises(DeserializationError, match="not among"):
            JSONSerializer(allow=allow).loads(path)


def test_functions_of_extension_modules_can_be_allowed_too() -> None:
    serializer = JSONSerializer(allow={"math"})
    assert serializer.loads(serializer.dumps(call(math.sqrt, 4)))["func"] is math.sqrt


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"1", b"[]", b"{}", b"nonsense", b'{"v":1}', b'{"v":2,"value":1}', b'{"value":1}', b"\x80\x05N.",
        b'{"v":1,"value":NaN}', b'{"v":1,"value":-Infinity}', b'{"v":1,"value":1,"call":{}}', b'{"v":1,"call":null}',
        b'{"v":1,"call":{}}', b'{"v":1,"call":{"func":"json_app.tasks:add","args":[],"kwargs":{}}}',
        b'{"v":1,"call":{"func":["json_app.tasks:add"],"args":[],"kwargs":{},"context":null}}',
        b'{"v":1,"call":{"func":"json_app.tasks:add","args":{},"kwargs":{},"context":null}}',
        b'{"v":1,"call":{"func":"json_app.tasks:add","args":[],"kwargs":[],"context":null}}',
        b'{"v":1,"call":{"func":"json_app.tasks:add","args":[],"kwargs":{},"context":"x"}}',
        b'{"v":1,"value":"\xff"}', b'{"v":1,"value":' + b"[" * 100_000, b'{"v":1,"value":' + b"1" * 5000 + b"}",
        '{"v":1,"value":1}'.encode("utf-16"),
    ],
    ids=lambda data: ascii(data)[:40],
)  # fmt: skip
def test_what_it_did_not_write_is_a_clear_error(serializer: JSONSerializer, data: bytes) -> None:
    with pytest.raises(DeserializationError, match=f"JSON of {len(data)} bytes"):
        serializer.loads(data)


# ---------------------------------------------------------------- the object, and in a queue


@pytest.mark.parametrize(
    "allow", ["json_app.tasks", [], None, 7, ["json_app.*"], [""], ["json_app."], [None], ["__main__"], ["a.__main__"]]
)
def test_a_list_that_means_nothing_is_refused(allow: Any) -> None:
    with pytest.raises(InvalidArgument, match="allow"):
        JSONSerializer(allow=allow)


def test_it_is_a_serializer_and_shows_its_list() -> None:
    serializer = JSONSerializer(allow=(name for name in ("math", "json")))
    assert isinstance(serializer, Serializer)
    assert serializer.allow == ("math", "json")
    assert repr(serializer) == "JSONSerializer(allow=['math', 'json'])"


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: SignedSerializer(bytes(32), inner)])
def test_a_queue_runs_on_it(tasks: ModuleType, wrap: Callable[[Serializer], Serializer]) -> None:
    async def scenario() -> None:
        serializer = wrap(JSONSerializer(allow=["json_app.tasks"]))
        async with TaskQueue(MemoryBackend(), serializer) as queue:
            with pytest.raises(SerializationError, match=r"the call of add .* args\[1\]\['x'\] .* a list; pass a list"):
                await queue.enqueue(tasks.add, 1, {"x": (1,)})
            added = await queue.enqueue(tasks.add, 1, b=2, context={"a": 1})
            waited = await queue.enqueue(tasks.later, "x")
            bad = await queue.enqueue(tasks.Mailer)
            await Worker(queue).run_until_idle()
            results = [await queue.get_result(task_id) for task_id in (added, waited)]
            assert [result.unwrap() for result in results if result] == [3, ["x"]]
            failed = await queue.get_result(bad)
            assert failed is not None
            assert failed.status is TaskStatus.FAILED
            assert "the return value of task" in str(failed.error)
            assert "type Mailer" in str(failed.error)

    asyncio.run(scenario())


def test_a_value_is_no_payload_whatever_is_in_it(tasks: ModuleType) -> None:
    async def scenario() -> None:
        serializer = JSONSerializer(allow=["json_app.tasks"])
        async with TaskQueue(MemoryBackend(), serializer) as queue:
            task_id = await queue.enqueue(tasks.add, 1)
            task = await queue.get_task(task_id)
            value = serializer.dumps({"func": "json_app.tasks:add", "args": [1], "kwargs": {}, "context": None})
            object.__setattr__(task, "payload", value)
            with pytest.raises(DeserializationError, match="is str, not a function"):
                queue.load_call(task)

    asyncio.run(scenario())
