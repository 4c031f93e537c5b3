"""Builds of Apex side by side: list, check, ramp, promote, roll back, retire."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from apex_memory.errors import Conflict
from apex_memory.flows.maintenance.rollout_gate import run_rollout_gate
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.read_models.builds import builds_report
from apex_memory.gateway.routes.shared import RequestBody, example, problems
from apex_memory.rollout import builds
from apex_memory.rollout.builds import RoutingChange

_ROW = {
    "build": "0.3.0-5f1c09aa2b",
    "role": "candidate",
    "share": 10,
    "alive": True,
    "registered_at": "2026-03-03T15:00:00Z",
    "seen_at": "2026-03-03T15:15:00Z",
    "promoted_at": None,
    "checked_at": "2026-03-03T15:02:00Z",
    "check_passed": True,
    "check_detail": "118 histories replayed",
    "unfinished": 3,
    "status": "ramping",
    "pollers": 2,
    "runs": 13,
}
_REPORT = {
    "deployment": "apex",
    "routing": "self",
    "current": "0.2.0-1d20e3c4b5",
    "previous": None,
    "candidate": "0.3.0-5f1c09aa2b",
    "share": 10,
    "temporal": True,
    "in_line": True,
    "manager": None,
    "builds": [_ROW],
}
_CHANGE = {
    "current": "0.2.0-1d20e3c4b5",
    "previous": None,
    "candidate": "0.3.0-5f1c09aa2b",
    "share": 10,
    "changed": True,
    "taken_back": 0,
}


class BuildRow(BaseModel):
    """A build. `status`, `pollers` and `runs` are Temporal's: null while it does not respond or does not know the build."""

    model_config = example(_ROW)
    build: str
    role: Literal["current", "candidate", "previous", "waiting", "retired"]
    share: int
    """Per cent of the documents that it processes."""
    alive: bool
    """One of its workers was seen within 30 s."""
    registered_at: datetime
    seen_at: datetime | None
    promoted_at: datetime | None
    checked_at: datetime | None
    check_passed: bool | None
    check_detail: str
    unfinished: int
    """Events that it has claimed and not finished."""
    status: str | None
    """`inactive`, `current`, `ramping`, `draining` or `drained`."""
    pollers: int | None
    runs: int | None
    """Running workflows."""


class BuildsReport(BaseModel):
    """The routing of builds. `in_line` is whether Temporal has the same routing; null while it does not respond."""

    model_config = example(_REPORT)
    deployment: str
    routing: Literal["self", "external"]
    current: str | None
    previous: str | None
    candidate: str | None
    share: int
    temporal: bool
    in_line: bool | None
    manager: str | None
    """Who owns the routing in Temporal, if anybody claimed it."""
    builds: list[BuildRow]


class RoutingResult(BaseModel):
    """The routing after a change. `taken_back` counts unfinished events that were taken from a build."""

    model_config = example(_CHANGE)
    current: str | None
    previous: str | None
    candidate: str | None
    share: int
    changed: bool
    taken_back: int


class Reason(RequestBody):
    """Why, for the audit trail."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "release 0.3"}]})
    reason: str = Field("", max_length=500)


class RampRequest(Reason):
    """The share of the documents, in per cent. `unchecked` goes on without a passed check."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"share": 10, "reason": "release 0.3"}]}
    )
    share: StrictInt = Field(ge=1, le=100)
    unchecked: StrictBool = False


class PromoteRequest(Reason):
    """`unchecked` goes on without a passed check."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "10 % for a day"}]})
    unchecked: StrictBool = False


class CheckRequest(RequestBody):
    """How many of the newest runs of each type of workflow are replayed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"histories": 20}]})
    histories: StrictInt = Field(20, ge=1, le=200)


class CheckResult(BaseModel):
    """The result of the check of a build."""

    model_config = example(
        {
            "build": "0.3.0-5f1c09aa2b",
            "passed": True,
            "detail": "118 histories replayed",
            "workflow_id": "rollout-gate:0.3.0-5f1c09aa2b:9f0c11d2",
        }
    )
    build: str
    passed: bool
    detail: str
    workflow_id: str


