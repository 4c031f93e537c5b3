"""E-mail as it goes over the wire (RFC 5322): the headers that are shown, the text, the files, and who wrote to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apex_memory.markup import plain_text
from apex_memory.model import Assertion, File, slug
from apex_memory.normalization import without_marks
from apex_memory.pipeline.headers import Mailbox, field_text, mailboxes, sent_at
from apex_memory.pipeline.mime import MimePart, read_message
from apex_memory.pipeline.uuencoded import split_uuencoded

_ROLES = {"From": "from", "Reply-To": "reply_to", "To": "to", "Cc": "cc", "Bcc": "bcc"}
_MAX_ADDRESSES = 100
_MAX_NESTING = 200  # a level is a frame of Python's stack
_MAX_COMPARED = 200_000  # characters of a text that are compared with its alternative
_PERSON = re.compile(r"[^\W\d_][\w'’.-]{0,30}(?: [^\W\d_][\w'’.-]{0,30}){1,3}\Z")
_MAILS = frozenset({"message/rfc822", "message/global", "message/news"})
_HTML = re.compile(r"\s{0,100}<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
# Formats that only ever repeat a text that stands beside them in a multipart/alternative.
_REPETITIONS = frozenset(
    {"text/x-amp-html", "text/watch-html", "text/enriched", "text/richtext", "text/rtf"}
)
_WORDS_OF_STUBS = frozenset({"html", "browser"})
_ADDRESS_OF_PAGE = re.compile(r"https?://\S+|www\.\S+", re.IGNORECASE)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TextBody:
    """A text part of a mail."""

    text: str
    is_html: bool


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail taken apart. `head` is the shown headers, a line each; `bodies` are its text parts in their order."""

    head: str
    bodies: tuple[TextBody, ...]
    subject: str
    metadata: Mapping[str, Any]
    assertions: tuple[Assertion, ...]
    files: tuple[File, ...]


def read_mail(data: bytes, *, max_parts: int = 1_000, max_nesting: int = 100) -> Mail:
    """Return the mail. All that is not its text is a file. `start` in assertions is an offset into `head`.

    Of more parts than `max_parts`, and of multiparts deeper than `max_nesting`, the rest is one file of a type that
    cannot be read, so that its note shows it.
    """
    message = read_message(data)
    content = _MailReader(max_parts, min(max_nesting, _MAX_NESTING)).read(message)
    # Raw bytes in headers that are not UTF-8 are mostly in the charset of the text below.
    charset = _text_charset(message)
    people = {name: mailboxes(message.fields.get(name.lower(), b""), charset) for name in _ROLES}
    others = {
        name: field_text(message.fields.get(name.lower(), b""), charset)
        for name in ("Date", "Subject", "Message-ID")
    }
    head = _Head()
    for name, boxes in people.items():
        head.add_mailboxes(name, boxes)
    head.add("Date", others["Date"])
    head.add("Subject", others["Subject"])
    return Mail(
        head=head.text,
        bodies=tuple(body for body in content.bodies if body.text.strip()),
        subject=others["Subject"],
        metadata=_metadata(people, others),
        assertions=tuple(head.assertions),
        files=tuple(content.files),
    )


@dataclass(slots=True)
class _PartContent:
    """What a part of a mail holds: texts and files, each in their order."""

    bodies: list[TextBody] = field(default_factory=list)
    files: list[File] = field(default_factory=list)

    def add(self, other: _PartContent) -> None:
        self.bodies += other.bodies
        self.files += other.files

    @property
    def is_html(self) -> bool:
        return any(body.is_html for body in self.bodies)

    @property
    def has_text(self) -> bool:
        return any(body.text.strip() for body in self.bodies)


class _MailReader:
    """Reads the parts of one mail."""

    def __init__(self, max_parts: int, max_nesting: int) -> None:
        self._max_parts = max_parts
        self._max_nesting = max_nesting
        self._parts = 0

    def read(self, part: MimePart, *, depth: int = 0, is_alternative: bool = False) -> _PartContent:
        """Return the content of a part and of those inside it. In an alternative, texts with a name are no files."""
        self._parts += 1
        is_too_deep = depth >= self._max_nesting
        parts = None if is_too_deep else part.parts(self._max_parts)
        if parts is None:
            return _leaf(part, is_too_deep=is_too_deep, is_alternative=is_alternative)
        kind = part.content_type
        is_alternative = kind == "multipart/alternative" or (
            is_alternative and kind == "multipart/related"
        )
        contents: list[_PartContent] = []
        for inner in parts:
            if self._parts >= self._max_parts:
                contents.append(_PartContent(files=[_left_out(self._max_parts)]))
                break
            contents.append(self.read(inner, depth=depth + 1, is_alternative=is_alternative))
        return _choose(contents) if kind == "multipart/alternative" else _joined(contents)


def _left_out(max_parts: int) -> File:
    """Return a file that stands for the parts beyond the limit: it cannot be read, and its note shows that."""
    return File(f"parts after the first {max_parts}", "application/octet-stream", b"")


