"""The state machine of an event: every change of state, and nothing else.

The rule that it serves: what a source was answered 2xx ends as a live version, as a superseded version whose
text is kept, or as a dead letter that is listed with its reason; and nothing can hold a source for ever.

- A live version is `done`, and its document points at its stage. A superseded version is `superseded`, or `done`
  with a newer version live; its manifest keeps its text. A dead letter is `dead`, with a row in `dead_letters`
  that is written in the same transaction.
- Nothing holds a source for ever, because every open event has a deadline (`next_at`), every attempt is counted
  (`attempts`, `starts`, `parks`), and each count has a limit at which the event becomes a dead letter.

`tests/faults/test_every_end.py` searches for inputs that break the rule.

```
            land
             │
             ▼         mark_prepared
         received ───────────────────▶ prepared ─── end ──▶ done, superseded
             ◀────── unprepare ────────
          ▲ │ │ ▲                       ▲ │ │
          │ │ │ └────── unpark ──┬──────┘ │ │
          │ │ └───── park ──▶ parked ◀────┘ │
          │ │                   │ discard   │
          │ │   mark_dead,      ▼           │ mark_dead,
          │ └── discard ─────▶ dead ◀───────┘ discard
          └────── redrive ──────┘
```

- `received` and `prepared` are *open*: a drain claims them (`leases`). `prepared` has a manifest, so it never
  needs the pipeline again, unless another build of Apex claims it: that one makes its own manifest. `postpone` keeps
  the state: it records a failed attempt and delays the next.
- `parked` waits for a store. It is not open, so a source whose store is away costs no claims, and parking
  consumes no attempt. `unpark` returns an event to the open state it came from.
- A step counts itself in `starts` before it begins (`start`), and every outcome that it reports sets `starts` to
  zero. So `starts` counts the time-outs and crashes in a row, and bounds them (`steps/batches.py`). `parks` and
  `parked_at` bound parking in the same way (`saga/failures.py`).
- `done` and `superseded` are final. `dead` is final until an operator redrives it; a dead letter shows it.
- Whoever acts on a claim (`mark_prepared`, `park`, `postpone`, `mark_dead`) must still own it: `lock_owned` or the
  statement itself checks the batch, and a worker whose lease ran out changes nothing. `end` needs no owner:
  the commit that calls it has locked the events and checked its stages.

Every function is part of the caller's transaction and locks events by id, before stages, documents and dead
letters (the order is in `saga/journal.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, LiteralString
from uuid import UUID

from apex_memory.stores.postgres import Connection, fetch_rows

QUEUE_COPIES: LiteralString = """INSERT INTO shadows AS s (subject, build, inbox_id, source)
  SELECT r.subject, coalesce(r.build, ''), e.id, e.source FROM ended e JOIN rollouts r ON r.shadow AND (
    r.subject = 'source:' || e.source AND e.path = 'direct'
    OR r.subject = 'build' AND r.build IS NOT NULL AND r.build IS DISTINCT FROM e.build)
  ON CONFLICT (inbox_id, subject, build) DO UPDATE
    SET state = 'waiting', owner = NULL, next_at = clock_timestamp(), attempts = 0, tries = 0"""
"""Queues a copy of each row of `ended` for the other path, or for the candidate build, where a rollout wants to compare.

It is part of the statement that ends the events, so that no event is missed, and it costs nothing without a shadow.
"""
LONGEST_WAIT_SECONDS = 900  # between two attempts, whatever a vendor or a server demands
UNPARK_AMONG = 1_000  # parked events, the most urgent ones, of which the next is chosen
PARK_DEADLINE_SECONDS = 60  # a parked event is looked at again by then at the latest


@dataclass(frozen=True, slots=True)
class OwnedEvent:
    """An event that the caller's batch owns, locked."""

    id: UUID
    source: str
    attempts: int
    parks: int
    parked_at: datetime | None
    """When it was parked first, since it was parked `parks` times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEvent:
    """What an event's row records of a failure."""

    id: UUID
    attempts: int
    message: str
    store: str = ""
    """The store that a parked event waits for."""
    tried: bool = True
    """False for an event that was parked without a call to the store: that does not count as parked once more."""
    wait_seconds: float = 0
    """How long a postponed event waits for its next attempt."""


@dataclass(frozen=True, slots=True)
class EndedEvent:
    """An event that became `done` or `superseded`, for the metrics once its transaction has committed."""

    source: str
    state: str
    seconds: float
    """From received to the end."""


