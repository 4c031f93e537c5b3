"""Files to text, on real files of each format, and on hostile ones."""

from __future__ import annotations

import asyncio
import io
import random
import re
import time
import zipfile
from collections.abc import AsyncIterator
from html import escape

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.archives import OLE
from apex_memory.pipeline.charset import decode
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.number_formats import show_number
from apex_memory.pipeline.office_packages import final_open_document
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
PAGE = b"MIME-Version: 1.0\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>Dock op=\r\nens at six.</p>"
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
    parsed = await read(reader, "bol.pdf", BILL, documents.PDF)
    assert parsed.text.splitlines()[:2] == [
        "Bill of Lading BOL 8812345",
        "Shipper: Northwind Trucking LLC",
    ]
    assert "Consignee: Harbor Foods" in parsed.text
    assert parsed.title == "BOL 8812345"
    assert parsed.metadata["pages"] == 2


async def test_what_people_type_onto_a_pdf_is_read(reader: FileReader) -> None:
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Annots [4 0 R] >>",
        b"<< /Type /Annot /Subtype /FreeText /Rect [50 600 300 640] /Contents (Got SHP-100045) >>",
    ]
    parsed = await read(reader, "bol.pdf", documents.pdf_file(objects), documents.PDF)
    assert "Got SHP-100045" in parsed.text


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
        parsed = await read(reader, "page", data, kind)
        assert parsed.text.split() == ["#", "Délai", "SHP-100045", "late"]
        assert parsed.title == "Délai"
        assert parsed.metadata["title"] == "T"


async def test_fields_of_a_page_have_the_values_that_it_shows(reader: FileReader) -> None:
    page = (
        "<form>PRO: <input name=a value=223456781> BOL: <INPUT type=TEXT value='88-112 &amp; 3'><input type=hidden "
        "value=token><input type=password value=secret><input type=checkbox value=on></form>"
    )
    text = (await read(reader, "page.html", f"<html>{page}".encode())).text
    assert text.split() == ["PRO:", "223456781", "BOL:", "88-112", "&", "3"]


@pytest.mark.parametrize("tag", ["header", "nav", "form", "aside", "footer", "section"])
async def test_no_part_of_a_page_is_left_out(reader: FileReader, tag: str) -> None:
    page = f"<html><body><{tag}>Load SHP-100045</{tag}><p>late</p><script>no()</script></body>"
    assert (await read(reader, "page.html", page.encode())).text.split() == [
        "Load",
        "SHP-100045",
        "late",
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("<table><tr><td>PRO<td>223456781</table>after", "PRO 223456781 after"),
        ("<TABLE><TBODY><TR><TH>PRO<TD>1<TBODY><TR><TD>BOL<TD>2</TABLE>", "PRO 1 BOL 2"),
        ("<table><tr><td>a<table><tr><td>in<td>ner</table><td>out</table>", "a in ner out"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("<TABLE><tr><TD>a</td><td>b</TD></TR></table>c</td>", "a b c"),
    ],
)
async def test_cells_without_end_tags_are_read(reader: FileReader, table: str, words: str) -> None:
    text = (await read(reader, "page.html", f"<body>{table}".encode())).text
    assert [word for word in text.split() if word.strip("|-\\")] == words.split()


async def test_a_page_of_tags_that_never_end_is_read(reader: FileReader) -> None:
    page = b"<nav><header>" * 3_000 + b"Load SHP-100045"
    assert (await read(reader, "page.html", page)).text == "Load SHP-100045"


