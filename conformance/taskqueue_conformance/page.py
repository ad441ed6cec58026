"""The report as a page: self-contained, without scripts, made from the data that ``report.schema.json`` describes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from taskqueue_conformance.verdict import Outcome, Verdict

TEMPLATES: Final = Path(__file__).with_name("templates")

MARKS: Final[Mapping[str, str]] = {
    "passed": "✓",
    "failed": "✗",
    "known deviation": "✗",
    "outdated deviation": "✗",
    "not claimed": "-",
    "not verified": "?",
    "skipped": "○",
    "not run": "○",
    "not reached": "○",
    Verdict.CONFORMANT: "✓",
    Verdict.NOT_CONFORMANT: "✗",
    Verdict.INCOMPLETE: "○",
}
"""What stands beside the words of a verdict, which never rests on its colour alone."""

_MEANINGS: Final[Mapping[str, str]] = {
    Verdict.CONFORMANT: "Every required check that applies ran, and passed.",
    Verdict.NOT_CONFORMANT: "At least one required check failed.",
    Verdict.INCOMPLETE: "No check failed, but not all that are required ran: nothing is proved yet.",
}
_DECIDED: Final = "Every required check that applies and could be decided here ran, and passed."
"""What ``CONFORMANT`` means where some were not verified."""
_LAYERS: Final[Mapping[str, str]] = {
    "scenarios": "the features, step by step, through a queue and its worker under frozen time",
    "edges": "every method and every refusal at its exact boundaries",
    "model": "random calls on two handles, each answer and stored field compared with a model of the contract",
    "schedules": "concurrent calls held at each suspension and let go in an order that the seed decides",
    "interruptions": "calls cancelled at their every await, answers lost and calls repeated",
    "processes": "several processes race for the tasks of one store",
    "kills": "processes killed in the middle of each kind of call",
    "restarts": "the server restarted in the middle of a workload",
    "hygiene": "other time zones; leaks of descriptors, threads and tasks",
    "soak": "the random layers with new seeds",
}
_UNDECIDED: Final[Mapping[str, str]] = {
    Outcome.NOT_VERIFIED: "Could not be decided here. Neither a pass nor a failure.",
    Outcome.NOT_CLAIMED: "The harness disclaims what these checks are about, so they did not apply.",
    Outcome.SKIPPED: "Skipped by the run.",
    Outcome.NOT_RUN: "Deselected, or not reached before the run ended.",
}


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    clean = printable(report)
    return environment().get_template("report.html.j2").render(_view(clean), report=clean)


def environment() -> Environment:
    """Return what the kit's pages are made with: everything that is put in is escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"took": took, "kind": kind, "mark": MARKS.__getitem__, "inline": _inline, "data": _data}
    return made


def kind(outcome: str) -> str:
    """Return the class of an outcome or a verdict in the style sheet: ``good``, ``bad`` or ``open``."""
    if outcome in {Outcome.PASSED, Verdict.CONFORMANT}:
        return "good"
    failed = {Outcome.FAILED, Outcome.DEVIATION, Outcome.OUTDATED, Verdict.NOT_CONFORMANT}
    return "bad" if outcome in failed else "open"


def took(seconds: float) -> str:
    """Return a duration for a reader, with two digits at most: ``<0.1 ms``, ``0.4 ms``, ``12 ms``, ``1.3 s``."""
    milliseconds = seconds * 1000
    if milliseconds < 0.1:  # noqa: PLR2004 - what would be shown as 0.0
        return "<0.1 ms"
    for limit, digits in ((9.95, 1), (999.5, 0)):
        if milliseconds < limit:
            return f"{milliseconds:.{digits}f} ms"
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"  # noqa: PLR2004 - the same for seconds


def printable(value: Any) -> Any:
    """Return data with those characters shown as escapes that no page can hold, such as NUL and lone surrogates."""
    if isinstance(value, str):
        return "".join(each if _fits(each) else repr(each)[1:-1] for each in value)
    if isinstance(value, Mapping):
        return {key: printable(each) for key, each in value.items()}
    return [printable(each) for each in value] if isinstance(value, list) else value


