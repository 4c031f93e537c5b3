"""Retrieval: candidates for a query from the vector store and the graph, kept only where the snapshot shows them."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from apex_memory.model import Filters, Vectors, chunk_point
from apex_memory.search.fusion import PassageId
from apex_memory.search.time_expressions import TimeRange
from apex_memory.search.topics import Topic
from apex_memory.search.visibility import SnapshotView, StoreQuery, gather_both
from apex_memory.speakers import addresses_of
from apex_memory.stores.base import GraphHit, GraphStore, VectorHit, VectorStore
from apex_memory.telemetry import traces

GRAPH_ENTITIES = 8  # the rarest of the entities that a query may name
GRAPH_LIMIT = 50  # hits per entity and hop
NEIGHBOUR_SHARE = 0.3  # score of a document linked to an entity, relative to one that names it

_CODE_WORD = re.compile(r"(?<![\w.,-])(?=[^\s]{0,40}\d)\w[\w.-]{2,40}\w(?![\w-])")
_YEAR = re.compile(r"(?:19|20)\d\d(?:-\d\d){0,2}\Z")
DAYS_MAX = 31  # of a time whose days are looked up one by one: a month

SPEAKERS = "speakers"  # the page with passages of those whom the query names
ALIAS_DOCUMENTS = 20  # documents whose writers may have other names

LegPages = Sequence[Mapping[str, list[VectorHit]]]
"""Hits by leg, one mapping per call of the vector store: for the whole query first, then for the documents with its
identifiers and for the documents of its time, if it has any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalQuery:
    """A query as the stores receive it."""

    text: str
    identifiers: Sequence[str]
    """Refs of identifiers in the query that live documents hold."""
    refs: Sequence[str]
    """Refs of all entities that the query may name."""
    codes: str
    """The query's words that look like codes or numbers, joined by blanks."""
    time: TimeRange | None
    """The time that the query names."""
    days: Sequence[str] = ()
    """Refs of the days of that time."""
    filters: Filters | None
    speakers: Sequence[str] = ()
    """Refs of speakers that the query's words may name."""
    topic: Topic
    """The kinds of documents that the query is about."""
    depth: int
    """Hits per leg."""


