"""Ingestion: the one handler behind every source's route verifies, lands, wakes the worker and responds."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response
from opentelemetry.propagate import extract

from apex_memory.errors import ApexError, Rejected
from apex_memory.gateway.dependencies import Gateway, gateway_of, presented
from apex_memory.gateway.errors import Malformed
from apex_memory.gateway.read_models.events import FINAL, Events
from apex_memory.model import MALFORMED, TOMBSTONE, Document, Event, LandResult, now
from apex_memory.sources.base import InboundRequest, PulledSource, Received, Source
from apex_memory.sources.pages import ChangeHint
from apex_memory.telemetry import logger, trace_carrier, tracer

THREAD_BYTES = 256_000  # larger bodies are parsed in a thread, so that other requests do not wait
WAIT_SECONDS = 10.0
MAX_WAIT_SECONDS = 60.0
SHOWN_IDS = 20  # most event ids in a status URL
OWN_PARAMETERS = ("wait", "timeout")  # the gateway's, not passed on to the source


async def ingest(request: Request, name: str) -> Response:
    """Handle a POST to the route of the source `name`."""
    gateway = gateway_of(request)
    source = gateway.app.sources[name]
    caller = ""
    if source.authenticated_by_key:
        caller = (await gateway.keys.check(presented(request), "ingest")).name
    seconds = requested_wait(request)
    body = await request.body()
    parent = extract(request.headers) if source.authenticated_by_key else None
    with tracer.start_as_current_span(f"receive {name}", context=parent):
        received = await _receive(gateway, source, request, body, caller)
        if not caller:
            landed = await _land_webhook(gateway, source, received.events)
        elif "idempotency-key" in request.headers:
            landed = await _land_once(gateway, received.events)
        else:
            landed = await land(gateway, received.events)
        await store_change_hints(gateway, name, received.change_hints)
    if reply := received.reply:
        return Response(reply.body, status_code=reply.status, media_type=reply.content_type)
    return await respond(gateway, landed, seconds)


async def store_change_hints(
    gateway: Gateway, source: str, change_hints: Sequence[ChangeHint]
) -> None:
    """Store the change hints of a vendor, and request a pull that fetches the changes."""
    if change_hints:
        await gateway.app.fetcher.pulls.note(source, change_hints)
        gateway.waker.pull(source)


async def _receive(
    gateway: Gateway, source: Source, request: Request, body: bytes, caller: str
) -> Received:
    query = {key: value for key, value in request.query_params.items() if key not in OWN_PARAMETERS}
    inbound = InboundRequest(
        body=body,
        headers=dict(request.headers),
        query=query,
        received_at=now(),
        caller=caller,
    )
    if isinstance(source, PulledSource):
        await source.fetch_verification_data(inbound, gateway.app.fetcher.clients[source.name])
    try:
        if len(body) > THREAD_BYTES:
            return await asyncio.to_thread(source.receive, inbound)
        return source.receive(inbound)
    except Rejected as error:
        if inbound.content_type == "application/json" and await asyncio.to_thread(
            _is_invalid_json, body
        ):
            raise Malformed(str(error), remedy=error.remedy) from None
        raise


def _is_invalid_json(body: bytes) -> bool:
    try:
        json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


async def _land_webhook(
    gateway: Gateway, source: Source, events: Sequence[Event]
) -> list[LandResult]:
    """Land events that a vendor sent, so that none is dropped for another one that the vendor gave the same id.

    A vendor sends an event again until it is acknowledged: an id that exists is a repetition. But where its
    document is another one, it lands under an id of its own, which is the same for its own repetitions.
    """
    landed = await land(gateway, events)
    repeated = {n: events[n] for n, result in enumerate(landed) if result.duplicate}
    if not repeated:
        return landed
    ids = [event.event_id for event in repeated.values()]
    kept = await gateway.app.inbox.kept_events(source.name, ids)
    changed = await asyncio.to_thread(_with_other_content, source, repeated, kept)
    results = await land(gateway, list(changed.values())) if changed else []
    for n, result in zip(changed, results, strict=True):
        landed[n] = result
        if not result.duplicate:
            logger(component="gateway").warning(
                "a vendor gave other content the id of an earlier event; both are kept",
                source=source.name,
                event_id=result.event_id,
            )
    return landed


def _with_other_content(
    source: Source, repeated: Mapping[int, Event], kept: Mapping[str, Event]
) -> dict[int, Event]:
    """Return the events whose document differs from that of the kept event of their id, under ids of their own."""
    changed: dict[int, Event] = {}
    for n, event in repeated.items():
        before = kept.get(event.event_id)
        if before is None or before.payload == event.payload:
            continue
        if _document(source, before) != _document(source, event):
            digest = hashlib.sha256(event.payload).hexdigest()[:16]
            changed[n] = replace(event, event_id=f"{event.event_id}#{digest}")
    return changed


def _document(source: Source, event: Event) -> Document | bytes:
    """Return the document of an event; the payload of an event that has none."""
    if event.content_type in (TOMBSTONE, MALFORMED):
        return event.payload
    try:
        return source.document(event)
    except ApexError:
        return event.payload


async def _land_once(gateway: Gateway, events: Sequence[Event]) -> list[LandResult]:
    """Land events that an `Idempotency-Key` names. Raises `Rejected` if it named another content before.

    A repetition lands nothing and gets the receipt of the first request. Other content would be dropped as a
    duplicate, so it is refused (draft-ietf-httpapi-idempotency-key-header, section 2.7).
    """
    repeated = await _check_repetition(gateway, events)
    landed = await land(gateway, events)
    if not repeated and any(item.duplicate for item in landed):
        await _check_repetition(gateway, events)  # another request with this key landed meanwhile
    return landed


async def _check_repetition(gateway: Gateway, events: Sequence[Event]) -> bool:
    """Return whether these very events exist already. Raises `Rejected` if other ones do under their names."""
    if not events:
        return False
    digests = {event.event_id: hashlib.sha256(event.payload).digest() for event in events}
    known = await gateway.app.inbox.payload_digests(events[0].source, list(digests))
    if not known:
        return False
    if known != digests:
        raise Rejected(
            "Idempotency-Key: it was used for another request, whose content differs",
            remedy="send a new Idempotency-Key with new content; nothing of this request was kept",
        )
    return True


async def land(gateway: Gateway, events: Sequence[Event]) -> list[LandResult]:
    """Commit events and wake the workers of their sources. Raises `RetryLater` under overload, `Unavailable` without PostgreSQL."""
    carrier = trace_carrier().get("traceparent")
    if carrier:
        events = [_with_trace(event, carrier) for event in events]
    landed = await gateway.group_commit.land(events)
    for source in {item.source for item in landed}:
        gateway.waker.wake(source)
    return landed


def _with_trace(event: Event, carrier: str) -> Event:
    return replace(event, trace_parent=event.trace_parent or carrier)


def requested_wait(request: Request) -> float | None:
    """Return how many seconds the response may wait for its events, None without `?wait`. Raises `Rejected` for other values."""
    query = request.query_params
    wait = query.get("wait")
    if wait not in (None, "searchable"):
        raise Rejected("wait: the only value is `searchable`", remedy="send `?wait=searchable`")
    try:
        seconds = float(query.get("timeout", WAIT_SECONDS))
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise Rejected(
            f"timeout: expected 0 to {MAX_WAIT_SECONDS:.0f} seconds", remedy="correct timeout"
        )
    return seconds if wait else None


async def respond(
    gateway: Gateway, landed: Sequence[LandResult], seconds: float | None
) -> Response:
    """Return 202 at once, or, where the request waits, the receipt: 200 when all events have finished, 202 when time ran out first."""
    if seconds is None:
        return _json(202, {"events": list(map(_landed, landed)), "status_url": _link(landed)})
    ids = [item.id for item in landed]
    await gateway.completion.until_ended(ids, seconds)
    return await receipt(gateway, landed)


async def receipt(gateway: Gateway, landed: Sequence[LandResult]) -> Response:
    """Return the current state of landed events: 200 when all have finished, 202 otherwise."""
    shown = await Events(gateway.app.db, gateway.app.settings).shown([item.id for item in landed])
    events = [_landed(item) | _progress(shown.get(item.id, {})) for item in landed]
    states = [event["state"] for event in events]
    # A superseded version counts: its newer version is the one that is searchable.
    searchable = all(state in ("done", "superseded") for state in states)
    status = 200 if all(state in FINAL for state in states) else 202
    body = {"events": events, "status_url": _link(landed), "searchable": searchable}
    return _json(status, body)


def _landed(item: LandResult) -> dict[str, Any]:
    return {
        "id": item.id,
        "source": item.source,
        "event_id": item.event_id,
        "document_id": item.doc_id,
        "duplicate": item.duplicate,
    }


def _progress(shown: dict[str, Any]) -> dict[str, Any]:
    names = (
        "state",
        "received_at",
        "ended_at",
        "stores",
        "park_store",
        "last_error",
        "dead_letter",
        "degraded",
    )
    return {name: shown.get(name) for name in names}


def _link(landed: Sequence[LandResult]) -> str | None:
    ids: list[UUID] = list(dict.fromkeys(item.id for item in landed))
    if not ids:
        return None
    if len(ids) == 1:
        return f"/v1/events/{ids[0]}"
    if len(ids) <= SHOWN_IDS:
        return "/v1/events?" + "&".join(f"id={id}" for id in ids)
    return f"/v1/events?source={landed[0].source}"


def _json(status: int, body: Any) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
