"""Simulators, on loopback by default."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from apex_memory.host_names import is_loopback
from apex_memory.simulate.vendor import Simulator


class PortUnavailable(Exception):
    """The port is taken by another program, or this user may not bind it."""


@dataclass(frozen=True, slots=True)
class SimulatorServer:
    """Simulators that are served under `url`/NAME."""

    url: str
    simulators: Sequence[Simulator]

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the `[sources.NAME]` tables that point Apex here."""
        tables = {}
        host = urlsplit(self.url).hostname or ""
        for simulator in self.simulators:
            table = simulator.settings(f"{self.url}/{simulator.name}")
            if not is_loopback(host) and self.url in str(table):
                table["allow_http"] = True
            tables[simulator.name] = table
        return tables


@asynccontextmanager
async def serve_simulators(
    simulators: Sequence[Simulator], *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[SimulatorServer]:
    """Serve on the address of `host` inside the block; port 0 takes a free one. Raises `PortUnavailable`."""
    mounts = [
        Mount(f"/{simulator.name}", routes=list(simulator.routes())) for simulator in simulators
    ]
    config = uvicorn.Config(
        Starlette(routes=mounts), lifespan="off", log_config=None, access_log=False, ws="none"
    )
    server = EmbeddedServer(config)
    # The protocol is named, because asyncio sets TCP_NODELAY only then.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise PortUnavailable(f"{host}:{port}: {error.strerror}") from None
        for simulator in simulators:
            await simulator.open()
        task = asyncio.create_task(server.serve(sockets=[listener]), name="simulators")
        try:
            while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn offers no event to await
                await asyncio.sleep(0.01)
            if task.done():
                await task
            yield SimulatorServer(f"http://{host}:{listener.getsockname()[1]}", simulators)
        finally:
            server.stop()
            await task
            for simulator in simulators:
                await simulator.close()


class EmbeddedServer(uvicorn.Server):
    """A server inside the event loop of a program: it leaves signals to the program, and stops when it is asked to.

    uvicorn's own loop looks ten times a second whether it should stop, and pauses for a tenth of a second
    before it counts its open connections. Tests start hundreds of servers.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop listening, close what is idle, and end `serve` when the last response is sent."""
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not self._stopping.is_set():
            await self.on_tick(0)  # renews the date in the headers
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 -- uvicorn offers no event to await
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
