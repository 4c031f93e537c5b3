"""How this installation is: for people, for probes, for Prometheus."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from apex_memory import __version__
from apex_memory.engines.cards import running_processes
from apex_memory.gateway.dependencies import GatewayDep, Reader, needs_no_key, presented
from apex_memory.gateway.read_models import status
from apex_memory.gateway.routes.shared import example, problems
from apex_memory.telemetry.exposition import exposition


class StoreRow(BaseModel):
    """A store. `recovering`: it responds, and is being checked after a restart."""

    name: str
    state: Literal["ready", "recovering", "unavailable"]
    version: str | None
    milliseconds: float | None
    """The round trip of a ping."""
    reason: str | None


class BacklogRow(BaseModel):
    """Unfinished events of one source and state. `park_store` is the store that parked events wait for."""

    source: str
    state: str
    park_store: str | None
    events: int
    oldest: datetime


class FailingWorkflow(BaseModel):
    """A running workflow whose current task, or activity, has failed several times."""

    id: str
    what: Literal["workflow task", "activity"]
    attempt: int


class TemporalState(BaseModel):
    """Whether Temporal responds, and the workflows that fail repeatedly.

    `fallback_since` is the time since when the direct path processes everything because Temporal does not respond; null
    while it does not. Until it begins, `fallback_seconds` after Temporal's last response, events land and wait.
    """

    address: str
    reachable: bool
    milliseconds: float
    """How long the response took, or the waiting for one."""
    failing: list[FailingWorkflow]
    fallback_since: datetime | None
    ui: str | None


class RerankerState(BaseModel):
    """The reranker of this gateway's searches. `failing`: its last call failed, and searches keep their own order.

    `breaker` is `closed`, `open` (it is not called for a while after repeated failures) or `half-open`.
    """

    address: str
    state: Literal["ready", "failing"]
    breaker: Literal["closed", "open", "half-open"]
    reason: str | None


class AbsentBuild(BaseModel):
    """The current build has no worker: what no candidate processes lands, and waits.

    `seen_seconds` is the time since one of its workers was last seen, null if none was. `living` are the builds that have
    workers.
    """

    build: str
    seen_seconds: float | None
    living: list[str]
    detail: str
    remedy: str


class Machine(BaseModel):
    """The load of the machine as the gateway meets it. Shares are from 0 to 1, and null where the system does not show them.

    `delay_seconds` is how late the gateway runs, averaged over half a minute; above 0.1 it lacks processor time. `pressure` is
    the share of the last minute in which some process waited for a processor, `throttled` the share of time in which a limit
    of processor time stopped the gateway.
    """

    delay_seconds: float
    processors: int
    pressure: float | None
    throttled: float | None


class MetricsRow(BaseModel):
    """A process that runs from the gateway's data folder, and the address of its metrics. `build` is empty for engines."""

    process: str
    pid: int
    build: str
    metrics: str


class Status(BaseModel):
    """Health of this installation. Counts are null while PostgreSQL is unavailable."""

    model_config = example(
        {
            "version": "0.1.0",
            "stores": [
                {
                    "name": "documents",
                    "state": "ready",
                    "version": "PostgreSQL 18.6",
                    "milliseconds": 1.4,
                    "reason": None,
                },
                {
                    "name": "graph",
                    "state": "ready",
                    "version": "PostgreSQL 18.6",
                    "milliseconds": 0.6,
                    "reason": None,
                },
                {
                    "name": "vectors",
                    "state": "ready",
                    "version": "Qdrant Edge 0.9",
                    "milliseconds": 0.8,
                    "reason": None,
                },
                {
                    "name": "cache",
                    "state": "ready",
                    "version": "Valkey 9.1.2",
                    "milliseconds": 0.4,
                    "reason": None,
                },
            ],
            "machine": {
                "delay_seconds": 0.002,
                "processors": 8,
                "pressure": 0.03,
                "throttled": None,
            },
            "temporal": {
                "address": "127.0.0.1:7233/apex",
                "reachable": True,
                "milliseconds": 2.1,
                "failing": [{"id": "drain:edi", "what": "workflow task", "attempt": 12}],
                "fallback_since": None,
                "ui": "http://127.0.0.1:8461",
            },
            "reranker": None,
            "absent_build": None,
            "certificate_expires_at": "2026-05-30T12:00:00Z",
            "backlog": [
                {
                    "source": "edi",
                    "state": "received",
                    "park_store": None,
                    "events": 12,
                    "oldest": "2026-03-03T15:14:58Z",
                }
            ],
            "open": 12,
            "parked": 0,
            "dead_letters": 1,
            "processes": [
                {
                    "process": "worker",
                    "pid": 4711,
                    "build": "0.2.0-5f0c2a9be1",
                    "metrics": "http://127.0.0.1:9465/metrics",
                }
            ],
            "sources": ["hubspot", "documents", "edi", "frontapp"],
        }
    )
    version: str
    stores: list[StoreRow]
    machine: Machine
    temporal: TemporalState
    reranker: RerankerState | None
    """Null without one."""
    absent_build: AbsentBuild | None
    """Null while a worker of the current build runs."""
    certificate_expires_at: datetime | None
    """Of the certificate that this gateway shows. Null without TLS."""
    backlog: list[BacklogRow] | None
    open: int | None
    parked: int | None
    dead_letters: int | None
    processes: list[MetricsRow]
    sources: list[str]


