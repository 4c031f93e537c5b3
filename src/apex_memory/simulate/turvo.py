"""Turvo: its public API with both page objects, thin webhooks with a token, records that differ from the list's rows."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth, trouble
from apex_memory.simulate.world import Clock, Place, Shipment, World

TENANT = "9901"
CLIENT, USER = (
    ("publicapi-apex", "example-client-secret"),
    ("apex@acme.example", "example-password"),
)
API_KEY = "example-turvo-api-key"
TOKEN, HMAC_KEY = "example-turvo-webhook-token", "example-turvo-hmac-key"
LABELS = {
    "2101": "Tendered", "2102": "Covered", "2103": "Dispatched", "2104": "At pickup", "2115": "Picked up",
    "2105": "En route", "2106": "At delivery", "2107": "Delivered", "2108": "Ready for billing",
    "2111": "Customer paid", "2113": "Canceled", "2116": "Route Complete", "2199": "Weather hold",
}  # fmt: skip
KEYS = {
    "tendered": "2101", "accepted": "2102", "dispatched": "2103", "at_pickup": "2104", "picked_up": "2115",
    "en_route": "2105", "at_delivery": "2106", "delivered": "2107", "invoiced": "2108", "paid": "2111",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A status that a shipment takes at a time."""

    key: str
    at: datetime


