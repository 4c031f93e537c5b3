"""A pull: pages from a vendor, each committed with its cursor before the next is requested."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from apex_memory.errors import ApexError, Conflict, Rejected
from apex_memory.fetching.files import Files
from apex_memory.fetching.pages import land_page
from apex_memory.fetching.windows import Readings
from apex_memory.inbox import hints
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import Event, LandResult, Priority, now
from apex_memory.sources.base import PulledSource, StreamSource
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import (
    BackfillRange,
    ChangeHint,
    Page,
    PullContext,
    Unfetched,
    unfetched_event,
)
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.telemetry import CHANGE_HINTS, PULLS, WEBHOOKS_HEALED, logger, traces

MOST_HINTS = 500  # change hints that one pull fetches; the rest waits for the next
ERROR_CHARS = 500
HINT_WAITS = (hints.SOON_SECONDS, 300, 1800, hints.LATEST_SECONDS)  # between attempts for a record
LOGGED_HINTS = 5  # in one line of the log
WEBHOOK_SECONDS = 15.0  # a webhook that has not arrived that long after its event counts as lost
LONG_AGO = datetime.min.replace(tzinfo=UTC)

Position = dict[str, Any]
"""A source's cursor: how far it was pulled, in its own terms."""


@dataclass(slots=True)
class PullResult:
    """What a pull has brought so far. `fresh` counts the events that were not in the inbox before, `fresh_readings` the readings."""

    pages: int = 0
    events: int = 0
    fresh: int = 0
    readings: int = 0
    fresh_readings: int = 0
    files: list[UUID] = field(default_factory=list)


