"""Prepares batches of events: each event becomes a manifest, or an error of its own."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from apex_memory.errors import ApexError, Rejected, as_rejected
from apex_memory.model import (
    DEGRADED,
    MALFORMED,
    TOMBSTONE,
    Assertion,
    Chunk,
    Document,
    Event,
    File,
    Manifest,
    Vectors,
    document_uuid,
)
from apex_memory.pipeline.chunk import chunk
from apex_memory.pipeline.embedders.base import Embedder
from apex_memory.pipeline.entities import canonical
from apex_memory.pipeline.extract import extract
from apex_memory.pipeline.file_limits import MAX_CHARACTERS, ReaderLimits
from apex_memory.pipeline.reader import FileReader, ReadFiles
from apex_memory.pipeline.text import clean, clean_at, clean_value
from apex_memory.telemetry import DOCUMENTS_CUT, logger

VERSION = "2"
"""Raise it when the output changes for the same input: it is part of every manifest's id."""

MAX_ASSERTIONS = 2_000
MAX_TITLE = 500  # characters

T = TypeVar("T")
Work = tuple[Event, Callable[[Event], Document]]
"""An event, and its source's function that turns it into a document."""


@dataclass(frozen=True, slots=True)
class _ChunkedDocument:
    """A document that lacks only its vectors."""

    event: Event
    document: Document
    chunks: tuple[Chunk, ...] = ()

    def texts(self) -> list[str]:
        return [self.document.text[chunk.start : chunk.end] for chunk in self.chunks]


class Pipeline:
    """Turns batches of events into manifests. `close()` ends the processes that read files."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        chunk_chars: int,
        limits: ReaderLimits | None = None,
        reader_processes: int = 2,
    ) -> None:
        self.pipeline = f"{VERSION}/{embedder.id}"
        self._embedder = embedder
        self._chunk_chars = chunk_chars
        self._reader = FileReader(limits, processes=reader_processes)
        self._log = logger(component="pipeline")

    async def prepare(self, work: Sequence[Work]) -> list[Manifest | ApexError]:
        """Return a manifest or an error for each event, in the order of `work`.

        The errors are `Rejected` for an event that can never succeed, and `Unavailable`, `RetryLater` or
        `Misconfigured` from an embedder that cannot work now.
        """
        documents = await asyncio.to_thread(lambda: [_make_document(*item) for item in work])
        # One after the other: the other processes that read files are for the batches of other sources.
        complete = [await self._read_files(document) for document in documents]
        events = [event for event, _ in work]
        chunked = await asyncio.to_thread(
            lambda: [
                self._chunk(event, document)
                for event, document in zip(events, complete, strict=True)
            ]
        )
        vectors = await self._embed(
            [item for item in chunked if isinstance(item, _ChunkedDocument)]
        )
        results: list[Manifest | ApexError] = []
        for item in chunked:
            if isinstance(item, ApexError):
                results.append(item)
            else:
                results.append(self._manifest(item, next(vectors)))
        return results

    async def close(self) -> None:
        """End the file reader's processes. The embedder belongs to its opener."""
        await self._reader.close()

    async def _read_files(self, document: Document | ApexError) -> Document | ApexError:
        if isinstance(document, ApexError) or not document.files or document.deleted:
            return document
        return await _result_or_error(_with_files(document, self._reader))

    def _chunk(self, event: Event, document: Document | ApexError) -> _ChunkedDocument | ApexError:
        if isinstance(document, ApexError):
            return document
        with _collect_error("pipeline") as errors:
            if document.deleted:
                return _ChunkedDocument(event, _without_content(document))
            cleaned = _clean_document(document, event)
            chunks = chunk(cleaned.text, cleaned.passages, chunk_chars=self._chunk_chars)
            return _ChunkedDocument(event, _with_assertions(cleaned, event), chunks)
        return errors[0]

    async def _embed(self, documents: Sequence[_ChunkedDocument]) -> Iterator[Vectors | ApexError]:
        """Return the vectors of each document. All texts are embedded at once; if that is rejected, document by document."""
        texts = [document.texts() for document in documents]
        all_texts: list[str] = []
        for document_texts in texts:
            all_texts += document_texts
        vectors = await self._vectors(all_texts)
        if isinstance(vectors, Rejected) and len(documents) > 1:
            return iter([await self._vectors(document_texts) for document_texts in texts])
        if isinstance(vectors, ApexError):
            # A document without text needs no embedder.
            return iter(
                [vectors if document_texts else self._no_vectors() for document_texts in texts]
            )
        if not documents:
            return iter([])
        ends = np.cumsum([len(document_texts) for document_texts in texts])
        # Copies, so that one document does not keep the whole batch in memory.
        return iter([rows.copy() for rows in np.split(vectors, ends[:-1])])

    async def _vectors(self, texts: Sequence[str]) -> Vectors | ApexError:
        if not texts:
            return self._no_vectors()
        return await _result_or_error(self._embedder.passages(texts))

    def _no_vectors(self) -> Vectors:
        return np.zeros((0, self._embedder.dimension), dtype=np.float32)

    def _report_degraded(self, event: Event, document: Document) -> None:
        degraded: Mapping[str, Any] = document.metadata.get(DEGRADED, {})
        for limit, counts in degraded.items():
            DOCUMENTS_CUT.labels(event.source, limit).inc()
            self._log.warning(
                "document is not whole",
                events=[str(event.id)],
                source=event.source,
                limit=limit,
                counts=counts,
            )

    def _manifest(
        self, chunked: _ChunkedDocument, vectors: Vectors | ApexError
    ) -> Manifest | ApexError:
        if isinstance(vectors, ApexError):
            return vectors
        event, document = chunked.event, chunked.document
        self._report_degraded(event, document)
        parent = document_uuid(event.source, clean(document.parent)) if document.parent else None
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
            chunks=chunked.chunks,
            vectors=vectors,
            assertions=document.assertions,
            entities=_entity_refs(document),
            about=document.about,
        )


