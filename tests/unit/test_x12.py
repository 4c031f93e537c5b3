"""X12 segments and envelopes: the quirks of real files, and no input that raises."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import x12
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apex_memory.sources import registry
from apex_memory.sources.edi import events
from apex_memory.sources.edi.events import parse_file
from apex_memory.sources.edi.x12.envelope import Interchange, TransactionSet, parse_envelopes
from apex_memory.sources.edi.x12.segments import _ByteOffsets, read_parts
from tests.examples import examples
from tests.unit.x12_files import (
    INVOICE,
    RESPONSE,
    STATUS,
    STATUS_FILE,
    TENDER,
    file,
    group,
    interchange,
)

REAL = Path(registry.__file__).parent / "edi" / "samples"
FLAT = STATUS_FILE.replace("\n", "")
FUZZ = settings(max_examples=examples(300), deadline=None, database=None)


def segments(text: str | bytes) -> list[list[tuple[str, ...]]]:
    parts, _ = read_parts(text.encode() if isinstance(text, str) else text)
    return [[tuple(segment) for segment in part.segments] for part in parts]


def stripped(text: str | bytes) -> list[list[tuple[str, ...]]]:
    return [[tuple(map(str.strip, segment)) for segment in part] for part in segments(text)]


def interchanges(text: str | bytes) -> list[Interchange]:
    parts, _ = read_parts(text.encode() if isinstance(text, str) else text)
    return [parse_envelopes(part) for part in parts]


def findings(text: str | bytes) -> list[str]:
    return list(parse_file(text.encode() if isinstance(text, str) else text).findings)


def set_digests(text: str | bytes) -> list[str]:
    return [item.digest() for item in sets(text)]


def sets(text: str | bytes) -> list[TransactionSet]:
    """All sets of a file, in its order."""
    result: list[TransactionSet] = []
    for part in interchanges(text):
        for part_group in part.groups:
            result += part_group.sets
    return result


CLEAN = segments(FLAT)
DIGESTS = set_digests(FLAT)


def test_a_file_as_it_should_be() -> None:
    (part,) = CLEAN
    assert len(part) == 20
    assert part[0][:1] == ("ISA",) and part[0][13] == "000004711" and part[0][16] == ":"
    assert part[3] == ("B10", "PRO778812", "SHP-100045", "NWTR")
    assert part[13] == ("AT7", "AF", "NS", "", "", "20251101", "0815", "ET")
    assert findings(STATUS_FILE) == []
    assert segments(STATUS_FILE) == CLEAN


SHORT = "ISA*00* *00* *02*NWTR *ZZ*APEXSHIPPER *251101*0830*U*00401*000004711*0*P*:~"
QUIRKS: dict[str, tuple[str | bytes, str]] = {
    "byte order mark": (b"\xef\xbb\xbf" + FLAT.encode(), "byte order mark"),
    "ISA not padded": (SHORT + FLAT[106:], "ISA has 75 characters, not 106"),
    "terminator newline": (FLAT.replace("~", "\n"), ""),
    "terminator CR LF": (FLAT.replace("~", "\r\n"), ""),
    "terminator of three bytes": (FLAT.replace("~", "…"), ""),
    "terminator full stop": (FLAT.replace("~", "."), ""),
    "terminator a quote, bars": (FLAT.replace("~", "'").replace("*", "|"), ""),
    "terminator a control character": (FLAT.replace("~", "\x1e").replace("*", "\x1d"), ""),
    "wrapped at 80": ("\n".join(FLAT[n : n + 80] for n in range(0, len(FLAT), 80)), "over lines"),
    "wrapped at 80, CR LF": (
        "\r\n".join(FLAT[n : n + 80] for n in range(0, len(FLAT), 80)),
        "over lines",
    ),
    "indented": (FLAT.replace("~", "~\r\n      "), ""),
    "blanks and NUL at the end": (FLAT + "\r\n\x1a\x00  ", ""),
    "no terminator at the end": (FLAT[:-1], ""),
    "GE and IEA missing": (FLAT.split("GE*")[0], "GE is missing"),
    "IEA missing": (FLAT.split("IEA*")[0], "IEA is missing"),
    "IEA02 is not ISA13": (FLAT.replace("IEA*1*000004711", "IEA*1*000004712"), "IEA02 is"),
    "IEA01 wrong": (FLAT.replace("IEA*1", "IEA*2"), "IEA01 is 2, there are 1 groups"),
    "GE02 is not GS06": (FLAT.replace("GE*1*4711", "GE*1*4712"), "GE02 is 4712"),
    "GE01 wrong": (FLAT.replace("GE*1*", "GE*7*"), "GE01 is 7, there are 1 sets"),
    "GS01 does not match the set": (FLAT.replace("GS*QM", "GS*IN"), "group IN, where QM is due"),
    "trailing GS element": (FLAT.replace("X*004010~", "X*004010*~"), "more than 8 elements"),
    "duplicate ISA": (FLAT[:106] + FLAT, "header without content"),
    "text before": ("Content-Type: application/edi-x12\r\n\r\n" + FLAT, "were skipped"),
    "ISA16 missing": (FLAT.replace("*P*:~", "*P*~"), "ISA16 is missing"),
    "ISA16 missing, lines": (STATUS_FILE.replace("*P*:~", "*P*~"), "ISA16 is missing"),
    "blank before the terminator": (FLAT.replace("*P*:~", "*P*: ~"), "blanks before the end"),
    "segments outside of a set": (FLAT.replace("GE*1", "ZZZ*1~GE*1"), "outside of any set"),
    "no group": (FLAT[:106] + STATUS + "IEA*0*000004711~", "no GS"),
    "set without envelope": (STATUS, "no ISA"),
    "group without interchange": (group("QM", 4711, STATUS), "no ISA"),
    "set without envelope, lines": (STATUS.replace("~", "\r\n"), "no ISA"),
    "UTF-16": ("\ufeff".encode("utf-16-le") + FLAT.encode("utf-16-le"), "UTF-16"),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_quirk_loses_nothing_and_is_a_finding(quirk: str) -> None:
    text, expected = QUIRKS[quirk]
    assert set_digests(text) == DIGESTS
    actual = findings(text)
    if expected:
        assert any(expected in finding for finding in actual), actual
    else:
        assert actual == []


@pytest.mark.parametrize(
    ("trailer", "expected"),
    [
        ("SE*15*0001", "SE01 is 15, there are 16 segments"),
        ("SE*x*0001", "SE01 is x"),
        ("SE*16*0001 N/L", "text after the number in SE02"),
        ("SE*16*9999", "SE02 is 9999, ST02 is 0001"),
    ],
)
def test_a_wrong_trailer_is_a_finding(trailer: str, expected: str) -> None:
    text = FLAT.replace("SE*16*0001", trailer)
    (only,) = interchanges(text)
    assert only.groups[0].sets[0].is_complete
    assert stripped(text)[0][:-3] == CLEAN[0][:-3]
    assert any(expected in finding for finding in findings(text))


def test_a_trailer_of_another_set_completes_none() -> None:
    (only,) = interchanges(FLAT.replace("SE*16*0001", "SE*40*0007"))
    assert not only.groups[0].sets[0].is_complete


def test_leading_blanks_in_elements() -> None:
    text = FLAT.replace("B10*PRO778812*SHP-100045*NWTR", "B10* PRO778812* SHP-100045* NWTR")
    assert stripped(text)[0] == CLEAN[0]
    assert set_digests(text) == DIGESTS
    assert sum("begins with a blank" in finding for finding in findings(text)) == 3


def test_several_interchanges_each_with_separators_of_its_own() -> None:
    other = interchange(12, group("GF", 12, RESPONSE)).replace("*", "|").replace("~", "\n")
    bare = STATUS.replace("0001", "0009")
    parts = interchanges(bare + FLAT + "\r\n" + other + FLAT)
    assert [part.control for part in parts] == ["", "000004711", "000000012", "000004711"]
    assert [len(part.groups[0].sets) for part in parts] == [1, 1, 1, 1]


@pytest.mark.parametrize("count", ["bytes", "characters"])
def test_binary_data_may_hold_terminators(count: str) -> None:
    data = "ISA~ST*~\r\n*é-"
    length = len(data.encode() if count == "bytes" else data)
    with_binary = FLAT.replace("AT8*", f"BIN*{length}*{data}~AT8*").replace("SE*16", "SE*17")
    (part,) = segments(with_binary)
    assert part[16] == ("BIN", str(length), data)
    assert len(part) == 21
    assert findings(with_binary) == []


@pytest.mark.parametrize(
    "bad",
    ["BIN*99999999*~", "\n" * 40 + "BIN*99999999*", "BIN*9*é~", " " * 30 + "~", "ISA*00*~"],
    ids=["lengths", "newlines", "not ascii", "blanks", "headers"],
)
@pytest.mark.parametrize("terminator", ["~", "\n"])
def test_w6_time_is_linear_in_the_bytes_of_a_file(
    bad: str, terminator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the bytes take about four times as long; with a square they would take sixteen times."""
    monkeypatch.setattr(events, "MAX_SETS", 1_000_000)
    head = FLAT[:106].replace("~", terminator)

    def seconds(size: int) -> float:
        body = (bad.replace("~", terminator) * (size // len(bad) + 1))[:size]
        data = f"{head}{STATUS.replace('~', terminator)}BIN*5*{terminator}{body}".encode()
        began = time.process_time()
        parse_file(data)
        return time.process_time() - began

    for last in (
        False,
        False,
        True,
    ):  # a machine that stumbles in one measurement is measured again
        small, large = seconds(60_000), seconds(240_000)
        if large < 1.5 and large < 9 * max(small, 0.01):
            break
        assert not last, (small, large)


@FUZZ
@given(
    text=st.text("aé…\U0001f69a~", max_size=3_000),
    start=st.integers(0, 3_000),
    length=st.integers(0, 9_000),
)
def test_w6_byte_offsets_are_those_of_the_encoded_text(text: str, start: int, length: int) -> None:
    start = min(start, len(text))
    rest = text[start:].encode()
    try:
        expected = start + len(rest[:length].decode()) if length <= len(rest) else None
    except UnicodeDecodeError:
        expected = None
    actual = _ByteOffsets(text).advance(start, length)
    if expected is None and text.isascii():
        assert actual == start + length, "beyond the end, which the caller checks"
    else:
        assert actual == expected


def test_a_binary_length_that_does_not_fit_is_a_finding() -> None:
    text = FLAT.replace("AT8*", "BIN*99999*abc~AT8*").replace("SE*16", "SE*17")
    assert len(segments(text)[0]) == 21
    assert any("BIN" in finding for finding in findings(text))


def test_a_party_called_isa_is_no_header() -> None:
    text = FLAT.replace("EXAMPLE PAPER CO", "ISA").replace("SAMPLE RETAIL", "VISA ISA*1")
    assert len(segments(text)) == 1


@pytest.mark.parametrize("cut", range(120, len(FLAT), 7))
def test_a_truncated_file_never_yields_an_incomplete_set_as_complete(cut: int) -> None:
    end = FLAT.index("SE*16*0001") + len("SE*16*0001")
    complete = [item.is_complete for item in sets(FLAT[:cut])]
    assert complete in ([], [cut >= end])
    if cut < end:
        assert findings(FLAT[:cut])


def test_sets_before_a_cut_are_complete() -> None:
    invoices = [INVOICE.replace("*0001~", f"*000{n}~") for n in range(1, 6)]
    text = file("IM", *invoices)
    cut = sets(text[: text.index(invoices[3]) + 100])
    assert [item.is_complete for item in cut] == [True, True, True, False]


def test_other_bytes_than_x12_are_a_finding() -> None:
    for data in (b"", b"  \r\n", b"{}", b"\x00\xff" * 50, b"PK\x03\x04", b"ISA", b"ISA*" * 30):
        assert not sets(data)
        assert findings(data), data


REAL_FILES = ("responses", "tender", "tender_bare", "status", "acknowledgement_bare")


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files(name: str) -> None:
    data = (REAL / f"{name}.edi").read_bytes()
    items = sets(data)
    count, lengths = {
        "responses": (3, [7, 5, 8]),
        "tender": (1, [61]),
        "tender_bare": (1, [29]),
        "status": (1, [27]),
        "acknowledgement_bare": (1, [10]),
    }[name]
    assert len(items) == count
    assert [len(item.segments) for item in items] == lengths
    assert all(item.is_complete for item in items)


@pytest.mark.parametrize(
    "text",
    [STATUS_FILE, file("IM", INVOICE), file("SM", TENDER), file("GF", RESPONSE)],
    ids=["214", "210", "204", "990"],
)
def test_another_parser_reads_the_same(text: str) -> None:
    document = x12.tokenize_x12(text.encode())
    (own,) = stripped(text)
    other = []
    for segment in document.segments:
        values = [value.decode().strip() for value in segment.elements]
        other.append((segment.tag, *values))
    assert own == other
    parsed = x12.parse_x12_interchange(document)
    assert parsed.control_number == interchanges(text)[0].control.encode()


def test_another_parser_reads_the_same_real_tender() -> None:
    data = (REAL / "tender.edi").read_bytes()
    other = x12.tokenize_x12(data).segments
    (own,) = segments(data)
    assert [segment[0] for segment in own] == [segment.tag for segment in other]


PIECES = st.sampled_from(
    [
        "ISA",
        "GS",
        "ST*214*0001",
        "SE*2*0001",
        "~",
        "*",
        "\n",
        "BIN*5*",
        "IEA",
        "\r",
        FLAT[:106],
        "…",
        "GE*1*1",
        "TA1",
        " ",
        ":",
        "AT7*X3",
        "ST|990|1'",
        "\x00",
        "ISA*00*" * 3,
        STATUS,
        FLAT,
    ]
)


@FUZZ
@given(
    data=st.binary(max_size=400) | st.lists(PIECES, max_size=12).map(lambda p: "".join(p).encode())
)
@example(b"ISA*" + b"*" * 400)
@example(b"\xff\xfeI\x00S\x00A\x00\x00\xd8")
def test_no_bytes_raise(data: bytes) -> None:
    for event in parse_file(data).events():
        assert len(event.event_id) < 1_000 and len(event.doc_key) < 1_000
        event.event_id.encode()
        event.doc_key.encode()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"M\xc4RS \x96 CAF\xc9", "MÄRS – CAFÉ"),
        (b"\x80 100 \x93net\x94", "€ 100 “net”"),
        (b"O\x92NEIL \x81", "O’NEIL \x81"),
        ("MÄRS – CAFÉ".encode(), "MÄRS – CAFÉ"),
        ("MÄRS ".encode() + b"CAF\xc9", "MÄRS CAFÉ"),
    ],
)
def test_f10_bytes_that_are_no_utf_8_are_windows_1252(data: bytes, name: str) -> None:
    text = FLAT.encode().replace(b"EXAMPLE PAPER CO", data)
    assert segments(text)[0][6][2] == name
    is_utf8 = data == name.encode()
    assert findings(text) == ([] if is_utf8 else ["not UTF-8; read as Windows-1252"])


