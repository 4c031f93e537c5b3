"""Backfills fetch a range of a source's past again; replays send stored raw events through the pipeline again.

Both are bulk work with a row that shows their progress. A replayed event is a new event with the version of the old
one: it wins over the document that older code made of the same payload, and loses to any newer version.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

from psycopg.types.json import Jsonb

from apex_memory.errors import Conflict, NotFound
from apex_memory.fetching.pages import land_page
from apex_memory.fetching.pulls import Backfill
from apex_memory.inbox import EVENT_COLUMNS, StoredEvent
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import Priority
from apex_memory.sources.pages import BackfillRange
from apex_memory.stores.postgres import Postgres

CHUNK = 200  # events replayed in one transaction
WALK = 2_000  # events of the source that are read to find them
MARK = "#replay:"  # in the id of a replayed event, before the id of the replay

Kind = Literal["backfill", "replay"]

_COLUMNS: LiteralString = "id, source, kind, since, until, state, position, seen, landed, error, actor, started_at, ended_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBackfill:
    """A row of `backfills`: a backfill or replay with its progress."""

    id: UUID
    source: str
    kind: Kind
    since: datetime
    until: datetime
    state: str
    """`running`, `done`, `failed` or `cancelled`."""
    position: dict[str, Any]
    """Where a replay goes on: `seq` is that of the last event that it looked at."""
    seen: int
    landed: int
    error: str | None
    actor: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class ReplayedChunk:
    """A step of a replay: events read and landed again. Both may be 0 although there is `more`."""

    read: int
    landed: int
    more: bool
    """False when the replay has come to its end, or no longer runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """A stretch of a source's events: the last of it, and those to replay."""

    seq: int | None
    """None after the newest event of the source."""
    events: list[UUID]


# The stretch comes first, in the order of `inbox_source`, and the conditions then. Otherwise the planner expects so few events that
# it reads and sorts all that are left of the source for each chunk: 1 to 2 s at 142,000, and now 25 ms. The planner does not see
# the length of the stretch for the same reason (`inbox/queries.py`).
_WALK: LiteralString = f"""
WITH walked AS MATERIALIZED (
  SELECT id, seq, event_id, received_at FROM inbox WHERE source BETWEEN %(source)s AND %(source)s AND seq > %(after)s
  ORDER BY source DESC, seq LIMIT (SELECT {WALK})
), chosen AS MATERIALIZED (
  SELECT id, seq FROM walked w
  WHERE received_at >= %(since)s AND received_at < %(until)s AND strpos(event_id, '{MARK}') = 0
    AND NOT EXISTS (SELECT FROM dead_letters l WHERE l.inbox_id = w.id AND l.status IN ('discarded', 'open'))
  ORDER BY seq LIMIT {CHUNK}
)
SELECT CASE WHEN (SELECT count(*) FROM chosen) = {CHUNK} THEN (SELECT max(seq) FROM chosen)
            ELSE (SELECT max(seq) FROM walked) END AS seq,
       ARRAY(SELECT id FROM chosen) AS events"""


