"""wordllama: means of word vectors. Many times as fast as a transformer, and less accurate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import wordllama

from apex_memory.errors import Misconfigured
from apex_memory.model import Vectors
from apex_memory.pipeline.embedders.base import unit_rows

_SLICE = 256  # texts per batch


class WordLlamaEmbedder:
    """256 dimensions, from the weights inside the package."""

    def __init__(self) -> None:
        self.id = "wordllama-256"
        self.dimension = 256
        try:
            self._model = wordllama.WordLlama.load(
                dim=self.dimension,
                cache_dir=Path(wordllama.__file__).parent,
                disable_download=True,
            )
        except FileNotFoundError:
            raise Misconfigured(
                "embedder: the wordllama package has no weights of 256 dimensions",
                remedy="install wordllama 0.4 again, or set APEX_EMBEDDER to `e5-small`",
            ) from None

    async def passages(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        return await asyncio.to_thread(self._embed, list(texts))

    async def query(self, text: str) -> Vectors:
        row: Vectors = (await self.passages([text]))[0]
        return row

    async def close(self) -> None:
        return None

    def _embed(self, texts: list[str]) -> Vectors:
        # A text without any token would divide by zero inside the library.
        rows: Vectors = self._model.embed([text or " " for text in texts], batch_size=_SLICE)
        return unit_rows(rows)
