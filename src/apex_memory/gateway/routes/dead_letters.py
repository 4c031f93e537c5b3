"""Dead letters: events that could not go on, and the two ways out, again or never."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.routes.events import EventId, Limit
from apex_memory.gateway.routes.shared import DOCUMENT, EVENT, example, problems

Status = Literal["open", "retrying", "resolved", "discarded", "superseded"]
MOST = 1_000  # redriven by one filter at a time: look at what became of them before going on
LetterNumber = Annotated[int, Field(ge=1, lt=2**63)]
LetterId = Annotated[int, Path(ge=1, lt=2**63, description="Its number.", examples=[7])]

_LETTER: dict[str, Any] = {
    "id": 7,
    "event": EVENT,
    "source": "edi",
    "document_id": DOCUMENT,
    "version": 1772550900000000,
    "event_id": "214-000012087",
    "step": "prepare",
    "error": "Rejected",
    "fingerprint": "9f2c51d07a3e",
    "message": "segment 14: N1 without a name",
    "remedy": "ask the carrier to send it again, or discard it",
    "attempts": 1,
    "first_at": "2026-03-03T15:15:00Z",
    "last_at": "2026-03-03T15:15:02Z",
    "pipeline": "minilm/4",
    "status": "open",
    "resolution": None,
    "actor": None,
}


class DeadLetter(BaseModel):
    """An event that could not go on. `fingerprint` is the same for failures of the same kind."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"examples": [_LETTER]})
    id: int
    event: UUID = Field(validation_alias="inbox_id")
    source: str
    document_id: UUID = Field(validation_alias="doc_id")
    version: int
    event_id: str
    step: str
    error: str = Field(validation_alias="error_class")
    fingerprint: str
    message: str
    remedy: str
    attempts: int
    first_at: datetime
    last_at: datetime
    pipeline: str
    status: Status
    resolution: str | None
    actor: str | None


_SHOWN = {
    **_LETTER,
    "content_type": "application/edi-x12",
    "document_key": "214:SHP-100045",
    "occurred_at": "2026-03-03T15:14:00Z",
    "payload_bytes": 1204,
}


class DeadLetterFull(DeadLetter):
    """The same with facts of its event. The payload is at `/v1/events/{event}/payload`."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"examples": [_SHOWN]})
    content_type: str
    document_key: str = Field(validation_alias="doc_key")
    occurred_at: datetime
    payload_bytes: int | None


class DeadLetters(BaseModel):
    """Dead letters, newest first."""

    model_config = example({"dead_letters": [_LETTER]})
    dead_letters: list[DeadLetter]


class Redrive(BaseModel):
    """Which dead letters to send round again: `ids`, or all open ones of a fingerprint, a source or both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"fingerprint": "9f2c51d07a3e", "dry_run": True}]},
    )
    ids: list[LetterNumber] | None = Field(None, min_length=1, max_length=MOST)
    fingerprint: str | None = Field(None, max_length=100)
    source: str | None = Field(None, max_length=100)
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Redrive:
        filtered = self.fingerprint is not None or self.source is not None
        if (self.ids is not None) == filtered:
            raise ValueError("expected either `ids`, or `fingerprint` and `source`")
        return self


class Redriven(BaseModel):
    """Those sent round again, or, with `dry_run`, those that would be."""

    model_config = example({"dry_run": True, "dead_letters": [_LETTER]})
    dry_run: bool
    dead_letters: list[DeadLetter]


