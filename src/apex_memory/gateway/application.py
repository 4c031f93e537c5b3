"""The HTTP application: its layers, its routes, and what is open while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from fastapi import FastAPI

from apex_memory import __version__
from apex_memory.app import open_app
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import USED_SECONDS, KeyRing
from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import Drains, priorities_of
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.wakes import Waker
from apex_memory.gateway import errors
from apex_memory.gateway import openapi_page as reference
from apex_memory.gateway.body_limit import BodyLimitMiddleware, limit_of
from apex_memory.gateway.completion import CompletionWaiter
from apex_memory.gateway.dependencies import Gateway
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.gateway.middleware import Hosts, RequestMiddleware
from apex_memory.gateway.routes import (
    dead_letters,
    events,
    keys,
    memory,
    operations,
    secrets,
    status,
)
from apex_memory.gateway.routes import ingest as intake
from apex_memory.gateway.routes import sources as source_routes
from apex_memory.gateway.routes import unresolved as links
from apex_memory.sources import registry
from apex_memory.telemetry import logger

DESCRIPTION = """Takes in every event of a company's tools and answers from one memory.

Webhooks carry their vendor's signature. Everything else needs an API key (`Authorization: Bearer
apex_…`, or `X-API-Key`) with the scope `ingest`, `read` or `admin`; admin implies the others.

**2xx means kept**: an event is answered only after PostgreSQL has committed it. Sending it again is
harmless: it is answered with the same status and ids, `duplicate: true`, and takes effect once. A
refusal is `{"error": {"code", "message", "remedy"}}`; after 503 send it again when `Retry-After` is over.
"""
TAGS = [
    {"name": "hooks", "description": "Webhooks of vendors, verified by their signature."},
    {"name": "ingest", "description": "Documents and conversations, sent with an API key."},
    {"name": "memory", "description": "Search, documents, entities."},
    {"name": "events", "description": "Where each event is, and which stores have it."},
    {"name": "dead letters", "description": "Events that could not go on, and the way out."},
    {"name": "keys", "description": "API keys and their scopes."},
    {"name": "status", "description": "How the installation is."},
    {
        "name": "sources",
        "description": "Where events come from: state, pause, run, backfill, replay.",
    },
    {"name": "secrets", "description": "Credentials of sources, sealed. Never shown."},
    {"name": "operations", "description": "What an operator sets off."},
]


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; it opens everything when it starts. Raises `Misconfigured` for wrong source settings."""
    loaded = registry.load(settings.sources, settings.source_path)
    api = FastAPI(
        title="Apex Memory",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan(settings),
        docs_url=None,  # they would load scripts from elsewhere; ours is a plain page
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    api.state.routes = {source.route: source.name for source in loaded.values()}
    errors.install(api)
    for router in (
        intake.routes(loaded, settings),
        memory.routes(),
        events.routes(),
        dead_letters.routes(),
        keys.routes(),
        status.routes(),
        links.routes(),
        source_routes.routes(),
        secrets.routes(),
        operations.routes(),
        reference.routes(),
    ):
        api.include_router(router)
    limits = {source.route: limit_of(source, settings) for source in loaded.values()}
    api.add_middleware(BodyLimitMiddleware, limits=limits, names=api.state.routes)
    api.add_middleware(RequestMiddleware, hosts=Hosts(settings))
    return api


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings) as gateway:
            api.state.gateway = gateway
            yield

    return lifespan


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Everything a request handler needs. Temporal may be away: the connection is made when first used."""
    async with open_app(settings) as app:
        client = await connect(settings.temporal, lazy=True)
        gateway = Gateway(
            app=app,
            keys=KeyRing(app.db),
            waker=(
                waker := Waker(
                    drains := Drains(client, priorities_of(app.sources)),
                    pulling := Pulling(client, app.sources),
                )
            ),
            drains=drains,
            pulling=pulling,
            waiting=CompletionWaiter(app.inbox),
            landings=GroupCommitter(app.inbox.land),
            temporal=client,
        )
        tasks = [
            asyncio.create_task(gateway.waiting.run(), name="waiting"),
            asyncio.create_task(_keep_used(gateway.keys), name="keys used"),
            asyncio.create_task(app.credentials.keep_fresh(), name="secrets"),
        ]
        try:
            yield gateway
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await waker.close()
            with suppress(ApexError):  # `used_at` is for people; PostgreSQL may be gone before us
                await gateway.keys.write_used()


async def _keep_used(keys: KeyRing) -> None:
    log = logger(component="gateway")
    while True:
        await asyncio.sleep(USED_SECONDS)
        try:
            await keys.write_used()
        except ApexError as error:
            log.warning("when keys were used was not written", reason=str(error)[:200])
