"""Readings of streams: stored raw in one partition a day, and aggregated into windows that become documents.

A window is aggregated when its series has moved on to a later window, or when no reading arrived for it for
`QUIET_SECONDS`. A late reading makes it dirty again; the next aggregation is a newer version of its document.

Past the retention the raw readings of a window are gone, and so is its row. A reading that arrives even later (a
backfill of old days) opens the window anew, with a version below all that the window ever had: where a document of
the whole window exists, it stays live, and the remains end as a superseded version with their text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, LiteralString

import orjson

from apex_memory.fetching.pages import land_page
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.sources.base import StreamSource
from apex_memory.sources.pages import Reading
from apex_memory.stores.partitions import DAYS, create_partition, partition_name
from apex_memory.stores.postgres import Connection, Postgres, fetch_row, fetch_rows
from apex_memory.telemetry import READINGS

QUIET_SECONDS = 30  # a window that ended is aggregated when no reading arrived for it for so long
# Raw readings past their retention are kept that long after their window's last reading.
REST = timedelta(days=1)
WINDOWS = 200  # aggregated in one transaction
# Key of the advisory lock under which one transaction at a time creates partitions.
PARTITIONS_LOCK = 0x41504559


# The midnight (UTC) before which readings are past their retention, by the clock of PostgreSQL: that of a process may be far ahead.
_HORIZON: LiteralString = "date_trunc('day', clock_timestamp() - %(keep)s::interval, 'UTC')"

# One index scan for each window, whatever the planner assumes of a partition created today.
_READINGS_OF_WINDOWS: LiteralString = """
SELECT w.series, w.start, r.kind, r.at, r.value
FROM unnest(%s::text[], %s::timestamptz[]) AS w (series, start)
CROSS JOIN LATERAL (
  SELECT kind, at, value FROM readings
  WHERE source = %s AND series = w.series COLLATE "C" AND at >= w.start
    AND at < w.start + make_interval(secs => %s)
  OFFSET 0) AS r
