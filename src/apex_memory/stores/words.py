"""Texts as BM25 sparse vectors, the same for both vector stores.

A passage's weights hold term frequency and length normalisation; a question's are 1. The other half
of BM25, the inverse document frequency, is the store's work, for only it knows the whole corpus.
Terms are 31-bit hashes of stemmed words; `SHP-100045` gives `shp` and `100045`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qdrant_edge import Bm25, Bm25Config, SparseVector

NEARBY_PASSAGES = (
    3  # a passage and its two neighbours: the length that `nearby` texts are held against
)


@dataclass(frozen=True, slots=True)
class Terms:
    """A sparse vector: distinct term ids, and the weight of each."""

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]


class Words:
    """English words to terms. About 10 µs for 60 words."""

    def __init__(self, average_words: float) -> None:
        self._passage = Bm25(Bm25Config(avg_len=average_words, language="english"))
        self._nearby = Bm25(Bm25Config(avg_len=average_words * NEARBY_PASSAGES, language="english"))

    def passage(self, text: str) -> Terms:
        return _terms(self._passage.embed_document(text))

    def nearby(self, text: str) -> Terms:
        return _terms(self._nearby.embed_document(text))

    def question(self, text: str) -> Terms:
        return _terms(self._passage.embed_query(text))


def _terms(vector: SparseVector) -> Terms:
    return Terms(
        np.array(vector.indices, dtype=np.uint32),
        np.array(vector.values, dtype=np.float32),
    )
