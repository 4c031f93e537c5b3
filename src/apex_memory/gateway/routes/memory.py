"""Memory: search, documents, entities."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from apex_memory.gateway.dependencies import Admin, GatewayDep, Reader
from apex_memory.gateway.ingest import answer, land, wait_asked
from apex_memory.gateway.read_models.events import Events
from apex_memory.gateway.routes.events import Limit
from apex_memory.gateway.routes.ingest import LANDED_ANSWERS, WAIT_PARAMETERS
from apex_memory.gateway.routes.shared import DOCUMENT, IsoDateTime, problems
from apex_memory.gateway.routes.views import AnswerView, DocumentFull, DocumentPage, EntityFull
from apex_memory.model import TOMBSTONE, Entity, Event, Filters, Priority, micros, now
from apex_memory.search.requests import LIMIT_MAX, QUERY_CHARS

Name = Annotated[str, Field(max_length=400)]
DocumentId = Annotated[UUID, Path(description="The document's id.", examples=[DOCUMENT])]
Names = Annotated[list[Name], Field(max_length=100)]
OnlySources = Annotated[
    Names | None, Query(description="Only these sources; may be repeated.", examples=[["turvo"]])
]
OnlyKinds = Annotated[
    Names | None, Query(description="Only these kinds; may be repeated.", examples=[["email"]])
]


class Limits(BaseModel):
    """What to limit a search to; empty means everything. Times are inclusive since, exclusive until."""

    model_config = ConfigDict(extra="forbid")
    sources: Names = []
    kinds: Names = []
    entities: Names = []
    since: IsoDateTime | None = None
    until: IsoDateTime | None = None

    def filters(self) -> Filters:
        return Filters(
            sources=tuple(self.sources),
            kinds=tuple(self.kinds),
            entities=tuple(self.entities),
            since=self.since,
            until=self.until,
        )


class Question(BaseModel):
    """A question, words or an identifier. Without a query: the newest documents that pass the filters."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "query": "why is SHP-100045 late?",
                    "limit": 5,
                    "filters": {
                        "sources": ["frontapp", "turvo"],
                        "since": "2026-03-01T00:00:00Z",
                    },
                }
            ]
        },
    )
    query: str = Field("", max_length=QUERY_CHARS)
    limit: int = Field(10, ge=1, le=LIMIT_MAX)
    passages_per_document: int = Field(3, ge=1, le=LIMIT_MAX)
    filters: Limits = Limits()


def routes() -> APIRouter:
    router = APIRouter(tags=["memory"])
    add = router.add_api_route
    refused = problems(401, 403, 422, 503)
    missing = problems(401, 403, 404, 422, 503)
    add(
        "/v1/search",
        search,
        methods=["POST"],
        summary="Search memory",
        response_model=AnswerView,
        responses=refused | problems(400, 413),
    )
    add(
        "/v1/search",
        search_by_query,
        summary="Search memory, in the address",
        response_model=AnswerView,
        responses=refused,
    )
    add(
        "/v1/documents",
        list_documents,
        summary="List documents",
        response_model=DocumentPage,
        responses=refused,
    )
    add(
        "/v1/documents/{id:uuid}",
        show_document,
        summary="Read a document",
        response_model=DocumentFull,
        responses=missing,
    )
    add(
        "/v1/documents/{id:uuid}/versions/{version}",
        show_version,
        summary="Read an earlier version of a document",
        response_model=DocumentFull,
        responses=missing,
    )
    add(
        "/v1/documents/{id:uuid}",
        delete_document,
        methods=["DELETE"],
        summary="Delete a document",
        status_code=202,
        response_model=None,
        responses=LANDED_ANSWERS | missing,
        openapi_extra={"parameters": WAIT_PARAMETERS},
    )
    add(
        "/v1/entities/{type}/{key:path}",
        show_entity,
        summary="What is known of an entity",
        response_model=EntityFull,
        responses=missing,
    )
    return router


