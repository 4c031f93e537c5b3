"""A search request and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from apex_memory.errors import Rejected
from apex_memory.model import Filters
from apex_memory.search.context import TOKENS_MAX, TOKENS_MIN
from apex_memory.search.evidence import JUDGED_HITS
from apex_memory.search.fusion import Weights
from apex_memory.search.scope import Scope

QUERY_CHARS = 2_000
LIMIT_MAX = 100
PASSAGES_PER_DOCUMENT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search. Build it with `from_query`, which cleans the text and checks the limits."""

    text: str
    limit: int
    """Hits at most, 1 to 100."""
    passages_per_document: int
    """Hits of one document at most."""
    filters: Filters | None
    scope: Scope
    weights: Weights
    max_tokens: int | None
    """Tokens of the context at most; None without a context."""
    explain: bool
    """Hits say what each leg adds to their score."""

    @property
    def ranked_passages(self) -> int:
        """Return how many passages are ranked: as many as the evidence is judged by, for a context as many as possible."""
        return max(self.limit, JUDGED_HITS) if self.max_tokens is None else LIMIT_MAX

    @classmethod
    def from_query(
        cls,
        query: str,
        *,
        limit: int,
        passages_per_document: int | None,
        filters: Filters | None,
        scope: Scope | None,
        weights: Weights | None,
        max_tokens: int | None,
        explain: bool,
    ) -> SearchRequest:
        """Replace what PostgreSQL and JSON cannot hold. Raises `Rejected` for a value outside its limit.

        Hits of one document are not limited where the search is restricted to certain documents.
        """
        scope = scope or Scope()
        scope.check()
        text = query.encode("utf-8", "replace").decode().replace("\x00", " ").strip()
        if len(text) > QUERY_CHARS:
            raise Rejected(
                f"the query has {len(text)} characters",
                remedy=f"shorten it to {QUERY_CHARS} characters",
            )
        if not 1 <= limit <= LIMIT_MAX:
            raise Rejected(f"limit is {limit}", remedy=f"use a limit from 1 to {LIMIT_MAX}")
        if passages_per_document is None:
            passages_per_document = LIMIT_MAX if scope.is_of_documents else PASSAGES_PER_DOCUMENT
        if passages_per_document < 1:
            raise Rejected(
                f"passages_per_document is {passages_per_document}",
                remedy="use 1 passage per document or more",
            )
        if max_tokens is not None and not TOKENS_MIN <= max_tokens <= TOKENS_MAX:
            raise Rejected(
                f"max_tokens is {max_tokens}",
                remedy=f"use {TOKENS_MIN} to {TOKENS_MAX:,} tokens",
            )
        return cls(
            text=text,
            limit=limit,
            passages_per_document=passages_per_document,
            filters=filters,
            scope=scope,
            weights=weights or Weights(),
            max_tokens=max_tokens,
            explain=explain,
        )
