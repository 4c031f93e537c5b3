"""The states of a copy: `waiting → delivered`, `waiting → dead → waiting` by a redrive, `discarded` from both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from apex_memory.errors import Conflict, NotFound
from apex_memory.mirror.copies import Headers, unpack_headers
from apex_memory.stores.postgres import Connection, Postgres

AT_ONCE = 50  # copies that are read together
AT_ONCE_BYTES = 8_000_000  # of their bodies; one larger body is read alone
# Attempts before a refused copy is a dead letter, where the copy before it was delivered.
REFUSALS = 5
MOST_MOVED = 10_000  # copies that one redrive or discard of a source moves


State = Literal["waiting", "delivered", "dead", "discarded"]


@dataclass(frozen=True, slots=True)
class WaitingCopy:
    """A copy that is to be sent."""

    id: int
    refusals: int
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class TargetState:
    """How a source's target responded last: failures in a row, and whether it refused the last copy for good."""

    failures: int = 0
    refusing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceQueue:
    """The copies of a source that wait or are dead, and how its target responds."""

    source: str
    waiting: int = 0
    oldest: datetime | None = None
    """When the oldest copy that waits was received."""
    oldest_seconds: float | None = None
    """Its age."""
    dead: int = 0
    failing_since: datetime | None = None
    next_at: datetime | None = None
    last_error: str | None = None
    error_at: datetime | None = None
    delivered_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCopy:
    """A copy without its content. `bytes` is the size of its body."""

    id: int
    source: str
    received_at: datetime
    queued_at: datetime
    bytes: int
    state: State
    attempts: int
    last_error: str | None
    ended_at: datetime | None
    resolution: str | None
    actor: str | None


@dataclass(frozen=True, slots=True)
class _PackedCopy:
    id: int
    refusals: int
    query: bytes
    headers: bytes
    body: bytes


async def due(db: Postgres, sources: Sequence[str]) -> list[str]:
    """Return those of the sources that have waiting copies and whose target may be tried now.

    A wait that was decided at a time ahead of the clock, before the clock was set back, holds nothing.
    """
    rows = await db.fetch(
        """SELECT name FROM unnest(%s::text[]) AS name
           WHERE EXISTS (SELECT FROM mirror_copies c WHERE c.source = name AND c.state = 'waiting')
             AND NOT EXISTS (SELECT FROM mirrors m WHERE m.source = name AND m.next_at > clock_timestamp()
                               AND m.error_at <= clock_timestamp())""",
        (list(sources),),
    )
    return [row["name"] for row in rows]


async def target_state(db: Postgres, source: str) -> TargetState:
    """Return how a source's target responded last. One that was never tried has no failures."""
    state = await db.fetch_row(
        TargetState, "SELECT failures, refusing FROM mirrors WHERE source = %s", (source,)
    )
    return state or TargetState()


async def head(db: Postgres, source: str) -> list[WaitingCopy]:
    """Return the first waiting copies of a source, in their order."""
    packed = await db.fetch_rows(
        _PackedCopy,
        """SELECT id, refusals, coalesce(query, '') AS query, coalesce(headers, '') AS headers, body FROM (
             SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before FROM (
               SELECT * FROM mirror_copies WHERE source = %s AND state = 'waiting' ORDER BY id LIMIT %s) AS first) AS counted
           WHERE bytes_before = 0 OR bytes_before + bytes <= %s ORDER BY id""",
        (source, AT_ONCE, AT_ONCE_BYTES),
    )
    return [
        WaitingCopy(copy.id, copy.refusals, copy.query, unpack_headers(copy.headers), copy.body)
        for copy in packed
    ]


async def mark_delivered(db: Postgres, source: str, id: int) -> None:
    """Record that the target accepted a copy. Its query, headers and body are removed."""
    await db.execute(
        """WITH copy AS (
             UPDATE mirror_copies SET state = 'delivered', attempts = attempts + 1, ended_at = clock_timestamp(),
               last_error = NULL, query = NULL, headers = NULL, body = NULL
             WHERE id = %(id)s AND state = 'waiting')
           INSERT INTO mirrors AS m (source, delivered_at) VALUES (%(source)s, clock_timestamp())
           ON CONFLICT (source) DO UPDATE SET failing_since = NULL, failures = 0, refusing = false, next_at = NULL,
             delivered_at = excluded.delivered_at""",
        {"source": source, "id": id},
    )


