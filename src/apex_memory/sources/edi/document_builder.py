"""A set on its way to a document, and the parts that sets of several kinds have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from apex_memory.model import Assertion, Document
from apex_memory.sources.edi.coverage import remaining_lines
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import (
    Party,
    all_segments,
    equipment_number,
    parse_parties,
)
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import StatedTime, parse_amount
from apex_memory.sources.payloads import line


@dataclass(slots=True)
class DocumentBuilder:
    """Collects the text, assertions and metadata of one set. `sender` and `receiver` are interchange ids."""

    segments: Sequence[Segment]
    sender: str
    receiver: str
    at: datetime
    lines: list[str] = field(default_factory=list)
    assertions: list[Assertion] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def set_id(self) -> str:
        return element(self.segments[0], 1)

    def add_line(self, label: str, text: str) -> None:
        """Add a labelled line; nothing where `text` is empty."""
        if text:
            self.lines.append(f"{label}: {text}")

    def add_fact(self, subject: str, predicate: str, *, object: str = "", value: str = "") -> None:
        """Assert `predicate` of `subject`; nothing where both the object's key and the value are empty."""
        if object and object.partition(":")[2].strip():
            self.assertions.append(Assertion(subject=subject, predicate=predicate, object=object))
        elif value:
            self.assertions.append(Assertion(subject=subject, predicate=predicate, value=value))

    def document(self, kind: str, title: str, about: str | None = None) -> Document:
        """Return the document of what was collected; `about` is the ref of the entity that it is the record of."""
        return Document(
            kind=kind,
            title=line(title, 200),
            occurred_at=self.at,
            text="\n".join(self.lines),
            assertions=tuple(dict.fromkeys(self.assertions)),
            metadata={key: value for key, value in self.metadata.items() if value not in ("", [])},
            about=about,
        )


def add_references(builder: DocumentBuilder, segments: Sequence[Segment], subject: str) -> None:
    """Add the reference numbers (L11, N9). PO, PRO and bill of lading are asserted of `subject`."""
    references = [
        (element(item, 2), element(item, 1), element(item, 3))
        for item in all_segments(segments, "L11")
    ]
    references += [
        (element(item, 1), element(item, 2), element(item, 3))
        for item in all_segments(segments, "N9")
    ]
    for qualifier, number, description in dict.fromkeys(references):
        label = codes.REFERENCES.get(qualifier, f"Reference {qualifier}")
        builder.add_line(label, ", ".join(filter(None, (number, description))))
        if qualifier == "PO":
            builder.add_fact(subject, "po", object=f"po:{number}")
        elif qualifier == "CN":
            builder.add_fact(subject, "pro", object=pro_ref(number))
        elif qualifier == "BM" and f"shipment:{number}" != subject:
            builder.add_fact(subject, "bol", object=f"bol:{number}")


def add_parties(
    builder: DocumentBuilder, segments: Sequence[Segment], subject: str, *, at_stop: bool = False
) -> None:
    """Add names and addresses. A party whose role is one of the shipment's is asserted of `subject`.

    Any other party is a mention of the document; with `at_stop` it is not linked to `subject` at all.
    """
    for party in parse_parties(segments):
        name = party.name
        if party.number and party.number != party.name:
            name = f"{party.name} ({party.number})"
        address = (name, party.street, party.city_line, party.country, *party.more)
        label = codes.PARTIES.get(party.role, f"Party {party.role}")
        builder.add_line(label, ", ".join(filter(None, address)))
        for qualifier, contact in party.contacts:
            builder.add_line(codes.CONTACTS.get(qualifier, f"Contact {qualifier}".strip()), contact)
        is_linked = not at_stop or party.role in codes.PARTY_PREDICATES
        _assert_party(builder, party, subject if is_linked else "")


def _assert_party(builder: DocumentBuilder, party: Party, subject: str) -> None:
    predicate = codes.PARTY_PREDICATES.get(party.role, "mentions")
    if party.name and party.name != party.number:
        company = f"company:{party.name}"
        builder.add_fact(subject if predicate != "mentions" else "", predicate, object=company)
        builder.add_fact(company, "name", value=party.name)
    builder.add_fact("", "mentions", object=party.location)


def add_notes(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """Add the free text (NTE, K1)."""
    for note in all_segments(segments, "NTE"):
        builder.add_line("Note", element(note, 2))
    for remark in all_segments(segments, "K1"):
        text = (element(remark, 1), element(remark, 2))
        builder.add_line("Note", " ".join(filter(None, text)))


def add_dates(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """Add the dates (G62) with their times and zones."""
    for item in all_segments(segments, "G62"):
        qualifier = element(item, 1)
        label = codes.DATES.get(qualifier, f"date {qualifier}".strip())
        builder.add_line(label[0].upper() + label[1:], str(stated_time(item)))


def stated_time(item: Segment) -> StatedTime:
    """Return the date, time and zone of a G62."""
    return StatedTime(element(item, 2), element(item, 4), element(item, 5))


def add_equipment(builder: DocumentBuilder, segments: Sequence[Segment], subject: str) -> None:
    """Add containers and trailers (N7), and assert their numbers of `subject`."""
    for item in all_segments(segments, "N7"):
        number = equipment_number(item)
        parts = [number, element(item, 11)]
        if length := element(item, 15):
            parts.append(f"length {length}")
        if weight := element(item, 3):
            parts.append(f"weight {weight}")
        builder.add_line("Equipment", ", ".join(filter(None, parts)))
        if subject:
            builder.add_fact(subject, "equipment", value=number)


def add_weights(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """Add weight and pieces of each AT8."""
    for item in all_segments(segments, "AT8"):
        weight = format_weight(element(item, 3), element(item, 2), element(item, 4))
        builder.add_line("Weight", weight)


def add_totals(builder: DocumentBuilder) -> None:
    """Add total weight, pieces and charges (L3)."""
    for total in all_segments(builder.segments, "L3"):
        builder.add_line("Total weight", format_weight(element(total, 1), "", element(total, 11)))
        charges = element(total, 5)
        cents = parse_amount(charges)
        builder.add_line("Total charges", charges if cents is None else f"{cents / 100:,.2f}")


def add_remaining(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """Add the elements that no other line shows, as they came."""
    builder.lines += remaining_lines(builder.set_id, segments)


def format_weight(amount: str, unit: str, pieces: str) -> str:
    """`18250 lb, 24 pieces`; empty where neither is given. `unit` is a code of element 188; pounds where it is empty."""
    unit = codes.WEIGHT_UNITS.get(unit, unit)
    weight = f"{amount} {unit}" if amount else ""
    return ", ".join(filter(None, (weight, f"{pieces} pieces" if pieces else "")))


def pro_ref(number: str) -> str:
    """Return the ref of a carrier's progressive number, which many write with `PRO` before it."""
    return f"pro:{re.sub(r'^PRO[ #-]*', '', number, flags=re.IGNORECASE)}" if number else ""
