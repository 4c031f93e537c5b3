"""FreightWaves SONAR: index values by day that are restated, billed calls, a block that each further call extends; and a relay that signs."""

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
BLOCK = 0.04  # seconds; ten minutes with the vendor
PAST = 3  # days with values before the world's own day


class Sonar(Simulator):
    """One polled index, one that the relay sends, and an alert for every shipment that is under way."""

    name: ClassVar[str] = "sonar"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.tokens: set[str] = set()
        self.serial = count(1)
        self.closed = 0.0  # calls get a 451 until then (monotonic)
        self.hammered = 0  # calls during a block
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
        """What the relay sends: yesterday's value, its restatement, and the first value again; alerts."""
        messages = [(at, _message("index.value", at, self._relayed(at))) for at in self._relays()]
        for shipment in self.world.shipments:
            started = shipment.at("en_route")
            if started:
                alert = _message("alert", started, _alert(shipment))
                messages.append((started, alert))
        for at, body in sorted(messages, key=lambda message: message[0]):
            if since < at <= until:
                yield Push(at, "/hooks/sonar", body, signed)

    def truth(self, until: datetime) -> Sequence[Truth]:
        index, qualifier = POLLED
        truth = []
        for day in self._days():
            value = self.value(POLLED, day, until)
            if value is not None:
                truth.append(Truth(f"index:{index}/{qualifier}/{day}", f"Value: {value:g}"))
        if sent := [at for at in self._relays() if at <= until]:
            relayed = self._relayed(sent[-1])
            key = f"index:{relayed['Index']}/{relayed['Qualifier']}/{relayed['Date'][:10]}"
            truth.append(Truth(key, f"Value: {relayed['Value']:g}"))
        for shipment in self.world.shipments:
            at = shipment.at("en_route")
            if at and at <= until:
                alert = _alert(shipment)
                truth.append(Truth(f"alert:{alert['id']}", alert["text"]))
        return truth

    def value(self, series: tuple[str, str], day: date, now: datetime) -> float | None:
        """Return a value as it is at `now`, None before it is published.

        Today's value is published after three hours; yesterday's is restated after five, and as it was after ten.
        """
        hours = (now - self.world.start) / timedelta(hours=1)
        today = self.world.start.date()
        if day > today or (day == today and hours < 3):
            return None
        digest = hashlib.sha256(f"{self.world.seed}/{'/'.join(series)}/{day}".encode()).digest()
        value = 500 + int.from_bytes(digest[:2]) % 400
        if day == today - timedelta(days=1) and 5 <= hours < 10:
            value += 25
        restatements = self.restated.get(day, 0) if series == POLLED else 0
        return (value + 3 * restatements) / 100

    async def authenticate(self, request: Request) -> Response:
        if refused := self._refused():
            return refused
        if error := chaos_response(self.chaos):
            return error
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
        records = []
        for day in self._days():
            value = self.value(series, day, self.clock.now)
            if start <= day <= end and value is not None:
                records.append(self._record(series, day, value))
        return JSONResponse(records)

    async def indexes(self, request: Request) -> Response:
        return self._refused() or JSONResponse([POLLED[0], RELAYED[0]])

    def _refused(self) -> Response | None:
        """Return the 451 of a block, which each call extends; None where there is no block."""
        if monotonic() >= self.closed:
            return None
        self.hammered += 1
        self.closed = monotonic() + BLOCK
        return JSONResponse({"message": "blocked"}, 451)

    def _days(self) -> list[date]:
        today = self.world.start.date()
        return [today - timedelta(days=n) for n in range(PAST, -1, -1)]

    def _record(self, series: tuple[str, str], day: date, value: float) -> dict[str, Any]:
        """Return a value in one of the formats that clients have met; the field names are not published."""
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
    """Return the headers of Standard Webhooks: a repeated message has the same id and another time."""
    id, stamp = f"msg_{hashlib.sha256(body).hexdigest()[:20]}", str(int(at.timestamp()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = hmac.new(key, f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _message(kind: str, at: datetime, data: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "timestamp": at.isoformat(), "data": data}).encode()


def _alert(shipment: Shipment) -> dict[str, str]:
    lane = f"{shipment.origin.city}, {shipment.origin.state} to {shipment.destination.city}, {shipment.destination.state}"
    mood = "Tight" if shipment.delayed_minutes else "Loose"
    return {
        "id": f"alr-{shipment.number}",
        "title": f"{mood} market: {lane}",
        "text": f"Rejections on the lane {lane} touch {shipment.id}, under way with {shipment.carrier.name}.",
        "index": "OTRI",
        "qualifier": shipment.origin.city[:3].upper(),
        "severity": "high" if shipment.delayed_minutes else "low",
    }
