"""The centre of memory: what the vectors of its passages have in common, and what therefore says little about any of them.

Embedders put all texts into a narrow cone (cosines of e5 lie between .7 and .9), and most passages of a memory are records of a
few forms: a question that resembles none of them is nearest to hundreds of them. Half of a query's share of this common
direction is taken out of its vector before passages are compared with it. Nothing else changes, and nothing is embedded anew.
docs/discussions/ranking.md has the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from apex_memory.model import Vectors

SHARE = 0.5  # of a query's part in the common direction that is taken out
SAMPLE_DOCUMENTS = (
    300  # those with the lowest ids, which are random: every process takes the same ones
)
SAMPLE_PASSAGES = 32  # of each of them at most
SAMPLE_BYTES = 16 << 20  # of all their vectors at most: of long vectors fewer passages are read
LEAST_PASSAGES = 100  # the mean of fewer is what these are about, not what all have in common
KEEP_SECONDS = 600

ReadSample = Callable[[int, int, int], Awaitable[Sequence[bytes]]]
"""Returns the vectors of documents, float32 row after row: `(documents, passages of each, dimension)`, each at most."""


class Centre:
    """The mean vector of a sample of passages, read anew after `KEEP_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._direction: Vectors | None = None
        self._number = 0
        self._read_at = -float(KEEP_SECONDS)

    @property
    def number(self) -> int | None:
        """Return the number of the present direction, another one for each; None if the next search reads it anew."""
        return None if self._is_due() else self._number

    async def removed_from(self, vector: Vectors, read_sample: ReadSample) -> Vectors:
        """Return a query's vector, shape (dimension,), without `SHARE` of its part in the common direction."""
        if self._is_due():
            await self._read(read_sample, len(vector))
        if self._direction is None:
            return vector
        centred: Vectors = vector - SHARE * (vector @ self._direction) * self._direction
        return centred.astype(np.float32)

    def _is_due(self) -> bool:
        return self._clock() >= self._read_at + KEEP_SECONDS

    async def _read(self, read_sample: ReadSample, dimension: int) -> None:
        """Read the sample anew. Other searches go on meanwhile with what is known: one reads for all of them."""
        former, self._read_at = self._read_at, self._clock()
        try:
            fitting = max(1, SAMPLE_BYTES // (4 * dimension * SAMPLE_DOCUMENTS))
            rows = await read_sample(SAMPLE_DOCUMENTS, min(SAMPLE_PASSAGES, fitting), dimension)
            # In a thread, as other requests wait for the loop: it is a second of work for millions of numbers.
            direction = await asyncio.to_thread(_direction, rows, dimension)
            if not np.array_equal(direction, self._direction):  # type: ignore[arg-type]
                self._direction = direction
                self._number += 1
        except BaseException:  # also when the search is cancelled: the next one reads it
            self._read_at = former
            raise


def _direction(rows: Sequence[bytes], dimension: int) -> Vectors | None:
    """Return the unit vector of the mean; None if the passages are too few, or have nothing in common."""
    vectors = np.frombuffer(b"".join(rows), dtype="<f4").reshape(-1, dimension)
    if len(vectors) < LEAST_PASSAGES:
        return None
    mean = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return mean / length if length else None
