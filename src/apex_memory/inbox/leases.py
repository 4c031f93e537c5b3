"""Leases: which batch owns an event, and until when.

A claim moves `next_at` to the end of the lease, so an event whose lease has run out is simply ready again.
A batch's lease covers its events and the stages that it opened. No function here changes an event's state, but for one
case: an event that another build prepared is `received` again for the build that claims it.

A claim decides which path and which build process an event: its statement reads the table `rollouts`, so a change of a
share acts with the next claim in every process. Whoever claimed an event before the change finishes it. It reads
`builds` too: a build that is neither current nor the candidate claims nothing, and the current build claims the
documents of a candidate without a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from apex_memory.errors import ApexError
from apex_memory.inbox.routing import BUCKET_SQL, BUCKETS, Consumer
from apex_memory.stores.postgres import Connection, Postgres, fetch_rows
from apex_memory.telemetry import logger
from apex_memory.telemetry.traces import sampled_context

# A candidate of which no worker was seen for so long (s) is absent; `rollout/builds.py` names the same limit.
ABSENT_SECONDS: LiteralString = "30"
# A time ahead of the clock was written before the clock was set back, and says nothing.
SEEN_LATELY: LiteralString = f"""seen_at BETWEEN clock_timestamp() - interval '{ABSENT_SECONDS} s'
                                     AND clock_timestamp() + interval '{ABSENT_SECONDS} s'"""
"""Whether a worker of a build, a row of `builds`, was seen within `ABSENT_SECONDS`."""
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

    @property
    def trace_parents(self) -> list[str]:
        """The `traceparent` of each event whose trace is recorded."""
        return [
            event.trace_parent
            for event in self.events
            if event.trace_parent and sampled_context(event.trace_parent)
        ]


@dataclass(frozen=True, slots=True)
class Claim:
    """The events of a claim, and whether more were ready than it took."""

    events: list[ClaimedEvent]
    more: bool


@dataclass(frozen=True, slots=True)
class _ClaimedRow:
    """A row of `CLAIM`. `ready` is the number of events that were ready, of this claim and beyond."""

    id: UUID
    event_id: str
    attempts: int
    trace_parent: str | None
    priority: int
    seq: int
    ready: int


@dataclass(frozen=True, slots=True)
class WorkflowRun:
    """The workflow run that works on a batch, for the link on an event's page."""

    workflow_id: str
    run_id: str


# The build that processes an event makes its manifest. So nothing that a build prepared is published once that build was
# rolled back, and what a candidate is judged by is its own.
PROCESSED: LiteralString = """path = %(path)s, build = %(build)s, claimed_at = clock_timestamp(),
           state = CASE WHEN inbox.state = 'prepared' AND inbox.build IS DISTINCT FROM %(build)s
                        THEN 'received' ELSE inbox.state END,
           starts = CASE WHEN inbox.state = 'prepared' AND inbox.build IS DISTINCT FROM %(build)s
                         THEN 0 ELSE inbox.starts END"""

CANDIDATE: LiteralString = f"""candidate AS (
         SELECT r.build, CASE WHEN EXISTS (SELECT FROM builds b WHERE b.build = r.build AND {SEEN_LATELY})
                                OR NOT EXISTS (SELECT FROM builds b WHERE b.role = 'current')
                              THEN r.share ELSE 0 END AS share
         FROM rollouts r
         WHERE r.subject = 'build'
           AND NOT EXISTS (SELECT FROM builds b WHERE b.build = r.build AND b.role = 'current')
         FOR SHARE OF r
       )"""
"""The candidate build and its share. Locked, so that who changes them waits for the claims under way, and sees what they claimed."""
ROLE: LiteralString = """coalesce((SELECT share FROM candidate), 0) AS candidate,
                coalesce((SELECT build FROM candidate) = %(build)s, false) AS is_candidate,
                EXISTS (SELECT FROM builds WHERE role = 'current' AND build <> %(build)s) AS is_replaced"""
