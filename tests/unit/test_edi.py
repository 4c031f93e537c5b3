"""Carriers' EDI: documents of sets, replies by 997, and how files are picked up."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from apex_memory.errors import ApexError, Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, TOMBSTONE, Assertion, Document, Event
from apex_memory.simulate.edi.simulator import PASSWORD, EdiSimulator
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.edi import mailboxes
from apex_memory.sources.edi.source import Edi
from apex_memory.sources.edi.x12.values import (
    TimeOfDay,
    parse_amount,
    parse_date,
    parse_time,
    to_utc,
)
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, InboundFile, Page, PullContext
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

CLIENT = cast(VendorClient, None)  # a batch source reaches its partners by itself


def edi(**settings: Any) -> Edi:
    source = load({"edi": settings})["edi"]
    assert isinstance(source, Edi)
    return source


EDI = edi()
CHANGE, CANCEL = (TENDER.replace("B2A*00", f"B2A*{purpose}") for purpose in ("04", "01"))


def unpack(text: str, source: Edi = EDI) -> tuple[list[Event], list[str], list[str]]:
    """Events, the replies' bodies and findings."""
    content = source.unpack(InboundFile("x.edi", text.encode()))
    replies = [reply.data.decode() for reply in content.replies]
    return list(content.events), replies, list(content.findings)


def only_event(text: str) -> Event:
    (event,) = unpack(text)[0]
    return event


def first_event(text: str) -> Event:
    return unpack(text)[0][0]


def document_of(text: str) -> Document:
    return EDI.document(first_event(text))


def sets_in(reply: str) -> str:
    """Return the sets of a reply, between GS and GE."""
    return reply[reply.index("ST*") : reply.index("GE*")]


# Replies


def test_the_reply_to_a_good_file() -> None:
    _, (reply,), findings = unpack(STATUS_FILE)
    assert sets_in(reply) == ACCEPTED
    assert findings == []
    assert reply.startswith(
        "ISA*00*          *00*          *ZZ*APEXSHIPPER    *02*NWTR           *251101*0830*U*00401*"
    )
    assert len(reply.split("~")[0]) == 105


def test_the_reply_to_two_groups_one_of_them_bad() -> None:
    bad = INVOICE.replace("20251103*124500*", "20251103*1,245.00*")
    text = interchange(4711, group("QM", 4711, STATUS), group("IM", 4712, bad))
    events, (reply,), findings = unpack(text)
    assert sets_in(reply) == ACCEPTED + REJECTED
    assert [event.content_type for event in events] == ["application/json", MALFORMED]
    assert any("B307 has characters that its type does not allow: 1,245.00" in f for f in findings)


def test_the_same_file_gets_the_same_reply_under_the_same_name() -> None:
    first = EDI.unpack(InboundFile("a.edi", STATUS_FILE.encode())).replies
    again = edi().unpack(InboundFile("b.txt", STATUS_FILE.replace("\n", "\r\n").encode())).replies
    other = EDI.unpack(InboundFile("a.edi", STATUS_FILE.replace("0815", "0816").encode())).replies
    assert first == again
    assert first[0].name.startswith("997_NWTR_000004711_")
    assert other[0].name != first[0].name


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_errors_are_reported_by_code_and_in_words(text: str, expected: str) -> None:
    _, (reply,), findings = unpack(text)
    assert expected in reply
    assert findings


def test_every_reply_can_be_parsed_and_gets_no_reply() -> None:
    bad = INVOICE.replace("*124500*", "*1*2~3*").replace("SHP-100045", "S:H*P")
    for text in (
        STATUS_FILE,
        file("IM", bad),
        interchange(3, group("SM", 1), group("QM", 2, STATUS)),
    ):
        _, (reply,), _ = unpack(text)
        events, replies, findings = unpack(reply)
        assert events and not replies and not findings
        assert {EDI.document(event).kind for event in events} == {"acknowledgement"}


def test_sets_without_envelope_and_our_own_files_get_no_reply() -> None:
    assert unpack(STATUS)[1] == []
    assert unpack(interchange(1, STATUS))[1] == []
    own = edi(own_ids=["NWTR"])
    assert unpack(STATUS_FILE, own)[1] == []
    assert len(unpack(STATUS_FILE, own)[0]) == 1
    assert unpack(STATUS_FILE, edi(acknowledge=False))[1] == []
    mixed = interchange(9, group("FA", 1, ACCEPTED), group("QM", 2, STATUS))
    assert sets_in(unpack(mixed)[1][0]).count("ST*997") == 1


# Identity and versions


def test_a_file_sent_again_holds_the_same_events() -> None:
    again = STATUS_FILE.replace("~\n", "~").replace("*", "|")
    assert only_event(again).event_id == only_event(STATUS_FILE).event_id
    assert only_event(STATUS_FILE).event_id.startswith(
        "02:NWTR>ZZ:APEXSHIPPER/000004711/4711/214:0001#"
    )


