"""Routes of comparisons: the report of a rollout, both sides of an event, accepted differences, and replays for a build."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from apex_memory.errors import Rejected
from apex_memory.gateway.dependencies import (
    Admin,
    Gateway,
    GatewayDep,
    Reader,
    require_known_sources,
)
from apex_memory.gateway.routes.shared import (
    DOCUMENT,
    EVENT,
    IsoDateTime,
    RequestBody,
    example,
    problems,
)
from apex_memory.rollout import shadow_facts, shadow_queue
from apex_memory.rollout.subjects import BUILD, source_subject
from apex_memory.stores.postgres import Connection

REPLAY_MAX = 100_000  # copies that one replay queues
_BUILD = "0.2.0-3fa2c91d07"

Subject = Annotated[
    str,
    Path(
        max_length=100,
        description="A source, whose Temporal path is compared with its direct path; or `build`, for a candidate build.",
        examples=["frontapp"],
    ),
]
Build = Annotated[
    str | None,
    Query(
        max_length=200,
        description="Only for `build`: the candidate build. Without it, the one that is rolled out or was compared last.",
        examples=[_BUILD],
    ),
]
Since = Annotated[
    IsoDateTime | None,
    Query(description="Only what was compared since then.", examples=["2026-03-03T00:00:00Z"]),
]

_FACTS: dict[str, Any] = {
    "subject": "build",
    "build": _BUILD,
    "compared": 1200,
    "equal": 1180,
    "accepted": 12,
    "mismatched": 8,
    "failed": 0,
    "waiting": 3,
    "dropped": 0,
    "by_field": {"text": 8},
    "last_at": "2026-03-03T15:15:02Z",
    "live_p50": 0.041,
    "live_p99": 0.32,
    "shadow_p50": 0.044,
    "shadow_p99": 0.35,
}
_DIFFERENCE = {
    "field": "text",
    "reason": "changed",
    "live": "Status: In transit",
    "shadow": "Status: in transit",
}
_REPORT: dict[str, Any] = {
    "facts": _FACTS,
    "differences": [{"field": "text", "reason": "changed", "events": 8, "accepted": False}],
    "dropped": {},
    "seconds": {
        "live": {"prepare": 0.02, "stage": 0.011},
        "shadow": {"prepare": 0.021, "stage": 0.012},
    },
    "acceptances": [
        {
            "field": "metadata.channel",
            "actor": "key ops",
            "reason": "the mapper names it now",
            "at": "2026-03-03T15:00:00Z",
        }
    ],
    "events": [
        {
            "id": 91,
            "event": EVENT,
            "source": "turvo",
            "event_id": "SHP-100045:17",
            "document_id": DOCUMENT,
            "fields": ["text"],
            "live_outcome": "done",
            "shadow_outcome": "done",
            "error": None,
            "compared_at": "2026-03-03T15:15:02Z",
        }
    ],
    "next": None,
}


class Facts(BaseModel):
    """What the copies came to. `compared` = `equal` + `accepted` + `mismatched`. Times are seconds from the claim to the end.

    `failed` were given up after transient failures, `dropped` were never processed: the backlog was full, or the payload is
    gone. `by_field` counts events by field that differs and is not accepted.
    """

    subject: str
    build: str
    compared: int
    equal: int
    accepted: int
    mismatched: int
    failed: int
    waiting: int
    dropped: int
    by_field: dict[str, int]
    last_at: datetime | None
    live_p50: float | None
    live_p99: float | None
    shadow_p50: float | None
    shadow_p99: float | None


class FieldDifference(BaseModel):
    """How many events differ in a field for a reason: `changed`, `missing` (only live has it), `added` (only the copy)."""

    field: str
    reason: str
    events: int
    accepted: bool


class Acceptance(BaseModel):
    """A field in which copies may differ. `metadata` covers `metadata.channel`, too."""

    field: str
    actor: str
    reason: str
    at: datetime


class DifferingEvent(BaseModel):
    """An event whose copy differs, with the fields."""

    id: int
    event: UUID
    source: str
    event_id: str
    document_id: UUID
    fields: list[str]
    live_outcome: str | None
    shadow_outcome: str | None
    error: str | None
    compared_at: datetime


class RolloutReport(BaseModel):
    """The report of a rollout. `seconds` holds the mean by step of the last 10,000 copies; `next` is the `cursor` of the following page."""

    model_config = example(_REPORT)
    facts: Facts
    differences: list[FieldDifference]
    dropped: dict[str, int]
    seconds: dict[str, dict[str, float]]
    acceptances: list[Acceptance]
    events: list[DifferingEvent]
    next: str | None


_CONTENT = {
    "pipeline": "2/e5-small-v2-int8-384",
    "kind": "shipment",
    "title": "Shipment SHP-100045",
    "text": "Status: In transit",
    "cut": False,
    "occurred_at": "2026-03-03T15:15:00+00:00",
    "metadata": {},
    "parent": None,
    "deleted": False,
    "about": "shipment:shp-100045",
    "chunks": [[0, 18]],
    "entities": ["shipment:shp-100045"],
    "assertions": [["status", "shipment:shp-100045", None, "In transit", 8]],
}
_BOTH: dict[str, Any] = {
    "event": EVENT,
    "event_id": "SHP-100045:17",
    "document_id": DOCUMENT,
    "document_key": "shipment:SHP-100045",
    "source": "turvo",
    "subject": "build",
    "build": _BUILD,
    "path": "temporal",
    "live_build": "0.2.0-91be02d4c1",
    "state": "compared",
    "equal": False,
    "differences": [_DIFFERENCE],
    "live_outcome": "done",
    "shadow_outcome": "done",
    "error": None,
    "tallies": {
        "graph": {"live": [5, 1234567], "shadow": [5, 1234567]},
        "vectors": {"live": [1, 55], "shadow": [1, 56]},
    },
    "seconds": {"live": {"total": 0.041}, "shadow": {"total": 0.044}},
    "compared_at": "2026-03-03T15:15:02Z",
    "live": _CONTENT,
    "shadow": {**_CONTENT, "text": "Status: in transit"},
}


class Content(BaseModel):
    """What one side made of an event, without vectors. `cut` means that the text is longer than what is shown.

    `chunks` holds [start, end], `assertions` [predicate, subject, object, value, start]; offsets are characters of the text.
    """

    pipeline: str
    kind: str
    title: str
    text: str
    cut: bool
    occurred_at: datetime
    metadata: dict[str, Any]
    parent: UUID | None
    deleted: bool
    about: str | None
    chunks: list[list[int]]
    entities: list[str]
    assertions: list[list[Any]]


class Difference(BaseModel):
    """A field that differs, with an excerpt of each side."""

    field: str
    reason: str
    live: str
    shadow: str


class BothSides(BaseModel):
    """An event beside its copy. A side is null where it made nothing, or where it is not kept."""

    model_config = example(_BOTH)
    event: UUID
    event_id: str
    document_id: UUID
    document_key: str
    source: str
    subject: str
    build: str
    path: str | None
    live_build: str | None
    state: str
    equal: bool | None
    differences: list[Difference]
    live_outcome: str | None
    shadow_outcome: str | None
    error: str | None
    tallies: dict[str, Any] | None
    seconds: dict[str, dict[str, float]] | None
    compared_at: datetime
    live: Content | None
    shadow: Content | None


class AcceptRequest(RequestBody):
    """A field in which copies may differ from now on. `accepted: false` withdraws it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"field": "metadata.channel", "reason": "the mapper names it now"}]
        },
    )
    field: str = Field(min_length=1, max_length=200)
    reason: str = Field("", max_length=500)
    build: str | None = Field(None, max_length=200)
    accepted: StrictBool = True