async def test_a_page_without_a_heading_is_called_by_its_title(reader: FileReader) -> None:
    page = "<html><head><title lang=en>\n Load SHP-100045 &amp; more </title></head><p>late</p>"
    assert (await read(reader, "page.html", page.encode())).title == "Load SHP-100045 & more"


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
        ("x", "", b'[{"a": "C:\\x \\', '[{"a": "C:\\x \\'),
        ("x.txt", "", b'[3/3/26] "C:\\new"', '[3/3/26] "C:\\new"'),
        ("x", "text/x-anything; charset=iso-8859-2", b"\xb1", "ą"),
        ("x.md", "", b"# Head\n\ntext", "# Head\n\ntext"),
        ("x.edi", "", b"ISA*00*~", "ISA*00*~"),
    ],
)
async def test_text_is_kept_verbatim(
    reader: FileReader, name: str, media_type: str, data: bytes, text: str
) -> None:
    assert (await read(reader, name, data, media_type)).text == text


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.json", rb'{"a": "Caf\u00e9 \ud83d\ude9a\nnext \"quoted\" \/", "n": 2450.50}', '{"a": "Café 🚚\nnext "quoted" /", "n": 2450.50}'),
        ("a.jsonl", b'{"a": "\\u00e9"}\n[1, "\\t"]', '{"a": "é"}\n[1, "\t"]'),
        ("blob", b'[{"a": "Gr\\u00fc\\u00dfe"}]', '[{"a": "Grüße"}]'),
        ("a.xml", b'<?xml version="1.0"?><a b="&quot;Caf&#233;&quot;">A&amp;B &#x1F69A; &unknown;</a>', '<?xml version="1.0"?><a b=""Café"">A&B 🚚 &unknown;</a>'),
    ],
)  # fmt: skip
async def test_escapes_of_json_and_xml_become_characters(
    reader: FileReader, name: str, data: bytes, text: str
) -> None:
    assert (await read(reader, name, data)).text == text


@pytest.mark.parametrize(
    "text", ['["' + '\\"' * 300_000, '["a\\\n"' * 100_000, "{" + '"\\n' * 200_000]
)
async def test_escapes_take_linear_time(reader: FileReader, text: str) -> None:
    started = time.monotonic()
    await read(reader, "a.json", text.encode())
    assert time.monotonic() - started < 5


async def test_mail_with_attachments(reader: FileReader) -> None:
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
    parsed = await read(reader, "mail.eml", data)
    head, _, rest = parsed.text.partition("\n\n")
    assert head.splitlines() == [
        "From: Dana Ortiz <dana@northwind.example>",
        "To: Dispatch <dispatch@acme.example>",
        "Date: Tue, 03 Mar 2026 09:15:00 -0600",
        "Subject: ETA for SHP-100045? ü",
    ]
    assert rest.startswith("See attached.")
    assert "not this" not in parsed.text
    sections = [parsed.text[start:end] for start, end in parsed.sections]
    assert [section.partition("\n")[0] for section in sections] == ["## bol.pdf", "## first.eml"]
    assert "Shipper: Northwind" in sections[0]
    assert "Original words" in sections[1]
    assert parsed.title == "ETA for SHP-100045? ü"
    assert parsed.metadata["mail"]["message_id"] == "<20260303.1@northwind.example>"
    assert parsed.metadata["mail"]["date"] == "2026-03-03T09:15:00-06:00"
    notes = {note["name"]: note for note in parsed.metadata["attachments"]}
    assert notes["logo.png"]["unread"].startswith("cannot read .png; supported: PDF")
    assert notes["bol.pdf"]["pages"] == 2
    assertions = {(a.predicate, a.subject, a.object or a.value) for a in parsed.assertions}
    assert ("from", "", "email:dana@northwind.example") in assertions
    assert ("name", "email:dana@northwind.example", "Dana Ortiz") in assertions
    assert ("email", "person:dana-ortiz", "email:dana@northwind.example") in assertions
    assert not any("sam@x.example" in str(fields) for fields in assertions), (
        "a mail inside is not this mail"
    )
    assert all(
        parsed.text[a.start :].startswith(("dana@", "dispatch@"))
        for a in parsed.assertions
        if a.start
    )


async def test_mail_of_html_alone(reader: FileReader) -> None:
    data = documents.mail("", html="<p>Load <b>SHP-100045</b></p>", subject="s")
    assert "Load **SHP-100045**" in (await read(reader, "m.eml", data)).text


