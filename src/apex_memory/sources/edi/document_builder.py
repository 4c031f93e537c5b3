"""A set on its way to a document, and the parts that sets of several kinds have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from apex_memory.model import Assertion, Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import Party, all_segments, parse_parties
from apex_memory.sources.edi.x12.segments import Segment, element
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
    references = [(element(item, 2), element(item, 1)) for item in all_segments(segments, "L11")]
    references += [(element(item, 1), element(item, 2)) for item in all_segments(segments, "N9")]
    for qualifier, number in dict.fromkeys(references):
        label = codes.REFERENCES.get(qualifier, f"Reference {qualifier}")
        builder.add_line(label, number)
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
        address = (party.name, party.street, party.city_line, party.country)
        label = codes.PARTIES.get(party.role, f"Party {party.role}")
        builder.add_line(label, ", ".join(filter(None, address)))
        for contact in party.contacts:
            builder.add_line("Phone", contact)
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


def add_totals(builder: DocumentBuilder) -> None:
    """Add the total weight and pieces (L3)."""
    for total in all_segments(builder.segments, "L3"):
        builder.add_line("Total weight", format_weight(element(total, 1), "", element(total, 11)))


def format_weight(amount: str, unit: str, pieces: str) -> str:
    """`18250 lb, 24 pieces`; empty where neither is given. `unit` is a code of element 188: K is kilograms."""
    weight = f"{amount} {'kg' if unit == 'K' else 'lb'}" if amount else ""
    return ", ".join(filter(None, (weight, f"{pieces} pieces" if pieces else "")))


def pro_ref(number: str) -> str:
    """Return the ref of a carrier's progressive number, which many write with `PRO` before it."""
    return f"pro:{re.sub(r'^PRO[ #-]*', '', number, flags=re.IGNORECASE)}" if number else ""
