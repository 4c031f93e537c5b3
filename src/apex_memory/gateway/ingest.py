"""Ingestion: the one handler behind every source's route verifies, lands, wakes the worker and responds."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response

from apex_memory.errors import ApexError, Conflict, Rejected, Unavailable
from apex_memory.fetching.pulls import insert_hints
from apex_memory.gateway.dependencies import Gateway, gateway_of, presented
from apex_memory.gateway.errors import Malformed
from apex_memory.gateway.group_commit import Land
from apex_memory.gateway.read_models.events import FINAL, Events
from apex_memory.gateway.request_span import request_span
from apex_memory.mirror.copies import MirrorCopy
from apex_memory.mirror.copies import insert as insert_copies
from apex_memory.model import Event, LandResult, now
from apex_memory.sources.base import InboundRequest, PulledSource, Received, Source
from apex_memory.sources.pages import ChangeHint
from apex_memory.telemetry import logger, logs, traces

THREAD_BYTES = 16_000  # larger bodies are read in a thread, so that other requests do not wait
READ_SECONDS = 30.0  # for the body of one request, once it is here
WAIT_SECONDS = 10.0
MAX_WAIT_SECONDS = 60.0
SHOWN_IDS = 20  # most event ids in a status URL
OWN_PARAMETERS = ("wait", "timeout", "path")  # the gateway's, not passed on to the source
DIRECT_EVENTS = 20  # most events of a request that the gateway processes itself
DIRECT_BYTES = 256_000  # most bytes of their payloads, so that others' requests hardly wait


async def ingest(request: Request, name: str) -> Response:
    """Handle a POST to the route of the source `name`."""
    gateway = gateway_of(request)
    source = gateway.app.sources[name]
    caller = ""
    if source.authenticated_by_key:
        caller = (await gateway.keys.check(presented(request), "ingest")).name
    seconds = requested_wait(request)
    direct = requested_direct(request, seconds)
    body = await request.body()
    trusted = source.authenticated_by_key
    with request_span(request, f"receive {name}", trusted=trusted, source=name):
        received = await _receive(gateway, source, request, body, caller)
        if not caller:
            landed = await _accept_webhook(gateway, source, request, body, received)
        elif "idempotency-key" in request.headers:
            landed = await _land_once(gateway, received.events)
        else:
            landed = await commit(gateway, received.events)
        logs.bind_events(item.id for item in landed)
        if caller:
            await store_change_hints(gateway, name, received.change_hints)
        if direct:
            await process(gateway, name, landed, len(body), seconds or 0)
        else:
            wake_workers(gateway, landed)
    if reply := received.reply:
        return Response(reply.body, status_code=reply.status, media_type=reply.content_type)
    return await respond(gateway, landed, seconds)


async def _accept_webhook(
    gateway: Gateway, source: Source, request: Request, body: bytes, received: Received
) -> list[LandResult]:
    """Store all that a verified webhook brings: its events, its change hints, and its copy for the mirror.

    The copy is in the last transaction of them, so that an accepted webhook has one, and a refused one has none.
    """
    copy = None
    handshake = received.reply and not received.events and not received.change_hints
    if source.settings.mirror_url and not handshake:
        copy = gateway.app.mirror.copy_of(
            source,
            query=request.scope["query_string"],
            headers=request.headers.raw,
            body=body,
            events=received.events,
        )
    if not received.change_hints:
        return await _land_webhook(gateway, source, received.events, copy)
    landed = await _land_webhook(gateway, source, received.events)
    await store_change_hints(gateway, source.name, received.change_hints, copy)
    return landed


async def store_change_hints(
    gateway: Gateway,
    source: str,
    change_hints: Sequence[ChangeHint],
    copy: MirrorCopy | None = None,
) -> None:
    """Store the change hints of a vendor with the webhook's copy, and request a pull that fetches the changes.

    Raises `NoWrites` when the disk of PostgreSQL is nearly full.
    """
    if not change_hints:
        return
    await gateway.app.payloads.get_ready()
    if copy is None:
        await gateway.app.fetcher.pulls.note(source, change_hints)
    else:
        async with gateway.app.db.transaction() as connection:
            await insert_hints(connection, source, change_hints)
            await insert_copies(connection, [copy])
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
        metadata_max_bytes=gateway.app.settings.metadata_max_bytes,
    )
    if isinstance(source, PulledSource):
        await source.fetch_verification_data(inbound, gateway.app.fetcher.clients[source.name])
    try:
        if len(body) > THREAD_BYTES:
            return await _in_thread(gateway, partial(source.receive, inbound))
        return source.receive(inbound)
    except Rejected as error:
        if inbound.content_type == "application/json" and await asyncio.to_thread(
            _is_invalid_json, body
        ):
            raise Malformed(str(error), remedy=error.remedy) from None
        raise


async def _in_thread(gateway: Gateway, read: Callable[[], Received]) -> Received:
    """Return what `read` returns. Raises `Unavailable` when it takes too long: nothing of the request has landed then."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await gateway.reading.run(read)
    except TimeoutError:
        raise Unavailable(
            "gateway",
            f"reading the request took longer than {READ_SECONDS:g} s",
            remedy="send it again later, in smaller parts",
        ) from None


