"""Bytes to text: labels as browsers read them, declarations inside the text, and a guess without one."""

from __future__ import annotations

import codecs
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_memory.pipeline.charset import codec_of, decode, decode_header, decode_html

KOI8 = "Склад семь".encode("koi8-r")


@pytest.mark.parametrize(
    ("label", "data", "text"),
    [
        ("iso-8859-1", b"driver\x92s rate \x80 5 \x96", "driver’s rate € 5 –"),
        ("ISO_8859-1:1987", b"\x93quoted\x94", "“quoted”"),
        ("latin1", b"\x85", "…"),
        ("l1", b"\xe9", "é"),
        ("us-ascii", "größer".encode(), "größer"),
        ("us-ascii", b"gr\xf6\xdfer", "größer"),
        ("iso-8859-9", b"\xfe \x80", "ş €"),
        ("tis-620", "ท่าเรือ".encode("cp874"), "ท่าเรือ"),
        ("gb2312", "朱镕基 東莞".encode("gbk"), "朱镕基 東莞"),
        ("GBK", "㐀".encode("gb18030"), "㐀"),
        ("shift_jis", "①㈱倉庫".encode("cp932"), "①㈱倉庫"),
        ("x-sjis", "髙橋".encode("cp932"), "髙橋"),
        ("euc-jp", "①倉庫".encode("euc_jis_2004"), "①倉庫"),
        ("iso-2022-jp", "倉庫は七番".encode("iso2022_jp"), "倉庫は七番"),
        ("iso-2022-jp", b"\x1b$B-j;3ED-!\x1b(B no 7", "㈱山田① no 7"),
        ("ks_c_5601-1987", "똠방 창고".encode("cp949"), "똠방 창고"),
        ("big5", "東莞裏".encode("cp950"), "東莞裏"),
        ("koi8-u", "їжак".encode("koi8-u"), "їжак"),
        ("macintosh", b"\x8ahn", "ähn"),
        ("x-mac-cyrillic", "Склад".encode("mac-cyrillic"), "Склад"),
        ("unicode-1-1-utf-8", "é".encode(), "é"),
        ('"utf-8"', "é".encode(), "é"),
        ("utf8", "é".encode(), "é"),
        ("utf-8*de", "é".encode(), "é"),
        ("Windows-1251 ", "Склад".encode("cp1251"), "Склад"),
        ("cp-866", "Склад".encode("cp866"), "Склад"),
        ("utf-16", "Dock sieben".encode("utf-16-le"), "Dock sieben"),
        ("utf-16", "Dock sieben".encode("utf-16-be"), "Dock sieben"),
        ("utf-16le", "倉庫は七番".encode("utf-16-le"), "倉庫は七番"),
        ("utf-16", b"no wide text", "no wide text"),
        ("utf-7", b"Gr+APYA3w-e", "Größe"),
        ("hz-gb-2312", b"~{<:Ky2;S{~}", "己所不欲"),
    ],
)
def test_f10_labels_mean_what_browsers_read(label: str, data: bytes, text: str) -> None:
    assert decode(data, label) == text


@pytest.mark.parametrize(
    "label",
    [
        "punycode", "idna", "rot13", "hex", "base64", "zip", "bz2", "uu", "quopri", "unicode_escape", "unicode-escape",
        "raw_unicode_escape", "mbcs", "oem", "undefined", "palmos", "x" * 100_000, "\x00", "nope", "",
    ],
)  # fmt: skip
def test_f10_no_other_codec_is_ever_used(label: str) -> None:
    assert codec_of(label) is None
    text = "a-b\\u0041 é " * 3
    assert decode(text.encode(), label) == text


def test_f10_a_declared_codec_cannot_take_quadratic_time() -> None:
    data = b"a-" * 200_000 + b"\xe9" * 200_000
    for label in ("punycode", "idna", "utf-7", "hz", "iso-2022-jp", "iso-2022-kr", "gb18030"):
        start = time.process_time()
        decode(data, label)
        assert time.process_time() - start < 5, label


def test_f10_every_codec_is_one_of_text() -> None:
    for label in ("utf-8", "iso-8859-16", "koi8-r", "cp852", "iso-2022-kr", "x-user-defined"):
        codec = codec_of(label)
        if codec is not None:
            assert codecs.lookup(codec)._is_text_encoding
    assert codec_of("x-user-defined") is None


