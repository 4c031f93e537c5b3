"""Operations: the smoke test, and the comparison of a store with PostgreSQL."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from apex_memory.errors import Conflict, Unavailable
from apex_memory.flows.maintenance.smoke_test import run_smoke_test
from apex_memory.gateway.dependencies import Admin, GatewayDep, Reader
from apex_memory.gateway.read_models.events import Events
from apex_memory.gateway.read_models.status import temporal_reachable
from apex_memory.gateway.routes.shared import example, problems


class SmokeTestPart(BaseModel):
    """The result of one store, or of the worker."""

    name: str
    state: Literal["ready", "unavailable"]
    answer: str


class SmokeTest(BaseModel):
    """The result of a round trip through Temporal and a worker to every store."""

    model_config = example(
        {
            "workflow_id": "hello:6d3e1c1e-1c0e-4b0f-9a55-2f4e3d2c1b0a",
            "workflow_url": None,
            "milliseconds": 84.2,
            "parts": [
                {"name": "worker", "state": "ready", "answer": "0.1.0+7e2f"},
                {"name": "documents", "state": "ready", "answer": "PostgreSQL 18.6"},
            ],
        }
    )
    workflow_id: str
    workflow_url: str | None
    milliseconds: float
    parts: list[SmokeTestPart]


class ReconcileRequest(BaseModel):
    """Options of the comparison. `prune` also removes stages that PostgreSQL does not know, without waiting a day."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"prune": False}]})
    prune: bool = False


class ReconcileResult(BaseModel):
    """Stages checked, documents repaired, stray stages removed or left alone."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "store": "vectors",
                    "stages": 10412,
                    "repaired": 3,
                    "removed": 0,
                    "left": 0,
                    "errors": [],
                }
            ]
        },
    )
    store: str
    stages: int
    repaired: int
    removed: int
    left: int
    errors: list[str]


router = APIRouter(tags=["operations"])


@router.post(
    "/v1/hello",
    summary="Run the smoke test",
    response_model=SmokeTest,
    responses=problems(401, 403, 503),
)
async def say_hello(gateway: GatewayDep, key: Reader) -> dict[str, Any]:
    """Run one small workflow through Temporal, a worker and every store. Returns 503 when no worker takes it within 15 s."""
    if not await temporal_reachable(gateway.temporal):
        raise Unavailable("temporal", "does not respond")
    began = perf_counter()
    id, report = await run_smoke_test(gateway.temporal)
    parts = [{"name": "worker", "state": "ready", "answer": report.build}]
    parts += [
        {"name": name, "state": "ready", "answer": version}
        for name, version in report.stores.items()
    ]
    parts += [
        {"name": name, "state": "unavailable", "answer": reason}
        for name, reason in report.away.items()
    ]
    return {
        "workflow_id": id,
        "workflow_url": Events(gateway.app.db, gateway.app.settings).workflow_url(id, None),
        "milliseconds": round((perf_counter() - began) * 1000, 1),
        "parts": parts,
    }


@router.post(
    "/v1/stores/{store}/reconcile",
    summary="Compare a store with PostgreSQL",
    response_model=ReconcileResult,
    responses=problems(400, 401, 403, 409, 413, 422, 503),
)
async def reconcile(
    gateway: GatewayDep,
    key: Admin,
    store: Annotated[
        Literal["graph", "vectors"], Path(description="The store.", examples=["vectors"])
    ],
    body: ReconcileRequest,
) -> Any:
    """Compare a store with PostgreSQL, repair what the store lost and remove what PostgreSQL does not know.

    Restores an empty store too. Only one comparison of a store runs at a time.
    """
    if store in gateway.reconciling:
        raise Conflict(
            f"{store} is being compared already", remedy="wait until that comparison ends"
        )
    gateway.reconciling.add(store)
    try:
        return await gateway.app.recovery.reconcile(store, prune_unknown=body.prune)
    finally:
        gateway.reconciling.discard(store)
