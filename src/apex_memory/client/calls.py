"""The calls of the API: each is a value, which `Apex` sends in its own way and `AsyncApex` in another."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from apex_memory.client.results import (
    Document,
    DocumentPage,
    Entity,
    Event,
    EventPage,
    Freshness,
    OwnKey,
    Receipt,
    Result,
    SearchAnswer,
    SourceState,
    Status,
)

T = TypeVar("T")
R = TypeVar("R", bound=Result)

WAIT_MARGIN = 30.0  # seconds that a response may take beyond the time for which the gateway waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request, and how to read the body of its response."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    """Query parameters; those that are None are left out."""
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Whether sending it twice has the effect of sending it once."""
    timeout: float | None = None
    """Longest wait for the response in seconds; None for that of the client."""

    def request(self) -> dict[str, Any]:
        """Return the arguments of the HTTP client's `request` but method, path and time-out."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "params": params,
            "json": self.json,
            "content": self.content,
            "headers": dict(self.headers),
        }


def any_json(body: bytes) -> Any:
    """Return the JSON of a response; None for an empty one."""
    return json.loads(body) if body else None


def reader(model: type[R]) -> Callable[[bytes], R]:
    return model.model_validate_json


def search(
    query: str,
    *,
    limit: int,
    passages_per_document: int | None,
    sources: Sequence[str],
    kinds: Sequence[str],
    entities: Sequence[str],
    documents: Sequence[str],
    conversations: Sequence[str],
    people: Sequence[str],
    since: datetime | str | None,
    until: datetime | str | None,
    max_tokens: int | None,
    explain: bool,
    fresh: bool,
) -> Call[SearchAnswer]:
    filters = {
        "sources": list(sources),
        "kinds": list(kinds),
        "entities": list(entities),
        "documents": list(documents),
        "conversations": list(conversations),
        "people": list(people),
        "since": iso(since),
        "until": iso(until),
    }
    body = {
        "query": query,
        "limit": limit,
        "passages_per_document": passages_per_document,
        "filters": filters,
        "max_tokens": max_tokens,
    }
    if explain:  # a gateway of an earlier version refuses the field
        body["explain"] = True
    if fresh:
        body["fresh"] = True
    return Call(method="POST", path="/v1/search", json=body, read=reader(SearchAnswer))


def document(id: str, version: int | None) -> Call[Document]:
    path = f"/v1/documents/{segment(id)}"
    if version is not None:
        path += f"/versions/{version}"
    return Call(method="GET", path=path, read=reader(Document))


def documents(
    *, sources: Sequence[str], kinds: Sequence[str], deleted: bool, cursor: str | None, limit: int
) -> Call[DocumentPage]:
    params = {
        "source": list(sources),
        "kind": list(kinds),
        "deleted": deleted or None,
        "cursor": cursor,
        "limit": limit,
    }
    return Call(method="GET", path="/v1/documents", params=params, read=reader(DocumentPage))


def entity(ref: str) -> Call[Entity]:
    type_, _, key = ref.partition(":")
    path = f"/v1/entities/{segment(type_)}/{segment(key)}"
    return Call(method="GET", path=path, read=reader(Entity))


def timeline(ref: str, *, cursor: str | None, limit: int) -> Call[DocumentPage]:
    params = {"entity": ref, "cursor": cursor, "limit": limit}
    return Call(method="GET", path="/v1/timeline", params=params, read=reader(DocumentPage))


def event(id: str) -> Call[Event]:
    return Call(method="GET", path=f"/v1/events/{segment(id)}", read=reader(Event))


def events(
    *,
    source: str | None,
    state: str | None,
    since: datetime | str | None,
    cursor: str | None,
    limit: int,
) -> Call[EventPage]:
    params = {
        "source": source,
        "state": state,
        "since": iso(since),
        "cursor": cursor,
        "limit": limit,
    }
    return Call(method="GET", path="/v1/events", params=params, read=reader(EventPage))


def status() -> Call[Status]:
    return Call(method="GET", path="/v1/status", read=reader(Status))


def sources() -> Call[tuple[SourceState, ...]]:
    def read(body: bytes) -> tuple[SourceState, ...]:
        return tuple(map(SourceState.model_validate, json.loads(body)["sources"]))

    return Call(method="GET", path="/v1/sources", read=read)


def freshness(now: bool) -> Call[tuple[Freshness, ...]]:
    def read(body: bytes) -> tuple[Freshness, ...]:
        return tuple(map(Freshness.model_validate, json.loads(body)["sources"]))

    return Call(method="GET", path="/v1/freshness", params={"now": now}, read=read)


def own_key() -> Call[OwnKey]:
    return Call(method="GET", path="/v1/keys/own", read=reader(OwnKey))


def resolve(id: str) -> Call[dict[str, str]]:
    return Call(method="GET", path="/v1/resolve", params={"id": id}, read=any_json)


def remember(
    text: str,
    *,
    key: str | None,
    title: str | None,
    kind: str | None,
    occurred_at: datetime | str | None,
    version: int | None,
    metadata: Mapping[str, Any] | None,
    entities: Sequence[str],
    wait: float,
    idempotency_key: str | None,
) -> Call[Receipt]:
    fields = {
        "text": text,
        "key": key,
        "title": title,
        "kind": kind,
        "occurred_at": iso(occurred_at),
        "version": version,
        "metadata": metadata,
        "entities": list(entities) or None,
    }
    return Call(
        method="POST",
        path="/v1/documents",
        json={name: value for name, value in fields.items() if value is not None},
        params={"wait": "searchable", "timeout": wait} if wait else {},
        # With an id of its own a request that is repeated after a 503 does not store a second version.
        headers={"Idempotency-Key": idempotency_key or f"remember-{uuid.uuid4()}"},
        read=reader(Receipt),
        timeout=wait + WAIT_MARGIN if wait else None,
    )


def iso(at: datetime | str | None) -> str | None:
    """Return a time in ISO 8601. Raises `ValueError` for one without its zone."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError("a time needs its zone, such as datetime.now(UTC)")
        return at.isoformat()
    return at


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")
