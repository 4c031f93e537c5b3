"""Reads of the inbox: events with their payloads, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from apex_memory.errors import NotFound
from apex_memory.inbox.routing import BUCKET_SQL, BUCKETS
from apex_memory.model import Event, Priority, SealedPayload
from apex_memory.stores.postgres import Connection, fetch_row, fetch_rows
from apex_memory.telemetry.traces import TracedEvent

FALLBACK_LEASE = "fallback"
"""The lease of the process that fetches and sweeps while Temporal is away: it is held while the fallback is in force."""


EVENT_COLUMNS: LiteralString = """i.source, i.event_id, i.doc_key, i.version, i.occurred_at, i.content_type, i.priority,
       i.trace_parent, p.body, p.data_key, r.object"""
"""The fields of `StoredEvent`: of `inbox` as `i`, its payload as `p` and the reference to its object as `r`."""

# 28 bytes are what a seal adds (`sealing.SEAL_BYTES`).
PAYLOAD_BYTES: LiteralString = (
    """coalesce(o.bytes, octet_length(p.body) - CASE WHEN p.data_key IS NULL THEN 0 ELSE 28 END)"""
)
"""The size of a payload before it was sealed: of `payloads` as `p` and its `payload_objects` as `o`; NULL where it is gone."""


COUNTED_MOST = 1_000  # events of a source that are looked at to say how many are ready, or how long they have been

# A number that the planner does not see. It takes a range of one source for a two-hundredth of all rows, of which so many would be
# most, and then reads and sorts all that the source has.
_COUNTED_MOST: LiteralString = f"(SELECT {COUNTED_MOST})"

# Each step of the recursion jumps to the next source in `inbox_ready`. A grouping reads every open row: half a second for
# 300,000, every few seconds. The order by all columns of the index keeps the planner from any other, whose rows are mostly closed.
_WORKING: LiteralString = """WITH RECURSIVE named AS (
              (SELECT source FROM inbox WHERE open ORDER BY source, priority, seq LIMIT 1)
              UNION ALL
              SELECT (SELECT i.source FROM inbox i WHERE i.open AND i.source > named.source
                      ORDER BY i.source, i.priority, i.seq LIMIT 1)
              FROM named WHERE named.source IS NOT NULL
            ), working AS MATERIALIZED (
              SELECT source FROM named WHERE source IS NOT NULL AND source NOT IN (SELECT name FROM sources WHERE paused)
            )"""
"""`working`: the sources that have open events and are not paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """A row of `inbox`, joined with its payload."""

    source: str
    event_id: str
    doc_key: str
    version: int
    occurred_at: datetime
    content_type: str
    priority: int
    trace_parent: str | None
    body: bytes
    data_key: UUID | None
    """The data key under which `body` is sealed; None if it is not."""
    object: str | None
    """The name of the object that holds the payload in place of `body`."""

    def event(self, *, event_id: str | None = None, priority: Priority | None = None) -> Event:
        """Return the event, with another id or priority where given. A payload that is sealed or an object is not read."""
        return Event(
            source=self.source,
            event_id=event_id or self.event_id,
            doc_key=self.doc_key,
            version=self.version,
            occurred_at=self.occurred_at,
            payload=b"" if self.data_key else self.body,
            content_type=self.content_type,
            priority=Priority(self.priority) if priority is None else priority,
            trace_parent=self.trace_parent,
            payload_object=self.object,
            sealed=SealedPayload(self.data_key, self.body) if self.data_key else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _DigestedEvent(StoredEvent):
    digest: bytes | None
    """SHA-256 of `body`; None where retention removed it."""


@dataclass(frozen=True, slots=True)
class BacklogRow:
    """Events of a source that are not final: how many in which state, and when the oldest was received."""

    source: str
    state: str
    park_store: str | None
    """The store that parked events wait for."""
    events: int
    oldest: datetime


async def unprepared(connection: Connection, batch: UUID) -> dict[UUID, int]:
    """Return the events of a batch that have no manifest yet, in the order of the claim, with their `starts`."""
    cursor = await connection.execute(
        "SELECT id, starts FROM inbox WHERE open AND batch = %s AND state = 'received' ORDER BY priority, seq",
        (batch,),
    )
    return {row["id"]: row["starts"] for row in await cursor.fetchall()}


async def events(connection: Connection, batch: UUID, ids: Sequence[UUID]) -> list[Event]:
    """Return those of the events that the batch owns and that have no manifest yet, with payloads, in the order of the claim.

    Payloads that are objects or sealed are not filled in; `PayloadStore.load` does that.
    """
    rows = await fetch_rows(
        connection,
        StoredEvent,
        f"""SELECT {EVENT_COLUMNS} FROM inbox i JOIN payloads p ON p.inbox_id = i.id
            LEFT JOIN payload_references r ON r.inbox_id = i.id
            WHERE i.open AND i.batch = %s AND i.id = ANY(%s) AND i.state = 'received' ORDER BY i.priority, i.seq""",
        (batch, list(ids)),
    )
    return [row.event() for row in rows]


async def owned(connection: Connection, batch: UUID) -> list[UUID]:
    """Return the ids of the open events that a batch owns."""
    cursor = await connection.execute(
        "SELECT id FROM inbox WHERE open AND batch = %s ORDER BY id", (batch,)
    )
    return [row["id"] for row in await cursor.fetchall()]


async def owns_any(connection: Connection, batch: UUID) -> bool:
    """Return whether a batch still owns an open event."""
    cursor = await connection.execute(
        "SELECT FROM inbox WHERE open AND batch = %s LIMIT 1", (batch,)
    )
    return await cursor.fetchone() is not None


async def traced(connection: Connection, batch: UUID, *, limit: int) -> list[TracedEvent]:
    """Return those of a batch's events whose trace is recorded, at most `limit`, in the order of the claim.

    A trace is recorded when the last bit of its flags is set (W3C Trace Context, section 3.2.2.5).
    """
    return await fetch_rows(
        connection,
        TracedEvent,
        """SELECT id, source, trace_parent, received_at FROM inbox
           WHERE open AND batch = %s AND right(trace_parent, 1) = ANY('{1,3,5,7,9,b,d,f}')
           ORDER BY priority, seq LIMIT %s""",
        (batch, limit),
    )


async def event(connection: Connection, id: UUID) -> Event:
    """Return one raw event as it landed. Raises `NotFound` for an unknown id, or when retention removed the payload."""
    row = await fetch_row(
        connection,
        StoredEvent,
        f"""SELECT {EVENT_COLUMNS} FROM inbox i JOIN payloads p ON p.inbox_id = i.id
            LEFT JOIN payload_references r ON r.inbox_id = i.id WHERE i.id = %s""",
        (id,),
    )
    if row is None:
        raise NotFound(
            f"event {id}: payload not found",
            remedy="check the id; payloads are kept for payload_days",
        )
    return row.event()


async def with_other_bytes(
    connection: Connection, digests: Sequence[tuple[Event, bytes]]
) -> dict[str, Event]:
    """Return, by event id, the events as they landed whose payload, content type or document is not the given one.

    `digests` holds events with the SHA-256 of their payloads. A sealed payload is always another one here, and so is an
    object: the caller compares them. Those are missing in the result that never landed, or
    whose payload retention removed.
    """
    rows = await fetch_rows(
        connection,
        StoredEvent,
        f"""SELECT {EVENT_COLUMNS}
           FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::bigint[], %b::bytea[])
             AS t (id, doc_id, content_type, size, digest)
           JOIN inbox i ON i.id = t.id JOIN payloads p ON p.inbox_id = t.id
           LEFT JOIN payload_references r ON r.inbox_id = t.id
           WHERE i.doc_id <> t.doc_id OR i.content_type <> t.content_type
              OR octet_length(p.body) <> t.size OR sha256(p.body) <> t.digest OR r.object IS NOT NULL""",
        (
            [event.id for event, _ in digests],
            [event.doc_id for event, _ in digests],
            [event.content_type for event, _ in digests],
            [len(event.payload) for event, _ in digests],
            [digest for _, digest in digests],
        ),
    )
    return {row.event_id: row.event() for row in rows}


async def payload_digests(
    connection: Connection, source: str, event_ids: Sequence[str]
) -> dict[str, bytes | Event | None]:
    """Return the SHA-256 of the payload by event id, for those of the events that exist; None where retention removed it.

    Where it is sealed in PostgreSQL, or an object, the event in place of the digest.
    """
    rows = await fetch_rows(
        connection,
        _DigestedEvent,
        """SELECT i.source, i.event_id, i.doc_key, i.version, i.occurred_at, i.content_type, i.priority, i.trace_parent,
                  CASE WHEN p.data_key IS NULL THEN '' ELSE p.body END AS body, p.data_key, r.object,
                  sha256(p.body) AS digest
           FROM inbox i LEFT JOIN payloads p ON p.inbox_id = i.id LEFT JOIN payload_references r ON r.inbox_id = i.id
           WHERE i.source = %s AND i.event_id = ANY(%s)""",
        (source, list(event_ids)),
    )
    return {row.event_id: row.event() if row.data_key or row.object else row.digest for row in rows}


async def ready(connection: Connection) -> dict[str, int]:
    """Return the number of events by source that can be claimed now, of each source at most `COUNTED_MOST`.

    A paused source has none.
    """
    cursor = await connection.execute(
        f"""{_WORKING}
            SELECT working.source, count(*) AS events FROM working CROSS JOIN LATERAL (
              SELECT FROM inbox WHERE open AND source BETWEEN working.source AND working.source AND next_at <= clock_timestamp()
              ORDER BY source, priority, seq LIMIT {_COUNTED_MOST}
            ) ready GROUP BY 1"""
    )
    return {row["source"]: row["events"] for row in await cursor.fetchall()}


async def shares(connection: Connection) -> dict[str, int]:
    """Return the per cent of its documents that Temporal processes, by source. A source without a row is left out: all of them."""
    cursor = await connection.execute(
        "SELECT substr(subject, 8) AS source, share FROM rollouts WHERE subject LIKE 'source:_%'"
    )
    return {row["source"]: row["share"] for row in await cursor.fetchall()}


async def fallback_since(connection: Connection) -> datetime | None:
    """Return since when the direct path processes everything because Temporal does not respond; None if it does not."""
    cursor = await connection.execute(
        """SELECT coalesce((SELECT max(at) FROM audit WHERE action = 'fallback' AND subject = 'began'), clock_timestamp()) AS at
           FROM leases WHERE name = %s AND until > clock_timestamp()""",
        (FALLBACK_LEASE,),
    )
    row = await cursor.fetchone()
    return row["at"] if row else None


async def ready_for_direct(
    connection: Connection, sources: Sequence[str], *, everything: bool
) -> list[str]:
    """Return those of the sources that have an event ready for the direct path, or for any path with `everything`."""
    cursor = await connection.execute(
        f"""WITH shares AS MATERIALIZED (
              SELECT name, CASE WHEN %(everything)s THEN 0 ELSE
                       coalesce((SELECT share FROM rollouts WHERE subject = 'source:' || name), {BUCKETS}) END AS share
              FROM unnest(%(sources)s::text[]) AS t (name)
            )
            SELECT name FROM shares CROSS JOIN LATERAL (
              SELECT FROM inbox WHERE open AND source BETWEEN name AND name AND next_at <= clock_timestamp()
                AND CASE WHEN share = 0 THEN true ELSE {BUCKET_SQL} >= share END
              ORDER BY source, priority, seq LIMIT 1
            ) ready
            WHERE share < {BUCKETS} AND name NOT IN (SELECT name FROM sources WHERE paused)""",
        {"sources": list(sources), "everything": everything},
    )
    return [row["name"] for row in await cursor.fetchall()]


async def stalled(connection: Connection, *, seconds: float) -> dict[str, float]:
    """Return the sources whose ready events nobody works on, with how long (s) the oldest has been ready, if over `seconds`.

    The oldest of the `COUNTED_MOST` such events that are next in turn. A source that is paused is not stalled, nor is one with
    a live lease: a long backlog makes progress. Neither the sweeper nor Temporal decides this, so it also holds when these are
    stuck.
    """
    cursor = await connection.execute(
        f"""{_WORKING}, leased AS MATERIALIZED (
              SELECT DISTINCT source FROM inbox WHERE open AND batch IS NOT NULL AND next_at > clock_timestamp()
            )
            SELECT working.source, extract(epoch FROM clock_timestamp() - min(late.next_at))::float AS waiting
            FROM working CROSS JOIN LATERAL (
              SELECT next_at FROM inbox WHERE open AND source BETWEEN working.source AND working.source
                AND next_at < clock_timestamp() - make_interval(secs => %s)
              ORDER BY source, priority, seq LIMIT {_COUNTED_MOST}
            ) late
            WHERE working.source NOT IN (SELECT source FROM leased) GROUP BY 1""",
        (seconds,),
    )
    return {row["source"]: row["waiting"] for row in await cursor.fetchall()}


async def finished(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the events that are final or parked, so that waiting for them longer is pointless."""
    cursor = await connection.execute(
        "SELECT id FROM inbox WHERE id = ANY(%s) AND NOT open", (list(ids),)
    )
    return {row["id"] for row in await cursor.fetchall()}


async def backlog(connection: Connection) -> list[BacklogRow]:
    """Return the events that are not final, by source, state and the store they wait for."""
    return await fetch_rows(
        connection,
        BacklogRow,
        """SELECT source, state, CASE WHEN state = 'parked' THEN park_store END AS park_store,
                  count(*) AS events, min(received_at) AS oldest
           FROM inbox WHERE open OR state = 'parked' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
    )


async def parked_by_store(connection: Connection) -> dict[str, int]:
    """Return the number of parked events by the store they wait for."""
    cursor = await connection.execute(
        "SELECT park_store, count(*) AS events FROM inbox WHERE state = 'parked' GROUP BY 1"
    )
    return {row["park_store"]: row["events"] for row in await cursor.fetchall()}
