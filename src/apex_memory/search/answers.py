"""What a search is asked and what it answers. Plain values; the gateway turns them into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID


class QueryEntities(Protocol):
    """What a question names: `certain` refs stand in it as such, `candidates` are what its words might be."""

    @property
    def certain(self) -> Sequence[str]: ...

    @property
    def candidates(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Recognised:
    """An entity that the question names. `exact` ones are identifiers: documents that hold one come first."""

    ref: str
    exact: bool
    count: int
    """Documents found that hold an exact one (50 at most are looked for); assertions in the graph otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a version comes from: the raw event in the inbox, and what was made of it."""

    inbox_id: UUID
    event_id: str
    version: int
    received_at: datetime
    manifest_id: UUID
    stage_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage. `start` and `end` are character offsets of the snippet in the document's text."""

    rank: int
    doc_id: UUID
    title: str
    source: str
    kind: str
    occurred_at: datetime
    snippet: str
    excerpt: str
    """At most 240 characters of the snippet, around the question's words; white space folded."""
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    """Each leg's own score, on its own scale; a leg that did not bring the passage is left out."""
    why: tuple[str, ...]
    """Refs of the question's entities that led here."""
    provenance: Provenance


@dataclass(slots=True, kw_only=True)
class Answer:
    """Hits, best first. `degraded` names what did not take part in full: then more may be there than is shown."""

    hits: list[Hit] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    """Of `vectors`, `graph`, `embedder`."""
    took_ms: dict[str, float] = field(default_factory=dict)
    entities: list[Recognised] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a document, and the raw event it came from. `state` is its stage's; `kept` if its text can still be read."""

    version: int
    event_id: str
    inbox_id: UUID
    state: str
    committed_at: datetime | None
    received_at: datetime | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentView:
    """A version of a document in full. `passages` are (start, end) character offsets in `text`."""

    doc_id: UUID
    source: str
    key: str
    kind: str
    title: str
    text: str
    occurred_at: datetime
    parent_id: UUID | None
    metadata: Mapping[str, Any]
    entities: Sequence[str]
    passages: Sequence[tuple[int, int]]
    provenance: Provenance
    versions: Sequence[Version]
    """Newest first: those that readers have seen, and those being staged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRow:
    """A document in a list. The list is ordered by `committed_at`, newest first."""

    doc_id: UUID
    source: str
    key: str
    kind: str
    title: str
    version: int
    deleted: bool
    occurred_at: datetime
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list; `next` is the cursor of the following one, None at the end."""

    documents: list[DocumentRow]
    next: str | None


@dataclass(frozen=True, slots=True)
class Said:
    """Something said of an entity, and the document that says it."""

    predicate: str
    value: str
    doc_id: UUID
    start: int | None


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject predicate object`, one of which is the entity viewed, and the document that says it."""

    subject: str
    predicate: str
    object: str
    doc_id: UUID
    start: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityView:
    """What live documents say of an entity."""

    ref: str
    names: Sequence[str]
    """Spellings, the most frequent first."""
    attributes: Sequence[Said]
    relations: Sequence[Relation]
    neighbours: Mapping[str, int]
    """Entities at the other end of its relations, and by how many."""
    roles: Mapping[str, int]
    """How documents name it (`mentions`, `carrier`), and how many of those looked at do."""
    documents: Sequence[DocumentRow]
    """Those that name it, newest first."""
    degraded: Sequence[str]
