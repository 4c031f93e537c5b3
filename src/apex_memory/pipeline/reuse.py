"""Vectors of passages: of which text, and each text embedded once, within a batch, over documents, and over their versions.

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

from apex_memory.model import CONVERSATION, Manifest, Vectors
from apex_memory.pipeline.embedders.base import Embedder

LiveManifests = Callable[[Sequence[UUID], str], Awaitable[Sequence[Manifest]]]
"""Returns the live manifests of documents whose vectors are those of this id (`PassageVectors.id`)."""

REMEMBERED_BYTES = 16_000_000
"""Of vectors in memory: about 10,000 texts of 384 dimensions."""

SHORT = 400  # characters; a passage below that says little by itself
MAX_TITLE = 200
RECIPE = 2
"""Raise it when `embedded_text` returns another text for a passage: vectors that are kept are no longer its own."""

Key = bytes
"""The digest of a text."""


def embedded_text(kind: str, title: str, passage: str) -> str:
    """Return the text whose vector a passage has: before a short one stand the kind and the title of its document.

    Turns of a conversation stand alone. Their neighbours say what they are about, and its title is mostly the first of them.
    """
    title = title[:MAX_TITLE]
    if kind == CONVERSATION or len(passage) >= SHORT or title in passage:
        return passage
    return f"{kind}: {title}\n{passage}"


class PassageVectors:
    """Vectors of passages by one embedder. `id` names it, and how the text of a vector is made.

    A vector depends on its text alone, whatever version of the pipeline found the passage.
    """

    def __init__(self, embedder: Embedder, live_manifests: LiveManifests | None) -> None:
        self.id = f"{embedder.id}.{RECIPE}"
        self._embedder = embedder
        self._live_manifests = live_manifests
        self._remembered: OrderedDict[Key, Vectors] = OrderedDict()
        self._most = max(1, REMEMBERED_BYTES // (4 * embedder.dimension))

    async def recall(self, documents: Sequence[UUID]) -> dict[Key, Vectors]:
        """Return the vectors that the live versions of these documents hold, by the digest of their text."""
        vectors: dict[Key, Vectors] = {}
        if self._live_manifests and documents:
            for manifest in await self._live_manifests(documents, self.id):
                for chunk, row in zip(manifest.chunks, manifest.vectors, strict=True):
                    text = embedded_text(manifest.kind, manifest.title, manifest.chunk_text(chunk))
                    vectors[_key(text)] = row
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
