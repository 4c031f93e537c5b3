"""The question's way: its vector and entities, the snapshot, the legs, one order, the text."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import numpy as np

from apex_memory.errors import Rejected
from apex_memory.model import Entity, Filters, Vectors, now
from apex_memory.search.answers import (
    Answer,
    DocumentView,
    EntityView,
    Hit,
    Page,
    Provenance,
    QueryEntities,
    Recognised,
)
from apex_memory.search.documents import DocumentReader
from apex_memory.search.excerpt import excerpter
from apex_memory.search.fusion import Weights
from apex_memory.search.ranking import Exact, Ranked, Ranking
from apex_memory.search.retrieval import GraphFinds, Legs, Question
from apex_memory.search.snapshot import SNIPPET_CHARS, Opening, SnapshotReader, spans_of
from apex_memory.search.time_limits import Degraded, Stopwatch, TimeLimiter
from apex_memory.search.time_words import time_words
from apex_memory.search.visibility import SnapshotView, StoreQuery, settled
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.bm25 import Words
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Postgres, Row

QUERY_CHARS = 2_000
LIMIT_MAX = 100
EXACT_MAX = 20  # identifiers of one question looked up in the exact index
LEAST_DEPTH = 50  # hits a leg
VECTOR_SECONDS = 3_600  # a question's vector stays in the cache

T = TypeVar("T")

# Types whose refs are names, not identifiers: a question about Dallas must not be answered by
# every document that names Dallas before any other.
NAMES = frozenset({"company", "person", "location"})


@dataclass(frozen=True, slots=True)
class _Vector:
    """A question's vector; None without an embedder. `cached` is where it came from."""

    row: Vectors | None
    cached: bool


