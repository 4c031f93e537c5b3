"""The natural key of what a set is about, its version, and when it happened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from apex_memory.model import micros
from apex_memory.sources.edi.x12.codes import ESTIMATES
from apex_memory.sources.edi.x12.envelope import Group, Interchange
from apex_memory.sources.edi.x12.fields import (
    Status,
    all_segments,
    carrier_code,
    first_segment,
    parse_parties,
    parse_statuses,
    shipment_number,
)
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import (
    StatedTime,
    is_repeated_hour,
    local_time,
    parse_date,
    parse_time,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEST_PREFIX = "test:"
"""Begins the keys of sets in test interchanges, so that they never replace or delete real documents."""
LONGEST_KEY = 300  # characters; of a longer key the first 200 and a hash remain
_PURPOSE_ORDER = {"00": 0, "04": 1, "05": 1, "01": 2}
"""Order of 204s without an envelope, by B2A01."""
_UNIDENTIFIED = "unidentified"
"""Begins the keys of sets that name nothing."""
_NUMBER_REFERENCES = ("BM", "LO", "SI", "CR")
"""Reference qualifiers under which shippers repeat the shipment's number, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Interchange and group of a set, and when it was sent by them.

    GS and ISA have no zone, so `sent` is their local time read as UTC; None where neither has a readable time.
    """

    interchange: Interchange
    group: Group
    sent: datetime | None
    has_seconds: bool

    @classmethod
    def of(cls, interchange: Interchange, group: Group) -> Envelope:
        for header, day_place, time_place in ((group.header, 4, 5), (interchange.header, 9, 10)):
            day = parse_date(element(header, day_place))
            time = parse_time(element(header, time_place))
            if day and time:
                sent = local_time(day, time).replace(tzinfo=UTC)
                return cls(interchange, group, sent, len(element(header, time_place)) >= 6)
        return cls(interchange, group, None, has_seconds=False)

    @property
    def sender(self) -> str:
        """ISA06; GS02 where there is no ISA."""
        return self.interchange.sender or element(self.group.header, 2)

    @property
    def receiver(self) -> str:
        """ISA08; GS03 where there is no ISA."""
        return self.interchange.receiver or element(self.group.header, 3)

    @property
    def number(self) -> int:
        """The last nine digits of ISA13, or of GS06 where there is no ISA; 0 if it is no number."""
        control = self.interchange.control or self.group.control
        return int(control[-9:]) if control.isascii() and control.isdecimal() else 0

    @property
    def is_in_repeated_hour(self) -> bool:
        """Whether its time of sending is one that the sender's clock may have shown twice."""
        return self.sent is not None and is_repeated_hour(self.sent.replace(tzinfo=None))


def is_cancel(segments: Sequence[Segment]) -> bool:
    """Return whether the set cancels a tender: a 204 whose B2A01 is 01."""
    purpose = element(first_segment(segments, "B2A"), 1)
    return element(segments[0], 1) == "204" and purpose == "01"


def tender_key(segments: Sequence[Segment], envelope: Envelope) -> str:
    """Return the key of the tender that a 204 makes, changes or cancels."""
    carrier = carrier_code(segments, envelope.receiver)
    return _join("tender", carrier, shipment_number(segments))


def document_key(segments: Sequence[Segment], envelope: Envelope) -> str:
    """Return the business key of what a set is about; control numbers are no part of it.

    A tender and its changes have one key, as have an answer and its correction, an invoice and its corrections. A cancel
    has a key of its own. A status report has the key of what it reports: shipment, PRO, references, and each status with
    its time, place and unit; so its correction changes a reason, a quantity or a note. An acknowledgement has the key of
    the sets that it acknowledges.

    A set without the number that its key needs takes it from a reference that repeats it; without one its key is its
    content.
    """
    return _join(*_key_parts(segments, envelope))


def names_nothing(key: str) -> bool:
    """Return whether the key of a set is its content, because the set has neither a number nor a reference that repeats it."""
    return key.startswith(f"{_UNIDENTIFIED}:")


def _key_parts(segments: Sequence[Segment], envelope: Envelope) -> tuple[str, ...]:
    set_id = element(segments[0], 1)
    match set_id:
        case "204":
            kind = "cancellation" if is_cancel(segments) else "tender"
            carrier, number = carrier_code(segments, envelope.receiver), _number(segments)
        case "990":
            kind = "response"
            carrier, number = carrier_code(segments, envelope.sender), _number(segments)
        case "210":
            kind = "invoice"
            carrier = carrier_code(segments, envelope.sender)
            number = element(first_segment(segments, "B3"), 2)
        case "214":
            return _status_report_parts(segments, envelope)
        case "997":
            return _acknowledgement_parts(segments, envelope)
        case _:
            return _content_parts("other", segments, envelope)
    if number:
        return (kind, carrier, number)
    return _content_parts(_UNIDENTIFIED, segments, envelope)


def _number(segments: Sequence[Segment]) -> str:
    """Return the shipment's number; where it is missing, the reference that repeats it."""
    if number := shipment_number(segments):
        return number
    references = dict(_references(segments))
    return next((references[name] for name in _NUMBER_REFERENCES if name in references), "")


def _references(segments: Sequence[Segment]) -> Iterator[tuple[str, str]]:
    """Yield qualifier and number of each L11 and N9."""
    for reference in all_segments(segments, "L11"):
        yield element(reference, 2), element(reference, 1)
    for reference in all_segments(segments, "N9"):
        yield element(reference, 1), element(reference, 2)


