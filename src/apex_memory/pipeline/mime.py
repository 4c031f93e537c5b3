"""The structure of a mail (RFC 2045 to 2049): headers, parts, transfer encodings. It reads what mail programs read, and never fails.

The standard library's parser takes time and stack in proportion to the depth of parts, and gives up where servers are
known to break rules. Here parts are offsets into the mail's bytes: nothing is copied before a part is decoded.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from itertools import islice

from apex_memory.pipeline.charset import decode, decode_header, decode_html
from apex_memory.pipeline.headers import decode_words

MAX_FIELD = 10_000
"""Bytes of a field that are kept: the parser of parameters takes more than linear time."""

_EOL = rb"(?:\r\n|\r|\n|\Z)"
_FIRST_LINES = re.compile(rb"(?:(?:[ \t\v\f]|\xc2\xa0)*+[\r\n]++)*+")
_ENVELOPE = re.compile(rb">?From [^\r\n]{0,1000}" + _EOL)
_HEADER = re.compile(
    rb"(?:[!-9;-~]{1,200}+[ \t]*+:[^\r\n]*+" + _EOL + rb"(?:[ \t][^\r\n]*+" + _EOL + rb")*+)*+"
)
_KEPT_FIELD = re.compile(
    rb"(?<![^\r\n])(From|Reply-To|To|Cc|Bcc|Date|Subject|Message-ID|Content-(?:Type|Disposition|Transfer-Encoding))"
    rb"[ \t]*+:[ \t]*+([^\r\n]*+(?:(?:\r\n|\r|\n)[ \t][^\r\n]*+)*+)",
    re.IGNORECASE,
)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_COMMENT = re.compile(r"\([^()]{0,100}\)")
_SOFT_BREAK = re.compile(rb"=[ \t]+(?=\r?\n)")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


@dataclass(frozen=True, slots=True)
class MimePart:
    """A part of a mail, or the mail itself. Parts of a multipart are in `parts`, the bytes of others in `content()`."""

    fields: Mapping[str, bytes]
    """Raw values of the header's fields, unfolded, by lower-case name."""
    data: bytes = field(repr=False)
    """The bytes of the whole mail."""
    start: int
    end: int
    """Where the body starts and ends in `data`."""
    default_type: str = "text/plain"

    @property
    def content_type(self) -> str:
        """The type in lower case. `text/plain` where the field is missing or malformed (RFC 2045, section 5.2)."""
        value = self._value("content-type").partition(";")[0].strip().lower()
        if not value:
            return self.default_type
        return value if re.fullmatch(r"[!-.0-~]+/[!-.0-~]+", value) else "text/plain"

    @property
    def disposition(self) -> str:
        return self._value("content-disposition").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        return self._parameter("content-type", "charset")

    @property
    def file_name(self) -> str | None:
        """The name of an attached file, in readable form."""
        name = self._parameter("content-disposition", "filename")
        name = name or self._parameter("content-type", "name")
        return " ".join(decode_words(name).split())[:255] or None if name else None

    def content(self) -> tuple[bytes, str]:
        """Return the body with its transfer encoding undone, and text that a server has put after the encoded body."""
        body, rest = self._decoded()
        return body, decode(rest).strip()

    def text(self) -> str:
        """Return the body of a text, with text that a server has put after it."""
        body, rest = self.content()
        read = decode_html if self.content_type == "text/html" else decode
        text = read(body, self.charset)
        if (self._parameter("content-type", "format") or "").lower() == "flowed":
            delete_blank = (self._parameter("content-type", "delsp") or "").lower() == "yes"
            text = unflowed(text, delete_blank=delete_blank)
        return f"{text.rstrip()}\n\n{rest}\n" if rest else text

    def parts(self, limit: int) -> list[MimePart] | None:
        """Return the first parts of a multipart, up to `limit`; None where no parts are found.

        The text after the end of the multipart is a part, too.
        """
        if not self.content_type.startswith("multipart/"):
            return None
        data, start, end = self.data, self.start, self.end
        spans = _spans(data, start, end, self._boundary(), limit)
        if (
            not spans and "content-transfer-encoding" in self.fields
        ):  # against RFC 2045, section 6.4
            data, _ = self._decoded()
            start, end = 0, len(data)
            spans = _spans(data, start, end, self._boundary(), limit)
        if not spans:
            return None
        kind = "message/rfc822" if self.content_type == "multipart/digest" else "text/plain"
        parts = [read_part(data, start, end, kind) for start, end in spans[:-1]]
        start, end = spans[-1]
        if re.search(rb"\w", data[start:end]):
            parts.append(MimePart({}, data, start, end))
        return parts

    def _boundary(self) -> bytes:
        boundary = self._parameter("content-type", "boundary") or ""
        return boundary.rstrip().encode()

    def _decoded(self) -> tuple[bytes, bytes]:
        body = self.data[self.start : self.end]
        encoding = self._value("content-transfer-encoding")[:200].lower()
        while (uncommented := _COMMENT.sub("", encoding)) != encoding:  # comments may be nested
            encoding = uncommented
        if re.search(r"base.?64", encoding):
            return decode_base64(body)
        if re.search(r"quoted.?printable", encoding):
            return binascii.a2b_qp(_SOFT_BREAK.sub(b"=", body)), b""
        if re.search(r"\buu|x-uu", encoding):
            return decode_uu(body), b""
        return body, b""

    def _value(self, name: str) -> str:
        return decode_header(self.fields.get(name, b""))

    def _parameter(self, field_name: str, name: str) -> str | None:
        """Return a parameter of a field, with the encoding of RFC 2231 undone."""
        value = self._value(field_name)
        if name not in value.lower():
            return None
        message = Message()
        message["content-type"] = value
        try:
            given = [item for key, item in message.get_params(failobj=[]) if key.lower() == name]
        except (
            TypeError,
            ValueError,
        ):  # the parser fails for parts without a number, or with a huge one
            match = re.search(rf"\b{name}\*?=\s*\"?([^\";]+)", value, re.IGNORECASE)
            return match[1].strip() if match else None
        for parameter in given:  # the encoded form is the exact one (RFC 6266, section 4.3)
            if isinstance(parameter, tuple):
                charset, _, encoded = parameter
                return decode(encoded.encode("latin-1", "replace"), charset)
        return given[0] if given else None


