"""Renders the features, with the verdicts of a run beside the scenarios, and the manifest of clauses as pages.

A Sphinx extension: before Sphinx looks for pages it writes ``docs/specification/*.md``, which is not kept in the
repository. Where the run did not pass a scenario, or did not run it, the build warns.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from gherkin.parser import Parser
from gherkin.token_scanner import TokenScanner
from markupsafe import Markup, escape
from run_scenarios import NoReport, report
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

from taskqueue_conformance.feature_files import CLAUSE_ID
from taskqueue_conformance.requirements import REQUIREMENTS

FEATURES: Final = Path(__file__).parents[2] / "features"
ORDER: Final = (
    "async_taskqueue_api", "task_ids", "eta_scheduling_semantics", "task_context", "taskqueue_configuration",
    "result_model", "task_status_lifecycle", "claims_and_leases", "retry_budget_semantics", "retry_policy_ownership",
    "recovery", "cancellation", "purging",
)  # fmt: skip
"""The features in the order in which they explain each other; others follow in alphabetical order."""

_log: Final = logging.getLogger(__name__)
_VALUE: Final = re.compile(r'"[^"]*"|<[^<>]+>')


@dataclass(frozen=True, slots=True)
class Step:
    """One step as written."""

    keyword: str
    text: str
    clauses: tuple[str, ...]

    @property
    def html(self) -> Markup:
        """The text with placeholders and quoted values marked."""
        parts, end = [], 0
        for found in _VALUE.finditer(self.text):
            kind = "var" if found[0].startswith("<") else "q-value"
            value = escape(found[0].strip("<>") if kind == "var" else found[0])
            marked = Markup("<var>{}</var>") if kind == "var" else Markup('<span class="value">{}</span>')
            parts += [escape(self.text[end : found.start()]), marked.format(value)]
            end = found.end()
        return Markup("").join([*parts, escape(self.text[end:])])


@dataclass(frozen=True, slots=True)
class Row:
    """One example of an outline, and what became of it."""

    cells: tuple[str, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class Table:
    """The examples of an outline."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario or outline, and what became of it."""

    title: str
    description: str
    clauses: tuple[str, ...]
    steps: tuple[Step, ...]
    tables: tuple[Table, ...]
    outcomes: tuple[str, ...]
    milliseconds: float

    @property
    def outcome(self) -> str:
        """``passed`` if every example was; otherwise the first outcome that is another."""
        return next((outcome for outcome in self.outcomes if outcome != "passed"), "passed")

    @property
    def verdict(self) -> str:
        """The outcome, with the number of examples where there are several."""
        passed = self.outcomes.count("passed")
        return f"{passed} of {len(self.outcomes)} examples passed" if self.tables else self.outcome

    @property
    def anchor(self) -> str:
        """The id of its heading, as docutils makes it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature file."""

    name: str
    title: str
    prose: str
    background: tuple[Step, ...]
    scenarios: tuple[Scenario, ...]
    clauses: tuple[str, ...]

    @property
    def examples(self) -> int:
        """How often its scenarios ran."""
        return sum(len(scenario.outcomes) for scenario in self.scenarios)

    @property
    def passed(self) -> int:
        """How many of these passed."""
        return sum(scenario.outcomes.count("passed") for scenario in self.scenarios)