BuildId = Annotated[
    str,
    Path(description="The id of a build.", examples=["0.3.0-5f1c09aa2b"], max_length=200),
]


router = APIRouter(tags=["builds"])


@router.get(
    "/v1/builds",
    summary="List builds",
    response_model=BuildsReport,
    responses=problems(401, 403, 503),
)
async def list_builds(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """List the builds whose workers have run here, and which of them processes which share of the documents."""
    return await builds_report(
        gateway.app.db, _deployment(gateway), routing=gateway.app.settings.routing
    )


@router.post(
    "/v1/builds/rollback",
    summary="Roll back",
    response_model=RoutingResult,
    responses=problems(400, 401, 403, 409, 413, 422, 503),
)
async def rollback_build(gateway: GatewayDep, key: Admin, body: Reason) -> dict[str, Any]:
    """End the rollout of the candidate, or make the previous build current again if there is no candidate.

    Takes effect at once: the unfinished events of the build that loses are taken from it.
    """
    _require_own_routing(gateway)
    return _result(await builds.rollback(gateway.app.db, actor=key.id, reason=body.reason))


@router.post(
    "/v1/builds/{build:path}/check",
    summary="Check a build",
    response_model=CheckResult,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def check_build(
    gateway: GatewayDep, key: Admin, build: BuildId, body: CheckRequest
) -> dict[str, Any]:
    """Check on a worker of the build that stores and models work, and replay recent runs of this installation with it.

    A build that did not pass cannot process documents.
    """
    await builds.require_worker(gateway.app.db, build)
    workflow = await run_rollout_gate(_deployment(gateway), build, body.histories)
    row = await builds.get(gateway.app.db, build)
    return {
        "build": build,
        "passed": bool(row.check_passed),
        "detail": row.check_detail,
        "workflow_id": workflow,
    }


@router.post(
    "/v1/builds/{build:path}/ramp",
    summary="Ramp a build",
    response_model=RoutingResult,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def ramp_build(
    gateway: GatewayDep, key: Admin, build: BuildId, body: RampRequest
) -> dict[str, Any]:
    """Let a build process a share of the documents. A document stays with its build while the share stays."""
    _require_own_routing(gateway)
    return _result(
        await builds.ramp(
            gateway.app.db,
            build,
            body.share,
            actor=key.id,
            reason=body.reason,
            unchecked=body.unchecked,
        )
    )


@router.post(
    "/v1/builds/{build:path}/promote",
    summary="Promote a build",
    response_model=RoutingResult,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def promote_build(
    gateway: GatewayDep, key: Admin, build: BuildId, body: PromoteRequest
) -> dict[str, Any]:
    """Make a build current: it processes every document. The one that was current is kept for a rollback."""
    _require_own_routing(gateway)
    return _result(
        await builds.promote(
            gateway.app.db, build, actor=key.id, reason=body.reason, unchecked=body.unchecked
        )
    )


@router.post(
    "/v1/builds/{build:path}/retire",
    summary="Retire a build",
    response_model=RoutingResult,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
)
async def retire_build(
    gateway: GatewayDep, key: Admin, build: BuildId, body: Reason
) -> dict[str, Any]:
    """End a build for good: it claims nothing, and its workflows end. Stop its workers before or afterwards."""
    _require_own_routing(gateway)
    change = await builds.retire(gateway.app.db, build, actor=key.id, reason=body.reason)
    return _result(change)


def _deployment(gateway: Gateway) -> Deployment:
    app = gateway.app
    return Deployment(gateway.temporal, app.build, app.settings.deployment_name)


def _require_own_routing(gateway: Gateway) -> None:
    if gateway.app.settings.routing == "external":
        raise Conflict(
            "the routing of builds belongs to somebody else (`routing = external`)",
            remedy="change it there, for example in the WorkerDeployment of the Kubernetes worker controller; Apex follows",
        )


def _result(change: RoutingChange) -> dict[str, Any]:
    routing = {name: value for name, value in asdict(change.routing).items() if name != "share"}
    return {
        **{name: value or None for name, value in routing.items()},
        "share": change.routing.share,
        "changed": change.changed,
        "taken_back": change.taken_back,
    }
