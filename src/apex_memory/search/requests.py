"""A search request and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from apex_memory.errors import Rejected
from apex_memory.model import Filters
from apex_memory.search.fusion import Weights

QUERY_CHARS = 2_000
LIMIT_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search. Build it with `from_query`, which cleans the text and checks the limits."""

    text: str
    limit: int
    """Hits at most, 1 to 100."""
    passages_per_document: int
    """Hits of one document at most."""
    filters: Filters | None
    weights: Weights

    @classmethod
    def from_query(
        cls,
        query: str,
        *,
        limit: int,
        passages_per_document: int,
        filters: Filters | None,
        weights: Weights | None,
    ) -> SearchRequest:
        """Replace what PostgreSQL and JSON cannot hold. Raises `Rejected` for a value outside its limit."""
        text = query.encode("utf-8", "replace").decode().replace("\x00", " ").strip()
        if len(text) > QUERY_CHARS:
            raise Rejected(
                f"the query has {len(text)} characters",
                remedy=f"shorten it to {QUERY_CHARS} characters",
            )
        if not 1 <= limit <= LIMIT_MAX:
            raise Rejected(f"limit is {limit}", remedy=f"use a limit from 1 to {LIMIT_MAX}")
        if passages_per_document < 1:
            raise Rejected(
                f"passages_per_document is {passages_per_document}",
                remedy="use 1 passage per document or more",
            )
        return cls(
            text=text,
            limit=limit,
            passages_per_document=passages_per_document,
            filters=filters,
            weights=weights or Weights(),
        )
