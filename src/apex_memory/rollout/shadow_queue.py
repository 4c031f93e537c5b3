"""The queue of copies: every statement over `shadows` that hands a copy out, takes it back, or drops it.

A copy is queued in the statement that ends its event (`inbox/transitions.py`), or by a replay. Nothing here waits for a
lock: a row that the end of a redriven event renews is skipped, and processed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from apex_memory.inbox import EVENT_COLUMNS, StoredEvent
from apex_memory.model import Event
from apex_memory.stores.postgres import Connection, fetch_row, fetch_rows

BATCH_COPIES = 32  # a small batch: it holds few stages that readers must exclude, and little memory
BATCH_BYTES = 16_000_000  # payloads of one batch
DELETE_MAX = 5_000  # rows that one statement deletes


@dataclass(frozen=True, slots=True)
class ShadowCopy:
    """A claimed copy of an event. `event` is None when retention removed its payload."""

    id: int
    inbox_id: UUID
    source: str
    attempts: int
    """Claims in a row that reported no outcome, this one included."""
    tries: int
    """Transient failures that were reported."""
    queued_at: datetime
    state: str
    """The state of the event itself."""
    unfinished: bool
    """The event became a dead letter because it timed out or ended the worker."""
    event: Event | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _CopiedEvent(StoredEvent):
    """A copy, with its event as it landed."""

    id: int
    inbox_id: UUID
    attempts: int
    tries: int
    queued_at: datetime
    state: str
    unfinished: bool
    has_payload: bool
    """False where retention removed the payload; `body` is None then."""


@dataclass(frozen=True, slots=True)
class WaitingCopies:
    """How many copies of a subject wait, and since when the oldest does."""

    subject: str
    build: str
    copies: int
    oldest: datetime


async def claim(
    connection: Connection, subject: str, build: str, *, batch: UUID, lease: float
) -> list[int]:
    """Lease up to `BATCH_COPIES` waiting copies to `batch` for `lease` seconds; return their ids. Empty: none is ready.

    A copy whose earlier claim reported no outcome may have ended its worker: it is claimed alone.
    The same batch again gets the same copies.
    """
    cursor = await connection.execute(
        """WITH mine AS (
             SELECT id FROM shadows WHERE subject = %(subject)s AND build = %(build)s AND state = 'waiting' AND owner = %(batch)s
           ), ready AS (
             SELECT id, attempts, inbox_id FROM shadows
             WHERE subject = %(subject)s AND build = %(build)s AND state = 'waiting' AND next_at <= clock_timestamp()
               AND NOT EXISTS (SELECT FROM mine)
             ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
           ), sized AS (
             SELECT r.id, row_number() OVER w AS n, sum(coalesce(o.bytes, octet_length(p.body), 0)) OVER w AS bytes,
                    r.attempts + first_value(r.attempts) OVER w AS suspicion
             FROM ready r LEFT JOIN payloads p USING (inbox_id)
             LEFT JOIN payload_references f USING (inbox_id) LEFT JOIN payload_objects o ON o.name = f.object WINDOW w AS (ORDER BY r.id)
           ), picked AS (
             SELECT id FROM mine UNION ALL SELECT id FROM sized WHERE n = 1 OR (suspicion = 0 AND bytes <= %(bytes)s)
           )
           UPDATE shadows SET attempts = attempts + CASE WHEN owner IS NOT DISTINCT FROM %(batch)s THEN 0 ELSE 1 END,
                              owner = %(batch)s, next_at = clock_timestamp() + make_interval(secs => %(lease)s)
           FROM picked WHERE shadows.id = picked.id RETURNING shadows.id""",
        {
            "subject": subject,
            "build": build,
            "batch": batch,
            "limit": BATCH_COPIES,
            "bytes": BATCH_BYTES,
            "lease": lease,
        },
    )
    return sorted(row["id"] for row in await cursor.fetchall())


async def load(connection: Connection, batch: UUID, unfinished: Sequence[str]) -> list[ShadowCopy]:
    """Return the copies that a batch still owns, with their events.

    `unfinished` holds the fingerprints of dead letters of events that ended their worker.
    """
    rows = await fetch_rows(
        connection,
        _CopiedEvent,
        f"""SELECT i.id AS inbox_id, i.state, {EVENT_COLUMNS}, s.id, s.attempts, s.tries, s.queued_at,
                   p.inbox_id IS NOT NULL AS has_payload, coalesce(l.fingerprint = ANY(%s), false) AS unfinished
            FROM shadows s JOIN inbox i ON i.id = s.inbox_id LEFT JOIN payloads p ON p.inbox_id = i.id
            LEFT JOIN payload_references r ON r.inbox_id = i.id LEFT JOIN dead_letters l ON l.inbox_id = i.id AND i.state = 'dead'
            WHERE s.owner = %s AND s.state = 'waiting' ORDER BY s.id""",
        (list(unfinished), batch),
    )
    return [
        ShadowCopy(
            id=row.id,
            inbox_id=row.inbox_id,
            source=row.source,
            attempts=row.attempts,
            tries=row.tries,
            queued_at=row.queued_at,
            state=row.state,
            unfinished=row.unfinished,
            event=row.event() if row.has_payload else None,
        )
        for row in rows
    ]


async def renew(connection: Connection, batches: Sequence[UUID], *, lease: float) -> None:
    """Extend the leases of the batches' copies and stages to `lease` seconds from now. Call it outside a transaction."""
    await connection.execute(
        """UPDATE shadows SET next_at = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT id FROM shadows WHERE owner = ANY(%s) AND state = 'waiting' FOR UPDATE SKIP LOCKED) mine
           WHERE shadows.id = mine.id""",
        (lease, list(batches)),
    )
    await connection.execute(
        """UPDATE stages SET lease_until = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT stage_id FROM stages WHERE state = 'staging' AND shadow AND owner = ANY(%s) FOR UPDATE SKIP LOCKED) mine
           WHERE stages.stage_id = mine.stage_id""",
        (lease, list(batches)),
    )


