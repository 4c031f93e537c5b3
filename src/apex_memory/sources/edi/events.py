"""X12 files as events: one for each set, and a tombstone after a set that cancels a tender."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import MALFORMED, TOMBSTONE, Event, Priority
from apex_memory.sources.edi.identity import (
    EPOCH,
    document_key,
    document_version,
    is_cancel,
    occurred_at,
    sent_at,
    shorten,
    tender_key,
)
from apex_memory.sources.edi.x12.checks import MANDATORY_SEGMENTS, Verdict, check_set
from apex_memory.sources.edi.x12.envelope import (
    Group,
    Interchange,
    TransactionSet,
    find_conflicts,
    parse_envelopes,
)
from apex_memory.sources.edi.x12.segments import element, read_parts
from apex_memory.sources.pages import InboundFile
from apex_memory.sources.payloads import canonical, malformed_event

SOURCE, PRIORITY = "edi", Priority.P2
MOST_FINDINGS = 200  # of a file
MOST_INTERCHANGE_FINDINGS, MOST_SET_FINDINGS = 20, 50  # kept with each set
TOMBSTONE_PREFIX = "cancels/"
"""Begins the id of the event that deletes a cancelled tender; the cancelling set's event id follows."""


@dataclass(frozen=True, slots=True)
class CheckedSet:
    """A set with its envelopes, its verdict, and its index in the interchange (from 0)."""

    interchange: Interchange
    group: Group
    set: TransactionSet
    verdict: Verdict
    place: int


@dataclass(frozen=True, slots=True)
class X12File:
    """The interchanges of a file, the verdicts on each group's sets, and all findings in words."""

    interchanges: Sequence[tuple[Interchange, Sequence[Sequence[Verdict]]]]
    findings: Sequence[str]

    def sets(self) -> Iterator[CheckedSet]:
        """Yield the sets in the file's order."""
        for interchange, verdicts in self.interchanges:
            yield from _checked_sets(interchange, verdicts)

    def events(self) -> Iterator[Event]:
        """Yield an event for each set, and a tombstone of the tender after each cancel."""
        for checked in self.sets():
            event = _set_event(checked)
            yield event
            segments = checked.set.segments
            if event.content_type != MALFORMED and is_cancel(segments):
                yield _tombstone(event, tender_key(segments, checked.interchange))

    @property
    def has_acknowledgements(self) -> bool:
        """Whether it holds a TA1. Such a file may hold no set at all."""
        return any(interchange.acknowledgements for interchange, _ in self.interchanges)


def parse_file(data: bytes) -> X12File:
    """Return the content of a file, checked. Never raises, whatever the bytes are."""
    parts, findings = read_parts(data)
    checked = []
    for part in parts:
        interchange = parse_envelopes(part)
        verdicts = [[check_set(item) for item in group.sets] for group in interchange.groups]
        checked.append((interchange, verdicts))
        findings += _findings(interchange, verdicts)
    findings += find_conflicts([interchange for interchange, _ in checked])
    return X12File(checked, findings[:MOST_FINDINGS])


def _checked_sets(
    interchange: Interchange, verdicts: Sequence[Sequence[Verdict]]
) -> Iterator[CheckedSet]:
    place = 0
    for group, group_verdicts in zip(interchange.groups, verdicts, strict=True):
        for item, verdict in zip(group.sets, group_verdicts, strict=True):
            yield CheckedSet(interchange, group, item, verdict, place)
            place += 1


def _findings(interchange: Interchange, verdicts: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    where = f"interchange {interchange.control}: " if interchange.header else ""
    for finding in interchange.findings:
        yield where + finding
    for ta1 in interchange.acknowledgements:
        yield f"{where}TA1 for our interchange {element(ta1, 1)}: {element(ta1, 4)} {element(ta1, 5)}"
    for checked in _checked_sets(interchange, verdicts):
        in_group = f"group {checked.group.control}, " if checked.group.header else ""
        for finding in checked.verdict.findings:
            yield f"{where}{in_group}set {checked.set.id} {checked.set.control}: {finding}"


def _set_event(checked: CheckedSet) -> Event:
    interchange, group, item = checked.interchange, checked.group, checked.set
    control = shorten(f"{interchange.identity}/{group.control}/{item.id}:{item.control}")
    at = occurred_at(item.segments, interchange, group)
    record = _record(checked)
    event = Event(
        source=SOURCE,
        event_id=f"{control}#{item.digest()[:32]}",
        doc_key=document_key(item.segments, interchange, group),
        version=document_version(item.segments, interchange, group, checked.place),
        occurred_at=at,
        payload=canonical(record),
        priority=PRIORITY,
    )
    is_refused = checked.verdict.outcome == "R"
    is_other_kind = item.is_complete and item.id not in MANDATORY_SEGMENTS
    if not is_refused or is_other_kind:
        return event
    # Under its own keys, so that the partner's corrected version settles the dead letter.
    refused = malformed_event(SOURCE, record, _refusal(checked), at, PRIORITY)
    return replace(event, payload=refused.payload, content_type=refused.content_type)


def _tombstone(cancel: Event, tender: str) -> Event:
    """Return the tombstone of a cancelled tender: what was sent before the cancel stays deleted, what is later counts."""
    return replace(
        cancel,
        event_id=TOMBSTONE_PREFIX + cancel.event_id,
        doc_key=tender,
        payload=b"",
        content_type=TOMBSTONE,
    )


def _refusal(checked: CheckedSet) -> Rejected:
    item, reason = checked.set, checked.verdict.reason
    return Rejected(
        f"set {item.id} {item.control} was refused: {reason}"[:500],
        remedy="ask the partner to correct it and send it again; the 997 names the errors",
    )


def _record(checked: CheckedSet) -> dict[str, Any]:
    """Return the payload of a set's event."""
    interchange, group, item = checked.interchange, checked.group, checked.set
    sent, _ = sent_at(interchange, group)
    return {
        "segments": [list(map(str.strip, segment)) for segment in item.segments],
        "envelope": {
            "sender": interchange.sender,
            "receiver": interchange.receiver,
            "interchange": interchange.control,
            "group": group.control,
            "set": item.control,
            "sha256": item.digest(),
        },
        "sent_at": sent.isoformat() if sent else "",
        "test": element(interchange.header, 15) == "T",
        "answer": checked.verdict.outcome,
        "findings": [
            *interchange.findings[:MOST_INTERCHANGE_FINDINGS],
            *checked.verdict.findings[:MOST_SET_FINDINGS],
        ],
    }


def unreadable_file_event(file: InboundFile, reason: Rejected) -> Event:
    """Return the dead letter of a file that holds no set."""
    record = {
        "file": file.name,
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "bytes": len(file.data),
        "begins": file.data[:200].decode("latin-1"),
    }
    return malformed_event(SOURCE, record, reason, EPOCH, PRIORITY)
