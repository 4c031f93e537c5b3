"""Shipment status reports (214)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    pro_ref,
    stated_time,
)
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import (
    Status,
    all_segments,
    carrier_code,
    first_segment,
    parse_statuses,
    shipment_number,
    split_loops,
)
from apex_memory.sources.edi.x12.segments import Segment, element


def status_document(builder: DocumentBuilder) -> Document:
    """Return the `shipment_status` of a 214, titled by the newest status that happened.

    What is expected (estimates and appointments) is shown and asserted apart from it.
    """
    head = first_segment(builder.segments, "B10")
    number, pro = shipment_number(builder.segments), element(head, 1)
    scac = carrier_code(builder.segments, builder.sender)
    subject = f"shipment:{number}" if number else pro_ref(pro)
    statuses = parse_statuses(builder.segments)
    newest = _newest(statuses)
    summary = _summary(statuses, newest)

    builder.lines.append(f"Shipment status from {scac}: {summary}")
    builder.add_line("Shipment", number)
    builder.add_line("Carrier SCAC", scac)
    builder.add_line("PRO", pro)
    before, lines = split_loops(builder.segments, "LX")
    add_references(builder, builder.segments, subject)
    add_parties(builder, before, subject)
    for line in lines:
        add_parties(builder, line, subject)
    add_dates(builder, builder.segments)
    add_equipment(builder, builder.segments, subject)
    for n, status in enumerate(statuses, 1):
        builder.lines.append(f"{n}. {_status_text(status)}")
    for quantity in all_segments(builder.segments, "Q7"):
        amount = f"{element(quantity, 3)} {element(quantity, 2)}".strip()
        builder.add_line("Quantity", ", ".join(filter(None, (amount, _exception(quantity)))))
    add_weights(builder, builder.segments)
    add_totals(builder)
    add_notes(builder, builder.segments)
    add_remaining(builder, builder.segments)

    builder.add_fact(subject, "carrier", object=f"scac:{carrier_code(builder.segments)}")
    if number:
        builder.add_fact(subject, "pro", object=pro_ref(pro))
    for status in statuses:
        builder.add_fact(subject, "vehicle", object=f"vehicle:{status.unit}")
        if status.city:
            builder.add_fact(
                "", "mentions", object=f"location:{status.city} {status.state}".strip()
            )
    if newest:
        builder.add_fact(subject, "status", value=_describe(newest))
    _assert_estimates(builder, subject, statuses)
    builder.metadata |= {"shipment": number, "scac": scac, "pro": pro}
    builder.metadata["statuses"] = [_status_fields(status) for status in statuses]
    return builder.document("shipment_status", f"{number or pro} {summary} ({scac})")


def _newest(statuses: Sequence[Status]) -> Status | None:
    """Return the status that happened last: of the latest time, the last of equal ones; without any time the last one."""
    newest: Status | None = None
    newest_at = None
    for status in statuses:
        if status.kind != "status" or status.code in codes.ESTIMATES:
            continue
        at = status.when.at
        if newest is None or (at and (newest_at is None or at >= newest_at)):
            newest, newest_at = status, at
        elif newest_at is None:
            newest = status
    return newest


def _summary(statuses: Sequence[Status], newest: Status | None) -> str:
    if newest:
        return _describe(newest)
    if not statuses:
        return "no status"
    return ", ".join(dict.fromkeys(map(_describe, statuses)))


def _assert_estimates(builder: DocumentBuilder, subject: str, statuses: Sequence[Status]) -> None:
    """Assert estimated times: of the statuses, and of a date (G62) that is an estimate. The last one of a kind counts."""
    estimates: dict[str, str] = {}
    for date in all_segments(builder.segments, "G62"):
        at = stated_time(date).at
        if element(date, 1) == "17" and at:
            estimates["estimated_delivery_at"] = at.isoformat()
    for status in statuses:
        at = status.when.at
        if status.kind == "status" and status.code in codes.ESTIMATES and at:
            estimates[codes.ESTIMATES[status.code]] = at.isoformat()
    for predicate, time in estimates.items():
        builder.add_fact(subject, predicate, value=time)


def _exception(quantity: Segment) -> str:
    """Return the lading exception of a Q7 (element 33)."""
    code = element(quantity, 1)
    return f"exception {code}" if code else ""


def _describe(status: Status) -> str:
    words = codes.STATUSES if status.kind == "status" else codes.APPOINTMENTS
    return words.get(status.code, f"status {status.code}")


def _status_text(status: Status) -> str:
    parts = [f"{_describe(status)} ({status.code})"]
    if status.reason not in codes.NORMAL_REASONS:
        parts.append(codes.describe(codes.REASONS, status.reason))
    parts.append(str(status.when))
    country = "" if status.country in ("US", "USA") else status.country
    parts.append(", ".join(filter(None, (status.city, status.state, country))))
    if status.position:
        latitude, longitude = status.position
        parts.append(f"position {latitude}, {longitude}")
    elif status.unread_position:
        parts.append(f"position {status.unread_position}")
    if status.unit:
        parts.append(f"unit {status.unit}")
    return "; ".join(filter(None, parts))


def _status_fields(status: Status) -> dict[str, Any]:
    """Return a status for the document's metadata, without what is empty."""
    at = status.when.at
    fields = {
        "line": status.line,
        status.kind: status.code,
        "reason": status.reason,
        "at": at.isoformat() if at else "",
        "city": status.city,
        "state": status.state,
        "country": status.country,
        "carrier": status.carrier,
        "position": list(status.position) if status.position else "",
        "unit": status.unit,
    }
    return {name: value for name, value in fields.items() if value}