def test_a_control_number_used_twice_is_no_duplicate_but_a_finding() -> None:
    other = STATUS_FILE.replace("SHP-100045", "SHP-100046")
    first, second = only_event(STATUS_FILE), only_event(other)
    assert first.event_id != second.event_id
    assert EDI.control(first.event_id) == EDI.control(second.event_id) != ""
    events, replies, findings = unpack(STATUS_FILE + other)
    assert [event.event_id for event in events] == [first.event_id, second.event_id]
    assert any(finding.startswith("conflict: set 214 0001") for finding in findings)
    assert "AK9*E*1*1*1*19~" in replies[1]
    assert not [finding for finding in unpack(STATUS_FILE * 2)[2] if "conflict" in finding]
    assert EDI.control(only_event(STATUS).event_id) == "", (
        "without an envelope a number identifies nothing"
    )


STATUS_KEY = "status:NWTR:SHP-100045:1"
REST_OF_STATUS_KEY = "20251101:0815:COLUMBUS OH:T-204:PRO778812:BM=SHP-100045,PO=7781"


def test_business_keys() -> None:
    assert only_event(STATUS_FILE).doc_key == f"{STATUS_KEY}:sAF:{REST_OF_STATUS_KEY}"
    assert only_event(file("SM", TENDER)).doc_key == "tender:NWTR:SHP-100045"
    assert first_event(file("SM", CANCEL)).doc_key == "cancellation:NWTR:SHP-100045"
    assert only_event(file("GF", RESPONSE)).doc_key == "response:NWTR:SHP-100045"
    assert only_event(file("IM", INVOICE)).doc_key == "invoice:NWTR:INV-55012"
    assert (
        only_event(file("FA", ACCEPTED)).doc_key
        == "acknowledgement:NWTR:APEXSHIPPER:QM:4711:214/0001"
    )
    appointment = STATUS.replace("AT7*AF*NS**", "AT7***AA*NA")
    assert only_event(file("QM", appointment)).doc_key == f"{STATUS_KEY}:aAA:{REST_OF_STATUS_KEY}"


def test_a_report_with_several_statuses_is_one_document() -> None:
    two = counted(STATUS.replace("AT8*", "AT7*X3*NS***20251101*0700*ET~AT8*"))
    event = only_event(file("QM", two))
    assert event.doc_key.startswith("status:NWTR:SHP-100045:2 statuses:")
    document = EDI.document(event)
    assert document.title == "SHP-100045 departed pickup location (NWTR)", (
        "the newest, not the last"
    )
    assert [status["status"] for status in document.metadata["statuses"]] == ["AF", "X3"]


def versions(*texts: str) -> list[str]:
    """Event ids of one document, the oldest version first."""
    events = [only_event(text) for text in texts]
    assert len({event.doc_key for event in events}) == 1
    assert len({event.version for event in events}) == len(events)
    return [event.event_id for event in sorted(events, key=lambda event: event.version)]


def test_changes_are_versions_in_the_order_of_sending() -> None:
    texts = [
        file("SM", TENDER, number=900, sent="20251031*1410"),
        file("SM", TENDER.replace("B2A*00", "B2A*04"), number=901, sent="20251031*1410"),
        file("SM", TENDER.replace("B2A*00", "B2A*05"), number=902, sent="20251031*1411"),
    ]
    assert versions(*reversed(texts)) == [only_event(text).event_id for text in texts]


def test_sets_of_one_interchange_are_ordered_by_their_place() -> None:
    text = file("SM", TENDER, CHANGE.replace("0001~", "0002~"))
    tender, change = unpack(text)[0]
    assert tender.doc_key == change.doc_key
    assert tender.version < change.version


@pytest.mark.parametrize("again", ["00", "04", "05"])
def test_a_cancel_deletes_what_was_tendered_before_it_and_not_what_is_after(again: str) -> None:
    tender = only_event(file("SM", TENDER, number=900, sent="20251031*1410"))
    cancel, end = unpack(file("SM", CANCEL, number=901, sent="20251031*1410"))[0]
    anew = TENDER.replace("B2A*00", f"B2A*{again}")
    later = only_event(file("SM", anew, number=902, sent="20251031*1411"))
    assert (end.content_type, end.payload) == (TOMBSTONE, b"")
    assert tender.doc_key == end.doc_key == later.doc_key != cancel.doc_key
    assert tender.version < end.version < later.version, "whatever order they arrive in"
    assert (cancel.version, cancel.occurred_at) == (end.version, end.occurred_at)


def test_a_tender_and_its_cancel_in_one_interchange() -> None:
    text = file("SM", TENDER, CANCEL.replace("0001~", "0002~"), TENDER.replace("0001~", "0003~"))
    events, (reply,), findings = unpack(text)
    tender, _, end, anew = events
    assert tender.doc_key == end.doc_key == anew.doc_key
    assert tender.version < end.version < anew.version
    assert "AK9*A*3*3*3~" in reply, "sets are counted, not events"
    assert [finding.partition(" of ")[0] for finding in findings] == ["set 204 0003"], (
        "tendered anew"
    )


