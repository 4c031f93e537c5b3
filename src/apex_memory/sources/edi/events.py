"""X12 files as events: one for each set, and a tombstone after a set that cancels a tender."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import TOMBSTONE, Event, Priority
from apex_memory.sources.edi.identity import (
    EPOCH,
    TEST_PREFIX,
    Envelope,
    document_key,
    document_version,
    is_cancel,
    names_nothing,
    occurred_at,
    shorten,
    tender_key,
)
from apex_memory.sources.edi.x12.checks import MANDATORY_SEGMENTS, Verdict, check_set
from apex_memory.sources.edi.x12.envelope import (
    Interchange,
    TransactionSet,
    find_repetitions,
    parse_envelopes,
)
from apex_memory.sources.edi.x12.segments import element, read_parts
from apex_memory.sources.pages import InboundFile
from apex_memory.sources.payloads import canonical, malformed_event

SOURCE, PRIORITY = "edi", Priority.P2
MAX_SETS = 10_000  # of a file; as many groups and interchanges
MOST_FINDINGS = 200  # of a file
MOST_INTERCHANGE_FINDINGS, MOST_SET_FINDINGS = 20, 50  # kept with each set
TOMBSTONE_PREFIX = "cancels/"
"""Begins the id of the event that deletes a cancelled tender; the cancelling set's event id follows."""
_ENVELOPES = ("ISA", "GS", "ST", "SE", "GE", "IEA", "TA1")
_SET_START = re.compile(rb"([^\w ])ST(?!\1)[^\w\s]")
"""What may begin a set in bytes whose delimiters are not known: `~ST*`. `*ST*` is an element."""


@dataclass(frozen=True, slots=True)
class CheckedSet:
    """A set with its envelope, its verdict, and its index in the interchange (from 0)."""

    envelope: Envelope
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

    def events(
        self, *, acknowledged: Callable[[Interchange], bool] | None = None
    ) -> Iterator[Event]:
        """Yield an event for each set, and a tombstone of the tender after each cancel.

        `acknowledged` returns whether a 997 is written for an interchange, which the dead letter of a refused set then
        refers to; without it none is. A set of a test interchange has a key of its own, deletes nothing, and is no dead letter.
        """
        for checked in self.sets():
            interchange, segments = checked.envelope.interchange, checked.set.segments
            event = _set_event(checked)
            if interchange.is_test:
                yield replace(event, doc_key=shorten(TEST_PREFIX + event.doc_key))
                continue
            if _is_refused(checked):
                has_reply = acknowledged is not None and acknowledged(interchange)
                yield _refused_event(event, checked, acknowledged=has_reply)
                continue
            yield event
            if is_cancel(segments):
                yield _tombstone(event, tender_key(segments, checked.envelope))

    @property
    def has_acknowledgements(self) -> bool:
        """Whether it holds a TA1. Such a file may hold no set at all."""
        return any(interchange.acknowledgements for interchange, _ in self.interchanges)


def parse_file(data: bytes) -> X12File:
    """Return the content of a file, checked. Raises `Rejected` for more than `MAX_SETS` sets, and nothing else, whatever the bytes are."""
    # Far more than that are refused before the file is taken apart, which costs 30 times its size.
    _check_count("ST", sum(1 for _ in _SET_START.finditer(data)), 5 * MAX_SETS)
    parts, part_findings = read_parts(data)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(segment[0] for segment in part.segments)
    for name in _ENVELOPES:
        _check_count(name, counts[name], MAX_SETS)
    checked = []
    findings_by_part: list[Iterable[str]] = [part_findings]
    for part in parts:
        interchange = parse_envelopes(part)
        verdicts = [list(map(check_set, group.sets)) for group in interchange.groups]
        checked.append((interchange, verdicts))
        findings_by_part.append(_findings(interchange, verdicts))
    findings_by_part.append(find_repetitions([interchange for interchange, _ in checked]))
    every = chain.from_iterable(findings_by_part)
    findings = list(islice(every, MOST_FINDINGS))
    if more := sum(1 for _ in every):
        findings[-1] = f"{more + 1} more findings"
    return X12File(checked, findings)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise Rejected(
            f"{count:,} segments {name} in one file, allowed are {MAX_SETS:,}",
            remedy="send the sets in several files",
        )


