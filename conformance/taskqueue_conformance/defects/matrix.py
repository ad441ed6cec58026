"""What was measured: findings from runs, the kill matrix, and what it says about the suite."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from taskqueue_conformance.defects.catalogue import LAYERS, Defect, by_clause
from taskqueue_conformance.defects.measure import Failure, Run
from taskqueue_conformance.requirements import REQUIREMENTS

FORMAT: Final = "taskqueue-defects/1"
"""The name and version of the JSON that ``--json`` writes."""


class Kill(StrEnum):
    """What became of one defect."""

    CAUGHT = "caught"
    """The first check that failed names a requirement that the defect breaks."""
    MISNAMED = "caught for another reason"
    """The first check that failed names another requirement."""
    SURVIVED = "survived"
    """Every check passed."""
    UNDECIDED = "not measured"
    """The run itself went wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect and its run."""

    defect: Defect
    run: Run

    @property
    def first(self) -> Failure | None:
        """The first check that failed."""
        return self.run.failures[0] if self.run.failures else None

    @property
    def kill(self) -> Kill:
        """What became of the defect."""
        if self.first is not None:
            return Kill.CAUGHT if self.first.breaks in self.defect.reasons else Kill.MISNAMED
        # Where only some layers were to run, the suite gives no verdict, and all that ran has passed.
        whole = self.run.job.layers == LAYERS
        right = self.run.verdict == ("CONFORMANT" if whole else "INCOMPLETE")
        return Kill.SURVIVED if right and not self.run.problem else Kill.UNDECIDED

    @property
    def named(self) -> Counter[str]:
        """How many of the failures name each requirement."""
        return Counter(failure.breaks for failure in self.run.failures)

    @property
    def caught_in(self) -> Mapping[str, int]:
        """How many checks failed, by layer; under ``-x`` only the first layer says anything."""
        return Counter(failure.layer for failure in self.run.failures)

    def proves(self, clause: str) -> bool:
        """Whether of the scenarios only those failed that prove ``clause``, and one at least."""
        scenarios = [failure for failure in self.run.failures if failure.clauses]
        return bool(scenarios) and all(clause in failure.clauses for failure in scenarios)

    def as_json(self) -> dict[str, Any]:
        """Return the finding as what ``json.dumps`` takes."""
        first = self.first
        return {
            "id": self.defect.id,
            "does": self.defect.does,
            "breaks": self.defect.breaks,
            "also": sorted(self.defect.also),
            "clauses": list(self.defect.clauses),
            "seen_in": self.defect.seen_in,
            "base": self.defect.base,
            "repeat": self.defect.command,
            "outcome": self.kill,
            "first": None if first is None else {"check": first.check, "layer": first.layer, "names": first.breaks},
            "expected_layer": self.defect.layer,
            "failed_by_layer": dict(self.caught_in),
            "named": dict(self.named),
            "seconds": round(self.run.seconds, 2),
            "problem": self.run.problem,
        }


@dataclass(frozen=True, slots=True)
class Control:
    """A backend that must pass nothing, or everything."""

    name: str
    run: Run
    null: bool

    @property
    def right(self) -> bool:
        """Whether it is as it must be."""
        if self.null:
            return self.run.verdict == "NOT CONFORMANT" and not self.run.passed
        return self.run.verdict == ("CONFORMANT" if self.run.job.layers == LAYERS else "INCOMPLETE")

    @property
    def said(self) -> str:
        """What is to be said of it."""
        if self.right:
            return "passes nothing" if self.null else f"passes all {len(self.run.passed)} checks that apply"
        if self.null and self.run.passed:
            return f"PASSES {len(self.run.passed)}: {', '.join(self.run.passed[:5])}"
        failed = ", ".join(failure.check for failure in self.run.failures[:5])
        return f"{self.run.verdict}: {failed or self.run.problem[-300:]}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Everything that was measured.

    Attributes:
        findings: One for each defect.
        clause_runs: For defects that were planted for a clause, what all scenarios said.
        controls: The backends that do nothing, and the correct ones.
        full: Whether every check was run against each defect.
        in_order: Whether the layers ran in the suite's order, so that what a layer catches no earlier one does.
        seconds: How long it took.
    """

    findings: Sequence[Finding]
    clause_runs: Sequence[Finding]
    controls: Sequence[Control]
    full: bool
    seconds: float
    in_order: bool = True

    @property
    def passed(self) -> bool:
        """Whether every defect is caught for its own reason, and every control is as it must be."""
        return all(finding.kill is Kill.CAUGHT for finding in self.findings) and all(c.right for c in self.controls)

    def of(self, kill: Kill) -> list[Finding]:
        """The findings with one outcome."""
        return [finding for finding in self.findings if finding.kill is kill]

    def by_layer(self) -> dict[str, list[Finding]]:
        """The defects by the layer that caught them first; no earlier one had, where the layers ran in order."""
        return {
            layer: [finding for finding in self.findings if finding.first is not None and finding.first.layer == layer]
            for layer in LAYERS
        }

    def by_requirement(self) -> dict[str, list[Finding]]:
        """The defects by the requirement that they break."""
        return {
            requirement: [finding for finding in self.findings if finding.defect.breaks == requirement]
            for requirement in REQUIREMENTS
        }

    def alone(self, requirement: str) -> list[str]:
        """The defects that nothing but the checks of one requirement catches; known only where all were run."""
        return [
            finding.defect.id for finding in self.findings
            if finding.run.failures and {failure.requirement for failure in finding.run.failures} == {requirement}
        ]  # fmt: skip

    def proofs(self) -> dict[str, list[str]]:
        """For each clause that defects were planted for, those that prove it."""
        runs = {finding.defect.id: finding for finding in self.clause_runs}
        return {
            clause: [each.id for each in planted if each.id in runs and runs[each.id].proves(clause)]
            for clause, planted in by_clause(finding.defect for finding in self.clause_runs).items()
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything as what ``json.dumps`` takes."""
        return {
            "format": FORMAT,
            "full": self.full,
            "in_order": self.in_order,
            "seconds": round(self.seconds, 1),
            "passed": self.passed,
            "totals": {kill: len(self.of(kill)) for kill in Kill},
            "layers": {layer: len(found) for layer, found in self.by_layer().items()},
            "defects": [finding.as_json() for finding in self.findings],
            "clauses": self.proofs(),
            "controls": [
                {"name": c.name, "null": c.null, "right": c.right, "said": c.said, "verdict": c.run.verdict}
                for c in self.controls
            ],
        }


def markdown(matrix: Matrix) -> str:
    """Return the matrix as a page of the documentation."""
    totals = ", ".join(f"{len(matrix.of(kill))} {kill}" for kill in Kill)
    lines = [
        "# The kill matrix",
        "",
        "Written by `python -m taskqueue_conformance defects --markdown docs/explanation/kill-matrix.md`; do not edit.",
        "[What the suite is worth](suite-strength.md) says what it means.",
        "",
        f"{len(matrix.findings)} defects: {totals}. The run took {matrix.seconds / 60:.0f} minutes.",
        "",
        "## By layer",
        "",
        "No earlier layer catches these."
        if matrix.in_order
        else "Each defect ran first against the layer that it was planted for; `--in-order` begins with the first one.",
        "",
        *_table(("layer", "caught here"), [(layer, len(found)) for layer, found in matrix.by_layer().items()]),
        "",
        "## By requirement",
        "",
        *_table(
            ("requirement", "defects", "caught for it", "for another reason", "survived"),
            [
                (requirement, len(found), kills[Kill.CAUGHT], kills[Kill.MISNAMED], kills[Kill.SURVIVED])
                for requirement, found in matrix.by_requirement().items()
                if found and (kills := Counter(finding.kill for finding in found))
            ],
        ),
        "",
        "## By clause of the specification",
        "",
        "Each of these fails, of the scenarios, only those that prove the clause.",
        "",
        *_table(
            ("clause", "defects"),
            [(clause, ", ".join(map(_code, ids)) or "**none**") for clause, ids in sorted(matrix.proofs().items())],
        ),
        "",
        "## Backends that must pass nothing, or everything",
        "",
        *_table(("backend", "what it does"), [(_code(control.name), control.said) for control in matrix.controls]),
        "",
        "## Every defect",
        "",
        *_table(("defect", "what is wrong", "breaks", "caught by", "names", "s"), map(_row, matrix.findings)),
    ]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows)]


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _row(finding: Finding) -> Sequence[str]:
    defect, first = finding.defect, finding.first
    seen = f" ({defect.seen_in})" if defect.seen_in else ""
    return (
        _code(defect.id),
        f"{defect.does}{seen}".replace("|", "\\|").replace("<", "&lt;"),
        ", ".join([defect.breaks, *sorted(defect.also)]),
        _code(first.check) if first else f"**{finding.kill}**",
        first.breaks if first and finding.kill is Kill.CAUGHT else f"**{first.breaks}**" if first else "",
        f"{finding.run.seconds:.1f}",
    )


def requirements_without(findings: Iterable[Finding]) -> list[str]:
    """Return the requirements that no defect was planted for."""
    planted = {finding.defect.breaks for finding in findings}
    return [requirement for requirement in REQUIREMENTS if requirement not in planted]
