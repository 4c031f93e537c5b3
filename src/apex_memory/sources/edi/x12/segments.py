"""X12 as it really arrives: bytes into segments, whatever the partner's software made of the standard. Never raises.

What is read in spite of a fault is told in `findings`, never passed over. A file is a row of parts: an interchange
each, or segments that stand without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from apex_memory.sources.payloads import storable

Segment = tuple[str, ...]
"""Its id and its elements, without blanks at their end."""

_HEADER_CHARACTERS = (
    400  # an ISA is 106 characters; wrapped, indented or overlong ones a little more
)
_BARE_TRIES = 1_000  # places that may be a first segment without a header, in a file that is perhaps no X12 at all
_SIGN = r"[^\w\s]|[\t\x1c-\x1f]"  # what may separate elements
_ISA = re.compile(rf"(?<!\w)ISA(?={_SIGN})")
_BARE = re.compile(rf"(?<!\w)(GS|ST)(?={_SIGN})")
_NOTHING = " \t\r\n\x00\x1a\ufeff"


@dataclass(frozen=True, slots=True)
class Delimiters:
    element: str
    segment: str  # `\n` stands for any line end
    component: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Segments under one set of delimiters; the first is the ISA where `enveloped`."""

    delimiters: Delimiters
    segments: Sequence[Segment]
    findings: Sequence[str]
    enveloped: bool
    cut: bool
    """The file ends inside its last segment: nothing says that this segment is whole."""


@dataclass(slots=True)
class _Header:
    start: int
    end: int
    elements: Segment
    delimiters: Delimiters
    findings: list[str] = field(default_factory=list)


def value(segment: Segment, n: int) -> str:
    """Element `n`, counted from 1 as the standard counts; empty where there is none."""
    return segment[n].strip() if 0 <= n < len(segment) else ""


def read(data: bytes) -> tuple[list[Part], list[str]]:
    """The parts of a file in their order, and what is wrong with the file outside of them."""
    text, findings = _text(data)
    headers = list(_headers(text))
    lead_end = headers[0].start if headers else len(text)
    parts = []
    if bare := _bare(text[:lead_end]):
        parts.append(_part(text, bare, lead_end, enveloped=False))
    if (lead := text[: bare.start if bare else lead_end].strip(_NOTHING)) and (headers or bare):
        findings.append(f"{len(lead)} characters before the first segment were skipped")
    for n, header in enumerate(headers):
        end = headers[n + 1].start if n + 1 < len(headers) else len(text)
        parts.append(_part(text, header, end, enveloped=True))
    if not parts:
        findings.append("no X12 in it: neither ISA, GS nor ST" if lead else "the file is empty")
    return parts, findings


def _text(data: bytes) -> tuple[str, list[str]]:
    text, findings = _decoded(data)
    return storable(text.rstrip(_NOTHING)), findings


def _decoded(data: bytes) -> tuple[str, list[str]]:
    findings = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ["UTF-16, where X12 is ASCII"]
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        findings.append("begins with a UTF-8 byte order mark")
    try:
        return data.decode(), findings
    except UnicodeDecodeError:
        return data.decode("latin-1"), [*findings, "not UTF-8; read as Latin-1"]


def _headers(text: str) -> Iterator[_Header]:
    end = 0
    for match in _ISA.finditer(text):
        start = match.start()
        # `N1*SH*ISA*…` is a party called ISA, not a header.
        inside = start < end or (start > 0 and text[start - 1] == text[start + 3])
        if not inside and (header := _header(text, start)):
            end = header.end
            yield header


def _header(text: str, start: int) -> _Header | None:
    """The ISA at `start`. Split on its sixteen separators, because short and wrapped ones have the rest elsewhere."""
    separator = text[start + 3]
    pieces = text[start : start + _HEADER_CHARACTERS].split(separator, 16)
    if len(pieces) < 17:
        return None
    elements = [piece.replace("\r", "").replace("\n", "") for piece in pieces[:16]]
    if not _plausible(elements):
        return None
    rest, found = pieces[16], _Header(start, 0, (), Delimiters(separator, ""))
    component, segment, used = _ends(rest, separator, found.findings)
    if not segment:
        return None
    found.end = start + sum(map(len, pieces[:16])) + 16 + used
    found.elements = (*(element.rstrip() for element in elements), component)
    found.delimiters = Delimiters(separator, segment, component)
    length = sum(map(len, elements)) + 18  # sixteen separators, component separator and terminator
    if length != 106:
        found.findings.append(f"ISA has {length} characters, not 106")
    if pieces[:16] != elements:
        found.findings.append("ISA is broken over lines")
    return found


def _plausible(elements: Sequence[str]) -> bool:
    looks = (
        (9, r"\d{6}|\d{8}"),
        (10, r"\d{4,6}"),
        (12, r"\d{5}"),
        (13, r"\d{1,9}"),
        (15, r"[TPI]"),
    )
    return sum(bool(re.fullmatch(form, elements[n].strip())) for n, form in looks) >= 3


