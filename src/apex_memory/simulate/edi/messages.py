"""The X12 messages of a shipment, ours and the carrier's, and what memory must hold of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from apex_memory.simulate.world import Milestone, Place, Shipment

US = "APEXSHIPPER"
_STATUS = {
    "at_pickup": ("X3", "arrived at pickup location"),
    "picked_up": ("AF", "departed pickup location"),
    "en_route": ("X6", "en route to delivery"),
    "at_delivery": ("X1", "arrived at delivery location"),
    "delivered": ("D1", "unloaded at delivery"),
}
_PURPOSE = {"00": "tendered", "01": "cancelled", "04": "changed"}
Segments = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Message:
    """One set, sent at `at` and seen so much `late`r; `text` must be in the document `doc_key`."""

    at: datetime
    sender: str
    receiver: str
    function: str
    segments: Segments
    doc_key: str
    text: str
    late: timedelta = timedelta()
    deletes: str = ""
    """The key of the document that it deletes; empty if none."""


def messages_of(shipment: Shipment) -> Iterator[Message]:
    """Yield all messages about a shipment."""
    yield from _tenders(shipment)
    yield from _responses(shipment)
    yield from _statuses(shipment)
    yield from _invoices(shipment)
    yield _acknowledgement(shipment)


def _day(at: datetime) -> str:
    return f"{at:%Y%m%d}"


def _party(role: str, name: str, place: Place | None = None) -> Segments:
    segments: Segments = [("N1", role, name.upper())]
    if place:
        segments.append(("N4", place.city.upper(), place.state, place.zip, "US"))
    return segments


def _tenders(shipment: Shipment) -> Iterator[Message]:
    """Our 204s."""
    scac = shipment.carrier.scac
    pickup, delivery = shipment.at("at_pickup"), shipment.at("at_delivery")
    for purpose, at, late in _purposes(shipment):
        segments: Segments = [
            ("B2", "", scac, "", shipment.id, "", "PP"),
            ("B2A", purpose, "LT"),
            ("L11", shipment.id, "BM"),
            ("L11", shipment.po, "PO"),
            *_party("BT", "Acme Logistics"),
            ("S5", "1", "CL", str(shipment.pounds), "L", str(shipment.pallets), "PL"),
            *([("G62", "10", _day(pickup), "Y", f"{pickup:%H%M}", "UT")] if pickup else []),
            *_party("SF", shipment.customer.name, shipment.origin),
            ("S5", "2", "CU", str(shipment.pounds), "L", str(shipment.pallets), "PL"),
            *([("G62", "02", _day(delivery), "X", f"{delivery:%H%M}", "UT")] if delivery else []),
            *_party("ST", "Sample Retail", shipment.destination),
            ("L3", str(shipment.pounds), "G", "", "", str(shipment.total_cents)),
        ]
        tender, cancellation = f"tender:{scac}:{shipment.id}", f"cancellation:{scac}:{shipment.id}"
        key, deletes = (cancellation, tender) if purpose == "01" else (tender, "")
        text = f"Status: {_PURPOSE[purpose]}"
        yield Message(at, US, scac, "SM", [("ST", "204"), *segments], key, text, late, deletes)


def _purposes(shipment: Shipment) -> Iterator[tuple[str, datetime, timedelta]]:
    """Yield the purpose of each 204, when it is sent, and how late it is seen.

    There is a tender, for some shipments a change, and for cancelled ones a cancel. Some are cancelled by mistake and
    tendered anew. Of some the tender is seen only after its cancel, or the mistaken cancel only after the new tender.
    """
    at, cancelled, n = shipment.at("tendered"), shipment.cancelled_at, shipment.number
    assert at is not None
    minute, hour, on_time = timedelta(minutes=1), timedelta(hours=1), timedelta()
    yield "00", at, cancelled - at + hour if cancelled and n % 4 == 3 else on_time
    if n % 4 == 1:
        yield "04", at + 3 * minute, on_time
    if n % 4 == 2:
        yield "01", at + 3 * minute, hour if n % 8 == 2 else on_time
        yield "00", at + 6 * minute, on_time
    if cancelled:
        yield "01", cancelled, on_time


def _acknowledgement(shipment: Shipment) -> Message:
    """Return the carrier's 997 to a tender of ours. AK102 is the shipment's number, so that each has a key of its own."""
    at, number = shipment.at("tendered"), str(shipment.number)
    assert at is not None
    segments: Segments = [
        ("ST", "997"),
        ("AK1", "SM", number),
        ("AK2", "204", "0001"),
        ("AK5", "A"),
        ("AK9", "A", "1", "1", "1"),
    ]
    scac = shipment.carrier.scac
    key = f"acknowledgement:{scac}:{US}:SM:{number}:204/0001"
    text = f"group SM {number} accepted"
    return Message(at + timedelta(minutes=2), scac, US, "FA", segments, key, text)


def _responses(shipment: Shipment) -> Iterator[Message]:
    """The carrier's 990s: some decline first and accept later."""
    at, scac = shipment.at("accepted"), shipment.carrier.scac
    assert at is not None
    actions = [("A", at)]
    if shipment.number % 5 == 0:
        actions.insert(0, ("D", at - timedelta(minutes=10)))
    for action, when in actions:
        segments: Segments = [
            ("ST", "990"),
            ("B1", scac, shipment.id, _day(when), action),
            ("N9", "CN", shipment.pro),
        ]
        word = "accepted" if action == "A" else "declined"
        key = f"response:{scac}:{shipment.id}"
        yield Message(when, scac, US, "GF", segments, key, f"Answer: {word}")


