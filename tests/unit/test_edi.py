"""Carriers' EDI: what sets become, what is answered, and how files are picked up."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, TOMBSTONE, Assertion, Document, Event
from apex_memory.simulate.edi.simulator import PASSWORD, EdiSimulator
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import Request
from apex_memory.sources.edi.source import Edi
from apex_memory.sources.edi.x12.checks import cents, clock, date_of
from apex_memory.sources.edi.x12.fields import zoned
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, Page, PullContext, TimeRange
from apex_memory.sources.registry import load
from tests.unit.x12_files import (
    ACCEPTED,
    INVOICE,
    REJECTED,
    RESPONSE,
    STATUS,
    STATUS_FILE,
    TENDER,
    counted,
    file,
    group,
    interchange,
)

LINK = cast(VendorClient, None)  # a batch source reaches its partners by itself


def edi(**settings: Any) -> Edi:
    source = load({"edi": settings})["edi"]
    assert isinstance(source, Edi)
    return source


EDI = edi()
CHANGE, CANCEL = (TENDER.replace("B2A*00", f"B2A*{purpose}") for purpose in ("04", "01"))


def unpacked(text: str, source: Edi = EDI) -> tuple[list[Event], list[str], list[str]]:
    """Events, the replies' bodies and findings."""
    found = source.unpack(InboundFile("x.edi", text.encode()))
    replies = [one.data.decode() for one in found.replies]
    return list(found.events), replies, list(found.findings)


def only(text: str) -> Event:
    (event,) = unpacked(text)[0]
    return event


def first(text: str) -> Event:
    return unpacked(text)[0][0]


def told(text: str) -> Document:
    return EDI.document(first(text))


def sets_of(reply: str) -> str:
    """What stands between GS and GE."""
    return reply[reply.index("ST*") : reply.index("GE*")]


# What is answered


def test_the_answer_to_a_good_file() -> None:
    _, (reply,), findings = unpacked(STATUS_FILE)
    assert sets_of(reply) == ACCEPTED
    assert findings == []
    assert reply.startswith(
        "ISA*00*          *00*          *ZZ*APEXSHIPPER    *02*NWTR           *251101*0830*U*00401*"
    )
    assert len(reply.split("~")[0]) == 105


def test_the_answer_to_two_groups_one_of_them_bad() -> None:
    bad = INVOICE.replace("20251103*124500*", "20251103*1,245.00*")
    text = interchange(4711, group("QM", 4711, STATUS), group("IM", 4712, bad))
    events, (reply,), findings = unpacked(text)
    assert sets_of(reply) == ACCEPTED + REJECTED
    assert [event.content_type for event in events] == ["application/json", MALFORMED]
    assert any("B307 has characters that its type does not allow: 1,245.00" in f for f in findings)


