"""The protocols of a store, a graph and a vector store. One contract suite (tests/contract) runs over every adapter.

All calls are safe to repeat: ids derive from the stage, so the same upsert or delete twice is once.
Adapters raise `Unavailable` when the server cannot be reached or responds too late, `RetryLater`
when it is overloaded, and `Rejected` when it refuses the data; nothing else. They hold a
connection pool, never a connection per call, and never retry: retries live in `saga`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from apex_memory.model import Filters, GraphAssertion, Tally, VectorPoint, Vectors


class Store(Protocol):
    """The operations that every store has."""

    name: str
    """The role: `documents`, `graph`, `vectors` or `cache`; also the value of metrics labels and of `park_store`."""

    async def ping(self) -> None:
        """Return when the store responds. Raises `Unavailable` when it does not."""

    async def version(self) -> str:
        """Return the engine and its version for display: `FalkorDB 4.14.10`."""

    async def incarnation(self) -> str:
        """Return an id of the server process behind the store: another process has another id.

        It is read once per connection and dropped when the connection breaks: reading it costs nothing
        on the hot path, and the first call after a restart sees the new id.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StageTally:
    """Count and checksum of one stage, as counted in the store itself."""

    stage: UUID
    tally: Tally


class GraphHit(NamedTuple):
    """A document with an assertion about a queried entity, or about a neighbour of one.

    `hops` is 0 when the document names the entity itself, 1 when a relation of another document links
    it. `start` is the offset of the evidence in the document's text, if known.
    """

    doc: UUID
    stage: UUID
    entity: str
    hops: int
    start: int | None


@dataclass(frozen=True, slots=True)
class GraphFact:
    """One assertion as read from the graph, with its document and stage."""

    doc: UUID
    stage: UUID
    predicate: str
    subject: str
    object: str | None
    value: str | None
    start: int | None


class GraphStore(Store, Protocol):
    """Entities hold only their key; every statement about them is an assertion with stage and document.

    Tally of a stage: `count` is the number of edges from its assertions to entities (one for the
    subject, one for the object), `checksum` the sum of the assertion's hash over those edges. Both a
    lost node and a lost edge change it.
    """

    async def prepare(self) -> None:
        """Create indexes and constraints. Idempotent."""

    async def upsert(self, assertions: Sequence[GraphAssertion]) -> None:
        """Write assertions and the entities they name. Durable on return.

        Raises `Rejected` when the store refuses one of them; then none or any part of them may be written.
        """

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        """Return count and checksum per stage, without the stages that hold nothing."""

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Remove all assertions of the stages. Entities stay until `forget_entities`."""

    def walk(self) -> AsyncIterator[StageTally]:
        """Yield every stage that the store holds, once each, reading page by page."""

    async def known(self, refs: Sequence[str]) -> Mapping[str, int]:
        """Return the entity refs that exist, each with the number of assertions that touch it.

        An adapter may stop counting at some thousands: the number ranks entities by how rare they are.
        """

    async def linked(
        self, refs: Sequence[str], *, limit: int, exclude: Sequence[UUID] = ()
    ) -> list[GraphHit]:
        """Return documents that name the entities (hops 0), then documents that name a neighbour by relation (hops 1).

        Assertions of the stages in `exclude` are not followed. At most `limit` hits per entity and hop.
        """

    async def facts(self, ref: str, *, limit: int, exclude: Sequence[UUID] = ()) -> list[GraphFact]:
        """Return assertions that have the entity as subject or object, newest first by the time of writing."""

    async def forget_entities(self, refs: Sequence[str]) -> None:
        """Remove those of the entity nodes that no assertion touches any more. One that is being named meanwhile stays."""


class VectorPassage(NamedTuple):
    """A chunk that the vector store returned. A tuple rather than a dataclass, because a search makes hundreds."""

    stage: UUID
    doc: UUID
    n: int
    start: int
    end: int
    continues: bool
    """It continues the turn of the passage before."""
    asks: bool
    """It ends as a question."""


LegHits = Mapping[str, Sequence[tuple[VectorPassage, float]]]
"""Passages with their scores by leg, best first. A higher score is better; each leg has a scale of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorQuery:
    """One query of the vector store. A leg whose input is None is not searched."""

    limit: int
    """Hits per leg."""
    dense: Vectors | None = None
    """One vector, shape (dimension,)."""
    words: str | None = None
    nearby: bool = True
    """Search the words of the passages' neighbours too."""
    filters: Filters | None = None
    exclude: Sequence[UUID] = ()
    """Stages whose points are not searched."""
    among: Sequence[tuple[UUID, int]] = ()
    """Search these passages alone, (stage, number), and compare each exactly; empty for all."""


@dataclass(frozen=True, slots=True)
class Replication:
    """How a Qdrant cluster spreads a collection that it creates. 0 leaves a number to the server."""

    shards: int = 0
    replicas: int = 0
    confirmations: int = 0
    """Replicas that must have a write before it counts."""


SERVERS_CHOICE = Replication()


class VectorStore(Store, Protocol):
    """Chunks with a dense vector (cosine) and two sparse BM25 word fields: the passage, and it with its neighbours.

    Legs: `dense`, `words`, `nearby`. Tally: number of points of a stage, sum of their hashes.
    """

    dimension: int

    async def prepare(self) -> None:
        """Create the collection and its indexes. Idempotent. Raises `Misconfigured` when it exists with another dimension."""

    async def upsert(self, points: Sequence[VectorPoint], vectors: Vectors) -> None:
        """Write points; `vectors`, shape (points, dimension), holds `vectors[i]` for `points[i]`. Durable after `flush`.

        Raises `Rejected` for NaN, infinity and wrong shapes.
        """

    async def flush(self) -> None:
        """Make all earlier writes durable."""

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        """Return count and checksum per stage, without the stages that hold nothing."""

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Remove all points of the stages. Durable on return."""

    def walk(self) -> AsyncIterator[StageTally]:
        """Yield every stage that the store holds, once each, reading page by page."""

    async def search(self, queries: Sequence[VectorQuery]) -> list[LegHits]:
        """Return for each query its best chunks per leg, in one call."""

    async def points(self) -> int:
        """Return the number of points, deleted ones not counted."""
