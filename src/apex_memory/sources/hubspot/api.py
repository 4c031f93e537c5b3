"""A pull from HubSpot: search in order of change, the recycling bin, and what webhooks named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
from aiolimiter import AsyncLimiter

from apex_memory.errors import Rejected, RetryLater
from apex_memory.model import Event, micros, now
from apex_memory.sources.auth import bearer
from apex_memory.sources.http import VendorClient, retry_after
from apex_memory.sources.hubspot.documents import (
    KINDS,
    PRIORITY,
    SOURCE,
    Kind,
    gone_event,
    modified,
    object_id,
    read_key,
    record_event,
)
from apex_memory.sources.hubspot.settings import HubSpotSettings
from apex_memory.sources.pages import ChangeHint, Page, TimeRange, unfetchable_event
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    malformed_event,
    parse_datetime,
    parse_object,
    sequence,
)

SEARCH_PAGE, LIST_PAGE, READ_PAGE = 200, 100, 100  # most that HubSpot gives in a call
AHEAD = timedelta(hours=1)  # a time further ahead of our clock does not move the cursor
PATIENCE = 60.0  # seconds that limits are waited out inside one call


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk through search stands: at a time (ms), or past an id among the objects of just that time."""

    at: int
    id: int | None = None

    def after(self, kind: Kind, records: Sequence[Any], more: bool) -> Place | None:
        """Where it goes on behind these records; None at the end.

        It never follows `paging`, which counts places: an object that changes meanwhile moves to the end, and
        the next page would skip one. It starts anew from the last time seen instead, which also stays below
        the 10,000 that a query shows. Where a page holds one time alone, it goes by id within that time.
        """
        if self.id is not None:
            ids = [int(id) for record in records if (id := _digits(record))]
            return Place(self.at, max(ids)) if more and ids else Place(self.at + 1)
        if not more:
            return None
        times = [at for record in records if (at := modified(kind, record)) is not None]
        if not times:
            raise Rejected(
                f"{len(records)} {kind.plural} of HubSpot without a readable {kind.modified}",
                remedy="is sources.hubspot.base_url HubSpot's API?",
            )
        return Place(max(times)) if max(times) > self.at else Place(self.at, 0)


def _digits(record: Any) -> str:
    with contextlib.suppress(Rejected):
        return object_id(as_mapping(record).get("id"), "id")
    return ""


class DailyLimit(RetryLater):
    """HubSpot's daily limit is spent."""


def wait_for_reset(position: dict[str, Any]) -> None:
    """Make no call at all while the daily limit is known to be spent."""
    until = position.pop("limit", {}).get("until")
    left = (parse_datetime(until, "cursor.limit") - now()).total_seconds() if until else 0
    if left > 0:
        raise _spent(left)


def _spent(seconds: float) -> DailyLimit:
    return DailyLimit(
        "hubspot: HubSpot's daily limit of calls is spent",
        after=seconds,
        remedy="nothing to do: it goes on when the limit starts anew; see what else uses the account's calls",
    )


