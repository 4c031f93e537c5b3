"""Dead letters: events whose processing failed. An administrator redrives or discards them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from apex_memory.gateway.dependencies import (
    Admin,
    Gateway,
    GatewayDep,
    Reader,
    require_known_sources,
)
from apex_memory.gateway.routes.events import EventId, Limit
from apex_memory.gateway.routes.shared import (
    DOCUMENT,
    EVENT,
    Cursor,
    RequestBody,
    example,
    page_of,
    parse_cursor,
    problems,
)
from apex_memory.model import UNFETCHED
from apex_memory.saga import dead_letters
from apex_memory.saga.dead_letters import Status

REDRIVE_LIMIT = 1_000  # most dead letters that one request redrives
LetterNumber = Annotated[StrictInt, Field(ge=1, lt=2**63)]
LetterId = Annotated[
    int, Path(ge=1, lt=2**63, description="The dead letter's number.", examples=[7])
]

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
    "remedy": "ask the carrier to resend it, or discard it",
    "attempts": 1,
    "first_at": "2026-03-03T15:15:00Z",
    "last_at": "2026-03-03T15:15:02Z",
    "pipeline": "2/e5-small-v2-int8-384",
    "status": "open",
    "resolution": None,
    "actor": None,
}


class DeadLetter(BaseModel):
    """An event whose processing failed. Failures of the same kind share a `fingerprint`."""

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


_DETAIL = {
    **_LETTER,
    "content_type": "application/edi-x12",
    "document_key": "214:SHP-100045",
    "occurred_at": "2026-03-03T15:14:00Z",
    "payload_bytes": 1204,
}


class DeadLetterDetail(DeadLetter):
    """A dead letter with details of its event. The payload is at `/v1/events/{event}/payload`."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"examples": [_DETAIL]})
    content_type: str
    document_key: str = Field(validation_alias="doc_key")
    occurred_at: datetime
    payload_bytes: int | None


class DeadLetterList(BaseModel):
    """Dead letters, newest first. `next` is the `cursor` of the following page, null on the last."""

    model_config = example({"dead_letters": [_LETTER], "next": None})
    dead_letters: list[DeadLetter]
    next: str | None


class RedriveRequest(RequestBody):
    """The dead letters to redrive: `ids`, or all open ones of a fingerprint, a source or both."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"fingerprint": "9f2c51d07a3e", "dry_run": True}]},
    )
    ids: list[LetterNumber] | None = Field(None, min_length=1, max_length=REDRIVE_LIMIT)
    fingerprint: str | None = Field(None, max_length=100)
    source: str | None = Field(None, max_length=100)
    dry_run: StrictBool = False

    @model_validator(mode="after")
    def _one_way(self) -> RedriveRequest:
        filtered = self.fingerprint is not None or self.source is not None
        if (self.ids is not None) == filtered:
            raise ValueError("expected either `ids`, or `fingerprint` and `source`, not both")
        return self


class RedriveResult(BaseModel):
    """The redriven dead letters or, with `dry_run`, those that would be redriven."""

    model_config = example({"dry_run": True, "dead_letters": [_LETTER]})
    dry_run: bool
    dead_letters: list[DeadLetter]


class DiscardRequest(RequestBody):
    """Why the event is discarded. The reason is stored with the dead letter and in the audit log."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "test load of the carrier"}]}
    )
    reason: str = Field(min_length=1, max_length=500)


router = APIRouter(tags=["dead letters"])
_REFUSED = problems(401, 403, 422, 503)
_CHANGED = problems(400, 401, 403, 404, 409, 413, 422, 503)