def _entity_refs(document: Document) -> tuple[str, ...]:
    """Return the refs of all entities in the document's assertions and of its subject, sorted."""
    refs: set[str] = set()
    for assertion in document.assertions:
        refs.add(assertion.subject)
        refs.add(assertion.object or "")
    refs.add(document.about or "")
    return tuple(sorted(ref for ref in refs if ref and not ref.startswith("document:")))


def _make_document(event: Event, make: Callable[[Event], Document]) -> Document | ApexError:
    if event.content_type == TOMBSTONE:
        return Document(kind="tombstone", title="", occurred_at=event.occurred_at, deleted=True)
    with _collect_error(event.source) as errors:
        if event.content_type == MALFORMED:
            malformed = json.loads(event.payload)
            raise Rejected(malformed["reason"], remedy=malformed["remedy"])
        document = make(event)
        if not isinstance(document, Document):
            raise TypeError  # a source from outside this project may not be type-checked
        if DEGRADED in document.metadata:  # only the pipeline knows what it left out
            metadata = {key: value for key, value in document.metadata.items() if key != DEGRADED}
            return replace(document, metadata=metadata)
        return document
    return errors[0]


@contextmanager
def _collect_error(place: str) -> Iterator[list[ApexError]]:
    """Catch the error of one item, so that it does not disturb its neighbours, and append it to the list yielded."""
    errors: list[ApexError] = []
    try:
        yield errors
    except ApexError as error:
        errors.append(error)
    except Exception as error:  # noqa: BLE001 -- a source's or parser's bug must cost its own event alone
        errors.append(as_rejected(error, place))


async def _result_or_error(step: Awaitable[T]) -> T | ApexError:
    with _collect_error("pipeline") as errors:
        return await step
    return errors[0]


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
        passages=parsed.sections,
        metadata={
            **document.metadata,
            "files": [{**note, **parsed.metadata}],
            **_left_out(read),
        },
        assertions=(*document.assertions, *parsed.assertions),
    )


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


