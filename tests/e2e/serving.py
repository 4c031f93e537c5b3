"""The gateway over real engines on a real port, in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn

from apex_memory.config import Settings
from apex_memory.credentials.api_keys import create_key
from apex_memory.gateway.protocol import limited_protocol
from tests.e2e.test_api import Api, running_api
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that listens at `url`."""

    api: Api
    url: str

    async def key(self, *scopes: str) -> str:
        """Return a new key with these scopes."""
        created = await create_key(self.api.app.db, "/".join(scopes), scopes)
        self.api.gateway.keys.expire()
        return created.key

    async def process(self, sources: Sequence[str] = ("documents",)) -> None:
        """Process the events that have landed."""
        for source in sources:
            await self.api.app.direct.drain(source)


@asynccontextmanager
async def serving_gateway(settings: Settings) -> AsyncIterator[Served]:
    """Run the gateway in this event loop, with its own protocol and its limits."""
    async with running_api(settings) as api:
        config = uvicorn.Config(
            api.application,
            http=limited_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
            bound.bind(("127.0.0.1", 0))
            task = asyncio.create_task(server._serve([bound]))
            try:
                await until(lambda: server.started or task.done(), "the gateway listens")
                yield Served(api, f"http://127.0.0.1:{bound.getsockname()[1]}")
            finally:
                server.should_exit = True
                await task
