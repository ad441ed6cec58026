"""A target that cannot be tested gets one clear message and a non-zero exit, never a page of tracebacks."""

import pytest

MODULE = """
import os
from taskqueue.backends.memory import MemoryBackend

def good(store): return MemoryBackend(store)
async def coroutine(store): return MemoryBackend(store)
def raising(store): raise OSError("no such server: db7")
def nothing(store): return None
number = 7

class Partial:
    async def connect(self): ...
    async def close(self): ...
    async def enqueue(self, tasks): ...
def partial(store): return Partial()

class Renamed(MemoryBackend):
    async def claim(self, *, at, limit, lease_expires_at): ...
def renamed(store): return Renamed(store)

shared = MemoryBackend("everybody")
def one_store(store): return MemoryBackend("everybody")
def many_stores(store): return MemoryBackend()

class Harness:
    capabilities = frozenset()
    def backend(self, store): return MemoryBackend(store)
class Claimant(Harness):
    capabilities = frozenset({"telepathic"})
class Deviant(Harness):
    deviations = {"edges/E1/nothing-of-the-kind": "https://example.org/1"}
class Unbuildable(Harness):
    def __init__(self): raise RuntimeError("no licence")
class Unstartable(Harness):
    def start(self): raise RuntimeError("no server")
"""


@pytest.fixture
def outsider(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(mypackage=MODULE, broken="import nowhere_to_be_found", raises="1 / 0")
    pytester.syspathinsert()
    return pytester


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nosuchmodule:make", "there is no module 'nosuchmodule'"),
        ("mypackage.sub:make", "there is no module 'mypackage.sub'"),
        ("broken:make", "importing broken failed: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raises:make", "importing raises failed: ZeroDivisionError: division by zero"),
        ("mypackage:goood", "has no 'goood'; it has"),
        ("mypackage:number", "which cannot be called"),
        ("mypackage:coroutine", "is a coroutine function; write a plain function"),
        ("mypackage:raising", "raised OSError: no such server: db7"),
        ("mypackage:nothing", "returned None of type NoneType, which lacks connect, close, clone"),
        ("mypackage:partial", "which lacks clone, claim, extend, complete, fail"),
        ("mypackage:renamed", "claim() does not take now"),
        ("mypackage:one_store", "a task enqueued in one store is found in another"),
        ("mypackage:many_stores", "Equal names must share a store"),
        ("mypackage:Claimant", "claims the unknown capabilities telepathic"),
        ("mypackage:Deviant", "no check is called 'edges/E1/nothing-of-the-kind'"),
        ("mypackage:Unbuildable", "making the harness failed: RuntimeError: no licence"),
        ("mypackage:Unstartable", "Harness.start() failed: no server"),
        ("sqlight", "no scheme of this name is registered; known here: memory, postgres, postgresql, sqlite"),
        ("sqlite:///some.db", "a URL names one store, and the suite needs many"),
    ],
)
def test_a_target_that_cannot_be_tested_is_explained_in_one_message(
    outsider: pytest.Pytester, target: str, says: str
) -> None:
    result = outsider.runpytest_inprocess(f"--conformance={target}")
    text = "\n".join(result.errlines)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in text
    assert target in text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in "\n".join(result.outlines)


def test_a_path_given_as_the_target_by_mistake_is_recognised(outsider: pytest.Pytester) -> None:
    outsider.mkdir("tests")
    result = outsider.runpytest_inprocess("--conformance", "tests/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "this is a path, not a backend" in "\n".join(result.errlines)


def test_without_a_value_and_without_the_ini_option_the_message_names_the_option(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "conformance_backend" in "\n".join(result.errlines)


def test_a_report_without_the_suite_is_refused(outsider: pytest.Pytester) -> None:
    result = outsider.runpytest_inprocess("--conformance-report=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--conformance-report needs --conformance" in "\n".join(result.errlines)


@pytest.mark.parametrize("target", ["mypackage:good", "mypackage:Harness", "memory"])
def test_factories_harnesses_and_schemes_are_collected(outsider: pytest.Pytester, target: str) -> None:
    result = outsider.runpytest_inprocess(f"--conformance={target}", "--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK
    assert any("conformance/edges::E1-" in line for line in result.outlines)
    assert any("conformance/scenarios::ETA-" in line for line in result.outlines)


def test_the_ini_option_names_the_target_of_a_bare_option(outsider: pytest.Pytester) -> None:
    outsider.makeini("[pytest]\nconformance_backend = mypackage:good")
    result = outsider.runpytest_inprocess("--conformance", "--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK
    assert any("conformance/edges::E1-" in line for line in result.outlines)