ORDER BY w.series, w.start, r.at, r.kind"""


@dataclass(frozen=True, slots=True)
class _DueWindow:
    """A window of one series that is to be aggregated, under its new version."""

    series: str
    start: datetime
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _WindowReading(Reading):
    """A reading with the start of its window."""

    start: datetime


@dataclass(frozen=True, slots=True)
class _InsertResult:
    """How many readings are new, and the series whose windows they made dirty."""

    kept: int
    opened: list[str] | None


class Readings:
    """Readings of all streams. `keep` is how long raw readings are kept (setting `reading_days`)."""

    def __init__(
        self, db: Postgres, *, keep: timedelta, payloads: PayloadStore | None = None
    ) -> None:
        """`payloads` seals the payloads of windows, where that is set."""
        self._db = db
        self._payloads = payloads or PayloadStore(db)
        self._keep = keep

    async def insert(
        self, connection: Connection, source: StreamSource, readings: Sequence[Reading]
    ) -> int:
        """Store readings inside the caller's transaction; return how many were not stored before."""
        if not readings:
            return 0
        days = {reading.at.astimezone(UTC).date() for reading in readings}
        await self._make_partitions(connection, days)
        # Rows are inserted in order, so that two transactions with the same readings cannot deadlock.
        # A dirty window whose `due_at` would hardly change is not written.
        result = await fetch_row(
            connection,
            _InsertResult,
            f"""WITH kept AS (
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
                     INSERT INTO windows (source, series, start, version, due_at)
                     SELECT %(source)s, series, start,
                            -- Below every version of before, whose row may be gone: see the module's text.
                            CASE WHEN start < {_HORIZON} THEN -(extract(epoch FROM clock_timestamp()) * 1e6)::bigint ELSE 0 END,
                            clock_timestamp() + make_interval(secs => %(quiet)s) + greatest(
                              interval '0', start + make_interval(secs => %(width)s) - clock_timestamp())
                     FROM touched ORDER BY series, start
                     ON CONFLICT (source, series, start) DO UPDATE SET dirty = true, due_at = excluded.due_at
                     WHERE NOT windows.dirty OR windows.due_at < excluded.due_at - interval '5 seconds'
                     RETURNING series
                   )
                   SELECT (SELECT count(*) FROM kept) AS kept,
                          (SELECT array_agg(DISTINCT series) FROM opened) AS opened""",
            {
                "source": source.name,
                "series": [reading.series for reading in readings],
                "kinds": [reading.kind for reading in readings],
                "times": [reading.at for reading in readings],
                "values": [_json(reading.value) for reading in readings],
                "width": source.window_seconds,
                "quiet": QUIET_SECONDS,
                "keep": self._keep,
            },
        )
        if result is None or not result.kept:
            return 0
        if result.opened:
            await self._mark_due(connection, source, result.opened)
        READINGS.labels(source.name).inc(result.kept)
        return result.kept

    async def _mark_due(
        self, connection: Connection, source: StreamSource, series: Sequence[str]
    ) -> None:
        """Make dirty windows due whose series has a later one. Windows in the future, of a device whose clock is ahead, do not count."""
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
        """Land a new version of every window that is due, or of every dirty one with `everything`; return their number."""
        total = 0
        while count := await self._aggregate_chunk(source, everything):
            total += count
        return total

    async def _aggregate_chunk(self, source: StreamSource, everything: bool) -> int:
        await self._payloads.get_ready()
        async with self._db.transaction() as connection:
            due = await fetch_rows(
                connection,
                _DueWindow,
                """UPDATE windows SET dirty = false, version = version + 1
                   WHERE (source, series, start) IN (
                     SELECT source, series, start FROM windows
                     WHERE source = %s AND dirty AND (%s OR due_at <= clock_timestamp())
                     ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED)
                   RETURNING series, start, version""",
                (source.name, everything, WINDOWS),
            )
            if not due:
                return 0
            versions = {(window.series, window.start): window.version for window in due}
            events = []
            by_window = groupby(
                await self._read(connection, source, due), key=attrgetter("series", "start")
            )
            for (series, start), readings in by_window:
                version = versions[series, start]
                events.append(source.aggregate_window(series, start, list(readings), version))
            await land_page(connection, source.name, await self._payloads.seal(events))
        return len(due)

    async def _read(
        self, connection: Connection, source: StreamSource, windows: Sequence[_DueWindow]
    ) -> list[_WindowReading]:
        """Return the readings of windows, by window and then by time."""
        return await fetch_rows(
            connection,
            _WindowReading,
            _READINGS_OF_WINDOWS,
            (
                [window.series for window in windows],
                [window.start for window in windows],
                source.name,
                source.window_seconds,
            ),
        )

    async def _make_partitions(self, connection: Connection, days: set[date]) -> None:
        """Create the partitions that are absent. One process at a time creates them."""
        if not await self._absent(connection, days):
            return
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (PARTITIONS_LOCK,))
        for day in await self._absent(connection, days):
            await create_partition(connection, day)

    async def _absent(self, connection: Connection, days: set[date]) -> list[date]:
        """Return the days without a partition. The query locks the parent table, so none is dropped before the transaction ends."""
        rows = await (
            await connection.execute(
                """SELECT day FROM unnest(%s::date[], %s::text[]) AS t (day, name)
                   WHERE to_regclass(name) IS NULL OR EXISTS (SELECT FROM ONLY readings) ORDER BY day""",
                (sorted(days), [partition_name(day) for day in sorted(days)]),
            )
        ).fetchall()
        return [row["day"] for row in rows]

    async def forget(self) -> list[str]:
        """Drop the partitions of days past the retention; return their names. The documents of their windows stay.

        A day is kept while a window of it, or one that reaches into it, is not aggregated yet or got a reading in
        the last `REST`: what waits for its aggregation is never dropped, and a backfill of old days that is
        interrupted finds its readings again.
        """
        [row] = await self._db.fetch(f"SELECT {_HORIZON} AS horizon", {"keep": self._keep})
        horizon = row["horizon"].astimezone(UTC)
        days = [day for day in await self._days() if day < horizon.date()]
        busy = await self._busy_days(horizon) if days else set()
        dropped = []
        for day in days:
            if not busy.isdisjoint((day, day - timedelta(days=1))):
                continue
            if await self._drop(day):
                dropped.append(partition_name(day))
        await self._db.execute(
            """DELETE FROM windows WHERE (source, series, start) IN (
                 SELECT source, series, start FROM windows
                 WHERE start < %s AND NOT dirty AND due_at < clock_timestamp() - %s FOR UPDATE SKIP LOCKED)""",
            (horizon, REST),
        )
        return dropped

    async def correct_deadlines(self) -> int:
        """Make windows due whose deadline is further ahead than their end and their rest; return the number.

        Such a deadline was written before the clock of PostgreSQL was set back. No window is longer than a day.
        """
        return await self._db.execute(
            """UPDATE windows SET due_at = clock_timestamp() WHERE (source, series, start) IN (
                 SELECT source, series, start FROM windows
                 WHERE dirty AND due_at > greatest(clock_timestamp(), start + interval '1 day') + make_interval(secs => %s)
                 FOR UPDATE SKIP LOCKED)""",
            (2 * QUIET_SECONDS,),
        )

    async def _days(self) -> list[date]:
        """Return the days that have a partition, in order."""
        rows = await self._db.fetch(DAYS)
        return [row["day"] for row in rows]

    async def _busy_days(
        self, horizon: datetime, connection: Connection | None = None
    ) -> set[date]:
        """Return the days before the horizon with a window that waits for its aggregation, or was active lately."""
        query: LiteralString = """SELECT DISTINCT (start AT TIME ZONE 'UTC')::date AS day FROM windows
                                  WHERE start < %s AND (dirty OR due_at > clock_timestamp() - %s)"""
        if connection is None:
            rows = await self._db.fetch(query, (horizon, REST))
        else:
            rows = await (await connection.execute(query, (horizon, REST))).fetchall()
        return {row["day"] for row in rows}

    async def _drop(self, day: date) -> bool:
        """Drop a day's partition, unless one of its windows became busy; return whether it was dropped."""
        after = datetime.combine(day + timedelta(days=1), time(), UTC)
        async with self._db.transaction() as connection:
            # Waits for the transactions that insert readings: their windows show in the query after it.
            await connection.execute("LOCK TABLE readings IN ACCESS EXCLUSIVE MODE")
            busy = await self._busy_days(after, connection)
            if not busy.isdisjoint((day, day - timedelta(days=1))):
                return False
            await connection.execute(f"DROP TABLE IF EXISTS {partition_name(day)}")
        return True


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, which PostgreSQL can hold
        return json.dumps(value)
