"""The README's first command needs the extra ``conformance`` and nothing else, in the checkout as well."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, entry_points, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SELECTION = (
    "enqueue-task-with-default-settings or no-other-field-makes-a-task-due or claims-race"
    " or processes-see-each-other or opening-and-closing[close]"
)
"""A check of each kind: a scenario, bare calls, a schedule, processes, and one that is killed."""
REFUSE = """
import os
import sys
from importlib.abc import MetaPathFinder

refused = set(os.environ["REFUSED"].split())


class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not installed by [conformance]", name=name)


sys.meta_path.insert(0, Refuse())
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(extra: str) -> set[str]:
    """Return what ``pip install -e '.[extra]'`` installs, as pyproject.toml is now."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ours, extras = plain(project["name"]), project["optional-dependencies"]
    found: set[str] = {ours}
    done: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in (*project["dependencies"], *extras[extra])]
    while waiting:
        text, asked = waiting.pop()
        requirement = Requirement(text)
        name = plain(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked}):
            continue
        for each in requirement.extras or {""}:
            if (name, each) in done:
                continue
            done.add((name, each))
            found.add(name)
            needed = extras.get(each, []) if name == ours else distribution(name).requires or []
            waiting += [(other, each) for other in needed]
    return found


def test_what_is_installed_is_followed_through_extras_and_dependencies() -> None:
    conformance, test = installed_by("conformance"), installed_by("test")
    assert {"cloudpickle", "pytest", "iniconfig", "hypothesis", "freezegun", "markupsafe"} <= conformance < test
    assert not {"aiosqlite", "asyncpg", "sphinx", "pytest-xdist", "execnet", "lmdb"} & conformance
    assert {"aiosqlite", "asyncpg", "sphinx", "pytest-xdist", "execnet", "lmdb"} <= test


def test_the_first_command_imports_nothing_that_it_does_not_install(tmp_path: Path) -> None:
    allowed = installed_by("conformance")
    others = {
        module for module, owners in packages_distributions().items() if not {plain(each) for each in owners} & allowed
    }
    assert {"asyncpg", "lmdb", "xdist"} <= others
    # Python imports this by itself when it starts, in the processes that the suite starts as well.
    (tmp_path / "sitecustomize.py").write_text(REFUSE, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "REFUSED": " ".join(others)}
    refused = subprocess.run(
        [sys.executable, "-c", "import iniconfig, asyncpg"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "asyncpg is not installed by [conformance]" in refused.stderr

    # Those of the plugins that would be there; the others cannot be imported.
    plugins = [each.name for each in entry_points(group="pytest11") if each.dist and plain(each.dist.name) in allowed]
    assert "taskqueue_conformance" in plugins
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--conformance=sqlite", "-k", SELECTION]
    done = subprocess.run(
        [*command, *(part for name in plugins for part in ("-p", name))],
        cwd=ROOT,
        env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "INCOMPLETE: sqlite passed 5 of" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
