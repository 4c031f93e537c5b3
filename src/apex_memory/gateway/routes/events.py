"""Events: their state, and their payloads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from apex_memory.errors import Rejected
from apex_memory.gateway.dependencies import Admin, GatewayDep, Reader, require_known_sources
from apex_memory.gateway.read_models.events import Events
from apex_memory.gateway.routes.shared import (
    DOCUMENT,
    EVENT,
    IsoDateTime,
    RequestBody,
    example,
    problems,
)

State = Literal["received", "prepared", "staged", "done", "superseded", "parked", "dead"]
EventId = Annotated[UUID, Path(description="The event's id.", examples=[EVENT])]
Limit = Annotated[
    int, Query(ge=1, le=200, description="Most items in the response.", examples=[50])
]


class StoreState(BaseModel):
    """What a store holds of an event: `held`, `writing`, `superseded`, `removed` or `none`; the cache is filled `on_read`."""

    model_config = example({"state": "held", "at": "2026-03-03T15:15:00.401Z"})
    state: Literal["none", "writing", "held", "superseded", "removed", "on_read"]
    at: datetime | None


_EVENT: dict[str, Any] = {
    "id": EVENT,
    "source": "frontapp",
    "event_id": "evt_55c8c149",
    "document_id": DOCUMENT,
    "document_key": "msg_1q15qmtq",
    "priority": 0,
    "version": 1772550900000000,
    "content_type": "application/json",
    "kind": "email",
    "title": "Re: ETA for SHP-100045",
    "deletion": False,
    "payload_bytes": 1204,
    "state": "staged",
    "occurred_at": "2026-03-03T15:15:00Z",
    "received_at": "2026-03-03T15:15:00.300Z",
    "prepared_at": "2026-03-03T15:15:00.352Z",
    "staged_at": "2026-03-03T15:15:00.360Z",
    "ended_at": None,
    "owner": "8f7c7a52-5d3b-4a53-9d57-3d1c1d9b0f6e",
    "deadline": "2026-03-03T15:16:00.310Z",
    "attempts": 0,
    "last_error": None,
    "park_store": None,
    "dead_letter": None,
    "remedy": None,
    "degraded": {},
    "stores": {
        "documents": {"state": "writing", "at": None},
        "graph": {"state": "writing", "at": None},
        "vectors": {"state": "writing", "at": None},
        "cache": {"state": "on_read", "at": None},
    },
    "path": "temporal",
    "build": "0.2.0-4f1c09aa2b",
    "workflow_id": "drain:frontapp",
    "run_id": "0197c2a4-9a41-7d0e-b9c4-0d6a3c1f2b10",
    "workflow_url": "http://127.0.0.1:8461/namespaces/apex/workflows/drain%3Afrontapp/0197c2a4-9a41-7d0e-b9c4-0d6a3c1f2b10/history",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "trace_url": "http://127.0.0.1:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736",
}


class EventView(BaseModel):
    """One event, from `received` to a final state (`done`, `superseded`, `dead`).

    Until then, `owner` is the batch that holds the event, and `deadline` is the latest time at which it is
    processed again: the end of its owner's lease, or the time of the next attempt. `path` and `build` are those that
    processed the event last, null until it is claimed. `workflow_url` is the history of the workflow run that processed
    it, if a Temporal UI is configured. `trace_id` is the trace of its way through Apex, null if none is recorded, and
    `trace_url` its page in the trace viewer that the setting `trace_url` configures. `kind` and `title` are known once it is
    prepared; the title of a deleted document is shown to admin keys alone. `deletion` is true for an event that removes its document. `payload_bytes` is null once the payload is
    older than `payload_days`. `degraded` says what limits left out of the document, as `GET /v1/documents/{id}` does.
    """

    model_config = example(_EVENT)
    id: UUID
    source: str
    event_id: str
    document_id: UUID
    document_key: str
    priority: int
    version: int
    content_type: str
    kind: str | None
    title: str | None
    deletion: bool
    payload_bytes: int | None
    state: State
    occurred_at: datetime
    received_at: datetime
    prepared_at: datetime | None
    staged_at: datetime | None
    ended_at: datetime | None
    owner: UUID | None
    deadline: datetime | None
    attempts: int
    last_error: str | None
    park_store: str | None
    dead_letter: int | None
    remedy: str | None
    degraded: dict[str, dict[str, int]]
    stores: dict[str, StoreState]
    path: Literal["temporal", "direct"] | None
    build: str | None
    workflow_id: str | None
    run_id: str | None
    workflow_url: str | None
    trace_id: str | None
    trace_url: str | None


class EventPage(BaseModel):
    """Events, newest first. `next` is the `cursor` of the following page, null on the last.

    A page of events in a rare state, or since a time, may have fewer than `limit` events, or none, before the last.
    """

    model_config = example({"events": [_EVENT], "next": "10412"})
    events: list[EventView]
    next: str | None


class EventIds(RequestBody):
    """The events to look up, by id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [EVENT]}]})
    ids: list[UUID] = Field(min_length=1, max_length=500)


