"""Response models of memory: search hits, documents, entities."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from apex_memory.gateway.routes.shared import DOCUMENT, EVENT

_AT = "2026-03-03T15:15:00Z"
_TEXT = "SHP-100045 was delayed at the Laredo border crossing; new ETA is Thursday 14:00."
_TURN = {
    "number": 1,
    "speaker": "Dana Ortiz <dana@northwind.example>",
    "at": _AT,
    "start": 0,
    "end": 80,
}
_LINK = "https://app.frontapp.com/open/msg_1q15qmtq"
_FRESHNESS = {
    "source": "frontapp",
    "state": "idle",
    "last_event_at": _AT,
    "pulled_at": "2026-03-03T15:20:00Z",
    "waiting": 0,
    "behind": False,
    "reason": None,
    "as_of": "2026-03-03T15:20:04Z",
}
_PROVENANCE = {
    "id": EVENT,
    "event_id": "evt_55c8c149",
    "version": 1772550900000000,
    "received_at": _AT,
    "manifest_id": "0f4d7d1e-62a1-4f1c-a5d3-17b6a9f0f0aa",
    "stage_id": "b1c7f0de-0c55-4a45-8f7a-0a8d1a4f3a10",
}
_ROW: dict[str, Any] = {
    "document_id": DOCUMENT,
    "source": "frontapp",
    "key": "msg_1q15qmtq",
    "kind": "email",
    "title": "Re: ETA for SHP-100045",
    "version": 1772550900000000,
    "deleted": False,
    "occurred_at": _AT,
    "committed_at": "2026-03-03T15:15:00.412Z",
}


class View(BaseModel):
    """Built from a value of `search`, whose `doc_id` is called `document_id` over HTTP."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True)


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class ProvenanceView(View):
    """The origin of a version: `id` is the event at `/v1/events/{id}`."""

    id: UUID = Field(validation_alias="inbox_id")
    event_id: str
    version: int
    received_at: datetime
    manifest_id: UUID
    stage_id: UUID


class TurnView(View):
    """A turn of a conversation: its number from 1 on, its speaker, and when it was spoken, if that is known.

    `start` and `end` are character offsets in the document's text.
    """

    number: int
    speaker: str
    at: datetime | None
    start: int
    end: int


class HitView(View):
    """A passage. `excerpt` is its part around the words of the question, at most 240 characters.

    `start` and `end` are character offsets in the document's text. `legs` has the score of each search method.
    """

    rank: int
    document_id: UUID = Field(validation_alias="doc_id")
    title: str
    source: str
    kind: str
    occurred_at: datetime
    snippet: str
    excerpt: str
    highlights: list[tuple[int, int]] = Field(
        description="Where words of the question stand in `excerpt`: character offsets (start, end)."
    )
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    points: Mapping[str, float] | None = Field(
        description="What each search method adds to the sum that orders the hits, its weight included; for a search with `explain`."
    )
    why: list[str]
    turn: TurnView | None = Field(
        description="The turn of a conversation, or the message, that the passage is of."
    )
    link: str = Field(
        description="The document's page at its vendor; where none is known, its path in this API."
    )
    provenance: ProvenanceView


class RecognisedEntity(View):
    """An entity that the question names. `exact` marks identifiers, whose documents are ranked first."""

    ref: str
    exact: bool
    count: int


class SourceFreshnessView(View):
    """How current a source was at the time `as_of`, some seconds ago at most.

    `last_event_at` is when its newest event arrived, `pulled_at` when it was last fetched without an error (null for a
    source that sends its events). `waiting` events have arrived and are not searchable yet. Of a source that is `behind`
    there may be newer events than the searchable ones.
    """

    source: str
    state: str
    last_event_at: datetime | None
    pulled_at: datetime | None
    waiting: int
    behind: bool
    reason: str | None
    as_of: datetime


class FreshnessList(View):
    """Every source that is set up, by name."""

    model_config = _example({"sources": [_FRESHNESS]})
    sources: list[SourceFreshnessView]


class CitationView(View):
    """The document of a piece of a context, whose text is that of the document from `start` to `end` (characters).

    `number` stands in brackets above the piece, `rank` is that of the passage. `cut` is true for a part of a sentence that
    is longer than the whole context may be.
    """

    number: int
    rank: int
    document_id: UUID = Field(validation_alias="doc_id")
    title: str
    source: str
    kind: str
    occurred_at: datetime
    turn: TurnView | None
    link: str
    start: int
    end: int
    cut: bool


class ContextView(View):
    """The best passages in one text, in whole sentences, each under a line with its number, title, kind, source and time.

    `tokens` is an estimate, at most `max_tokens`: four letters or blanks count as a token, two digits or signs, or one
    character that is not ASCII. `left_out` counts passages that were found and are not in it whole.
    """

    text: str
    tokens: int
    max_tokens: int
    citations: list[CitationView]
    left_out: int


