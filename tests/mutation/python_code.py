"""Mutants of the reference's Python code, made by cosmic-ray; ``python tests/mutation/python_code.py``.

cosmic-ray makes the changes (``pip install cosmic-ray``); the conformance suite alone judges them, as for the SQL.
"""

import argparse
import ast
import random
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from judge import PROJECT, Mutant, add_options, main, modules

_REPLACEMENT: Final = re.compile(r"Replace(Binary|Comparison|Unary)Operator_(?!Delete)")
_OUTSIDE: Final = {
    "sqlite": {"__init__", "from_url", "path", "__repr__"},
    "_sqlite_file": {"_advice", "unavailable"},
}
"""What the contract, and therefore the suite, says nothing about: settings, URLs, and the wording of messages."""


def mutants_of(module: Path) -> Iterator[Mutant]:
    """Yield cosmic-ray's mutants of a module.

    Left out are those that are no Python, those that change no more than an annotation, and equal ones.
    """
    source = (PROJECT / module).read_text(encoding="utf-8")
    seen = {_running_code(source)}
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():  # cosmic-ray leaves these out as well, unless it is told with which names
            continue
        operator = kind()
        places = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        numbers: dict[str, int] = {}
        for occurrence, (node, (line, _)) in enumerate(places):
            definition = ASTQuery(node).get_definition_name() or "module"
            if definition in _OUTSIDE.get(module.stem, set()):
                continue
            changed = _mutated(source, operator, occurrence)
            code = None if changed is None else _running_code(changed)
            if changed is None or code is None or code in seen:
                continue
            seen.add(code)
            short = name.removeprefix("core/")
            numbers[definition] = numbers.get(definition, 0) + 1
            before, after = _difference(source, changed)
            yield Mutant(
                id=f"{module.stem}/{definition}/{short}/{numbers[definition]}",
                module=module,
                operator=short,
                line=line,
                before=before,
                after=after,
                source=changed,
            )


def _mutated(source: str, operator: Operator, occurrence: int) -> str | None:
    try:
        mutated: str | None = mutate_code(source, operator, occurrence)
    except AttributeError:  # cosmic-ray 8.7 cannot replace an exception with a dotted name, such as sqlite3.Error
        return None
    return mutated


def _running_code(source: str) -> object:
    """Return what tells programs apart that do different things, or None if this is none.

    Annotations do nothing. Nor does cosmic-ray mean it when it takes the ``*`` of a signature for a multiplication and
    makes a division of it, which is a signature too; the reference has no such signatures.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the mutant makes of it may be odd
            compile(source, "mutant", "exec")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.copy_location(ast.Constant(None), node)
        elif isinstance(node, ast.arguments) and node.posonlyargs:
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _instructions(compile(tree, "mutant", "exec"))


def _instructions(code: CodeType) -> object:
    """Return what a piece of code does, wherever it stands; ``not a is b`` and ``a is not b`` are one to Python."""
    constants = tuple(
        _instructions(each) if isinstance(each, CodeType) else (type(each), repr(each)) for each in code.co_consts
    )
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_exceptiontable


def _difference(source: str, changed: str) -> tuple[str, str]:
    """Return the first lines that differ."""
    for before, after in zip(source.splitlines(), changed.splitlines(), strict=False):
        if before != after:
            return before.strip(), after.strip()
    return "", ""


def thinned(mutants: Iterable[Mutant], seed: int) -> Iterator[Mutant]:
    """Yield one mutant for each place where an operator is replaced by others, drawn at random, and every other mutant.

    cosmic-ray tries a dozen in each place, and nearly all of them are wrong in the same way.
    """
    groups: dict[tuple[object, ...], list[Mutant]] = {}
    for each in mutants:
        match = _REPLACEMENT.match(each.operator)
        alike = (match[0], each.before) if match else (each.id,)
        groups.setdefault((each.module, each.line, *alike), []).append(each)
    for key, group in groups.items():
        yield random.Random(f"{seed} {key}").choice(group)  # noqa: S311 - repeatable


def mutants(pattern: str = "") -> Iterator[Mutant]:
    """Yield every mutant of the Python code in the modules whose names match."""
    for module in (each for each in modules() if re.search(pattern, each.stem)):
        yield from mutants_of(module)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Let the conformance suite judge mutants of the reference's code.")
    add_options(parser, "mutation-python.jsonl")
    parser.add_argument("--module", default="", metavar="REGEX", help="only mutants of modules that match")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--all", action="store_true", help="of operators in the place of another, try all, not one each"
    )
    arguments = parser.parse_args()
    everything = list(mutants(arguments.module))
    if not arguments.all:
        everything = list(thinned(everything, arguments.seed))
    if arguments.sample is not None:
        # In the order of the draw: what an interrupted run has measured is a random sample, too.
        chance = random.Random(arguments.seed)  # noqa: S311 - repeatable
        everything = chance.sample(everything, min(arguments.sample, len(everything)))
    sys.exit(main(everything, arguments))