async def mark_refused(
    db: Postgres, source: str, copy: WaitingCopy, reason: str, *, state: TargetState, wait: float
) -> bool:
    """Record that the target refused a copy; return whether the copy is a dead letter now.

    The first refused copy is tried `REFUSALS` times, `wait` seconds apart. While the target refuses one after the
    other, each is tried once, so that they do not hold the order for long.
    """
    dead = state.refusing or copy.refusals + 1 >= REFUSALS
    await db.execute(
        """WITH copy AS (
             UPDATE mirror_copies SET attempts = attempts + 1, refusals = refusals + 1, last_error = %(reason)s,
               state = CASE WHEN %(dead)s THEN 'dead' ELSE state END,
               ended_at = CASE WHEN %(dead)s THEN clock_timestamp() END
             WHERE id = %(id)s AND state = 'waiting')
           INSERT INTO mirrors AS m (source, refusing, next_at, last_error, error_at)
           VALUES (%(source)s, %(dead)s, CASE WHEN NOT %(dead)s THEN clock_timestamp() + make_interval(secs => %(wait)s) END,
                   %(reason)s, clock_timestamp())
           ON CONFLICT (source) DO UPDATE SET failing_since = NULL, failures = 0,
             refusing = m.refusing OR excluded.refusing, next_at = excluded.next_at,
             last_error = excluded.last_error, error_at = excluded.error_at""",
        {"source": source, "id": copy.id, "reason": reason, "dead": dead, "wait": wait},
    )
    return dead


async def mark_failed(
    db: Postgres, source: str, id: int, reason: str, *, wait: float, hold: float
) -> int:
    """Record that the target could not take a copy, and try it again after `wait` seconds.

    A target that has failed for `hold` seconds without a break holds nothing any longer: every waiting copy that is
    as old becomes a dead letter. Returns their number.
    """
    async with db.transaction() as connection:
        await connection.execute(
            "UPDATE mirror_copies SET attempts = attempts + 1, last_error = %s WHERE id = %s AND state = 'waiting'",
            (reason, id),
        )
        await connection.execute(
            """INSERT INTO mirrors AS m (source, failing_since, failures, next_at, last_error, error_at)
               VALUES (%(source)s, clock_timestamp(), 1, clock_timestamp() + make_interval(secs => %(wait)s), %(reason)s,
                       clock_timestamp())
               ON CONFLICT (source) DO UPDATE SET failing_since = coalesce(m.failing_since, excluded.failing_since),
                 failures = m.failures + 1, refusing = false, next_at = excluded.next_at,
                 last_error = excluded.last_error, error_at = excluded.error_at""",
            {"source": source, "wait": wait, "reason": reason},
        )
        cursor = await connection.execute(
            """UPDATE mirror_copies SET state = 'dead', ended_at = clock_timestamp(), last_error = %(reason)s
               WHERE source = %(source)s AND state = 'waiting'
                 AND queued_at <= clock_timestamp() - make_interval(secs => %(hold)s)
                 AND EXISTS (SELECT FROM mirrors m WHERE m.source = %(source)s
                             AND m.failing_since <= clock_timestamp() - make_interval(secs => %(hold)s))""",
            {"source": source, "hold": hold, "reason": reason},
        )
        return cursor.rowcount


async def summary(db: Postgres) -> list[SourceQueue]:
    """Return the queue of each source that has copies, or whose target was tried."""
    return await db.fetch_rows(
        SourceQueue,
        """SELECT source, coalesce(waiting, 0) AS waiting, oldest, coalesce(dead, 0) AS dead,
                  extract(epoch FROM clock_timestamp() - oldest)::float AS oldest_seconds,
                  failing_since, next_at, last_error, error_at, delivered_at
           FROM (SELECT source, count(*) AS waiting, min(received_at) AS oldest FROM mirror_copies
                 WHERE state = 'waiting' GROUP BY source) AS queued
           FULL JOIN (SELECT source, count(*) AS dead FROM mirror_copies WHERE state = 'dead' GROUP BY source) AS failed
             USING (source)
           FULL JOIN mirrors USING (source) ORDER BY source""",
    )


