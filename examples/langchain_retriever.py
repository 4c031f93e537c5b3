"""A retriever for LangChain: `pip install langchain-core`.

retriever = ApexRetriever(memory=Apex(), limit=5)
documents = retriever.invoke("Why is SHP-100045 late?")
"""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from apex_memory.client import Apex


class ApexRetriever(BaseRetriever):
    """Returns the best passages of the memory, each with its origin in `metadata`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    memory: Apex
    limit: int = 5
    search: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `Apex.search`, such as `sources` or `since`."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        answer = self.memory.search(query, limit=self.limit, **self.search)
        return [
            Document(
                id=f"{hit.document_id}:{hit.start}",
                page_content=hit.snippet,
                metadata={
                    "document_id": hit.document_id,
                    "title": hit.title,
                    "source": hit.source,
                    "kind": hit.kind,
                    "occurred_at": hit.occurred_at.isoformat(),
                    "event": hit.provenance.id,
                    "score": hit.score,
                    "degraded": list(answer.degraded),
                },
            )
            for hit in answer.hits
        ]
