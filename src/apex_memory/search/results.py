"""The values that the read path takes and returns. The gateway turns them into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID


class QueryEntities(Protocol):
    """The entities of a query: `certain` refs are spelled out in it, `candidates` are refs that its words may mean."""

    @property
    def certain(self) -> Sequence[str]: ...

    @property
    def candidates(self) -> Sequence[str]: ...

    @property
    def identifiers(self) -> Sequence[str]:
        """Refs that are identifiers only if a document holds them."""


@dataclass(frozen=True, slots=True)
class RecognisedEntity:
    """An entity that the query names. Documents that hold an `exact` one, an identifier, come first."""

    ref: str
    exact: bool
    count: int
    """For an exact one the documents that hold it, at most 50; otherwise its assertions in the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The origin of a version: its raw event in the inbox, its manifest and its stage."""

    inbox_id: UUID
    event_id: str
    version: int
    received_at: datetime
    manifest_id: UUID
    stage_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenTurn:
    """A turn of a conversation: its number from 1 on, its speaker, and when it was spoken, if that is known.

    `start` and `end` are character offsets in the document's text.
    """

    number: int
    speaker: str
    at: datetime | None
    start: int
    end: int


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
    """At most 240 characters of the snippet, around the query's words; white space is folded."""
    highlights: Sequence[tuple[int, int]]
    """Where the query's words stand in the excerpt: character offsets (start, end)."""
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    """The score of each leg, on the leg's own scale; a leg that did not return the passage is absent."""
    why: tuple[str, ...]
    """Refs of the query's entities that led to this passage."""
    points: Mapping[str, float] | None = None
    """What each leg adds to the ranking's sum, its weight included; None unless the caller asks for it."""
    turn: SpokenTurn | None
    """The turn of a conversation that the passage is of; None for a text that nobody speaks."""
    link: str
    """The page of the document at its vendor, or its path in the API."""
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """The document of a piece of a context. `start` and `end` are character offsets of the piece in its text."""

    number: int
    """The number in brackets above the piece, from 1 on."""
    rank: int
    """The rank of the passage among all that were found."""
    doc_id: UUID
    title: str
    source: str
    kind: str
    occurred_at: datetime
    turn: SpokenTurn | None
    link: str
    start: int
    end: int
    cut: bool
    """True for a part of a sentence that is longer than the whole context may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Passages in one text, each under a line with its number, title and origin. `tokens` is an estimate."""

    text: str
    tokens: int
    max_tokens: int
    citations: Sequence[Citation]
    left_out: int
    """Passages that were found and are not in it whole."""


@dataclass(slots=True, kw_only=True)
class SearchResult:
    """Hits, best first. If `degraded` is not empty, there may be better hits than those shown."""

    hits: list[Hit] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    """The parts that did not take part in full: of `vectors`, `graph`, `embedder`."""
    took_ms: dict[str, float] = field(default_factory=dict)
    entities: list[RecognisedEntity] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Identifiers of the query that no document holds: the hits are about something else."""
    evidence: Literal["strong", "weak"] | None = None
    """How well the first hits answer to the query; None without one."""
    context: Context | None = None
    """The best passages in a limited number of tokens, if the caller wants that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentVersion:
    """A version of a document and its raw event. `state` is the state of its stage; `kept` means its text can still be read."""

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
    link: str
    """The page of the document at its vendor, or its path in the API."""
    turns: Sequence[SpokenTurn]
    degraded: Mapping[str, Mapping[str, int]]
    """What limits left out of the document, by limit; empty for a document that is whole."""
    entities: Sequence[str]
    passages: Sequence[tuple[int, int]]
    provenance: Provenance
    versions: Sequence[DocumentVersion]
    """The newest 100, newest first: versions that readers have seen, and versions in staging."""
    version_count: int
    """How many versions there are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSummary:
    """A document in a list. Lists are ordered by `committed_at`, newest first."""

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
class DocumentPage:
    """A page of a list of documents. `next` is the cursor of the following page, None on the last.

    A page of a timeline can have fewer documents than the limit, or none, although others follow.
    """

    documents: list[DocumentSummary]
    next: str | None


@dataclass(frozen=True, slots=True)
class AttributeValue:
    """An attribute of an entity, and the document that states it. `start` is the evidence's character offset."""

    predicate: str
    value: str
    doc_id: UUID
    start: int | None


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject predicate object`, and the document that states it. The entity viewed is the subject or the object."""

    subject: str
    predicate: str
    object: str
    doc_id: UUID
    start: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityView:
    """An entity as live documents describe it."""

    ref: str
    names: Sequence[str]
    """Spellings, the most frequent first."""
    attributes: Sequence[AttributeValue]
    relations: Sequence[Relation]
    neighbours: Mapping[str, int]
    """Entities at the other end of its relations, with the number of relations to each."""
    roles: Mapping[str, int]
    """Predicates by which documents name it (`mentions`, `carrier`), with the number of assertions of each."""
    documents: Sequence[DocumentSummary]
    """Documents that name it, newest first; of one in thousands of documents, but in few of the latest, some of these."""
    degraded: Sequence[str]