class SearchResponse(View):
    """Hits, best first. `degraded` names stores that could not take part in full, so that hits may be missing.

    `unknown` has the identifiers of the query that no document holds: the hits do not concern them. `evidence` is `weak` where
    the first hits hardly answer to the query: memory may have no answer; null without a query. `freshness` shows how
    current the sources of the hits are, and every source that is behind. `context` is there for a search with `max_tokens`.
    """

    model_config = _example(
        {
            "hits": [
                {
                    "rank": 1,
                    "document_id": DOCUMENT,
                    "title": "Re: ETA for SHP-100045",
                    "source": "frontapp",
                    "kind": "email",
                    "occurred_at": _AT,
                    "snippet": _TEXT,
                    "excerpt": _TEXT,
                    "highlights": [[0, 10]],
                    "start": 0,
                    "end": 80,
                    "score": 2.41,
                    "legs": {"exact": 1.0, "words": 11.2, "dense": 0.71},
                    "points": None,
                    "why": ["shipment:SHP-100045"],
                    "turn": _TURN,
                    "link": _LINK,
                    "provenance": _PROVENANCE,
                }
            ],
            "degraded": [],
            "took_ms": {"embed": 3.1, "vectors": 2.4, "total": 9.8},
            "entities": [{"ref": "shipment:SHP-100045", "exact": True, "count": 3}],
            "unknown": [],
            "evidence": "strong",
            "freshness": [_FRESHNESS],
            "context": None,
        }
    )
    hits: list[HitView]
    degraded: list[str]
    took_ms: dict[str, float]
    entities: list[RecognisedEntity]
    unknown: list[str]
    evidence: Literal["strong", "weak"] | None
    freshness: list[SourceFreshnessView] = Field(default_factory=list)
    context: ContextView | None


class VersionView(View):
    """One version of a document, made by the event `id`. `kept` is true while its text can be read."""

    version: int
    id: UUID = Field(validation_alias="inbox_id")
    event_id: str
    state: str
    committed_at: datetime | None
    received_at: datetime | None
    kept: bool


class DocumentView(View):
    """A version of a document in full. `passages` are (start, end) character offsets in `text`.

    `turns` are those of a conversation, or the one that a message is. `link` is the document's page at its vendor, or its
    path in this API. `degraded` says what limits left out, by limit: `{"characters": {"found": 3000000, "kept": 2000000}}`. It is empty
    for a document that is whole. `versions` has the newest 100 versions, of `version_count`.
    """

    model_config = _example(
        {
            "document_id": DOCUMENT,
            "source": "frontapp",
            "key": "msg_1q15qmtq",
            "kind": "email",
            "title": "Re: ETA for SHP-100045",
            "text": _TEXT,
            "occurred_at": _AT,
            "parent_id": None,
            "metadata": {"conversation": "cnv_yo1kg5q"},
            "link": _LINK,
            "turns": [_TURN],
            "degraded": {},
            "entities": ["shipment:SHP-100045"],
            "passages": [[0, 80]],
            "provenance": _PROVENANCE,
            "versions": [
                {
                    "version": 1772550900000000,
                    "id": EVENT,
                    "event_id": "evt_55c8c149",
                    "state": "committed",
                    "committed_at": "2026-03-03T15:15:00.412Z",
                    "received_at": _AT,
                    "kept": True,
                }
            ],
            "version_count": 1,
        }
    )
    document_id: UUID = Field(validation_alias="doc_id")
    source: str
    key: str
    kind: str
    title: str
    text: str
    occurred_at: datetime
    parent_id: UUID | None
    metadata: Mapping[str, Any]
    link: str
    turns: list[TurnView]
    degraded: Mapping[str, dict[str, int]]
    entities: list[str]
    passages: list[tuple[int, int]]
    provenance: ProvenanceView
    versions: list[VersionView]
    version_count: int


class DocumentSummary(View):
    """A document in a list."""

    model_config = _example(_ROW)
    document_id: UUID = Field(validation_alias="doc_id")
    source: str
    key: str
    kind: str
    title: str
    version: int
    deleted: bool
    occurred_at: datetime
    committed_at: datetime


class DocumentPage(View):
    """Documents, the newest commit first. `next` is the `cursor` of the following page, null on the last page.

    A page of a timeline can have fewer documents than the limit, or none, although others follow.
    """

    model_config = _example({"documents": [_ROW], "next": None})
    documents: list[DocumentSummary]
    next: str | None


class NewestEvent(BaseModel):
    """The newest event of a document. `event` is its id, `event_id` the source's own."""

    key: str
    document: UUID
    event: UUID
    event_id: str
    version: int
    state: str
    deletion: bool


class NewestEvents(BaseModel):
    """The newest events of documents. Documents without an event are left out."""

    model_config = _example(
        {
            "documents": [
                {
                    "key": "handbook/rates.pdf",
                    "document": DOCUMENT,
                    "event": EVENT,
                    "event_id": "handbook/rates.pdf@1772550900000000#9f2c51d07a3e",
                    "version": 1772550900000000,
                    "state": "done",
                    "deletion": False,
                }
            ]
        }
    )
    documents: list[NewestEvent]


class AttributeView(View):
    """An attribute of the entity, and the document that states it."""

    predicate: str
    value: str
    document_id: UUID = Field(validation_alias="doc_id")
    start: int | None


class RelationView(View):
    """`subject predicate object`, one of which is the entity."""

    subject: str
    predicate: str
    object: str
    document_id: UUID = Field(validation_alias="doc_id")
    start: int | None


class EntityView(View):
    """The entity as current documents describe it."""

    model_config = _example(
        {
            "ref": "shipment:SHP-100045",
            "names": ["SHP-100045"],
            "attributes": [
                {"predicate": "status", "value": "en route", "document_id": DOCUMENT, "start": None}
            ],
            "relations": [
                {
                    "subject": "shipment:SHP-100045",
                    "predicate": "carrier",
                    "object": "company:northwind-trucking",
                    "document_id": DOCUMENT,
                    "start": 12,
                }
            ],
            "neighbours": {"company:northwind-trucking": 1},
            "roles": {"mentions": 3},
            "documents": [_ROW],
            "degraded": [],
        }
    )
    ref: str
    names: list[str]
    attributes: list[AttributeView]
    relations: list[RelationView]
    neighbours: Mapping[str, int]
    roles: Mapping[str, int]
    documents: list[DocumentSummary]
    degraded: list[str]
