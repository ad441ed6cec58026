"""The layer model: random calls, compared with the model of the contract after every step."""

from taskqueue_conformance.check import NotVerified, check
from taskqueue_conformance.lab import Lab

_STEPS_PER_EXAMPLE = 10


@check(
    "E4",
    "Every answer and every stored field is what the model of the contract has, after any sequence of calls",
    layer="model",
)
async def agrees_with_the_model(lab: Lab) -> None:
    from taskqueue_conformance.machine import explore  # noqa: PLC0415 - it costs a quarter of a second to import

    examples = lab.effort.examples
    did = await explore(lab, examples=examples, seed_number=lab.rng.getrandbits(32))
    lab.notes.update(did)
    if did["examples"] < examples or did["steps"] < _STEPS_PER_EXAMPLE * examples:
        raise NotVerified(f"only {did['examples']} examples with {did['steps']} steps in all were made")
