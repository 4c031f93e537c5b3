"""Readings of streams: kept raw in a partition a day, and folded into windows that memory holds.

A window is folded when its series has moved on to a later one, or when nothing came for it for a while;
a late reading opens it again, and the next fold is a newer version of the same document.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any

import orjson

from apex_memory.inbox import Inbox
from apex_memory.sources import Reading, Source
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import READINGS

QUIET_SECONDS = 30  # a window that ended is folded when nothing came for it for so long
WINDOWS = 200  # folded in one transaction


class Readings:
    def __init__(self, db: Postgres, inbox: Inbox) -> None:
        self._db = db
        self._inbox = inbox
        self._days: set[date] = set()

    async def insert(
        self, connection: Connection, source: Source, readings: Sequence[Reading]
    ) -> int:
        """Keep readings inside the caller's transaction; answers how many were not there before."""
        if not readings:
            return 0
        await self._make_partitions(connection, {one.at.astimezone(UTC).date() for one in readings})
        row = await (
            await connection.execute(
                """WITH kept AS (
                     INSERT INTO readings (source, series, kind, at, value)
                     SELECT %(source)s, series, kind, at, value::jsonb
                     FROM unnest(%(series)b::text[], %(kinds)b::text[], %(times)b::timestamptz[], %(values)b::text[])
                       AS t (series, kind, at, value)
                     ON CONFLICT DO NOTHING RETURNING series, at
                   ), touched AS (
                     SELECT series, date_bin(make_interval(secs => %(width)s), at, 'epoch') AS start,
                            max(max(at)) OVER (PARTITION BY series) AS newest
                     FROM kept GROUP BY 1, 2
                   ), opened AS (
                     INSERT INTO windows (source, series, start, due_at)
                     SELECT %(source)s, series, start, clock_timestamp() + make_interval(secs => %(quiet)s) + greatest(
                              interval '0', start + make_interval(secs => %(width)s) - clock_timestamp()) FROM touched
                     ON CONFLICT (source, series, start) DO UPDATE SET dirty = true, due_at = excluded.due_at
                   )
                   SELECT (SELECT count(*) FROM kept) AS kept,
                          (SELECT array_agg(series) FROM (SELECT DISTINCT series FROM touched) AS s) AS series""",
                {
                    "source": source.name,
                    "series": [one.series for one in readings],
                    "kinds": [one.kind for one in readings],
                    "times": [one.at for one in readings],
                    "values": [orjson.dumps(one.value).decode() for one in readings],
                    "width": source.window_seconds,
                    "quiet": QUIET_SECONDS,
                },
            )
        ).fetchone()
        if row is None or not row["kept"]:
            return 0
        await connection.execute(
            """UPDATE windows w SET due_at = clock_timestamp()
               WHERE w.source = %(source)s AND w.dirty AND w.due_at > clock_timestamp() AND w.series = ANY(%(series)s)
                 AND EXISTS (SELECT FROM windows later WHERE later.source = w.source AND later.series = w.series
                                                         AND later.start > w.start)""",
            {"source": source.name, "series": row["series"]},
        )
        READINGS.labels(source.name).inc(row["kept"])
        return int(row["kept"])

    async def fold(self, source: Source, *, everything: bool = False) -> int:
        """Land a version of every window that is due (or has anything new, with `everything`); answers how many."""
        folded = 0
        while done := await self._fold_some(source, everything):
            folded += done
        return folded

    async def _fold_some(self, source: Source, everything: bool) -> int:
        async with self._db.transaction() as connection:
            due = await (
                await connection.execute(
                    """UPDATE windows SET dirty = false, version = version + 1
                       WHERE (source, series, start) IN (
                         SELECT source, series, start FROM windows
                         WHERE source = %s AND dirty AND (%s OR due_at <= clock_timestamp())
                         ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED)
                       RETURNING series, start, version""",
                    (source.name, everything, WINDOWS),
                )
            ).fetchall()
            if not due:
                return 0
            versions = {(row["series"], row["start"]): row["version"] for row in due}
            rows = await self._read(connection, source, list(versions))
            events = []
            for (series, start), some in groupby(
                rows, key=lambda row: (row["series"], row["start"])
            ):
                readings = [
                    Reading(series=series, kind=row["kind"], at=row["at"], value=row["value"])
                    for row in some
                ]
                events.append(source.fold(series, start, readings, versions[series, start]))
            await self._inbox.land(events, connection)
        return len(due)

    async def _read(
        self, connection: Connection, source: Source, windows: Sequence[tuple[str, datetime]]
    ) -> list[Any]:
        return await (
            await connection.execute(
                """SELECT r.series, w.start, r.kind, r.at, r.value
                   FROM unnest(%s::text[], %s::timestamptz[]) AS w (series, start)
                   JOIN readings r ON r.source = %s AND r.series = w.series AND r.at >= w.start
                                  AND r.at < w.start + make_interval(secs => %s)
                   ORDER BY r.series, w.start, r.at, r.kind""",
                (
                    [series for series, _ in windows],
                    [start for _, start in windows],
                    source.name,
                    source.window_seconds,
                ),
            )
        ).fetchall()

    async def _make_partitions(self, connection: Connection, days: set[date]) -> None:
        for day in sorted(days - self._days):
            await connection.execute(
                f"""CREATE TABLE IF NOT EXISTS readings_{day:%Y%m%d} PARTITION OF readings
                    FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')""",
            )
        self._days |= days

    async def forget(self, before: datetime) -> list[str]:
        """Drop the partitions of days that ended before this; answers their names. Their windows stay in memory."""
        rows = await self._db.fetch(
            """SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'readings'::regclass AND c.relname < %s""",
            (f"readings_{before.astimezone(UTC):%Y%m%d}",),
        )
        for row in rows:
            await self._db.execute(f"DROP TABLE IF EXISTS {row['name']}")
        await self._db.execute("DELETE FROM windows WHERE start < %s AND NOT dirty", (before,))
        return [row["name"] for row in rows]