@router.get(
    "/v1/dead-letters",
    summary="List dead letters",
    response_model=DeadLetterList,
    responses=_REFUSED,
)
async def list_dead_letters(
    gateway: GatewayDep,
    key: Reader,
    status: Annotated[
        Status | Literal["any"],
        Query(description="Only dead letters with this status.", examples=["open"]),
    ] = "open",
    source: Annotated[
        str | None,
        Query(max_length=100, description="Only dead letters of this source.", examples=["edi"]),
    ] = None,
    fingerprint: Annotated[
        str | None,
        Query(
            max_length=100,
            description="Only dead letters with this fingerprint.",
            examples=["9f2c51d07a3e"],
        ),
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List dead letters, newest first, each with the reason and the remedy.

    One that fails again or is redriven while pages are read moves to the beginning.
    """
    await require_known_sources(gateway, [source])
    rows = await gateway.app.dead_letters.find(
        status=None if status == "any" else status,
        source=source,
        fingerprint=fingerprint,
        after=parse_cursor(cursor, _letter_number),
        limit=limit + 1,
    )
    letters, following = page_of(rows, limit, lambda letter: (letter.last_at, letter.id))
    return {"dead_letters": letters, "next": following}


def _letter_number(text: str) -> int:
    """Return the number of a dead letter. Raises `ValueError` for what is none."""
    number = int(text)
    if not 1 <= number < 2**63:
        raise ValueError(f"{number} is not the number of a dead letter")
    return number


@router.get(
    "/v1/dead-letters/{id:int}",
    summary="Show a dead letter",
    response_model=DeadLetterDetail,
    responses=problems(401, 403, 404, 422, 503),
)
async def show_dead_letter(
    gateway: GatewayDep, key: Reader, id: LetterId
) -> dead_letters.DeadLetterDetail:
    """Show the reason, the remedy, and details of the event."""
    return await gateway.app.dead_letters.show(id)


@router.post(
    "/v1/dead-letters/{id:int}/redrive",
    summary="Redrive a dead letter",
    response_model=RedriveResult,
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def redrive_dead_letter(gateway: GatewayDep, key: Admin, id: LetterId) -> dict[str, Any]:
    """Process the event again from the prepare step. It keeps its original version: a newer version is not overwritten.

    The dead letter of a record that its vendor did not return is resolved, and the record is fetched again.
    """
    return await _redrive(gateway, [id], key.actor, dry_run=False)


@router.post(
    "/v1/dead-letters/redrive",
    summary="Redrive dead letters",
    response_model=RedriveResult,
    responses=_CHANGED,
)
async def redrive_dead_letters(
    gateway: GatewayDep, key: Admin, body: RedriveRequest
) -> dict[str, Any]:
    """Process many events again, at most 1,000 per request, those that failed longest ago first.

    With `dry_run` nothing changes.
    """
    ids = body.ids
    await require_known_sources(gateway, [body.source])
    if ids is None:
        ids = await gateway.app.dead_letters.open_ids(
            source=body.source, fingerprint=body.fingerprint, limit=REDRIVE_LIMIT
        )
    return await _redrive(gateway, ids, key.actor, dry_run=body.dry_run)


async def _redrive(
    gateway: Gateway, ids: list[int], actor: str, *, dry_run: bool
) -> dict[str, Any]:
    letters = await gateway.app.dead_letters.redrive(ids, actor=actor, dry_run=dry_run)
    if not dry_run:
        for source in {letter.source for letter in letters}:
            gateway.waker.wake(source)
        unfetched = [letter for letter in letters if letter.event_id.startswith(UNFETCHED)]
        for source in {letter.source for letter in unfetched}:
            gateway.waker.pull(source)
    return {"dry_run": dry_run, "dead_letters": letters}


@router.post(
    "/v1/dead-letters/{id:int}/discard",
    summary="Discard a dead letter",
    response_model=DeadLetterDetail,
    responses=_CHANGED,
)
async def discard_dead_letter(
    gateway: GatewayDep, key: Admin, id: LetterId, body: DiscardRequest
) -> dead_letters.DeadLetterDetail:
    """Close the dead letter permanently. The raw event is kept, with the reason."""
    await gateway.app.dead_letters.discard([id], actor=key.actor, reason=body.reason)
    return await gateway.app.dead_letters.show(id)


@router.post(
    "/v1/events/{id}/discard",
    summary="Discard an unfinished event",
    response_model=DeadLetterDetail,
    responses=_CHANGED,
)
async def discard_event(
    gateway: GatewayDep, key: Admin, id: EventId, body: DiscardRequest
) -> dead_letters.DeadLetterDetail:
    """Discard an event that waits or is in progress, whatever a worker does with it. The raw event is kept.

    Returns the dead letter that records who discarded it and why.
    """
    [letter] = await gateway.app.dead_letters.discard_events(
        [id], actor=key.actor, reason=body.reason
    )
    return await gateway.app.dead_letters.show(letter.id)
