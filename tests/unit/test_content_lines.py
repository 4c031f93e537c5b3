"""Calendars and contacts: folded lines, escapes, parameters, binary values, hostile ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.model import File
from apex_memory.pipeline.content_lines import read_content_lines
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import parse
from tests.extraction import extract

CALENDAR = b"""BEGIN:VCALENDAR\r
BEGIN:VEVENT\r
DTSTART;TZID=America/Chicago:20260305T140000\r
DTEND:20260305T210000Z\r
DUE;VALUE=DATE:20260306\r
SUMMARY;LANGUAGE=en-us:Pickup at Harbor\\, Memphis\\; load SHP-1000\r
 45 for caf\xc3\r
 \xa9\r
ORGANIZER;CN="Ortiz, Dana":mailto:dana@harbor.example\r
ATTENDEE;CN=Bob Lee;PARTSTAT=DECLINED:MAILTO:bob@harbor.example\r
DESCRIPTION:Ring (901) 555-01\r
\t43\\nDock 7 \\\\ gate\r
X-NUMBER:20260307\r
END:VEVENT\r
END:VCALENDAR\r
"""
CONTACT = b"""BEGIN:VCARD\r
VERSION:2.1\r
N;CHARSET=UTF-8;ENCODING=QUOTED-PRINTABLE:M=C3=BC=\r
ller;J=C3=B6rg;;;\r
FN;CHARSET=ISO-8859-1;QUOTED-PRINTABLE:J=F6rg\r
item1.TEL;TYPE=CELL:9015550145\r
TEL;VALUE=uri:tel:+49-30-123456\r
ADR;TYPE=WORK:;;12 Dock Rd;Memphis;TN;38103;USA\r
PHOTO;ENCODING=b;TYPE=JPEG:/9j/4AAQ\r
 SkZJRg\r
END:VCARD\r
"""


def text_of(data: bytes) -> str:
    lines = read_content_lines(data, None)
    assert lines is not None
    return lines.text


def test_folded_lines_of_a_calendar_are_whole_and_its_times_readable() -> None:
    assert text_of(CALENDAR).splitlines()[2:-2] == [
        "DTSTART:2026-03-05 14:00 America/Chicago",
        "DTEND:2026-03-05 21:00 UTC",
        "DUE:2026-03-06",
        "SUMMARY:Pickup at Harbor, Memphis; load SHP-100045 for café",
        "ORGANIZER:Ortiz, Dana <dana@harbor.example>",
        "ATTENDEE:Bob Lee <bob@harbor.example> (DECLINED)",
        "DESCRIPTION:Ring (901) 555-0143",
        "Dock 7 \\ gate",
        "X-NUMBER:20260307",
    ]


def test_contacts_are_decoded_and_lose_their_pictures() -> None:
    assert text_of(CONTACT).splitlines()[1:-1] == [
        "VERSION:2.1",
        "N:Müller, Jörg",
        "FN:Jörg",
        "TEL:9015550145 (CELL)",
        "TEL:+49-30-123456",
        "ADR:12 Dock Rd, Memphis, TN, 38103, USA (WORK)",
    ]


@pytest.mark.parametrize(("name", "kind"), [("a.ics", ""), ("a", "text/calendar"), ("a.txt", "")])
def test_identifiers_days_and_people_of_a_calendar_are_found(name: str, kind: str) -> None:
    parsed = parse(File(name, kind, CALENDAR), EventBudget(ReaderLimits()))
    assert parsed.title == "Pickup at Harbor, Memphis; load SHP-100045 for café"
    found = {item.object or item.value for item in extract(parsed.text, ())}
    assert {"shipment:SHP-100045", "phone:+19015550143", "2026-03-05", "2026-03-06"} <= found
    assert {"email:dana@harbor.example", "email:bob@harbor.example"} <= found


def test_other_texts_are_left_alone() -> None:
    assert read_content_lines(b"Note\nBEGIN:VCARD\n N:x", None) is None


@pytest.mark.parametrize(
    "data",
    [
        b"A;" * 200_000,
        b'A;B="' * 100_000,
        b"A;QUOTED-PRINTABLE:=\n" * 20_000,
        b"A;QUOTED-PRINTABLE:" + b"=\n" * 200_000,
        b"\n " * 200_000,
    ],
)
def test_hostile_lines_take_linear_time(data: bytes) -> None:
    started = time.process_time()
    assert read_content_lines(b"BEGIN:VCARD\n" + data, None) is not None
    assert time.process_time() - started < 2


@given(st.text())
def test_any_value_is_read(value: str) -> None:
    assert text_of(b"BEGIN:VCARD\nNOTE:" + value.encode("utf-8", "replace")).startswith("BEGIN")
