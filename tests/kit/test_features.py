"""The features, their vocabulary and the clauses of the specification agree with each other."""

import json
from pathlib import Path

import jsonschema
import pytest

from taskqueue_conformance.feature_files import CLAUSE_ID, Feature, read
from taskqueue_conformance.requirements import REQUIREMENTS, SPEC_VERSION
from taskqueue_conformance.scenarios import features_folder, load
from taskqueue_conformance.steps import VOCABULARY
from taskqueue_conformance.steps.__main__ import page

FOLDER = features_folder()
FEATURES: list[Feature] = [read(path) for path in sorted(FOLDER.glob("*.feature"))]
SCENARIOS = [scenario for feature in FEATURES for scenario in feature.scenarios]
MANIFEST = json.loads((FOLDER / "clauses.json").read_text(encoding="utf-8"))
CLAUSES = {clause["id"]: clause for clause in MANIFEST["clauses"]}
DOCS = Path(__file__).parents[2] / "docs"

# The specification's own titles, and how many clauses stand below each: the requirement's statement is under None.
SPECIFICATION: dict[str, dict[str | None, int]] = {
    "Async TaskQueue API": {
        None: 1,
        "Enqueue task with default settings": 2,
        "Get result with timeout": 2,
        "Get result not ready": 1,
    },
    "Result model": {None: 1, "Successful result": 4, "Failed result": 4},
    "ETA scheduling semantics": {None: 1, "Immediate task scheduling": 2, "Delayed task scheduling": 2},
    "TaskQueue configuration and defaults": {
        None: 1,
        "Construct TaskQueue with defaults": 2,
        "Default result timeout": 2,
        "Use TaskQueue as async context manager": 2,
    },
    "Task context support": {None: 1, "Preserve task context in payload": 2},
    "Task Status Lifecycle": {
        None: 1,
        "Status transition on failure with retry (simplified state machine)": 4,
        "Status transition on final failure": 3,
    },
    "Retry Budget Semantics": {None: 1, "Attempts count total executions": 3, "Retry budget enforcement": 2},
    "Retry Policy Ownership": {None: 1, "Queue computes retry delay": 3, "Worker delegates to queue": 3},
}

WORDS = ["SHALL", "SHALL NOT", "MUST", "MUST NOT", "MAY"]
SCHEMA = {
    "type": "object",
    "required": ["spec_version", "clauses"],
    "additionalProperties": False,
    "properties": {
        "spec_version": {"const": SPEC_VERSION},
        "clauses": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "requirement", "scenario", "documents", "keywords", "text"],
                "oneOf": [{"required": ["scenarios"]}, {"required": ["untestable"]}],
                "additionalProperties": False,
                "properties": {
                    "id": {"type": "string", "pattern": f"^{CLAUSE_ID.pattern}$"},
                    "requirement": {"enum": list(REQUIREMENTS)},
                    "scenario": {"type": ["string", "null"]},
                    "documents": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "uniqueItems": True},
                    "keywords": {"type": "array", "items": {"enum": WORDS}, "minItems": 1, "uniqueItems": True},
                    "text": {"type": "string", "minLength": 10},
                    "scenarios": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
                    "untestable": {"type": "string", "minLength": 20},
                },
            },
        },
    },
}


def tagged(clause: str) -> set[str]:
    return {scenario.title for scenario in SCENARIOS if clause in scenario.tags}


def test_every_requirement_of_the_specification_has_a_feature_with_its_title_and_its_scenarios() -> None:
    titles = {feature.title: {scenario.title for scenario in feature.scenarios} for feature in FEATURES}
    for requirement, scenarios in SPECIFICATION.items():
        assert titles[requirement] >= {title for title in scenarios if title is not None}


def test_requirements_have_the_titles_of_the_specification() -> None:
    assert set(SPECIFICATION) <= {requirement.title for requirement in REQUIREMENTS.values()}