def _without_content(document: Document) -> Document:
    """Return a deleted document, which keeps only its kind, time and parent."""
    return Document(
        kind=clean(document.kind),
        title="",
        occurred_at=document.occurred_at,
        parent=document.parent,
        deleted=True,
    )


def _clean_document(document: Document, event: Event) -> Document:
    """Return the document with text that every store can hold, and with its offsets moved accordingly."""
    if document.occurred_at.tzinfo is None:
        raise Rejected(
            f"{event.source} gave a time without a zone", remedy="correct the source's `document`"
        )
    text = document.text if document.text.strip() else ""
    offsets = _offsets(document)
    if text and any(not 0 <= offset <= len(text) for offset in offsets):
        raise Rejected(
            f"{event.source} points outside its text of {len(text)} characters",
            remedy="correct the source's `document`",
        )
    metadata = dict(document.metadata)
    if len(text) > MAX_CHARACTERS:
        metadata[DEGRADED] = _with_cut(metadata, len(text))
        text = text[:MAX_CHARACTERS]
    text, moved = clean_at(text, offsets)
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
        assertions=tuple(_clean_assertions(document.assertions, moved)),
    )


def _with_cut(metadata: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return what is left out of a document, with the cut of a text of `length` characters that may be cut already."""
    degraded = dict(metadata.get(DEGRADED, {}))
    all_characters = degraded.get("characters", {}).get("found", length)
    return {**degraded, "characters": {"found": all_characters, "kept": MAX_CHARACTERS}}


def _offsets(document: Document) -> set[int]:
    """Return all offsets that point into the document's text."""
    offsets = {assertion.start for assertion in document.assertions if assertion.start is not None}
    for passage in document.passages:
        offsets.update(passage)
    return offsets


def _clean_assertions(
    assertions: Sequence[Assertion], moved: Mapping[int, int]
) -> Iterator[Assertion]:
    """Yield the assertions with clean values and canonical refs, without those about an entity whose name is blank."""
    for assertion in assertions:
        cleaned = _clean_assertion(assertion, moved)
        if not _is_nameless(cleaned.subject) and not _is_nameless(cleaned.object or ""):
            yield cleaned


def _is_nameless(ref: str) -> bool:
    return ref.endswith(":") and ref.count(":") == 1


def _clean_assertion(assertion: Assertion, moved: Mapping[int, int]) -> Assertion:
    return Assertion(
        predicate=clean(assertion.predicate),
        subject=canonical(clean(assertion.subject)),
        object=None if assertion.object is None else canonical(clean(assertion.object)),
        value=None if assertion.value is None else clean(assertion.value),
        start=None if assertion.start is None else moved.get(assertion.start),
    )


def _with_assertions(document: Document, event: Event) -> Document:
    """Add the assertions extracted from the text to those of the source. Each occurs once; there are `MAX_ASSERTIONS` at most."""
    own_ref = f"document:{event.doc_id}"
    assertions = [*document.assertions, *extract(document.text, document.passages)]
    distinct = dict.fromkeys(
        assertion if assertion.subject else _with_subject(own_ref, assertion)
        for assertion in assertions
    )
    kept = tuple(distinct)[:MAX_ASSERTIONS]
    metadata: dict[str, Any] = dict(document.metadata)
    if len(distinct) > len(kept):
        degraded = {"entities": {"found": len(distinct), "kept": len(kept)}}
        metadata[DEGRADED] = {**metadata.get(DEGRADED, {}), **degraded}
    return replace(document, assertions=kept, metadata=metadata)


def _with_subject(subject: str, assertion: Assertion) -> Assertion:
    """Return the assertion with another subject. `dataclasses.replace` takes three times as long."""
    return Assertion(
        predicate=assertion.predicate,
        subject=subject,
        object=assertion.object,
        value=assertion.value,
        start=assertion.start,
    )
