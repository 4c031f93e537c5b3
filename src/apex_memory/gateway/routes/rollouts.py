"""Rollouts: what share of a source's documents goes through Temporal, and the plans that change it step by step."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from apex_memory.errors import Conflict, NotFound
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.routes.shared import RequestBody, example, problems
from apex_memory.rollout.runs import Run
from apex_memory.rollout.shares import Share
from apex_memory.rollout.subjects import BUILD, source_subject

_RUN: dict[str, Any] = {
    "id": 4,
    "build": None,
    "state": "running",
    "step": "10 %",
    "steps": ["shadow", "10 %", "50 %", "100 %"],
    "promotion": "automatic",
    "approved": False,
    "reason": "the gate holds: duration: 3600 of 3600 s; events: 812 of 100 compared copies",
    "changed_by": "gate",
    "started_by": "key:k3f9a2",
    "started_at": "2026-03-03T14:15:00Z",
    "step_began_at": "2026-03-03T15:15:00Z",
    "verdict": "waiting: events: 40 of 100 events",
    "checks": [
        {"name": "events", "result": "open", "detail": "40 of 100 events"},
        {"name": "failures", "result": "passed", "detail": "0 of 40 events failed"},
    ],
    "checked_at": "2026-03-03T15:21:07Z",
    "ended_at": None,
}
_ROW: dict[str, Any] = {
    "subject": "source:frontapp",
    "share": 10,
    "shadow": False,
    "build": None,
    "changed_by": "gate",
    "changed_at": "2026-03-03T15:15:00Z",
    "reason": "the gate holds: duration: 3600 of 3600 s; events: 812 of 100 compared copies",
    "rollout": _RUN,
}
_CHANGE: dict[str, Any] = {
    "at": "2026-03-03T14:15:00Z",
    "actor": "key:k3f9a2",
    "event": "start",
    "share": 0,
    "shadow": True,
    "reason": "first week",
}


class RolloutCheck(BaseModel):
    """One check of the gate. `open` and `blocked` hold the rollout, `violated` rolls it back."""

    name: str
    result: Literal["passed", "open", "blocked", "violated"]
    detail: str


class RolloutRun(BaseModel):
    """A rollout by plan, in progress or the last one.

    `held`: by a person. `rolled back`: a gate was violated, or a person went back; without an end it stays at a step
    until it is approved. `verdict` is what the gate says now, `reason` why the last change was made.
    """

    model_config = example(_RUN)
    id: int
    build: str | None
    state: Literal["running", "held", "rolled back", "done", "stopped"]
    step: str
    steps: list[str]
    promotion: Literal["automatic", "manual"]
    approved: bool
    reason: str
    changed_by: str
    started_by: str
    started_at: datetime
    step_began_at: datetime
    verdict: str
    checks: list[RolloutCheck]
    checked_at: datetime | None
    ended_at: datetime | None


class RolloutRow(BaseModel):
    """A share of the documents, in per cent, and the rollout that changes it.

    For `source:NAME` it is the share that Temporal processes; the direct path processes the others. For `build` it is
    the share that the candidate build processes. With `shadow` the other side also processes copies, which no reader sees.
    """

    model_config = example(_ROW)
    subject: str
    share: int
    shadow: bool
    build: str | None
    changed_by: str
    changed_at: datetime | None
    reason: str
    rollout: RolloutRun | None


class RolloutChange(BaseModel):
    """A change of a share or of a rollout, from the audit trail. `share` and `shadow` are what held afterwards."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHANGE]})
    at: datetime
    actor: str
    event: str
    share: int
    shadow: bool
    reason: str


class RolloutDetail(RolloutRow):
    """A share with its last 50 changes, newest first."""

    model_config = example({**_ROW, "history": [_CHANGE]})
    history: list[RolloutChange]


class RolloutList(BaseModel):
    """The shares. A source that is not listed goes through Temporal as a whole."""

    model_config = example({"rollouts": [_ROW]})
    rollouts: list[RolloutRow]


class RolloutShare(RequestBody):
    """The share to set, and why. The reason is stored in the audit log."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"share": 10, "shadow": False, "reason": "first step"}]},
    )
    share: StrictInt = Field(ge=0, le=100)
    shadow: StrictBool = False
    reason: str = Field("", max_length=1_000)


class RolloutReason(RequestBody):
    """Why. The reason is stored in the audit log."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "looked at the differences"}]}
    )
    reason: str = Field("", max_length=1_000)


class RolloutStart(RolloutReason):
    """The rollout to begin. `plan` replaces settings of the table `[rollout]`, `build` is the candidate of subject `build`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"reason": "first week", "plan": {"steps": ["shadow", 10, 100], "min_events": 50}}
            ]
        },
    )
    build: str | None = Field(None, min_length=1, max_length=200)
    plan: dict[str, Any] = Field(default_factory=dict)


class RolloutBack(RolloutReason):
    """Where to go back to: an earlier step by its share or name, or `off`. Without `to`, to the step before."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "strange hits", "to": "off"}]}
    )
    to: str | None = Field(None, max_length=50)


