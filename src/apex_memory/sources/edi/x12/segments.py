"""The lexical layer of X12: bytes into segments, whatever a partner's software made of the standard. Never raises.

A file is a sequence of parts. A part is an interchange, from its ISA on, or a run of segments that has no ISA. Each
part has delimiters of its own (X12.5: element separator, component separator, segment terminator). Whatever is read in
spite of a fault is reported in `findings`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from apex_memory.sources.payloads import storable

Segment = tuple[str, ...]
"""The segment id and its elements, without trailing blanks. A BIN segment is (`BIN`, length, data)."""

ISA_CHARACTERS = 106  # fixed by X12.5, separators and terminator included
ISA_ELEMENTS = 16
_HEADER_CHARACTERS = 400  # wrapped, indented and overlong ISAs are longer than 106 characters
_BARE_TRIES = (
    1_000  # candidates for a first segment without ISA, in a file that may be no X12 at all
)
_SEPARATOR = r"[^\w\s]|[\t\x1c-\x1f]"  # characters that can separate elements
_ISA = re.compile(rf"(?<!\w)ISA(?={_SEPARATOR})")
_ISA_FORMS = (
    (12, re.compile(r"\d{5}")),
    (15, re.compile(r"[TPI]")),
    (13, re.compile(r"\d{1,9}")),
    (10, re.compile(r"\d{4,6}")),
    (9, re.compile(r"\d{6}|\d{8}")),
)
_BARE = re.compile(rf"(?<!\w)(GS|ST)(?={_SEPARATOR})")
_ESCAPED_BYTE = re.compile(
    "[\udc80-\udcff]"
)  # a byte that is no UTF-8, as `surrogateescape` marks it
_WINDOWS_1252 = {
    0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 256)
}
"""Escaped bytes as WHATWG's windows-1252 reads them, the superset of Latin-1 that senders mean by it."""
_PADDING = " \t\r\n\x00\x1a\ufeff"  # what senders put between segments and at the end of a file


@dataclass(frozen=True, slots=True)
class Delimiters:
    element: str
    segment: str
    """The segment terminator; `\\n` stands for any line end."""
    component: str = ""


@dataclass(frozen=True, slots=True)
class DelimitedSegments:
    """Segments under one set of delimiters; the first is the ISA where `enveloped`."""

    delimiters: Delimiters
    segments: Sequence[Segment]
    findings: Sequence[str]
    enveloped: bool
    truncated: bool
    """The last segment has no terminator, so it may be incomplete."""


@dataclass(slots=True)
class _Header:
    """An ISA, or the position of a first segment without one. `start` and `end` are character offsets."""

    start: int
    end: int
    elements: Segment
    delimiters: Delimiters
    findings: list[str] = field(default_factory=list)


def element(segment: Segment, n: int) -> str:
    """Return element `n` of a segment, counted from 1 as in the standard; empty where it is absent."""
    return segment[n].strip() if 0 <= n < len(segment) else ""


def read_parts(data: bytes) -> tuple[list[DelimitedSegments], list[str]]:
    """Return the parts of a file in their order, and the findings about what is outside of them."""
    text, findings = _decode(data)
    text = storable(text.rstrip(_PADDING))
    headers = list(_find_headers(text))
    first_header = headers[0].start if headers else len(text)

    parts = []
    bare = _find_bare_start(text[:first_header])
    if bare:
        parts.append(_read_part(text, bare, first_header, enveloped=False))
    lead = text[: bare.start if bare else first_header].strip(_PADDING)
    if lead and (headers or bare):
        findings.append(f"{len(lead)} characters before the first segment were skipped")
    for n, header in enumerate(headers):
        end = headers[n + 1].start if n + 1 < len(headers) else len(text)
        parts.append(_read_part(text, header, end, enveloped=True))

    if not parts:
        findings.append("no X12 in it: neither ISA, GS nor ST" if lead else "the file is empty")
    return parts, findings


def _decode(data: bytes) -> tuple[str, list[str]]:
    findings = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ["UTF-16, where X12 is ASCII"]
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        findings.append("begins with a UTF-8 byte order mark")
    text = data.decode("utf-8", "surrogateescape")
    if not text.isascii() and _ESCAPED_BYTE.search(text):
        # Byte by byte, so that a file put together from several senders' files is read too.
        text = text.translate(_WINDOWS_1252)
        findings.append("not UTF-8; read as Windows-1252")
    return text, findings


