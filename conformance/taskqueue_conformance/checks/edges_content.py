"""Edges of content: P1 (payloads and ids), V1 (values), V2 (errors and tracebacks), and the sizes that all accept."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Final

from taskqueue import Backend, Task, TaskExists, TaskStatus
from taskqueue_conformance.check import check
from taskqueue_conformance.checks._shared import (
    BLOBS,
    END_OF_TIME,
    HOUR,
    MAX_STEPS,
    SECOND,
    after_cancel,
    after_claim,
    after_complete,
    after_fail,
    claim,
    expect_stored,
    expect_tasks,
    ids,
    listing,
    outcomes,
    overlap,
)
from taskqueue_conformance.lab import LEASE, NOON, Lab, new_failure, new_task
from taskqueue_conformance.violation import Violation, expect, expect_equal, expect_refused, expect_task, shown

PAST: Final = NOON - SECOND
MIB: Final = 1024 * 1024
TEXT: Final = 64 * 1024


def _noise(size: int, *, seed: int) -> bytes:
    """Return bytes that neither compress nor repeat."""
    return hashlib.shake_128(f"{seed}".encode()).digest(size)


# P1 --------------------------------------------------------------------------------------------------------------

LOOK_AT_PAYLOAD: Final = "how the payload is stored: bytes as they are, never text, never empty for None"


@check(
    "P1", "A payload comes back byte for byte, on every attempt and in every answer", cases=BLOBS, look=LOOK_AT_PAYLOAD
)
async def a_payload_comes_back(lab: Lab, payload: bytes) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task(payload=payload, available_at=PAST)
    await lab.put(backend, task, new_task("other", payload=b"another", available_at=NOON + HOUR))
    for attempt in (1, 2):
        claimed = await claim(backend)
        await lab.expect_claimed(backend, claimed, [task], now=NOON)
        expect_equal(f"the payload that claim {attempt} returned", claimed[0].payload, payload, breaks="P1")
        for expired in await other.expired(now=END_OF_TIME, limit=9):
            expect_equal(f"the payload in expired() during attempt {attempt}", expired.payload, payload, breaks="P1")
        failed = await other.fail("a", attempt, new_failure(attempt, retry_at=PAST))
        expect_equal(f"the payload that fail {attempt} returned", failed.payload, payload, breaks="P1")
    listed = await listing(other)
    payloads = [each.payload for each in listed if each.id == "a"]
    expect_equal("the payload in tasks()", payloads, [payload], breaks="P1")
    await claim(backend)
    await backend.complete("a", 3, value=b"the value", now=NOON)
    ended = await other.get("a")
    expect_equal("the payload after complete", ended and ended.payload, payload, breaks="P1")


@check("P1", "Payloads stay with their tasks", look=LOOK_AT_PAYLOAD)
async def payloads_stay_with_their_tasks(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(name, payload=blob, available_at=PAST) for name, blob in BLOBS.items()]
    await lab.put(backend, *tasks)
    claimed = await claim(backend, limit=100)
    await lab.expect_claimed(backend, claimed, tasks, now=NOON)
    payloads = {task.id: task.payload for task in claimed}
    expect_equal("the payloads that one claim returned, by id", payloads, BLOBS, breaks="P1")


@check("P1", "Payloads of 1 MiB are accepted and kept", look="limits on the size of a record, a statement or a message")
async def payloads_of_1_mib(lab: Lab) -> None:
    backend = await lab.handle()
    noise = new_task("noise", payload=_noise(MIB, seed=1), available_at=PAST)
    tasks = [noise, new_task("zeros", payload=bytes(MIB), available_at=PAST)]
    await lab.put(backend, *tasks)
    claimed = await claim(backend, limit=2)
    await lab.expect_claimed(backend, claimed, tasks, now=NOON)
    for task in claimed:
        wanted = next(each for each in tasks if each.id == task.id)
        expect_task(f"{task.id!r} as claim returned it", task, after_claim(wanted), breaks="P1")


@check(
    "P1", "Nothing handed in or out is shared with the store", look="any answer or argument that is kept, not copied"
)
async def nothing_is_shared_with_the_store(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task("a", available_at=PAST), new_task("b", available_at=NOON)]
    given = tasks.copy()
    await backend.enqueue(given)
    given.clear()
    await lab.expect_stored(backend, *tasks, when="after the list given to enqueue was cleared")
    page = await listing(backend)
    counts = await backend.counts()
    claimed = await claim(backend)
    await lab.expect_claimed(backend, claimed, tasks[:1], now=NOON)
    await lab.expect_expired(backend, await backend.expired(now=END_OF_TIME, limit=9), ["a"], now=END_OF_TIME)
    expired = await backend.expired(now=END_OF_TIME, limit=9)
    await lab.expect_expired(backend, expired, ["a"], now=END_OF_TIME)
    for answer in (page, claimed, expired):
        if isinstance(answer, list):
            answer.clear()
    if isinstance(counts, dict):
        counts.clear()
    running = after_claim(tasks[0])
    await expect_stored(backend, running, tasks[1], when="after answers were cleared", breaks="P1")
    page = await listing(backend)
    expect_tasks("tasks() after answers were cleared", page, [running, tasks[1]], breaks="P1")
    counts = await backend.counts()
    expect_equal("counts() after answers were cleared", counts.get(TaskStatus.RUNNING), 1, breaks="P1")
    expired = await backend.expired(now=END_OF_TIME, limit=9)
    expect_equal("expired() after answers were cleared", ids(expired), ["a"], breaks="P1")


ID_FAMILIES: Final = {
    "upper and lower case": ("a", "A", "ä", "Ä", "ß", "ss", "SS", "\u0131", "i", "I", "\u0130"),
    "white space": ("a", "a ", " a", "a\n", "a\t", "\ta", "a\r\n", " ", "  ", "a\u00a0", "\u200b", "a\u200b"),
    "composed and decomposed": ("\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a", "ﬁ", "fi", "\uff41", "a"),
    "numbers": (
        "1",
        "01",
        "1.0",
        "+1",
        "1e0",
        "0x1",
        "-1",
        "0",
        "-0",
        "00",
        "1_0",
        "10",
        "true",
        "nan",
        "None",
        "null",
    ),
    "patterns": ("a%", "a_", "a*", "ab", "%", "_", "*", "?", "[a]", "a.", ".", "..", "^a", "\\", "\\\\", "\\a", "a\\"),
    "separators": ("a", "a:b", "a:", ":a", "a/b", "a//b", "/a", "a/../a", "a|b", "a,b", "a;b", "a\nb", "a\x1fb", "a-1"),
    "quotes": ("a'", "a''", 'a"', "a`", "'; DROP TABLE tasks; --", "{a}", "%s", "$1", ":id", "\x01", "\x7f", "\x1b[0m"),
    "planes": ("\U0001f600", "\U0001f601", "\uffff", "\U0010ffff", "\ufeffa", "日本", "日本語", "\u2028", "\ud7ff"),
    "length": ("a" * 255, "a" * 254, "a" * 254 + "b", "b" + "a" * 254, "é" * 127, "é" * 127 + "a", "\U0001f600" * 63),
}
"""Ids that are different tasks, and that collations, normal forms, patterns, paths and number types confuse."""


@check(
    "P1",
    "Ids that are not byte-equal are different tasks",
    cases=ID_FAMILIES,
    look="how ids are stored and compared: byte for byte, no collation, normal form, pattern or conversion",
)
async def ids_are_compared_byte_by_byte(lab: Lab, family: Sequence[str]) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = [new_task(name, payload=name.encode()[::-1], available_at=PAST) for name in family]
    for task in tasks:
        expect_equal(f"get({task.id!r}) before it was enqueued", await backend.get(task.id), None, breaks="P1")
        try:
            await backend.enqueue([task])
        except TaskExists as clash:
            raise Violation(
                f"enqueue of {task.id!r}", expected="a new task", actual=f"TaskExists: {clash}", breaks="P1"
            ) from clash
        await lab.expect_stored(backend, task, when="after enqueue")
    refused = await expect_refused("enqueue of all of them again", other.enqueue(tasks), TaskExists, breaks="L1")
    expect_equal("TaskExists.task_ids", sorted(refused.task_ids), sorted(family), breaks="L1")
    claimed = await claim(backend, limit=100)
    await lab.expect_claimed(backend, claimed, tasks, now=NOON, breaks="P1")
    held = await other.extend([(name, 1) for name in family], lease_expires_at=NOON + HOUR)
    expect_equal("extend() of all of them", held, [(name, 1) for name in family], breaks="P1")
    expected = []
    for number, task in enumerate(tasks):
        running = after_claim(task, lease=NOON + HOUR)
        if number % 3 == 0:
            await backend.complete(task.id, 1, value=task.payload, now=NOON)
            expected.append(after_complete(running, value=task.payload))
        elif number % 3 == 1:
            failure = new_failure(error=f"of task {number}")
            await backend.fail(task.id, 1, failure)
            expected.append(after_fail(running, failure))
        else:
            await backend.cancel(task.id, now=NOON)
            expected.append(after_cancel(running))
    await expect_stored(other, *expected, when="after an outcome for each", breaks="P1")
    listed = await listing(other)
    expect_equal("the ids in tasks()", sorted(ids(listed)), sorted(family), breaks="P1")


# V1 --------------------------------------------------------------------------------------------------------------

LOOK_AT_VALUE: Final = 'complete and get: the value as bytes, b"" apart from None, with the status, in one step'


@check("V1", "A value comes back byte for byte, again and again", cases=BLOBS, look=LOOK_AT_VALUE)
async def a_value_comes_back(lab: Lab, value: bytes) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task(available_at=PAST)
    (running,) = await lab.running(backend, task)
    expect_equal("the value while it runs", running.value, None, breaks="V1")
    await backend.complete("a", 1, value=value, now=NOON)
    ended = after_complete(after_claim(task), value=value)
    for handle in (backend, other, backend, other):
        found = await handle.get("a")
        expect("get after complete", found is not None, expected="the task", actual=found, breaks="V1")
        expect_equal("the value that get shows", found and found.value, value, breaks="V1")
        expect_equal("the status that get shows", found and found.status, TaskStatus.SUCCESS, breaks="V1")
        await expect_stored(handle, ended, when="after complete", breaks="V1")
    listed = await listing(other)
    expect_equal("the values in tasks()", [each.value for each in listed], [value], breaks="V1")


@check("V1", "Values stay with their tasks, and appear in no other status", look=LOOK_AT_VALUE)
async def values_stay_with_their_tasks(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    tasks = {name: new_task(name, available_at=PAST) for name in [*BLOBS, "failed", "cancelled", "retried", "running"]}
    await lab.running(backend, *tasks.values())
    expected = {name: after_claim(task) for name, task in tasks.items()}
    for name, blob in BLOBS.items():
        await (backend if len(name) % 2 else other).complete(name, 1, value=blob, now=NOON)
        expected[name] = after_complete(expected[name], value=blob)
    await backend.fail("failed", 1, new_failure())
    expected["failed"] = after_fail(expected["failed"], new_failure())
    await backend.cancel("cancelled", now=NOON)
    expected["cancelled"] = after_cancel(expected["cancelled"])
    retry = new_failure(retry_at=NOON + HOUR)
    await backend.fail("retried", 1, retry)
    expected["retried"] = after_fail(expected["retried"], retry)
    for handle in (backend, other):
        for name, task in expected.items():
            found = await handle.get(name)
            expect_equal(f"the value of {name!r}", found and found.value, task.value, breaks="V1")
            expect_equal(f"the status of {name!r}", found and found.status, task.status, breaks="V1")


@check("V1", "A value of 1 MiB is accepted and kept", look="limits on the size of a record, a statement or a message")
async def a_value_of_1_mib(lab: Lab) -> None:
    backend = await lab.handle()
    task = new_task(payload=_noise(MIB, seed=2), available_at=PAST)
    value = _noise(MIB, seed=3)
    await lab.running(backend, task)
    await backend.complete("a", 1, value=value, now=NOON)
    for _ in range(2):
        await expect_stored(backend, after_complete(after_claim(task), value=value), when="after complete", breaks="V1")


@check("V1", "Nobody sees a success without its value", look=LOOK_AT_VALUE)
async def nobody_sees_a_success_without_its_value(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    await lab.put(backend, new_task("first", available_at=NOON + HOUR))
    for after in range(1, MAX_STEPS + 1):
        (task,) = await lab.running(backend, new_task(f"{after}", available_at=PAST))
        held, (_, seen) = await overlap(
            backend.complete(task.id, 1, value=b"the value", now=NOON),
            partial(other.get, task.id),
            after=after,
        )
        expected = after_complete(task, value=b"the value")
        if seen != task:
            expect_equal("the task that another handle saw meanwhile", seen, expected, breaks="V1")
        await expect_stored(other, expected, when="after complete", breaks="V1")
        if not held:
            break


@check("V1", "A result can be read after its lease, its eta and other tasks are long past", look="get: reading is free")
async def a_result_outlives_other_tasks(lab: Lab) -> None:
    backend, other = await lab.handle(), await lab.handle()
    task = new_task("kept", available_at=PAST)
    await lab.running(backend, task, new_task("purged", available_at=PAST))
    await backend.complete("purged", 1, value=b"other", now=NOON - HOUR)
    await backend.complete("kept", 1, value=b"mine", now=NOON)
    expect_equal("purge()", await other.purge(finished_before=NOON, limit=9), 1, breaks="G1")
    await lab.put(other, new_task("purged", available_at=PAST))
    await claim(other, now=END_OF_TIME, limit=9)
    await other.complete("purged", 1, value=b"newer", now=END_OF_TIME)
    ended = after_complete(after_claim(task), value=b"mine")
    for handle in (backend, other, backend):
        await expect_stored(handle, ended, when="much later", breaks="V1")
    found = await backend.get("purged")
    expect_equal("the value of the id that was used again", found and found.value, b"newer", breaks="V1")


# V2 --------------------------------------------------------------------------------------------------------------

LOOK_AT_TEXT: Final = "fail: error and traceback as Unicode text, unchanged; an empty traceback is not None"

TEXTS: Final = {
    "empty traceback": ("ValueError", ""),
    "no traceback": ("the lease ran out", None),
    "one character": ("x", "x"),
    "white space": (" \t ", "\n\n  \n"),
    "white space around": ("  padded  ", "\ntraceback\n\n"),
    "line ends": ("a\r\nb\rc\nd", "a\r\nb\rc\n\x0b\x0c\x1c\x85\u2028\u2029"),
    "astral": ("\U0001f600 \U0010ffff", "\U0001d11e" * 3),
    "edges of planes": ("\ud7ff\ue000\ufffd\ufffe\uffff", "\U00010000\U0001ffff"),
    "composed": ("caf\u00e9 \u212b", "\u1e9b\u0323"),
    "decomposed": ("cafe\u0301 A\u030a", "s\u0323\u0307"),
    "byte order mark": ("\ufeffa", "\ufeff"),
    "control characters": ("".join(map(chr, range(1, 32))), "\x7f\x80\x9f\x1b[31mred\x1b[0m"),
    "quotes": ('it\'s "quoted" `so`', "'; DROP TABLE tasks; --"),
    "backslashes": ("C:\\new\\x00\\u0000 \\", "\\\\ \\n \\' \\N{BULLET}"),
    "formats": ("%s %d %% {0} {x} ${y}", "%(name)s {{}} $1 :id ?"),
    "JSON": ('{"error": null}', "[NaN]"),
    "looks like nothing": ("None", "null"),
    "numbers": ("0", "1.0"),
    "right to left": ("\u202eabc\u202c", "שלום"),
    "markup": ("<b>&amp;</b>", "<![CDATA[ ]]>"),
}


@check("V2", "Any error and traceback are kept character by character", cases=TEXTS, look=LOOK_AT_TEXT)
async def any_text_is_kept(lab: Lab, texts: tuple[str, str | None]) -> None:
    backend, other = await lab.handle(), await lab.handle()
    error, traceback = texts
    task = new_task(max_retries=2, available_at=PAST)
    await lab.running(backend, task)
    task = after_claim(task)
    for attempt in (1, 2):
        failure = new_failure(attempt, error=error, traceback=traceback, retry_at=PAST if attempt == 1 else None)
        failed = await backend.fail("a", attempt, failure)
        task = after_fail(task, failure)
        found = await other.get("a")
        for what, each in (("that fail returned", failed), ("that get shows", found)):
            kept = [(past.error, past.traceback) for past in each.failures] if each else None
            expect_equal(f"the texts {what}", kept, [texts] * attempt, breaks="V2")
        if attempt == 1:
            claimed = await claim(other)
            await lab.expect_claimed(other, claimed, [task], now=NOON)
            task = after_claim(task)
            kept = [(past.error, past.traceback) for past in claimed[0].failures]
            expect_equal("the texts that the second claim returned", kept, [texts], breaks="V2")


@check("V2", "Texts that a task brings from another store are kept character by character", look=LOOK_AT_TEXT)
async def texts_of_moved_tasks_are_kept(lab: Lab) -> None:
    backend = await lab.handle()
    failures = tuple(
        new_failure(number, error=error, traceback=traceback, retry_at=NOON)
        for number, (error, traceback) in enumerate(TEXTS.values(), start=1)
    )
    task = new_task(max_retries=100, attempts=len(failures), failures=failures, available_at=PAST)
    await lab.put(backend, task)
    claimed = await claim(backend)
    await lab.expect_claimed(backend, claimed, [task], now=NOON)
    expect_task("the task that claim returned", claimed[0], after_claim(task), breaks="V2")


@check("V2", "Errors and tracebacks of 64 KiB are accepted and kept", look="limits on the size of a text or a record")
async def texts_of_64_kib(lab: Lab) -> None:
    backend = await lab.handle()
    task = new_task(available_at=PAST, max_retries=3)
    await lab.running(backend, task)
    task = after_claim(task)
    texts = [
        ("e" * TEXT, "t" * TEXT),
        ("\U0001f600" * (TEXT // 4), "é" * (TEXT // 2)),
        ("\x01\\\"'" * (TEXT // 4), "\n" * TEXT),
    ]
    for attempt, (error, traceback) in enumerate(texts, start=1):
        failure = new_failure(attempt, error=error, traceback=traceback, retry_at=PAST)
        task = after_fail(task, failure)
        expect_task("the task that fail returned", await backend.fail("a", attempt, failure), task, breaks="V2")
        await expect_stored(backend, task, when="after fail", breaks="V2")
        if attempt < len(texts):
            claimed = await claim(backend)
            await lab.expect_claimed(backend, claimed, [task], now=NOON)
            task = after_claim(task)


@check("V2", "The texts of a failure stay with their task", look=LOOK_AT_TEXT)
async def texts_stay_with_their_tasks(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(name, available_at=PAST, max_retries=1) for name in TEXTS]
    await lab.running(backend, *tasks)
    for name, (error, traceback) in TEXTS.items():
        await backend.fail(name, 1, new_failure(error=error, traceback=traceback))
    for name, texts in TEXTS.items():
        task = await backend.get(name)
        kept = [(failure.error, failure.traceback) for failure in task.failures] if task else None
        expect_equal(f"the texts of {name!r}", kept, [texts], breaks="V2")


# Sizes -----------------------------------------------------------------------------------------------------------


@check("API", "1,000 tasks are enqueued in one call, all or none", look="enqueue: one transaction, however many tasks")
async def a_thousand_tasks_are_enqueued(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(f"{number}", available_at=PAST) for number in range(1000)]
    await lab.put(backend, new_task("known"))
    refused = await expect_refused(
        "enqueue of 999 new tasks and a known one", backend.enqueue([*tasks[:999], new_task("known")]), TaskExists
    )
    expect_equal("TaskExists.task_ids", list(refused.task_ids), ["known"], breaks="L1")
    for task in (tasks[0], tasks[500], tasks[998]):
        expect_equal(f"get({task.id!r}) after a refused enqueue", await backend.get(task.id), None, breaks="L1")
    await backend.enqueue(tasks)
    listed = await listing(backend)
    missing = {task.id for task in tasks} - {task.id for task in listed}
    for task_id in sorted(missing)[:1]:
        await lab.expect_stored(backend, new_task(task_id, available_at=PAST), when="after enqueue of 1,000")
    expect_tasks("tasks()", listed, [new_task("known"), *tasks], breaks="LISTING")


async def _thousand_running(lab: Lab, backend: Backend) -> list[Task]:
    tasks = [new_task(f"{number}", available_at=PAST) for number in range(1000)]
    await backend.enqueue(tasks)
    await lab.expect_stored(backend, tasks[0], when="after enqueue")
    claimed = await claim(backend, limit=1000)
    expect_equal("how many of 1,000 tasks were claimed", len(claimed), 1000, breaks="E2")
    return tasks


@check("L2", "1,000 leases are extended in one call", look="extend: limits on the size of one statement")
async def a_thousand_leases_are_extended(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = await _thousand_running(lab, backend)
    claims = [(task.id, 1) for task in tasks]
    claims.reverse()
    held = await backend.extend(claims, lease_expires_at=NOON + HOUR)
    expect("extend() of 1,000 claims", held == claims, expected="all of them, in order", actual=shown(held))
    expect_equal("next_due()", await backend.next_due(), NOON + HOUR)


@check("D3", "1,000 expired leases are listed in one call", look="expired: limits on the size of one answer")
async def a_thousand_expired_leases_are_listed(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = await _thousand_running(lab, backend)
    expired = await backend.expired(now=NOON + LEASE, limit=1000)
    expect_equal("how many tasks expired() listed", len(expired), 1000)
    expect_equal("the ids that it listed", {task.id for task in expired}, {task.id for task in tasks})


@check("G1", "1,000 tasks are purged in one call", look="purge: limits on the size of one statement")
async def a_thousand_tasks_are_purged(lab: Lab) -> None:
    backend = await lab.handle()
    tasks = [new_task(f"{number}", available_at=PAST) for number in range(1000)]
    await backend.enqueue(tasks)
    await lab.expect_stored(backend, tasks[0], when="after enqueue")
    for start in range(0, 1000, 100):
        await outcomes(*(backend.cancel(task.id, now=PAST) for task in tasks[start : start + 100]))
    expect_equal("purge(limit=1000)", await backend.purge(finished_before=NOON, limit=1000), 1000)
    expect_equal("tasks() afterwards", await listing(backend), [])