class RolloutStop(RolloutReason):
    """How to end it: with `keep` the share stays as it is; without, it becomes 0."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "next week", "keep": False}]}
    )
    keep: StrictBool = False


Subject = Annotated[
    str,
    Path(description="A source's name, or `build`.", examples=["frontapp"], max_length=100),
]

router = APIRouter(tags=["rollouts"])
_CHANGED = problems(400, 401, 403, 404, 409, 413, 422, 503)


def _row(share: Share | None, run: Run | None, subject: str) -> dict[str, Any]:
    if share is None:
        share_now = 0 if subject == BUILD else 100
        row: dict[str, Any] = {"subject": subject, "share": share_now, "shadow": False}
        row |= {"build": None, "changed_by": "", "changed_at": None, "reason": ""}
    else:
        row = asdict(share)
    return {**row, "rollout": None if run is None else _run(run)}


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "build": run.build,
        "state": run.state,
        "step": run.step_name,
        "steps": [step.name for step in run.plan.steps],
        "promotion": run.plan.promotion,
        "approved": run.approved,
        "reason": run.reason,
        "changed_by": run.changed_by,
        "started_by": run.started_by,
        "started_at": run.started_at,
        "step_began_at": run.step_began,
        "verdict": run.verdict,
        "checks": run.checks,
        "checked_at": run.checked_at,
        "ended_at": run.ended_at,
    }


async def _detail(gateway: Gateway, subject: str) -> dict[str, Any]:
    app = gateway.app
    row = _row(await app.shares.find(subject), await app.runs.latest(subject), subject)
    return {**row, "history": await app.runs.history(subject)}


@router.get(
    "/v1/rollouts",
    summary="List rollouts",
    response_model=RolloutList,
    responses=problems(401, 403, 503),
)
async def list_rollouts(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """List the share of each source that is being rolled out, and of the candidate build, each with its last rollout."""
    runs = await gateway.app.runs.all_latest()
    shares = await gateway.app.shares.listed()
    return {"rollouts": [_row(share, runs.get(share.subject), share.subject) for share in shares]}


@router.get(
    "/v1/rollouts/{subject}",
    summary="Show a rollout",
    response_model=RolloutDetail,
    responses=problems(401, 403, 404, 422, 503),
)
async def show_rollout(gateway: GatewayDep, key: Reader, subject: Subject) -> dict[str, Any]:
    """Show the share of a source or of the candidate build, what its gate says, and its last changes."""
    return await _detail(gateway, gateway.app.runs.subject(subject))


@router.put(
    "/v1/rollouts/{source}",
    summary="Set the share of a source",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def set_rollout(
    gateway: GatewayDep,
    key: Admin,
    source: Annotated[
        str, Path(description="The source's name.", examples=["frontapp"], max_length=100)
    ],
    body: RolloutShare,
) -> dict[str, Any]:
    """Set what share of the source's documents goes through Temporal. It acts within a second in every process.

    A document stays on one path while the share stays as it is. What is being processed is finished where it is.
    A rollout of the source that is in progress ends.
    """
    if source not in gateway.app.sources:
        raise NotFound(f"{source[:100]}: no such source", remedy="GET /v1/sources lists them")
    provider = gateway.app.settings.rollout.flags_provider
    if provider:
        raise Conflict(
            f"{source}: {provider} decides the shares of the sources",
            remedy="change the flag there, or remove the setting rollout.flags_provider",
        )
    subject = source_subject(source)
    await gateway.app.shares.set(
        subject, body.share, shadow=body.shadow, actor=key.actor, reason=body.reason
    )
    return await _detail(gateway, subject)


@router.post(
    "/v1/rollouts/{subject}/start",
    summary="Start a rollout",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def start_rollout(
    gateway: GatewayDep, key: Admin, subject: Subject, body: RolloutStart
) -> dict[str, Any]:
    """Begin the rollout of a source's traffic, or of a build, at the first step of its plan.

    The gates then lead it from step to step, hold it while too little is known, and roll it back when one is violated.
    """
    runs = gateway.app.runs
    name = runs.subject(subject)
    await runs.start(name, actor=key.actor, reason=body.reason, build=body.build, changes=body.plan)
    return await _detail(gateway, name)


@router.post(
    "/v1/rollouts/{subject}/approve",
    summary="Approve a rollout",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def approve_rollout(
    gateway: GatewayDep, key: Admin, subject: Subject, body: RolloutReason
) -> dict[str, Any]:
    """Let a rollout go on that is held or was rolled back, or allow the next step of a manual plan.

    The gate must hold as well before the step is left.
    """
    runs = gateway.app.runs
    name = runs.subject(subject)
    await runs.approve(name, actor=key.actor, reason=body.reason)
    return await _detail(gateway, name)


@router.post(
    "/v1/rollouts/{subject}/hold",
    summary="Hold a rollout",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def hold_rollout(
    gateway: GatewayDep, key: Admin, subject: Subject, body: RolloutReason
) -> dict[str, Any]:
    """Keep a rollout at its step until it is approved. Its gate is watched all the same, and may roll it back."""
    runs = gateway.app.runs
    name = runs.subject(subject)
    await runs.hold(name, actor=key.actor, reason=body.reason)
    return await _detail(gateway, name)


@router.post(
    "/v1/rollouts/{subject}/back",
    summary="Go back in a rollout",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def go_back_in_rollout(
    gateway: GatewayDep, key: Admin, subject: Subject, body: RolloutBack
) -> dict[str, Any]:
    """Go back to an earlier step, and stay there until the rollout is approved. From `off` there is no way on."""
    runs = gateway.app.runs
    name = runs.subject(subject)
    await runs.back(name, actor=key.actor, reason=body.reason, to=body.to)
    return await _detail(gateway, name)


@router.post(
    "/v1/rollouts/{subject}/stop",
    summary="Stop a rollout",
    response_model=RolloutDetail,
    responses=_CHANGED,
)
async def stop_rollout(
    gateway: GatewayDep, key: Admin, subject: Subject, body: RolloutStop
) -> dict[str, Any]:
    """End a rollout. The share becomes 0 within a second in every process or, with `keep`, stays as it is."""
    runs = gateway.app.runs
    name = runs.subject(subject)
    await runs.stop(name, actor=key.actor, reason=body.reason, keep=body.keep)
    return await _detail(gateway, name)
