"""LightRAG on its default stores, which are files: entities, relations and passages, by a language model's calls."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from lightrag import LightRAG, QueryParam
from lightrag.base import DocStatus
from lightrag.llm.openai import openai_complete_if_cache
from lightrag.utils import EmbeddingFunc, Tokenizer
from openai import AsyncOpenAI

from bench.peers.adapters.base import (
    CANDIDATES,
    CHAT_MODEL,
    DIMENSION,
    PASSAGE_MODEL,
    QUERY_MODEL,
    Acknowledge,
    Document,
)

POLL_SECONDS = 0.1


class LightRag:
    packages = ("lightrag-hku",)

    async def open(self, folder: Path, models: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        client = AsyncOpenAI(base_url=models, api_key="none")

        async def embed(texts: list[str], context: str = "document") -> Any:
            model = QUERY_MODEL if context == "query" else PASSAGE_MODEL
            made = await client.embeddings.create(model=model, input=texts)
            return np.array([item.embedding for item in made.data], dtype=np.float32)

        async def complete(prompt: str, **more: Any) -> Any:
            more.pop("hashing_kv", None)
            return await openai_complete_if_cache(
                CHAT_MODEL, prompt, base_url=models, api_key="none", **more
            )

        self._rag = LightRAG(
            working_dir=str(folder),
            embedding_func=EmbeddingFunc(
                embedding_dim=DIMENSION, func=embed, max_token_size=512, supports_asymmetric=True
            ),
            llm_model_func=complete,
            llm_model_name=CHAT_MODEL,
            tokenizer=Tokenizer("pieces", _Pieces()),
        )
        await self._rag.initialize_storages()

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        """All at once, as its server does: the queue is on disk, and its progress say what is finished.

        Keys are quoted, because it takes what follows a path's last `/` for the name, and refuses equal names.
        """
        insert = asyncio.create_task(
            self._rag.ainsert(
                [document.text for document in documents],
                ids=[document.key for document in documents],
                file_paths=[quote(document.key, safe="") for document in documents],
            )
        )
        waiting = {document.key for document in documents}
        while waiting:
            done = insert.done()
            finished = {key for key, is_finished in (await self.progress()).items() if is_finished}
            for key in sorted(waiting & finished):
                waiting.discard(key)
                acknowledge(key)
            if done:
                break
            await asyncio.sleep(POLL_SECONDS)
        await insert

    async def search(self, question: str) -> Sequence[str]:
        found = await self._rag.aquery_data(
            question, QueryParam(mode="mix", chunk_top_k=CANDIDATES, enable_rerank=False)
        )
        return [unquote(chunk["file_path"]) for chunk in found.get("data", {}).get("chunks", ())]

    async def records(self) -> Mapping[str, int]:
        """Entities, relations and passages by document."""
        count: Counter[str] = Counter()
        graph = self._rag.chunk_entity_relation_graph
        for item in (*await graph.get_all_nodes(), *await graph.get_all_edges()):
            count.update(set(str(item.get("file_path", "")).split("<SEP>")))
        storage = await self._rag.chunks_vdb.client_storage
        count.update(item.get("file_path", "") for item in storage["data"])
        return {unquote(path): n for path, n in count.items()}

    async def progress(self) -> Mapping[str, bool]:
        known = await self._rag.doc_status.get_docs_by_statuses(list(DocStatus))
        return {key: status.status == DocStatus.PROCESSED for key, status in known.items()}

    async def resume(self) -> None:
        await self._rag.apipeline_process_enqueue_documents()

    async def close(self) -> None:
        await self._rag.finalize_storages()


class _Pieces:
    """A tokenizer without a download: pieces of up to four letters, about as many as tiktoken makes."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: list[str] = []

    def __deepcopy__(self, known: object) -> _Pieces:
        return self

    def encode(self, content: str) -> list[int]:
        return [self._id(piece) for piece in re.findall(r"\s?\w{1,4}|\s|\S", content)]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._pieces[token] for token in tokens)

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._pieces.append(piece)
            self._ids[piece] = len(self._pieces) - 1
        return self._ids[piece]


ADAPTER = LightRag
