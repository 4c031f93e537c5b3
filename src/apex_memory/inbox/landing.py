"""Landing: the only INSERT into the table `inbox`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.errors import ForeignKeyViolation

from apex_memory.errors import RetryLater
from apex_memory.model import Event, LandResult
from apex_memory.stores.postgres import Connection, fetch_rows
from apex_memory.telemetry import DUPLICATES, LANDED


async def land(connection: Connection, events: Sequence[Event]) -> list[LandResult]:
    """Insert events with their payloads; return one `LandResult` for each, in order.

    One statement for any number of events. An event that exists already keeps its first payload, also when both
    are in this call. A payload that is an object is referred to, and one that is sealed is stored so. Raises `Rejected`
    for values that PostgreSQL cannot hold, and `RetryLater` when an object or a data key is gone.
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


@dataclass(frozen=True, slots=True)
class _InsertedEvent:
    id: UUID
    lost: bool
    """The database does not have its data key, so it did not land."""


async def _insert(connection: Connection, events: Iterable[Event]) -> set[UUID]:
    """Insert distinct events with their payloads; return the ids of those that are new.

    Raises `RetryLater` when the database does not have a data key. Those of the events that have it may have landed.
    """
    rows = await fetch_rows(
        connection,
        _InsertedEvent,
        """WITH given AS (
             SELECT * FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::smallint[],
                                  %b::bigint[], %b::timestamptz[], %b::text[], %b::text[], %b::bytea[], %b::text[], %b::uuid[])
               AS t (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent, body, object, data_key)
           ), new AS (
             SELECT * FROM given WHERE data_key IS NULL OR data_key IN (SELECT id FROM data_keys)
           ), landed AS (
             INSERT INTO inbox (id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent)
             SELECT id, source, event_id, doc_id, doc_key, priority, version, occurred_at, content_type, trace_parent FROM new
             ON CONFLICT DO NOTHING RETURNING id
           ), kept AS (
             INSERT INTO payloads (inbox_id, body, data_key) SELECT id, body, data_key FROM new JOIN landed USING (id)
           ), referring AS (
             INSERT INTO payload_references (inbox_id, object)
             SELECT id, object FROM new JOIN landed USING (id) WHERE object IS NOT NULL
           )
           SELECT id, false AS lost FROM landed
           UNION ALL
           SELECT id, true FROM given WHERE data_key IS NOT NULL AND data_key NOT IN (SELECT id FROM data_keys)""",
        [list(column) for column in zip(*map(_columns, events), strict=True)],
    )
    if any(row.lost for row in rows):
        # As after a failover to a standby that missed the newest rows. A process looks for data keys every minute.
        raise RetryLater("the database does not have the data key of a payload", after=10)
    return {row.id for row in rows}


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
        _body(event),
        event.payload_object,
        event.sealed.data_key if event.sealed else None,
    )


def _body(event: Event) -> bytes:
    if event.payload_object is not None:
        return b""
    return event.sealed.body if event.sealed else event.payload
