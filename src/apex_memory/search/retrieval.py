"""Retrieval: candidates for a query from the vector store and the graph, kept only where the snapshot shows them."""

from __future__ import annotations

import asyncio
import heapq
import math
import re
from collections import Counter
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from uuid import UUID

from apex_memory.model import Filters, Vectors
from apex_memory.search.fusion import Leg, PassageId, Scores, Weights, comparable, fuse, in_shares
from apex_memory.search.time_expressions import TimeRange
from apex_memory.search.topics import Topic
from apex_memory.search.visibility import SnapshotView, StoreQuery, gather_both
from apex_memory.speakers import addresses_of
from apex_memory.stores.base import (
    GraphHit,
    GraphStore,
    LegHits,
    VectorPassage,
    VectorQuery,
    VectorStore,
)
from apex_memory.telemetry import traces

GRAPH_ENTITIES = 8  # the rarest of the entities that a query may name
GRAPH_LIMIT = 50  # hits per entity and hop
NEIGHBOUR_SHARE = 0.3  # score of a document linked to an entity, relative to one that names it

_CODE_WORD = re.compile(r"(?<![\w.,-])(?=[^\s]{0,40}\d)\w[\w.-]{2,40}\w(?![\w-])")
_YEAR = re.compile(r"(?:19|20)\d\d(?:-\d\d){0,2}\Z")
DAYS_MAX = 31  # of a time whose days are looked up one by one: a month

COMPARED = 30  # passages of each page that are compared by all legs, with their neighbours

# Names of pages.
SPEAKERS = "speakers"  # passages of those whom the query names
ALL, CODES, ALIASES, DAYS = "all", "codes", "aliases", "days"
ALIAS_DOCUMENTS = 20  # documents whose writers may have other names


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
    terms: int
    """Number of words in the text that the word legs look for."""
    corpus: int
    """Approximate number of documents in memory."""
    weights: Weights


class Page:
    """What one query of the vector store returned that the snapshot shows."""

    def __init__(self, hits: LegHits, *, depth: int, snapshot: SnapshotView) -> None:
        self.passages: dict[PassageId, VectorPassage] = {}
        self.scores: dict[str, Scores] = {leg: {} for leg in hits}
        ids: dict[int, PassageId | None] = {}  # the hits of all legs share their passages
        for leg, leg_hits in hits.items():
            scores = self.scores[leg]
            for passage, score in leg_hits:
                if id(passage) in ids:
                    passage_id = ids[id(passage)]
                else:
                    document = snapshot.document_of(passage)
                    passage_id = ids[id(passage)] = (document, passage.n) if document else None
                    if passage_id:
                        self.passages[passage_id] = passage
                if passage_id:
                    scores[passage_id] = score
        self.lowest = {
            leg: min((score for _, score in leg_hits), default=0.0)
            for leg, leg_hits in hits.items()
        }
        """The lowest score of each leg: no passage that it did not return has a higher one."""
        self.whole = {leg for leg, leg_hits in hits.items() if len(leg_hits) < depth}
        """The legs that returned all they have."""


Pages = dict[str, Page]
"""Pages by what their documents have: `all` first, for the whole query; then those with its identifiers, of its time …"""


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

    def add(self, page: Page) -> None:
        """Add the passages and scores of a page."""
        for passage_id, passage in page.passages.items():
            self.spans[passage_id] = (passage.start, passage.end)
            if passage.continues:
                self.continuing.add(passage_id)
            if passage.asks:
                self.asking.add(passage_id)
        for leg, scores in page.scores.items():
            self.scores.setdefault(leg, {}).update(scores)


@dataclass(slots=True)
class GraphCandidates:
    """Live documents that name an entity of the query, or are linked to one."""

    hits: list[GraphHit] = field(default_factory=list)
    known: Mapping[str, int] = field(default_factory=dict)
    """Entities of the query that the graph holds, with the number of assertions that touch each."""

    def entities(self) -> dict[UUID, list[str]]:
        """Return for each document the refs that led to it, with repetitions."""
        entities: dict[UUID, list[str]] = {}
        for hit in self.hits:
            entities.setdefault(hit.doc, []).append(hit.entity)
        return entities

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


@dataclass(frozen=True, slots=True)
class _YesOrNoLeg:
    """A leg of which a passage either is or is not: those that have one of the refs are."""

    name: str
    refs: Sequence[str]
    pages: Sequence[str]
    """The names of the pages over the documents with these refs."""


