"""FreightWaves SONAR: index values by day that are restated, billed calls, a block for who goes on; and a relay that signs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth, chaos_response
from apex_memory.simulate.world import Clock, Shipment, World

USER, PASSWORD = "apex", "example-sonar-password"
SECRET = "whsec_" + base64.b64encode(b"example relay secret, 32 bytes..").decode()
POLLED = ("OTRI", "USA")
RELAYED = ("OTVI", "ATL")
BLOCK = 0.04  # seconds; ten minutes at the vendor's
PAST = 3  # days before the world's own that have values


class Sonar(Simulator):
    """One polled index, one that the relay sends, and an alert for every shipment that is late."""

    name: ClassVar[str] = "sonar"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.tokens: set[str] = set()
        self.serial = count(1)
        self.closed = 0.0  # until when calls are answered 451 (monotonic)
        self.hammered = 0  # calls that came in that time
        self.billed: list[str] = []
        self.restated: dict[date, int] = {}

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "base_url": base,
            "username": USER,
            "password": PASSWORD,
            "series": ["/".join(POLLED)],
            "since": self._days()[0].isoformat(),
            "block_seconds": BLOCK * 2,
            "relay_secrets": [SECRET],
        }

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/Credential/authenticate", self.authenticate, methods=["POST"]),
            Route("/data/{index}/{qualifier}/{start}/{end}", self.values),
            Route("/data/{index}/{qualifier}/{start}", self.values),
            Route("/Lookup/Indexes", self.indexes),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """What the relay sends: yesterday's value, its restatement and the way back; alerts."""
        told = [(at, _message("index.value", at, self._relayed(at))) for at in self._relays()]
        told += [
            (at, _message("alert", at, _alert(one)))
            for one in self.world.shipments
            for at in [one.at("en_route")]
            if at
        ]
        for at, body in sorted(told, key=lambda one: one[0]):
            if since < at <= until:
                yield Push(at, "/hooks/sonar", body, signed)

    def truth(self, until: datetime) -> Sequence[Truth]:
        index, qualifier = POLLED
        found = [
            Truth(f"index:{index}/{qualifier}/{day}", f"Value: {self.value(POLLED, day, until)}")
            for day in self._days()
            if self.value(POLLED, day, until) is not None
        ]
        if sent := [at for at in self._relays() if at <= until]:
            told = self._relayed(sent[-1])
            key = f"index:{told['Index']}/{told['Qualifier']}/{told['Date'][:10]}"
            found.append(Truth(key, f"Value: {told['Value']}"))
        for one in self.world.shipments:
            at = one.at("en_route")
            if at and at <= until:
                found.append(Truth(f"alert:{_alert(one)['id']}", _alert(one)["text"]))
        return found

    def value(self, series: tuple[str, str], day: date, now: datetime) -> float | None:
        """As it is told now: today's comes out after three hours, yesterday's is restated after five, and back after ten."""
        hours = (now - self.world.start) / timedelta(hours=1)
        today = self.world.start.date()
        if day > today or (day == today and hours < 3):
            return None
        made = hashlib.sha256(f"{self.world.seed}/{'/'.join(series)}/{day}".encode()).digest()
        value = 500 + int.from_bytes(made[:2]) % 400
        if day == today - timedelta(days=1) and 5 <= hours < 10:
            value += 25
        more = self.restated.get(day, 0) if series == POLLED else 0
        return (value + 3 * more) / 100

    async def authenticate(self, request: Request) -> Response:
        if refused := self._refused():
            return refused
        if bad := chaos_response(self.chaos):
            return bad
        if await request.json() != {"username": USER, "password": PASSWORD}:
            return JSONResponse({"message": "unknown user"}, 401)
        token = f"sonar-token-{next(self.serial)}"  # older ones stay valid
        self.tokens.add(token)
        return JSONResponse({"token": token})

    async def values(self, request: Request) -> Response:
        if refused := self._refused():
            return refused
        if self.chaos.strikes(self.chaos.expiries):
            self.tokens.clear()
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return JSONResponse({"message": "unauthorized"}, 401)
        if self.chaos.strikes(self.chaos.limits):
            self.closed = monotonic() + BLOCK
            return JSONResponse({"message": "too many requests"}, 429)
        if self.chaos.strikes(self.chaos.errors):
            return JSONResponse({"message": "internal error"}, 503)
        series = (request.path_params["index"], request.path_params["qualifier"])
        if series not in (POLLED, RELAYED):
            return JSONResponse({"message": "unknown index"}, 404)
        start = date.fromisoformat(request.path_params["start"])
        end = date.fromisoformat(request.path_params.get("end", start.isoformat()))
        self.billed.append(request.url.path)
        if self.chaos.strikes(self.chaos.mutations):
            day = self._days()[len(self.billed) % PAST]
            self.restated[day] = self.restated.get(day, 0) + 1
        found = [
            self._record(series, day, value)
            for day in self._days()
            if start <= day <= end
            if (value := self.value(series, day, self.clock.now)) is not None
        ]
        return JSONResponse(found)

    async def indexes(self, request: Request) -> Response:
        return self._refused() or JSONResponse([POLLED[0], RELAYED[0]])

    def _refused(self) -> Response | None:
        """A call in the time of a block makes it longer."""
        if monotonic() >= self.closed:
            return None
        self.hammered += 1
        self.closed = monotonic() + BLOCK
        return JSONResponse({"message": "blocked"}, 451)

    def _days(self) -> list[date]:
        today = self.world.start.date()
        return [today - timedelta(days=n) for n in range(PAST, -1, -1)]

    def _record(self, series: tuple[str, str], day: date, value: float) -> dict[str, Any]:
        """In one of the forms that clients have seen; the field names are not published."""
        if len(self.billed) % 2:
            return {
                "index": series[0],
                "qualifier": series[1],
                "date": day.isoformat(),
                "value": value,
            }
        return {"data_Timestamp": f"{day}T00:00:00", "data_Value": f"{value}"}

    def _relays(self) -> list[datetime]:
        return [self.world.start + timedelta(hours=hours) for hours in (1, 6, 11)]

    def _relayed(self, at: datetime) -> dict[str, Any]:
        day = self.world.start.date() - timedelta(days=1)
        return {
            "Index": RELAYED[0],
            "Qualifier": RELAYED[1],
            "Date": f"{day}T00:00:00",
            "Value": self.value(RELAYED, day, at),
        }


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    """Standard Webhooks: the id stays when a message is sent again, the time does not."""
    id, stamp = f"msg_{hashlib.sha256(body).hexdigest()[:20]}", str(int(at.timestamp()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    made = hmac.new(key, f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(made).decode()}",
    }


def _message(kind: str, at: datetime, data: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "timestamp": at.isoformat(), "data": data}).encode()


def _alert(one: Shipment) -> dict[str, str]:
    lane = (
        f"{one.origin.city}, {one.origin.state} to {one.destination.city}, {one.destination.state}"
    )
    mood = "Tight" if one.delayed_minutes else "Loose"
    return {
        "id": f"alr-{one.number}",
        "title": f"{mood} market: {lane}",
        "text": f"Rejections on the lane {lane} touch {one.id}, under way with {one.carrier.name}.",
        "index": "OTRI",
        "qualifier": one.origin.city[:3].upper(),
        "severity": "high" if one.delayed_minutes else "low",
    }
