"""A pull from Samsara: the stats feed from its cursor on, or the history of a window."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Event, now
from apex_memory.sources.pages import BackfillRange, Page, Reading
from apex_memory.sources.payloads import as_string, malformed_event, parse_datetime
from apex_memory.sources.samsara.api import SamsaraApi
from apex_memory.sources.samsara.documents import iso
from apex_memory.sources.samsara.settings import SamsaraSettings
from apex_memory.sources.samsara.stats import PRIORITY, SOURCE, WINDOW_SECONDS, read_vehicle

OVERLAP = timedelta(hours=6)  # fetched again when a feed starts anew, as points may arrive late


class StatsPull:
    """One pull. Its start decides which times of readings are sane.

    The cursor of the feed holds `after`, Samsara's cursor, and `seen`, the time of the newest reading. The cursor of a
    backfill holds `after` and `done`.
    """

    def __init__(
        self, api: SamsaraApi, settings: SamsaraSettings, cursor: Mapping[str, Any]
    ) -> None:
        self._api = api
        self._cursor = cursor
        self._began = now()
        self._sane = BackfillRange(
            self._began - timedelta(days=settings.oldest_days),
            self._began + timedelta(days=settings.ahead_days),
        )

    async def feed(self) -> AsyncIterator[Page]:
        """Yield what arrived since the cursor. A cursor that Samsara no longer accepts is replaced, and the gap filled."""
        before = as_string(self._cursor.get("after"))
        seen = parse_datetime(self._cursor.get("seen", 0), "seen")
        stats = await self._api.feed(before)
        if stats is None:
            # The new cursor is stored only when the gap is filled, so that nothing between the two is missed.
            before, stats = "", await self._api.feed("")
            gap = BackfillRange(max(seen - OVERLAP, self._sane.since), self._began)
            try:
                async for page in self._listed(gap, ""):
                    yield replace(page, cursor=None)
            except Rejected as reason:
                # A refused history must not stop the feed for good.
                yield Page(events=[self._unfilled(gap, reason)])
        while stats is not None:
            page = self._read(stats.vehicles)
            times = [reading.at for reading in page.readings if reading.at <= self._began]
            seen = max([seen, *times])
            if page.readings or page.events or stats.after != before:
                yield replace(page, cursor={"after": stats.after, "seen": iso(seen)})
            before = stats.after
            stats = await self._api.feed(before) if stats.more else None

    async def history(self, window: BackfillRange) -> AsyncIterator[Page]:
        """Yield the readings of a window, from the cursor on."""
        if not self._cursor.get("done"):
            async for page in self._listed(window, as_string(self._cursor.get("after"))):
                yield page

    async def _listed(self, window: BackfillRange, after: str) -> AsyncIterator[Page]:
        more = True
        while more:
            stats = await self._api.history(window, after)
            after, more = stats.after, stats.more
            yield replace(self._read(stats.vehicles), cursor={"after": after, "done": not more})

    def _read(self, vehicles: Sequence[Any]) -> Page:
        """Return a page's readings. The unreadable points of a vehicle become one event, which ends as a dead letter."""
        readings: list[Reading] = []
        events: list[Event] = []
        for n, item in enumerate(vehicles):
            try:
                vehicle_readings, unread = read_vehicle(
                    item, f"data[{n}]", self._sane, WINDOW_SECONDS
                )
            except Rejected as reason:
                events.append(self._malformed(item, reason))
                continue
            readings += vehicle_readings
            if unread:
                record = {name: item.get(name) for name in ("id", "name", "externalIds")}
                events.append(self._malformed({**record, **unread.points}, unread.reason))
        return Page(events=events, readings=readings)

    def _unfilled(self, gap: BackfillRange, reason: Rejected) -> Event:
        """Return the dead letter of a gap that the history does not fill."""
        missing = Rejected(
            f"readings between {iso(gap.since)} and {iso(gap.until)} may be missing here: {reason}",
            remedy="run a backfill of this time (`apex sources backfill samsara`) once Samsara returns its history again",
        )
        return self._malformed({"since": iso(gap.since), "until": iso(gap.until)}, missing)

    def _malformed(self, record: object, reason: Rejected) -> Event:
        return malformed_event(SOURCE, record, reason, self._began, PRIORITY)
