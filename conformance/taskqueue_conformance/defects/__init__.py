"""Planted defects: wrong backends that show what the suite catches, and for which reason.

Each is a target by itself, under its id with underscores: ``--conformance=taskqueue_conformance.defects:ID``. So are
the correct backends that they were made from, ``plain_memory_backend``, ``plain_sqlite_backend``,
``plain_transactional_backend`` and ``plain_served_backend``, and the three that do nothing: ``null_empty``,
``null_raising`` and ``null_forgetful``.
"""

import functools
import importlib
from typing import Any


@functools.cache
def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # Not before somebody asks: the catalogue imports every defect. And no "from": that would ask here again.
    controls = importlib.import_module(f"{__name__}.controls")
    if name in controls.HARNESSES:
        return controls.HARNESSES[name]()
    found = importlib.import_module(f"{__name__}.catalogue").catalogue().get(name.replace("_", "-"))
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found.harness()
