"""The layer hygiene: processes in other time zones, and nothing left behind by many calls."""

from dataclasses import fields
from datetime import UTC, datetime
from typing import Final

from taskqueue_conformance.check import check
from taskqueue_conformance.checks._children import answer, apply, expect_answer, expect_seen, life, look, witness
from taskqueue_conformance.child import puppet
from taskqueue_conformance.lab import Lab
from taskqueue_conformance.leaking import Holdings, count
from taskqueue_conformance.model import Model
from taskqueue_conformance.violation import expect

LOOK_AT_ZONE: Final = (
    "any use of a clock or a local time zone: naive datetimes, fromtimestamp without a zone, SQL's now"
)
ZONES: Final = ("America/New_York", "Pacific/Kiritimati")
STARTS: Final = (
    datetime(2200, 6, 1, tzinfo=UTC),
    # An hour that happens twice in New York, and that clocks leave out.
    datetime(2030, 11, 3, 5, 30, tzinfo=UTC),
    datetime(2030, 3, 10, 6, 30, tzinfo=UTC),
    datetime(1975, 1, 1, tzinfo=UTC),
)
"""Where lives begin, one after the other: decades from the host's clock on both sides, and ever earlier."""
_SHARE: Final = 0.05


@check(
    "E4",
    "In a process of any time zone, at instants decades away and going backwards, all is as the model has it",
    layer="hygiene",
    cases={zone: zone for zone in ZONES},
    look=LOOK_AT_ZONE,
)
async def a_process_in_a_zone(lab: Lab, zone: str) -> None:
    await witness(lab)
    for start in STARTS:
        model, store = Model(), lab.new_store()
        child = await lab.child(puppet, store, environment={"TZ": zone})
        await answer(child.receive(), "connect() in a child process")
        where = f"in a process with TZ={zone}, around {start}"
        for call in life(start):
            expect_answer(call, await child.ask("call", call), apply(model, call), where=where, breaks="E4")
            expect_seen(await look(child, what=where), model, where=f"after {call.method}() {where}", breaks="E4")
        child.end()


@check(
    "E3",
    "Processes in different time zones read the same instants",
    layer="hygiene",
    needs=("multiprocess",),
    look=LOOK_AT_ZONE,
)
async def zones_agree(lab: Lab) -> None:
    await witness(lab)
    for start in STARTS:
        model, store = Model(), lab.new_store()
        children = [await lab.child(puppet, store, environment={"TZ": zone}) for zone in ZONES]
        for child in children:
            await answer(child.receive(), "connect() in a child process")
        for number, call in enumerate(life(start)):
            writer, reader = number % 2, (number + 1) % 2
            where = f"where TZ={ZONES[reader]} after {call.method}() where TZ={ZONES[writer]}"
            said = await children[writer].ask("call", call)
            expect_answer(call, said, apply(model, call), where=f"where TZ={ZONES[writer]}", breaks="E3")
            expect_seen(await look(children[reader], what=where), model, where=where, breaks="E3")
        for child in children:
            child.end()


async def _expect_level(lab: Lab, kind: str) -> None:
    await witness(lab)
    child = await lab.child(count, lab.store, kind, lab.effort.cycles)
    before, after = await answer(child.receive(seconds=60), f"{kind}, {lab.effort.cycles} times")
    grown = [
        f"{field.name} from {was} to {now}"
        for field in fields(Holdings)
        if (was := getattr(before, field.name)) is not None
        and (now := getattr(after, field.name)) - was > _SHARE * lab.effort.cycles
    ]
    lab.notes["cycles"] = lab.effort.cycles
    expect(
        f"{kind}, {lab.effort.cycles} times in one process",
        not grown,
        expected="as many file descriptors, threads and asyncio tasks as at first",
        actual=", ".join(grown),
    )


@check(
    "HANDLES",
    "However often handles connect, are used and close, nothing is left behind",
    layer="hygiene",
    cases={kind: kind for kind in ("new handles connect and close", "the same handle connects and closes")},
    look="close: every connection, thread and task that connect made",
)
async def handles_leave_nothing(lab: Lab, kind: str) -> None:
    await _expect_level(lab, kind)


@check(
    "X1",
    "However many calls return, are refused or are cancelled, nothing is left behind",
    layer="hygiene",
    cases={
        kind: kind
        for kind in (
            "calls that return",
            "refused calls",
            "cancelled calls",
            "a wait ends, and another one is cancelled",
        )
    },
    look="what a call opens, and gives back only if all goes well",
)
async def calls_leave_nothing(lab: Lab, kind: str) -> None:
    await _expect_level(lab, kind)
