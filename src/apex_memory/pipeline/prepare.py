"""Prepares batches of events: each event becomes a manifest, or an error of its own."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_memory.dates import DateOrder
from apex_memory.errors import ApexError, Rejected
from apex_memory.model import (
    DEGRADED,
    MALFORMED,
    RESERVED,
    TOMBSTONE,
    Chunk,
    Document,
    Event,
    Manifest,
    Priority,
    Vectors,
    document_uuid,
)
from apex_memory.pipeline.chunk import chunk
from apex_memory.pipeline.clean_document import clean_document, without_content
from apex_memory.pipeline.document_files import NotBegun, read_files_of_batch
from apex_memory.pipeline.embedders.base import Embedder
from apex_memory.pipeline.extract import Statement, assertion_of, statements
from apex_memory.pipeline.file_limits import ReaderLimits
from apex_memory.pipeline.item_errors import collect_error, result_or_error
from apex_memory.pipeline.reader import FileReader
from apex_memory.pipeline.reuse import LiveManifests, PassageVectors, embedded_text
from apex_memory.pipeline.text import clean
from apex_memory.telemetry import DOCUMENTS_CUT, logger
from apex_memory.work_threads import WorkThreads

if TYPE_CHECKING:  # the process that reads files does without the settings
    from apex_memory.config import Settings

VERSION = "8"
"""Raise it when the output changes for the same input: it is part of every manifest's id."""

MAX_ASSERTIONS = 2_000

Work = tuple[Event, Callable[[Event], Document]]
"""An event, and its source's function that turns it into a document."""


@dataclass(frozen=True, slots=True)
class _ChunkedDocument:
    """A document that lacks only its vectors."""

    event: Event
    document: Document
    chunks: tuple[Chunk, ...] = ()

    def texts(self) -> list[str]:
        """Return the text of each passage's vector."""
        document = self.document
        passages = (document.text[chunk.start : chunk.end] for chunk in self.chunks)
        return [embedded_text(document.kind, document.title, passage) for passage in passages]


class Pipeline:
    """Turns batches of events into manifests. `close()` ends the processes that read files."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        chunk_chars: int,
        limits: ReaderLimits | None = None,
        reader_processes: int = 3,
        reading_seconds: float = math.inf,
        build: str = "",
        live_manifests: LiveManifests | None = None,
        date_order: DateOrder = "auto",
    ) -> None:
        self._embedder = embedder
        self._passages = PassageVectors(embedder, live_manifests)
        self.pipeline = "/".join(filter(None, (VERSION, self._passages.id, build)))
        """What makes manifests here. Two builds never share a manifest, since either may map a payload differently."""
        self._chunk_chars = chunk_chars
        self._date_order = date_order
        self._reader = FileReader(limits, processes=reader_processes)
        self._threads = WorkThreads()
        self._reading_seconds = reading_seconds
        self._log = logger(component="pipeline")

    async def prepare(
        self, work: Sequence[Work], *, reuse: bool = True
    ) -> list[Manifest | ApexError]:
        """Return a manifest or an error for each event, in the order of `work`.

        The errors are `Rejected` for an event that can never succeed, and `Unavailable`, `RetryLater` or
        `Misconfigured` from an embedder that cannot work now. After `reading_seconds` no further files of `work` are
        begun: the events that are left become `NotBegun`, and so do all while the pipeline is `stuck`. With `reuse`, passages that the live version of their document
        holds already keep their vectors; a copy that is to be compared makes its own. Raises `Unavailable` then if
        PostgreSQL does not respond.
        """
        if self.stuck:
            error = NotBegun("threads of earlier events go on after their time limit")
            return [error for _ in work]
        documents = await self._threads.run(lambda: [_make_document(*item) for item in work])
        complete = await read_files_of_batch(documents, self._reader, seconds=self._reading_seconds)
        events = [event for event, _ in work]
        chunked = await self._threads.run(
            lambda: [
                self._chunk(event, document)
                for event, document in zip(events, complete, strict=True)
            ]
        )
        vectors = await self._embed(
            [item for item in chunked if isinstance(item, _ChunkedDocument)], reuse=reuse
        )
        results: list[Manifest | ApexError] = []
        for item in chunked:
            if isinstance(item, ApexError):
                results.append(item)
            else:
                results.append(self._manifest(item, next(vectors)))
        return results

    @property
    def stuck(self) -> bool:
        """Whether so many threads outlived their time limit that this process should be replaced. Then nothing is begun."""
        return self._threads.stuck

    async def close(self) -> None:
        """End the file reader's processes. The embedder belongs to its opener."""
        await self._reader.close()

    def _chunk(self, event: Event, document: Document | ApexError) -> _ChunkedDocument | ApexError:
        if isinstance(document, ApexError):
            return document
        with collect_error("pipeline") as errors:
            if document.deleted:
                return _ChunkedDocument(event, without_content(document))
            cleaned = clean_document(document, event)
            chunks = chunk(cleaned.text, cleaned.passages, chunk_chars=self._chunk_chars)
            return _ChunkedDocument(
                event, _with_assertions(cleaned, event, self._date_order), chunks
            )
        return errors[0]

    async def _embed(
        self, documents: Sequence[_ChunkedDocument], *, reuse: bool
    ) -> Iterator[Vectors | ApexError]:
        """Return the vectors of each document. All texts are embedded at once; if that is rejected, document by document."""
        texts = [document.texts() for document in documents]
        all_texts: list[str] = []
        for document_texts in texts:
            all_texts += document_texts
        known = (
            await self._passages.recall([document.event.doc_id for document in documents])
            if reuse
            else {}
        )
        urgent = any(document.event.priority == Priority.P0 for document in documents)
        embed = partial(self._vectors, known=known, urgent=urgent)
        vectors = await embed(all_texts)
        if isinstance(vectors, Rejected) and len(documents) > 1:
            return iter([await embed(document_texts) for document_texts in texts])
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

    async def _vectors(
        self, texts: Sequence[str], *, known: dict[bytes, Vectors], urgent: bool
    ) -> Vectors | ApexError:
        if not texts:
            return self._no_vectors()
        return await result_or_error(self._passages.embed(texts, known, urgent=urgent))

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
    with collect_error(event.source) as errors:
        if event.content_type == MALFORMED:
            malformed = json.loads(event.payload)
            raise Rejected(malformed["reason"], remedy=malformed["remedy"])
        document = make(event)
        if not isinstance(document, Document):
            raise TypeError  # a source from outside this project may not be type-checked
        if not RESERVED.isdisjoint(document.metadata):
            metadata = {
                key: value for key, value in document.metadata.items() if key not in RESERVED
            }
            return replace(document, metadata=metadata)
        return document
    return errors[0]


