"""The pattern that batches replace: a workflow an event, with one activity that does all its writes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from temporalio import activity, workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from apex_memory.app import App
from apex_memory.flows.client import connect
from apex_memory.model import Event

QUEUE = "bench-per-event"
AT_ONCE = 100


@workflow.defn
class PerEvent:
    @workflow.run
    async def run(self, batch: str) -> int:
        done: int = await workflow.execute_activity(
            "carry_one", batch, start_to_close_timeout=timedelta(seconds=60)
        )
        return done


class Steps:
    def __init__(self, app: App) -> None:
        self._app = app

    @activity.defn
    async def carry_one(self, batch: str) -> int:
        """Claim one event, prepare and publish it: the writes that a batch does for hundreds."""
        app, id = self._app, UUID(batch)
        claimed = await app.inbox.claim("documents", batch=id, limit=1, lease=60)
        await app.prepare("documents", id)
        report = await app.publish(id)
        return len(claimed) and len(report.done)


async def carry_each(app: App, events: Sequence[Event]) -> float:
    """Events a second, each by a workflow of its own. Fails unless each workflow carried one."""
    await app.land(events)
    client = await connect(app.settings.temporal)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[PerEvent],
        activities=[Steps(app).carry_one],
        workflow_runner=UnsandboxedWorkflowRunner(),  # the cheaper one: in favour of the pattern
    ):
        free = asyncio.Semaphore(AT_ONCE)

        async def one() -> int:
            async with free:
                id = str(uuid.uuid4())
                return await client.execute_workflow(PerEvent.run, id, id=id, task_queue=QUEUE)

        began = time.perf_counter()
        carried = await asyncio.gather(*(one() for _ in events))
        seconds = time.perf_counter() - began
    if sum(carried) != len(events):
        raise AssertionError(f"{sum(carried)} of {len(events)} carried")
    return len(events) / seconds