def _find_headers(text: str) -> Iterator[_Header]:
    end = 0
    for match in _ISA.finditer(text):
        start = match.start()
        # `N1*SH*ISA*…` is a party called ISA, not a header.
        inside_element = start > 0 and text[start - 1] == text[start + 3]
        if start < end or inside_element:
            continue
        if header := _parse_header(text, start):
            end = header.end
            yield header


def _parse_header(text: str, start: int) -> _Header | None:
    """Return the ISA at `start`, split on its sixteen separators: short and wrapped ones have no fixed columns."""
    separator = text[start + 3]
    pieces = text[start : start + _HEADER_CHARACTERS].split(separator, ISA_ELEMENTS)
    if len(pieces) <= ISA_ELEMENTS:
        return None
    if not _looks_like_isa(pieces):
        return None

    raw, rest = pieces[:ISA_ELEMENTS], pieces[ISA_ELEMENTS]
    elements = [_unwrap(piece) for piece in raw]
    findings: list[str] = []
    component, terminator, used = _header_end(rest, separator, findings)
    if not terminator:
        return None
    # The sixteen separators, the component separator and the terminator.
    length = sum(map(len, elements)) + ISA_ELEMENTS + 2
    if length != ISA_CHARACTERS:
        findings.append(f"ISA has {length} characters, not {ISA_CHARACTERS}")
    if raw != elements:
        findings.append("ISA is broken over lines")
    return _Header(
        start,
        start + sum(map(len, raw)) + ISA_ELEMENTS + used,
        (*(item.rstrip() for item in elements), component),
        Delimiters(separator, terminator, component),
        findings,
    )


def _looks_like_isa(pieces: Sequence[str]) -> bool:
    """Return whether at least three of five elements have the form that they have in an ISA."""
    matching = 0
    for tried, (n, form) in enumerate(_ISA_FORMS):
        if matching + len(_ISA_FORMS) - tried < 3:
            return False
        matching += form.fullmatch(_unwrap(pieces[n]).strip()) is not None
    return matching >= 3