def test_the_same_file_gets_the_same_answer_under_the_same_name() -> None:
    first = EDI.unpack(InboundFile("a.edi", STATUS_FILE.encode())).replies
    again = edi().unpack(InboundFile("b.txt", STATUS_FILE.replace("\n", "\r\n").encode())).replies
    other = EDI.unpack(InboundFile("a.edi", STATUS_FILE.replace("0815", "0816").encode())).replies
    assert first == again
    assert first[0].name.startswith("997_NWTR_000004711_")
    assert other[0].name != first[0].name


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (file("QM", STATUS.replace("SE*16", "SE*12")), "AK5*E*4~AK9*E*1*1*1~"),
        (file("QM", STATUS.replace("SE*16*0001", "SE*16*0002")), "AK5*E*3~AK9*E*1*1*1~"),
        (file("QM", STATUS.replace("SE*16*0001", "SE*19*0002")), "AK5*R*4*3~AK9*R*1*1*0~"),
        (file("QM", STATUS.split("SE*")[0]), "AK5*R*2~AK9*R*1*1*0~"),
        (file("QM", STATUS, STATUS.split("SE*")[0].replace("0001", "0002")), "AK9*P*2*2*1~"),
        (file("QM", STATUS).replace("GE*1*", "GE*3*"), "AK5*A~AK9*E*3*1*1*5~"),
        (file("QM", STATUS).replace("GE*1*4711", "GE*1*1"), "AK5*A~AK9*E*1*1*1*4~"),
        (file("QM", STATUS).split("GE*")[0], "AK5*A~AK9*E*1*1*1*3~"),
        (file("PO", "ST*850*0001~BEG*00~SE*3*0001~"), "AK2*850*0001~AK5*R*1~AK9*R*1*1*0~"),
        (file("QM", counted(STATUS.replace("B10*", "B9*"))), "AK3*B10*2**3~AK5*R*5~"),
        (file("QM", STATUS.replace("*NWTR~L11", "~L11")), "AK3*B10*2**8~AK4*3*140*1~AK5*E*5~"),
        (file("QM", STATUS.replace("PRO778812*SHP-100045", "*")), "AK4*2*145*2~AK5*R*5~"),
        (file("QM", STATUS.replace("*20251101*0815", "*20251301*0815")), "AK4*5*373*8*20251301~AK5*E*5~"),
        (file("QM", STATUS.replace("*20251101*0815", "*20251101*2515")), "AK4*6*337*9*2515~AK5*E*5~"),
        (file("QM", STATUS.replace("AT7*AF*NS**", "AT7*AF*NS*AA*")), "AK4*3*1652*10*AA~AK5*E*5~"),
        (file("QM", STATUS.replace("AT7*AF*NS", "AT7**")), "AK4*1*1650*2~AK5*E*5~"),
        (file("QM", STATUS.replace("*NWTR~L11", "*NWTRX~L11")), "AK4*3*140*5*NWTRX~AK5*E*5~"),
        (file("QM", STATUS.replace("MS1*COLUMBUS*OH", "MS1*COLUMBUS*O")), "AK4*2*156*4*O~AK5*E*5~"),
        (file("QM", STATUS.replace("AT8*", "?!*")), "AK3*?!*15**1~AK5*E*5~"),
        (file("SM", TENDER.replace("B2A*00", "B2A*77")), "AK4*1*353*7*77~AK5*E*5~"),
        (file("IM", INVOICE.replace("INV-55012", "")), "AK4*2*76*1~AK5*R*5~"),
        (file("QM", STATUS.replace("ST*214*0001", "ST*214*")), "AK5*E*3*7~"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_codes(text: str, answer: str) -> None:
    _, (reply,), findings = unpacked(text)
    assert answer in reply
    assert findings, "and in words"


def test_every_reply_can_be_read_and_is_never_answered() -> None:
    bad = INVOICE.replace("*124500*", "*1*2~3*").replace("SHP-100045", "S:H*P")
    for text in (
        STATUS_FILE,
        file("IM", bad),
        interchange(3, group("SM", 1), group("QM", 2, STATUS)),
    ):
        _, (reply,), _ = unpacked(text)
        events, replies, findings = unpacked(reply)
        assert events and not replies and not findings
        assert {EDI.document(event).kind for event in events} == {"acknowledgement"}


def test_what_has_no_envelope_or_is_our_own_is_not_answered() -> None:
    assert unpacked(STATUS)[1] == []
    assert unpacked(interchange(1, STATUS))[1] == []
    ours = edi(own_ids=["NWTR"])
    assert unpacked(STATUS_FILE, ours)[1] == []
    assert len(unpacked(STATUS_FILE, ours)[0]) == 1
    assert unpacked(STATUS_FILE, edi(acknowledge=False))[1] == []
    mixed = interchange(9, group("FA", 1, ACCEPTED), group("QM", 2, STATUS))
    assert sets_of(unpacked(mixed)[1][0]).count("ST*997") == 1


# Identity and versions


def test_a_file_sent_again_holds_the_same_events() -> None:
    again = STATUS_FILE.replace("~\n", "~").replace("*", "|")
    assert only(again).event_id == only(STATUS_FILE).event_id
    assert only(STATUS_FILE).event_id.startswith("02:NWTR>ZZ:APEXSHIPPER/000004711/4711/214:0001#")


def test_a_control_number_used_twice_is_no_duplicate_and_is_told() -> None:
    other = STATUS_FILE.replace("SHP-100045", "SHP-100046")
    first, second = only(STATUS_FILE), only(other)
    assert first.event_id != second.event_id
    assert EDI.control(first.event_id) == EDI.control(second.event_id) != ""
    events, replies, findings = unpacked(STATUS_FILE + other)
    assert [event.event_id for event in events] == [first.event_id, second.event_id]
    assert any(one.startswith("conflict: set 214 0001") for one in findings)
    assert "AK9*E*1*1*1*19~" in replies[1]
    assert not [one for one in unpacked(STATUS_FILE * 2)[2] if "conflict" in one]
    assert EDI.control(only(STATUS).event_id) == "", "without an envelope a number says nothing"


def test_business_keys() -> None:
    assert only(STATUS_FILE).doc_key == "status:NWTR:SHP-100045:1:sAF:20251101:0815"
    assert only(file("SM", TENDER)).doc_key == "tender:NWTR:SHP-100045"
    assert first(file("SM", CANCEL)).doc_key == "cancellation:NWTR:SHP-100045"
    assert only(file("GF", RESPONSE)).doc_key == "response:NWTR:SHP-100045"
    assert only(file("IM", INVOICE)).doc_key == "invoice:NWTR:INV-55012"
    assert only(file("FA", ACCEPTED)).doc_key == "acknowledgement:NWTR:APEXSHIPPER:QM:4711"
    appointment = STATUS.replace("AT7*AF*NS**", "AT7***AA*NA")
    assert only(file("QM", appointment)).doc_key == "status:NWTR:SHP-100045:1:aAA:20251101:0815"


def test_a_report_with_several_statuses_is_one_thing() -> None:
    two = counted(STATUS.replace("AT8*", "AT7*X3*NS***20251101*0700*ET~AT8*"))
    event = only(file("QM", two))
    assert event.doc_key.startswith("status:NWTR:SHP-100045:2 statuses:")
    document = EDI.document(event)
    assert document.title == "SHP-100045 departed pickup location (NWTR)", (
        "the newest, not the last"
    )
    assert [one["status"] for one in document.metadata["statuses"]] == ["AF", "X3"]


def versions(*texts: str) -> list[str]:
    """Event ids of one document, oldest version first."""
    events = [only(text) for text in texts]
    assert len({event.doc_key for event in events}) == 1
    assert len({event.version for event in events}) == len(events)
    return [event.event_id for event in sorted(events, key=lambda event: event.version)]


def test_changes_are_versions_in_the_order_of_sending() -> None:
    texts = [
        file("SM", TENDER, number=900, sent="20251031*1410"),
        file("SM", TENDER.replace("B2A*00", "B2A*04"), number=901, sent="20251031*1410"),
        file("SM", TENDER.replace("B2A*00", "B2A*05"), number=902, sent="20251031*1411"),
    ]
    assert versions(*reversed(texts)) == [only(text).event_id for text in texts]


def test_sets_of_one_interchange_are_ordered_by_their_place() -> None:
    text = file("SM", TENDER, CHANGE.replace("0001~", "0002~"))
    tender, change = unpacked(text)[0]
    assert tender.doc_key == change.doc_key
    assert tender.version < change.version


@pytest.mark.parametrize("again", ["00", "04", "05"])
def test_a_cancel_ends_what_was_tendered_before_it_and_not_what_is_after(again: str) -> None:
    tender = only(file("SM", TENDER, number=900, sent="20251031*1410"))
    cancel, end = unpacked(file("SM", CANCEL, number=901, sent="20251031*1410"))[0]
    anew = TENDER.replace("B2A*00", f"B2A*{again}")
    later = only(file("SM", anew, number=902, sent="20251031*1411"))
    assert (end.content_type, end.payload) == (TOMBSTONE, b"")
    assert tender.doc_key == end.doc_key == later.doc_key != cancel.doc_key
    assert tender.version < end.version < later.version, "whatever order they arrive in"
    assert (cancel.version, cancel.occurred_at) == (end.version, end.occurred_at)


def test_a_tender_and_its_cancel_in_one_interchange() -> None:
    text = file("SM", TENDER, CANCEL.replace("0001~", "0002~"), TENDER.replace("0001~", "0003~"))
    events, (reply,), findings = unpacked(text)
    tender, _, end, anew = events
    assert tender.doc_key == end.doc_key == anew.doc_key
    assert tender.version < end.version < anew.version
    assert "AK9*A*3*3*3~" in reply, "sets are answered, not events"
    assert findings == []


def test_a_cancel_sent_again_is_a_duplicate_and_no_conflict() -> None:
    cancel, end = unpacked(file("SM", CANCEL))[0]
    assert unpacked(file("SM", CANCEL).replace("~", "~\n"))[0] == [cancel, end]
    assert cancel.event_id != end.event_id
    assert EDI.control(cancel.event_id) == EDI.control(only(file("SM", TENDER)).event_id) != ""
    assert EDI.control(end.event_id) == "", "what is wrong with a set is told once"


def test_a_refused_cancel_ends_nothing() -> None:
    bad = only(file("SM", CANCEL.replace("SE*18*0001", "SE*99*0002")))
    mended, _ = unpacked(file("SM", CANCEL, number=4712, sent="20251101*0900"))[0]
    assert bad.content_type == MALFORMED
    assert bad.doc_key == mended.doc_key
    assert bad.version < mended.version


def test_a_cancellation_tells_who_took_what_back_and_when() -> None:
    tender, cancelled = told(file("SM", TENDER)), told(file("SM", CANCEL, sent="20251031*1410"))
    assert (cancelled.kind, cancelled.about) == ("tender_cancellation", SHIPMENT)
    assert not cancelled.deleted
    assert cancelled.title == "Load tender SHP-100045 to NWTR: cancelled"
    for line in (
        "Status: cancelled",
        f"Cancelled by: {cancelled.metadata['envelope']['sender']}",
        f"Told to: {cancelled.metadata['envelope']['receiver']}",
        "Cancelled at: 2025-10-31 14:10 UTC",
        "PO: 7781",
    ):
        assert line in cancelled.text.splitlines()
    assert said(cancelled, "status") == {(SHIPMENT, "tender cancelled")}
    assert {one.object for one in cancelled.assertions} == {one.object for one in tender.assertions}
    assert not said(cancelled, "pickup_at") | said(cancelled, "delivery_at"), "nobody comes"
    assert "Stop" not in cancelled.text


def test_a_cancellation_without_an_envelope_does_not_say_when() -> None:
    assert "Cancelled at" not in told(CANCEL).text


def test_without_an_envelope_all_that_have_one_are_newer() -> None:
    enveloped, tender = only(file("SM", TENDER)), only(TENDER)
    _, end = unpacked(CANCEL)[0]
    assert tender.version < end.version < enveloped.version


def test_a_corrected_invoice_is_a_newer_version() -> None:
    corrected = INVOICE.replace("*124500**2", "*125000*CO*2").replace("110000", "110500")
    text = file("IM", corrected, number=4712, sent="20251104*0900")
    assert versions(text, file("IM", INVOICE))[1] == only(text).event_id
    document = told(text)
    assert document.metadata["correction"] == "CO"
    assert "Net amount: 1,250.00 USD" in document.text


def test_a_refused_set_is_a_dead_letter_that_the_mended_one_settles() -> None:
    bad = only(file("IM", INVOICE.replace("*124500*", "*12.45*")))
    mended = only(file("IM", INVOICE, number=4712, sent="20251101*0900"))
    assert bad.content_type == MALFORMED
    assert bad.doc_key == mended.doc_key
    assert bad.version < mended.version
    with pytest.raises(Rejected):
        EDI.document(bad)


# What sets say


def said(document: Document, predicate: str) -> set[tuple[str, str]]:
    return {
        (one.subject, one.object or one.value or "")
        for one in document.assertions
        if one.predicate == predicate
    }


SHIPMENT = "shipment:SHP-100045"


def test_a_status() -> None:
    document = told(STATUS_FILE)
    assert (document.kind, document.about) == ("shipment_status", None)
    assert document.occurred_at == datetime(2025, 11, 1, 12, 15, tzinfo=UTC)
    assert "1. departed pickup location (AF); 2025-11-01 08:15 ET; COLUMBUS, OH; unit T-204" in document.text  # fmt: skip
    assert said(document, "vehicle") == {(SHIPMENT, "vehicle:T-204")}
    assert said(document, "carrier") == {(SHIPMENT, "scac:NWTR")}
    assert said(document, "pro") == {(SHIPMENT, "pro:778812")}
    assert said(document, "po") == {(SHIPMENT, "po:7781")}
    assert said(document, "status") == {(SHIPMENT, "departed pickup location")}
    assert said(document, "consignee") == {(SHIPMENT, "company:SAMPLE RETAIL")}
    assert document.metadata["test"] is True
    assert document.metadata["acknowledged"] == "A"


def test_a_reason_and_a_position() -> None:
    late = STATUS.replace("AT7*AF*NS", "AT7*SD*AO").replace(
        "MS1*COLUMBUS*OH*US", "MS1****0825956*0395740*W*N"
    )
    document = told(file("QM", late))
    assert (
        "delayed (SD); weather; 2025-11-01 08:15 ET; position 39.96111, -82.99889" in document.text
    )
    assert document.metadata["statuses"][0]["position"] == [39.96111, -82.99889]


def test_a_tender() -> None:
    document = told(file("SM", TENDER))
    assert (document.kind, document.about) == ("tender", SHIPMENT)
    assert document.title == "Load tender SHP-100045 to NWTR: tendered"
    assert "Must respond by: 2025-10-31 17:00 ET" in document.text
    assert "Stop 2: complete unload\nDelivery requested: 2025-11-02 15:00 ET" in document.text
    assert said(document, "origin") == {(SHIPMENT, "location:COLUMBUS OH")}
    assert said(document, "destination") == {(SHIPMENT, "location:ATLANTA GA")}
    assert said(document, "pickup_at") == {(SHIPMENT, "2025-11-01T12:00:00+00:00")}
    assert said(document, "delivery_at") == {(SHIPMENT, "2025-11-02T20:00:00+00:00")}, "EST by then"
    assert said(document, "billed_to") == {(SHIPMENT, "company:APEX SHIPPER LLC")}


@pytest.mark.parametrize(
    ("action", "word", "carriers"),
    [
        ("A", "accepted", {(SHIPMENT, "scac:NWTR")}),
        ("D", "declined", set()),
        ("C", "accepted with conditions", {(SHIPMENT, "scac:NWTR")}),
    ],
)
def test_a_response(action: str, word: str, carriers: set[tuple[str, str]]) -> None:
    document = told(file("GF", RESPONSE.replace("*A~", f"*{action}~")))
    assert document.title == f"Tender SHP-100045 {word} by NWTR"
    assert said(document, "carrier") == carriers
    assert said(document, "pro") == {(SHIPMENT, "pro:778812")}


def test_an_invoice() -> None:
    document = told(file("IM", INVOICE))
    invoice = "invoice:INV-55012"
    assert (document.kind, document.about) == ("invoice", invoice)
    assert document.occurred_at == datetime(2025, 11, 3, tzinfo=UTC)
    assert said(document, "amount") == {(invoice, "1245.00 USD")}
    assert said(document, "bills") == {(invoice, SHIPMENT)}
    assert "Line 2: FUEL SURCHARGE\nFuel surcharge: 145.00 USD" in document.text
    assert document.metadata["amount"] == 1245.0
    assert "warnings" not in document.metadata


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("*FR*14500*", "*FR*14400*", "add up to 1244.00"),
        ("***124500***", "***124400***", "the total (L3-05) is 1244.00"),
        ("*FR*14500*", "*FR*145.00*", "is no amount"),
    ],
)
def test_charges_that_do_not_add_up_are_told_not_refused(old: str, new: str, warning: str) -> None:
    assert old in INVOICE
    document = told(file("IM", INVOICE.replace(old, new)))
    assert any(warning in one for one in document.metadata["warnings"])
    assert document.metadata["amount"] == 1245.0