class Acceptances(BaseModel):
    """The accepted fields of a subject."""

    model_config = example(
        {"subject": "build", "build": _BUILD, "acceptances": _REPORT["acceptances"]}
    )
    subject: str
    build: str
    acceptances: list[Acceptance]


class ReplayRequest(RequestBody):
    """A range of ended events that a build processes as copies. Times are those at which events were received."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"build": _BUILD, "source": "turvo", "since": "2026-03-01T00:00:00Z"}]
        },
    )
    build: str = Field(min_length=1, max_length=200)
    source: str | None = Field(None, max_length=100)
    since: IsoDateTime | None = None
    until: IsoDateTime | None = None
    limit: StrictInt = Field(10_000, ge=1, le=REPLAY_MAX)


class Replay(BaseModel):
    """How many events the range holds, and of how many copies were queued: an even sample where it holds more than the limit."""

    model_config = example({"build": _BUILD, "events": 41200, "queued": 8240})
    build: str
    events: int
    queued: int


router = APIRouter(tags=["rollouts"])
_READ = problems(401, 403, 404, 422, 503)
_CHANGED = problems(400, 401, 403, 404, 409, 413, 422, 503)


async def _subject_of(
    gateway: Gateway, connection: Connection, name: str, build: str | None
) -> tuple[str, str]:
    """Return the subject and the build that a path names. Raises `Rejected` for an unknown source, or without any build."""
    if name != BUILD:
        await require_known_sources(gateway, [name])
        return source_subject(name), ""
    chosen = build or await shadow_facts.candidate(connection)
    if not chosen:
        raise Rejected(
            "no candidate build",
            remedy="name one with `build`; `apex builds` lists builds, `apex rollout replay BUILD` queues copies for one",
        )
    return BUILD, chosen


@router.get(
    "/v1/rollouts/{subject}/report",
    summary="Report of a rollout",
    response_model=RolloutReport,
    responses=_READ,
)
async def rollout_report(
    gateway: GatewayDep,
    key: Reader,
    subject: Subject,
    build: Build = None,
    since: Since = None,
    every: Annotated[
        bool, Query(description="Also list events that differ only in accepted fields.")
    ] = False,
    cursor: Annotated[
        int | None, Query(ge=1, lt=2**63, description="`next` of the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Events on a page.")] = 50,
) -> dict[str, Any]:
    """Return how many copies were compared, equal and different, by field and reason, the times of both, and differing events."""
    async with gateway.app.db.connection() as connection:
        name, chosen = await _subject_of(gateway, connection, subject, build)
        report = await shadow_facts.report(
            connection, name, build=chosen, since=since, after=cursor, limit=limit, every=every
        )
    following = None if report.next is None else str(report.next)
    return {**asdict(report), "next": following}


@router.get(
    "/v1/rollouts/{subject}/diff/{event}",
    summary="Both sides of an event",
    response_model=BothSides,
    responses=_READ,
)
async def rollout_difference(
    gateway: GatewayDep,
    key: Reader,
    subject: Subject,
    event: Annotated[UUID, Path(description="The event's id.", examples=[EVENT])],
    build: Build = None,
) -> dict[str, Any]:
    """Return an event beside its copy: outcomes, differences, what the stores held, seconds by step, and both contents."""
    async with gateway.app.db.connection() as connection:
        name, chosen = await _subject_of(gateway, connection, subject, build)
        return await shadow_facts.difference(connection, event, name, chosen)


@router.get(
    "/v1/events/{event}/diff",
    summary="Both sides of an event, whatever it was compared for",
    response_model=BothSides,
    responses=_READ,
)
async def event_difference(
    gateway: GatewayDep,
    key: Reader,
    event: Annotated[UUID, Path(description="The event's id.", examples=[EVENT])],
) -> dict[str, Any]:
    """Return an event beside the copy of it that was compared last."""
    async with gateway.app.db.connection() as connection:
        return await shadow_facts.difference(connection, event)


@router.post(
    "/v1/rollouts/{subject}/accept",
    summary="Accept a difference",
    response_model=Acceptances,
    responses=_CHANGED,
)
async def accept_difference(
    gateway: GatewayDep, key: Admin, subject: Subject, body: AcceptRequest
) -> dict[str, Any]:
    """Accept a difference by the name of its field: it no longer holds the rollout. Recorded in the audit log.

    A field covers what stands behind a dot after it: `metadata` covers `metadata.channel`.
    """
    async with gateway.app.db.transaction() as connection:
        name, build = await _subject_of(gateway, connection, subject, body.build)
        change = shadow_facts.accept if body.accepted else shadow_facts.withdraw
        await change(connection, name, build, body.field, actor=key.actor, reason=body.reason)
        accepted = await shadow_facts.acceptances(connection, name, build)
    return {"subject": name, "build": build, "acceptances": accepted}


@router.post(
    "/v1/rollouts/build/replay",
    summary="Compare a build on past events",
    response_model=Replay,
    responses=_CHANGED,
)
async def replay_for_build(gateway: GatewayDep, key: Admin, body: ReplayRequest) -> dict[str, Any]:
    """Queue copies of ended events for a build, whose worker processes them. Memory stays as it is.

    A range with more events than `limit` gives an even sample of them.
    """
    await require_known_sources(gateway, [body.source])
    async with gateway.app.db.connection() as connection:
        result = await shadow_queue.replay(
            connection,
            body.build,
            sources=[body.source] if body.source else [],
            since=body.since,
            until=body.until,
            limit=body.limit,
        )
        await shadow_facts.audit_replay(connection, key.actor, body.build, asdict(result))
    return {"build": body.build, **asdict(result)}
