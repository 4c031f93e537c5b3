"""Where events come from: what each source is at, and what an operator decides of it."""

from __future__ import annotations

import inspect
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict

from apex_memory.errors import ApexError, Conflict, NotFound, Rejected, Unavailable
from apex_memory.gateway.body_limit import limit_of
from apex_memory.gateway.dependencies import Admin, GatewayDep, Reader
from apex_memory.gateway.dependencies import Gateway as Opened
from apex_memory.gateway.routes.shared import IsoDateTime, example, problems
from apex_memory.model import now
from apex_memory.sources.base import Pattern, PulledSource

_ROW: dict[str, Any] = {
    "name": "plaid",
    "title": "Plaid",
    "pattern": "poll",
    "priority": "P1",
    "state": "idle",
    "missing": None,
    "pulled_at": "2026-03-03T15:15:00.412Z",
    "error": None,
    "error_at": None,
    "last_event_at": "2026-03-03T15:14:58.100Z",
    "documents": 1024,
    "backlog": 0,
    "lag": None,
    "parked": 0,
    "dead_letters": 0,
    "change_hints": 0,
    "files": 0,
    "windows": 0,
    "route": "/hooks/plaid",
    "authentication": "signature",
    "max_body_bytes": 5_000_000,
    "description": "Bank transactions, with removals, from Plaid.",
}
_BACKFILL: dict[str, Any] = {
    "id": "0a3f6f4e-64c7-4d0f-9d83-2b8a4b0e6c11",
    "source": "plaid",
    "kind": "backfill",
    "since": "2026-02-01T00:00:00Z",
    "until": "2026-03-01T00:00:00Z",
    "state": "running",
    "seen": 400,
    "landed": 380,
    "error": None,
    "actor": "k3f9a2",
    "started_at": "2026-03-03T15:15:00Z",
    "ended_at": None,
}
_FILE: dict[str, Any] = {
    "id": "5e0c2f9a-1f43-5c1d-8f0e-7a2f2f8f1b90",
    "source": "edi",
    "name": "NWTR_214_4711.edi",
    "sha256": "9f2c…",
    "bytes": 812,
    "received_at": "2026-03-03T15:15:00Z",
    "events": 1,
    "landed": 1,
    "findings": [],
    "replies": ["997_000004711.edi"],
    "ended_at": "2026-03-03T15:15:01Z",
}


class SourceRow(BaseModel):
    """A source: how to send to it, and what it is at.

    `lag` is the age in seconds of the oldest event that is not at an end; `missing` the setting it lacks.
    """

    model_config = example(_ROW)
    name: str
    title: str
    pattern: Pattern
    priority: Literal["P0", "P1", "P2"]
    state: Literal["idle", "working", "failing", "paused", "disabled", "not configured"]
    missing: str | None
    pulled_at: datetime | None
    error: str | None
    error_at: datetime | None
    last_event_at: datetime | None
    documents: int
    backlog: int
    lag: float | None
    parked: int
    dead_letters: int
    change_hints: int
    files: int
    windows: int
    route: str
    authentication: Literal["signature", "key"]
    max_body_bytes: int
    description: str


class SourceList(BaseModel):
    model_config = example({"sources": [_ROW]})
    sources: list[SourceRow]


class Decided(BaseModel):
    """What holds now."""

    model_config = example({"source": _ROW, "note": ""})
    source: SourceRow
    note: str
    """What a person should know besides; empty mostly."""