def test_negative_lines_count() -> None:
    discount = "LX*3~L5*3*DISCOUNT~L1*3***-44949****DSC~L3*"
    body = INVOICE.replace("L3*", discount).replace("*124500*", "*79551*")
    document = told(file("IM", counted(body)))
    assert "Discount: -449.49 USD" in document.text
    assert "warnings" not in document.metadata


def test_an_acknowledgement_of_ours() -> None:
    document = told(file("FA", REJECTED))
    assert document.title == "997: group IM 4712 rejected"
    assert "Set 210 0001: rejected; segments in error" in document.text
    assert document.metadata["rejected"] == ["210 0001"]


def test_an_unknown_set_is_kept() -> None:
    text = file("PO", "ST*850*0001~BEG*00*SA*PO-77~SE*3*0001~")
    document = told(text)
    assert document.kind == "edi_other"
    assert "BEG 00 SA PO-77" in document.text
    assert only(text).doc_key.startswith("other:850:NWTR:PO:")


def test_a_ta1_alone_is_a_finding_and_no_dead_letter() -> None:
    events, replies, findings = unpacked(interchange(5, "TA1*000000742*251101*0830*R*022~"))
    assert (events, replies) == ([], [])
    assert any("TA1 answers our interchange 000000742: R 022" in one for one in findings)