def read_part(data: bytes, start: int, end: int, default_type: str = "text/plain") -> MimePart:
    """Return the part in `data[start:end]`: header, blank line, body."""
    fields, body = _read_fields(data, start, end)
    return MimePart(fields, data, body, end, default_type)


def read_message(data: bytes) -> MimePart:
    """Return a mail, without what stands before its header: a byte order mark, blank lines, an envelope line."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = decode(data).encode("utf-8", "replace")
    start = 0
    while True:
        before = start
        if data.startswith(b"\xef\xbb\xbf", start):
            start += 3
        for pattern in (_FIRST_LINES, _ENVELOPE):
            if match := pattern.match(data, start):
                start = match.end()
        if start == before:
            return read_part(data, start, len(data))


def _read_fields(data: bytes, start: int, end: int) -> tuple[dict[str, bytes], int]:
    """Return the first field of each name (all of `To`, `Cc` and `Bcc`, joined), and where the body starts.

    The header ends at a blank line, or before a line that is neither a field nor the continuation of one.
    """
    header = _HEADER.match(data, start, end)
    assert header is not None  # the pattern also matches an empty header
    fields: dict[str, bytes] = {}
    for match in _KEPT_FIELD.finditer(header[0]):
        name = match[1].decode("ascii").lower()
        value = _LINE_END.sub(b"", match[2])[:MAX_FIELD]
        if name not in fields:
            fields[name] = value
        elif name in ("to", "cc", "bcc") and len(fields[name]) < MAX_FIELD:
            fields[name] = (fields[name] + b", " + value)[:MAX_FIELD]
    blank = _LINE_END.match(data, header.end(), end)
    return fields, blank.end() if blank else header.end()


def _spans(data: bytes, start: int, end: int, boundary: bytes, limit: int) -> list[tuple[int, int]]:
    """Return where the parts of a multipart start and end, and at last where the text after the closing line does.

    Parts that follow a closing line all the same are read. Without any delimiter the list is empty.
    """
    spans: list[tuple[int, int]] = []
    part_start = -1
    closed = False
    delimiters = _delimiters(data, start, end, boundary) if boundary else ()
    for line_start, line_end, closes in islice(delimiters, limit + 1):
        if part_start >= 0 and not closed:
            spans.append((part_start, _without_line_end(data, part_start, line_start)))
        part_start, closed = line_end, closes
    if part_start < 0:
        return []
    if not closed:
        return [*spans, (part_start, end), (end, end)]
    return [*spans, (part_start, end)]


def _delimiters(
    data: bytes, start: int, end: int, boundary: bytes
) -> Iterator[tuple[int, int, bool]]:
    """Yield start and end of each line that is the boundary, and whether it closes the multipart."""
    delimiter = b"--" + boundary
    pattern = re.compile(rb"(--)?[ \t]*(?:\r\n|\r|\n|\Z)")
    position = start
    while (line_start := data.find(delimiter, position, end)) >= 0:
        position = line_start + len(delimiter)
        is_line = line_start == start or data[line_start - 1 : line_start] in (b"\n", b"\r")
        if is_line and (line := pattern.match(data, position, end)):
            position = line.end()
            yield line_start, position, line[1] is not None


def _without_line_end(data: bytes, start: int, end: int) -> int:
    """Return `end` without the line end before it, which belongs to the delimiter."""
    if data.endswith(b"\r\n", start, end):
        return end - 2
    return end - 1 if data.endswith((b"\n", b"\r"), start, end) else end


def unflowed(text: str, *, delete_blank: bool) -> str:
    """Return a text of `format=flowed` with its paragraphs on one line each (RFC 3676, section 4).

    A line that ends with a blank goes on in the next one of the same quote depth. The blank is deleted if the sender says
    so: then lines may be broken inside a word.
    """
    lines: list[str] = []
    open_depth = -1
    for line in text.splitlines():
        content = line.lstrip(">")
        depth = len(line) - len(content)
        content = content.removeprefix(" ")
        is_signature = content == "-- "
        is_open = content.endswith(" ") and not is_signature
        if is_open and delete_blank:
            content = content[:-1]
        if depth == open_depth and not is_signature:
            lines.append(content)
        else:
            lines.append(f"\n{'>' * depth}{' ' if depth else ''}{content}")
        open_depth = depth if is_open else -1
    return "".join(lines).removeprefix("\n")


def decode_base64(body: bytes) -> tuple[bytes, bytes]:
    """Return the bytes that `body` encodes, and the text that follows them: mail servers append text to encoded bodies.

    A body that does not begin with base 64 is not encoded, whatever its header declares. Missing padding and a few
    foreign characters in a line do not matter.
    """
    compact = b"".join(body.split())
    digits = compact.rstrip(b"=")
    if b"=" not in digits and not digits.translate(None, _BASE64):
        return _base64(digits), b""
    decoded: list[bytes] = []
    pending: list[bytes] = []
    width = last = position = 0
    after_blank = ended = False
    for line in io.BytesIO(body):
        text = line.strip()
        if text:
            digits, is_padded = _base64_line(text)
            # All lines of the data have one length, except the last.
            ended = ended or (after_blank and last <= width)
            if not digits or (ended and len(digits) < width):
                break
            width, last = width or len(digits), len(digits)
            pending.append(digits)
            if is_padded:
                decoded.append(_base64(b"".join(pending)))
                pending.clear()
            ended, after_blank = is_padded, False
        else:
            after_blank = width > 0
        position += len(line)
    decoded.append(_base64(b"".join(pending)))
    return (b"".join(decoded), body[position:]) if width else (body, b"")


def _base64_line(text: bytes) -> tuple[bytes, bool]:
    """Return the digits of a line of base 64, none if it is something else, and whether its padding ends the data."""
    foreign = text.translate(None, _BASE64)
    if foreign:
        if len(foreign) * 10 > len(text) or b" " in text:
            return b"", False
        text = text.translate(None, foreign)
    return text.replace(b"=", b""), text.endswith(b"=")


def _base64(digits: bytes) -> bytes:
    """Decode digits without padding. A single digit that is left over encodes nothing."""
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def decode_uu(body: bytes) -> bytes:
    """Return the bytes of a uuencoded body, or the body itself where none begins."""
    begin = re.search(rb"^begin [0-7]{3,4} [^\r\n]*\r?\n", body, re.MULTILINE)
    if begin is None:
        return body
    decoded: list[bytes] = []
    for line in io.BytesIO(body[begin.end() :]):
        if line.strip() in (b"end", b"`", b""):
            break
        with suppress(binascii.Error):
            decoded.append(binascii.a2b_uu(_uu_line(line)))
    return b"".join(decoded)


def _uu_line(line: bytes) -> bytes:
    """Return a line without what follows the data whose length it states: some programs add a check sum."""
    length = (line[0] - 32) & 63
    return line[: 1 + (length + 2) // 3 * 4].rstrip(b"\r\n")
