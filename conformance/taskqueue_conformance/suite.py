"""The suite's inventory: every required check, by layer."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Final

from taskqueue_conformance import checks, scenarios
from taskqueue_conformance.check import CHECKS, Check

SUITE_VERSION: Final = "1"
"""The version of the set of required checks."""
LAYERS: Final = (
    "scenarios", "edges", "model", "schedules", "interruptions", "processes", "kills", "restarts", "hygiene",
)  # fmt: skip
"""The layers in the order in which they run."""


def required_checks() -> Mapping[str, Check]:
    """Return every required check by id, layer by layer."""
    for module in sorted(found.name for found in pkgutil.iter_modules(checks.__path__)):
        importlib.import_module(f"{checks.__name__}.{module}")
    everything = {each.id: each for each in scenarios.load([scenarios.features_folder()])} | CHECKS
    return {check_id: each for layer in LAYERS for check_id, each in everything.items() if each.layer == layer}
