"""HubSpot: the world's companies, their people, and a deal a shipment; search, lists, batch reads and signed webhooks."""

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
AHEAD = timedelta(
    seconds=1
)  # several changes at one moment run that far ahead of the clock at most
SECONDS_LATE = 90  # most that search lags behind on a bad day


class HubSpot(Simulator):
    name: ClassVar[str] = "hubspot"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.objects = objects_of(world)
        self.most = 200
        """Most objects in a page of search, whatever is asked for."""
        self.cap = 10_000
        """Most objects that one query shows."""
        self.calls_left: int | None = None
        """Calls until the daily limit; None: there is none."""
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
            Route(f"{place}/search", self._told(self._search), methods=["POST"]),
            Route(f"{place}/batch/read", self._told(self._batch), methods=["POST"]),
            Route(f"{place}/{{id:int}}", self._told(self._one)),
            Route(place, self._told(self._list)),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        return pushes(self.objects, since, until)

    def truth(self, until: datetime) -> Sequence[Truth]:
        told = []
        for (plural, id), versions in self.objects.items():
            if versions[0].at <= until + AHEAD:
                last, key = last_of(versions, until + AHEAD), f"{SINGULAR[plural]}:{id}"
                text = last.properties[TOUCHED[plural]]
                told.append(Truth(key, "" if last.archived else text, deleted=last.archived))
        return told

    def put(self, plural: str, id: int, version: Version) -> None:
        """Write a version of an object."""
        put(self.objects, plural, id, version)

    # -- what it answers

    def _told(self, answer: Callable[[str, Request, Any], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if (bad := self._trouble(request)) is not None:
                return bad
            plural = request.path_params["plural"]
            if plural not in SINGULAR:
                return _error(404, "OBJECT_NOT_FOUND", f"no type {plural}")
            if self.chaos.strikes(self.chaos.mutations):
                self._touch()
            body = await request.json() if request.method == "POST" else {}
            return answer(plural, request, body)

        return endpoint

    def _trouble(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(401, "INVALID_AUTHENTICATION", "no such token")
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
        """Somebody changes an object between two calls. Times of one object differ."""
        now = self.clock.now + AHEAD
        live = [
            key for key, versions in self.objects.items() if not last_of(versions, now).archived
        ]
        self._touches += 1
        plural, id = live[(self._touches * 7) % len(live)]
        last = last_of(self.objects[plural, id], now)
        property = TOUCHED[plural]
        text = f"{last.properties[property].partition(' Note')[0]} Note {self._touches}."
        at = max(_whole(self.clock.now), last.at + timedelta(milliseconds=1))
        self.put(plural, id, Version(at, {**last.properties, property: text}))

    def _live(self, plural: str) -> Iterator[tuple[int, Version, Version]]:
        """Ids with their first and their present version."""
        now = self.clock.now + AHEAD
        for (kind, id), versions in self.objects.items():
            if kind == plural and versions[0].at <= now:
                yield id, versions[0], last_of(versions, now)

    def _search(self, plural: str, request: Request, body: Any) -> Response:
        late = timedelta(seconds=SECONDS_LATE if self.chaos.mutations else 0)
        found = []
        for id, first, last in self._live(plural):
            lag = late * (id % 10 / 10)
            record = _record(plural, id, first, last, body.get("properties", []))
            if not last.archived and last.at <= self.clock.now + AHEAD - lag:
                found.append(record)
        groups = [group["filters"] for group in body.get("filterGroups", [])]
        if groups:
            found = [one for one in found if any(all(map(_fits(one), group)) for group in groups)]
        if sorts := body.get("sorts"):
            # Among equals in no order that anybody could rely on.
            found.sort(key=lambda one: hashlib.sha256(str(one["id"]).encode()).digest())
            found.sort(
                key=lambda one: _number(one, sorts[0]["propertyName"]),
                reverse=sorts[0].get("direction") == "DESCENDING",
            )
        limit, start = min(body.get("limit", 10), self.most), int(body.get("after") or 0)
        if start + limit > self.cap:
            return _error(400, "VALIDATION_ERROR", f"paging beyond {self.cap} is not possible")
        return _page(found, start, limit, {"total": len(found)})

    def _list(self, plural: str, request: Request, body: Any) -> Response:
        query = request.query_params
        archived, wanted = (
            query.get("archived", "").lower() == "true",
            query.get("properties", "").split(","),
        )
        limit = int(query.get("limit", 10))
        if limit > 100:
            return _error(400, "VALIDATION_ERROR", "limit: at most 100")
        found = [
            _record(plural, id, first, last, wanted)
            for id, first, last in sorted(self._live(plural), key=lambda one: one[0])
            if last.archived == archived and id >= int(query.get("after") or 0)
        ]
        after = found[limit]["id"] if len(found) > limit else None
        return _answer(found[:limit], after, {})

    def _batch(self, plural: str, request: Request, body: Any) -> Response:
        archived = request.query_params.get("archived", "").lower() == "true"
        asked = [int(one["id"]) for one in body["inputs"]]
        if len(asked) > 100:
            return _error(400, "VALIDATION_ERROR", "inputs: at most 100")
        found = [
            _record(plural, id, first, last, body.get("properties", []))
            for id, first, last in self._live(plural)
            if last.archived == archived and id in asked
        ]
        answer: dict[str, Any] = {"status": "COMPLETE", "results": found}
        missing = set(map(str, asked)) - {one["id"] for one in found}
        times = {"startedAt": _iso(self.clock.now), "completedAt": _iso(self.clock.now)}
        if not missing:
            return JSONResponse({**answer, **times})
        lost = {
            "status": "error",
            "category": "OBJECT_NOT_FOUND",
            "message": "Could not get some objects",
            "context": {"ids": sorted(missing)},
        }
        return JSONResponse({**answer, **times, "numErrors": 1, "errors": [lost]}, 207)

    def _one(self, plural: str, request: Request, body: Any) -> Response:
        query = request.query_params
        for id, first, last in self._live(plural):
            if id == request.path_params["id"] and last.archived == (
                query.get("archived", "").lower() == "true"
            ):
                wanted = query.get("properties", "").split(",")
                return JSONResponse(_record(plural, id, first, last, wanted))
        return _error(404, "OBJECT_NOT_FOUND", "no such object")


def _record(
    plural: str, id: int, first: Version, last: Version, wanted: Sequence[str]
) -> dict[str, Any]:
    stamp = "lastmodifieddate" if plural == "contacts" else "hs_lastmodifieddate"
    own = {"createdate": _iso(first.at), stamp: _iso(last.at), "hs_object_id": str(id)}
    asked: dict[str, str | None] = {
        name: last.properties.get(name) for name in wanted if name and name not in own
    }
    record: dict[str, Any] = {
        "id": str(id),
        "properties": {**asked, **own},
        "createdAt": _iso(first.at),
        "updatedAt": _iso(last.at),
        "archived": last.archived,
    }
    if last.archived:
        record["archivedAt"] = _iso(last.at)
    return record


def _fits(record: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    def fits(wanted: Mapping[str, Any]) -> bool:
        has = _number(record, wanted["propertyName"])
        than = int(wanted["value"])
        return {
            "EQ": has == than,
            "GT": has > than,
            "GTE": has >= than,
            "LT": has < than,
            "LTE": has <= than,
        }[wanted["operator"]]

    return fits


def _number(record: Mapping[str, Any], property: str) -> int:
    value = str(record["properties"][property])
    if value.isdigit():
        return int(value)
    return round(datetime.fromisoformat(value).timestamp() * 1000)


def _page(
    found: Sequence[Mapping[str, Any]], start: int, limit: int, more: Mapping[str, Any]
) -> Response:
    end = start + limit
    return _answer(found[start:end], str(end) if len(found) > end else None, more)


def _answer(
    results: Sequence[Mapping[str, Any]], after: str | None, more: Mapping[str, Any]
) -> Response:
    paging = {"paging": {"next": {"after": after, "link": "?after=" + after}}} if after else {}
    return JSONResponse({**more, "results": results, **paging})


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


def _whole(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
