"""What Apex asks of a graph and of a vector store. One contract suite holds every adapter to it.

All calls are safe to repeat: ids derive from the stage, so the same upsert or delete twice is once.
Adapters raise `Unavailable` when the server cannot be reached or answers too late, `RetryLater`
when it says to come back, and `Rejected` when it refuses the data; nothing else. They hold a
connection pool, never a connection per call, and never retry: retries live in `saga`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from apex_memory.model import Filters, GraphAssertion, Tally, VectorPoint, Vectors


class Store(Protocol):
    """What every store can do."""

    name: str
    """The role: `documents`, `graph`, `vectors` or `cache`; also the value of metrics labels and of `park_store`."""

    async def ping(self) -> None:
        """Return when the store answers; raise `Unavailable` when it does not."""

    async def version(self) -> str:
        """The engine and its version, for people: `FalkorDB 4.14.10`."""

    async def incarnation(self) -> str:
        """An id that changes whenever the server process behind the store is another one.

        It is read once a connection and dropped when the connection breaks, so asking costs nothing
        on the hot path, and a restart between two calls is always seen by the second.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StageTally:
    """What a store holds of one stage, found by walking the store itself."""

    stage: UUID
    tally: Tally


class GraphHit(NamedTuple):
    """A document that says something about one of the entities asked for, or about a neighbour of one.

    `hops` is 0 when the document names the entity itself, 1 when it is linked by another document's
    relation. `start` is the offset of the evidence in the document's text, if known.
    """

    doc: UUID
    stage: UUID
    entity: str
    hops: int
    start: int | None


@dataclass(frozen=True, slots=True)
class GraphFact:
    """One assertion as read from the graph, with the document and stage that make it."""

    doc: UUID
    stage: UUID
    predicate: str
    subject: str
    object: str | None
    value: str | None
    start: int | None


class GraphStore(Store, Protocol):
    """Entities hold only their key; everything said about them is an assertion with stage and document.

    Tally of a stage: `count` is the number of edges from its assertions to entities (one for the
    subject, one for the object), `checksum` the sum of the assertion's hash over those edges; so a
    lost node and a lost edge both show.
    """

    async def prepare(self) -> None:
        """Create indexes and constraints. Idempotent."""

    async def upsert(self, assertions: Sequence[GraphAssertion]) -> None:
        """Write assertions and the entities they name. Durable on return. `Rejected` if one is refused (none or any part may be written)."""

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]:
        """Count and checksum per stage; a stage with nothing is left out."""

    async def delete_stages(self, stages: Sequence[UUID]) -> None:
        """Remove all assertions of the stages. Entities stay: they are only keys."""

    def walk(self) -> AsyncIterator[StageTally]:
        """Every stage the store holds, in pages; each once."""

    async def known(self, refs: Sequence[str]) -> Mapping[str, int]:
        """Which of these entity refs exist, with the number of assertions that touch each."""

    async def linked(
        self, refs: Sequence[str], *, limit: int, exclude: Sequence[UUID] = ()
    ) -> list[GraphHit]:
        """Documents that name the entities (hops 0), then documents that name a neighbour by relation (hops 1).

        Assertions of the stages in `exclude` are not followed. At most `limit` hits an entity and hop.
        """

    async def facts(self, ref: str, *, limit: int, exclude: Sequence[UUID] = ()) -> list[GraphFact]:
        """Assertions that have the entity as subject or object, newest first as far as the store can tell."""

    async def forget_entities(self, refs: Sequence[str]) -> None:
        """Remove entity nodes that no assertion touches any more."""


class VectorHit(NamedTuple):
    """One chunk found by one leg. Higher score is better; the scale is the leg's own.

    A tuple, for a search makes hundreds.
    """

    id: UUID
    stage: UUID
    doc: UUID
    n: int
    start: int
    end: int
    score: float


class VectorStore(Store, Protocol):
    """Chunks with a dense vector (cosine) and two sparse BM25 word fields: the passage, and it with its neighbours.

    Legs in answers: `dense`, `words`, `nearby`. Tally: number of points of a stage, sum of their hashes.
    """

    dimension: int

    async def prepare(self) -> None:
        """Create the collection and payload indexes, or check that what is there fits (dimension). Idempotent."""

    async def upsert(self, points: Sequence[VectorPoint], vectors: Vectors) -> None:
        """Write points; `vectors[i]` belongs to `points[i]`. Not durable before `flush`. Refuses NaN and wrong shapes with `Rejected`."""

    async def flush(self) -> None:
        """Make everything written so far durable."""

    async def tally(self, stages: Sequence[UUID]) -> Mapping[UUID, Tally]: ...

    async def delete_stages(self, stages: Sequence[UUID]) -> None: ...

    def walk(self) -> AsyncIterator[StageTally]: ...

    async def search(
        self,
        *,
        dense: Vectors | None,
        words: str | None,
        limit: int,
        filters: Filters | None = None,
        exclude: Sequence[UUID] = (),
    ) -> Mapping[str, list[VectorHit]]:
        """Best chunks per leg, best first, at most `limit` each. `dense` is one vector, shape (dimension,). Legs not asked for are left out."""

    async def points(self) -> int:
        """How many points are held, deleted ones not counted."""
