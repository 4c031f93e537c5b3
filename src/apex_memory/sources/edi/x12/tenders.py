"""Tenders (204), their ends, and the answers to them (990)."""

from __future__ import annotations

from collections.abc import Sequence

from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.document_builder import (
    DocumentBuilder,
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


def tell_tender(builder: DocumentBuilder) -> Document:
    """A 204: a `tender`, or the `tender_cancellation` of one."""
    segments = builder.segments
    number, own = shipment(segments), f"shipment:{shipment(segments)}"
    scac = carrier(segments, builder.receiver)
    purpose = value(first(segments, "B2A"), 1)
    state = codes.PURPOSES.get(purpose, f"purpose {purpose}")
    title = f"Load tender {number} to {scac}: {state}"
    builder.lines.append(f"Load tender to {scac}: {state}")
    builder.add("Shipment", number)
    builder.add("Carrier SCAC", scac)
    builder.add("Status", state)
    builder.say(own, "status", value="tendered" if purpose == "00" else f"tender {state}")
    builder.say(own, "carrier", object=f"scac:{carrier(segments)}")
    builder.metadata |= {"shipment": number, "scac": scac, "purpose": purpose, "status": state}
    if cancels(segments):
        _cancelled(builder, own)
        return builder.document("tender_cancellation", title, own)
    builder.add("Payment", word(codes.PAYMENTS, value(first(segments, "B2"), 6)))
    before, stops = loops(segments, "S5")
    for one in every(before, "G62"):
        builder.add(*_dated(one))
    tell_references(builder, before, own)
    tell_parties(builder, before, own)
    _equipment(builder, before)
    for stop in stops:
        _stop(builder, stop, own)
    _ends(builder, stops, own)
    tell_totals(builder)
    return builder.document("tender", title, own)


def _cancelled(builder: DocumentBuilder, own: str) -> None:
    """Who took the load back from whom, and when. Nothing of what was to be done: that holds no longer."""
    builder.add("Cancelled by", builder.sender)
    builder.add("Told to", builder.receiver)
    if builder.metadata["sent_at"]:
        builder.add("Cancelled at", f"{builder.at:%Y-%m-%d %H:%M} UTC")
    tell_references(builder, builder.segments, own)
    tell_parties(builder, builder.segments, own)
    tell_notes(builder, builder.segments)
    _ends(builder, loops(builder.segments, "S5")[1], own, dated=False)


def _stop(builder: DocumentBuilder, segments: Sequence[Segment], own: str) -> None:
    head = segments[0]
    builder.lines.append(
        f"\nStop {value(head, 1)}: {word(codes.STOPS, value(head, 2))}".rstrip(": ")
    )
    for one in every(segments, "G62"):
        builder.add(*_dated(one))
    tell_references(builder, segments, own)
    tell_parties(builder, segments, own, roles=False)
    tell_notes(builder, segments)
    for one in every(segments, "L5"):
        builder.add("Goods", value(one, 2))


def _ends(
    builder: DocumentBuilder, stops: Sequence[Sequence[Segment]], own: str, *, dated: bool = True
) -> None:
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
            builder.say(own, role, object=party.location)
            builder.metadata[role] = party.place
        dates = {value(one, 1): one for one in every(stop, "G62")}
        due = next((dates[code] for code in wanted if code in dates), None)
        if dated and due and (at := _moment(due).at):
            builder.say(own, predicate, value=at.isoformat())


def tell_response(builder: DocumentBuilder) -> Document:
    """A 990: a `tender_response`."""
    head = first(builder.segments, "B1")
    number, action = shipment(builder.segments), value(head, 4)
    scac, own = carrier(builder.segments, builder.sender), f"shipment:{number}"
    state = codes.ACTIONS.get(action, f"answered {action}")
    builder.lines.append(f"Tender {state} by {scac}")
    builder.add("Shipment", number)
    builder.add("Carrier SCAC", scac)
    builder.add("Answer", state)
    builder.add("Date", str(Moment(value(head, 3))))
    tell_references(builder, builder.segments, own)
    for one in every(builder.segments, "V9"):
        builder.add("Event", " ".join(filter(None, (value(one, 1), value(one, 8)))))
    tell_notes(builder, builder.segments)
    builder.say(own, "status", value=f"tender {state}")
    if action in ("A", "C"):
        builder.say(own, "carrier", object=f"scac:{carrier(builder.segments)}")
    builder.metadata |= {"shipment": number, "scac": scac, "action": action, "status": state}
    return builder.document("tender_response", f"Tender {number} {state} by {scac}")


def _equipment(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    for one in every(segments, "N7"):
        number = value(one, 1) + value(one, 2)
        builder.add("Equipment", " ".join(filter(None, (number, value(one, 11)))))


def _dated(segment: Segment) -> tuple[str, str]:
    label = codes.DATES.get(value(segment, 1), f"date {value(segment, 1)}")
    return label[0].upper() + label[1:], str(_moment(segment))


def _moment(segment: Segment) -> Moment:
    return Moment(value(segment, 2), value(segment, 4), value(segment, 5))