class Walk:
    """One pull. `position` is the cursor as it grows; a type's part of it holds:

    `seen`: the newest change (ms) up to which everything is here; `at`, `id`: where a walk that was
    broken off goes on; `swept`: when the recycling bin was last listed.
    """

    def __init__(
        self,
        calls: Calls,
        settings: HubSpotSettings,
        position: dict[str, Any],
        window: TimeRange | None,
    ) -> None:
        self._calls = calls
        self._settings = settings
        self._position = position
        self._window = window
        self._pause = timedelta(seconds=settings.archived_seconds)

    async def answers(self, change_hints: Sequence[ChangeHint]) -> AsyncIterator[Page]:
        """Fetch what webhooks named. What is neither there nor in the recycling bin is gone."""
        wanted: dict[str, dict[str, list[ChangeHint]]] = {}
        strange = []
        for hint in change_hints:
            read = read_key(hint.key)
            if read is None or read[0].plural not in self._settings.objects:
                strange.append(hint)
            else:
                wanted.setdefault(read[0].plural, {}).setdefault(read[1], []).append(hint)
        if strange:
            yield Page(acknowledged=strange)
        for plural, by_id in wanted.items():
            ids = list(by_id)
            for start in range(0, len(ids), READ_PAGE):
                hints = {id: by_id[id] for id in ids[start : start + READ_PAGE]}
                async for page in self._hinted(KINDS[plural], hints):
                    yield page

    async def _hinted(
        self, kind: Kind, hints: Mapping[str, Sequence[ChangeHint]]
    ) -> AsyncIterator[Page]:
        """Yield the page of some records; where HubSpot refuses them together, one page for each."""
        try:
            yield await self._answer(kind, hints)
            return
        except Rejected as error:
            if len(hints) == 1:
                (same_record,) = hints.values()
                event = unfetchable_event(SOURCE, same_record[-1], error, PRIORITY)
                yield Page(events=[event], acknowledged=same_record)
                return
        for id, same_record in hints.items():
            async for page in self._hinted(kind, {id: same_record}):
                yield page

    async def _answer(self, kind: Kind, wanted: Mapping[str, Sequence[ChangeHint]]) -> Page:
        live = await self._calls.read(kind, list(wanted), archived=False)
        missing = [id for id in wanted if id not in {_digits(record) for record in live}]
        binned = await self._calls.read(kind, missing, archived=True) if missing else []
        gone = [id for id in missing if id not in {_digits(record) for record in binned}]
        events = self._events(kind, [*live, *binned])
        for record in live:
            for hint in wanted.get(_digits(record), ()):
                if hint.at and hint.key.endswith(":restored"):
                    events += self._events(kind, [record], restored=hint.at)
        for id in gone:
            at = max((hint.at for hint in wanted[id] if hint.at), default=None)
            events.append(gone_event(kind, id, at or now()))
        return Page(events=events, acknowledged=[hint for some in wanted.values() for hint in some])

    async def changes(self, kind: Kind) -> AsyncIterator[Page]:
        """Everything changed since the cursor, or within the window, oldest change first."""
        state = self._position.setdefault(kind.plural, {})
        if state.get("listed"):
            return
        seen, end = state.get("seen", 0), None
        place: Place | None = Place(max(0, seen - int(self._settings.overlap_seconds * 1000)))
        if self._window:
            place = Place(_ms(self._window.since))
            end = _ms(self._window.until)
        if "at" in state:
            place = Place(state["at"], state.get("id"))
        latest = _ms(now() + AHEAD)
        while place:
            records, more = await self._calls.search(kind, place, end)
            times = [at for record in records if (at := modified(kind, record)) is not None]
            seen = max([seen, *(min(at, latest) for at in times)])
            place = place.after(kind, records, more)
            for name in ("at", "id"):
                state.pop(name, None)
            state["seen"] = seen
            if place:
                state |= {"at": place.at, "id": place.id}
            elif self._window:
                state["listed"] = True
            yield Page(events=self._events(kind, records), cursor=self._cursor())

    async def archived(self, kind: Kind) -> AsyncIterator[Page]:
        """The recycling bin, where it is time for it: search never shows what lies there."""
        state, began = self._position[kind.plural], now()
        due = parse_datetime(state.get("swept", 0), "cursor.swept") + self._pause
        if self._window or began < due:
            return
        after: str | None = ""
        while after is not None:
            records, after = await self._calls.archived(kind, after)
            if after is None:
                state["swept"] = began.isoformat()
            yield Page(events=self._events(kind, records), cursor=self._cursor())

    def _cursor(self) -> dict[str, Any]:
        return copied(self._position)

    def _events(
        self, kind: Kind, records: Sequence[Any], *, restored: datetime | None = None
    ) -> list[Event]:
        events = []
        for record in records:
            try:
                events.append(record_event(kind, record, restored=restored))
            except Rejected as error:
                events.append(malformed_event(SOURCE, record, error, now(), PRIORITY))
        return events


