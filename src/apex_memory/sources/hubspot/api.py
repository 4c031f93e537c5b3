"""A pull from HubSpot: search in order of change, the recycling bin, and the objects that webhooks named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
from aiolimiter import AsyncLimiter

from apex_memory.errors import Rejected, RetryLater
from apex_memory.model import Event, micros, now
from apex_memory.sources.auth import bearer
from apex_memory.sources.fetch_back import FetchBack, check_missing
from apex_memory.sources.http import VendorClient, VendorFault, retry_after
from apex_memory.sources.hubspot.documents import (
    PRIORITY,
    SOURCE,
    deletion_event,
    modified_ms,
    object_id,
    parse_hint_key,
    record_event,
)
from apex_memory.sources.hubspot.object_types import OBJECT_TYPES, ObjectType
from apex_memory.sources.hubspot.settings import HubSpotSettings
from apex_memory.sources.pages import BackfillRange, ChangeHint, Page
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    malformed_event,
    parse_datetime,
    parse_object,
    sequence,
)

SEARCH_PAGE, LIST_PAGE, READ_PAGE = 200, 100, 100  # records per call, HubSpot's limits
AHEAD = timedelta(hours=1)  # a time further ahead of this machine's clock does not move the cursor
NOT_FOUND = "OBJECT_NOT_FOUND"
"""Category of an error in a response to a batch: the object does not exist."""
PATIENCE = 60.0  # longest total wait for short limits inside one call, in seconds


@dataclass(frozen=True, slots=True)
class SearchPosition:
    """The position of a listing: a time in milliseconds since 1970, or an id among the objects of exactly that time.

    `token` is HubSpot's own place in the result, used only behind an empty page. No cursor holds it.
    """

    at: int
    id: int | None = None
    token: str = ""

    def after(self, type: ObjectType, records: Sequence[Any], token: str) -> SearchPosition | None:
        """Return the position behind these records; None at the end.

        HubSpot's `paging` counts places in the result: an object that changes meanwhile moves to the end, and the next
        page would skip another one. So each page is a new query from the last time seen, which also stays below the
        10,000 results of a query. Where all records of a page have one time, the listing goes by id within that time.
        `token` is HubSpot's for the next page, empty at the end. An empty page may be followed by others.
        """
        more = bool(token)
        if more and not records:
            if token == self.token:
                raise _stuck(f"search of {type.plural}")
            return replace(self, token=token)
        if self.id is not None:
            ids = [int(id) for id in map(_id_of, records) if id]
            if more and ids:
                return SearchPosition(self.at, max(ids))
            return SearchPosition(self.at + 1)
        if not more:
            return None
        times = _times(type, records)
        if not times:
            raise Rejected(
                f"{len(records)} {type.plural} of HubSpot without a readable {type.modified}",
                remedy="check that sources.hubspot.base_url is HubSpot's API",
            )
        newest = max(times)
        return SearchPosition(newest) if newest > self.at else SearchPosition(self.at, 0)


def _times(type: ObjectType, records: Sequence[Any]) -> list[int]:
    """Return the readable times of change of records, in milliseconds since 1970."""
    times = (modified_ms(type, record) for record in records)
    return [time for time in times if time is not None]


def _id_of(record: Any) -> str:
    """Return the id of a record, empty if it cannot be read."""
    with contextlib.suppress(Rejected):
        return object_id(as_mapping(record).get("id"), "id")
    return ""


def _stuck(listing: str) -> RetryLater:
    return RetryLater(
        f"hubspot: HubSpot's {listing} leads to the same page again",
        after=60,
        remedy="Apex retries it; see HubSpot's status page if it lasts",
    )


LONGEST_LIMIT = 26 * 3600.0
"""Seconds until the next midnight of any time zone. A time further ahead was stored before somebody set the clock back."""


class DailyLimit(RetryLater):
    """HubSpot's daily limit of calls is spent."""


def wait_for_reset(position: dict[str, Any]) -> None:
    """Raise `DailyLimit` while the cursor holds a time until which the daily limit is spent."""
    until = position.pop("limit", {}).get("until")
    left = (parse_datetime(until, "cursor.limit") - now()).total_seconds() if until else 0
    if 0 < left <= LONGEST_LIMIT:
        raise _spent(left)


def _spent(seconds: float) -> DailyLimit:
    return DailyLimit(
        "hubspot: HubSpot's daily limit of calls is spent",
        after=seconds,
        remedy="Apex continues when the limit starts anew; check what else uses the account's calls",
    )


