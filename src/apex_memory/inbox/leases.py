"""Leases: which batch owns an event, and until when.

A claim moves `next_at` to the end of the lease, so an event whose lease has run out is simply ready again.
A batch's lease covers its events and the stages that it opened. No function here changes an event's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from apex_memory.stores.postgres import Connection

BATCH_BYTES = 64_000_000  # payloads of one batch
ALONE_BYTES = 8_000_000  # a larger payload is a batch of its own


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """An event of a batch, without its payload."""

    id: UUID
    event_id: str
    attempts: int
    trace_parent: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A claimed batch: its id (the owner of the lease) and its events."""

    id: UUID
    source: str
    events: list[ClaimedEvent]
    more: bool
    """More events are ready, or the batch is full, so that there probably are."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The events of a claim, and whether more were ready than it took."""

    events: list[ClaimedEvent]
    more: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The workflow run that works on a batch, for the link on an event's page."""

    workflow_id: str
    run_id: str


async def claim(
    connection: Connection,
    source: str,
    *,
    batch: UUID,
    limit: int,
    lease: float,
    run: Run | None = None,
) -> Claim:
    """Lease up to `limit` ready events of a source to `batch` for `lease` seconds, most urgent and oldest first.

    Their payloads are up to `BATCH_BYTES` together, and a payload over `ALONE_BYTES` is a batch of its own, so that
    the memory of a batch is bounded and a giant holds up nobody else's batch.

    A claim that is repeated with the same batch returns the same events, so a lost reply does no harm.
    A paused source has no ready events.
    """
    cursor = await connection.execute(
        """WITH mine AS (
             SELECT id FROM inbox WHERE open AND batch = %(batch)s ORDER BY id FOR NO KEY UPDATE
           ), ready AS (
             SELECT id FROM inbox
             WHERE open AND source = %(source)s AND next_at <= clock_timestamp() AND NOT EXISTS (SELECT FROM mine)
               AND NOT EXISTS (SELECT FROM sources WHERE name = %(source)s AND paused)
             ORDER BY priority, seq LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
           ), sized AS (
             SELECT i.id, row_number() OVER w AS n, sum(coalesce(octet_length(p.body), 0)) OVER w AS bytes,
                    bool_or(coalesce(octet_length(p.body), 0) > %(alone)s) OVER w AS giant
             FROM ready JOIN inbox i USING (id) LEFT JOIN payloads p ON p.inbox_id = i.id
             WINDOW w AS (ORDER BY i.priority, i.seq)
           ), picked AS (
             SELECT id FROM mine UNION ALL SELECT id FROM sized WHERE n = 1 OR bytes <= %(bytes)s AND NOT giant
           )
           UPDATE inbox SET batch = %(batch)s, next_at = clock_timestamp() + make_interval(secs => %(lease)s),
                            workflow_id = %(workflow)s, run_id = %(run)s
           FROM picked WHERE inbox.id = picked.id
           RETURNING inbox.id, inbox.event_id, inbox.attempts, inbox.trace_parent, inbox.priority, inbox.seq,
                     (SELECT count(*) FROM ready) AS ready""",
        {
            "source": source,
            "limit": limit,
            "batch": batch,
            "lease": lease,
            "bytes": BATCH_BYTES,
            "alone": ALONE_BYTES,
            "workflow": run.workflow_id if run else None,
            "run": run.run_id if run else None,
        },
    )
    rows = await cursor.fetchall()
    rows.sort(key=lambda row: (row["priority"], row["seq"]))
    events = [
        ClaimedEvent(row["id"], row["event_id"], row["attempts"], row["trace_parent"])
        for row in rows
    ]
    ready = rows[0]["ready"] if rows else 0
    return Claim(events, more=len(events) >= limit or ready > len(events))


async def renew(connection: Connection, batches: Sequence[UUID], *, lease: float) -> None:
    """Extend the leases of the batches' events and stages to `lease` seconds from now.

    Skips rows that a commit holds at the moment, so it waits for nothing and needs no lock order: the commit
    ends those rows, or the next renewal extends them. Call it outside a transaction, or between the two
    statements it would hold what it locked.
    """
    await connection.execute(
        """UPDATE inbox SET next_at = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT id FROM inbox WHERE open AND batch = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED) mine
           WHERE inbox.id = mine.id""",
        (lease, list(batches)),
    )
    await connection.execute(
        """UPDATE stages SET lease_until = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT stage_id FROM stages WHERE state = 'staging' AND owner = ANY(%s) FOR UPDATE SKIP LOCKED) mine
           WHERE stages.stage_id = mine.stage_id""",
        (lease, list(batches)),
    )


async def release(
    connection: Connection, batch: UUID, ids: Sequence[UUID], *, seconds: float
) -> None:
    """Return events of the batch to the queue, ready again in `seconds`. Consumes no attempt."""
    await connection.execute(
        """UPDATE inbox SET batch = NULL, starts = 0, next_at = clock_timestamp() + make_interval(secs => %s)
           FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
                 ORDER BY id FOR NO KEY UPDATE) mine
           WHERE inbox.id = mine.id""",
        (seconds, list(ids), batch),
    )
