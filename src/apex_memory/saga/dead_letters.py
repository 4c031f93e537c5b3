"""Dead letters: events that could not go on, each with the reason and the remedy. Listed, shown, redriven, discarded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, LiteralString
from uuid import UUID

from apex_memory.errors import Conflict, NotFound
from apex_memory.inbox import hints, transitions
from apex_memory.inbox.queries import PAYLOAD_BYTES
from apex_memory.model import MALFORMED, UNFETCHED, now
from apex_memory.saga.journal import abort_attempts
from apex_memory.stores.postgres import Connection, Postgres, fetch_rows

Status = Literal["open", "retrying", "resolved", "discarded", "superseded"]

_COLUMNS: LiteralString = """l.id, l.inbox_id, l.source, l.doc_id, l.version, l.event_id, l.step, l.error_class, l.fingerprint,
       l.message, l.remedy, l.attempts, l.first_at, l.last_at, l.pipeline, l.status, l.resolution, l.actor"""
"""The fields of `DeadLetter`, of `dead_letters` as `l`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A row of `dead_letters`: an event that could not go on, and why."""

    id: int
    inbox_id: UUID
    source: str
    doc_id: UUID
    version: int
    event_id: str
    step: str
    error_class: str
    fingerprint: str
    """The same for failures of the same kind."""
    message: str
    remedy: str
    attempts: int
    first_at: datetime
    last_at: datetime
    pipeline: str
    status: Status
    resolution: str | None
    actor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterDetail(DeadLetter):
    """A dead letter with details of its event."""

    content_type: str
    doc_key: str
    occurred_at: datetime
    payload_bytes: int | None
    """None where retention removed the payload."""


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
    ) -> list[DeadLetter]:
        """Return the dead letters that match every filter, newest first. A filter of None matches any.

        `after` is the `last_at` and the `id` of the last dead letter of the previous page.
        """
        last_at, last_id = after or (None, None)
        return await self._db.fetch_rows(
            DeadLetter,
            f"""SELECT {_COLUMNS} FROM dead_letters l
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

    async def show(self, id: int) -> DeadLetterDetail:
        """Return one dead letter with details of its event. Raises `NotFound`."""
        letter = await self._db.fetch_row(
            DeadLetterDetail,
            f"""SELECT {_COLUMNS}, i.content_type, i.doc_key, i.occurred_at,
                      {PAYLOAD_BYTES} AS payload_bytes
               FROM dead_letters l JOIN inbox i ON i.id = l.inbox_id LEFT JOIN payloads p ON p.inbox_id = i.id
               LEFT JOIN payload_references r ON r.inbox_id = i.id LEFT JOIN payload_objects o ON o.name = r.object
               WHERE l.id = %s""",
            (id,),
        )
        if letter is None:
            raise _not_found(id)
        return letter

    async def redrive(
        self, ids: Sequence[int], *, actor: str, dry_run: bool = False
    ) -> list[DeadLetter]:
        """Send the events of open dead letters through the pipeline again, with their original order.

        A dead letter of a record that the vendor did not return is resolved: its change hint is stored again, so the
        next pull fetches the record, and files a new dead letter if that fails.

        Returns the dead letters that moved (or would move, with `dry_run`). One that is `retrying` already is
        left out. Raises `NotFound` for an unknown id, `Conflict` for one that is closed.
        """
        async with self._db.transaction() as connection:
            letters = await _lock_open(connection, ids)
            if dry_run or not letters:
                return letters
            keys = await _hint_keys(connection, letters)
            unfetched = [letter for letter in letters if letter.id in keys]
            others = [letter for letter in letters if letter.id not in keys]
            for source in {letter.source for letter in unfetched}:
                # The time of the redrive, so that another failure is another dead letter.
                again = {keys[letter.id]: now() for letter in unfetched if letter.source == source}
                await hints.store(connection, source, again)
            await _resolve(connection, unfetched, "resolved", "its record is fetched again", actor)
            await transitions.redrive(connection, [letter.inbox_id for letter in others])
            await _resolve(connection, others, "retrying", None, actor)
            return letters

    async def discard(self, ids: Sequence[int], *, actor: str, reason: str) -> list[DeadLetter]:
        """Close open dead letters for good, with a reason; return them. Their raw events stay.

        Raises `NotFound` for an unknown id, `Conflict` for one that is closed.
        """
        async with self._db.transaction() as connection:
            letters = await _lock_open(connection, ids)
            await _resolve(connection, letters, "discarded", reason, actor)
            return letters

    async def discard_events(
        self, ids: Sequence[UUID], *, actor: str, reason: str
    ) -> list[DeadLetter]:
        """End events that are not final, whatever a worker does with them now; return their dead letters.

        The raw events stay, with closed dead letters that say who discarded them and why. Raises `NotFound` for
        an unknown id, `Conflict` for an event that is final.
        """
        async with self._db.transaction() as connection:
            moved = await transitions.discard(connection, ids, reason)
            if left := sorted(set(ids) - set(moved)):
                raise await _why_not_discarded(connection, left[0])
            await abort_attempts(connection, moved, "its event was discarded")
            letters = await fetch_rows(
                connection,
                DeadLetter,
                f"""INSERT INTO dead_letters AS l (inbox_id, source, doc_id, version, event_id, step, error_class, fingerprint,
                                                  message, attempts, first_at, pipeline)
                   SELECT id, source, doc_id, version, event_id, CASE WHEN prepared_at IS NULL THEN 'prepare' ELSE 'stage' END,
                          'Discarded', 'discarded', %s, attempts, received_at, ''
                   FROM inbox WHERE id = ANY(%s) ORDER BY id
                   ON CONFLICT (inbox_id) DO UPDATE SET status = 'open', last_at = clock_timestamp()
                   RETURNING {_COLUMNS}""",
                (reason, moved),
            )
            await _resolve(connection, letters, "discarded", reason, actor)
            return [
                replace(letter, status="discarded", resolution=reason, actor=actor)
                for letter in letters
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


async def _lock_open(connection: Connection, ids: Sequence[int]) -> list[DeadLetter]:
    """Lock the events of the dead letters, then the dead letters; return those that are open."""
    await connection.execute(
        """SELECT FROM inbox WHERE id IN (SELECT inbox_id FROM dead_letters WHERE id = ANY(%s))
           ORDER BY id FOR NO KEY UPDATE""",
        (list(ids),),
    )
    letters = await fetch_rows(
        connection,
        DeadLetter,
        f"SELECT {_COLUMNS} FROM dead_letters l WHERE id = ANY(%s) ORDER BY inbox_id FOR UPDATE",
        (list(ids),),
    )
    missing = set(ids) - {letter.id for letter in letters}
    if missing:
        raise _not_found(min(missing))
    for letter in letters:
        if letter.status not in ("open", "retrying"):
            raise Conflict(
                f"dead letter {letter.id} is {letter.status}",
                remedy="only open dead letters can be redriven or discarded",
            )
    return [letter for letter in letters if letter.status == "open"]


def _not_found(id: int) -> NotFound:
    return NotFound(f"dead letter {id} not found", remedy="`apex dead-letters list` lists them")


async def _hint_keys(connection: Connection, letters: Sequence[DeadLetter]) -> dict[int, str]:
    """Return the key of the change hint of each of these dead letters whose record the vendor did not return."""
    cursor = await connection.execute(
        "SELECT id, doc_key FROM inbox WHERE id = ANY(%s) AND content_type = %s AND starts_with(doc_key, %s)",
        ([letter.inbox_id for letter in letters], MALFORMED, UNFETCHED),
    )
    keys = {row["id"]: row["doc_key"].removeprefix(UNFETCHED) for row in await cursor.fetchall()}
    return {letter.id: keys[letter.inbox_id] for letter in letters if letter.inbox_id in keys}


async def _resolve(
    connection: Connection,
    letters: Sequence[DeadLetter],
    status: Status,
    resolution: str | None,
    actor: str,
) -> None:
    """Set the status of locked dead letters, with an audit row for each."""
    await connection.execute(
        "UPDATE dead_letters SET status = %s, resolution = %s, actor = %s, last_at = clock_timestamp() WHERE id = ANY(%s)",
        (status, resolution, actor, [letter.id for letter in letters]),
    )
    for letter in letters:
        await connection.execute(
            "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
            (
                actor,
                f"dead-letter {status}",
                str(letter.inbox_id),
                json.dumps({"id": letter.id, "reason": resolution}),
            ),
        )
