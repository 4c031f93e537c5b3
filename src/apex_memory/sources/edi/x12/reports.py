"""Reports of where a shipment is (214)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.document_builder import (
    DocumentBuilder,
    pro_ref,
    tell_parties,
    tell_references,
    weight,
    word,
)
from apex_memory.sources.edi.x12.fields import (
    Status,
    carrier,
    every,
    first,
    loops,
    shipment,
    statuses,
)
from apex_memory.sources.edi.x12.segments import value


def tell_status(builder: DocumentBuilder) -> Document:
    """A 214: a `shipment_status`, titled by the newest of what it reports."""
    head = first(builder.segments, "B10")
    number, pro = shipment(builder.segments), value(head, 1)
    scac = carrier(builder.segments, builder.sender)
    own = f"shipment:{number}" if number else pro_ref(pro)
    reported = statuses(builder.segments)
    newest = _newest(reported)
    title = _state(newest) if newest else "appointments" if reported else "no status"
    builder.lines.append(f"Shipment status from {scac}: {title}")
    builder.add("Shipment", number)
    builder.add("Carrier SCAC", scac)
    builder.add("PRO", pro)
    before, _ = loops(builder.segments, "LX")
    tell_references(builder, builder.segments, own)
    tell_parties(builder, before, own)
    builder.lines += [_status_line(n, one) for n, one in enumerate(reported, 1)]
    for one in every(builder.segments, "AT8"):
        builder.add("Weight", weight(value(one, 3), value(one, 2), value(one, 4)))
    builder.say(own, "carrier", object=f"scac:{carrier(builder.segments)}")
    if number:
        builder.say(own, "pro", object=pro_ref(pro))
    for status in reported:
        builder.say(own, "vehicle", object=f"vehicle:{status.unit}")
        if status.city:
            builder.say("", "mentions", object=f"location:{status.city} {status.state}".strip())
    if newest:
        builder.say(own, "status", value=_state(newest))
    builder.metadata |= {"shipment": number, "scac": scac, "pro": pro}
    builder.metadata["statuses"] = [_status_fields(one) for one in reported]
    return builder.document("shipment_status", f"{number or pro} {title} ({scac})")


def _newest(reported: Sequence[Status]) -> Status | None:
    """The status of the latest time; of equal ones the one told last."""
    dated = [(one.when.at, n, one) for n, one in enumerate(reported) if one.kind == "status"]
    known = [(at, n, one) for at, n, one in dated if at]
    if known:
        return max(known, key=lambda item: item[:2])[2]
    return dated[-1][2] if dated else None


def _state(one: Status) -> str:
    words = codes.STATUSES if one.kind == "status" else codes.APPOINTMENTS
    return words.get(one.code, f"status {one.code}")


def _status_line(n: int, one: Status) -> str:
    parts = [
        f"{_state(one)} ({one.code})",
        word(codes.REASONS, one.reason) if one.reason not in codes.NORMAL else "",
        str(one.when),
        ", ".join(filter(None, (one.city, one.state))),
        f"position {one.position[0]}, {one.position[1]}" if one.position else "",
        f"unit {one.unit}" if one.unit else "",
    ]
    return f"{n}. {'; '.join(filter(None, parts))}"


def _status_fields(one: Status) -> dict[str, Any]:
    at = one.when.at
    fields = {
        "line": one.line,
        one.kind: one.code,
        "reason": one.reason,
        "at": at.isoformat() if at else "",
        "city": one.city,
        "state": one.state,
        "position": list(one.position) if one.position else "",
        "unit": one.unit,
    }
    return {name: held for name, held in fields.items() if held}