async def release(
    connection: Connection, batch: UUID, ids: Sequence[int], *, seconds: float, tried: bool = False
) -> None:
    """Return copies to the queue, ready again in `seconds`. `tried` counts a transient failure of each."""
    await connection.execute(
        """UPDATE shadows SET owner = NULL, attempts = 0, tries = tries + CASE WHEN %s THEN 1 ELSE 0 END,
                              next_at = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT id FROM shadows WHERE id = ANY(%s) AND owner = %s AND state = 'waiting'
                 FOR UPDATE SKIP LOCKED) mine
           WHERE shadows.id = mine.id""",
        (tried, seconds, list(ids), batch),
    )


async def correct_deadlines(connection: Connection, *, furthest: float) -> int:
    """Make copies ready whose deadline is more than `furthest` seconds ahead; return their number.

    Such a deadline was written before the clock of PostgreSQL was set back.
    """
    cursor = await connection.execute(
        """UPDATE shadows SET next_at = clock_timestamp()
           FROM (SELECT id FROM shadows WHERE state = 'waiting' AND next_at > clock_timestamp() + make_interval(secs => %s)
                 ORDER BY id FOR UPDATE SKIP LOCKED) late
           WHERE shadows.id = late.id""",
        (furthest,),
    )
    return cursor.rowcount


async def isolate(connection: Connection, batch: UUID) -> int:
    """Return a batch whose step failed with an unforeseen error to the queue, each copy to be claimed alone."""
    cursor = await connection.execute(
        "UPDATE shadows SET owner = NULL, next_at = clock_timestamp() WHERE owner = %s AND state = 'waiting'",
        (batch,),
    )
    return cursor.rowcount


async def drop(connection: Connection, batch: UUID, ids: Sequence[int], reason: str) -> int:
    """Remove copies of a batch that cannot be processed, and count them; return their number."""
    return await _delete(
        connection,
        reason,
        """SELECT id FROM shadows WHERE id = ANY(%(ids)s) AND owner = %(batch)s AND state = 'waiting' FOR UPDATE SKIP LOCKED""",
        {"ids": list(ids), "batch": batch},
    )


async def waiting(connection: Connection) -> list[WaitingCopies]:
    """Return the waiting copies by subject and build."""
    return await fetch_rows(
        connection,
        WaitingCopies,
        """SELECT subject, build, count(*) AS copies, min(queued_at) AS oldest FROM shadows
           WHERE state = 'waiting' GROUP BY 1, 2 ORDER BY 1, 2""",
    )