OnPage = Callable[[PullResult], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Backfill:
    """A backfill or replay: it fetches a range of a source's past again, beside the usual pulls."""

    id: UUID
    source: str
    window: BackfillRange

    @property
    def cursor(self) -> str:
        """The key of its cursor, apart from that of the usual pulls."""
        return f"{self.source}#{self.id}"


@dataclass(frozen=True, slots=True)
class _StoredHint:
    """A row of `change_hints`, with the time when it was stored last. A hint that arrives again gets a later one."""

    key: str
    at: datetime | None
    noted_at: datetime

    @property
    def hint(self) -> ChangeHint:
        """The hint as it was stored."""
        return ChangeHint(self.key, self.at)


@dataclass(slots=True)
class _Blame:
    """The hinted records that the vendor did not return in a pull, by key, and which of them are themselves to blame.

    A record is to blame if the vendor answers another call after its own has failed. Until then the vendor may be away,
    which is no record's fault.
    """

    failed: dict[str, Unfetched] = field(default_factory=dict)
    blamed: dict[str, Unfetched] = field(default_factory=dict)

    def note(self, page: Page) -> None:
        """Take in a page that is committed: its own failures come after what it brings."""
        if page.events or page.readings or page.files or page.cursor is not None:
            self.blamed |= self.failed
            self.failed.clear()
        for item in page.unfetched:
            self.failed[item.hint.key] = item


class Pulls:
    """Pulls of sources. `max_attempts` failed fetches make the record of a change hint a dead letter."""

    def __init__(
        self,
        db: Postgres,
        files: Files,
        readings: Readings,
        payloads: PayloadStore,
        *,
        max_attempts: int = 5,
    ) -> None:
        self._db = db
        self._files = files
        self._readings = readings
        self._payloads = payloads
        self._max_attempts = max_attempts

    async def note(self, source: str, change_hints: Sequence[ChangeHint]) -> None:
        """Store change hints until a pull has fetched what they name. Only then may a vendor be answered 2xx."""
        if not change_hints:
            return
        async with self._db.connection() as connection:
            await insert_hints(connection, source, change_hints)

    async def run(
        self,
        source: PulledSource,
        client: VendorClient,
        *,
        on_page: OnPage | None = None,
        backfill: Backfill | None = None,
    ) -> PullResult:
        """Pull until the vendor has no more at the moment; return what that brought. `on_page` runs after each committed page.

        Raises what the source raises; what was committed stays. Raises `Conflict` when another pull of the
        source moved the cursor meanwhile, which ends this one.
        """
        with traces.span(f"pull {source.name}", source=source.name, backfill=backfill is not None):
            return await self._run(source, client, on_page, backfill)

    async def _run(
        self,
        source: PulledSource,
        client: VendorClient,
        on_page: OnPage | None,
        backfill: Backfill | None,
    ) -> PullResult:
        key = backfill.cursor if backfill else source.name
        cursor = await self._cursor(key)
        complete = None if backfill else await self._completed_at(source.name)
        stored: dict[str, _StoredHint] = {}

        async def new_hints() -> Sequence[ChangeHint]:
            """Return the hints that arrived since the last call. A backfill leaves them to the usual pulls."""
            if backfill:
                return []
            current = await self._stored_hints(source.name)
            fresh = [item.hint for key, item in current.items() if stored.get(key) != item]
            stored.update(current)
            return fresh

        context = PullContext(
            client=client,
            cursor=cursor,
            change_hints=await new_hints(),
            new_hints=new_hints,
            window=backfill.window if backfill else None,
        )
        result, blame = PullResult(), _Blame()
        try:
            async for fetched in source.pull(context):
                page = _with_bulk_priority(fetched) if backfill else fetched
                cursor = await self._commit(source, key, cursor, page, stored, complete, result)
                blame.note(page)
                if on_page:
                    await on_page(result)
        except ApexError as error:
            message = f"{error} ({error.remedy})" if error.remedy else str(error)
            await self._record_outcome(source.name, message)
            PULLS.labels(source.name, "failed").inc()
            await self._count_failures(source, blame, result, on_page)
            raise
        await self._count_failures(source, blame, result, on_page)
        if not backfill:
            await self._record_outcome(source.name, None)
        PULLS.labels(source.name, "done").inc()
        return result

    async def _commit(
        self,
        source: PulledSource,
        key: str,
        before: Position,
        page: Page,
        stored: Mapping[str, _StoredHint],
        complete: datetime | None,
        result: PullResult,
    ) -> Position:
        """Commit a page in one transaction and add it to the result; return the cursor that holds afterwards."""
        after = before if page.cursor is None else dict(page.cursor)
        events = await self._payloads.offload(page.events)
        async with self._db.transaction() as connection:
            if page.cursor is not None:
                await self._move(connection, key, before, after)
            landed = await land_page(
                connection, source.name, events, document=source.document, payloads=self._payloads
            )
            readings = 0
            if isinstance(source, StreamSource):
                readings = await self._readings.insert(connection, source, page.readings)
            files = await self._files.insert(connection, source.name, page.files)
            await self._forget_hints(connection, source.name, page.acknowledged, stored)
            if page.hints:
                await insert_hints(connection, source.name, page.hints)
            if page.unfetched:
                failed = {item.hint.key: item.hint.at for item in page.unfetched}
                await hints.postpone(connection, source.name, failed)
            lost: list[Event] = []
            if source.expects_webhooks and not page.acknowledged:
                lost = _lost(page.events, landed, complete)
                await self._record_lost(connection, source.name, lost)
        result.pages += 1
        result.events += len(landed)
        result.fresh += sum(not item.duplicate for item in landed)
        if lost:
            WEBHOOKS_HEALED.labels(source.name).inc(len(lost))
        result.readings += len(page.readings)
        result.fresh_readings += readings
        result.files += files
        return after

    async def _move(
        self, connection: Connection, key: str, before: Position, after: Position
    ) -> None:
        """Move the cursor by compare-and-set: a pull that outlived its lease must not put it back."""
        moved = await connection.execute(
            """INSERT INTO cursors (source, position) VALUES (%s, %s)
               ON CONFLICT (source) DO UPDATE SET position = excluded.position, changed_at = now()
               WHERE cursors.position = %s""",
            (key, Jsonb(after), Jsonb(before)),
        )
        if not moved.rowcount:
            raise Conflict(
                f"{key}: another pull moved the cursor",
                remedy="nothing to do: the other pull continues, this one has ended",
            )

    async def _completed_at(self, source: str) -> datetime | None:
        """Return when a pull of the source last ended well; None before the first, which fetches the past."""
        row = await self._db.fetch_one("SELECT pulled_at FROM sources WHERE name = %s", (source,))
        return row["pulled_at"] if row else None

    async def _cursor(self, key: str) -> Position:
        row = await self._db.fetch_one("SELECT position FROM cursors WHERE source = %s", (key,))
        return dict(row["position"]) if row else {}

    async def _stored_hints(self, source: str) -> dict[str, _StoredHint]:
        """Return the stored hints of a source that are due, by key: the oldest that were not tried yet, then those that failed."""
        rows = await self._db.fetch_rows(
            _StoredHint,
            f"""SELECT key, at, noted_at FROM change_hints
               WHERE source = %s AND {hints.DUE}
               ORDER BY due_at NULLS FIRST, noted_at LIMIT %s""",
            (source, MOST_HINTS),
        )
        return {row.key: row for row in rows}

    async def _forget_hints(
        self,
        connection: Connection,
        source: str,
        acknowledged: Sequence[ChangeHint],
        stored: Mapping[str, _StoredHint],
    ) -> None:
        """Delete acknowledged hints, except those that arrived again since they were read."""
        read = [stored[hint.key] for hint in acknowledged if hint.key in stored]
        if not read:
            return
        await connection.execute(
            # A row that another transaction holds is skipped: it arrives again, or that one deletes it.
            """DELETE FROM change_hints USING (
                 SELECT n.source, n.key FROM change_hints n JOIN unnest(%s::text[], %s::timestamptz[]) AS t (key, noted_at)
                   ON n.key = t.key AND n.noted_at = t.noted_at
                 WHERE n.source = %s FOR UPDATE OF n SKIP LOCKED) fetched
               WHERE change_hints.source = fetched.source AND change_hints.key = fetched.key""",
            ([item.key for item in read], [item.noted_at for item in read], source),
        )

    async def _count_failures(
        self, source: PulledSource, blame: _Blame, result: PullResult, on_page: OnPage | None
    ) -> None:
        """Count an attempt for each record that is to blame; make those that have no attempt left dead letters."""
        blamed = blame.blamed
        if not blamed:
            return
        async with self._db.transaction() as connection:
            cursor = await connection.execute(
                """UPDATE change_hints c SET attempts = c.attempts + 1,
                     due_at = clock_timestamp() + make_interval(secs => (%(waits)s::int[])[least(c.attempts + 1, %(longest)s)])
                   FROM (SELECT source, key FROM change_hints WHERE source = %(source)s AND key = ANY(%(keys)s)
                         ORDER BY key FOR UPDATE) failed
                   WHERE c.source = failed.source AND c.key = failed.key RETURNING c.key, c.attempts""",
                {
                    "waits": list(HINT_WAITS),
                    "longest": len(HINT_WAITS),
                    "source": source.name,
                    "keys": list(blamed),
                },
            )
            attempts = {row["key"]: row["attempts"] for row in await cursor.fetchall()}
            dead = [
                blamed[key]
                for key, count in sorted(attempts.items())
                if count >= self._max_attempts or isinstance(blamed[key].reason, Rejected)
            ]
            events = [unfetched_event(source.name, item, source.priority) for item in dead]
            await land_page(
                connection,
                source.name,
                await self._payloads.offload(events),
                document=source.document,
                payloads=self._payloads,
            )
            await connection.execute(
                "DELETE FROM change_hints WHERE source = %s AND key = ANY(%s)",
                (source.name, [item.hint.key for item in dead]),
            )
        logger(component="pull").warning(
            "the vendor does not return records; they are tried again, and in the end dead letters",
            source=source.name,
            records=list(blamed)[:LOGGED_HINTS],
            count=len(blamed),
            dead=len(dead),
            reason=str(next(iter(blamed.values())).reason)[:ERROR_CHARS],
        )
        result.events += len(dead)
        result.fresh += len(dead)
        if dead and on_page:
            await on_page(result)

    async def _record_lost(
        self, connection: Connection, source: str, events: Sequence[Event]
    ) -> None:
        """Record for the list of sources that the page brought events whose webhooks were lost."""
        if events:
            logger(component="pull").warning(
                "webhooks were lost; the pull brought their events",
                source=source,
                events=[str(event.id) for event in events],
            )
            await connection.execute(
                """INSERT INTO sources (name, healed, healed_at) VALUES (%s, %s, now()) ON CONFLICT (name) DO UPDATE
                   SET healed = sources.healed + excluded.healed, healed_at = excluded.healed_at""",
                (source, len(events)),
            )

    async def _record_outcome(self, source: str, error: str | None) -> None:
        """Record when a pull ended, or why it failed, for the list of sources."""
        if error:
            error = error[:ERROR_CHARS]
            logger(component="pull").warning("pull failed", source=source, reason=error)
        await self._db.execute(
            """INSERT INTO sources (name, pulled_at, error, error_at)
               VALUES (%(name)s, CASE WHEN %(error)s::text IS NULL THEN now() END, %(error)s,
                       CASE WHEN %(error)s::text IS NOT NULL THEN now() END)
               ON CONFLICT (name) DO UPDATE SET pulled_at = coalesce(excluded.pulled_at, sources.pulled_at),
                 error = excluded.error, error_at = coalesce(excluded.error_at, sources.error_at)""",
            {"name": source, "error": error},
        )


def _lost(
    events: Sequence[Event], landed: Sequence[LandResult], complete: datetime | None
) -> list[Event]:
    """Return the events of a page whose webhooks were lost.

    They are new although their webhook had time to arrive, and happened since the source was known to be complete (`complete`).
    Other content under the id of an earlier event is no lost webhook.
    """
    if complete is None:
        return []
    since = complete - timedelta(seconds=WEBHOOK_SECONDS)
    until = now() - timedelta(seconds=WEBHOOK_SECONDS)
    return [
        event
        for event, result in zip(events, landed, strict=True)
        if result.event_id == event.event_id
        and not result.duplicate
        and since <= event.occurred_at <= until
    ]


async def insert_hints(
    connection: Connection, source: str, change_hints: Sequence[ChangeHint]
) -> None:
    """Store change hints in the caller's transaction. A hint that exists gets the later of both times."""
    # By time, where the vendor gives one, because the notices of a batch may be in any order.
    by_time = sorted(change_hints, key=lambda hint: hint.at or LONG_AGO)
    await hints.store(connection, source, {hint.key: hint.at for hint in by_time})
    CHANGE_HINTS.labels(source).inc(len(change_hints))


def _with_bulk_priority(page: Page) -> Page:
    """Return the page with events of priority P2: a backfill waits behind everything that happens now."""
    return replace(page, events=[replace(event, priority=Priority.P2) for event in page.events])