# Its CASE keeps the planner from taking the condition for a selective one, which would make it sort the whole backlog.
IN_BUCKETS: LiteralString = f"""CASE WHEN (SELECT first = 0 AND until = {BUCKETS} FROM buckets) THEN true
                    ELSE {BUCKET_SQL} >= (SELECT first FROM buckets) AND {BUCKET_SQL} < (SELECT until FROM buckets) END"""

# `buckets` is evaluated once; a consumer without buckets reads no event at all.
CLAIM: LiteralString = f"""WITH {CANDIDATE}, shares AS (
         SELECT coalesce((SELECT share FROM rollouts WHERE subject = 'source:' || %(source)s), {BUCKETS}) AS temporal, {ROLE}
       ), buckets AS MATERIALIZED (
         SELECT greatest(CASE WHEN %(first_of_path)s THEN 0 ELSE temporal END,
                         CASE WHEN is_candidate THEN 0 ELSE candidate END) AS first,
                least(CASE WHEN %(last_of_path)s THEN {BUCKETS} ELSE temporal END,
                      CASE WHEN is_candidate THEN candidate WHEN is_replaced THEN 0 ELSE {BUCKETS} END) AS until
         FROM shares
       ), mine AS (
         SELECT id FROM inbox WHERE open AND batch = %(batch)s ORDER BY id FOR NO KEY UPDATE
       ), ready AS (
         SELECT id FROM inbox
         WHERE open AND source = %(source)s AND next_at <= clock_timestamp() AND NOT EXISTS (SELECT FROM mine)
           AND NOT EXISTS (SELECT FROM sources WHERE name = %(source)s AND paused)
           AND (SELECT first < until FROM buckets)
           AND {IN_BUCKETS}
         ORDER BY priority, seq LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
       ), sized AS (
         SELECT i.id, row_number() OVER w AS n, sum(coalesce(o.bytes, octet_length(p.body), 0)) OVER w AS bytes,
                bool_or(coalesce(o.bytes, octet_length(p.body), 0) > %(alone)s) OVER w AS giant
         FROM ready JOIN inbox i USING (id) LEFT JOIN payloads p ON p.inbox_id = i.id
         LEFT JOIN payload_references f ON f.inbox_id = i.id LEFT JOIN payload_objects o ON o.name = f.object
         WINDOW w AS (ORDER BY i.priority, i.seq)
       ), picked AS (
         SELECT id FROM mine UNION ALL SELECT id FROM sized WHERE n = 1 OR bytes <= %(bytes)s AND NOT giant
       )
       UPDATE inbox SET batch = %(batch)s, next_at = clock_timestamp() + make_interval(secs => %(lease)s),
                        workflow_id = %(workflow)s, run_id = %(run)s, {PROCESSED}
       FROM picked WHERE inbox.id = picked.id
       RETURNING inbox.id, inbox.event_id, inbox.attempts, inbox.trace_parent, inbox.priority, inbox.seq,
                 (SELECT count(*) FROM ready) AS ready"""


