"""What runs in child processes: a small fork server, and the programs of the children.

The server is a process of one thread that has imported the kit and the target, so that a fork is safe, and costs some
milliseconds instead of the half second of a new interpreter. It ends when its parent does, and takes its children
along.
"""

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, NoReturn

from taskqueue import Backend, Task, TaskStatus
from taskqueue_conformance.harness import Harness

END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
_PAGE: Final = 500


class Call(NamedTuple):
    """A call to make on a backend."""

    method: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = {}

    async def on(self, backend: Backend) -> Any:
        """Make the call."""
        return await getattr(backend, self.method)(*self.args, **self.options)

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"{self.method}({', '.join(given)})"


class Raised(NamedTuple):
    """What a child answers in place of an answer: an exception, as text, since not every one can be sent."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one look at a store shows.

    Attributes:
        tasks: Every task by id, as listed.
        counts: What ``counts`` said.
        expired: The ids in ``expired`` at the end of time.
        next_due: What ``next_due`` said.
    """

    tasks: Mapping[str, Task]
    counts: Mapping[TaskStatus, int]
    expired: Sequence[str]
    next_due: datetime | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A call under a threat came back.

    Attributes:
        callbacks: How many callbacks of the event loop ran meanwhile.
        seconds: How long it took.
    """

    callbacks: int
    seconds: float


async def look(backend: Backend) -> Seen:
    """Read everything that can be read."""
    tasks: dict[str, Task] = {}
    cursor: str | None = None
    while True:
        page, cursor = await backend.tasks(after=cursor, limit=_PAGE)
        tasks.update((task.id, task) for task in page)
        if cursor is None:
            break
    expired = await backend.expired(now=END_OF_TIME, limit=len(tasks) + 1)
    return Seen(
        tasks=tasks,
        counts=dict(await backend.counts()),
        expired=[task.id for task in expired],
        next_due=await backend.next_due(),
    )


class ThreatenedLoop(asyncio.SelectorEventLoop):
    """An event loop that counts callbacks, and kills its process when it comes to a given one."""

    def __init__(self) -> None:
        self._counting = False
        self._fatal: int | None = None
        self._count = 0
        super().__init__()

    def threaten(self, fatal: int | None) -> None:
        """Count from here on; SIGKILL comes just before the ``fatal``-th callback."""
        self._count, self._fatal, self._counting = 0, fatal, True

    def relent(self) -> int:
        """Stop counting, and return the count."""
        self._counting = False
        return self._count

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # generic there
        """Count the callback when it runs."""
        return super().call_soon(self._counted, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # generic there
        """Count the callback when it runs."""
        return super().call_soon_threadsafe(self._counted, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # generic there
        """Count the callback when it runs."""
        return super().call_at(when, self._counted, callback, *args, context=context)

    def _counted(self, callback: Callable[..., object], *args: object) -> None:
        if self._counting:
            self._count += 1
            if self._count == self._fatal:
                die()
        callback(*args)


def die() -> NoReturn:
    """End this process as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


# The programs of the children. Each is called with the harness and the channel to its parent, and sends its answers.


def puppet(harness: Harness, channel: Connection, store: str, connected: bool = True) -> None:  # noqa: FBT001, FBT002 - arguments travel by position
    """Do what the parent says, one command after the other, with one handle on ``store``."""
    with asyncio.Runner(loop_factory=ThreatenedLoop) as runner:
        runner.run(_Puppet(harness.backend(store), channel).obey(connected=connected))


