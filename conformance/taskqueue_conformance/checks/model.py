"""The layer model: random calls, compared with the model of the contract after every step."""

from taskqueue_conformance.check import check
from taskqueue_conformance.lab import Lab

EXAMPLES = 100
"""How many random runs the default profile makes."""


@check(
    "E4",
    "Every answer and every stored field is what the model of the contract has, after any sequence of calls",
    layer="model",
)
async def agrees_with_the_model(lab: Lab) -> None:
    # Not before it is needed: it costs a quarter of a second to import.
    from taskqueue_conformance.machine import explore  # noqa: PLC0415

    lab.notes.update(await explore(lab, examples=EXAMPLES, seed_number=lab.rng.getrandbits(32)))