async def claim(
    connection: Connection,
    source: str,
    *,
    batch: UUID,
    limit: int,
    lease: float,
    consumer: Consumer,
    run: WorkflowRun | None = None,
) -> Claim:
    """Lease up to `limit` ready events of a source to `batch` for `lease` seconds, most urgent and oldest first; return them.

    Only documents in the buckets of the consumer are claimed, and their events record its path and its build. The
    buckets of a consumer are those of its path, by the share of the source, and of its build, by the share of the
    candidate build. A consumer that takes `everything` has the buckets of both paths. An event that another build
    prepared is prepared anew.

    Their payloads are up to `BATCH_BYTES` together, and a payload over `ALONE_BYTES` is a batch of its own, so that
    the memory of a batch is bounded and a giant holds up nobody else's batch.

    A claim that is repeated with the same batch returns the same events, so a lost reply does no harm.
    A paused source has no ready events.
    """
    rows = await fetch_rows(
        connection,
        _ClaimedRow,
        CLAIM,
        {
            "source": source,
            "limit": limit,
            "batch": batch,
            "lease": lease,
            "bytes": BATCH_BYTES,
            "alone": ALONE_BYTES,
            "workflow": run.workflow_id if run else None,
            "run": run.run_id if run else None,
            "path": consumer.path,
            "build": consumer.build,
            "first_of_path": consumer.path == "temporal" or consumer.everything,
            "last_of_path": consumer.path == "direct" or consumer.everything,
        },
    )
    rows.sort(key=lambda row: (row.priority, row.seq))
    events = [ClaimedEvent(row.id, row.event_id, row.attempts, row.trace_parent) for row in rows]
    ready = rows[0].ready if rows else 0
    return Claim(events, more=len(events) >= limit or ready > len(events))


async def claim_events(
    connection: Connection, ids: Sequence[UUID], *, batch: UUID, lease: float, consumer: Consumer
) -> list[UUID]:
    """Lease these events to `batch` for `lease` seconds, whatever the share of their path; return the ids of those claimed.

    The others have an owner, wait for their next attempt, are final, belong to a paused source, or are of a document that
    another build processes.
    """
    cursor = await connection.execute(
        f"""WITH {CANDIDATE}, buckets AS MATERIALIZED (
             SELECT CASE WHEN is_candidate THEN 0 ELSE candidate END AS first,
                    CASE WHEN is_candidate THEN candidate WHEN is_replaced THEN 0 ELSE {BUCKETS} END AS until
             FROM (SELECT {ROLE}) role
           ), ready AS (
             SELECT id FROM inbox
             WHERE id = ANY(%(ids)s) AND open AND next_at <= clock_timestamp()
               AND source NOT IN (SELECT name FROM sources WHERE paused) AND {IN_BUCKETS}
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
           )
           UPDATE inbox SET batch = %(batch)s, next_at = clock_timestamp() + make_interval(secs => %(lease)s),
                            workflow_id = NULL, run_id = NULL, {PROCESSED}
           FROM ready WHERE inbox.id = ready.id RETURNING inbox.id""",
        {
            "ids": list(ids),
            "batch": batch,
            "lease": lease,
            "path": consumer.path,
            "build": consumer.build,
        },
    )
    return [row["id"] for row in await cursor.fetchall()]


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


@asynccontextmanager
async def keeping(db: Postgres, batches: Sequence[UUID], *, lease: float) -> AsyncIterator[None]:
    """Renew the leases of batches every third of `lease` seconds inside the block, however long it takes."""
    task = asyncio.create_task(_keep(db, batches, lease))
    try:
        yield
    finally:
        task.cancel()


async def _keep(db: Postgres, batches: Sequence[UUID], lease: float) -> None:
    while True:
        await asyncio.sleep(lease / 3)
        try:
            async with db.connection() as connection:
                await renew(connection, batches, lease=lease)
        except ApexError as error:
            logger(component="inbox").warning(
                "lease not renewed", batch=str(batches[0]), reason=str(error)
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


async def take_back(connection: Connection, build: str, *, wait: bool) -> list[UUID]:
    """Return the claimed events of a build to the queue, ready for others at once; return their ids.

    Skips events that a step of the build holds at the moment or, with `wait`, waits for them.
    """
    skip: LiteralString = "" if wait else "SKIP LOCKED"
    cursor = await connection.execute(
        f"""UPDATE inbox SET batch = NULL, starts = 0, next_at = clock_timestamp()
           FROM (SELECT id FROM inbox WHERE open AND batch IS NOT NULL AND build = %s
                 ORDER BY id FOR NO KEY UPDATE {skip}) held
           WHERE inbox.id = held.id RETURNING inbox.id""",
        (build,),
    )
    return [row["id"] for row in await cursor.fetchall()]
