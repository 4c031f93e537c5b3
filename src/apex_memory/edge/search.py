"""Search over all shards: one query per shard and leg, hits merged by score."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_edge import (
    FieldCondition,
    Filter,
    HasIdCondition,
    MatchAny,
    Query,
    QueryRequest,
    RangeFloat,
    SearchParams,
    SparseVector,
)

from apex_memory.edge.catalogue import inverse_frequencies
from apex_memory.edge.shard import NEARBY, Shard, of_stages

FEW_SHARDS, SHARED_EFFORT = 3, 64
EXACT = SearchParams(exact=True)

Hit = tuple[UUID, float]
"""Point, score."""

Places = dict[UUID, bytes]
"""The place of each point, as `PLACE` packs it."""

Scored = tuple[float, Any, Shard]
"""Score, the engine's hit, its shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A search as it comes over the wire. A leg whose vector is None is not searched."""

    dense: list[float] | None
    terms: NDArray[np.uint32] | None
    limit: int
    tags: Sequence[Sequence[str]] = ()
    """A point must have at least one tag of each group."""
    since: float | None = None
    until: float | None = None
    stages: Sequence[UUID] = ()
    """Only points of these stages; empty for all."""
    exclude: Sequence[UUID] = ()
    among: Sequence[UUID] = ()
    """Search these points alone, and compare each exactly; empty for all points."""


def search(shards: Sequence[Shard], question: Question) -> tuple[dict[str, list[Hit]], Places]:
    """Return the best `limit` points of each leg, best first, and their places."""
    queries = _queries(shards, question)
    silent: dict[str, list[Hit]] = (
        {} if question.terms is None or "words" in queries else {"words": [], "nearby": []}
    )
    if not queries or question.limit < 1:
        return silent | {leg: [] for leg in queries}, {}
    effort = EXACT if question.among else _effort(len(shards), question.limit)
    best: dict[str, list[Iterator[Scored]]] = {leg: [] for leg in queries}
    for shard in shards:
        if question.stages and not shard.catalogue.held(question.stages):
            continue
        among = shard.catalogue.with_places(question.among) if question.among else []
        if question.among and not among:
            continue
        only = _filter(shard, question, among)
        requests = [
            QueryRequest(
                limit=question.limit, query=query, filter=only, with_payload=False, params=effort
            )
            for query in queries.values()
        ]
        for leg, hits in zip(best.values(), shard.query(requests), strict=True):
            leg.append(_scored(hits, shard))
    winners = {leg: _first(hits, question.limit) for leg, hits in best.items()}
    places = _places(chain.from_iterable(winners.values()))
    ranked = {leg: [(point, score) for point, score, _ in hits] for leg, hits in winners.items()}
    return silent | ranked, places


def _queries(shards: Sequence[Shard], question: Question) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    if question.dense is not None:
        queries["dense"] = Query.Nearest(question.dense, "dense")
    if question.terms is not None and len(question.terms):
        catalogues = [shard.catalogue for shard in shards]
        for leg, mark in (("words", 0), ("nearby", NEARBY)):
            terms = question.terms | np.uint32(mark)
            weights = inverse_frequencies(terms, catalogues)
            queries[leg] = Query.Nearest(SparseVector(terms.tolist(), weights), "terms")
    return queries


def _effort(shards: int, limit: int) -> SearchParams | None:
    """Return the number of candidates that each shard's index considers; the engine's own 100 for a few shards.

    Many shards consider more candidates together than one would, so each may consider fewer.
    """
    return SearchParams(hnsw_ef=max(limit, SHARED_EFFORT)) if shards > FEW_SHARDS else None


def _filter(shard: Shard, question: Question, among: Sequence[UUID]) -> Filter | None:
    """Return the filter for this shard. Stages that it does not hold are left out, because each of them costs time."""
    must: list[Any] = [
        FieldCondition("tags", match=MatchAny(list(group))) for group in question.tags
    ]
    if among:
        must.append(HasIdCondition(set(among)))
    if question.since is not None or question.until is not None:
        must.append(FieldCondition("time", range=RangeFloat(gte=question.since, lt=question.until)))
    if question.stages:
        must.append(of_stages(shard.catalogue.held(question.stages)))
    excluded = shard.catalogue.held(question.exclude)
    must_not: list[Any] = [of_stages(excluded)] if excluded else []
    return Filter(must=must, must_not=must_not) if must or must_not else None


def _scored(hits: Sequence[Any], shard: Shard) -> Iterator[Scored]:
    return ((hit.score, hit, shard) for hit in hits)


def _first(lists: Sequence[Iterator[Scored]], limit: int) -> list[tuple[UUID, float, Shard]]:
    """Merge lists that are each best first. Ids are parsed for the best alone, as that costs the most."""
    first: dict[UUID, tuple[float, Shard]] = {}
    for score, hit, shard in heapq.merge(*lists, key=itemgetter(0), reverse=True):
        first.setdefault(hit.id, (score, shard))
        if len(first) == limit:
            break
    return [(point, score, shard) for point, (score, shard) in first.items()]


def _places(rows: Iterable[tuple[UUID, float, Shard]]) -> Places:
    """Return the places of the best points alone: most hits of most shards are not among them."""
    by_shard: dict[Shard, dict[UUID, None]] = {}
    for point, _, shard in rows:
        by_shard.setdefault(shard, {})[point] = None
    places: Places = {}
    for shard, points in by_shard.items():
        places |= zip(points, shard.catalogue.places(list(points)), strict=True)
    return places
