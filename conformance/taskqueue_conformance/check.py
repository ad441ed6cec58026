"""The registry of checks. A check is a coroutine function that drives a backend through a lab."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from taskqueue_conformance.feature_files import Scenario
from taskqueue_conformance.requirements import REQUIREMENTS

F = TypeVar("F", bound=Callable[..., Awaitable[None]])

_NO_CASES: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Check:
    """One required check: an ordinary pytest item.

    Attributes:
        id: Unique and kept for life: ``layer/REQUIREMENT/name``, with ``[case]`` at the end where there are several.
        layer: The layer of the suite that it belongs to.
        requirement: The id of the requirement that it proves.
        title: What must hold, in one sentence.
        needs: The capabilities without which it does not apply.
        look: Where an implementer should look first, or None for the requirement's own hint.
        run: What to await with the lab.
        clauses: The ids of the specification's clauses that it proves, for a scenario.
        steps: The texts of its steps, for a scenario.
        scenario: The scenario that it is, or None.
        limit_s: How long it may take, in seconds, even where it blocks the event loop.
    """

    id: str
    layer: str
    requirement: str
    title: str
    needs: frozenset[str]
    look: str | None
    run: Callable[[Any], Awaitable[None]]
    clauses: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    scenario: Scenario | None = None
    limit_s: float = 120

    @property
    def name(self) -> str:
        """The part of the node id that ``-k`` selects by: ``E1-name[case]``."""
        return self.id.removeprefix(f"{self.layer}/").replace("/", "-", 1)


CHECKS: Final[dict[str, Check]] = {}
"""Every registered check by id, in the order of registration."""


class NotVerified(Exception):
    """A check could not be decided here. The message says why."""


def check(
    requirement: str,
    title: str,
    *,
    layer: str = "edges",
    needs: Iterable[str] = (),
    look: str | None = None,
    cases: Mapping[str, Any] = _NO_CASES,
) -> Callable[[F], F]:
    """Register the coroutine function below as a check of ``requirement``.

    It is called with a :class:`~taskqueue_conformance.lab.Lab`, and with the case's value where ``cases`` names
    several; each case is an item of its own.
    """
    if requirement not in REQUIREMENTS:
        raise KeyError(requirement)

    def register(function: F) -> F:
        stem = f"{layer}/{requirement}/{function.__name__.replace('_', '-')}"
        for case in cases or (None,):
            check_id = stem if case is None else f"{stem}[{case}]"
            if check_id in CHECKS:
                raise ValueError(f"two checks are called {check_id}")
            CHECKS[check_id] = Check(
                id=check_id,
                layer=layer,
                requirement=requirement,
                title=title if case is None else f"{title} ({case})",
                needs=frozenset(needs),
                look=look,
                run=function if case is None else _bound(function, cases[case]),
            )
        return function

    return register


def _bound(function: Callable[..., Awaitable[None]], case: object) -> Callable[[Any], Awaitable[None]]:
    async def run(lab: object) -> None:
        await function(lab, case)

    return run
