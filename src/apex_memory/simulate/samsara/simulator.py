"""Samsara's stats feed and history, and its webhooks, over the world's trucks.

A reading has a time and a time of arrival: a dead zone on each drive delays all readings until its end, and fuel always
arrives minutes late. The feed is ordered by arrival, so late points are part of every day.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.samsara.events import SECRET, Truck, iso, sign, webhook_events
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import PLACES, Clock, Place, World

TOKEN = "samsara_api_simulated"  # noqa: S105 -- of a simulator
LATENCY = {"gps": 2, "engineStates": 5, "fuelPercents": 200}  # seconds until a point arrives
FEED_SECONDS = 600  # of arrivals that one cursor covers
SPARSE_EVERY = 5  # engine state and fuel come with every fifth position
PARKED_SECONDS = 3600
ROADS = ("I-71", "I-40", "US-50", "I-85")


class Arrival(NamedTuple):
    """A reading that arrives. Times are seconds since the world began."""

    arrived_at: int
    truck: str
    kind: str
    time: int
    value: dict[str, Any]


class FeedPosition(NamedTuple):
    """What a cursor holds: the list (`first`, `some`, `done`, `history`), its range of times, the offset in it."""

    list: str
    since: int
    until: int
    offset: int


@dataclass(frozen=True, slots=True)
class Drive:
    """A truck's way, in seconds since the world began. Readings of the `dead` zone arrive at its end."""

    truck: Truck
    start: int
    end: int
    origin: Place
    destination: Place
    dead: tuple[int, int] = (0, 0)

    def place(self, time: int) -> tuple[float, Place]:
        """Return the share of the way that is behind (0 to 1), and the nearer end."""
        share = (time - self.start) / max(1, self.end - self.start)
        return share, self.origin if share < 0.5 else self.destination


