"""The worker: runs workflows and activities, and maintains schedules and builds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Worker

from apex_memory.config import Settings
from apex_memory.errors import Unavailable
from apex_memory.flows.drain.activities import DrainActivities
from apex_memory.flows.drain.control import Drains, priorities_of
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.fetch.activities import PullActivities
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.fetch.workflows import PULL_WORKFLOWS
from apex_memory.flows.maintenance.activities import MaintenanceActivities
from apex_memory.flows.maintenance.workflows import MAINTENANCE_WORKFLOWS
from apex_memory.flows.schedules import ensure_pulls, ensure_schedules, start_rounds
from apex_memory.flows.temporal.attributes import ensure_attributes
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.deployment import UNCLAIMED_SECONDS, Deployment
from apex_memory.flows.temporal.errors import Translation
from apex_memory.flows.temporal.queues import BULK, QUEUES, REALTIME, drain_id
from apex_memory.sources.base import PulledSource, Source
from apex_memory.telemetry import logger

if TYPE_CHECKING:
    from apex_memory.app import App

WORKFLOWS = (Drain, *PULL_WORKFLOWS, *MAINTENANCE_WORKFLOWS)

# Most activities at a time. Bulk work has fewer; pulls mostly wait for vendors, so that it is enough.
SLOTS = {REALTIME: 16, BULK: 8}
MAINTAIN_SECONDS = 30.0
STOP_SECONDS = 5.0
PATIENCE_SECONDS = 60.0  # how long a call is retried: the result of a finished step is worth it


async def serve(
    app: App,
    *,
    build: str,
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    maintain_seconds: float = MAINTAIN_SECONDS,
    queues: Sequence[str] = QUEUES,
) -> None:
    """Serve these task queues until `stop` is set. The worker of the real-time queue also maintains schedules and builds.

    Waits while Temporal is unavailable, and continues when it responds again.
    """
    log = logger(component="worker", build=build)
    while not stop.is_set():
        try:
            client = await connect(
                app.settings.temporal, runtime=runtime, patience=PATIENCE_SECONDS
            )
            await _work(app, client, build, stop, maintain_seconds, queues)
        except (Unavailable, RPCError, RuntimeError) as error:
            # RuntimeError: the server refuses the worker.
            log.warning("Temporal does not respond; trying again", reason=str(error)[:300])
            await _wait_for(stop, seconds=2)


async def _work(
    app: App,
    client: Client,
    build: str,
    stop: asyncio.Event,
    maintain_seconds: float,
    queues: Sequence[str],
) -> None:
    drains = Drains(client, priorities_of(app.sources))
    deployment = Deployment(client, build)
    async with workers(
        deployment, activities_of(app, drains, Pulling(client, app.sources), build), queues
    ):
        if REALTIME not in queues:
            await stop.wait()
            return
        maintaining = asyncio.create_task(_maintain(app, drains, deployment, maintain_seconds))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((maintaining, stopping), return_when=asyncio.FIRST_COMPLETED)
            if maintaining.done():
                maintaining.result()
        finally:
            maintaining.cancel()
            stopping.cancel()


async def _maintain(app: App, drains: Drains, deployment: Deployment, seconds: float) -> None:
    await activate_build(app.settings, app.sources, drains, deployment)
    await maintain(app.settings, app.sources, drains, deployment, seconds=seconds)


def activities_of(
    app: App, drains: Drains, pulling: Pulling, build: str
) -> list[Callable[..., Any]]:
    """Return every activity, over one opened `App`."""
    drain = DrainActivities(app)
    fetching = PullActivities(app, drains)
    maintenance = MaintenanceActivities(app, drains, pulling, build=build)
    return [
        *(drain.claim, drain.prepare, drain.publish, drain.give_up),
        *(maintenance.sweep, maintenance.collect, maintenance.reconcile, maintenance.smoke_test),
        *(fetching.pull, fetching.follow, fetching.backfill),
        *(fetching.land_file, fetching.answer_file),
    ]


@asynccontextmanager
async def workers(
    deployment: Deployment,
    activities: Sequence[Callable[..., Any]],
    queues: Sequence[str] = QUEUES,
) -> AsyncIterator[None]:
    """Run a worker for each of these task queues inside the block."""
    started: list[Worker] = []
    async with AsyncExitStack() as stack:
        for queue in queues:
            worker = Worker(
                deployment.client,
                task_queue=queue,
                workflows=WORKFLOWS,
                activities=activities,
                interceptors=[Translation()],
                deployment_config=deployment.config,
                max_concurrent_activities=SLOTS[queue],
                max_cached_workflows=200,
                # How long workflows of a killed worker wait before another worker gets them.
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
                graceful_shutdown_timeout=timedelta(seconds=STOP_SECONDS),
            )
            await stack.enter_async_context(worker)
            started.append(worker)
        try:
            yield
        finally:  # in parallel, so that stopping takes at most `STOP_SECONDS`
            await asyncio.gather(*(worker.shutdown() for worker in started))


async def activate_build(
    settings: Settings, sources: Mapping[str, Source], drains: Drains, deployment: Deployment
) -> None:
    """Make this build current, start the schedules and the streams, and wake the drain of every source."""
    await ensure_attributes(deployment.client)
    await deployment.make_current()
    await ensure_schedules(deployment.client, settings, sources)
    await Pulling(deployment.client, sources).follow()
    for source in drains.sources:
        await drains.wake(source)
    logger(component="worker", build=deployment.build).info("worker ready", sources=drains.sources)


async def maintain(
    settings: Settings,
    sources: Mapping[str, Source],
    drains: Drains,
    deployment: Deployment,
    *,
    seconds: float = MAINTAIN_SECONDS,
    unclaimed: float = UNCLAIMED_SECONDS,
) -> None:
    """Every few seconds: restart workflows without a worker, and update schedules and streams. Never returns."""
    log = logger(component="worker", build=deployment.build)
    complete = _complete_sources(sources)
    while True:
        try:
            await _restart_abandoned(drains, deployment, unclaimed)
            await asyncio.sleep(seconds)
            if await deployment.current() is None:  # Temporal lost its data
                await activate_build(settings, sources, drains, deployment)
            if _complete_sources(sources) != complete:  # secrets were set meanwhile
                complete = _complete_sources(sources)
                await ensure_pulls(deployment.client, sources)
            await Pulling(deployment.client, sources).follow()
        except (RPCError, Unavailable) as error:
            log.warning("Temporal does not respond; trying again", reason=str(error)[:300])
            await asyncio.sleep(1)


def _complete_sources(sources: Mapping[str, Source]) -> set[str]:
    return {
        name
        for name, source in sources.items()
        if isinstance(source, PulledSource) and not source.missing_settings
    }


async def _restart_abandoned(drains: Drains, deployment: Deployment, unclaimed: float) -> None:
    """Terminate workflows that no worker runs any more, and start them on this build. Paused stays paused."""
    by_id = {drain_id(source): source for source in drains.sources}
    for execution in await deployment.terminate_abandoned(unclaimed):
        logger(component="worker").warning(
            "terminated a workflow without a worker", workflow=execution.id, run=execution.run_id
        )
        if execution.id in by_id:
            paused = bool(await execution.memo_value("paused", False))
            await drains.wake(by_id[execution.id], paused=paused)
        elif (schedule := execution.id.partition("-")[0]) in ("sweep", "collect"):
            await start_rounds(deployment.client, schedule)


async def _wait_for(stop: asyncio.Event, *, seconds: float) -> None:
    """Return when `stop` is set, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