def test_a_file_without_a_set_is_a_dead_letter() -> None:
    (event,), replies, findings = unpacked("Dear carrier, see attached.")
    assert event.content_type == MALFORMED
    assert not replies
    assert findings == ["no X12 in it: neither ISA, GS nor ST"]


def test_codes_that_are_not_known_are_told_as_such() -> None:
    document = told(file("QM", STATUS.replace("AT7*AF*NS", "AT7*QQ*ZZ")))
    assert "status QQ (QQ); ZZ; 2025-11-01" in document.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5165", 5165), ("-44949", -44949), ("51.65", None), ("1,245", None), ("", None), ("٣", None)],
)
def test_implied_decimals(text: str, expected: int | None) -> None:
    assert cents(text) == expected


def test_dates_and_times() -> None:
    assert date_of("20251101") == date_of("251101") == date(2025, 11, 1)
    assert date_of("990131") == date(1999, 1, 31)
    assert [date_of(text) for text in ("20250230", "2025110", "", "00010101")] == [None] * 4
    assert clock("0815") == (8, 15, 0, 0)
    assert clock("08153025") == (8, 15, 30, 250_000)
    assert [clock(text) for text in ("2400", "0860", "81", "08156")] == [None] * 4


@pytest.mark.parametrize(
    ("day", "zone", "hour"),
    [
        ((2025, 7, 1), "ET", 16),
        ((2025, 12, 1), "ET", 17),
        ((2025, 3, 9), "CT", 17),
        ((2025, 3, 8), "CT", 18),
        ((2025, 11, 2), "PT", 20),
        ((2025, 11, 1), "PT", 19),
        ((2025, 7, 1), "MS", 19),
        ((2025, 7, 1), "ED", 16),
        ((2025, 7, 1), "HT", 22),
        ((2025, 7, 1), "UT", 12),
        ((2025, 7, 1), "LT", 12),
        ((2025, 7, 1), "", 12),
    ],
)
def test_zones(day: tuple[int, int, int], zone: str, hour: int) -> None:
    at = zoned(date(*day), (12, 0, 0, 0), zone)
    assert at == datetime(*day, hour, tzinfo=UTC)


