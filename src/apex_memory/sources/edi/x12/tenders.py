"""Tenders (204), their ends, and the answers to them (990)."""

from __future__ import annotations

from collections.abc import Sequence

from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.document_builder import (
    Told,
    tell_notes,
    tell_parties,
    tell_references,
    tell_totals,
    word,
)
from apex_memory.sources.edi.x12.fields import (
    Moment,
    carrier,
    every,
    first,
    loops,
    parties,
    shipment,
)
from apex_memory.sources.edi.x12.identity import cancels
from apex_memory.sources.edi.x12.segments import Segment, value


def tell_tender(told: Told) -> Document:
    """A 204: a `tender`, or the `tender_cancellation` of one."""
    segments = told.segments
    number, own = shipment(segments), f"shipment:{shipment(segments)}"
    scac = carrier(segments, told.receiver)
    purpose = value(first(segments, "B2A"), 1)
    state = codes.PURPOSES.get(purpose, f"purpose {purpose}")
    title = f"Load tender {number} to {scac}: {state}"
    told.lines.append(f"Load tender to {scac}: {state}")
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("Status", state)
    told.say(own, "status", value="tendered" if purpose == "00" else f"tender {state}")
    told.say(own, "carrier", object=f"scac:{carrier(segments)}")
    told.metadata |= {"shipment": number, "scac": scac, "purpose": purpose, "status": state}
    if cancels(segments):
        _cancelled(told, own)
        return told.document("tender_cancellation", title, own)
    told.add("Payment", word(codes.PAYMENTS, value(first(segments, "B2"), 6)))
    before, stops = loops(segments, "S5")
    for one in every(before, "G62"):
        told.add(*_dated(one))
    tell_references(told, before, own)
    tell_parties(told, before, own)
    _equipment(told, before)
    for stop in stops:
        _stop(told, stop, own)
    _ends(told, stops, own)
    tell_totals(told)
    return told.document("tender", title, own)


def _cancelled(told: Told, own: str) -> None:
    """Who took the load back from whom, and when. Nothing of what was to be done: that holds no longer."""
    told.add("Cancelled by", told.sender)
    told.add("Told to", told.receiver)
    if told.metadata["sent_at"]:
        told.add("Cancelled at", f"{told.at:%Y-%m-%d %H:%M} UTC")
    tell_references(told, told.segments, own)
    tell_parties(told, told.segments, own)
    tell_notes(told, told.segments)
    _ends(told, loops(told.segments, "S5")[1], own, dated=False)


def _stop(told: Told, segments: Sequence[Segment], own: str) -> None:
    head = segments[0]
    told.lines.append(f"\nStop {value(head, 1)}: {word(codes.STOPS, value(head, 2))}".rstrip(": "))
    for one in every(segments, "G62"):
        told.add(*_dated(one))
    tell_references(told, segments, own)
    tell_parties(told, segments, own, roles=False)
    tell_notes(told, segments)
    for one in every(segments, "L5"):
        told.add("Goods", value(one, 2))


def _ends(told: Told, stops: Sequence[Sequence[Segment]], own: str, *, dated: bool = True) -> None:
    """Origin and destination of the shipment: its first pickup and its last delivery."""
    picked = [stop for stop in stops if value(stop[0], 2) in codes.PICKUPS]
    dropped = [stop for stop in stops if value(stop[0], 2) in codes.DELIVERIES]
    for stop, role, predicate, wanted in (
        (picked[0] if picked else None, "origin", "pickup_at", codes.SHIP_DATES),
        (dropped[-1] if dropped else None, "destination", "delivery_at", codes.DELIVERY_DATES),
    ):
        if stop is None:
            continue
        for party in parties(stop)[:1]:
            told.say(own, role, object=party.location)
            told.metadata[role] = party.place
        dates = {value(one, 1): one for one in every(stop, "G62")}
        due = next((dates[code] for code in wanted if code in dates), None)
        if dated and due and (at := _moment(due).at):
            told.say(own, predicate, value=at.isoformat())


def tell_response(told: Told) -> Document:
    """A 990: a `tender_response`."""
    head = first(told.segments, "B1")
    number, action = shipment(told.segments), value(head, 4)
    scac, own = carrier(told.segments, told.sender), f"shipment:{number}"
    state = codes.ACTIONS.get(action, f"answered {action}")
    told.lines.append(f"Tender {state} by {scac}")
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("Answer", state)
    told.add("Date", str(Moment(value(head, 3))))
    tell_references(told, told.segments, own)
    for one in every(told.segments, "V9"):
        told.add("Event", " ".join(filter(None, (value(one, 1), value(one, 8)))))
    tell_notes(told, told.segments)
    told.say(own, "status", value=f"tender {state}")
    if action in ("A", "C"):
        told.say(own, "carrier", object=f"scac:{carrier(told.segments)}")
    told.metadata |= {"shipment": number, "scac": scac, "action": action, "status": state}
    return told.document("tender_response", f"Tender {number} {state} by {scac}")


def _equipment(told: Told, segments: Sequence[Segment]) -> None:
    for one in every(segments, "N7"):
        number = value(one, 1) + value(one, 2)
        told.add("Equipment", " ".join(filter(None, (number, value(one, 11)))))


def _dated(segment: Segment) -> tuple[str, str]:
    label = codes.DATES.get(value(segment, 1), f"date {value(segment, 1)}")
    return label[0].upper() + label[1:], str(_moment(segment))


def _moment(segment: Segment) -> Moment:
    return Moment(value(segment, 2), value(segment, 4), value(segment, 5))
