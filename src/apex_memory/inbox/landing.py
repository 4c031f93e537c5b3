"""Landing: the only INSERT into the table `inbox`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from psycopg.errors import ForeignKeyViolation

from apex_memory.errors import RetryLater
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Connection
from apex_memory.telemetry import DUPLICATES, LANDED


async def land(connection: Connection, events: Sequence[Event]) -> list[LandResult]:
    """Insert events with their payloads; return one `LandResult` for each, in order.

    One statement for any number of events. An event that exists already keeps its first payload, also when both
    are in this call. A payload that is an object is referred to. Raises `Rejected` for values that PostgreSQL cannot
    hold, and `RetryLater` when an object is gone.
    """
    if not events:
        return []
    distinct: dict[UUID, Event] = {}
    for event in events:
        distinct.setdefault(event.id, event)
    try:
        fresh = await _insert(connection, distinct.values())
    except ForeignKeyViolation as error:
        # It took longer than the object of its payload is kept without an event.
        raise RetryLater("the object of a payload was removed before its event landed") from error
    results = []
    for event in events:
        duplicate = event.id not in fresh
        fresh.discard(event.id)  # the same event twice in one call: the second is a duplicate
        (DUPLICATES if duplicate else LANDED).labels(event.source).inc()
        results.append(LandResult(event.id, event.source, event.event_id, event.doc_id, duplicate))
    return results


async def _insert(connection: Connection, events: Iterable[Event]) -> set[UUID]:
    """Insert distinct events with their payloads; return the ids of those that are new."""
    cursor = await connection.execute(
        """WITH new AS (
             SELECT * FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::smallint[],
                                  %b::bigint[], %b::timestamptz[], %b::text[], %b::text[], %b::bytea[], %b::text[])
               AS t (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent, body, object)
           ), landed AS (
             INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent)
             SELECT id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent FROM new
             ON CONFLICT DO NOTHING RETURNING id
           ), kept AS (
             INSERT INTO payloads (inbox_id, body) SELECT id, body FROM new JOIN landed USING (id)
           ), referring AS (
             INSERT INTO payload_references (inbox_id, object)
             SELECT id, object FROM new JOIN landed USING (id) WHERE object IS NOT NULL
           )
           SELECT id FROM landed""",
        [list(column) for column in zip(*map(_columns, events), strict=True)],
    )
    return {row["id"] for row in await cursor.fetchall()}


def _columns(event: Event) -> tuple[Any, ...]:
    return (
        event.id,
        event.source,
        event.event_id,
        event.doc_id,
        event.doc_key,
        int(event.priority),
        event.version,
        event.occurred_at,
        event.content_type,
        event.trace_parent,
        b"" if event.payload_object is not None else event.payload,
        event.payload_object,
    )
