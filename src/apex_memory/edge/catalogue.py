"""The contents of one shard without a call to the engine: its stages, the place of each point, the passages per term.

The stages show which shards a tally, a delete or an exclusion touches, so these cost the same however
many shards there are. The places make up the result of a search: the engine would parse a whole payload
per hit. The term counts give one inverse document frequency for the whole corpus, which lies in many
shards. Deletes change nothing here: a listed stage may be deleted already, and counts of deleted passages
disappear when a shard is built (as in Lucene).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from apex_memory.edge.protocol import PLACE

LOW = (1 << 64) - 1
CATALOGUE, PLACES = "catalogue.npz", "places.npy"


def to_place(stage: UUID, place: str) -> bytes:
    """Return the `PLACE` of a point from its payload. Raises `ValueError`, and `struct.error` for numbers out of range."""
    doc, n, start, end, _ = place.split(" ")
    return PLACE.pack(stage.bytes, to_uuid(doc).bytes, int(n), int(start), int(end))


@lru_cache(maxsize=1_000)
def to_uuid(text: str) -> UUID:
    """Parse a UUID. Cached, as the passages of a stage come one after the other."""
    return UUID(text)


class Catalogue:
    """The growing catalogue of the shard that takes writes."""

    def __init__(self) -> None:
        self.passages = 0
        self._stages: set[int] = set()
        self._places: dict[bytes, bytes] = {}
        self._counts: Counter[int] = Counter()

    def add(self, point: UUID, stage: UUID, place: bytes, terms: Iterable[int]) -> None:
        """Add one passage: its place as `PLACE` packs it, and its distinct terms."""
        self.passages += 1
        self._stages.add(stage.int)
        self._places[point.bytes] = place
        self._counts.update(terms)

    def held(self, stages: Iterable[UUID]) -> list[UUID]:
        """Return those of the stages that the shard may hold."""
        return [stage for stage in stages if stage.int in self._stages]

    def counts(self, terms: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the number of passages that contain each term, shape (terms,)."""
        return np.array([self._counts[term] for term in terms.tolist()], dtype=np.int64)

    def places(self, points: Sequence[bytes]) -> list[bytes]:
        """Return the place of each point, as `PLACE` packs it. Raises `KeyError` for a point of another shard."""
        return [self._places[point] for point in points]

    def with_places(self, points: Sequence[bytes]) -> list[bytes]:
        """Return those of the points whose places are here."""
        return [point for point in points if point in self._places]

    def after(self, cursor: int, limit: int) -> list[UUID]:
        """Return the first `limit` stages, by their high 64 bits, whose high 64 bits are above `cursor`."""
        return [
            UUID(int=stage)
            for stage in heapq.nsmallest(limit, (s for s in self._stages if s >> 64 > cursor))
        ]

    def packed(self) -> PackedCatalogue:
        stages = sorted(self._stages)
        terms = np.fromiter(self._counts.keys(), dtype=np.uint32, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.int64, count=len(self._counts))
        order = np.argsort(terms)
        points = np.frombuffer(b"".join(self._places), dtype="S16")
        places = np.frombuffer(b"".join(self._places.values()), dtype=np.uint8)
        by_point = np.argsort(points)
        return PackedCatalogue(
            passages=self.passages,
            points=points[by_point],
            places=places.reshape(-1, PLACE.size)[by_point],
            high=np.array([stage >> 64 for stage in stages], dtype=np.uint64),
            low=np.array([stage & LOW for stage in stages], dtype=np.uint64),
            terms=terms[order],
            term_counts=counts[order],
        )


class PackedCatalogue:
    """A complete catalogue in sorted arrays: 16 bytes per point and stage, 12 per term; 44 per point stay in a mapped file."""

    def __init__(
        self,
        *,
        passages: int,
        points: NDArray[np.bytes_],
        places: NDArray[np.uint8],
        high: NDArray[np.uint64],
        low: NDArray[np.uint64],
        terms: NDArray[np.uint32],
        term_counts: NDArray[np.int64],
    ) -> None:
        self.passages = passages
        self._points, self._places = points, places
        self._high, self._low, self._terms, self._counts = high, low, terms, term_counts

    def held(self, stages: Iterable[UUID]) -> list[UUID]:
        """Return those of the stages that the shard may hold (64 of their 128 bits are compared)."""
        wanted = list(stages)
        if not wanted or not len(self._high):
            return []
        keys = np.array([stage.int >> 64 for stage in wanted], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self._high, keys), len(self._high) - 1)
        return [wanted[i] for i in np.flatnonzero(self._high[places] == keys).tolist()]

    def counts(self, terms: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the number of passages that contain each term, shape (terms,)."""
        if not len(self._terms):
            return np.zeros(len(terms), dtype=np.int64)
        places = np.minimum(np.searchsorted(self._terms, terms), len(self._terms) - 1)
        return np.where(self._terms[places] == terms, self._counts[places], 0)

    def places(self, points: Sequence[bytes]) -> list[bytes]:
        """Return the place of each point, as `PLACE` packs it. Raises `KeyError` for a point of another shard."""
        wanted = np.array(points, dtype="S16")
        rows = np.searchsorted(self._points, wanted)
        if (rows == len(self._points)).any() or (self._points[rows] != wanted).any():
            raise KeyError("a point that the catalogue of its shard does not hold")
        return [place.tobytes() for place in self._places[rows]]

    def with_places(self, points: Sequence[bytes]) -> list[bytes]:
        """Return those of the points whose places are here."""
        if not len(self._points):
            return []
        wanted = np.array(points, dtype="S16")
        rows = np.minimum(np.searchsorted(self._points, wanted), len(self._points) - 1)
        return [points[n] for n in np.flatnonzero(self._points[rows] == wanted).tolist()]

    def after(self, cursor: int, limit: int) -> list[UUID]:
        """Return the first `limit` stages, by their high 64 bits, whose high 64 bits are above `cursor`."""
        first = 0 if cursor < 0 else int(np.searchsorted(self._high, np.uint64(cursor), "right"))
        rows = slice(first, first + limit)
        pairs = zip(self._high[rows].tolist(), self._low[rows].tolist(), strict=True)
        return [UUID(int=high << 64 | low) for high, low in pairs]

    def save(self, folder: Path) -> None:
        np.save(folder / PLACES, self._places)
        with (folder / CATALOGUE).open("wb") as stream:
            np.savez(
                stream,
                passages=np.array(self.passages),
                points=self._points,
                high=self._high,
                low=self._low,
                terms=self._terms,
                term_counts=self._counts,
            )

    @classmethod
    def load(cls, folder: Path) -> PackedCatalogue | None:
        """Load a saved catalogue. Return None when the folder has none, or one of an older format without places."""
        if not ((folder / CATALOGUE).exists() and (folder / PLACES).exists()):
            return None
        names = ("points", "high", "low", "terms", "term_counts")
        with np.load(folder / CATALOGUE) as stored:
            return cls(
                passages=int(stored["passages"]),
                places=np.load(folder / PLACES, mmap_mode="r"),
                **{name: stored[name] for name in names},
            )


def inverse_frequencies(
    terms: NDArray[np.uint32], catalogues: Sequence[Catalogue | PackedCatalogue]
) -> list[float]:
    """Return BM25's inverse document frequency of each term over all shards, by the engine's own formula."""
    passages = sum(catalogue.passages for catalogue in catalogues)
    counts = sum((c.counts(terms) for c in catalogues), np.zeros(len(terms), dtype=np.int64))
    return [
        math.log((max(passages - count, 0) + 0.5) / (count + 0.5) + 1) for count in counts.tolist()
    ]
