"""E-mail as it goes over the wire (RFC 5322), by the standard library's lenient reader."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from typing import Any

from apex_memory.model import Assertion, File, slug
from apex_memory.pipeline.charset import decode

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
_ROLES = {"From": "from", "To": "to", "Cc": "cc"}
_MAX_HEADER = 10_000  # characters: the address parser's time grows faster than its input
_MAX_ADDRESSES = 100
_MAX_PARTS = 1_000
_PERSON = re.compile(r"[^\W\d_][\w'’.-]{0,30}(?: [^\W\d_][\w'’.-]{0,30}){1,3}\Z")


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail taken apart. `head` is the shown headers, a line each; `body` is HTML only where no text came."""

    head: str
    body: str
    is_html: bool
    subject: str
    metadata: Mapping[str, Any]
    assertions: tuple[Assertion, ...]
    files: tuple[File, ...]


def read_mail(data: bytes) -> Mail:
    """The mail, with every part that is not its text as a file. `start` in assertions is into `head`."""
    message = message_from_bytes(data)
    headers = {name: _header(message, name) for name in (*_SHOWN, "Message-ID")}
    head = "".join(f"{name}: {headers[name]}\n" for name in _SHOWN if headers[name])
    texts: list[str] = []
    pages: list[str] = []
    files: list[File] = []
    for part in _parts(message):
        kind = part.get_content_type()
        if part.get_filename() or part.get_content_disposition() == "attachment":
            files.append(_file(part))
        elif kind == "text/plain":
            texts.append(_text(part))
        elif kind == "text/html":
            pages.append(_text(part))
        else:
            files.append(_file(part))
    is_html = not any(map(str.strip, texts)) and bool(pages)
    return Mail(
        head=head,
        body="\n\n".join(pages if is_html else texts),
        is_html=is_html,
        subject=headers["Subject"],
        metadata=_metadata(headers),
        assertions=tuple(_correspondents(headers, head)),
        files=tuple(files),
    )


def _parts(message: Message) -> Iterator[Message]:
    """The leaves. A mail inside this one is a leaf too."""
    waiting = [message]
    for _ in range(_MAX_PARTS):
        if not waiting:
            return
        part = waiting.pop()
        inner = part.get_payload()
        if isinstance(inner, list) and part.get_content_maintype() == "multipart":
            waiting += [one for one in reversed(inner) if isinstance(one, Message)]
        else:
            yield part


def _header(message: Message, name: str) -> str:
    raw = str(message.get(name, ""))[:_MAX_HEADER]
    # An unknown charset, or bytes that are not of it: better raw than lost.
    with suppress(HeaderParseError, LookupError, ValueError):
        raw = str(make_header(decode_header(raw)))
    return " ".join(raw.split())


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload if isinstance(payload, bytes) else b"", part.get_content_charset())


def _file(part: Message) -> File:
    kind = part.get_content_type()
    inner = part.get_payload()
    if kind == "message/rfc822" and isinstance(inner, list) and inner:
        whole = inner[0]
        data = whole.as_bytes() if isinstance(whole, Message) else b""
        return File(part.get_filename() or "message.eml", kind, data)
    payload = part.get_payload(decode=True)
    name = " ".join(str(part.get_filename() or f"unnamed {kind}").split())[:255]
    return File(name, kind, payload if isinstance(payload, bytes) else b"")


def _metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    sent = None
    with suppress(ValueError):  # not a date: the header line still shows what it said
        sent = parsedate_to_datetime(headers["Date"]).isoformat() if headers["Date"] else None
    found = {
        "from": headers["From"],
        "to": headers["To"],
        "cc": headers["Cc"],
        "date": sent,
        "subject": headers["Subject"],
        "message_id": headers["Message-ID"],
    }
    return {name: value for name, value in found.items() if value}


def _correspondents(headers: Mapping[str, str], head: str) -> Iterator[Assertion]:
    """Who wrote to whom, and what they are called."""
    for name, predicate in _ROLES.items():
        for person, address in getaddresses([headers[name]])[:_MAX_ADDRESSES]:
            if "@" not in address:
                continue
            ref, place = f"email:{address.lower()}", head.find(address)
            start = place if place >= 0 else None
            yield Assertion(predicate=predicate, object=ref, start=start)
            if person and person != address:
                yield Assertion(subject=ref, predicate="name", value=person, start=start)
            if _PERSON.match(person):
                who = f"person:{slug(person)}"
                yield Assertion(subject=who, predicate="name", value=person, start=start)
                yield Assertion(subject=who, predicate="email", object=ref, start=start)