class Turvo(Simulator):
    """Shipments from their tender on. One was entered twice and deleted, one has a twin with the soft `deleted` flag."""

    name: ClassVar[str] = "turvo"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.tokens: set[str] = set()
        self.calls: list[str] = []
        self.remarks: dict[int, tuple[int, datetime]] = {}  # of a shipment: its newest remark
        self.serial = count(1)

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "base_url": f"{base}/v1",
            "client_id": CLIENT[0],
            "client_secret": CLIENT[1],
            "api_key": API_KEY,
            "username": USER[0],
            "password": USER[1],
            "webhook_tokens": [TOKEN],
            "webhook_header": "X-Turvo-Token",
            "hmac_keys": [HMAC_KEY],
            "listing_seconds": 0,
            "overlap_seconds": 60,
            "page_size": 5,
        }

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v1/oauth/token", self.authenticate, methods=["POST"]),
            Route("/v1/shipments/list", self.list_shipments),
            Route("/v1/shipments/{id}", self.show_shipment),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """A notice for each change. Remarks (`mutations`) send none: the list must show them."""
        told = [
            (step.at, _notice(turvo_id(shipment), step.at, step))
            for shipment in self.world.shipments
            for step in steps(shipment)
        ]
        for twin in (self.deleted_twin, self.flagged_twin):
            told += [(at, _notice(twin_id(twin), at)) for at in (_entered(twin), _removed(twin))]
        undated = {"eventName": "SHIPMENT_UPDATE", "eventPayload": {"load": {"id": twin_id(self.flagged_twin)}}}  # fmt: skip
        told.append((_removed(self.flagged_twin), undated))
        told += [(self.world.start + timedelta(hours=1), _carrier_notice(self.world))]
        for at, body in sorted(told, key=lambda one: one[0]):
            if since < at <= until:
                yield Push(at, "/hooks/turvo", json.dumps(body).encode(), signed)

    def truth(self, until: datetime) -> Sequence[Truth]:
        found = []
        for shipment in self.world.shipments:
            taken = reached(shipment, until)
            if not taken:
                continue
            remark, noted = self.remarks.get(shipment.number, (0, until))
            newer = remark and noted > taken[-1].at
            text = (
                f"Remark: {_remark(shipment, remark)}" if newer else f"Status: {_plain(taken[-1])}"
            )
            found.append(Truth(f"shipment:{turvo_id(shipment)}", text))
        for twin in (self.deleted_twin, self.flagged_twin):
            key = f"shipment:{twin_id(twin)}"
            if until >= _removed(twin):
                found.append(Truth(key, deleted=True))
            elif until >= _entered(twin):
                found.append(Truth(key, "Status: Tendered"))
        return found

    @property
    def deleted_twin(self) -> Shipment:
        return self.world.shipments[0]

    @property
    def flagged_twin(self) -> Shipment:
        return self.world.shipments[1]

    def change(self, number: int) -> None:
        """Somebody writes a remark, which no webhook tells."""
        times = [at for _, at in self.remarks.values()]
        newest = max([self.clock.now, *(at + timedelta(milliseconds=1) for at in times)])
        self.remarks[number] = (next(self.serial), newest)

    async def authenticate(self, request: Request) -> Response:
        self.calls.append("token")
        if bad := trouble(self.chaos, request):
            return bad
        body = await request.json()
        query = request.query_params
        given = (query.get("client_id"), query.get("client_secret"), body.get("username"), body.get("password"))  # fmt: skip
        asks = (body.get("grant_type"), body.get("scope"), body.get("type"))
        if (
            request.headers.get("x-api-key") != API_KEY
            or given != (*CLIENT, *USER)
            or asks != ("password", "read+trust+write", "business")
        ):
            return JSONResponse({"error": "invalid_grant"}, 401)
        token = f"turvo-token-{next(self.serial)}"
        self.tokens.add(token)
        return JSONResponse(
            {
                "access_token": token,
                "refresh_token": f"refresh-{token}",
                "token_type": "bearer",
                "expires_in": 43_199,
                "tenant_ref": TENANT,
            }
        )

    async def list_shipments(self, request: Request) -> Response:
        """Newest change first; the page object is one of the two that clients have seen."""
        self.calls.append("list")
        if refused := self._refused(request):
            return refused
        start, size = int(request.query_params["start"]), int(request.query_params["pageSize"])
        rows = self._rows()
        page = rows[start : start + size]
        more = start + size < len(rows)
        pagination: dict[str, Any] = (
            {"start": start, "pageSize": size, "totalRecordsInPage": len(page), "moreAvailable": more}
            if len(self.calls) % 3
            else {"total": len(rows), "pages": -(-len(rows) // size), "page": start // size, "limit": size}
        )  # fmt: skip
        answer = _success({"shipments": page, "pagination": pagination})
        if self.chaos.strikes(self.chaos.mutations):
            known = [one for one in self.world.shipments if reached(one, self.clock.now)]
            if known:
                self.change(known[len(self.calls) % len(known)].number)
        return answer

    async def show_shipment(self, request: Request) -> Response:
        self.calls.append("shipment")
        if refused := self._refused(request):
            return refused
        record = self._record(request.path_params["id"])
        if record is None:
            return JSONResponse({"Status": "ERROR", "details": {"errorCode": "404"}}, 404)
        return _success(record)

    def _refused(self, request: Request) -> Response | None:
        """Failures with HTTP 200, too: only `Status` tells them."""
        if self.chaos.strikes(self.chaos.expiries):
            self.tokens.clear()
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens or request.headers.get("x-api-key") != API_KEY:
            return JSONResponse({"error": "invalid_token"}, 401)
        if self.chaos.strikes(self.chaos.errors / 2):
            details = {"errorMessage": "Something went wrong", "errorCode": "5000"}
            return JSONResponse({"Status": "ERROR", "details": details})
        return trouble(self.chaos, request)

    def _rows(self) -> list[dict[str, Any]]:
        now = self.clock.now
        rows = [
            self._shared(one) | {"startDate": _z(pickup), "endDate": _z(delivery)}
            for one in self.world.shipments
            if reached(one, now)
            for pickup, delivery in (planned(one),)
        ]
        rows += [self._twin(twin) for twin in (self.deleted_twin, self.flagged_twin) if self._there(twin)]  # fmt: skip
        rows.sort(key=lambda row: (row["lastUpdatedOn"], row["id"]), reverse=True)
        return rows

    def _record(self, id: str) -> dict[str, Any] | None:
        for twin in (self.deleted_twin, self.flagged_twin):
            if id == str(twin_id(twin)):
                return self._twin(twin) if self._there(twin) else None
        for one in self.world.shipments:
            if id == str(turvo_id(one)) and reached(one, self.clock.now):
                record = self._shared(one) | self._details(one)
                if one.number % 2:  # some records do not say when they changed
                    del record["lastUpdatedOn"]
                return record
        return None

    def _there(self, twin: Shipment) -> bool:
        now = self.clock.now
        return _entered(twin) <= now and (twin is self.flagged_twin or now < _removed(twin))

    def _twin(self, twin: Shipment) -> dict[str, Any]:
        flagged = self.clock.now >= _removed(twin)
        changed = _removed(twin) if flagged else _entered(twin)
        return {
            "id": twin_id(twin),
            "customId": f"{twin.id}-2",
            "status": _status("2101"),
            "deleted": flagged,
            "lastUpdatedOn": _z(changed),
        }

    def _shared(self, one: Shipment) -> dict[str, Any]:
        taken = reached(one, self.clock.now)
        _, noted = self.remarks.get(one.number, (0, taken[-1].at))
        return {
            "id": turvo_id(one),
            "customId": one.id,
            "ltlShipment": False,
            "status": _status(taken[-1].key),
            "lane": {"start": _city(one.origin), "end": _city(one.destination)},
            "created": _z(taken[0].at),
            "lastUpdatedOn": _z(max(taken[-1].at, noted)),
        }

    def _details(self, one: Shipment) -> dict[str, Any]:
        now, (pickup, delivery) = self.clock.now, planned(one)
        remark, _ = self.remarks.get(one.number, (0, now))
        covered = one.at("accepted")
        numbers = [("1400", "Purchase order #", one.po), ("1401", "BOL #", one.id), ("1405", "PRO #", one.pro)]  # fmt: skip
        if remark:
            numbers.append(("1499", "Remark", _remark(one, remark)))
        carrier = {"id": one.carrier.number, "name": one.carrier.name, "scac": one.carrier.scac, "mcNumber": one.carrier.mc}  # fmt: skip
        order = {
            "id": one.number + 500,
            "carrier": carrier,
            "deleted": False,
            "drivers": [{"context": {"name": one.vehicle.driver.name}, "phone": {"number": one.vehicle.driver.phone}}],
            "externalIds": [{"type": {"key": "1410", "value": "Truck #"}, "value": one.vehicle.unit}],
        }  # fmt: skip
        fell_through = {
            "id": one.number + 400,
            "carrier": {"id": 599, "name": "Fell Through Freight"},
            "deleted": True,
        }
        return {
            "startDate": {"date": _z(pickup), "timeZone": "America/New_York"},
            "endDate": {"date": _z(delivery), "timeZone": "America/New_York"},
            "transportation": {"mode": {"key": "24105", "value": "TL"}},
            "equipment": [{"type": {"key": "1200", "value": "Van"}, "deleted": False}],
            "customerOrder": [
                {
                    "id": one.number + 71,
                    "customer": {"id": one.customer.number, "name": one.customer.name},
                    "deleted": False,
                    "externalIds": [
                        {"type": {"key": key, "value": label}, "value": value}
                        for key, label, value in numbers
                    ],
                    "costs": {"totalAmount": one.total_cents / 100},
                    "route": [
                        _stop(one, "1500", "Pickup", one.origin, pickup, "at_pickup", now),
                        _stop(one, "1501", "Delivery", one.destination, delivery, "at_delivery", now),
                    ],
                }
            ],
            "carrierOrder": [fell_through, order] if covered and covered <= now else [],
            "statusHistory": [
                {**_status(step.key), "lastUpdatedOn": _z(step.at)} for step in reached(one, now)
            ],
        }  # fmt: skip


def steps(shipment: Shipment) -> Iterator[Step]:
    """Every status it will ever take, oldest first; one of them a key that is in nobody's list."""
    for milestone in shipment.milestones:
        yield Step(KEYS[milestone.code], milestone.at)
        if milestone.code == "en_route" and shipment.delayed_minutes:
            yield Step("2199", milestone.at + timedelta(minutes=10))
        if milestone.code == "delivered":
            yield Step("2116", milestone.at + timedelta(minutes=5))
    if shipment.cancelled_at:
        yield Step("2113", shipment.cancelled_at)


def reached(shipment: Shipment, now: datetime) -> list[Step]:
    return [step for step in steps(shipment) if step.at <= now]


def planned(shipment: Shipment) -> tuple[datetime, datetime]:
    """Appointments at pickup and delivery."""
    tendered = shipment.milestones[0].at
    pickup = (shipment.at("at_pickup") or tendered + timedelta(hours=4)).replace(minute=0, second=0, microsecond=0)  # fmt: skip
    return pickup, pickup + timedelta(hours=round(shipment.miles / 50))


def turvo_id(shipment: Shipment) -> int:
    return 1_000_000_000 + shipment.number


def twin_id(shipment: Shipment) -> int:
    return 1_000_500_000 + shipment.number


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    """The profile's token, and the signature of a proxy."""
    digest = hmac.new(HMAC_KEY.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Turvo-Token": TOKEN, "X-Turvo-Signature": digest}


def _entered(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(minutes=3)


def _removed(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(hours=2)


def _notice(id: int, at: datetime, step: Step | None = None) -> dict[str, Any]:
    """As thin as Turvo's: an id, and the status where it is one that changed."""
    about: dict[str, Any] = {"id": id}
    if step:
        about |= {"status": _status(step.key)}
    return {
        "tenantId": TENANT,
        "eventName": "SHIPMENT_STATUS_UPDATE" if step else "SHIPMENT_UPDATE",
        "eventTime": _z(at),
        "eventPayload": about,
    }


def _success(details: Mapping[str, Any]) -> Response:
    return JSONResponse({"Status": "SUCCESS", "details": details})


def _status(key: str) -> dict[str, Any]:
    return {"code": {"key": key, "value": LABELS[key]}}


def _plain(step: Step) -> str:
    return LABELS[step.key].replace("Complete", "complete")


def _remark(shipment: Shipment, serial: int) -> str:
    return f"call {shipment.contact.name} first ({serial})"


def _carrier_notice(world: World) -> dict[str, Any]:
    return {
        "tenantId": TENANT,
        "eventName": "CARRIER_UPDATE",
        "eventTime": _z(world.start),
        "eventPayload": {"id": world.carriers[0].number},
    }


def _stop(
    one: Shipment, key: str, label: str, place: Place, at: datetime, code: str, now: datetime
) -> dict[str, Any]:
    arrived = one.at(code)
    done = {"arrival": {"date": _z(arrived)}} if arrived and arrived <= now else {}
    address = {"line1": f"{one.number % 900} Example Way", "city": place.city, "state": place.state, "zip": place.zip, "country": "US"}  # fmt: skip
    return {
        "stopType": {"key": key, "value": label},
        "location": {"id": int(place.zip)},
        "timezone": "America/New_York",
        "address": address,
        "appointment": {"start": _z(at)},
        "attributes": done,
        "deleted": False,
    }


def _city(place: Place) -> str:
    return f"{place.city}, {place.state}"


def _z(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
