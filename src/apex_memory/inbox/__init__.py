"""The inbox: raw events, landed before anything else happens to them, and claimed in batches.

Landing is one statement for any number of events and never needs anything but PostgreSQL. A claim
is a lease: `next_at` moves to its end, and a row whose lease has run out is simply ready again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import DictRow

from apex_memory.errors import ApexError, NotFound
from apex_memory.model import Event, LandResult, Priority
from apex_memory.stores.postgres import Connection, Postgres, Row
from apex_memory.telemetry import DUPLICATES, LANDED, logger


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event in a batch, without its payload."""

    id: UUID
    event_id: str
    attempts: int
    trace_parent: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A claimed batch: its id (the lease's owner) and its events."""

    id: UUID
    source: str
    events: list[Claimed]
    more: bool
    """The batch came back full: there is probably more."""


@dataclass(frozen=True, slots=True)
class Run:
    """The workflow run that carries a batch, for the link from an event's page."""

    workflow_id: str
    run_id: str


class Inbox:
    def __init__(self, db: Postgres) -> None:
        self._db = db
        self._log = logger(component="inbox")

    async def land(
        self, events: Sequence[Event], connection: Connection | None = None
    ) -> list[LandResult]:
        """Commit events; answers one `LandResult` each, in order. A redelivery keeps the first payload.

        With `connection` they are part of the caller's transaction.
        """
        if not events:
            return []
        distinct = {event.id: event for event in events}
        rows = await (self._db.fetch if connection is None else _within(connection))(
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
        fresh = {row["id"] for row in rows}
        answers = []
        for event in events:
            duplicate = event.id not in fresh
            fresh.discard(
                event.id
            )  # the same event twice in one request: the second is a duplicate
            (DUPLICATES if duplicate else LANDED).labels(event.source).inc()
            answers.append(
                LandResult(event.id, event.source, event.event_id, event.doc_id, duplicate)
            )
        return answers

    async def claim(
        self, source: str, *, batch: UUID, limit: int, lease: float, run: Run | None = None
    ) -> list[Claimed]:
        """Lease up to `limit` ready events of a source under `batch`, most urgent and oldest first.

        The same batch again leases the same events again, so a claim whose answer was lost can be repeated.
        """
        rows = await self._db.fetch(
            """WITH mine AS (
                 SELECT id FROM inbox WHERE open AND batch = %(batch)s ORDER BY id FOR NO KEY UPDATE
               ), ready AS (
                 SELECT id FROM inbox
                 WHERE open AND source = %(source)s AND next_at <= clock_timestamp() AND NOT EXISTS (SELECT FROM mine)
                   AND NOT EXISTS (SELECT FROM sources WHERE name = %(source)s AND paused)
                 ORDER BY priority, seq LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
               ), picked AS (SELECT id FROM mine UNION ALL SELECT id FROM ready)
               UPDATE inbox SET batch = %(batch)s, next_at = clock_timestamp() + make_interval(secs => %(lease)s),
                                workflow_id = %(workflow)s, run_id = %(run)s
               FROM picked WHERE inbox.id = picked.id
               RETURNING inbox.id, inbox.event_id, inbox.attempts, inbox.trace_parent, inbox.priority, inbox.seq""",
            {
                "source": source,
                "limit": limit,
                "batch": batch,
                "lease": lease,
                "workflow": run.workflow_id if run else None,
                "run": run.run_id if run else None,
            },
        )
        rows.sort(key=lambda row: (row["priority"], row["seq"]))
        return [
            Claimed(row["id"], row["event_id"], row["attempts"], row["trace_parent"])
            for row in rows
        ]

    async def renew(self, *batches: UUID, lease: float) -> None:
        """Move the end of the batches' leases, and that of their stages.

        Rows that a commit holds just now are passed over, as what waits for nothing needs no order:
        it ends them, or they are renewed the next time.
        """
        await self._db.execute(
            """UPDATE inbox SET next_at = clock_timestamp() + make_interval(secs => %s)
               FROM (SELECT id FROM inbox WHERE open AND batch = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED) mine
               WHERE inbox.id = mine.id""",
            (lease, list(batches)),
        )
        await self._db.execute(
            """UPDATE stages SET lease_until = clock_timestamp() + make_interval(secs => %s)
               FROM (SELECT stage_id FROM stages WHERE state = 'staging' AND owner = ANY(%s) FOR UPDATE SKIP LOCKED) mine
               WHERE stages.stage_id = mine.stage_id""",
            (lease, list(batches)),
        )

    @asynccontextmanager
    async def keeping(self, *batches: UUID, lease: float) -> AsyncIterator[None]:
        """Renew the batches' leases while a step works, however long the embedding takes."""
        keeping = asyncio.create_task(self._keep(batches, lease))
        try:
            yield
        finally:
            keeping.cancel()

    async def _keep(self, batches: Sequence[UUID], lease: float) -> None:
        while True:
            await asyncio.sleep(lease / 3)
            try:
                await self.renew(*batches, lease=lease)
            except ApexError as error:
                self._log.warning("lease not renewed", batch=str(batches[0]), reason=str(error))

    async def events(self, batch: UUID) -> list[tuple[Event, int]]:
        """The events of a batch that are still to be prepared, with payload and failed attempts."""
        rows = await self._db.fetch(
            """SELECT i.*, p.body FROM inbox i JOIN payloads p ON p.inbox_id = i.id
               WHERE i.open AND i.batch = %s AND i.state = 'received' ORDER BY i.priority, i.seq""",
            (batch,),
        )
        return [(event_of(row), row["attempts"]) for row in rows]

    async def held(self, batch: UUID) -> list[UUID]:
        """Ids of the events that a batch still holds."""
        rows = await self._db.fetch(
            "SELECT id FROM inbox WHERE open AND batch = %s ORDER BY id", (batch,)
        )
        return [row["id"] for row in rows]

    async def event(self, id: UUID) -> Event:
        """One raw event, as it was landed. `NotFound` if there is none, or its payload was removed by retention."""
        row = await self._db.fetch_one(
            "SELECT i.*, p.body FROM inbox i JOIN payloads p ON p.inbox_id = i.id WHERE i.id = %s",
            (id,),
        )
        if row is None:
            raise NotFound(
                f"event {id}: no payload here",
                remedy="check the id; payloads are kept for payload_days",
            )
        return event_of(row)

    async def ready(self) -> dict[str, int]:
        """Events a source that could be claimed now; none of a paused one."""
        rows = await self._db.fetch(
            """SELECT source, count(*) AS n FROM inbox
               WHERE open AND next_at <= clock_timestamp() AND source NOT IN (SELECT name FROM sources WHERE paused)
               GROUP BY source"""
        )
        return {row["source"]: row["n"] for row in rows}

    async def finished(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the events that are at an end, or parked: nothing more will happen to them by itself soon."""
        rows = await self._db.fetch(
            "SELECT id FROM inbox WHERE id = ANY(%s) AND NOT open", (list(ids),)
        )
        return {row["id"] for row in rows}

    async def backlog(self) -> list[dict[str, Any]]:
        """Rows not at an end: source, state, store waited for, count, oldest."""
        return await self._db.fetch(
            """SELECT source, state, park_store, count(*) AS events, min(received_at) AS oldest
               FROM inbox WHERE open OR state = 'parked' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
        )


def _within(connection: Connection) -> Callable[..., Awaitable[list[DictRow]]]:
    async def fetch(query: LiteralString, parameters: Sequence[Any]) -> list[DictRow]:
        return await (await connection.execute(query, parameters)).fetchall()

    return fetch


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


def event_of(row: Row, *, event_id: str | None = None, priority: Priority | None = None) -> Event:
    """The event in a row of the inbox with its payload as `body`; under another id or priority if given."""
    return Event(
        source=row["source"],
        event_id=event_id or row["event_id"],
        doc_key=row["doc_key"],
        version=row["version"],
        occurred_at=row["occurred_at"],
        payload=bytes(row["body"]),
        content_type=row["content_type"],
        priority=Priority(row["priority"]) if priority is None else priority,
        trace_parent=row["trace_parent"],
    )