async def test_mails_inside_mails_are_read_to_a_limit(reader: FileReader) -> None:
    data = documents.mail("innermost words", subject="0")
    nesting = ReaderLimits().nesting
    for n in range(1, nesting + 3):
        data = documents.mail(
            "", html="<p>x</p>", subject=str(n), attachments=[(f"{n}.eml", "application/x", data)]
        )
    parsed = await read(reader, "m.eml", data)
    assert "innermost" not in parsed.text
    assert f"more than {nesting} levels deep (limit `reader_nesting`)" in str(parsed.metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"From: =?bogus?Q?x?= <a@b.example>\nDate: never\nContent-Type: text/plain; charset=nope\n\nhello \xff",
        b"From: " + b"<a@b.example>," * 5_000 + b"\n\nhello",
        b'Content-Type: multipart/mixed; boundary="b"\n\n--b\n\nhello\n',
        b"Subject: \xff\xfe\n\nhello",
    ],
)
async def test_malformed_mail_keeps_its_text(reader: FileReader, data: bytes) -> None:
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


async def test_a_cancelled_reading_leaves_no_response_behind(reader: FileReader) -> None:
    await read(reader, "bol.pdf", BILL)  # the process runs
    task = asyncio.create_task(read(reader, "rate.docx", RATE))
    await asyncio.sleep(0)  # one turn of the loop, in which it is sent
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "Northwind" in (await read(reader, "bol.pdf", BILL)).text


async def test_text_is_cut_at_the_limit() -> None:
    reader = FileReader(ReaderLimits(characters=1_000))
    try:
        parsed = await read(reader, "long.html", b"<p>" + b"word " * 1_000)
    finally:
        await reader.close()
    assert len(parsed.text) == 1_000
    assert parsed.metadata["cut"] == {"characters": 5_000, "kept": 1_000}


def test_byte_order_marks_are_distinguished() -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode("é漢".encode(encoding)) == "é漢"
    assert decode(b"\x81\xe9") == "\ufffdé"


def tracked_word_file() -> bytes:
    """A Word file with a deletion, an insertion and a move."""
    moved = '<w:moveFrom w:id="4" w:author="A"><w:r><w:t>Old place mossy.</w:t></w:r></w:moveFrom>'
    body = (
        '<w:p><w:del w:id="1" w:author="A"><w:r><w:delText>flint</w:delText></w:r></w:del>'
        '<w:ins w:id="2" w:author="A"><w:r><w:t>brindle</w:t></w:r></w:ins></w:p>'
        f'<w:p><w:pPr><w:rPr><w:moveFrom w:id="3" w:author="A"/></w:rPr></w:pPr>{moved}</w:p>'
        "<w:p><w:r><w:t>Between.</w:t></w:r></w:p>"
        '<w:p><w:moveTo w:id="5" w:author="A"><w:r><w:t>New place ferny.</w:t></w:r></w:moveTo></w:p>'
    )
    plain = documents.docx("HERE")
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    paragraph = re.compile(rb"<w:p>.*</w:p>")
    parts["word/document.xml"] = paragraph.sub(body.encode(), parts["word/document.xml"])
    return documents.archive(parts)


async def test_f22_word_files_are_read_in_their_final_text(reader: FileReader) -> None:
    words = (await read(reader, "a.docx", tracked_word_file())).text.split()
    assert words == ["brindle", "Between.", "New", "place", "ferny."]


