"""The report: its data, and the page, the badge and the messages that are made from them."""

import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import cucumber_messages
import html5lib
import jsonschema
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests are run by path, not imported as a package

from reports import HOSTILE, checks, conformant, hostile, info, run_suite

from taskqueue_conformance import badge, messages, page
from taskqueue_conformance.report import SCHEMA_PATH, write
from taskqueue_conformance.secrets import without_password
from taskqueue_conformance.suite import required_checks
from taskqueue_conformance.verdict import Outcome, Tally, Verdict


@pytest.fixture(scope="module")
def failed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report that says NOT CONFORMANT, written by a run."""
    folder = tmp_path_factory.mktemp("failed")
    run_suite(folder)
    return folder / "out"


@pytest.fixture(scope="module")
def failed(failed_run: Path) -> Any:
    return json.loads((failed_run / "conformance.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def passed() -> dict[str, Any]:
    return conformant()


class Parsed:
    """A page as a browser parses it; markup that is wrong is an error."""

    def __init__(self, text: str) -> None:
        self.root = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)

    def all(self, *names: str) -> list[Any]:
        return [each for each in self.root.iter() if each.tag in names]

    def text(self, element: Any = None) -> str:
        return " ".join("".join((self.root if element is None else element).itertext()).split())


# The data


def test_the_data_are_as_the_schema_has_them(failed: Any, passed: Any) -> None:
    schema = json.loads(SCHEMA_PATH.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in (failed, passed, hostile()):
        jsonschema.validate(report, schema, format_checker=jsonschema.FormatChecker())


def test_every_scenario_has_its_steps_with_their_outcomes_and_times(failed: Any) -> None:
    found = next(check for check in checks(failed) if check["outcome"] == "failed" and check["scenario"])
    outcomes = [step["outcome"] for step in found["scenario"]["steps"]]
    assert outcomes.count("failed") == 1
    at = outcomes.index("failed")
    assert set(outcomes[:at]) == {"passed"}
    assert set(outcomes[at + 1 :]) <= {"not reached"}
    assert found["scenario"]["steps"][0]["duration_s"] > 0
    not_run = next(check for check in checks(failed) if check["outcome"] == "not run" and check["scenario"])
    assert {step["outcome"] for step in not_run["scenario"]["steps"]} == {"not reached"}
    assert not_run["started_at"] is None


def test_a_clause_has_passed_only_if_every_check_that_proves_it_has(failed: Any, passed: Any) -> None:
    of_eta = {clause["id"]: clause for each in passed["requirements"] for clause in each["clauses"]}
    assert of_eta["ETA-5"]["outcome"] == "passed"
    assert "workers SHALL NOT execute the task before" in of_eta["ETA-5"]["text"]
    assert {each["outcome"] for report in (failed,) for r in report["requirements"] for each in r["clauses"]} == {
        "not run"
    }


def test_a_failure_is_told_piece_by_piece(failed: Any) -> None:
    found = next(check for check in checks(failed) if check["id"] == "model/E4/agrees-with-the-model")
    told = found["failure"]
    assert told["requirement"] == found["breaks"]
    assert told["look"]
    assert told["repeat"] == 'pytest --conformance=backends:early "conformance/model::E4-agrees-with-the-model"'
    assert f"@counterexample @{told['requirement']}" in told["counterexample"]
    assert told["repeat_counterexample"] == "pytest --conformance=backends:early found.feature"
    others = [check["failure"] for check in checks(failed) if check["failure"] and check["layer"] == "edges"]
    assert any("claim(" in call for call in others[0]["calls"])


def test_the_run_can_be_repeated_as_it_was(failed: Any) -> None:
    assert failed["repeat"] == (
        "pytest --conformance=backends:early --conformance-profile=quick -k 'E1 or agrees-with'"
    )


def test_the_report_is_the_same_with_xdist(failed: Any, tmp_path: Path) -> None:
    spread = run_suite(tmp_path, "-n", "2", select="E1")

    def comparable(report: Any) -> Any:
        found = {
            check["id"]: (
                check["outcome"],
                check["breaks"],
                check["failure"] and sorted(check["failure"]),
                check["started_at"] is None,
                check["scenario"] and [step["outcome"] for step in check["scenario"]["steps"]],
            )
            for check in checks(report)
            if check["layer"] != "model"
        }
        return found, report["verdict"], report["features"]

    assert comparable(spread) == comparable(failed)


def test_a_place_that_ends_in_json_takes_the_data_alone(tmp_path: Path) -> None:
    tally = Tally(required_checks())
    assert write(tmp_path / "deep" / "data.json", info(), tally) == tmp_path / "deep" / "data.json"
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["data.json"]


def test_a_place_where_no_report_can_be_written_stops_the_run_at_once(pytester: pytest.Pytester) -> None:
    pytester.makefile(".txt", taken="")
    result = pytester.runpytest_inprocess("--conformance=memory", "--conformance-report=taken.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--conformance-report=taken.txt: taken.txt is a file; name a folder*"])


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("mypackage.testing:Harness", "mypackage.testing:Harness"),
        ("postgresql://user@host/database", "postgresql://user@host/database"),
        ("postgresql://user:s3c:ret@host:5432/database?a=b", "postgresql://user:***@host:5432/database?a=b"),
        ("postgresql://host/database?user=u&password=s3cret&a=b", "postgresql://host/database?user=u&password=***&a=b"),
        ("postgresql://user:s3/c#r?e@t@host/database", "postgresql://user:***@host/database"),
        ("postgresql://user@host/database?sslpassword=s3cret", "postgresql://user@host/database?sslpassword=***"),
        ("postgresql://host/a?b=c:d@e", "postgresql://host/a?b=c:d@e"),
    ],
)
def test_no_password_is_told(target: str, shown: str) -> None:
    assert without_password(target) == shown


# The page


@pytest.fixture(scope="module", params=["failed", "passed"])
def report(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def parsed(report: Any) -> Parsed:
    return Parsed(page.render(report))


def test_the_page_of_a_run_is_made_from_its_data(failed_run: Path, failed: Any) -> None:
    assert (failed_run / "index.html").read_text("utf-8") == page.render(failed)


def test_every_id_is_there_once_and_every_link_leads_somewhere(parsed: Parsed) -> None:
    ids = Counter(each.get("id") for each in parsed.root.iter() if each.get("id"))
    assert set(ids.values()) == {1}
    for link in parsed.all("a"):
        target = link.get("href")
        if target.startswith("#"):
            assert target[1:] in ids, target
        else:
            assert target.startswith("data:text/plain") or target in {
                "conformance.json",
                "messages.ndjson",
                "badge.svg",
            }
    for each in parsed.root.iter():
        assert all(name in ids for name in (each.get("aria-labelledby") or "").split())


def test_nothing_is_loaded_and_nothing_runs(parsed: Parsed) -> None:
    assert not parsed.all("script", "link", "img", "iframe", "object", "embed", "form")
    assert not [each for each in parsed.root.iter() if any(name.startswith("on") for name in each.attrib)]
    (style,) = parsed.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_the_page_has_landmarks_and_headings_in_order(parsed: Parsed) -> None:
    assert [len(parsed.all(name)) for name in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert parsed.root.get("lang") == "en"
    first = next(each for each in parsed.root.find("body").iter() if each.tag == "a")
    assert first.get("href") == "#main"
    levels = [int(each.tag[1]) for each in parsed.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_requirement_clause_scenario_step_and_check_is_on_the_page(report: Any, parsed: Parsed) -> None:
    text = parsed.text()
    for requirement in report["requirements"]:
        assert requirement["title"] in text
        for clause in requirement["clauses"]:
            assert clause["id"] in text
    for feature in report["features"]:
        assert all(" ".join(part.split()) in text for part in feature["prose"].replace("`", "").split("\n\n"))
    assert len(parsed.all("ol")) == sum(check["scenario"] is not None for check in checks(report))
    steps = [parsed.text(item) for each in parsed.all("ol") for item in each]
    assert len(steps) == sum(len(check["scenario"]["steps"]) for check in checks(report) if check["scenario"])
    for check in checks(report):
        assert check["title"].partition(" / ")[0] in text
    for wanted in (report["verdict"], report["backend"], report["platform"], report["repeat"]):
        assert wanted in text


def test_no_verdict_is_told_by_colour_alone(parsed: Parsed) -> None:
    marked = [each for each in parsed.root.iter() if {"mark", "badge"} & set((each.get("class") or "").split())]
    assert len(marked) > 100
    for each in marked:
        assert re.search(r"passed|failed|not |skipped|deviation|CONFORMANT|INCOMPLETE", parsed.text(each))


def test_a_failure_is_shown_with_all_that_helps(failed: Any) -> None:
    parsed = Parsed(page.render(failed))
    told = next(check["failure"] for check in checks(failed) if check["failure"] and check["failure"]["counterexample"])
    text = parsed.text()
    for name in ("where", "expected", "actual", "look", "repeat", "repeat_counterexample"):
        assert " ".join(told[name].split()) in text, name
    (download,) = [each for each in parsed.all("a") if each.get("download")]
    assert download.get("download") == "found.feature"
    assert unquote(download.get("href").partition(",")[2]) == told["counterexample"]
    assert told["counterexample"] in ["".join(each.itertext()) for each in parsed.all("pre")]


def marks(parsed: Parsed) -> Counter[str]:
    """Count the marks and badges of a page by what they are: good, bad or open."""
    classes = [set((each.get("class") or "").split()) for each in parsed.root.iter()]
    return Counter(kind for found in classes if {"mark", "badge"} & found for kind in found - {"mark", "badge"})


def test_where_everything_passed_all_is_green_and_nothing_else_is_told() -> None:
    report = conformant(not_claimed=None)
    assert report["verdict"] == "CONFORMANT"
    parsed = Parsed(page.render(report))
    unproved = [clause for each in report["requirements"] for clause in each["clauses"] if clause["untestable"]]
    assert set(marks(parsed)) == ({"good", "open"} if unproved else {"good"})
    assert marks(parsed)["open"] == len(unproved)
    (header,) = parsed.all("header")
    assert header.get("class") == "top good"
    total = len(list(checks(report)))
    assert parsed.text(header).endswith(
        f"Every required check that applies ran, and passed. {total} of {total} checks passed."
    )
    assert [each.get("id") for each in parsed.all("section") if each.get("class") is None] == [
        "summary",
        "run",
        "layers",
        "requirements",
    ]
    summary = next(each for each in parsed.all("section") if each.get("id") == "summary")
    rows = [parsed.text(each) for each in summary.iter() if each.tag == "tr"][1:]
    assert len(rows) == len(report["requirements"]) + 1
    for row, requirement in zip(rows, report["requirements"], strict=False):
        number = len(requirement["checks"])
        assert row == f"{requirement['id']} {requirement['title']}{number}/{number}✓ passed"
    assert rows[-1] == f"All{total}/{total}✓ CONFORMANT"


def test_where_all_that_was_claimed_passed_nothing_is_red() -> None:
    parsed = Parsed(page.render(conformant()))
    assert set(marks(parsed)) == {"good", "open"}
    assert "failures" not in [each.get("id") for each in parsed.all("section")]
    (lacking,) = {row for row in map(parsed.text, parsed.all("tr")) if row.startswith("All")}
    assert "CONFORMANT" in lacking
    assert "NOT" not in lacking


def test_a_conformant_page_does_not_say_that_everything_passed_where_something_was_not_verified() -> None:
    report = conformant(not_claimed=None)
    first = next(checks(report))
    first |= {"outcome": "not verified", "message": "could not be seen here"}
    parsed = Parsed(page.render(report))
    (header,) = parsed.all("header")
    total = len(list(checks(report)))
    assert "Every required check that applies and could be decided here ran, and passed." in parsed.text(header)
    assert f"{total - 1} of {total} checks passed, 1 not verified." in parsed.text(header)
    (section,) = [each for each in parsed.all("section") if each.get("id") == "undecided"]
    assert "could not be seen here" in parsed.text(section)


def test_what_is_not_proved_is_shown_and_is_not_green(passed: Any) -> None:
    parsed = Parsed(page.render(passed))
    lacking = [check for check in checks(passed) if check["outcome"] == "not claimed"]
    assert lacking
    (section,) = [each for each in parsed.all("section") if each.get("id") == "undecided"]
    assert "not claimed" in parsed.text(section)
    for check in lacking:
        assert check["id"] in parsed.text(section)
    badges = [
        each
        for each in parsed.root.iter()
        if "not claimed" in parsed.text(each) and "badge" in (each.get("class") or "")
    ]
    assert badges
    assert {each.get("class") for each in badges} == {"badge open"}
    assert "Not claimed, and so not tested: multiprocess." in parsed.text(parsed.all("header")[0])


def test_what_a_backend_says_stays_text(tmp_path: Path) -> None:
    text = page.render(hostile())
    parsed = Parsed(text)
    assert not parsed.all("script", "img")
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in parsed.text()
    path = tmp_path / "index.html"
    path.write_text(text, "utf-8")  # no lone surrogate is left
    assert "\x00" not in text
    assert "\u202e" not in text
    assert r"\x00 \ud800 \u202e" in text


def test_hostile_words_do_not_keep_the_report_from_being_written(tmp_path: Path) -> None:
    tally = Tally(required_checks())
    first = next(iter(tally.results.values()))
    first.outcome, first.message, first.started_at = Outcome.FAILED, HOSTILE, 0.0
    write(tmp_path, info(target=HOSTILE), tally)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "badge.svg", "conformance.json", "index.html", "messages.ndjson",
    ]  # fmt: skip
    for line in (tmp_path / "messages.ndjson").read_text("utf-8").splitlines():
        json.loads(line)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


TEXT_ON = {
    "ink": ["paper", "surface", "good-soft", "bad-soft", "open-soft"],
    "muted": ["paper", "surface"],
    "link": ["paper", "surface"],
    "good": ["paper", "surface", "good-soft"],
    "bad": ["paper", "surface", "bad-soft"],
    "open": ["paper", "surface", "open-soft"],
}


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_colour_of_text_stands_out(scheme: str) -> None:
    style = (page.TEMPLATES / "style.css").read_text("utf-8")
    blocks = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    colours = dict(zip(("light", "dark", "print"), blocks, strict=True))[scheme]
    assert colours.keys() == blocks[0].keys()
    for text, grounds in TEXT_ON.items():
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)


def test_the_page_has_no_colour_but_those() -> None:
    style = (page.TEMPLATES / "style.css").read_text("utf-8")
    rules = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?=\s*[;,)])", rules)


# The badge


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_badge_tells_the_verdict(verdict: Verdict) -> None:
    root = ET.fromstring(badge.render(verdict))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title") == f"task queue spec: {verdict}"
    texts = root.findall(f".//{space}text")
    assert [each.text for each in texts] == ["task queue spec", verdict]
    width = float(root.attrib["width"])
    for text in texts:
        assert float(text.attrib["x"]) + float(text.attrib["textLength"]) <= width - 4
        # A letter of this font is between 5 and 10 pixels wide: neither squeezed nor torn apart.
        assert 5.5 <= float(text.attrib["textLength"]) / len(str(text.text)) <= 10
    for rect in root.findall(f"{space}g/{space}rect"):
        assert contrast(rect.attrib["fill"], "#ffffff") >= 4.5


# The messages


def envelopes(report: Any) -> list[Any]:
    return [json.loads(line) for line in messages.render(report).splitlines()]


def test_the_messages_are_those_of_the_protocol(report: Any) -> None:
    for envelope in envelopes(report):
        assert len(envelope) == 1
        read = cucumber_messages.message_converter.from_dict(envelope, cucumber_messages.Envelope)
        # What the protocol does not know would be lost on the way.
        assert cucumber_messages.message_converter.to_dict(read) == envelope


def test_the_messages_refer_to_each_other_in_order(report: Any) -> None:
    known: set[str] = set()
    order = []
    for envelope in envelopes(report):
        ((name, message),) = envelope.items()
        order.append(name)
        for key, value in message.items():
            if key in {"pickleId", "testCaseId", "testCaseStartedId", "testStepId", "testRunStartedId"}:
                assert value in known, (name, key)
        for step in message.get("testSteps", ()):
            assert {step["pickleStepId"], *step["stepDefinitionIds"]} <= known
            known.add(step["id"])
        if name == "pickle":
            known |= {step["id"] for step in message["steps"]}
        known |= {message["id"]} if "id" in message else set()
    assert order[0] == "meta"
    assert order[-1] == "testRunFinished"
    assert order.index("testRunStarted") > max(at for at, name in enumerate(order) if name == "pickle")


def test_the_messages_have_every_scenario_that_ran_with_its_outcome(report: Any) -> None:
    found = Counter(
        envelope["testStepFinished"]["testStepResult"]["status"]
        for envelope in envelopes(report)
        if "testStepFinished" in envelope
    )
    ran = [check for check in checks(report) if check["scenario"] and check["started_at"]]
    steps = Counter(step["outcome"] for check in ran for step in check["scenario"]["steps"])
    assert found == Counter({"PASSED": steps["passed"], "FAILED": steps["failed"], "SKIPPED": steps["not reached"]})
    assert sum("testCase" in each for each in envelopes(report)) == len(ran)
    assert envelopes(report)[-1]["testRunFinished"]["success"] is (not any(check["failure"] for check in ran))
