"""Freight invoices (210): charges, and whether they add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    format_weight,
)
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import (
    all_segments,
    carrier_code,
    first_segment,
    split_loops,
)
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import StatedTime, parse_amount


def invoice_document(builder: DocumentBuilder) -> Document:
    """Return the `invoice` of a 210."""
    head = first_segment(builder.segments, "B3")
    invoice, shipment = element(head, 2), element(head, 3)
    scac, subject = carrier_code(builder.segments, builder.sender), f"invoice:{invoice}"
    currency = element(first_segment(builder.segments, "C3"), 1) or "USD"
    total = parse_amount(element(head, 7))
    correction = element(head, 8)

    builder.lines.append(f"Freight invoice {invoice} from {scac}")
    builder.add_line("Invoice", invoice)
    builder.add_line("Shipment", shipment)
    builder.add_line("Carrier SCAC", scac)
    builder.add_line("Net amount", _format_amount(total, currency))
    builder.add_line("Correction code", correction)
    builder.add_line("Invoice date", str(StatedTime(element(head, 6))))
    builder.add_line("Payment", codes.describe(codes.PAYMENTS, element(head, 4)))
    date_label = "Delivered" if element(head, 10) == "035" else "Date"
    builder.add_line(date_label, str(StatedTime(element(head, 9))))
    shipment_ref = f"shipment:{shipment}" if shipment else ""
    add_dates(builder, builder.segments)
    add_references(builder, builder.segments, shipment_ref)
    before, charges = split_loops(builder.segments, "LX")
    add_parties(builder, before, subject)
    add_equipment(builder, builder.segments, shipment_ref)
    add_notes(builder, before)
    add_remaining(builder, before)
    for goods in all_segments(before, "L5"):
        builder.add_line("Goods", element(goods, 2))
    _add_amounts(builder, before, currency)
    for charge in charges:
        _add_charge(builder, charge, currency)
    add_totals(builder)

    builder.add_fact(subject, "bills", object=f"shipment:{shipment}")
    builder.add_fact(subject, "carrier", object=f"scac:{carrier_code(builder.segments)}")
    if total is not None:
        builder.add_fact(subject, "amount", value=f"{total / 100:.2f} {currency}")
        builder.metadata["amount"] = total / 100
    builder.metadata |= {
        "invoice": invoice,
        "shipment": shipment,
        "scac": scac,
        "currency": currency,
        "correction": correction,
        "warnings": list(_warnings(builder, total)),
    }
    title = f"Freight invoice {invoice} from {scac} for {shipment}"
    return builder.document("invoice", title, subject)


def _add_charge(builder: DocumentBuilder, segments: Sequence[Segment], currency: str) -> None:
    """Add one LX loop: its goods (L5), charges (L1) and weights (L0)."""
    descriptions = [element(item, 2) for item in all_segments(segments, "L5")]
    goods = " ".join(filter(None, descriptions))
    builder.lines.append(f"\nLine {element(segments[0], 1)}: {goods}".rstrip(": "))
    _add_amounts(builder, segments, currency)
    add_parties(builder, segments, "")
    add_notes(builder, segments)
    add_remaining(builder, segments)


def _add_amounts(builder: DocumentBuilder, segments: Sequence[Segment], currency: str) -> None:
    """Add charges (L1), named by their description or their code, and weights (L0)."""
    for charge in all_segments(segments, "L1"):
        text, code, description = element(charge, 4), element(charge, 8), element(charge, 12)
        label = codes.CHARGES.get(code) or description or code or "freight"
        amount = _format_amount(parse_amount(text), currency) or text
        rate = " ".join(filter(None, (element(charge, 2), element(charge, 3))))
        details = [amount, f"rate {rate}" if rate else ""]
        details += [detail for detail in (description, code) if detail and detail != label]
        builder.add_line(label[0].upper() + label[1:], ", ".join(filter(None, details)))
    for quantity in all_segments(segments, "L0"):
        weight = format_weight(element(quantity, 4), element(quantity, 11), element(quantity, 8))
        builder.add_line("Weight", weight)


def _warnings(builder: DocumentBuilder, total: int | None) -> Iterator[str]:
    """Yield where the charges do not add up to the totals. Such an invoice is taken all the same."""
    texts = [element(charge, 4) for charge in all_segments(builder.segments, "L1")]
    charges = [parse_amount(text) for text in texts if text]
    stated = parse_amount(element(first_segment(builder.segments, "L3"), 5))
    added = sum(filter(None, charges))
    if None in charges:
        yield "a charge (L1-04) is no amount: the charges cannot be added up"
    elif charges and added != total:
        yield f"the charges (L1-04) add up to {added / 100:.2f}, the net amount (B3-07) is another"
    if stated is not None and stated != total:
        yield f"the total (L3-05) is {stated / 100:.2f}, the net amount (B3-07) is another"


def _format_amount(cents: int | None, currency: str) -> str:
    return f"{cents / 100:,.2f} {currency}" if cents is not None else ""