def test_the_manifest_has_the_form_that_it_should_have() -> None:
    jsonschema.validate(MANIFEST, SCHEMA)
    assert len(CLAUSES) == len(MANIFEST["clauses"]) == 51


def test_the_manifest_lists_every_clause_of_every_title_in_order() -> None:
    found: dict[str, dict[str | None, int]] = {}
    for clause in MANIFEST["clauses"]:
        of_requirement = found.setdefault(REQUIREMENTS[clause["requirement"]].title, {})
        of_requirement[clause["scenario"]] = of_requirement.get(clause["scenario"], 0) + 1
        assert clause["id"] == f"{clause['requirement']}-{sum(of_requirement.values())}"
        assert all(word in clause["text"] for word in clause["keywords"])
    assert found == SPECIFICATION


def test_tags_and_manifest_name_the_same_scenarios_for_every_clause() -> None:
    assert {id_: set(clause.get("scenarios", ())) for id_, clause in CLAUSES.items()} == {
        id_: tagged(id_) for id_ in CLAUSES
    }


def test_every_clause_of_a_scenario_in_the_specification_is_proved_by_the_scenario_of_that_title() -> None:
    elsewhere = {
        # The statement gives an exception from the title's own rule, so it stands in a scenario beside it.
        "CONFIG-5": "A timeout of the call overrides the default",
    }
    for id_, clause in CLAUSES.items():
        if clause["scenario"] is not None and "scenarios" in clause:
            assert elsewhere.get(id_, clause["scenario"]) in clause["scenarios"], id_


def test_every_tag_is_a_requirement_or_a_clause_of_the_same_requirement_or_a_need() -> None:
    for scenario in SCENARIOS:
        requirement = next(tag for tag in scenario.tags if tag in REQUIREMENTS)
        for tag in scenario.tags:
            known = tag in REQUIREMENTS or tag.startswith("needs-") or CLAUSES[tag]["requirement"] == requirement
            assert known, f"{scenario.path.name}:{scenario.line}: {tag}"


def test_a_comment_on_a_step_names_clauses_of_its_scenario_and_every_clause_has_a_step() -> None:
    for scenario in SCENARIOS:
        of_steps = {clause for step in scenario.steps for clause in step.clauses}
        of_tags = {tag for tag in scenario.tags if CLAUSE_ID.fullmatch(tag)}
        assert of_steps == of_tags, f"{scenario.path.name}: {scenario.title}"


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.path.stem)
def test_a_feature_opens_with_prose_and_with_a_write_of_its_own(feature: Feature) -> None:
    assert len(feature.prose.split()) >= 25
    for scenario in feature.scenarios:
        assert [step.text for step in scenario.steps[:2]] == [
            "a queue on the backend under test",
            "the queue reads back what it writes",
        ]


def test_no_two_scenarios_share_a_title() -> None:
    titles = [title for feature in FEATURES for title in {scenario.title for scenario in feature.scenarios}]
    assert len(titles) == len(set(titles))


def test_there_is_no_python_among_the_features() -> None:
    assert {path.suffix for path in FOLDER.iterdir()} == {".feature", ".json"}


def test_every_phrase_is_used_and_there_are_fewer_than_sixty() -> None:
    used = {VOCABULARY.bind(step.text).phrase.expression for scenario in SCENARIOS for step in scenario.steps}
    assert {phrase.expression for phrase in VOCABULARY} - used == set()
    assert len(VOCABULARY) < 60


def test_the_page_of_the_vocabulary_is_up_to_date() -> None:
    written = (DOCS / "reference" / "steps.md").read_text(encoding="utf-8")
    assert written == page(), "python -m taskqueue_conformance.steps > docs/reference/steps.md"


def test_ids_of_checks_are_fit_for_a_command_line() -> None:
    for check in load([FOLDER]):
        assert not set(check.id) & set("\"'`$\\ "), check.id
        assert "::" not in check.id
