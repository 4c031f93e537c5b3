"""Files to text, on real files of each format, and on hostile ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.charset import decode
from apex_memory.pipeline.file_limits import ReaderLimits
from apex_memory.pipeline.parse import Parsed
from apex_memory.pipeline.reader import FileReader
from tests import documents

BILL = documents.pdf(
    "Bill of Lading BOL 8812345\nShipper: Northwind Trucking LLC\nColumbus, OH 43215",
    "Consignee: Harbor Foods",
    title="BOL 8812345",
)
RATE = documents.docx(
    "# Rate confirmation", "Load SHP-100045", table=[["Stop", "City"], ["1", "Dallas"]]
)
SHEET = documents.xlsx([["Load", "Amount"], ["SHP-100045", 2450.5]], sheet="March")
NESTED = File("deep.html", "text/html", b"<b><table>" * 20_000 + b"x")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader() -> AsyncIterator[FileReader]:
    reader = FileReader(ReaderLimits(characters=100_000), processes=1)
    yield reader
    await reader.close()


async def read(reader: FileReader, name: str, data: bytes, media_type: str = "") -> Parsed:
    file = File(name, media_type or "application/octet-stream", data)
    return (await reader.read_file(file)).parsed


async def test_pdf_keeps_its_lines(reader: FileReader) -> None:
    found = await read(reader, "bol.pdf", BILL, documents.PDF)
    assert found.text.splitlines()[:2] == [
        "Bill of Lading BOL 8812345",
        "Shipper: Northwind Trucking LLC",
    ]
    assert "Consignee: Harbor Foods" in found.text
    assert found.title == "BOL 8812345"
    assert found.metadata["pages"] == 2


async def test_word_and_excel_become_markdown(reader: FileReader) -> None:
    word = await read(reader, "rate.docx", RATE, documents.DOCX)
    assert word.text.startswith("# Rate confirmation\n\nLoad SHP-100045")
    assert "| 1 | Dallas |" in word.text
    assert word.title == "Rate confirmation"
    sheet = await read(reader, "loads.xlsx", SHEET, documents.XLSX)
    assert "## March" in sheet.text
    assert "| SHP-100045 | 2450.5 |" in sheet.text
    assert sheet.title == ""


async def test_html_loses_its_scripts_not_its_text(reader: FileReader) -> None:
    page = "<html><head><title>T</title><script>evil()</script></head><body><h1>Délai</h1><p>SHP-100045<br>late</p></body></html>"
    for data, kind in (
        (page.encode(), "text/html"),
        (page.encode("cp1252"), "text/html; charset=windows-1252"),
    ):
        found = await read(reader, "page", data, kind)
        assert found.text.split() == ["#", "Délai", "SHP-100045", "late"]
        assert found.title == "Délai"


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.xlsx"])
async def test_the_first_bytes_win_over_name_and_type(reader: FileReader, name: str) -> None:
    data = {"a.pdf": BILL, "a.docx": RATE, "a.xlsx": SHEET}[name]
    assert (await read(reader, "upload.txt", data, "text/plain")).text == (
        await read(reader, name, data)
    ).text


@pytest.mark.parametrize(
    ("name", "media_type", "data", "text"),
    [
        ("a.txt", "", b"caf\xc3\xa9", "café"),
        ("a.txt", "", b"caf\xe9", "café"),
        ("a.csv", "text/csv", b"\xef\xbb\xbfload,1", "load,1"),
        ("a.json", "application/json", '{"a": "é"}'.encode("utf-16"), '{"a": "é"}'),
        ("x", "text/x-anything; charset=iso-8859-2", b"\xb1", "ą"),
        ("x.md", "", b"# Head\n\ntext", "# Head\n\ntext"),
        ("x.edi", "", b"ISA*00*~", "ISA*00*~"),
    ],
)
async def test_text_as_it_is(
    reader: FileReader, name: str, media_type: str, data: bytes, text: str
) -> None:
    assert (await read(reader, name, data, media_type)).text == text


async def test_mail_with_what_is_attached(reader: FileReader) -> None:
    forwarded = documents.mail("Original words", subject="First", sender="Sam Lee <sam@x.example>")
    data = documents.mail(
        "See attached.",
        html="<p>not this</p>",
        subject="ETA for SHP-100045? ü",
        attachments=[
            ("bol.pdf", documents.PDF, BILL),
            ("logo.png", "image/png", b"\x89PNG"),
            ("first.eml", "application/octet-stream", forwarded),
        ],
    )
    found = await read(reader, "mail.eml", data)
    head, _, rest = found.text.partition("\n\n")
    assert head.splitlines() == [
        "From: Dana Ortiz <dana@northwind.example>",
        "To: Dispatch <dispatch@acme.example>",
        "Date: Tue, 03 Mar 2026 09:15:00 -0600",
        "Subject: ETA for SHP-100045? ü",
    ]
    assert rest.startswith("See attached.")
    assert "not this" not in found.text
    sections = [found.text[start:end] for start, end in found.sections]
    assert [one.partition("\n")[0] for one in sections] == ["## bol.pdf", "## first.eml"]
    assert "Shipper: Northwind" in sections[0]
    assert "Original words" in sections[1]
    assert found.title == "ETA for SHP-100045? ü"
    assert found.metadata["mail"]["message_id"] == "<20260303.1@northwind.example>"
    assert found.metadata["mail"]["date"] == "2026-03-03T09:15:00-06:00"
    notes = {note["name"]: note for note in found.metadata["attachments"]}
    assert notes["logo.png"]["unread"].startswith("cannot read .png; supported: PDF")
    assert notes["bol.pdf"]["pages"] == 2
    said = {(a.predicate, a.subject, a.object or a.value) for a in found.assertions}
    assert ("from", "", "email:dana@northwind.example") in said
    assert ("name", "email:dana@northwind.example", "Dana Ortiz") in said
    assert ("email", "person:dana-ortiz", "email:dana@northwind.example") in said
    assert not any("sam@x.example" in str(one) for one in said), "a mail inside is not this mail"
    assert all(
        found.text[a.start :].startswith(("dana@", "dispatch@"))
        for a in found.assertions
        if a.start
    )


async def test_mail_of_html_alone(reader: FileReader) -> None:
    data = documents.mail("", html="<p>Load <b>SHP-100045</b></p>", subject="s")
    assert "Load **SHP-100045**" in (await read(reader, "m.eml", data)).text


async def test_mail_in_mail_ends_somewhere(reader: FileReader) -> None:
    data = documents.mail("innermost words", subject="0")
    nesting = ReaderLimits().nesting
    for n in range(1, nesting + 3):
        data = documents.mail(
            "", html="<p>x</p>", subject=str(n), attachments=[(f"{n}.eml", "application/x", data)]
        )
    found = await read(reader, "m.eml", data)
    assert "innermost" not in found.text
    assert f"more than {nesting} levels deep (limit `reader_nesting`)" in str(found.metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"From: =?bogus?Q?x?= <a@b.example>\nDate: never\nContent-Type: text/plain; charset=nope\n\nhello \xff",
        b"From: " + b"<a@b.example>," * 5_000 + b"\n\nhello",
        b'Content-Type: multipart/mixed; boundary="b"\n\n--b\n\nhello\n',
        b"Subject: \xff\xfe\n\nhello",
    ],
)
async def test_mail_that_is_not_quite_mail(reader: FileReader, data: bytes) -> None:
    assert "hello" in (await read(reader, "m.eml", data)).text


BOMB = documents.archive(
    {"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<w:t>" + b"A" * 30_000_000}
)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.xyz", b"zzz\x00", "cannot read .xyz; supported: PDF, DOCX"),
        ("a.png", b"\x89PNG", "cannot read .png"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "cannot read .7z"),
        ("a.pdf", b"%PDF-1.4 broken", "cannot be read as a PDF"),
        ("a.docx", b"PK\x03\x04 broken", "the archive is damaged"),
        (
            "a.msg",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 broken",
            r"cannot be read as an Outlook message \(\.msg\)",
        ),
        ("a.pdf", documents.pdf(""), "holds no text"),
        ("a.txt", b" \n", "holds no text"),
        ("a.docx", BOMB, "reader_compression_ratio"),
    ],
)
async def test_refused_with_a_reason_and_a_remedy(
    reader: FileReader, name: str, data: bytes, reason: str
) -> None:
    with pytest.raises(Rejected, match=reason) as refused:
        await read(reader, name, data)
    assert refused.value.remedy
    assert "zzz" not in str(refused.value)


async def test_a_file_that_kills_its_reader_costs_itself_alone() -> None:
    reader = FileReader(processes=1)
    try:
        await asyncio.gather(reader.read_file(NESTED), return_exceptions=True)
        assert "Northwind" in (await read(reader, "bol.pdf", BILL)).text
        [process] = reader._idle
        process.kill()  # as the stack overflow above does, sooner or later
        await process.wait()
        assert "Northwind" in (await read(reader, "bol.pdf", BILL)).text
    finally:
        await reader.close()


async def test_a_file_that_takes_too_long_is_refused_and_its_reader_ended() -> None:
    reader = FileReader(ReaderLimits(seconds=0.0005))
    try:
        with pytest.raises(Rejected, match=r"takes longer than 0\.0005 s \(limit `reader_seconds`"):
            await read(reader, "bol.pdf", BILL)
        assert not reader._idle
    finally:
        await reader.close()


async def test_a_cancelled_reading_leaves_no_answer_behind(reader: FileReader) -> None:
    await read(reader, "bol.pdf", BILL)  # the process runs
    task = asyncio.create_task(read(reader, "rate.docx", RATE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "Northwind" in (await read(reader, "bol.pdf", BILL)).text


async def test_no_more_text_than_asked_for() -> None:
    reader = FileReader(ReaderLimits(characters=1_000))
    try:
        found = await read(reader, "long.html", b"<p>" + b"word " * 1_000)
    finally:
        await reader.close()
    assert len(found.text) == 1_000
    assert found.metadata["cut"] == {"characters": 5_000, "kept": 1_000}


def test_marks_are_told_apart() -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode("é漢".encode(encoding)) == "é漢"
    assert decode(b"\x81\xe9") == "\ufffdé"
