"""The way in: one handler for every source's route. Verify, land, wake, answer; nothing else is needed to say 202."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response
from opentelemetry.propagate import extract

from apex_memory.errors import Rejected
from apex_memory.gateway.dependencies import Gateway, here, presented
from apex_memory.gateway.errors import Malformed
from apex_memory.gateway.read_models.events import FINAL, Events
from apex_memory.model import Event, LandResult, now
from apex_memory.sources.base import InboundRequest, PulledSource, Received, Source
from apex_memory.sources.pages import ChangeHint
from apex_memory.telemetry import trace_carrier, tracer

THREAD_BYTES = 256_000  # parsing more than this would hold up other requests
WAIT_SECONDS = 10.0
MAX_WAIT_SECONDS = 60.0
SHOWN_IDS = 20  # most ids in a status link
OUR_QUERY = ("wait", "timeout")


async def ingest(request: Request, name: str) -> Response:
    """Answer a POST to a source's route."""
    gateway = here(request)
    source = gateway.app.sources[name]
    if source.authenticated_by_key:
        await gateway.keys.check(presented(request), "ingest")
    seconds = wait_asked(request)
    body = await request.body()
    parent = extract(request.headers) if source.authenticated_by_key else None
    with tracer.start_as_current_span(f"receive {name}", context=parent):
        received = await _receive(gateway, source, request, body)
        landed = await land(gateway, received.events)
        await note(gateway, name, received.change_hints)
    if reply := received.reply:
        return Response(reply.body, status_code=reply.status, media_type=reply.content_type)
    return await answer(gateway, landed, seconds)


async def note(gateway: Gateway, source: str, change_hints: Sequence[ChangeHint]) -> None:
    """Keep what a vendor says has changed, and ask for a pull that fetches it."""
    if change_hints:
        await gateway.app.fetcher.pulls.note(source, change_hints)
        gateway.waker.pull(source)


async def _receive(gateway: Gateway, source: Source, request: Request, body: bytes) -> Received:
    query = {key: value for key, value in request.query_params.items() if key not in OUR_QUERY}
    asked = InboundRequest(body=body, headers=dict(request.headers), query=query, received_at=now())
    if isinstance(source, PulledSource):
        await source.fetch_verification_data(asked, gateway.app.fetcher.clients[source.name])
    try:
        if len(body) > THREAD_BYTES:
            return await asyncio.to_thread(source.receive, asked)
        return source.receive(asked)
    except Rejected as error:
        if asked.content_type == "application/json" and await asyncio.to_thread(_no_json, body):
            raise Malformed(str(error), remedy=error.remedy) from None
        raise


def _no_json(body: bytes) -> bool:
    try:
        json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


async def land(gateway: Gateway, events: Sequence[Event]) -> list[LandResult]:
    """Commit events and wake their workers. `RetryLater` when too many land at once."""
    carrier = trace_carrier().get("traceparent")
    if carrier:
        events = [event_traced(event, carrier) for event in events]
    landed = await gateway.landings.land(events)
    for source in {item.source for item in landed}:
        gateway.waker.wake(source)
    return landed


def event_traced(event: Event, carrier: str) -> Event:
    return replace(event, trace_parent=event.trace_parent or carrier)


def wait_asked(request: Request) -> float | None:
    """Seconds to wait for the end of the events; None if not asked for. `Rejected` for other values."""
    query = request.query_params
    wait = query.get("wait")
    if wait not in (None, "searchable"):
        raise Rejected("wait: only `searchable` is known", remedy="send `?wait=searchable`")
    try:
        seconds = float(query.get("timeout", WAIT_SECONDS))
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise Rejected(
            f"timeout: expected 0 to {MAX_WAIT_SECONDS:.0f} seconds", remedy="correct timeout"
        )
    return seconds if wait else None


async def answer(gateway: Gateway, landed: Sequence[LandResult], seconds: float | None) -> Response:
    """202 at once, or the receipt: 200 when all events are at an end, 202 when time was up before."""
    if seconds is None:
        return _json(202, {"events": list(map(_landed, landed)), "status_url": _link(landed)})
    ids = [item.id for item in landed]
    await gateway.waiting.until_ended(ids, seconds)
    return await receipt(gateway, landed)


async def receipt(gateway: Gateway, landed: Sequence[LandResult]) -> Response:
    shown = await Events(gateway.app.db, gateway.app.settings).shown([item.id for item in landed])
    events = [_landed(item) | _progress(shown.get(item.id, {})) for item in landed]
    states = [event["state"] for event in events]
    # A version that is superseded by a newer one is as searchable as it will ever be.
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
