"""The steps of the features: a closed vocabulary. ``python -m taskqueue_conformance.steps`` prints it."""

# Importing a module of steps registers its phrases, in the order of the vocabulary's page.
from taskqueue_conformance.steps import scene, enqueueing, working, results, tasks, claims, upkeep  # noqa: F401, I001 - see above
from taskqueue_conformance.steps.registry import VOCABULARY

__all__ = ["VOCABULARY"]
