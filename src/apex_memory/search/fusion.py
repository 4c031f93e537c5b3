"""Fusion: one score for a passage out of the legs' scores, which live on scales of their own.

Normalised scores are added, not ranks: measured, equal ranks made words and meaning worse together
than words alone. A passage that a leg did not bring gets the leg's floor, and the leg's values become
z-scores over the candidates of all legs: so a leg that brought one passage of hundreds, such as the only
one with the question's word, says so loudly. What only boosts (graph, time) is a share of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

Place = tuple[UUID, int]
"""A passage: its document, and its number there."""

Scores = dict[Place, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What each leg counts in the sum, the one place. 0 leaves a leg out of the ranking.

    Tuned on one half of the memory bench's questions; docs/discussions/ranking.md has the figures.
    """

    dense: float = 1.0
    """Likeness of meaning (cosine)."""
    words: float = 1.0
    """BM25 over the passage."""
    nearby: float = 0.5
    """BM25 over the passage with its neighbours."""
    dense_nearby: float = 0.75
    """Likeness of meaning, smoothed over the neighbouring passages."""
    graph: float = 0.5
    """What is linked to the entities that the question names."""
    time: float = 3.0
    """How close to the time that the question speaks of, 0 to 1; passages lie some 10 apart in the sum."""
    covered: float = 0.6
    """Share of the question's words that a passage must hold for the word legs to count in full; 0 asks for none."""

    def trusting(self, words: float, nearby: float) -> Weights:
        """With the word legs at the trust that their best passages deserve, each 0 to 1 by `covered`."""
        if not self.covered:
            return self
        return replace(
            self,
            words=self.words * min(1, words / self.covered),
            nearby=self.nearby * min(1, nearby / self.covered),
        )


BOOSTS = frozenset({"graph", "time"})


@dataclass(frozen=True, slots=True)
class Leg:
    """Raw scores of the passages a leg brought, and the most that any other passage could have scored."""

    scores: Mapping[Place, float]
    floor: float = 0.0


def fuse(places: Iterable[Place], legs: Mapping[str, Leg], weights: Weights) -> Scores:
    """The sum of weighted, normalised scores, for each of the passages."""
    places = list(places)
    totals = [0.0] * len(places)  # in lists, for hashing a place is what costs here
    for name, leg in legs.items():
        weight = getattr(weights, name)
        if not weight or not leg.scores:
            continue
        values = [leg.scores.get(place, leg.floor) for place in places]
        centre, spread = (0.0, 1.0) if name in BOOSTS else _scale(values)
        totals = [
            total + weight * (value - centre) / spread
            for total, value in zip(totals, values, strict=True)
        ]
    return dict(zip(places, totals, strict=True))


def coverage(leg: Leg | None, *, terms: int, corpus: int) -> float:
    """How much of a question of so many terms the leg's best passage holds, rare terms counting more.

    Normalising takes away what a BM25 score says by itself: a passage that shares one common word
    with the question would count like one that holds them all. Measured here against a passage that
    holds each term once, were all as rare as a term can be that is there at all.
    """
    if leg is None or not leg.scores or not terms:
        return 0.0
    rarest = math.log(1 + max(corpus, 1) / 1.5)
    return max(leg.scores.values()) / (terms * rarest)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    centre = sum(values) / len(values)
    spread = math.sqrt(sum((value - centre) ** 2 for value in values) / len(values))
    return centre, spread or 1.0


def smooth(dense: Leg, passages: Mapping[UUID, int]) -> Leg:
    """The mean of a passage's likeness and its neighbours'; one that the leg did not bring counts its floor.

    `passages` says how many each document has: the first and the last have one neighbour, or none.
    """
    scores = {}
    for doc, n in dense.scores:
        around = range(max(n - 1, 0), min(n + 2, max(passages[doc], n + 1)))
        values = [dense.scores.get((doc, other), dense.floor) for other in around]
        scores[doc, n] = sum(values) / len(values)
    return Leg(scores, dense.floor)
