"""A proxy that pools by transaction, as PgBouncer does: a client is given another server connection each time.

It understands just enough of PostgreSQL's protocol: when ReadyForQuery says that no transaction is open, the connection
is free, and the next message goes to another one.
"""

import asyncio
import struct
from typing import Any, Self

IDLE = b"I"
KNOWN_SETTINGS = {b"user", b"database", b"client_encoding", b"application_name", b"DateStyle", b"TimeZone"}


class PoolingProxy:
    """Listens on a Unix socket in ``folder``, and connects to the server's in ``server_folder``."""

    def __init__(self, folder: str, server_folder: str) -> None:
        self._path = f"{folder}/.s.PGSQL.5432"
        self._server_path = f"{server_folder}/.s.PGSQL.5432"
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self.switches = 0
        self.startup_settings: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._clients: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_unix_server(self._accepted, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        servers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            await self._serve(reader, writer, servers)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            for _, server in servers:
                server.close()
            writer.close()

    async def _serve(self, reader: Any, writer: Any, servers: list[tuple[Any, Any]]) -> None:
        startup = await self._startup(reader, writer)
        self.startup_settings.append(startup)
        unknown = sorted({*startup[4:].rstrip(b"\0").split(b"\0")[::2]} - KNOWN_SETTINGS)
        if unknown:
            words = b"SFATAL\0C08P01\0Munsupported startup parameter: " + unknown[0] + b"\0\0"
            writer.write(b"E" + struct.pack("!i", len(words) + 4) + words)
            return
        for number in range(3):
            server = await asyncio.open_unix_connection(self._server_path)
            servers.append(server)
            server[1].write(struct.pack("!i", len(startup) + 4) + startup)
            greeting = b""
            while greeting[-6:-1] != b"Z\x00\x00\x00\x05":
                greeting += await _message(server[0])
            if number == 0:
                writer.write(greeting)
        free = asyncio.Event()  # no transaction is open, and nothing has been asked
        free.set()
        answering = [asyncio.ensure_future(_pass_on(each, writer, free)) for each, _ in servers]
        current = 0
        try:
            while (sent := await _message(reader))[:1] != b"X":
                if free.is_set():
                    current = (current + 1) % len(servers)
                    self.switches += 1
                    free.clear()
                servers[current][1].write(sent)
        finally:
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)

    @staticmethod
    async def _startup(reader: Any, writer: Any) -> bytes:
        while True:
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            body: bytes = await reader.readexactly(size - 4)
            if struct.unpack("!i", body[:4])[0] in {80877103, 80877104}:  # a request for encryption
                writer.write(b"N")
                continue
            return body


async def _pass_on(reader: Any, writer: Any, free: asyncio.Event) -> None:
    """Pass a server's answers on; one that says that no transaction is open frees the connection."""
    while True:
        message = await _message(reader)
        if message[:1] == b"Z" and message[-1:] == IDLE:
            free.set()
        writer.write(message)


async def _message(reader: Any) -> bytes:
    head: bytes = await reader.readexactly(5)
    body: bytes = await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
    return head + body
