"""What builds the site: pages of the features, diagrams, the check of links; and that no public name is left out."""

import copy
import importlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import taskqueue
from taskqueue_conformance import report
from taskqueue_conformance.scenarios import features_folder
from taskqueue_conformance.suite import required_checks
from taskqueue_conformance.verdict import Outcome, Tally

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def site_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "site"))


def module(name: str) -> Any:
    if name != "links":
        pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
    return importlib.import_module(name)


def test_every_public_name_is_on_a_page_of_the_reference() -> None:
    page = (DOCS / "reference" / "api.rst").read_text("utf-8")
    named = set(re.findall(r"^\.\. (?:auto\w+|py:class):: (\w+)$", page, re.MULTILINE))
    in_the_contract = {"Backend", "TransactionalBackend"}
    assert named | in_the_contract == set(taskqueue.__all__)
    assert in_the_contract <= set(dir(importlib.import_module("taskqueue.backend")))


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (DOCS / "adr").glob("0*.md")]
    assert sorted(numbers) == [f"{number:04}" for number in range(1, len(numbers) + 1)]


# ---------------------------------------------------------------- the pages of the features


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """Return the report of a made-up run in which every scenario passed."""
    checks = {check.id: check for check in required_checks().values() if check.layer == "scenarios"}
    tally = Tally(checks)
    for result in tally.results.values():
        result.outcome = Outcome.PASSED
        result.notes = {"steps": [{"outcome": "passed", "duration_s": 0.001} for _ in result.check.steps]}
    info = report.RunInfo(
        target="sqlite",
        backend_class="taskqueue.backends.sqlite.SQLiteBackend",
        capabilities=[],
        not_claimed=[],
        seed=0,
        profile="default",
        repeat="pytest --conformance=sqlite",
        versions={"python": "3.13.1", "pytest": "9.0.0", "taskqueue-spec": "0.1.0"},
        platform="Linux 6.1, x86_64",
        started_at=datetime(2030, 1, 1, 12, tzinfo=UTC),
        duration_s=4.5,
    )
    return report.as_json(info, tally)


def test_every_feature_has_a_page_with_the_verdict_beside_each_scenario(run: dict[str, Any]) -> None:
    pages = dict(module("specification").pages(run))
    features = {path.stem for path in features_folder().glob("*.feature")}
    assert set(pages) == features | {"index", "clauses"}
    page = pages["eta_scheduling_semantics"]
    assert page.startswith("# ETA scheduling semantics\n")
    assert "\n## Delayed task scheduling\n" in page
    assert page.count("4 of 4 examples passed") == 1
    assert "the task has available_at=<var>utc</var>" in page
    assert '<a class="clause" href="clauses.html#eta-4">ETA-4</a>' in page
    assert "1 January 2030, 12:00 UTC: 6 of 6 passed" in page


def test_what_did_not_pass_shows_at_its_example_and_its_scenario(run: dict[str, Any]) -> None:
    broken = copy.deepcopy(run)
    example = next(
        check
        for requirement in broken["requirements"]
        for check in requirement["checks"]
        if check["scenario"]["example"].get("eta") == "18:15+05:45"
    )
    example["outcome"] = "failed"
    page = dict(module("specification").pages(broken))["eta_scheduling_semantics"]
    assert "3 of 4 examples passed" in page
    assert page.count('class="verdict failed"') == 2  # the scenario, and the row
    assert "5 of 6 passed" in page


def test_a_report_of_other_features_is_refused(run: dict[str, Any]) -> None:
    other = copy.deepcopy(run)
    other["requirements"][0]["checks"][0]["scenario"]["line"] += 1
    with pytest.raises(
        importlib.import_module("sphinx.errors").ExtensionError, match="another version of the features"
    ):
        dict(module("specification").pages(other))


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    runs = importlib.import_module("run_scenarios")
    (tmp_path / "other.json").write_text("no")
    for name in ("other.json", "missing.json"):
        with pytest.raises(runs.NoReport, match=name):
            runs.report(str(tmp_path / name), tmp_path / "cache.json")


def test_every_diagram_has_a_drawing_and_every_drawing_a_diagram() -> None:
    diagrams = module("diagrams")
    texts = [text for page in DOCS.rglob("*.md") for text in diagrams.BLOCK.findall(page.read_text("utf-8"))]
    assert {diagrams.drawing(text) for text in texts} == set(diagrams.FOLDER.glob("*.svg"))


# ---------------------------------------------------------------- readers without a screen or a mouse


@pytest.mark.parametrize(
    ("html", "better"),
    [
        ('<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">'),
        ('<aside class="toc-drawer">', '<aside class="toc-drawer" aria-label="On this page">'),
        ('<div id="search-results">', '<h1>Search</h1><div id="search-results">'),
        ('<th class="head"><p></p></th>', "<td></td>"),
        ("<pre>", '<pre tabindex="0" role="group" aria-label="A block of code">'),
        (
            '<div class="table-wrapper docutils container">',
            '<div class="table-wrapper docutils container" tabindex="0" role="group" aria-label="A table">',
        ),
        (
            "<dl>\n<dd>now,</dd>\n<dd>n</dd>\n</dl>",
            '<span class="parameters">\n<span class="parameter">now,</span>\n<span class="parameter">n</span>\n</span>',
        ),
        ("<dl>\n<dt>Words</dt><dd>what they mean</dd>\n</dl>", "<dl>\n<dt>Words</dt><dd>what they mean</dd>\n</dl>"),
    ],
)
def test_what_a_page_lacks_is_mended_once(html: str, better: str) -> None:
    mended = module("accessible").mended
    assert mended(html) == better
    assert mended(better) == better


# ---------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="b.html">', ""),
        ('<a href="b.html#there">', ""),
        ('<a href="#here"><p id="here">', ""),
        ('<a href="folder/">', ""),
        ('<a href="https://example.com/b#c">', ""),
        ('<a href="mailto:a@example.com">', ""),
        ('<link rel="canonical" href="https://example.com/">', ""),
        ('<script src="b.js?v=1"></script><link rel="stylesheet" href="b%20c.css">', ""),
        ('<a href="c.html">', "c.html leads nowhere"),
        ('<a href="b.html#gone">', "b.html#gone leads nowhere"),
        ('<a href="#gone">', "#gone leads nowhere"),
        ('<img src="gone.svg">', "gone.svg leads nowhere"),
        ('<script src="https://cdn.example.com/x.js">', "loads https://cdn.example.com/x.js from another host"),
        (
            '<link rel="stylesheet" href="//fonts.example.com/x.css">',
            "loads //fonts.example.com/x.css from another host",
        ),
    ],
)
def test_links_that_lead_nowhere_are_found(tmp_path: Path, html: str, problem: str) -> None:
    (tmp_path / "a.html").write_text(html)
    (tmp_path / "b.html").write_text('<h2 id="there">')
    (tmp_path / "b.js").touch()
    (tmp_path / "b c.css").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").touch()
    assert module("links").problems(tmp_path) == ([f"a.html: {problem}"] if problem else [])


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    assert module("links").main([str(tmp_path)]) == 1
