"""A workflow per event, the pattern that batches replace: with an activity or a local activity per step, and with one for all.

And the drain of the product, which processes events in batches, on the same Temporal server and in the same process.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from apex_memory.app import App
from apex_memory.flows.drain.activities import DrainActivities
from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.temporal.attributes import ensure_attributes
from apex_memory.flows.temporal.client import connect_by
from apex_memory.flows.temporal.errors import Translation
from apex_memory.inbox import Consumer
from apex_memory.model import Event, now
from apex_memory.saga.stage import Stage
from tests.waiting import until

AT_ONCE = 100
LIMIT: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=60)}


@workflow.defn
class AsOne:
    """A workflow with a single activity for all steps."""

    @workflow.run
    async def run(self, batch: str) -> int:
        done: int = await workflow.execute_activity("process_all", batch, **LIMIT)
        return done


@workflow.defn
class StepByStep:
    """A workflow with an activity per step. Intermediate results stay in the worker, which is cheaper than sending them through the server."""

    @workflow.run
    async def run(self, batch: str) -> int:
        for step in ("claim", "parse", "embed", "keep", "begin"):
            await workflow.execute_activity(step, batch, **LIMIT)
        await asyncio.gather(
            workflow.execute_activity("write_graph", batch, **LIMIT),
            workflow.execute_activity("write_vectors", batch, **LIMIT),
        )
        await workflow.execute_activity("verify", batch, **LIMIT)
        done: int = await workflow.execute_activity("commit", batch, **LIMIT)
        return done


@workflow.defn
class LocalSteps:
    """The same with local activities: the worker runs them within the workflow task, without a round trip for each."""

    @workflow.run
    async def run(self, batch: str) -> int:
        for step in ("claim", "parse", "embed", "keep", "begin"):
            await workflow.execute_local_activity(step, batch, **LIMIT)
        await asyncio.gather(
            workflow.execute_local_activity("write_graph", batch, **LIMIT),
            workflow.execute_local_activity("write_vectors", batch, **LIMIT),
        )
        await workflow.execute_local_activity("verify", batch, **LIMIT)
        done: int = await workflow.execute_local_activity("commit", batch, **LIMIT)
        return done


class Steps:
    """The writes of a batch, for one event at a time."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._held: dict[str, Any] = {}
        self._stages: dict[str, list[Stage]] = {}

    @property
    def all(self) -> list[Callable[..., Any]]:
        return [
            *(self.process_all, self.claim, self.parse, self.embed, self.keep, self.begin),
            *(self.write_graph, self.write_vectors, self.verify, self.commit),
        ]

    @activity.defn
    async def process_all(self, batch: str) -> int:
        await self.claim(batch)
        await self._app.steps.prepare("documents", UUID(batch))
        return len((await self._app.steps.publish(UUID(batch))).done)

    @activity.defn
    async def claim(self, batch: str) -> None:
        await self._app.inbox.claim(
            "documents",
            batch=UUID(batch),
            limit=1,
            lease=60,
            consumer=Consumer("temporal", self._app.build),
        )

    @activity.defn
    async def parse(self, batch: str) -> None:
        document = self._app.sources["documents"].document
        events = await self._app.inbox.start(
            UUID(batch), list(await self._app.inbox.unprepared(UUID(batch)))
        )
        made = await self._app.pipeline.prepare([(event, document) for event in events])
        self._held[batch] = list(zip(events, made, strict=True))

    @activity.defn
    async def embed(self, batch: str) -> None:
        """Do nothing: vectors are given, and the round trip is what remains of this step."""

    @activity.defn
    async def keep(self, batch: str) -> None:
        await self._app.publication.store_manifests(UUID(batch), self._held.pop(batch))

    @activity.defn
    async def begin(self, batch: str) -> None:
        self._stages[batch] = (await self._app.publication.journal.begin(UUID(batch))).stages

    @activity.defn
    async def write_graph(self, batch: str) -> None:
        await self._app.publication._write_graph(self._stages[batch])

    @activity.defn
    async def write_vectors(self, batch: str) -> None:
        await self._app.publication._write_vectors(self._stages[batch])

    @activity.defn
    async def verify(self, batch: str) -> None:
        if errors := await self._app.publication.verify(self._stages[batch]):
            raise AssertionError(f"not verified: {errors}")

    @activity.defn
    async def commit(self, batch: str) -> int:
        stages, at = self._stages.pop(batch), now()
        done = await self._app.publication.journal.commit(
            UUID(batch), stages, graph_at=at, vectors_at=at
        )
        self._app.publication.manifests.forget(stage.manifest.id for stage in stages)
        return len(done.done)


async def run_each(app: App, pattern: Any, events: Sequence[Event]) -> float:
    """Return events/s with a workflow per event, up to `AT_ONCE` at a time. Raises `AssertionError` unless each is done."""
    await app.inbox.land(events)
    async with _worker(app, [AsOne, StepByStep, LocalSteps], Steps(app).all) as (client, queue):
        free = asyncio.Semaphore(AT_ONCE)

        async def run_workflow() -> int:
            async with free:
                id = str(uuid.uuid4())
                done: int = await client.execute_workflow(pattern.run, id, id=id, task_queue=queue)
                return done

        began = time.perf_counter()
        finished = await asyncio.gather(*(run_workflow() for _ in events))
        seconds = time.perf_counter() - began
    if sum(finished) != len(events):
        raise AssertionError(f"{sum(finished)} of {len(events)} done")
    return len(events) / seconds


async def run_drain(app: App, events: Sequence[Event]) -> float:
    """Return events/s of the product's drain, from its start to the end of the last event."""
    for first in range(0, len(events), 1_000):
        await app.inbox.land(events[first : first + 1_000])
    client = await connect_by(app.settings, app.keyring)
    steps = DrainActivities(app)
    activities: list[Callable[..., Any]] = [
        steps.claim,
        steps.prepare,
        steps.publish,
        steps.give_up,
    ]
    await ensure_attributes(client)
    async with _worker(app, [Drain], activities) as (client, queue):
        began = time.perf_counter()
        handle = await client.start_workflow(
            Drain.run, DrainInput("documents", 1, check_now=True), id=queue, task_queue=queue
        )

        async def nothing_open() -> bool:
            return not await app.db.fetch_one("SELECT 1 FROM inbox WHERE open LIMIT 1")

        await until(nothing_open, seconds=3600, every=0.01)
        seconds = time.perf_counter() - began
        await client.get_workflow_handle(handle.id).terminate("measured")
    row = await app.db.fetch_one("SELECT count(*) AS n FROM inbox WHERE state <> 'done'")
    if row is None or row["n"]:
        raise AssertionError(f"{row} not done")
    return len(events) / seconds


@asynccontextmanager
async def _worker(
    app: App, workflows: Sequence[type], activities: Sequence[Callable[..., Any]]
) -> AsyncIterator[tuple[Client, str]]:
    """Run a worker on a queue of its own. It has no sandbox, which favours the workflow per event."""
    client, queue = await connect_by(app.settings, app.keyring), f"bench-{uuid.uuid4().hex[:8]}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=activities,
        interceptors=[Translation()],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        yield client, queue
