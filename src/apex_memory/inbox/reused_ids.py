"""Reused ids: other content under the id of an earlier event lands under an id of its own.

A sender repeats an event until it is acknowledged, and a vendor's list shows an event again, so an id that exists is
usually a repetition, which is dropped. Some vendors give an id to other content as well. Landing must not drop that:
whatever was acknowledged ends as a version or a dead letter (docs/discussions/protocol.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from apex_memory.errors import ApexError
from apex_memory.inbox import landing, queries
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import MALFORMED, TOMBSTONE, Document, Event, LandResult
from apex_memory.stores.postgres import Connection
from apex_memory.telemetry import logger
from apex_memory.work_threads import WorkThreads

THREAD_BYTES = 256_000  # payloads of more bytes are digested in a thread
# Documents are made of at most so many bytes of payloads, since a transaction waits for them. Where there are more,
# the payloads are compared, which may keep an event that has no other content. So it is where the earlier payload is
# an object outside PostgreSQL.
DOCUMENT_BYTES = 4_000_000
DOCUMENT_SECONDS = 10.0  # for those of one page; then the payloads are compared
threads = WorkThreads()
"""Compare documents. The process is replaced when they are stuck."""

MakeDocument = Callable[[Event], Document]
"""Makes the document of an event; the `document` of a source."""


async def land_every_content(
    connection: Connection,
    source: str,
    events: Sequence[Event],
    document: MakeDocument,
    payloads: PayloadStore,
) -> list[LandResult]:
    """Land events of one source and return what `landing.land` does, with other content under the ids of earlier events as well."""
    results = await landing.land(connection, events)
    changed = await with_own_ids(connection, source, events, results, document, payloads)
    if changed:
        own_results = await landing.land(connection, list(changed.values()))
        for n, result in zip(changed, own_results, strict=True):
            results[n] = result
    return results


async def with_own_ids(
    connection: Connection,
    source: str,
    events: Sequence[Event],
    results: Sequence[LandResult],
    document: MakeDocument,
    payloads: PayloadStore,
) -> dict[int, Event]:
    """Return the duplicates among landed events that have other content, by position, under ids of their own.

    `results` are those of landing, in the order of `events`. The content of an event is its document: payloads that
    differ in other bytes, such as the time of a delivery, have the same content. An own id is `ID#digest`; it names
    the content, so it is the same whenever the content comes again. A duplicate of an event whose payload retention
    removed counts as a repetition.

    Ordinary repetitions cost one statement for all of them: PostgreSQL compares digests of the payloads. Sealed ones
    are opened with `payloads` and compared here, and objects by their names. Documents are made in a thread.
    """
    repeated = {n: events[n] for n, result in enumerate(results) if result.duplicate}
    if not repeated:
        return {}
    digested = await _payload_digests(list(repeated.values()))
    earlier = await queries.with_other_bytes(connection, digested)
    opened = await payloads.opened(connection, list(earlier.values()))
    earlier |= {event.event_id: event for event in opened if isinstance(event, Event)}
    suspects: dict[int, Event] = {}
    for n, (event, digest) in zip(repeated, digested, strict=True):
        other = earlier.get(event.event_id)
        if other is not None and not _same_bytes(event, digest, other, payloads):
            suspects[n] = event
    if not suspects:
        return {}
    earlier = {event.event_id: earlier[event.event_id] for event in suspects.values()}
    changed = await _changed_in_time(source, suspects, earlier, document)
    if changed:
        logger(component="inbox").warning(
            "other content came under the ids of earlier events; both are kept",
            source=source,
            events=[str(event.id) for event in changed.values()],
        )
    return changed


async def _payload_digests(events: Sequence[Event]) -> list[tuple[Event, bytes]]:
    def digest() -> list[tuple[Event, bytes]]:
        return [(event, hashlib.sha256(event.payload).digest()) for event in events]

    if sum(len(event.payload) for event in events) > THREAD_BYTES:
        return await asyncio.to_thread(digest)
    return digest()


async def _changed_in_time(
    source: str,
    suspects: Mapping[int, Event],
    earlier: Mapping[str, Event],
    document: MakeDocument,
) -> dict[int, Event]:
    """Return what `_changed` does. Documents that take too long to make are not compared, but their payloads.

    A transaction waits for them, and a page whose transaction fails comes again: it would hold its source for ever.
    """
    if not threads.stuck:
        try:
            async with asyncio.timeout(DOCUMENT_SECONDS):
                return await threads.run(partial(_changed, suspects, earlier, document))
        except TimeoutError:
            logger(component="inbox").warning(
                "documents take too long to be compared; their payloads are",
                source=source,
                events=[str(event.id) for event in suspects.values()],
            )
    return await asyncio.to_thread(_changed, suspects, earlier, None)


def _changed(
    suspects: Mapping[int, Event], earlier: Mapping[str, Event], document: MakeDocument | None
) -> dict[int, Event]:
    """Return the events whose content differs from that of the earlier event of their id, under their own ids.

    Without `document` payloads are compared.
    """
    payloads = [event.payload for event in (*suspects.values(), *earlier.values())]
    unread = any(
        event.payload_object is not None or _is_closed(event) for event in earlier.values()
    )
    make = document if sum(map(len, payloads)) <= DOCUMENT_BYTES and not unread else None
    earlier_contents = {id: _content_digest(event, make) for id, event in earlier.items()}
    changed: dict[int, Event] = {}
    for n, event in suspects.items():
        content = _content_digest(event, make)
        if content != earlier_contents[event.event_id]:
            changed[n] = replace(event, event_id=f"{event.event_id}#{content.hex()[:16]}")
    return changed


def _same_bytes(event: Event, digest: bytes, other: Event, payloads: PayloadStore) -> bool:
    """Return whether an earlier event has the bytes of this one. `digest` is the SHA-256 of its payload."""
    if _is_closed(other) or (event.content_type, event.doc_id) != (
        other.content_type,
        other.doc_id,
    ):
        return False
    if other.payload_object is not None:
        return payloads.holds(other.payload_object, digest)
    return event.payload == other.payload


def _is_closed(event: Event) -> bool:
    return event.sealed is not None and not event.payload


def _content_digest(event: Event, document: MakeDocument | None) -> bytes:
    """Return the digest of an event's document; of its payload, where it has no document or `document` is None."""
    digest = hashlib.sha256(f"{event.doc_key}\0{event.content_type}\0".encode())
    if not event.payload and event.payload_object is not None:
        # It was not read: its bytes differ from those that it is compared with, as their digests show.
        digest.update(event.payload_object.encode())
        return digest.digest()
    if event.sealed and _is_closed(event):  # its key is missing, so it counts as other content
        digest.update(event.sealed.body)
        return digest.digest()
    if document is None or event.content_type in (TOMBSTONE, MALFORMED):
        digest.update(event.payload)
        return digest.digest()
    try:
        made = document(event)
        metadata = json.dumps(made.metadata, sort_keys=True, default=repr)
        digest.update(f"{replace(made, metadata={})!r}{metadata}".encode("utf-8", "surrogatepass"))
    except ApexError:
        digest.update(event.payload)
    except Exception:  # noqa: BLE001 -- a source's bug must not hold its pulls: its events end as dead letters
        digest.update(event.payload)
    return digest.digest()