def _status_report_parts(segments: Sequence[Segment], envelope: Envelope) -> tuple[str, ...]:
    carrier = carrier_code(segments, envelope.sender)
    pro = element(first_segment(segments, "B10"), 1)
    number = shipment_number(segments)
    if not number and not pro:
        return _content_parts(_UNIDENTIFIED, segments, envelope)
    about = {f"{qualifier}={value}".upper() for qualifier, value in _references(segments)}
    statuses = parse_statuses(segments)
    if not all(status.city or status.position for status in statuses):
        # Then only a party can distinguish one stop from another.
        about |= {
            f"{party.role}={party.number or party.name}".upper()
            for party in parse_parties(segments)
        }
    keys = sorted(_status_key(status) for status in statuses)
    if len(keys) == 1:
        status_parts = keys[0]
    else:
        status_parts = (f"{len(keys)} statuses", _sha256(repr(keys))[:16])
    return ("status", carrier, number, *status_parts, pro, ",".join(sorted(about)))


def _status_key(status: Status) -> tuple[str, ...]:
    if status.city or status.state:
        place = f"{status.city} {status.state}".strip().upper()
    elif status.position:
        place = f"{status.position[0]} {status.position[1]}"
    else:
        place = ""
    code = f"{status.kind[0]}{status.code}"
    return (status.line, code, status.when.day, status.when.time, place, status.unit.upper())


def _acknowledgement_parts(segments: Sequence[Segment], envelope: Envelope) -> tuple[str, ...]:
    if not envelope.sender:
        return _content_parts("acknowledgement", segments, envelope)
    group = first_segment(segments, "AK1")
    sets = [f"{element(item, 1)}/{element(item, 2)}" for item in all_segments(segments, "AK2")]
    group_id = (element(group, 1), element(group, 2))
    return ("acknowledgement", envelope.sender, envelope.receiver, *group_id, ",".join(sets))


def _content_parts(kind: str, segments: Sequence[Segment], envelope: Envelope) -> tuple[str, ...]:
    rows = ["*".join(map(str.strip, segment)).rstrip("*") for segment in segments[1:-1]]
    set_id = element(segments[0], 1)
    return (kind, set_id, envelope.sender, envelope.group.function, _sha256("\n".join(rows))[:32])


def _join(*parts: str) -> str:
    return shorten(":".join(part.replace(":", "%3A") for part in parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shorten(text: str) -> str:
    """Return the text as it can stand in a key: printable, at most 300 characters."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    if len(text) <= LONGEST_KEY:
        return text
    return f"{text[:200]}…{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def document_version(segments: Sequence[Segment], envelope: Envelope, place: int) -> int:
    """Return the version of a set: when it was sent, in microseconds since 1970.

    GS and ISA give minutes, so the control number and `place`, the set's index in its interchange, order what was sent
    within a minute. The hour that the end of daylight time repeats is ordered by control number alone: a clock that
    shows 01:50 and then 01:05 has not gone back.
    """
    sent, number = envelope.sent, envelope.number
    if sent is None:
        return _version_without_time(segments, place)
    if envelope.is_in_repeated_hour:
        hour = sent.replace(minute=0, second=0, microsecond=0)
        return micros(hour) + number % 1_000_000 * 3_600 + sent.minute * 60 + min(place, 59)
    number %= 1_000 if envelope.has_seconds else 50_000
    return micros(sent) + number * 1_000 + min(place, 999)


def _version_without_time(segments: Sequence[Segment], place: int) -> int:
    """Return a version below all that have a time of sending.

    It is made of the date in the set, then of what supersedes what by its purpose, then of the order in the file.
    """
    invoice = first_segment(segments, "B3")
    dates = (element(first_segment(segments, "B1"), 3), element(invoice, 6))
    day = next(filter(None, map(parse_date, dates)), EPOCH.date())
    purpose = _PURPOSE_ORDER.get(element(first_segment(segments, "B2A"), 1), 0)
    if element(invoice, 8):  # a correction
        purpose = 1
    days = (day - date(1970, 1, 1)) // timedelta(days=1)
    return (days * 10 + purpose) * 1_000 + min(place, 999)


def occurred_at(segments: Sequence[Segment], envelope: Envelope) -> datetime:
    """Return when what the set reports happened; else when it was sent; 1970 where neither is known.

    Estimates and appointments of a status report lie ahead: they are no time at which something happened.
    """
    set_id = element(segments[0], 1)
    if set_id == "214":
        return _status_time(parse_statuses(segments), envelope.sent)
    if set_id == "210":
        return StatedTime(element(first_segment(segments, "B3"), 6)).at or envelope.sent or EPOCH
    if envelope.sent:
        return envelope.sent
    response_date = StatedTime(element(first_segment(segments, "B1"), 3))
    dates = [
        StatedTime(element(item, 2), element(item, 4), element(item, 5))
        for item in all_segments(segments, "G62")
    ]
    return next((time.at for time in (response_date, *dates) if time.at), EPOCH)


def _status_time(statuses: Sequence[Status], sent: datetime | None) -> datetime:
    happened = [
        status.when.at
        for status in statuses
        if status.kind == "status" and status.code not in ESTIMATES
    ]
    if known := list(filter(None, happened)):
        return max(known)
    if sent:
        return sent
    return max(filter(None, (status.when.at for status in statuses)), default=EPOCH)
