"""Checks as ordinary pytest items, independent of the adopter's fixtures and settings."""

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from taskqueue import Backend
from taskqueue_conformance import blame, hindsight
from taskqueue_conformance.check import Check, NotVerified
from taskqueue_conformance.effort import DEFAULT, Effort
from taskqueue_conformance.harness import Harness
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.requirements import REQUIREMENTS
from taskqueue_conformance.secrets import without_password
from taskqueue_conformance.turns import turn
from taskqueue_conformance.verdict import Outcome
from taskqueue_conformance.violation import Violation, said

PROPERTY = "taskqueue_conformance"
"""The key in an item's ``user_properties`` under which its result travels to the verdict."""
SUITE = "conformance"
"""What the node ids of the suite begin with."""

_FRAMES = 6
_SEQUENTIAL = frozenset({"scenarios", "edges"})
"""The layers whose calls follow each other, so that the model can say afterwards which answer was wrong."""
_OUR_FOLDER = str(Path(__file__).parent)


class OutdatedDeviation(AssertionError):
    """A check passed that the harness declares a known deviation."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all checks of a run share.

    Attributes:
        harness: How backends are made.
        target: What ``--conformance`` was given.
        seed: The seed of what is drawn at random.
        effort: How much the random layers do.
        newer: The ids of the checks that do not count: only a later version of the suite requires them.
    """

    harness: Harness
    target: str
    seed: int
    effort: Effort = DEFAULT
    newer: frozenset[str] = frozenset()

    def lab(self, check: Check) -> Lab:
        """Return surroundings for one run of a check; the seed decides about all that is drawn in there."""
        rng = random.Random(f"{self.seed}/{check.id}")  # noqa: S311 - repeatable on purpose
        return Lab(self.harness, rng=rng, target=self.target, effort=self.effort)