async def lock_owned(
    connection: Connection, batch: UUID, ids: Sequence[UUID]
) -> dict[UUID, OwnedEvent]:
    """Lock those of the events that the batch still owns; return them by id. An event that is missing has another owner now."""
    rows = await fetch_rows(
        connection,
        OwnedEvent,
        """SELECT id, source, attempts, parks, parked_at FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
           ORDER BY id FOR NO KEY UPDATE""",
        (list(ids), batch),
    )
    return {event.id: event for event in rows}


async def start(connection: Connection, batch: UUID, ids: Sequence[UUID]) -> None:
    """Count that a step begins to work on events that the batch still owns. Keeps their state."""
    await connection.execute(
        """UPDATE inbox SET starts = starts + 1
           FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
                 ORDER BY id FOR NO KEY UPDATE) mine
           WHERE inbox.id = mine.id""",
        (list(ids), batch),
    )


async def mark_prepared(connection: Connection, batch: UUID, ids: Sequence[UUID]) -> list[UUID]:
    """`received` → `prepared`, for events that the batch still owns; return their ids."""
    cursor = await connection.execute(
        """UPDATE inbox SET state = 'prepared', prepared_at = clock_timestamp(), starts = 0
           FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND open AND batch = %s
                 ORDER BY id FOR NO KEY UPDATE) mine
           WHERE inbox.id = mine.id RETURNING inbox.id""",
        (list(ids), batch),
    )
    return [row["id"] for row in await cursor.fetchall()]


async def unprepare(connection: Connection, ids: Sequence[UUID]) -> None:
    """`prepared` → `received`, ready at once: for events whose manifest is gone, which no stage can be made of."""
    if not ids:
        return
    await connection.execute(
        """UPDATE inbox SET state = 'received', prepared_at = NULL, batch = NULL, next_at = clock_timestamp()
           WHERE id = ANY(%s) AND open AND state = 'prepared'""",
        (list(ids),),
    )


async def end(
    connection: Connection, ids: Sequence[UUID], state: Literal["done", "superseded"]
) -> list[EndedEvent]:
    """Any open or parked state → `done` or `superseded`; return what ended. An event that is final already stays as it is."""
    if not ids:
        return []
    return await fetch_rows(
        connection,
        EndedEvent,
        f"""WITH ended AS (
             UPDATE inbox SET state = %s, ended_at = clock_timestamp(), batch = NULL, park_store = NULL, last_error = NULL,
                    starts = 0, parks = 0, parked_at = NULL
             WHERE id = ANY(%s) AND (open OR state = 'parked')
             RETURNING id, source, path, build, state, extract(epoch FROM ended_at - received_at)::float AS seconds
           ), queued AS ({QUEUE_COPIES})
           SELECT source, state, seconds FROM ended""",
        (state, sorted(ids)),
    )


async def park(connection: Connection, events: Sequence[FailedEvent]) -> None:
    """Open → `parked`, until the store that each waits for answers. Consumes no attempt."""
    if not events:
        return
    await connection.execute(
        """UPDATE inbox SET state = 'parked', batch = NULL, park_store = t.store, last_error = t.message, starts = 0,
                  parks = parks + CASE WHEN t.tried THEN 1 ELSE 0 END, parked_at = coalesce(parked_at, clock_timestamp()),
                  next_at = clock_timestamp() + make_interval(secs => %s)
           FROM unnest(%s::uuid[], %s::text[], %s::boolean[], %s::text[]) AS t (id, store, tried, message)
           WHERE inbox.id = t.id""",
        (
            PARK_DEADLINE_SECONDS,
            [event.id for event in events],
            [event.store for event in events],
            [event.tried for event in events],
            [event.message for event in events],
        ),
    )