class Discard(BaseModel):
    """Why it is given up; kept with it and in the audit."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "test load of the carrier"}]}
    )
    reason: str = Field(min_length=1, max_length=500)


def routes() -> APIRouter:
    router = APIRouter(tags=["dead letters"])
    add = router.add_api_route
    refused = problems(401, 403, 422, 503)
    changed = problems(400, 401, 403, 404, 409, 413, 422, 503)
    add(
        "/v1/dead-letters",
        list_dead_letters,
        summary="List dead letters",
        response_model=DeadLetters,
        responses=refused,
    )
    add(
        "/v1/dead-letters/redrive",
        redrive_dead_letters,
        methods=["POST"],
        summary="Send many round again",
        response_model=Redriven,
        responses=changed,
    )
    add(
        "/v1/dead-letters/{id:int}",
        show_dead_letter,
        summary="Show one dead letter",
        response_model=DeadLetterFull,
        responses=problems(401, 403, 404, 422, 503),
    )
    add(
        "/v1/dead-letters/{id:int}/redrive",
        redrive_dead_letter,
        methods=["POST"],
        summary="Send one round again",
        response_model=Redriven,
        responses=problems(401, 403, 404, 409, 422, 503),
    )
    add(
        "/v1/dead-letters/{id:int}/discard",
        discard_dead_letter,
        methods=["POST"],
        summary="Give one up",
        response_model=DeadLetterFull,
        responses=changed,
    )
    add(
        "/v1/events/{id}/discard",
        discard_event,
        methods=["POST"],
        summary="Discard an event that is not final",
        response_model=DeadLetterFull,
        responses=changed,
    )
    return router


async def list_dead_letters(
    gateway: GatewayDep,
    key: Reader,
    status: Annotated[
        Status | Literal["any"], Query(description="Only with this status.", examples=["open"])
    ] = "open",
    source: Annotated[
        str | None, Query(max_length=100, description="Only of this source.", examples=["edi"])
    ] = None,
    fingerprint: Annotated[
        str | None,
        Query(max_length=100, description="Only of this kind.", examples=["9f2c51d07a3e"]),
    ] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Newest first, with the reason and the way out."""
    found = await gateway.app.dead_letters.find(
        status=None if status == "any" else status,
        source=source,
        fingerprint=fingerprint,
        limit=limit,
    )
    return {"dead_letters": found}


async def show_dead_letter(gateway: GatewayDep, key: Reader, id: LetterId) -> dict[str, Any]:
    """The reason, the remedy, and what the event is."""
    return await gateway.app.dead_letters.show(id)


async def redrive_dead_letter(gateway: GatewayDep, key: Admin, id: LetterId) -> dict[str, Any]:
    """It enters again at prepare, with its original order: a newer version is not overwritten."""
    return await _redrive(gateway, [id], key.actor, dry_run=False)


async def redrive_dead_letters(gateway: GatewayDep, key: Admin, order: Redrive) -> dict[str, Any]:
    """At most 1,000 by filter at a time. With `dry_run` nothing is changed."""
    ids = order.ids
    if ids is None:
        found = await gateway.app.dead_letters.find(
            status="open", source=order.source, fingerprint=order.fingerprint, limit=MOST
        )
        ids = [row["id"] for row in found]
    return await _redrive(gateway, ids, key.actor, dry_run=order.dry_run)


async def _redrive(
    gateway: Gateway, ids: list[int], actor: str, *, dry_run: bool
) -> dict[str, Any]:
    rows = await gateway.app.dead_letters.redrive(ids, actor=actor, dry_run=dry_run)
    if not dry_run:
        for source in {row["source"] for row in rows}:
            gateway.waker.wake(source)
    return {"dry_run": dry_run, "dead_letters": rows}


async def discard_dead_letter(
    gateway: GatewayDep, key: Admin, id: LetterId, order: Discard
) -> dict[str, Any]:
    """Close it for good. The raw event stays and says why."""
    await gateway.app.dead_letters.discard([id], actor=key.actor, reason=order.reason)
    return await gateway.app.dead_letters.show(id)


async def discard_event(
    gateway: GatewayDep, key: Admin, id: EventId, order: Discard
) -> dict[str, Any]:
    """End an event that waits or is in progress, whatever a worker does with it. The raw event stays.

    Returns the dead letter that records who discarded it and why.
    """
    [letter] = await gateway.app.dead_letters.discard_events(
        [id], actor=key.actor, reason=order.reason
    )
    return await gateway.app.dead_letters.show(letter["id"])
