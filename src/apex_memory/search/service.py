"""Search: the entities and the vector of a query, the snapshot, the legs, one ranking, the texts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import TypeVar
from uuid import UUID

from opentelemetry.trace import get_current_span

from apex_memory.dates import DateOrder
from apex_memory.errors import NotFound, RetryLater, Unavailable
from apex_memory.model import Entity, Filters, Vectors, day_ref, now
from apex_memory.normalization import words_of
from apex_memory.search.centre import Centre
from apex_memory.search.context import MARGIN, PassageText, pack
from apex_memory.search.documents import DocumentReader, document_path, spoken_turn
from apex_memory.search.evidence import JUDGED_HITS, evidence_of
from apex_memory.search.excerpt import excerpter, marker, relevance
from apex_memory.search.fusion import Weights
from apex_memory.search.own_ids import OwnIdFinder, OwnIds
from apex_memory.search.query_vectors import QueryVector, QueryVectors
from apex_memory.search.ranking import IdentifierMatches, RankedPassage, Ranking
from apex_memory.search.requests import SearchRequest
from apex_memory.search.reranker import RERANKED, Reranker, reordered, text_of
from apex_memory.search.results import (
    Context,
    DocumentPage,
    DocumentView,
    EntityView,
    Hit,
    Provenance,
    QueryEntities,
    RecognisedEntity,
    SearchResult,
)
from apex_memory.search.retrieval import (
    DAYS_MAX,
    GraphCandidates,
    RetrievalQuery,
    Retriever,
    code_words,
)
from apex_memory.search.scope import Scope, ScopeResolver
from apex_memory.search.sentences import QUARTERS
from apex_memory.search.snapshot import (
    SNIPPET_CHARS,
    DocumentContent,
    SnapshotReader,
    SnapshotSummary,
    Snippet,
    unpack_spans,
)
from apex_memory.search.time_expressions import read_time
from apex_memory.search.time_limits import Degraded, Stopwatch, TimeLimiter
from apex_memory.search.topics import Topics
from apex_memory.search.visibility import SnapshotView, StoreQuery, gather_both
from apex_memory.speakers import handle_refs, speaker_refs
from apex_memory.stores.base import GraphStore, Store, VectorStore
from apex_memory.stores.bm25 import Words
from apex_memory.stores.cache import Cache
from apex_memory.stores.postgres import Connection, Postgres
from apex_memory.stores.standby import Standby
from apex_memory.telemetry import SEARCH_READS, logger

EXACT_MAX = 20  # identifiers of one query that are looked up in the exact index
DEPTH = (
    60  # hits per leg, whatever the limit of a request: its first hits do not depend on the limit
)
SPEAKER_WORDS = 12  # words of a query that may name a speaker

T = TypeVar("T")

_NO_SYMBOL = re.compile(r"[\W_]+")

# Types whose refs are names, not identifiers: for a query about Dallas, documents that merely name
# Dallas must not come before all others.
NAMES = frozenset({"company", "person", "location"})


@dataclass(frozen=True, slots=True)
class _SearchRun:
    """One search in progress: the request, and what its parts report."""

    request: SearchRequest
    db: Postgres
    """The server that the snapshot is read from."""
    degraded: Degraded = field(default_factory=Degraded)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True)
class _RunSnapshot:
    """The snapshot of one search."""

    reader: SnapshotReader
    view: SnapshotView
    summary: SnapshotSummary
    identifiers: IdentifierMatches


class Search:
    """Searches memory as one snapshot of PostgreSQL shows it, and reads single documents and entities.

    `embed_query` returns the vector of a query, shape (dimension,), and `extract_query` its entities. Refs of
    callers may be spelled as people do (`phone:(901) 555-0143`): `canonical_ref` returns the ref that documents have.
    Each store's part takes `leg_seconds` at most; after a timeout a store is skipped for `rest_seconds`.
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
            result = await self._run(_SearchRun(request, self._db))
            if self._standby:
                SEARCH_READS.labels("primary").inc()
        return result

    async def _from_standby(self, request: SearchRequest) -> SearchResult | None:
        """Return the result as the standby shows it; None where the primary has to answer."""
        standby = self._standby
        if standby is None or not standby.fresh:
            return None
        try:
            result = await self._run(_SearchRun(request, standby.snapshots))
        except Unavailable as error:
            standby.set_aside(str(error))
            return None
        except (NotFound, RetryLater):  # not there yet, or what it read was removed meanwhile
            return None
        SEARCH_READS.labels("standby").inc()
        return result

    async def _run(self, run: _SearchRun) -> SearchResult:
        with run.stopwatch.part("total"):
            if run.request.text:
                result = await self._best_passages(run)
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
                hits = await _hits(reader, passages, "", self._is_relevant)
                context = await self._context(run.request, reader, hits)
                unknown = await self._unknown_filters(connection, filters, hits)
        return SearchResult(hits=hits[: run.request.limit], context=context, unknown=unknown)

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
        read = read_time(request.text, self._clock(), self._date_order)
        time, undated = read.time_range, read.undated
        entities = self._extract_query(undated)
        exact_refs = [ref for ref in entities.certain if Entity.parse(ref).type not in NAMES]
        async with run.db.snapshot() as connection:
            with run.stopwatch.part("identifiers"):
                filters = await self._resolved_filters(run, connection)
                snapshot = await _open_snapshot(
                    SnapshotReader(connection, filters),
                    [*exact_refs, *entities.identifiers],
                    self._own_ids.of(undated),
                )
            query = RetrievalQuery(
                text=request.text,
                identifiers=list(snapshot.identifiers.counts),
                refs=[*entities.certain, *entities.candidates],
                codes=code_words(undated),
                time=time,
                days=[day_ref(day) for day in time.days(DAYS_MAX)] if time else (),
                filters=filters,
                speakers=self._speakers(request.text),
                topic=self._topics.of(request.text),
                depth=DEPTH,
                terms=len(self._words.question(request.text).ids),
                corpus=snapshot.summary.documents,
                weights=request.weights,
            )
            store_query = StoreQuery(snapshot.view, self._time_limiter, run.degraded)
            with run.stopwatch.part("stores"):
                from_vectors, (from_graph, contents) = await gather_both(
                    self._verified(
                        self._vectors,
                        self._retriever.from_vectors(
                            query, self._centred(vector, snapshot.reader), store_query
                        ),
                        run,
                        snapshot,
                    ),
                    self._from_graph(query, store_query, run, snapshot),
                )
            with run.stopwatch.part("read"):
                ranking = Ranking(
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
                passages = ranking.order(
                    limit=max(request.ranked_passages, RERANKED)
                    if self._reranker
                    else request.ranked_passages,
                    passages_per_document=request.passages_per_document,
                    explain=request.explain,
                )
                ranked = await _hits(snapshot.reader, passages, request.text, self._is_relevant)
            # Before a reranker, which knows nothing of codes and has scores of another scale.
            own_hits, judged_hits = ranked[: request.limit], ranked[:JUDGED_HITS]
            is_whole = not run.degraded.names()
            if self._reranker:
                leads = sum(passage.by == "identifier" for passage in passages)
                ranked = await self._reranked(self._reranker, ranked, leads, run)
            with run.stopwatch.part("read"):
                context = await self._context(
                    request, snapshot.reader, ranked[: request.ranked_passages]
                )
                hits = ranked[: request.limit]
                unknown_filters = await self._unknown_filters(connection, filters, hits)
        unknown = [
            *unknown_filters,
            *_unknown_identifiers(exact_refs, snapshot.identifiers, own_hits),
            *(_unknown_code(query, exact_refs, own_hits) if is_whole else ()),
        ]
        return SearchResult(
            hits=hits,
            context=context,
            entities=_recognised(exact_refs, snapshot.identifiers, from_graph.known),
            unknown=unknown,
            evidence=evidence_of(request.text, judged_hits, unknown, self._terms),
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
        self, query_vector: Awaitable[QueryVector], reader: SnapshotReader
    ) -> Vectors | None:
        """Return the vector by which passages are compared; None if the embedder does not take part."""
        vector = (await query_vector).vector
        if vector is None:
            return None
        return await self._centre.removed_from(vector, reader.sample_vectors)

    async def _query_vector(self, run: _SearchRun) -> QueryVector:
        with run.stopwatch.part("embed"):
            return await self._query_vectors.get(run.request.text, run.degraded)

    async def _store_vector(self, text: str, vector: Awaitable[QueryVector]) -> None:
        await self._query_vectors.store(text, await vector)

    async def document(self, doc_id: UUID) -> DocumentView:
        """Return the version that readers see. Raises `NotFound` for an unknown or deleted document."""
        return await self._documents.document(doc_id)

    async def document_version(
        self, doc_id: UUID, version: int, event_id: str | None = None
    ) -> DocumentView:
        """Return a version that readers see or have seen. Raises `NotFound` if its manifest is not kept.

        Versions with the same number differ by `event_id`; without it the last of them is returned.
        """
        return await self._documents.document_version(doc_id, version, event_id)

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


async def _open_snapshot(
    reader: SnapshotReader, exact_refs: Sequence[str], own_ids: OwnIds
) -> _RunSnapshot:
    """Take the snapshot and look up the query's identifiers in it."""
    summary = await reader.summary()
    identifiers = IdentifierMatches()
    refs = [*exact_refs[:EXACT_MAX], *own_ids.refs]
    matches = await reader.identified(refs, own_ids.documents)
    named = [Entity.parse(ref).key for ref, _ in matches if ref not in own_ids.all_refs]
    for ref, doc in matches:
        # `load 104277` names SHP-104277, not the deal of another vendor that has this number for its id.
        is_named = ref in own_ids.all_refs and any(
            _is_key_of(key, Entity.parse(ref).key) for key in named
        )
        if not is_named:
            identifiers.add(ref, doc)
    return _RunSnapshot(reader, SnapshotView(reader), summary, identifiers)


def _is_key_of(key: str, number: str) -> bool:
    """Return whether a key is a number, or one with a label: `SHP-107815` is of 107815, not of 815."""
    return key == number or key.endswith(f"-{number}")


def _recognised(
    exact_refs: Sequence[str], identifiers: IdentifierMatches, known: Mapping[str, int]
) -> list[RecognisedEntity]:
    held = [ref for ref in identifiers.counts if ref not in exact_refs]
    exact_refs = [*exact_refs, *held]
    exact = [RecognisedEntity(ref, True, identifiers.counts[ref]) for ref in exact_refs]
    others = [
        RecognisedEntity(ref, False, count) for ref, count in known.items() if ref not in exact_refs
    ]
    return exact + others


def _unknown_identifiers(
    exact_refs: Sequence[str], identifiers: IdentifierMatches, hits: Sequence[Hit]
) -> list[str]:
    """Return the identifiers of a query that no document has as an entity, and no hit in its text."""
    keys = [Entity.parse(ref).key for ref in exact_refs if not identifiers.counts[ref]]
    return [key for key in keys if not _holds(hits, key)]


def _unknown_code(
    query: RetrievalQuery, exact_refs: Sequence[str], hits: Sequence[Hit]
) -> list[str]:
    """Return the query's only code if no hit holds it: passages that hold it would be the first hits.

    Of several codes one may be in passages that the limit leaves out, so nothing is said about them.
    """
    codes = query.codes.split()
    if len(codes) != 1 or exact_refs or query.identifiers or _holds(hits, codes[0]):
        return []
    return codes


def _holds(hits: Sequence[Hit], code: str) -> bool:
    wanted = _NO_SYMBOL.sub("", words_of(code).casefold())
    texts = (f"{hit.title} {hit.snippet}" for hit in hits)
    return any(wanted in _NO_SYMBOL.sub("", words_of(text).casefold()) for text in texts)


async def _hits(
    reader: SnapshotReader,
    passages: Sequence[RankedPassage],
    query: str,
    is_relevant: Callable[[str], bool],
) -> list[Hit]:
    """Return the passages with their texts and origins."""
    excerpt, mark = excerpter(query, is_relevant), marker(query, is_relevant)
    snippets = await reader.snippets(
        [(passage.doc, passage.start, passage.end) for passage in passages]
    )
    return [
        _hit(rank, passage, snippet, excerpt(snippet.snippet), mark)
        for rank, (passage, snippet) in enumerate(zip(passages, snippets, strict=True), start=1)
    ]


def _hit(
    rank: int,
    passage: RankedPassage,
    snippet: Snippet,
    excerpt: str,
    mark: Callable[[str], list[tuple[int, int]]],
) -> Hit:
    return Hit(
        rank=rank,
        doc_id=snippet.doc_id,
        title=snippet.title,
        source=snippet.source,
        kind=snippet.kind,
        occurred_at=snippet.occurred_at,
        snippet=snippet.snippet,
        excerpt=excerpt,
        highlights=mark(excerpt),
        start=passage.start,
        end=min(passage.end, passage.start + SNIPPET_CHARS),
        score=passage.score,
        legs=passage.legs,
        why=passage.why,
        points=passage.points,
        turn=spoken_turn(snippet.turn) if snippet.turn else None,
        link=snippet.link or document_path(snippet.doc_id),
        provenance=Provenance(
            inbox_id=snippet.inbox_id,
            event_id=snippet.event_id,
            version=snippet.version,
            received_at=snippet.received_at,
            manifest_id=snippet.manifest_id,
            stage_id=snippet.stage_id,
        ),
    )
