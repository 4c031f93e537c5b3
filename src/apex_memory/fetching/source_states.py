"""The state of sources: enabled or paused by operators, the outcome of the last pull, and what waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import LiteralString, TypeVar

from psycopg.types.json import Jsonb

from apex_memory.errors import NotFound
from apex_memory.inbox import queries
from apex_memory.sources.base import Pattern, PulledSource, Source
from apex_memory.stores.postgres import Postgres

FETCHED = (Pattern.POLL, Pattern.STREAM, Pattern.BATCH)
"""Patterns of sources that bring nothing unless they are fetched. Other patterns work without a poll's settings."""

STALLED_SECONDS = 30.0  # ready events that nobody works on for that long make a source `stalled`


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """What says how current a source is."""

    name: str
    state: str
    missing: str | None
    """The first setting that pulls need and that is not set; None if they can run."""
    pulled_at: datetime | None
    error: str | None
    last_event_at: datetime | None
    backlog: int
    lag: float | None
    """Age of the oldest event that is not final (seconds)."""
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSource(SourceState):
    """A source with all that is known of its state. Counts are of what is open, but for `documents` and `healed`."""

    title: str
    pattern: str
    priority: str
    stalled: float | None
    """How long (s) ready events have waited while nobody works on the source; None if they do not."""
    error_at: datetime | None
    healed: int
    """Events that pulls brought because their webhooks were lost, last at `healed_at`."""
    healed_at: datetime | None
    dead_letters: int
    documents: int
    change_hints: int
    files: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _CurrentRow:
    name: str
    enabled: bool | None
    paused: bool | None
    pulled_at: datetime | None
    error: str | None
    last_event_at: datetime | None
    backlog: int
    lag: float | None
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ListedRow(_CurrentRow):
    error_at: datetime | None
    healed: int
    healed_at: datetime | None
    dead_letters: int
    documents: int
    change_hints: int
    files: int
    windows: int


_Row = TypeVar("_Row")

_CURRENT_COLUMNS: LiteralString = """n.name, s.enabled, s.paused, s.pulled_at, s.error, e.received_at AS last_event_at,
       coalesce(b.events, 0) AS backlog, b.lag, coalesce(p.events, 0) AS parked"""
"""The fields of `_CurrentRow`, of `_CURRENT_TABLES`."""
# `source BETWEEN n.name AND n.name`, in the order of `inbox_source`: that index alone serves it. With `source = n.name` the planner
# walks `inbox_recent`, and for a source that never sent anything all of it: 2 to 18 s at 1.4 million events, and now 2 ms.
_CURRENT_TABLES: LiteralString = """unnest(%s::text[]) AS n (name)
               LEFT JOIN sources s ON s.name = n.name
               LEFT JOIN LATERAL (SELECT received_at FROM inbox WHERE source BETWEEN n.name AND n.name
                                  ORDER BY source, seq DESC LIMIT 1) e ON true
               LEFT JOIN (SELECT source, count(*) AS events, extract(epoch FROM clock_timestamp() - min(received_at))::float AS lag
                          FROM inbox WHERE open GROUP BY 1) b ON b.source = n.name
               LEFT JOIN (SELECT source, count(*) AS events FROM inbox WHERE state = 'parked' GROUP BY 1) p ON p.source = n.name"""


