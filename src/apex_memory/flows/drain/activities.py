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
from apex_memory.flows.temporal.queues import COPIES, candidate_drain_id, drain_id
from apex_memory.inbox import WorkflowRun
from apex_memory.rollout.shadow_queue import BATCH_COPIES
from apex_memory.rollout.subjects import source_subject
from apex_memory.telemetry import traces

if TYPE_CHECKING:  # the workflow imports this module, and must not load every engine
    from apex_memory.app import App
    from apex_memory.rollout.shadow_steps import CopyResult
    from apex_memory.saga.publication import BatchResult


class DrainActivities:
    """The activities of a drain, over one opened `App`."""

    def __init__(self, app: App) -> None:
        self._app = app

    @activity.defn
    async def claim(self, input: ClaimInput) -> ClaimedBatch:
        """Lease the next batch of the source: of the documents that Temporal and this build process."""
        if input.source.startswith(COPIES):
            return await self._claim_copies(input)
        info = activity.info()
        run = WorkflowRun(info.workflow_id or "", info.workflow_run_id or "")
        batch = await self._app.steps.claim(
            input.source, path="temporal", everything=False, batch=UUID(input.batch), run=run
        )
        return ClaimedBatch(
            str(batch.id),
            len(batch.events),
            batch.more,
            [str(event.id) for event in batch.events[:SHOWN]],
            batch.trace_parents[:SHOWN] if traces.enabled() else [],
            await self._place(input.source, run.workflow_id, empty=not batch.events),
        )

    async def _place(self, source: str, workflow: str, *, empty: bool) -> str:
        """Return `ClaimedBatch.place`. The claim itself decides what is claimed; this moves drains that claim nothing."""
        if not workflow.startswith(
            drain_id(source)
        ):  # a drain of copies, which is bound to its build
            return ""
        routing = await self._app.builds.refresh() if empty else self._app.builds.routing
        role = routing.role_of(self._app.build)
        if workflow == candidate_drain_id(source, self._app.build):
            return "stay" if role == "candidate" and routing.share else "end"
        if role == "current":
            return "stay"
        return "end" if role == "candidate" else "leave"

    async def _claim_copies(self, input: ClaimInput) -> ClaimedBatch:
        subject = source_subject(input.source.removeprefix(COPIES))
        copies = await self._app.shadow.claim(subject, batch=UUID(input.batch))
        return ClaimedBatch(input.batch, len(copies), more=len(copies) >= BATCH_COPIES)

    @activity.defn
    async def prepare(self, input: BatchInput) -> StepReport:
        """Parse, extract and embed the events of a batch."""
        async with heartbeating():
            if input.source.startswith(COPIES):
                copies = await self._app.shadow.prepare(UUID(input.batch))
                return StepReport({"prepared": copies})
            return _report(await self._app.steps.prepare(input.source, UUID(input.batch)))

    @activity.defn
    async def publish(self, input: BatchInput) -> StepReport:
        """Write the prepared events of a batch to all stores."""
        async with heartbeating():
            behind = UUID(input.behind) if input.behind else None
            if input.source.startswith(COPIES):
                result = await self._app.shadow.publish(UUID(input.batch), behind=behind)
                return _report_of_copies(result)
            return _report(await self._app.steps.publish(UUID(input.batch), behind=behind))

    @activity.defn
    async def give_up(self, input: GiveUpInput) -> None:
        """Release a batch whose step failed permanently."""
        if input.source.startswith(COPIES):
            await self._app.shadow.give_up(UUID(input.batch), input.reason)
            return
        await self._app.steps.give_up(input.source, UUID(input.batch), input.step, input.reason)


def _report_of_copies(result: CopyResult) -> StepReport:
    """Return the counts of a batch of copies. A copy that differs is done as well: it was compared."""
    counts = {
        "done": result.equal + result.different,
        "retry": result.waiting + result.failed + result.dropped,
    }
    return StepReport({outcome: count for outcome, count in counts.items() if count})


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
