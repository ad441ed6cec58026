"""A part of the layer kills: whether what was acknowledged has been handed to the disk, where that can be seen."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from taskqueue_conformance.check import NotVerified, check
from taskqueue_conformance.checks._children import life, witness
from taskqueue_conformance.child import Call, Raised
from taskqueue_conformance.lab import NOON, Lab, new_task
from taskqueue_conformance.syncing import Watch, watched_puppet
from taskqueue_conformance.violation import Violation, expect

_CHANGES: Final = frozenset({"enqueue", "claim", "extend", "complete", "fail", "cancel", "purge"})


@dataclass(frozen=True, slots=True)
class Watched:
    """A call in a watched process: whether it wrote to a file of the store, and had a file of the store synced."""

    method: str
    wrote: bool
    synced: bool


@check(
    "D1",
    "What a process writes to the store's files is synced before the call returns",
    layer="kills",
    needs=("durable", "multiprocess"),
    look="fsync before acknowledging: synchronous=FULL, say, on every connection",
)
async def acknowledged_is_synced(lab: Lab) -> None:
    await witness(lab)
    marker = f"marker {lab.store}".encode()
    marked = Call("enqueue", ([new_task("marked", payload=marker, available_at=NOON.replace(year=2031))],))
    # A first connection, a second one of the same handle, and those of another process.
    calls = life(NOON)
    reopened = [Call("close"), Call("connect")]
    seen = await _watched(lab, marker, [marked, *calls[:9], *reopened, *calls[9:14], *reopened])
    seen += await _watched(lab, marker, [*calls[14:], Call("close")])
    writes = [each for each in seen if each.method in _CHANGES and each.wrote]
    missing = [each.method for each in writes if not each.synced]
    lab.notes |= {"writes": len(writes), "synced": len(writes) - len(missing)}
    if not writes:
        raise NotVerified("the payload is in no file that the processes wrote: it is kept elsewhere, or not as it is")
    if not any(each.synced for each in _later_writes(seen)) and any(e.method == "close" and e.synced for e in seen):
        raise NotVerified("files are synced, but later than calls return: a loss of power may take some of them back")
    expect(
        f"the system calls of {len(writes)} calls that wrote to files of the store",
        not missing,
        expected="fsync, or the like, of such a file before each of the calls returned",
        actual=f"none in {len(missing)} of them: {', '.join(dict.fromkeys(missing))}",
    )


def _later_writes(seen: Sequence[Watched]) -> list[Watched]:
    """Return the calls that wrote, but the first on each connection: a log that begins anew is synced in any case."""
    later: list[Watched] = []
    first = True
    for each in seen:
        if each.method == "connect":
            first = True
        elif each.method in _CHANGES and each.wrote:
            later += [] if first else [each]
            first = False
    return later


async def _watched(lab: Lab, marker: bytes, calls: Sequence[Call]) -> list[Watched]:
    """Make the calls in a new process that is watched from its beginning."""
    child = await lab.child(watched_puppet, lab.store)
    listener = await child.receive_descriptor()
    if listener is None:
        raise NotVerified(f"the syncs of a process cannot be watched here: {await child.receive()}")
    seen: list[Watched] = []
    with Watch(listener) as watch:
        for call in [Call("connect"), *calls]:
            watch.begin()
            said = await child.ask("call", call)
            if isinstance(said, Raised) and said.kind not in {"StaleClaim", "TaskExists"}:
                raise Violation(f"{call.method}() in a child process", expected="no exception", actual=str(said))
            store = await asyncio.to_thread(watch.files_with, marker)
            synced = any(file is None or file in store for file in watch.synced)
            seen.append(Watched(call.method, wrote=not store.isdisjoint(watch.wrote), synced=synced))
        child.end()
    return seen
