"""Load tenders (204), their cancels, and the carriers' responses to them (990)."""

from __future__ import annotations

from collections.abc import Sequence

from apex_memory.model import Document
from apex_memory.sources.edi.document_builder import (
    DocumentBuilder,
    add_dates,
    add_equipment,
    add_notes,
    add_parties,
    add_references,
    add_remaining,
    add_totals,
    add_weights,
    format_weight,
    stated_time,
)
from apex_memory.sources.edi.identity import is_cancel
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import (
    all_segments,
    carrier_code,
    first_segment,
    parse_parties,
    shipment_number,
    split_loops,
)
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import StatedTime

Stop = Sequence[Segment]
"""An S5 and what follows it."""


def tender_document(builder: DocumentBuilder) -> Document:
    """Return the `tender` of a 204, or the `tender_cancellation` of one that cancels."""
    segments = builder.segments
    number = shipment_number(segments)
    shipment = f"shipment:{number}"
    scac = carrier_code(segments, builder.receiver)
    purpose = element(first_segment(segments, "B2A"), 1)
    state = codes.PURPOSES.get(purpose, f"purpose {purpose}")
    title = f"Load tender {number} to {scac}: {state}"

    builder.lines.append(f"Load tender to {scac}: {state}")
    builder.add_line("Shipment", number)
    builder.add_line("Carrier SCAC", scac)
    builder.add_line("Status", state)
    status = "tendered" if purpose == "00" else f"tender {state}"
    builder.add_fact(shipment, "status", value=status)
    builder.add_fact(shipment, "carrier", object=f"scac:{carrier_code(segments)}")
    builder.metadata |= {"shipment": number, "scac": scac, "purpose": purpose, "status": state}
    if is_cancel(segments):
        _add_cancel(builder, shipment)
        return builder.document("tender_cancellation", title, shipment)

    payment = codes.describe(codes.PAYMENTS, element(first_segment(segments, "B2"), 6))
    builder.add_line("Payment", payment)
    before, stops = split_loops(segments, "S5")
    add_dates(builder, before)
    add_references(builder, before, shipment)
    add_parties(builder, before, shipment)
    add_equipment(builder, before, shipment)
    _add_goods(builder, before)
    add_notes(builder, before)
    add_remaining(builder, before)
    for stop in stops:
        _add_stop(builder, stop, shipment)
    _assert_ends(builder, stops, shipment)
    add_totals(builder)
    return builder.document("tender", title, shipment)


def response_document(builder: DocumentBuilder) -> Document:
    """Return the `tender_response` of a 990."""
    head = first_segment(builder.segments, "B1")
    number, action = shipment_number(builder.segments), element(head, 4)
    scac, shipment = carrier_code(builder.segments, builder.sender), f"shipment:{number}"
    state = codes.ACTIONS.get(action, f"answered {action}")
    builder.lines.append(f"Tender {state} by {scac}")
    builder.add_line("Shipment", number)
    builder.add_line("Carrier SCAC", scac)
    builder.add_line("Answer", state)
    builder.add_line("Date", str(StatedTime(element(head, 3))))
    add_references(builder, builder.segments, shipment)
    for event in all_segments(builder.segments, "V9"):
        text = (element(event, 1), element(event, 8))
        builder.add_line("Event", " ".join(filter(None, text)))
    add_dates(builder, builder.segments)
    add_parties(builder, builder.segments, shipment)
    add_equipment(builder, builder.segments, shipment)
    add_notes(builder, builder.segments)
    add_totals(builder)
    add_remaining(builder, builder.segments)
    builder.add_fact(shipment, "status", value=f"tender {state}")
    if action in ("A", "C"):
        builder.add_fact(shipment, "carrier", object=f"scac:{carrier_code(builder.segments)}")
    builder.metadata |= {"shipment": number, "scac": scac, "action": action, "status": state}
    return builder.document("tender_response", f"Tender {number} {state} by {scac}")


