"""Simulators on loopback, and their webhooks on the way to Apex."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from apex_memory.simulate.vendor import Push, Simulator

TRIES = 8  # a vendor sends a webhook again until it is answered 2xx


@dataclass(frozen=True, slots=True)
class Served:
    """Simulators that answer under `url`/NAME."""

    url: str
    simulators: Sequence[Simulator]

    def settings(self) -> dict[str, dict[str, Any]]:
        """The `[sources.NAME]` tables that point Apex here."""
        return {one.name: one.settings(f"{self.url}/{one.name}") for one in self.simulators}


@asynccontextmanager
async def serving(simulators: Sequence[Simulator], *, port: int = 0) -> AsyncIterator[Served]:
    """Answer on 127.0.0.1 inside the block; port 0 takes a free one."""
    app = Starlette(routes=[Mount(f"/{one.name}", routes=list(one.routes())) for one in simulators])
    server = _Server(
        uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none")
    )
    with socket.socket(
        socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    ) as bound:  # named, or asyncio leaves Nagle on
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        for one in simulators:
            await one.open()
        task = asyncio.create_task(server.serve(sockets=[bound]), name="simulators")
        try:
            while not server.started and not task.done():  # noqa: ASYNC110 -- it tells no other way
                await asyncio.sleep(0.01)
            if task.done():
                await task
            yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", simulators)
        finally:
            server.should_exit = True
            await task
            for one in simulators:
                await one.close()


class _Server(uvicorn.Server):
    """Leaves signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(slots=True)
class Delivery:
    """Sends webhooks to Apex as vendors do: again until 2xx, and with their chaos. Counts what it met."""

    url: str
    key: str
    http: httpx2.AsyncClient
    sent: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _held: list[tuple[Simulator, Push]] = field(default_factory=list)

    async def deliver(self, simulator: Simulator, pushes: Sequence[Push]) -> None:
        """Send these now; a few are lost, doubled or held back for the next time, as its chaos wants."""
        chaos = simulator.chaos
        due = [item for item in self._held if item[0] is simulator]
        self._held = [item for item in self._held if item[0] is not simulator]
        for push in pushes:
            if chaos.strikes(chaos.lost) and not push.keyed:
                continue
            if chaos.strikes(chaos.disorder):
                self._held.append((simulator, push))
                continue
            for _ in range(2 if chaos.strikes(chaos.duplicates) else 1):
                await self._send(simulator.name, push)
        for _, push in due:
            await self._send(simulator.name, push)

    async def flush(self) -> None:
        """Send all that was held back."""
        held, self._held = self._held, []
        for simulator, push in held:
            await self._send(simulator.name, push)

    async def _send(self, name: str, push: Push) -> None:
        status = 0
        for tried in range(TRIES):
            answer = await self._post(push)
            status = answer.status_code if answer is not None else 0
            if 200 <= status < 300:
                self.sent[name] = self.sent.get(name, 0) + 1
                return
            if 400 <= status < 500 and status != 429:
                break
            await asyncio.sleep(min(2.0, 0.1 * 2**tried))
        self.refused.append(f"{name}: {push.path} answered {status or 'nothing'}")

    async def _post(self, push: Push) -> httpx2.Response | None:
        signed: Mapping[str, str] = push.sign(push.body, datetime.now(UTC))
        headers = {"Content-Type": push.content_type, **signed}
        if push.keyed:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            return await self.http.post(self.url + push.path, content=push.body, headers=headers)
        except httpx2.TransportError:
            return None