async def find(
    db: Postgres, *, state: str | None, source: str | None, after: int | None, limit: int
) -> list[ListedCopy]:
    """Return copies that match every filter, newest first, without their content. A filter of None matches any.

    `after` is the `id` of the last copy of the previous page.
    """
    return await db.fetch_rows(
        ListedCopy,
        """SELECT id, source, received_at, queued_at, bytes, state, attempts, last_error, ended_at, resolution, actor
           FROM mirror_copies
           WHERE (%(state)s::text IS NULL OR state = %(state)s) AND (%(source)s::text IS NULL OR source = %(source)s)
             AND (%(after)s::bigint IS NULL OR id < %(after)s) ORDER BY id DESC LIMIT %(limit)s""",
        {"state": state, "source": source, "after": after, "limit": limit},
    )


async def ids_of(db: Postgres, source: str, *, states: Sequence[str]) -> list[int]:
    """Return the ids of a source's copies in one of the states, the oldest first, at most `MOST_MOVED`."""
    rows = await db.fetch(
        "SELECT id FROM mirror_copies WHERE source = %s AND state = ANY(%s) ORDER BY id LIMIT %s",
        (source, list(states), MOST_MOVED),
    )
    return [row["id"] for row in rows]


async def redrive(db: Postgres, ids: Sequence[int], *, actor: str) -> int:
    """Send dead copies again, before those that came after them; return their number.

    Raises `NotFound` for an unknown id, `Conflict` for a copy that is not dead.
    """
    async with db.transaction() as connection:
        await _require_state(connection, ids, ("dead",))
        await connection.execute(
            """UPDATE mirror_copies SET state = 'waiting', queued_at = clock_timestamp(), refusals = 0, ended_at = NULL,
                 actor = %s WHERE id = ANY(%s)""",
            (actor, list(ids)),
        )
        await connection.execute(
            """UPDATE mirrors SET next_at = NULL, refusing = false
               WHERE source IN (SELECT source FROM mirror_copies WHERE id = ANY(%s))""",
            (list(ids),),
        )
        await _audit(connection, ids, "mirror redrive", actor, "")
    return len(ids)


async def discard(db: Postgres, ids: Sequence[int], *, actor: str, reason: str) -> int:
    """End dead or waiting copies for good and remove their content; return their number.

    Raises `NotFound` for an unknown id, `Conflict` for a copy that is delivered or discarded.
    """
    async with db.transaction() as connection:
        await _require_state(connection, ids, ("dead", "waiting"))
        await connection.execute(
            """UPDATE mirror_copies SET state = 'discarded', ended_at = clock_timestamp(), resolution = %s, actor = %s,
                 query = NULL, headers = NULL, body = NULL WHERE id = ANY(%s)""",
            (reason, actor, list(ids)),
        )
        await _audit(connection, ids, "mirror discard", actor, reason)
    return len(ids)


async def forget(db: Postgres, *, days: float) -> int:
    """Remove the rows of copies that were delivered or discarded more than `days` ago; return their number."""
    return await db.execute(
        """DELETE FROM mirror_copies WHERE state IN ('delivered', 'discarded')
           AND ended_at < clock_timestamp() - make_interval(secs => %s)""",
        (days * 86_400,),
    )


async def _require_state(connection: Connection, ids: Sequence[int], states: Sequence[str]) -> None:
    """Lock the copies. Raises `NotFound` for an unknown id, `Conflict` for one in another state."""
    cursor = await connection.execute(
        "SELECT id, state FROM mirror_copies WHERE id = ANY(%s) ORDER BY id FOR UPDATE",
        (list(ids),),
    )
    current = {row["id"]: row["state"] for row in await cursor.fetchall()}
    if missing := set(ids) - set(current):
        raise NotFound(
            f"mirrored webhook {min(missing)} not found", remedy="`apex mirror list` lists them"
        )
    other = sorted(id for id, state in current.items() if state not in states)
    if other:
        raise Conflict(
            f"mirrored webhook {other[0]} is {current[other[0]]}",
            remedy=f"only one that is {' or '.join(states)} can be changed so",
        )


async def _audit(
    connection: Connection, ids: Sequence[int], action: str, actor: str, reason: str
) -> None:
    """Write one audit row for all copies of a source that one call changed."""
    await connection.execute(
        """INSERT INTO audit (actor, action, subject, detail)
           SELECT %s, %s, 'source:' || source, jsonb_build_object('copies', count(*), 'first', min(id), 'last', max(id))
             || %s::jsonb
           FROM mirror_copies WHERE id = ANY(%s) GROUP BY source""",
        (actor, action, json.dumps({"reason": reason} if reason else {}), list(ids)),
    )
