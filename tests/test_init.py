import subprocess
import sys

import taskqueue


def test_all_lists_the_public_names_and_each_exists() -> None:
    assert list(taskqueue.__all__) == sorted(set(taskqueue.__all__))
    for name in taskqueue.__all__:
        assert getattr(taskqueue, name) is not None


def test_the_specification_s_names_are_the_same_classes() -> None:
    assert taskqueue.AsyncTaskQueue is taskqueue.TaskQueue
    assert taskqueue.TaskResult is taskqueue.Result


def test_importing_it_loads_no_driver_no_kit_and_no_test_tool() -> None:
    code = "import sys, taskqueue; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "taskqueue.queue" in names
    unwanted = {"aiosqlite", "sqlite3", "pytest", "freezegun", "taskqueue_conformance", "taskqueue.backends.sqlite"}
    assert unwanted.isdisjoint(names)
