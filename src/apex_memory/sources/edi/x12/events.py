"""A file taken apart: its interchanges, what is wrong with them, and the event that each set becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import MALFORMED, TOMBSTONE, Event, Priority
from apex_memory.sources.edi.x12.checks import MANDATORY, Verdict, judged
from apex_memory.sources.edi.x12.envelope import (
    Group,
    Interchange,
    TransactionSet,
    opened,
    repeated,
)
from apex_memory.sources.edi.x12.identity import (
    EPOCH,
    cancels,
    happened,
    key,
    sent_at,
    short,
    tender_key,
    version,
)
from apex_memory.sources.edi.x12.segments import read, value
from apex_memory.sources.pages import InboundFile
from apex_memory.sources.payloads import canonical, malformed_event

SOURCE, PRIORITY = "edi", Priority.P2
MOST_FINDINGS = 200
CANCELS = "cancels/"
"""Begins the id of the event that takes a cancelled tender away; the rest is the id of the set's own."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Interchanges with the verdicts on each group's sets, and all findings in words."""

    interchanges: Sequence[tuple[Interchange, Sequence[Sequence[Verdict]]]]
    findings: Sequence[str]

    def events(self) -> Iterator[Event]:
        """One a set, in the file's order; a cancel is followed by the end of what it cancels."""
        for interchange, verdicts in self.interchanges:
            place = 0
            for group, own in zip(interchange.groups, verdicts, strict=True):
                for one, verdict in zip(group.sets, own, strict=True):
                    event = _event(interchange, group, one, verdict, place)
                    yield event
                    if event.content_type != MALFORMED and cancels(one.segments):
                        yield _end(event, tender_key(one.segments, interchange))
                    place += 1

    @property
    def acknowledges(self) -> bool:
        """Whether it answers interchanges of ours: such a file may hold no set at all."""
        return any(one.acknowledgements for one, _ in self.interchanges)


def open_file(data: bytes) -> Opened:
    """Everything in a file. Never raises, whatever the bytes are."""
    parts, findings = read(data)
    found = []
    for part in parts:
        interchange = opened(part)
        verdicts = [[judged(one) for one in group.sets] for group in interchange.groups]
        found.append((interchange, verdicts))
        findings += _findings(interchange, verdicts)
    findings += repeated([interchange for interchange, _ in found])
    return Opened(found, findings[:MOST_FINDINGS])


def _findings(interchange: Interchange, verdicts: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    where = f"interchange {interchange.control}: " if interchange.header else ""
    for text in interchange.findings:
        yield where + text
    for answer in interchange.acknowledgements:
        yield f"{where}TA1 answers our interchange {value(answer, 1)}: {value(answer, 4)} {value(answer, 5)}"
    for group, own in zip(interchange.groups, verdicts, strict=True):
        for one, verdict in zip(group.sets, own, strict=True):
            for text in verdict.findings:
                inside = f"group {group.control}, " if group.header else ""
                yield f"{where}{inside}set {one.id} {one.control}: {text}"


def _event(
    interchange: Interchange, group: Group, one: TransactionSet, verdict: Verdict, place: int
) -> Event:
    control = short(f"{interchange.identity}/{group.control}/{one.id}:{one.control}")
    at = happened(one.segments, interchange, group)
    record = _record(interchange, group, one, verdict)
    event = Event(
        source=SOURCE,
        event_id=f"{control}#{one.digest()[:32]}",
        doc_key=key(one.segments, interchange, group),
        version=version(one.segments, interchange, group, place),
        occurred_at=at,
        payload=canonical(record),
        priority=PRIORITY,
    )
    if verdict.answer != "R" or (one.whole and one.id not in MANDATORY):
        return event
    # Under its own keys, so that the partner's mended version settles the dead letter by itself.
    refused = malformed_event(SOURCE, record, _refusal(one, verdict), at, PRIORITY)
    return replace(event, payload=refused.payload, content_type=refused.content_type)


def _end(cancel: Event, tender: str) -> Event:
    """The tombstone of a cancelled tender: what was sent before the cancel stays gone, what is sent after it counts."""
    return replace(
        cancel,
        event_id=CANCELS + cancel.event_id,
        doc_key=tender,
        payload=b"",
        content_type=TOMBSTONE,
    )


def _refusal(one: TransactionSet, verdict: Verdict) -> Rejected:
    return Rejected(
        f"set {one.id} {one.control} was refused: {verdict.reason}"[:500],
        remedy="ask the partner to correct it and send it again; the 997 said what is wrong",
    )


def _record(
    interchange: Interchange, group: Group, one: TransactionSet, verdict: Verdict
) -> dict[str, Any]:
    sent, _ = sent_at(interchange, group)
    return {
        "segments": [[element.strip() for element in segment] for segment in one.segments],
        "envelope": {
            "sender": interchange.sender,
            "receiver": interchange.receiver,
            "interchange": interchange.control,
            "group": group.control,
            "set": one.control,
            "sha256": one.digest(),
        },
        "sent_at": sent.isoformat() if sent else "",
        "test": value(interchange.header, 15) == "T",
        "answer": verdict.answer,
        "findings": [*interchange.findings[:20], *verdict.findings[:50]],
    }


def unreadable(file: InboundFile, reason: Rejected) -> Event:
    """A file in which there is no set, as the dead letter that tells an operator of it."""
    record = {
        "file": file.name,
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "bytes": len(file.data),
        "begins": file.data[:200].decode("latin-1"),
    }
    return malformed_event(SOURCE, record, reason, EPOCH, PRIORITY)
