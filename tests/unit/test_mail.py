"""Mails as servers and mail programs really send them: structure, encodings, headers, hostile bytes."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncIterator
from email.header import Header
from email.message import EmailMessage
from email.utils import formataddr

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_memory.model import File
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.headers import decode_words, mailboxes, sent_at
from apex_memory.pipeline.mail import TextBody, read_mail
from apex_memory.pipeline.mime import decode_base64
from apex_memory.pipeline.parse import Parsed, parse
from apex_memory.pipeline.reader import FileReader

HEAD = (
    b"From: dock@harbor.example\r\nTo: ops@apex.example\r\nSubject: Gate\r\nMIME-Version: 1.0\r\n"
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader() -> AsyncIterator[FileReader]:
    reader = FileReader(ReaderLimits(characters=100_000), processes=1)
    yield reader
    await reader.close()


async def parsed(data: bytes, reader: FileReader) -> Parsed:
    return (await reader.read_file(File("m.eml", "message/rfc822", data))).parsed


def part(content_type: str, body: str, *fields: str) -> str:
    return "\r\n".join([f"Content-Type: {content_type}", *fields, "", body])


def multipart(kind: str, *parts: str, boundary: str = "B", after: str = "") -> str:
    lines = [f'Content-Type: multipart/{kind}; boundary="{boundary}"', ""]
    for inner in parts:
        lines += [f"--{boundary}", inner]
    return "\r\n".join([*lines, f"--{boundary}--", after])


def mail(structure: str) -> bytes:
    return HEAD + structure.encode()


def texts(data: bytes) -> list[str]:
    return [body.text.strip() for body in read_mail(data).bodies]


PLAIN = part("text/plain", "The plain words")
PAGE = part("text/html", "<p>The page's words</p>")
FOOTER = part("text/plain", "____\r\ndock list", "Content-Disposition: inline")
SIGNATURE = part(
    "application/pgp-signature", "-----BEGIN", "Content-Disposition: attachment; filename=s.asc"
)


# F1: the text parts of a mail


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        (multipart("mixed", PAGE, FOOTER), ["<p>The page's words</p>", "____\r\ndock list"]),
        (multipart("mixed", PLAIN, PAGE, FOOTER), ["The plain words", "<p>The page's words</p>", "____\r\ndock list"]),
        (multipart("mixed", FOOTER, multipart("related", PAGE, boundary="C")), ["____\r\ndock list", "<p>The page's words</p>"]),
        (multipart("signed", multipart("mixed", PAGE, FOOTER, boundary="C"), SIGNATURE), ["<p>The page's words</p>", "____\r\ndock list"]),
        (multipart("x-unknown", PAGE, PLAIN), ["<p>The page's words</p>", "The plain words"]),
        (multipart("mixed", PLAIN, after="Scanned by the gateway.\r\n"), ["The plain words", "Scanned by the gateway."]),
        (multipart("mixed", PLAIN, after="--B\r\n\r\nA part after the end"), ["The plain words", "A part after the end"]),
        (multipart("mixed", multipart("mixed", PLAIN, PAGE), boundary="B2"), ["The plain words", "<p>The page's words</p>"]),
    ],
)  # fmt: skip
def test_f1_a_mixed_mail_keeps_all_its_texts_in_order(structure: str, expected: list[str]) -> None:
    assert texts(mail(structure)) == expected


SAME = part("text/html", "<p>The <b>plain</b> words</p>")
STUB = part(
    "text/plain", "Your mail program cannot show HTML. Please open this message in a browser."
)
REAL = part("text/html", "<style>p{}</style><p>SHP-100777 moved to dock ottervale at 14:30.</p>")
LONG = part("text/plain", "Trailer 7 waits. " + " ".join(f"word{n} line" for n in range(60)))
BROWSER = part("text/html", "<a href='https://x.example/7'>View in browser</a>")
CUT = part("text/plain", "Hello Ops, this is the order.")
WHOLE = part(
    "text/html", "<p>Hello Ops, this is the order.</p><table><tr><td>PO 4500777</td></tr></table>"
)


@pytest.mark.parametrize(
    ("parts", "has", "has_not"),
    [
        ([PLAIN, SAME], "The plain words", "<b>"),
        ([STUB, REAL], "ottervale", "Your mail program"),
        ([REAL, STUB], "ottervale", "Your mail program"),
        ([STUB, multipart("related", REAL, boundary="C")], "ottervale", "Your mail program"),
        ([STUB, multipart("mixed", REAL, PAGE, boundary="C")], "page's words", "Your mail program"),
        ([LONG, BROWSER], "word59", "View in browser"),
        ([part("text/plain", "The trailer waits at the gate until the seal is there."), BROWSER], "seal", "View in browser"),
        ([STUB, part("text/html", "<p>Trailer is ottervale</p>")], "ottervale", "Your mail program"),
        ([part("text/plain", "Ihr Programm zeigt kein HTML an."), part("text/html", "<p>Tor ottervale</p>")], "ottervale", "Programm"),
        ([part("text/plain", "Please use a modern mail reader."), REAL], "ottervale", "modern"),
        ([CUT, WHOLE], "4500777", "----"),
        ([part("text/plain", " \r\n"), REAL], "ottervale", "----"),
        ([PLAIN, part("text/html", "<img src='https://x.example/1.png'>")], "The plain words", "img"),
        ([part("text/plain; name=body.txt", "named words"), part("text/html; name=b.html", "<i>named words</i>")], "named words", "<i>"),
    ],
)  # fmt: skip
def test_f1_one_of_the_alternatives_and_not_a_stub(
    parts: list[str], has: str, has_not: str
) -> None:
    read = read_mail(mail(multipart("alternative", *parts)))
    text = "\n".join(body.text for body in read.bodies)
    assert has in text
    assert has_not not in text
    assert not read.files


def test_f1_an_alternative_loses_no_file() -> None:
    calendar = part("text/calendar; charset=utf-8", "BEGIN:VCALENDAR")
    image = part("image/png", "x", "Content-Disposition: inline; filename=a.png")
    amp = part("text/x-amp-html", "<html amp4email>The plain words")
    structure = multipart(
        "alternative", PLAIN, amp, multipart("related", SAME, image, boundary="C"), calendar
    )
    read = read_mail(mail(structure))
    assert [body.text.strip() for body in read.bodies] == ["The plain words"]
    assert [file.name for file in read.files] == ["a.png", "unnamed text/calendar"]


async def test_f1_pages_and_texts_are_read_into_one_text(reader: FileReader) -> None:
    data = mail(
        multipart("mixed", PLAIN, multipart("alternative", STUB, REAL, boundary="C"), FOOTER)
    )
    text = (await parsed(data, reader)).text
    assert text.endswith(
        "The plain words\n\nSHP-100777 moved to dock ottervale at 14:30.\n\n____\r\ndock list"
    )


def test_f1_a_page_that_crashes_the_reader_is_still_in_the_text() -> None:
    budget = EventBudget(ReaderLimits(), skipped=frozenset({0}))  # the first page crashed it before
    file = File("m.eml", "message/rfc822", mail(multipart("mixed", REAL, FOOTER)))
    assert "moved to dock ottervale at 14:30.\n\n____\r\ndock list" in parse(file, budget).text


# F6: transfer encodings


WORDS = "Detention at dock 7 for trailer gobletmoss, Größe 4."
B64 = base64.encodebytes(WORDS.encode()).decode()
QP = "Detention at dock 7 for trailer goblet=\r\nmoss, Gr=C3=B6=C3=9Fe 4=2E"


@pytest.mark.parametrize(
    "encoding",
    ["base64 ", "(sent (or not) as 8bit) base64", " BASE64\t", "Base64;", "(as sent) base64", "base64 (gateway)", '"base64"', "base-64", "\r\n base64"],
)  # fmt: skip
def test_f6_base64_however_it_is_written(encoding: str) -> None:
    body = part("text/plain; charset=utf-8", B64, f"Content-Transfer-Encoding: {encoding}")
    assert texts(mail(body)) == [WORDS]
    attached = part(
        "text/csv", B64, "Content-Disposition: attachment; filename=a.csv",
        f"Content-Transfer-Encoding: {encoding}",
    )  # fmt: skip
    read = read_mail(mail(multipart("mixed", PLAIN, attached)))
    assert read.files[0].data == WORDS.encode()


@pytest.mark.parametrize(
    "encoding",
    ["quoted-printable ", "Quoted-Printable", "QUOTED-PRINTABLE; x", "quoted_printable", "quoted-printable (MTA)"],
)  # fmt: skip
def test_f6_quoted_printable_however_it_is_written(encoding: str) -> None:
    fields = f"Content-Transfer-Encoding: {encoding}"
    assert texts(mail(part("text/plain; charset=utf-8", QP, fields))) == [WORDS]
    blanks_after_break = QP.replace("=\r\n", "= \t\r\n")
    assert texts(mail(part("text/plain; charset=utf-8", blanks_after_break, fields))) == [WORDS]


def test_f6_uuencoded_and_unknown_encodings() -> None:
    lines = "begin 644 a.txt\r\n;1&5T96YT:6]N(&%T(&1O8VL@-RP@=')A:6P\r\n#97(N\r\n`\r\nend\r\n"
    for encoding in ("x-uuencode", "UUENCODE ", "x-uue"):
        body = part("text/plain", lines, f"Content-Transfer-Encoding: {encoding}")
        assert texts(mail(body))[0].startswith("Detention at dock 7")
    assert texts(mail(part("text/plain", "words", "Content-Transfer-Encoding: hand"))) == ["words"]


@pytest.mark.parametrize("kind", ["message/rfc822", "message/global", "MESSAGE/RFC822"])
@pytest.mark.parametrize("encoding", ["base64", "Base64 ", "quoted-printable", "8bit", ""])
async def test_f6_nested_mails_in_any_encoding(
    reader: FileReader, kind: str, encoding: str
) -> None:
    inner = b"From: yard@harbor.example\r\nSubject: Code\r\n\r\nThe code is 5531=33.\r\n"
    body = base64.encodebytes(inner).decode() if "64" in encoding else inner.decode()
    fields = [f"Content-Transfer-Encoding: {encoding}"] if encoding else []
    text = (await parsed(mail(multipart("mixed", PLAIN, part(kind, body, *fields))), reader)).text
    code = "55313" if "quoted" in encoding else "5531=33"
    assert f"From: yard@harbor.example\nSubject: Code\n\nThe code is {code}" in text


def test_f6_the_mails_of_a_digest() -> None:
    inner = "\r\nFrom: a@x.example\r\nSubject: One\r\n\r\nFirst words"
    read = read_mail(mail(multipart("digest", inner)))
    assert [(file.content_type, b"First words" in file.data) for file in read.files] == [
        ("message/rfc822", True)
    ]


NOTE = "--\r\nThis mail was checked for viruses."


@pytest.mark.parametrize(
    "body",
    [
        f"{B64}\r\n{NOTE}",
        f"{B64}{NOTE}",
        f"{B64.rstrip().rstrip('=')}\r\n\r\n{NOTE}",
        f"{B64}\r\n\r\n\r\n{NOTE}\r\n",
    ],
)
def test_f6_text_after_base64_is_kept_as_text(body: str) -> None:
    data = mail(part("text/plain; charset=utf-8", body, "Content-Transfer-Encoding: base64"))
    assert texts(data) == [f"{WORDS}\n\n{NOTE}"]


def test_f6_text_after_an_attached_file_is_text_of_the_mail() -> None:
    attached = part(
        "application/pdf", f"{B64}\r\n{NOTE}", "Content-Disposition: attachment; filename=a.pdf",
        "Content-Transfer-Encoding: base64",
    )  # fmt: skip
    read = read_mail(mail(multipart("mixed", PLAIN, attached)))
    assert [file.data for file in read.files] == [WORDS.encode()]
    assert [body.text for body in read.bodies] == ["The plain words", NOTE]


def test_f6_an_encoding_in_a_comment_is_none() -> None:
    body = part("text/plain", "words", "Content-Transfer-Encoding: 7bit (was (I think) base64)")
    assert texts(mail(body)) == ["words"]


def test_f6_a_word_after_base64_is_no_base64() -> None:
    lines = base64.encodebytes(WORDS.encode() * 5)
    assert decode_base64(lines + b"\r\nChecked\r\n--\r\n") == (
        WORDS.encode() * 5, b"Checked\r\n--\r\n",
    )  # fmt: skip


def test_f6_text_that_is_not_encoded_though_declared() -> None:
    for encoding in ("base64", "quoted-printable"):
        body = part(
            "text/plain", "Plain words, not encoded.", f"Content-Transfer-Encoding: {encoding}"
        )
        assert texts(mail(body)) == ["Plain words, not encoded."]


@given(
    st.binary(max_size=400),
    st.integers(1, 80),
    st.sampled_from([b"\n", b"\r\n", b" \r\n", b"\n\n"]),
)
def test_f6_base64_lines_of_any_length(data: bytes, width: int, line_end: bytes) -> None:
    digits = base64.b64encode(data)
    lines = [digits[n : n + width] for n in range(0, len(digits), width)]
    decoded, rest = decode_base64(line_end.join(lines))
    assert (decoded, rest) == (data, b"")
    assert decode_base64(digits.rstrip(b"="))[0] == data


# F7: raw bytes in headers


@pytest.mark.parametrize(
    ("encoding", "charset", "text"),
    [
        ("utf-8", "utf-8", "Verspätung für Łódź, Größe 倉庫"),
        ("utf-8", "us-ascii", "Verspätung"),
        ("utf-8", "koi8-r", "Склад"),
        ("latin-1", "iso-8859-1", "Verspätung für Tor 7"),
        ("cp1252", "us-ascii", "driver’s"),
        ("koi8-r", "koi8-r", "Склад семь"),
        ("cp932", "shift_jis", "倉庫は七番"),
    ],
)
def test_f7_raw_bytes_in_headers_are_decoded(encoding: str, charset: str, text: str) -> None:
    raw = text.encode(encoding)
    body = part(f"text/plain; charset={charset}", "words", "Content-Transfer-Encoding: 8bit")
    fields = b"Subject: " + raw + b"\r\nFrom: " + raw + b" <a@x.example>\r\n"
    for structure in (body, multipart("mixed", body)):
        read = read_mail(fields + structure.encode())
        assert read.subject == text
        assert read.head.startswith("From: ")
        assert text in read.head.splitlines()[0]
    attached = b'Content-Disposition: attachment; filename="' + "Größe.csv".encode(
        encoding, "replace"
    )
    assert read_mail(attached + b'"\r\n\r\nx').files[0].name.endswith(".csv")


# F8: addresses and names


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("=?utf-8?Q?boss=40corp=2Eexample=2C?= <stranger@evil.example>", [("boss@corp.example", "stranger@evil.example")]),
        ("=?utf-8?B?Ym9zc0Bjb3JwLmV4YW1wbGUs?= <stranger@evil.example>", [("boss@corp.example", "stranger@evil.example")]),
        ("=?utf-8?Q?=3Cboss=40corp=2Eexample=3E?= <stranger@evil.example>", [("<boss@corp.example>", "stranger@evil.example")]),
        ("=?utf-8?Q?boss@corp.example,?= <stranger@evil.example>", [("boss@corp.example", "stranger@evil.example")]),
        ("=?utf-8?Q?boss@corp.example?=, <stranger@evil.example>", [("boss@corp.example", "stranger@evil.example")]),
        ('"boss@corp.example, " <stranger@evil.example>', [("boss@corp.example", "stranger@evil.example")]),
        ('"boss@corp.example" <stranger@evil.example>', [("boss@corp.example", "stranger@evil.example")]),
        ("boss@corp.example <stranger@evil.example>", [("boss@corp.example", "stranger@evil.example")]),
        ("stranger@evil.example (boss@corp.example)", [("boss@corp.example", "stranger@evil.example")]),
        ("(boss@corp.example) stranger@evil.example", [("boss@corp.example", "stranger@evil.example")]),
        ("=?utf-8?Q?boss=40corp=2Eexample?=", [("boss@corp.example", "")]),
        ("=?utf-8?Q?boss@corp.example?=", [("boss@corp.example", "")]),
        ("<=?utf-8?Q?boss@corp.example?=>", [("", "")]),
        ("<boss@corp.example> <stranger@evil.example>", [("", "")]),
        ("<boss@corp.example@evil.example>", [("", "")]),
        ("=?iso-8859-1?Q?M=FCller=2C_Anna?= <anna@north.example>", [("Müller, Anna", "anna@north.example")]),
        ("Ortiz, Dana <dana@x.example>, b@x.example", [("Ortiz, Dana", "dana@x.example"), ("", "b@x.example")]),
        ('"Ortiz, Dana" <dana@x.example>; Sam <s@x.example>', [("Ortiz, Dana", "dana@x.example"), ("Sam", "s@x.example")]),
        ("dana@x.example (Dana \\(Ops\\) Ortiz)", [("Dana \\(Ops\\) Ortiz", "dana@x.example")]),
        ("Crew: Dana <dana@x.example>, s@x.example;", [("Dana", "dana@x.example"), ("", "s@x.example")]),
        ("undisclosed-recipients:;", []),
        ("<@relay.example,@b.example:dana@x.example>", [("", "dana@x.example")]),
        ('"dana ortiz"@x.example', [("", '"dana ortiz"@x.example')]),
        ("'Dana Ortiz' <dana@x.example>", [("Dana Ortiz", "dana@x.example")]),
        ('"=?utf-8?Q?J=C3=B6rg?=" <j@x.example>', [("Jörg", "j@x.example")]),
        ("=?utf-8?Q?J=C3=B6?= =?utf-8?Q?rg?= B <j@x.example>", [("Jörg B", "j@x.example")]),
        ('"Unclosed <u@x.example>', [("Unclosed", "u@x.example")]),
        ("Dana Ortiz", [("Dana Ortiz", "")]),
        ("", []),
    ],
)  # fmt: skip
def test_f8_addresses_are_found_before_names_are_decoded(
    field: str, expected: list[tuple[str, str]]
) -> None:
    boxes = [(box.name, box.address) for box in mailboxes(field.encode(), None)]
    assert boxes == [box for box in expected if box != ("", "")]


def test_f8_a_forged_sender_is_not_the_sender() -> None:
    name = "=?utf-8?Q?boss=40corp=2Eexample=2C?="
    read = read_mail(
        f"From: {name} <stranger@evil.example>\nTo: {name} <o@x.example>\n\nx".encode()
    )
    senders = [a.object for a in read.assertions if a.predicate == "from"]
    assert senders == ["email:stranger@evil.example"]
    assert not any("boss@corp.example" in (a.object or "") for a in read.assertions)
    assert read.head.startswith('From: "boss@corp.example" <stranger@evil.example>\n')


NAME = st.text(min_size=1, max_size=40).map(lambda text: " ".join(text.split())).filter(bool)


@given(NAME, st.sampled_from(["utf-8", "quoted", "raw"]))
def test_f8_no_name_becomes_an_address(name: str, form: str) -> None:
    """Whatever a display name holds, in words or quotes, the one sender is the address beside it."""
    if form == "utf-8":
        field = formataddr(
            (name.encode("utf-8", "replace").decode(), "stranger@evil.example"), "utf-8"
        ).encode()
        if b"=?" not in field:
            return  # the library leaves names in ASCII as they are
    else:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        field = f'"{quoted}" <stranger@evil.example>'.encode("utf-8", "replace")
    assert [box.address for box in mailboxes(field, None)] == ["stranger@evil.example"]


@given(st.binary(max_size=400))
def test_f8_any_bytes_are_a_list_of_mailboxes(raw: bytes) -> None:
    for box in mailboxes(raw, "koi8-r"):
        assert box.address == "" or (box.address.count("@") >= 1 and " <" not in box.address)


def test_offsets_point_at_the_addresses() -> None:
    head = 'From: "a@x.example, too" <a@x.example>\nTo: =?utf-8?Q?Gr=C3=B6=C3=9Fe?= <b@x.example>, c@x.example\nCc: A@x.example\n\nx'
    read = read_mail(head.encode())
    for assertion in read.assertions:
        if assertion.predicate in ("from", "to", "cc"):
            assert assertion.object is not None and assertion.start is not None
            address = assertion.object.removeprefix("email:")
            end = assertion.start + len(address)
            assert read.head[assertion.start : end].lower() == address
            assert read.head[end] in ">,\n"


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("=?UTF-8?B?R3LD?= =?UTF-8?B?tsOfZSBvaw==?=", "Größe ok"),
        ("=?utf-8?Q?Gr=C3?=\r\n =?UTF-8?Q?=B6=C3=9Fe?=", "Größe"),
        ("=?iso-8859-1?Q?driver=92s?=", "driver’s"),
        ("=?gb2312?B?1uzpRrv5?=", "朱镕基"),
        ("=?utf-8*en?Q?Gr=C3=B6=C3=9Fe?=", "Größe"),
        ("=?nope?Q?Gr=C3=B6=C3=9Fe?=", "Größe"),
        ("=?punycode?Q?a-b?=", "a-b"),
        ("=?utf-8?Q?Wo bist du??=", "Wo bist du?"),
        ("=?utf-8?B?R3LDtsOfZQ?=", "Größe"),
        ("=?utf-8?B?R3LDtsOfZQ==x?=", "Größe"),
        ("a=?utf-8?Q?b?=c", "abc"),
        ("=?utf-8?Q?a_b?= and =?utf-8?Q?c?=", "a b and c"),
        ("=?utf-8?X?a?=", "=?utf-8?X?a?="),
        ("=?utf-8?Q?open", "=?utf-8?Q?open"),
    ],
)
def test_encoded_words_as_they_are_sent(text: str, decoded: str) -> None:
    assert decode_words(" ".join(text.split())) == decoded


@given(st.text(max_size=80), st.sampled_from(["utf-8", "koi8-r", "iso-2022-jp", "gb18030"]))
def test_encoded_words_of_the_standard_library(text: str, charset: str) -> None:
    plain = " ".join(text.encode(charset, "ignore").decode(charset).split())
    if "=?" in plain:
        return
    encoded = Header(plain, charset, maxlinelen=60).encode()
    assert " ".join(decode_words(encoded).split()) == plain


# F9: names of attached files


@pytest.mark.parametrize(
    "field",
    [
        'Content-Disposition: attachment; filename="=?UTF-8?B?R3LDtsOfZS5jc3Y=?="',
        "Content-Disposition: attachment; filename==?UTF-8?Q?Gr=C3=B6=C3=9Fe.csv?=",
        'Content-Disposition: attachment; filename="=?UTF-8?Q?Gr=C3=B6?=\r\n =?UTF-8?Q?=C3=9Fe.csv?="',
        "Content-Disposition: attachment; filename*=UTF-8''Gr%C3%B6%C3%9Fe.csv",
        "Content-Disposition: attachment; filename*=iso-8859-1'de'Gr%F6%DFe.csv",
        "Content-Disposition: attachment; filename*0*=UTF-8''Gr%C3%B6; filename*1*=%C3%9Fe; filename*2=.csv",
        'Content-Disposition: attachment; filename="Größe.csv"',
        'CONTENT-DISPOSITION: ATTACHMENT; FILENAME="Größe.csv"',
        "Content-Disposition: attachment\r\nContent-Type: application/octet-stream; name=\"=?utf-8?Q?Gr=C3=B6=C3=9Fe.csv?=\"",
    ],
)  # fmt: skip
async def test_f9_encoded_names_and_csv_by_name(reader: FileReader, field: str) -> None:
    kind = [] if "octet-stream" in field else ["Content-Type: application/octet-stream"]
    attached = "\r\n".join([*kind, field, "", "carton;item\r\n12;amberreed"])
    document = await parsed(mail(multipart("mixed", PLAIN, attached)), reader)
    assert [note["name"] for note in document.metadata["attachments"]] == ["Größe.csv"]
    assert "## Größe.csv\n\ncarton;item\r\n12;amberreed" in document.text


@pytest.mark.parametrize(
    "parameter",
    ["filename*=a.csv; filename*0=b.csv", f"filename*{'9' * 6_000}=a.csv", "filename*0*=nope'x", "filename=", "filename*=%%%"],
)  # fmt: skip
def test_f9_malformed_names_do_not_lose_the_file(parameter: str) -> None:
    attached = part("text/csv", "12;amberreed", f"Content-Disposition: attachment; {parameter}")
    read = read_mail(mail(multipart("mixed", PLAIN, attached)))
    assert [file.data for file in read.files] == [b"12;amberreed"]
    assert read.files[0].name


async def test_f10_a_page_in_a_mail_declares_its_encoding(reader: FileReader) -> None:
    page = '<html><head><meta charset="koi8-r"></head><p>Склад семь</p>'.encode("koi8-r")
    for kind in (b"text/html", b"text/html; charset=us-ascii", b"text/html; charset=unknown"):
        data = HEAD + b"Content-Type: " + kind + b"\r\n\r\n" + page
        assert "Склад семь" in (await parsed(data, reader)).text


async def test_f10_an_attached_text_keeps_its_charset(reader: FileReader) -> None:
    attached = b"--B\r\nContent-Type: text/csv; charset=iso-8859-2\r\nContent-Disposition: attachment; filename=a.csv\r\n\r\n\xa3\xf3d\xbc\r\n--B--"
    data = HEAD + b"Content-Type: multipart/mixed; boundary=B\r\n\r\n" + attached
    assert "Łódź" in (await parsed(data, reader)).text


# F11: reports


@pytest.mark.parametrize(
    "kind",
    ["delivery-status", "disposition-notification", "feedback-report", "global-delivery-status", "external-body", "x-own"],
)  # fmt: skip
@pytest.mark.parametrize("attached", [True, False])
async def test_f11_every_part_about_a_message_is_text(
    reader: FileReader, kind: str, attached: bool
) -> None:
    fields = ["Content-Disposition: attachment; filename=details.txt"] if attached else []
    status = "Final-Recipient: rfc822; a@x.example\r\n\r\nDiagnostic-Code: smtp; 552 mailbox full"
    returned = part("text/rfc822-headers", "Subject: Claim for SHP-100778")
    report = multipart("report", PLAIN, part(f"message/{kind}", status, *fields), returned)
    document = await parsed(mail(report), reader)
    for words in ("The plain words", "552 mailbox full", "rfc822; a@x.example", "SHP-100778"):
        assert words in document.text
    assert "unread" not in str(document.metadata)


# F12: dates


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 02 Nov 99999999999999999999 09:15:00 +0000",
        "Mon, 02 Nov 2026 09:15:00 +99999999999999",
        "Mon, 02 Nov 2026 99999999999:15:00 +0000",
        "99999999999999999999999999999 Nov 2026",
        "Mon, 02 Nov 9999 09:15:00 +0000",
        "Mon, 31 Feb 2026 09:15:00 +0000",
        "0 0 0 0 0",
        "Mon, 02 Nov 2026 " + "9" * 9_000,
        "-1",
        ",",
    ],
)
async def test_f12_an_insane_date_does_not_lose_the_mail(reader: FileReader, date: str) -> None:
    document = await parsed(f"Date: {date}\nSubject: Clock\n\nfennelgate".encode(), reader)
    assert "fennelgate" in document.text
    assert "date" not in document.metadata["mail"]


@given(
    st.text(max_size=60)
    | st.from_regex(r"(Mon, )?\d{1,30} (Nov|11) \d{1,30} [\d:]{1,30} [+-]\d{1,30}")
)
def test_f12_any_text_is_a_date_or_none(text: str) -> None:
    date = sent_at(text)
    assert date is None or date.isoformat()


def test_f12_a_good_date_is_kept() -> None:
    for text in ("Mon, 02 Nov 2026 09:15:00 -0600", "2 Nov 26 09:15 -0600 (CST)"):
        date = sent_at(text)
        assert date is not None
        assert date.isoformat() == "2026-11-02T09:15:00-06:00"


# F13: what stands before the header


@pytest.mark.parametrize(
    "before",
    [b"\xef\xbb\xbf", b"\n", b"\r\n\r\n", b" \t\r\n", b"\xef\xbb\xbf\r\n", b"\n\xef\xbb\xbf", b"\r\r",
     b"From dock@harbor.example Mon Nov  2 09:15:00 2026\n", b"\n>From x Mon\r\n\n", b"\xc2\xa0\n\x0b\r\n"],
)  # fmt: skip
def test_f13_the_header_is_read_whatever_stands_before(before: bytes) -> None:
    mail_itself = mail(
        part("text/plain; charset=utf-8", QP, "Content-Transfer-Encoding: quoted-printable")
    )
    read = read_mail(before + mail_itself)
    assert read.subject == "Gate"
    assert [body.text.strip() for body in read.bodies] == [WORDS]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_f13_a_mail_saved_in_another_encoding(encoding: str) -> None:
    data = mail(part("text/plain", "Größe")).decode().encode(encoding)
    assert read_mail(data).subject == "Gate"
    assert texts(data) == ["Größe"]


def test_a_text_without_headers_is_the_text() -> None:
    assert texts(b"hello there\nNote: this is text") == ["hello there\nNote: this is text"]


# The whole, against the standard library, and hostile bytes


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200
).filter(str.strip)


@settings(deadline=None)
@given(
    TEXT,
    TEXT,
    st.sampled_from(["base64", "quoted-printable", "8bit"]),
    st.sampled_from(["utf-8", "utf-16", "gb18030"]),
)
def test_mails_of_the_standard_library(
    text: str, subject: str, encoding: str, charset: str
) -> None:
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    if charset == "utf-8":
        message.set_content(text, cte=encoding)
    else:
        message.set_content(
            text.encode(charset),
            maintype="text",
            subtype="plain",
            cte="base64",
            params={"charset": charset},
        )
    message.add_attachment(text.encode(), maintype="application", subtype="x-any", filename="a.csv")
    read = read_mail(message.as_bytes())
    assert read.subject == " ".join(subject.split())
    assert [body.text.strip() for body in read.bodies] == [text.strip()]
    assert read.files == (File("a.csv", "application/x-any", text.encode()),)


FRAGMENT = st.sampled_from(
    [b"--B\r\n", b"--B--\r\n", b"\r\n", b"Content-Type: multipart/alternative; boundary=B\r\n", b"Content-Type: text/html\r\n",
     b"Content-Type: message/rfc822\r\n", b"Content-Transfer-Encoding: base64\r\n", b"Content-Transfer-Encoding: x-uue\r\n",
     b"begin 644 x\n", b"QUJD\r\n", b"=\r\n", b"<p>a", b"From: =?utf-8?Q?a?= <a@x.example>\r\n", b"Date: x\r\n", b"charset=utf-7;", b"\xff"]
)  # fmt: skip


@given(st.lists(FRAGMENT | st.binary(max_size=20), max_size=40).map(b"".join))
def test_any_bytes_are_a_mail(data: bytes) -> None:
    read = read_mail(data)
    assert all(isinstance(body, TextBody) for body in read.bodies)


def test_too_many_and_too_deep_parts_have_a_note() -> None:
    read = read_mail(mail(multipart("mixed", *[PLAIN] * 40)), max_parts=20)
    assert len(read.bodies) == 19
    assert [file.name for file in read.files] == ["parts after the first 20"]
    deep = PLAIN
    for n in range(60):
        deep = multipart("mixed", PLAIN, deep, boundary=f"b{n}")
    read = read_mail(mail(deep), max_nesting=30)
    assert len(read.bodies) == 30
    assert [file.content_type for file in read.files] == ["multipart/mixed"]
    assert len(read_mail(mail(deep)).bodies) == 61


HOSTILE = {
    "deep": b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(20_000)),
    "equal": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" * 20_000,
    "fields": b"".join(b"X-%d: y\n" % n for n in range(80_000)),
    "receivers": b"To: a@x.example\n" * 80_000,
    "folded": b"To: a\n" + b" b@x.example,\n" * 80_000,
    "blank": b"\n" * 1_000_000,
    "parameters": b'Content-Type: text/plain; a="' + b";" * 1_000_000,
    "words": b"Subject: " + b"=?a?q?" * 200_000,
    "padding": b"Content-Transfer-Encoding: base64\n\n" + b"Q\n=" * 200_000,
    "delimiters": b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b" * 300_000,
    "parts": b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 200_000,
    "uu": b"Content-Transfer-Encoding: uuencode\n\n" + b"begin 644 x\n" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mails_take_linear_time(name: str) -> None:
    start = time.process_time()
    read_mail(HOSTILE[name])
    assert time.process_time() - start < 4  # a megabyte each; quadratic time is minutes


def flowed(body: str, parameters: str = "") -> str:
    [text] = texts(mail(part(f"text/plain; format=flowed{parameters}", body)))
    return text


def test_lines_of_flowed_text_are_joined() -> None:
    body = "Load SHP-100045 is \r\nlate.\r\n\r\n> why \r\n> so\r\n>> older\r\n From the dock \r\n-- \r\nDana"
    joined = "Load SHP-100045 is late.\n\n> why so\n>> older\nFrom the dock \n-- \nDana"
    assert flowed(body) == joined
    assert flowed("SHP-100 \r\n045 is l \r\nate", "; delsp=yes") == "SHP-100045 is late"
    [verbatim] = texts(mail(part("text/plain", "a \r\nb")))
    assert verbatim == "a \r\nb"


@pytest.mark.parametrize(
    "names",
    ["filename=\"x.csv\"; filename*=UTF-8''n%C3%A9.csv", "filename*=UTF-8''n%C3%A9.csv; filename=x.csv"],
)  # fmt: skip
def test_the_encoded_one_of_two_file_names_counts(names: str) -> None:
    attached = part("text/csv", "1;2", f"Content-Disposition: attachment; {names}")
    assert [file.name for file in read_mail(mail(attached)).files] == ["né.csv"]


def test_who_gets_answers_and_blind_copies_is_in_the_text() -> None:
    read = read_mail(
        b"From: a@x.example\r\nReply-To: Dana Ortiz <dana@x.example>\r\nBcc: b@x.example\r\n\r\nHi"
    )
    assert (
        read.head == "From: a@x.example\nReply-To: Dana Ortiz <dana@x.example>\nBcc: b@x.example\n"
    )
    objects = {(item.predicate, item.object) for item in read.assertions if item.object}
    assert {("reply_to", "email:dana@x.example"), ("bcc", "email:b@x.example")} <= objects


def test_a_date_in_iso_form_is_read() -> None:
    assert str(sent_at("2026-03-03T10:15:00-05:00")) == "2026-03-03 10:15:00-05:00"


@pytest.mark.parametrize("name", ["Jose\u0301 Garci\u0301a", "สมชาย ใจดี", "Nguyễn Văn An"])
def test_people_whose_names_have_marks_are_people(name: str) -> None:
    read = read_mail(f"From: {name} <a@x.example>\r\n\r\nHi".encode())
    assert any(item.subject.startswith("person:") for item in read.assertions)


def uuencoded(name: str, data: bytes) -> str:
    lines = [binascii.b2a_uu(data[at : at + 45]).decode() for at in range(0, len(data), 45)]
    return f"begin 644 {name}\n{''.join(lines)}`\nend\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_file_in_the_text_is_a_file(ends: str) -> None:
    rows = b"load,amount\n" + b"LD-4821,1250.00\n" * 20
    text = f"Here it is.\n\n{uuencoded('june rates.csv', rows)}\nThanks\n{uuencoded('b.txt', b'x')}"
    read = read_mail(HEAD + b"\r\n" + text.replace("\n", ends).encode())
    assert [(file.name, file.data) for file in read.files] == [
        ("june rates.csv", rows),
        ("b.txt", b"x"),
    ]
    assert read.bodies[0].text.split() == ["Here", "it", "is.", "Thanks"]


async def test_a_file_in_the_text_is_read(reader: FileReader) -> None:
    text = f"Hi\n\n{uuencoded('rates.csv', b'load,amount' + bytes([10]) + b'LD-4821,1250.00')}"
    assert "LD-4821" in (await parsed(HEAD + b"\r\n" + text.encode(), reader)).text


@pytest.mark.parametrize(
    "text",
    [
        "begin 644 x.csv\nend\n",
        "begin 644 x.csv\n#0V%T\n",  # without an end
        "begin 644 x.csv\nThis is no code.\nend",
        "begin 644 x.csv\n!!!!!!!!!!!!\nend",
        "we begin 644 x.csv\n#0V%T\n`\nend",
        "begin work\n#0V%T\n`\nend",
    ],
)
def test_what_only_looks_like_a_file_stays_text(text: str) -> None:
    read = read_mail(HEAD + b"\r\n" + text.encode())
    assert not read.files and read.bodies[0].text.strip() == text.strip()


def test_many_files_that_never_end_take_little_time() -> None:
    began = time.process_time()
    read_mail(HEAD + b"\r\n" + (b"begin 644 x\n" + b"#0V%T\n" * 50) * 4_000)
    assert time.process_time() - began < 2
