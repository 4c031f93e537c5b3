"""Signed messages and files as OpenSSL writes them are read without a key, encrypted ones end with the reason."""

from __future__ import annotations

import base64
import random
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import Parsed, parse
from apex_memory.pipeline.signed_messages import is_cms, signed_content
from tests import documents

ENTITY = b"Content-Type: text/plain; charset=utf-8\r\n\r\nLoad SHP-100045 is in K\xc3\xb6ln.\r\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=dana",
        "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem"),
    )  # fmt: skip
    return folder


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    return subprocess.run(
        ["openssl", *arguments], input=data, check=True, capture_output=True
    ).stdout


def signed(keys: Path, content: bytes, *options: str) -> bytes:
    signer = ["-signer", str(keys / "certificate.pem"), "-inkey", str(keys / "key.pem")]
    return openssl("cms", "-sign", "-binary", *signer, *options, data=content)


def read(file: File) -> Parsed:
    return parse(file, EventBudget(ReaderLimits()))


@pytest.mark.parametrize("options", [[], ["-stream"], ["-keyid"], ["-cades"], ["-nosmimecap"]])
@pytest.mark.parametrize("size", [10, 200, 70_000, 20_000_000])
def test_what_is_signed_is_read(keys: Path, options: list[str], size: int) -> None:
    content = random.Random(4).randbytes(size)
    message = signed(keys, content, "-nodetach", "-outform", "DER", *options)
    assert is_cms(message)
    started = time.process_time()
    assert signed_content(message) == content
    assert time.process_time() - started < 2


@pytest.mark.parametrize("options", [[], ["-stream"]])
@pytest.mark.parametrize("size", [10, 5_000_000])
def test_what_is_signed_in_base64_is_read(keys: Path, options: list[str], size: int) -> None:
    content = random.Random(4).randbytes(size)
    message = signed(keys, content, "-nodetach", "-outform", "DER", *options)
    lines = base64.encodebytes(message)
    forms = [
        base64.b64encode(message), lines, b"\r\n" + lines.replace(b"\n", b"\r\n"),
        signed(keys, content, "-nodetach", "-outform", "PEM", *options),
        b"-----BEGIN PKCS7-----\n" + lines + b"-----END PKCS7-----\n",
    ]  # fmt: skip
    for form in forms:
        assert is_cms(form)
        assert signed_content(form) == content


@pytest.mark.parametrize(
    "start", [b"MIIB", b"MIAGCSq", b"-----BEGIN CMS-----\n", b"", b"MIME-Version: 1.0\n"]
)
def test_other_texts_are_no_signed_messages(start: bytes) -> None:
    assert not is_cms(start + b"Minutes of Monday")
    assert not is_cms(start)


@pytest.mark.parametrize("options", [[], ["-stream"]])
def test_a_mail_that_is_all_signed_is_read(keys: Path, options: list[str]) -> None:
    addresses = ["-from", "dana@northwind.example", "-to", "d@acme.example", "-subject", "Load"]
    mail = signed(keys, ENTITY, "-nodetach", *addresses, *options)
    parsed = read(File("a.eml", "message/rfc822", mail))
    assert "Load SHP-100045 is in Köln." in parsed.text
    assert parsed.title == "Load"
    assert "unread" not in str(parsed.metadata)


def test_attachments_inside_a_signed_mail_are_read(keys: Path) -> None:
    inner = documents.mail(
        "See attached.", subject="in", attachments=[("bol.pdf", documents.PDF, documents.pdf("Shipper: Northwind"))]
    )  # fmt: skip
    message = signed(keys, inner, "-nodetach", "-outform", "DER")
    outer = documents.mail(
        "", html="<p>x</p>", subject="out", attachments=[("smime.p7m", "application/pkcs7-mime", message)]
    )  # fmt: skip
    text = read(File("a.eml", "", outer)).text
    assert "See attached." in text and "Shipper: Northwind" in text


def test_a_signed_file_is_the_file_in_it(keys: Path) -> None:
    invoice = b'<?xml version="1.0"?><Fattura><Numero>42</Numero></Fattura>'
    message = signed(keys, invoice, "-nodetach", "-outform", "DER")
    assert read(File("fattura.xml.p7m", "application/pkcs7-mime", message)).text == invoice.decode()
    bill = signed(keys, documents.pdf("Shipper: Northwind"), "-nodetach", "-outform", "DER")
    assert "Shipper: Northwind" in read(File("bill.pdf.P7M", "", bill)).text


def test_an_encrypted_message_says_so(keys: Path) -> None:
    certificate = str(keys / "certificate.pem")
    for options in (["-aes256"], ["-aes256", "-stream"], ["-aes-256-gcm"]):
        mail = openssl("cms", "-encrypt", *options, certificate, data=ENTITY)
        with_text = documents.mail("Words", subject="s")
        assert with_text
        parsed = read(File("a.eml", "", b"From: a@b.example\n" + mail))
        [note] = parsed.metadata["attachments"]
        assert note["unread"].startswith("the message is encrypted (S/MIME)")


def test_a_signature_beside_its_text_says_so(keys: Path) -> None:
    parsed = read(File("a.eml", "", b"From: a@b.example\n" + signed(keys, ENTITY)))
    assert "Load SHP-100045" in parsed.text
    [note] = parsed.metadata["attachments"]
    assert note["name"] == "smime.p7s" and note["unread"].startswith("a signature")


def test_damaged_messages_are_refused(keys: Path) -> None:
    for options in ([], ["-stream"]):
        message = signed(keys, b"x" * 9_000, "-nodetach", "-outform", "DER", *options)
        for size in (1, 2, 20, 30, 40, 50, 60, 70, 4_000):
            with pytest.raises(Rejected, match=r"the signed message is damaged") as refused:
                signed_content(message[:size])
            assert refused.value.remedy
    for name in ("a.p7m", "smime.p7m"):
        with pytest.raises(Rejected, match=r"damaged"):
            read(File(name, "application/pkcs7-mime", b"\x00\x01" * 99))


def test_signed_in_signed_ends_at_the_limit(keys: Path) -> None:
    message = b"Dock seven"
    for _ in range(12):
        message = signed(keys, message, "-nodetach", "-outform", "DER")
    with pytest.raises(Rejected, match=r"limit `reader_nesting`"):
        read(File("a.p7m.p7m", "", message))


def test_a_message_of_tiny_pieces_takes_linear_time() -> None:
    head = bytes.fromhex(
        "3080 06092a864886f70d010702 a080 3080 020101 3100 3080 06092a864886f70d010701 a080 2480"
    )
    started = time.process_time()
    assert signed_content(head + b"\x04\x01x" * 500_000 + bytes(10)) == b"x" * 500_000
    nested = bytes.fromhex("3080 06092a864886f70d010702 a080 3080 020101") + b"\x31\x80" * 500_000
    with pytest.raises(Rejected, match=r"damaged"):
        signed_content(nested)
    assert time.process_time() - started < 10


@given(st.binary(max_size=200))
def test_any_bytes_end_in_content_or_a_reason(data: bytes) -> None:
    for head in (
        "",
        "3080 06092a864886f70d010702 a080 3080 020101",
        "3080 06092a864886f70d010702 a080 3080 020101 3100 3080 06092a864886f70d010701 a080",
    ):
        try:
            signed_content(bytes.fromhex(head) + data)
        except Rejected as error:
            assert error.remedy
