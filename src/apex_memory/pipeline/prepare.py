"""The way of a batch through the rooms of the pipeline. Each item makes it, or fails, for itself."""

from __future__ import annotations

import asyncio
import json
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np

from apex_memory.errors import ApexError, Rejected
from apex_memory.model import (
    MALFORMED,
    TOMBSTONE,
    Assertion,
    Chunk,
    Document,
    Event,
    Manifest,
    Vectors,
    document_uuid,
)
from apex_memory.pipeline.chunk import chunk
from apex_memory.pipeline.embed import Embedder
from apex_memory.pipeline.entities import canonical
from apex_memory.pipeline.extract import extract
from apex_memory.pipeline.parse import append_files, parse
from apex_memory.pipeline.reader import FileReader
from apex_memory.pipeline.text import clean, clean_at, clean_value

VERSION = "1"
"""Raise it when the output changes for the same input: it is part of every manifest's id."""

MAX_CHARACTERS = 2_000_000
"""Most characters of one document's text; what follows is cut off, and the metadata says so."""

MAX_ASSERTIONS = 2_000
MAX_TITLE = 500
_FILE_SECONDS = 30.0

T = TypeVar("T")
Work = tuple[Event, Callable[[Event], Document]]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A document that lacks only its vectors."""

    event: Event
    document: Document
    chunks: tuple[Chunk, ...] = ()

    def texts(self) -> list[str]:
        return [self.document.text[one.start : one.end] for one in self.chunks]


class Pipeline:
    """Turns batches of events into manifests. `close()` ends the process that reads office files."""

    def __init__(self, embedder: Embedder, *, chunk_chars: int) -> None:
        self.pipeline = f"{VERSION}/{embedder.id}"
        self._embedder = embedder
        self._chunk_chars = chunk_chars
        self._reader = FileReader(seconds=_FILE_SECONDS, most=MAX_CHARACTERS)

    async def prepare(self, work: Sequence[Work]) -> list[Manifest | ApexError]:
        """A manifest for each event, or the error that stands in its place; in the order of `work`.

        The errors are `Rejected` for what can never succeed, and `Unavailable`, `RetryLater` or
        `Misconfigured` for an embedder that cannot serve now.
        """
        documents = await asyncio.to_thread(lambda: [_document(*item) for item in work])
        read = [await self._read_files(one) for one in documents]
        drafts = await asyncio.to_thread(
            lambda: [self._draft(event, one) for (event, _), one in zip(work, read, strict=True)]
        )
        vectors = await self._embed([one for one in drafts if isinstance(one, _Draft)])
        return [
            one if isinstance(one, ApexError) else self._finish(one, next(vectors))
            for one in drafts
        ]

    async def close(self) -> None:
        """End the reader's process. The embedder belongs to who opened it."""
        await self._reader.close()

    async def _read_files(self, document: Document | ApexError) -> Document | ApexError:
        if isinstance(document, ApexError) or not document.files or document.deleted:
            return document
        return await _caught(_with_files(document, self._reader))

    def _draft(self, event: Event, document: Document | ApexError) -> _Draft | ApexError:
        if isinstance(document, ApexError):
            return document
        with _errors("pipeline") as failed:
            if document.deleted:
                return _Draft(event, _emptied(document))
            whole = _settle(document, event)
            chunks = chunk(whole.text, whole.passages, chunk_chars=self._chunk_chars)
            return _Draft(event, _with_assertions(whole, event), chunks)
        return failed[0]

    async def _embed(self, drafts: Sequence[_Draft]) -> Iterator[Vectors | ApexError]:
        """Vectors of each draft. All texts go together; only when that is refused, draft by draft."""
        texts = [one.texts() for one in drafts]
        whole = await self._vectors([text for some in texts for text in some])
        if isinstance(whole, Rejected) and len(drafts) > 1:
            return iter([await self._vectors(some) for some in texts])
        if isinstance(whole, ApexError):
            return iter([whole if some else self._none() for some in texts])
        ends = np.cumsum([len(some) for some in texts])
        return iter([rows.copy() for rows in np.split(whole, ends[:-1])] if drafts else [])

    async def _vectors(self, texts: Sequence[str]) -> Vectors | ApexError:
        return await _caught(self._embedder.passages(texts)) if texts else self._none()

    def _none(self) -> Vectors:
        return np.zeros((0, self._embedder.dimension), dtype=np.float32)

    def _finish(self, draft: _Draft, vectors: Vectors | ApexError) -> Manifest | ApexError:
        if isinstance(vectors, ApexError):
            return vectors
        event, document = draft.event, draft.document
        parent = document_uuid(event.source, clean(document.parent)) if document.parent else None
        refs = {ref for one in document.assertions for ref in (one.subject, one.object) if ref}
        refs |= {document.about} if document.about else set()
        return Manifest(
            id=uuid.uuid5(event.id, self.pipeline),
            inbox_id=event.id,
            doc_id=event.doc_id,
            source=event.source,
            doc_key=event.doc_key,
            pipeline=self.pipeline,
            kind=document.kind,
            title=document.title,
            text=document.text,
            occurred_at=document.occurred_at,
            metadata=document.metadata,
            parent_id=parent,
            deleted=document.deleted,
            chunks=draft.chunks,
            vectors=vectors,
            assertions=document.assertions,
            entities=tuple(sorted(ref for ref in refs if not ref.startswith("document:"))),
            about=document.about,
        )


