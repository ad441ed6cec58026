"""The scenarios of a report as Cucumber Messages, which other tools read.

https://github.com/cucumber/messages describes them. The other layers are no Gherkin and not in here; pytest's own
``--junitxml`` has every check.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cucumber_expressions.expression import CucumberExpression
from gherkin.ast_builder import AstBuilder
from gherkin.parser import Parser
from gherkin.pickles.compiler import Compiler
from gherkin.stream.id_generator import IdGenerator

from taskqueue_conformance.scenarios import features_folder
from taskqueue_conformance.steps import VOCABULARY
from taskqueue_conformance.steps.parameters import PARAMETER_TYPES
from taskqueue_conformance.steps.registry import Phrase

PROTOCOL_VERSION: Final = "34.2.0"
"""The version of the protocol that the tests compare with."""

_RAN: Final = {"passed": "PASSED", "failed": "FAILED", "not reached": "SKIPPED"}
_DID_NOT_RUN: Final = {"not claimed": "SKIPPED", "not verified": "PENDING", "skipped": "SKIPPED"}
_KIT: Final = Path(__file__).parent


def render(report: Mapping[str, Any]) -> str:
    """Return a report's scenarios as newline-delimited JSON, one message a line.

    A scenario that was deselected or not reached is there as a pickle and has no test case, as with Cucumber.
    """
    return "".join(json.dumps(envelope, ensure_ascii=False) + "\n" for envelope in _Stream(report).envelopes())


class _Stream:
    """Numbers the parts of one stream, and finds them again by what they are about."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report
        self._ids = IdGenerator()
        self._pickles: dict[tuple[str, int], Any] = {}
        self._definitions: dict[Phrase, tuple[str, CucumberExpression]] = {}
        self._matches: dict[str, dict[str, Any]] = {}
        self._run = self._ids.get_next_id()

    def envelopes(self) -> Iterator[dict[str, Any]]:
        yield self._meta()
        for feature in self._report["features"]:
            yield from self._sources(feature["file"])
        for phrase in VOCABULARY:
            yield self._definition(phrase)
        began = datetime.fromisoformat(self._report["started_at"])
        yield {"testRunStarted": {"id": self._run, "timestamp": _timestamp(began)}}
        checks = [
            check
            for requirement in self._report["requirements"]
            for check in requirement["checks"]
            if check["scenario"] is not None and check["started_at"] is not None
        ]
        for check in sorted(checks, key=lambda check: str(check["started_at"])):
            yield from self._case(check)
        ended = began + timedelta(seconds=self._report["duration_s"])
        success = not any(check["failure"] or check["outcome"] == "failed" for check in checks)
        finished = {"testRunStartedId": self._run, "timestamp": _timestamp(ended), "success": success}
        yield {"testRunFinished": finished}

    def _meta(self) -> dict[str, Any]:
        versions = self._report["versions"]
        return {
            "meta": {
                "protocolVersion": PROTOCOL_VERSION,
                "implementation": {"name": "taskqueue_conformance", "version": versions.get("taskqueue-spec", "")},
                "runtime": {"name": "Python", "version": versions.get("python", "")},
                "os": {"name": self._report["platform"]},
                "cpu": {"name": platform.machine()},
            }
        }

    def _sources(self, name: str) -> Iterator[dict[str, Any]]:
        uri = f"features/{name}"
        text = (features_folder() / name).read_text(encoding="utf-8")
        yield {"source": {"uri": uri, "data": text, "mediaType": "text/x.cucumber.gherkin+plain"}}
        document: Any = Parser(AstBuilder(self._ids)).parse(text)
        document["uri"] = uri
        yield {"gherkinDocument": document}
        lines = dict(_lines(document["feature"]))
        for pickle in Compiler(self._ids).compile(document):
            self._pickles[name, lines[pickle["astNodeIds"][-1]]] = pickle
            yield {"pickle": pickle}

    def _definition(self, phrase: Phrase) -> dict[str, Any]:
        definition = self._ids.get_next_id()
        self._definitions[phrase] = (definition, CucumberExpression(phrase.expression, PARAMETER_TYPES))
        code = phrase.function.__code__
        uri = Path(code.co_filename).relative_to(_KIT.parent).as_posix()
        return {
            "stepDefinition": {
                "id": definition,
                "pattern": {"source": phrase.expression, "type": "CUCUMBER_EXPRESSION"},
                "sourceReference": {"uri": uri, "location": {"line": code.co_firstlineno}},
            }
        }

    def _case(self, check: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        scenario = check["scenario"]
        pickle = self._pickles[scenario["feature"], scenario["line"]]
        case, attempt = self._ids.get_next_id(), self._ids.get_next_id()
        steps = [
            {"id": self._ids.get_next_id(), "pickleStepId": step["id"]} | self._match(step["text"])
            for step in pickle["steps"]
        ]
        yield {
            "testCase": {"id": case, "pickleId": pickle["id"], "testRunStartedId": self._run, "testSteps": steps}
        }  # fmt: skip
        now = datetime.fromisoformat(check["started_at"])
        yield {
            "testCaseStarted": {"id": attempt, "testCaseId": case, "attempt": 0, "timestamp": _timestamp(now)}
        }  # fmt: skip
        for step, result in zip(steps, _results(check), strict=True):
            of = {"testCaseStartedId": attempt, "testStepId": step["id"]}
            yield {"testStepStarted": of | {"timestamp": _timestamp(now)}}
            now += timedelta(seconds=result.pop("seconds"))
            yield {"testStepFinished": of | {"timestamp": _timestamp(now), "testStepResult": result}}
        yield {"testCaseFinished": {"testCaseStartedId": attempt, "timestamp": _timestamp(now), "willBeRetried": False}}

    def _match(self, text: str) -> dict[str, Any]:
        if text not in self._matches:
            definition, expression = self._definitions[VOCABULARY.bind(text).phrase]
            arguments = [
                {
                    "group": {"value": found.group.value, "start": found.group.start, "children": []},
                    "parameterTypeName": found.parameter_type.name,
                }
                for found in expression.match(text) or ()
            ]
            self._matches[text] = {
                "stepDefinitionIds": [definition],
                "stepMatchArgumentsLists": [{"stepMatchArguments": arguments}],
            }
        return self._matches[text]


def _results(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each step how it ended; a scenario that failed beside its steps fails in the last one."""
    steps = check["scenario"]["steps"]
    overridden = _DID_NOT_RUN.get(check["outcome"])
    statuses = [overridden or _RAN[step["outcome"]] for step in steps]
    failed = check["outcome"] in {"failed", "known deviation", "outdated deviation"}
    if failed and "FAILED" not in statuses:
        statuses[-1] = "FAILED"
    results = []
    for step, status in zip(steps, statuses, strict=True):
        result = {"status": status, "duration": _duration(step["duration_s"]), "seconds": step["duration_s"]}
        if status == "FAILED" or overridden:
            result["message"] = check["message"]
        results.append(result)
    return results


def _lines(container: Any) -> Iterator[tuple[str, int]]:
    """Yield the id and the line of each scenario, and of each row of examples."""
    for child in container["children"]:
        if "rule" in child:
            yield from _lines(child["rule"])
        if "scenario" in child:
            scenario = child["scenario"]
            yield scenario["id"], scenario["location"]["line"]
            for table in scenario["examples"]:
                for row in table.get("tableBody") or ():
                    yield row["id"], row["location"]["line"]


def _timestamp(instant: datetime) -> dict[str, int]:
    return _duration(instant.timestamp())


def _duration(seconds: float) -> dict[str, int]:
    whole, fraction = divmod(round(seconds * 1_000_000), 1_000_000)
    return {"seconds": whole, "nanos": fraction * 1000}