def test_a_cancel_sent_again_is_a_duplicate_and_no_conflict() -> None:
    cancel, end = unpack(file("SM", CANCEL))[0]
    assert unpack(file("SM", CANCEL).replace("~", "~\n"))[0] == [cancel, end]
    assert cancel.event_id != end.event_id
    assert (
        EDI.control(cancel.event_id) == EDI.control(only_event(file("SM", TENDER)).event_id) != ""
    )
    assert EDI.control(end.event_id) == "", "a conflict is reported once"


def test_a_refused_cancel_deletes_nothing() -> None:
    bad = only_event(file("SM", CANCEL.replace("SE*18*0001", "SE*99*0002")))
    corrected, _ = unpack(file("SM", CANCEL, number=4712, sent="20251101*0900"))[0]
    assert bad.content_type == MALFORMED
    assert bad.doc_key == corrected.doc_key
    assert bad.version < corrected.version


def test_a_cancellation_names_who_cancelled_what_and_when() -> None:
    tender = document_of(file("SM", TENDER))
    cancelled = document_of(file("SM", CANCEL, sent="20251031*1410"))
    assert (cancelled.kind, cancelled.about) == ("tender_cancellation", SHIPMENT)
    assert not cancelled.deleted
    assert cancelled.title == "Load tender SHP-100045 to NWTR: cancelled"
    for line in (
        "Status: cancelled",
        f"Cancelled by: {cancelled.metadata['envelope']['sender']}",
        f"Sent to: {cancelled.metadata['envelope']['receiver']}",
        "Cancelled at: 2025-10-31 14:10 UTC",
        "PO: 7781",
    ):
        assert line in cancelled.text.splitlines()
    assert facts(cancelled, "status") == {(SHIPMENT, "tender cancelled")}
    assert objects_of(cancelled) == objects_of(tender)
    assert not facts(cancelled, "pickup_at") | facts(cancelled, "delivery_at"), "nobody comes"
    assert "Stop" not in cancelled.text


def test_a_cancellation_without_an_envelope_has_no_time() -> None:
    assert "Cancelled at" not in document_of(CANCEL).text


def test_without_an_envelope_all_that_have_one_are_newer() -> None:
    enveloped, tender = only_event(file("SM", TENDER)), only_event(TENDER)
    _, end = unpack(CANCEL)[0]
    assert tender.version < end.version < enveloped.version


def test_a_corrected_invoice_is_a_newer_version() -> None:
    corrected = INVOICE.replace("*124500**2", "*125000*CO*2").replace("110000", "110500")
    text = file("IM", corrected, number=4712, sent="20251104*0900")
    assert versions(text, file("IM", INVOICE))[1] == only_event(text).event_id
    document = document_of(text)
    assert document.metadata["correction"] == "CO"
    assert "Net amount: 1,250.00 USD" in document.text


def test_a_refused_set_is_a_dead_letter_that_the_corrected_one_settles() -> None:
    bad = only_event(file("IM", INVOICE.replace("*124500*", "*12.45*")))
    corrected = only_event(file("IM", INVOICE, number=4712, sent="20251101*0900"))
    assert bad.content_type == MALFORMED
    assert bad.doc_key == corrected.doc_key
    assert bad.version < corrected.version
    with pytest.raises(Rejected):
        EDI.document(bad)


# Documents


def facts(document: Document, predicate: str) -> set[tuple[str, str]]:
    """Subject and object (or value) of each assertion with this predicate."""
    return {
        (fact.subject, fact.object or fact.value or "")
        for fact in document.assertions
        if fact.predicate == predicate
    }


def objects_of(document: Document) -> set[str | None]:
    return {fact.object for fact in document.assertions}


SHIPMENT = "shipment:SHP-100045"


def test_a_status() -> None:
    document = document_of(STATUS_FILE)
    assert (document.kind, document.about) == ("shipment_status", None)
    assert document.occurred_at == datetime(2025, 11, 1, 12, 15, tzinfo=UTC)
    assert "1. departed pickup location (AF); 2025-11-01 08:15 ET; COLUMBUS, OH; unit T-204" in document.text  # fmt: skip
    assert facts(document, "vehicle") == {(SHIPMENT, "vehicle:T-204")}
    assert facts(document, "carrier") == {(SHIPMENT, "scac:NWTR")}
    assert facts(document, "pro") == {(SHIPMENT, "pro:778812")}
    assert facts(document, "po") == {(SHIPMENT, "po:7781")}
    assert facts(document, "status") == {(SHIPMENT, "departed pickup location")}
    assert facts(document, "consignee") == {(SHIPMENT, "company:SAMPLE RETAIL")}
    assert document.metadata["test"] is False
    assert document.metadata["acknowledged"] == "A"


def test_a_reason_and_a_position() -> None:
    late = STATUS.replace("AT7*AF*NS", "AT7*SD*AO").replace(
        "MS1*COLUMBUS*OH*US", "MS1****0825956*0395740*W*N"
    )
    document = document_of(file("QM", late))
    assert (
        "delayed (SD); weather; 2025-11-01 08:15 ET; position 39.96111, -82.99889" in document.text
    )
    assert document.metadata["statuses"][0]["position"] == [39.96111, -82.99889]