class Stretch(BaseModel):
    """A stretch of time: inclusive since, exclusive until (now, if left out)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"since": "2026-02-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}]
        },
    )
    since: IsoDateTime
    until: IsoDateTime | None = None


class BackfillRow(BaseModel):
    """How far a backfill or a replay is: events seen, and those that were new."""

    model_config = example(_BACKFILL)
    id: UUID
    source: str
    kind: Literal["backfill", "replay"]
    since: datetime
    until: datetime
    state: Literal["running", "done", "failed", "cancelled"]
    seen: int
    landed: int
    error: str | None
    actor: str
    started_at: datetime
    ended_at: datetime | None


class BackfillList(BaseModel):
    model_config = example({"backfills": [_BACKFILL]})
    backfills: list[BackfillRow]


class FileRow(BaseModel):
    """A file of a batch source: events it holds and landed, what is wrong with it, and the replies written."""

    model_config = example(_FILE)
    id: UUID
    source: str
    name: str
    sha256: str
    bytes: int
    received_at: datetime
    events: int | None
    landed: int
    findings: list[str]
    replies: list[str]
    ended_at: datetime | None


class FileList(BaseModel):
    model_config = example({"files": [_FILE]})
    files: list[FileRow]


Name = Annotated[str, Path(description="The source's name.", examples=["plaid"], max_length=100)]
Action = Annotated[
    Literal["enable", "disable", "pause", "resume", "run"],
    Path(description="What to do.", examples=["pause"]),
]
Limit = Annotated[int, Query(ge=1, le=500, description="Most rows.", examples=[50])]


def routes() -> APIRouter:
    router = APIRouter(tags=["sources"])
    add = router.add_api_route
    add(
        "/v1/sources",
        list_sources,
        methods=["GET"],
        summary="List sources",
        response_model=SourceList,
        responses=problems(401, 403, 503),
    )
    # Before the route of actions, which would take their names for one.
    for kind, function in (("backfills", begin_backfill), ("replays", begin_replay)):
        add(
            f"/v1/sources/{{name}}/{kind}",
            function,
            methods=["POST"],
            status_code=202,
            summary=f"Begin a {kind[:-1]}",
            response_model=BackfillRow,
            responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
        )
    add(
        "/v1/sources/{name}/{action}",
        decide,
        methods=["POST"],
        summary="Pause, resume, enable, disable or run a source",
        response_model=Decided,
        responses=problems(401, 403, 404, 409, 422, 503),
    )
    add(
        "/v1/backfills",
        list_backfills,
        methods=["GET"],
        summary="List backfills and replays",
        response_model=BackfillList,
        responses=problems(401, 403, 422, 503),
    )
    add(
        "/v1/backfills/{id}",
        cancel_backfill,
        methods=["DELETE"],
        summary="Cancel a backfill or replay",
        response_model=BackfillRow,
        responses=problems(401, 403, 404, 409, 422, 503),
    )
    add(
        "/v1/files",
        list_files,
        methods=["GET"],
        summary="List files of batch sources",
        response_model=FileList,
        responses=problems(401, 403, 422, 503),
    )
    return router


async def list_sources(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """Every source: its state, when its last event came, what waits, and what is wrong."""
    return {"sources": [_shown(gateway, row) for row in await gateway.app.fetcher.states.listed()]}


async def decide(gateway: GatewayDep, key: Admin, name: Name, action: Action) -> dict[str, Any]:
    """`pause` stops carrying and pulling (events still land), across restarts; `disable` stops pulling alone.

    `run` pulls now instead of at the next turn.
    """
    _known(gateway, name)
    note = ""
    if action == "run":
        source = gateway.app.sources[name]
        if not isinstance(source, PulledSource):
            raise Conflict(
                f"{name} is not pulled: it sends",
                remedy="nothing to do; its events land as they come",
            )
        await gateway.pulling.trigger(name)
        note = (
            "" if source.pattern != Pattern.STREAM else "a stream looks by itself every few seconds"
        )
    else:
        setting, value = {
            "enable": ("enabled", True),
            "disable": ("enabled", False),
            "pause": ("paused", True),
            "resume": ("paused", False),
        }[action]
        await gateway.app.fetcher.states.decide(name, actor=key.id, **{setting: value})
        note = await _tell_drain(gateway, name, action)
    rows = await gateway.app.fetcher.states.listed()
    row = next(row for row in rows if row["name"] == name)
    return {"source": _shown(gateway, row), "note": note}


def _shown(gateway: Opened, row: dict[str, Any]) -> dict[str, Any]:
    source = gateway.app.sources[row["name"]]
    return {
        **row,
        "route": source.route,
        "authentication": "key" if source.authenticated_by_key else "signature",
        "max_body_bytes": limit_of(source, gateway.app.settings),
        "description": inspect.cleandoc(type(source).__doc__ or ""),
    }


async def _tell_drain(gateway: Opened, name: str, action: str) -> str:
    """PostgreSQL has decided; the drain hears of it so that Temporal's UI shows it."""
    try:
        if action == "pause":
            await gateway.drains.pause(name)
        elif action == "resume":
            await gateway.drains.resume(name)
            gateway.waker.pull(name)
    except ApexError as error:
        return f"it holds, but Temporal was not told: {error}"
    return ""


async def begin_backfill(
    gateway: GatewayDep, key: Admin, name: Name, order: Stretch
) -> dict[str, Any]:
    """Fetch a stretch of the vendor's past anew, at the lowest priority and a bounded rate."""
    _known(gateway, name)
    source = gateway.app.sources[name]
    if not isinstance(source, PulledSource):
        raise Rejected(
            f"{name} cannot be fetched: it only sends",
            remedy="replay it from the raw events instead, or import its export",
        )
    if source.missing_settings:
        raise Conflict(
            f"{name}: {source.missing_settings} is not set",
            remedy=f"set sources.{name}.{source.missing_settings}",
        )
    return await _begin(gateway, name, "backfill", order, key.id)


async def begin_replay(
    gateway: GatewayDep, key: Admin, name: Name, order: Stretch
) -> dict[str, Any]:
    """Carry the raw events that landed in a stretch of time through the pipeline once more: after a better parser, say."""
    _known(gateway, name)
    return await _begin(gateway, name, "replay", order, key.id)


async def _begin(
    gateway: Opened, name: str, kind: Literal["backfill", "replay"], order: Stretch, actor: str
) -> dict[str, Any]:
    until = order.until or now()
    if until <= order.since:
        raise Rejected("until: not after since", remedy="give a stretch of time")
    id = await gateway.app.backfills.create(name, kind, order.since, until, actor=actor)
    with suppress(Unavailable):  # the order is kept: the sweep starts it when Temporal is back
        await gateway.pulling.backfill(name, id)
    return await gateway.app.backfills.get(id)


async def list_backfills(gateway: GatewayDep, key: Reader, limit: Limit = 50) -> dict[str, Any]:
    """The newest first."""
    return {"backfills": await gateway.app.backfills.listed(limit=limit)}


async def cancel_backfill(
    gateway: GatewayDep, key: Admin, id: Annotated[UUID, Path(description="Its id.")]
) -> dict[str, Any]:
    """End it after the page or chunk in hand. What landed stays."""
    row = await gateway.app.backfills.get(id)
    if not await gateway.app.backfills.end(id, "cancelled"):
        raise Conflict(
            f"backfill {id} is {row['state']}", remedy="only running ones can be cancelled"
        )
    return await gateway.app.backfills.get(id)


async def list_files(
    gateway: GatewayDep,
    key: Reader,
    source: Annotated[str | None, Query(description="Only this source's.", max_length=100)] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Files that were picked up or sent, the newest first."""
    return {"files": await gateway.app.fetcher.files.listed(source=source, limit=limit)}


def _known(gateway: Opened, name: str) -> None:
    if name not in gateway.app.sources:
        raise NotFound(f"{name[:100]}: no such source", remedy="GET /v1/sources lists them")
