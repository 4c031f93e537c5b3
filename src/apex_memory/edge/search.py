"""Searching all shards as one: the question in the engine's words, answers merged by score."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_edge import (
    FieldCondition,
    Filter,
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

Hit = tuple[UUID, float]
"""Point, score."""

Places = dict[UUID, bytes]
"""Where each point is, as `PLACE` packs it."""

Scored = tuple[float, Any, Shard]
"""Score, the engine's hit, the shard it is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A search as it comes over the wire. Legs whose vector is missing are not searched."""

    dense: list[float] | None
    terms: NDArray[np.uint32] | None
    limit: int
    tags: Sequence[Sequence[str]] = ()
    """Of each group, a point must have at least one."""
    since: float | None = None
    until: float | None = None
    exclude: Sequence[UUID] = ()


def search(shards: Sequence[Shard], question: Question) -> tuple[dict[str, list[Hit]], Places]:
    """The best `limit` points of each leg, best first, and where they are."""
    queries = _queries(shards, question)
    silent: dict[str, list[Hit]] = (
        {} if question.terms is None or "words" in queries else {"words": [], "nearby": []}
    )
    if not queries or question.limit < 1:
        return silent | {leg: [] for leg in queries}, {}
    effort = _effort(len(shards), question.limit)
    best: dict[str, list[Iterator[Scored]]] = {leg: [] for leg in queries}
    for shard in shards:
        only = _filter(shard, question)
        requests = [
            QueryRequest(
                limit=question.limit, query=query, filter=only, with_payload=False, params=effort
            )
            for query in queries.values()
        ]
        for leg, hits in zip(best.values(), shard.query(requests), strict=True):
            leg.append(_scored(hits, shard))
    winners = {leg: _first(found, question.limit) for leg, found in best.items()}
    places = _places(row for leg in winners.values() for row in leg)
    return silent | {
        leg: [(point, score) for point, score, _ in found] for leg, found in winners.items()
    }, places


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
    """How many candidates each shard's index weighs; the engine's own 100 for a few shards.

    Many shards weigh more together than one would: so each may weigh fewer.
    """
    return SearchParams(hnsw_ef=max(limit, SHARED_EFFORT)) if shards > FEW_SHARDS else None


def _filter(shard: Shard, question: Question) -> Filter | None:
    """What of this shard may be found. Stages that it does not hold need no excluding, which is what costs."""
    must: list[Any] = [
        FieldCondition("tags", match=MatchAny(list(group))) for group in question.tags
    ]
    if question.since is not None or question.until is not None:
        must.append(FieldCondition("time", range=RangeFloat(gte=question.since, lt=question.until)))
    excluded = shard.catalogue.held(question.exclude)
    must_not: list[Any] = [of_stages(excluded)] if excluded else []
    return Filter(must=must, must_not=must_not) if must or must_not else None


def _scored(hits: Sequence[Any], shard: Shard) -> Iterator[Scored]:
    return ((hit.score, hit, shard) for hit in hits)


def _first(found: Sequence[Iterator[Scored]], limit: int) -> list[tuple[UUID, float, Shard]]:
    """The best of several lists that each are best first. Ids are made for these alone: they cost the most."""
    first: dict[UUID, tuple[float, Shard]] = {}
    for score, hit, shard in heapq.merge(*found, key=itemgetter(0), reverse=True):
        first.setdefault(hit.id, (score, shard))
        if len(first) == limit:
            break
    return [(point, score, shard) for point, (score, shard) in first.items()]


def _places(rows: Iterable[tuple[UUID, float, Shard]]) -> Places:
    """Of the winners alone: most hits of most shards are none."""
    by_shard: dict[Shard, dict[UUID, None]] = {}
    for point, _, shard in rows:
        by_shard.setdefault(shard, {})[point] = None
    places: Places = {}
    for shard, points in by_shard.items():
        places |= zip(points, shard.catalogue.places(list(points)), strict=True)
    return places
