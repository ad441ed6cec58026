"""The verdict in the terminal: a table by requirement, and one line."""

from pathlib import Path

import pytest

from taskqueue_conformance.report import RunInfo
from taskqueue_conformance.verdict import Outcome, RequirementResult, Tally, Verdict

_COLOURS = {
    Verdict.CONFORMANT: {"green": True},
    Verdict.NOT_CONFORMANT: {"red": True},
    Verdict.INCOMPLETE: {"yellow": True},
}
_TITLE_WIDTH = 66


def write_verdict(reporter: pytest.TerminalReporter, info: RunInfo, tally: Tally, report_path: Path | None) -> None:
    """Write the table by requirement, what was not claimed or not decided, and the verdict."""
    reporter.section("conformance", "=")
    reporter.line(f"{'requirement':<11} {'':<{_TITLE_WIDTH}} {'passed':>9}  verdict")
    for group in tally.requirements():
        reporter.line(_row(group), **_row_colour(group))
    for outcome in (Outcome.DEVIATION, Outcome.OUTDATED, Outcome.NOT_VERIFIED):
        for result in tally.results.values():
            if result.outcome is outcome:
                reporter.line(f"{outcome}: {result.check.id}")
    reporter.line("")
    for layer, numbers in tally.done().items():
        reporter.line(
            f"{layer}: " + ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items())
        )
    if tally.newer:
        _write_newer(reporter, info, tally)
    if report_path is not None:
        reporter.line(f"report: {report_path}")
    verdict = tally.verdict
    reporter.line(f"{verdict}: {_sentence(info, tally)}", bold=True, **_COLOURS[verdict])


def _write_newer(reporter: pytest.TerminalReporter, info: RunInfo, tally: Tally) -> None:
    results = tally.newer.values()
    passed = sum(result.outcome is Outcome.PASSED for result in results)
    reporter.line(f"newer than version {info.suite_version}, not counted: {passed} of {len(results)} passed")
    for result in results:
        if result.outcome.failure:
            reporter.line(f"  {result.outcome}: {result.check.id}")


def _row(group: RequirementResult) -> str:
    title = group.title if len(group.title) <= _TITLE_WIDTH else group.title[: _TITLE_WIDTH - 1] + "…"
    elsewhere = f", named by {_checks(len(group.named_by), 'other ')}" if group.named_by else ""
    counts = f"{group.passed}/{len(group.results)}"
    undecided = "".join(
        f", {number} {outcome}"
        for outcome in (Outcome.NOT_CLAIMED, Outcome.NOT_VERIFIED)
        if outcome is not group.outcome and (number := sum(each.outcome is outcome for each in group.results))
    )
    return f"{group.id:<11} {title:<{_TITLE_WIDTH}} {counts:>9}  {group.outcome}{elsewhere}{undecided}"


def _checks(count: int, kind: str = "") -> str:
    return f"{count} {kind}check" if count == 1 else f"{count} {kind}checks"


def _row_colour(group: RequirementResult) -> dict[str, bool]:
    if group.outcome is Outcome.FAILED:
        return {"red": True}
    return {"green": True} if group.passed == len(group.results) else {"yellow": True}


def _sentence(info: RunInfo, tally: Tally) -> str:
    total = len(tally.results)
    parts = [f"{info.target} passed {tally.count(Outcome.PASSED)} of {total} checks of version {info.suite_version}"]
    failures = sum(result.outcome.failure for result in tally.results.values())
    missing = tally.count(Outcome.NOT_RUN) + tally.count(Outcome.SKIPPED)
    if failures:
        parts.append(f"{failures} failed")
    if missing:
        parts.append(f"{missing} did not run")
    if tally.count(Outcome.NOT_VERIFIED):
        parts.append(f"{tally.count(Outcome.NOT_VERIFIED)} not verified")
    if info.not_claimed:
        concerned = tally.count(Outcome.NOT_CLAIMED)
        number = f" ({_checks(concerned)})" if concerned else ""
        parts.append(f"not claimed: {', '.join(info.not_claimed)}{number}")
    return f"{', '.join(parts)}; {info.duration_s:.1f} s"