def test_f10_one_file_of_two_senders_with_an_encoding_each() -> None:
    utf8 = FLAT.replace("EXAMPLE PAPER CO", "ŁÓDŹ PAPER").encode()
    cp1252 = FLAT.encode().replace(b"EXAMPLE PAPER CO", b"M\xc4RS").replace(b"4711", b"4712")
    assert [part[6][2] for part in segments(utf8 + cp1252)] == ["ŁÓDŹ PAPER", "MÄRS"]


VALUES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="*~:\xa0\x85\xad"),
    max_size=12,
)
NAMES = st.sampled_from(["L11", "N1", "K1", "NTE", "ZZ9"])


@FUZZ
@given(
    body=st.lists(st.tuples(NAMES, st.lists(VALUES, min_size=1, max_size=4)), max_size=8),
    ends=st.sampled_from(["~", "~\n", "~\r\n", "~\n   "]),
)
def test_segments_survive_writing_and_reading(body: list[tuple[str, list[str]]], ends: str) -> None:
    lines = ["*".join([name, *values]) for name, values in body]
    text = "~".join(["ST*214*0001", *lines, f"SE*{len(lines) + 2}*0001"]) + "~"
    whole = file("QM", text)
    (part,) = segments(whole.replace("~", ends))
    assert part[3:-3] == [(name, *values) for name, values in body]
    (only,) = interchanges(whole)
    assert only.groups[0].sets[0].is_complete