class Samsara(Simulator):
    """A moving truck sends its position every `every` seconds.

    `trucks` more than the world's drive round the clock. `page` is the most readings in a response.
    """

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
        world_trucks: dict[int, Truck] = {}
        for n, vehicle in enumerate(world.vehicles):
            world_trucks[vehicle.number] = _truck(n, vehicle.number, vehicle.unit, vehicle.vin)
        count = len(world_trucks)
        extra_trucks = [_extra_truck(n) for n in range(count, count + trucks)]
        self._parked = list(world_trucks.values())
        self._trucks = {truck.id: truck for truck in [*self._parked, *extra_trucks]}
        self._drives = [
            *self._shipment_drives(world_trucks),
            *(_round_the_clock(truck) for truck in extra_trucks),
        ]
        self._events = sorted(webhook_events(world, self._trucks), key=lambda event: event.at)
        self._first: int | None = None  # when the feed was last begun without a cursor
        self._cached: tuple[int, int, list[Arrival]] = (0, 0, [])

    @property
    def readings_per_minute(self) -> float:
        """Readings of the trucks that drive round the clock, a minute of world time."""
        return (len(self._trucks) - len(self._parked)) * (1 + 2 / SPARSE_EVERY) * 60 / self._every

    def settings(self, base: str) -> dict[str, Any]:
        # The world's time may be far from this machine's.
        any_time = {"oldest_days": 36500, "ahead_days": 36500}
        return {"api_token": TOKEN, "base_url": base, "webhook_secrets": [SECRET], **any_time}

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/fleet/vehicles/stats/feed", self._feed),
            Route("/fleet/vehicles/stats/history", self._history),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        for event in self._events:
            if since < event.at <= until:
                yield Push(event.at, "/hooks/samsara", event.body, sign)

    def truth(self, until: datetime) -> Sequence[Truth]:
        return [*self._true_windows(self._seconds(until)), *self._true_events(until)]

    # Truth

    def _true_windows(self, until: int) -> Iterator[Truth]:
        if self._first is None:
            return
        sent = [*self._latest(self._first), *self._arrived(self._first, until)]
        distinct = {(item.truck, item.kind, item.time): item for item in sent}
        windows: dict[tuple[str, int], list[Arrival]] = {}
        for item in distinct.values():
            windows.setdefault((item.truck, self._window(item.time)), []).append(item)
        for (truck, start), items in windows.items():
            last = max(item.time for item in items)
            text = f"Telematics: {len(items)} readings, last at {self._at(last):%H:%M:%S} UTC"
            if gps := [item for item in items if item.kind == "gps"]:
                newest = max(gps, key=lambda item: item.time)
                text += f" near {newest.value['reverseGeo']['formattedLocation']}"
            yield Truth(f"window:{truck}:{iso(datetime.fromtimestamp(start, UTC))}", text)

    def _true_events(self, until: datetime) -> Iterator[Truth]:
        newest = {}
        for event in self._events:
            if event.at <= until and event.type != "Ping":
                newest[event.key] = event
        for key, event in newest.items():
            yield Truth(key, event.text, deleted=event.type == "AddressDeleted")

    # The feed

    async def _feed(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        now = self._seconds(self.clock.now)
        position = _parse_cursor(request.query_params.get("after", ""))
        if position is None:
            return _error("invalid cursor", 400)
        if position.list == "":
            self._first = now
            position = FeedPosition("first", 0, now, 0)
        elif position.list == "done":
            until = min(now, position.until + FEED_SECONDS)
            position = FeedPosition("some", position.until, until, 0)
        if position.list == "first":
            items = self._latest(position.until)
        else:
            items = self._arrived(position.since, position.until)
        end = position.offset + self._page
        page, more = items[position.offset : end], len(items) > end
        if more:
            next_position = position._replace(offset=end)
        else:
            next_position = FeedPosition("done", position.since, position.until, 0)
        if page and self.chaos.strikes(self.chaos.mutations):
            page = [*page, *items[:3], *page[:3]]  # the same points again
        return self._page_response(page, next_position, more or position.until < now)

    async def _history(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        query = request.query_params
        try:
            since = self._seconds(_parse_time(query["startTime"]))
            until = self._seconds(_parse_time(query["endTime"]))
        except (KeyError, ValueError):
            return _error("startTime and endTime are required", 400)
        position = _parse_cursor(query.get("after", ""))
        if position is None:
            return _error("invalid cursor", 400)
        items = [
            item
            for item in self._arrived(-PARKED_SECONDS, self._seconds(self.clock.now))
            if since <= item.time < until
        ]
        end = position.offset + self._page
        next_position = FeedPosition("history", since, until, end)
        return self._page_response(items[position.offset : end], next_position, len(items) > end)

    def _refused(self, request: Request) -> Response | None:
        chaos = self.chaos
        if chaos.strikes(chaos.limits):
            return _error("too many requests", 429, {"Retry-After": "0.02035"})
        if chaos.strikes(chaos.errors):
            return _error("internal error", 503)
        header = request.headers.get("authorization")
        if header != f"Bearer {TOKEN}" or chaos.strikes(chaos.expiries):
            return _error("invalid token", 401)
        types = ",".join(request.query_params.getlist("types")).split(",")
        if not 1 <= len(types) <= 3 or set(types) - LATENCY.keys():
            return _error("types: one to three known ones are required", 400)
        return None

    def _page_response(
        self, items: Iterable[Arrival], position: FeedPosition, more: bool
    ) -> Response:
        data: dict[str, dict[str, Any]] = {}
        for item in items:
            truck = self._trucks[item.truck]
            if truck.id not in data:
                data[truck.id] = {
                    "id": truck.id,
                    "name": truck.unit,
                    "externalIds": {"samsara.vin": truck.vin},
                }
            reading = {"time": iso(self._at(item.time)), **item.value}
            data[truck.id].setdefault(item.kind, []).append(reading)
        cursor = base64.urlsafe_b64encode(json.dumps(position).encode()).decode()
        return JSONResponse(
            {
                "data": list(data.values()),
                "pagination": {"endCursor": cursor, "hasNextPage": more},
            }
        )

    # The trucks

    def _shipment_drives(self, trucks: Mapping[int, Truck]) -> Iterator[Drive]:
        """Yield the shipments' drives. A truck that has two at a time drives the later one after the first."""
        free_from: dict[Truck, int] = {}
        for shipment in sorted(self.world.shipments, key=lambda item: item.milestones[0].at):
            picked_up, delivered = shipment.at("picked_up"), shipment.at("at_delivery")
            truck = trucks[shipment.vehicle.number]
            free = free_from.get(truck, 0)
            if not picked_up or not delivered or self._seconds(delivered) <= free:
                continue
            start, end = max(self._seconds(picked_up), free), self._seconds(delivered)
            dice = random.Random(f"{self.world.seed}/{shipment.number}")  # noqa: S311 -- a world
            zone = start + int((end - start) * dice.uniform(0.2, 0.6))
            dead = (zone, zone + dice.randint(10, 40) * 60)
            free_from[truck] = end
            yield Drive(truck, start, end, shipment.origin, shipment.destination, dead)

    def _latest(self, until: int) -> list[Arrival]:
        """Return the newest reading of each kind of each truck."""
        newest: dict[tuple[str, str], Arrival] = {}
        for item in self._arrived(-PARKED_SECONDS, until):
            key = (item.truck, item.kind)
            if key not in newest or newest[key].time < item.time:
                newest[key] = item
        return list(newest.values())

    def _arrived(self, since: int, until: int) -> list[Arrival]:
        """Return what arrives in (since, until], in order."""
        if self._cached[:2] != (since, until):
            arrivals = [*self._driving(since, until), *self._parking(since, until)]
            arrivals.sort(key=lambda item: item[:4])
            self._cached = (since, until, arrivals)
        return self._cached[2]

    def _driving(self, since: int, until: int) -> Iterator[Arrival]:
        """Yield the readings of moving trucks that arrive in (since, until]."""
        slowest = max(LATENCY.values())
        for drive in self._drives:
            dead_start, dead_end = drive.dead
            low = since - slowest
            if dead_end + slowest > since:
                low = min(low, dead_start)
            for time in self._grid(drive.truck, max(low, drive.start), min(until + 1, drive.end)):
                sent_at = dead_end if dead_start <= time < dead_end else time
                for kind, value in self._readings(drive, time):
                    arrived_at = sent_at + LATENCY[kind]
                    if since < arrived_at <= until:
                        yield Arrival(arrived_at, drive.truck.id, kind, time, value)

    def _parking(self, since: int, until: int) -> Iterator[Arrival]:
        """Yield the readings of parked trucks that arrive in (since, until]."""
        first = max(0, (since - max(LATENCY.values())) // PARKED_SECONDS * PARKED_SECONDS)
        for time in range(first, until + 1, PARKED_SECONDS):
            for truck in self._parked:
                if self._is_driving(truck, time):
                    continue
                for kind, value in self._parked_readings(truck, time):
                    arrived_at = time + LATENCY[kind]
                    if since < arrived_at <= until:
                        yield Arrival(arrived_at, truck.id, kind, time, value)

    def _is_driving(self, truck: Truck, time: int) -> bool:
        return any(
            drive.truck is truck and drive.start <= time < drive.end for drive in self._drives
        )

    def _grid(self, truck: Truck, low: int, high: int) -> range:
        """Return the times in [low, high) at which a truck sends its position."""
        phase = truck.n % self._every
        return range(low + (phase - low) % self._every, high, self._every)

    def _readings(self, drive: Drive, time: int) -> Iterator[tuple[str, dict[str, Any]]]:
        n = time // self._every
        share, near = drive.place(time)
        origin, destination = drive.origin, drive.destination
        latitude = origin.latitude + share * (destination.latitude - origin.latitude)
        longitude = origin.longitude + share * (destination.longitude - origin.longitude)
        idle = (n + drive.truck.n) % 11 == 0
        place = f"{ROADS[drive.truck.n % len(ROADS)]}, {near.city}, {near.state}, {near.zip}"
        yield (
            "gps",
            {
                "latitude": round(latitude, 6),
                "longitude": round(longitude, 6),
                "headingDegrees": n % 360,
                "speedMilesPerHour": 0 if idle else 52.5 + n * 7 % 15,
                "reverseGeo": {"formattedLocation": place},
                "isEcuSpeed": True,
            },
        )
        if n % SPARSE_EVERY == 0:
            yield "engineStates", {"value": "Idle" if idle else "On"}
            yield "fuelPercents", {"value": round(90 - 40 * share)}

    def _parked_readings(self, truck: Truck, time: int) -> Iterator[tuple[str, dict[str, Any]]]:
        ended = [drive for drive in self._drives if drive.truck is truck and drive.end <= time]
        if ended:
            place = max(ended, key=lambda drive: drive.end).destination
        else:
            place = PLACES[truck.n % len(PLACES)]
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
        """Return the start of the five minutes that hold this time, in seconds since 1970."""
        return int(self._at(seconds).timestamp()) // 300 * 300


def _truck(n: int, number: int, unit: str, vin: str) -> Truck:
    return Truck(n, str(number), unit, vin)


def _extra_truck(n: int) -> Truck:
    return _truck(n, 281_474_900_100_000 + n, f"T-{3000 + n}", f"2EXAMPLEVIN{n:06d}")


def _round_the_clock(truck: Truck) -> Drive:
    origin, destination = PLACES[truck.n % len(PLACES)], PLACES[(truck.n + 3) % len(PLACES)]
    return Drive(truck, 0, 7 * 86_400, origin, destination)


def _parse_cursor(cursor: str) -> FeedPosition | None:
    """Return the position that a cursor holds; None for one that was never issued."""
    if not cursor:
        return FeedPosition("", 0, 0, 0)
    try:
        kind, since, until, offset = json.loads(base64.urlsafe_b64decode(cursor))
        return FeedPosition(str(kind), int(since), int(until), int(offset))
    except (ValueError, TypeError):
        return None


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"message": message, "requestId": "simulated"}, status, headers)


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
