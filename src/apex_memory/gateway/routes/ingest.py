"""The routes of the sources, derived from the source classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from apex_memory.config import Settings
from apex_memory.gateway.body_limit import limit_of
from apex_memory.gateway.ingest import MAX_WAIT_SECONDS, WAIT_SECONDS, ingest
from apex_memory.gateway.routes.events import StoreState
from apex_memory.gateway.routes.shared import DOCUMENT, EVENT, example, problems
from apex_memory.sources.base import Sample, Source

EXAMPLE_BYTES = 6_000  # longer samples would make the documentation unreadable

_LANDED = {
    "id": EVENT,
    "source": "frontapp",
    "event_id": "evt_55c8c149",
    "document_id": DOCUMENT,
    "duplicate": False,
}
_STORES = {
    "documents": {"state": "held", "at": "2026-03-03T15:15:00.412Z"},
    "graph": {"state": "held", "at": "2026-03-03T15:15:00.398Z"},
    "vectors": {"state": "held", "at": "2026-03-03T15:15:00.401Z"},
    "cache": {"state": "on_read", "at": None},
}


class LandedEvent(BaseModel):
    """A stored event. A redelivery gets the same ids and status as the first delivery, with `duplicate: true`."""

    model_config = example(_LANDED)
    id: UUID
    source: str
    event_id: str
    document_id: UUID
    duplicate: bool


class LandedResponse(BaseModel):
    """The events are stored durably. Processing follows."""

    model_config = example({"events": [_LANDED], "status_url": f"/v1/events/{EVENT}"})
    events: list[LandedEvent]
    status_url: str | None


_RECEIPT = {
    **_LANDED,
    "state": "done",
    "received_at": "2026-03-03T15:15:00.300Z",
    "ended_at": "2026-03-03T15:15:00.412Z",
    "stores": _STORES,
    "park_store": None,
    "last_error": None,
    "dead_letter": None,
    "degraded": {},
}


class EventReceipt(LandedEvent):
    """A stored event with its current state. `degraded` says what limits left out of its document, as `GET /v1/documents/{id}` does."""

    model_config = example(_RECEIPT)
    state: str | None
    received_at: datetime | None
    ended_at: datetime | None
    stores: dict[str, StoreState] | None
    park_store: str | None
    last_error: str | None
    dead_letter: int | None
    degraded: dict[str, dict[str, int]] | None


class Receipt(BaseModel):
    """The response to `?wait=searchable`. `searchable` is true when every event is done or superseded by a newer version."""

    model_config = example(
        {
            "events": [_RECEIPT],
            "status_url": f"/v1/events/{EVENT}",
            "searchable": True,
        }
    )
    events: list[EventReceipt]
    status_url: str | None
    searchable: bool


WAIT_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "wait",
        "in": "query",
        "description": "Respond when all events have finished, with a receipt.",
        "schema": {"type": "string", "enum": ["searchable"]},
        "example": "searchable",
    },
    {
        "name": "timeout",
        "in": "query",
        "description": "Longest wait in seconds. After that the response is 202 with `searchable: false`.",
        "schema": {
            "type": "number",
            "minimum": 0,
            "maximum": MAX_WAIT_SECONDS,
            "default": WAIT_SECONDS,
        },
        "example": 5,
    },
]
_PATH: dict[str, Any] = {
    "name": "path",
    "in": "query",
    "description": "With `wait`: `direct` has the gateway process the events itself, at once and without Temporal. Requests over 256 kB or 20 events, and those beyond two at a time, go the usual way.",
    "schema": {"type": "string", "enum": ["direct"]},
    "example": "direct",
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Id of this request, chosen by the caller. The same request again is a duplicate; another content under the same id is refused (422).",
    "schema": {"type": "string", "maxLength": 1000},
    "example": "mail-2026-03-03-0012",
}
LANDED_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Receipt,
        "description": "With `wait`: all events have finished. Also the response to a vendor's handshake.",
    },
    202: {
        "model": LandedResponse | Receipt,
        "description": "Stored. With `wait`: time ran out before all events had finished. A redelivery gets the same response.",
        "content": {
            "application/json": {
                "example": {"events": [_LANDED], "status_url": f"/v1/events/{EVENT}"}
            }
        },
    },
}


def source_router(sources: Mapping[str, Source], settings: Settings) -> APIRouter:
    """Return a router with the POST route of every source."""
    router = APIRouter()
    for source in sources.values():
        _add_route(router, source, limit_of(source, settings))
    return router


def _add_route(router: APIRouter, source: Source, limit: int) -> None:
    keyed = source.authenticated_by_key
    about = inspect.cleandoc(type(source).__doc__ or source.title)
    how = "an API key with scope `ingest`" if keyed else "the vendor's signature"
    router.add_api_route(
        source.route,
        _endpoint(source.name),
        methods=["POST"],
        name=f"receive_{source.name}",
        tags=["ingest" if keyed else "hooks"],
        summary=f"Send {source.title}" if keyed else f"Webhook of {source.title}",
        description=f"{about}\n\nAt most {limit:,} bytes. Requires {how}. Priority {source.priority.name}.",
        status_code=202,
        response_model=None,
        responses=LANDED_RESPONSES
        | problems(400, 401, *([403] if keyed else []), 408, 413, 422, 503, host=keyed),
        openapi_extra={
            "requestBody": _body(source.samples()),
            "parameters": [*WAIT_PARAMETERS, _PATH, *_parameters(source)],
            **({"security": [{"bearer": []}, {"header": []}]} if keyed else {}),
        },
    )


def _endpoint(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def receive(request: Request) -> Response:
        return await ingest(request, name)

    return receive


def _parameters(source: Source) -> list[dict[str, Any]]:
    """Return the source's own query parameters: those that its samples use."""
    if not source.authenticated_by_key:
        return []
    query: dict[str, str] = {}
    for sample in source.samples():
        query = {**sample.query, **query}
    own = [
        {
            "name": name,
            "in": "query",
            "description": "See the description of this route.",
            "schema": {"type": "string"},
            "example": value,
        }
        for name, value in query.items()
    ]
    return [*own, _IDEMPOTENCY]


def _body(samples: Iterable[Sample]) -> dict[str, Any]:
    """Return the documentation of the request body, with the source's samples as examples."""
    content: dict[str, Any] = {}
    for sample in samples:
        kind = sample.content_type.partition(";")[0]
        entry = content.setdefault(kind, {"schema": _schema(kind)})
        if kind.startswith("multipart/"):
            entry["example"] = {"file": "(the bytes of a file)"}
        elif len(sample.body) <= EXAMPLE_BYTES:
            entry.setdefault("examples", {})[sample.name] = {
                "value": _example_of(kind, sample.body)
            }
    return {"required": True, "content": content}


def _schema(kind: str) -> dict[str, Any]:
    if kind == "application/json":
        return {}  # any JSON: the source checks it, and the samples show its shape
    if kind.startswith("multipart/"):
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        return {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {"type": "string", "format": "binary"}


def _example_of(kind: str, body: bytes) -> Any:
    return json.loads(body) if kind == "application/json" else body.decode("utf-8", "replace")