def _ends(rest: str, separator: str, findings: list[str]) -> tuple[str, str, int]:
    """Component separator and segment terminator after the sixteenth separator, and how many characters they take."""
    component = rest[:1]
    if component in ("\r", "\n"):
        findings.append("ISA16 is missing")
        return "", "\n", 1
    blanks = len(rest[1:]) - len(rest[1:].lstrip(" "))
    after = rest[1 + blanks :]
    next_segment = after.lstrip("\r\n \t")
    follows = next_segment.startswith((f"GS{separator}", f"TA1{separator}", f"IEA{separator}"))
    line = re.split(r"[\r\n]", next_segment, maxsplit=1)[0].rstrip(" \t")
    if follows and (after[0].isalpha() or (after[0] in "\r\n" and line.endswith(component))):
        findings.append("ISA16 is missing")
        return "", component, 1
    if not after:
        return component, "~", len(rest)
    terminator = after[0]
    if terminator.isalnum() or terminator == separator:
        return component, "", 0
    if blanks:
        findings.append("blanks before the end of ISA")
    if terminator == "\r":
        terminator = "\n"
    return component, terminator, 1 + blanks + 1


def _bare(text: str) -> _Header | None:
    """Where GS or ST stands without an ISA, what its delimiters must be: its last element ends at the terminator."""
    for match in islice(_BARE.finditer(text), _BARE_TRIES):
        start, separator = match.start(), text[match.end()]
        count, code = (2, r"\d{3}") if match[1] == "ST" else (8, r"[A-Z]{2}")
        pieces = text[start : start + _HEADER_CHARACTERS].split(separator)
        if len(pieces) <= count or not re.fullmatch(code, pieces[1].strip()):
            continue
        for n in (count, count + 1):  # ST03 and partners' own GS09 are allowed for
            last = re.match(r" *[\w-]{1,35} *", pieces[n]) if n < len(pieces) else None
            ending = pieces[n][last.end() : last.end() + 1] if last else ""
            if ending:
                segment = "\n" if ending in "\r\n" else ending
                return _Header(start, start, (), Delimiters(separator, segment))
    return None


def _part(text: str, header: _Header, end: int, *, enveloped: bool) -> Part:
    findings = list(header.findings)
    segments, cut = _segments(text[header.end : end], header.delimiters, findings)
    if enveloped:
        segments.insert(0, header.elements)
    return Part(header.delimiters, segments, findings, enveloped, cut)


def _segments(body: str, delimiters: Delimiters, findings: list[str]) -> tuple[list[Segment], bool]:
    segments, last, wrapped = [], "", 0
    for piece in _pieces(body, delimiters, findings):
        if isinstance(piece, tuple):
            segments.append(piece)
            last = ""
            continue
        last = piece.strip(_NOTHING)
        if not last:
            continue
        if delimiters.segment != "\n" and ("\n" in last or "\r" in last):
            wrapped += 1
            last = last.replace("\r", "").replace("\n", "")
        elements = last.split(delimiters.element)
        segments.append((elements[0].strip(), *(element.rstrip() for element in elements[1:])))
    if wrapped:
        findings.append(f"{wrapped} segments are broken over lines")
    return segments, bool(last) and delimiters.segment != "\n"


def _pieces(body: str, delimiters: Delimiters, findings: list[str]) -> Iterator[str | Segment]:
    """What stands between terminators; after the last one too, empty where all is well. Binary segments come split."""
    end = re.compile("[\r\n]" if delimiters.segment == "\n" else re.escape(delimiters.segment))
    sign = re.escape(delimiters.element)
    binary = re.compile(rf"\s*BIN{sign}(\d{{1,9}}){sign}")
    if f"BIN{delimiters.element}" not in body:
        yield from end.split(body)
        return
    position = 0
    while position <= len(body):
        if match := binary.match(body, position):
            stop = _counted(body, match.end(), int(match[1]), end)
            if stop is not None:
                yield ("BIN", match[1], body[match.end() : stop])
                position = stop + 1
                continue
            findings.append("the length in a BIN segment does not fit its data")
        found = end.search(body, position)
        yield body[position : found.start() if found else len(body)]
        position = found.end() if found else len(body) + 1


def _counted(body: str, start: int, length: int, end: re.Pattern[str]) -> int | None:
    """Where binary data of `length` ends: counted in bytes or, by some senders, in characters; there a segment must end."""
    characters = body[start : start + length]
    in_bytes = characters.encode("utf-8", "surrogatepass")[:length].decode("utf-8", "ignore")
    for content in (in_bytes, characters):
        stop = start + len(content)
        if len(characters) == length and (stop == len(body) or end.match(body, stop)):
            return stop
    return None
