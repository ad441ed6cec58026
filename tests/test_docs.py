"""The pages in docs/ say what is so: their programs run, their commands and links exist."""

import argparse
import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest

from taskqueue_conformance import plugin
from taskqueue_conformance.__main__ import COMMANDS

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
GENERATED = {"_build", "specification"}
PAGES = [README, *(page for page in sorted(DOCS.rglob("*.md")) if not GENERATED & set(page.parts))]
TUTORIAL = DOCS / "tutorial" / "first-result.md"
ELSEWHERE = {
    TUTORIAL,  # below
    DOCS / "explanation" / "real-engines.md",  # test_engines.py
    DOCS / "how-to" / "write-a-backend.md",  # conformance/test_outsider.py
}
"""Pages whose programs other tests run."""
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\w+\.py)\n")
SECONDS = 60


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        textwrap.dedent(text) for _, language, text in BLOCK.findall(page.read_text("utf-8")) if language in languages
    ]


def programs(page: Path) -> dict[str, str]:
    """Return the programs of a page: their first line is a comment with the name of the file that they are."""
    return {name[1]: text for text in blocks(page, "python") if (name := NAME.match(text))}


def save(page: Path, folder: Path) -> list[str]:
    for name, text in programs(page).items():
        (folder / name).write_text(text, "utf-8")
    return list(programs(page))


def run(folder: Path, name: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TASKQUEUE")}
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{name}: {done.stderr}"
    return done.stdout


def missing(text: str) -> set[str]:
    """Return which of the frameworks that pages show are imported here and not installed."""
    used = set(re.findall(r"^from (flask|django)\b", text, re.MULTILINE))
    return {name for name in used if not _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if programs(page) and page not in ELSEWHERE], ids=lambda page: page.stem
)
def test_every_program_of_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    names = [name for name in save(page, tmp_path) if not missing((tmp_path / name).read_text("utf-8"))]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda name: run(tmp_path, name), names))
    for name, output in zip(names, outputs, strict=True):
        for promised in re.findall(
            r"^\s*(?:print|asyncio\.run)\(.*\)  # (.*)$", (tmp_path / name).read_text("utf-8"), re.MULTILINE
        ):
            assert promised in output, f"{name} prints {output!r}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_every_block_of_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for text in blocks(page, "python"):
        tree = compile(text, page.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("taskqueue"):
                module = importlib.import_module(str(node.module))
                assert {alias.name for alias in node.names} <= set(dir(module)), text


def test_the_program_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "readme.py").write_text(blocks(README, "python")[0], "utf-8")
    assert run(tmp_path, "readme.py") == "5\n"


def test_the_tutorial_goes_as_it_is_told(tmp_path: Path) -> None:
    save(TUTORIAL, tmp_path)
    told = blocks(TUTORIAL, "text")
    assert run(tmp_path, "first.py") in told
    later = tmp_path / "later.py"
    later.write_text(later.read_text("utf-8").replace("seconds=20", "seconds=1"), "utf-8")
    run(tmp_path, "later.py")
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskqueue", "worker", "--url", "sqlite:///taskqueue.db"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert run(tmp_path, "ask.py") in told
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=SECONDS)
    assert worker.returncode == 0
    # The times, the path and the number of the process are of this run.
    (shown,) = (text for text in told if "taskqueue.worker" in text)
    words = [line.split("Z ", 1)[1].split(" at ")[0] for line in shown.splitlines()[1:]]
    assert [line.split("Z ", 1)[1].split(" at ")[0] for line in log.splitlines()[1:3]] == words


SYNC_PAGE = DOCS / "how-to" / "use-from-sync-code.md"


def test_the_flask_application_of_the_page_works(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    save(SYNC_PAGE, tmp_path)
    (tmp_path / "drive.py").write_text(
        """
import asyncio
from app import app, queue
from taskqueue import TaskQueue, Worker

async def work():
    async with TaskQueue(queue.backend.clone()) as other:
        await Worker(other).run_until_idle()

client = app.test_client()
task_id = client.post("/sums/2/3").json["id"]
print(client.get(f"/sums/{task_id}").status_code)
asyncio.run(work())
print(client.get(f"/sums/{task_id}").json)
print(client.get("/sums/other").status_code)
"""
    )
    assert run(tmp_path, "drive.py") == "202\n{'status': 'success', 'sum': 5}\n404\n"


def test_the_django_view_of_the_page_enqueues_after_the_commit_only(tmp_path: Path) -> None:
    pytest.importorskip("django")
    save(SYNC_PAGE, tmp_path)
    (tmp_path / "drive.py").write_text(
        """
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from django.db import connection, transaction
from django.test import RequestFactory
from views import place_order, queue

try:
    with transaction.atomic():
        place_order(RequestFactory().post("/"))
        raise ZeroDivisionError
except ZeroDivisionError:
    print([task.id for task in queue.tasks()])
print(place_order(RequestFactory().post("/")).content.decode())
print([task.id for task in queue.tasks()])
connection.close()
"""
    )
    assert run(tmp_path, "drive.py") == "[]\n{\"order\": 7}\n['order-7']\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_and_options_of_a_page_exist(page: Path) -> None:
    from taskqueue.cli import cli  # noqa: PLC0415 - the other tests need no command

    text = "\n".join(blocks(page, "sh", "ini", "dockerfile")).replace('", "', " ").replace('"', "")
    for line in re.findall(r"(?<![\w./-])(?:\S*/bin/)?taskqueue ([^\n\]]*)", text):
        name, *words = shlex.split(line, comments=True)
        command = cli.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in known, f"taskqueue {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_options_of_the_suite_that_a_page_names_exist(page: Path) -> None:
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    known = {name for group in parser._groups for option in group.options for name in option.names()}
    for option in re.findall(r"(?<![\w-])(--conformance[\w-]*)", page.read_text("utf-8")):
        assert option in known, option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_the_suite_that_a_page_names_exist(page: Path) -> None:
    for line in re.findall(r"python -m taskqueue_conformance (?!…)([a-z][^\n`#]*)", page.read_text("utf-8")):
        name, *words = shlex.split(line)
        parser = argparse.ArgumentParser()
        importlib.import_module(f"taskqueue_conformance.{COMMANDS[name][0]}").add_arguments(parser)
        known = set(parser._option_string_actions)
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        # The pages of the features are made with the site, whose links are checked when it is built.
        if "://" not in target and not target.startswith("specification/"):
            assert (page.parent / target).exists(), target
