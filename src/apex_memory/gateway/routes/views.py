"""Response models of memory: search hits, documents, entities."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from apex_memory.gateway.routes.shared import DOCUMENT, EVENT

_AT = "2026-03-03T15:15:00Z"
_TEXT = "SHP-100045 was delayed at the Laredo border crossing; new ETA is Thursday 14:00."
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
    start: int
    end: int
    score: float
    legs: Mapping[str, float]
    why: list[str]
    provenance: ProvenanceView


class RecognisedEntity(View):
    """An entity that the question names. `exact` marks identifiers, whose documents are ranked first."""

    ref: str
    exact: bool
    count: int


class SearchResponse(View):
    """Hits, best first. `degraded` names stores that could not take part in full, so that hits may be missing.

    `unknown` has the identifiers of the query that no document holds: the hits do not concern them.
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
                    "start": 0,
                    "end": 80,
                    "score": 2.41,
                    "legs": {"exact": 1.0, "words": 11.2, "dense": 0.71},
                    "why": ["shipment:SHP-100045"],
                    "provenance": _PROVENANCE,
                }
            ],
            "degraded": [],
            "took_ms": {"embed": 3.1, "vectors": 2.4, "total": 9.8},
            "entities": [{"ref": "shipment:SHP-100045", "exact": True, "count": 3}],
            "unknown": [],
        }
    )
    hits: list[HitView]
    degraded: list[str]
    took_ms: dict[str, float]
    entities: list[RecognisedEntity]
    unknown: list[str]


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

    `degraded` says what limits left out, by limit: `{"characters": {"found": 3000000, "kept": 2000000}}`. It is empty
    for a document that is whole.
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
    degraded: Mapping[str, dict[str, int]]
    entities: list[str]
    passages: list[tuple[int, int]]
    provenance: ProvenanceView
    versions: list[VersionView]


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
    """Documents, the newest commit first. `next` is the `cursor` of the following page, null on the last page."""

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
