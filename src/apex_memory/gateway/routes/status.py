"""How this installation is: for people, for probes, for Prometheus."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from apex_memory import __version__
from apex_memory.errors import ApexError
from apex_memory.gateway.dependencies import GatewayDep, Reader, presented
from apex_memory.gateway.read_models import status
from apex_memory.gateway.routes.shared import example, problems
from apex_memory.host_names import host_name, is_loopback
from apex_memory.telemetry import logger


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
    """Whether Temporal responds, and the workflows that fail repeatedly. Without Temporal events land and wait."""

    address: str
    reachable: bool
    milliseconds: float
    """How long the response took, or the waiting for one."""
    failing: list[FailingWorkflow]
    ui: str | None


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
                    "version": "FalkorDB 4.14.10",
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
                "ui": "http://127.0.0.1:8461",
            },
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
            "sources": ["hubspot", "documents", "edi", "frontapp"],
        }
    )
    version: str
    stores: list[StoreRow]
    machine: Machine
    temporal: TemporalState
    backlog: list[BacklogRow] | None
    open: int | None
    parked: int | None
    dead_letters: int | None
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
            "ui": app.settings.temporal_ui or None,
        },
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
    """Return metrics: to this machine without a key, to others with an admin key."""
    if not _local(request):
        await gateway.keys.check(presented(request), "admin")
    try:
        await status.refresh_gauges(gateway.app)
    except ApexError as error:  # the other metrics are needed most while PostgreSQL is unavailable
        logger(component="gateway").warning("inbox gauges are stale", reason=str(error)[:200])
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _local(request: Request) -> bool:
    """Return whether the caller is a program on this machine, neither behind a proxy nor a web page in a browser."""
    client = request.client.host if request.client else ""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    named = is_loopback(host_name(request.headers.get("host", "")))
    return is_loopback(client) and named and not forwarded


@router.get(
    "/",
    include_in_schema=False,
    response_class=RedirectResponse,
)
async def root() -> RedirectResponse:
    return RedirectResponse("/docs")
