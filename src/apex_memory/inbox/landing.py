"""Landing: the only INSERT into the table `inbox`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Connection
from apex_memory.telemetry import DUPLICATES, LANDED


async def land(connection: Connection, events: Sequence[Event]) -> list[LandResult]:
    """Insert events with their payloads; return one `LandResult` for each, in order.

    One statement for any number of events. An event that exists already keeps its first payload, also when both
    are in this call. Raises
    `Rejected` for values that PostgreSQL cannot hold.
    """
    if not events:
        return []
    distinct: dict[UUID, Event] = {}
    for event in events:
        distinct.setdefault(event.id, event)
    cursor = await connection.execute(
        """WITH new AS (
             SELECT * FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::smallint[],
                                  %b::bigint[], %b::timestamptz[], %b::text[], %b::text[], %b::bytea[])
               AS t (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent, body)
           ), landed AS (
             INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent)
             SELECT id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent FROM new
             ON CONFLICT DO NOTHING RETURNING id
           ), kept AS (
             INSERT INTO payloads (inbox_id, body) SELECT id, body FROM new JOIN landed USING (id)
           )
           SELECT id FROM landed""",
        [list(column) for column in zip(*map(_columns, distinct.values()), strict=True)],
    )
    fresh = {row["id"] for row in await cursor.fetchall()}
    results = []
    for event in events:
        duplicate = event.id not in fresh
        fresh.discard(event.id)  # the same event twice in one call: the second is a duplicate
        (DUPLICATES if duplicate else LANDED).labels(event.source).inc()
        results.append(LandResult(event.id, event.source, event.event_id, event.doc_id, duplicate))
    return results


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
        event.payload,
    )
