"""Vectors of passages, each text embedded once: within a batch, over documents, and over the versions of a document.

A new version of a conversation or a record repeats most passages of the version before. Their vectors stand in that
version's manifest, so a replay or a second backfill embeds nothing that has not changed. Texts that stand in
many documents (signatures, disclaimers) are remembered in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from uuid import UUID

import numpy as np

from apex_memory.model import Manifest, Vectors
from apex_memory.pipeline.embedders.base import Embedder

LiveManifests = Callable[[Sequence[UUID], str], Awaitable[Sequence[Manifest]]]
"""Returns the live manifests of documents whose vectors are of the embedder with this id."""

REMEMBERED_BYTES = 16_000_000
"""Of vectors in memory: about 10,000 texts of 384 dimensions."""

Key = bytes
"""The digest of a text."""


class PassageVectors:
    """Vectors of passages by one embedder. A vector depends on its passage's text alone, whatever version of the pipeline found the passage."""

    def __init__(self, embedder: Embedder, live_manifests: LiveManifests | None) -> None:
        self._embedder = embedder
        self._live_manifests = live_manifests
        self._remembered: OrderedDict[Key, Vectors] = OrderedDict()
        self._most = max(1, REMEMBERED_BYTES // (4 * embedder.dimension))

    async def recall(self, documents: Sequence[UUID]) -> dict[Key, Vectors]:
        """Return the vectors that the live versions of these documents hold, by the digest of their text."""
        vectors: dict[Key, Vectors] = {}
        if self._live_manifests and documents:
            for manifest in await self._live_manifests(documents, self._embedder.id):
                for chunk, row in zip(manifest.chunks, manifest.vectors, strict=True):
                    vectors[_key(manifest.chunk_text(chunk))] = row
        return vectors

    async def embed(
        self, texts: Sequence[str], known: dict[Key, Vectors], *, urgent: bool
    ) -> Vectors:
        """Return the vectors of texts, shape (len(texts), dimension). Only texts without a vector reach the embedder.

        Raises what the embedder raises.
        """
        keys = [_key(text) for text in texts]
        vectors = {key: known[key] for key in keys if key in known} | self._of_memory(keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if new:
            rows = await self._embedder.passages(list(new.values()), urgent=urgent)
            vectors |= dict(zip(new, rows, strict=True))
            self._remember(vectors, new)
        return np.stack([vectors[key] for key in keys])

    def _of_memory(self, keys: Sequence[Key]) -> dict[Key, Vectors]:
        held = {}
        for key in keys:
            if key in self._remembered:
                self._remembered.move_to_end(key)
                held[key] = self._remembered[key]
        return held

    def _remember(self, vectors: dict[Key, Vectors], new: dict[Key, str]) -> None:
        for key in new:
            self._remembered[key] = vectors[key].copy()  # a row alone would keep its whole batch
        while len(self._remembered) > self._most:
            self._remembered.popitem(last=False)


def _key(text: str) -> Key:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
