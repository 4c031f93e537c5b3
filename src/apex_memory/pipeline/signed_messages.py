"""The content of signed messages and files (CMS, RFC 5652: `smime.p7m`, `invoice.xml.p7m`). It is not encrypted: no key is needed.

A file may hold the message as it is, in base64, or in base64 between lines of dashes (RFC 7468).

Mail programs write CMS in BER, with lengths that are not known beforehand, which `cryptography` does not read. `asn1crypto`
has had no release since 2022, and `pyasn1` copies the whole content for each of its pieces. The way to the content is a few
elements, so they are read here. Signatures are not verified.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from apex_memory.errors import Rejected

_SIGNED_DATA = "1.2.840.113549.1.7.2"
_ENCRYPTED = frozenset(
    {"1.2.840.113549.1.7.3", "1.2.840.113549.1.7.6", "1.2.840.113549.1.9.16.1.23"}
)
_START = re.compile(
    rb"0(?:[\x00-\x80]|\x81.|\x82..|\x83...|\x84....)\x06[\x09-\x0b]\x2a\x86\x48\x86\xf7\x0d\x01(?:\x07|\x09\x10\x01)",
    re.DOTALL,
)
_ARMOR = re.compile(rb"-----BEGIN (?:PKCS ?#?7(?: SIGNED DATA)?|CMS)-----")
_SNIFFED = 100  # bytes: a line of dashes, and the start of a message
_END_OF_CONTENTS, _OCTETS, _OBJECT_ID, _SEQUENCE = 0x00, 0x04, 0x06, 0x30
_OCTETS_IN_PIECES = 0x24
_EXPLICIT_0 = 0xA0


def is_cms(data: bytes) -> bool:
    """Report whether the first bytes are those of a CMS message, or of one in base64: a sequence with the id of its type."""
    return bool(_START.match(data) or _START.match(_from_base64(data[:_SNIFFED])))


def signed_content(data: bytes) -> bytes:
    """Return what is signed. Raises `Rejected` for an encrypted message, a signature without content, and a damaged one.

    Takes time linear in the size of the message.
    """
    if not _START.match(data):
        data = _from_base64(data) or data
    message = _expect(_element(data, 0), _SEQUENCE)
    kind = _element(data, message.start)
    type_id = _object_id(data, kind)
    if type_id in _ENCRYPTED:
        raise Rejected(
            "the message is encrypted (S/MIME), and only its recipient has the key: forward it decrypted",
            remedy="let the mail program of its recipient forward it decrypted",
        )
    if type_id != _SIGNED_DATA:
        raise Rejected(
            f"a CMS message of the type {type_id}, which is not read",
            remedy="send what is in it as it is",
        )
    wrapped = _expect(_element(data, kind.end), _EXPLICIT_0)
    signed = _expect(_element(data, wrapped.start), _SEQUENCE)
    version = _element(data, signed.start)
    algorithms = _skip(data, version.end)
    content = _expect(_element(data, algorithms), _SEQUENCE)
    content_type = _element(data, content.start)
    is_absent = not content.is_indefinite and content_type.end >= content.end
    if is_absent or _element(data, content_type.end).tag != _EXPLICIT_0:
        raise Rejected(
            "a signature or certificates without content: what it signs is beside it",
            remedy="nothing, if what it signs is there",
        )
    return _octets(data, _element(data, _element(data, content_type.end).start))


def _from_base64(text: bytes) -> bytes:
    """Return the bytes that a text in base64 stands for; nothing for other data."""
    body = _ARMOR.sub(b"", text, count=1).partition(b"-----END")[0]
    letters = b"".join(body.split())
    try:
        return base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except ValueError:
        return b""


@dataclass(frozen=True, slots=True)
class _Element:
    """An element of BER: its tag, and where its content starts and ends. Of one without a length, the end is its start."""

    tag: int
    start: int
    end: int
    is_indefinite: bool


def _element(data: bytes, position: int) -> _Element:
    """Return the element at a position. Raises `Rejected` for one that reaches beyond the data."""
    header = data[position : position + 2]
    if len(header) < 2 or header[0] & 0x1F == 0x1F:  # tags of several bytes are not used here
        raise _damaged()
    tag, length = header
    start = position + 2
    if length == 0x80:
        return _Element(tag, start, start, is_indefinite=True)
    if length > 0x80:
        size = length & 0x7F
        length = int.from_bytes(data[start : start + size], "big")
        start += size
    if start + length > len(data):
        raise _damaged()
    return _Element(tag, start, start + length, is_indefinite=False)


def _expect(element: _Element, tag: int) -> _Element:
    if element.tag != tag:
        raise _damaged()
    return element


def _object_id(data: bytes, element: _Element) -> str:
    if element.tag != _OBJECT_ID or not 1 < element.end - element.start <= 20:
        raise _damaged()
    first, *rest = data[element.start : element.end]
    numbers = [first // 40, first % 40]
    number = 0
    for byte in rest:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(number)
            number = 0
    return ".".join(map(str, numbers))


def _skip(data: bytes, position: int) -> int:
    """Return where the element at a position ends. The end of one without a length is a mark behind what it holds."""
    depth = 0
    while True:
        element = _element(data, position)
        position = element.end
        if element.is_indefinite:
            depth += 1
        elif element.tag == _END_OF_CONTENTS:
            depth -= 1
        if depth <= 0:
            return position


def _octets(data: bytes, element: _Element) -> bytes:
    """Return the bytes of a string, which may be in pieces."""
    if element.tag == _OCTETS and not element.is_indefinite:
        return data[element.start : element.end]
    if element.tag != _OCTETS_IN_PIECES:
        raise _damaged()
    pieces: list[bytes] = []
    position = element.start
    while element.is_indefinite or position < element.end:
        piece = _element(data, position)
        if piece.tag == _END_OF_CONTENTS and element.is_indefinite:
            break
        if piece.tag != _OCTETS or piece.is_indefinite:
            raise _damaged()
        pieces.append(data[piece.start : piece.end])
        position = piece.end
    return b"".join(pieces)


def _damaged() -> Rejected:
    return Rejected(
        "the signed message is damaged", remedy="send what is in it without the signature"
    )
