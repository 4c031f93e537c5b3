"""One query of a vector store, with each hit as one object."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from apex_memory.model import Filters, Vectors, chunk_point
from apex_memory.stores.base import VectorQuery, VectorStore


class FoundPassage(NamedTuple):
    """A passage that one leg returned."""

    id: uuid.UUID
    stage: uuid.UUID
    doc: uuid.UUID
    n: int
    start: int
    end: int
    continues: bool
    asks: bool
    score: float


async def searched(
    store: VectorStore,
    *,
    dense: Vectors | None,
    words: str | None,
    limit: int,
    filters: Filters | None = None,
    exclude: Sequence[uuid.UUID] = (),
    among: Sequence[tuple[uuid.UUID, int]] = (),
) -> dict[str, list[FoundPassage]]:
    """Return the hits of each leg, best first."""
    query = VectorQuery(
        dense=dense, words=words, limit=limit, filters=filters, exclude=exclude, among=among
    )
    [answer] = await store.search([query])
    return {
        leg: [
            FoundPassage(chunk_point(passage.stage, passage.n), *passage, score)
            for passage, score in hits
        ]
        for leg, hits in answer.items()
    }
