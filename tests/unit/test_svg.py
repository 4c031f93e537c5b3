"""Drawings are read as the text in them, and hostile ones end with a reason."""

from __future__ import annotations

import gzip
import time

import pytest

from apex_memory.errors import Rejected
from apex_memory.model import File
from apex_memory.pipeline.file_limits import EventBudget, ReaderLimits
from apex_memory.pipeline.parse import Parsed, parse
from apex_memory.pipeline.reader import FileReader
from tests import documents

DRAWING = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd" [<!ENTITY co "Northwind &#38;amp; Söhne">]>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><title>Yard plan</title><desc>Docks of &co;</desc>
<style>.a{fill:red}</style><script>evil()</script><metadata><x>tool</x></metadata>
<g><title>Gate</title><path d="M0 0"/><text x="1" y="2">Dock <tspan font-weight="bold">sev</tspan>en</text></g>
<svg:text xmlns:svg="http://www.w3.org/2000/svg"><svg:tspan x="0" y="1">SHP-100045</svg:tspan><svg:tspan x="0" dy="1">late
 again</svg:tspan></svg:text></svg>"""
TEXT = "Yard plan\nDocks of Northwind & Söhne\nGate\nDock seven\nSHP-100045\nlate again"


def read(
    name: str, data: bytes, media_type: str = "", limits: ReaderLimits | None = None
) -> Parsed:
    return parse(File(name, media_type, data), EventBudget(limits or ReaderLimits()))


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("yard.svg", ""), ("yard", "image/svg+xml"), ("yard.svg", "application/octet-stream"), ("yard.svg", "image/svg+xml; charset=utf-8")],
)  # fmt: skip
def test_texts_titles_and_descriptions_are_read(name: str, media_type: str) -> None:
    parsed = read(name, DRAWING.encode(), media_type)
    assert (parsed.text, parsed.title) == (TEXT, "Yard plan")


def test_labels_in_pages_are_read_and_what_stands_in_for_them_is_not() -> None:
    """As draw.io and Mermaid write them: a page inside the drawing, and a shortened text for programs without pages."""
    drawing = """<svg xmlns="http://www.w3.org/2000/svg"><g>
<switch><foreignObject width="9"><div xmlns="http://www.w3.org/1999/xhtml"><style>p{}</style><p>Dock <b>sev</b>en<br/>SHP-100045</p>
<table><tr><td>Gate</td><td>B</td></tr><tr><td>Yard</td></tr></table></div></foreignObject><text x="1" y="2">Dock se...</text></switch>
<switch><g requiredFeatures="http://www.w3.org/TR/SVG11/feature#Extensibility"/><a><text>Text is not SVG - cannot display</text></a></switch>
<switch><text systemLanguage="de">Tor</text><text>Gate four</text><text>Gate 4</text></switch>
</g><text>after</text></svg>"""
    lines = ["Dock seven", "SHP-100045", "Gate B", "Yard", "Tor", "Gate four", "after"]
    assert read("yard.svg", drawing.encode()).text.splitlines() == lines


def test_a_drawing_in_another_charset_and_a_packed_one() -> None:
    latin = DRAWING.replace("UTF-8", "iso-8859-1").encode("cp1252")
    assert read("yard.svg", latin).text == TEXT
    assert read("yard.svg", DRAWING.encode("utf-16")).text == TEXT
    assert read("yard.svgz", gzip.compress(DRAWING.encode()), "image/svg+xml").text == TEXT


def test_an_attached_drawing_is_read_and_one_without_text_has_a_note() -> None:
    mail = documents.mail(
        "See attached.",
        subject="s",
        attachments=[
            ("yard.svg", "image/svg+xml", DRAWING.encode()),
            ("logo.svg", "image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0"/></svg>'),
        ],
    )  # fmt: skip
    parsed = read("a.eml", mail)
    assert "## yard.svg\n\nYard plan" in parsed.text
    assert parsed.metadata["attachments"][1]["unread"] == ".svg holds no text"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<svg><text>Dock", "cannot be read as SVG"),
        (b"<svg><text>&nope;</text></svg>", "cannot be read as SVG"),
        (b"\x89PNG\x00\x01", "cannot be read as SVG"),
        (b"", "cannot be read as SVG"),
    ],
)
def test_what_is_no_drawing_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as refused:
        read("a.svg", data)
    assert refused.value.remedy


def test_no_file_outside_is_read() -> None:
    page = b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>Dock &x; seven</text></svg>'
    assert "root" not in read("a.svg", page).text


def laughs() -> bytes:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE svg [<!ENTITY a0 "ha ha ha ha">{entities}]><svg><text>&a9;</text></svg>'.encode()


def quadratic() -> bytes:
    entity = "ha " * 300_000
    return (
        f'<!DOCTYPE svg [<!ENTITY a "{entity}">]><svg><text>{"&a;" * 3_000}</text></svg>'.encode()
    )


@pytest.mark.parametrize(
    "bomb",
    [laughs(), quadratic(), b"<svg>" * 2_000_000, b"<svg>" + b"<text>" * 1_000_000, b"<svg " + b"a='1' " * 1_000_000],
    ids=["laughs", "quadratic", "deep", "texts", "attributes"],
)  # fmt: skip
async def test_bombs_end(bomb: bytes) -> None:
    reader = FileReader(ReaderLimits(cpu_seconds=10), processes=1)
    started = time.monotonic()
    try:
        with pytest.raises(Rejected, match=r"cannot be read as SVG|limit `reader_") as refused:
            await reader.read_file(File("a.svg", "", bomb))
        assert refused.value.remedy
        assert time.monotonic() - started < 100
        good = await reader.read_file(File("a.svg", "", DRAWING.encode()))
        assert good.parsed.text == TEXT
    finally:
        await reader.close()


def test_a_text_beyond_the_limit_is_cut_and_counted() -> None:
    page = f"<svg><text>{'ha ' * 1_000}</text></svg>".encode()
    parsed = read("a.svg", page, limits=ReaderLimits(characters=100))
    assert len(parsed.text) <= 100
    cut = parsed.metadata["cut"]
    assert cut["kept"] == len(parsed.text) and cut["characters"] >= 2_990


def test_the_note_on_a_winmail_dat_says_what_to_do() -> None:
    mail = documents.mail(
        "See attached.",
        subject="s",
        attachments=[("winmail.dat", "application/ms-tnef", b"\x78\x9f\x3e\x22" + bytes(99))],
    )
    [note] = read("a.eml", mail).metadata["attachments"]
    assert "TNEF, winmail.dat" in note["unread"] and "send HTML" in note["unread"]
