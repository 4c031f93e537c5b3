"""Links whose other side has not come yet."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from apex_memory.gateway.dependencies import GatewayDep, Reader
from apex_memory.gateway.routes.shared import DOCUMENT, example, problems
from apex_memory.search.unresolved import unresolved_references

_LINK: dict[str, Any] = {
    "ref": "shipment:SHP-100045",
    "documents": 2,
    "sources": ["edi", "quickbooks"],
    "examples": [
        {
            "document_id": DOCUMENT,
            "source": "quickbooks",
            "key": "invoice:501",
            "title": "INV-55012",
        }
    ],
    "since": "2026-03-03T15:15:00.412Z",
}


class NamedIn(BaseModel):
    """A document that names the entity."""

    document_id: UUID
    source: str
    key: str
    title: str


class WaitingLinkView(BaseModel):
    """An entity that documents name and whose record no source has sent yet."""

    model_config = example(_LINK)
    ref: str
    documents: int
    sources: list[str]
    examples: list[NamedIn]
    since: datetime


class LinkList(BaseModel):
    model_config = example({"links": [_LINK]})
    links: list[WaitingLinkView]


def routes() -> APIRouter:
    router = APIRouter(tags=["memory"])
    router.add_api_route(
        "/v1/links",
        list_links,
        methods=["GET"],
        summary="Links that wait",
        response_model=LinkList,
        responses=problems(401, 403, 422, 503),
    )
    return router


async def list_links(
    gateway: GatewayDep,
    key: Reader,
    limit: Annotated[int, Query(ge=1, le=500, description="Most rows.", examples=[50])] = 50,
) -> dict[str, Any]:
    """Shipments and invoices that are named somewhere and not recorded yet, the longest waiting first.

    Each closes by itself when the source that records it has sent it: an invoice may come before its shipment.
    """
    return {
        "links": [asdict(link) for link in await unresolved_references(gateway.app.db, limit=limit)]
    }
