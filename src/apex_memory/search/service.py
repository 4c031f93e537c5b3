"""Search: the entities and the vector of a query, the snapshot, the legs, one ranking, the texts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import TypeVar
from uuid import UUID

from opentelemetry.trace import get_current_span

from apex_memory.dates import DateOrder
from apex_memory.errors import NotFound, RetryLater, Unavailable
from apex_memory.model import Filters, Vectors, day_ref, now
from apex_memory.normalization import words_of
from apex_memory.search.answers import AnswerBasis, AnswerCache, Question
from apex_memory.search.centre import Centre
from apex_memory.search.context import MARGIN, PassageText, pack
from apex_memory.search.documents import DocumentReader
from apex_memory.search.evidence import JUDGED_HITS, evidence_of
from apex_memory.search.excerpt import relevance
from apex_memory.search.fusion import Weights
from apex_memory.search.hits import read_hits
from apex_memory.search.own_ids import OwnIdFinder
from apex_memory.search.query_vectors import QueryVector, QueryVectors
from apex_memory.search.ranking import IdentifierMatches, RankedPassage, Ranking
from apex_memory.search.recognition import (
    identifier_matches,
    identifiers_of,
    recognised,
    unknown_code,
    unknown_identifiers,
)
from apex_memory.search.requests import SearchRequest
from apex_memory.search.reranker import RERANKED, Reranker, reordered, text_of
from apex_memory.search.results import (
    Context,
    DocumentPage,
    DocumentView,
    EntityView,
    Hit,
    QueryEntities,
    SearchResult,
)
from apex_memory.search.retrieval import (
    DAYS_MAX,
    GraphCandidates,
    RetrievalQuery,
    Retriever,
    VectorCandidates,
    code_words,
)
from apex_memory.search.scope import Scope, ScopeResolver
from apex_memory.search.sentences import QUARTERS
from apex_memory.search.snapshot import (
    DocumentContent,
    SnapshotReader,
    SnapshotSummary,
    unpack_spans,
)
from apex_memory.search.time_expressions import QueryTime, read_time
from apex_memory.search.time_limits import Degraded, Stopwatch, TimeLimiter
from apex_memory.search.topics import Topics
from apex_memory.search.visibility import SnapshotView, StoreQuery, gather_both
from apex_memory.speakers import handle_refs, speaker_refs
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.bm25 import Words
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.stores.standby import Standby
from apex_memory.telemetry import SEARCH_ANSWERS, SEARCH_READS, logger

DEPTH = (
    60  # hits per leg, whatever the limit of a request: its first hits do not depend on the limit
)
SPEAKER_WORDS = 12  # words of a query that may name a speaker

T = TypeVar("T")


@dataclass(slots=True)
class _SearchRun:
    """One search in progress: the request, and what its parts report."""

    request: SearchRequest
    time: QueryTime
    """The time that the text names."""
    db: Postgres
    """The server that the snapshot is read from."""
    degraded: Degraded = field(default_factory=Degraded)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    centre: int | None = None
    """Number of the centre of memory that passages were compared by."""

    @property
    def question(self) -> Question:
        return Question(self.request, self.time.time_range)


@dataclass(frozen=True, slots=True)
class _RunSnapshot:
    """The snapshot of one search."""

    reader: SnapshotReader
    view: SnapshotView
    summary: SnapshotSummary
    exact_refs: Sequence[str]
    """Identifiers that the query spells out."""
    identifiers: IdentifierMatches


class Search:
    """Searches memory as one snapshot of PostgreSQL shows it, and reads single documents and entities.

    `embed_query` returns the vector of a query, shape (dimension,), and `extract_query` its entities. Refs of
    callers may be spelled as people do (`phone:(901) 555-0143`): `canonical_ref` returns the ref that documents have.
    Each store's part takes `leg_seconds` at most; after a timeout a store is skipped for `rest_seconds`. With `answers` a
    search that is repeated while memory is as it was gets the same answer, without being computed again.
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
        canonical_ref: Callable[[str], str],
        key_prefixes: Mapping[str, Sequence[str]] | None = None,
        id_refs: Sequence[str] = (),
        called: Mapping[str, Mapping[str, str]] | None = None,
        reranker: Reranker | None = None,
        standby: Standby | None = None,
        answers: AnswerCache | None = None,
        leg_seconds: float = 2,
        rest_seconds: float = 5,
        date_order: DateOrder = "auto",
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._db = db
        self._standby = standby
        self._graph = graph
        self._vectors = vectors
        self._extract_query = extract_query
        self._canonical_ref = canonical_ref
        self._clock = clock
        self._date_order = date_order
        self._reranker = reranker
        self._answers = answers
        self._log = logger(component="search")
        self._time_limiter = TimeLimiter(seconds=leg_seconds, rest=rest_seconds)
        self._query_vectors = QueryVectors(cache, embed_query, embedder_id, self._time_limiter)
        self._centre = Centre()
        self._words = Words(average_words=1)  # only for queries, whose terms do not depend on it
        self._own_ids = OwnIdFinder(key_prefixes or {}, id_refs)
        self._topics = Topics(called or {}, self._words)
        self._retriever = Retriever(graph, vectors)
        self._scopes = ScopeResolver(
            vectors,
            self._time_limiter,
            key_prefixes=key_prefixes or {},
            canonical_ref=canonical_ref,
        )
        self._documents = DocumentReader(db, graph, cache, time_limiter=self._time_limiter)

    async def search(
        self,
        query: str,
        *,
        limit: int = 10,
        filters: Filters | None = None,
        scope: Scope | None = None,
        passages_per_document: int | None = None,
        weights: Weights | None = None,
        max_tokens: int | None = None,
        explain: bool = False,
        fresh: bool = False,
    ) -> SearchResult:
        """Return the best passages for a query; for an empty query the newest documents that pass the filters.

        Without `passages_per_document` there are 3 hits of one document at most, and any number where the scope names
        documents or conversations. With `max_tokens` the result has a context, of up to 100 passages. Raises `Rejected` for a query over 2,000 characters or a limit outside 1 to 100,
        `NotFound` for an unknown part of the scope, and `Unavailable` without PostgreSQL. An entity of the filters that no
        document names finds nothing, and is `unknown` in the result.
        Without any other store the result is `degraded`. A standby of PostgreSQL that is not too far behind is read
        first, unless the result must be `fresh`: then, and where the standby fails, it is the primary's.
        """
        request = SearchRequest.from_query(
            query,
            limit=limit,
            passages_per_document=passages_per_document,
            filters=self._with_canonical_refs(filters),
            scope=scope,
            weights=weights,
            max_tokens=max_tokens,
            explain=explain,
        )
        result = None if fresh else await self._from_standby(request)
        if result is None:
            result = await self._run(self._begun(request, self._db))
            if self._standby:
                SEARCH_READS.labels("primary").inc()
        return result

    async def _from_standby(self, request: SearchRequest) -> SearchResult | None:
        """Return the result as the standby shows it; None where the primary has to answer."""
        standby = self._standby
        if standby is None or not standby.fresh:
            return None
        try:
            result = await self._run(self._begun(request, standby.snapshots))
        except Unavailable as error:
            standby.set_aside(str(error))
            return None
        except (NotFound, RetryLater):  # not there yet, or what it read was removed meanwhile
            return None
        SEARCH_READS.labels("standby").inc()
        return result

    def _begun(self, request: SearchRequest, db: Postgres) -> _SearchRun:
        time = read_time(request.text, self._clock(), self._date_order)
        return _SearchRun(request, time, db)

    async def _run(self, run: _SearchRun) -> SearchResult:
        with run.stopwatch.part("total"):
            if run.request.text:
                result = await self._kept_answer(run) or await self._best_passages(run)
            else:
                result = await self._newest_documents(run)
        result.degraded = run.degraded.names()
        get_current_span().set_attributes(
            {"apex.hits": len(result.hits), "apex.degraded": result.degraded}
        )
        result.took_ms = run.stopwatch.took_ms
        return result

    def _with_canonical_refs(self, filters: Filters | None) -> Filters | None:
        if filters is None or not filters.entities:
            return filters
        return replace(filters, entities=tuple(map(self._canonical_ref, filters.entities)))

    async def _resolved_filters(self, run: _SearchRun, connection: Connection) -> Filters | None:
        request = run.request
        return await self._scopes.resolve(connection, request.scope, request.filters, run.degraded)

    async def _newest_documents(self, run: _SearchRun) -> SearchResult:
        with run.stopwatch.part("read"):
            async with run.db.snapshot() as connection:
                filters = await self._resolved_filters(run, connection)
                reader = SnapshotReader(connection, filters)
                passages: list[RankedPassage] = []
                for document in await reader.newest(run.request.ranked_passages):
                    start, end = next(iter(unpack_spans(document.spans)), (0, 0))
                    passages.append(
                        RankedPassage(
                            doc=document.doc_id,
                            start=start,
                            end=end,
                            score=0.0,
                            by="ranking",
                            legs={},
                            why=(),
                        )
                    )
                hits = await read_hits(reader, passages, "", self._is_relevant)
                context = await self._context(run.request, reader, hits)
                unknown = await self._unknown_filters(connection, filters, hits)
        return SearchResult(hits=hits[: run.request.limit], context=context, unknown=unknown)

    async def _kept_answer(self, run: _SearchRun) -> SearchResult | None:
        """Return the answer of an earlier search, if the same request would get it now; None if it has to be computed.

        That needs a snapshot, but neither the vector of the question nor a query of a store. A question that nobody asked
        before does not even wait for that.
        """
        if self._answers is None:
            return None
        answer = None
        if self._answers.may_hold(run.question):
            with run.stopwatch.part("kept"):
                answer = await self._answer_of_snapshot(self._answers, run)
        SEARCH_ANSWERS.labels("hit" if answer else "miss").inc()
        return answer

    async def _answer_of_snapshot(
        self, answers: AnswerCache, run: _SearchRun
    ) -> SearchResult | None:
        async with run.db.snapshot() as connection:
            summary = await SnapshotReader(connection, None).summary()
            filters = await self._resolved_filters(run, connection)
        answer = answers.get(run.question, AnswerBasis(summary, filters, self._centre.number))
        if answer is None:
            return None
        # A store that is away, or has lost what it held, would be missing in a new answer, which would say so.
        for store in (self._graph, self._vectors):
            await self._time_limiter.check_incarnation(store, summary.verified, run.degraded)
        return None if run.degraded.names() else answer

    async def _best_passages(self, run: _SearchRun) -> SearchResult:
        # Started first: a vector takes as long as everything else together. The search holds a connection
        # while it waits for the vector, `leg_seconds` at most; the pool is large enough for that.
        vector = asyncio.create_task(self._query_vector(run))
        try:
            result, _ = await gather_both(
                self._rank_in_snapshot(run, vector),
                self._store_vector(run.request.text, vector),
            )
        finally:
            vector.cancel()
        return result

    async def _rank_in_snapshot(
        self, run: _SearchRun, vector: Awaitable[QueryVector]
    ) -> SearchResult:
        request = run.request
        async with run.db.snapshot() as connection:
            with run.stopwatch.part("identifiers"):
                snapshot, query = await self._opened(run, connection)
            with run.stopwatch.part("stores"):
                ranking = await self._retrieved(run, snapshot, query, vector)
            with run.stopwatch.part("read"):
                passages = ranking.order(
                    limit=max(request.ranked_passages, RERANKED)
                    if self._reranker
                    else request.ranked_passages,
                    passages_per_document=request.passages_per_document,
                    explain=request.explain,
                )
                ranked = await read_hits(snapshot.reader, passages, request.text, self._is_relevant)
            # Before a reranker, which knows nothing of codes and has scores of another scale.
            judged_hits = ranked[:JUDGED_HITS]
            unknown = _unknown(query, snapshot, ranked[: request.limit], run)
            if self._reranker:
                leads = sum(passage.by == "identifier" for passage in passages)
                ranked = await self._reranked(self._reranker, ranked, leads, run)
            with run.stopwatch.part("read"):
                context = await self._context(
                    request, snapshot.reader, ranked[: request.ranked_passages]
                )
                hits = ranked[: request.limit]
                unknown = [
                    *await self._unknown_filters(connection, query.filters, hits),
                    *unknown,
                ]
        result = SearchResult(
            hits=hits,
            degraded=run.degraded.names(),
            context=context,
            entities=recognised(snapshot.exact_refs, snapshot.identifiers, ranking.graph.known),
            unknown=unknown,
            evidence=evidence_of(request.text, judged_hits, unknown, self._terms),
        )
        if self._answers is not None:
            basis = AnswerBasis(snapshot.summary, query.filters, run.centre)
            self._answers.put(run.question, basis, result)
        return result

    async def _opened(
        self, run: _SearchRun, connection: Connection
    ) -> tuple[_RunSnapshot, RetrievalQuery]:
        """Take the snapshot, look up the query's identifiers in it, and return the query as the stores receive it."""
        text = run.request.text
        time, undated = run.time.time_range, run.time.undated
        entities = self._extract_query(undated)
        exact_refs = identifiers_of(entities.certain)
        filters = await self._resolved_filters(run, connection)
        reader = SnapshotReader(connection, filters)
        summary = await reader.summary()
        identifiers = await identifier_matches(
            reader, [*exact_refs, *entities.identifiers], self._own_ids.of(undated)
        )
        query = RetrievalQuery(
            text=text,
            identifiers=list(identifiers.counts),
            refs=[*entities.certain, *entities.candidates],
            codes=code_words(undated),
            time=time,
            days=[day_ref(day) for day in time.days(DAYS_MAX)] if time else (),
            filters=filters,
            speakers=self._speakers(text),
            topic=self._topics.of(text),
            depth=DEPTH,
            terms=len(self._words.question(text).ids),
            corpus=summary.documents,
            weights=run.request.weights,
        )
        snapshot = _RunSnapshot(reader, SnapshotView(reader), summary, exact_refs, identifiers)
        return snapshot, query

    async def _retrieved(
        self,
        run: _SearchRun,
        snapshot: _RunSnapshot,
        query: RetrievalQuery,
        vector: Awaitable[QueryVector],
    ) -> Ranking:
        """Return the candidates of both stores, ready to be ranked."""
        store_query = StoreQuery(snapshot.view, self._time_limiter, run.degraded)
        from_vectors, (from_graph, contents) = await gather_both(
            self._from_vectors(query, vector, store_query, run, snapshot),
            self._from_graph(query, store_query, run, snapshot),
        )
        return Ranking(
            documents=snapshot.view.documents,
            vectors=from_vectors,
            graph=from_graph,
            identifiers=snapshot.identifiers,
            contents=contents,
            time=query.time,
            topic=query.topic,
            weights=query.weights,
            terms=query.terms,
            corpus=query.corpus,
        )

    async def _reranked(
        self, reranker: Reranker, hits: list[Hit], leads: int, run: _SearchRun
    ) -> list[Hit]:
        """Return the hits in the order of the reranker, after the first `leads`; as they are, and degraded, without it."""
        candidates = hits[leads:RERANKED]
        if len(candidates) < 2:
            return hits
        with run.stopwatch.part("rerank"):
            try:
                scores = await reranker.scores(
                    run.request.text, [text_of(hit) for hit in candidates]
                )
            except Unavailable as error:
                self._log.warning("searching without", part="reranker", reason=str(error))
                run.degraded.add("reranker")
                return hits
        return reordered(hits, leads, scores)

    async def _unknown_filters(
        self, connection: Connection, filters: Filters | None, hits: Sequence[Hit]
    ) -> list[str]:
        """Return the entities of the filters that no document names, where nothing was found."""
        return [] if hits else list(await self._scopes.unknown_entities(connection, filters))

    async def _context(
        self, request: SearchRequest, reader: SnapshotReader, hits: Sequence[Hit]
    ) -> Context | None:
        """Return the context of a search; None without `max_tokens`."""
        if request.max_tokens is None:
            return None
        # Of more passages than twice what fits, none would be in it.
        room = 2 * QUARTERS * request.max_tokens
        read: list[Hit] = []
        for hit in hits:
            read.append(hit)
            room -= hit.end - hit.start
            if room < 0:
                break
        windows = await reader.windows(
            [(hit.doc_id, hit.start, hit.end) for hit in read], margin=MARGIN
        )
        passages = [
            PassageText(
                hit=hit,
                window=window.text,
                window_start=window.start,
                text_length=window.text_length,
            )
            for hit, window in zip(read, windows, strict=True)
        ]
        context = pack(
            passages,
            max_tokens=request.max_tokens,
            relevance=relevance(request.text, self._is_relevant),
        )
        return replace(context, left_out=context.left_out + len(hits) - len(read))

    def _speakers(self, text: str) -> list[str]:
        """Return the refs of the speakers that a query's words may name."""
        words = filter(self._is_relevant, words_of(text).split())
        refs = chain(handle_refs(text), chain.from_iterable(map(speaker_refs, words)))
        return list(dict.fromkeys(refs))[:SPEAKER_WORDS]

    def _terms(self, text: str) -> list[int]:
        terms: list[int] = self._words.question(text).ids.tolist()
        return terms

    def _is_relevant(self, word: str) -> bool:
        """Return whether the word legs look for a word: they leave stop words out."""
        return bool(self._words.question(word).ids.size)

    async def _verified(
        self, store: Store, call: Awaitable[T], run: _SearchRun, snapshot: _RunSnapshot
    ) -> T:
        """Return the result of a call. Afterwards the store is degraded unless it is the verified incarnation."""
        result = await call
        await self._time_limiter.check_incarnation(store, snapshot.summary.verified, run.degraded)
        return result

    async def _from_vectors(
        self,
        query: RetrievalQuery,
        vector: Awaitable[QueryVector],
        store_query: StoreQuery,
        run: _SearchRun,
        snapshot: _RunSnapshot,
    ) -> VectorCandidates:
        centred = self._centred(vector, run, snapshot.reader)
        candidates = self._retriever.from_vectors(query, centred, store_query)
        return await self._verified(self._vectors, candidates, run, snapshot)

    async def _from_graph(
        self,
        query: RetrievalQuery,
        store_query: StoreQuery,
        run: _SearchRun,
        snapshot: _RunSnapshot,
    ) -> tuple[GraphCandidates, Mapping[UUID, DocumentContent]]:
        """Return the graph's candidates, and the contents of these and of the documents with an identifier."""
        candidates = await self._verified(
            self._graph, self._retriever.from_graph(query, store_query), run, snapshot
        )
        await snapshot.view.load(snapshot.identifiers.refs)
        docs = snapshot.identifiers.refs.keys() | {hit.doc for hit in candidates.hits}
        return candidates, await snapshot.reader.contents(docs)

    async def _centred(
        self, query_vector: Awaitable[QueryVector], run: _SearchRun, reader: SnapshotReader
    ) -> Vectors | None:
        """Return the vector by which passages are compared; None if the embedder does not take part."""
        vector = (await query_vector).vector
        if vector is None:
            return None
        centred = await self._centre.removed_from(vector, reader.sample_vectors)
        run.centre = self._centre.number
        return centred

    async def _query_vector(self, run: _SearchRun) -> QueryVector:
        with run.stopwatch.part("embed"):
            return await self._query_vectors.get(run.request.text, run.degraded)

    async def _store_vector(self, text: str, vector: Awaitable[QueryVector]) -> None:
        await self._query_vectors.store(text, await vector)

    async def document(self, doc_id: UUID) -> DocumentView:
        """Return the version that readers see. Raises `NotFound` for an unknown or deleted document."""
        return await self._documents.document(doc_id)

    async def document_version(
        self, doc_id: UUID, version: int, event_id: str | None = None, *, of_deleted: bool = False
    ) -> DocumentView:
        """Return a version that readers see or have seen. Raises `NotFound` if its manifest is not kept.

        The versions of a deleted document are returned with `of_deleted` alone. Versions with the same number differ by `event_id`; without it the last of them is returned.
        """
        return await self._documents.document_version(
            doc_id, version, event_id, of_deleted=of_deleted
        )

    async def entity(self, ref: str, *, limit: int = 50) -> EntityView:
        """Return what live documents state of an entity. Raises `NotFound` if none names it."""
        return await self._documents.entity(self._canonical_ref(ref), limit=limit)

    async def timeline(
        self, ref: str, *, limit: int = 50, after: str | None = None
    ) -> DocumentPage:
        """Return live documents of all sources that name an entity, the latest occurrence first, after a cursor.

        Raises `Rejected` for a cursor that is not from such a page.
        """
        return await self._documents.timeline(self._canonical_ref(ref), limit=limit, after=after)

    async def documents(
        self,
        *,
        sources: Sequence[str] = (),
        kinds: Sequence[str] = (),
        deleted: bool | None = False,
        limit: int = 50,
        after: str | None = None,
    ) -> DocumentPage:
        """Return documents by time of their last commit, newest first, starting after the cursor `after`.

        `deleted` None includes deleted documents, True lists these alone. Raises `Rejected` for a cursor
        that is not from such a page.
        """
        return await self._documents.documents(
            sources=sources, kinds=kinds, deleted=deleted, limit=limit, after=after
        )


def _unknown(
    query: RetrievalQuery, snapshot: _RunSnapshot, hits: Sequence[Hit], run: _SearchRun
) -> list[str]:
    """Return the identifiers of the query that no document holds."""
    unknown = unknown_identifiers(snapshot.exact_refs, snapshot.identifiers, hits)
    if not (snapshot.exact_refs or query.identifiers or run.degraded.names()):
        unknown += unknown_code(query.codes, hits)
    return unknown
