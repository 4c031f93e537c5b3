"""HubSpot: companies, contacts, and a deal a shipment; search, lists, batch reads and signed webhooks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.hubspot.objects import (
    SINGULAR,
    TOUCHED,
    Version,
    last_of,
    objects_of,
    put,
)
from apex_memory.simulate.hubspot.webhooks import PORTAL, SECRET, URL, pushes
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

TOKEN = "simulated-access-token"  # noqa: S105 -- of a simulator
# Several changes at one moment get times of their own, at most this far ahead of the clock.
AHEAD = timedelta(seconds=1)
SEARCH_LAG_SECONDS = 90  # the most, with chaos


class HubSpot(Simulator):
    name: ClassVar[str] = "hubspot"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.objects = objects_of(world)
        self.most = 200
        """Most objects in a page of search, whatever limit the request has."""
        self.cap = 10_000
        """Most objects that the pages of one search reach."""
        self.calls_left: int | None = None
        """Calls until the daily limit; None: no limit."""
        self._touches = 0

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "access_token": TOKEN,
            "base_url": base,
            "client_secrets": [SECRET],
            "public_url": URL,
            "portal_id": PORTAL,
            "properties": ["scac", "mc_number"],
            "archived_seconds": 0,
        }

    def routes(self) -> Sequence[BaseRoute]:
        place = "/crm/v3/objects/{plural}"
        return [
            Route(f"{place}/search", self._endpoint(self._search), methods=["POST"]),
            Route(f"{place}/batch/read", self._endpoint(self._batch), methods=["POST"]),
            Route(f"{place}/{{id:int}}", self._endpoint(self._read)),
            Route(place, self._endpoint(self._list)),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        return pushes(self.objects, since, until)

    def truth(self, until: datetime) -> Sequence[Truth]:
        truth = []
        for (plural, id), versions in self.objects.items():
            if versions[0].at <= until + AHEAD:
                last, key = last_of(versions, until + AHEAD), f"{SINGULAR[plural]}:{id}"
                text = last.properties[TOUCHED[plural]]
                truth.append(Truth(key, "" if last.archived else text, deleted=last.archived))
        return truth

    def put(self, plural: str, id: int, version: Version) -> None:
        """Add a version of an object."""
        put(self.objects, plural, id, version)

    def _endpoint(
        self, respond: Callable[[str, Request, Any], Response]
    ) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if (error := self._refused(request)) is not None:
                return error
            plural = request.path_params["plural"]
            if plural not in SINGULAR:
                return _error(404, "OBJECT_NOT_FOUND", f"no type {plural}")
            if self.chaos.strikes(self.chaos.mutations):
                self._touch()
            body = await request.json() if request.method == "POST" else {}
            return respond(plural, request, body)

        return endpoint

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(401, "INVALID_AUTHENTICATION", "invalid token")
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                return _limit("DAILY", {})
        chaos = self.chaos
        if chaos.strikes(chaos.expiries):
            return _error(401, "EXPIRED_AUTHENTICATION", "the token is expired")
        if chaos.strikes(chaos.limits):
            return _limit("TEN_SECONDLY_ROLLING", {"Retry-After": "0.02"})
        return _error(502, "INTERNAL_ERROR", "bad gateway") if chaos.strikes(chaos.errors) else None

    def _touch(self) -> None:
        """Change an object between two calls. The times of one object's versions differ."""
        now = self.clock.now + AHEAD
        live = [
            key for key, versions in self.objects.items() if not last_of(versions, now).archived
        ]
        self._touches += 1
        plural, id = live[(self._touches * 7) % len(live)]
        last = last_of(self.objects[plural, id], now)
        property = TOUCHED[plural]
        text = f"{last.properties[property].partition(' Note')[0]} Note {self._touches}."
        at = max(_to_milliseconds(self.clock.now), last.at + timedelta(milliseconds=1))
        self.put(plural, id, Version(at, {**last.properties, property: text}))

    def _live(self, plural: str) -> Iterator[tuple[int, Version, Version]]:
        """Yield the ids of a type with their first and their current version."""
        now = self.clock.now + AHEAD
        for (kind, id), versions in self.objects.items():
            if kind == plural and versions[0].at <= now:
                yield id, versions[0], last_of(versions, now)

    def _search(self, plural: str, request: Request, body: Any) -> Response:
        late = timedelta(seconds=SEARCH_LAG_SECONDS if self.chaos.mutations else 0)
        records = []
        for id, first, last in self._live(plural):
            lag = late * (id % 10 / 10)
            record = _record(plural, id, first, last, body.get("properties", []))
            if not last.archived and last.at <= self.clock.now + AHEAD - lag:
                records.append(record)
        groups = [group["filters"] for group in body.get("filterGroups", [])]
        if groups:
            records = [record for record in records if _matches_any(record, groups)]
        if sorts := body.get("sorts"):
            # Equal ones come in an order that nobody can rely on.
            records.sort(key=lambda record: hashlib.sha256(str(record["id"]).encode()).digest())
            records.sort(
                key=lambda record: _number(record, sorts[0]["propertyName"]),
                reverse=sorts[0].get("direction") == "DESCENDING",
            )
        limit, start = min(body.get("limit", 10), self.most), int(body.get("after") or 0)
        if start + limit > self.cap:
            return _error(400, "VALIDATION_ERROR", f"paging beyond {self.cap} is not possible")
        return _page(records, start, limit, {"total": len(records)})

    def _list(self, plural: str, request: Request, body: Any) -> Response:
        query = request.query_params
        archived = query.get("archived", "").lower() == "true"
        properties = query.get("properties", "").split(",")
        limit = int(query.get("limit", 10))
        if limit > 100:
            return _error(400, "VALIDATION_ERROR", "limit: at most 100")
        records = [
            _record(plural, id, first, last, properties)
            for id, first, last in sorted(self._live(plural), key=lambda item: item[0])
            if last.archived == archived and id >= int(query.get("after") or 0)
        ]
        after = records[limit]["id"] if len(records) > limit else None
        return _results(records[:limit], after, {})

    def _batch(self, plural: str, request: Request, body: Any) -> Response:
        archived = request.query_params.get("archived", "").lower() == "true"
        ids = [int(item["id"]) for item in body["inputs"]]
        if len(ids) > 100:
            return _error(400, "VALIDATION_ERROR", "inputs: at most 100")
        records = [
            _record(plural, id, first, last, body.get("properties", []))
            for id, first, last in self._live(plural)
            if last.archived == archived and id in ids
        ]
        result: dict[str, Any] = {"status": "COMPLETE", "results": records}
        missing = set(map(str, ids)) - {record["id"] for record in records}
        times = {"startedAt": _iso(self.clock.now), "completedAt": _iso(self.clock.now)}
        if not missing:
            return JSONResponse({**result, **times})
        error = {
            "status": "error",
            "category": "OBJECT_NOT_FOUND",
            "message": "Could not get some objects",
            "context": {"ids": sorted(missing)},
        }
        return JSONResponse({**result, **times, "numErrors": 1, "errors": [error]}, 207)

    def _read(self, plural: str, request: Request, body: Any) -> Response:
        query = request.query_params
        for id, first, last in self._live(plural):
            archived = query.get("archived", "").lower() == "true"
            if id == request.path_params["id"] and last.archived == archived:
                properties = query.get("properties", "").split(",")
                return JSONResponse(_record(plural, id, first, last, properties))
        return _error(404, "OBJECT_NOT_FOUND", "object not found")