async def unpark(connection: Connection, store: str, *, limit: int) -> int:
    """`parked` → `received` or `prepared`, for up to `limit` documents that wait for the store; return the number.

    Of the most urgent `UNPARK_AMONG`, or `limit` if that is more, those that were parked least often first, so that one event
    that its store cannot take does not stand in front of all others; such events end as dead letters (`MOST_PARKS`). Of each
    document the newest version: older ones then end as superseded.
    """
    # By the index `inbox_parked`, as far as needed. To choose among all takes 1 to 2.6 s for each pass at 300,000 parked events,
    # and at some millions longer than a statement may. The last look is at `park_store`, which only parked events have: a look at
    # `state` is taken for a reason to read that index to its end, once for each event, while statistics say that few are parked.
    cursor = await connection.execute(
        """WITH urgent AS MATERIALIZED (
             SELECT doc_id FROM inbox WHERE state = 'parked' AND park_store = %(store)s
             ORDER BY park_store, priority, seq LIMIT greatest(%(limit)s, %(among)s)
           ), newest AS MATERIALIZED (
             SELECT event.id FROM (SELECT DISTINCT doc_id FROM urgent) known CROSS JOIN LATERAL (
               SELECT id, parks, priority, seq FROM inbox
               WHERE doc_id = known.doc_id AND state = 'parked' AND park_store = %(store)s
               ORDER BY version DESC, event_id DESC LIMIT 1
             ) event ORDER BY event.parks, event.priority, event.seq LIMIT %(limit)s
           ), next AS (
             SELECT id FROM inbox WHERE id = ANY(ARRAY(SELECT id FROM newest)) AND park_store = %(store)s
             FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE inbox SET state = CASE WHEN prepared_at IS NULL THEN 'received' ELSE 'prepared' END,
                            park_store = NULL, next_at = clock_timestamp()
           FROM next WHERE inbox.id = next.id""",
        {"store": store, "limit": limit, "among": UNPARK_AMONG},
    )
    return cursor.rowcount


async def postpone(connection: Connection, events: Sequence[FailedEvent]) -> None:
    """Open → open: record a failed attempt, and let the next one wait."""
    if not events:
        return
    await connection.execute(
        """UPDATE inbox SET attempts = t.attempts, batch = NULL, last_error = t.message, starts = 0,
                  next_at = clock_timestamp() + make_interval(secs => t.wait)
           FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::float[]) AS t (id, attempts, message, wait)
           WHERE inbox.id = t.id""",
        (
            [event.id for event in events],
            [event.attempts for event in events],
            [event.message for event in events],
            [min(event.wait_seconds, LONGEST_WAIT_SECONDS) for event in events],
        ),
    )


async def correct_deadlines(connection: Connection, *, lease: float) -> int:
    """Make open events ready whose deadline is further ahead than any lease or wait; return the number.

    Such a deadline was written before the clock of PostgreSQL was set back. Without this the event would wait until
    the clock is there again.
    """
    cursor = await connection.execute(
        """UPDATE inbox SET next_at = clock_timestamp()
           FROM (SELECT id FROM inbox
                 WHERE open AND next_at > clock_timestamp() + make_interval(secs => %s)
                 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED) late
           WHERE inbox.id = late.id""",
        (2 * max(lease, LONGEST_WAIT_SECONDS),),
    )
    return cursor.rowcount


async def mark_dead(connection: Connection, events: Sequence[FailedEvent]) -> None:
    """Open → `dead`. The caller files the dead letter that shows it in the same transaction."""
    if not events:
        return
    await connection.execute(
        f"""WITH ended AS (
             UPDATE inbox SET state = 'dead', ended_at = clock_timestamp(), batch = NULL, park_store = NULL, attempts = t.attempts,
                    last_error = t.message
             FROM unnest(%s::uuid[], %s::integer[], %s::text[]) AS t (id, attempts, message) WHERE inbox.id = t.id
             RETURNING inbox.id, inbox.source, inbox.path, inbox.build
           )
           {QUEUE_COPIES}""",
        (
            [event.id for event in events],
            [event.attempts for event in events],
            [event.message for event in events],
        ),
    )


async def discard(connection: Connection, ids: Sequence[UUID], reason: str) -> list[UUID]:
    """Open or `parked` → `dead`, on an operator's decision; return the ids that moved.

    A worker that works on the event finds it no longer its own. The caller aborts the event's stages and files
    the dead letter in the same transaction.
    """
    cursor = await connection.execute(
        """UPDATE inbox SET state = 'dead', ended_at = clock_timestamp(), batch = NULL, park_store = NULL, last_error = %s
           FROM (SELECT id FROM inbox WHERE id = ANY(%s) AND (open OR state = 'parked')
                 ORDER BY id FOR NO KEY UPDATE) mine
           WHERE inbox.id = mine.id RETURNING inbox.id""",
        (reason, list(ids)),
    )
    return [row["id"] for row in await cursor.fetchall()]


async def redrive(connection: Connection, ids: Sequence[UUID]) -> None:
    """`dead` → `received`: through the pipeline again, with the original order and all attempts."""
    await connection.execute(
        """UPDATE inbox SET state = 'received', attempts = 0, starts = 0, parks = 0, parked_at = NULL,
                  next_at = clock_timestamp(), ended_at = NULL, batch = NULL, prepared_at = NULL
           WHERE id = ANY(%s) AND state = 'dead'""",
        (list(ids),),
    )
