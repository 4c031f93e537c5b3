"""Mirrors: webhooks that are also forwarded to a former system. An administrator redrives or discards what it did not take."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from apex_memory.errors import Rejected
from apex_memory.gateway.dependencies import Admin, GatewayDep, Reader, require_known_sources
from apex_memory.gateway.routes.events import Limit
from apex_memory.gateway.routes.shared import Cursor, RequestBody, example, problems
from apex_memory.mirror.queue import State

CopyNumber = Annotated[StrictInt, Field(ge=1, lt=2**63)]
MOST_IDS = 1_000

_MIRROR: dict[str, Any] = {
    "source": "frontapp",
    "url": "https://glue.example.com/front",
    "mirror": "all",
    "waiting": 12,
    "oldest": "2026-03-03T15:14:58Z",
    "dead": 0,
    "failing_since": "2026-03-03T15:15:00Z",
    "next_at": "2026-03-03T15:15:08Z",
    "last_error": "the target responds with status 503",
    "error_at": "2026-03-03T15:15:04Z",
    "delivered_at": "2026-03-03T15:14:57Z",
}
_COPY: dict[str, Any] = {
    "id": 4711,
    "source": "frontapp",
    "received_at": "2026-03-03T15:14:58Z",
    "queued_at": "2026-03-03T15:14:58Z",
    "bytes": 1204,
    "state": "dead",
    "attempts": 5,
    "last_error": "the target refuses it with status 422",
    "ended_at": "2026-03-03T15:15:12Z",
    "resolution": None,
    "actor": None,
}


class MirrorRow(BaseModel):
    """The mirror of one source: its target without the query, what waits and what is dead, and how the target responds.

    `failing_since` is when the target began to fail without a response since; `url` is empty when the settings name
    no target any more, and what waits goes nowhere.
    """

    model_config = example(_MIRROR)
    source: str
    url: str
    mirror: Literal["all", "rest"]
    waiting: int
    oldest: datetime | None
    dead: int
    failing_since: datetime | None
    next_at: datetime | None
    last_error: str | None
    error_at: datetime | None
    delivered_at: datetime | None


class MirrorList(BaseModel):
    model_config = example({"mirrors": [_MIRROR]})
    mirrors: list[MirrorRow]


class MirrorCopy(BaseModel):
    """A mirrored webhook, without its content, which is removed when it is delivered or discarded."""

    model_config = example(_COPY)
    id: int
    source: str
    received_at: datetime
    queued_at: datetime
    bytes: int
    state: State
    attempts: int
    last_error: str | None
    ended_at: datetime | None
    resolution: str | None
    actor: str | None


class MirrorCopyList(BaseModel):
    """Mirrored webhooks, newest first. `next` is the `cursor` of the following page, null on the last."""

    model_config = example({"copies": [_COPY], "next": None})
    copies: list[MirrorCopy]
    next: str | None


class _Chosen(RequestBody):
    ids: list[CopyNumber] | None = Field(None, min_length=1, max_length=MOST_IDS)
    source: str | None = Field(None, max_length=100)

    @model_validator(mode="after")
    def _one_way(self) -> _Chosen:
        if (self.ids is None) == (self.source is None):
            raise ValueError("expected either `ids` or `source`")
        return self


class MirrorRedriveRequest(_Chosen):
    """The dead letters of the mirror to send again: `ids`, or all of a source."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source": "frontapp"}]})


class MirrorDiscardRequest(_Chosen):
    """The copies to end, with the reason: `ids`, or all dead ones of a source, with `waiting` also those that wait."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"source": "frontapp", "reason": "replayed by hand"}]},
    )
    waiting: StrictBool = False
    reason: str = Field(min_length=1, max_length=500)


class MirrorChange(BaseModel):
    """How many copies changed. One request changes at most 10,000, the oldest first."""

    model_config = example({"changed": 12})
    changed: int


router = APIRouter(tags=["mirror"])
_CHANGED = problems(400, 401, 403, 404, 409, 413, 422, 503)


@router.get(
    "/v1/mirror",
    summary="Show the mirrors",
    response_model=MirrorList,
    responses=problems(401, 403, 503),
)
async def show_mirrors(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """Show each source that has a mirror: its target, what waits, what is dead, and the last error."""
    return {"mirrors": await gateway.app.mirror.summary()}


@router.get(
    "/v1/mirror/copies",
    summary="List mirrored webhooks",
    response_model=MirrorCopyList,
    responses=problems(401, 403, 422, 503),
)
async def list_mirror_copies(
    gateway: GatewayDep,
    key: Reader,
    state: Annotated[
        State | Literal["any"],
        Query(description="Only copies in this state.", examples=["dead"]),
    ] = "dead",
    source: Annotated[
        str | None,
        Query(max_length=100, description="Only copies of this source.", examples=["frontapp"]),
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List mirrored webhooks, newest first, without their content."""
    await require_known_sources(gateway, [source])
    rows = await gateway.app.mirror.find(
        state=None if state == "any" else state,
        source=source,
        after=_position(cursor),
        limit=limit + 1,
    )
    following = str(rows[limit - 1].id) if len(rows) > limit else None
    return {"copies": rows[:limit], "next": following}


def _position(cursor: str | None) -> int | None:
    """Return the id in a cursor. Raises `Rejected` for any other text."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and 0 < int(cursor) < 2**63):
        raise Rejected("query.cursor: not a cursor", remedy="send `next` of the previous page")
    return int(cursor)


@router.post(
    "/v1/mirror/redrive",
    summary="Send dead letters of the mirror again",
    response_model=MirrorChange,
    responses=_CHANGED,
)
async def redrive_mirror(
    gateway: GatewayDep, key: Admin, body: MirrorRedriveRequest
) -> dict[str, int]:
    """Send dead copies again, in their order and before those that came after them and still wait."""
    ids = body.ids
    if body.source is not None:
        await require_known_sources(gateway, [body.source])
        ids = await gateway.app.mirror.ids_of(body.source, states=("dead",))
    return {"changed": await gateway.app.mirror.redrive(ids or [], actor=key.actor)}


@router.post(
    "/v1/mirror/discard",
    summary="Discard copies of the mirror",
    response_model=MirrorChange,
    responses=_CHANGED,
)
async def discard_mirror(
    gateway: GatewayDep, key: Admin, body: MirrorDiscardRequest
) -> dict[str, int]:
    """End copies for good and remove their content. Their events in Apex are not touched."""
    ids = body.ids
    if body.source is not None:
        await require_known_sources(gateway, [body.source])
        states = ("dead", "waiting") if body.waiting else ("dead",)
        ids = await gateway.app.mirror.ids_of(body.source, states=states)
    changed = await gateway.app.mirror.discard(ids or [], actor=key.actor, reason=body.reason)
    return {"changed": changed}