def word_file(body: str, **margins: str) -> bytes:
    """A Word file with this body and, by the names of their parts, headers and footers."""
    with zipfile.ZipFile(io.BytesIO(documents.docx("HERE"))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    parts["word/document.xml"] = re.sub(
        rb"<w:p>.*</w:p>", lambda _: body.encode(), parts["word/document.xml"]
    )
    for name, text in margins.items():
        parts[f"word/{name}.xml"] = f'<w:hdr xmlns:w="{main}">{text}</w:hdr>'.encode()
    return documents.archive(parts)


async def test_breaks_in_a_word_file_end_lines(reader: FileReader) -> None:
    line = "<w:r><w:t>Shipper: Harbor</w:t><w:br/><w:t>PRO: 223456781</w:t></w:r>"
    page = '<w:r><w:br w:type="page"></w:br><w:t>Next</w:t><w:cr/></w:r>'
    cell = "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t><w:br/><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    parsed = await read(reader, "a.docx", word_file(f"<w:p>{line}{page}</w:p>{cell}"))
    assert parsed.text.split("\n")[:3] == ["Shipper: Harbor", "PRO: 223456781", "Next"]
    assert "| a b |" in parsed.text


async def test_headers_and_footers_of_a_word_file_are_in_its_text(reader: FileReader) -> None:
    header = "<w:p><w:r><w:t>Load SHP</w:t><w:noBreakHyphen/><w:t>100045</w:t><w:tab/><w:t>A &amp; B</w:t></w:r></w:p>"
    body = "<w:p><w:r><w:t>Body</w:t></w:r></w:p>"
    data = word_file(body, header1=header, header2=header, footer1=header.replace("Load", "Foot"))
    parsed = await read(reader, "a.docx", data)
    assert parsed.text.strip() == (
        "Load SHP\u2011100045\tA & B\n\nBody\n\n\nFoot SHP\u2011100045\tA & B"
    )


_FORMATS = "http://schemas.openxmlformats.org"
_PACKAGE = f"{_FORMATS}/package/2006"
_RELATION = f"{_FORMATS}/officeDocument/2006/relationships"
_SLIDES = f'xmlns:p="{_FORMATS}/presentationml/2006/main" xmlns:a="{_FORMATS}/drawingml/2006/main"'
_PRESENTATION = "application/vnd.openxmlformats-officedocument.presentationml"


def presentation(paragraph: str, notes: str) -> bytes:
    """A PowerPoint file of one slide with one paragraph, and its notes."""
    shape = f"<p:sp><p:txBody><a:bodyPr/><a:p>{paragraph}</a:p></p:txBody></p:sp>"
    tree = "<p:cSld><p:spTree>{}</p:spTree></p:cSld>"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/ppt/presentation.xml" ContentType="{_PRESENTATION}.presentation.main+xml"/><Override PartName="/ppt/slides/slide1.xml" ContentType="{_PRESENTATION}.slide+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" Type="{_RELATION}/officeDocument" Target="ppt/presentation.xml"/></Relationships>',
        "ppt/presentation.xml": f'<p:presentation {_SLIDES} xmlns:r="{_RELATION}"><p:sldIdLst><p:sldId id="256" r:id="rId1"/></p:sldIdLst></p:presentation>',
        "ppt/_rels/presentation.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" Type="{_RELATION}/slide" Target="slides/slide1.xml"/></Relationships>',
        "ppt/slides/slide1.xml": f"<p:sld {_SLIDES}>{tree.format(shape)}</p:sld>",
        "ppt/notesSlides/notesSlide1.xml": f"<p:notes {_SLIDES}>{tree.format(notes)}</p:notes>",
    }  # fmt: skip
    return documents.archive({name: part.encode() for name, part in parts.items()})


async def test_slides_keep_their_words_lines_and_notes(reader: FileReader) -> None:
    paragraph = (
        "<a:r><a:t>Shipper: Harbor</a:t></a:r><a:br/><a:r><a:t>SHP-1</a:t></a:r>"
        '<a:r><a:rPr b="1"><a:solidFill/></a:rPr><a:t>00</a:t></a:r>\n<a:r><a:rPr/><a:t>045</a:t></a:r>'
    )
    notes = "<a:p><a:r><a:t>Say PRO </a:t></a:r><a:r><a:t>223456781</a:t></a:r></a:p>"
    text = (await read(reader, "a.pptx", presentation(paragraph, notes))).text
    assert [line.strip("# ") for line in text.split("\n") if line] == [
        "Shipper: Harbor",
        "SHP-100045",
        "Say PRO 223456781",
    ]


_OPEN = "urn:oasis:names:tc:opendocument:xmlns"


