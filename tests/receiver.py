"""A former system on loopback: an HTTP/1.1 server that keeps what it receives, byte for byte, and responds by script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.0/8"


@dataclass(frozen=True, slots=True)
class Received:
    """One request. Header names are in lower case, in their order."""

    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next(value for given, value in self.headers if given == name)


@dataclass(frozen=True, slots=True)
class Response:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    body: bytes = b""


Script = Callable[[Received], Response]


class Receiver:
    """`script` chooses the response to a request; `received` holds every request, also those it refused."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.accepted: list[Received] = []
        self.connections = 0
        self.script: Script = lambda request: Response()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/legacy"

    @property
    def bodies(self) -> list[bytes]:
        return [request.body for request in self.accepted]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._respond(reader, writer):
                pass
        self._writers.discard(writer)
        writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rows = head.strip().split("\r\n")
        headers = [(row.partition(":")[0].lower(), row.partition(":")[2].strip()) for row in rows]
        body = await reader.readexactly(int(dict(headers).get("content-length", "0")))
        request = Received(line.split(" ")[1], headers, body)
        self.received.append(request)
        response = self.script(request)
        if response.hang:
            await reader.read()
            return False
        if 200 <= response.status < 300:
            self.accepted.append(request)
        lines = [f"HTTP/1.1 {response.status} X", f"content-length: {len(response.body)}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + response.body)
        await writer.drain()
        return True


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()