class HubSpotPull:
    """One pull. `position` is the growing cursor, with a part for each type of objects, which holds:

    `seen`: the time of change, in milliseconds since 1970, up to which everything is here; `at`, `id`: the position of an
    interrupted listing; `swept`: the time of the last listing of the recycling bin.
    """

    def __init__(
        self,
        api: HubSpotApi,
        settings: HubSpotSettings,
        position: dict[str, Any],
        window: BackfillRange | None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._position = position
        self._window = window
        self._pause = timedelta(seconds=settings.archived_seconds)

    async def hinted(self, change_hints: Sequence[ChangeHint]) -> AsyncIterator[Page]:
        """Yield the objects that webhooks named. One that is neither live nor in the recycling bin is deleted."""
        fetch_back = FetchBack()
        by_type: dict[str, dict[str, list[ChangeHint]]] = {}
        unknown: list[ChangeHint] = []
        for hint in change_hints:
            parsed = parse_hint_key(hint.key)
            if parsed is None or parsed[0].plural not in self._settings.objects:
                unknown.append(hint)
                continue
            type, id = parsed
            by_type.setdefault(type.plural, {}).setdefault(id, []).append(hint)
        if unknown:
            yield Page(acknowledged=unknown)
        for plural, by_id in by_type.items():
            ids = list(by_id)
            groups = [
                list(chain.from_iterable(by_id[id] for id in ids[start : start + READ_PAGE]))
                for start in range(0, len(ids), READ_PAGE)
            ]
            fetch = partial(self._fetched, OBJECT_TYPES[plural])
            async for page in fetch_back.pages(groups, fetch):
                yield page

    async def _fetched(
        self, type: ObjectType, change_hints: Sequence[ChangeHint]
    ) -> Sequence[Event]:
        """Return the events of the objects that these hints name, at most `READ_PAGE`.

        Raises what `check_missing` raises.
        """
        hints: dict[str, list[ChangeHint]] = {}
        for hint in change_hints:
            if parsed := parse_hint_key(hint.key):
                hints.setdefault(parsed[1], []).append(hint)
        live = await self._api.read(type, list(hints), archived=False)
        live_ids = set(map(_id_of, live))
        missing = [id for id in hints if id not in live_ids]
        archived = await self._api.read(type, missing, archived=True) if missing else []
        archived_ids = set(map(_id_of, archived))
        events = self._events(type, [*live, *archived])
        for record in live:
            for hint in hints.get(_id_of(record), ()):
                if hint.at and hint.key.endswith(":restored"):
                    events += self._events(type, [record], restored=hint.at)
        for id in missing:
            if id not in archived_ids:
                at = max((hint.at for hint in hints[id] if hint.at), default=None)
                check_missing(SOURCE, f"{type.name} {id}", at)
                events.append(deletion_event(type, id, at or now()))
        return events

    async def changes(self, type: ObjectType) -> AsyncIterator[Page]:
        """Yield what changed since the cursor, or within the window, oldest change first."""
        state = self._position.setdefault(type.plural, {})
        if state.get("listed"):
            return
        seen, end = state.get("seen", 0), None
        start = max(0, seen - int(self._settings.overlap_seconds * 1000))
        if self._window:
            start, end = _ms(self._window.since), _ms(self._window.until)
        position: SearchPosition | None = SearchPosition(start)
        if "at" in state:
            position = SearchPosition(state["at"], state.get("id"))
        latest = _ms(now() + AHEAD)
        while position:
            records, token = await self._api.search(type, position, end)
            seen = max([seen, *(min(time, latest) for time in _times(type, records))])
            position = position.after(type, records, token)
            for name in ("at", "id"):
                state.pop(name, None)
            state["seen"] = seen
            if position:
                state |= {"at": position.at, "id": position.id}
            elif self._window:
                state["listed"] = True
            yield Page(events=self._events(type, records), cursor=self._cursor())

    async def archived(self, type: ObjectType) -> AsyncIterator[Page]:
        """Yield the recycling bin, if its listing is due: search never returns what lies there."""
        state, began = self._position[type.plural], now()
        swept = parse_datetime(state.get("swept", 0), "cursor.swept")
        # A time ahead of the clock was stored before somebody set the clock back: it holds nothing.
        if self._window or swept <= began < swept + self._pause:
            return
        after: str | None = ""
        while after is not None:
            before = after
            records, after = await self._api.archived(type, before)
            if after == before:
                raise _stuck(f"recycling bin of {type.plural}")
            if after is None:
                state["swept"] = began.isoformat()
            yield Page(events=self._events(type, records), cursor=self._cursor())

    def _cursor(self) -> dict[str, Any]:
        return copied(self._position)

    def _events(
        self, type: ObjectType, records: Sequence[Any], *, restored: datetime | None = None
    ) -> list[Event]:
        events = []
        for record in records:
            try:
                events.append(record_event(type, record, restored=restored))
            except Rejected as error:
                events.append(malformed_event(SOURCE, record, error, now(), PRIORITY))
        return events


class HubSpotApi:
    """HubSpot's CRM objects, a page at a time."""

    def __init__(
        self, client: VendorClient, settings: HubSpotSettings, searches: AsyncLimiter
    ) -> None:
        self._client = client
        self._searches = searches
        self._settings = settings
        self._auth = bearer(settings.access_token.get_secret_value())

    async def search(
        self, type: ObjectType, position: SearchPosition, end: int | None
    ) -> tuple[Sequence[Any], str]:
        """Return up to 200 objects from `position` on and before `end` (milliseconds), and the token of the next page, empty at the end."""
        by_time = position.id is None
        filters = [_filter(type.modified, "GTE" if by_time else "EQ", position.at)]
        if not by_time:
            filters.append(_filter("hs_object_id", "GT", position.id))
        if end is not None:
            filters.append(_filter(type.modified, "LT", end))
        order = type.modified if by_time else "hs_object_id"
        await self._searches.acquire()
        body = await self._call(
            "POST",
            f"{type.plural}/search",
            json={
                "filterGroups": [{"filters": filters}],
                "sorts": [{"propertyName": order, "direction": "ASCENDING"}],
                "properties": self._properties(type),
                "limit": SEARCH_PAGE,
                **({"after": position.token} if position.token else {}),
            },
        )
        return sequence(body.get("results")), _next(body)

    async def archived(self, type: ObjectType, after: str) -> tuple[Sequence[Any], str | None]:
        """Return up to 100 objects of the recycling bin, and the token of the next page, None at the end."""
        params = {"archived": "true", "limit": LIST_PAGE, "properties": type.modified}
        body = await self._call(
            "GET", type.plural, params={**params, "after": after} if after else params
        )
        return sequence(body.get("results")), _next(body) or None

    async def read(self, type: ObjectType, ids: Sequence[str], *, archived: bool) -> Sequence[Any]:
        """Return those of up to 100 objects that exist.

        Raises `VendorFault` when HubSpot could not read some of them: they may exist, and must not be deleted here.
        """
        body = await self._call(
            "POST",
            f"{type.plural}/batch/read",
            params={"archived": "true" if archived else "false"},
            json={"inputs": [{"id": id} for id in ids], "properties": self._properties(type)},
        )
        for error in map(as_mapping, sequence(body.get("errors"))):
            category = as_string(error.get("category"))
            if category != NOT_FOUND:
                raise VendorFault(
                    f"hubspot: HubSpot could not read some {type.plural} ({category[:60] or 'no category'})",
                    after=60,
                    remedy="Apex retries it; see HubSpot's documentation of this category of errors",
                )
        return sequence(body.get("results"))

    def _properties(self, type: ObjectType) -> list[str]:
        names = (type.modified, *type.labels, *self._settings.properties)
        return list(dict.fromkeys(names))

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        url = f"{self._settings.base_url.rstrip('/')}/crm/v3/objects/{path}"
        waited = 0.0
        while True:
            # 429 is accepted, because only its body distinguishes a limit of seconds from that of the day.
            response = await self._client.call(
                method, url, auth=self._auth, accept=(429,), **request
            )
            if response.status_code != 429:
                return parse_object(response.content)
            wait = self._wait(response)
            waited += wait
            if waited > PATIENCE:
                raise RetryLater(
                    "hubspot: HubSpot responds with status 429",
                    after=wait,
                    remedy="Apex retries it; check what else uses the account's calls",
                )
            await asyncio.sleep(wait)

    def _wait(self, response: httpx2.Response) -> float:
        """Return the seconds to wait after a 429. Raises `DailyLimit` where the limit is the day's."""
        given = retry_after(response.headers.get("retry-after"))
        try:
            policy = as_string(parse_object(response.content).get("policyName"))
        except Rejected:
            policy = ""
        if policy.upper() == "DAILY":
            zone = ZoneInfo(self._settings.time_zone)
            today = now().astimezone(zone)
            midnight = datetime(today.year, today.month, today.day, tzinfo=zone) + timedelta(days=1)
            raise _spent(given or (midnight - now()).total_seconds())
        return 1.0 if given is None else given


def copied(position: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a cursor, which does not change with the pull."""
    return {name: dict(value) for name, value in position.items()}


def _filter(property: str, operator: str, value: int | None) -> dict[str, str]:
    return {"propertyName": property, "operator": operator, "value": str(value)}


def _next(body: Mapping[str, Any]) -> str:
    after = as_mapping(as_mapping(body.get("paging")).get("next")).get("after")
    return str(after) if after else ""


def _ms(at: datetime) -> int:
    return micros(at) // 1000
