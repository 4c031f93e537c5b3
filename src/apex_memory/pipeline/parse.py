"""Files to text: PDF, Office, HTML, e-mail (with what is attached), archives, and text of any kind.

All of it runs in the reader's process (`reader_process.py`), within the budget of one event. The worker itself
reads small plain texts only (`read_plain_text`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import PurePosixPath
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.markup import (
    plain_text,
    title_of,
    with_cell_ends,
    without_image_links,
    without_images,
)
from apex_memory.model import Assertion, File
from apex_memory.pipeline.archives import archive_members, unpacked
from apex_memory.pipeline.charset import decode, decode_html, decoded
from apex_memory.pipeline.content_lines import read_content_lines
from apex_memory.pipeline.file_kinds import NAMES, TYPES, is_plain_text, kind_of, shown
from apex_memory.pipeline.file_limits import BudgetExceeded, EventBudget, budget_exceeded
from apex_memory.pipeline.mail import TextBody, read_mail
from apex_memory.pipeline.office_packages import (
    RewrittenFile,
    final_open_document,
    final_presentation,
    final_word_file,
    formatted_spreadsheet,
    with_breaks,
    with_plain_signs,
)
from apex_memory.pipeline.signed_messages import signed_content
from apex_memory.pipeline.svg import read_svg

_PLAIN_BYTES = 1_000_000
_HEADING = re.compile(r"^#{1,6} +(\S[^\n]{0,200})", re.MULTILINE)
_JSON = re.compile(r"\s{0,100}(?:\{\s{0,100}[\"}]|\[\s{0,100}[\[{\"])")
# It also matches a string that never ends, so that no character is looked at twice.
_JSON_STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*+(?:"|\\?(?=\n|\Z))')
_XML = re.compile(r"\s{0,100}<\?xml\b", re.IGNORECASE)
_XML_REFERENCE = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|amp|lt|gt|quot|apos);", re.IGNORECASE)
_BOUNDARY = re.compile(
    rb"^--([^\r\n]{1,200})|boundary[ \t]*=[ \t]*(?:\"([^\"\r\n]{1,200})\"|([^\s\";]{1,200}))",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of a file, with the title, metadata and statements in its structure. `sections` are (start, end) of what was attached."""

    text: str
    title: str = ""
    sections: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assertions: tuple[Assertion, ...] = ()


