"""Runs calls side by side, one step at a time, in an order drawn from a seed.

A race shows only when calls meet in the wrong places. The stepper makes them meet: it holds every call, and every task
that a call starts, before its first step and whenever something that it awaited is there, and lets one of those that
are ready go on. What runs in threads runs on; a call that waits for it, or for a lock that another call holds, is not
ready, and after 10 ms without progress another one goes on.
"""

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final

BLOCKED_S: Final = 0.01
"""After how many seconds without progress a call counts as blocked by another one."""

_STICKINESS: Final = (0.1, 0.5, 0.9)
"""How likely the same call goes on, one of these for each run: some races need a change after each step, and others
many steps of one call in a row."""


class Stepper:
    """Runs some calls to their ends, once.

    Args:
        rng: Decides who goes on.
        watch: Called with a strand whenever it suspends (``strand.ready`` is False) and whenever what it awaited is
            there (True). It may cancel tasks.

    Attributes:
        suspensions: How often the calls and the tasks that they started have suspended so far.
        switches: How often another call than the one before was let go on.
    """

    def __init__(self, rng: random.Random, *, watch: "Callable[[Strand], None] | None" = None) -> None:
        self.suspensions = 0
        self.switches = 0
        self._rng = rng
        self._watch = watch
        self._stickiness = rng.choice(_STICKINESS)
        self._holding = True
        self._started = 0
        self._ready: list[Strand] = []
        self._last: _Call | None = None
        self._progress = asyncio.Event()

    async def run(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run the calls; return what each returned, or the exception that it raised, in their order.

        What the calls leave running is let go when the last of them has ended, and is not waited for.
        """
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(_holding_factory(factory))
        roots = [_Call(self) for _ in calls]
        try:
            for root, call in zip(roots, calls, strict=True):
                context = contextvars.copy_context()
                context.run(_CALL.set, root)
                root.task = loop.create_task(call, context=context)
            await self._drive(roots)
        finally:
            loop.set_task_factory(factory)
            self._holding = False
            for strand in [*self._ready]:
                strand.let_go()
            left = [root.task for root in roots if root.task is not None and not root.task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
        return await asyncio.gather(*(root.task for root in roots if root.task is not None), return_exceptions=True)

    async def _drive(self, roots: Sequence["_Call"]) -> None:
        while not all(root.done for root in roots):
            if self._ready:
                strand = self._choose()
                strand.let_go()
                await self._settled(strand.call)
            else:
                self._progress.clear()
                await self._progress.wait()

    def _choose(self) -> "Strand":
        # In an order that does not depend on which thread was quicker.
        ready = sorted(self._ready, key=lambda strand: strand.number)
        same = [strand for strand in ready if strand.call is self._last]
        others = [strand for strand in ready if strand.call is not self._last]
        if same and others:
            ready = same if self._rng.random() < self._stickiness else others
        strand = self._rng.choice(ready)
        self.switches += strand.call is not self._last
        self._last = strand.call
        return strand

    async def _settled(self, call: "_Call") -> None:
        """Wait until the call that was let go on has ended or is ready for its next step, or makes no progress."""
        while not call.done and not any(strand.call is call for strand in self._ready):
            self._progress.clear()
            try:
                async with asyncio.timeout(BLOCKED_S):
                    await self._progress.wait()
            except TimeoutError:
                return

    # What strands report.

    def enrol(self) -> int | None:
        """Return the number of a new strand, or None where nothing is held any more."""
        if not self._holding:
            return None
        self._started += 1
        return self._started

    def suspended(self, strand: "Strand") -> None:
        """Take note that a strand awaits something."""
        self.suspensions += 1
        self._tell(strand)

    def parked(self, strand: "Strand", *, first: bool) -> None:
        """Take note that a strand could go on, or begin."""
        self._ready.append(strand)
        self._progress.set()
        if not first:
            self._tell(strand)

    def moved(self, strand: "Strand") -> None:
        """Take note that a strand goes on, or has ended."""
        if strand in self._ready:
            self._ready.remove(strand)
        self._progress.set()

    @property
    def holding(self) -> bool:
        """Whether strands are held."""
        return self._holding

    def _tell(self, strand: "Strand") -> None:
        if self._holding and self._watch is not None:
            self._watch(strand)


class _Call:
    """One of the calls that are run, with all the tasks that it started."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.task: asyncio.Task[Any] | None = None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()


_CALL: Final[contextvars.ContextVar[_Call]] = contextvars.ContextVar("taskqueue_conformance_call")


class Strand(Coroutine[Any, Any, Any]):
    """A coroutine that an event loop runs in a task, and that is held whenever it could go on.

    Attributes:
        call: The call that it belongs to.
        number: Counted from 1, in the order of their starts.
    """

    def __init__(self, inner: Coroutine[Any, Any, Any], call: _Call, number: int) -> None:
        self.call = call
        self.number = number
        self._inner = inner
        self._started = False
        self._gate: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    @property
    def ready(self) -> bool:
        """Whether it could go on, and is held."""
        return self._gate is not None

    def let_go(self) -> None:
        """Let it run until it awaits something that is not there yet."""
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)
        self.call.stepper.moved(self)

    def send(self, value: Any) -> Any:
        """Hold, or go on where it has been let go."""
        if self._gate is None and self.call.stepper.holding:
            return self._park()
        self._gate = None
        error, self._error = self._error, None
        return self._advance(self._inner.send, value) if error is None else self._advance(self._inner.throw, error)

    def throw(self, error: Any, _value: Any = None, _traceback: Any = None) -> Any:
        """Hold with an error that was awaited; a cancellation is passed on at once."""
        if self._gate is None and self.call.stepper.holding and not isinstance(error, asyncio.CancelledError):
            self._error = error
            return self._park()
        self._gate = self._error = None
        self.call.stepper.moved(self)
        return self._advance(self._inner.throw, error)

    def close(self) -> None:
        """Pass on."""
        self._inner.close()
        self.call.stepper.moved(self)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()

    def _park(self) -> Any:
        first, self._started = not self._started, True
        self._gate = asyncio.get_running_loop().create_future()
        waiting = next(iter(self._gate.__await__()))
        self.call.stepper.parked(self, first=first)
        return waiting

    def _advance(self, step: Callable[[Any], Any], argument: Any) -> Any:
        self._started = True
        try:
            awaited = step(argument)
        except BaseException:
            self.call.stepper.moved(self)
            raise
        self.call.stepper.suspended(self)
        return awaited


def _holding_factory(factory: Any) -> Callable[..., asyncio.Future[Any]]:
    """Return a task factory that holds what a call starts, and else does as ``factory`` does."""

    def start(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Future[Any]:
        context: contextvars.Context | None = options.get("context")
        call = _CALL.get(None) if context is None else context.get(_CALL)
        number = None if call is None else call.stepper.enrol()
        if call is not None and number is not None:
            coroutine = Strand(coroutine, call, number)
        if factory is not None:
            started: asyncio.Future[Any] = factory(loop, coroutine, **options)
            return started
        return asyncio.Task(coroutine, loop=loop, **options)

    return start