def _yes_or_no_legs(query: RetrievalQuery) -> list[_YesOrNoLeg]:
    legs = (
        _YesOrNoLeg("speaker", query.speakers, (SPEAKERS, ALIASES)),
        _YesOrNoLeg("day", query.days, (DAYS,)),
    )
    return [leg for leg in legs if leg.refs]


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
        future = asyncio.ensure_future(vector)
        by_words, by_meaning = await gather_both(
            self._word_pages(query, store_query),
            self._dense_pages(query, future, store_query),
        )
        dense = await future
        if aliases := await self._aliases(query, (by_words, by_meaning), store_query):
            query = replace(query, speakers=[*query.speakers, *aliases])
            filters = replace(query.filters or Filters(), entities=tuple(aliases))
            asked = VectorQuery(dense=dense, words=query.text, limit=query.depth, filters=filters)
            by_words |= await self._pages(query, {ALIASES: asked}, store_query)
        candidates = _candidates([*by_words.values(), *by_meaning.values()])
        await self._compare(query, dense, candidates, (by_words, by_meaning), store_query)
        return candidates

    async def _aliases(
        self, query: RetrievalQuery, rounds: Sequence[Pages], store_query: StoreQuery
    ) -> Sequence[str]:
        """Return the addresses of whom the query names as the writer of mails, which they may write under other names."""
        docs: dict[UUID, None] = {}  # best first, each once
        for pages in rounds:
            if SPEAKERS in pages:
                docs |= dict.fromkeys(doc.doc_id for doc, _ in pages[SPEAKERS].passages)
        labels = await store_query.snapshot.speakers(list(docs)[:ALIAS_DOCUMENTS])
        return addresses_of(labels, query.speakers)

    async def _compare(
        self,
        query: RetrievalQuery,
        dense: Vectors | None,
        candidates: VectorCandidates,
        rounds: Sequence[Pages],
        store_query: StoreQuery,
    ) -> None:
        """Give the best candidates and their neighbours the true score of each leg, as far as the store takes part.

        A leg returns its best passages alone. What it did not return would get the leg's lowest score, although the
        passage of another leg may be far better or worse than that.
        """
        snapshot = store_query.snapshot
        among = _with_neighbours(_best_of_each_page(query, candidates, rounds))
        if not among:
            return
        asked = [VectorQuery(dense=dense, words=query.text, limit=len(among), among=among)]
        legs = _yes_or_no_legs(query)
        unread = [leg for leg in legs if not _is_whole(leg, rounds)]
        for leg in unread:
            filters = replace(query.filters or Filters(), entities=tuple(leg.refs))
            # By meaning, which every passage has.
            asked.append(
                replace(asked[0], words=None if dense is not None else query.text, filters=filters)
            )
        with traces.span("leg true scores"):
            answers = await store_query.run("vectors", lambda: self._vectors.search(asked))
        if answers is None:
            return
        compared, *members = (
            Page(hits, depth=len(among) + 1, snapshot=snapshot) for hits in answers
        )
        _set_true_scores(candidates, compared)
        of_unread = {leg.name: [page] for leg, page in zip(unread, members, strict=True)}
        for leg in legs:
            pages = of_unread.get(leg.name) or _pages_of(leg, rounds)
            passages = set().union(*(page.passages for page in pages))
            candidates.scores[leg.name] = dict.fromkeys(passages, 1.0)
            candidates.floors[leg.name] = 0.0

    async def _word_pages(self, query: RetrievalQuery, store_query: StoreQuery) -> Pages:
        asked = {
            name: VectorQuery(words=query.text, limit=query.depth, filters=filters)
            for name, filters in _variants(query).items()
        }
        if query.codes:
            asked[CODES] = VectorQuery(
                words=query.codes, nearby=False, limit=query.depth, filters=query.filters
            )
        with traces.span("leg words"):
            pages = await self._pages(query, asked, store_query)
        if CODES in pages:  # a leg of its own
            codes = pages[CODES]
            codes.scores, codes.lowest = {"codes": codes.scores["words"]}, {"codes": 0.0}
        return pages

    async def _dense_pages(
        self, query: RetrievalQuery, vector: Awaitable[Vectors | None], store_query: StoreQuery
    ) -> Pages:
        dense = await vector
        if dense is None:
            return {}
        asked = {
            name: VectorQuery(dense=dense, limit=query.depth, filters=filters)
            for name, filters in _variants(query).items()
        }
        with traces.span("leg meaning"):
            return await self._pages(query, asked, store_query)

    async def _pages(
        self, query: RetrievalQuery, asked: Mapping[str, VectorQuery], store_query: StoreQuery
    ) -> Pages:
        """Return a page per query, all read in one call; none if the store does not take part."""
        shows = store_query.snapshot.shows

        def is_short(answers: Sequence[LegHits]) -> bool:
            """Return whether less than half of a full first page is live."""
            return any(
                len(hits) >= query.depth and 2 * sum(shows(hit) for hit, _ in hits) < len(hits)
                for hits in answers[0].values()
            )

        answers = await store_query.run_until_filled(
            "vectors",
            lambda exclude: self._vectors.search(
                [replace(page_query, exclude=exclude) for page_query in asked.values()]
            ),
            items_of=_passages_of,
            is_short=is_short,
        )
        return {
            name: Page(hits, depth=query.depth, snapshot=store_query.snapshot)
            for name, hits in zip(asked, answers or (), strict=False)
        }

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
    variants = {ALL: query.filters}
    if not filters.entities:
        for name, refs in (
            ("identifiers", query.identifiers),
            (SPEAKERS, query.speakers),
            (DAYS, query.days),
        ):
            if refs:
                variants[name] = replace(filters, entities=tuple(refs))
    if query.topic.kinds and not filters.kinds:
        variants["topic"] = replace(filters, kinds=query.topic.kinds)
    if query.time and not (filters.since or filters.until):
        variants["time"] = replace(filters, since=query.time.since, until=query.time.until)
    return variants


