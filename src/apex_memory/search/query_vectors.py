"""The vector of a query: from the cache, or from the embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from apex_memory.model import Vectors
from apex_memory.search.time_limits import Degraded, TimeLimiter
from apex_memory.stores.cache import Cache

KEEP_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A vector of shape (dimension,), None if the embedder does not take part. `cached` means it came from the cache."""

    vector: Vectors | None
    cached: bool


class QueryVectors:
    """Embeds queries and keeps their vectors in the cache for an hour."""

    def __init__(
        self,
        cache: Cache,
        embed_query: Callable[[str], Awaitable[Vectors]],
        embedder_id: str,
        time_limiter: TimeLimiter,
    ) -> None:
        self._cache = cache
        self._embed_query = embed_query
        self._embedder_id = embedder_id
        self._time_limiter = time_limiter

    async def get(self, text: str, degraded: Degraded) -> QueryVector:
        """Return the vector of a text. `degraded` receives `embedder` if there is none."""
        key = self._key(text)
        cached = (await self._cache.get_many([key])).get(key)
        if cached:
            return QueryVector(np.frombuffer(cached, dtype="<f4"), cached=True)
        vector = await self._time_limiter.run("embedder", degraded, lambda: self._embed_query(text))
        return QueryVector(vector, cached=False)

    async def store(self, text: str, query_vector: QueryVector) -> None:
        """Put a new vector into the cache."""
        if query_vector.vector is None or query_vector.cached:
            return
        data = np.ascontiguousarray(query_vector.vector, dtype="<f4").tobytes()
        await self._cache.put_many({self._key(text): data}, KEEP_SECONDS)

    def _key(self, text: str) -> str:
        return f"query:{self._embedder_id}:{hashlib.sha256(text.encode()).hexdigest()}"