def read_plain_text(file: File) -> Parsed | None:
    """Return a small plain text; None for a file that only the reader's process may read.

    This is the one format that the worker reads itself: decoding a megabyte of UTF-8 takes a millisecond, is linear
    in its size, and cannot fail. Another charset may have a slow decoder, or must be guessed.
    """
    if len(file.data) > _PLAIN_BYTES or not is_plain_text(file):
        return None
    if (_charset(file) or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        return None
    if not _is_utf8(file.data):
        return None
    return _with_text(file, _text(file))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse(file: File, budget: EventBudget, *, depth: int = 0) -> Parsed:
    """Return a file as text.

    Raises `Rejected` for a type that cannot be read, a broken file and one without text, and `BudgetExceeded` when
    the event is beyond a limit.
    """
    budget.add_file()
    kind = kind_of(file, budget)
    if kind == "mail":
        parsed = _mail(file, budget, depth)
    elif kind in ("zip", "tar", "mbox"):
        parsed = _archive(file, kind, budget, depth)
    elif kind in ("gzip", "bzip2", "xz"):
        return _nested(unpacked(file, kind, budget), budget, depth + 1)
    elif kind == "cms":
        return _nested(_signed(file), budget, depth + 1)
    elif kind == "svg":
        parsed = _drawing(file, budget)
    elif kind == "text":
        parsed = _cut(_text(file), budget)
    else:
        parsed = _office(file, kind, budget)
    return _with_text(file, parsed)


def append_files(
    text: str, files: Iterable[File | tuple[str, Rejected]], budget: EventBudget, *, depth: int
) -> tuple[str, tuple[tuple[int, int], ...], list[dict[str, Any]]]:
    """Return the text with each file's under a heading, where those are, and a note on every file.

    A file that cannot be read is not lost silently: its note has the reason under `unread`. A pair is a file that
    could not be unpacked, with the reason.
    """
    pieces: list[str] = [text] if text else []
    length = len(text)
    sections: list[tuple[int, int]] = []
    notes: list[dict[str, Any]] = []
    for file in files:
        if isinstance(file, tuple):
            name, reason = file
            budget.add_file()
            notes.append({"name": name, "unread": str(reason)})
            continue
        note: dict[str, Any] = {
            "name": file.name,
            "type": file.content_type,
            "bytes": len(file.data),
        }
        notes.append(note)
        try:
            parsed = _nested(file, budget, depth)
        except BudgetExceeded:
            raise
        except Rejected as error:
            note["unread"] = str(error)
            continue
        note.update(parsed.metadata)
        piece = f"## {file.name}\n\n{parsed.text}"
        start = length + 2 if pieces else 0
        pieces.append(piece)
        length = start + len(piece)
        sections.append((start, length))
    return "\n\n".join(pieces), tuple(sections), notes


def _nested(file: File, budget: EventBudget, depth: int) -> Parsed:
    if depth > budget.limits.nesting:
        budget.add_file()
        raise Rejected(
            f"more than {budget.limits.nesting} levels deep (limit `reader_nesting`)",
            remedy="send what is inside by itself; a larger `reader_nesting` allows it",
        )
    if not budget.characters_left:
        budget.add_file()
        budget.files_left_out += 1
        raise Rejected(f"beyond the {budget.limits.characters:,} characters of a document")
    return parse(file, budget, depth=depth)


def _with_text(file: File, parsed: Parsed) -> Parsed:
    if not parsed.text.strip():
        raise Rejected(
            f"{shown(file)} holds no text",
            remedy="if it is a scan, run it through text recognition first",
        )
    return parsed


def _cut(parsed: Parsed, budget: EventBudget, *, characters: int | None = None) -> Parsed:
    """Return the file with what is left of its text within the limit of the event, and a note if that is not all.

    `characters` is the length of the whole text, where `parsed` has its beginning only.
    """
    characters = len(parsed.text) if characters is None else characters
    kept = budget.take_characters(parsed.text)
    if len(kept) == characters:
        return parsed
    budget.characters_left_out += characters - len(kept)
    cut = {"characters": characters, "kept": len(kept)}
    return replace(parsed, text=kept, metadata={**parsed.metadata, "cut": cut})


def _text(file: File) -> Parsed:
    if lines := read_content_lines(file.data, _charset(file)):
        return Parsed(lines.text, title=lines.title)
    read = decoded(file.data, _charset(file))
    text = _without_escapes(read.text)
    metadata = {"guessed_charset": read.guessed} if read.guessed else {}
    is_markdown = (
        file.name.lower().endswith((".md", ".markdown")) or "markdown" in file.content_type
    )
    if not is_markdown:
        return Parsed(text, metadata=metadata)
    text = without_image_links(without_images(text))
    return Parsed(text, title=_heading(text), metadata=metadata)


def _signed(file: File) -> File:
    """Return what is signed in a file: of `smime.p7m` a mail without its outer headers, of `invoice.xml.p7m` the file."""
    path = PurePosixPath(file.name)
    name = path.stem if path.suffix.lower() == ".p7m" else path.name
    content = signed_content(file.data)
    if PurePosixPath(name).suffix:
        return File(name, "", content)
    return File(f"{name}.eml", TYPES["mail"], content)


def _drawing(file: File, budget: EventBudget) -> Parsed:
    drawing = read_svg(decode(file.data, _charset(file)), most_characters=budget.limits.characters)
    parsed = Parsed(drawing.text, title=drawing.title)
    return _cut(parsed, budget, characters=len(drawing.text) + drawing.left_out)


def _without_escapes(text: str) -> str:
    """Return JSON and XML with characters for their escapes, which would keep words from being found: `Caf\\u00e9`, `Caf&#233;`."""
    if "\\" in text and _JSON.match(text):
        return _JSON_STRING.sub(_unescaped, text)
    if "&" in text and _XML.match(text):
        return _XML_REFERENCE.sub(lambda reference: unescape(reference[0]), text)
    return text


def _unescaped(string: re.Match[str]) -> str:
    try:
        return f'"{json.loads(string[0], strict=False)}"' if "\\" in string[0] else string[0]
    except ValueError:
        return string[0]


def _charset(file: File) -> str | None:
    match = re.search(r"charset=\"?([\w.:-]{1,40})", file.content_type, re.IGNORECASE)
    return match[1] if match else None


def _heading(text: str) -> str:
    match = _HEADING.search(text, 0, 5_000)
    return match[1].strip(" #*") if match else ""


_REWRITE: Mapping[str, Callable[[bytes, EventBudget], RewrittenFile]] = {
    "docx": final_word_file,
    "xlsx": formatted_spreadsheet,
    "pptx": final_presentation,
    "rtf": with_plain_signs,
    **dict.fromkeys(("odt", "ods", "odp"), final_open_document),
}
"""What is done to a file of a kind before the office reader reads it."""


def _office(file: File, kind: str, budget: EventBudget) -> Parsed:
    # Imported here, because the worker imports this module and needs no office reader.
    from apex_memory.pipeline.office import read_office_file

    rewritten, page = RewrittenFile(file.data), ""
    if kind == "html":
        page = without_images(decode_html(file.data, _charset(file)))
        rewritten = RewrittenFile(with_cell_ends(page).encode("utf-8", "replace"))
    elif rewrite := _REWRITE.get(kind):
        rewritten = rewrite(file.data, budget)
    if not budget.start_native():
        raise Rejected(
            "the file crashed the reader twice",
            remedy="save it anew in another format, or send its text; if it is large, a larger `reader_memory_bytes` may do",
        )
    # A PDF's plain text keeps its lines, which labels (`Shipper: …`) need; the others have real structure.
    office = read_office_file(
        rewritten.data,
        media_type=TYPES[kind],
        name=NAMES[kind],
        style="plain" if kind == "pdf" else "markdown",
        limits=budget.limits,
    )
    page_title = title_of(page)
    metadata = {
        "pages": office.pages or None,
        "title": office.title or office.subject or page_title,
        "authors": office.authors,
    }
    title = office.title or (office.subject if kind == "msg" else "")
    body = without_image_links(with_breaks(office.text))
    if not body.strip():
        body = plain_text(page)  # tags too deep for the office reader
    text = "\n\n".join(filter(None, (rewritten.header, body, rewritten.footer)))
    parsed = Parsed(
        text,
        title=title or (_heading(body) if kind in ("docx", "html") else "") or page_title,
        metadata={name: value for name, value in metadata.items() if value},
    )
    removed = len(office.text) - len(text)
    return _cut(parsed, budget, characters=office.characters - removed)


def _mail(file: File, budget: EventBudget, depth: int) -> Parsed:
    check_mime_parts(file.data, budget)
    limits = budget.limits
    mail = read_mail(file.data, max_parts=limits.max_files, max_nesting=limits.mime_nesting)
    bodies = [_mail_body(body, budget) for body in mail.bodies]
    body = "\n\n".join(body.text.strip("\r\n") for body in bodies)
    text, sections, notes = append_files(
        f"{mail.head}\n{body}".strip("\n"), mail.files, budget, depth=depth + 1
    )
    metadata: dict[str, Any] = {"mail": mail.metadata}
    cuts = [body.metadata["cut"] for body in bodies if "cut" in body.metadata]
    if cuts:
        metadata["cut"] = {name: sum(cut[name] for cut in cuts) for name in cuts[0]}
    if notes:
        metadata["attachments"] = notes
    return Parsed(
        text,
        title=mail.subject,
        sections=sections,
        metadata=metadata,
        assertions=mail.assertions if depth == 0 else (),
    )


def _mail_body(body: TextBody, budget: EventBudget) -> Parsed:
    """Return a text part of a mail. A page that the office reader cannot read is stripped of its tags instead."""
    if not body.is_html:
        return _cut(Parsed(without_image_links(body.text)), budget)
    if budget.characters_left:
        page = File("body.html", "text/html; charset=utf-8", body.text.encode("utf-8", "replace"))
        try:
            parsed = _office(page, "html", budget)
        except BudgetExceeded:
            raise
        except Rejected:
            pass
        else:
            if parsed.text.strip():
                return parsed
    return _cut(Parsed(plain_text(without_images(body.text))), budget)


def check_mime_parts(data: bytes, budget: EventBudget) -> None:
    """Raise `BudgetExceeded` for a mail of more parts, or of parts nested deeper, than the limits allow.

    This pass keeps the boundaries that are declared, and counts those of them that delimit the place where it is.
    """
    places: dict[bytes, int] = {}
    declared: list[bytes] = []
    delimits: list[bool] = []
    depth = parts = 0
    for match in _BOUNDARY.finditer(data):
        delimiter = match[1]
        if delimiter is None:
            boundary = match[2] or match[3]
            if boundary not in places:
                places[boundary] = len(declared)
                declared.append(boundary)
                delimits.append(False)
            continue
        delimiter = delimiter.rstrip()
        place = places.get(delimiter, places.get(delimiter.removesuffix(b"--")))
        if place is None:
            continue
        while len(declared) > place + 1:
            del places[declared.pop()]
            depth -= delimits.pop()
        depth += not delimits[place]
        delimits[place] = True
        parts += delimiter in places
        budget.check_files(parts)
        if depth > budget.limits.mime_nesting:
            raise _nested_too_deep(budget)


def _nested_too_deep(budget: EventBudget) -> BudgetExceeded:
    return budget_exceeded(
        "reader_mime_nesting",
        f"a mail has parts nested more than {budget.limits.mime_nesting} levels deep",
    )


def _archive(file: File, kind: str, budget: EventBudget, depth: int) -> Parsed:
    members = archive_members(file.data, kind, budget)
    text, sections, notes = append_files("", members, budget, depth=depth + 1)
    if not text.strip():
        reason = notes[0]["unread"] if notes else "it is empty"
        raise Rejected(
            f"none of {len(notes)} files in {shown(file)} could be read: {reason}",
            remedy="send them in another format",
        )
    return Parsed(text, sections=sections, metadata={"members": notes})
