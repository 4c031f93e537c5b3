"""Turvo's records of shipments: their statuses, list rows, full records, and the twins that were entered by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.simulate.world import Place, Shipment

LABELS = {
    "2101": "Tendered", "2102": "Covered", "2103": "Dispatched", "2104": "At pickup", "2115": "Picked up",
    "2105": "En route", "2106": "At delivery", "2107": "Delivered", "2108": "Ready for billing",
    "2111": "Customer paid", "2113": "Canceled", "2116": "Route Complete", "2199": "Weather hold",
}  # fmt: skip
KEYS = {
    "tendered": "2101", "accepted": "2102", "dispatched": "2103", "at_pickup": "2104", "picked_up": "2115",
    "en_route": "2105", "at_delivery": "2106", "delivered": "2107", "invoiced": "2108", "paid": "2111",
}  # fmt: skip

Remark = tuple[int, datetime]
"""The number of a remark, and when it was written."""


@dataclass(frozen=True, slots=True)
class Step:
    """A status that a shipment takes at a time."""

    key: str
    at: datetime


def steps(shipment: Shipment) -> Iterator[Step]:
    """Yield every status that it will ever take, the oldest first. `2199` is in no published list."""
    for milestone in shipment.milestones:
        yield Step(KEYS[milestone.code], milestone.at)
        if milestone.code == "en_route" and shipment.delayed_minutes:
            yield Step("2199", milestone.at + timedelta(minutes=10))
        if milestone.code == "delivered":
            yield Step("2116", milestone.at + timedelta(minutes=5))
    if shipment.cancelled_at:
        yield Step("2113", shipment.cancelled_at)


def reached(shipment: Shipment, now: datetime) -> list[Step]:
    """Return the statuses up to now, the oldest first."""
    return [step for step in steps(shipment) if step.at <= now]


def planned(shipment: Shipment) -> tuple[datetime, datetime]:
    """Return the appointments at pickup and delivery."""
    tendered = shipment.milestones[0].at
    pickup = (shipment.at("at_pickup") or tendered + timedelta(hours=4)).replace(minute=0, second=0, microsecond=0)  # fmt: skip
    return pickup, pickup + timedelta(hours=round(shipment.miles / 50))


def turvo_id(shipment: Shipment) -> int:
    return 1_000_000_000 + shipment.number


def twin_id(shipment: Shipment) -> int:
    return 1_000_500_000 + shipment.number


def entered(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(minutes=3)


def removed(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(hours=2)


def common_fields(shipment: Shipment, now: datetime, remark: Remark | None) -> dict[str, Any]:
    """Return what a row of the list and a full record have in common."""
    statuses = reached(shipment, now)
    _, remarked_at = remark or (0, statuses[-1].at)
    return {
        "id": turvo_id(shipment),
        "customId": shipment.id,
        "ltlShipment": False,
        "status": status(statuses[-1].key),
        "lane": {"start": _city(shipment.origin), "end": _city(shipment.destination)},
        "created": stamp(statuses[0].at),
        "lastUpdatedOn": stamp(max(statuses[-1].at, remarked_at)),
    }


def detail_fields(shipment: Shipment, now: datetime, remark: Remark | None) -> dict[str, Any]:
    """Return what a full record has beyond the common fields."""
    pickup, delivery = planned(shipment)
    serial, _ = remark or (0, now)
    covered = shipment.at("accepted")
    numbers = [("1400", "Purchase order #", shipment.po), ("1401", "BOL #", shipment.id), ("1405", "PRO #", shipment.pro)]  # fmt: skip
    if serial:
        numbers.append(("1499", "Remark", remark_text(shipment, serial)))
    carrier = {"id": shipment.carrier.number, "name": shipment.carrier.name, "scac": shipment.carrier.scac, "mcNumber": shipment.carrier.mc}  # fmt: skip
    order = {
        "id": shipment.number + 500,
        "carrier": carrier,
        "deleted": False,
        "drivers": [{"context": {"name": shipment.vehicle.driver.name}, "phone": {"number": shipment.vehicle.driver.phone}}],
        "externalIds": [{"type": {"key": "1410", "value": "Truck #"}, "value": shipment.vehicle.unit}],
    }  # fmt: skip
    fell_through = {
        "id": shipment.number + 400,
        "carrier": {"id": 599, "name": "Fell Through Freight"},
        "deleted": True,
    }
    return {
        "startDate": {"date": stamp(pickup), "timeZone": "America/New_York"},
        "endDate": {"date": stamp(delivery), "timeZone": "America/New_York"},
        "transportation": {"mode": {"key": "24105", "value": "TL"}},
        "equipment": [{"type": {"key": "1200", "value": "Van"}, "deleted": False}],
        "customerOrder": [
            {
                "id": shipment.number + 71,
                "customer": {"id": shipment.customer.number, "name": shipment.customer.name},
                "deleted": False,
                "externalIds": [
                    {"type": {"key": key, "value": label}, "value": value}
                    for key, label, value in numbers
                ],
                "costs": {"totalAmount": shipment.total_cents / 100},
                "route": [
                    _stop(shipment, "1500", "Pickup", shipment.origin, pickup, "at_pickup", now),
                    _stop(shipment, "1501", "Delivery", shipment.destination, delivery, "at_delivery", now),
                ],
            }
        ],
        "carrierOrder": [fell_through, order] if covered and covered <= now else [],
        "statusHistory": [
            {**status(step.key), "lastUpdatedOn": stamp(step.at)} for step in reached(shipment, now)
        ],
    }  # fmt: skip


def twin_record(twin: Shipment, now: datetime) -> dict[str, Any]:
    """Return a shipment that was entered twice. Once removed it has the flag `deleted`."""
    deleted = now >= removed(twin)
    changed = removed(twin) if deleted else entered(twin)
    return {
        "id": twin_id(twin),
        "customId": f"{twin.id}-2",
        "status": status("2101"),
        "deleted": deleted,
        "lastUpdatedOn": stamp(changed),
    }


def status(key: str) -> dict[str, Any]:
    return {"code": {"key": key, "value": LABELS[key]}}


def plain(step: Step) -> str:
    return LABELS[step.key].replace("Complete", "complete")


def remark_text(shipment: Shipment, serial: int) -> str:
    return f"call {shipment.contact.name} first ({serial})"


def _stop(
    shipment: Shipment, key: str, label: str, place: Place, at: datetime, code: str, now: datetime
) -> dict[str, Any]:
    arrived = shipment.at(code)
    attributes = {"arrival": {"date": stamp(arrived)}} if arrived and arrived <= now else {}
    address = {"line1": f"{shipment.number % 900} Example Way", "city": place.city, "state": place.state, "zip": place.zip, "country": "US"}  # fmt: skip
    return {
        "stopType": {"key": key, "value": label},
        "location": {"id": int(place.zip)},
        "timezone": "America/New_York",
        "address": address,
        "appointment": {"start": stamp(at)},
        "attributes": attributes,
        "deleted": False,
    }


def _city(place: Place) -> str:
    return f"{place.city}, {place.state}"


def stamp(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
