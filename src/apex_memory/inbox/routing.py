"""Routing: which path and which build process a document. A document stays where it is while the shares stay as they are.

The bucket of a document, 0 to 99, is a stable hash of its id. A share of N per cent takes the buckets below N, so a
higher share takes all documents of a lower one, and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, LiteralString
from uuid import UUID

Path = Literal["temporal", "direct"]

BUCKETS = 100
BUCKET_SQL: LiteralString = "mod(('x' || right(doc_id::text, 7))::bit(28)::integer, 100)"
"""The bucket of the column `doc_id`, as an SQL expression."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who claims events: a path, and the build of Apex that runs it.

    `everything` is set by the fallback: it also takes the documents of the other path, which is away.
    """

    path: Path
    build: str
    everything: bool = False


def bucket_of(doc_id: UUID) -> int:
    """Return the bucket of a document, 0 to 99: the last 28 bits of its id, modulo 100."""
    return (doc_id.int & 0xFFFFFFF) % BUCKETS
