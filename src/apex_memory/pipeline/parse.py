"""Files to text: PDF, Word, Excel, HTML, e-mail (with what is attached), and text of any kind."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, File
from apex_memory.pipeline.charset import decode
from apex_memory.pipeline.mail import read_mail
from apex_memory.pipeline.reader import FileReader

SUPPORTED = "PDF, DOCX, XLSX, HTML, MSG, EML, Markdown, text, CSV, JSON, XML, X12"
MAX_DEPTH = 3  # mail in mail in mail

_OFFICE = "application/vnd.openxmlformats-officedocument"
_TYPES = {
    "pdf": "application/pdf",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "html": "text/html",
    "msg": "application/vnd.ms-outlook",
    "mail": "message/rfc822",
}
_KIND_BY_TYPE = {media_type: kind for kind, media_type in _TYPES.items()} | {
    "application/xhtml+xml": "html",
    "application/json": "text",
    "application/x-ndjson": "text",
    "application/xml": "text",
    "application/edi-x12": "text",
    "application/yaml": "text",
}
_KIND_BY_EXTENSION = {
    "pdf": "pdf", "docx": "docx", "xlsx": "xlsx", "html": "html", "htm": "html", "msg": "msg", "eml": "mail",
    **dict.fromkeys(
        ("txt", "text", "log", "md", "markdown", "csv", "tsv", "json", "jsonl", "ndjson", "xml", "yaml", "yml", "edi", "x12"),
        "text",
    ),
}  # fmt: skip
_HTML = re.compile(rb"\s{0,100}<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6} +(\S[^\n]{0,200})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of a file, with what its structure says. `sections` are (start, end) of what was attached."""

    text: str
    title: str = ""
    sections: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assertions: tuple[Assertion, ...] = ()


async def parse(file: File, reader: FileReader, *, depth: int = 0) -> Parsed:
    """The file as text. Raises `Rejected` for a type that cannot be read, a broken file, and one without text."""
    kind = kind_of(file)
    if kind == "mail":
        parsed = await _mail(file, reader, depth)
    elif kind == "text":
        parsed = Parsed(await asyncio.to_thread(decode, file.data, _charset(file)))
        if file.name.lower().endswith((".md", ".markdown")) or "markdown" in file.content_type:
            parsed = replace(parsed, title=_heading(parsed.text))
    else:
        parsed = await _office(file, kind, reader)
    if not parsed.text.strip():
        raise Rejected(
            f"{_shown(file)} holds no text",
            remedy="if it is a scan, run it through text recognition first",
        )
    return parsed


def kind_of(file: File) -> str:
    """`pdf`, `docx`, `xlsx`, `html`, `msg`, `mail` or `text`: by the first bytes where they are plain, by type, by extension."""
    declared = file.content_type.partition(";")[0].strip().lower()
    extension = PurePosixPath(file.name.lower()).suffix.removeprefix(".")
    kind = (
        _by_magic(file.data)
        or _KIND_BY_TYPE.get(declared)
        or _KIND_BY_EXTENSION.get(extension)
        or ("text" if declared.startswith("text/") else "")
        or ("html" if _HTML.match(file.data[:500]) else "")
    )
    if not kind:
        raise Rejected(
            f"cannot read {_shown(file)}; supported: {SUPPORTED}",
            remedy="send it in one of these formats",
        )
    return kind


def _by_magic(data: bytes) -> str:
    if data.startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "msg"
    if data.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, OSError):
            return ""
        for folder, kind in (("word/", "docx"), ("xl/", "xlsx")):
            if any(name.startswith(folder) for name in names):
                return kind
    return ""


def _shown(file: File) -> str:
    """A file for people: its extension or type, never its name, which may say too much for a log."""
    extension = PurePosixPath(file.name).suffix[:12]
    return (
        extension
        if extension.isascii() and extension
        else file.content_type[:80] or "a file without a type"
    )


def _charset(file: File) -> str | None:
    match = re.search(r"charset=\"?([\w.:-]{1,40})", file.content_type, re.IGNORECASE)
    return match[1] if match else None


def _heading(text: str) -> str:
    match = _HEADING.search(text, 0, 5_000)
    return match[1].strip(" #*") if match else ""


async def _office(file: File, kind: str, reader: FileReader) -> Parsed:
    data = (
        decode(file.data, _charset(file)).encode("utf-8", "replace")
        if kind == "html"
        else file.data
    )
    # A PDF's plain text keeps its lines, which labels (`Shipper: …`) need; the others have real structure.
    reading = await reader.read(data, _TYPES[kind], "plain" if kind == "pdf" else "markdown")
    metadata = {
        "pages": reading.pages or None,
        "title": reading.title or reading.subject,
        "authors": reading.authors,
        "cut": reading.cut,
    }
    title = reading.title or (reading.subject if kind == "msg" else "")
    return Parsed(
        reading.text,
        title=title or (_heading(reading.text) if kind in ("docx", "html") else ""),
        metadata={name: value for name, value in metadata.items() if value},
    )


async def _mail(file: File, reader: FileReader, depth: int) -> Parsed:
    mail = await asyncio.to_thread(read_mail, file.data)
    body = mail.body
    if mail.is_html:
        page = File("body.html", "text/html; charset=utf-8", body.encode("utf-8", "replace"))
        body = (await _office(page, "html", reader)).text
    text, sections, notes = await append_files(
        f"{mail.head}\n{body}".strip("\n"), mail.files, reader, depth=depth + 1
    )
    attached = {"attachments": notes} if notes else {}
    return Parsed(
        text,
        title=mail.subject,
        sections=sections,
        metadata={"mail": mail.metadata, **attached},
        assertions=mail.assertions if depth == 0 else (),
    )


async def append_files(
    text: str, files: Sequence[File], reader: FileReader, *, depth: int
) -> tuple[str, tuple[tuple[int, int], ...], list[dict[str, Any]]]:
    """The text with each file's under a heading, where those are, and a note on every file.

    A file that cannot be read is not lost silently: its note has the reason under `unread`.
    """
    pieces, length = [text], len(text)
    sections: list[tuple[int, int]] = []
    notes: list[dict[str, Any]] = []
    for file in files:
        note: dict[str, Any] = {
            "name": file.name,
            "type": file.content_type,
            "bytes": len(file.data),
        }
        notes.append(note)
        try:
            if depth > MAX_DEPTH:
                raise Rejected(f"attached {MAX_DEPTH + 1} mails deep")
            parsed = await parse(file, reader, depth=depth)
        except Rejected as error:
            note["unread"] = str(error)
            continue
        note.update(parsed.metadata)
        piece = f"## {file.name}\n\n{parsed.text}"
        pieces.append(piece)
        start = length + 2
        length = start + len(piece)
        sections.append((start, length))
    return "\n\n".join(pieces), tuple(sections), notes
