"""What Samsara's webhooks tell of the world, and how they are signed."""

from __future__ import annotations

import base64
import hmac
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.simulate.world import PLACES, Milestone, Place, Shipment, World

SECRET = base64.b64encode(b"samsara-simulated-secret").decode()
NAMES = uuid.UUID("0b1f7e0e-6a53-5f0e-9a58-7d7c6f1f3a01")


@dataclass(frozen=True, slots=True)
class Truck:
    n: int
    id: str
    unit: str
    vin: str


@dataclass(frozen=True, slots=True)
class Told:
    """Something that a webhook tells, and what memory must hold of it."""

    at: datetime
    type: str
    data: dict[str, Any]
    text: str
    record: str = ""
    """Key of the record that this is a version of; empty: it stands for itself."""

    @property
    def id(self) -> str:
        return str(uuid.uuid5(NAMES, f"{self.type}/{self.at}/{json.dumps(self.data)}"))

    @property
    def key(self) -> str:
        return self.record or f"event:{self.id}"

    @property
    def body(self) -> bytes:
        legacy = self.type in ("Alert", "Ping")
        body = {
            "eventId": self.id,
            "eventType": self.type,
            **(
                {"eventMs": round(self.at.timestamp() * 1000), "event": self.data}
                if legacy
                else {
                    "eventTime": iso(self.at),
                    "orgId": 20001,
                    "webhookId": "1411750000000001",
                    "data": self.data,
                }
            ),
        }
        return json.dumps(body).encode()


def tellings(world: World, trucks: Mapping[str, Truck]) -> Iterator[Told]:
    """All webhooks of a world, in no order."""
    start = world.start
    yield Told(start + timedelta(seconds=20), "Ping", {"text": "Ping"}, "")
    for n, place in enumerate(PLACES):
        address, at = _address(n, place), start + timedelta(minutes=1 + n)
        key = f"address:{address['id']}"
        yield Told(at, "AddressCreated", {"address": address}, address["name"], key)
        if n % 3 == 0:
            changed = {**address, "notes": f"Gate code changed at the {place.city} yard"}
            yield Told(at + timedelta(hours=2), "addressUpdated", {"address": changed}, changed["notes"], key)  # fmt: skip
        if n in (3, 7):
            yield Told(at + timedelta(hours=5), "AddressDeleted", {"address": address}, "", key)
    for vehicle in world.vehicles:
        record = _vehicle(trucks[str(vehicle.number)])
        at = start + timedelta(minutes=2)
        yield Told(at, "VehicleUpdated", {"vehicle": record}, vehicle.unit, f"vehicle:{vehicle.number}")  # fmt: skip
    for shipment in world.shipments:
        for milestone in shipment.milestones:
            yield from _step(shipment, milestone, trucks[str(shipment.vehicle.number)])


def _step(shipment: Shipment, step: Milestone, truck: Truck) -> Iterator[Told]:
    driver = {"id": str(45_000 + truck.n), "name": shipment.vehicle.driver.name}
    who = {"vehicle": _vehicle(truck), "driver": driver}
    if step.code == "dispatched":
        comment = f"Left steer tire worn, seen before {shipment.id}"
        dvir = {"id": str(shipment.number), "type": "preTrip", "safetyStatus": "safe", **who}
        defects = [{"defectType": "Tires", "comment": comment, "isResolved": False}]
        yield Told(step.at, "dvirSubmitted", {"dvir": {**dvir, "vehicleDefects": defects}}, comment)  # fmt: skip
    elif step.code in ("at_pickup", "at_delivery") and step.place:
        address = _address(PLACES.index(step.place), step.place)
        stop = {"name": address["name"], "actualArrivalTime": iso(step.at), "address": address}
        route = {"id": str(shipment.number), "name": shipment.id, "stops": [stop]}
        yield Told(step.at, "GeofenceEntry", {"address": address, **who}, address["name"])
        yield Told(step.at, "RouteStopArrival", {"operation": "stop arrived", "route": route, **who}, shipment.id)  # fmt: skip
    elif step.code == "en_route" and shipment.number % 2:
        yield Told(step.at, "SevereSpeedingStarted", {"maxSpeedMilesPerHour": 84, **who}, "84")
    elif step.code == "en_route":
        device = {"id": int(truck.id), "name": truck.unit, "vin": truck.vin}
        summary = f"Fuel level of {truck.unit} is below 15% on {shipment.id}"
        alert = {"alertConditionId": "DeviceFuelLevelBelow", "summary": summary, "resolved": False}  # fmt: skip
        yield Told(step.at, "Alert", {**alert, "device": device}, summary)


def sign(body: bytes, at: datetime) -> Mapping[str, str]:
    stamp = str(int(at.timestamp()))
    signed = f"v1:{stamp}:".encode() + body
    digest = hmac.digest(base64.b64decode(SECRET), signed, "sha256").hex()
    return {"X-Samsara-Timestamp": stamp, "X-Samsara-Signature": f"v1={digest}"}


def _vehicle(truck: Truck) -> dict[str, Any]:
    return {"id": truck.id, "name": truck.unit, "externalIds": {"samsara.vin": truck.vin}}


def _address(n: int, place: Place) -> dict[str, Any]:
    return {
        "id": str(494_100 + n),
        "name": f"{place.city} yard",
        "formattedAddress": f"{100 + n} Dock Rd, {place.city}, {place.state} {place.zip}",
    }


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
