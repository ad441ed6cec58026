"""Reads feature files with the reference parser of Gherkin: outlines expanded, backgrounds put in front."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gherkin.errors import CompositeParserException
from gherkin.parser import Parser
from gherkin.pickles.compiler import Compiler
from gherkin.token_scanner import TokenScanner

CLAUSE_ID = re.compile(r"[A-Z][A-Z0-9]*-\d+")
"""What the id of a clause looks like: ``ETA-3``."""

_PLACEHOLDER = re.compile(r"<[^<>]+>")


class FeatureError(ValueError):
    """A feature file that cannot be run.

    Attributes:
        path: The file.
        line: The line, counted from 1.
    """

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")
        self.path = path
        self.line = line


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one scenario, with the values of its example put in.

    Attributes:
        keyword: ``Given``, ``When``, ``Then``, ``And``, ``But`` or ``*``, as written.
        text: What stands behind the keyword.
        line: Where it stands in the file.
        clauses: The clauses that a comment right above the step names: those that this very step proves.
    """

    keyword: str
    text: str
    line: int
    clauses: tuple[str, ...]

    def __str__(self) -> str:
        """Return the step as written."""
        return f"{self.keyword} {self.text}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario, or one example of an outline.

    Attributes:
        path: The file.
        line: Where the scenario begins, or the row of its example.
        title: As written, without the values of an example.
        description: The text between the title and the first step, dedented.
        examples: What stands behind ``Examples:``, for an example of an outline.
        example: The example's values by column, empty for a plain scenario.
        case: As many of its first columns as tell it from the other examples.
        tags: The tags of the feature, the scenario and the example, in this order, without ``@``.
        steps: The background's, then its own.
    """

    path: Path
    line: int
    title: str
    description: str
    examples: str
    example: Mapping[str, str]
    case: Mapping[str, str]
    tags: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature file.

    Attributes:
        path: The file.
        title: What stands behind ``Feature:``.
        prose: The text between the title and the first scenario, dedented.
        scenarios: In the order of the file, outlines expanded.
    """

    path: Path
    title: str
    prose: str
    scenarios: tuple[Scenario, ...]


def read(path: Path) -> Feature:
    """Return the feature in a file.

    Raises:
        FeatureError: The file is not Gherkin; or a scenario has no steps, an outline has no examples or names a
            column that is not there, or a line before the first step looks like a step that is misspelt.
    """
    source = path.read_text(encoding="utf-8")
    document = _parse(path, source)
    if not document.get("feature"):
        raise FeatureError(path, 1, "there is no Feature in this file")
    feature = document["feature"]
    _Outline(path, source, document).check()
    index = _Index(document)
    placed: Any = {**document, "uri": str(path)}
    pickles: Sequence[Any] = Compiler().compile(placed)
    return Feature(
        path=path,
        title=feature["name"],
        prose=_dedented(feature),
        scenarios=tuple(_scenario(path, pickle, index) for pickle in pickles),
    )


def _parse(path: Path, source: str) -> Any:
    try:
        return Parser().parse(TokenScanner(source))
    except CompositeParserException as error:
        first = error.errors[0]
        raise FeatureError(path, first.location["line"], _first_line(first)) from error


def _dedented(block: Any) -> str:
    return "\n".join(line.strip() for line in block.get("description", "").splitlines()).strip()


def _first_line(error: Exception) -> str:
    return re.sub(r"^\(\d+:\d+\): ", "", str(error).splitlines()[0])


