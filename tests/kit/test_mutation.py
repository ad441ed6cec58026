"""The mutator of the reference's SQL: it finds what there is, and what it makes of it is worth a run of the suite."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskqueue.backends import _sqlite_operations as operations

FOLDER = Path(__file__).parents[1] / "mutation"
OPERATIONS = Path("taskqueue/backends/_sqlite_operations.py")
MODULE = '''
"""SELECT is no statement in a docstring."""
_TERM: Final = "attempts < max_retries"
NAMES: Final = ("id", "status")
READ: Final = f"""
    SELECT {COLUMNS} FROM tasks  -- a comment, with LIMIT 1 in it
    WHERE status = 'pending' AND {_TERM}
    ORDER BY available_at, seq LIMIT :limit
"""
def end(db):
    """UPDATE neither."""
    db.execute("COMMIT")
    raise ValueError("Select something else")
'''


@pytest.fixture(scope="module")
def mutation() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("sql")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("sql", "judge"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def mutants(mutation: ModuleType) -> list[Any]:
    return list(mutation.mutants())


def changes(mutation: ModuleType, text: str) -> set[str]:
    return {text[:start] + replacement + text[end:] for _, start, end, replacement in mutation.edits(text)}


def test_the_statements_of_a_module_are_found_with_the_fragments_in_them_and_nothing_else(mutation: ModuleType) -> None:
    found = mutation.statements(MODULE)
    assert [statement.name for statement in found] == ["_TERM", "READ", "end"]
    assert all(MODULE[each.start :].startswith(each.text) for each in found)


def test_every_statement_of_the_reference_is_found(mutation: ModuleType) -> None:
    source = Path(operations.__file__).read_text(encoding="utf-8")
    constants = {
        name for name, value in vars(operations).items() if isinstance(value, str) and "tasks" in value.split()
    }
    assert constants <= {statement.name for statement in mutation.statements(source)}


def test_every_method_has_mutants(mutants: list[Any]) -> None:
    names = {each.id.split("/")[1] for each in mutants if each.module == OPERATIONS}
    assert names >= {"CLAIM", "EXTEND", "COMPLETE", "FAIL", "CANCEL", "EXPIRED", "NEXT_DUE", "PAGE", "COUNTS", "PURGE"}


def test_mutants_are_python_and_differ_from_the_original_and_from_each_other(mutants: list[Any]) -> None:
    originals = {each.module: (FOLDER.parents[1] / each.module).read_text(encoding="utf-8") for each in mutants}
    programs = [(each.module, ast.dump(ast.parse(each.source))) for each in mutants]
    assert len(set(programs)) == len(mutants) >= 200
    assert not {(module, ast.dump(ast.parse(source))) for module, source in originals.items()} & set(programs)
    assert len({each.id for each in mutants}) == len(mutants)


def test_what_sqlite_cannot_compile_is_no_mutant(mutation: ModuleType, mutants: list[Any]) -> None:
    assert mutation.refusal(OPERATIONS, 'CLAIM = "UPDATE tasks SET seq"') is not None
    assert all(mutation.refusal(each.module, each.source) is None for each in mutants[::20])


@pytest.mark.parametrize(
    ("statement", "mutant"),
    [
        ("SELECT a FROM t WHERE a <= :b", "SELECT a FROM t WHERE a < :b"),
        ("SELECT a FROM t WHERE a = ?", "SELECT a FROM t WHERE a <> ?"),
        ("SELECT a FROM t WHERE a = 1 AND b > 2", "SELECT a FROM t WHERE a = 1 "),
        ("SELECT a FROM t WHERE a = 1 AND b > 2", "SELECT a FROM t WHERE  b > 2"),
        ("SELECT a FROM t WHERE a IS NOT NULL", "SELECT a FROM t WHERE a IS NULL"),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t ORDER BY a DESC, b"),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t ORDER BY a "),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t "),
        ("SELECT a FROM t LIMIT ?", "SELECT a FROM t LIMIT ? - 1"),
        ("SELECT a FROM t LIMIT ?", "SELECT a FROM t "),
        ("UPDATE t SET a = a + 1, b = 2", "UPDATE t SET a = a , b = 2"),
        ("UPDATE t SET a = a + 1, b = 2", "UPDATE t SET a = a + 1, b = NULL"),
        ("UPDATE t SET a = a + 1, b = 2", "UPDATE t SET  b = 2"),
        ("UPDATE t SET a = max(a, ?)", "UPDATE t SET a = min(a, ?)"),
        ("UPDATE t SET a = CASE WHEN b THEN c ELSE d END", "UPDATE t SET a = CASE WHEN b THEN d ELSE c END"),
        ("SELECT coalesce(a, b)", "SELECT coalesce(b, a)"),
        ("CREATE TABLE t (a TEXT UNIQUE)", "CREATE TABLE t (a TEXT )"),
    ],
)
def test_an_operator_makes_the_change_that_it_is_named_after(mutation: ModuleType, statement: str, mutant: str) -> None:
    assert " ".join(mutant.split()) in {" ".join(change.split()) for change in changes(mutation, statement)}


def test_between_is_one_predicate_and_an_assignment_no_comparison(mutation: ModuleType) -> None:
    dropped = {"SELECT a FROM t WHERE a BETWEEN 1", "SELECT a FROM t WHERE 2", "SELECT a FROM t WHERE a BETWEEN 1 OR 2"}
    assert not dropped & {change.strip() for change in changes(mutation, "SELECT a FROM t WHERE a BETWEEN 1 AND 2")}
    assert not any("<>" in change for change in changes(mutation, "UPDATE t SET a = 1, b = 2"))
    assert not any("<>" in change for change in changes(mutation, "PRAGMA user_version = 1"))