class Reader:
    """Reads feature files, and looks up in a report what became of each scenario."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._checks = {
            (check["scenario"]["feature"], check["scenario"]["line"]): check
            for requirement in run["requirements"]
            for check in requirement["checks"]
            if check["scenario"] is not None
        }

    def read(self, path: Path) -> Feature:
        """Return the feature in a file."""
        document: Any = Parser().parse(TokenScanner(path.read_text("utf-8")))
        feature = document["feature"]
        comments = {comment["location"]["line"]: comment["text"] for comment in document["comments"]}
        background: tuple[Step, ...] = ()
        scenarios = []
        for child in feature["children"]:
            if "background" in child:
                background = _steps(child["background"], comments)
            elif "scenario" in child:
                scenarios.append(self._scenario(path, child["scenario"], comments))
            else:
                raise ExtensionError(f"{path.name} has a {' and a '.join(child)}, which no page can show yet")
        clauses = dict.fromkeys(clause for scenario in scenarios for clause in scenario.clauses)
        prose = _dedented(feature["description"])
        return Feature(path.stem, feature["name"], prose, background, tuple(scenarios), tuple(clauses))

    def _scenario(self, path: Path, scenario: Any, comments: Mapping[int, str]) -> Scenario:
        tables = tuple(
            Table(
                title=examples["name"],
                header=_cells(examples["tableHeader"]),
                rows=tuple(Row(_cells(row), self._outcome(path, row)) for row in examples["tableBody"]),
            )
            for examples in scenario["examples"]
        )
        places = [row for examples in scenario["examples"] for row in examples["tableBody"]] or [scenario]
        return Scenario(
            title=scenario["name"],
            description=_dedented(scenario["description"]),
            clauses=tuple(tag for tag in (each["name"][1:] for each in scenario["tags"]) if CLAUSE_ID.fullmatch(tag)),
            steps=_steps(scenario, comments),
            tables=tables,
            outcomes=tuple(self._outcome(path, place) for place in places),
            milliseconds=1000 * sum(self._check(path, place)["duration_s"] for place in places),
        )

    def _check(self, path: Path, place: Any) -> Mapping[str, Any]:
        line = place["location"]["line"]
        try:
            found: Mapping[str, Any] = self._checks[path.name, line]
        except KeyError:
            raise ExtensionError(
                f"the report knows no scenario at {path.name}:{line}: it is of another version of the features"
            ) from None
        return found

    def _outcome(self, path: Path, place: Any) -> str:
        outcome: str = self._check(path, place)["outcome"]
        return outcome


def _steps(block: Any, comments: Mapping[int, str]) -> tuple[Step, ...]:
    return tuple(
        Step(
            step["keyword"].strip(),
            step["text"],
            tuple(CLAUSE_ID.findall(comments.get(step["location"]["line"] - 1, ""))),
        )
        for step in block["steps"]
    )


def _cells(row: Any) -> tuple[str, ...]:
    return tuple(cell["value"] for cell in row["cells"])


def _dedented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines()).strip()


def _ordered(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem))


def pages(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Render every page: its name without the ending, and its text."""
    reader = Reader(run)
    features = [reader.read(path) for path in _ordered(list(FEATURES.glob("*.feature")))]
    clauses = json.loads((FEATURES / "clauses.json").read_text("utf-8"))["clauses"]
    texts = {clause["id"]: clause for clause in clauses}
    proofs = {
        clause["id"]: [
            (feature.name, scenario)
            for feature in features
            for scenario in feature.scenarios
            if clause["id"] in scenario.clauses
        ]
        for clause in clauses
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["day"] = lambda text: datetime.fromisoformat(text).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
    for feature in features:
        yield feature.name, environment.get_template("feature.md.j2").render(feature=feature, run=run, texts=texts)
    yield "index", environment.get_template("features.md.j2").render(features=features, run=run)
    groups = {
        requirement.title: [clause for clause in clauses if clause["requirement"] == requirement.id]
        for requirement in REQUIREMENTS.values()
    }
    yield (
        "clauses",
        environment.get_template("clauses.md.j2").render(
            groups={title: group for title, group in groups.items() if group}, proofs=proofs
        ),
    )
    for feature in features:
        for scenario in feature.scenarios:
            if scenario.outcome != "passed":
                _log.warning("%s / %s: %s", feature.title, scenario.title, scenario.verdict)


def write(app: Sphinx) -> None:
    """Write the pages, those that have changed, and remove those of features that are gone."""
    folder = Path(app.srcdir) / "specification"
    folder.mkdir(exist_ok=True)
    try:
        run = report(app.config.conformance_report, folder.parent / "_build" / "scenarios.json")
    except NoReport as error:
        raise ExtensionError(str(error)) from error
    written = set()
    for name, text in pages(run):
        path = folder / f"{name}.md"
        written.add(path)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for stale in set(folder.glob("*.md")) - written:
        stale.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the setting and the writing of the pages."""
    app.add_config_value("conformance_report", "", "", types=(str,))
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
