"""Backfills and replays: time ranges of a source that are fetched or processed again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from apex_memory.errors import Conflict, Rejected, Unavailable
from apex_memory.fetching.backfills import RecordedBackfill
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.read_models.status import temporal_reachable
from apex_memory.gateway.routes.shared import (
    Cursor,
    IsoDateTime,
    Limit,
    RequestBody,
    SourceName,
    example,
    page_of,
    parse_cursor,
    problems,
    require_source,
)
from apex_memory.model import now
from apex_memory.sources.base import PulledSource

_BACKFILL: dict[str, Any] = {
    "id": "0a3f6f4e-64c7-4d0f-9d83-2b8a4b0e6c11",
    "source": "plaid",
    "kind": "backfill",
    "since": "2026-02-01T00:00:00Z",
    "until": "2026-03-01T00:00:00Z",
    "state": "running",
    "waits_for": None,
    "seen": 400,
    "landed": 380,
    "error": None,
    "actor": "k3f9a2",
    "started_at": "2026-03-03T15:15:00Z",
    "ended_at": None,
}


class TimeRange(RequestBody):
    """A time range: `since` is inclusive, `until` exclusive (default: now)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"since": "2026-02-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}]
        },
    )
    since: IsoDateTime
    until: IsoDateTime | None = None


class BackfillRow(BaseModel):
    """Progress of a backfill or replay: `seen` counts its events, `landed` those that were new.

    `waits_for` is `temporal` while one that runs makes no progress because Temporal does not respond: only Temporal
    processes them, also while the fallback is in force. They go on by themselves when it responds.
    """

    model_config = example(_BACKFILL)
    id: UUID
    source: str
    kind: Literal["backfill", "replay"]
    since: datetime
    until: datetime
    state: Literal["running", "done", "failed", "cancelled"]
    waits_for: Literal["temporal"] | None
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


Id = Annotated[UUID, Path(description="The id of the backfill or replay.")]

router = APIRouter(tags=["sources"])


@router.post(
    "/v1/sources/{name}/backfills",
    status_code=202,
    summary="Begin a backfill",
    response_model=BackfillRow,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def begin_backfill(
    gateway: GatewayDep, key: Admin, name: SourceName, body: TimeRange
) -> dict[str, Any]:
    """Fetch a time range from the vendor again, at the lowest priority and a limited rate."""
    require_source(gateway, name)
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
    gateway: GatewayDep, key: Admin, name: SourceName, body: TimeRange
) -> dict[str, Any]:
    """Process the raw events that landed in a time range again, for example after an improvement of the parser."""
    require_source(gateway, name)
    return await _begin(gateway, name, "replay", body, key.id)


async def _begin(
    gateway: Gateway, name: str, kind: Literal["backfill", "replay"], body: TimeRange, actor: str
) -> dict[str, Any]:
    until = body.until or now()
    if until <= body.since:
        raise Rejected("until: not after since", remedy="set until to a later time than since")
    id = await gateway.app.backfills.create(name, kind, body.since, until, actor=actor)
    # The backfill is stored: the sweep starts it when Temporal responds again.
    with suppress(Unavailable):
        await gateway.pulling.backfill(name, id)
    return await _shown(gateway, await gateway.app.backfills.get(id))


async def _shown(gateway: Gateway, row: RecordedBackfill) -> dict[str, Any]:
    """Return the row with what it waits for."""
    [shown] = await _all_shown(gateway, [row])
    return shown


async def _all_shown(gateway: Gateway, rows: Sequence[RecordedBackfill]) -> list[dict[str, Any]]:
    """Return the rows with what they wait for. Temporal is queried once, and only while one of them runs."""
    running = any(row.state == "running" for row in rows)
    away = running and not await temporal_reachable(gateway.temporal)
    waits_for = "temporal" if away else None
    return [
        {**asdict(row), "waits_for": waits_for if row.state == "running" else None} for row in rows
    ]


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
    backfills, following = page_of(rows, limit, lambda row: (row.started_at, row.id))
    return {"backfills": await _all_shown(gateway, backfills), "next": following}


@router.get(
    "/v1/backfills/{id}",
    summary="Show a backfill or replay",
    response_model=BackfillRow,
    responses=problems(401, 403, 404, 422, 503),
)
async def show_backfill(
    gateway: GatewayDep,
    key: Reader,
    id: Id,
) -> dict[str, Any]:
    """Show its state and its progress."""
    return await _shown(gateway, await gateway.app.backfills.get(id))


@router.delete(
    "/v1/backfills/{id}",
    summary="Cancel a backfill or replay",
    response_model=BackfillRow,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def cancel_backfill(
    gateway: GatewayDep,
    key: Admin,
    id: Id,
) -> dict[str, Any]:
    """Stop after the current page or chunk. Events that have landed are kept."""
    row = await gateway.app.backfills.get(id)
    if not await gateway.app.backfills.end(id, "cancelled"):
        raise Conflict(f"backfill {id} is {row.state}", remedy="only running ones can be cancelled")
    return await _shown(gateway, await gateway.app.backfills.get(id))