def _is_invalid_json(body: bytes) -> bool:
    try:
        json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


async def _land_webhook(
    gateway: Gateway, source: Source, events: Sequence[Event], copy: MirrorCopy | None = None
) -> list[LandResult]:
    """Land events that a vendor sent, with other content under the ids of earlier events as well (`inbox.reused_ids`)."""
    landed = await commit(gateway, events, copy)
    if not any(result.duplicate for result in landed):
        return landed
    changed = await gateway.app.inbox.with_own_ids(source.name, events, landed, source.document)
    results = await commit(gateway, list(changed.values())) if changed else []
    for n, result in zip(changed, results, strict=True):
        landed[n] = result
    return landed


async def _land_once(gateway: Gateway, events: Sequence[Event]) -> list[LandResult]:
    """Land events that an `Idempotency-Key` names. Raises `Rejected` if it named another content before.

    A repetition lands nothing and gets the receipt of the first request. Other content would be dropped as a
    duplicate, so it is refused (draft-ietf-httpapi-idempotency-key-header, section 2.7). Another request with this key
    may land between the check and the commit: an event alone is then a duplicate, and several land together or not at all.
    """
    repeated = await _check_repetition(gateway, events)
    if len(events) > 1:
        together = partial(gateway.app.inbox.land_together, digests=_digests(events))
        try:
            return await commit(gateway, events, alone=together)
        except Conflict:
            raise _reused_key() from None
    landed = await commit(gateway, events)
    if not repeated and any(item.duplicate for item in landed):
        await _check_repetition(gateway, events)
    return landed


async def _check_repetition(gateway: Gateway, events: Sequence[Event]) -> bool:
    """Return whether these very events exist already. Raises `Rejected` if other ones do under their names."""
    if not events:
        return False
    digests = _digests(events)
    same = await gateway.app.inbox.same_payloads(events[0].source, digests)
    if not same:
        return False
    if len(same) < len(digests) or not all(same.values()):
        raise _reused_key()
    return True


def _digests(events: Sequence[Event]) -> dict[str, bytes]:
    return {event.event_id: hashlib.sha256(event.payload).digest() for event in events}


def _reused_key() -> Rejected:
    return Rejected(
        "Idempotency-Key: it was used for another request, whose content differs",
        remedy="send a new Idempotency-Key with new content; nothing of this request was kept",
    )


async def land(gateway: Gateway, events: Sequence[Event]) -> list[LandResult]:
    """Commit events and wake the workers of their sources; see `commit`."""
    landed = await commit(gateway, events)
    wake_workers(gateway, landed)
    return landed