def _leaf(part: MimePart, *, is_too_deep: bool, is_alternative: bool) -> _PartContent:
    kind = part.content_type
    name = part.file_name
    is_attached = part.disposition == "attachment" or (bool(name) and not is_alternative)
    is_text = kind in ("text/plain", "text/html", "text/rfc822-headers") or (
        (kind.startswith("message/") and kind not in _MAILS)
        or (kind.startswith("multipart/") and not is_too_deep)  # without any delimiter
    )
    if is_text and not is_attached:
        text = part.text()
        is_html = kind == "text/html" or (
            kind.startswith("multipart/") and _HTML.match(text) is not None
        )
        text, files = (text, []) if is_html else split_uuencoded(text)
        return _PartContent([TextBody(text, is_html)], files)
    data, text_after = part.content()
    if kind in _MAILS:
        file = File(name or "message.eml", "message/rfc822", data)
    else:
        charset = part.charset if kind.startswith("text/") else None
        content_type = f"{kind}; charset={charset}" if charset else kind
        file = File(name or f"unnamed {kind}", content_type, data)
    return _PartContent([TextBody(text_after, is_html=False)] if text_after else [], [file])


def _joined(contents: Sequence[_PartContent]) -> _PartContent:
    joined = _PartContent()
    for content in contents:
        joined.add(content)
    return joined


def _choose(contents: Sequence[_PartContent]) -> _PartContent:
    """Return one of the alternatives: the plain text, unless it is a stub beside the HTML."""
    html = _joined([content for content in contents if content.is_html])
    plain = _joined([content for content in contents if not content.is_html])
    if not html.has_text or (plain.has_text and not _is_stub(plain.bodies, html.bodies)):
        chosen = plain.bodies
    else:
        chosen = html.bodies
    files: list[File] = []
    for content in contents:
        files += content.files
    if chosen:
        files = [file for file in files if file.content_type.partition(";")[0] not in _REPETITIONS]
    return _PartContent(chosen, files)


def _is_stub(plain: Sequence[TextBody], html: Sequence[TextBody]) -> bool:
    """Return whether the plain text lacks much of the HTML's words, or numbers of it without having others instead."""
    plain_words = _words(body.text for body in plain)
    html_words = _words(
        plain_text(body.text[: 10 * _MAX_COMPARED]) if body.is_html else body.text for body in html
    )
    missing = html_words - plain_words
    missing_numbers = _numbers(missing)
    if not missing or (not missing_numbers and _is_bare(html_words, plain_words)):
        return False
    if len(missing) > 0.3 * len(html_words):
        return True
    return bool(missing_numbers) and not _numbers(plain_words - html_words)


def _is_bare(html_words: set[str], plain_words: set[str]) -> bool:
    """Return whether the HTML has few words (`View in browser`), beside a plain text that does not speak of HTML."""
    if plain_words & _WORDS_OF_STUBS:
        return False
    return len(html_words) < 3 or len(html_words) * 2 < len(plain_words)


def _words(texts: Iterator[str]) -> set[str]:
    words: set[str] = set()
    for text in texts:
        visible = _ADDRESS_OF_PAGE.sub(" ", text[:_MAX_COMPARED])
        words.update(_WORD.findall(visible.casefold()))
    return words


def _numbers(words: set[str]) -> set[str]:
    return {word for word in words if any(character.isdigit() for character in word)}


def _text_charset(message: MimePart) -> str | None:
    """Return the charset of the mail's first text, as far as its own header or that of a first part declares it."""
    part = message
    for _ in range(3):
        parts = part.parts(1)
        if not parts:
            break
        part = parts[0]
    return part.charset


class _Head:
    """The shown headers, and assertions on who wrote to whom, with their offsets there."""

    def __init__(self) -> None:
        self.text = ""
        self.assertions: list[Assertion] = []

    def add(self, name: str, value: str) -> None:
        if value:
            self.text += f"{name}: {value}\n"

    def add_mailboxes(self, name: str, boxes: Sequence[Mailbox]) -> None:
        shown: list[str] = []
        start = len(self.text) + len(f"{name}: ")
        for n, box in enumerate(boxes):
            shown.append(str(box))
            if box.address and n < _MAX_ADDRESSES:
                address_start = start + str(box).rindex(box.address)
                self.assertions += _correspondent(_ROLES[name], box, address_start)
            start += len(str(box)) + len(", ")
        self.add(name, ", ".join(shown))


def _correspondent(predicate: str, box: Mailbox, start: int) -> Iterator[Assertion]:
    """Yield who sends or receives the mail, and what they are called."""
    ref = f"email:{box.address.lower()}"
    yield Assertion(predicate=predicate, object=ref, start=start)
    if box.name and box.name != box.address:
        yield Assertion(subject=ref, predicate="name", value=box.name, start=start)
    if _PERSON.match(without_marks(box.name)):
        person = f"person:{slug(box.name)}"
        yield Assertion(subject=person, predicate="name", value=box.name, start=start)
        yield Assertion(subject=person, predicate="email", object=ref, start=start)


def _metadata(people: Mapping[str, Sequence[Mailbox]], others: Mapping[str, str]) -> dict[str, str]:
    date = sent_at(others["Date"])
    metadata = {role: ", ".join(map(str, people[name])) for name, role in _ROLES.items()}
    metadata["date"] = date.isoformat() if date else ""
    metadata["subject"] = others["Subject"]
    metadata["message_id"] = others["Message-ID"]
    return {name: value for name, value in metadata.items() if value}
