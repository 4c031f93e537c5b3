"""Entities that documents name and whose record no source has sent yet."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from apex_memory.gateway.dependencies import GatewayDep, Reader
from apex_memory.gateway.routes.shared import (
    DOCUMENT,
    Cursor,
    example,
    page_of,
    parse_cursor,
    problems,
)
from apex_memory.search.unresolved import LOOKED_AT, unresolved_references

_UNRESOLVED: dict[str, Any] = {
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


class NamingDocument(BaseModel):
    """A document that names the entity."""

    document_id: UUID
    source: str
    key: str
    title: str


class UnresolvedEntity(BaseModel):
    """An entity that documents name and whose record no source has sent yet. `examples` has the first few documents."""

    model_config = example(_UNRESOLVED)
    ref: str
    documents: int
    sources: list[str]
    examples: list[NamingDocument]
    since: datetime


class UnresolvedList(BaseModel):
    """Entities without a record. `next` is the `cursor` of the following page, null on the last.

    With `partial` memory has more documents than were looked at, and `documents` and `since` are those of the newest
    `looked_at`: an entity that only older documents name is missing.
    """

    model_config = example(
        {"unresolved": [_UNRESOLVED], "partial": False, "looked_at": LOOKED_AT, "next": None}
    )
    unresolved: list[UnresolvedEntity]
    partial: bool
    looked_at: int = Field(description="How many of the newest documents are looked at, at most.")
    next: str | None


router = APIRouter(tags=["memory"])


@router.get(
    "/v1/unresolved",
    summary="List entities without a record",
    response_model=UnresolvedList,
    responses=problems(401, 403, 422, 503),
)
async def list_unresolved(
    gateway: GatewayDep,
    key: Reader,
    cursor: Cursor = None,
    limit: Annotated[
        int, Query(ge=1, le=500, description="Most items in the response.", examples=[50])
    ] = 50,
) -> dict[str, Any]:
    """List shipments and invoices that documents name and no source has recorded yet, longest waiting first.

    Looks at the newest 100,000 documents; `partial` says that there are more. An entry disappears when a source sends the record: an invoice may arrive before its shipment.
    """
    after = parse_cursor(cursor, _reference)
    page = await unresolved_references(gateway.app.db, after=after, limit=limit + 1)
    rows, following = page_of(page.references, limit, lambda entity: (entity.since, entity.ref))
    return {
        "unresolved": rows,
        "partial": page.partial,
        "looked_at": LOOKED_AT,
        "next": following,
    }


def _reference(text: str) -> str:
    """Return the reference of an entity. Raises `ValueError` for a text that PostgreSQL cannot hold."""
    if "\x00" in text:
        raise ValueError("a reference holds no NUL")
    return text
