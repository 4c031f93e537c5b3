"""Readings of streams: kept raw in a partition a day, and folded into windows that memory holds.

A window is folded when its series has moved on to a later one, or when nothing came for it for a while;
a late reading opens it again, and the next fold is a newer version of the same document.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any

import orjson

from apex_memory.inbox import landing
from apex_memory.sources.base import StreamSource
from apex_memory.sources.pages import Reading
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import READINGS

QUIET_SECONDS = 30  # a window that ended is folded when nothing came for it for so long
WINDOWS = 200  # folded in one transaction
# Names the advisory lock under which one transaction at a time makes partitions.
PARTITIONS_LOCK = 0x41504559


class Readings:
    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def insert(
        self, connection: Connection, source: StreamSource, readings: Sequence[Reading]
    ) -> int:
        """Keep readings inside the caller's transaction; answers how many were not there before."""
        if not readings:
            return 0
        await self._make_partitions(connection, {one.at.astimezone(UTC).date() for one in readings})
        # Rows are taken in order, so that two who bring the same ones wait for, and never block, each other.
        # A window that is open already is left alone until it ends: its `due_at` would stay what it is.
        row = await (
            await connection.execute(
                """WITH kept AS (
                     INSERT INTO readings (source, series, kind, at, value)
                     SELECT %(source)s, series, kind, at, value::jsonb
                     FROM unnest(%(series)b::text[], %(kinds)b::text[], %(times)b::timestamptz[], %(values)b::text[])
                       AS t (series, kind, at, value)
                     ORDER BY series COLLATE "C", at, kind
                     ON CONFLICT DO NOTHING RETURNING series, at
                   ), touched AS (
                     SELECT series, date_bin(make_interval(secs => %(width)s), at, 'epoch') AS start
                     FROM kept GROUP BY 1, 2
                   ), opened AS (
                     INSERT INTO windows (source, series, start, due_at)
                     SELECT %(source)s, series, start, clock_timestamp() + make_interval(secs => %(quiet)s) + greatest(
                              interval '0', start + make_interval(secs => %(width)s) - clock_timestamp())
                     FROM touched ORDER BY series, start
                     ON CONFLICT (source, series, start) DO UPDATE SET dirty = true, due_at = excluded.due_at
                     WHERE NOT windows.dirty OR windows.due_at < excluded.due_at - interval '5 seconds'
                     RETURNING series
                   )
                   SELECT (SELECT count(*) FROM kept) AS kept,
                          (SELECT array_agg(DISTINCT series) FROM opened) AS moved""",
                {
                    "source": source.name,
                    "series": [one.series for one in readings],
                    "kinds": [one.kind for one in readings],
                    "times": [one.at for one in readings],
                    "values": [_json(one.value) for one in readings],
                    "width": source.window_seconds,
                    "quiet": QUIET_SECONDS,
                },
            )
        ).fetchone()
        if row is None or not row["kept"]:
            return 0
        if row["moved"]:
            await self._call_due(connection, source, row["moved"])
        READINGS.labels(source.name).inc(row["kept"])
        return int(row["kept"])

    async def _call_due(
        self, connection: Connection, source: StreamSource, series: Sequence[str]
    ) -> None:
        """Windows that their series has left behind need not wait. A device whose clock is ahead has left nothing behind."""
        await connection.execute(
            """UPDATE windows SET due_at = clock_timestamp()
               WHERE (source, series, start) IN (
                 SELECT source, series, start FROM windows w
                 WHERE source = %(source)s AND dirty AND due_at > clock_timestamp() AND series = ANY(%(series)s)
                   AND EXISTS (SELECT FROM windows later
                               WHERE later.source = w.source AND later.series = w.series AND later.start > w.start
                                 AND later.start <= clock_timestamp())
                 FOR UPDATE SKIP LOCKED)""",
            {"source": source.name, "series": series},
        )

    async def aggregate(self, source: StreamSource, *, everything: bool = False) -> int:
        """Land a version of every window that is due (or has anything new, with `everything`); answers how many."""
        folded = 0
        while done := await self._aggregate_some(source, everything):
            folded += done
        return folded

    async def _aggregate_some(self, source: StreamSource, everything: bool) -> int:
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
                events.append(
                    source.aggregate_window(series, start, readings, versions[series, start])
                )
            await landing.land(connection, events)
        return len(due)

    async def _read(
        self, connection: Connection, source: StreamSource, windows: Sequence[tuple[str, datetime]]
    ) -> list[Any]:
        return await (
            await connection.execute(
                # A look into the index for each window, whatever the planner believes of a partition made today.
                """SELECT w.series, w.start, r.kind, r.at, r.value
                   FROM unnest(%s::text[], %s::timestamptz[]) AS w (series, start)
                   CROSS JOIN LATERAL (
                     SELECT kind, at, value FROM readings
                     WHERE source = %s AND series = w.series COLLATE "C" AND at >= w.start
                       AND at < w.start + make_interval(secs => %s)
                     OFFSET 0) AS r
                   ORDER BY w.series, w.start, r.at, r.kind""",
                (
                    [series for series, _ in windows],
                    [start for _, start in windows],
                    source.name,
                    source.window_seconds,
                ),
            )
        ).fetchall()

    async def _make_partitions(self, connection: Connection, days: set[date]) -> None:
        """Attached, not made in place: that would wait for everyone who reads or writes readings."""
        if not await self._absent(connection, days):
            return
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (PARTITIONS_LOCK,))
        for day in await self._absent(connection, days):
            name = _partition(day)
            await connection.execute(f"CREATE TABLE {name} (LIKE readings INCLUDING ALL)")
            await connection.execute(
                f"""ALTER TABLE readings ATTACH PARTITION {name}
                    FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"""
            )

    async def _absent(self, connection: Connection, days: set[date]) -> list[date]:
        """Days without a partition. Nobody drops one from here to the transaction's end: the parent is locked for that."""
        rows = await (
            await connection.execute(
                """SELECT day FROM unnest(%s::date[], %s::text[]) AS t (day, name)
                   WHERE to_regclass(name) IS NULL OR EXISTS (SELECT FROM ONLY readings) ORDER BY day""",
                (sorted(days), [_partition(day) for day in sorted(days)]),
            )
        ).fetchall()
        return [row["day"] for row in rows]

    async def forget(self, before: datetime) -> list[str]:
        """Drop the partitions of days that ended before this; answers their names. Their windows stay in memory.

        A reading that still comes for such a day is kept again, but a window that memory holds stays as it is:
        the versions of its remains begin at 1 once more.
        """
        day = before.astimezone(UTC).date()
        rows = await self._db.fetch(
            """SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'readings'::regclass AND c.relname < %s ORDER BY 1""",
            (_partition(day),),
        )
        for row in rows:
            await self._db.execute(f"DROP TABLE IF EXISTS {row['name']}")
        await self._db.execute(
            """DELETE FROM windows WHERE (source, series, start) IN (
                 SELECT source, series, start FROM windows WHERE start < %s AND NOT dirty FOR UPDATE SKIP LOCKED)""",
            (datetime.combine(day, time(), UTC),),
        )
        return [row["name"] for row in rows]


def _partition(day: date) -> str:
    return f"readings_{day:%Y%m%d}"


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number beyond 64 bits, which PostgreSQL holds
        return json.dumps(value)