def _add_cancel(builder: DocumentBuilder, shipment: str) -> None:
    """Add who took the load back from whom, and when. What was to be done is left out: it no longer holds."""
    builder.add_line("Cancelled by", builder.sender)
    builder.add_line("Sent to", builder.receiver)
    if builder.metadata["sent_at"]:
        builder.add_line("Cancelled at", f"{builder.at:%Y-%m-%d %H:%M} UTC")
    add_references(builder, builder.segments, shipment)
    add_parties(builder, builder.segments, shipment)
    add_notes(builder, builder.segments)
    _, stops = split_loops(builder.segments, "S5")
    _assert_ends(builder, stops, shipment, with_dates=False)


def _add_stop(builder: DocumentBuilder, stop: Stop, shipment: str) -> None:
    head = stop[0]
    reason = codes.describe(codes.STOPS, element(head, 2))
    builder.lines.append(f"\nStop {element(head, 1)}: {reason}".rstrip(": "))
    add_dates(builder, stop)
    add_references(builder, stop, shipment)
    add_parties(builder, stop, shipment, at_stop=True)
    weight = format_weight(element(head, 3), element(head, 4), element(head, 5))
    builder.add_line("Load", weight)
    add_equipment(builder, stop, shipment)
    _add_goods(builder, stop)
    add_notes(builder, stop)
    add_remaining(builder, stop)


def _add_goods(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """Add descriptions (L5), weights (AT8) and hazardous goods (LH1, LH2, LH3, LFH)."""
    for goods in all_segments(segments, "L5"):
        builder.add_line("Goods", element(goods, 2))
    add_weights(builder, segments)
    for hazard in all_segments(segments, "LH1"):
        parts = [element(hazard, 3)]
        if group := element(hazard, 10):
            parts.append(f"packing group {group}")
        if quantity := element(hazard, 2):
            parts.append(f"quantity {quantity}")
        builder.add_line("Hazardous goods", ", ".join(filter(None, parts)))
    for hazard in all_segments(segments, "LH2"):
        hazard_class = (element(hazard, 1), element(hazard, 3))
        builder.add_line("Hazard class", ", ".join(filter(None, hazard_class)))
    for hazard in all_segments(segments, "LH3"):
        builder.add_line("Hazardous goods", element(hazard, 1))
    for hazard in all_segments(segments, "LFH"):
        text = (element(hazard, 2), element(hazard, 3))
        builder.add_line("Hazardous goods", " ".join(filter(None, text)))


def _assert_ends(
    builder: DocumentBuilder, stops: Sequence[Stop], shipment: str, *, with_dates: bool = True
) -> None:
    """Assert origin and destination of the shipment: its first pickup and its last delivery.

    A partner may have codes of its own for stops. Then the first stop is the origin, the last one the destination.
    """
    pickups = [stop for stop in stops if element(stop[0], 2) in codes.PICKUPS]
    deliveries = [stop for stop in stops if element(stop[0], 2) in codes.DELIVERIES]
    if len(stops) > 1:
        pickups = pickups or list(stops[:1])
        deliveries = deliveries or list(stops[-1:])
    if pickups:
        first = pickups[0]
        _assert_place(builder, first, shipment, "origin")
        if with_dates:
            _assert_date(builder, first, shipment, "pickup_at", codes.SHIP_DATES)
    if deliveries:
        last = deliveries[-1]
        _assert_place(builder, last, shipment, "destination")
        if with_dates:
            _assert_date(builder, last, shipment, "delivery_at", codes.DELIVERY_DATES)


def _assert_place(builder: DocumentBuilder, stop: Stop, shipment: str, predicate: str) -> None:
    """Assert where a stop is: the city of its first party that has one, else the company."""
    parties = parse_parties(stop)
    for party in parties:
        if party.location:
            builder.add_fact(shipment, predicate, object=party.location)
            builder.metadata[predicate] = party.city_line
            return
    for party in parties[:1]:
        builder.add_fact(shipment, predicate, object=f"company:{party.name}")
        builder.metadata[predicate] = party.name


def _assert_date(
    builder: DocumentBuilder, stop: Stop, shipment: str, predicate: str, qualifiers: Sequence[str]
) -> None:
    """Assert the date of a stop: that of the first of `qualifiers` which the stop has."""
    dates = {element(date, 1): date for date in all_segments(stop, "G62")}
    due = next((dates[qualifier] for qualifier in qualifiers if qualifier in dates), None)
    at = stated_time(due).at if due else None
    if at:
        builder.add_fact(shipment, predicate, value=at.isoformat())
