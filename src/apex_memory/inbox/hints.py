"""Change hints in PostgreSQL: records that a vendor named, until they are fetched or their dead letters are filed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import LiteralString

from apex_memory.stores.postgres import Connection

SOON_SECONDS = 60  # before the next attempt for a record whose fetch failed
_LATEST: LiteralString = "7200"
LATEST_SECONDS = int(_LATEST)  # before the last attempts
DUE: LiteralString = f"""(due_at IS NULL OR due_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '{_LATEST} s')"""
"""Whether a row of `change_hints` is to be fetched. A time later than any wait was set before the clock was set back."""


async def store(connection: Connection, source: str, hints: Mapping[str, datetime | None]) -> None:
    """Store hints, each with the time of its change, in the caller's transaction. One that exists gets the later time.

    One whose record failed before is due soon: the change may have mended it. Its attempts still count, so that a record
    that changes all the time becomes a dead letter, too.
    """
    await connection.execute(
        """INSERT INTO change_hints AS c (source, key, at) SELECT %s, key, at FROM unnest(%s::text[], %s::timestamptz[]) AS t (key, at)
           ORDER BY key ON CONFLICT (source, key) DO UPDATE
           SET at = greatest(c.at, excluded.at), noted_at = clock_timestamp(),
               due_at = CASE WHEN c.due_at IS NOT NULL THEN least(c.due_at, clock_timestamp() + make_interval(secs => %s)) END""",
        (source, list(hints), list(hints.values()), SOON_SECONDS),
    )


async def postpone(
    connection: Connection, source: str, hints: Mapping[str, datetime | None]
) -> None:
    """Store the hints of records whose fetch failed. They are due soon again; no attempt counts yet."""
    await connection.execute(
        """INSERT INTO change_hints AS c (source, key, at, due_at)
           SELECT %s, key, at, clock_timestamp() + make_interval(secs => %s)
           FROM unnest(%s::text[], %s::timestamptz[]) AS t (key, at)
           ORDER BY key ON CONFLICT (source, key) DO UPDATE SET due_at = excluded.due_at""",
        (source, SOON_SECONDS, list(hints), list(hints.values())),
    )
