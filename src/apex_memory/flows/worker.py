"""The worker: carries what Temporal hands out, and sees to schedules, builds and wakes."""

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
from apex_memory.flows.schedules import begin_rounds, ensure_pulls, ensure_schedules
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

# Steps at a time: bulk work gets the smaller share. Pulls wait for vendors most of their time, so it is not too small.
SLOTS = {REALTIME: 16, BULK: 8}
MAINTAIN_SECONDS = 30.0
STOP_SECONDS = 5.0
PATIENCE_SECONDS = 60.0  # a finished step's report is worth waiting for


async def serve(
    app: App,
    *,
    build: str,
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    maintain_seconds: float = MAINTAIN_SECONDS,
    queues: Sequence[str] = QUEUES,
) -> None:
    """Work on these queues until `stop` is set. Who works in real time also tends schedules and drains.

    Waits for Temporal as long as it takes, and goes on when it comes back."""
    log = logger(component="worker", build=build)
    while not stop.is_set():
        try:
            client = await connect(
                app.settings.temporal, runtime=runtime, patience=PATIENCE_SECONDS
            )
            await _work(app, client, build, stop, maintain_seconds, queues)
        except (Unavailable, RPCError, RuntimeError) as error:
            # RuntimeError is what the library raises for a worker that the server will not have.
            log.warning("Temporal does not answer; trying again", reason=str(error)[:300])
            await _either(stop, seconds=2)


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
        deployment, steps_of(app, drains, Pulling(client, app.sources), build), queues
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


def steps_of(app: App, drains: Drains, pulling: Pulling, build: str) -> list[Callable[..., Any]]:
    """Every activity of the real application."""
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
    """A worker for each of these task queues, polling inside the block."""
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
                # A killed worker's workflows wait for it that long before another gets them.
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
                graceful_shutdown_timeout=timedelta(seconds=STOP_SECONDS),
            )
            await stack.enter_async_context(worker)
            started.append(worker)
        try:
            yield
        finally:  # both at once, so that stopping takes `STOP_SECONDS` at most
            await asyncio.gather(*(worker.shutdown() for worker in started))


async def activate_build(
    settings: Settings, sources: Mapping[str, Source], drains: Drains, deployment: Deployment
) -> None:
    """Make this build current, start the schedules and what follows streams, wake every source."""
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
    """See to it, for ever, that every workflow has a worker, and that Temporal knows what it should."""
    log = logger(component="worker", build=deployment.build)
    complete = _complete(sources)
    while True:
        try:
            await _restart_abandoned(drains, deployment, unclaimed)
            await asyncio.sleep(seconds)
            if await deployment.current() is None:  # Temporal came back without its data
                await activate_build(settings, sources, drains, deployment)
            if (now := _complete(sources)) != complete:  # secrets were set meanwhile
                complete = now
                await ensure_pulls(deployment.client, sources)
            await Pulling(deployment.client, sources).follow()
        except (RPCError, Unavailable) as error:
            log.warning("Temporal does not answer; trying again", reason=str(error)[:300])
            await asyncio.sleep(1)


def _complete(sources: Mapping[str, Source]) -> set[str]:
    return {
        name
        for name, source in sources.items()
        if isinstance(source, PulledSource) and not source.missing_settings
    }


async def _restart_abandoned(drains: Drains, deployment: Deployment, unclaimed: float) -> None:
    """End what no worker carries any more, and let this build carry it on: paused stays paused."""
    by_id = {drain_id(source): source for source in drains.sources}
    for ended in await deployment.end_abandoned(unclaimed):
        logger(component="worker").warning(
            "ended a workflow that no worker carries", workflow=ended.id, run=ended.run_id
        )
        if ended.id in by_id:
            paused = bool(await ended.memo_value("paused", False))
            await drains.wake(by_id[ended.id], paused=paused)
        elif (schedule := ended.id.partition("-")[0]) in ("sweep", "collect"):
            await begin_rounds(deployment.client, schedule)


async def _either(stop: asyncio.Event, *, seconds: float) -> None:
    """Return when `stop` is set, or after a while."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
