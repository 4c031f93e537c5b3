"""Operations: the smoke test, the comparison of a store with PostgreSQL, and its rebuild."""

from __future__ import annotations

import asyncio
from datetime import datetime
from time import perf_counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, StrictBool

from apex_memory.errors import ApexError, Conflict, Unavailable
from apex_memory.flows.maintenance.smoke_test import run_smoke_test
from apex_memory.gateway.dependencies import Admin, Gateway, GatewayDep, Reader
from apex_memory.gateway.read_models.events import Events
from apex_memory.gateway.read_models.status import temporal_reachable
from apex_memory.gateway.routes.shared import RequestBody, example, problems
from apex_memory.saga.rebuild import RebuildProgress
from apex_memory.telemetry import logger


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


class ReconcileRequest(RequestBody):
    """Options of the comparison. `prune` also removes stages that PostgreSQL does not know, without waiting a day."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prune": False}]})
    prune: StrictBool = False


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


class RebuildState(BaseModel):
    """How far the last rebuild of a store is: documents written, of so many, and those that the check after it repaired.

    Of the cache: entries removed. `interrupted` means that the process that ran it died; the workers complete the store
    then. While it is not complete, searches report it as degraded.
    """

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "store": "graph",
                    "state": "running",
                    "done": 4200,
                    "total": 10412,
                    "repaired": 0,
                    "started_at": "2026-03-01T09:00:00Z",
                    "ended_at": None,
                    "error": "",
                    "remedy": "",
                }
            ]
        },
    )
    store: str
    state: Literal["idle", "running", "done", "failed", "interrupted"]
    done: int
    total: int
    repaired: int
    started_at: datetime | None
    ended_at: datetime | None
    error: str
    remedy: str


RebuiltStore = Annotated[
    Literal["graph", "vectors", "cache"], Path(description="The store.", examples=["graph"])
]

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


@router.post(
    "/v1/stores/{store}/rebuild",
    summary="Rebuild a store",
    status_code=202,
    response_model=RebuildState,
    responses=problems(400, 401, 403, 409, 422, 503),
)
async def rebuild(gateway: GatewayDep, key: Admin, store: RebuiltStore) -> Any:
    """Write everything that readers see to a store again, from PostgreSQL, and verify it. The cache is emptied.

    Returns at once; `GET` of the same path shows the progress. Everything works meanwhile, and searches report the
    store as degraded. Safe to repeat. Also fills a new engine after its URL was changed.
    """
    progress = await gateway.app.rebuild.progress(store)
    if progress.state == "running":
        raise Conflict(f"{store} is being rebuilt already", remedy="wait until that has ended")
    began = asyncio.Event()
    task = asyncio.create_task(_rebuild(gateway, store, began), name=f"rebuild {store}")
    gateway.tasks.add(task)
    task.add_done_callback(gateway.tasks.discard)
    waiting = asyncio.create_task(began.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done() and not began.is_set():
        task.result()  # it could not begin
    return await gateway.app.rebuild.progress(store)


async def _rebuild(gateway: Gateway, store: str, began: asyncio.Event) -> None:
    """Rebuild in the background. What fails after the begin is recorded in the progress."""
    try:
        await gateway.app.rebuild.run(store, began=began.set)
    except ApexError as error:
        if not began.is_set():
            raise
        logger(component="rebuild").error(
            "store not rebuilt", store=store, reason=str(error), remedy=error.remedy
        )


@router.get(
    "/v1/stores/{store}/rebuild",
    summary="Get the progress of a rebuild",
    response_model=RebuildState,
    responses=problems(401, 403, 422, 503),
)
async def rebuild_progress(
    gateway: GatewayDep, key: Reader, store: RebuiltStore
) -> RebuildProgress:
    """Get how far the last rebuild of a store is, whichever gateway runs it; `idle` if there was none."""
    return await gateway.app.rebuild.progress(store)