class _Puppet:
    def __init__(self, backend: Backend, channel: Connection) -> None:
        self._backend = backend
        self._channel = channel

    async def obey(self, *, connected: bool) -> None:
        if connected:
            await self._answered(self._backend.connect())
        with contextlib.suppress(EOFError):
            while True:
                # Elsewhere, so that whatever the backend does between calls goes on.
                command, *args = await asyncio.to_thread(self._channel.recv)
                await self._answered(getattr(self, command)(*args))
        await self._backend.close()

    async def _answered(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            answer = await coroutine
        except Exception as error:  # noqa: BLE001 - the parent decides what it means
            answer = Raised(type(error).__name__, str(error))
        self._channel.send(answer)

    async def call(self, call: Call) -> Any:
        """Make one call."""
        return await call.on(self._backend)

    async def calls(self, calls: Sequence[Call]) -> list[Any]:
        """Make calls one after the other."""
        return [await call.on(self._backend) for call in calls]

    async def together(self, calls: Sequence[Call]) -> list[Any]:
        """Make calls side by side; an exception stands in the place of an answer."""
        answers = await asyncio.gather(*(call.on(self._backend) for call in calls), return_exceptions=True)
        return [Raised(type(a).__name__, str(a)) if isinstance(a, BaseException) else a for a in answers]

    async def look(self) -> Seen:
        """Read everything."""
        return await look(self._backend)

    async def suffer(self, call: Call, fatal: int | None) -> Acknowledged:
        """Make a call and die: just before its ``fatal``-th callback, or else as soon as the call has returned."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ThreatenedLoop)  # noqa: S101 - puppet() made it
        self._channel.send("begun")
        began = time.perf_counter()
        loop.threaten(fatal)
        await call.on(self._backend)
        self._channel.send(Acknowledged(loop.relent(), time.perf_counter() - began))
        die()


def warm_up(harness: Harness, channel: Connection, store: str) -> None:
    """Use a backend once, and tell the names of the modules that this imported."""
    before = set(sys.modules)

    async def use() -> None:
        backend = harness.backend(store)
        await backend.connect()
        await backend.counts()
        await backend.close()
        await harness.drop(store)

    with contextlib.suppress(Exception):  # the checks will meet it again
        asyncio.run(use())
    channel.send([name for name in sys.modules if name not in before])


# The server.


@dataclass(frozen=True, slots=True)
class Fork:
    """A request: fork a child that runs ``main``; its channel comes beside this. The answer is its process id."""

    main: Callable[..., None]
    args: tuple[Any, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reap:
    """A request: wait for the end of a child. The answer is its exit status, negative for a signal."""

    pid: int


@dataclass(frozen=True, slots=True)
class Import:
    """A request: import modules, so that no child has to."""

    names: Sequence[str]


def serve(descriptor: int, target: str) -> None:
    """Answer requests until the parent closes its end."""
    from taskqueue_conformance.target import resolve  # noqa: PLC0415 - it needs the lab, and that needs this module

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which then ends this process
    control = socket.socket(fileno=descriptor)
    requests = Connection(os.dup(descriptor))
    try:
        harness = resolve(target)
    except Exception as error:  # noqa: BLE001 - told to the parent
        requests.send(f"{type(error).__name__}: {error}")
        return
    requests.send("")
    children: set[int] = set()
    try:
        while True:
            match requests.recv():
                case Fork() as request:
                    _, (channel,), _, _ = socket.recv_fds(control, 1, 1)
                    pid = os.fork()
                    if pid == 0:
                        control.close()
                        requests.close()
                        _run(harness, Connection(channel), request)
                    os.close(channel)
                    children.add(pid)
                    requests.send(pid)
                case Reap(pid):
                    _, status = os.waitpid(pid, 0)
                    children.discard(pid)
                    requests.send(os.waitstatus_to_exitcode(status))
                case Import(names):
                    for name in names:
                        with contextlib.suppress(Exception):
                            importlib.import_module(name)
                    requests.send(None)
    except (EOFError, ConnectionError):
        pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run(harness: Harness, channel: Connection, request: Fork) -> NoReturn:
    status = 1
    try:
        os.environ.clear()
        os.environ.update(request.environment)
        request.main(harness, channel, *request.args)
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into the server's code
        with contextlib.suppress(Exception):
            channel.send(Raised(type(error).__name__, str(error)))
    finally:
        os._exit(status)