LEGACY = {
    "iso-8859-1": "Straße nach Köln",
    "iso-8859-2": "Łódź, Kraków i Gdańsk",
    "windows-1250": "Łódź, Kraków i Gdańsk",
    "windows-1251": "Отгрузка со склада",
    "koi8-r": "Отгрузка со склада",
    "iso-8859-5": "Отгрузка со склада",
    "iso-8859-7": "Αποθήκη επτά",
    "windows-1253": "Αποθήκη επτά",
    "iso-8859-8": "מחסן שבע",
    "windows-1255": "מחסן שבע",
    "windows-1256": "المستودع",
    "windows-1254": "İstanbul şubesi",
    "windows-1257": "Rīga, Šiauliai",
    "windows-1258": "Đà Nang",
    "shift_jis": "倉庫は七番です",
    "euc-jp": "倉庫は七番です",
    "iso-2022-jp": "倉庫は七番です",
    "euc-kr": "창고 일곱",
    "gb2312": "收货人仓库",
    "gb18030": "收货人仓库",
    "big5": "收貨人倉庫",
}


@pytest.mark.parametrize("label", LEGACY)
def test_f10_pages_and_xml_declare_their_own_encoding(label: str) -> None:
    text = LEGACY[label]
    for head in (
        f'<html><head><meta charset="{label}">',
        f"<HTML><HEAD><TITLE>{'x' * 1_500}</TITLE><META CHARSET={label.upper()}>",
        f"<html><meta http-equiv='Content-Type' content='text/html; charset={label}' />",
        f'<html><meta content="text/html;charset={label}" http-equiv=content-type>',
        f'<?xml version="1.0" encoding="{label}"?><html>',
    ):
        page = f"{head}<p>{text}</p>"
        data = page.encode(codec_of(label) or "")
        assert decode_html(data) == page
        assert decode_html(data, "us-ascii") == page, "ASCII says nothing about other bytes"
    xml = f"<?xml version='1.0' encoding='{label}' standalone='yes'?><a>{text}</a>"
    assert decode(xml.encode(codec_of(label) or "")) == xml


@pytest.mark.parametrize(
    "head",
    [
        b'<!-- <meta charset="koi8-r"> -->',
        b'<meta name="description" content="pages with charset=koi8-r are old">',
        b'<meta charset="utf-16">',
        b'<meta charset="punycode">',
        b'<meta data-charset="koi8-r">',
        b'<p>meta charset="koi8-r"</p>',
    ],
)
def test_f10_what_is_no_declaration_is_not_followed(head: bytes) -> None:
    assert "Größe" in decode_html(head + "Größe".encode())


def test_f10_mark_then_sender_then_declaration_then_guess() -> None:
    page = b'<meta charset="koi8-r">' + KOI8
    assert "Склад" in decode_html(page)
    assert "Склад" not in decode_html(page, "iso-8859-1"), "the sender's header is stronger"
    marked = codecs.BOM_UTF8 + '<meta charset="koi8-r">Größe'.encode()
    assert decode_html(marked, "koi8-r").endswith("Größe")
    assert decode("Größe".encode()) == decode("Größe".encode("cp1252")) == "Größe"


@given(
    st.text(), st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]), st.sampled_from(["koi8-r", ""])
)
def test_f10_a_mark_always_decides(text: str, encoding: str, label: str) -> None:
    data = text.encode(encoding, "replace")
    assert decode(data, label) == data.decode(encoding)


def test_wide_text_without_a_mark() -> None:
    text = "Load 778, Straße\r\nSHP-100045\r\n"
    assert decode(text.encode("utf-16-le")) == text
    assert decode(text.encode("utf-16-be")) == text


def test_one_broken_character_does_not_cost_the_others() -> None:
    assert decode("Größe in Łódź".encode() + b"\xff", "utf-8") == "Größe in Łódź\ufffd"
    assert decode("倉庫は七番".encode("cp932") + b"\x85", "shift_jis") == "倉庫は七番\ufffd"
    assert decode(b"caf\xe9 au lait", "utf-8") == "café au lait", "the declaration is wrong"


def test_raw_bytes_in_headers() -> None:
    assert decode_header("Größe".encode(), "koi8-r") == "Größe"
    assert decode_header(KOI8, "koi8-r") == "Склад семь"
    assert decode_header("Größe".encode("latin-1")) == "Größe"


@given(st.binary(max_size=300), st.text(max_size=20))
def test_any_bytes_become_text(data: bytes, label: str) -> None:
    assert isinstance(decode(data, label), str)
    assert isinstance(decode_html(b"<meta charset=" + label.encode("utf-8", "replace") + data), str)
