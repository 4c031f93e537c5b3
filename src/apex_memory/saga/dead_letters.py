"""Dead letters: events that could not go on, with the reason and the way out. Listed, shown, redriven, discarded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from apex_memory.errors import Conflict, NotFound
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
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Newest first. None means any."""
        return await self._db.fetch(
            """SELECT * FROM dead_letters
               WHERE (%(status)s::text IS NULL OR status = %(status)s) AND (%(source)s::text IS NULL OR source = %(source)s)
                 AND (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s)
               ORDER BY last_at DESC LIMIT %(limit)s""",
            {"status": status, "source": source, "fingerprint": fingerprint, "limit": limit},
        )

    async def show(self, id: int) -> dict[str, Any]:
        """One dead letter with its event's content type and size. The payload itself is at the event."""
        row = await self._db.fetch_one(
            """SELECT l.*, i.content_type, i.doc_key, i.occurred_at, octet_length(p.body) AS payload_bytes
               FROM dead_letters l JOIN inbox i ON i.id = l.inbox_id LEFT JOIN payloads p ON p.inbox_id = i.id WHERE l.id = %s""",
            (id,),
        )
        if row is None:
            raise NotFound(
                f"dead letter {id}: no such",
                remedy="`apex dead-letters list` shows those there are",
            )
        return row

    async def redrive(
        self, ids: Sequence[int], *, actor: str, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        """Send events round again from prepare, with their original order. Answers the dead letters it moved (or would)."""
        async with self._db.transaction() as connection:
            rows = await _open(connection, ids)
            if dry_run or not rows:
                return rows
            await connection.execute(
                """UPDATE inbox SET state = 'received', attempts = 0, next_at = clock_timestamp(), ended_at = NULL, batch = NULL
                   WHERE id = ANY(%s) AND state = 'dead'""",
                ([row["inbox_id"] for row in rows],),
            )
            await _resolve(connection, rows, "retrying", None, actor)
            return rows

    async def discard(self, ids: Sequence[int], *, actor: str, reason: str) -> list[dict[str, Any]]:
        """Close dead letters for good; the raw events stay, and say why."""
        async with self._db.transaction() as connection:
            rows = await _open(connection, ids)
            await _resolve(connection, rows, "discarded", reason, actor)
            return rows


async def _open(connection: Connection, ids: Sequence[int]) -> list[dict[str, Any]]:
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
        raise NotFound(
            f"dead letter {min(missing)}: no such",
            remedy="`apex dead-letters list` shows those there are",
        )
    closed = [row for row in rows if row["status"] not in ("open", "retrying")]
    if closed:
        raise Conflict(
            f"dead letter {closed[0]['id']} is {closed[0]['status']}",
            remedy="only open ones can be redriven or discarded",
        )
    return [row for row in rows if row["status"] == "open"]


async def _resolve(
    connection: Connection,
    rows: Sequence[dict[str, Any]],
    status: str,
    resolution: str | None,
    actor: str,
) -> None:
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
