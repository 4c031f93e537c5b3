"""Texts as BM25 sparse vectors, the same for both vector stores.

A passage's weights hold term frequency and length normalisation; a question's weights are 1. The other half
of BM25, the inverse document frequency, is the store's work: only it knows the whole corpus.
Terms are 31-bit hashes of stemmed words; `SHP-100045` gives `shp` and `100045`. Scripts without blanks between words
become pairs of characters (`normalization.words_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from qdrant_edge import Bm25, Bm25Config, SparseVector

from apex_memory.errors import Rejected
from apex_memory.model import VectorPoint
from apex_memory.normalization import words_of

NEARBY_PASSAGES = (
    3  # a passage and its two neighbours: the length that `nearby` texts are held against
)
NEARBY = 1 << 31  # marks a term as one of `nearby`, where both fields share one vector
MAX_POINTS = 1 << 11  # points counted together

_K, _B = 1.2, 0.75
_ALL = 1e18  # as k, with b = 0, it leaves the bare count of a term as its weight
_COUNT_BITS = np.uint64(21)  # of a term in one passage: more than a document has characters
_TERM_BITS = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Terms:
    """A sparse vector: distinct term ids, and the weight of each."""

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TermRows:
    """Sparse vectors of many points, concatenated; terms of `nearby` have the bit `NEARBY` set."""

    lengths: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]


class Words:
    """Turns text into terms. Stemming and stop words are English. About 10 µs for 60 words."""

    def __init__(self, average_words: float) -> None:
        self._average = average_words
        self._passage = Bm25(Bm25Config(avg_len=average_words, language="english"))
        self._nearby = Bm25(Bm25Config(avg_len=average_words * NEARBY_PASSAGES, language="english"))
        self._counts = Bm25(Bm25Config(k=_ALL, b=0.0, language="english"))

    def passage(self, text: str) -> Terms:
        return _terms(self._passage.embed_document(words_of(text)))

    def nearby(self, text: str) -> Terms:
        return _terms(self._nearby.embed_document(words_of(text)))

    def question(self, text: str) -> Terms:
        return _terms(self._passage.embed_query(words_of(text)))

    def rows(self, points: Sequence[VectorPoint]) -> TermRows:
        """Return what `passage` and `nearby` return for at most `MAX_POINTS` points, bit for bit, in a third of the time.

        Where neighbours follow each other, their words are counted once and the counts are added.
        Raises `Rejected` for a text that is not Unicode.
        """
        ids: list[int] = []
        counts: list[float] = []
        ends = [0]

        def count(text: str, point: VectorPoint) -> None:
            vector = _embedded(self._counts, text, point)
            ids.extend(vector.indices)
            counts.extend(vector.values)
            ends.append(len(ids))

        for point in points:
            count(point.text, point)
        spans = [_parts(points, n) for n in range(len(points))]
        for n, span in enumerate(spans):
            if span is None:
                count(points[n].nearby, points[n])
                spans[n] = (len(ends) - 2, len(ends) - 1)
        passages = [(n, n + 1) for n in range(len(points))]
        wanted = [(ends[a], ends[b]) for a, b in (*passages, *(s for s in spans if s))]
        return self._weighed(
            np.array(ids, dtype=np.uint64), np.array(counts, dtype=np.uint64), wanted, len(points)
        )

    def _weighed(
        self,
        ids: NDArray[np.uint64],
        counts: NDArray[np.uint64],
        wanted: Sequence[tuple[int, int]],
        points: int,
    ) -> TermRows:
        """Weigh the ranges `wanted` of `ids`: those of the passages, then those of `nearby`."""
        if not len(ids):
            none = np.zeros(0, dtype=np.uint32)
            return TermRows(np.zeros(points, np.uint32), none, none.astype(np.float32))
        # One number holds point, field, term and count: one sort groups the counts to add.
        owner = np.tile(np.arange(points, dtype=np.uint64) << _TERM_BITS, 2)
        owner[points:] |= np.uint64(NEARBY)
        sizes = [end - start for start, end in wanted]
        keys = np.concatenate([ids[start:end] for start, end in wanted]) | np.repeat(owner, sizes)
        keys = (keys << _COUNT_BITS) | np.concatenate([counts[a:b] for a, b in wanted])
        keys.sort()
        terms, times = keys >> _COUNT_BITS, keys & np.uint64((1 << 21) - 1)
        first = np.flatnonzero(np.concatenate(([True], terms[1:] != terms[:-1])))
        terms, times = terms[first], np.add.reduceat(times, first).astype(np.float64)
        of = (terms >> np.uint64(31)).astype(np.int64)  # twice the point, and one for `nearby`
        length = np.bincount(of, weights=times, minlength=2 * points)
        average = np.tile([self._average, self._average * NEARBY_PASSAGES], points)
        norm = _K * (1 - _B + _B * length / average)
        return TermRows(
            np.bincount(of >> 1, minlength=points).astype(np.uint32),
            (terms & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            (times * (_K + 1) / (times + norm[of])).astype(np.float32),
        )


def _parts(points: Sequence[VectorPoint], n: int) -> tuple[int, int] | None:
    """Return the range of points that the n-th point's `nearby` consists of; None when it holds more than them and blanks."""
    point = points[n]
    first, last = n, n + 1
    if first and _follow(points[first - 1], point):
        first -= 1
    if last < len(points) and _follow(point, points[last]):
        last += 1
    made, origin = points[first:last], points[first].start
    if any(p.text.endswith("-") for p in made[:-1]):
        return None  # a word hyphenated at the end of a line may continue in the next passage
    if len(point.nearby) != made[-1].end - origin:
        return None
    whole = all(
        point.nearby.startswith(p.text, p.start - origin) and len(p.text) == p.end - p.start
        for p in made
    )
    apart = all(
        point.nearby[a.end - origin : b.start - origin].isspace() for a, b in pairwise(made)
    )
    return (first, last) if whole and apart else None


def _follow(first: VectorPoint, second: VectorPoint) -> bool:
    return first.stage == second.stage and first.n + 1 == second.n


def _embedded(model: Bm25, text: str, point: VectorPoint) -> SparseVector:
    try:
        return model.embed_document(words_of(text))
    except UnicodeEncodeError as error:
        raise Rejected(
            f"vectors: the text of point {point.id} is not Unicode ({error.reason})",
            remedy="replace lone surrogates in the payload",
        ) from error


def _terms(vector: SparseVector) -> Terms:
    return Terms(
        np.array(vector.indices, dtype=np.uint32),
        np.array(vector.values, dtype=np.float32),
    )
