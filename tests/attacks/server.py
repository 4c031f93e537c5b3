"""A real HTTP server under the gateway's limits, and raw connections to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Request

from apex_memory.config import Settings
from apex_memory.errors import Unauthorized
from apex_memory.gateway import errors
from apex_memory.gateway.body_limit import BodyLimitMiddleware, SourceRoute
from apex_memory.gateway.middleware import Hosts, RequestMiddleware
from apex_memory.gateway.protocol import Connections, limited_protocol
from apex_memory.model import Document, Event, Priority
from apex_memory.simulate.server import EmbeddedServer
from apex_memory.sources.base import InboundRequest, Received, Sample, Source, SourceSettings
from tests.waiting import until

KEY = "apex_valid"
LIMIT = 2_000_000


class Signed(Source[SourceSettings]):
    """A webhook source with a signature header."""

    name = "signed"
    title = "Signed"
    priority = Priority.P1

    @property
    def signature_headers(self) -> tuple[str, ...]:
        return ("x-signature",)

    def receive(self, request: InboundRequest) -> Received:
        return Received()

    def document(self, event: Event) -> Document:
        raise NotImplementedError

    def samples(self) -> list[Sample]:
        return []


class Keyed(Signed):
    """A source whose requests carry an API key."""

    name = "keyed"
    path = "/v1/keyed"


@dataclass
class Server:
    """A running server: its port, its open connections, and the sizes of the bodies that handlers read."""

    port: int
    connections: Connections
    limits: BodyLimitMiddleware
    bodies: list[int]


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    """Run a small application in this event loop, with the protocol and the middleware of the gateway."""
    bodies: list[int] = []
    api = FastAPI(redirect_slashes=False)
    sources: list[Source[SourceSettings]] = [Signed(SourceSettings()), Keyed(SourceSettings())]
    routes = {source.route: SourceRoute(source, LIMIT) for source in sources}
    api.state.routes = {route: entry.source.name for route, entry in routes.items()}
    errors.install(api)

    @api.post("/hooks/signed")
    @api.post("/v1/keyed")
    async def receive(request: Request) -> int:
        bodies.append(len(await request.body()))
        return bodies[-1]

    @api.post("/v1/json")
    async def parse(body: list[int]) -> int:
        return sum(body)

    @api.get("/")
    async def root() -> str:
        return "ok"

    async def authenticate(request: Request) -> None:
        if request.headers.get("x-api-key") != KEY:
            raise Unauthorized("this API key is not valid")

    limits = BodyLimitMiddleware(api, settings=settings, routes=routes, authenticate=authenticate)
    protocol = limited_protocol(settings)
    config = uvicorn.Config(
        RequestMiddleware(limits, hosts=Hosts(settings)),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = EmbeddedServer(config)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([bound]))
        try:
            await until(lambda: server.started or task.done(), "the server listens")
            port = int(bound.getsockname()[1])
            yield Server(port, protocol.open_connections, limits, bodies)
        finally:
            server.stop()
            await task


class Connection:
    """A raw connection: what is sent is exactly what a test writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sent = 0

    async def send(self, data: bytes) -> bool:
        """Send bytes. Return False when the server has closed the connection."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        self.sent += len(data)
        return not self.reader.at_eof()

    async def flood(self, data: bytes, most: int) -> int:
        """Send the same bytes until the server closes, or `most` bytes are sent. Return the number of bytes sent."""
        while self.sent < most and await self.send(data):
            await asyncio.sleep(0)  # one turn of the loop, in which the server reads
        return self.sent

    async def status(self, seconds: float = 10) -> int:
        """Return the status of the next response; 0 when the connection is closed without one."""
        try:
            async with asyncio.timeout(seconds):
                line = await self.reader.readline()
                if not line:
                    return 0
                length = 0
                while header := (await self.reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                await self.reader.readexactly(length)
                return int(line.split()[1])
        except ConnectionError:
            return 0

    async def closed(self, seconds: float = 10) -> bool:
        """Wait until the server closes the connection. Return False when it does not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65_536):
                    pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def connection(server: Server) -> AsyncIterator[Connection]:
    """Open a raw connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