def _fits(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cs", "Cn", "Cf"}


def _inline(text: str) -> Markup:
    """Return text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def _data(text: str) -> str:
    return "data:text/plain;charset=utf-8," + quote(text)


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    checks = [check | {"of": requirement} for requirement in report["requirements"] for check in requirement["checks"]]
    features = {feature["file"]: feature for feature in report["features"]}
    told: set[str] = set()
    return {
        "meaning": _meaning(report["verdict"], checks),
        "sentence": _sentence(checks),
        "anchors": _anchors(checks),
        "passed": sum(check["outcome"] == Outcome.PASSED for check in checks),
        "total": len(checks),
        "failures": _by_broken(report["requirements"], checks),
        "failed": sum(kind(check["outcome"]) == "bad" for check in checks),
        "undecided": [
            {"outcome": outcome, "why": why, "reasons": _reasons(checks, outcome)}
            for outcome, why in _UNDECIDED.items()
            if any(check["outcome"] == outcome for check in checks)
        ],
        "layers": [
            {"name": name, "does": _LAYERS.get(name, ""), "checks": len(found), "did": report["done"].get(name, {})}
            for name, found in _by_layer(checks)
        ],
        "requirements": [
            requirement
            | {
                "passed": sum(check["outcome"] == Outcome.PASSED for check in requirement["checks"]),
                "others": _others(requirement["checks"]),
                "features": list(_features(requirement["checks"], features, told)),
                "layers": _by_layer(check for check in requirement["checks"] if check["scenario"] is None),
            }
            for requirement in report["requirements"]
        ],
        "titles": {check["id"]: check["title"] for check in checks},
        "requirement_titles": {each["id"]: each["title"] for each in report["requirements"]},
    }


def _meaning(verdict: str, checks: Iterable[Mapping[str, Any]]) -> str:
    undecided = any(check["outcome"] == Outcome.NOT_VERIFIED for check in checks)
    return _DECIDED if verdict == Verdict.CONFORMANT and undecided else _MEANINGS[verdict]


def _others(checks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say how many checks of a requirement neither passed nor failed, and what became of them."""
    counted = Counter(check["outcome"] for check in checks)
    return [f"{counted[outcome]} {outcome}" for outcome in _UNDECIDED if counted[outcome]]


def _sentence(checks: list[dict[str, Any]]) -> str:
    outcomes = [check["outcome"] for check in checks]
    failed = sum(kind(outcome) == "bad" for outcome in outcomes)
    parts = [f"{outcomes.count(Outcome.PASSED)} of {len(outcomes)} checks passed"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{count} {outcome}" for outcome in _UNDECIDED if (count := outcomes.count(outcome))]
    return ", ".join(parts) + "."


def _anchors(checks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return an id of the page for each check, unique whatever was left out of the check's own."""
    anchors: dict[str, str] = {}
    for check in checks:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", check["id"]).strip("-")
        taken = set(anchors.values())
        number = next(n for n in range(1, len(anchors) + 2) if (f"{stem}-{n}" if n > 1 else stem) not in taken)
        anchors[check["id"]] = f"{stem}-{number}" if number > 1 else stem
    return anchors


def _reasons(checks: Iterable[dict[str, Any]], outcome: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the checks of one outcome by what was said about them."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        if check["outcome"] == outcome:
            grouped.setdefault(check["message"], []).append(check)
    return list(grouped.items())


def _by_broken(
    requirements: Iterable[Mapping[str, Any]], checks: Iterable[dict[str, Any]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the failures by the requirement that they show to be broken, in the order of the specification."""
    order: dict[str, list[dict[str, Any]]] = {requirement["id"]: [] for requirement in requirements}
    for check in checks:
        if kind(check["outcome"]) == "bad":
            order[check["breaks"] or check["of"]["id"]].append(check)
    return [(broken, found) for broken, found in order.items() if found]


def _by_layer(checks: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        grouped.setdefault(check["layer"], []).append(check)
    order = [*_LAYERS, *grouped]
    return sorted(grouped.items(), key=lambda item: order.index(item[0]))


def _features(
    checks: Iterable[dict[str, Any]], features: Mapping[str, Any], told: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the features of a requirement with their scenarios; the prose of each only where it comes first."""
    scenarios = [check for check in checks if check["scenario"] is not None]
    for file, found in groupby(scenarios, key=lambda check: check["scenario"]["feature"]):
        feature = features[file]
        yield {
            "title": feature["title"],
            "file": file,
            "prose": [] if file in told else re.split(r"\n\s*\n", feature["prose"]),
            "scenarios": [
                {"title": title, "description": examples[0]["scenario"]["description"], "checks": examples}
                for title, examples in _by_title(found)
            ],
        }
        told.add(file)


def _by_title(checks: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        grouped.setdefault(check["scenario"]["title"], []).append(check)
    return list(grouped.items())
