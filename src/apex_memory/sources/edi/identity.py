"""The natural key of what a set is about, its version, and when it happened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from apex_memory.model import micros
from apex_memory.sources.edi.x12.envelope import Group, Interchange
from apex_memory.sources.edi.x12.fields import (
    Status,
    all_segments,
    carrier_code,
    first_segment,
    parse_statuses,
    shipment_number,
)
from apex_memory.sources.edi.x12.segments import Segment, element
from apex_memory.sources.edi.x12.values import StatedTime, parse_date, parse_time, to_utc

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_KEY = 300  # characters; of a longer key the first 200 and a hash remain
_PURPOSE_ORDER = {"00": 0, "04": 1, "05": 1, "01": 2}
"""Version of a 204 without an envelope, by B2A01."""


def is_cancel(segments: Sequence[Segment]) -> bool:
    """Return whether the set cancels a tender: a 204 whose B2A01 is 01."""
    purpose = element(first_segment(segments, "B2A"), 1)
    return element(segments[0], 1) == "204" and purpose == "01"


def tender_key(segments: Sequence[Segment], interchange: Interchange) -> str:
    """Return the key of the tender that a 204 makes, changes or cancels."""
    return _join("tender", carrier_code(segments, interchange.receiver), shipment_number(segments))


def document_key(segments: Sequence[Segment], interchange: Interchange, group: Group) -> str:
    """Return the business key of what a set is about; control numbers are no part of it.

    A tender and its changes have one key, as have an answer and its correction, an invoice and its corrections. A status
    has a key of its own; a report with several statuses has one key, made of all of them. A cancel has a key of its own.
    """
    return _join(*_key_parts(segments, interchange, group))


def _key_parts(
    segments: Sequence[Segment], interchange: Interchange, group: Group
) -> tuple[str, ...]:
    set_id = element(segments[0], 1)
    sending_carrier = carrier_code(segments, interchange.sender)
    number = shipment_number(segments)
    parts: tuple[str, ...]
    match set_id:
        case "204":
            kind = "cancellation" if is_cancel(segments) else "tender"
            parts = (kind, carrier_code(segments, interchange.receiver), number)
        case "990":
            parts = ("response", sending_carrier, number)
        case "214":
            number = number or f"PRO {element(first_segment(segments, 'B10'), 1)}"
            parts = ("status", sending_carrier, number, *_status_parts(segments))
        case "210":
            parts = ("invoice", sending_carrier, element(first_segment(segments, "B3"), 2))
        case "997":
            group_response = first_segment(segments, "AK1")
            group_id = (element(group_response, 1), element(group_response, 2))
            parts = ("acknowledgement", interchange.sender, interchange.receiver, *group_id)
        case _:
            digest = _sha256(repr([list(map(str.strip, segment)) for segment in segments[1:-1]]))
            parts = ("other", set_id, interchange.sender, group.function, digest[:32])
    return parts


def _status_parts(segments: Sequence[Segment]) -> tuple[str, ...]:
    keys = [_status_key(status) for status in parse_statuses(segments)]
    if len(keys) == 1:
        return keys[0]
    return (f"{len(keys)} statuses", _sha256(repr(sorted(keys)))[:16])


def _status_key(status: Status) -> tuple[str, ...]:
    return (status.line, f"{status.kind[0]}{status.code}", status.when.day, status.when.time)


def _join(*parts: str) -> str:
    return shorten(":".join(part.replace(":", "%3A") for part in parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def shorten(text: str) -> str:
    """Return the text as it can stand in a key: printable, at most 300 characters."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    if len(text) <= LONGEST_KEY:
        return text
    return f"{text[:200]}…{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def sent_at(interchange: Interchange, group: Group) -> tuple[datetime | None, bool]:
    """Return when a group was sent by GS or ISA, read as UTC, and whether its seconds are known."""
    for segment, day_place, time_place in ((group.header, 4, 5), (interchange.header, 9, 10)):
        day, time = (
            parse_date(element(segment, day_place)),
            parse_time(element(segment, time_place)),
        )
        if day and time:
            return to_utc(day, time, "UT"), len(element(segment, time_place)) >= 6
    return None, False


def document_version(
    segments: Sequence[Segment], interchange: Interchange, group: Group, place: int
) -> int:
    """Return the version of a set: when it was sent, in microseconds since 1970.

    GS and ISA give minutes, so the control number and `place`, the set's index in its interchange, order what was sent
    within a minute. Sets without an envelope have no such time: they are older than all that have one, and among them a
    cancel is newer than a tender.
    """
    sent, has_seconds = sent_at(interchange, group)
    if sent is None:
        return _PURPOSE_ORDER.get(element(first_segment(segments, "B2A"), 1), 0)
    digits = interchange.control if interchange.control.isdecimal() else "0"
    number = int(digits[-9:]) % (1_000 if has_seconds else 50_000)
    return micros(sent) + number * 1_000 + min(place, 999)


def occurred_at(segments: Sequence[Segment], interchange: Interchange, group: Group) -> datetime:
    """Return when what the set reports happened; else when it was sent; 1970 where neither is known."""
    sent, _ = sent_at(interchange, group)
    set_id = element(segments[0], 1)
    if set_id == "214":
        times = [status.when.at for status in parse_statuses(segments)]
        return max(filter(None, times), default=sent or EPOCH)
    if set_id == "210":
        return StatedTime(element(first_segment(segments, "B3"), 6)).at or sent or EPOCH
    if sent:
        return sent
    response_date = StatedTime(element(first_segment(segments, "B1"), 3))
    dates = [
        StatedTime(element(date, 2), element(date, 4), element(date, 5))
        for date in all_segments(segments, "G62")
    ]
    return next((time.at for time in (response_date, *dates) if time.at), EPOCH)
