"""Sets as documents: text that a person would search for, and what it says of shipments, carriers and money."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources import _edi_codes as codes
from apex_memory.sources._edi_checks import cents
from apex_memory.sources._edi_reading import (
    Moment,
    Party,
    Status,
    cancels,
    carrier,
    every,
    first,
    loops,
    parties,
    shipment,
    statuses,
)
from apex_memory.sources._wire import line, mapping, sequence, string
from apex_memory.sources._x12 import Segment, value


@dataclass(slots=True)
class Told:
    """A set, and the document that grows out of it."""

    segments: Sequence[Segment]
    sender: str
    receiver: str
    at: datetime
    lines: list[str] = field(default_factory=list)
    said: list[Assertion] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def set_id(self) -> str:
        return value(self.segments[0], 1)

    def add(self, label: str, text: str) -> None:
        """A labelled line, if there is anything to say."""
        if text:
            self.lines.append(f"{label}: {text}")

    def say(self, subject: str, predicate: str, *, object: str = "", value: str = "") -> None:
        """An assertion, if there is anything to assert."""
        if object and object.partition(":")[2].strip():
            self.said.append(Assertion(subject=subject, predicate=predicate, object=object))
        elif value:
            self.said.append(Assertion(subject=subject, predicate=predicate, value=value))

    def document(self, kind: str, title: str, about: str | None = None) -> Document:
        return Document(
            kind=kind,
            title=line(title, 200),
            occurred_at=self.at,
            text="\n".join(self.lines),
            assertions=tuple(dict.fromkeys(self.said)),
            metadata={name: held for name, held in self.metadata.items() if held not in ("", [])},
            about=about,
        )


def set_document(payload: Mapping[str, Any], at: datetime) -> Document:
    """The document of a set as it was landed. `Rejected` if this is none."""
    envelope = mapping(payload.get("envelope"))
    segments = [tuple(map(string, sequence(one))) for one in sequence(payload.get("segments"))]
    if not segments or not all(segments):
        raise Rejected("payload.segments: expected segments", remedy="is this an X12 set?")
    told = Told(segments, string(envelope.get("sender")), string(envelope.get("receiver")), at)
    told.metadata = {
        "set": told.set_id,
        "envelope": dict(envelope),
        "sent_at": string(payload.get("sent_at")),
        "test": payload.get("test") is True,
        "acknowledged": string(payload.get("answer")),
        "findings": [string(one) for one in sequence(payload.get("findings"))],
    }
    tell = {"204": _tender, "990": _response, "214": _status, "210": _invoice, "997": _answer}
    return tell.get(told.set_id, _other)(told)


def _tender(told: Told) -> Document:
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
    told.add("Payment", _word(codes.PAYMENTS, value(first(segments, "B2"), 6)))
    before, stops = loops(segments, "S5")
    for one in every(before, "G62"):
        told.add(*_dated(one))
    _references(told, before, own)
    _parties(told, before, own)
    _equipment(told, before)
    for stop in stops:
        _stop(told, stop, own)
    _ends(told, stops, own)
    _totals(told)
    return told.document("tender", title, own)


def _cancelled(told: Told, own: str) -> None:
    """Who took the load back from whom, and when. Nothing of what was to be done: that holds no longer."""
    told.add("Cancelled by", told.sender)
    told.add("Told to", told.receiver)
    if told.metadata["sent_at"]:
        told.add("Cancelled at", f"{told.at:%Y-%m-%d %H:%M} UTC")
    _references(told, told.segments, own)
    _parties(told, told.segments, own)
    _notes(told, told.segments)
    _ends(told, loops(told.segments, "S5")[1], own, dated=False)


def _stop(told: Told, segments: Sequence[Segment], own: str) -> None:
    head = segments[0]
    told.lines.append(f"\nStop {value(head, 1)}: {_word(codes.STOPS, value(head, 2))}".rstrip(": "))
    for one in every(segments, "G62"):
        told.add(*_dated(one))
    _references(told, segments, own)
    _parties(told, segments, own, roles=False)
    _notes(told, segments)
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


def _response(told: Told) -> Document:
    head = first(told.segments, "B1")
    number, action = shipment(told.segments), value(head, 4)
    scac, own = carrier(told.segments, told.sender), f"shipment:{number}"
    state = codes.ACTIONS.get(action, f"answered {action}")
    told.lines.append(f"Tender {state} by {scac}")
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("Answer", state)
    told.add("Date", str(Moment(value(head, 3))))
    _references(told, told.segments, own)
    for one in every(told.segments, "V9"):
        told.add("Event", " ".join(filter(None, (value(one, 1), value(one, 8)))))
    _notes(told, told.segments)
    told.say(own, "status", value=f"tender {state}")
    if action in ("A", "C"):
        told.say(own, "carrier", object=f"scac:{carrier(told.segments)}")
    told.metadata |= {"shipment": number, "scac": scac, "action": action, "status": state}
    return told.document("tender_response", f"Tender {number} {state} by {scac}")


def _status(told: Told) -> Document:
    head = first(told.segments, "B10")
    number, pro = shipment(told.segments), value(head, 1)
    scac = carrier(told.segments, told.sender)
    own = f"shipment:{number}" if number else _pro(pro)
    reported = statuses(told.segments)
    newest = _newest(reported)
    title = _state(newest) if newest else "appointments" if reported else "no status"
    told.lines.append(f"Shipment status from {scac}: {title}")
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("PRO", pro)
    before, _ = loops(told.segments, "LX")
    _references(told, told.segments, own)
    _parties(told, before, own)
    told.lines += [_status_line(n, one) for n, one in enumerate(reported, 1)]
    for one in every(told.segments, "AT8"):
        told.add("Weight", _weight(value(one, 3), value(one, 2), value(one, 4)))
    told.say(own, "carrier", object=f"scac:{carrier(told.segments)}")
    if number:
        told.say(own, "pro", object=_pro(pro))
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
        _word(codes.REASONS, one.reason) if one.reason not in codes.NORMAL else "",
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


def _invoice(told: Told) -> Document:
    head = first(told.segments, "B3")
    invoice, number = value(head, 2), value(head, 3)
    scac, own = carrier(told.segments, told.sender), f"invoice:{invoice}"
    currency = value(first(told.segments, "C3"), 1) or "USD"
    total = cents(value(head, 7))
    correction = value(head, 8)
    told.lines.append(f"Freight invoice {invoice} from {scac}")
    told.add("Invoice", invoice)
    told.add("Shipment", number)
    told.add("Carrier SCAC", scac)
    told.add("Net amount", _money(total, currency))
    told.add("Correction code", correction)
    told.add("Invoice date", str(Moment(value(head, 6))))
    told.add("Payment", _word(codes.PAYMENTS, value(head, 4)))
    delivered = "Delivered" if value(head, 10) == "035" else "Date"
    told.add(delivered, str(Moment(value(head, 9))))
    _references(told, told.segments, f"shipment:{number}" if number else "")
    before, details = loops(told.segments, "LX")
    _parties(told, before, own)
    for detail in details:
        _charge_lines(told, detail, currency)
    _totals(told)
    told.say(own, "bills", object=f"shipment:{number}")
    told.say(own, "carrier", object=f"scac:{carrier(told.segments)}")
    if total is not None:
        told.say(own, "amount", value=f"{total / 100:.2f} {currency}")
        told.metadata["amount"] = total / 100
    told.metadata |= {"invoice": invoice, "shipment": number, "scac": scac, "currency": currency}
    told.metadata |= {"correction": correction, "warnings": list(_unbalanced(told, total))}
    return told.document("invoice", f"Freight invoice {invoice} from {scac} for {number}", own)


def _charge_lines(told: Told, segments: Sequence[Segment], currency: str) -> None:
    goods = " ".join(filter(None, (value(one, 2) for one in every(segments, "L5"))))
    told.lines.append(f"\nLine {value(segments[0], 1)}: {goods}".rstrip(": "))
    for one in every(segments, "L1"):
        special = _word(codes.CHARGES, value(one, 8)) or "freight"
        amount = cents(value(one, 4))
        if value(one, 4):
            told.add(special[0].upper() + special[1:], _money(amount, currency) or value(one, 4))
    for one in every(segments, "L0"):
        told.add("Weight", _weight(value(one, 4), value(one, 11), value(one, 8)))


def _unbalanced(told: Told, total: int | None) -> Iterator[str]:
    """The charges must add up to the totals; where they do not, that is told and nothing more."""
    lines = [cents(value(one, 4)) for one in every(told.segments, "L1") if value(one, 4)]
    stated = cents(value(first(told.segments, "L3"), 5))
    if None in lines:
        yield "a charge (L1-04) is no amount: the charges cannot be added up"
    elif lines and sum(filter(None, lines)) != total:
        yield f"the charges (L1-04) add up to {sum(filter(None, lines)) / 100:.2f}, the net amount (B3-07) says otherwise"
    if stated is not None and stated != total:
        yield f"the total (L3-05) is {stated / 100:.2f}, the net amount (B3-07) says otherwise"


def _answer(told: Told) -> Document:
    head, end = first(told.segments, "AK1"), first(told.segments, "AK9")
    function, control = value(head, 1), value(head, 2)
    answer = _word(codes.GROUP_ANSWERS, value(end, 1)) or "no answer"
    told.lines.append(f"Functional acknowledgement: group {function} {control} {answer}")
    told.add("From", told.sender)
    told.add("Sets", f"{value(end, 4) or '?'} of {value(end, 2) or '?'} accepted")
    rejected = []
    _, sets = loops(told.segments, "AK2")
    for one in sets:
        result = first(one, "AK5")
        name = f"{value(one[0], 1)} {value(one[0], 2)}"
        state = _word(codes.GROUP_ANSWERS, value(result, 1)) or "no answer"
        faults = [_word(codes.SET_FAULTS, value(result, n)) for n in range(2, 7)]
        told.lines.append(f"Set {name}: {'; '.join(filter(None, [state, *faults]))}")
        told.lines += list(_faults(one))
        if value(result, 1) not in ("A", "E"):
            rejected.append(name)
    told.metadata |= {"function": function, "group": control, "answer": value(end, 1)}
    told.metadata["rejected"] = rejected
    return told.document("acknowledgement", f"997: group {function} {control} {answer}")


def _faults(segments: Sequence[Segment]) -> Iterator[str]:
    """Each AK3 and AK4 of a set."""
    for one in segments:
        if one[0] == "AK3":
            yield f"  segment {value(one, 1)} at {value(one, 2)}: error {value(one, 4)}"
        elif one[0] == "AK4":
            yield f"  element {value(one, 1)}: error {value(one, 3)} {value(one, 4)}".rstrip()


def _other(told: Told) -> Document:
    told.lines.append(f"X12 {told.set_id or told.segments[0][0]} from {told.sender or 'unknown'}")
    told.lines += [" ".join(filter(None, map(str.strip, one))) for one in told.segments]
    return told.document("edi_other", told.lines[0])


def _references(told: Told, segments: Sequence[Segment], own: str) -> None:
    """L11 and N9: whatever number somebody may look for."""
    numbers = [(value(one, 2), value(one, 1)) for one in every(segments, "L11")]
    numbers += [(value(one, 1), value(one, 2)) for one in every(segments, "N9")]
    for code, number in dict.fromkeys(numbers):
        told.add(codes.REFERENCES.get(code, f"Reference {code}"), number)
        if code == "PO":
            told.say(own, "po", object=f"po:{number}")
        elif code == "CN":
            told.say(own, "pro", object=_pro(number))
        elif code == "BM" and f"shipment:{number}" != own:
            told.say(own, "bol", object=f"bol:{number}")


def _parties(told: Told, segments: Sequence[Segment], own: str, *, roles: bool = True) -> None:
    for party in parties(segments):
        address = ", ".join(filter(None, (party.name, party.street, party.place, party.country)))
        told.add(codes.PARTIES.get(party.role, f"Party {party.role}"), address)
        for contact in party.contacts:
            told.add("Phone", contact)
        _assert_party(told, party, own if roles or party.role in codes.ROLES else "")


def _assert_party(told: Told, party: Party, own: str) -> None:
    role = codes.ROLES.get(party.role, "mentions")
    if party.name and party.name != party.number:
        company = f"company:{party.name}"
        told.say(own if role != "mentions" else "", role, object=company)
        told.say(company, "name", value=party.name)
    told.say("", "mentions", object=party.location)


def _equipment(told: Told, segments: Sequence[Segment]) -> None:
    for one in every(segments, "N7"):
        number = value(one, 1) + value(one, 2)
        told.add("Equipment", " ".join(filter(None, (number, value(one, 11)))))


def _notes(told: Told, segments: Sequence[Segment]) -> None:
    for one in every(segments, "NTE"):
        told.add("Note", value(one, 2))
    for one in every(segments, "K1"):
        told.add("Note", " ".join(filter(None, (value(one, 1), value(one, 2)))))


def _totals(told: Told) -> None:
    for one in every(told.segments, "L3"):
        told.add("Total weight", _weight(value(one, 1), "", value(one, 11)))


def _dated(segment: Segment) -> tuple[str, str]:
    label = codes.DATES.get(value(segment, 1), f"date {value(segment, 1)}")
    return label[0].upper() + label[1:], str(_moment(segment))


def _moment(segment: Segment) -> Moment:
    return Moment(value(segment, 2), value(segment, 4), value(segment, 5))


def _weight(weight: str, unit: str, pieces: str) -> str:
    shown = f"{weight} {'kg' if unit == 'K' else 'lb'}" if weight else ""
    return ", ".join(filter(None, (shown, f"{pieces} pieces" if pieces else "")))


def _money(amount: int | None, currency: str) -> str:
    return f"{amount / 100:,.2f} {currency}" if amount is not None else ""


def _pro(number: str) -> str:
    """Ref of a carrier's progressive number, which many write with `PRO` before it."""
    return f"pro:{re.sub(r'^PRO[ #-]*', '', number, flags=re.IGNORECASE)}" if number else ""


def _word(words: Mapping[str, str], code: str) -> str:
    return words.get(code, code)
