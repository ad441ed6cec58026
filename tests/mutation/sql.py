"""Mutants of the SQL in the reference, by token; ``python tests/mutation/sql.py`` lets the suite judge them.

Mutation testers leave strings alone, and in this backend it is the SQL that decides. The statements are found in the
source, so this goes on working when they are edited.
"""

import argparse
import ast
import re
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from judge import PROJECT, Mutant, add_options, main, modules

_STARTS: Final = re.compile(r"\s*(?:SELECT|UPDATE|INSERT INTO|DELETE FROM|CREATE|PRAGMA|BEGIN|COMMIT|ROLLBACK)\b")
_LITERAL: Final = re.compile(
    r"""(?P<prefix>[rRfFuU]{0,2})(?P<quotes>\"""|'''|"|')(?P<text>.*)(?P=quotes)\Z""", re.DOTALL
)
_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
    |(?P<text>'(?:[^']|'')*')
    |(?P<hole>\{[^}]*\})
    |(?P<parameter>:\w+|\?)
    |(?P<number>\d+)
    |(?P<word>\w+)
    |(?P<symbol><=|>=|<>|!=|==|\|\||[-+*/=<>(),.;])
    """,
    re.VERBOSE,
)
_FORCED_INDEX: Final = re.compile(r"INDEXED BY \w+")
_ENDS_PREDICATES: Final = frozenset({"ORDER", "GROUP", "LIMIT", "RETURNING", "HAVING", "UNION"})
_BOUNDARIES: Final = {"<=": "<", "<": "<=", ">=": ">", ">": ">=", "=": "<>", "<>": "=", "!=": "="}
_STATUSES: Final = ("'pending'", "'running'", "'success'", "'failed'", "'cancelled'")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of SQL that is neither space nor comment: its kind, its text, and where it is in the literal."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A string literal with SQL in it.

    Attributes:
        name: The constant or function that it belongs to.
        start: Where its text begins in the module's source, in characters.
        text: Its text, as it stands in the source.
    """

    name: str
    start: int
    text: str


Edit = tuple[str, int, int, str]
"""The kind of a change, what part of the text it replaces, and by what."""


def statements(source: str) -> list[Statement]:
    """Return the SQL in a module, in the order of the source; also fragments that an f-string with SQL takes in."""
    tree = ast.parse(source)
    offsets = _line_offsets(source)
    fragments = {
        name.id
        for literal in ast.walk(tree) if isinstance(literal, ast.JoinedStr) and _is_sql(_beginning(literal))
        for name in ast.walk(literal) if isinstance(name, ast.Name)
    }  # fmt: skip
    found = []
    for name, is_constant, literal in _literals(tree):
        if _is_sql(_beginning(literal)) or (is_constant and name in fragments):
            start, end = _range(literal, offsets)
            match = _LITERAL.match(source[start:end])
            if match is None or "\\" in match["text"]:
                raise ValueError(f"{name}: write SQL in one literal without escapes")
            found.append(Statement(name, start + match.start("text"), match["text"]))
    return found


def _literals(tree: ast.Module) -> Iterator[tuple[str, bool, ast.Constant | ast.JoinedStr]]:
    """Yield the string literals but docstrings, with what each belongs to and whether that is just a constant."""

    def visit(
        node: ast.AST, name: str, *, is_constant: bool
    ) -> Iterator[tuple[str, bool, ast.Constant | ast.JoinedStr]]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield name, is_constant, node
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, name, is_constant=False)

    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        name = next((target.id for target in targets if isinstance(target, ast.Name)), "")
        value = getattr(node, "value", None)
        direct = isinstance(value, (ast.Constant, ast.JoinedStr))
        yield from visit(node if value is None or not name else value, name, is_constant=bool(name) and direct)


def _beginning(literal: ast.Constant | ast.JoinedStr) -> str:
    first = literal.values[0] if isinstance(literal, ast.JoinedStr) and literal.values else literal
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _is_sql(text: str) -> bool:
    return _STARTS.match(text) is not None


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets


def _range(node: ast.expr, offsets: Sequence[int]) -> tuple[int, int]:
    # The columns count bytes of UTF-8. SQL and what stands before it on its lines is ASCII; the pattern fails if not.
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset


def tokens(text: str) -> list[Token]:
    """Return the tokens of some SQL.

    Raises:
        ValueError: There is something in it that is not known here.
    """
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"what is this in SQL: {text[position : position + 20]!r}")
        if match.lastgroup != "space":
            found.append(Token(str(match.lastgroup), match.group(), match.start(), match.end()))
        position = match.end()
    return found


