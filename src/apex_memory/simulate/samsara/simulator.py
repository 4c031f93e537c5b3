"""Samsara's stats feed and history, and its webhooks, over the world's trucks.

A reading has a time and a time of arrival: a dead zone on each drive holds everything back until its end, and fuel
always comes minutes late. The feed goes by arrival, so late points are part of every day.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.samsara.events import SECRET, Truck, iso, sign, tellings
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import PLACES, Clock, Place, World

TOKEN = "samsara_api_simulated"  # noqa: S105 -- opens nothing but this simulator
LATENCY = {"gps": 2, "engineStates": 5, "fuelPercents": 200}  # seconds until a point arrives
STRETCH = 600  # seconds of arrivals that one cursor stands in
SOME = 5  # engine state and fuel come with every fifth position
PARKED_SECONDS = 3600
ROADS = ("I-71", "I-40", "US-50", "I-85")

Item = tuple[int, str, str, int, dict[str, Any]]
"""Arrival, truck's id, kind, time, value; times in seconds since the world began."""


@dataclass(frozen=True, slots=True)
class Drive:
    """From `start` to `end`, in seconds since the world began; nothing gets out in the `dead` zone."""

    truck: Truck
    start: int
    end: int
    origin: Place
    destination: Place
    dead: tuple[int, int] = (0, 0)

    def place(self, time: int) -> tuple[float, Place]:
        """How far it has come (0 to 1), and the nearer end."""
        share = (time - self.start) / max(1, self.end - self.start)
        return share, self.origin if share < 0.5 else self.destination