async def search(gateway: GatewayDep, key: Reader, question: Question) -> Any:
    """Passages by meaning, words, identifiers and links, best first, with each leg's score and the provenance."""
    return await gateway.app.search.search(
        question.query,
        limit=question.limit,
        passages_per_document=question.passages_per_document,
        filters=question.filters.filters(),
    )


async def search_by_query(
    gateway: GatewayDep,
    key: Reader,
    q: Annotated[
        str,
        Query(
            max_length=QUERY_CHARS,
            description="What to search for.",
            examples=["why is SHP-100045 late?"],
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Most hits.", examples=[5])] = 10,
    passages_per_document: Annotated[
        int, Query(ge=1, le=LIMIT_MAX, description="Most hits of one document.", examples=[1])
    ] = 3,
    source: OnlySources = None,
    kind: OnlyKinds = None,
    entity: Annotated[
        Names | None,
        Query(
            description="Only documents that name one of these; may be repeated.",
            examples=[["shipment:SHP-100045"]],
        ),
    ] = None,
    since: Annotated[
        IsoDateTime | None,
        Query(description="Occurred at or after.", examples=["2026-03-01T00:00:00Z"]),
    ] = None,
    until: Annotated[
        IsoDateTime | None,
        Query(description="Occurred before.", examples=["2026-04-01T00:00:00Z"]),
    ] = None,
) -> Any:
    """The same as the POST, for links and quick tries."""
    limits = Limits(
        sources=source or [], kinds=kind or [], entities=entity or [], since=since, until=until
    )
    question = Question(
        query=q, limit=limit, passages_per_document=passages_per_document, filters=limits
    )
    return await search(gateway, key, question)


async def list_documents(
    gateway: GatewayDep,
    key: Reader,
    source: OnlySources = None,
    kind: OnlyKinds = None,
    deleted: Annotated[bool, Query(description="Also those deleted.", examples=[False])] = False,
    cursor: Annotated[
        str | None, Query(max_length=400, description="`next` of the page before.")
    ] = None,
    limit: Limit = 50,
) -> Any:
    """The newest commit first."""
    return await gateway.app.search.documents(
        sources=source or (),
        kinds=kind or (),
        deleted=None if deleted else False,
        limit=limit,
        after=cursor,
    )


async def show_document(gateway: GatewayDep, key: Reader, id: DocumentId) -> Any:
    """The version readers see, in full, with the list of its versions."""
    return await gateway.app.search.document(id)


async def show_version(
    gateway: GatewayDep,
    key: Reader,
    id: DocumentId,
    version: Annotated[
        int,
        Path(ge=-(2**63), lt=2**63, description="From `versions`.", examples=[1772550900000000]),
    ],
) -> Any:
    """An earlier version, as long as what was made of it is kept."""
    return await gateway.app.search.document_version(id, version)


async def delete_document(
    gateway: GatewayDep, key: Admin, request: Request, id: DocumentId
) -> Response:
    """Land a deletion: a version of its own, above every known one, which takes the document and those below it out of all stores.

    The raw payloads stay, so a deletion can be undone by sending the document again.
    """
    seconds = wait_asked(request)
    known = await Events(gateway.app.db, gateway.app.settings).newest(id)
    event = tombstone(known["source"], known["doc_key"], known["version"])
    return await answer(gateway, await land(gateway, [event]), seconds)


def tombstone(source: str, doc_key: str, version: int) -> Event:
    """The event that deletes a document whose newest version is `version`."""
    at: datetime = now()
    return Event(
        source=source,
        event_id=f"delete:{uuid.uuid4()}",
        doc_key=doc_key,
        version=max(micros(at), version + 1),
        occurred_at=at,
        payload=b"",
        content_type=TOMBSTONE,
        priority=Priority.P0,
    )


async def show_entity(
    gateway: GatewayDep,
    key: Reader,
    type: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]*$", max_length=100, examples=["shipment"])],
    name: Annotated[str, Path(alias="key", max_length=400, examples=["SHP-100045"])],
) -> Any:
    """Names, attributes, relations and documents of a person, company, shipment, …"""
    return await gateway.app.search.entity(Entity(type, name).ref)
