"""Turvo's records of shipments: the statuses they take, what a list's row and a record say, and the twins entered by mistake."""

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
"""The number of a remark that somebody wrote, and when."""


@dataclass(frozen=True, slots=True)
class Step:
    """A status that a shipment takes at a time."""

    key: str
    at: datetime


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


def entered(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(minutes=3)


def removed(twin: Shipment) -> datetime:
    return twin.milestones[0].at + timedelta(hours=2)


def shared(one: Shipment, now: datetime, said: Remark | None) -> dict[str, Any]:
    """What a row of the list and a record have in common."""
    taken = reached(one, now)
    _, noted = said or (0, taken[-1].at)
    return {
        "id": turvo_id(one),
        "customId": one.id,
        "ltlShipment": False,
        "status": status(taken[-1].key),
        "lane": {"start": _city(one.origin), "end": _city(one.destination)},
        "created": stamp(taken[0].at),
        "lastUpdatedOn": stamp(max(taken[-1].at, noted)),
    }


def details(one: Shipment, now: datetime, said: Remark | None) -> dict[str, Any]:
    """What a record says beyond it."""
    pickup, delivery = planned(one)
    remark, _ = said or (0, now)
    covered = one.at("accepted")
    numbers = [("1400", "Purchase order #", one.po), ("1401", "BOL #", one.id), ("1405", "PRO #", one.pro)]  # fmt: skip
    if remark:
        numbers.append(("1499", "Remark", remark_text(one, remark)))
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
        "startDate": {"date": stamp(pickup), "timeZone": "America/New_York"},
        "endDate": {"date": stamp(delivery), "timeZone": "America/New_York"},
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
            {**status(step.key), "lastUpdatedOn": stamp(step.at)} for step in reached(one, now)
        ],
    }  # fmt: skip


def twin_record(twin: Shipment, now: datetime) -> dict[str, Any]:
    """A shipment entered twice, with the soft flag once it is removed."""
    flagged = now >= removed(twin)
    changed = removed(twin) if flagged else entered(twin)
    return {
        "id": twin_id(twin),
        "customId": f"{twin.id}-2",
        "status": status("2101"),
        "deleted": flagged,
        "lastUpdatedOn": stamp(changed),
    }


def status(key: str) -> dict[str, Any]:
    return {"code": {"key": key, "value": LABELS[key]}}


def plain(step: Step) -> str:
    return LABELS[step.key].replace("Complete", "complete")


def remark_text(shipment: Shipment, serial: int) -> str:
    return f"call {shipment.contact.name} first ({serial})"


def _stop(
    one: Shipment, key: str, label: str, place: Place, at: datetime, code: str, now: datetime
) -> dict[str, Any]:
    arrived = one.at(code)
    done = {"arrival": {"date": stamp(arrived)}} if arrived and arrived <= now else {}
    address = {"line1": f"{one.number % 900} Example Way", "city": place.city, "state": place.state, "zip": place.zip, "country": "US"}  # fmt: skip
    return {
        "stopType": {"key": key, "value": label},
        "location": {"id": int(place.zip)},
        "timezone": "America/New_York",
        "address": address,
        "appointment": {"start": stamp(at)},
        "attributes": done,
        "deleted": False,
    }


def _city(place: Place) -> str:
    return f"{place.city}, {place.state}"


def stamp(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