class EventStates(BaseModel):
    """State by event id. Unknown ids are left out."""

    model_config = example({"states": {EVENT: "done"}})
    states: dict[UUID, State]


class Resolved(BaseModel):
    """An event, and the document that it changes."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={"examples": [{"event": EVENT, "document": DOCUMENT}]},
    )
    event: UUID
    document: UUID


router = APIRouter(tags=["events"])


@router.get(
    "/v1/events",
    summary="List events",
    response_model=EventPage,
    responses=problems(401, 403, 422, 503),
)
async def list_events(
    gateway: GatewayDep,
    key: Reader,
    source: Annotated[
        str | None,
        Query(max_length=100, description="Only events of this source.", examples=["frontapp"]),
    ] = None,
    state: Annotated[
        State | None, Query(description="Only events in this state.", examples=["parked"])
    ] = None,
    since: Annotated[
        IsoDateTime | None,
        Query(
            description="Only events received at or after this time.",
            examples=["2026-03-03T00:00:00Z"],
        ),
    ] = None,
    id: Annotated[
        list[UUID] | None,
        Query(
            max_length=100, description="Only these events; may be repeated.", examples=[[EVENT]]
        ),
    ] = None,
    cursor: Annotated[
        str | None, Query(description="`next` of the previous page.", examples=["10412"])
    ] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List events, newest first, each with its state, owner, deadline and what each store holds."""
    await require_known_sources(gateway, [source])
    events, after = await Events(gateway.app.db, gateway.app.settings).find(
        source=source,
        state=state,
        since=since,
        ids=id or (),
        after=position(cursor),
        limit=limit,
        of_deleted=key.may("admin"),
    )
    return {"events": events, "next": None if after is None else str(after)}


@router.post(
    "/v1/events/states",
    summary="Show the states of many events",
    response_model=EventStates,
    responses=problems(400, 401, 403, 413, 422, 503),
)
async def list_states(gateway: GatewayDep, key: Reader, body: EventIds) -> dict[str, Any]:
    """Show the states of up to 500 events: cheap enough to poll."""
    return {"states": await Events(gateway.app.db, gateway.app.settings).states(body.ids)}


@router.get(
    "/v1/resolve",
    summary="Resolve an id",
    response_model=Resolved,
    responses=problems(401, 403, 404, 422, 503),
)
async def resolve_id(
    gateway: GatewayDep,
    key: Reader,
    id: Annotated[
        str,
        Query(
            min_length=1,
            max_length=1_000,
            description="Id of an event or a document, its first 8 or more characters, a source's own id of an event or record, or a document's key.",
            examples=[EVENT[:8]],
        ),
    ],
) -> Any:
    """Return the event and the document that an id names. For a document, the event is that of its newest version."""
    key_prefixes = {name: source.own_key_prefixes() for name, source in gateway.app.sources.items()}
    return await Events(gateway.app.db, gateway.app.settings).resolve(id, key_prefixes)


@router.get(
    "/v1/events/{id:uuid}",
    summary="Show an event",
    response_model=EventView,
    responses=problems(401, 403, 404, 422, 503),
)
async def show_event(gateway: GatewayDep, key: Reader, id: EventId) -> dict[str, Any]:
    """Show the event's state, owner and deadline, and what each store holds of it."""
    return await Events(gateway.app.db, gateway.app.settings).show(id, of_deleted=key.may("admin"))


@router.get(
    "/v1/events/{id:uuid}/payload",
    summary="Download a payload",
    response_class=Response,
    responses=problems(401, 403, 404, 422, 503)
    | {
        200: {
            "description": "The payload, byte for byte. `Apex-Content-Type` is its content type.",
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "example": '{"type": "inbound_received", "id": "evt_55c8c149"}',
                }
            },
        }
    },
)
async def show_payload(
    gateway: GatewayDep,
    key: Admin,
    id: EventId,
    first: Annotated[
        int | None,
        Query(ge=1, description="Only so many bytes from its beginning.", examples=[500]),
    ] = None,
) -> Response:
    """Download the raw payload. It may hold personal data, so it needs an admin key."""
    event = await gateway.app.payloads.load_one(await gateway.app.inbox.event(id))
    kind = event.content_type.encode("ascii", "replace").decode()
    return Response(
        event.payload[:first],
        # Never a type that a browser renders: the payload comes from outside.
        media_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{id}"',
            "Apex-Content-Type": "".join(c for c in kind if c.isprintable())[:200],
        },
    )


def position(cursor: str | None) -> int | None:
    """Return the position in a cursor. Raises `Rejected` for anything that is no cursor of this API."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= 18):
        raise Rejected("query.cursor: not a cursor", remedy="send `next` of the previous page")
    return int(cursor)