def _passages_of(answers: Sequence[LegHits]) -> list[VectorPassage]:
    """Return each passage once."""
    passages: set[VectorPassage] = set()
    for hits_by_leg in answers:
        for hits in hits_by_leg.values():
            passages.update(passage for passage, _ in hits)
    return list(passages)


def _candidates(pages: Sequence[Page]) -> VectorCandidates:
    candidates = VectorCandidates()
    for page in pages:
        candidates.add(page)
        for leg in page.scores:
            # The BM25 score of a passage without any of the words is 0.
            is_complete = leg != "dense" and leg in page.whole
            candidates.floors.setdefault(leg, 0.0 if is_complete else page.lowest[leg])
    return candidates


def _best_of_each_page(
    query: RetrievalQuery, candidates: VectorCandidates, rounds: Sequence[Pages]
) -> set[PassageId]:
    """Return of each page's passages the `COMPARED` best, by what the legs returned so far.

    Measured: to compare all of them costs twice as much and finds no more (docs/discussions/ranking.md).
    """
    legs = {
        name: Leg(scores, candidates.floors[name]) for name, scores in candidates.scores.items()
    }
    if "codes" in legs:
        legs["codes"] = in_shares(legs["codes"])
    legs = comparable(legs, terms=query.terms, corpus=query.corpus)
    scores = fuse(candidates.spans, legs, query.weights)
    best: set[PassageId] = set()
    for name in dict.fromkeys(chain(*rounds)):
        passages = set().union(*(pages[name].passages for pages in rounds if name in pages))
        best.update(heapq.nlargest(COMPARED, passages, key=scores.__getitem__))
    return best


def _with_neighbours(passages: Collection[PassageId]) -> list[tuple[UUID, int]]:
    """Return stage and number of the passages and of those beside them."""
    wanted: set[PassageId] = set()
    for doc, n in passages:
        last = max(doc.passages - 1, n)
        wanted.update((doc, beside) for beside in range(max(n - 1, 0), min(n + 1, last) + 1))
    return [(doc.stage_id, n) for doc, n in wanted]


def _pages_of(leg: _YesOrNoLeg, rounds: Sequence[Pages]) -> list[Page]:
    leg_pages: list[Page] = []
    for pages in rounds:
        leg_pages += [pages[name] for name in leg.pages if name in pages]
    return leg_pages


def _is_whole(leg: _YesOrNoLeg, rounds: Sequence[Pages]) -> bool:
    """Return whether the leg's pages by meaning hold all passages that have its refs."""
    by_meaning = [page for page in _pages_of(leg, rounds) if "dense" in page.scores]
    return bool(by_meaning) and all("dense" in page.whole for page in by_meaning)


def _set_true_scores(candidates: VectorCandidates, compared: Page) -> None:
    """Take over the scores of a comparison. Its neighbours become candidates."""
    candidates.add(compared)
    for leg in compared.scores:
        candidates.floors[leg] = 0.0 if leg != "dense" else candidates.floors.get(leg, 0.0)
