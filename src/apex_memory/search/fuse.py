"""Fusion: one score for a passage out of the legs' scores, which live on scales of their own.

Normalised scores are added, not ranks: measured, equal ranks made words and meaning worse together
than words alone. Each leg's scores become z-scores over its own candidates and its floor; a passage
that the leg did not bring gets the floor. What only boosts (graph, time) is a share of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from uuid import UUID

Place = tuple[UUID, int]
"""A passage: its document, and its number there."""

Scores = dict[Place, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What each leg counts in the sum, the one place. 0 leaves a leg out of the ranking."""

    dense: float = 1.0
    """Likeness of meaning (cosine)."""
    words: float = 1.0
    """BM25 over the passage."""
    nearby: float = 0.5
    """BM25 over the passage with its neighbours."""
    dense_nearby: float = 0.5
    """Likeness of meaning, smoothed over the neighbouring passages."""
    graph: float = 0.5
    """What is linked to the entities that the question names."""
    time: float = 0.5
    """How close to the time that the question speaks of."""


BOOSTS = frozenset({"graph", "time"})


@dataclass(frozen=True, slots=True)
class Leg:
    """Raw scores of the passages a leg brought, and the most that any other passage could have scored."""

    scores: Mapping[Place, float]
    floor: float = 0.0


def fuse(places: Iterable[Place], legs: Mapping[str, Leg], weights: Weights) -> Scores:
    """The sum of weighted, normalised scores, for each of the passages."""
    total: Scores = dict.fromkeys(places, 0.0)
    for name, weight in asdict(weights).items():
        leg = legs.get(name)
        if leg is None or not leg.scores or not weight:
            continue
        centre, spread = (0.0, 1.0) if name in BOOSTS else _scale(leg)
        for place in total:
            total[place] += weight * (leg.scores.get(place, leg.floor) - centre) / spread
    return total


def _scale(leg: Leg) -> tuple[float, float]:
    """Mean and standard deviation of the leg's scores together with its floor."""
    values = [*leg.scores.values(), leg.floor]
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