def _unwrap(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


def _header_end(rest: str, separator: str, findings: list[str]) -> tuple[str, str, int]:
    """Return component separator, segment terminator and the characters they take.

    `rest` is what follows the sixteenth separator of an ISA. The terminator is empty where none can be told.
    """
    component = rest[:1]
    if component in ("\r", "\n"):
        findings.append("ISA16 is missing")
        return "", "\n", 1
    blanks = len(rest[1:]) - len(rest[1:].lstrip(" "))
    after = rest[1 + blanks :]
    next_segment = after.lstrip("\r\n \t")
    segment_follows = next_segment.startswith(
        (f"GS{separator}", f"TA1{separator}", f"IEA{separator}")
    )
    next_line = re.split(r"[\r\n]", next_segment, maxsplit=1)[0].rstrip(" \t")
    if segment_follows and (
        after[0].isalpha() or (after[0] in "\r\n" and next_line.endswith(component))
    ):
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


def _find_bare_start(text: str) -> _Header | None:
    """Return where a GS or ST stands without an ISA, with the delimiters that its last element implies."""
    for match in islice(_BARE.finditer(text), _BARE_TRIES):
        start, separator = match.start(), text[match.end()]
        count, code = (2, r"\d{3}") if match[1] == "ST" else (8, r"[A-Z]{2}")
        pieces = text[start : start + _HEADER_CHARACTERS].split(separator)
        if len(pieces) <= count or not re.fullmatch(code, pieces[1].strip()):
            continue
        for n in (count, count + 1):  # ST03, and a ninth element in GS that some partners add
            last = re.match(r" *[\w-]{1,35} *", pieces[n]) if n < len(pieces) else None
            ending = pieces[n][last.end() : last.end() + 1] if last else ""
            if ending:
                terminator = "\n" if ending in "\r\n" else ending
                return _Header(start, start, (), Delimiters(separator, terminator))
    return None


def _read_part(text: str, header: _Header, end: int, *, enveloped: bool) -> DelimitedSegments:
    findings = list(header.findings)
    segments, truncated = _split_segments(text[header.end : end], header.delimiters, findings)
    if enveloped:
        segments.insert(0, header.elements)
    return DelimitedSegments(header.delimiters, segments, findings, enveloped, truncated)


def _split_segments(
    body: str, delimiters: Delimiters, findings: list[str]
) -> tuple[list[Segment], bool]:
    """Return the segments, and whether the last one lacks its terminator."""
    segments: list[Segment] = []
    last, wrapped = "", 0
    for piece in _split_pieces(body, delimiters, findings):
        if isinstance(piece, tuple):
            segments.append(piece)
            last = ""
            continue
        last = piece.strip(_PADDING)
        if not last:
            continue
        if delimiters.segment != "\n" and ("\n" in last or "\r" in last):
            wrapped += 1
            last = _unwrap(last)
        elements = last.split(delimiters.element)
        segments.append((elements[0].strip(), *(item.rstrip() for item in elements[1:])))
    if wrapped:
        findings.append(f"{wrapped} segments are broken over lines")
    return segments, bool(last) and delimiters.segment != "\n"


def _split_pieces(
    body: str, delimiters: Delimiters, findings: list[str]
) -> Iterator[str | Segment]:
    """Yield what stands between terminators, and after the last one. A BIN segment is yielded as a segment.

    Takes time linear in the length of `body`, whatever lengths its BIN segments state.
    """
    terminator = re.compile(
        "[\r\n]" if delimiters.segment == "\n" else re.escape(delimiters.segment)
    )
    separator = re.escape(delimiters.element)
    if f"BIN{delimiters.element}" not in body:
        yield from terminator.split(body)
        return
    header = re.compile(rf"BIN{separator}(\d{{1,9}}){separator}")
    offsets = _ByteOffsets(body)
    position, misfits = 0, 0
    while position <= len(body):
        ending = terminator.search(body, position)
        stop = ending.start() if ending else len(body)
        piece = body[position:stop]
        content = piece.lstrip()
        if binary := header.match(content):
            start = position + len(piece) - len(content) + binary.end()
            end = _binary_end(body, start, int(binary[1]), terminator, offsets)
            if end is not None:
                yield ("BIN", binary[1], body[start:end])
                position = end + 1
                continue
            misfits += 1
        yield piece
        position = ending.end() if ending else len(body) + 1
    if misfits:
        findings.append(f"the length in {misfits} BIN segments does not fit their data")


def _binary_end(
    body: str, start: int, length: int, terminator: re.Pattern[str], offsets: _ByteOffsets
) -> int | None:
    """Return the offset where binary data of `length` ends; None where no segment ends there.

    BIN01 counts bytes by the standard, and characters with some senders.
    """
    for end in (offsets.advance(start, length), start + length):
        if end is None or end > len(body):
            continue
        if end == len(body) or terminator.match(body, end):
            return end
    return None


class _ByteOffsets:
    """Counts UTF-8 bytes in a text without encoding it again for each question."""

    _BLOCK = 1_024  # characters

    def __init__(self, text: str) -> None:
        self._text = text
        self._blocks: list[int] | None = None
        """Byte offset of each block of characters. None: every character is a byte."""
        if not text.isascii():
            blocks = range(0, len(text), self._BLOCK)
            sizes = (len(_encode(text[start : start + self._BLOCK])) for start in blocks)
            self._blocks = list(accumulate(sizes, initial=0))

    def advance(self, start: int, length: int) -> int | None:
        """Return the character offset so many bytes after `start`; None beyond the end or within a character."""
        if self._blocks is None:
            return start + length
        block = start // self._BLOCK
        before = self._text[block * self._BLOCK : start]
        target = self._blocks[block] + len(_encode(before)) + length
        if target > self._blocks[-1]:
            return None
        block = min(bisect_right(self._blocks, target), len(self._blocks) - 1) - 1
        first = block * self._BLOCK
        content = _encode(self._text[first : first + self._BLOCK])
        try:
            within = content[: target - self._blocks[block]].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return None
        return first + len(within)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
