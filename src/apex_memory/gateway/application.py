"""The HTTP application: its middleware, its routes, and what stays open while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from apex_memory import __version__
from apex_memory.app import open_app
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import USED_SECONDS, KeyRing
from apex_memory.errors import ApexError
from apex_memory.flows.drain.control import drains_of
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.temporal.client import connect_by
from apex_memory.flows.wakes import Waker
from apex_memory.gateway import errors, openapi_page
from apex_memory.gateway.body_limit import BodyLimitMiddleware, SourceRoute, limit_of
from apex_memory.gateway.completion import CompletionWaiter
from apex_memory.gateway.dependencies import (
    Gateway,
    authenticate,
    refuse_unknown_parameters,
)
from apex_memory.gateway.facts import FactGauges, watch_temporal
from apex_memory.gateway.freshness import FreshnessCache
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.gateway.mcp_endpoint import McpEndpoint, ResourceMetadata, metadata_router
from apex_memory.gateway.middleware import Hosts, RequestMiddleware
from apex_memory.gateway.ops.data import HistoryData
from apex_memory.gateway.ops.history import MetricsHistory
from apex_memory.gateway.routes import (
    backfills,
    builds,
    codec,
    dead_letters,
    events,
    files,
    ingest,
    keys,
    memory,
    mirror,
    operations,
    ops,
    rollouts,
    secrets,
    shadows,
    sources,
    status,
    unresolved,
)
from apex_memory.machine_load import LoadMeter
from apex_memory.sources import registry
from apex_memory.tasks import Background, BackgroundFailed, end_tasks
from apex_memory.telemetry import DELAY, logger, touch_metrics
from apex_memory.tls import ServerTls

DESCRIPTION = """Apex Memory stores every event of a company's tools and lets agents search all of them as one memory.

**Authentication.** Webhooks carry their vendor's signature. Every other request needs an API key
(`Authorization: Bearer apex_…`, or `X-API-Key`) with the scope `ingest`, `read` or `admin`; `admin` includes the
other two.

**Durability.** A 2xx response means that PostgreSQL has committed the event. Sending the same event again is safe:
the response has the same status and ids, with `duplicate: true`, and the event takes effect once.

**Errors** have the body `{"error": {"code", "message", "remedy"}}`. After 503 repeat the request when the seconds in
`Retry-After` have passed: the event may have been stored already, and repeating it does not store it twice.

**Asynchronous processing.** An event is searchable shortly after it is accepted. `?wait=searchable` makes the
response wait for that; `&path=direct` makes the gateway process the event itself, at once and without Temporal, for the
shortest wait; `GET /v1/events/{id}` shows the current state at any time.
"""
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry stays off, whatever the environment says: its spans hold paths and queries, which are what
people search for, and continue the `traceparent` of strangers. `request_span` makes the spans of requests."""

TAGS = [
    {"name": "hooks", "description": "Webhooks from vendors, verified by their signature."},
    {"name": "ingest", "description": "Documents and conversations, sent with an API key."},
    {
        "name": "memory",
        "description": "Search, documents, entities, and entities without a record.",
    },
    {"name": "events", "description": "The state of each event, and which stores hold it."},
    {
        "name": "dead letters",
        "description": "Events whose processing failed, and how to retry or discard them.",
    },
    {"name": "keys", "description": "API keys and their scopes."},
    {"name": "status", "description": "Health of the installation."},
    {
        "name": "sources",
        "description": "The sources of events: state, pause, run, backfill, replay.",
    },
    {
        "name": "rollouts",
        "description": "What share of a source's documents goes through Temporal.",
    },
    {
        "name": "mirror",
        "description": "Webhooks that are also forwarded to a former system.",
    },
    {
        "name": "builds",
        "description": "Builds of Apex side by side, and which of them processes which share of the documents.",
    },
    {
        "name": "secrets",
        "description": "Credentials of sources, stored encrypted and never returned.",
    },
    {"name": "operations", "description": "Operations that an administrator starts."},
]