def test_by_request() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    request = Request(STATUS_FILE.encode(), {}, {}, at)
    assert EDI.receive(request).events == [only(STATUS_FILE)]
    with pytest.raises(Rejected, match="no X12"):
        EDI.receive(Request(b"{}", {}, {}, at))


def test_the_samples_are_what_they_say() -> None:
    bodies = {one.name: one.body.decode() for one in EDI.samples()}
    assert bodies["status_214"] == STATUS_FILE
    assert INVOICE in bodies["invoice_210"]
    assert TENDER in bodies["tender_204"]
    assert RESPONSE in bodies["response_990"]
    for name in ("status_214", "invoice_210", "tender_204", "response_990"):
        assert unpacked(bodies[name])[2] == []


# Picking up


@dataclass
class Desk:
    """Commits pages as the pulls do, in memory. `die`: asked before and after each commit."""

    source: Edi
    cursor: dict[str, Any] = field(default_factory=dict)
    files: dict[bytes, InboundFile] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    refused: list[Event] = field(default_factory=list)
    carried: set[bytes] = field(default_factory=set)
    picked: int = 0
    dice: random.Random | None = None

    async def pull(
        self, window: TimeRange | None = None, cursor: dict[str, Any] | None = None
    ) -> None:
        asked = PullContext(
            link=LINK, cursor=self.cursor if cursor is None else cursor, window=window
        )
        async with aclosing(cast(Any, self.source.pull(asked))) as pages:
            async for page in pages:
                if self._dies():
                    return
                self._commit(page)
                if self._dies():
                    return

    async def carry(self, *, again: bool = False) -> None:
        """Land and answer what was not carried yet; all of it once more with `again`."""
        for data, picked in self.files.items():
            if data in self.carried and not again:
                continue
            found = self.source.unpack(picked)
            self.events |= {event.event_id: event for event in found.events}
            await self.source.send(found.replies, LINK)
            self.carried.add(data)

    def newest(self) -> dict[str, Event]:
        newest: dict[str, Event] = {}
        for event in sorted(self.events.values(), key=lambda one: (one.version, one.event_id)):
            newest[event.doc_key] = event
        return newest

    def _commit(self, page: Page) -> None:
        if page.cursor is not None:
            self.cursor = dict(page.cursor)
        self.picked += len(page.files)
        self.refused += page.events
        self.files |= {file.data: file for file in page.files}

    def _dies(self) -> bool:
        return self.dice is not None and self.dice.random() < 0.15


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "in").mkdir()
    return Desk(
        edi(
            inbound_folder=str(tmp_path / "in"),
            archive_folder=str(tmp_path / "done"),
            outbound_folder=str(tmp_path / "out"),
            settle_seconds=0,
        )
    )


