"""A set on its way to a document, and what sets of all kinds tell in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from apex_memory.model import Assertion, Document
from apex_memory.sources.edi.x12 import codes
from apex_memory.sources.edi.x12.fields import Party, every, parties
from apex_memory.sources.edi.x12.segments import Segment, value
from apex_memory.sources.payloads import line


@dataclass(slots=True)
class DocumentBuilder:
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


def tell_references(builder: DocumentBuilder, segments: Sequence[Segment], own: str) -> None:
    """L11 and N9: whatever number somebody may look for."""
    numbers = [(value(one, 2), value(one, 1)) for one in every(segments, "L11")]
    numbers += [(value(one, 1), value(one, 2)) for one in every(segments, "N9")]
    for code, number in dict.fromkeys(numbers):
        builder.add(codes.REFERENCES.get(code, f"Reference {code}"), number)
        if code == "PO":
            builder.say(own, "po", object=f"po:{number}")
        elif code == "CN":
            builder.say(own, "pro", object=pro_ref(number))
        elif code == "BM" and f"shipment:{number}" != own:
            builder.say(own, "bol", object=f"bol:{number}")


def tell_parties(
    builder: DocumentBuilder, segments: Sequence[Segment], own: str, *, roles: bool = True
) -> None:
    """Names and addresses. Without `roles` only those that have one of the shipment itself are linked to it."""
    for party in parties(segments):
        address = ", ".join(filter(None, (party.name, party.street, party.place, party.country)))
        builder.add(codes.PARTIES.get(party.role, f"Party {party.role}"), address)
        for contact in party.contacts:
            builder.add("Phone", contact)
        _assert_party(builder, party, own if roles or party.role in codes.ROLES else "")


def _assert_party(builder: DocumentBuilder, party: Party, own: str) -> None:
    role = codes.ROLES.get(party.role, "mentions")
    if party.name and party.name != party.number:
        company = f"company:{party.name}"
        builder.say(own if role != "mentions" else "", role, object=company)
        builder.say(company, "name", value=party.name)
    builder.say("", "mentions", object=party.location)


def tell_notes(builder: DocumentBuilder, segments: Sequence[Segment]) -> None:
    """NTE and K1: free text."""
    for one in every(segments, "NTE"):
        builder.add("Note", value(one, 2))
    for one in every(segments, "K1"):
        builder.add("Note", " ".join(filter(None, (value(one, 1), value(one, 2)))))


def tell_totals(builder: DocumentBuilder) -> None:
    """L3: what all of it weighs."""
    for one in every(builder.segments, "L3"):
        builder.add("Total weight", weight(value(one, 1), "", value(one, 11)))


def weight(amount: str, unit: str, pieces: str) -> str:
    """`18250 lb, 24 pieces`; empty where neither is given."""
    shown = f"{amount} {'kg' if unit == 'K' else 'lb'}" if amount else ""
    return ", ".join(filter(None, (shown, f"{pieces} pieces" if pieces else "")))


def pro_ref(number: str) -> str:
    """Ref of a carrier's progressive number, which many write with `PRO` before it."""
    return f"pro:{re.sub(r'^PRO[ #-]*', '', number, flags=re.IGNORECASE)}" if number else ""


def word(words: Mapping[str, str], code: str) -> str:
    """The word for a code; the code itself where there is none."""
    return words.get(code, code)