def test_a_tender() -> None:
    document = document_of(file("SM", TENDER))
    assert (document.kind, document.about) == ("tender", SHIPMENT)
    assert document.title == "Load tender SHP-100045 to NWTR: tendered"
    assert "Must respond by: 2025-10-31 17:00 ET" in document.text
    assert "Stop 2: complete unload\nDelivery requested: 2025-11-02 15:00 ET" in document.text
    assert facts(document, "origin") == {(SHIPMENT, "location:COLUMBUS OH")}
    assert facts(document, "destination") == {(SHIPMENT, "location:ATLANTA GA")}
    assert facts(document, "pickup_at") == {(SHIPMENT, "2025-11-01T12:00:00+00:00")}
    assert facts(document, "delivery_at") == {(SHIPMENT, "2025-11-02T20:00:00+00:00")}, (
        "EST by then"
    )
    assert facts(document, "billed_to") == {(SHIPMENT, "company:APEX SHIPPER LLC")}


@pytest.mark.parametrize(
    ("action", "word", "carriers"),
    [
        ("A", "accepted", {(SHIPMENT, "scac:NWTR")}),
        ("D", "declined", set()),
        ("C", "accepted with conditions", {(SHIPMENT, "scac:NWTR")}),
    ],
)
def test_a_response(action: str, word: str, carriers: set[tuple[str, str]]) -> None:
    document = document_of(file("GF", RESPONSE.replace("*A~", f"*{action}~")))
    assert document.title == f"Tender SHP-100045 {word} by NWTR"
    assert facts(document, "carrier") == carriers
    assert facts(document, "pro") == {(SHIPMENT, "pro:778812")}


def test_an_invoice() -> None:
    document = document_of(file("IM", INVOICE))
    invoice = "invoice:INV-55012"
    assert (document.kind, document.about) == ("invoice", invoice)
    assert document.occurred_at == datetime(2025, 11, 3, tzinfo=UTC)
    assert facts(document, "amount") == {(invoice, "1245.00 USD")}
    assert facts(document, "bills") == {(invoice, SHIPMENT)}
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
def test_charges_that_do_not_add_up_are_a_warning_and_no_refusal(
    old: str, new: str, warning: str
) -> None:
    assert old in INVOICE
    document = document_of(file("IM", INVOICE.replace(old, new)))
    assert any(warning in text for text in document.metadata["warnings"])
    assert document.metadata["amount"] == 1245.0


def test_negative_lines_count() -> None:
    discount = "LX*3~L5*3*DISCOUNT~L1*3***-44949****DSC~L3*"
    body = INVOICE.replace("L3*", discount).replace("*124500*", "*79551*")
    document = document_of(file("IM", counted(body)))
    assert "Discount: -449.49 USD" in document.text
    assert "warnings" not in document.metadata


def test_an_acknowledgement_of_ours() -> None:
    document = document_of(file("FA", REJECTED))
    assert document.title == "997: group IM 4712 rejected"
    assert "Set 210 0001: rejected; segments in error" in document.text
    assert document.metadata["rejected"] == ["210 0001"]


def test_an_unknown_set_is_kept() -> None:
    text = file("PO", "ST*850*0001~BEG*00*SA*PO-77~SE*3*0001~")
    document = document_of(text)
    assert document.kind == "edi_other"
    assert "BEG 00 SA PO-77" in document.text
    assert only_event(text).doc_key.startswith("other:850:NWTR:PO:")


def test_a_ta1_alone_is_a_finding_and_no_dead_letter() -> None:
    events, replies, findings = unpack(interchange(5, "TA1*000000742*251101*0830*R*022~"))
    assert (events, replies) == ([], [])
    assert any("TA1 for our interchange 000000742: R 022" in finding for finding in findings)


def test_a_file_without_a_set_is_a_dead_letter() -> None:
    (event,), replies, findings = unpack("Dear carrier, see attached.")
    assert event.content_type == MALFORMED
    assert not replies
    assert findings == ["no X12 in it: neither ISA, GS nor ST"]


def test_unknown_codes_are_shown_as_codes() -> None:
    document = document_of(file("QM", STATUS.replace("AT7*AF*NS", "AT7*QQ*ZZ")))
    assert "status QQ (QQ); ZZ; 2025-11-01" in document.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5165", 5165), ("-44949", -44949), ("51.65", None), ("1,245", None), ("", None), ("٣", None)],
)
def test_implied_decimals(text: str, expected: int | None) -> None:
    assert parse_amount(text) == expected


def test_dates_and_times() -> None:
    assert parse_date("20251101") == parse_date("251101") == date(2025, 11, 1)
    assert parse_date("990131") == date(1999, 1, 31)
    assert [parse_date(text) for text in ("20250230", "2025110", "", "00010101")] == [None] * 4
    assert parse_time("0815") == (8, 15, 0, 0)
    assert parse_time("08153025") == (8, 15, 30, 250_000)
    assert [parse_time(text) for text in ("2401", "0860", "81", "08156")] == [None] * 4


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
    at = to_utc(date(*day), TimeOfDay(12, 0, 0, 0), zone)
    assert at == datetime(*day, hour, tzinfo=UTC)


