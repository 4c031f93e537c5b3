"""An embedder without a model, for tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from apex_memory.model import Vectors
from apex_memory.pipeline.embedders.base import unit_rows


class HashingEmbedder:
    """Signed feature hashing of words and pairs of words: no model, no dependency."""

    _WORD = re.compile(r"\w+")

    def __init__(self, dimension: int = 256) -> None:
        self.id = f"hashing-{dimension}"
        self.dimension = dimension

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = self._WORD.findall(text.lower())
            for feature in [*words, *map(" ".join, pairwise(words))]:
                digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest()
                number = int.from_bytes(digest)
                row[(number >> 1) % self.dimension] += 1 if number & 1 else -1
        return unit_rows(rows)

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        return None
