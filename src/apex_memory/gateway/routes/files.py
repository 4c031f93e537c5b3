"""Files of batch sources: what landed of them, what was found in them, and the replies."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from apex_memory.gateway.dependencies import GatewayDep, Reader
from apex_memory.gateway.routes.shared import (
    Cursor,
    Limit,
    example,
    page_of,
    parse_cursor,
    problems,
)

_FILE: dict[str, Any] = {
    "id": "5e0c2f9a-1f43-5c1d-8f0e-7a2f2f8f1b90",
    "source": "edi",
    "name": "NWTR_214_4711.edi",
    "sha256": "9f2c…",
    "bytes": 812,
    "kept": True,
    "received_at": "2026-03-03T15:15:00Z",
    "events": 1,
    "landed": 1,
    "findings": [],
    "replies": ["997_000004711.edi"],
    "ended_at": "2026-03-03T15:15:01Z",
}


class FileRow(BaseModel):
    """A file of a batch source: its events, how many of them landed, problems found in it, and the replies written.

    `bytes` is the size of its content, which is `kept` until `payload_days` after the end.
    """

    model_config = example(_FILE)
    id: UUID
    source: str
    name: str
    sha256: str
    bytes: int
    kept: bool
    received_at: datetime
    events: int | None
    landed: int
    findings: list[str]
    replies: list[str]
    ended_at: datetime | None


class FileList(BaseModel):
    """Files, newest first. `next` is the `cursor` of the following page, null on the last."""

    model_config = example({"files": [_FILE], "next": None})
    files: list[FileRow]
    next: str | None


router = APIRouter(tags=["sources"])


@router.get(
    "/v1/files",
    summary="List files of batch sources",
    response_model=FileList,
    responses=problems(401, 403, 422, 503),
)
async def list_files(
    gateway: GatewayDep,
    key: Reader,
    source: Annotated[
        str | None, Query(description="Only files of this source.", max_length=100)
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List files that were fetched or uploaded, newest first."""
    rows = await gateway.app.fetcher.files.listed(
        source=source, after=parse_cursor(cursor, UUID), limit=limit + 1
    )
    files, following = page_of(rows, limit, lambda file: (file.received_at, file.id))
    return {"files": files, "next": following}
