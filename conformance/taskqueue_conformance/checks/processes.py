"""The layer processes: several processes work on one store at once."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from taskqueue import Task, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._children import answer, apply, expect_answer, expect_seen, life, look, witness
from taskqueue_conformance.child import Call, Raised, puppet
from taskqueue_conformance.children import Child
from taskqueue_conformance.lab import NOON, Lab, new_task
from taskqueue_conformance.model import Model
from taskqueue_conformance.racing import Event, race
from taskqueue_conformance.violation import Violation, expect, expect_equal

PROCESSES: Final = 3
RACE_S: Final = 60.0
LOOK_AT_ONE_STEP: Final = "one transaction, which other processes respect, for each call: choosing and marking included"
_PROMPT_S: Final = 5.0
_LONG_S: Final = 20.0
_SETTLING_S: Final = 0.3


async def _puppets(lab: Lab, count: int, *, store: str | None = None, connected: bool = True) -> Sequence[Child]:
    children = [await lab.child(puppet, store or lab.store, connected) for _ in range(count)]
    if connected:
        await asyncio.gather(*(answer(child.receive(), "connect() in a child process") for child in children))
    return children


async def _all_at_once(children: Sequence[Child], *messages: Sequence[Any]) -> list[Any]:
    """Send each child its message, all of them before any answer is awaited, and return the answers."""
    for child, message in zip(children, messages, strict=True):
        child.send(*message)
    return list(await asyncio.gather(*(child.receive() for child in children)))


# A race -----------------------------------------------------------------------------------------------------------


@check(
    "C1",
    "Processes that claim, complete, fail, retry, recover and cancel at once never share a claim, and lose no task",
    layer="processes",
    needs=("multiprocess",),
    look=LOOK_AT_ONE_STEP,
)
async def processes_race(lab: Lab) -> None:
    tasks = [new_task(f"task {number}", max_retries=number % 4) for number in range(lab.effort.raced_tasks)]
    backend = await lab.handle()
    await lab.put(backend, *tasks)
    ids = [task.id for task in tasks]
    racers = [await lab.child(race, lab.store, f"process {lab.rng.getrandbits(32)}", ids) for _ in range(PROCESSES)]
    for racer in racers:
        await answer(racer.receive(), "connect() in a child process")
    for racer in racers:
        racer.send("go")
    events: list[Event] = []
    for racer in racers:
        what = "a call while other processes work on the same store"
        look_at = "waiting for the locks of other processes, instead of giving up"
        events += await answer(racer.receive(seconds=RACE_S, what=what), what, breaks="X1", look=look_at)
    listed, _ = await backend.tasks(limit=len(tasks) + 1)
    stored = {task.id: task for task in listed}
    history: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda each: each.ended):
        history[event.task_id].append(event)
    for task in tasks:
        _judge(task, history[task.id], stored.get(task.id))
    expect_equal("the ids in the store after the race", sorted(stored), sorted(ids), breaks="L3")
    lab.notes |= {"claims": sum(event.kind == "claim" for event in events), "calls": len(events)}


def _judge(task: Task, events: Sequence[Event], stored: Task | None) -> None:
    """Judge the history of one task, the earliest call first, and what is stored in the end."""
    about = f"task {task.id!r} with max_retries={task.max_retries}"
    if stored is None:
        raise Violation(f"{about} after the race", expected="a task", actual="nothing under this id", breaks="D1")
    claims = sorted((event for event in events if event.kind == "claim"), key=lambda each: each.attempt)
    numbers = [claim.attempt for claim in claims]
    expect(
        f"the attempts of {about} that claims returned",
        len(set(numbers)) == len(numbers),
        expected="each number once",
        actual=numbers,
        breaks="C1",
    )
    expect_equal(
        f"the attempts of {about} that claims returned", numbers, list(range(1, len(numbers) + 1)), breaks="C2"
    )
    expect(
        f"the number of claims of {about}",
        len(numbers) <= max(1, task.max_retries),
        expected=f"{max(1, task.max_retries)} at most",
        actual=len(numbers),
        breaks="R1",
    )
    endings = [event for event in events if event.done and event.kind != "claim"]
    for attempt in numbers:
        ends = [event for event in endings if event.attempt == attempt]
        expect(
            f"the outcomes of attempt {attempt} of {about} that were accepted",
            len(ends) <= 1,
            expected="one at most",
            actual=_told(ends),
            breaks="L1" if all(event.kind == "complete" for event in ends) else "L2",
        )
    for claim in claims[1:]:
        end = next((event for event in endings if event.attempt == claim.attempt - 1), None)
        expect(
            f"attempt {claim.attempt} of {about}",
            end is not None and end.began < claim.ended,
            expected=f"claimed only after attempt {claim.attempt - 1} had been failed",
            actual=f"claimed while it was held: {_told(events)}",
            breaks="C1",
        )
    _judge_outcome(about, endings, stored)
    expect_equal(f"attempts of {about} in the end", stored.attempts, len(numbers), breaks="R1")


def _judge_outcome(about: str, endings: Sequence[Event], stored: Task) -> None:
    """Each task has exactly one outcome, and it is the one that was acknowledged."""
    if not stored.status.ended:
        breaks = "D3" if stored.status is TaskStatus.RUNNING else "E2"
        raise Violation(f"{about} after the race", expected="ended", actual=stored.status.name, breaks=breaks)
    final = [event for event in endings if event.task is None or event.task.status is not TaskStatus.PENDING]
    expect(f"the outcomes of {about}", len(final) == 1, expected="exactly one", actual=_told(final), breaks="L1")
    kind = final[0].kind
    outcomes = {"complete": TaskStatus.SUCCESS, "cancel": TaskStatus.CANCELLED}
    expect_equal(
        f"the status of {about} after {kind}() was acknowledged",
        stored.status,
        outcomes.get(kind, TaskStatus.FAILED),
        breaks="L1",
    )
    if kind == "complete":
        told = stored.value is not None and stored.value.endswith(f"attempt {final[0].attempt}".encode())
        expect(f"the value of {about}", told, expected="the one acknowledged", actual=stored.value, breaks="V1")
    failed = sorted(event.attempt for event in endings if event.kind in {"fail", "recover"})
    kept = [failure.attempt for failure in stored.failures]
    expect_equal(f"the attempts in the failures of {about}", kept, failed, breaks="D1")


def _told(events: Sequence[Event]) -> str:
    return (
        "; ".join(f"{event.kind} of attempt {event.attempt} {event.began:.4f}-{event.ended:.4f}" for event in events)
        or "none"
    )


# One call each ----------------------------------------------------------------------------------------------------


@check(
    "HANDLES",
    "Processes that connect to a new store at the same time all find the same one, and it works",
    layer="processes",
    needs=("multiprocess",),
    look="connect: making the schema where another process is just making it",
)
async def processes_connect_at_once(lab: Lab) -> None:
    await witness(lab)
    for _ in range(5):
        store = lab.new_store()
        children = await _puppets(lab, 4, store=store, connected=False)
        messages = [("calls", [Call("connect"), Call("enqueue", ([new_task(f"{n}")],))]) for n in range(4)]
        for said in await _all_at_once(children, *messages):
            raised = isinstance(said, Raised)
            what = "connect() and enqueue() in four processes at once"
            expect(what, not raised, expected="no exception", actual=said)
        for child in children:
            seen = await look(child, what="reading a store that four processes made at once")
            expect_equal("the ids that each process sees", sorted(seen.tasks), ["0", "1", "2", "3"])
            child.end()


@check(
    "L1",
    "Of processes that enqueue the same id at once, one succeeds, and the others change nothing",
    layer="processes",
    needs=("multiprocess",),
    look="enqueue: a unique key and an insert that does not replace, in one transaction for the whole call",
)
async def one_enqueue_wins(lab: Lab) -> None:
    await witness(lab)
    children = await _puppets(lab, PROCESSES)
    # What a process remembers of the ids that there are, it has learnt before the others add theirs.
    for number, child in enumerate(children):
        await answer(child.ask("call", Call("enqueue", ([new_task(f"first of {number}")],))), "enqueue()")
    ids = [f"shared {number}" for number in range(20)]

    def tasks(process: int, task_id: str) -> list[Task]:
        mine = f"{task_id}, only by {process}"
        return [new_task(mine), new_task(task_id, payload=f"by {process}".encode())]

    orders = [ids, ids[::-1], ids[10:] + ids[:10]]
    messages = [
        ("together", [Call("enqueue", (tasks(process, task_id),)) for task_id in order])
        for process, order in enumerate(orders)
    ]
    answers = [
        dict(zip(order, said, strict=True))
        for order, said in zip(orders, await _all_at_once(children, *messages), strict=True)
    ]
    seen = await look(children[0], what="reading a store after enqueueing at once")
    for task_id in ids:
        winners = [process for process, said in enumerate(answers) if said[task_id] is None]
        refusals = {said[task_id].kind for said in answers if said[task_id] is not None}
        expect_equal(f"the processes that enqueued {task_id!r}", len(winners), 1)
        expect(f"the others of {task_id!r}", refusals == {"TaskExists"}, expected={"TaskExists"}, actual=refusals)
        for task in tasks(winners[0], task_id):
            expect_equal(f"task {task.id!r}", seen.tasks.get(task.id), task)
    expect_equal("how many tasks there are: no loser's", len(seen.tasks), len(children) + 2 * len(ids))


@check(
    "D1",
    "What one process was acknowledged, another one sees at once, and works with",
    layer="processes",
    needs=("multiprocess",),
    look="anything that a handle or a process remembers of the store, and commits that come late",
)
async def processes_see_each_other(lab: Lab) -> None:
    await witness(lab)
    model = Model()
    children = await _puppets(lab, 2)
    for child in children:  # what a process was told that there is none of may come to be
        asked = Call("get", ("1",))
        expect_answer(asked, await child.ask("call", asked), None, where="before anything was enqueued", breaks="L3")
    for number, call in enumerate(life(NOON)):
        writer, reader = children[number % 2], children[(number + 1) % 2]
        said = await writer.ask("call", call)
        expect_answer(call, said, apply(model, call), where="after calls in another process", breaks="D1")
        for each, where in ((reader, f"in another process than {call.method}()"), (writer, "in the same process")):
            seen = await look(each, what=f"reading the store after {call.method}() {where}")
            expect_seen(seen, model, where=where, breaks="D1")


@check(
    "W1",
    "A change in one process ends a wait in another",
    layer="processes",
    needs=("multiprocess",),
    look="wait: notice the changes of other processes, by notification or by looking now and then",
)
async def a_change_ends_a_wait_elsewhere(lab: Lab) -> None:
    await witness(lab)
    [working] = await _puppets(lab, 1)
    for number in range(3):
        noticed = False
        # A change may be missed now and then, but not always.
        for attempt in range(2):
            [waiting] = await _puppets(lab, 1)
            waiting.send("call", Call("wait", (_LONG_S,)))
            early = await waiting.speaks(within=_SETTLING_S)
            task = new_task(f"{number}, {attempt}")
            await answer(working.ask("call", Call("enqueue", ([task],))), "enqueue() in another process")
            noticed = early or await waiting.speaks(within=_PROMPT_S)
            waiting.end()
            if noticed:
                break
        expect(
            f"wait({_LONG_S:g}) when another process makes a change",
            noticed,
            expected=f"an end within {_PROMPT_S:g} s of it, once in two tries",
            actual="none in either",
        )
