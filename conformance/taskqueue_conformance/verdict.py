"""From the outcomes of checks to a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from taskqueue_conformance.check import Check
from taskqueue_conformance.requirements import REQUIREMENTS


class Outcome(StrEnum):
    """What became of one check."""

    PASSED = "passed"
    FAILED = "failed"
    DEVIATION = "known deviation"
    """Failed, as the harness had declared. Counts as a failure."""
    OUTDATED = "outdated deviation"
    """Passed, although the harness had declared a deviation. Counts as a failure until the declaration goes."""
    NOT_CLAIMED = "not claimed"
    """Did not apply: the harness disclaims a capability that it needs."""
    NOT_VERIFIED = "not verified"
    """Could not be decided here; never counts as passed, nor as failed."""
    SKIPPED = "skipped"
    NOT_RUN = "not run"

    @property
    def failure(self) -> bool:
        """Whether this speaks against the backend."""
        return self in {Outcome.FAILED, Outcome.DEVIATION, Outcome.OUTDATED}


def summed_up(outcomes: Iterable[Outcome]) -> Outcome:
    """Return what several checks of one thing come to: failed if any failed, passed only if all that apply did."""
    found = set(outcomes)
    if any(outcome.failure for outcome in found):
        return Outcome.FAILED
    if not found or found & {Outcome.NOT_RUN, Outcome.SKIPPED}:
        return Outcome.NOT_RUN
    if Outcome.PASSED in found:
        return Outcome.PASSED
    return Outcome.NOT_VERIFIED if Outcome.NOT_VERIFIED in found else Outcome.NOT_CLAIMED


class Verdict(StrEnum):
    """What the suite says of a backend."""

    CONFORMANT = "CONFORMANT"
    """Every required check ran and passed."""
    NOT_CONFORMANT = "NOT CONFORMANT"
    """At least one failed."""
    INCOMPLETE = "INCOMPLETE"
    """None failed, but some were deselected, skipped or not reached."""


@dataclass(slots=True)
class CheckResult:
    """One check and what became of it.

    Attributes:
        check: The check.
        outcome: What became of it.
        message: Why, for a person; empty if it passed.
        breaks: The requirement that a failure names, or None.
        duration_s: How long it took, in seconds.
        notes: What the check wanted in the report.
        failure: What :meth:`~taskqueue_conformance.items.CheckItem.details` says of a failure, or None.
        started_at: When it began, in seconds since 1970, or None if it did not.
    """

    check: Check
    outcome: Outcome = Outcome.NOT_RUN
    message: str = ""
    breaks: str | None = None
    duration_s: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class RequirementResult:
    """One requirement, its checks, and the failures of other checks that name it."""

    id: str
    title: str
    results: Sequence[CheckResult]
    named_by: Sequence[CheckResult]

    @property
    def outcome(self) -> Outcome:
        """Failed if anything speaks against it; passed only if every check that applies passed."""
        return Outcome.FAILED if self.named_by else summed_up(result.outcome for result in self.results)

    @property
    def passed(self) -> int:
        """How many of its checks passed."""
        return sum(result.outcome is Outcome.PASSED for result in self.results)


class Tally:
    """The results of all checks.

    Attributes:
        results: Those that count, by the check's id: of the checks that the version of the suite requires.
        newer: The others: of checks that only a later version requires.
    """

    def __init__(self, checks: Mapping[str, Check], newer: Mapping[str, Check] = MappingProxyType({})) -> None:
        self.results = {check_id: CheckResult(check) for check_id, check in checks.items()}
        self.newer = {check_id: CheckResult(check) for check_id, check in newer.items()}

    def of(self, check_id: str) -> CheckResult | None:
        """Return the result of a check, whether it counts or not; None for one that is not of the suite."""
        return self.results.get(check_id) or self.newer.get(check_id)

    @property
    def verdict(self) -> Verdict:
        """The verdict as things stand."""
        outcomes = [result.outcome for result in self.results.values()]
        if any(outcome.failure for outcome in outcomes):
            return Verdict.NOT_CONFORMANT
        if not outcomes or any(outcome in {Outcome.NOT_RUN, Outcome.SKIPPED} for outcome in outcomes):
            return Verdict.INCOMPLETE
        return Verdict.CONFORMANT

    def requirements(self) -> list[RequirementResult]:
        """The results by requirement, in the order of the specification; requirements without checks are left out."""
        everything = list(self.results.values())
        grouped = [
            RequirementResult(
                id=requirement.id,
                title=requirement.title,
                results=[each for each in everything if each.check.requirement == requirement.id],
                named_by=[
                    each for each in everything
                    if each.breaks == requirement.id != each.check.requirement and each.outcome.failure
                ],
            )
            for requirement in REQUIREMENTS.values()
        ]  # fmt: skip
        return [group for group in grouped if group.results or group.named_by]

    def done(self) -> dict[str, dict[str, int]]:
        """Return what the checks of each layer say that they did: numbers of examples, schedules, kills and so on."""
        sums: dict[str, dict[str, int]] = {}
        for result in self.results.values():
            for name, number in result.notes.items():
                if isinstance(number, int) and not isinstance(number, bool) and not name.startswith("required"):
                    layer = sums.setdefault(result.check.layer, {})
                    layer[name] = layer.get(name, 0) + number
        return sums

    def count(self, outcome: Outcome) -> int:
        """How many checks had this outcome."""
        return sum(result.outcome is outcome for result in self.results.values())
