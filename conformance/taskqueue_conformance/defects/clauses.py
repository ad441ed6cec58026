"""Clauses of the specification for which no defect can be planted that only their checks catch, and why."""

from collections.abc import Mapping
from typing import Final

IMPOSSIBLE: Final[Mapping[str, str]] = {}
"""Clause id to reason."""
