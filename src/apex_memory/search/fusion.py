"""Fusion: one score per passage out of the scores of several legs, each on a scale of its own.

A leg is one ranked list of passages: by meaning (`dense`), by words (`words`, `nearby`), by codes, by
the graph, by time. Fusion adds normalised scores, not reciprocal ranks: measured, equal ranks made words and meaning
together worse than words alone. A passage that a leg did not return gets the leg's floor, and the leg's
values become z-scores over the candidates of all legs. So a leg that returned one passage of hundreds, such
as the only one with the query's word, weighs much. The boosts (codes, graph, time) are shares of 1 and stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

PassageId = tuple[UUID, int]
"""A passage: the id of its document, and its number there."""

Scores = dict[PassageId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight of each leg in the sum. 0 leaves a leg out of the ranking.

    Tuned on one half of the memory bench's questions; docs/discussions/ranking.md has the figures.
    """

    dense: float = 1.0
    """Similarity of meaning (cosine)."""
    words: float = 1.0
    """BM25 over the passage."""
    nearby: float = 0.5
    """BM25 over the passage with its neighbours."""
    dense_nearby: float = 0.75
    """Similarity of meaning, averaged over the passage and its neighbours."""
    graph: float = 0.5
    """Links to the entities that the query names, 0 to 1."""
    codes: float = 6.0
    """The query's codes and numbers that the passage holds, rare ones counting more, 0 to 1."""
    time: float = 3.0
    """Closeness to the time that the query names, 0 to 1. Passages lie about 10 apart in the sum."""
    covered: float = 0.6
    """Share of the query's words that the best passage must hold for the word legs to count in full; 0 turns this off."""

    def scaled_by_coverage(self, words: float, nearby: float) -> Weights:
        """Return the weights with the word legs reduced where their coverage, 0 to 1, is below `covered`."""
        if not self.covered:
            return self
        return replace(
            self,
            words=self.words * min(1, words / self.covered),
            nearby=self.nearby * min(1, nearby / self.covered),
        )


BOOSTS = frozenset({"codes", "graph", "time"})


@dataclass(frozen=True, slots=True)
class Leg:
    """Raw scores of the passages that a leg returned, and `floor`, the most that any other passage can have."""

    scores: Mapping[PassageId, float]
    floor: float = 0.0


def fuse(passages: Iterable[PassageId], legs: Mapping[str, Leg], weights: Weights) -> Scores:
    """Return the sum of weighted, normalised scores for each of the passages."""
    passages = list(passages)
    totals = [0.0] * len(passages)  # lists: hashing passage ids is the main cost here
    for name, leg in legs.items():
        weight = getattr(weights, name)
        if not weight or not leg.scores:
            continue
        values = [leg.scores.get(passage, leg.floor) for passage in passages]
        mean, deviation = 0.0, 1.0
        if name not in BOOSTS:
            mean, deviation = _mean_and_deviation(values)
        totals = [
            total + weight * (value - mean) / deviation
            for total, value in zip(totals, values, strict=True)
        ]
    return dict(zip(passages, totals, strict=True))


def coverage(leg: Leg | None, *, terms: int, corpus: int) -> float:
    """Return how much of a query of `terms` words the leg's best passage holds; rare words count more.

    Normalising removes what a BM25 score means by itself: a passage that shares one common word with the
    query would count like one that holds all words. The measure is the score of a passage that holds each
    term once, if each were as rare as a term can be in a corpus of `corpus` documents.
    """
    if leg is None or not leg.scores or not terms:
        return 0.0
    rarest_idf = math.log(1 + max(corpus, 1) / 1.5)
    return max(leg.scores.values()) / (terms * rarest_idf)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the deviation is 1 for equal values."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return mean, deviation or 1.0


def smooth(dense: Leg, passage_counts: Mapping[UUID, int]) -> Leg:
    """Return the leg with each score averaged over the passage and its neighbours; a missing neighbour has the floor.

    `passage_counts` holds the number of passages of each document: the first and the last passage have one
    neighbour, an only passage has none.
    """
    scores = {}
    for doc, n in dense.scores:
        after_last = min(n + 2, max(passage_counts[doc], n + 1))
        values = [
            dense.scores.get((doc, neighbour), dense.floor)
            for neighbour in range(max(n - 1, 0), after_last)
        ]
        scores[doc, n] = sum(values) / len(values)
    return Leg(scores, dense.floor)
