"""LlamaIndex with its Qdrant store in local mode: an ingestion pipeline with a document store. No language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import qdrant_client
from llama_index.core import Document as LlamaDocument
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore

from bench.peers.adapters.base import (
    CANDIDATES,
    PASSAGE_MODEL,
    QUERY_MODEL,
    Acknowledge,
    Document,
)

BATCH = 32
COLLECTION = "memory"


class LlamaIndex:
    packages = ("llama-index-core", "llama-index-vector-stores-qdrant", "qdrant-client")

    async def open(self, folder: Path, models: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._docstore_file = folder / "docstore.json"
        self._client = qdrant_client.QdrantClient(path=str(folder / "qdrant"))
        store = QdrantVectorStore(COLLECTION, client=self._client)
        embedding = _Embedding(
            model_name=PASSAGE_MODEL, api_base=models, api_key="none", embed_batch_size=BATCH
        )
        embedding._text_engine, embedding._query_engine = PASSAGE_MODEL, QUERY_MODEL
        Settings.embed_model = embedding
        docstore = (
            SimpleDocumentStore.from_persist_path(str(self._docstore_file))
            if self._docstore_file.exists()
            else SimpleDocumentStore()
        )
        splitter = SentenceSplitter(tokenizer=str.split)  # the default one needs a download
        self._pipeline = IngestionPipeline(
            transformations=[splitter, embedding],
            vector_store=store,
            docstore=docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        self._index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)

    async def load(self, documents: Sequence[Document], acknowledge: Acknowledge) -> None:
        for start in range(0, len(documents), BATCH):
            batch = documents[start : start + BATCH]
            made = [
                LlamaDocument(
                    text=document.text,
                    id_=document.key,
                    metadata={"key": document.key},
                    excluded_embed_metadata_keys=["key"],
                )
                for document in batch
            ]
            self._pipeline.run(documents=made)
            self._pipeline.docstore.persist(str(self._docstore_file))
            for document in batch:
                acknowledge(document.key)

    async def search(self, question: str) -> Sequence[str]:
        found = self._index.as_retriever(similarity_top_k=CANDIDATES).retrieve(question)
        return [node.metadata["key"] for node in found]

    async def records(self) -> Mapping[str, int]:
        if not self._client.collection_exists(COLLECTION):
            return {}
        points, _ = self._client.scroll(COLLECTION, limit=100_000)
        return Counter((point.payload or {})["key"] for point in points)

    async def progress(self) -> None:
        return None

    async def resume(self) -> None:
        return None

    async def close(self) -> None:
        self._client.close()


class _Embedding(OpenAIEmbedding):
    """Lets names through that are not OpenAI's."""

    def __init__(self, model_name: str, **more: object) -> None:
        super().__init__(model="text-embedding-3-small", model_name=model_name, **more)


ADAPTER = LlamaIndex
