"""The legs: what the vector store and the graph bring to a question, kept only where the snapshot agrees."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from apex_memory.model import Filters, Vectors
from apex_memory.search.fusion import Place
from apex_memory.search.time_words import Span
from apex_memory.search.visibility import SnapshotView, StoreQuery, settled
from apex_memory.stores.base import GraphHit, GraphStore, VectorHit, VectorStore

GRAPH_ENTITIES = 8  # the rarest of those that a question may name
GRAPH_LIMIT = 50  # hits an entity and hop
NEIGHBOUR_SHARE = 0.3  # what being linked to an entity counts, beside naming it


Pages = Sequence[Mapping[str, list[VectorHit]]]
"""Hits by leg: of the whole question, then of the documents with its identifiers, or of its time, alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question as the stores are asked it."""

    text: str
    exact: Sequence[str]
    """Identifiers that live documents hold."""
    refs: Sequence[str]
    """All that it may name."""
    time: Span | None
    """The time that it speaks of."""
    filters: Filters | None
    depth: int
    """Hits a leg."""


@dataclass(slots=True)
class VectorFinds:
    """Live passages by leg, and what any other passage could have scored at most."""

    scores: dict[str, dict[Place, float]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    spans: dict[Place, tuple[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class GraphFinds:
    """Live documents that name an entity of the question, or are linked to one."""

    hits: list[GraphHit] = field(default_factory=list)
    known: Mapping[str, int] = field(default_factory=dict)
    """Entities of the question that the graph holds, and how many assertions touch each."""

    def scores(self) -> dict[UUID, float]:
        """Share of the question's entities that a document names, rare ones counting more: 0 to 1."""
        worth = {ref: 1 / math.log2(2 + count) for ref, count in self.known.items()}
        best: dict[tuple[UUID, str], float] = {}
        for hit in self.hits:
            share = worth.get(hit.entity, 0) * (NEIGHBOUR_SHARE if hit.hops else 1)
            best[hit.doc, hit.entity] = max(best.get((hit.doc, hit.entity), 0), share)
        scores: dict[UUID, float] = {}
        for (doc, _), share in best.items():
            scores[doc] = scores.get(doc, 0) + share / sum(worth.values())
        return scores


class Legs:
    def __init__(self, graph: GraphStore, vectors: VectorStore) -> None:
        self._graph = graph
        self._vectors = vectors

    async def passages(
        self, question: Question, vector: Awaitable[Vectors | None], asker: StoreQuery
    ) -> VectorFinds:
        """What the vector store brings. It looks for the words while the question's vector is still being made."""
        pages = await settled(
            self._fill(question, None, question.text, asker),
            self._dense(question, vector, asker),
        )
        return _vector_finds([*pages[0], *pages[1]], asker.live, question.depth)

    async def _dense(
        self, question: Question, vector: Awaitable[Vectors | None], asker: StoreQuery
    ) -> Pages:
        made = await vector
        return () if made is None else await self._fill(question, made, None, asker)

    async def _fill(
        self, question: Question, dense: Vectors | None, words: str | None, asker: StoreQuery
    ) -> Pages:
        shows = asker.live.shows

        def short(pages: Pages) -> bool:
            """Whether less than half of a full page is live."""
            return any(
                len(leg) >= question.depth and 2 * sum(map(shows, leg)) < len(leg)
                for leg in pages[0].values()
            )

        pages = await asker.fill(
            "vectors",
            lambda exclude: self._ask(question, dense, words, exclude),
            hits=lambda pages: [hit for page in pages for leg in page.values() for hit in leg],
            short=short,
        )
        return pages or ()

    async def _ask(
        self,
        question: Question,
        dense: Vectors | None,
        words: str | None,
        exclude: Sequence[UUID],
    ) -> Pages:
        """A page for the question, and one each over the documents with its identifiers and of its time, if it has any.

        Among many documents those could not come up by likeness alone, and what is not brought is not boosted.
        """
        given = question.filters or Filters()
        asked = [question.filters]
        if question.exact and not given.entities:
            asked.append(replace(given, entities=tuple(question.exact)))
        if question.time and not (given.since or given.until):
            asked.append(replace(given, since=question.time.since, until=question.time.until))
        calls = (
            self._vectors.search(
                dense=dense,
                words=words,
                limit=question.depth,
                filters=filters,
                exclude=exclude,
            )
            for filters in asked
        )
        return await asyncio.gather(*calls)

    async def links(self, question: Question, asker: StoreQuery) -> GraphFinds:
        """What the graph brings."""
        shows = asker.live.shows

        def short(hits: Sequence[GraphHit]) -> bool:
            """Whether less than half of a full page, of an entity and hop, is live."""
            pages = Counter((hit.entity, hit.hops) for hit in hits)
            shown = Counter((hit.entity, hit.hops) for hit in hits if shows(hit))
            return any(n >= GRAPH_LIMIT and 2 * shown[page] < n for page, n in pages.items())

        known = await asker.once("graph", lambda: self._known(question.refs))
        if not known:
            return GraphFinds()
        hits = await asker.fill(
            "graph",
            lambda exclude: self._graph.linked(list(known), limit=GRAPH_LIMIT, exclude=exclude),
            hits=lambda hits: hits,
            short=short,
        )
        return GraphFinds([hit for hit in hits or () if shows(hit)], known)

    async def _known(self, refs: Sequence[str]) -> dict[str, int]:
        """Those of the refs that the graph holds, the rarest few."""
        if not refs:
            return {}
        counts = await self._graph.known(refs)
        rarest = sorted((count, ref) for ref, count in counts.items() if count)
        return {ref: count for count, ref in rarest[:GRAPH_ENTITIES]}


def _vector_finds(pages: Pages, live: SnapshotView, depth: int) -> VectorFinds:
    finds = VectorFinds()
    for page in pages:
        for leg, hits in page.items():
            scores = finds.scores.setdefault(leg, {})
            for hit in hits:
                if live.shows(hit):
                    place = hit.doc, hit.n
                    scores[place] = hit.score
                    finds.spans[place] = (hit.start, hit.end)
            # BM25 of a passage without any of the words is 0; else none scores above the last of a page.
            whole = leg != "dense" and len(hits) < depth
            last = min((hit.score for hit in hits), default=0.0)
            finds.floors.setdefault(leg, 0.0 if whole else last)
    return finds
