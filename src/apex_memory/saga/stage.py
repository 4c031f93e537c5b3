"""A stage: one attempt to publish one manifest, and the items it writes to the graph and the vector store.

Every item's id derives from the random stage id, never from document and version, so that a late delete or a
restored backup can never hit live data.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from apex_memory.model import (
    DATE,
    DAY,
    Assertion,
    Chunk,
    GraphAssertion,
    Manifest,
    Tally,
    VectorPoint,
    chunk_point,
    content_hash31,
    day_ref,
)
from apex_memory.saga.turns import turns_by_chunk

QUESTION_MARKS = ("?", "？", "؟")
_ISO_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
ENTITIES_EACH = 64  # a document with more entities has them on the passages that name them


@dataclass(frozen=True)
class Stage:
    """A row of the journal with the manifest that it publishes. Its items are hashed once, on first use."""

    id: UUID
    manifest: Manifest
    version: int
    event_id: str

    @cached_property
    def _chunk_hashes(self) -> tuple[int, ...]:
        return tuple(_chunk_hash(self.manifest, chunk) for chunk in self.manifest.chunks)

    @cached_property
    def _assertion_hashes(self) -> tuple[int, ...]:
        return tuple(map(_assertion_hash, self.manifest.assertions))

    @cached_property
    def chunks_tally(self) -> Tally:
        """What the vector store must hold of this stage."""
        return Tally(len(self._chunk_hashes), sum(self._chunk_hashes))

    @cached_property
    def edges_tally(self) -> Tally:
        """What the graph must hold of this stage: an edge for each subject and each object."""
        return _edges_tally(self.manifest, self._assertion_hashes)

    def points(self) -> Iterator[VectorPoint]:
        """Yield the points of the vector store, one for each chunk."""
        manifest = self.manifest
        seconds = int(manifest.occurred_at.timestamp())
        entities = entities_by_chunk(manifest)
        turns = turns_by_chunk(manifest)
        days = days_by_chunk(manifest)
        for chunk, turn, hash in zip(manifest.chunks, turns, self._chunk_hashes, strict=True):
            own_days = {day_ref(turn.day)} if turn.day else set()
            yield VectorPoint(
                id=chunk_point(self.id, chunk.n),
                stage=self.id,
                doc=manifest.doc_id,
                n=chunk.n,
                start=chunk.start,
                end=chunk.end,
                text=manifest.chunk_text(chunk),
                nearby=_nearby(manifest, chunk),
                source=manifest.source,
                kind=manifest.kind,
                time=seconds,
                entities=[*entities[chunk.n], *turn.speakers, *sorted(own_days | days[chunk.n])],
                continues=turn.continues,
                asks=manifest.text.endswith(QUESTION_MARKS, chunk.start, chunk.end),
                hash=hash,
            )

    def assertions(self) -> Iterator[GraphAssertion]:
        """Yield the assertions of the graph."""
        hashed = zip(self.manifest.assertions, self._assertion_hashes, strict=True)
        for n, (assertion, hash) in enumerate(hashed):
            yield GraphAssertion(
                id=uuid.uuid5(self.id, f"a{n}"),
                stage=self.id,
                doc=self.manifest.doc_id,
                predicate=assertion.predicate,
                subject=assertion.subject,
                object=assertion.object,
                value=assertion.value,
                start=assertion.start,
                hash=hash,
            )


def entities_by_chunk(manifest: Manifest) -> list[Sequence[str]]:
    """Return the entities by which each chunk can be filtered, in the order of the chunks.

    All chunks of a document carry all its entities while these are few. A chunk of a document with more than
    `ENTITIES_EACH` carries those that its own text names; the first chunk carries those that the text does not
    name, too. So the size of a document's points grows with its text, not with its text times its entities.
    """
    chunks = manifest.chunks
    if len(manifest.entities) <= ENTITIES_EACH or not chunks:
        return [manifest.entities] * len(chunks)
    known = set(manifest.entities)
    starts = [chunk.start for chunk in chunks]
    named: list[set[str]] = [set() for _ in chunks]
    for assertion in manifest.assertions:
        if assertion.start is None:
            continue
        refs = known.intersection((assertion.subject, assertion.object or ""))
        last = max(0, bisect_right(starts, assertion.start) - 1)
        named[last] |= refs
        # Chunks may overlap: earlier ones that reach this far name it, too.
        for n in range(last - 1, -1, -1):
            if chunks[n].end <= assertion.start:
                break
            named[n] |= refs
    named[0] |= known.difference(*named)
    return [sorted(refs) for refs in named]


def days_by_chunk(manifest: Manifest) -> list[set[str]]:
    """Return the refs of the days that the text of each chunk names, in the order of the chunks."""
    chunks = manifest.chunks
    days: list[set[str]] = [set() for _ in chunks]
    starts = [chunk.start for chunk in chunks]
    for assertion in manifest.assertions:
        if assertion.predicate != DATE or assertion.start is None:
            continue
        n = bisect_right(starts, assertion.start) - 1
        if n < 0 or not _ISO_DAY.fullmatch(assertion.value or ""):
            continue
        days[n].add(f"{DAY}:{assertion.value}")
    return days


def chunks_tally(manifest: Manifest) -> Tally:
    """Return what the vector store must hold of any stage of this manifest."""
    return Tally(
        len(manifest.chunks), sum(_chunk_hash(manifest, chunk) for chunk in manifest.chunks)
    )


def edges_tally(manifest: Manifest) -> Tally:
    """Return what the graph must hold of any stage of this manifest: an edge for each subject and each object."""
    return _edges_tally(manifest, list(map(_assertion_hash, manifest.assertions)))


def _edges_tally(manifest: Manifest, hashes: Sequence[int]) -> Tally:
    ends = [2 if assertion.object else 1 for assertion in manifest.assertions]
    return Tally(sum(ends), sum(n * hash for n, hash in zip(ends, hashes, strict=True)))


def _nearby(manifest: Manifest, chunk: Chunk) -> str:
    """Return the chunk with its neighbours, one on each side."""
    first = manifest.chunks[max(0, chunk.n - 1)]
    last = manifest.chunks[min(len(manifest.chunks) - 1, chunk.n + 1)]
    return manifest.text[first.start : last.end]


def _chunk_hash(manifest: Manifest, chunk: Chunk) -> int:
    return content_hash31(chunk.n, chunk.start, chunk.end, manifest.chunk_text(chunk))


def _assertion_hash(assertion: Assertion) -> int:
    return content_hash31(
        assertion.predicate, assertion.subject, assertion.object, assertion.value, assertion.start
    )
