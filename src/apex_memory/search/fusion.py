"""Fusion: one score per passage out of the scores of several legs, each on a scale of its own.

A leg is one ranked list of passages: by meaning (`dense`), by words (`words`, `nearby`), by codes, by
the graph, by time. Fusion adds scores, not reciprocal ranks: measured, equal ranks made words and meaning together worse
than words alone. Scores of meaning become z-scores over the candidates of all legs, for their scale differs by embedder.
Scores of words become the share of the query that a passage covers (`covering`). The other legs are shares of 1 and stay as
they are. Every candidate has its true score of each leg; where the vector store could not compare them, a passage that a leg
did not return gets the leg's floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from apex_memory.search.snapshot import LiveDocument

PassageId = tuple[LiveDocument, int]
"""A passage: its document, and its number there."""

Scores = dict[PassageId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight of each leg in the sum. 0 leaves a leg out of the ranking.

    Tuned on one half of the memory bench's questions; docs/discussions/ranking.md has the figures.
    """

    dense: float = 2.0
    """Similarity of meaning (cosine)."""
    words: float = 5.0
    """BM25 over the passage, as `covering` scales it."""
    nearby: float = 14.0
    """BM25 over the passage with its neighbours, as `covering` scales it."""
    dense_nearby: float = 0.75
    """Similarity of meaning, averaged over the passage and its neighbours."""
    graph: float = 0.5
    """Links to the entities that the query names, 0 to 1."""
    speaker: float = 4.0
    """The passage is by somebody whom the query names, 0 or 1."""
    topic: float = 4.0
    """The document is of a kind that the query names, 0 to 1."""
    length: float = 0.5
    """Length of the passage, 0 to 1 at `LONG` characters: a short one seldom answers."""
    asks: float = -2.0
    """The passage ends as a question, 0 or 1: it seldom answers one."""
    codes: float = 6.0
    """The query's codes and numbers that the passage holds, rare ones counting more, 0 to 1."""
    time: float = 4.0
    """Closeness to the time that the query names, 0 to 1. Passages lie about 10 apart in the sum."""


PRIORS = frozenset({"length", "asks"})
"""Boosts that do not depend on the query."""

BOOSTS = PRIORS | {"words", "nearby", "codes", "graph", "time", "speaker", "topic"}
LONG = 400  # characters of a passage that is as long as counts


@dataclass(frozen=True, slots=True)
class Leg:
    """Raw scores of the passages that a leg returned, and `floor`, the most that any other passage can have."""

    scores: Mapping[PassageId, float]
    floor: float = 0.0


def fuse(
    passages: Iterable[PassageId],
    legs: Mapping[str, Leg],
    weights: Weights,
    *,
    points: dict[str, Scores] | None = None,
) -> Scores:
    """Return the sum of weighted, normalised scores for each of the passages; the summands by leg are added to `points`."""
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
        if points is not None:
            points[name] = {
                passage: weight * (value - mean) / deviation
                for passage, value in zip(passages, values, strict=True)
            }
    return dict(zip(passages, totals, strict=True))


def covering(leg: Leg, *, terms: int, corpus: int) -> Leg:
    """Return a word leg with each BM25 score as the square of the share of the query that it covers; rare words count more.

    The share is relative to a passage that holds each of the query's `terms` words once, if each were as rare as a word can
    be in a corpus of `corpus` documents. Normalising by the spread of the scores would remove what a BM25 score means by
    itself: the passages that share one common word with a question would count like those that hold all its words. The
    square lets a single shared word count little, as meaning decides there, and nearly all words much.
    """
    most = max(terms, 1) * math.log(1 + max(corpus, 1) / 1.5)
    scores = {passage: (score / most) ** 2 for passage, score in leg.scores.items()}
    return Leg(scores, (leg.floor / most) ** 2)


def in_shares(leg: Leg) -> Leg:
    """Return the leg with each score as a share of its best one."""
    best = max(leg.scores.values(), default=1.0)
    return Leg({passage: score / best for passage, score in leg.scores.items()})


def comparable(legs: Mapping[str, Leg], *, terms: int, corpus: int) -> dict[str, Leg]:
    """Return the legs with the scores of words on one scale for all queries (`covering`)."""
    words = {
        name: covering(legs[name], terms=terms, corpus=corpus)
        for name in ("words", "nearby")
        if name in legs
    }
    return {**legs, **words}


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the deviation is 1 for equal values."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return mean, deviation or 1.0


def smooth(dense: Leg) -> Leg:
    """Return the leg with each score averaged over the passage and its neighbours; a missing neighbour has the floor.

    The first and the last passage of a document have one neighbour, an only passage has none.
    """
    scores = {}
    for doc, n in dense.scores:
        after_last = min(n + 2, max(doc.passages, n + 1))
        values = [
            dense.scores.get((doc, neighbour), dense.floor)
            for neighbour in range(max(n - 1, 0), after_last)
        ]
        scores[doc, n] = sum(values) / len(values)
    return Leg(scores, dense.floor)