def inbox(desk: Desk) -> Path:
    return Path(desk.source.settings.inbound_folder)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else []


async def test_a_file_is_taken_at_the_second_look(desk: Desk, tmp_path: Path) -> None:
    (inbox(desk) / "a.edi").write_text(STATUS_FILE)
    await desk.pull()
    assert desk.picked == 0
    await desk.pull()
    assert [one.name for one in desk.files.values()] == ["folder/a.edi"]
    assert (names(inbox(desk)), names(tmp_path / "done")) == ([], ["a.edi"])
    assert desk.cursor == {"folder": {}}
    await desk.carry()
    await desk.carry(again=True)
    (reply,) = names(tmp_path / "out")
    assert ACCEPTED in (tmp_path / "out" / reply).read_text()


async def test_a_file_that_grows_is_left(desk: Desk) -> None:
    path = inbox(desk) / "a.edi"
    for n in (100, 200, 300):
        path.write_text(STATUS_FILE[:n])
        await desk.pull()
    path.write_text(STATUS_FILE)
    await desk.pull()
    assert desk.picked == 0
    await desk.pull()
    assert list(desk.files) == [STATUS_FILE.encode()]


async def test_a_file_that_was_renamed_is_taken_at_once(desk: Desk) -> None:
    path = inbox(desk) / "a.edi.tmp"
    path.write_text(STATUS_FILE)
    for _ in range(3):
        await desk.pull()
    assert desk.picked == 0, "unfinished, however long it stands still"
    path.rename(inbox(desk) / "a.edi")
    await desk.pull()
    assert desk.picked == 1


async def test_a_file_must_stand_still_long_enough(desk: Desk) -> None:
    desk.source.settings.settle_seconds = 3600
    path = inbox(desk) / "a.edi"
    path.write_text(STATUS_FILE)
    for _ in range(3):
        await desk.pull()
    assert desk.picked == 0
    desk.cursor["folder"]["a.edi"][2] -= 3601
    await desk.pull()
    assert desk.picked == 1


@pytest.mark.parametrize("committed", [False, True])
async def test_a_worker_that_dies_around_the_commit_loses_and_doubles_nothing(
    desk: Desk, committed: bool, tmp_path: Path
) -> None:
    (inbox(desk) / "a.edi").write_text(STATUS_FILE)
    await desk.pull()
    async with aclosing(
        cast(Any, desk.source.pull(PullContext(link=LINK, cursor=desk.cursor)))
    ) as pages:
        page = await anext(pages)
        if committed:
            desk._commit(page)
    assert names(inbox(desk)) == ["a.edi"]
    for _ in range(2):
        await desk.pull()
    assert names(tmp_path / "done") == ["a.edi"]
    assert len(desk.files) == 1


