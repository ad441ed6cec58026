"""Starting child processes that have a backend of the same target, and talking with them."""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Final

from taskqueue_conformance import child as programs
from taskqueue_conformance.check import NotVerified
from taskqueue_conformance.violation import Violation

PATIENCE_S: Final = 20.0
"""How many seconds a child may take for an answer before it counts as hanging."""

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from taskqueue_conformance.child import serve; serve(int(sys.argv[2]), sys.argv[3])"
)
_STARTING_S: Final = 30.0


class ChildDied(Exception):
    """A child process ended before it had answered.

    Attributes:
        status: Its exit status, negative for a signal.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"a child process ended with the status {status} before it had answered")
        self.status = status


class Child:
    """A child process, and the channel to it. Only for one task at a time."""

    def __init__(self, server: "ForkServer", pid: int, channel: Connection) -> None:
        self.pid = pid
        self._server = server
        self._channel = channel
        self._status: int | None = None

    def send(self, *message: Any) -> None:
        """Send a message; one to a child that is dead is lost."""
        with contextlib.suppress(OSError):
            self._channel.send(message)

    async def speaks(self, *, within: float) -> bool:
        """Wait for the next message, for so many seconds, and return whether it is there; a death counts as one."""
        return await asyncio.to_thread(self._channel.poll, within)

    async def receive(self, *, seconds: float = PATIENCE_S, what: str = "a call in a child process") -> Any:
        """Return the next message.

        Raises:
            ChildDied: There will be none.
            Violation: There was none within ``seconds``; ``what`` says what was waited for.
        """
        try:
            if not await self.speaks(within=seconds):
                raise Violation(
                    what,
                    expected="an answer",
                    actual=f"none within {seconds:g} s",
                    look="locks that nobody releases, of a process that is there no more perhaps",
                )
            return self._channel.recv()
        except (EOFError, ConnectionError):
            raise ChildDied(self.end()) from None

    async def ask(self, *message: Any, seconds: float = PATIENCE_S, what: str = "a call in a child process") -> Any:
        """Send a message and return what comes back. Raises as :meth:`receive`."""
        self.send(*message)
        return await self.receive(seconds=seconds, what=what)

    async def receive_descriptor(self) -> int | None:
        """Return the file descriptor that the child sends next, or None if it sends a message instead.

        Raises:
            ChildDied: There will be none.
        """

        def receive() -> list[int] | None:
            with socket.socket(fileno=os.dup(self._channel.fileno())) as way:
                told, descriptors, _, _ = socket.recv_fds(way, 1, 1)
            return descriptors if told else None

        descriptors = await asyncio.to_thread(receive) if self._channel.poll(PATIENCE_S) else None
        if descriptors is None:
            raise ChildDied(self.end())
        return descriptors[0] if descriptors else None

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kill the child if it is alive, and return its exit status, negative for a signal. Idempotent."""
        if self._status is None:
            self.kill()
            self._status = self._server.reap(self.pid)
            self._channel.close()
        return self._status


class ForkServer:
    """A helper process that forks the children. It ends with this process at the latest.

    Args:
        target: What ``--conformance`` was given.
        environment: Variables to start it with, beside those of this process.

    Attributes:
        usable: Whether it can take requests still.

    Raises:
        NotVerified: This platform cannot fork, or the target cannot be imported in another process.
    """

    def __init__(self, target: str, environment: Mapping[str, str]) -> None:
        if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
            raise NotVerified(f"child processes are forked, which {sys.platform} cannot do")
        self.usable = True
        self._environment = dict(environment)
        self._control, theirs = socket.socketpair()
        with theirs:
            arguments = [json.dumps(sys.path), str(theirs.fileno()), target]
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _START, *arguments],
                pass_fds=[theirs.fileno()],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._requests = Connection(os.dup(self._control.fileno()))
        try:
            complaint = self._requests.recv() if self._requests.poll(_STARTING_S) else "it does not answer"
        except (EOFError, ConnectionError):
            complaint = "it ended at once"
        if complaint:
            self.stop()
            raise NotVerified(f"{target} cannot be used in a new process: {complaint}")

    async def warm_up(self) -> None:
        """Import what a backend needs when it is used, so that no child has to."""
        child = self.fork(programs.warm_up, f"conformance_{uuid.uuid4().hex[:20]}")
        try:
            self._request(programs.Import(await child.receive()))
        except (ChildDied, Violation):
            pass  # the checks will meet it again, and say what it breaks
        finally:
            child.end()

    def fork(self, main: Callable[..., None], *args: Any) -> Child:
        """Start a child that runs ``main(harness, channel, *args)``, a function of a module, by name."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid: int = self._request(programs.Fork(main, args, os.environ | self._environment), theirs.fileno())
        return Child(self, pid, Connection(ours.detach()))

    def reap(self, pid: int) -> int:
        """Return the exit status of a child that is ending."""
        status: int = self._request(programs.Reap(pid))
        return status

    def stop(self) -> None:
        """End the helper process and what children it has."""
        self._requests.close()
        self._control.close()
        try:
            self._process.wait(_STARTING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _request(self, request: object, *descriptors: int) -> Any:
        try:
            self._requests.send(request)
            for descriptor in descriptors:
                socket.send_fds(self._control, [b"\0"], [descriptor])
            return self._requests.recv()
        except BaseException:
            # A time limit may strike anywhere; what comes back later would answer the next request.
            self.usable = False
            raise


_SERVERS: Final[dict[tuple[Any, ...], ForkServer]] = {}


async def fork_server(target: str | None, environment: Mapping[str, str]) -> ForkServer:
    """Return the fork server for a target, which lives until :func:`stop_servers` is called.

    Raises:
        NotVerified: There can be none.
    """
    if target is None:
        raise NotVerified("child processes need a target that has a name")
    key = (target, *sorted(environment.items()))
    if key in _SERVERS and not _SERVERS[key].usable:
        _SERVERS.pop(key).stop()
    if key not in _SERVERS:
        _SERVERS[key] = await asyncio.to_thread(ForkServer, target, environment)
        await _SERVERS[key].warm_up()
    return _SERVERS[key]


@atexit.register
def stop_servers() -> None:
    """End every fork server of this process."""
    while _SERVERS:
        _SERVERS.popitem()[1].stop()