def open_document(kind: str, body: str) -> bytes:
    """An OpenDocument file."""
    names = " ".join(f'xmlns:{name}="{_OPEN}:{name}:1.0"' for name in ("office", "text", "table"))
    content = f"<office:document-content {names}><office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    media_type = f"application/vnd.oasis.opendocument.{kind}"
    manifest = f'<manifest:manifest xmlns:manifest="{_OPEN}:manifest:1.0"><manifest:file-entry manifest:full-path="/" manifest:media-type="{media_type}"/></manifest:manifest>'
    parts = {"mimetype": media_type, "META-INF/manifest.xml": manifest, "content.xml": content}
    return documents.archive({name: part.encode() for name, part in parts.items()})


async def test_open_documents_keep_lines_and_cells_as_shown(reader: FileReader) -> None:
    text = "<text:p>Shipper: Harbor<text:line-break/>PRO: 223456781</text:p>"
    assert (await read(reader, "a.odt", open_document("text", text))).text.split("\n")[:2] == [
        "Shipper: Harbor",
        "PRO: 223456781",
    ]
    money = '<table:table-cell office:value-type="currency" office:currency="EUR" office:value="1234.5"><text:p>1.234,50 €</text:p></table:table-cell>'
    bare = '<table:table-cell office:value-type="float" office:value="7"/>'
    table = f'<table:table table:name="T"><table:table-row>{money}{bare}</table:table-row></table:table>'
    sheet = await read(reader, "a.ods", open_document("spreadsheet", table))
    assert "| 1.234,50 € | 7 |" in sheet.text