@dataclass(slots=True)
class VectorCandidates:
    """Live passages: scores by leg, the floor of each leg, and character offsets (start, end)."""

    scores: dict[str, dict[PassageId, float]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    spans: dict[PassageId, tuple[int, int]] = field(default_factory=dict)
    continuing: set[PassageId] = field(default_factory=set)
    """Passages that continue the turn of the passage before."""
    asking: set[PassageId] = field(default_factory=set)
    """Passages that end as a question."""

    def add(self, hit: VectorHit) -> None:
        passage = hit.doc, hit.n
        self.spans[passage] = (hit.start, hit.end)
        if hit.continues:
            self.continuing.add(passage)
        if hit.asks:
            self.asking.add(passage)


@dataclass(slots=True)
class GraphCandidates:
    """Live documents that name an entity of the query, or are linked to one."""

    hits: list[GraphHit] = field(default_factory=list)
    known: Mapping[str, int] = field(default_factory=dict)
    """Entities of the query that the graph holds, with the number of assertions that touch each."""

    def scores(self) -> dict[UUID, float]:
        """Return for each document the share of the query's entities that it names, 0 to 1; rare entities count more."""
        rarity = {ref: 1 / math.log2(2 + count) for ref, count in self.known.items()}
        best: dict[tuple[UUID, str], float] = {}
        for hit in self.hits:
            score = rarity.get(hit.entity, 0) * (NEIGHBOUR_SHARE if hit.hops else 1)
            best[hit.doc, hit.entity] = max(best.get((hit.doc, hit.entity), 0), score)
        scores: dict[UUID, float] = {}
        for (doc, _), score in best.items():
            scores[doc] = scores.get(doc, 0) + score / sum(rarity.values())
        return scores


def _yes_or_no_legs(query: RetrievalQuery) -> list[tuple[str, Sequence[str]]]:
    """Return the legs of which a candidate either is or is not, with the refs of those that are."""
    legs = (("speaker", query.speakers), ("day", query.days))
    return [(leg, refs) for leg, refs in legs if refs]


def code_words(query: str) -> str:
    """Return the words of a query that hold a digit and are four characters long or longer, without years and dates."""
    words = [word for word in _CODE_WORD.findall(query) if not _YEAR.match(word)]
    return " ".join(words)


class Retriever:
    """Reads candidates from both stores."""

    def __init__(self, graph: GraphStore, vectors: VectorStore) -> None:
        self._graph = graph
        self._vectors = vectors

    async def from_vectors(
        self, query: RetrievalQuery, vector: Awaitable[Vectors | None], store_query: StoreQuery
    ) -> VectorCandidates:
        """Return passages by words and by meaning. The word legs run while the query's vector is still being made."""
        dense = asyncio.ensure_future(vector)
        by_words, by_meaning = await gather_both(
            self._word_pages(query, store_query),
            self._dense_pages(query, dense, store_query),
        )
        pages = [*by_words, *by_meaning]
        names = list(_variants(query))
        if SPEAKERS in names:
            place = names.index(SPEAKERS)
            of_speakers = [leg_pages[place] for leg_pages in (by_words, by_meaning) if leg_pages]
            if aliases := await self._aliases(query, of_speakers, store_query):
                query = replace(query, speakers=[*query.speakers, *aliases])
                pages += await self._alias_pages(query, aliases, await dense, store_query)
        candidates = _candidates(pages, store_query.snapshot, query.depth)
        compared = await self._compared(query, await dense, candidates, store_query)
        if compared is not None:
            _set_true_scores(candidates, compared, store_query.snapshot)
            for (leg, _), page in zip(_yes_or_no_legs(query), compared[1:], strict=True):
                hits = next(iter(page.values()), [])
                candidates.scores[leg] = {(hit.doc, hit.n): 1.0 for hit in hits}
                candidates.floors[leg] = 0.0
        return candidates

    async def _aliases(
        self, query: RetrievalQuery, pages: LegPages, store_query: StoreQuery
    ) -> Sequence[str]:
        """Return the addresses of whom the query names as the writer of mails, which they may write under other names."""
        shown = filter(store_query.snapshot.shows, _hits_of(pages))
        docs = dict.fromkeys(hit.doc for hit in shown)
        labels = await store_query.snapshot.speakers(list(docs)[:ALIAS_DOCUMENTS])
        return addresses_of(labels, query.speakers)

    async def _alias_pages(
        self,
        query: RetrievalQuery,
        aliases: Sequence[str],
        dense: Vectors | None,
        store_query: StoreQuery,
    ) -> LegPages:
        """Return the passages of the writers with these addresses."""
        filters = replace(query.filters or Filters(), entities=tuple(aliases))

        async def call() -> LegPages:
            search = self._vectors.search(
                dense=dense, words=query.text, limit=query.depth, filters=filters
            )
            return [await search]

        pages = await store_query.run("vectors", call) or ()
        await store_query.snapshot.load(hit.doc for hit in _hits_of(pages))
        return pages

    async def _compared(
        self,
        query: RetrievalQuery,
        dense: Vectors | None,
        candidates: VectorCandidates,
        store_query: StoreQuery,
    ) -> LegPages | None:
        """Compare the candidates and their neighbours with the query, each by all legs; None if the store does not take part.

        A leg returns its best passages alone. What it did not return would get the leg's lowest score, although the
        passage of another leg may be far better or worse than that.
        """
        points = _with_neighbours(candidates, store_query.snapshot)
        if not points:
            return None
        filters = query.filters or Filters()

        async def call() -> LegPages:
            calls = [
                self._vectors.search(dense=dense, words=query.text, limit=len(points), among=points)
            ]
            for _, refs in _yes_or_no_legs(query):
                calls.append(
                    self._vectors.search(
                        dense=dense,
                        words=None if dense is not None else query.text,
                        limit=len(points),
                        filters=replace(filters, entities=tuple(refs)),
                        among=points,
                    )
                )
            return await asyncio.gather(*calls)

        with traces.span("leg true scores"):
            return await store_query.run("vectors", call)

    async def _word_pages(self, query: RetrievalQuery, store_query: StoreQuery) -> LegPages:
        with traces.span("leg words"):
            return await self._pages(query, None, query.text, store_query)

    async def _dense_pages(
        self, query: RetrievalQuery, vector: Awaitable[Vectors | None], store_query: StoreQuery
    ) -> LegPages:
        dense = await vector
        if dense is None:
            return ()
        with traces.span("leg meaning"):
            return await self._pages(query, dense, None, store_query)

    async def _pages(
        self,
        query: RetrievalQuery,
        dense: Vectors | None,
        words: str | None,
        store_query: StoreQuery,
    ) -> LegPages:
        shows = store_query.snapshot.shows

        def is_short(pages: LegPages) -> bool:
            """Return whether less than half of a full page is live."""
            return any(
                len(hits) >= query.depth and 2 * sum(map(shows, hits)) < len(hits)
                for hits in pages[0].values()
            )

        pages = await store_query.run_until_filled(
            "vectors",
            lambda exclude: self._search_vectors(query, dense, words, exclude),
            items_of=_hits_of,
            is_short=is_short,
        )
        return pages or ()

    async def _search_vectors(
        self,
        query: RetrievalQuery,
        dense: Vectors | None,
        words: str | None,
        exclude: Sequence[UUID],
    ) -> LegPages:
        """Return a page for the query, and one each over the documents with its identifiers and of its time.

        Among many documents these could not come up by similarity alone, and a passage that no leg returns
        cannot be boosted.
        """
        calls: list[Awaitable[Mapping[str, list[VectorHit]]]] = [
            self._vectors.search(
                dense=dense, words=words, limit=query.depth, filters=variant, exclude=exclude
            )
            for variant in _variants(query).values()
        ]
        if words and query.codes:
            calls.append(self._search_codes(query, exclude))
        return await asyncio.gather(*calls)

    async def _search_codes(
        self, query: RetrievalQuery, exclude: Sequence[UUID]
    ) -> Mapping[str, list[VectorHit]]:
        """Return the passages that hold the query's codes, as a leg of their own."""
        with traces.span("leg codes"):
            page = await self._vectors.search(
                dense=None,
                words=query.codes,
                limit=query.depth,
                filters=query.filters,
                exclude=exclude,
            )
        return {"codes": page["words"]}

    async def from_graph(self, query: RetrievalQuery, store_query: StoreQuery) -> GraphCandidates:
        """Return documents that the graph links to the query's entities."""
        with traces.span("leg graph"):
            return await self._graph_candidates(query, store_query)

    async def _graph_candidates(
        self, query: RetrievalQuery, store_query: StoreQuery
    ) -> GraphCandidates:
        shows = store_query.snapshot.shows

        def is_short(hits: Sequence[GraphHit]) -> bool:
            """Return whether less than half of a full page, of an entity and hop, is live."""
            total = Counter((hit.entity, hit.hops) for hit in hits)
            live = Counter((hit.entity, hit.hops) for hit in hits if shows(hit))
            return any(
                count >= GRAPH_LIMIT and 2 * live[page] < count for page, count in total.items()
            )

        known = await store_query.run("graph", lambda: self._known(query.refs))
        if not known:
            return GraphCandidates()
        if query.filters and query.filters.stages:
            # The graph links all documents: those of a few are lost among its limited hits.
            return GraphCandidates([], known)
        hits = await store_query.run_until_filled(
            "graph",
            lambda exclude: self._graph.linked(list(known), limit=GRAPH_LIMIT, exclude=exclude),
            items_of=lambda hits: hits,
            is_short=is_short,
        )
        return GraphCandidates([hit for hit in hits or () if shows(hit)], known)

    async def _known(self, refs: Sequence[str]) -> dict[str, int]:
        """Return the rarest of the refs that the graph holds, with their number of assertions."""
        if not refs:
            return {}
        counts = await self._graph.known(refs)
        rarest = sorted((count, ref) for ref, count in counts.items() if count)
        return {ref: count for count, ref in rarest[:GRAPH_ENTITIES]}


def _variants(query: RetrievalQuery) -> dict[str, Filters | None]:
    """Return the filters of each page that is read of a leg, by what its documents have."""
    filters = query.filters or Filters()
    variants = {"all": query.filters}
    if not filters.entities:
        for name, refs in (
            ("identifiers", query.identifiers),
            (SPEAKERS, query.speakers),
            ("days", query.days),
        ):
            if refs:
                variants[name] = replace(filters, entities=tuple(refs))
    if query.topic.kinds and not filters.kinds:
        variants["topic"] = replace(filters, kinds=query.topic.kinds)
    if query.time and not (filters.since or filters.until):
        variants["time"] = replace(filters, since=query.time.since, until=query.time.until)
    return variants


def _hits_of(pages: LegPages) -> list[VectorHit]:
    hits: list[VectorHit] = []
    for page in pages:
        for leg_hits in page.values():
            hits += leg_hits
    return hits


def _candidates(pages: LegPages, snapshot: SnapshotView, depth: int) -> VectorCandidates:
    candidates = VectorCandidates()
    for page in pages:
        for leg, hits in page.items():
            scores = candidates.scores.setdefault(leg, {})
            for hit in hits:
                if snapshot.shows(hit):
                    passage = hit.doc, hit.n
                    scores[passage] = hit.score
                    candidates.add(hit)
            # The BM25 score of a passage without any of the words is 0. Otherwise no passage that is
            # missing scores above the last hit of a page.
            is_complete = leg != "dense" and len(hits) < depth
            lowest = min((hit.score for hit in hits), default=0.0)
            candidates.floors.setdefault(leg, 0.0 if is_complete else lowest)
    return candidates


def _with_neighbours(candidates: VectorCandidates, snapshot: SnapshotView) -> list[UUID]:
    """Return the ids of the points of all candidates and of the passages beside them."""
    wanted: set[tuple[UUID, int]] = set()
    for doc, n in candidates.spans:
        last = snapshot.documents[doc].passages - 1
        wanted.update((doc, beside) for beside in (n - 1, n, n + 1) if 0 <= beside <= max(last, n))
    return [chunk_point(snapshot.documents[doc].stage_id, n) for doc, n in sorted(wanted)]


def _set_true_scores(
    candidates: VectorCandidates, compared: LegPages, snapshot: SnapshotView
) -> None:
    """Replace the scores of the legs by those of the comparison, which holds all candidates, and add neighbours."""
    for leg, hits in compared[0].items():
        scores: dict[PassageId, float] = {}
        for hit in hits:
            if snapshot.shows(hit):
                scores[hit.doc, hit.n] = hit.score
                candidates.add(hit)
        candidates.scores[leg] = scores
        candidates.floors[leg] = 0.0 if leg != "dense" else candidates.floors.get(leg, 0.0)