class _Outline:
    """Finds what the parser lets pass and would run as less than what was written."""

    def __init__(self, path: Path, source: str, document: Any) -> None:
        self._path = path
        self._lines = source.splitlines()
        self._document = document

    def check(self) -> None:
        """Raise :class:`FeatureError` for the first block that is not what it seems."""
        for kind, block in _blocks(self._document["feature"]):
            line = block["location"]["line"]
            if not block["steps"]:
                raise FeatureError(self._path, line, f"this {kind} has no steps")
            self._check_line_above(block["steps"][0]["location"]["line"], line)
            if kind == "background":
                continue
            rows = [row for table in block["examples"] for row in table.get("tableBody") or ()]
            if not rows and (block["examples"] or "outline" in block["keyword"].lower()):
                raise FeatureError(self._path, line, "this outline has no examples, so it would never run")

    def _check_line_above(self, first_step: int, title: int) -> None:
        # A misspelt keyword turns a first step into prose, which nobody would run.
        above = self._lines[first_step - 2].strip()
        if first_step - 1 > title and above and not above.startswith("#"):
            raise FeatureError(
                self._path,
                first_step - 1,
                f"{above!r} is no step: does it begin with Given, When, Then, And or But? "
                "(Prose is set off from the steps by an empty line.)",
            )


def _blocks(container: Any) -> Iterator[tuple[str, Any]]:
    for child in container["children"]:
        for kind, block in child.items():
            if kind == "rule":
                yield from _blocks(block)
            else:
                yield kind, block


class _Index:
    """Finds nodes of the syntax tree by the ids that pickles refer to."""

    def __init__(self, document: Any) -> None:
        self.steps: dict[str, Any] = {}
        self.scenarios: dict[str, Any] = {}
        self.rows: dict[str, tuple[int, dict[str, str]]] = {}
        self.tables: dict[str, str] = {}
        self.cases: dict[str, int] = {}
        self._comments = {each["location"]["line"]: each["text"] for each in document["comments"]}
        for kind, block in _blocks(document["feature"]):
            self.steps.update((step["id"], step) for step in block["steps"])
            if kind == "scenario":
                self.scenarios[block["id"]] = block
                for table in block["examples"]:
                    for row in table.get("tableBody") or ():
                        names = (cell["value"] for cell in table["tableHeader"]["cells"])
                        values = (cell["value"] for cell in row["cells"])
                        self.rows[row["id"]] = (row["location"]["line"], dict(zip(names, values, strict=True)))
                        self.tables[row["id"]] = table["name"]
                rows = [self.rows[row["id"]][1] for table in block["examples"] for row in table.get("tableBody") or ()]
                self.cases[block["id"]] = _columns_to_tell_apart(rows)

    def clauses(self, line: int) -> tuple[str, ...]:
        """Return the clauses that a comment right above ``line`` names."""
        return tuple(CLAUSE_ID.findall(self._comments.get(line - 1, "")))


def _columns_to_tell_apart(rows: Sequence[Mapping[str, str]]) -> int:
    most = max(map(len, rows), default=0)
    for number in range(1, most):
        if len({tuple(row.values())[:number] for row in rows}) == len(rows):
            return number
    return most


def _scenario(path: Path, pickle: Any, index: _Index) -> Scenario:
    scenario = index.scenarios[pickle["astNodeIds"][0]]
    line: int = scenario["location"]["line"]
    example: dict[str, str] = {}
    examples = ""
    if len(pickle["astNodeIds"]) > 1:
        row = pickle["astNodeIds"][1]
        line, example = index.rows[row]
        examples = index.tables[row]
    steps = []
    for step in pickle["steps"]:
        node = index.steps[step["astNodeIds"][0]]
        at = node["location"]["line"]
        if step.get("argument"):
            raise FeatureError(path, at, "no step takes a table or a doc string")
        missing = _PLACEHOLDER.search(step["text"])
        if missing:
            raise FeatureError(path, at, f"no column of the Examples is called {missing[0]}")
        steps.append(
            Step(
                keyword=node["keyword"].strip(),
                text=step["text"],
                line=at,
                clauses=index.clauses(at),
            )
        )
    return Scenario(
        path=path,
        line=line,
        title=scenario["name"],
        description=_dedented(scenario),
        examples=examples,
        example=example,
        case=dict(list(example.items())[: index.cases[scenario["id"]]]),
        tags=tuple(tag["name"].removeprefix("@") for tag in pickle["tags"]),
        steps=tuple(steps),
    )