def test_a_file_by_request() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    request = InboundRequest(STATUS_FILE.encode(), {}, {}, at)
    assert EDI.receive(request).events == [only_event(STATUS_FILE)]
    with pytest.raises(Rejected, match="no X12"):
        EDI.receive(InboundRequest(b"{}", {}, {}, at))


def test_the_samples_hold_the_files_of_the_contract() -> None:
    bodies = {sample.name: sample.body.decode() for sample in EDI.samples()}
    assert bodies["status_214"] == STATUS_FILE
    assert INVOICE in bodies["invoice_210"]
    assert TENDER in bodies["tender_204"]
    assert RESPONSE in bodies["response_990"]
    for name in ("status_214", "invoice_210", "tender_204", "response_990"):
        assert unpack(bodies[name])[2] == []


# Picking up


@dataclass
class Worker:
    """Commits pages as the pulls do, in memory. With `dice` it dies now and then, before or after a commit."""

    source: Edi
    cursor: dict[str, Any] = field(default_factory=dict)
    files: dict[bytes, InboundFile] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    refused: list[Event] = field(default_factory=list)
    processed: set[bytes] = field(default_factory=set)
    picked_up: int = 0
    dice: random.Random | None = None

    async def pull(
        self, window: BackfillRange | None = None, cursor: dict[str, Any] | None = None
    ) -> None:
        context = PullContext(
            client=CLIENT, cursor=self.cursor if cursor is None else cursor, window=window
        )
        async with aclosing(cast(Any, self.source.pull(context))) as pages:
            async for page in pages:
                if self._dies():
                    return
                self._commit(page)
                if self._dies():
                    return

    async def process(self, *, again: bool = False) -> None:
        """Land the files that are not processed yet, and write their replies; all once more with `again`."""
        for data, picked_up in self.files.items():
            if data in self.processed and not again:
                continue
            content = self.source.unpack(picked_up)
            self.events |= {event.event_id: event for event in content.events}
            await self.source.send(content.replies, CLIENT)
            self.processed.add(data)

    def newest(self) -> dict[str, Event]:
        newest: dict[str, Event] = {}
        for event in sorted(
            self.events.values(), key=lambda event: (event.version, event.event_id)
        ):
            newest[event.doc_key] = event
        return newest

    def _commit(self, page: Page) -> None:
        if page.cursor is not None:
            self.cursor = dict(page.cursor)
        self.picked_up += len(page.files)
        self.refused += page.events
        self.files |= {file.data: file for file in page.files}

    def _dies(self) -> bool:
        return self.dice is not None and self.dice.random() < 0.15


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    (tmp_path / "in").mkdir()
    return Worker(
        edi(
            inbound_folder=str(tmp_path / "in"),
            archive_folder=str(tmp_path / "done"),
            outbound_folder=str(tmp_path / "out"),
            settle_seconds=0,
        )
    )


def inbox(worker: Worker) -> Path:
    folder = worker.source.settings.inbound_folder
    assert folder
    return Path(folder)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else []


async def test_a_file_is_picked_up_at_the_second_listing(worker: Worker, tmp_path: Path) -> None:
    (inbox(worker) / "a.edi").write_text(STATUS_FILE)
    await worker.pull()
    assert worker.picked_up == 0
    await worker.pull()
    assert [file.name for file in worker.files.values()] == ["folder/a.edi"]
    assert (names(inbox(worker)), names(tmp_path / "done")) == ([], ["a.edi"])
    assert worker.cursor == {"folder": {}}
    await worker.process()
    await worker.process(again=True)
    (reply,) = names(tmp_path / "out")
    assert ACCEPTED in (tmp_path / "out" / reply).read_text()


async def test_a_file_that_grows_is_left(worker: Worker) -> None:
    path = inbox(worker) / "a.edi"
    for n in (100, 200, 300):
        path.write_text(STATUS_FILE[:n])
        await worker.pull()
    path.write_text(STATUS_FILE)
    await worker.pull()
    assert worker.picked_up == 0
    await worker.pull()
    assert list(worker.files) == [STATUS_FILE.encode()]


async def test_a_file_that_was_renamed_is_picked_up_at_once(worker: Worker) -> None:
    path = inbox(worker) / "a.edi.tmp"
    path.write_text(STATUS_FILE)
    for _ in range(3):
        await worker.pull()
    assert worker.picked_up == 0, "unfinished, however long it is unchanged"
    path.rename(inbox(worker) / "a.edi")
    await worker.pull()
    assert worker.picked_up == 1


async def test_a_file_must_be_unchanged_long_enough(worker: Worker) -> None:
    worker.source.settings.settle_seconds = 3600
    path = inbox(worker) / "a.edi"
    path.write_text(STATUS_FILE)
    for _ in range(3):
        await worker.pull()
    assert worker.picked_up == 0
    worker.cursor["folder"]["a.edi"][2] -= 3601
    await worker.pull()
    assert worker.picked_up == 1


