"""What the gateway returns, as immutable values.

A newer gateway may add fields: they are kept as attributes, so that an older client works with it and prints all of it.
Times have their zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def as_json(self) -> dict[str, Any]:
        """Return the value as JSON holds it: times in ISO 8601."""
        return self.model_dump(mode="json")


class Provenance(Result):
    """The origin of a version: `id` is its event here, `event_id` the source's own id for it."""

    id: str
    event_id: str
    version: int
    received_at: datetime


class Turn(Result):
    """A turn of a conversation: its number from 1 on, its speaker, and when it was spoken, if that is known.

    `start` and `end` are character offsets in the document's text.
    """

    number: int
    speaker: str
    at: datetime | None
    start: int
    end: int


class Hit(Result):
    """A passage. `start` and `end` are character offsets of `snippet` in the document's text.

    `excerpt` is the part of the passage around the words of the question, which stand in it at `highlights`. `why` has the entities of the question that
    led to it. `turn` is the turn of a conversation, or the message, that the passage is of; `link` the document's page at
    its vendor, or its path in the API.
    """

    rank: int
    document_id: str
    title: str
    source: str
    kind: str
    occurred_at: datetime
    snippet: str
    excerpt: str
    highlights: tuple[tuple[int, int], ...] = ()
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    points: Mapping[str, float] | None = None
    why: tuple[str, ...]
    turn: Turn | None = None
    link: str = ""
    provenance: Provenance


class RecognisedEntity(Result):
    """An entity that the question names. `exact` marks identifiers, whose documents come first."""

    ref: str
    exact: bool
    count: int


class Freshness(Result):
    """How current a source was at the time `as_of`, some seconds ago at most.

    `last_event_at` is when its newest event arrived, `pulled_at` when it was last fetched without an error (None for a
    source that sends its events). `waiting` events have arrived and are not searchable yet. Of a source that is `behind`,
    for the `reason`, there may be newer events than the searchable ones.
    """

    source: str
    state: str
    last_event_at: datetime | None
    pulled_at: datetime | None
    waiting: int
    behind: bool
    reason: str | None
    as_of: datetime


class Citation(Result):
    """The document of a piece of a context, whose text is that of the document from `start` to `end`.

    `number` stands in brackets above the piece. `cut` is true for a part of a sentence that is longer than the whole context
    may be.
    """

    number: int
    rank: int
    document_id: str
    title: str
    source: str
    kind: str
    occurred_at: datetime
    turn: Turn | None
    link: str
    start: int
    end: int
    cut: bool


class Context(Result):
    """The best passages in one text, to paste into a prompt. `tokens` is an estimate, at most `max_tokens`.

    `left_out` counts passages that were found and are not in it whole.
    """

    text: str
    tokens: int
    max_tokens: int
    citations: tuple[Citation, ...]
    left_out: int


class SearchAnswer(Result):
    """Hits, best first. `degraded` names stores that could not take part in full, so that hits may be missing, and `reranker`
    where the hits are in the order that they have without it.

    `unknown` has the identifiers of the question that no document holds: the hits are about something else. `evidence` is
    `weak` where the first hits hardly answer to the question: memory may have no answer. None without a question. `freshness`
    shows how current the sources of the hits are, and every source that is behind. `context` is there for a search with
    `max_tokens`.
    """

    hits: tuple[Hit, ...]
    degraded: tuple[str, ...]
    took_ms: Mapping[str, float]
    entities: tuple[RecognisedEntity, ...]
    unknown: tuple[str, ...]
    evidence: Literal["strong", "weak"] | None = None
    freshness: tuple[Freshness, ...] = ()
    context: Context | None = None


class Version(Result):
    """A version of a document, made by the event `id`. `kept` is true while its text can be read."""

    version: int
    id: str
    event_id: str
    state: str
    committed_at: datetime | None
    received_at: datetime | None
    kept: bool


