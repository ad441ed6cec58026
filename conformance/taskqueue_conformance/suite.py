"""The suite's inventory: every check, by layer, and which of them a version of the suite counts."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Final

from taskqueue_conformance import checks, scenarios
from taskqueue_conformance.check import CHECKS, Check
from taskqueue_conformance.suite_versions import newest, versions

SUITE_VERSION: Final = newest()
"""The version of the set of required checks that counts unless another one is asked for."""
LAYERS: Final = (
    "scenarios", "edges", "model", "schedules", "interruptions", "processes", "kills", "restarts", "hygiene",
)  # fmt: skip
"""The layers in the order in which they run."""


def every_check() -> Mapping[str, Check]:
    """Return every check by id, layer by layer."""
    for module in sorted(found.name for found in pkgutil.iter_modules(checks.__path__)):
        importlib.import_module(f"{checks.__name__}.{module}")
    everything = {each.id: each for each in scenarios.load([scenarios.features_folder()])} | CHECKS
    return {check_id: each for layer in LAYERS for check_id, each in everything.items() if each.layer == layer}


def required_checks(version: int = SUITE_VERSION) -> Mapping[str, Check]:
    """Return the checks that a version of the suite counts, by id, layer by layer.

    Raises:
        KeyError: There is no such version.
    """
    ids = versions()[version].ids
    return {check_id: each for check_id, each in every_check().items() if check_id in ids}