async def test_names_in_the_archive_are_never_overwritten(desk: Desk, tmp_path: Path) -> None:
    for text in (STATUS_FILE, STATUS_FILE.replace("0815", "0816"), STATUS_FILE):
        (inbox(desk) / "a.edi").write_text(text)
        await desk.pull()
        await desk.pull()
    kept = {(tmp_path / "done" / name).read_text() for name in names(tmp_path / "done")}
    assert kept == {STATUS_FILE, STATUS_FILE.replace("0815", "0816")}


async def test_what_is_no_file_of_a_partner_is_left(desk: Desk, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password")
    (inbox(desk) / "link.edi").symlink_to(secret)
    (inbox(desk) / "folder.edi").mkdir()
    (inbox(desk) / ".hidden").write_text("x")
    for _ in range(3):
        await desk.pull()
    assert desk.picked == 0


async def test_a_file_too_large_is_a_dead_letter_and_its_neighbour_goes_on(desk: Desk) -> None:
    with (inbox(desk) / "huge.edi").open("wb") as large:
        large.truncate(Edi.max_body_bytes + 1)
    (inbox(desk) / "a.edi").write_text(STATUS_FILE)
    for _ in range(4):
        await desk.pull()
    assert desk.picked == 1
    (refused,) = desk.refused
    assert refused.content_type == MALFORMED
    assert names(inbox(desk)) == ["huge.edi"]


async def test_a_name_that_is_no_text(desk: Desk, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(inbox(desk)) + b"/\xff.edi")).write_text(STATUS_FILE)
    for _ in range(2):
        await desk.pull()
    assert [one.name for one in desk.files.values()] == ["folder/\\udcff.edi"]
    assert names(inbox(desk)) == []


async def test_many_files_come_in_pages(desk: Desk) -> None:
    for n in range(45):
        (inbox(desk) / f"{n:02d}.edi").write_text(STATUS_FILE.replace("0815", f"08{n:02d}"))
    await desk.pull()
    asked = PullContext(link=LINK, cursor=desk.cursor)
    pages = [page async for page in desk.source.pull(asked)]
    assert [len(page.files) for page in pages] == [20, 20, 5]
    assert [len((page.cursor or {})["folder"]) for page in pages] == [25, 5, 0]


async def test_a_backfill_reads_the_archive_and_leaves_it(desk: Desk, tmp_path: Path) -> None:
    for n in range(3):
        (inbox(desk) / f"{n}.edi").write_text(STATUS_FILE.replace("0815", f"081{n}"))
    await desk.pull()
    await desk.pull()
    for n in range(3):
        os.utime(tmp_path / "done" / f"{n}.edi", (1_000_000 + n, 1_000_000 + n))
    desk.files.clear()
    since, until = (datetime.fromtimestamp(1_000_000 + n, UTC) for n in (0, 2))
    await desk.pull(TimeRange(since, until), {})
    assert [file.name for file in desk.files.values()] == ["folder/0.edi", "folder/1.edi"]
    assert names(tmp_path / "done") == ["0.edi", "1.edi", "2.edi"]
    desk.files.clear()
    await desk.pull(TimeRange(since, until), {"folder": [1_000_000.0, "0.edi"]})
    assert [file.name for file in desk.files.values()] == ["folder/1.edi"]


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    source = edi(inbound_folder=str(tmp_path / "no"), archive_folder=str(tmp_path / "done"))
    with pytest.raises(Misconfigured, match="is not there"):
        await Desk(source).pull()


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "inbound_folder"),
        ({"inbound_folder": "/in"}, "archive_folder"),
        ({"inbound_folder": "/in", "archive_folder": "/a"}, "outbound_folder"),
        ({"inbound_folder": "/in", "archive_folder": "/a", "acknowledge": False}, ""),
        ({"sftp_host": "h"}, "sftp_user"),
        ({"sftp_host": "h", "sftp_user": "u", "sftp_password": "p"}, "sftp_known_hosts"),
        ({"sftp_host": "h", "sftp_user": "u", "sftp_known_hosts": "k"}, "sftp_password"),
        ({"sftp_host": "h", "sftp_user": "u", "sftp_known_hosts": "k", "sftp_key": "x"}, ""),
    ],
)
def test_what_a_pull_cannot_do_without(settings: dict[str, str], missing: str) -> None:
    assert edi(**settings).missing_settings == (f"sources.edi.{missing}" if missing else "")


# By SFTP, against the simulator


@asynccontextmanager
async def mailbox(chaos: Chaos | None = None, seed: int = 7) -> AsyncIterator[EdiSimulator]:
    world = World.make(seed, shipments=6)
    simulator = EdiSimulator(world, Clock(world.start), chaos or Chaos())
    await simulator.open()
    try:
        yield simulator
    finally:
        await simulator.close()


def remote(simulator: EdiSimulator, **changes: Any) -> Edi:
    settings = {k: v for k, v in simulator.settings("").items() if not k.endswith("_folder")}
    return edi(**{**settings, **changes})


