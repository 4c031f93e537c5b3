"""Chroma, persistent client: passages and vectors in SQLite and an HNSW index. No language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import chromadb
from openai import AsyncOpenAI

from bench.peers.adapters.base import (
    CANDIDATES,
    PASSAGE_MODEL,
    QUERY_MODEL,
    Acknowledge,
    Document,
)

BATCH = 32


class Chroma:
    packages = ("chromadb",)

    async def open(self, folder: Path, models: str) -> None:
        self._models = AsyncOpenAI(base_url=models, api_key="none")
        client = chromadb.PersistentClient(path=str(folder))
        self._collection = client.get_or_create_collection(
            "memory", embedding_function=None, metadata={"hnsw:space": "cosine"}
        )

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        for start in range(0, len(documents), BATCH):
            batch = documents[start : start + BATCH]
            self._collection.upsert(
                ids=[document.key for document in batch],
                documents=[document.text for document in batch],
                embeddings=await self._vectors(
                    PASSAGE_MODEL, [document.text for document in batch]
                ),
            )
            for document in batch:
                acknowledge(document.key)

    async def search(self, question: str) -> Sequence[str]:
        vectors = await self._vectors(QUERY_MODEL, [question])
        found = self._collection.query(query_embeddings=vectors, n_results=CANDIDATES)
        keys: list[str] = found["ids"][0]
        return keys

    async def records(self) -> Mapping[str, int]:
        return Counter(self._collection.get()["ids"])

    async def progress(self) -> None:
        return None

    async def resume(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def _vectors(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        made = await self._models.embeddings.create(model=model, input=list(texts))
        return [item.embedding for item in made.data]


ADAPTER = Chroma