def _with_assertions(document: Document, event: Event, date_order: DateOrder) -> Document:
    """Add the assertions extracted from the text to those of the source. Each occurs once; there are `MAX_ASSERTIONS` at most."""
    own_ref = f"document:{event.doc_id}"
    extracted = statements(
        document.text,
        document.passages,
        _entity_refs(document),
        at=document.occurred_at.astimezone(UTC).date(),
        date_order=date_order,
    )
    distinct: dict[Statement, None] = dict.fromkeys(
        (a.predicate, a.subject or own_ref, a.object, a.value, a.start) for a in document.assertions
    )
    for predicate, subject, object_ref, value, start in extracted:
        distinct[predicate, subject or own_ref, object_ref, value, start] = None
    kept = tuple(map(assertion_of, islice(distinct, MAX_ASSERTIONS)))
    metadata: dict[str, Any] = dict(document.metadata)
    if len(distinct) > len(kept):
        degraded = {"entities": {"found": len(distinct), "kept": len(kept)}}
        metadata[DEGRADED] = {**metadata.get(DEGRADED, {}), **degraded}
    return replace(document, assertions=kept, metadata=metadata)


def open_pipeline(
    settings: Settings, embedder: Embedder, *, build: str, live_manifests: LiveManifests
) -> Pipeline:
    """Return the pipeline of a build with the limits of the settings. Its `close` ends the processes that read files."""
    return Pipeline(
        embedder,
        chunk_chars=settings.chunk_chars,
        limits=_reader_limits(settings),
        reader_processes=settings.reader_processes,
        reading_seconds=_reading_seconds(settings),
        build=build,
        live_manifests=live_manifests,
        date_order=settings.date_order,
    )


def _reader_limits(settings: Settings) -> ReaderLimits:
    return ReaderLimits(
        seconds=settings.reader_seconds,
        cpu_seconds=settings.reader_cpu_seconds,
        memory_bytes=settings.reader_memory_bytes,
        max_files=settings.reader_max_files,
        nesting=settings.reader_nesting,
        mime_nesting=settings.reader_mime_nesting,
        unpacked_bytes=settings.reader_unpacked_bytes,
        compression_ratio=settings.reader_compression_ratio,
    )


def _reading_seconds(settings: Settings) -> float:
    """Return how long the files of a batch are begun: as long as those of one event may take.

    So slow files hold the other events of their batch for twice that time at most, and preparing the batch does not
    reach its time limit, which would lose what was read.
    """
    left = settings.prepare_seconds - 2 * settings.reader_seconds
    return max(0.0, min(settings.reader_seconds, left))
