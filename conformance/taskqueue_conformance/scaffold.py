"""``new``: a small package to begin a backend with, in which the suite runs at once and says what to write next."""

import argparse
import inspect
import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from taskqueue import Backend
from taskqueue_conformance.suite import SUITE_VERSION

TARGET: Final = "{name}.testing:Harness"


@dataclass(frozen=True, slots=True)
class Stage:
    """Methods to write together.

    Attributes:
        methods: Their names.
        select: What ``-k`` selects of the layer *edges* once they are written.
        shows: What that shows.
    """

    methods: tuple[str, ...]
    select: str
    shows: str


STAGES: Final = (
    Stage(
        ("connect", "close", "clone", "enqueue", "get"),
        "close-may-be-repeated or clone-shares",
        "what every other check begins with",
    ),
    Stage(
        ("counts", "tasks", "next_due"), "a-thousand-tasks-are-enqueued", "1,000 tasks in one call, listed and counted"
    ),
    Stage(("claim",), "E1- or E2-", "due, limit, nothing hidden"),
    Stage(("complete", "fail", "expired"), "V1- or V2- or C3-", "outcomes, retries, order"),
    Stage(("extend", "cancel", "purge"), "L1- or L2- or L3- or G1-", "guards and refusals"),
    Stage(("wait",), "W1- or X1- or HANDLES-", "hints, cancellation, connections"),
)
"""The order in which each method can be tried as soon as it is there."""

_FILES: Final = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    ".github/workflows/conformance.yml": "conformance.yml.j2",
    "{name}/__init__.py": "init.py.j2",
    "{name}/backend.py": "backend.py.j2",
    "{name}/testing.py": "testing.py.j2",
    "tests/test_backend.py": "test_backend.py.j2",
}


class ScaffoldError(Exception):
    """No package can be written; the message says why, and nothing was."""


def create(name: str, directory: Path) -> Path:
    """Write the package ``name`` into a new folder of that name below ``directory``, and return the folder.

    Raises:
        ScaffoldError: The name is not fit for a package, or there is something already. Nothing was written.
    """
    complaint = _complaint(name)
    if complaint:
        raise ScaffoldError(complaint)
    folder = directory / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ScaffoldError(
            f"{folder} is there already, and nothing in it is overwritten: choose another name or folder"
        )
    for path, text in _texts(name).items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        # Never over what somebody else has put there meanwhile.
        with place.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return folder


def _complaint(name: str) -> str | None:
    plain = re.sub(r"[-_.]+", "-", name)
    installed = {re.sub(r"[-_.]+", "-", each.name).lower() for each in distributions() if each.name}
    fit = re.fullmatch(r"[a-z][a-z0-9_]*", name)
    better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
    hint = f". {better!r} would do" if better else ""
    reasons = (
        (not fit, f"is not fit for a package: small letters, digits and underscores, beginning with a letter{hint}"),
        (keyword.iskeyword(name) or keyword.issoftkeyword(name), "is a word of Python itself"),
        (name in sys.stdlib_module_names, "is a module of Python's standard library, which the package would hide"),
        (name in {"tests", "conformance"}, "is the name of a folder that means something else here"),
        (plain in installed or name in packages_distributions(), "is the name of a package that is installed here"),
        (fit and _is_module(name), "is the name of a module that can be imported here"),
    )
    return next((f"{name!r} {why}" for reason, why in reasons if reason), None)


def _is_module(name: str) -> bool:
    # Any folder in the working directory can be imported too; such a one has no origin, and is looked at later.
    found = find_spec(name)
    return found is not None and found.origin is not None


def _texts(name: str) -> dict[str, str]:
    # A template library is needed for this alone.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - see above

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates") / "new"),
        autoescape=False,  # noqa: S701 - what is made is no page, and the name has been looked at
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {
        "name": name,
        "dist": name.replace("_", "-"),
        "cls": "".join(part.capitalize() for part in name.split("_")) + "Backend",
        "target": TARGET.format(name=name),
        "methods": list(_methods()),
        "stages": STAGES,
        "version": version("taskqueue-spec"),
        "suite": SUITE_VERSION,
    }
    return {
        path.format(name=name): environment.get_template(template).render(values) for path, template in _FILES.items()
    }


def _methods() -> Iterator[str]:
    """Yield each method of the contract as it is written there, with a way out in place of its body."""
    for name, member in vars(Backend).items():
        if name.startswith("_") or not inspect.isfunction(member):
            continue
        source = re.sub(r"  # noqa: .*", "", inspect.getsource(member)).rstrip()
        head, dots, rest = source.rpartition("...")
        if not dots or rest:
            raise RuntimeError(f"the contract's {name} has a body, which is not for copying")
        yield f'{head}raise _to_do("{name}")'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("name", help="what the package is imported as, such as mypackage")
    parser.add_argument(
        "--directory", type=Path, default=Path(), metavar="DIR", help="where its folder goes (default: here)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the package and say how to go on; return 0, or 2 if there is none."""
    try:
        folder = create(options.name, options.directory)
    except ScaffoldError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a command
        return 2
    print(  # noqa: T201 - the same
        f"{folder} is a backend in which nothing works yet. The suite says what to write next:\n\n"
        f"    cd {folder}\n"
        "    pip install -e '.[test]'\n"
        "    pytest --conformance -x\n\n"
        f"README.md has the order of the methods, and {options.name}/backend.py what each must do."
    )
    return 0
