"""Reads the files of the documents of a batch, and puts their text into the documents."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from apex_memory.errors import ApexError, Rejected, RetryLater
from apex_memory.model import DEGRADED, Document, File
from apex_memory.pipeline.item_errors import result_or_error
from apex_memory.pipeline.parse import Parsed
from apex_memory.pipeline.reader import FileReader, ReadFiles


class NotBegun(RetryLater):
    """The files of an event were not begun: those of its batch used up the time. Nothing happened to the event."""


async def read_files_of_batch(
    documents: Sequence[Document | ApexError], reader: FileReader, *, seconds: float
) -> list[Document | ApexError]:
    """Return the documents with the texts of their files, or the error of each that has none.

    A batch reads as many documents at once as `FileReader.share`. After `seconds` none is begun: those that are left
    become `NotBegun`, so that files of one batch that each use up their budget do not hold the others for longer.
    """
    results = list(documents)
    waiting = deque(n for n, document in enumerate(documents) if _has_files(document))
    deadline = monotonic() + seconds

    async def read() -> None:
        begun = False
        while waiting and (not begun or monotonic() < deadline):
            begun = True
            n = waiting.popleft()
            document = documents[n]
            assert isinstance(document, Document)
            results[n] = await result_or_error(_with_files(document, reader))

    async with asyncio.TaskGroup() as group:
        for _ in range(reader.share):
            group.create_task(read())
    for n in waiting:
        results[n] = NotBegun("the files of its batch used up the time for reading", after=0)
    return results


def _has_files(document: Document | ApexError) -> bool:
    return isinstance(document, Document) and bool(document.files) and not document.deleted


async def _with_files(document: Document, reader: FileReader) -> Document:
    """Return the document with the texts of its files in its own. A single file without text around it becomes the document."""
    if len(document.files) == 1 and not document.text.strip():
        return await _as_document(document, document.files[0], reader)
    read = await reader.append_files(document.text, document.files)
    parsed = read.parsed
    if not parsed.text.strip():
        notes = parsed.metadata["files"]
        raise Rejected(
            f"none of {len(notes)} files could be read: {notes[0]['unread']}",
            remedy="send them in another format",
        )
    return replace(
        document,
        text=parsed.text,
        passages=(*document.passages, *parsed.sections),
        metadata={**document.metadata, **parsed.metadata, **_left_out(read)},
    )


async def _as_document(document: Document, file: File, reader: FileReader) -> Document:
    read = await reader.read_file(file)
    parsed = read.parsed
    note = {"name": file.name, "type": file.content_type, "bytes": len(file.data)}
    return replace(
        document,
        text=parsed.text,
        title=_own_title(document.title, file.name) or parsed.title or file.name,
        occurred_at=_occurred_at(document, parsed),
        passages=parsed.sections,
        metadata={
            **document.metadata,
            "files": [{**note, **parsed.metadata}],
            **_left_out(read),
        },
        assertions=(*document.assertions, *parsed.assertions),
    )


def _occurred_at(document: Document, parsed: Parsed) -> datetime:
    """Return when a mail was sent, by its `Date`; for any other file the time that came with it.

    No mail is sent after its file was written: a later date is a wrong clock's, or forged.
    """
    stated = parsed.metadata.get("mail", {}).get("date")
    if not stated:
        return document.occurred_at
    sent = datetime.fromisoformat(stated)
    return min(document.occurred_at, sent if sent.tzinfo else sent.replace(tzinfo=UTC))


def _left_out(read: ReadFiles) -> dict[str, Any]:
    """Return what the limit of characters left out of the files, as metadata; empty if nothing."""
    degraded: dict[str, Any] = {}
    kept = len(read.parsed.text)
    if read.characters_left_out:
        degraded["characters"] = {"found": kept + read.characters_left_out, "kept": kept}
    if read.files_left_out:
        degraded["files"] = {"left_out": read.files_left_out}
    return {DEGRADED: degraded} if degraded else {}


def _own_title(title: str, file_name: str) -> str:
    """Return the title that a person gave; a title equal to the file's name is not one."""
    return "" if title.strip() == file_name.strip() else title.strip()