class Backfills:
    def __init__(self, db: Postgres, payloads: PayloadStore) -> None:
        self._db = db
        self._payloads = payloads

    async def create(
        self, source: str, kind: Kind, since: datetime, until: datetime, *, actor: str
    ) -> UUID:
        """Record a backfill or replay for a flow to carry out; return its id. Raises `Conflict` while the source has one."""
        async with self._db.transaction() as connection:
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"backfill {source}",)
            )
            running = await (
                await connection.execute(
                    "SELECT id FROM backfills WHERE source = %s AND state = 'running'", (source,)
                )
            ).fetchone()
            if running:
                raise Conflict(
                    f"{source}: backfill {running['id']} is running",
                    remedy="wait until it has ended (`apex sources backfills`), or cancel it",
                )
            row = await (
                await connection.execute(
                    """INSERT INTO backfills (source, kind, since, until, actor) VALUES (%s, %s, %s, %s, %s)
                       RETURNING id""",
                    (source, kind, since, until, actor),
                )
            ).fetchone()
            assert row is not None
            await connection.execute(
                "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
                (
                    actor,
                    kind,
                    source,
                    Jsonb({"since": since.isoformat(), "until": until.isoformat()}),
                ),
            )
        id: UUID = row["id"]
        return id

    async def get(self, id: UUID) -> RecordedBackfill:
        """Return a backfill or replay. Raises `NotFound`."""
        row = await self._db.fetch_row(
            RecordedBackfill, f"SELECT {_COLUMNS} FROM backfills WHERE id = %s", (id,)
        )
        if row is None:
            raise NotFound(f"backfill {id} not found", remedy="`apex sources backfills` lists them")
        return row

    async def running(self) -> list[tuple[str, UUID]]:
        """Return source and id of those that are running, whether or not a flow works on them."""
        rows = await self._db.fetch("SELECT source, id FROM backfills WHERE state = 'running'")
        return [(row["source"], row["id"]) for row in rows]

    async def listed(
        self, *, after: tuple[datetime, UUID] | None = None, limit: int = 50
    ) -> list[RecordedBackfill]:
        """Return backfills and replays with their progress, the newest first.

        `after` is the `started_at` and the `id` of the last row of the previous page.
        """
        started_at, id = after or (None, None)
        return await self._db.fetch_rows(
            RecordedBackfill,
            f"""SELECT {_COLUMNS} FROM backfills
                WHERE %(started_at)s::timestamptz IS NULL OR (started_at, id) < (%(started_at)s, %(id)s::uuid)
                ORDER BY started_at DESC, id DESC LIMIT %(limit)s""",
            {"started_at": started_at, "id": id, "limit": limit},
        )

    async def progress(self, id: UUID, *, seen: int, landed: int) -> bool:
        """Record progress; return False when it was cancelled meanwhile."""
        return bool(
            await self._db.execute(
                """UPDATE backfills SET seen = greatest(seen, %s), landed = greatest(landed, %s)
                   WHERE id = %s AND state = 'running'""",
                (seen, landed, id),
            )
        )

    async def end(self, id: UUID, state: str, error: str | None = None) -> bool:
        """End a running one as `done`, `failed` or `cancelled` and drop its cursor; return False if it had ended already."""
        ended = await self._db.execute(
            "UPDATE backfills SET state = %s, error = %s, ended_at = now() WHERE id = %s AND state = 'running'",
            (state, error, id),
        )
        await self._db.execute("DELETE FROM cursors WHERE source LIKE %s", (f"%#{id}",))
        return bool(ended)

    async def order(self, id: UUID) -> Backfill:
        """Return the range that a backfill fetches."""
        row = await self.get(id)
        return Backfill(id, row.source, BackfillRange(row.since, row.until))

    async def replay_chunk(self, id: UUID) -> ReplayedChunk:
        """Land the next raw events of a replay again, at most `CHUNK`, found among at most `WALK`; return what was done.

        Leaves out what an operator discarded, what retention removed, and open dead letters: these are redriven, and a copy of
        each would fail beside it. Safe to repeat. Raises `NoWrites` while events have
        no room.
        """
        row = await self.get(id)
        if row.state != "running":
            return ReplayedChunk(0, 0, more=False)
        await self._payloads.get_ready()
        walk = await self._db.fetch_row(
            _Walk,
            _WALK,
            {
                "source": row.source,
                "after": row.position.get("seq", 0),
                "since": row.since,
                "until": row.until,
            },
        )
        if walk is None or walk.seq is None:
            return ReplayedChunk(0, 0, more=False)
        rows = await self._db.fetch_rows(
            StoredEvent,
            f"""SELECT {EVENT_COLUMNS} FROM inbox i JOIN payloads p ON p.inbox_id = i.id
                LEFT JOIN payload_references r ON r.inbox_id = i.id WHERE i.id = ANY(%s) ORDER BY i.seq""",
            (walk.events,),
        )
        events = [
            stored.event(event_id=f"{stored.event_id}{MARK}{id.hex[:12]}", priority=Priority.P2)
            for stored in rows
        ]
        async with self._db.transaction() as connection:
            landed = await land_page(connection, row.source, events) if events else []
            fresh = sum(not item.duplicate for item in landed)
            await connection.execute(
                """UPDATE backfills SET position = %s, seen = seen + %s, landed = landed + %s
                   WHERE id = %s AND position = %s""",
                (Jsonb({"seq": walk.seq}), len(rows), fresh, id, Jsonb(row.position)),
            )
        return ReplayedChunk(len(rows), fresh, more=True)