async def test_by_sftp(tmp_path: Path) -> None:
    async with mailbox() as simulator:
        (simulator.folder("sftp", "inbound") / "a.edi").write_text(STATUS_FILE)
        desk = Desk(remote(simulator, sftp_key="", sftp_password=PASSWORD))
        await desk.pull()
        await desk.pull()
        assert [file.name for file in desk.files.values()] == ["sftp/a.edi"]
        assert names(simulator.folder("sftp", "archive")) == ["a.edi"]
        await desk.carry()
        await desk.carry(again=True)
        assert simulator.answers() == {("NWTR", "QM", "4711"): "A"}


@pytest.mark.parametrize("known", ["", "another", "other host"])
async def test_an_unknown_server_is_refused_before_anything_is_told_to_it(known: str) -> None:
    async with mailbox() as simulator, mailbox() as other:
        lines = {
            "": "# nobody",
            "another": other.settings("")["sftp_known_hosts"].replace(
                str(other.settings("")["sftp_port"]), str(simulator.settings("")["sftp_port"])
            ),
            "other host": other.settings("")["sftp_known_hosts"],
        }
        desk = Desk(remote(simulator, sftp_known_hosts=lines[known]))
        with pytest.raises(Unauthorized, match="not the pinned one") as refused:
            await desk.pull()
        assert "sftp_known_hosts" in refused.value.remedy


async def test_wrong_credentials_and_no_server() -> None:
    async with mailbox() as simulator:
        with pytest.raises(Unauthorized, match="refuses"):
            await Desk(remote(simulator, sftp_key="", sftp_password="wrong")).pull()
        with pytest.raises(Misconfigured, match="sftp_key"):
            await Desk(remote(simulator, sftp_key="no key")).pull()
        with pytest.raises(Misconfigured, match="no such folder"):
            await Desk(remote(simulator, sftp_inbound="nowhere")).pull()
        gone = remote(simulator)
    with pytest.raises(RetryLater):
        await Desk(gone).pull()


async def test_a_server_that_is_down_keeps_no_folder_waiting(desk: Desk) -> None:
    async with mailbox() as simulator:
        down = simulator.settings("")
    both = {**down, **{k: str(v) for k, v in desk.source.settings if k.endswith("_folder")}}
    (inbox(desk) / "a.edi").write_text(STATUS_FILE)
    desk.source = edi(**both)
    for _ in range(2):
        with pytest.raises(RetryLater):
            await desk.pull()
    assert desk.picked == 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_bad_day_ends_with_everything_known_and_answered(seed: int) -> None:
    chaos = Chaos(
        seed=seed, errors=0.1, limits=0.1, duplicates=0.3, disorder=0.3, mutations=0.3
    ) if seed else Chaos()  # fmt: skip
    async with mailbox(chaos, seed) as simulator:
        desk = Desk(edi(**simulator.settings("")))
        desk.dice = random.Random(seed) if seed else None
        start, failures = simulator.world.start, 0
        for n in range(24):
            simulator.clock.advance_to(start + timedelta(hours=18) * (n + 1) / 24)
            simulator.pushes(start, simulator.clock.now)
            try:
                await desk.pull()
            except ApexError:
                failures += 1
            await desk.carry()
        chaos.off()
        desk.dice = None
        for _ in range(3):
            await desk.pull()
            await desk.carry()
        assert bool(failures) == bool(seed)
        now = simulator.clock.now
        assert simulator.answers() == simulator.expected_answers(now) != {}
        newest = desk.newest()
        gone = {key for key, event in newest.items() if event.content_type == TOMBSTONE}
        truth = simulator.truth(now)
        assert newest.keys() == {one.doc_key for one in truth}
        assert gone == {one.doc_key for one in truth if one.deleted}
        assert any(key.startswith("cancellation:") for key in newest)
        wrong = [
            one
            for one in truth
            if not one.deleted and one.text not in desk.source.document(newest[one.doc_key]).text
        ]
        assert wrong == []
        for place in ("folder", "sftp"):
            assert names(simulator.folder(place, "inbound")) == []
            assert not [n for n in names(simulator.folder(place, "outbound")) if n.endswith(".tmp")]
        assert len(desk.files) <= desk.picked
        _all_quirks_were_there(list(desk.files.values()), desk)


def _all_quirks_were_there(files: Sequence[InboundFile], desk: Desk) -> None:
    findings = " ".join(one for file in files for one in desk.source.unpack(file).findings)
    for quirk in ("not 106", "byte order", "over lines", "GE is missing", "SE01", "IEA02", "QM is due", "a blank", "SE02", "8 elements"):  # fmt: skip
        assert quirk in findings, quirk


def test_assertions_name_what_they_are_about() -> None:
    for text in (STATUS_FILE, file("SM", TENDER), file("IM", INVOICE), file("GF", RESPONSE)):
        for one in told(text).assertions:
            assert isinstance(one, Assertion)
            assert all(":" in ref for ref in (one.subject, one.object) if ref)
