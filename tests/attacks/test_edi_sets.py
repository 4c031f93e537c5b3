"""A partner's file of a great many tiny sets is one dead letter, and costs no more than its reading."""

from __future__ import annotations

import tracemalloc

import pytest

from apex_memory.errors import Rejected
from apex_memory.model import MALFORMED, now
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.edi import events
from apex_memory.sources.edi.events import MAX_SETS, parse_file
from apex_memory.sources.edi.settings import EdiSettings
from apex_memory.sources.edi.source import Edi
from apex_memory.sources.pages import InboundFile

ISA = "ISA*00*          *00*          *ZZ*NWTR           *ZZ*APEX           *260303*0915*U*00401*000000001*0*P*:~"
GROUP = "GS*GF*A*B*20260303*0915*1*X*004010~"


def request(data: bytes) -> InboundRequest:
    return InboundRequest(data, {"content-type": "application/edi-x12"}, {}, now(), "key")


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        (ISA + GROUP + "ST*990~" * (MAX_SETS + 1), "ST"),
        (ISA + "GS*GF~" * (MAX_SETS + 1), "GS"),
        (ISA + "TA1*1~" * (MAX_SETS + 1), "TA1"),
        (ISA + GROUP + "SE~" * (MAX_SETS + 1), "SE"),
    ],
    ids=["sets", "groups", "acknowledgements", "ends"],
)
def test_a_file_of_too_many_sets_is_refused_as_one(text: str, segments: str) -> None:
    source, data = Edi(EdiSettings()), text.encode()
    reason = f"10,001 segments {segments} in one file, allowed are 10,000"
    with pytest.raises(Rejected, match=reason) as refused:
        source.receive(request(data))
    assert refused.value.remedy == "send the sets in several files"
    unpacked = source.unpack(InboundFile("folder/many.edi", data))
    [event] = unpacked.events
    assert event.content_type == MALFORMED and reason.encode() in event.payload
    assert (unpacked.replies, unpacked.findings) == ((), [reason])


def test_as_many_sets_as_allowed_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_SETS", 50)
    sets = "".join(f"ST*990*{n:04d}~B1*SCAC*SHP-{n}~SE*3*{n:04d}~" for n in range(50))
    text = f"{ISA}{GROUP}{sets}GE*50*1~IEA*1*000000001~"
    assert len(Edi(EdiSettings()).receive(request(text.encode())).events) == 50


def test_elements_that_read_st_are_no_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_SETS", 10)
    body = "N1*ST*WAREHOUSE~N3*12 MAIN ST*SUITE 4~" * 200
    text = f"{ISA}{GROUP}ST*204*0001~{body}SE*402*0001~GE*1*1~IEA*1*000000001~"
    assert len(parse_file(text.encode()).interchanges[0][0].groups[0].sets) == 1


def test_twenty_megabytes_of_sets_are_refused_before_they_are_taken_apart() -> None:
    data = (ISA + GROUP + "ST*990~" * 2_800_000).encode()
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match="segments ST in one file"):
            parse_file(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(data)


def test_segments_outside_of_sets_are_counted_by_few_names() -> None:
    text = ISA + "".join(f"{n:03x}*1~" for n in range(4_000))
    [(interchange, _)] = parse_file(text.encode()).interchanges
    assert len(interchange.findings) < 60
    assert "3950 segments of other names outside of any set were skipped" in interchange.findings
