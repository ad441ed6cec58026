"""Profiles: how much of the suite runs, and how hard the random layers look."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from taskqueue_conformance.check import Check, NotVerified
from taskqueue_conformance.effort import DEFAULT, QUICK, Effort
from taskqueue_conformance.items import Setting
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.violation import Violation

RANDOM_LAYERS: Final = ("model", "schedules", "interruptions", "kills")
"""The layers in which another seed means another run."""
SOAK: Final = "soak"
"""The name of the profile that goes on with new seeds, and of its layer."""

_CASE: Final = re.compile(r"\[.*\]$")


@dataclass(frozen=True, slots=True)
class Profile:
    """What one value of ``--conformance-profile`` means.

    Attributes:
        name: The value.
        effort: How much the random layers do.
        left_out: The layers that do not run.
        one_case: Whether one case of each check is enough.
    """

    name: str
    effort: Effort
    left_out: frozenset[str] = frozenset()
    one_case: bool = False

    def wants(self, check: Check, checks: Mapping[str, Check]) -> bool:
        """Return whether a check runs in this profile."""
        if check.layer in self.left_out:
            return False
        if not self.one_case or not _CASE.search(check.id):
            return True
        stem = _CASE.sub("", check.id)
        return check.id == next(each for each in checks if _CASE.sub("", each) == stem)


PROFILES: Final[Mapping[str, Profile]] = {
    profile.name: profile
    for profile in (
        Profile("default", DEFAULT),
        Profile("quick", QUICK, left_out=frozenset({"processes", "kills", "hygiene"}), one_case=True),
        Profile(SOAK, DEFAULT),
    )
}
"""All profiles by name."""


def soak_check(
    checks: Mapping[str, Check], setting: Setting, *, minutes: float, progress: Callable[[str, bool], None]
) -> Check:
    """Return the check that runs the random layers with new seeds until the time is up or one of them fails.

    Args:
        checks: Every required check.
        setting: What the run's checks share; the seeds follow on its seed.
        minutes: How long to go on.
        progress: Told, before each check, where things are, and whether a new seed begins.
    """
    tireless = [
        each for each in checks.values() if each.layer in RANDOM_LAYERS and each.needs <= setting.harness.capabilities
    ]

    async def run(lab: Lab) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        runs, seed = 0, setting.seed
        while True:
            seed += 1
            for number, each in enumerate(tireless):
                spent = (loop.time() - began) / 60
                if spent >= minutes and runs:
                    lab.notes.update(seeds=seed - setting.seed, runs=runs)
                    return
                progress(f"soak: {spent:.1f} of {minutes:g} min, {runs} runs, seed {seed}, {each.id}", not number)
                await _once(each, Setting(setting.harness, setting.target, seed, setting.effort), lab)
                runs += 1

    return Check(
        id=f"{SOAK}/E4/new-seeds",
        layer=SOAK,
        requirement="E4",
        title="The random layers find nothing with new seeds either",
        needs=frozenset(),
        look=None,
        run=run,
        limit_s=minutes * 60 + 300,
    )


async def _once(check: Check, setting: Setting, lab: Lab) -> None:
    inner = setting.lab(check)
    try:
        await check.run(inner)
    except NotVerified:
        pass
    except Exception as error:
        raise _with_seed(error, check, setting) from error
    finally:
        lab.journal.witnessed |= inner.journal.witnessed
        lab.journal.calls.extend(inner.journal.calls)
        await inner.close()


def _with_seed(error: Exception, check: Check, setting: Setting) -> Violation:
    told: Any = error if isinstance(error, Violation) else None
    again = f"{check.id}; --conformance-seed={setting.seed} repeats it"
    found = Violation(
        again if told is None else f"{again}: {told.what}",
        expected="no exception" if told is None else told.expected,
        actual=f"{type(error).__name__}: {error}" if told is None else told.actual,
        breaks=check.requirement if told is None else told.requirement or check.requirement,
        look=None if told is None else told.look,
    )
    found.counterexample = None if told is None else told.counterexample
    return found