def _record(
    plural: str, id: int, first: Version, last: Version, properties: Sequence[str]
) -> dict[str, Any]:
    stamp = "lastmodifieddate" if plural == "contacts" else "hs_lastmodifieddate"
    own = {"createdate": _iso(first.at), stamp: _iso(last.at), "hs_object_id": str(id)}
    selected: dict[str, str | None] = {
        name: last.properties.get(name) for name in properties if name and name not in own
    }
    record: dict[str, Any] = {
        "id": str(id),
        "properties": {**selected, **own},
        "createdAt": _iso(first.at),
        "updatedAt": _iso(last.at),
        "archived": last.archived,
    }
    if last.archived:
        record["archivedAt"] = _iso(last.at)
    return record


def _matches_any(record: Mapping[str, Any], groups: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Return whether all filters of at least one group match."""
    return any(all(_matches(record, condition) for condition in group) for group in groups)


def _matches(record: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    actual, limit = _number(record, condition["propertyName"]), int(condition["value"])
    return {
        "EQ": actual == limit,
        "GT": actual > limit,
        "GTE": actual >= limit,
        "LT": actual < limit,
        "LTE": actual <= limit,
    }[condition["operator"]]


def _number(record: Mapping[str, Any], property: str) -> int:
    value = str(record["properties"][property])
    if value.isdigit():
        return int(value)
    return round(datetime.fromisoformat(value).timestamp() * 1000)


def _page(
    records: Sequence[Mapping[str, Any]], start: int, limit: int, fields: Mapping[str, Any]
) -> Response:
    end = start + limit
    return _results(records[start:end], str(end) if len(records) > end else None, fields)


def _results(
    results: Sequence[Mapping[str, Any]], after: str | None, fields: Mapping[str, Any]
) -> Response:
    paging = {"paging": {"next": {"after": after, "link": "?after=" + after}}} if after else {}
    return JSONResponse({**fields, "results": results, **paging})


def _error(status: int, category: str, message: str) -> Response:
    body = {"status": "error", "message": message, "correlationId": "c-1", "category": category}
    return JSONResponse(body, status)


def _limit(policy: str, headers: Mapping[str, str]) -> Response:
    body = {
        "status": "error",
        "message": f"You have reached your {policy} limit.",
        "errorType": "RATE_LIMIT",
        "correlationId": "c-2",
        "policyName": policy,
    }
    return JSONResponse(body, 429, headers)


def _to_milliseconds(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