def create_app(settings: Settings, *, tls: ServerTls | None = None) -> FastAPI:
    """Return the ASGI application, which opens the stores when it starts. Raises `Misconfigured` for wrong source settings.

    `tls` is what its server shows to callers; the state of the installation tells when that certificate expires.
    """
    loaded = registry.load(settings.sources, settings.source_path)
    api = FastAPI(
        title="Apex Memory",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan(settings, tls),
        docs_url=None,  # FastAPI's page loads scripts from a CDN; `openapi_page` serves a plain one
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        generate_unique_id_function=lambda route: route.name,
    )
    api.state.routes = {source.route: source.name for source in loaded.values()}
    errors.install(api)
    for router in (
        memory.router,
        events.router,
        dead_letters.router,
        keys.router,
        status.router,
        unresolved.router,
        backfills.router,  # before `sources`, whose decisions have the route of any word
        sources.router,
        files.router,
        rollouts.router,
        mirror.router,
        builds.router,
        secrets.router,
        shadows.router,
        operations.router,
    ):
        api.include_router(router, dependencies=[Depends(refuse_unknown_parameters)])
    for router in (
        ingest.source_router(loaded, settings),
        openapi_page.router,
        ops.router,
        codec.router,
        metadata_router(settings),
    ):
        api.include_router(router)
    api.router.routes.append(McpEndpoint(api).route)
    routes = {
        source.route: SourceRoute(source, limit_of(source, settings)) for source in loaded.values()
    }
    api.add_middleware(
        BodyLimitMiddleware, settings=settings, routes=routes, authenticate=authenticate
    )
    api.add_middleware(ResourceMetadata, settings=settings)
    api.add_middleware(codec.CodecAccess, settings=settings)
    api.add_middleware(RequestMiddleware, hosts=Hosts(settings))
    return api


def _lifespan(
    settings: Settings, tls: ServerTls | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        # The server reports it: it has ended for that.
        with suppress(BackgroundFailed):
            async with open_gateway(settings, tls) as gateway:
                api.state.gateway = gateway
                yield

    return lifespan


@asynccontextmanager
async def open_gateway(settings: Settings, tls: ServerTls | None = None) -> AsyncIterator[Gateway]:
    """Open everything a request handler needs. Temporal may be unavailable: the connection is made when first used.

    Leaving the block raises `BackgroundFailed` if a loop beside the requests failed for good. `background.failed` shows it before.
    """
    async with open_app(settings, answers=True) as app, Background() as background:
        client = await connect_by(settings, app.keyring, lazy=True)
        touch_metrics(app.sources)
        drains = drains_of(app, client)
        pulling = Pulling(client, app.sources)
        waker = Waker(drains, pulling, app.inbox)
        history = MetricsHistory(settings.data_dir)
        gateway = Gateway(
            app=app,
            keys=KeyRing(app.db),
            waker=waker,
            drains=drains,
            pulling=pulling,
            completion=CompletionWaiter(app.inbox),
            group_commit=GroupCommitter(app.inbox.land, app.mirror.land),
            temporal=client,
            load=LoadMeter(DELAY.set),
            ops_data=HistoryData(history),
            freshness=FreshnessCache(app.fetcher.states.current),
            background=background,
            tls=tls,
        )
        seconds = settings.facts_seconds
        facts = FactGauges(app, seconds=seconds)
        background.run(gateway.load.watch, name="load")
        background.run(gateway.completion.run, name="completion")
        background.run(partial(_keep_used, gateway.keys), name="keys used")
        background.run(waker.watch_shares, name="shares")
        background.run(app.credentials.keep_fresh, name="secrets")
        background.run(facts.run, name="facts")
        background.run(history.watch, name="history")
        background.run(partial(watch_temporal, client, seconds=seconds), name="watch temporal")
        background.run(app.builds.watch, name="builds")
        background.run(app.breaker_probes.run, name="breaker probes")
        if app.standby:
            background.run(app.standby.run, name="standby")
        try:
            yield gateway
        finally:
            await background.end()
            await end_tasks(gateway.tasks)
            await waker.close()
            with suppress(
                ApexError
            ):  # `used_at` is informative; PostgreSQL may have stopped already
                await gateway.keys.write_used()


async def _keep_used(keys: KeyRing) -> None:
    log = logger(component="gateway")
    while True:
        await asyncio.sleep(USED_SECONDS)
        try:
            await keys.write_used()
        except ApexError as error:
            log.warning("last use of API keys was not stored", reason=str(error)[:200])