@pytest.mark.parametrize("committed", [False, True])
async def test_a_worker_that_dies_around_the_commit_loses_and_doubles_nothing(
    worker: Worker, committed: bool, tmp_path: Path
) -> None:
    (inbox(worker) / "a.edi").write_text(STATUS_FILE)
    await worker.pull()
    async with aclosing(
        cast(Any, worker.source.pull(PullContext(client=CLIENT, cursor=worker.cursor)))
    ) as pages:
        page = await anext(pages)
        if committed:
            worker._commit(page)
    assert names(inbox(worker)) == ["a.edi"]
    for _ in range(2):
        await worker.pull()
    assert names(tmp_path / "done") == ["a.edi"]
    assert len(worker.files) == 1


async def test_names_in_the_archive_are_never_overwritten(worker: Worker, tmp_path: Path) -> None:
    for text in (STATUS_FILE, STATUS_FILE.replace("0815", "0816"), STATUS_FILE):
        (inbox(worker) / "a.edi").write_text(text)
        await worker.pull()
        await worker.pull()
    kept = {(tmp_path / "done" / name).read_text() for name in names(tmp_path / "done")}
    assert kept == {STATUS_FILE, STATUS_FILE.replace("0815", "0816")}


async def test_links_folders_and_hidden_files_are_left(worker: Worker, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password")
    (inbox(worker) / "link.edi").symlink_to(secret)
    (inbox(worker) / "folder.edi").mkdir()
    (inbox(worker) / ".hidden").write_text("x")
    for _ in range(3):
        await worker.pull()
    assert worker.picked_up == 0


async def test_a_file_too_large_is_a_dead_letter_and_its_neighbour_goes_on(worker: Worker) -> None:
    with (inbox(worker) / "huge.edi").open("wb") as large:
        large.truncate(Edi.max_body_bytes + 1)
    (inbox(worker) / "a.edi").write_text(STATUS_FILE)
    for _ in range(4):
        await worker.pull()
    assert worker.picked_up == 1
    (refused,) = worker.refused
    assert refused.content_type == MALFORMED
    assert names(inbox(worker)) == ["huge.edi"]


async def test_a_file_name_that_is_no_text(worker: Worker, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(inbox(worker)) + b"/\xff.edi")).write_text(STATUS_FILE)
    for _ in range(2):
        await worker.pull()
    assert [file.name for file in worker.files.values()] == ["folder/\\udcff.edi"]
    assert names(inbox(worker)) == []


async def test_names_that_look_alike_are_told_apart(worker: Worker) -> None:
    """One name has the byte ff, the other spells out how that byte is stored."""
    for name, text in ((b"a\xff.edi", STATUS_FILE), (b"a\\udcff.edi", STATUS_FILE[::-1])):
        path = Path(os.fsdecode(os.fsencode(inbox(worker)) + b"/" + name))
        path.write_text(text)
        os.utime(path, (1_000_000, 1_000_000))
    (inbox(worker) / "good.edi").write_text(STATUS_FILE.replace("0815", "0816"))
    for _ in range(2):
        await worker.pull()
    found = sorted(file.name for file in worker.files.values())
    assert found == ["folder/a\\\\udcff.edi", "folder/a\\udcff.edi", "folder/good.edi"]
    assert names(inbox(worker)) == []


