"""mem0 with its Qdrant store in local mode: a language model draws facts from each text, one call a document."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_index.core
from fastembed import SparseTextEmbedding
from mem0 import Memory

from bench.peers.adapters.base import (
    CANDIDATES,
    CHAT_MODEL,
    DIMENSION,
    PASSAGE_MODEL,
    QUERY_MODEL,
    Acknowledge,
    Document,
)

USER = "bench"


class Mem0:
    packages = ("mem0ai", "qdrant-client")

    async def open(self, folder: Path, models: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        given = {"openai_base_url": models, "api_key": "none"}
        self._memory = Memory.from_config(
            {
                "llm": {"provider": "openai", "config": {"model": CHAT_MODEL, **given}},
                "embedder": {"provider": "openai", "config": {"model": PASSAGE_MODEL, **given}},
                "vector_store": {
                    "provider": "qdrant",
                    "config": {
                        "path": str(folder / "qdrant"),
                        "on_disk": True,  # otherwise it empties the folder when it opens it
                        "collection_name": "memory",
                        "embedding_model_dims": DIMENSION,
                    },
                },
                "history_db_path": str(folder / "history.db"),
            }
        )
        embedder = self._memory.embedding_model
        embed = embedder.embed

        def embed_as_asked(text: str, memory_action: str | None = None) -> Any:
            embedder.config.model = QUERY_MODEL if memory_action == "search" else PASSAGE_MODEL
            return embed(text, memory_action)

        embedder.embed = embed_as_asked
        self._memory.vector_store._bm25_encoder = _word_encoder(folder)

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        """One after the other: local Qdrant takes one writer, and mem0 has no call for many."""
        for document in documents:
            await asyncio.to_thread(
                self._memory.add, document.text, user_id=USER, metadata={"key": document.key}
            )
            acknowledge(document.key)

    async def search(self, question: str) -> Sequence[str]:
        found = await asyncio.to_thread(
            self._memory.search, question, filters={"user_id": USER}, top_k=CANDIDATES
        )
        return [memory["metadata"]["key"] for memory in found["results"]]

    async def records(self) -> Mapping[str, int]:
        found = self._memory.get_all(filters={"user_id": USER}, top_k=100_000)
        return Counter(memory["metadata"]["key"] for memory in found["results"])

    async def progress(self) -> None:
        return None

    async def resume(self) -> None:
        return None

    async def close(self) -> None:
        self._memory.close()


def _word_encoder(folder: Path) -> SparseTextEmbedding:
    """Return mem0's encoder of words with a list of stop words that LlamaIndex carries: its own is downloaded."""
    words = Path(llama_index.core.__file__).parent / "_static/nltk_cache/corpora/stopwords/english"
    model = folder / "bm25"
    model.mkdir(exist_ok=True)
    (model / "english.txt").write_text(words.read_text())
    return SparseTextEmbedding("Qdrant/bm25", specific_model_path=str(model))


ADAPTER = Mem0