class Calls:
    """The calls a pull makes, each for one page."""

    def __init__(
        self, link: VendorClient, settings: HubSpotSettings, searches: AsyncLimiter
    ) -> None:
        self._link = link
        self._searches = searches
        self._settings = settings
        self._auth = bearer(settings.access_token.get_secret_value())

    async def search(self, kind: Kind, place: Place, end: int | None) -> tuple[Sequence[Any], bool]:
        """Up to 200 objects from `place` on and before `end` (ms), and whether there are more."""
        by_time = place.id is None
        filters = [_filter(kind.modified, "GTE" if by_time else "EQ", place.at)]
        if not by_time:
            filters.append(_filter("hs_object_id", "GT", place.id))
        if end is not None:
            filters.append(_filter(kind.modified, "LT", end))
        order = kind.modified if by_time else "hs_object_id"
        await self._searches.acquire()
        body = await self._call(
            "POST",
            f"{kind.plural}/search",
            json={
                "filterGroups": [{"filters": filters}],
                "sorts": [{"propertyName": order, "direction": "ASCENDING"}],
                "properties": self._properties(kind),
                "limit": SEARCH_PAGE,
            },
        )
        return sequence(body.get("results")), bool(_next(body))

    async def archived(self, kind: Kind, after: str) -> tuple[Sequence[Any], str | None]:
        """Up to 100 objects of the recycling bin, and what to ask for next."""
        params = {"archived": "true", "limit": LIST_PAGE, "properties": kind.modified}
        body = await self._call(
            "GET", kind.plural, params={**params, "after": after} if after else params
        )
        return sequence(body.get("results")), _next(body) or None

    async def read(self, kind: Kind, ids: Sequence[str], *, archived: bool) -> Sequence[Any]:
        """Those of up to 100 objects that are there."""
        body = await self._call(
            "POST",
            f"{kind.plural}/batch/read",
            params={"archived": "true" if archived else "false"},
            json={"inputs": [{"id": id} for id in ids], "properties": self._properties(kind)},
        )
        return sequence(body.get("results"))

    def _properties(self, kind: Kind) -> list[str]:
        wanted = (kind.modified, *kind.shown, *self._settings.properties)
        return list(dict.fromkeys(wanted))

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        url = f"{self._settings.base_url.rstrip('/')}/crm/v3/objects/{path}"
        waited = 0.0
        while True:
            # 429 comes back here, because only its body tells a limit of seconds from that of the day.
            answer = await self._link.call(method, url, auth=self._auth, accept=(429,), **request)
            if answer.status_code != 429:
                return parse_object(answer.content)
            wait = self._wait(answer)
            waited += wait
            if waited > PATIENCE:
                raise RetryLater(
                    "hubspot: HubSpot answers 429",
                    after=wait,
                    remedy="it is tried again by itself; see what else uses the account's calls",
                )
            await asyncio.sleep(wait)

    def _wait(self, answer: httpx2.Response) -> float:
        """Seconds to wait. Raises `DailyLimit` where that is until the day's end."""
        given = retry_after(answer.headers.get("retry-after"))
        try:
            policy = as_string(parse_object(answer.content).get("policyName"))
        except Rejected:
            policy = ""
        if policy.upper() == "DAILY":
            zone = ZoneInfo(self._settings.time_zone)
            here = now().astimezone(zone)
            midnight = datetime(here.year, here.month, here.day, tzinfo=zone) + timedelta(days=1)
            raise _spent(given or (midnight - now()).total_seconds())
        return 1.0 if given is None else given


def copied(position: Mapping[str, Any]) -> dict[str, Any]:
    """A cursor that does not change with the walk."""
    return {name: dict(value) for name, value in position.items()}


def _filter(property: str, operator: str, value: int | None) -> dict[str, str]:
    return {"propertyName": property, "operator": operator, "value": str(value)}


def _next(body: Mapping[str, Any]) -> str:
    after = as_mapping(as_mapping(body.get("paging")).get("next")).get("after")
    return str(after) if after else ""


def _ms(at: datetime) -> int:
    return micros(at) // 1000
