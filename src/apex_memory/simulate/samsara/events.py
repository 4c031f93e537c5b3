"""Samsara's webhooks: events of the world in its format, and their signature."""

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
class WebhookEvent:
    """An event that a webhook sends, and the text that memory must hold of it."""

    at: datetime
    type: str
    data: dict[str, Any]
    text: str
    record: str = ""
    """Key of the record that this is a version of; empty: a document of its own."""

    @property
    def id(self) -> str:
        return str(uuid.uuid5(NAMES, f"{self.type}/{self.at}/{json.dumps(self.data)}"))

    @property
    def key(self) -> str:
        return self.record or f"event:{self.id}"

    @property
    def body(self) -> bytes:
        """The request body: alerts and pings have the legacy format."""
        content: dict[str, Any]
        if self.type in ("Alert", "Ping"):
            content = {"eventMs": round(self.at.timestamp() * 1000), "event": self.data}
        else:
            content = {
                "eventTime": iso(self.at),
                "orgId": 20001,
                "webhookId": "1411750000000001",
                "data": self.data,
            }
        return json.dumps({"eventId": self.id, "eventType": self.type, **content}).encode()


def webhook_events(world: World, trucks: Mapping[str, Truck]) -> Iterator[WebhookEvent]:
    """Yield all events of a world, in no order."""
    start = world.start
    yield WebhookEvent(start + timedelta(seconds=20), "Ping", {"text": "Ping"}, "")
    for n, place in enumerate(PLACES):
        address, at = _address(n, place), start + timedelta(minutes=1 + n)
        key = f"address:{address['id']}"
        yield WebhookEvent(at, "AddressCreated", {"address": address}, address["name"], key)
        if n % 3 == 0:
            changed = {**address, "notes": f"Gate code changed at the {place.city} yard"}
            yield WebhookEvent(at + timedelta(hours=2), "addressUpdated", {"address": changed}, changed["notes"], key)  # fmt: skip
        if n in (3, 7):
            yield WebhookEvent(
                at + timedelta(hours=5), "AddressDeleted", {"address": address}, "", key
            )
    for vehicle in world.vehicles:
        record = _vehicle(trucks[str(vehicle.number)])
        at = start + timedelta(minutes=2)
        yield WebhookEvent(at, "VehicleUpdated", {"vehicle": record}, vehicle.unit, f"vehicle:{vehicle.number}")  # fmt: skip
    for shipment in world.shipments:
        for milestone in shipment.milestones:
            yield from _milestone_events(shipment, milestone, trucks[str(shipment.vehicle.number)])


def _milestone_events(shipment: Shipment, step: Milestone, truck: Truck) -> Iterator[WebhookEvent]:
    driver = {"id": str(45_000 + truck.n), "name": shipment.vehicle.driver.name}
    vehicle_and_driver = {"vehicle": _vehicle(truck), "driver": driver}
    if step.code == "dispatched":
        comment = f"Left steer tire worn, seen before {shipment.id}"
        dvir = {
            "id": str(shipment.number),
            "type": "preTrip",
            "safetyStatus": "safe",
            **vehicle_and_driver,
        }
        defects = [{"defectType": "Tires", "comment": comment, "isResolved": False}]
        yield WebhookEvent(step.at, "dvirSubmitted", {"dvir": {**dvir, "vehicleDefects": defects}}, comment)  # fmt: skip
    elif step.code in ("at_pickup", "at_delivery") and step.place:
        address = _address(PLACES.index(step.place), step.place)
        stop = {"name": address["name"], "actualArrivalTime": iso(step.at), "address": address}
        route = {"id": str(shipment.number), "name": shipment.id, "stops": [stop]}
        yield WebhookEvent(
            step.at, "GeofenceEntry", {"address": address, **vehicle_and_driver}, address["name"]
        )
        yield WebhookEvent(step.at, "RouteStopArrival", {"operation": "stop arrived", "route": route, **vehicle_and_driver}, shipment.id)  # fmt: skip
    elif step.code == "en_route" and shipment.number % 2:
        yield WebhookEvent(
            step.at,
            "SevereSpeedingStarted",
            {"maxSpeedMilesPerHour": 84, **vehicle_and_driver},
            "84",
        )
    elif step.code == "en_route":
        device = {"id": int(truck.id), "name": truck.unit, "vin": truck.vin}
        summary = f"Fuel level of {truck.unit} is below 15% on {shipment.id}"
        alert = {"alertConditionId": "DeviceFuelLevelBelow", "summary": summary, "resolved": False}  # fmt: skip
        yield WebhookEvent(step.at, "Alert", {**alert, "device": device}, summary)


def sign(body: bytes, at: datetime) -> Mapping[str, str]:
    """Return the signature headers of a body."""
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