def _document(event: Event, make: Callable[[Event], Document]) -> Document | ApexError:
    if event.content_type == TOMBSTONE:
        return Document(kind="tombstone", title="", occurred_at=event.occurred_at, deleted=True)
    with _errors(event.source) as failed:
        if event.content_type == MALFORMED:
            told = json.loads(event.payload)
            raise Rejected(told["reason"], remedy=told["remedy"])
        made = make(event)
        if not isinstance(made, Document):
            raise TypeError  # a source of somebody else's may not be typed
        return made
    return failed[0]


@contextmanager
def _errors(place: str) -> Iterator[list[ApexError]]:
    """Catches what goes wrong with one item, so that it never disturbs its neighbours."""
    failed: list[ApexError] = []
    try:
        yield failed
    except ApexError as error:
        failed.append(error)
    except Exception as error:  # noqa: BLE001 -- a source's or parser's bug must cost its own event alone
        failed.append(_bug(error, place))


async def _caught(step: Awaitable[T]) -> T | ApexError:
    with _errors("pipeline") as failed:
        return await step
    return failed[0]


def _bug(error: Exception, place: str) -> Rejected:
    """What kind of error and where it arose; never its message, which may quote the payload."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Rejected(
        f"{type(error).__name__} in {place} ({PurePath(frame.filename).name}:{frame.lineno})",
        remedy="this is a bug: report it with the event's id, and redrive the event once it is mended",
    )


async def _with_files(document: Document, reader: FileReader) -> Document:
    """The document with its files' text in its own. A single file without text around it is the document."""
    if len(document.files) == 1 and not document.text.strip():
        file = document.files[0]
        parsed = await parse(file, reader)
        note = {"name": file.name, "type": file.content_type, "bytes": len(file.data)}
        return replace(
            document,
            text=parsed.text,
            title=_title(document.title, file.name) or parsed.title or file.name,
            passages=parsed.sections,
            metadata={**document.metadata, "files": [{**note, **parsed.metadata}]},
            assertions=(*document.assertions, *parsed.assertions),
        )
    text, sections, notes = await append_files(document.text, document.files, reader, depth=0)
    if not text.strip():
        raise Rejected(
            f"none of {len(notes)} files could be read: {notes[0]['unread']}",
            remedy="send them in another format",
        )
    return replace(
        document,
        text=text,
        passages=(*document.passages, *sections),
        metadata={**document.metadata, "files": notes},
    )


def _title(given: str, file_name: str) -> str:
    """The title a person gave; a file's name is none."""
    return "" if given.strip() == file_name.strip() else given.strip()


def _emptied(document: Document) -> Document:
    """A deleted document keeps its kind and place alone."""
    return Document(
        kind=clean(document.kind),
        title="",
        occurred_at=document.occurred_at,
        parent=document.parent,
        deleted=True,
    )


def _settle(document: Document, event: Event) -> Document:
    """The document with clean text, and everything that points into it moved along."""
    if document.occurred_at.tzinfo is None:
        raise Rejected(
            f"{event.source} gave a time without a zone", remedy="correct the source's `document`"
        )
    text = document.text if document.text.strip() else ""
    starts = {one.start for one in document.assertions if one.start is not None}
    borders = {border for passage in document.passages for border in passage}
    if text and any(not 0 <= mark <= len(text) for mark in starts | borders):
        raise Rejected(
            f"{event.source} points outside its text of {len(text)} characters",
            remedy="correct the source's `document`",
        )
    metadata = dict(document.metadata)
    if len(text) > MAX_CHARACTERS:
        metadata["cut"] = {"characters": len(text), "kept": MAX_CHARACTERS}
        text = text[:MAX_CHARACTERS]
    text, moved = clean_at(text, starts | borders)
    title = " ".join(clean(document.title).split())[:MAX_TITLE]
    return replace(
        document,
        kind=clean(document.kind),
        title=title,
        text=text or title,
        passages=tuple(
            (moved[start], moved.get(end, len(text)))
            for start, end in document.passages
            if start in moved and text
        ),
        metadata=clean_value(metadata),
        about=canonical(clean(document.about)) if document.about else None,
        assertions=tuple(_clean_assertion(one, moved) for one in document.assertions),
    )


def _clean_assertion(one: Assertion, moved: Mapping[int, int]) -> Assertion:
    return Assertion(
        predicate=clean(one.predicate),
        subject=canonical(clean(one.subject)),
        object=None if one.object is None else canonical(clean(one.object)),
        value=None if one.value is None else clean(one.value),
        start=None if one.start is None else moved.get(one.start),
    )


def _with_assertions(document: Document, event: Event) -> Document:
    """What the source says, then what the text says; each once, and not too many."""
    own = f"document:{event.doc_id}"
    told = [*document.assertions, *extract(document.text, document.passages)]
    filled = dict.fromkeys(one if one.subject else _of(own, one) for one in told)
    kept = tuple(filled)[:MAX_ASSERTIONS]
    metadata: dict[str, Any] = dict(document.metadata)
    if len(filled) > len(kept):
        metadata["assertions_cut"] = len(filled) - len(kept)
    return replace(document, assertions=kept, metadata=metadata)


def _of(subject: str, one: Assertion) -> Assertion:
    """The assertion with its subject filled in; `dataclasses.replace` takes three times as long."""
    return Assertion(
        predicate=one.predicate,
        subject=subject,
        object=one.object,
        value=one.value,
        start=one.start,
    )
