"""Simulators on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

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
        for simulator in self.simulators:
            tables[simulator.name] = simulator.settings(f"{self.url}/{simulator.name}")
        return tables


@asynccontextmanager
async def serve_simulators(
    simulators: Sequence[Simulator], *, port: int = 0
) -> AsyncIterator[SimulatorServer]:
    """Serve on 127.0.0.1 inside the block; port 0 takes a free one. Raises `PortUnavailable`."""
    mounts = [
        Mount(f"/{simulator.name}", routes=list(simulator.routes())) for simulator in simulators
    ]
    config = uvicorn.Config(
        Starlette(routes=mounts), lifespan="off", log_config=None, access_log=False, ws="none"
    )
    server = _Server(config)
    # The protocol is named, because asyncio sets TCP_NODELAY only then.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortUnavailable(f"127.0.0.1:{port}: {error.strerror}") from None
        for simulator in simulators:
            await simulator.open()
        task = asyncio.create_task(server.serve(sockets=[listener]), name="simulators")
        try:
            while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn offers no event to await
                await asyncio.sleep(0.01)
            if task.done():
                await task
            yield SimulatorServer(f"http://127.0.0.1:{listener.getsockname()[1]}", simulators)
        finally:
            server.should_exit = True
            await task
            for simulator in simulators:
                await simulator.close()


class _Server(uvicorn.Server):
    """Leaves signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