class Health(BaseModel):
    """The check passed."""

    model_config = example({"status": "ok"})
    status: Literal["ok"]


router = APIRouter(tags=["status"])


@router.get(
    "/v1/status",
    summary="Show the state of the installation",
    response_model=Status,
    responses=problems(401, 403, 503),
)
async def show_status(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """Show stores, backlog, parked events, dead letters, Temporal, and how loaded the machine is."""
    app = gateway.app
    load = gateway.load.current()
    seconds = status.longest_wait(load.delay_seconds)
    stores = await status.store_rows(app, seconds)
    began = perf_counter()
    reachable = await status.temporal_reachable(gateway.temporal, seconds)
    answer: dict[str, Any] = {
        "version": __version__,
        "stores": stores,
        "machine": asdict(load),
        "temporal": {
            "address": app.settings.temporal,
            "reachable": reachable,
            "milliseconds": round((perf_counter() - began) * 1000, 1),
            "failing": await status.failing_workflows(gateway.temporal, seconds),
            "fallback_since": await status.fallback_since(app, seconds),
            "ui": app.settings.temporal_ui or None,
        },
        "reranker": status.reranker_row(app),
        "absent_build": await status.absent_build(app, seconds),
        "certificate_expires_at": gateway.tls.expires_at if gateway.tls else None,
        "processes": [
            card.model_dump()
            for card in await asyncio.to_thread(running_processes, app.settings.data_dir)
        ],
        "sources": sorted(app.sources),
    }
    return answer | await _counts(gateway, answer["stores"])


async def _counts(gateway: GatewayDep, stores: list[dict[str, Any]]) -> dict[str, Any]:
    unknown = dict.fromkeys(("backlog", "open", "parked", "dead_letters"))
    if any(row["name"] == "documents" and row["state"] == "unavailable" for row in stores):
        return unknown
    rows = await gateway.app.inbox.backlog()
    return {
        "backlog": [asdict(row) for row in rows],
        "open": sum(row.events for row in rows if row.state != "parked"),
        "parked": sum(row.events for row in rows if row.state == "parked"),
        "dead_letters": await status.dead_letters(gateway.app),
    }


@router.get(
    "/healthz",
    summary="Check that the process runs",
    response_model=Health,
    responses=problems(),
)
async def healthz() -> dict[str, str]:
    """Return 200 while the process runs. Needs no key."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Check that events can land",
    response_model=Health,
    responses=problems(503),
)
async def readyz(gateway: GatewayDep) -> dict[str, str]:
    """Return 200 while PostgreSQL responds: landing needs nothing else. Needs no key."""
    seconds = status.longest_wait(gateway.load.current().delay_seconds)
    await status.promptly(gateway.app.db.ping(), seconds)
    return {"status": "ok"}


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses=problems(401, 403, 503)
    | {
        200: {
            "description": "Prometheus text format.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'apex_events_landed_total{source="frontapp"} 1024.0\n',
                }
            },
        }
    },
)
async def metrics(gateway: GatewayDep, request: Request) -> Response:
    """Return metrics: to this machine without a key, unless the settings want one, to others with an admin key."""
    if not needs_no_key(request):
        await gateway.keys.check(presented(request), "admin")
    # In a thread, because it reads the endpoint of Temporal's library.
    text, content_type = await asyncio.to_thread(exposition, request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


@router.get(
    "/",
    include_in_schema=False,
    response_class=RedirectResponse,
)
async def root() -> RedirectResponse:
    return RedirectResponse("/docs")
