"""Dead letters: events that could not go on, each with the reason and the remedy. Listed, shown, redriven, discarded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from apex_memory.errors import Conflict, NotFound
from apex_memory.inbox import hints, transitions
from apex_memory.model import MALFORMED, UNFETCHED, now
from apex_memory.stores.postgres import Connection, Postgres


class DeadLetters:
    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def find(
        self,
        *,
        status: str | None = "open",
        source: str | None = None,
        fingerprint: str | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Dead letters that match every filter, newest first. A filter of None matches any.

        `after` is the `last_at` and the `id` of the last dead letter of the previous page.
        """
        last_at, last_id = after or (None, None)
        return await self._db.fetch(
            """SELECT * FROM dead_letters
               WHERE (%(status)s::text IS NULL OR status = %(status)s) AND (%(source)s::text IS NULL OR source = %(source)s)
                 AND (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s)
                 AND (%(last_at)s::timestamptz IS NULL OR (last_at, id) < (%(last_at)s, %(last_id)s::bigint))
               ORDER BY last_at DESC, id DESC LIMIT %(limit)s""",
            {
                "status": status,
                "source": source,
                "fingerprint": fingerprint,
                "last_at": last_at,
                "last_id": last_id,
                "limit": limit,
            },
        )

    async def open_ids(
        self, *, source: str | None, fingerprint: str | None, limit: int
    ) -> list[int]:
        """Return the ids of open dead letters that match every filter, those that failed longest ago first.

        One that is redriven and fails again goes to the end, so that repeated calls come to all of them.
        """
        rows = await self._db.fetch(
            """SELECT id FROM dead_letters
               WHERE status = 'open' AND (%(source)s::text IS NULL OR source = %(source)s)
                 AND (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s)
               ORDER BY last_at, id LIMIT %(limit)s""",
            {"source": source, "fingerprint": fingerprint, "limit": limit},
        )
        return [row["id"] for row in rows]

    async def show(self, id: int) -> dict[str, Any]:
        """One dead letter with its event's content type and size in bytes. Raises `NotFound`."""
        row = await self._db.fetch_one(
            """SELECT l.*, i.content_type, i.doc_key, i.occurred_at, coalesce(o.bytes, octet_length(p.body) - CASE WHEN p.data_key IS NULL THEN 0 ELSE 28 END) AS payload_bytes
               FROM dead_letters l JOIN inbox i ON i.id = l.inbox_id LEFT JOIN payloads p ON p.inbox_id = i.id
               LEFT JOIN payload_references r ON r.inbox_id = i.id LEFT JOIN payload_objects o ON o.name = r.object
               WHERE l.id = %s""",
            (id,),
        )
        if row is None:
            raise _not_found(id)
        return row

    async def redrive(
        self, ids: Sequence[int], *, actor: str, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        """Send the events of open dead letters through the pipeline again, with their original order.

        A dead letter of a record that the vendor did not return is resolved: its change hint is stored again, so the
        next pull fetches the record, and files a new dead letter if that fails.

        Returns the dead letters that moved (or would move, with `dry_run`). One that is `retrying` already is
        left out. Raises `NotFound` for an unknown id, `Conflict` for one that is closed.
        """
        async with self._db.transaction() as connection:
            rows = await _lock_open(connection, ids)
            if dry_run or not rows:
                return rows
            keys = await _hint_keys(connection, rows)
            for source in {row["source"] for row in rows}:
                # The time of the redrive, so that another failure is another dead letter.
                again = {
                    keys[row["id"]]: now()
                    for row in rows
                    if row["source"] == source and row["id"] in keys
                }
                if again:
                    await hints.store(connection, source, again)
            unfetched = [row for row in rows if row["id"] in keys]
            await _resolve(connection, unfetched, "resolved", "its record is fetched again", actor)
            others = [row for row in rows if row["id"] not in keys]
            await transitions.redrive(connection, [row["inbox_id"] for row in others])
            await _resolve(connection, others, "retrying", None, actor)
            return rows

    async def discard(self, ids: Sequence[int], *, actor: str, reason: str) -> list[dict[str, Any]]:
        """Close open dead letters for good, with a reason; return them. Their raw events stay.

        Raises `NotFound` for an unknown id, `Conflict` for one that is closed.
        """
        async with self._db.transaction() as connection:
            rows = await _lock_open(connection, ids)
            await _resolve(connection, rows, "discarded", reason, actor)
            return rows

    async def discard_events(
        self, ids: Sequence[UUID], *, actor: str, reason: str
    ) -> list[dict[str, Any]]:
        """End events that are not final, whatever a worker does with them now; return their dead letters.

        The raw events stay, with closed dead letters that say who discarded them and why. Raises `NotFound` for
        an unknown id, `Conflict` for an event that is final.
        """
        async with self._db.transaction() as connection:
            moved = await transitions.discard(connection, ids, reason)
            if left := sorted(set(ids) - set(moved)):
                raise await _why_not_discarded(connection, left[0])
            await connection.execute(
                """UPDATE stages SET state = 'aborted', ended_at = clock_timestamp(), error = 'its event was discarded'
                   FROM (SELECT stage_id FROM stages WHERE inbox_id = ANY(%s) AND state = 'staging'
                         ORDER BY doc_id FOR UPDATE) open
                   WHERE stages.stage_id = open.stage_id""",
                (moved,),
            )
            cursor = await connection.execute(
                """INSERT INTO dead_letters AS l (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint,
                                                  message, attempts, first_at, pipeline)
                   SELECT id, source, doc_id, version, event_id, CASE WHEN prepared_at IS NULL THEN 'prepare' ELSE 'stage' END,
                          'Discarded', 'discarded', %s, attempts, received_at, ''
                   FROM inbox WHERE id = ANY(%s) ORDER BY id
                   ON CONFLICT (inbox_id) DO UPDATE SET status = 'open', last_at = clock_timestamp()
                   RETURNING *""",
                (reason, moved),
            )
            rows = await cursor.fetchall()
            await _resolve(connection, rows, "discarded", reason, actor)
            return [
                {**row, "status": "discarded", "resolution": reason, "actor": actor} for row in rows
            ]


async def _why_not_discarded(connection: Connection, id: UUID) -> NotFound | Conflict:
    cursor = await connection.execute("SELECT state FROM inbox WHERE id = %s", (id,))
    row = await cursor.fetchone()
    if row is None:
        return NotFound(f"event {id} not found", remedy="`apex events` lists events")
    return Conflict(
        f"event {id} is {row['state']}",
        remedy="only an event that is not final can be discarded; a dead letter is discarded by its own id",
    )


async def _lock_open(connection: Connection, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Lock the events of the dead letters, then the dead letters; return those that are open."""
    await connection.execute(
        """SELECT FROM inbox WHERE id IN (SELECT inbox_id FROM dead_letters WHERE id = ANY(%s))
           ORDER BY id FOR NO KEY UPDATE""",
        (list(ids),),
    )
    cursor = await connection.execute(
        "SELECT * FROM dead_letters WHERE id = ANY(%s) ORDER BY inbox_id FOR UPDATE", (list(ids),)
    )
    rows = await cursor.fetchall()
    missing = set(ids) - {row["id"] for row in rows}
    if missing:
        raise _not_found(min(missing))
    closed = [row for row in rows if row["status"] not in ("open", "retrying")]
    if closed:
        raise Conflict(
            f"dead letter {closed[0]['id']} is {closed[0]['status']}",
            remedy="only open dead letters can be redriven or discarded",
        )
    return [row for row in rows if row["status"] == "open"]


def _not_found(id: int) -> NotFound:
    return NotFound(f"dead letter {id} not found", remedy="`apex dead-letters list` lists them")


async def _hint_keys(connection: Connection, rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Return the key of the change hint of each of these dead letters whose record the vendor did not return."""
    cursor = await connection.execute(
        "SELECT id, doc_key FROM inbox WHERE id = ANY(%s) AND content_type = %s AND starts_with(doc_key, %s)",
        ([row["inbox_id"] for row in rows], MALFORMED, UNFETCHED),
    )
    keys = {row["id"]: row["doc_key"].removeprefix(UNFETCHED) for row in await cursor.fetchall()}
    return {row["id"]: keys[row["inbox_id"]] for row in rows if row["inbox_id"] in keys}


async def _resolve(
    connection: Connection,
    rows: Sequence[dict[str, Any]],
    status: str,
    resolution: str | None,
    actor: str,
) -> None:
    """Set the status of locked dead letters, with an audit row for each."""
    await connection.execute(
        "UPDATE dead_letters SET status = %s, resolution = %s, actor = %s, last_at = clock_timestamp() WHERE id = ANY(%s)",
        (status, resolution, actor, [row["id"] for row in rows]),
    )
    for row in rows:
        await connection.execute(
            "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
            (
                actor,
                f"dead-letter {status}",
                str(row["inbox_id"]),
                json.dumps({"id": row["id"], "reason": resolution}),
            ),
        )
