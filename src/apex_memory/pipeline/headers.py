"""Fields of a mail's header: encoded words (RFC 2047), mailboxes (RFC 5322), dates."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from apex_memory.pipeline.charset import decode, decode_header

_YEARS = range(1970, 2200)  # a date outside is a broken clock's

_WORD = r"=\?([^?\s]{1,80})\?([bq])\?((?:[^?]|\?(?!=)){0,1000}?)\?="
_ENCODED_WORD = re.compile(_WORD, re.IGNORECASE)
_ENCODED_WORDS = re.compile(rf"{_WORD}(?:\s*{_WORD})*", re.IGNORECASE)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

# What is left over (an unclosed quote, say) is a character by itself.
_TOKEN = re.compile(
    r"(?P<word>=\?[^?\s]{1,80}\?[bq]\?(?:[^?]|\?(?!=)){0,1000}?\?=)"
    r"|(?P<quoted>\"(?:[^\"\\]|\\.)*+\")|(?P<comment>\((?:[^()\\]|\\.|\([^()]*+\))*+\))|(?P<angle><[^<>]*+>)"
    r"|(?P<literal>\[[^\[\]]*+\])|(?P<separator>[,;])|(?P<group>:)|(?P<text>(?:[^\"(<\[,;:=]|=(?!\?))++)|(?P<other>.)",
    re.DOTALL | re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(?:\"[^\"]+\"|[^\s<>()\[\],;:\"@\\]+)@(?:[^\s<>()\[\],;:\"@\\]+|\[[^\[\]\s]+\])"
)
_ROUTE = re.compile(r"@[^:<>]*:")
_SPECIAL = re.compile(r"[()<>\[\]:;@\\,\"]")


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Who sent or receives a mail. `address` is empty where there is none, or more than one, so that nobody is it."""

    name: str
    address: str

    def __str__(self) -> str:
        """Return the mailbox as a header shows it. A name that could be taken for an address is in quotes."""
        name = self.name
        if _SPECIAL.search(name):
            name = '"' + name.replace("\\", "").replace('"', "'") + '"'
        if not self.address:
            return name
        return f"{name} <{self.address}>" if name else self.address


def field_text(raw: bytes, charset: str | None) -> str:
    """Return a field as text on one line. Raw bytes that are not UTF-8 are in `charset`, that of the mail's text."""
    return " ".join(decode_words(decode_header(raw, charset)).split())


def decode_words(text: str) -> str:
    """Return the text with its encoded words decoded, also where they stand inside other words or quotes."""
    if "=?" not in text:
        return text
    return _ENCODED_WORDS.sub(lambda words: "".join(_decode_run(words[0])), text)


def _decode_run(words: str) -> Iterator[str]:
    """Yield the text of adjacent encoded words. A character's bytes may be split between words of one charset."""
    charset, pending = "", b""
    for word in _ENCODED_WORD.finditer(words):
        if word[1].lower() != charset:
            yield decode(pending, charset)
            charset, pending = word[1].lower(), b""
        content = word[3].encode("utf-8", "replace")
        if word[2] in "bB":
            pending += _base64(content)
        else:
            pending += binascii.a2b_qp(content, header=True)
    yield decode(pending, charset)


def _base64(content: bytes) -> bytes:
    """Decode base 64 of one or more padded pieces. Foreign characters and a single digit that is left over do not count."""
    decoded = b""
    for piece in content.split(b"="):
        digits = _NOT_BASE64.sub(b"", piece)
        if len(digits) % 4 == 1:
            digits = digits[:-1]
        decoded += binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
    return decoded


def mailboxes(raw: bytes, charset: str | None) -> list[Mailbox]:
    """Return the mailboxes of an address field.

    Addresses are found first and names decoded then (RFC 2047, section 6.2): an encoded name can hold anything, and
    must not become an address.
    """
    boxes: list[Mailbox] = []
    words_before = ""
    for is_last, tokens in _split(decode_header(raw, charset)):
        box = _mailbox(tokens)
        if box.name and not box.address and not is_last and not _has_address(tokens):
            words_before += f"{box.name}, "  # `Ortiz, Dana <dana@…>`: a comma without quotes
            continue
        if box.name or box.address:
            boxes.append(Mailbox(f"{words_before}{box.name}".strip(" ,"), box.address))
        words_before = ""
    return boxes


_Tokens = list[tuple[str, str]]


def _split(text: str) -> Iterator[tuple[bool, _Tokens]]:
    """Yield the tokens (kind, text) of each mailbox, and whether it is the last. The names of groups are left out."""
    tokens: _Tokens = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind == "group":
            tokens = []
        elif kind == "separator":
            yield match[0] == ";", tokens
            tokens = []
        else:
            tokens.append((kind, match[0]))
    yield True, tokens


def _has_address(tokens: _Tokens) -> bool:
    return any(kind == "angle" or (kind == "text" and "@" in text) for kind, text in tokens)


def _mailbox(tokens: _Tokens) -> Mailbox:
    angles = [text for kind, text in tokens if kind == "angle"]
    comments = [text[1:-1] for kind, text in tokens if kind == "comment"]
    words = [(kind, text) for kind, text in tokens if kind not in ("angle", "comment")]
    if angles:
        address = _ROUTE.sub("", "".join(angles)[1:-1].strip(), count=1)
        return Mailbox(_name(words), address if _is_address(address) else "")
    address = "".join(text for _, text in words).strip()
    if _is_address(address):
        return Mailbox(_name([("text", comment) for comment in comments]), address)
    return Mailbox(_name(words), "")


def _is_address(text: str) -> bool:
    return "=?" not in text and _ADDRESS.fullmatch(text) is not None


def _name(words: _Tokens) -> str:
    """Return a display name, decoded, without its quotes."""
    plain: list[str] = []
    for kind, text in words:
        if kind == "quoted":
            unescaped = _QUOTED_PAIR.sub(r"\1", text[1:-1])
            plain.append(f" {unescaped} ")
        else:
            plain.append(text)
    return " ".join(decode_words("".join(plain)).split()).strip("\"' ")


def sent_at(text: str) -> datetime | None:
    """Return a date, as RFC 5322 or ISO 8601 write it, or None for what is not one."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = read(text[:200])
        except (ArithmeticError, IndexError, TypeError, ValueError):
            continue
        return date if date.year in _YEARS else None
    return None