class Document(Result):
    """A version of a document in full. `passages` are (start, end) character offsets in `text`.

    `turns` are those of a conversation, or the one that a message is; `link` is its page at its vendor, or its path in the
    API. `degraded` says what limits left out of the document, by limit; it is empty for a document that is whole.
    `versions` has the newest 100 versions, of `version_count` (0 from a gateway that does not count them).
    """

    document_id: str
    source: str
    key: str
    kind: str
    title: str
    text: str
    occurred_at: datetime
    parent_id: str | None
    metadata: Mapping[str, Any]
    link: str = ""
    turns: tuple[Turn, ...] = ()
    degraded: Mapping[str, Mapping[str, int]]
    entities: tuple[str, ...]
    passages: tuple[tuple[int, int], ...]
    provenance: Provenance
    versions: tuple[Version, ...]
    version_count: int = 0


class DocumentSummary(Result):
    """A document in a list."""

    document_id: str
    source: str
    key: str
    kind: str
    title: str
    version: int
    deleted: bool
    occurred_at: datetime
    committed_at: datetime


class DocumentPage(Result):
    """A page of documents. `next` is the cursor of the following page, None on the last.

    A page of a timeline can have fewer documents than the limit, or none, although others follow.
    """

    documents: tuple[DocumentSummary, ...]
    next: str | None


class Attribute(Result):
    """An attribute of an entity, and the document that states it."""

    predicate: str
    value: str
    document_id: str
    start: int | None


class Relation(Result):
    """`subject predicate object`, one of which is the entity, and the document that states it."""

    subject: str
    predicate: str
    object: str
    document_id: str
    start: int | None


class Entity(Result):
    """An entity as current documents describe it. `documents` are the newest that name it, newest first.

    `neighbours` counts the relations to other entities, `roles` the predicates by which documents name this one.
    """

    ref: str
    names: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    relations: tuple[Relation, ...]
    neighbours: Mapping[str, int]
    roles: Mapping[str, int]
    documents: tuple[DocumentSummary, ...]
    degraded: tuple[str, ...]


class StoreState(Result):
    """What a store holds of an event: `held`, `writing`, `superseded`, `removed`, `none`, or `on_read` for the cache."""

    state: str
    at: datetime | None


class Event(Result):
    """An event, from `received` to a final state: `done`, `superseded` or `dead`.

    `kind` and `title` are known once it is prepared. `deletion` is true for an event that removes its document.
    """

    id: str
    source: str
    event_id: str
    document_id: str
    document_key: str
    version: int
    kind: str | None
    title: str | None
    deletion: bool
    state: str
    occurred_at: datetime
    received_at: datetime
    ended_at: datetime | None
    attempts: int
    last_error: str | None
    park_store: str | None
    dead_letter: int | None
    remedy: str | None
    degraded: Mapping[str, Mapping[str, int]]
    stores: Mapping[str, StoreState]


class EventPage(Result):
    """Events, newest first. `next` is the cursor of the following page, None on the last."""

    events: tuple[Event, ...]
    next: str | None


class StoredEvent(Result):
    """An event that is stored durably. `state` is known only where the caller waited.

    `duplicate` is true for a repetition, which has the ids of the first request and takes no effect.
    """

    id: str
    source: str
    event_id: str
    document_id: str
    duplicate: bool
    state: str | None = None
    last_error: str | None = None
    dead_letter: int | None = None


class Receipt(Result):
    """What was stored. `searchable` is true when every event was processed before the response."""

    events: tuple[StoredEvent, ...]
    searchable: bool = False


class OwnKey(Result):
    """The API key of this client, without its secret. The scope `admin` includes the others."""

    id: str
    name: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        """Return whether the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


class StoreHealth(Result):
    """A store: `ready`, `recovering` (checked after a restart) or `unavailable`, and why."""

    name: str
    state: str
    reason: str | None


class Status(Result):
    """Health of the installation. Counts are None while PostgreSQL is unavailable."""

    version: str
    stores: tuple[StoreHealth, ...]
    open: int | None
    parked: int | None
    dead_letters: int | None


class SourceState(Result):
    """A source of events and how current it is.

    `lag` is the age in seconds of its oldest unfinished event, `stalled` how long (s) ready events have waited while
    nobody works on the source, `error` its last failure to fetch.
    """

    name: str
    title: str
    pattern: str
    state: str
    missing: str | None
    pulled_at: datetime | None
    error: str | None
    error_at: datetime | None
    last_event_at: datetime | None
    documents: int
    backlog: int
    lag: float | None
    stalled: float | None
    parked: int
    dead_letters: int
