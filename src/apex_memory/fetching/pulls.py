"""A pull: pages from a vendor, each committed with its cursor before the next is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from apex_memory.errors import ApexError, Conflict
from apex_memory.fetching.files import Files
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import landing
from apex_memory.model import Priority
from apex_memory.sources.base import PulledSource, StreamSource
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import ChangeHint, Page, PullContext, TimeRange
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import CHANGE_HINTS, PULLS, logger

MOST_NUDGES = 500  # fetched in one pull; the rest waits for the next
LONG_AGO = datetime.min.replace(tzinfo=UTC)
MOST_ERROR = 500  # characters

OnPage = Callable[["PullResult"], Awaitable[None]]


@dataclass(slots=True)
class PullResult:
    """What a pull has brought so far. `fresh` of the `events` were not there before."""

    pages: int = 0
    events: int = 0
    fresh: int = 0
    readings: int = 0
    files: list[UUID] = field(default_factory=list)


class Pulls:
    def __init__(self, db: Postgres, files: Files, readings: Readings) -> None:
        self._db = db
        self._files = files
        self._readings = readings

    async def note(self, source: str, change_hints: Sequence[ChangeHint]) -> None:
        """Keep change hints until what they name is fetched. Only then may a vendor be answered 2xx."""
        if not change_hints:
            return
        # By time, where the vendor gives one: a batch of notices may be in any order.
        in_order = sorted(change_hints, key=lambda hint: hint.at or LONG_AGO)
        newest = {hint.key: hint for hint in in_order}
        await self._db.execute(
            """INSERT INTO change_hints (source, key, at) SELECT %s, key, at FROM unnest(%s::text[], %s::timestamptz[]) AS t (key, at)
               ORDER BY key ON CONFLICT (source, key) DO UPDATE
               SET at = greatest(change_hints.at, excluded.at), noted_at = clock_timestamp()""",
            (source, list(newest), [hint.at for hint in newest.values()]),
        )
        CHANGE_HINTS.labels(source).inc(len(change_hints))

    async def run(
        self,
        source: PulledSource,
        link: VendorClient,
        *,
        on_page: OnPage | None = None,
        backfill: Backfill | None = None,
    ) -> PullResult:
        """Pull until the vendor has no more at the moment. Raises what the source raises; what was committed stays.

        Raises `Conflict` when another pull of the source moved the cursor meanwhile: this one ends.
        """
        key = backfill.cursor if backfill else source.name
        cursor = await self._cursor(key)
        noted = dict[str, tuple[ChangeHint, datetime]]()

        async def new_hints() -> Sequence[ChangeHint]:
            found = {} if backfill else await self._noted(source.name)
            fresh = [
                hint for key, (hint, at) in found.items() if noted.get(key, (None, None))[1] != at
            ]
            noted.update(found)
            return fresh

        asked = PullContext(
            link=link,
            cursor=cursor,
            change_hints=await new_hints(),
            new_hints=new_hints,
            window=backfill.window if backfill else None,
        )
        done = PullResult()
        try:
            async for brought in source.pull(asked):
                page = _bulk(brought) if backfill else brought
                cursor = await self._commit(source, key, cursor, page, noted, done)
                if on_page:
                    await on_page(done)
        except ApexError as error:
            await self._ended(
                source.name, f"{error} ({error.remedy})" if error.remedy else str(error)
            )
            PULLS.labels(source.name, "failed").inc()
            raise
        if not backfill:
            await self._ended(source.name, None)
        PULLS.labels(source.name, "done").inc()
        return done

    async def _commit(
        self,
        source: PulledSource,
        key: str,
        before: dict[str, Any],
        page: Page,
        noted: dict[str, tuple[ChangeHint, datetime]],
        done: PullResult,
    ) -> dict[str, Any]:
        """One transaction; answers the cursor that holds after it."""
        async with self._db.transaction() as connection:
            if page.cursor is not None:
                await self._move(connection, key, before, dict(page.cursor))
            landed = await landing.land(connection, page.events)
            readings = 0
            if isinstance(source, StreamSource):
                readings = await self._readings.insert(connection, source, page.readings)
            files = await self._files.insert(connection, source.name, page.files)
            await self._answer(connection, source.name, page.acknowledged, noted)
        done.pages += 1
        done.events += len(landed)
        done.fresh += sum(not one.duplicate for one in landed)
        done.readings += readings
        done.files += files
        return before if page.cursor is None else dict(page.cursor)

    async def _move(
        self, connection: Connection, key: str, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        """Compare and set: a pull that outlived its lease must not put the cursor back."""
        moved = await connection.execute(
            """INSERT INTO cursors (source, position) VALUES (%s, %s)
               ON CONFLICT (source) DO UPDATE SET position = excluded.position, changed_at = now()
               WHERE cursors.position = %s""",
            (key, Jsonb(after), Jsonb(before)),
        )
        if not moved.rowcount:
            raise Conflict(
                f"{key}: another pull moved the cursor",
                remedy="nothing to do: that pull goes on, this one has ended",
            )

    async def _cursor(self, key: str) -> dict[str, Any]:
        row = await self._db.fetch_one("SELECT position FROM cursors WHERE source = %s", (key,))
        return dict(row["position"]) if row else {}

    async def _noted(self, source: str) -> dict[str, tuple[ChangeHint, datetime]]:
        rows = await self._db.fetch(
            "SELECT key, at, noted_at FROM change_hints WHERE source = %s ORDER BY noted_at LIMIT %s",
            (source, MOST_NUDGES),
        )
        return {row["key"]: (ChangeHint(row["key"], row["at"]), row["noted_at"]) for row in rows}

    async def _answer(
        self,
        connection: Connection,
        source: str,
        acknowledged: Sequence[ChangeHint],
        noted: dict[str, tuple[ChangeHint, datetime]],
    ) -> None:
        """Forget change hints, except those that came again since they were read."""
        known = [(hint.key, noted[hint.key][1]) for hint in acknowledged if hint.key in noted]
        if known:
            keys, times = zip(*known, strict=True)
            await connection.execute(
                # One that another holds just now comes again, or is forgotten by that one.
                """DELETE FROM change_hints USING (
                     SELECT n.source, n.key FROM change_hints n JOIN unnest(%s::text[], %s::timestamptz[]) AS t (key, noted_at)
                       ON n.key = t.key AND n.noted_at = t.noted_at
                     WHERE n.source = %s FOR UPDATE OF n SKIP LOCKED) answered
                   WHERE change_hints.source = answered.source AND change_hints.key = answered.key""",
                (list(keys), list(times), source),
            )

    async def _ended(self, source: str, error: str | None) -> None:
        if error:
            logger(component="pull").warning(
                "pull failed", source=source, reason=error[:MOST_ERROR]
            )
        await self._db.execute(
            """INSERT INTO sources (name, pulled_at, error, error_at)
               VALUES (%(name)s, CASE WHEN %(error)s::text IS NULL THEN now() END, %(error)s,
                       CASE WHEN %(error)s::text IS NOT NULL THEN now() END)
               ON CONFLICT (name) DO UPDATE SET pulled_at = coalesce(excluded.pulled_at, sources.pulled_at),
                 error = excluded.error, error_at = coalesce(excluded.error_at, sources.error_at)""",
            {"name": source, "error": error[:MOST_ERROR] if error else None},
        )


@dataclass(frozen=True, slots=True)
class Backfill:
    """A stretch of a source's past, fetched anew beside its usual pulls."""

    id: UUID
    source: str
    window: TimeRange

    @property
    def cursor(self) -> str:
        return f"{self.source}#{self.id}"


def _bulk(page: Page) -> Page:
    """What is backfilled stands behind everything that happens now."""
    return replace(page, events=[replace(event, priority=Priority.P2) for event in page.events])
