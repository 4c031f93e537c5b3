"""The steps as Temporal runs them: each calls `app`, and answers with ids and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from temporalio import activity

from apex_memory.flows.drain.messages import (
    SHOWN,
    BatchInput,
    ClaimedBatch,
    ClaimInput,
    EventName,
    GiveUpInput,
    StepReport,
)
from apex_memory.flows.drain.progress import SEVERITY
from apex_memory.flows.temporal.heartbeat import heartbeating
from apex_memory.inbox import Run

if TYPE_CHECKING:  # `workflows` names the activities, and must not load every engine for that
    from apex_memory.app import App
    from apex_memory.saga.publication import BatchResult


class DrainActivities:
    """The steps of a drain, around one opened `App`."""

    def __init__(self, app: App) -> None:
        self._app = app

    @activity.defn
    async def claim(self, order: ClaimInput) -> ClaimedBatch:
        info = activity.info()
        run = Run(info.workflow_id or "", info.workflow_run_id or "")
        batch = await self._app.steps.claim(order.source, batch=UUID(order.batch), run=run)
        return ClaimedBatch(
            str(batch.id),
            len(batch.events),
            batch.more,
            [EventName(str(event.id), event.event_id) for event in batch.events[:SHOWN]],
        )

    @activity.defn
    async def prepare(self, order: BatchInput) -> StepReport:
        async with heartbeating():
            return _report(await self._app.steps.prepare(order.source, UUID(order.batch)))

    @activity.defn
    async def publish(self, order: BatchInput) -> StepReport:
        async with heartbeating():
            behind = UUID(order.behind) if order.behind else None
            return _report(await self._app.steps.publish(UUID(order.batch), behind=behind))

    @activity.defn
    async def give_up(self, order: GiveUpInput) -> None:
        """Take back a batch that a step failed on."""
        await self._app.steps.give_up(order.source, UUID(order.batch), order.step, order.reason)


def _report(result: BatchResult) -> StepReport:
    """Counts of all, and the first few ids, the gravest outcomes first."""
    by_outcome = {outcome: ids for outcome in SEVERITY if (ids := getattr(result, outcome))}
    named = [(str(id), outcome) for outcome, ids in by_outcome.items() for id in ids]
    return StepReport(
        {outcome: len(ids) for outcome, ids in by_outcome.items()},
        dict(named[:SHOWN]),
        result.landed,
    )