class _Sql:
    """The tokens of a statement, with the questions that the operators ask."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)

    def word(self, index: int) -> str:
        """The token in capitals; empty beyond the end."""
        return self.tokens[index].text.upper() if 0 <= index < len(self.tokens) else ""

    def words(self, *wanted: str) -> Iterator[int]:
        """Yield where these words stand one after the other."""
        for index in range(len(self.tokens)):
            if all(self.word(index + offset) == word for offset, word in enumerate(wanted)):
                yield index

    def until(self, index: int, stops: Callable[[int], bool]) -> int:
        """Return the first place at or after ``index`` that stops, or closes the parenthesis or CASE around it."""
        depth = 0
        while index < len(self.tokens):
            word = self.word(index)
            if depth == 0 and (word in {")", "END"} or stops(index)):
                return index
            depth += (word in {"(", "CASE"}) - (word in {")", "END"})
            index += 1
        return index

    def replaced(self, kind: str, first: int, last: int, text: str) -> Edit:
        """Return the edit that puts ``text`` in the place of the tokens from ``first`` up to but not with ``last``."""
        return kind, self.tokens[first].start, self.tokens[last - 1].end, text

    def span(self, first: int, last: int) -> str:
        """Return the text of these tokens."""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    def in_set(self, index: int) -> bool:
        """Whether an equals sign assigns."""
        return any(start < index < end for start, end in self.set_lists()) and any(
            first + 1 == index for first, _ in self.set_items()
        )

    def set_lists(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the lists after SET."""
        for index in self.words("SET"):
            yield index + 1, self.until(index + 1, lambda at: self.word(at) in {"WHERE", "FROM", "RETURNING"})

    def set_items(self) -> list[tuple[int, int]]:
        """Return the ranges of the assignments."""
        return [item for start, end in self.set_lists() for item in self.listed(start, end)]

    def listed(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges between commas."""
        items = []
        while start < end:
            stop = min(self.until(start, lambda at: self.word(at) == ","), end)
            items.append((start, stop))
            start = stop + 1
        return items

    def conjunctions(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Yield each WHERE's place, its end, and the ranges of the terms that AND joins."""
        for index in self.words("WHERE"):
            end = self.until(index + 1, lambda at: self.word(at) in _ENDS_PREDICATES)
            terms, start, between = [], index + 1, False
            at = start
            while at < end:
                stop = self.until(at, lambda at: self.word(at) in {"AND", "BETWEEN"})
                if stop >= end:
                    break
                if self.word(stop) == "BETWEEN":
                    between = True
                elif between:
                    between = False
                else:
                    terms.append((start, stop))
                    start = stop + 1
                at = stop + 1
            terms.append((start, end))
            yield index, end, terms

    def orders(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Yield each ORDER BY's place, its end, and the ranges of its terms."""
        for index in self.words("ORDER", "BY"):
            end = self.until(index + 2, lambda at: self.word(at) in {"LIMIT", "RETURNING"})
            yield index, end, self.listed(index + 2, end)


def _comparisons(sql: _Sql) -> Iterator[Edit]:
    pragma = sql.word(0) == "PRAGMA"
    for index, token in enumerate(sql.tokens):
        if token.text in _BOUNDARIES and not pragma and not sql.in_set(index):
            yield sql.replaced("comparison", index, index + 1, _BOUNDARIES[token.text])


def _predicates(sql: _Sql) -> Iterator[Edit]:
    for where, end, terms in sql.conjunctions():
        if len(terms) == 1:
            yield sql.replaced("predicate dropped", where, end, "")
            continue
        for number, (first, last) in enumerate(terms):
            if number:
                yield sql.replaced("predicate dropped", first - 1, last, "")
            else:
                yield sql.replaced("predicate dropped", first, last + 1, "")


def _logic(sql: _Sql) -> Iterator[Edit]:
    for index, token in enumerate(sql.tokens):
        word = token.text.upper()
        if word == "OR":
            yield sql.replaced("logic", index, index + 1, "AND")
        elif word == "AND" and "BETWEEN" not in {sql.word(index - 2), sql.word(index - 3)}:
            yield sql.replaced("logic", index, index + 1, "OR")
        elif word == "NOT" and sql.word(index + 1) != "NULL":
            yield sql.replaced("logic", index, index + 1, "")
        elif word == "IS" and sql.word(index + 1) == "NOT":
            yield sql.replaced("null test", index, index + 2, "IS")
        elif word == "IS" and sql.word(index + 1) == "NULL":
            yield sql.replaced("null test", index, index + 1, "IS NOT")
        elif word == "IN" and sql.word(index - 1) != "NOT":
            yield sql.replaced("logic", index, index + 1, "NOT IN")


def _orders(sql: _Sql) -> Iterator[Edit]:
    for order, end, terms in sql.orders():
        yield sql.replaced("order dropped", order, end, "")
        for first, last in terms:
            direction = sql.word(last - 1)
            term = sql.span(first, last - 1 if direction in {"ASC", "DESC"} else last)
            yield sql.replaced("direction", first, last, term if direction == "DESC" else f"{term} DESC")
        if len(terms) > 1:
            for number, (first, last) in enumerate(terms):
                edit = (first - 1, last) if number else (first, last + 1)
                yield sql.replaced("order term dropped", *edit, "")
            backwards = ", ".join(sql.span(*term) for term in reversed(terms))
            yield sql.replaced("order terms swapped", terms[0][0], terms[-1][1], backwards)


def _limits(sql: _Sql) -> Iterator[Edit]:
    for index in sql.words("LIMIT"):
        limit = sql.span(index + 1, index + 2)
        yield sql.replaced("limit", index, index + 2, f"LIMIT {limit} + 1")
        yield sql.replaced("limit", index, index + 2, f"LIMIT {limit} - 1")
        yield sql.replaced("limit dropped", index, index + 2, "")


def _arithmetic(sql: _Sql) -> Iterator[Edit]:
    for index, token in enumerate(sql.tokens):
        if token.text in {"+", "-"}:
            yield sql.replaced("term dropped", index, index + 2, "")
            yield sql.replaced("arithmetic", index, index + 1, "-" if token.text == "+" else "+")
        elif token.text == "||":
            end = sql.until(index + 1, lambda at: sql.word(at) == ",")
            yield sql.replaced("term dropped", index, end, "")
            yield sql.replaced("term dropped", index - 1, index + 1, "")
            yield sql.replaced(
                "concatenated backwards", index - 1, end, f"{sql.span(index + 1, end)} || {sql.word(index - 1).lower()}"
            )
        elif token.kind == "number":
            yield sql.replaced("number", index, index + 1, str(int(token.text) + 1))


def _assignments(sql: _Sql) -> Iterator[Edit]:
    items = sql.set_items()
    for number, (first, last) in enumerate(items):
        if sql.span(first + 2, last) != "NULL":
            yield sql.replaced("null assigned", first + 2, last, "NULL")
        if len(items) > 1:
            edit = (first - 1, last) if number else (first, last + 1)
            yield sql.replaced("assignment dropped", *edit, "")


def _functions(sql: _Sql) -> Iterator[Edit]:
    others = {"MAX": "min", "MIN": "max"}
    for index, token in enumerate(sql.tokens):
        word = token.text.upper()
        if word in others and sql.word(index + 1) == "(":
            yield sql.replaced("function", index, index + 1, others[word])
            end = sql.until(index + 2, lambda _: False)
            arguments = sql.listed(index + 2, end)
            for first, last in arguments if len(arguments) > 1 else ():
                yield sql.replaced("function dropped", index, end + 1, sql.span(first, last))
        elif word == "COALESCE":
            end = sql.until(index + 2, lambda _: False)
            backwards = ", ".join(sql.span(*each) for each in reversed(sql.listed(index + 2, end)))
            yield sql.replaced("function", index + 2, end, backwards)


def _cases(sql: _Sql) -> Iterator[Edit]:
    for case in sql.words("CASE"):
        then = sql.until(case + 1, lambda at: sql.word(at) == "THEN")
        otherwise = sql.until(then + 1, lambda at: sql.word(at) == "ELSE")
        end = sql.until(otherwise + 1, lambda _: False)
        first, second = sql.span(then + 1, otherwise), sql.span(otherwise + 1, end)
        yield sql.replaced("branches swapped", then + 1, end, f"{second} ELSE {first}")
        yield sql.replaced("branch always", case, end + 1, first)
        yield sql.replaced("branch always", case, end + 1, second)


def _values(sql: _Sql) -> Iterator[Edit]:
    for index, token in enumerate(sql.tokens):
        if token.text in _STATUSES:
            other = _STATUSES[(_STATUSES.index(token.text) + 1) % len(_STATUSES)]
            yield sql.replaced("status", index, index + 1, other)
            if sql.word(index - 1) == "(" and sql.word(index + 1) == ",":
                yield sql.replaced("status dropped", index, index + 2, "")
            elif sql.word(index - 1) == "," and sql.word(index + 1) in {",", ")"}:
                yield sql.replaced("status dropped", index - 1, index + 1, "")


def _others(sql: _Sql) -> Iterator[Edit]:
    for index in sql.words("INDEXED", "BY"):
        yield sql.replaced("index not forced", index, index + 3, "")
    for index in sql.words("GROUP", "BY"):
        yield sql.replaced("group dropped", index, index + 3, "")
    for index in sql.words("BEGIN", "IMMEDIATE"):
        yield sql.replaced("transaction", index + 1, index + 2, "")
    if sql.word(0) == "PRAGMA":
        for index in sql.words("="):
            yield sql.replaced("pragma not set", index, index + 2, "")


def _constraints(sql: _Sql) -> Iterator[Edit]:
    if sql.word(0) != "CREATE":
        return
    lengths = {("UNIQUE",): 1, ("AUTOINCREMENT",): 1, ("NOT", "NULL"): 2, ("DEFAULT",): 2}
    for words, length in lengths.items():
        for index in sql.words(*words):
            if sql.word(index - 1) != "IS":
                yield sql.replaced("constraint dropped", index, index + length, "")
    for index in sql.words("CHECK"):
        yield sql.replaced("constraint dropped", index, sql.until(index + 2, lambda _: False) + 1, "")


OPERATORS: Final[tuple[Callable[[_Sql], Iterator[Edit]], ...]] = (
    _comparisons, _predicates, _logic, _orders, _limits, _arithmetic, _assignments, _functions, _cases, _values,
    _others, _constraints,
)  # fmt: skip


def edits(text: str) -> list[Edit]:
    """Return every change to some SQL, each different from the others and from the original."""
    sql = _Sql(text)
    seen, found = {text}, []
    for operator in OPERATORS:
        for edit in operator(sql):
            changed = _edited(text, edit)
            if changed not in seen:
                seen.add(changed)
                found.append(edit)
    return sorted(found, key=lambda edit: edit[1])


def _edited(text: str, edit: Edit) -> str:
    _, start, end, replacement = edit
    return text[:start] + replacement + text[end:]


def mutants_of(module: Path) -> Iterator[Mutant]:
    """Yield the mutants of a module, in the order of its source, without those that SQLite refuses to compile."""
    source = (PROJECT / module).read_text(encoding="utf-8")
    numbers: dict[str, int] = {}
    for statement in statements(source):
        for edit in edits(statement.text):
            changed = _compilable(module, source, statement, _edited(statement.text, edit))
            if changed is None:
                continue
            kind, start, end, replacement = edit
            stem = f"{module.stem}/{statement.name}/{kind.replace(' ', '-')}"
            numbers[stem] = numbers.get(stem, 0) + 1
            yield Mutant(
                id=f"{stem}/{numbers[stem]}",
                module=module,
                operator=kind,
                line=source.count("\n", 0, statement.start + start) + 1,
                before=" ".join(statement.text[start:end].split()),
                after=replacement,
                source=changed,
            )


def _compilable(module: Path, source: str, statement: Statement, text: str) -> str | None:
    """Return the module with another text of the statement, or None where SQLite cannot compile that.

    Where the index that a query insists on can no longer serve it, the query may take any: what is of interest is
    whether the suite notices what it answers.
    """
    for attempt in (text, _FORCED_INDEX.sub("", text)):
        changed = source[: statement.start] + attempt + source[statement.start + len(statement.text) :]
        if refusal(module, changed) is None:
            return changed
    return None


def refusal(module: Path, source: str) -> str | None:
    """Say why SQLite cannot compile the SQL of a module's constants, or return None if it can."""
    made = types.ModuleType(f"_mutated_{module.stem}")
    sys.modules[made.__name__] = made  # dataclasses look there
    try:
        exec(compile(source, str(module), "exec"), made.__dict__)  # noqa: S102 - our own module
        return _refusal(vars(made))
    finally:
        del sys.modules[made.__name__]


def _refusal(names: dict[str, Any]) -> str | None:
    from taskqueue.backends import _sqlite_schema as schema  # noqa: PLC0415 - only for this

    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in names.get("SCHEMA", schema.SCHEMA):
            db.execute(statement)
        for value in names.values():
            if isinstance(value, str) and _is_sql(value):
                db.execute(f"EXPLAIN {value}", _Anything() if ":" in value else [None] * value.count("?"))
    except sqlite3.Error as error:
        return str(error)
    finally:
        db.close()
    return None


class _Anything(dict[str, None]):
    """A value for every parameter."""

    def __missing__(self, key: str) -> None:
        return None


def mutants() -> Iterator[Mutant]:
    """Yield every mutant of the reference's SQL."""
    for module in modules():
        yield from mutants_of(module)


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    parser = argparse.ArgumentParser(description="Let the conformance suite judge mutants of the reference's SQL.")
    add_options(parser, "mutation-sql.jsonl")
    sys.exit(main(mutants(), parser.parse_args()))