async def commit(
    gateway: Gateway,
    events: Sequence[Event],
    copy: MirrorCopy | None = None,
    *,
    alone: Land | None = None,
) -> list[LandResult]:
    """Commit events; wake nobody. `alone` is that of `GroupCommitter.land`. Raises `RetryLater` under overload, `Unavailable` without PostgreSQL, and `NoWrites`
    when its disk is nearly full.

    Large payloads are written to the object store first; without it they are refused with `Unavailable`, and events
    with small ones land.
    """
    if not events and copy is None:
        return []
    carrier = traces.trace_carrier()
    if carrier:
        events = [_with_trace(event, carrier) for event in events]
    with traces.span("land", events=len(events)):
        events = await gateway.app.payloads.offload(events)
        return await gateway.group_commit.land(events, copy, alone=alone)


def wake_workers(gateway: Gateway, landed: Sequence[LandResult]) -> None:
    """Wake the workers of the events' sources."""
    for source in {item.source for item in landed}:
        gateway.waker.wake(source)


async def process(
    gateway: Gateway, source: str, landed: Sequence[LandResult], size: int, seconds: float
) -> None:
    """Process events that have just landed from inbox to memory in this process, at once and without Temporal.

    Wakes the workers instead when the request is large, or when other requests are processed: then they go the usual
    way, as events do that a step postponed. `size` is the length of the request's body. Waits up to `seconds`; what
    takes longer continues. Never raises: the events are durable, and the response shows their state.
    """
    ids = [item.id for item in landed if not item.duplicate]
    if not ids:
        return
    if len(ids) > DIRECT_EVENTS or size > DIRECT_BYTES or gateway.processing.locked():
        gateway.waker.wake(source)
        return
    # A task of its own: a caller that hangs up must not leave events leased to nobody.
    task = asyncio.create_task(_process(gateway, source, ids), name=f"process {source}")
    gateway.tasks.add(task)
    task.add_done_callback(gateway.tasks.discard)
    await asyncio.wait([task], timeout=seconds)


async def _process(gateway: Gateway, source: str, ids: Sequence[UUID]) -> None:
    claimed: Sequence[UUID] = ()
    try:
        async with gateway.processing:
            claimed = await gateway.app.direct.process(source, ids)
    except ApexError as error:
        logger(component="gateway").warning(
            "events not processed directly; they go the usual way",
            source=source,
            reason=str(error)[:200],
        )
    finally:
        if len(claimed) < len(ids):
            gateway.waker.wake(source)


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


def requested_direct(request: Request, seconds: float | None) -> bool:
    """Return whether the request asks for the direct path. Raises `Rejected` for other paths, and for one without `wait`."""
    path = request.query_params.get("path")
    if path is None:
        return False
    if path != "direct":
        raise Rejected("path: the only value is `direct`", remedy="send `?path=direct`")
    if seconds is None:
        raise Rejected(
            "path: only with `wait`", remedy="send `?path=direct&wait=searchable`, or neither"
        )
    return True


async def respond(
    gateway: Gateway, landed: Sequence[LandResult], seconds: float | None
) -> Response:
    """Return 202 at once, or, where the request waits, the receipt: 200 when all events have finished, 202 when time ran out first."""
    if seconds is None:
        return _json(202, {"events": list(map(_landed, landed)), "status_url": _link(landed)})
    ids = [item.id for item in landed]
    until = monotonic() + seconds
    await gateway.completion.until_ended(ids, seconds)
    standby = gateway.app.standby
    shown = standby is None or await standby.caught_up(max(0.0, until - monotonic()))
    return await receipt(gateway, landed, shown=shown)


async def receipt(
    gateway: Gateway, landed: Sequence[LandResult], *, shown: bool = True
) -> Response:
    """Return the current state of landed events: 200 when all have finished and searches show it, 202 otherwise.

    `shown` says whether searches of all processes show what is committed.
    """
    current = await Events(gateway.app.db, gateway.app.settings).shown([item.id for item in landed])
    events = [_landed(item) | _progress(current.get(item.id, {})) for item in landed]
    states = [event["state"] for event in events]
    # A superseded version counts: its newer version is the one that is searchable.
    searchable = shown and all(state in ("done", "superseded") for state in states)
    status = 200 if shown and all(state in FINAL for state in states) else 202
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
