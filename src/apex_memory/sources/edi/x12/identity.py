"""Which thing a set is about, which of its versions, and when it happened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from apex_memory.model import micros
from apex_memory.sources.edi.x12.checks import clock, date_of
from apex_memory.sources.edi.x12.envelope import Group, Interchange
from apex_memory.sources.edi.x12.fields import (
    Moment,
    Status,
    carrier,
    every,
    first,
    shipment,
    statuses,
    zoned,
)
from apex_memory.sources.edi.x12.segments import Segment, value

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_KEY = 300  # characters; a longer one is cut and told apart by its hash
_PURPOSE_RANK = {"00": 0, "04": 1, "05": 1, "01": 2}


def cancels(segments: Sequence[Segment]) -> bool:
    """Whether it takes a tender back."""
    return value(segments[0], 1) == "204" and value(first(segments, "B2A"), 1) == "01"


def tender_key(segments: Sequence[Segment], interchange: Interchange) -> str:
    """The key of the tender that a 204 makes, changes or cancels."""
    return _joined("tender", carrier(segments, interchange.receiver), shipment(segments))


def key(segments: Sequence[Segment], interchange: Interchange, group: Group) -> str:
    """The natural key of what a set is about: its business key, not its control numbers.

    A tender and its changes are one thing, as are an answer and its correction, an invoice and its corrections. A
    status is a thing of its own; a report with several is one, told by all of them. So is the cancelling of a tender.
    """
    set_id = value(segments[0], 1)
    incoming = carrier(segments, interchange.sender)
    parts: tuple[str, ...]
    match set_id:
        case "204" if cancels(segments):
            whom = carrier(segments, interchange.receiver)
            parts = ("cancellation", whom, shipment(segments))
        case "204":
            return tender_key(segments, interchange)
        case "990":
            parts = ("response", incoming, shipment(segments))
        case "214":
            number = shipment(segments) or f"PRO {value(first(segments, 'B10'), 1)}"
            parts = ("status", incoming, number, *_told(statuses(segments)))
        case "210":
            parts = ("invoice", incoming, value(first(segments, "B3"), 2))
        case "997":
            acknowledged = first(segments, "AK1")
            parts = ("acknowledgement", interchange.sender, interchange.receiver)
            parts += (value(acknowledged, 1), value(acknowledged, 2))
        case _:
            body = repr([[element.strip() for element in one] for one in segments[1:-1]])
            digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            parts = ("other", set_id, interchange.sender, group.function, digest)
    return _joined(*parts)


def _joined(*parts: str) -> str:
    return short(":".join(part.replace(":", "%3A") for part in parts))


def _told(reported: Sequence[Status]) -> tuple[str, ...]:
    keys = [(one.line, f"{one.kind[0]}{one.code}", one.when.day, one.when.time) for one in reported]
    if len(keys) == 1:
        return keys[0]
    digest = hashlib.sha256(repr(sorted(keys)).encode("utf-8", "surrogatepass")).hexdigest()
    return (f"{len(keys)} statuses", digest[:16])


def short(text: str) -> str:
    """The text as it can stand in a key."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    if len(text) <= LONGEST_KEY:
        return text
    return f"{text[:200]}…{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def sent_at(interchange: Interchange, group: Group) -> tuple[datetime | None, bool]:
    """When it was sent, by the group or the interchange, taken as UTC; and whether its seconds are known."""
    for segment, day, time in ((group.header, 4, 5), (interchange.header, 9, 10)):
        sent, given = date_of(value(segment, day)), clock(value(segment, time))
        if sent and given:
            return zoned(sent, given, "UT"), len(value(segment, time)) >= 6
    return None, False


def version(segments: Sequence[Segment], interchange: Interchange, group: Group, place: int) -> int:
    """Orders what is said of one thing by the time of sending, in microseconds.

    X12 tells minutes, so the control number and the place in the interchange order what was sent within one. Sets
    without an envelope have no such time: they count as older than all that have, a cancel as newer than a tender.
    """
    sent, precise = sent_at(interchange, group)
    if sent is None:
        return _PURPOSE_RANK.get(value(first(segments, "B2A"), 1), 0)
    digits = interchange.control if interchange.control.isdecimal() else "0"
    number = int(digits[-9:]) % (1_000 if precise else 50_000)
    return micros(sent) + number * 1_000 + min(place, 999)


def happened(segments: Sequence[Segment], interchange: Interchange, group: Group) -> datetime:
    """When what the set tells happened; when it was sent where it does not say; 1970 where nothing says."""
    sent, _ = sent_at(interchange, group)
    set_id = value(segments[0], 1)
    if set_id == "214":
        times = [one.when.at for one in statuses(segments)]
        return max(filter(None, times), default=sent or EPOCH)
    if set_id == "210":
        return Moment(value(first(segments, "B3"), 6)).at or sent or EPOCH
    stated = [Moment(value(first(segments, "B1"), 3))]
    stated += [
        Moment(value(one, 2), value(one, 4), value(one, 5)) for one in every(segments, "G62")
    ]
    return sent or next(_times(stated), EPOCH)


def _times(stated: Sequence[Moment]) -> Iterator[datetime]:
    yield from filter(None, (one.at for one in stated))
