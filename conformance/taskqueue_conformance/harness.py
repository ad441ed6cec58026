"""What an adopter provides: a factory, or a Harness around one."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, runtime_checkable

from taskqueue import Backend

CAPABILITIES: Final = {
    "durable": "survives SIGKILL of every process that used the store",
    "multiprocess": "handles in several processes share a store",
    "transactional": "enqueues inside the application's own transaction",
    "restart": "the server behind the store can be restarted",
}
"""Every capability that the suite knows, and what it means."""
DEFAULT_CAPABILITIES: Final = frozenset({"durable", "multiprocess"})
"""What a bare factory claims: all that need no help of its own."""


@runtime_checkable
class Harness(Protocol):
    """How the suite reaches a backend. Built without arguments, in every process that needs it.

    Derive from :class:`BaseHarness` and write ``backend``; everything else has a default.

    Attributes:
        capabilities: What the backend claims; see :data:`CAPABILITIES`. What is left out is *not claimed*.
        deviations: Known deviations: check id to the reason and a link. Each is a failure in the verdict.
        real_time_modules: Prefixes of modules that must see the real clock under frozen time, such as a driver whose
            deadlines would hang.
    """

    capabilities: frozenset[str]
    deviations: Mapping[str, str]
    real_time_modules: tuple[str, ...]

    def start(self) -> Mapping[str, str]:
        """Prepare for the run; called once, in the controlling process. Returns environment variables for all."""
        ...

    def stop(self) -> None:
        """Undo ``start``."""
        ...

    def backend(self, store: str) -> Backend:
        """Return a new, unconnected handle. Equal names share a store; a new name is an empty store.

        Args:
            store: 1 to 40 characters out of ``[a-z0-9_]``.
        """
        ...

    async def drop(self, store: str) -> None:
        """Delete a store whose handles have been closed."""
        ...

    async def restart(self) -> None:
        """Restart the server behind the stores; needed only with the capability ``restart``."""
        ...

    def transaction(self, store: str) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction of an application's; needed only with the capability ``transactional``.

        The context manager gives a connection to pass to ``enqueue_on``, commits when it is left, and rolls back when
        an exception leaves it. The store has been made by then: a handle on it is connected.
        """
        ...


class BaseHarness:
    """The defaults of a :class:`Harness`."""

    capabilities: frozenset[str] = DEFAULT_CAPABILITIES
    deviations: Mapping[str, str] = {}
    real_time_modules: tuple[str, ...] = ()

    def start(self) -> Mapping[str, str]:
        """Prepare nothing."""
        return {}

    def stop(self) -> None:
        """Nothing was prepared."""

    async def drop(self, store: str) -> None:
        """Leave the store where it is."""

    async def restart(self) -> None:
        """Raise: a harness that claims ``restart`` overrides this.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError('a Harness that claims the capability "restart" must define restart()')

    def transaction(self, store: str) -> AbstractAsyncContextManager[Any]:
        """Raise: a harness that claims ``transactional`` overrides this.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f'a Harness that claims the capability "transactional" must define transaction(store); store is {store!r}'
        )


class FactoryHarness(BaseHarness):
    """A plain factory as a harness.

    Args:
        factory: Called with the name of a store; returns an unconnected handle.
    """

    def __init__(self, factory: Callable[[str], Backend]) -> None:
        self._factory = factory

    def backend(self, store: str) -> Backend:
        """Call the factory."""
        return self._factory(store)