@pytest.mark.parametrize("planted", ["link", "pipe", "longer"])
async def test_a_file_that_is_replaced_after_the_listing_is_not_read(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(STATUS_FILE)
    path = inbox(worker) / "a.edi"
    path.write_text(STATUS_FILE)
    await worker.pull()
    scan = mailboxes._scan

    def replaced(folder: Path) -> list[mailboxes.FileEntry]:
        entries = scan(folder)
        path.unlink()
        if planted == "link":
            path.symlink_to(secret)
        elif planted == "pipe":
            os.mkfifo(path)
        else:
            path.write_text(STATUS_FILE * 2)
        return entries

    monkeypatch.setattr(mailboxes, "_scan", replaced)
    async with asyncio.timeout(10):
        await worker.pull()
    assert worker.picked_up == 0
    assert worker.cursor["folder"]["a.edi"][:1] == [len(STATUS_FILE)]


async def test_a_link_in_the_outbound_folder_is_not_written_through(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "997.edi.tmp").symlink_to(ours)
    box = mailboxes.FolderMailbox(tmp_path / "in", tmp_path / "done", tmp_path / "out")
    await box.write("997.edi", b"ISA")
    assert (ours.read_text(), (tmp_path / "out" / "997.edi").read_bytes()) == ("keep", b"ISA")


async def test_many_files_come_in_pages(worker: Worker) -> None:
    for n in range(45):
        (inbox(worker) / f"{n:02d}.edi").write_text(STATUS_FILE.replace("0815", f"08{n:02d}"))
    await worker.pull()
    context = PullContext(client=CLIENT, cursor=worker.cursor)
    pages = [page async for page in worker.source.pull(context)]
    assert [len(page.files) for page in pages] == [20, 20, 5]
    assert [len((page.cursor or {})["folder"]) for page in pages] == [25, 5, 0]


async def test_a_backfill_reads_the_archive_and_leaves_it(worker: Worker, tmp_path: Path) -> None:
    for n in range(3):
        (inbox(worker) / f"{n}.edi").write_text(STATUS_FILE.replace("0815", f"081{n}"))
    await worker.pull()
    await worker.pull()
    for n in range(3):
        os.utime(tmp_path / "done" / f"{n}.edi", (1_000_000 + n, 1_000_000 + n))
    worker.files.clear()
    since, until = (datetime.fromtimestamp(1_000_000 + n, UTC) for n in (0, 2))
    await worker.pull(BackfillRange(since, until), {})
    assert [file.name for file in worker.files.values()] == ["folder/0.edi", "folder/1.edi"]
    assert names(tmp_path / "done") == ["0.edi", "1.edi", "2.edi"]
    worker.files.clear()
    await worker.pull(BackfillRange(since, until), {"folder": [1_000_000.0, "0.edi"]})
    assert [file.name for file in worker.files.values()] == ["folder/1.edi"]


async def test_a_backfill_tells_of_a_file_that_changes_while_it_is_read(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "done").mkdir()
    for name in ("0.edi", "1.edi"):
        (tmp_path / "done" / name).write_text(STATUS_FILE)
        os.utime(tmp_path / "done" / name, (1_000_000, 1_000_000))
    read = mailboxes._read
    monkeypatch.setattr(
        mailboxes, "_read", lambda path, size: read(path, size - (path.name == "0.edi"))
    )
    since, until = (datetime.fromtimestamp(1_000_000 + n, UTC) for n in (0, 2))
    await worker.pull(BackfillRange(since, until), {})
    assert [file.name for file in worker.files.values()] == ["folder/1.edi"]
    assert [event.content_type for event in worker.refused] == [MALFORMED]


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    source = edi(inbound_folder=str(tmp_path / "no"), archive_folder=str(tmp_path / "done"))
    with pytest.raises(Misconfigured, match="does not exist"):
        await Worker(source).pull()


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
def test_settings_that_a_pull_needs(settings: dict[str, str], missing: str) -> None:
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


async def test_files_by_sftp(tmp_path: Path) -> None:
    async with mailbox() as simulator:
        (simulator.folder("sftp", "inbound") / "a.edi").write_text(STATUS_FILE)
        worker = Worker(remote(simulator, sftp_key="", sftp_password=PASSWORD))
        await worker.pull()
        await worker.pull()
        assert [file.name for file in worker.files.values()] == ["sftp/a.edi"]
        assert names(simulator.folder("sftp", "archive")) == ["a.edi"]
        await worker.process()
        await worker.process(again=True)
        assert simulator.outcomes() == {("NWTR", "QM", "4711"): "A"}


async def test_a_name_by_sftp_that_is_no_text_stops_no_other_file() -> None:
    async with mailbox() as simulator:
        folder = simulator.folder("sftp", "inbound")
        Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.edi")).write_text(STATUS_FILE)
        (folder / "b.edi").write_text(STATUS_FILE.replace("0815", "0816"))
        worker = Worker(remote(simulator))
        await worker.pull()
        await worker.pull()
        found = sorted(file.name for file in worker.files.values())
        assert found == ["sftp/M\\udcfcller.edi", "sftp/b.edi"]
        assert names(folder) == []


async def test_no_more_is_read_by_sftp_than_the_listing_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with mailbox() as simulator:
        path = simulator.folder("sftp", "inbound") / "a.edi"
        path.write_text(STATUS_FILE)
        read: list[int] = []
        original = asyncssh.SFTPClientFile.read

        async def counted_read(file: Any, size: int = -1, offset: int | None = None) -> Any:
            data = await original(file, size, offset)
            read.append(len(data))
            return data

        monkeypatch.setattr(asyncssh.SFTPClientFile, "read", counted_read)
        worker = Worker(remote(simulator))
        await worker.pull()
        listing = mailboxes.SftpMailbox.list_files

        async def small(box: Any, *, archived: bool = False) -> list[mailboxes.FileEntry]:
            """Return the listing of a moment ago: the file has grown meanwhile."""
            entries = await listing(box, archived=archived)
            path.write_text(STATUS_FILE * 50)
            return [replace(entry, size=len(STATUS_FILE)) for entry in entries]

        with monkeypatch.context() as patch:
            patch.setattr(mailboxes.SftpMailbox, "list_files", small)
            await worker.pull()
        assert (worker.picked_up, read) == (0, [len(STATUS_FILE) + 1])
        await worker.pull()
        await worker.pull()
        assert worker.picked_up == 1


@pytest.mark.parametrize("known", ["", "another", "other host"])
async def test_an_unknown_server_is_refused_before_any_credential_is_sent(known: str) -> None:
    async with mailbox() as simulator, mailbox() as other:
        lines = {
            "": "# nobody",
            "another": other.settings("")["sftp_known_hosts"].replace(
                str(other.settings("")["sftp_port"]), str(simulator.settings("")["sftp_port"])
            ),
            "other host": other.settings("")["sftp_known_hosts"],
        }
        worker = Worker(remote(simulator, sftp_known_hosts=lines[known]))
        with pytest.raises(Unauthorized, match="not the pinned one") as refused:
            await worker.pull()
        assert "sftp_known_hosts" in refused.value.remedy


async def test_wrong_credentials_and_no_server() -> None:
    async with mailbox() as simulator:
        with pytest.raises(Unauthorized, match="refuses"):
            await Worker(remote(simulator, sftp_key="", sftp_password="wrong")).pull()
        with pytest.raises(Misconfigured, match="sftp_key"):
            await Worker(remote(simulator, sftp_key="no key")).pull()
        with pytest.raises(Misconfigured, match="no such folder"):
            await Worker(remote(simulator, sftp_inbound="nowhere")).pull()
        unreachable = remote(simulator)
    with pytest.raises(RetryLater):
        await Worker(unreachable).pull()


async def test_a_pull_that_is_cancelled_when_it_is_connected_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to Python 3.11 `asyncio.wait_for` loses a cancellation at the moment of success."""
    connect = asyncssh.connection._connect

    async def connect_and_cancel(*arguments: Any) -> Any:
        connection = await connect(*arguments)
        pulling.cancel()
        return connection

    async def pull_and_go_on() -> None:
        await Worker(remote(simulator)).pull()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncssh.connection, "_connect", connect_and_cancel)
    async with mailbox() as simulator:
        pulling = asyncio.create_task(pull_and_go_on())
        done, _ = await asyncio.wait([pulling], timeout=10)
    assert done and pulling.cancelled()


async def test_a_server_that_accepts_and_says_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailboxes, "CONNECT_SECONDS", 0.2)

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    async with mailbox() as simulator:
        port = silent.sockets[0].getsockname()[1]
        worker = Worker(remote(simulator, sftp_port=port))
        with pytest.raises(RetryLater):
            await worker.pull()
    silent.close()


async def test_a_server_that_is_down_does_not_delay_a_folder(worker: Worker) -> None:
    async with mailbox() as simulator:
        down = simulator.settings("")
    both = {**down, **{k: str(v) for k, v in worker.source.settings if k.endswith("_folder")}}
    (inbox(worker) / "a.edi").write_text(STATUS_FILE)
    worker.source = edi(**both)
    for _ in range(2):
        with pytest.raises(RetryLater):
            await worker.pull()
    assert worker.picked_up == 1


@pytest.mark.soak
@pytest.mark.parametrize("day", ["good", "bad"])
async def test_a_day_ends_with_everything_in_memory_and_acknowledged(
    day: str, request: pytest.FixtureRequest
) -> None:
    soak: int | None = request.config.getoption("--soak")
    bad_seed = 1 if soak is None else soak
    seed = bad_seed if day == "bad" else 0
    chaos = Chaos(
        seed=seed, errors=0.1, limits=0.1, duplicates=0.3, disorder=0.3, mutations=0.3
    ) if seed else Chaos()  # fmt: skip
    async with mailbox(chaos, seed) as simulator:
        worker = Worker(edi(**simulator.settings("")))
        worker.dice = random.Random(seed) if seed else None
        start, failures = simulator.world.start, 0
        for n in range(24):
            simulator.clock.advance_to(start + timedelta(hours=18) * (n + 1) / 24)
            simulator.pushes(start, simulator.clock.now)
            try:
                await worker.pull()
            except ApexError:
                failures += 1
            await worker.process()
        chaos.off()
        worker.dice = None
        for _ in range(3):
            await worker.pull()
            await worker.process()
        assert bool(failures) == (day == "bad")
        now = simulator.clock.now
        assert simulator.outcomes() == simulator.expected_outcomes(now) != {}
        newest = worker.newest()
        deleted = {key for key, event in newest.items() if event.content_type == TOMBSTONE}
        truth = simulator.truth(now)
        assert newest.keys() == {item.doc_key for item in truth}
        assert deleted == {item.doc_key for item in truth if item.deleted}
        assert any(key.startswith("cancellation:") for key in newest)
        wrong = [
            item
            for item in truth
            if not item.deleted
            and item.text not in worker.source.document(newest[item.doc_key]).text
        ]
        assert wrong == []
        for name in ("folder", "sftp"):
            assert names(simulator.folder(name, "inbound")) == []
            assert not [n for n in names(simulator.folder(name, "outbound")) if n.endswith(".tmp")]
        assert len(worker.files) <= worker.picked_up
        _check_quirks(list(worker.files.values()), worker)


def _check_quirks(files: Sequence[InboundFile], worker: Worker) -> None:
    findings = ""
    for picked_up in files:
        findings += " ".join(worker.source.unpack(picked_up).findings)
    for quirk in ("not 106", "byte order", "over lines", "GE is missing", "SE01", "IEA02", "QM is due", "a blank", "SE02", "8 elements"):  # fmt: skip
        assert quirk in findings, quirk


def test_refs_of_assertions_have_a_type() -> None:
    for text in (STATUS_FILE, file("SM", TENDER), file("IM", INVOICE), file("GF", RESPONSE)):
        for fact in document_of(text).assertions:
            assert isinstance(fact, Assertion)
            assert all(":" in ref for ref in (fact.subject, fact.object) if ref)