class Search:
    """Answers questions from what one snapshot of PostgreSQL shows, and reads single documents and entities.

    `embed_query` gives a question's vector (shape (dimension,)) and `extract_query` its entities.
    `leg_seconds` bounds each store's part; one that ran out of it is left alone for `rest_seconds`.
    """

    def __init__(
        self,
        db: Postgres,
        graph: GraphStore,
        vectors: VectorStore,
        cache: Cache,
        *,
        embed_query: Callable[[str], Awaitable[Vectors]],
        embedder_id: str,
        extract_query: Callable[[str], QueryEntities],
        leg_seconds: float = 2,
        rest_seconds: float = 5,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._db = db
        self._cache = cache
        self._embed_query = embed_query
        self._embedder_id = embedder_id
        self._extract_query = extract_query
        self._clock = clock
        self._bounded = TimeLimiter(seconds=leg_seconds, rest=rest_seconds)
        self._words = Words(average_words=1)  # of questions, whose terms do not depend on it
        self._legs = Legs(graph, vectors)
        self._graph, self._vectors = graph, vectors
        self._memory = DocumentReader(db, graph, cache, bounded=self._bounded)

    async def search(
        self,
        query: str,
        *,
        limit: int = 10,
        filters: Filters | None = None,
        passages_per_document: int = 3,
        weights: Weights | None = None,
    ) -> Answer:
        """The best passages for a question; without one, the newest documents that pass the filters.

        Raises `Rejected` for a question over 2,000 characters or a limit outside 1 to 100, and
        `Unavailable` when PostgreSQL is not there. Any other store that is away makes the answer
        `degraded`.
        """
        text = query.encode("utf-8", "replace").decode().replace("\x00", " ").strip()
        _check(text, limit, passages_per_document)
        watch, degraded = Stopwatch(), Degraded()
        with watch.part("total"):
            if not text:
                answer = await self._newest(limit, filters, watch)
            else:
                answer = await self._ask(
                    text,
                    limit,
                    filters,
                    passages_per_document,
                    weights or Weights(),
                    watch,
                    degraded,
                )
        answer.degraded = degraded.names()
        answer.took_ms = watch.took_ms
        return answer

    async def _newest(self, limit: int, filters: Filters | None, watch: Stopwatch) -> Answer:
        with watch.part("read"):
            async with self._db.snapshot() as connection:
                reader = SnapshotReader(connection, filters)
                ranked = []
                for row in await reader.newest(limit):
                    start, end = next(iter(spans_of(row)), (0, 0))
                    ranked.append(
                        Ranked(doc=row["doc_id"], start=start, end=end, score=0.0, legs={}, why=())
                    )
                return Answer(hits=await _hits(reader, ranked, excerpter("", self._matters)))

    async def _ask(
        self,
        text: str,
        limit: int,
        filters: Filters | None,
        passages_per_document: int,
        weights: Weights,
        watch: Stopwatch,
        degraded: Degraded,
    ) -> Answer:
        # Begun at once: a vector takes as long as all else together. What waits for it holds a
        # connection meanwhile, for `leg_seconds` at most, and of those there are enough.
        vector = asyncio.create_task(self._vector(text, degraded, watch))
        try:
            answer, _ = await settled(
                self._look(
                    text, limit, filters, passages_per_document, weights, watch, degraded, vector
                ),
                self._keep_vector(text, vector),
            )
        finally:
            vector.cancel()
        return answer

    async def _look(
        self,
        text: str,
        limit: int,
        filters: Filters | None,
        passages_per_document: int,
        weights: Weights,
        watch: Stopwatch,
        degraded: Degraded,
        vector: Awaitable[_Vector],
    ) -> Answer:
        entities = self._extract_query(text)
        certain = [ref for ref in entities.certain if Entity.parse(ref).type not in NAMES]
        async with self._db.snapshot() as connection:
            reader, exact = SnapshotReader(connection, filters), Exact()
            live = SnapshotView(reader)
            with watch.part("identifiers"):
                opening = await reader.opening()
                for ref, row in await reader.identified(certain[:EXACT_MAX]):
                    exact.add(ref, row["doc_id"])
            question = Question(
                text=text,
                exact=list(exact.counts),
                refs=[*entities.certain, *entities.candidates],
                time=time_words(text, self._clock()),
                filters=filters,
                depth=max(LEAST_DEPTH, 3 * limit),
            )
            asker = StoreQuery(live, self._bounded, degraded)
            with watch.part("stores"):
                found, (linked, contents) = await settled(
                    self._checked(
                        self._vectors,
                        self._legs.passages(question, _rows(vector), asker),
                        opening,
                        degraded,
                    ),
                    self._linked(
                        exact,
                        self._checked(
                            self._graph, self._legs.links(question, asker), opening, degraded
                        ),
                        live,
                        reader,
                    ),
                )
            with watch.part("read"):
                ranking = Ranking(
                    rows=live.rows,
                    vectors=found,
                    graph=linked,
                    exact=exact,
                    contents=contents,
                    time=question.time,
                    weights=weights,
                    terms=len(self._words.question(text).ids),
                    corpus=opening.documents,
                )
                ranked = ranking.order(limit=limit, passages_per_document=passages_per_document)
                hits = await _hits(reader, ranked, excerpter(text, self._matters))
        recognised = [Recognised(ref, True, exact.counts[ref]) for ref in certain] + [
            Recognised(ref, False, count)
            for ref, count in linked.known.items()
            if ref not in certain
        ]
        return Answer(hits=hits, entities=recognised)

    def _matters(self, word: str) -> bool:
        """Whether the word legs look for it: they leave stop words out."""
        return bool(self._words.question(word).ids.size)

    async def _checked(
        self, store: Store, answer: Awaitable[T], opening: Opening, degraded: Degraded
    ) -> T:
        """What a store answers; afterwards it is degraded unless it is the one known to be whole."""
        given = await answer
        await self._bounded.mark([store], opening.verified, degraded)
        return given

    async def _linked(
        self, exact: Exact, links: Awaitable[GraphFinds], live: SnapshotView, reader: SnapshotReader
    ) -> tuple[GraphFinds, Mapping[UUID, Row]]:
        """What the graph brings, and what the documents say that it or an identifier led to."""
        linked = await links
        await live.look_up(exact.refs)
        led = exact.refs.keys() | {hit.doc for hit in linked.hits}
        return linked, await reader.contents(led)

    async def _vector(self, text: str, degraded: Degraded, watch: Stopwatch) -> _Vector:
        with watch.part("embed"):
            key = self._vector_key(text)
            cached = (await self._cache.get_many([key])).get(key)
            if cached:
                return _Vector(np.frombuffer(cached, dtype="<f4"), cached=True)
            made = await self._bounded.run("embedder", degraded, lambda: self._embed_query(text))
            return _Vector(made, cached=False)

    async def _keep_vector(self, text: str, vector: Awaitable[_Vector]) -> None:
        made = await vector
        if made.row is not None and not made.cached:
            held = np.ascontiguousarray(made.row, dtype="<f4").tobytes()
            await self._cache.put_many({self._vector_key(text): held}, VECTOR_SECONDS)

    def _vector_key(self, text: str) -> str:
        return f"query:{self._embedder_id}:{hashlib.sha256(text.encode()).hexdigest()}"

    async def document(self, doc_id: UUID) -> DocumentView:
        """The version that readers see. Raises `NotFound` for one that never was, or is deleted."""
        return await self._memory.document(doc_id)

    async def document_version(
        self, doc_id: UUID, version: int, event_id: str | None = None
    ) -> DocumentView:
        """A version that readers see or have seen, while its manifest is kept; else `NotFound`.

        Versions with the same number differ by `event_id`; without it the last of them is meant.
        """
        return await self._memory.document_version(doc_id, version, event_id)

    async def entity(self, ref: str, *, limit: int = 50) -> EntityView:
        """What live documents say of an entity; `NotFound` when none names it."""
        return await self._memory.entity(ref, limit=limit)

    async def documents(
        self,
        *,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        deleted: bool | None = False,
        limit: int = 50,
        after: str | None = None,
    ) -> Page:
        """Documents by time of their last commit, newest first, from the cursor `after` on.

        `deleted` None lists the deleted ones too, True them alone. Raises `Rejected` for a cursor
        that no page gave.
        """
        return await self._memory.documents(
            sources=sources, kinds=kinds, deleted=deleted, limit=limit, after=after
        )


async def _rows(vector: Awaitable[_Vector]) -> Vectors | None:
    return (await vector).row


def _check(text: str, limit: int, passages_per_document: int) -> None:
    if len(text) > QUERY_CHARS:
        raise Rejected(
            f"the question has {len(text)} characters",
            remedy=f"ask in at most {QUERY_CHARS} characters",
        )
    if not 1 <= limit <= LIMIT_MAX or passages_per_document < 1:
        raise Rejected(
            f"limit {limit}, {passages_per_document} passages a document",
            remedy=f"ask for 1 to {LIMIT_MAX} hits, and at least one passage a document",
        )


async def _hits(
    reader: SnapshotReader, ranked: Sequence[Ranked], excerpt: Callable[[str], str]
) -> list[Hit]:
    """Ranked passages with their text and origin."""
    rows = await reader.snippets([(one.doc, one.start, one.end) for one in ranked])
    return [
        _hit(rank, one, row, excerpt)
        for rank, (one, row) in enumerate(zip(ranked, rows, strict=True), start=1)
    ]


def _hit(rank: int, one: Ranked, row: Row, excerpt: Callable[[str], str]) -> Hit:
    return Hit(
        rank=rank,
        doc_id=row["doc_id"],
        title=row["title"],
        source=row["source"],
        kind=row["kind"],
        occurred_at=row["occurred_at"],
        snippet=row["snippet"],
        excerpt=excerpt(row["snippet"]),
        start=one.start,
        end=min(one.end, one.start + SNIPPET_CHARS),
        score=one.score,
        legs=one.legs,
        why=one.why,
        provenance=Provenance(
            inbox_id=row["inbox_id"],
            event_id=row["event_id"],
            version=row["version"],
            received_at=row["received_at"],
            manifest_id=row["manifest_id"],
            stage_id=row["stage_id"],
        ),
    )
