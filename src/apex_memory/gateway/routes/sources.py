"""Sources: their state, and the decisions of an operator about them."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from apex_memory.errors import ApexError, Conflict
from apex_memory.fetching.source_states import ListedSource
from apex_memory.gateway.body_limit import limit_of
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.routes.shared import SourceName, example, problems, require_source
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
    "healed": 2,
    "healed_at": "2026-03-03T09:41:07.020Z",
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


class SourceRow(BaseModel):
    """A source: how to send to it, and its state.

    `lag` is the age in seconds of its oldest unfinished event; `stalled` is how long (s) ready events have waited
    while nobody works on the source; `missing` is the setting that it lacks. `healed` counts the events that its pulls
    brought because their webhooks were lost, the last of them at `healed_at`.
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
    healed: int
    healed_at: datetime | None
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


Action = Annotated[
    Literal["enable", "disable", "pause", "resume", "run"],
    Path(description="The decision.", examples=["pause"]),
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


@router.post(
    "/v1/sources/{name}/{action}",
    summary="Pause, resume, enable, disable or run a source",
    response_model=SourceDecision,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def decide(
    gateway: GatewayDep, key: Admin, name: SourceName, action: Action
) -> dict[str, Any]:
    """Change the state of a source. The decision survives restarts.

    `pause` stops processing and pulling, while events still land; `resume` ends that. `disable` stops pulling only;
    `enable` ends that. `run` pulls now instead of at the scheduled time.
    """
    require_source(gateway, name)
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
    row = next(row for row in rows if row.name == name)
    return {"source": _source_row(gateway, row), "note": note}


def _source_row(gateway: Gateway, row: ListedSource) -> dict[str, Any]:
    source = gateway.app.sources[row.name]
    return {
        **asdict(row),
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
