"""The worker: runs workflows and activities, and maintains schedules and builds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Worker

from apex_memory.errors import Unavailable
from apex_memory.flows.builds import MAINTAIN_SECONDS, BuildKeeper
from apex_memory.flows.drain.activities import DrainActivities
from apex_memory.flows.drain.control import Drains, drains_of, priorities_of
from apex_memory.flows.drain.copies import CopyDrains, keep_copies_awake
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.fallback import Fallback
from apex_memory.flows.fetch.activities import PullActivities
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.fetch.workflows import PULL_WORKFLOWS
from apex_memory.flows.maintenance.activities import MaintenanceActivities
from apex_memory.flows.maintenance.workflows import MAINTENANCE_WORKFLOWS
from apex_memory.flows.temporal.client import connect_by
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.temporal.errors import Translation
from apex_memory.flows.temporal.queues import BULK, QUEUES, REALTIME, SHADOW, queue_of
from apex_memory.inbox import reused_ids
from apex_memory.steps.direct_loop import DirectLoop
from apex_memory.tasks import Background, end_tasks, run_together
from apex_memory.telemetry import logger

if TYPE_CHECKING:
    from apex_memory.app import App

WORKFLOWS = (Drain, *PULL_WORKFLOWS, *MAINTENANCE_WORKFLOWS)

# Most activities at a time. Bulk work has fewer; pulls mostly wait for vendors, so that it is enough. Copies are processed
# one batch at a time whatever their slots are: a step that waits for its turn holds a slot and its lease. So there are
# two for each of many sources, since a step without a slot would lose its lease.
SLOTS = {REALTIME: 16, BULK: 8, SHADOW: 32}
STOP_SECONDS = 5.0
STUCK_SECONDS = 5.0  # how often the threads are counted that outlived their time limit
PATIENCE_SECONDS = 60.0  # how long a call is retried: the result of a finished step is worth it


async def serve_paths(
    app: App,
    *,
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    maintain_seconds: float = MAINTAIN_SECONDS,
    queues: Sequence[str] = QUEUES,
    process: str = "worker",
) -> None:
    """Serve both paths for the sources of these task queues, until `stop` is set or one of them fails, which is raised.

    Temporal by its workers; the direct path by a loop, which takes everything while the fallback is in force.
    """
    priorities = priorities_of(app.sources)
    own = {name: number for name, number in priorities.items() if queue_of(number) in queues}
    realtime = REALTIME in queues
    loop = DirectLoop(
        app.direct,
        app.inbox,
        own,
        documents=app.settings.session_documents,
        stalled=app.stalled,
        watches_stalls=realtime,
    )
    loop.watch_closely()  # this process may follow one that was killed
    # A client of its own: the worker's waits for Temporal when it connects.
    client = await connect_by(app.settings, app.keyring, lazy=True, runtime=runtime)
    fallback = Fallback(
        app, client, drains_of(app, client), loop, process=process, fetches=realtime
    )
    serving = serve(
        app,
        stop=stop,
        runtime=runtime,
        maintain_seconds=maintain_seconds,
        queues=queues,
    )
    watching = asyncio.create_task(fallback.watch(), name="fallback")
    threads = asyncio.create_task(until_stuck(app), name="threads")
    paths = [
        asyncio.create_task(serving, name="temporal"),
        asyncio.create_task(loop.run(stop), name="direct"),
    ]
    try:
        await asyncio.wait([*paths, watching, threads], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        await end_tasks([watching, threads])
        ended = await asyncio.gather(*paths, watching, threads, return_exceptions=True)
    for result in ended:
        if isinstance(result, Exception):
            raise result


async def until_stuck(app: App) -> None:
    """Raise `Unavailable` once threads that outlived their time limit take the processor. Whoever restarts the worker ends them."""
    while not (app.pipeline.stuck or reused_ids.threads.stuck):  # noqa: ASYNC110 -- threads cannot set its events
        await asyncio.sleep(STUCK_SECONDS)
    raise Unavailable(
        "worker",
        "threads go on after the time limit of their events",
        remedy="restart it; the log names the events (`preparing timed out`), and after max_attempts they are dead letters",
    )


async def serve(
    app: App,
    *,
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    maintain_seconds: float = MAINTAIN_SECONDS,
    queues: Sequence[str] = QUEUES,
) -> None:
    """Serve these task queues until `stop` is set. The worker of the real-time queue also maintains schedules and builds.

    Waits while Temporal is unavailable, and continues when it responds again. That the build runs is recorded
    meanwhile too: its claims depend on it, also those of the direct path. Raises `BackgroundFailed` when that, or another
    loop, fails for good.
    """
    log = logger(component="worker", build=app.build)
    record = partial(app.builds.work, decides=app.settings.routing == "self")
    async with Background(stop.set) as background:
        background.run(record, name="record of the build")
        while not stop.is_set():
            try:
                client = await connect_by(
                    app.settings, app.keyring, runtime=runtime, patience=PATIENCE_SECONDS
                )
                await _work(app, client, stop, maintain_seconds, queues)
            except (Unavailable, RPCError, RuntimeError) as error:
                # RuntimeError: the server refuses the worker.
                log.warning("Temporal does not respond; trying again", reason=str(error)[:300])
                await _wait_for(stop, seconds=2)


async def _work(
    app: App,
    client: Client,
    stop: asyncio.Event,
    maintain_seconds: float,
    queues: Sequence[str],
) -> None:
    drains = drains_of(app, client)
    deployment = Deployment(client, app.build, app.settings.deployment_name)
    activities = activities_of(app, drains, Pulling(client, app.sources), deployment)
    async with workers(deployment, activities, queues):
        if REALTIME not in queues:
            await stop.wait()
            return
        keeper = BuildKeeper(app, drains, deployment, seconds=maintain_seconds)
        async with Background(stop.set) as background:
            background.run(partial(keep_copies_awake, app, CopyDrains(client)), name="copies")
            await run_together(keeper.run(), until_set(stop))


def activities_of(
    app: App, drains: Drains, pulling: Pulling, deployment: Deployment
) -> list[Callable[..., Any]]:
    """Return every activity, over one opened `App`."""
    drain = DrainActivities(app)
    fetching = PullActivities(app, drains)
    maintenance = MaintenanceActivities(
        app, drains, pulling, deployment=deployment, workflows=WORKFLOWS
    )
    return [
        *(drain.claim, drain.prepare, drain.publish, drain.give_up),
        *(maintenance.sweep, maintenance.collect, maintenance.reconcile, maintenance.smoke_test),
        maintenance.rollout_gate,
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


async def until_set(stop: asyncio.Event) -> None:
    """Return when `stop` is set: a loop for `run_together`."""
    await stop.wait()


async def _wait_for(stop: asyncio.Event, *, seconds: float) -> None:
    """Return when `stop` is set, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