def _checked_sets(
    interchange: Interchange, verdicts: Sequence[Sequence[Verdict]]
) -> Iterator[CheckedSet]:
    place = 0
    for group, group_verdicts in zip(interchange.groups, verdicts, strict=True):
        envelope = Envelope.of(interchange, group)
        for item, verdict in zip(group.sets, group_verdicts, strict=True):
            yield CheckedSet(envelope, item, verdict, place)
            place += 1


def _findings(interchange: Interchange, verdicts: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    """Yield what is to be known of an interchange: itself first, then its sets, in the order of the file."""
    where = f"interchange {interchange.control}: " if interchange.header else ""
    if interchange.is_test:
        yield f"{where}a test (ISA15 is T): its sets are kept apart from real ones"
    for finding in interchange.findings:
        yield where + finding
    for ta1 in interchange.acknowledgements:
        yield f"{where}TA1 for our interchange {element(ta1, 1)}: {element(ta1, 4)} {element(ta1, 5)}"
    for group in interchange.groups:
        if Envelope.of(interchange, group).is_in_repeated_hour:
            yield (
                f"{where}group {group.control} was sent in the hour that the end of daylight time repeats:"
                " its sets are ordered by control number"
            )
    for checked in _checked_sets(interchange, verdicts):
        group = checked.envelope.group
        in_group = f"group {group.control}, " if group.header else ""
        for finding in checked.verdict.findings:
            yield f"{where}{in_group}set {checked.set.id} {checked.set.control}: {finding}"


def _set_event(checked: CheckedSet) -> Event:
    envelope, item = checked.envelope, checked.set
    control = f"{envelope.interchange.identity}/{envelope.group.control}/{item.id}:{item.control}"
    return Event(
        source=SOURCE,
        event_id=f"{shorten(control)}#{item.digest()[:32]}",
        doc_key=document_key(item.segments, envelope),
        version=document_version(item.segments, envelope, checked.place),
        occurred_at=occurred_at(item.segments, envelope),
        payload=canonical(_record(checked)),
        priority=PRIORITY,
    )


def _is_refused(checked: CheckedSet) -> bool:
    """Return whether a set becomes a dead letter. A complete set of another kind is rejected by its 997, but kept unread."""
    is_other_kind = checked.set.is_complete and checked.set.id not in MANDATORY_SEGMENTS
    return checked.verdict.outcome == "R" and not is_other_kind


def _refused_event(event: Event, checked: CheckedSet, *, acknowledged: bool) -> Event:
    """Return the dead letter of a set, under the set's own keys, so that its correction supersedes it."""
    item, reason = checked.set, checked.verdict.reason
    remedy = "ask the partner to correct it and send it again"
    if names_nothing(event.doc_key):
        remedy += (
            ", then discard this: it names nothing by which its correction could be recognised"
        )
    if acknowledged and checked.envelope.group.header:
        remedy += "; the 997 names the errors"
    refusal = Rejected(
        f"set {item.id} {item.control} was refused: {reason}"[:500],
        remedy=remedy,
    )
    refused = malformed_event(SOURCE, _record(checked), refusal, event.occurred_at, PRIORITY)
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


def _record(checked: CheckedSet) -> dict[str, Any]:
    """Return the payload of a set's event."""
    envelope, item = checked.envelope, checked.set
    interchange = envelope.interchange
    return {
        "segments": [list(map(str.strip, segment)) for segment in item.segments],
        "envelope": {
            "sender": envelope.sender,
            "receiver": envelope.receiver,
            "interchange": interchange.control,
            "group": envelope.group.control,
            "function": envelope.group.function,
            "set": item.control,
            "sha256": item.digest(),
        },
        "sent_at": envelope.sent.isoformat() if envelope.sent else "",
        "test": interchange.is_test,
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