def _statuses(shipment: Shipment) -> Iterator[Message]:
    """The carrier's 214s. Some carriers report the pickup only when they are on the road: late, and both at once."""
    en_route = shipment.at("en_route")
    for milestone in shipment.milestones:
        if milestone.code not in _STATUS:
            continue
        late = timedelta()
        if milestone.code == "picked_up" and shipment.number % 2 == 0 and en_route:
            late = en_route - milestone.at
        yield _status(shipment, milestone, late)


def _status(shipment: Shipment, milestone: Milestone, late: timedelta) -> Message:
    code, description = _STATUS[milestone.code]
    reason, at, scac = "NS", milestone.at, shipment.carrier.scac
    if milestone.code == "en_route" and shipment.delayed_minutes:
        code, description, reason = "SD", "delayed", "AO"
    place = milestone.place
    if place:
        location: tuple[str, ...] = ("MS1", place.city.upper(), place.state, "US")
    else:
        location = _position(shipment, at)
    segments: Segments = [
        ("ST", "214"),
        ("B10", shipment.pro, shipment.id, scac),
        ("L11", shipment.po, "PO"),
        ("LX", "1"),
        ("AT7", code, reason, "", "", _day(at), f"{at:%H%M}", "UT"),
        location,
        ("MS2", scac, shipment.vehicle.unit),
        ("AT8", "G", "L", str(shipment.pounds), str(shipment.pallets)),
    ]
    position = _degrees_of(location)
    where = f"{place.city.upper()} {place.state}" if place else f"{position[0]} {position[1]}"
    status = f"1:s{code}:{_day(at)}:{at:%H%M}:{where}:{shipment.vehicle.unit}"
    key = f"status:{scac}:{shipment.id}:{status}:{shipment.pro}:PO={shipment.po}"
    return Message(at, scac, US, "QM", segments, key, f"{description} ({code})", late)


def _position(shipment: Shipment, at: datetime) -> tuple[str, ...]:
    latitude, longitude = shipment.position(at)
    return ("MS1", "", "", "", _degrees(-longitude), _degrees(latitude), "W", "N")


def _degrees_of(location: tuple[str, ...]) -> tuple[float, ...]:
    """Return latitude and longitude as whoever reads this MS1 must compute them."""
    if location[1]:
        return ()
    numbers = []
    for text, sign in ((location[5], 1), (location[4], -1)):
        numbers.append(sign * round(int(text[:3]) + int(text[3:5]) / 60 + int(text[5:]) / 3600, 5))
    return tuple(numbers)


def _degrees(value: float) -> str:
    seconds = round(value * 3600)
    return f"{seconds // 3600:03d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def _invoices(shipment: Shipment) -> Iterator[Message]:
    """The carrier's 210: an invoice, and for some shipments a corrected one with detention."""
    at = shipment.at("invoiced")
    if at is None:
        return
    yield _invoice(shipment, at, 0)
    if shipment.number % 3 == 0:
        yield _invoice(shipment, at + timedelta(minutes=40), 7_500)


def _invoice(shipment: Shipment, at: datetime, detention: int) -> Message:
    scac, total = shipment.carrier.scac, shipment.total_cents + detention
    delivered = shipment.at("delivered") or at
    charges = [
        (shipment.commodity.upper(), shipment.linehaul_cents, ""),
        ("FUEL SURCHARGE", shipment.fuel_cents, "FUE"),
        *([("DETENTION", detention, "DET")] if detention else []),
    ]
    lines: Segments = []
    for n, (description, cents, code) in enumerate(charges, 1):
        rest = ("", "", "", code) if code else ()
        lines += [("LX", str(n)), ("L5", str(n), description)]
        lines.append(("L1", str(n), f"{cents / 100:.2f}", "FR", str(cents), *rest))
    number, correction = shipment.invoice, "CO" if detention else ""
    head = ("B3", "", number, shipment.id, "PP", "", _day(at), str(total), correction)
    segments: Segments = [
        ("ST", "210"),
        (*head, _day(delivered), "035", scac),
        ("C3", "USD"),
        ("N9", "BM", shipment.id),
        *_party("BT", "Acme Logistics"),
        *_party("SH", shipment.customer.name),
        *lines,
        ("L3", str(shipment.pounds), "G", "", "", str(total)),
    ]
    text = f"Net amount: {total / 100:,.2f} USD"
    return Message(at, scac, US, "IM", segments, f"invoice:{scac}:{number}", text)