async def trim(connection: Connection, subject: str, build: str, *, surplus: int) -> int:
    """Drop the oldest `surplus` copies of live events that nobody works on; return their number.

    The newest are the best evidence.
    """
    return await _delete(
        connection,
        "backlog",
        """SELECT id FROM shadows WHERE subject = %(subject)s AND build = %(build)s AND state = 'waiting' AND NOT replay
             AND (owner IS NULL OR next_at <= clock_timestamp()) ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        {"subject": subject, "build": build, "limit": min(surplus, DELETE_MAX)},
    )


async def drop_stopped(connection: Connection) -> int:
    """Drop copies of live events whose subject is not shadowed any more, or by another build; return their number."""
    return await _delete(
        connection,
        "stopped",
        """SELECT s.id FROM shadows s WHERE s.state = 'waiting' AND NOT s.replay AND NOT EXISTS (
             SELECT FROM rollouts r WHERE r.subject = s.subject AND r.shadow AND coalesce(r.build, '') = s.build)
           LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        {"limit": DELETE_MAX},
    )


async def drop_old(connection: Connection, *, days: float) -> int:
    """Remove results after `days`, and drop copies that nobody processed for so long; return the number of results."""
    await _delete(
        connection,
        "expired",
        """SELECT id FROM shadows WHERE state = 'waiting' AND queued_at < clock_timestamp() - make_interval(secs => %(seconds)s)
           LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        {"seconds": days * 86_400, "limit": DELETE_MAX},
    )
    cursor = await connection.execute(
        """DELETE FROM shadows WHERE id IN (
             SELECT id FROM shadows WHERE state <> 'waiting' AND ended_at < clock_timestamp() - make_interval(secs => %s)
             LIMIT %s FOR UPDATE SKIP LOCKED)""",
        (days * 86_400, DELETE_MAX),
    )
    await connection.execute(
        "DELETE FROM shadow_drops WHERE hour < clock_timestamp() - make_interval(secs => %s)",
        (days * 86_400,),
    )
    return cursor.rowcount


async def _delete(
    connection: Connection, reason: str, chosen: LiteralString, parameters: dict[str, object]
) -> int:
    cursor = await connection.execute(
        f"""WITH gone AS (DELETE FROM shadows WHERE id IN ({chosen}) RETURNING subject, build),
                counted AS (
                  INSERT INTO shadow_drops AS d (subject, build, reason, hour, count)
                  SELECT subject, build, %(reason)s, date_trunc('hour', clock_timestamp()), count(*) FROM gone GROUP BY 1, 2
                  ON CONFLICT (subject, build, reason, hour) DO UPDATE SET count = d.count + excluded.count)
            SELECT count(*) AS dropped FROM gone""",
        parameters | {"reason": reason},
    )
    row = await cursor.fetchone()
    return int(row["dropped"]) if row else 0


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """How many ended events a range holds, and of how many a copy was queued: an even sample where it holds more."""

    events: int
    queued: int


async def replay(
    connection: Connection,
    build: str,
    *,
    sources: Sequence[str],
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> ReplayResult:
    """Queue copies of ended events with kept payloads, received in [since, until), for a build; at most `limit`.

    Empty `sources` means all. A range with more events gives every n-th of them, so that the sample is even.
    """
    result = await fetch_row(
        connection,
        ReplayResult,
        """WITH range AS (
             SELECT i.id, i.source, row_number() OVER (ORDER BY i.seq) AS n, count(*) OVER () AS events
             FROM inbox i JOIN payloads p ON p.inbox_id = i.id
             WHERE i.state IN ('done', 'superseded', 'dead') AND (%(all)s OR i.source = ANY(%(sources)s))
               AND (%(since)s::timestamptz IS NULL OR i.received_at >= %(since)s)
               AND (%(until)s::timestamptz IS NULL OR i.received_at < %(until)s)
           ), chosen AS (
             SELECT * FROM range WHERE (n - 1) %% greatest(1, ceil(events::numeric / %(limit)s)::bigint) = 0
           ), queued AS (
             INSERT INTO shadows AS s (subject, build, inbox_id, source, replay)
             SELECT 'build', %(build)s, id, source, true FROM chosen ORDER BY n
             ON CONFLICT (inbox_id, subject, build) DO UPDATE
               SET state = 'waiting', replay = true, owner = NULL, next_at = clock_timestamp(), attempts = 0, tries = 0
             RETURNING 1
           )
           SELECT coalesce((SELECT max(events) FROM range), 0) AS events, (SELECT count(*) FROM queued) AS queued""",
        {
            "build": build,
            "all": not sources,
            "sources": list(sources),
            "since": since,
            "until": until,
            "limit": limit,
        },
    )
    assert result is not None  # an aggregate always gives a row
    return result
