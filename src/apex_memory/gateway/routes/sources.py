"""Sources: their state, and the decisions of an operator about them."""

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
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.routes.shared import (
    Cursor,
    IsoDateTime,
    example,
    page_of,
    parse_cursor,
    problems,
)
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
    "stalled": None,
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
    """A source: how to send to it, and its state.

    `lag` is the age in seconds of its oldest unfinished event; `stalled` is how long (s) ready events have waited
    while nobody works on the source; `missing` is the setting that it lacks.
    """

    model_config = example(_ROW)
    name: str
    title: str
    pattern: Pattern
    priority: Literal["P0", "P1", "P2"]
    state: Literal["idle", "working", "stalled", "failing", "paused", "disabled", "not configured"]
    missing: str | None
    pulled_at: datetime | None
    error: str | None
    error_at: datetime | None
    last_event_at: datetime | None
    documents: int
    backlog: int
    lag: float | None
    stalled: float | None
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


class SourceDecision(BaseModel):
    """The state of the source after the decision."""

    model_config = example({"source": _ROW, "note": ""})
    source: SourceRow
    note: str
    """A remark for people; usually empty."""


class TimeRange(BaseModel):
    """A time range: `since` is inclusive, `until` exclusive (default: now)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"since": "2026-02-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}]
        },
    )
    since: IsoDateTime
    until: IsoDateTime | None = None


class BackfillRow(BaseModel):
    """Progress of a backfill or replay: `seen` counts its events, `landed` those that were new."""

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
    """Backfills and replays, newest first. `next` is the `cursor` of the following page, null on the last."""

    model_config = example({"backfills": [_BACKFILL], "next": None})
    backfills: list[BackfillRow]
    next: str | None


class FileRow(BaseModel):
    """A file of a batch source: its events, how many of them landed, problems found in it, and the replies written."""

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
    """Files, newest first. `next` is the `cursor` of the following page, null on the last."""

    model_config = example({"files": [_FILE], "next": None})
    files: list[FileRow]
    next: str | None


Name = Annotated[str, Path(description="The source's name.", examples=["plaid"], max_length=100)]
Action = Annotated[
    Literal["enable", "disable", "pause", "resume", "run"],
    Path(description="The decision.", examples=["pause"]),
]
Limit = Annotated[
    int, Query(ge=1, le=500, description="Most items in the response.", examples=[50])
]


router = APIRouter(tags=["sources"])


@router.get(
    "/v1/sources",
    summary="List sources",
    response_model=SourceList,
    responses=problems(401, 403, 503),
)
async def list_sources(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """List every source with its state, the time of its last event, its backlog and its last error."""
    return {
        "sources": [_source_row(gateway, row) for row in await gateway.app.fetcher.states.listed()]
    }


# Before the route of decisions, which would take `backfills` and `replays` for one.
@router.post(
    "/v1/sources/{name}/backfills",
    status_code=202,
    summary="Begin a backfill",
    response_model=BackfillRow,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def begin_backfill(
    gateway: GatewayDep, key: Admin, name: Name, body: TimeRange
) -> dict[str, Any]:
    """Fetch a time range from the vendor again, at the lowest priority and a limited rate."""
    _require_known(gateway, name)
    source = gateway.app.sources[name]
    if not isinstance(source, PulledSource):
        raise Rejected(
            f"{name} cannot be fetched: it only sends events",
            remedy="replay its raw events instead, or import an export of it",
        )
    if source.missing_settings:
        raise Conflict(
            f"{name}: {source.missing_settings} is not set",
            remedy=f"set sources.{name}.{source.missing_settings}",
        )
    return await _begin(gateway, name, "backfill", body, key.id)


@router.post(
    "/v1/sources/{name}/replays",
    status_code=202,
    summary="Begin a replay",
    response_model=BackfillRow,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def begin_replay(
    gateway: GatewayDep, key: Admin, name: Name, body: TimeRange
) -> dict[str, Any]:
    """Process the raw events that landed in a time range again, for example after an improvement of the parser."""
    _require_known(gateway, name)
    return await _begin(gateway, name, "replay", body, key.id)


@router.post(
    "/v1/sources/{name}/{action}",
    summary="Pause, resume, enable, disable or run a source",
    response_model=SourceDecision,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def decide(gateway: GatewayDep, key: Admin, name: Name, action: Action) -> dict[str, Any]:
    """Change the state of a source. The decision survives restarts.

    `pause` stops processing and pulling, while events still land; `resume` ends that. `disable` stops pulling only;
    `enable` ends that. `run` pulls now instead of at the scheduled time.
    """
    _require_known(gateway, name)
    note = ""
    if action == "run":
        source = gateway.app.sources[name]
        if not isinstance(source, PulledSource):
            raise Conflict(
                f"{name} cannot be pulled: it sends its events",
                remedy="nothing to do: its events land as they arrive",
            )
        await gateway.pulling.trigger(name)
        note = (
            "" if source.pattern != Pattern.STREAM else "a stream is read every few seconds anyway"
        )
    else:
        setting, value = {
            "enable": ("enabled", True),
            "disable": ("enabled", False),
            "pause": ("paused", True),
            "resume": ("paused", False),
        }[action]
        await gateway.app.fetcher.states.decide(name, actor=key.id, **{setting: value})
        note = await _signal_drain(gateway, name, action)
    rows = await gateway.app.fetcher.states.listed()
    row = next(row for row in rows if row["name"] == name)
    return {"source": _source_row(gateway, row), "note": note}


def _source_row(gateway: Gateway, row: dict[str, Any]) -> dict[str, Any]:
    source = gateway.app.sources[row["name"]]
    return {
        **row,
        "route": source.route,
        "authentication": "key" if source.authenticated_by_key else "signature",
        "max_body_bytes": limit_of(source, gateway.app.settings),
        "description": inspect.cleandoc(type(source).__doc__ or ""),
    }


async def _signal_drain(gateway: Gateway, name: str, action: str) -> str:
    """Signal the decision, which PostgreSQL holds already, to the drain, so that the Temporal UI shows it. Return a remark on failure."""
    try:
        if action == "pause":
            await gateway.drains.pause(name)
        elif action == "resume":
            await gateway.drains.resume(name)
            gateway.waker.pull(name)
    except ApexError as error:
        return f"the decision is stored, but Temporal was not notified: {error}"
    return ""


async def _begin(
    gateway: Gateway, name: str, kind: Literal["backfill", "replay"], body: TimeRange, actor: str
) -> dict[str, Any]:
    until = body.until or now()
    if until <= body.since:
        raise Rejected("until: not after since", remedy="set until to a later time than since")
    id = await gateway.app.backfills.create(name, kind, body.since, until, actor=actor)
    with suppress(
        Unavailable
    ):  # the backfill is stored: the sweep starts it when Temporal responds again
        await gateway.pulling.backfill(name, id)
    return await gateway.app.backfills.get(id)


@router.get(
    "/v1/backfills",
    summary="List backfills and replays",
    response_model=BackfillList,
    responses=problems(401, 403, 422, 503),
)
async def list_backfills(
    gateway: GatewayDep, key: Reader, cursor: Cursor = None, limit: Limit = 50
) -> dict[str, Any]:
    """List backfills and replays, newest first."""
    after = parse_cursor(cursor, UUID)
    rows = await gateway.app.backfills.listed(after=after, limit=limit + 1)
    backfills, following = page_of(rows, limit, at="started_at", key="id")
    return {"backfills": backfills, "next": following}


@router.get(
    "/v1/backfills/{id}",
    summary="Show a backfill or replay",
    response_model=BackfillRow,
    responses=problems(401, 403, 404, 422, 503),
)
async def show_backfill(
    gateway: GatewayDep,
    key: Reader,
    id: Annotated[UUID, Path(description="The id of the backfill or replay.")],
) -> dict[str, Any]:
    """Show its state and its progress."""
    return await gateway.app.backfills.get(id)


@router.delete(
    "/v1/backfills/{id}",
    summary="Cancel a backfill or replay",
    response_model=BackfillRow,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def cancel_backfill(
    gateway: GatewayDep,
    key: Admin,
    id: Annotated[UUID, Path(description="The id of the backfill or replay.")],
) -> dict[str, Any]:
    """Stop after the current page or chunk. Events that have landed are kept."""
    row = await gateway.app.backfills.get(id)
    if not await gateway.app.backfills.end(id, "cancelled"):
        raise Conflict(
            f"backfill {id} is {row['state']}", remedy="only running ones can be cancelled"
        )
    return await gateway.app.backfills.get(id)


@router.get(
    "/v1/files",
    summary="List files of batch sources",
    response_model=FileList,
    responses=problems(401, 403, 422, 503),
)
async def list_files(
    gateway: GatewayDep,
    key: Reader,
    source: Annotated[
        str | None, Query(description="Only files of this source.", max_length=100)
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List files that were fetched or uploaded, newest first."""
    rows = await gateway.app.fetcher.files.listed(
        source=source, after=parse_cursor(cursor, UUID), limit=limit + 1
    )
    files, following = page_of(rows, limit, at="received_at", key="id")
    return {"files": files, "next": following}


def _require_known(gateway: Gateway, name: str) -> None:
    if name not in gateway.app.sources:
        raise NotFound(f"{name[:100]}: no such source", remedy="GET /v1/sources lists them")