class Layer(pytest.Collector):
    """The checks of one layer."""

    def __init__(self, *, checks: list[Check], setting: Setting, **rest: Any) -> None:
        super().__init__(**rest)
        self.checks = checks
        self.setting = setting

    @classmethod
    def make(cls, parent: pytest.Collector, name: str, *, checks: list[Check], setting: Setting) -> Self:
        """Return the layer ``name`` below ``parent``."""
        layer: Self = cls.from_parent(parent, name=name, nodeid=f"{SUITE}/{name}", checks=checks, setting=setting)
        return layer

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each check, in the order of registration."""
        for check in self.checks:
            yield CheckItem.from_parent(self, name=check.name, check=check)


class CheckItem(pytest.Item):
    """One check as a pytest item. It uses no fixture, and brings its own event loop."""

    def __init__(self, *, check: Check, **rest: Any) -> None:
        super().__init__(**rest)
        self.check = check
        self.lab: Lab | None = None
        self.breach: hindsight.Breach | None = None

    @property
    def layer(self) -> Layer:
        """The layer that the item is in."""
        assert isinstance(self.parent, Layer)  # noqa: S101 - Layer.collect makes the items
        return self.parent

    def runtest(self) -> None:
        """Run the check, and note its result for the verdict.

        The failure of one that does not count shows as an expected one, so that neither the exit status nor ``-x``
        nor ``--lf`` minds it.
        """
        try:
            self._run_and_note()
        except Exception:
            if self.check.id not in self.layer.setting.newer:
                raise
            pytest.xfail("newer than the version of the suite that counts")

    def _run_and_note(self) -> None:
        setting = self.layer.setting
        harness = setting.harness
        lacking = sorted(self.check.needs - harness.capabilities)
        if lacking:
            self._note(Outcome.NOT_CLAIMED, f"needs {', '.join(lacking)}, which the harness disclaims")
            pytest.skip(f"not claimed: {', '.join(lacking)}")
        deviation = harness.deviations.get(self.check.id)
        self.lab = setting.lab(self.check)
        try:
            alone = "restart" in self.check.needs
            with turn(alone=alone), _hard_limit(self.check.limit_s), asyncio.Runner() as runner:
                runner.run(self._run(self.lab))
            if deviation is not None:
                raise OutdatedDeviation(deviation)  # noqa: TRY301 - it is noted below like any other finding
        except NotVerified as undecided:
            self._note(Outcome.NOT_VERIFIED, str(undecided))
            pytest.skip(f"not verified: {undecided}")
        except OutdatedDeviation as outdated:
            self._note(Outcome.OUTDATED, self.explain(outdated), failure=self.details(outdated))
            raise
        except Exception as error:
            self._note(
                Outcome.FAILED if deviation is None else Outcome.DEVIATION,
                self.explain(error),
                failure=self.details(error),
            )
            raise
        self._note(Outcome.PASSED, "")

    async def _run(self, lab: Lab) -> None:
        try:
            await self.check.run(lab)
            lab.confirm_witnessed()
        except Exception:
            await self._find_breach(lab)
            raise
        finally:
            await lab.close()

    def _note(self, outcome: Outcome, message: str, *, failure: dict[str, Any] | None = None) -> None:
        # Plain types only: xdist sends this from its workers.
        result = {
            "id": self.check.id,
            "outcome": outcome.value,
            "message": message,
            "failure": failure,
            "notes": {} if self.lab is None else self.lab.notes,
        }
        self.user_properties.append((PROPERTY, result))

    def broken_by(self, error: BaseException) -> str:
        """Return the id of the requirement that ``error`` shows to be broken."""
        named = error.requirement if isinstance(error, Violation) else None
        if self.breach is not None and named != "E4":  # which takes an experiment to tell
            return self.breach.requirement
        return named or self.check.requirement

    async def _find_breach(self, lab: Lab) -> None:
        if lab.has_children or self.check.layer not in _SEQUENTIAL:
            return
        breach = hindsight.first_breach(lab.journal.record.calls)
        if breach is not None and breach.in_a_summary:
            # What is summed up is either counted or stored wrongly: reading it, which is recorded too, decides.
            await lab.diagnose(self._read_all(lab))
            breach = hindsight.first_breach(lab.journal.record.calls)
        if breach is not None and breach.requirement in {"E1", "E2"}:
            # Three reasons look alike here: too few are taken, the instant itself is not due, another clock decides.
            for experiment in (blame.for_claim, blame.for_missing):
                named = await lab.diagnose(self._tried(lab, experiment))
                breach = breach if named is None else dataclasses.replace(breach, requirement=named)
                if named is not None:
                    break
        self.breach = breach

    @staticmethod
    async def _read_all(lab: Lab) -> str | None:
        handle = await lab.handle()
        cursor: str | None = None
        for _ in range(100):
            _, cursor = await handle.tasks(after=cursor, limit=100)
            if cursor is None:
                break
        return None

    @staticmethod
    async def _tried(lab: Lab, experiment: Callable[[Backend], Awaitable[str | None]]) -> str | None:
        return await experiment(await lab.handle(store=lab.new_store()))

    def details(self, error: BaseException) -> dict[str, Any]:
        """Return what is to be said of a failure, each thing under its name; what does not apply is empty."""
        requirement = REQUIREMENTS[self.broken_by(error)]
        raised = error.__cause__ if isinstance(error, Violation) else error
        places = [] if raised is None or isinstance(raised, Violation) else _places(raised)
        if raised is error and not places:
            places = traceback.extract_tb(error.__traceback__)[-1:]  # raised by the suite itself
        told: dict[str, Any] = {
            "requirement": requirement.id,
            "where": "",
            "look": self.check.look or requirement.look,
            "counterexample": "",
            "repeat_counterexample": "",
        }
        if isinstance(error, Violation):
            told |= {"where": error.what, "expected": error.expected, "actual": error.actual}
            elsewhere = requirement.id != self.check.requirement
            told["look"] = error.look or (requirement.look if elsewhere else told["look"])
            if error.counterexample is not None:
                told["counterexample"] = error.counterexample.rstrip() + "\n"
                told["repeat_counterexample"] = f"pytest --conformance={self._target} found.feature"
        elif isinstance(error, OutdatedDeviation):
            told["expected"] = f"the known deviation ({error})"
            told["actual"] = "the check passes: remove it from Harness.deviations"
        else:
            told["expected"], told["actual"] = "no exception", said(error)
        if type(raised) is NotImplementedError and places:
            told["look"] = f"{places[-1].name}, which is not written yet"
        return told | {
            "wrong_at": "" if self.breach is None else str(self.breach),
            "deviation": self.layer.setting.harness.deviations.get(self.check.id, ""),
            "raised_at": "\n".join(f"{each.filename}:{each.lineno} in {each.name}: {each.line}" for each in places),
            "calls": [] if self.lab is None else list(self.lab.journal.calls),
            "repeat": f'pytest --conformance={self._target} "{self.nodeid}"',
        }

    def explain(self, error: BaseException) -> str:
        """Return the failure for a person: requirement, expected, actual, where to look, and the calls before it."""
        check, told = self.check, self.details(error)
        rows = [
            ("check", f"{check.id}: {check.title}"),
            ("clause", ", ".join(check.clauses)),
            ("where", told["where"]),
            ("expected", told["expected"]),
            ("actual", told["actual"]),
            ("wrong at", told["wrong_at"]),
            ("look at", told["look"]),
            ("deviation", told["deviation"]),
            ("raised at", told["raised_at"]),
            ("calls", "\n".join(told["calls"])),
            ("repeat", told["repeat"]),
        ]
        lines = [f"{told['requirement']}: {REQUIREMENTS[told['requirement']].title}"]
        for label, text in rows:
            for number, line in enumerate(text.splitlines()):
                lines.append(f"  {label if number == 0 else '':<10}{line}")
        if told["counterexample"]:
            lines += [
                "",
                f"  As a scenario; saved to found.feature, it runs by itself: {told['repeat_counterexample']}",
            ]
            lines += ["", told["counterexample"].rstrip()]
        return "\n".join(lines)

    @property
    def _target(self) -> str:
        return without_password(self.layer.setting.target)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Explain what an implementer can act upon; show a traceback only of what is neither."""
        if isinstance(excinfo.value, Exception):
            return self.explain(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Say where the item stands: in the suite, not in a file of the adopter's."""
        return self.config.rootpath / self.layer.nodeid, None, self.name


def _places(error: BaseException) -> list[traceback.FrameSummary]:
    """Return where an exception passed from where the suite called the backend to where it was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.sep + "asyncio" + os.sep not in frame.filename
    ]
    suite = [number for number, frame in enumerate(frames) if frame.filename.startswith(_OUR_FOLDER)]
    return (frames[suite[-1] + 1 :] if suite else frames)[-_FRAMES:]


@contextlib.contextmanager
def _hard_limit(seconds: float) -> Iterator[None]:
    """Raise a violation after ``seconds`` even where a backend blocks the event loop, if the platform can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise Violation(
            "the whole check",
            expected="an end",
            actual=f"none within {seconds:g} s: a call hangs, or blocks the event loop",
            look="the last of the calls below, and locks that nobody releases",
        )

    before = signal.signal(signal.SIGALRM, expire)
    started = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining:
            # Somebody else's timer, such as a plugin's time limit, goes on where it was.
            signal.setitimer(signal.ITIMER_REAL, max(0.001, remaining - (time.monotonic() - started)), interval)
