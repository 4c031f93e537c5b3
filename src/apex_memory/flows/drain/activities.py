"""The activities of a drain: each calls `app` and returns ids and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from temporalio import activity

from apex_memory.flows.drain.messages import (
    SHOWN,
    BatchInput,
    ClaimedBatch,
    ClaimInput,
    GiveUpInput,
    StepReport,
)
from apex_memory.flows.drain.progress import SEVERITY
from apex_memory.flows.temporal.heartbeat import heartbeating
from apex_memory.inbox import Run

if TYPE_CHECKING:  # the workflow imports this module, and must not load every engine
    from apex_memory.app import App
    from apex_memory.saga.publication import BatchResult


class DrainActivities:
    """The activities of a drain, over one opened `App`."""

    def __init__(self, app: App) -> None:
        self._app = app

    @activity.defn
    async def claim(self, input: ClaimInput) -> ClaimedBatch:
        """Lease the next batch of the source."""
        info = activity.info()
        run = Run(info.workflow_id or "", info.workflow_run_id or "")
        batch = await self._app.steps.claim(input.source, batch=UUID(input.batch), run=run)
        return ClaimedBatch(
            str(batch.id),
            len(batch.events),
            batch.more,
            [str(event.id) for event in batch.events[:SHOWN]],
        )

    @activity.defn
    async def prepare(self, input: BatchInput) -> StepReport:
        """Parse, extract and embed the events of a batch."""
        async with heartbeating():
            return _report(await self._app.steps.prepare(input.source, UUID(input.batch)))

    @activity.defn
    async def publish(self, input: BatchInput) -> StepReport:
        """Write the prepared events of a batch to all stores."""
        async with heartbeating():
            behind = UUID(input.behind) if input.behind else None
            return _report(await self._app.steps.publish(UUID(input.batch), behind=behind))

    @activity.defn
    async def give_up(self, input: GiveUpInput) -> None:
        """Release a batch whose step failed permanently."""
        await self._app.steps.give_up(input.source, UUID(input.batch), input.step, input.reason)


def _report(result: BatchResult) -> StepReport:
    """Return the counts of all events, and the outcomes of the first few, the most severe first."""
    counts: dict[str, int] = {}
    outcomes: dict[str, str] = {}
    for outcome in SEVERITY:
        ids = getattr(result, outcome)
        if ids:
            counts[outcome] = len(ids)
        for id in ids[: SHOWN - len(outcomes)]:
            outcomes[str(id)] = outcome
    return StepReport(counts, outcomes, result.landed)
