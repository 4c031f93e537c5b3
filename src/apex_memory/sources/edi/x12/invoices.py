"""Freight invoices (210): charges, and whether they add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apex_memory.model import Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.checks import cents
from apex_memory.sources.edi.x12.document_builder import (
    DocumentBuilder,
    tell_parties,
    tell_references,
    tell_totals,
    weight,
    word,
)
from apex_memory.sources.edi.x12.fields import Moment, carrier, every, first, loops
from apex_memory.sources.edi.x12.segments import Segment, value


def tell_invoice(builder: DocumentBuilder) -> Document:
    """A 210: an `invoice`."""
    head = first(builder.segments, "B3")
    invoice, number = value(head, 2), value(head, 3)
    scac, own = carrier(builder.segments, builder.sender), f"invoice:{invoice}"
    currency = value(first(builder.segments, "C3"), 1) or "USD"
    total = cents(value(head, 7))
    correction = value(head, 8)
    builder.lines.append(f"Freight invoice {invoice} from {scac}")
    builder.add("Invoice", invoice)
    builder.add("Shipment", number)
    builder.add("Carrier SCAC", scac)
    builder.add("Net amount", _money(total, currency))
    builder.add("Correction code", correction)
    builder.add("Invoice date", str(Moment(value(head, 6))))
    builder.add("Payment", word(codes.PAYMENTS, value(head, 4)))
    delivered = "Delivered" if value(head, 10) == "035" else "Date"
    builder.add(delivered, str(Moment(value(head, 9))))
    tell_references(builder, builder.segments, f"shipment:{number}" if number else "")
    before, details = loops(builder.segments, "LX")
    tell_parties(builder, before, own)
    for detail in details:
        _charge_lines(builder, detail, currency)
    tell_totals(builder)
    builder.say(own, "bills", object=f"shipment:{number}")
    builder.say(own, "carrier", object=f"scac:{carrier(builder.segments)}")
    if total is not None:
        builder.say(own, "amount", value=f"{total / 100:.2f} {currency}")
        builder.metadata["amount"] = total / 100
    builder.metadata |= {"invoice": invoice, "shipment": number, "scac": scac, "currency": currency}
    builder.metadata |= {"correction": correction, "warnings": list(_unbalanced(builder, total))}
    return builder.document("invoice", f"Freight invoice {invoice} from {scac} for {number}", own)


def _charge_lines(builder: DocumentBuilder, segments: Sequence[Segment], currency: str) -> None:
    goods = " ".join(filter(None, (value(one, 2) for one in every(segments, "L5"))))
    builder.lines.append(f"\nLine {value(segments[0], 1)}: {goods}".rstrip(": "))
    for one in every(segments, "L1"):
        special = word(codes.CHARGES, value(one, 8)) or "freight"
        amount = cents(value(one, 4))
        if value(one, 4):
            builder.add(special[0].upper() + special[1:], _money(amount, currency) or value(one, 4))
    for one in every(segments, "L0"):
        builder.add("Weight", weight(value(one, 4), value(one, 11), value(one, 8)))


def _unbalanced(builder: DocumentBuilder, total: int | None) -> Iterator[str]:
    """The charges must add up to the totals; where they do not, that is told and nothing more."""
    lines = [cents(value(one, 4)) for one in every(builder.segments, "L1") if value(one, 4)]
    stated = cents(value(first(builder.segments, "L3"), 5))
    if None in lines:
        yield "a charge (L1-04) is no amount: the charges cannot be added up"
    elif lines and sum(filter(None, lines)) != total:
        yield f"the charges (L1-04) add up to {sum(filter(None, lines)) / 100:.2f}, the net amount (B3-07) says otherwise"
    if stated is not None and stated != total:
        yield f"the total (L3-05) is {stated / 100:.2f}, the net amount (B3-07) says otherwise"


def _money(amount: int | None, currency: str) -> str:
    return f"{amount / 100:,.2f} {currency}" if amount is not None else ""