def with_parts(data: bytes, **parts: str) -> bytes:
    """Return a package with further parts; `__` stands for `/` in their names, which are without `.xml`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    further = {f"{name.replace('__', '/')}.xml": part.encode() for name, part in parts.items()}
    return documents.archive(members | further)


async def test_many_empty_rows_of_an_open_sheet_do_not_hide_the_others(reader: FileReader) -> None:
    row = "<table:table-row><table:table-cell office:value-type='string'><text:p>{}</text:p></table:table-cell></table:table-row>"
    empty = (
        '<table:table-row table:number-rows-repeated="1048560">'
        '<table:table-cell table:number-columns-repeated="16384"/></table:table-row>'
    )
    repeated = '<table:table-row table:number-rows-repeated="2"><table:table-cell office:value-type="float" office:value="7"/></table:table-row>'
    rows = row.format("Above") + empty + row.format("PRO 223456781") + repeated
    sheet = open_document("spreadsheet", f'<table:table table:name="T">{rows}</table:table>')
    text = (await read(reader, "a.ods", sheet)).text
    assert [cell for line in text.splitlines() if (cell := line.strip("| #-"))] == [
        "T",
        "Above",
        "PRO 223456781",
        "7",
        "7",
    ]


async def test_margins_notes_and_blanks_of_open_documents_are_read(reader: FileReader) -> None:
    names = f'xmlns:style="{_OPEN}:style:1.0" xmlns:text="{_OPEN}:text:1.0"'
    margins = (
        "<style:header><text:p>BOL<text:s/>88-1122 &amp;<text:tab/>Co</text:p></style:header>"
        "<style:header-left><text:p>BOL 88-1122 &amp; Co</text:p></style:header-left>"
        "<style:footer><text:h>Terms apply, page <text:page-number>1</text:page-number></text:h></style:footer>"
        "<style:footer-left><text:p>Page <text:page-number>1</text:page-number></text:p></style:footer-left>"
    )
    styles = f"<style:styles {names}>{margins}</style:styles>"
    text = "<text:p>Load<text:s/>SHP-100045 <text:s text:c='3'/>late</text:p>"
    parsed = await read(reader, "a.odt", with_parts(open_document("text", text), styles=styles))
    lines = [line for line in parsed.text.splitlines() if line]
    assert lines == ["BOL 88-1122 & Co", "Load SHP-100045 late", "Terms apply, page 1"]
    note = (
        "<office:annotation office:name='1'><text:p>See PRO 223456781</text:p></office:annotation>"
    )
    cell = (
        f"<table:table-cell office:value-type='string'>{note}<text:p>x</text:p></table:table-cell>"
    )
    table = f"<table:table table:name='T'><table:table-row>{cell}</table:table-row></table:table>"
    sheet = await read(reader, "a.ods", open_document("spreadsheet", table))
    assert "| x |" in sheet.text
    assert "See PRO 223456781" in sheet.text


@pytest.mark.parametrize(
    "unit",
    ["<office:annotation>", "<text:p>", "<style:header>", "<text:s ", "<table:table-row table:number-rows-repeated='9'>", "<table:table-row table:number-rows-repeated='9'><table:table-cell/>"],
)  # fmt: skip
def test_hostile_open_documents_take_linear_time(unit: str) -> None:
    body = "<office:spreadsheet " + unit * (2_000_000 // len(unit))
    data = with_parts(open_document("text", body), styles=body)
    began = time.process_time()
    final_open_document(data, EventBudget(ReaderLimits(compression_ratio=10_000)))
    assert time.process_time() - began < 5


async def test_no_break_signs_of_rtf_are_characters(reader: FileReader) -> None:
    data = rb"{\rtf1\ansi Load\~SHP\_100045 \f0\_5 re\-lay \{a\}\par}"
    text = (await read(reader, "a.rtf", data)).text
    assert text.strip() == "Load SHP-100045 -5 relay {a}"


_SHEET_XML = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


async def test_comments_shapes_and_margins_of_sheets_are_read(reader: FileReader) -> None:
    data = with_parts(
        documents.xlsx([["Load"]]),
        xl__comments1="<comments><comment><text><r><t>See PRO </t></r><r><t>223456781</t></r></text></comment>"
        "<comment><text><t>[Threaded comment]\n\nYour version of Excel … Late</t></text></comment></comments>",
        xl__threadedComments__threadedComment1="<ThreadedComments><threadedComment><text>Late &amp; wet</text></threadedComment></ThreadedComments>",
        xl__drawings__drawing1="<xdr:wsDr><xdr:txBody><a:p><a:r><a:t>Dock 7</a:t></a:r></a:p></xdr:txBody></xdr:wsDr>",
        xl__worksheets__sheet1=f'<worksheet xmlns="{_SHEET_XML}"><sheetData><row r="1"><c r="A1" t="inlineStr"><is><t>Load</t></is></c></row></sheetData>'
        "<headerFooter><oddHeader>&amp;L&amp;&quot;Arial,Bold&quot;&amp;12Invoice 88121&amp;RA &amp;&amp; B</oddHeader>"
        "<oddFooter>&amp;P / &amp;N</oddFooter></headerFooter></worksheet>",
    )
    lines = (await read(reader, "a.xlsx", data)).text.splitlines()
    footer = sorted(line for line in lines if line and not line.startswith(("|", "#")))
    assert footer == ["Dock 7", "Invoice 88121 A & B", "Late & wet", "See PRO 223456781"]


async def test_comments_and_diagrams_of_slides_are_read(reader: FileReader) -> None:
    data = with_parts(
        presentation("<a:r><a:t>Slide</a:t></a:r>", ""),
        ppt__comments__comment1="<p:cmLst><p:cm><p:text>Ask PRO 223456781</p:text></p:cm><p:cm><p:text>Done</p:text></p:cm></p:cmLst>",
        ppt__diagrams__data1="<dgm:pt><dgm:t><a:p><a:r><a:t>Load to </a:t></a:r><a:r><a:t>Dallas</a:t></a:r></a:p></dgm:t></dgm:pt>",
    )
    text = (await read(reader, "a.pptx", data)).text
    lines = [line.strip("# ") for line in text.splitlines() if line]
    assert lines == ["Slide", "Ask PRO 223456781", "Done", "Load to Dallas"]


def formatted_workbook(cells: list[tuple[str, str]]) -> bytes:
    """An Excel file of one row: each cell is a number with its format code."""
    plain = documents.xlsx([["x"]], sheet="Rates")
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = [
        f'<numFmt numFmtId="{164 + n}" formatCode="{escape(code)}"/>'
        for n, (_, code) in enumerate(cells)
    ]
    styles = [f'<xf numFmtId="{164 + n}"/>' for n in range(len(cells))]
    row = [
        f'<c r="{chr(65 + n)}1" s="{n}"><v>{value}</v></c>' for n, (value, _) in enumerate(cells)
    ]
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    parts["xl/styles.xml"] = (
        f"<styleSheet {space}><numFmts>{''.join(names)}</numFmts><cellXfs>{''.join(styles)}</cellXfs></styleSheet>"
    ).encode()
    parts["xl/_rels/workbook.xml.rels"] = parts["xl/_rels/workbook.xml.rels"].replace(
        b"</Relationships>",
        b'<Relationship Id="rId9" Target="styles.xml" '
        b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/styles"/></Relationships>',
    )
    parts["xl/worksheets/sheet1.xml"] = (
        f'<worksheet {space}><sheetData><row r="1">{"".join(row)}</row></sheetData></worksheet>'
    ).encode()
    return documents.archive(parts)


async def test_f22_numbers_of_excel_files_are_read_as_shown(reader: FileReader) -> None:
    cells = [
        ("0.185", "0.00%"),
        ("2138", "00000"),
        ("1250.5", '"$"#,##0.00'),
        ("3.3000000000000003", "General"),
        ("46328", "yyyy\\-mm\\-dd"),
        ("-12", "0;(0)"),
        ("9015550143", "(000) 000-0000"),
    ]
    text = (await read(reader, "a.xlsx", formatted_workbook(cells))).text
    shown = [cell.strip() for cell in text.splitlines()[2].strip("| ").split("|")]
    assert shown == ["18.50%", "02138", "$1,250.50", "3.3", "2026-11-02", "(12)", "(901) 555-0143"]


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        ("-1234567.891", "#,##0.00", "-1,234,567.89"),
        ("123456789", "000-00-0000", "123-45-6789"),
        ("5550143", "[<=9999999]###\\-####;(###) ###\\-####", "555-0143"),
        ("9015550143", "[<=9999999]###\\-####;(###) ###\\-####", "(901) 555-0143"),
        ("12345678", '0.0,,"M"', "12.3M"),
        ("0.5", "[$€-407] #,##0.00", "€ 0.50"),
        ("-5", '_("$"* #,##0.00_);_("$"* \\(#,##0.00\\)', "$(5.00)"),
        ("1234.5", "0.00E+00", "1.23E+03"),
        ("1.005", "0.00", "1.01"),
        ("-0.004", "0.00", "0.00"),
        ("42000", '0" lbs"', "42000 lbs"),
        ("0.5", "# ?/?", None),
        ("45000", "m/d/yy", None),
        ("0.5", "[h]:mm", None),
        ("1", ";;;", None),
        ("1234567890123456", "General", None),
        ("nan", "0", None),
        ("1e400", "0", None),
    ],
)
def test_f22_number_formats(value: str, code: str, shown: str | None) -> None:
    assert show_number(value, code) == shown


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=300))
def test_f22_any_format_code_is_shown_or_left_alone(value: float, code: str) -> None:
    shown = show_number(repr(value), code)
    assert shown is None or len(shown) < 1_000


def ole_file(*streams: str) -> bytes:
    """Return the start of an OLE file, whose directory names these streams."""
    return (
        OLE + bytes(504) + b"".join(name.encode("utf-16-le").ljust(128, b"\0") for name in streams)
    )


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("old.xls", OLE + bytes(1_900), r"cannot be read as an Excel 97-2003 workbook \(\.xls\)"),
        ("a.bin", ole_file("Workbook"), "cannot be read as an Excel 97-2003 workbook"),
        ("a.bin", ole_file("WordDocument"), "cannot be read as a Word 97-2003 document"),
        ("a.bin", ole_file("PowerPoint Document"), "cannot be read as a PowerPoint 97-2003"),
        ("a.bin", ole_file("__properties_version1.0", "WordDocument"), "as an Outlook message"),
        (
            "a.xlsx",
            ole_file("EncryptionInfo", "EncryptedPackage"),
            r"\.xlsx is an Office file protected by a password",
        ),
        ("a.bin", ole_file("Something"), "is an OLE file of an unknown kind"),
        ("a.msi", OLE, "is an OLE file of an unknown kind"),
    ],
)
async def test_f23_ole_files_are_called_what_they_are(
    reader: FileReader, name: str, data: bytes, reason: str
) -> None:
    with pytest.raises(Rejected, match=reason) as refused:
        await read(reader, name, data)
    assert refused.value.remedy and "vnd.ms-outlook" not in str(refused.value).replace("as an", "")


async def test_archives_are_read_file_by_file(reader: FileReader) -> None:
    inner = documents.archive({"deep.txt": b"Words in the inner archive."})
    data = documents.archive(
        {
            "../../etc/loads.csv": b"load,1",
            "C:\\docs\\note.txt": b"A note.",
            "folder/": b"",
            "bol.pdf": BILL,
            "logo.png": b"\x89PNG\r\n\x1a\n",
            "inner.zip": inner,
        }
    )
    parsed = await read(reader, "papers.zip", data)
    assert parsed.text.startswith("## loads.csv\n\nload,1\n\n## note.txt\n\nA note.")
    assert "Shipper: Northwind" in parsed.text and "Words in the inner archive." in parsed.text
    notes = {note["name"]: note for note in parsed.metadata["members"]}
    assert list(notes) == ["loads.csv", "note.txt", "bol.pdf", "logo.png", "inner.zip"]
    assert "cannot read .png" in notes["logo.png"]["unread"]
    for start, end in parsed.sections:
        assert parsed.text[start:end].startswith("## ")


async def test_a_protected_member_of_an_archive_has_a_note(reader: FileReader) -> None:
    data = bytearray(documents.archive({"a.txt": b"secret", "b.txt": b"open words"}))
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(sign) + offset] |= 1  # the first member is marked as encrypted
    parsed = await read(reader, "a.zip", bytes(data))
    assert parsed.metadata["members"][0]["unread"] == "protected by a password"
    assert "open words" in parsed.text
    with pytest.raises(Rejected, match=r"none of 0 files in \.zip could be read"):
        await read(reader, "a.zip", documents.archive({}))


@pytest.mark.parametrize(
    ("name", "media_type", "data", "text"),
    [
        ("apex.ini", "", b"[dock]\nopens=6", "[dock]\nopens=6"),
        ("README", "", b"Dock opens at six.", "Dock opens at six."),
        ("notes.unknown", "application/octet-stream", "Größe".encode(), "Größe"),
        ("LETTER", "", ("Gr\xfc\xdfe aus K\xf6ln, " * 5).encode("cp1252"), "Grüße aus Köln, " * 5),
        ("page", "", b"<!doctype html><body><p>Dock</p></body>", "Dock"),
        (
            "loads.xls",
            "application/vnd.ms-excel",
            b"<table><tr><td>Dock</td></tr></table>",
            "| Dock |\n| ---- |",
        ),
        (
            "loads.xls",
            "application/vnd.ms-excel",
            b"Load\tDock\n778124\t7",
            "Load\tDock\n778124\t7",
        ),
        ("a.docx", "", b"Dock opens at six.", "Dock opens at six."),
        ("page.mht", "", PAGE, "Dock opens at six."),
        ("page.doc", "application/msword", PAGE, "Dock opens at six."),
        ("rich.rtf", "", rb"{\rtf1\ansi Dock {\b opens} at six.\par}", "Dock **opens** at six."),
    ],
)
async def test_texts_are_recognised_by_their_content(
    reader: FileReader, name: str, media_type: str, data: bytes, text: str
) -> None:
    assert (await read(reader, name, data, media_type)).text.strip() == text.strip()


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("", bytes(range(256)) * 10),
        ("", random.Random(7).randbytes(5_000)),
        ("image/x-unknown", b"words and words"),
        ("", b"words\x00words"),
    ],
)
async def test_what_is_not_text_is_refused(
    reader: FileReader, media_type: str, data: bytes
) -> None:
    with pytest.raises(Rejected, match="cannot read"):
        await reader.read_file(File("blob", media_type, data))