class SourceStates:
    def __init__(self, db: Postgres, sources: Mapping[str, Source]) -> None:
        self._db = db
        self._sources = sources

    async def may_pull(self, source: str) -> bool:
        """Return whether the source is enabled and not paused."""
        row = await self._db.fetch_one(
            "SELECT FROM sources WHERE name = %s AND (paused OR NOT enabled)", (source,)
        )
        return row is None

    async def decide(self, source: str, *, actor: str, **decision: bool) -> None:
        """Set `enabled` or `paused`, durably and for all processes at once, with an audit row.

        Raises `NotFound` for an unknown source.
        """
        if source not in self._sources:
            raise NotFound(f"source {source} not found", remedy="`apex sources` lists them")
        (name, value), *rest = decision.items()
        assert name in ("enabled", "paused") and not rest
        async with self._db.transaction() as connection:
            await connection.execute(
                f"""INSERT INTO sources (name, {name}, changed_by) VALUES (%s, %s, %s)
                    ON CONFLICT (name) DO UPDATE SET {name} = excluded.{name}, changed_by = excluded.changed_by,
                                                     changed_at = now()""",
                (source, value, actor),
            )
            await connection.execute(
                "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, 'source', %s, %s)",
                (actor, source, Jsonb(decision)),
            )

    async def listed(self) -> list[ListedSource]:
        """Return every source with all that is known of its state."""
        rows = await self._rows(
            _ListedRow,
            f"""SELECT {_CURRENT_COLUMNS}, s.error_at, coalesce(s.healed, 0) AS healed, s.healed_at,
                      coalesce(d.events, 0) AS dead_letters,
                      coalesce(m.documents, 0) AS documents,
                      (SELECT count(*) FROM change_hints WHERE change_hints.source = n.name) AS change_hints,
                      (SELECT count(*) FROM files WHERE files.source = n.name AND ended_at IS NULL) AS files,
                      (SELECT count(*) FROM windows WHERE windows.source = n.name AND dirty) AS windows
               FROM {_CURRENT_TABLES}
               LEFT JOIN (SELECT source, count(*) AS documents FROM documents WHERE NOT deleted GROUP BY 1) m
                      ON m.source = n.name
               LEFT JOIN (SELECT source, count(*) AS events FROM dead_letters WHERE status = 'open' GROUP BY 1) d
                      ON d.source = n.name
               ORDER BY n.name""",
        )
        stalled = await self._stalled()
        return [self._listed(row, stalled.get(row.name)) for row in rows]

    async def current(self) -> list[SourceState]:
        """Return what says how current each source is: a part of `listed` that counts no documents."""
        rows = await self._rows(
            _CurrentRow, f"SELECT {_CURRENT_COLUMNS} FROM {_CURRENT_TABLES} ORDER BY n.name"
        )
        stalled = await self._stalled()
        return [self._current(row, stalled.get(row.name)) for row in rows]

    async def _rows(self, row_type: type[_Row], query: LiteralString) -> list[_Row]:
        """Return a row for each source. The query's parameter is the list of their names."""
        return await self._db.fetch_rows(row_type, query, (list(self._sources),))

    async def _stalled(self) -> dict[str, float]:
        async with self._db.connection() as connection:
            return await queries.stalled(connection, seconds=STALLED_SECONDS)

    def _current(self, row: _CurrentRow, stalled: float | None) -> SourceState:
        source = self._sources[row.name]
        missing = _missing_setting(source)
        return SourceState(
            name=row.name,
            state=_state(source, row, missing, stalled),
            missing=missing,
            pulled_at=row.pulled_at,
            error=row.error,
            last_event_at=row.last_event_at,
            backlog=row.backlog,
            lag=row.lag,
            parked=row.parked,
        )

    def _listed(self, row: _ListedRow, stalled: float | None) -> ListedSource:
        source = self._sources[row.name]
        return ListedSource(
            **asdict(self._current(row, stalled)),
            title=source.title,
            pattern=str(source.pattern),
            priority=f"P{int(source.priority)}",
            stalled=stalled,
            error_at=row.error_at,
            healed=row.healed,
            healed_at=row.healed_at,
            dead_letters=row.dead_letters,
            documents=row.documents,
            change_hints=row.change_hints,
            files=row.files,
            windows=row.windows,
        )


def _missing_setting(source: Source) -> str | None:
    """Return the first setting that pulls need and that is not set; None if they can run."""
    return source.missing_settings or None if isinstance(source, PulledSource) else None


def _state(source: Source, row: _CurrentRow, missing: str | None, stalled: float | None) -> str:
    """Return the state to show: the first of these that holds, what an operator decided before what happens."""
    states = (
        ("disabled", row.enabled is False),
        ("paused", row.paused),
        ("not configured", missing and source.pattern in FETCHED),
        ("stalled", stalled),
        ("failing", row.error),
        ("working", row.backlog),
    )
    for state, holds in states:
        if holds:
            return state
    return "idle"
