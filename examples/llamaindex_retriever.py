"""A retriever for LlamaIndex: `pip install llama-index-core`.

retriever = ApexRetriever(Apex(), limit=5)
nodes = retriever.retrieve("Why is SHP-100045 late?")
"""

from __future__ import annotations

from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from apex_memory.client import Apex


class ApexRetriever(BaseRetriever):
    """Returns the best passages of the memory, each with its origin in `metadata`.

    `search` are further arguments of `Apex.search`, such as `sources` or `since`.
    """

    def __init__(self, memory: Apex, *, limit: int = 5, **search: Any) -> None:
        super().__init__()
        self._memory = memory
        self._limit = limit
        self._search = search

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        answer = self._memory.search(query_bundle.query_str, limit=self._limit, **self._search)
        nodes: list[NodeWithScore] = []
        for hit in answer.hits:
            metadata = {
                "document_id": hit.document_id,
                "title": hit.title,
                "source": hit.source,
                "kind": hit.kind,
                "occurred_at": hit.occurred_at.isoformat(),
                "event": hit.provenance.id,
                "degraded": list(answer.degraded),
            }
            node = TextNode(
                id_=f"{hit.document_id}:{hit.start}", text=hit.snippet, metadata=metadata
            )
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes
