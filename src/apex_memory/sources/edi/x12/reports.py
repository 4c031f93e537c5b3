"""Reports of where a shipment is (214)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.document_builder import (
    Told,
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


def tell_status(told: Told) -> Document:
    """A 214: a `shipment_status`, titled by the newest of what it reports."""
    head = first(told.segments, "B10")
    number, pro = shipment(told.segments), value(head, 1)
    scac = carrier(told.segments, told.sender)
    own = f"shipment:{number}" if number else pro_ref(pro)
    reported = statuses(told.segments)
    newest = _newest(reported)
    title = _state(newest) if newest else "appointments" if reported else "no status"
    told.lines.append(f"Shipment status from {scac}: {title}")
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("PRO", pro)
    before, _ = loops(told.segments, "LX")
    tell_references(told, told.segments, own)
    tell_parties(told, before, own)
    told.lines += [_status_line(n, one) for n, one in enumerate(reported, 1)]
    for one in every(told.segments, "AT8"):
        told.add("Weight", weight(value(one, 3), value(one, 2), value(one, 4)))
    told.say(own, "carrier", object=f"scac:{carrier(told.segments)}")
    if number:
        told.say(own, "pro", object=pro_ref(pro))
    for status in reported:
        told.say(own, "vehicle", object=f"vehicle:{status.unit}")
        if status.city:
            told.say("", "mentions", object=f"location:{status.city} {status.state}".strip())
    if newest:
        told.say(own, "status", value=_state(newest))
    told.metadata |= {"shipment": number, "scac": scac, "pro": pro}
    told.metadata["statuses"] = [_status_fields(one) for one in reported]
    return told.document("shipment_status", f"{number or pro} {title} ({scac})")


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
