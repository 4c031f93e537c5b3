"""Search over all shards: one call per shard for all queries and legs, hits merged by score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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

Hit = tuple[int, float]
"""Number of the point in the places of the result, score."""

Scored = tuple[float, Any, Shard]
"""Score, the engine's hit, its shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A search as it comes over the wire. A leg whose vector is None is not searched."""

    dense: bytes | None
    """Little-endian float32."""
    terms: bytes | None
    """Little-endian uint32."""
    nearby: bool = True
    """Search the terms of the passages' neighbours too."""
    limit: int
    tags: Sequence[Sequence[str]] = ()
    """A point must have at least one tag of each group."""
    since: float | None = None
    until: float | None = None
    stages: Sequence[UUID] = ()
    """Only points of these stages; empty for all."""
    exclude: Sequence[UUID] = ()
    among: Sequence[bytes] = ()
    """Search the points with these ids alone, and compare each exactly; empty for all points."""


@dataclass(frozen=True, slots=True)
class SearchHits:
    """The hits of each question by leg, best first, and the place of each point that they number, as `PLACE` packs it."""

    hits: list[dict[str, list[Hit]]]
    places: list[bytes]


def search(shards: Sequence[Shard], questions: Sequence[Question]) -> SearchHits:
    """Return the best `limit` points of each leg of each question."""
    queries = _queries(shards, questions)
    scored: list[dict[str, list[Scored]]] = [{leg: [] for leg in legs} for legs in queries]
    for shard in shards:
        requests: list[QueryRequest] = []
        lists: list[list[Scored]] = []
        for question, legs, best in zip(questions, queries, scored, strict=True):
            conditions = _conditions(shard, question)
            if question.limit < 1 or conditions is None:
                continue
            must, must_not = conditions
            only = Filter(must=must, must_not=must_not) if must or must_not else None
            effort = EXACT if question.among else _effort(len(shards), question.limit)
            for leg, query in legs.items():
                if query is None:
                    continue
                requests.append(
                    QueryRequest(
                        limit=question.limit,
                        query=query,
                        filter=only,
                        with_payload=False,
                        params=effort,
                    )
                )
                lists.append(best[leg])
        if requests:
            for hits, scored_hits in zip(shard.query(requests), lists, strict=True):
                scored_hits.extend((hit.score, hit, shard) for hit in hits)
    numbers: dict[int, int] = {}
    owners: list[Shard] = []
    best_hits: list[dict[str, list[Hit]]] = []
    for question, best in zip(questions, scored, strict=True):
        best_hits.append(
            {leg: _numbered(hits, question.limit, numbers, owners) for leg, hits in best.items()}
        )
    return SearchHits(best_hits, _places(numbers, owners))


def _queries(
    shards: Sequence[Shard], questions: Sequence[Question]
) -> list[dict[str, Query | None]]:
    """Return the engine's query for each leg of each question; None for a leg that finds nothing.

    The questions of one search have the same vector and the same terms, under different conditions.
    """
    dense: dict[bytes, Query] = {}
    sparse: dict[tuple[bytes, int], Query] = {}
    queries: list[dict[str, Query | None]] = []
    for question in questions:
        legs: dict[str, Query | None] = {}
        if (vector := question.dense) is not None:
            if vector not in dense:
                dense[vector] = Query.Nearest(np.frombuffer(vector, dtype="<f4").tolist(), "dense")
            legs["dense"] = dense[vector]
        if (terms := question.terms) is not None:
            marks = (("words", 0), ("nearby", NEARBY)) if question.nearby else (("words", 0),)
            for leg, mark in marks:
                if terms and (terms, mark) not in sparse:
                    sparse[terms, mark] = _sparse_query(shards, terms, mark)
                legs[leg] = sparse[terms, mark] if terms else None
        queries.append(legs)
    return queries


def _sparse_query(shards: Sequence[Shard], terms: bytes, mark: int) -> Query:
    marked: NDArray[np.uint32] = np.frombuffer(terms, dtype="<u4") | np.uint32(mark)
    weights = inverse_frequencies(marked, [shard.catalogue for shard in shards])
    return Query.Nearest(SparseVector(marked.tolist(), weights), "terms")


def _effort(shards: int, limit: int) -> SearchParams | None:
    """Return the number of candidates that each shard's index considers; the engine's own 100 for a few shards.

    Many shards consider more candidates together than one would, so each may consider fewer.
    """
    return SearchParams(hnsw_ef=max(limit, SHARED_EFFORT)) if shards > FEW_SHARDS else None


def _conditions(shard: Shard, question: Question) -> tuple[list[Any], list[Any]] | None:
    """Return what points of this shard must and must not be; None if it holds none that the question may find.

    Stages that it does not hold are left out, because each of them costs time.
    """
    must: list[Any] = [
        FieldCondition("tags", match=MatchAny(list(group))) for group in question.tags
    ]
    if question.among:
        among = shard.catalogue.with_places(question.among)
        if not among:
            return None
        must.append(HasIdCondition({UUID(bytes=point) for point in among}))
    if question.since is not None or question.until is not None:
        must.append(FieldCondition("time", range=RangeFloat(gte=question.since, lt=question.until)))
    if question.stages:
        stages = shard.catalogue.held(question.stages)
        if not stages:
            return None
        must.append(of_stages(stages))
    excluded = shard.catalogue.held(question.exclude)
    return must, [of_stages(excluded)] if excluded else []


def _numbered(
    hits: list[Scored], limit: int, numbers: dict[int, int], owners: list[Shard]
) -> list[Hit]:
    """Return the best hits of all shards, each point once. A point without a number gets the next one.

    Ids are read for the best alone: the engine makes an object of each.
    """
    hits.sort(key=itemgetter(0), reverse=True)
    best: dict[int, float] = {}
    for score, hit, shard in hits:
        point = hit.id.int
        if point in best:
            continue
        best[point] = score
        if point not in numbers:
            numbers[point] = len(owners)
            owners.append(shard)
        if len(best) == limit:
            break
    return [(numbers[point], score) for point, score in best.items()]


def _places(numbers: Mapping[int, int], owners: Sequence[Shard]) -> list[bytes]:
    """Return the places of all numbered points in the order of their numbers."""
    by_shard: dict[Shard, list[bytes]] = {}
    for point, shard in zip(numbers, owners, strict=True):
        by_shard.setdefault(shard, []).append(point.to_bytes(16))
    places: dict[Shard, Iterator[bytes]] = {
        shard: iter(shard.catalogue.places(points)) for shard, points in by_shard.items()
    }
    return [next(places[shard]) for shard in owners]
