"""X12 as partners really use it: what must not be lost, replaced, misread or left out. Each test is named after its fault."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_memory.model import MALFORMED, TOMBSTONE, Document, Event
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.edi.coverage import LEFT_OUT, SHOWN
from apex_memory.sources.edi.source import Edi
from apex_memory.sources.pages import InboundFile
from apex_memory.sources.registry import load
from tests.examples import examples
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

MANY = settings(max_examples=examples(200), deadline=None, database=None)


def edi(**values: Any) -> Edi:
    source = load({"edi": values})["edi"]
    assert isinstance(source, Edi)
    return source


EDI = edi()


def events(text: str, source: Edi = EDI) -> list[Event]:
    return list(source.unpack(InboundFile("x.edi", text.encode())).events)


def findings(text: str) -> list[str]:
    return list(EDI.unpack(InboundFile("x.edi", text.encode())).findings)


def document(text: str, source: Edi = EDI) -> Document:
    return source.document(events(text, source)[0])


def facts(doc: Document, predicate: str) -> set[str]:
    return {
        fact.object or fact.value or ""
        for fact in doc.assertions
        if fact.predicate == predicate and fact.subject
    }


def live(*texts: str) -> dict[str, Event]:
    """Return the newest event of each document, whatever the order of the files."""
    results = []
    for order in itertools.permutations(texts):
        newest: dict[str, Event] = {}
        for text in order:
            for event in events(text):
                other = newest.get(event.doc_key)
                if other is None or (event.version, event.event_id) > (
                    other.version,
                    other.event_id,
                ):
                    newest[event.doc_key] = event
        results.append(newest)
    assert all(result == results[0] for result in results)
    return results[0]


# F3: identity of status reports

NO_TIME = STATUS.replace("AT7*AF*NS***20251101*0815*ET", "AT7*D1*NS***20251101")
NO_PLACE = counted(NO_TIME.replace("MS1*COLUMBUS*OH*US~MS2*NWTR*T-204~", ""))
APPOINTMENT = STATUS.replace("AT7*AF*NS**", "AT7***AB*NA")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (STATUS, STATUS.replace("T-204", "T-205")),
        (STATUS, STATUS.replace("COLUMBUS*OH*US~MS2", "DAYTON*OH*US~MS2")),
        (STATUS, STATUS.replace("COLUMBUS*OH*US~MS2", "COLUMBUS*GA*US~MS2")),
        (STATUS, STATUS.replace("L11*7781*PO", "L11*7782*PO")),
        (STATUS, STATUS.replace("PRO778812", "PRO778813")),
        (counted(STATUS.replace("LX*1~", "L11*1*QN~LX*1~")), counted(STATUS.replace("LX*1~", "L11*2*QN~LX*1~"))),
        (STATUS.replace("LX*1~", "LX*2~"), STATUS),
        (NO_TIME, NO_TIME.replace("COLUMBUS*OH*US~MS2", "DAYTON*OH*US~MS2")),
        (NO_PLACE, NO_PLACE.replace("SAMPLE RETAIL*93*ST22", "SAMPLE RETAIL*93*ST23")),
        (NO_PLACE, NO_PLACE.replace("SAMPLE RETAIL*93*ST22", "OTHER RETAIL")),
        (APPOINTMENT, APPOINTMENT.replace("COLUMBUS*OH*US~MS2", "DAYTON*OH*US~MS2")),
        (
            STATUS.replace("MS1*COLUMBUS*OH*US", "MS1****0825956*0395740*W*N"),
            STATUS.replace("MS1*COLUMBUS*OH*US", "MS1****0825956*0395840*W*N"),
        ),
    ],
    ids=["unit", "city", "state", "order", "pro", "stop", "line", "no time", "party number", "party", "appointment", "position"],
)  # fmt: skip
@pytest.mark.parametrize("files", [1, 2])
def test_f3_two_reports_of_one_moment_are_both_live(first: str, second: str, files: int) -> None:
    if files == 1:
        newest = live(file("QM", first, second.replace("0001~", "0002~")))
    else:
        newest = live(file("QM", first), file("QM", second, number=4712, sent="20251101*0830"))
    assert len(newest) == 2


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("AT7*AF*NS", "AT7*AF*AI", "mechanical breakdown"),
        ("AT8*G*L*18250*24", "AT8*G*L*17000*20", "17000 lb, 20 pieces"),
        ("*0815*ET", "*0815*CT", "08:15 CT"),
        ("9 PLACEHOLDER AVE", "11 PLACEHOLDER AVE", "11 PLACEHOLDER AVE"),
    ],
)
def test_f3_a_correction_replaces_the_report(old: str, new: str, text: str) -> None:
    corrected = STATUS.replace(old, new)
    newest = live(file("QM", STATUS), file("QM", corrected, number=4712, sent="20251101*0900"))
    (event,) = newest.values()
    assert text in EDI.document(event).text


def test_f3_reports_with_several_statuses_differ_by_units_and_places() -> None:
    two = counted(STATUS.replace("AT8*", "AT7*X3*NS***20251101*0700*ET~MS1*DAYTON*OH~AT8*"))
    assert len(live(file("QM", two), file("QM", two.replace("DAYTON", "TOLEDO"), number=4712))) == 2
    assert len(live(file("QM", two), file("QM", two.replace("T-204", "T-9"), number=4712))) == 2
    assert len(live(file("QM", two), file("QM", two, number=4712))) == 1


# F15 and F24: zones and midnight


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("20", "2026-11-02T13:00:00+00:00"),
        ("01", "2026-11-02T07:00:00+00:00"),
        ("12", "2026-11-01T20:00:00+00:00"),
        ("13", "2026-11-02T20:00:00+00:00"),
        ("24", "2026-11-02T09:00:00+00:00"),
        ("ES", "2026-11-02T13:00:00+00:00"),
        ("25", "2026-11-02T08:00:00+00:00"),
        ("00", "2026-11-02T08:00:00+00:00"),
    ],
)
def test_f15_numbered_zones(zone: str, expected: str) -> None:
    text = STATUS.replace("*20251101*0815*ET", f"*20261102*0800*{zone}")
    doc = document(file("QM", text))
    assert doc.occurred_at.isoformat() == expected
    assert doc.metadata["statuses"][0]["at"] == expected
    is_known = zone not in ("25", "00")
    assert any("AT707 is no known code" in text for text in findings(file("QM", text))) != is_known
    tender = TENDER.replace("G62*10*20251101*Y*0800*ET", f"G62*10*20261102*Y*0800*{zone}")
    assert facts(document(file("SM", tender)), "pickup_at") == {expected}


def test_f15_a_numbered_zone_is_shown_as_its_offset() -> None:
    text = document(file("QM", STATUS.replace("*0815*ET", "*0815*20"))).text
    assert "2025-11-01 08:15 UTC-05:00" in text


@pytest.mark.parametrize("midnight", ["2400", "240000", "24000000"])
def test_f24_24_o_clock_is_the_next_day(midnight: str) -> None:
    text = STATUS.replace("*20251101*0815*ET", f"*20251031*{midnight}*UT")
    doc = document(file("QM", text))
    assert doc.occurred_at == datetime(2025, 11, 1, tzinfo=UTC)
    assert "2025-11-01 00:00 UT" in doc.text
    assert findings(file("QM", text)) == []


def test_f24_in_an_envelope() -> None:
    late, early = file("SM", TENDER, sent="20251031*2400"), file("SM", TENDER, sent="20251101*0001")
    assert events(late)[0].version < events(early)[0].version
    assert events(late)[0].occurred_at == datetime(2025, 11, 1, tzinfo=UTC)
    (reply,) = EDI.unpack(InboundFile("x", late.encode())).replies
    assert b"GS*FA*APEXSHIPPER*NWTR*20251101*0000*" in reply.data


# F16: notes


@pytest.mark.parametrize(
    ("function", "text", "after"),
    [
        ("SM", TENDER, "B2A*00*LT~"),
        ("SM", TENDER, "S5*1*CL*18250*L*24*PL~"),
        ("GF", RESPONSE, "N9*CN*PRO778812~"),
        ("QM", STATUS, "L11*7781*PO~"),
        ("QM", STATUS, "MS2*NWTR*T-204~"),
        ("QM", STATUS, "AT8*G*L*18250*24~"),
        ("IM", INVOICE, "C3*USD~"),
        ("IM", INVOICE, "L5*1*PAPER, NOIBN~"),
        ("IM", INVOICE, "124500******24*L~"),
    ],
)
@pytest.mark.parametrize("note", ["NTE*GEN*{}~", "NTE**{}~", "K1*{}*MORE~", "K1*FIRST*{}~"])
def test_f16_notes_of_every_set_are_text(function: str, text: str, after: str, note: str) -> None:
    assert after in text
    body = counted(text.replace(after, after + note.format("GLOVEWORT NEEDED"), 1))
    lines = document(file(function, body)).text.splitlines()
    assert [line for line in lines if "GLOVEWORT NEEDED" in line and line.startswith("Note: ")]


# F25: the hour that is there twice

CANCEL = TENDER.replace("B2A*00", "B2A*01")


def tender_after(*files: str) -> Event:
    return live(*files)["tender:NWTR:SHP-100045"]


@pytest.mark.parametrize("day", ["20261101", "20251102", "20241103"])
def test_f25_a_cancel_in_the_repeated_hour_is_newer_by_its_control_number(day: str) -> None:
    tender = file("SM", TENDER, number=9010, sent=f"{day}*0150")
    cancel = file("SM", CANCEL, number=9011, sent=f"{day}*0105")
    assert tender_after(tender, cancel).content_type == TOMBSTONE
    anew = file("SM", TENDER, number=9012, sent=f"{day}*0101")
    assert tender_after(tender, cancel, anew).content_type != TOMBSTONE
    assert any("ordered by control number" in text for text in findings(cancel))


def test_f25_messages_around_that_hour_keep_their_order() -> None:
    times = ["0059", "0100", "0159", "0200"]
    files = [file("SM", TENDER, number=9_010 + n, sent=f"20261101*{time}") for n, time in enumerate(times)]  # fmt: skip
    versions = [events(text)[0].version for text in files]
    assert versions == sorted(versions) and len(set(versions)) == 4
    assert not any("daylight" in text for text in findings(files[0]) + findings(files[3]))
    other = file("SM", TENDER, number=9010, sent="20261108*0150")
    assert not any("daylight" in text for text in findings(other))


@MANY
@given(
    numbers=st.lists(st.integers(1, 999_999), min_size=2, max_size=2, unique=True),
    minutes=st.lists(st.integers(0, 59), min_size=2, max_size=2),
)
def test_f25_the_control_number_decides_within_that_hour(
    numbers: list[int], minutes: list[int]
) -> None:
    versions = [
        events(file("SM", TENDER, number=number, sent=f"20261101*01{minute:02d}"))[0].version
        for number, minute in zip(numbers, minutes, strict=True)
    ]
    assert (versions[0] < versions[1]) == (numbers[0] < numbers[1])


# F26: tests


def as_test(text: str) -> str:
    assert "*0*P*:~" in text
    return text.replace("*0*P*:~", "*0*T*:~")


@pytest.mark.parametrize(
    ("function", "text"),
    [("IM", INVOICE), ("QM", STATUS), ("SM", TENDER), ("GF", RESPONSE), ("FA", REJECTED)],
)
def test_f26_a_test_interchange_is_kept_apart(function: str, text: str) -> None:
    (test,), (real,) = events(as_test(file(function, text))), events(file(function, text))
    assert test.doc_key == f"test:{real.doc_key}"
    doc = EDI.document(test)
    assert (doc.kind, doc.assertions, doc.about) == ("edi_test", (), None)
    for secret in ("SHP-100045", "INV-55012", "1,245", "EXAMPLE PAPER", "PRO778812", "4712"):
        assert secret not in doc.text + doc.title
    assert doc.title.startswith("Test ")
    assert doc.metadata["test"] is True
    assert any("a test (ISA15 is T)" in text for text in findings(as_test(file(function, text))))
    (reply,) = EDI.unpack(InboundFile("x", as_test(file("IM", INVOICE)).encode())).replies
    assert b"*0*T*:~" in reply.data


def test_f26_a_test_deletes_and_refuses_nothing() -> None:
    assert tender_after(file("SM", TENDER), as_test(file("SM", CANCEL, number=9999))).payload
    bad = events(as_test(file("IM", INVOICE.replace("*124500*", "*12.45*"))))
    assert [event.content_type for event in bad] == ["application/json"]
    assert "Checked: rejected" in EDI.document(bad[0]).text


def test_f26_tests_can_be_taken_like_real_ones() -> None:
    doc = document(as_test(file("IM", INVOICE)), edi(test_interchanges="take"))
    assert doc.kind == "invoice"
    assert "Net amount: 1,245.00 USD" in doc.text
    assert doc.metadata["test"] is True


# S4: replies


def test_s4_files_that_differ_in_their_trailers_get_replies_of_their_own() -> None:
    texts = [
        STATUS_FILE,
        STATUS_FILE.replace("GE*1*4711", "GE*2*4711"),
        STATUS_FILE.replace("GE*1*4711", "GE*1*4712"),
        STATUS_FILE.replace("SE*16", "SE*17"),
        STATUS_FILE.split("GE*")[0],
    ]
    replies: list[InboundFile] = []
    for text in texts:
        replies += EDI.unpack(InboundFile("x", text.encode())).replies
    assert len({reply.name for reply in replies}) == len({reply.data for reply in replies}) == 5
    again = EDI.unpack(InboundFile("y", texts[1].encode())).replies
    assert list(again) == [replies[1]]


# S5: acknowledgements


def test_s5_bare_acknowledgements_do_not_replace_each_other() -> None:
    rejected = ACCEPTED.replace("AK5*A", "AK5*R*5").replace("AK9*A*1*1*1", "AK9*R*1*1*0")
    assert len(live(ACCEPTED, rejected)) == 2
    assert len(live(ACCEPTED, ACCEPTED)) == 1


def test_s5_the_group_names_the_sender_where_there_is_no_interchange() -> None:
    first, second = group("FA", 1, ACCEPTED), group("FA", 1, ACCEPTED).replace("NWTR", "BRFT")
    assert len(live(first, second)) == 2
    assert events(first)[0].doc_key == "acknowledgement:NWTR:APEXSHIPPER:QM:4711:214/0001"


def test_s5_acknowledgements_of_other_sets_of_a_group_are_others() -> None:
    second = ACCEPTED.replace("AK2*214*0001", "AK2*214*0002")
    assert len(live(file("FA", ACCEPTED), file("FA", second, number=4712))) == 2
    rejected = ACCEPTED.replace("AK5*A", "AK5*R*5")
    corrected = file("FA", ACCEPTED, number=4712, sent="20251101*0900")
    (newest,) = live(file("FA", rejected), corrected).values()
    assert "accepted" in EDI.document(newest).text


def test_s5_bare_sets_of_one_file_are_ordered_by_their_place() -> None:
    declined = RESPONSE.replace("*A~", "*D~")
    for first, second, state in (
        (declined, RESPONSE, "accepted"),
        (RESPONSE, declined, "declined"),
    ):
        (newest,) = live(first + second.replace("0001~", "0002~")).values()
        assert f"Answer: {state}" in EDI.document(newest).text


# S6: sets without their number


def test_s6_a_reference_gives_the_number_that_is_missing() -> None:
    bad = TENDER.replace("*SHP-100045**PP", "***PP")
    (refused,) = events(file("SM", bad))
    (corrected,) = events(file("SM", TENDER, number=4712, sent="20251101*0900"))
    assert refused.content_type == MALFORMED
    assert refused.doc_key == corrected.doc_key
    assert refused.version < corrected.version


def test_s6_a_set_that_names_nothing_has_to_be_discarded_once_corrected() -> None:
    bad = TENDER.replace("*SHP-100045**PP", "***PP")
    (known,) = events(file("SM", bad))
    assert "discard" not in json.loads(known.payload)["remedy"], "its correction closes it"
    (unknown,) = events(file("SM", bad.replace("L11*SHP-100045*BM~", "L11*X1*ZZ~")))
    assert "discard this" in json.loads(unknown.payload)["remedy"]


def test_s6_sets_that_name_nothing_have_a_key_each() -> None:
    bad = TENDER.replace("*SHP-100045**PP", "***PP").replace("L11*SHP-100045*BM~", "L11*X1*ZZ~")
    other = bad.replace("SAMPLE RETAIL", "OTHER RETAIL")
    assert len(live(file("SM", bad), file("SM", other, number=4712))) == 2
    assert len(live(file("SM", bad), file("SM", bad, number=4712))) == 1


# S8: estimates

ESTIMATE = "AT7*AG*NS***20251103*1500*ET~MS1*ATLANTA*GA*US~"
DEPARTED_AND_ESTIMATE = counted(STATUS.replace("AT8*", f"{ESTIMATE}AT8*"))


def test_s8_an_estimate_is_not_what_happened() -> None:
    event = events(file("QM", DEPARTED_AND_ESTIMATE))[0]
    doc = EDI.document(event)
    assert doc.title == "SHP-100045 departed pickup location (NWTR)"
    assert doc.occurred_at == event.occurred_at == datetime(2025, 11, 1, 12, 15, tzinfo=UTC)
    assert facts(doc, "status") == {"departed pickup location"}
    assert facts(doc, "estimated_delivery_at") == {"2025-11-03T20:00:00+00:00"}
    assert "estimated delivery (AG); 2025-11-03 15:00 ET" in doc.text


@pytest.mark.parametrize("code", ["AG", "X2", "AA"])
def test_s8_an_estimate_alone_happened_when_it_was_sent(code: str) -> None:
    text = STATUS.replace("AT7*AF*NS***20251101*0815*ET", f"AT7*{code}*NS***20251109*0815*ET")
    doc = document(file("QM", text))
    assert doc.occurred_at == datetime(2025, 11, 1, 8, 30, tzinfo=UTC)
    assert "estimated" in doc.title
    assert facts(doc, "status") == set()
    assert facts(doc, "estimated_delivery_at") | facts(doc, "estimated_pickup_at")


def test_s8_an_appointment_lies_ahead() -> None:
    text = APPOINTMENT.replace("20251101*0815", "20251109*0815")
    doc = document(file("QM", text))
    assert doc.occurred_at == datetime(2025, 11, 1, 8, 30, tzinfo=UTC)
    assert doc.title == "SHP-100045 delivery appointment (NWTR)"
    assert facts(doc, "status") == set()


# S12


@pytest.mark.parametrize("bad", ["2025110", "20251301", "", "2O251101"])
def test_s12_a_wrong_group_date_is_a_finding_and_the_reply_has_the_interchange_s(bad: str) -> None:
    text = file("QM", STATUS).replace("APEXSHIPPER*20251101*0830", f"APEXSHIPPER*{bad}*0830")
    assert f"interchange 000004711: group 4711: GS04 is no date: {bad or 'empty'}" in findings(text)
    (reply,) = EDI.unpack(InboundFile("x", text.encode())).replies
    assert b"*20251101*0830*" in reply.data
    assert b"20000101" not in reply.data
    assert events(text)[0].version == events(file("QM", STATUS))[0].version


def test_s12_identical_sets_of_a_file_are_findings() -> None:
    same_number = file("QM", STATUS, STATUS)
    assert any("stands here twice with the same content" in text for text in findings(same_number))
    other_number = file("QM", STATUS, STATUS.replace("0001~", "0002~"))
    assert any("set 214 0002 of interchange 000004711 has the same content as set 214 0001" in text for text in findings(other_number))  # fmt: skip
    assert not findings(
        file("QM", STATUS, STATUS.replace("0001~", "0002~").replace("0815", "0816"))
    )


def test_s12_findings_come_in_the_order_of_the_file() -> None:
    zulu, alpha = (
        counted(INVOICE.replace("SHP-100045*PP", f"SHP-{n}*XYZ")).replace("*0001~", f"*000{n}~")
        for n in (1, 2)
    )
    text = file("IM", zulu, alpha).replace("GE*2*", "GE*9*")
    assert [f.partition(": ")[2][:30] for f in findings(text)] == [
        "group 4711: GE01 is 9, there a",
        "group 4711, set 210 0001: B304",
        "group 4711, set 210 0002: B304",
    ]


def test_s12_more_findings_than_are_kept_are_counted() -> None:
    sets = [INVOICE.replace("*PP*", "*XYZ*").replace("*0001~", f"*{n:04d}~") for n in range(500)]
    kept = findings(file("IM", *sets))
    assert len(kept) == 200
    assert kept[-1].endswith(" more findings")


def remedy(event: Event) -> str:
    return str(json.loads(event.payload)["remedy"])


def test_s12_a_997_is_named_only_where_there_is_one() -> None:
    bad = INVOICE.replace("*124500*", "*12.45*")
    text = file("IM", bad)
    assert "997" in remedy(events(text)[0])
    at = datetime(2026, 1, 1, tzinfo=UTC)
    request = InboundRequest(body=text.encode(), headers={}, query={}, received_at=at)
    (by_api,) = EDI.receive(request).events
    for event in (
        by_api,
        events(text, edi(acknowledge=False))[0],
        events(text, edi(own_ids=["NWTR"]))[0],
        events(bad)[0],
        events(interchange(1, bad))[0],
    ):
        assert event.content_type == MALFORMED
        assert "997" not in remedy(event)


# Facts that no text held


@pytest.mark.parametrize(
    ("function", "text", "after", "segment", "line"),
    [
        ("SM", TENDER, "S5*1*CL*18250*L*24*PL~", "N7*MSKU*777374**************6~", "MSKU777374"),
        ("SM", TENDER, "B2A*00*LT~", "N7*MSKU*777374****************5~", "Equipment: MSKU7773745"),
        ("SM", TENDER, "S5*1*CL*18250*L*24*PL~", "LH1*KG*200*UN1993******II~", "UN1993"),
        ("SM", TENDER, "S5*1*CL*18250*L*24*PL~", "LH3*FLAMMABLE LIQUID, N.O.S.~", "FLAMMABLE LIQUID"),
        ("IM", INVOICE, "C3*USD~", "G62*86*20251101~", "Picked up: 2025-11-01"),
        ("IM", INVOICE, "C3*USD~", "N7**TRL901*********TF~", "Equipment: TRL901, TF"),
        ("QM", STATUS, "L11*7781*PO~", "G62*17*20251104*3*1000*UT~", "Estimated delivery: 2025-11-04 10:00 UT"),
        ("QM", STATUS, "MS2*NWTR*T-204~", "Q7*D*PLT*24~", "Quantity: 24 PLT, exception D"),
    ],
)  # fmt: skip
def test_facts_are_in_the_text(
    function: str, text: str, after: str, segment: str, line: str
) -> None:
    assert after in text
    assert line in document(file(function, counted(text.replace(after, after + segment, 1)))).text


def test_facts_a_charge_is_named_by_its_description() -> None:
    charge = "LX*3~L1*3***140****405****HOLIDAY PICKUP~L3*"
    body = INVOICE.replace("L3*18250", f"{charge}18250").replace("*124500*", "*124640*")
    text = document(file("IM", counted(body))).text
    assert "HOLIDAY PICKUP: 1.40 USD, 405" in text


def test_facts_an_estimate_by_date_is_asserted() -> None:
    text = STATUS.replace("L11*7781*PO~", "L11*7781*PO~G62*17*20251104*3*1000*UT~")
    estimate = facts(document(file("QM", counted(text))), "estimated_delivery_at")
    assert estimate == {"2025-11-04T10:00:00+00:00"}


@pytest.mark.parametrize("role", ["CN", "WH", "DA", "ZZ"])
def test_facts_any_party_of_a_stop_is_its_place(role: str) -> None:
    doc = document(file("SM", TENDER.replace("N1*ST*", f"N1*{role}*")))
    assert facts(doc, "destination") == {"location:ATLANTA GA"}
    without_city = TENDER.replace("~N4*ATLANTA*GA*30303*US", "")
    doc = document(file("SM", counted(without_city.replace("N1*ST*", f"N1*{role}*"))))
    assert facts(doc, "destination") == {"company:SAMPLE RETAIL"}
    buyer_first = TENDER.replace("N1*ST*", "N1*BY*HEAD OFFICE~N1*ST*")
    doc = document(file("SM", counted(buyer_first)))
    assert facts(doc, "destination") == {"location:ATLANTA GA"}


@pytest.mark.parametrize("reason", ["DR", "SU", "XX", ""])
def test_facts_the_last_stop_is_the_destination_whatever_it_is_for(reason: str) -> None:
    doc = document(file("SM", TENDER.replace("S5*2*CU", f"S5*2*{reason}")))
    assert facts(doc, "destination") == {"location:ATLANTA GA"}


BODIES = {"204": ("SM", TENDER), "990": ("GF", RESPONSE), "214": ("QM", STATUS), "210": ("IM", INVOICE)}  # fmt: skip
OTHERS = ["OID", "PLD", "LAD", "AT5", "MS3", "M7", "MAN", "MEA", "R3", "L7", "H3", "LHR", "CD3", "ZZ9"]  # fmt: skip


ONCE = ("ST", "SE", "B2", "B2A", "B1", "B10", "B3", "C3", "LX", "S5", "N1", "AK3", "AK4")
"""Segments of which a set has one, or that begin a loop."""


@pytest.mark.parametrize("name", sorted(BODIES))
def test_facts_every_element_is_in_the_document_or_left_out_on_purpose(name: str) -> None:
    """A segment with a word of its own in each place, after every segment of the set: every word must be found again."""
    function, body = BODIES[name]
    segments = body.rstrip("~").split("~")
    words = [f"W{place}Q" for place in range(1, 25)]
    for segment_id in sorted({*SHOWN[name], *LEFT_OUT, *OTHERS} - set(ONCE)):
        extra = f"{segment_id}*{'*'.join(words)}"
        left_out = LEFT_OUT.get(segment_id, ())
        expected = [word for place, word in enumerate(words, 1) if place not in left_out]
        for position in range(3, len(segments)):
            changed = "~".join([*segments[:position], extra, *segments[position:]])
            doc = document(file(function, counted(f"{changed}~")))
            values = f"{doc.text} {doc.metadata} {doc.assertions}"
            missing = [word for word in expected if word not in values]
            assert missing == [], (segment_id, segments[position - 1])