class Samsara(Simulator):
    """`every` seconds a moving truck tells its position. `trucks` more than the world's drive round the clock."""

    name: ClassVar[str] = "samsara"

    def __init__(
        self,
        world: World,
        clock: Clock,
        chaos: Chaos,
        *,
        every: int = 60,
        trucks: int = 0,
        page: int = 500,
    ) -> None:
        super().__init__(world, clock, chaos)
        self._every, self._page = every, page
        known = {one.number: _truck(n, one.number, one.unit, one.vin) for n, one in enumerate(world.vehicles)}  # fmt: skip
        more = [_truck(n, 281_474_900_100_000 + n, f"T-{3000 + n}", f"2EXAMPLEVIN{n:06d}") for n in range(len(known), len(known) + trucks)]  # fmt: skip
        self._parked = list(known.values())
        self._trucks = {one.id: one for one in [*known.values(), *more]}
        self._drives = [
            *self._driven(known),
            *(_round_the_clock(truck) for truck in more),
        ]  # fmt: skip
        self._tellings = sorted(tellings(world, self._trucks), key=lambda one: one.at)
        self._first: int | None = None  # when the feed was last begun without a cursor
        self._stretch: tuple[int, int, list[Item]] = (0, 0, [])

    @property
    def readings_per_minute(self) -> float:
        """Of the trucks that drive round the clock."""
        return (len(self._trucks) - len(self._parked)) * (1 + 2 / SOME) * 60 / self._every

    def settings(self, base: str) -> dict[str, Any]:
        # The world has its own time, which may be far from this machine's.
        days = {"oldest_days": 36500, "ahead_days": 36500}
        return {"api_token": TOKEN, "base_url": base, "webhook_secrets": [SECRET], **days}

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/fleet/vehicles/stats/feed", self._feed),
            Route("/fleet/vehicles/stats/history", self._history),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        for one in self._tellings:
            if since < one.at <= until:
                yield Push(one.at, "/hooks/samsara", one.body, sign)

    def truth(self, until: datetime) -> Sequence[Truth]:
        return [*self._true_windows(self._seconds(until)), *self._true_events(until)]

    # What is true

    def _true_windows(self, until: int) -> Iterator[Truth]:
        if self._first is None:
            return
        windows: dict[tuple[str, int], list[Item]] = {}
        given = [*self._latest(self._first), *self._arrived(self._first, until)]
        for item in {(item[1], item[2], item[3]): item for item in given}.values():
            windows.setdefault((item[1], self._window(item[3])), []).append(item)
        for (truck, start), items in windows.items():
            last = max(item[3] for item in items)
            text = f"Telematics: {len(items)} readings, last at {self._at(last):%H:%M:%S} UTC"
            if gps := [item for item in items if item[2] == "gps"]:
                place = max(gps, key=lambda item: item[3])[4]["reverseGeo"]["formattedLocation"]
                text += f" near {place}"
            yield Truth(f"window:{truck}:{iso(datetime.fromtimestamp(start, UTC))}", text)

    def _true_events(self, until: datetime) -> Iterator[Truth]:
        newest = {one.key: one for one in self._tellings if one.at <= until and one.type != "Ping"}
        for key, one in newest.items():
            yield Truth(key, one.text, deleted=one.type == "AddressDeleted")

    # The feed

    async def _feed(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        now = self._seconds(self.clock.now)
        position = _position(request.query_params.get("after", ""))
        if position is None:
            return _error("invalid cursor", 400)
        kind, since, until, offset = position
        if kind == "":
            kind, until, self._first = "first", now, now
        elif kind == "done":
            kind, since, until, offset = "some", until, min(now, until + STRETCH), 0
        items = self._latest(until) if kind == "first" else self._arrived(since, until)
        page, more = items[offset : offset + self._page], len(items) > offset + self._page
        position = (kind, since, until, offset + self._page) if more else ("done", since, until, 0)
        if page and self.chaos.strikes(self.chaos.mutations):
            page = [*page, *items[:3], *page[:3]]  # the same points again
        return self._answer(page, position, more or until < now)

    async def _history(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        asked = request.query_params
        try:
            since, until = (self._seconds(_time(asked[name])) for name in ("startTime", "endTime"))
        except (KeyError, ValueError):
            return _error("startTime and endTime are required", 400)
        position = _position(asked.get("after", ""))
        if position is None:
            return _error("invalid cursor", 400)
        items = [
            item
            for item in self._arrived(-PARKED_SECONDS, self._seconds(self.clock.now))
            if since <= item[3] < until
        ]
        offset = position[3] + self._page
        more = len(items) > offset
        return self._answer(items[position[3] : offset], ("history", since, until, offset), more)

    def _refusal(self, request: Request) -> Response | None:
        chaos = self.chaos
        if chaos.strikes(chaos.limits):
            return _error("too many requests", 429, {"Retry-After": "0.02035"})
        if chaos.strikes(chaos.errors):
            return _error("internal error", 503)
        given = request.headers.get("authorization")
        if given != f"Bearer {TOKEN}" or chaos.strikes(chaos.expiries):
            return _error("invalid token", 401)
        types = [one for text in request.query_params.getlist("types") for one in text.split(",")]
        if not 1 <= len(types) <= 3 or set(types) - LATENCY.keys():
            return _error("types: one to three of those known", 400)
        return None

    def _answer(
        self, items: Iterable[Item], position: tuple[str, int, int, int], more: bool
    ) -> Response:
        data: dict[str, dict[str, Any]] = {}
        for _, id, kind, time, value in items:
            truck = self._trucks[id]
            if id not in data:
                data[id] = {
                    "id": id,
                    "name": truck.unit,
                    "externalIds": {"samsara.vin": truck.vin},
                }
            data[id].setdefault(kind, []).append({"time": iso(self._at(time)), **value})
        cursor = base64.urlsafe_b64encode(json.dumps(position).encode()).decode()
        return JSONResponse(
            {
                "data": list(data.values()),
                "pagination": {"endCursor": cursor, "hasNextPage": more},
            }
        )

    # The trucks

    def _driven(self, trucks: Mapping[int, Truck]) -> Iterator[Drive]:
        """The shipments' drives. A truck that is given two at once drives the later one when the first is over."""
        free: dict[Truck, int] = {}
        for one in sorted(self.world.shipments, key=lambda one: one.milestones[0].at):
            started, ended = one.at("picked_up"), one.at("at_delivery")
            truck = trucks[one.vehicle.number]
            if started and ended and self._seconds(ended) > free.get(truck, 0):
                start, end = max(self._seconds(started), free.get(truck, 0)), self._seconds(ended)
                dice = random.Random(f"{self.world.seed}/{one.number}")  # noqa: S311 -- a world
                zone = start + int((end - start) * dice.uniform(0.2, 0.6))
                dead = (zone, zone + dice.randint(10, 40) * 60)
                free[truck] = end
                yield Drive(truck, start, end, one.origin, one.destination, dead)

    def _latest(self, until: int) -> list[Item]:
        """The newest of each stat of each truck."""
        newest: dict[tuple[str, str], Item] = {}
        for item in self._arrived(-PARKED_SECONDS, until):
            key = item[1:3]
            if key not in newest or newest[key][3] < item[3]:
                newest[key] = item
        return list(newest.values())

    def _arrived(self, since: int, until: int) -> list[Item]:
        """What arrives in (since, until], in order."""
        if self._stretch[:2] != (since, until):
            found = sorted(self._points(since, until), key=lambda item: item[:4])
            self._stretch = (since, until, found)
        return self._stretch[2]

    def _points(self, since: int, until: int) -> Iterator[Item]:
        for drive in self._drives:
            dead, slowest = drive.dead, max(LATENCY.values())
            low = dead[0] if dead[1] + slowest > since > dead[0] else since - slowest
            for time in self._grid(drive.truck, max(low, drive.start), min(until + 1, drive.end)):
                for kind, value in self._readings(drive, time):
                    out = max(time, dead[1]) if dead[0] <= time < dead[1] else time
                    if since < out + LATENCY[kind] <= until:
                        yield out + LATENCY[kind], drive.truck.id, kind, time, value
        first = max(0, (since - max(LATENCY.values())) // PARKED_SECONDS * PARKED_SECONDS)
        for time in range(first, until + 1, PARKED_SECONDS):
            for truck in self._parked:
                if not any(
                    one.truck is truck and one.start <= time < one.end for one in self._drives
                ):
                    for kind, value in self._standing(truck, time):
                        if since < time + LATENCY[kind] <= until:
                            yield time + LATENCY[kind], truck.id, kind, time, value

    def _grid(self, truck: Truck, low: int, high: int) -> range:
        phase = truck.n % self._every
        return range(low + (phase - low) % self._every, high, self._every)

    def _readings(self, drive: Drive, time: int) -> Iterator[tuple[str, dict[str, Any]]]:
        n = time // self._every
        share, near = drive.place(time)
        one, other = drive.origin, drive.destination
        idle = (n + drive.truck.n) % 11 == 0
        place = f"{ROADS[drive.truck.n % len(ROADS)]}, {near.city}, {near.state}, {near.zip}"
        yield (
            "gps",
            {
                "latitude": round(one.latitude + share * (other.latitude - one.latitude), 6),
                "longitude": round(one.longitude + share * (other.longitude - one.longitude), 6),
                "headingDegrees": n % 360,
                "speedMilesPerHour": 0 if idle else 52.5 + n * 7 % 15,
                "reverseGeo": {"formattedLocation": place},
                "isEcuSpeed": True,
            },
        )
        if n % SOME == 0:
            yield "engineStates", {"value": "Idle" if idle else "On"}
            yield "fuelPercents", {"value": round(90 - 40 * share)}

    def _standing(self, truck: Truck, time: int) -> Iterator[tuple[str, dict[str, Any]]]:
        ended = [one for one in self._drives if one.truck is truck and one.end <= time]
        place = max(ended, key=lambda one: one.end).destination if ended else PLACES[truck.n % len(PLACES)]  # fmt: skip
        yield (
            "gps",
            {
                "latitude": place.latitude,
                "longitude": place.longitude,
                "headingDegrees": 0,
                "speedMilesPerHour": 0,
                "reverseGeo": {
                    "formattedLocation": f"Yard, {place.city}, {place.state}, {place.zip}"
                },
            },
        )
        yield "engineStates", {"value": "Off"}

    # Time

    def _seconds(self, at: datetime) -> int:
        return int((at - self.world.start).total_seconds())

    def _at(self, seconds: int) -> datetime:
        return self.world.start + timedelta(seconds=seconds)

    def _window(self, seconds: int) -> int:
        """Start of the five minutes that hold this moment, in seconds since 1970."""
        return int(self._at(seconds).timestamp()) // 300 * 300


def _truck(n: int, number: int, unit: str, vin: str) -> Truck:
    return Truck(n, str(number), unit, vin)


def _round_the_clock(truck: Truck) -> Drive:
    one, other = PLACES[truck.n % len(PLACES)], PLACES[(truck.n + 3) % len(PLACES)]
    return Drive(truck, 0, 7 * 86_400, one, other)


def _position(cursor: str) -> tuple[str, int, int, int] | None:
    """Where a cursor stands: in which list, of which times, at which place. None for one that was never given out."""
    if not cursor:
        return "", 0, 0, 0
    try:
        kind, since, until, offset = json.loads(base64.urlsafe_b64decode(cursor))
        return str(kind), int(since), int(until), int(offset)
    except (ValueError, TypeError):
        return None


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"message": message, "requestId": "simulated"}, status, headers)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
