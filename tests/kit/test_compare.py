"""``compare``: requirements by backends."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests are run by path, not imported as a package

from reports import HOSTILE, checks, conformant, hostile

from taskqueue_conformance.__main__ import main
from taskqueue_conformance.compare import CompareError, as_html, as_markdown, compared


@pytest.fixture(scope="module")
def good() -> Any:
    return conformant()


@pytest.fixture
def bad(good: Any) -> Any:
    """The report of another backend: two checks of E1 failed, one did not run."""
    report = deepcopy(good)
    report |= {"backend": "other", "verdict": "NOT CONFORMANT"}
    (e1,) = (each for each in report["requirements"] if each["id"] == "E1")
    e1["verdict"] = "failed"
    for check, outcome in zip(e1["checks"], ("failed", "failed", "not run"), strict=False):
        check["outcome"] = outcome
    return report


def save(folder: Path, **reports: Any) -> list[Path]:
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(json.dumps(report), "utf-8")
    return [folder / f"{name}.json" for name in reports]


def test_each_cell_has_what_passed_of_what_there_is_and_a_word(good: Any, bad: Any, tmp_path: Path) -> None:
    found = compared(save(tmp_path, good=good, bad=bad))
    assert found.labels == ("mypackage.testing:Harness", "other")
    assert found.warnings == ()
    (e1,) = (row for row in found.rows if row.id == "E1")
    total = sum(check["id"].split("/")[1] == "E1" for check in checks(good))
    assert [str(cell) for cell in e1.cells] == [
        f"{total}/{total} · passed",
        f"{total - 3}/{total} · failed · 1 not run",
    ]
    assert "not claimed" in str(found.totals[0])
    assert [total.verdict for total in found.totals] == ["CONFORMANT", "NOT CONFORMANT"]


def test_what_is_not_alike_is_said(good: Any, bad: Any, tmp_path: Path) -> None:
    bad |= {"suite_version": "2", "profile": "quick"}
    bad["requirements"][0]["checks"].pop()
    del bad["requirements"][-1]
    found = compared(save(tmp_path, good=good, bad=bad))
    told = "\n".join(found.warnings)
    assert "different versions of the suite: mypackage.testing:Harness 1, other 2" in told
    assert "different profiles" in told
    assert "other lacks" in told
    assert found.rows[-1].cells[1] is None


def test_two_runs_of_one_backend_are_told_apart(good: Any, tmp_path: Path) -> None:
    paths = save(tmp_path, before=good, after=good)
    assert compared(paths).labels == tuple(f"mypackage.testing:Harness ({path})" for path in paths)


def test_the_command_prints_a_table_and_writes_both_files(
    good: Any, bad: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in save(tmp_path, good=good, bad=bad)]
    page, table = tmp_path / "c.html", tmp_path / "c.md"
    assert main(["compare", *paths, "--html", str(page), "--markdown", str(table)]) == 0
    output = capsys.readouterr().out
    assert "E1" in output
    assert "failed" in output
    assert "NOT CONFORMANT" in page.read_text("utf-8")
    assert table.read_text("utf-8").startswith("| requirement | mypackage.testing:Harness | other |\n| --- |")


def test_a_report_can_be_named_by_its_folder(good: Any, tmp_path: Path) -> None:
    (tmp_path / "conformance.json").write_text(json.dumps(good), "utf-8")
    assert compared([tmp_path]).labels == ("mypackage.testing:Harness",)


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, broken = tmp_path / "other.json", tmp_path / "broken.json"
    other.write_text('{"format": "taskqueue-conformance/9"}')
    broken.write_text("{")
    for path, why in (
        (other, "its format is 'taskqueue-conformance/9'"),
        (broken, "is no JSON"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        with pytest.raises(CompareError, match=why):
            compared([path])
    part = tmp_path / "part.json"
    part.write_text(json.dumps({key: value for key, value in conformant().items() if key != "backend_class"}))
    with pytest.raises(CompareError, match="lacks backend_class"):
        compared([part])
    assert main(["compare", str(other)]) == 2
    assert "is not a report that this version reads" in capsys.readouterr().err


def test_what_a_report_says_stays_text(tmp_path: Path) -> None:
    report = hostile()
    report["backend"] = HOSTILE.replace("\ud800", "")
    found = compared(save(tmp_path, hostile=report))
    assert "<script>" not in as_html(found)
    assert "<script>" not in as_markdown(found)
