"""The drain: processes the events of one source from inbox to memory.

Every run is pinned to the build on which it began (`Deployment.config`). It holds no state that PostgreSQL does
not have: only the order of steps, and what the Temporal UI shows of it.

While a candidate build processes a share of the documents, a source has two drains: `drain:SOURCE` on the current build,
and `drain:SOURCE@BUILD` on the candidate. Each claims the documents of its build alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from temporalio import workflow
from temporalio.common import (
    SearchAttributePair,
)
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from apex_memory.flows.drain.activities import DrainActivities
    from apex_memory.flows.drain.messages import (
        BatchInput,
        ClaimedBatch,
        ClaimInput,
        DrainInput,
        GiveUpInput,
        StepReport,
    )
    from apex_memory.flows.drain.progress import RunProgress
    from apex_memory.flows.temporal.attributes import OUTCOME
    from apex_memory.flows.temporal.options import LONG, SHORT
    from apex_memory.telemetry.traces import BatchSpan

IDLE_RUN = timedelta(hours=1)  # a run without events continues as new after this time

T = TypeVar("T")


@workflow.defn
class Drain:
    """Processes the events of one source, batch after batch while there are any, then waits for a wake.

    One run is one burst: after a moment without events the run continues as new, so that the list of runs is the
    list of bursts. Losing a run loses nothing: leases expire, and the next run claims the events again.
    """

    @workflow.init
    def __init__(self, input: DrainInput) -> None:
        self._input = input
        self._dirty = input.check_now
        self._paused = input.paused
        self._progress = RunProgress()
        # The id of the next batch, known before it is claimed: publishing the previous batch extends its lease too.
        self._next = str(workflow.uuid4())
        self._publishing: asyncio.Task[None] | None = None
        self._place = ""

    @workflow.run
    async def run(self, input: DrainInput) -> None:
        over = False
        while True:
            try:
                if self._paused or over:
                    await self._published()
                if over and self._ends_here():
                    return
                if over:
                    self._continue_as_new()
                await self._until_due()
                claimed = await self._process_batch()
                over = bool(self._progress.batches) and not claimed and not self._dirty
                over = over or self._is_misplaced()
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                await self._pause_after_failure(error)
                over = False
            over = over or self._is_long()

    @workflow.signal
    def wake(self) -> None:
        """Signal that events are ready. It carries no data: they are in the inbox."""
        self._dirty = True

    @workflow.signal
    def pause(self) -> None:
        """Finish the current batch, then wait for `resume`."""
        self._paused = True
        workflow.upsert_memo({"paused": True})

    @workflow.signal
    def resume(self) -> None:
        """Continue after `pause`."""
        self._paused = False
        self._dirty = True
        workflow.upsert_memo({"paused": False})

    async def _until_due(self) -> None:
        """Return on a wake, or after the idle time without one; never while paused."""
        while True:
            if self._paused:
                self._show("paused")
                await workflow.wait_condition(lambda: not self._paused)
            if not self._dirty:
                self._show("waiting for events")
                wait = (
                    self._input.quiet_seconds
                    if self._progress.batches
                    else self._input.idle_seconds
                )
                with suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(
                        lambda: self._dirty or self._paused, timeout=timedelta(seconds=wait)
                    )
            if not self._paused:
                self._dirty = False
                return

    async def _process_batch(self) -> bool:
        """Claim and prepare a batch while the previous one is published, then publish it. Return False without events.

        A batch of which preparing settled every event is not published: a storm of broken files costs a step less.
        Only a full batch is published in the background, since only then a next batch is likely.
        """
        source = self._input.source
        claim = ClaimInput(source, self._next)
        batch: ClaimedBatch = await self._timed(
            "claim", DrainActivities.claim, claim, SHORT, source
        )
        self._place = batch.place
        if not batch.count:
            await self._published()
            return False
        self._next = str(workflow.uuid4())
        if not self._progress.batches:
            workflow.upsert_search_attributes([OUTCOME.value_set("working")])
        self._progress.add_batch(batch)
        self._dirty = self._dirty or batch.more
        self._show("processing")
        input = BatchInput(source, batch.id)
        span = BatchSpan(source, batch.id, batch.count, batch.trace_parents)
        prepared: StepReport
        with span.current():
            prepared = await self._step("prepare", DrainActivities.prepare, batch, input)
        failure: ActivityError | None = None
        try:
            await self._published()
        except ActivityError as error:
            failure = error
        # Also when the previous batch failed: this one is independent of it. Not in a `finally`, which runs once more,
        # outside of any event loop, when a worker lets go of the workflow.
        if prepared.settled == batch.count:  # such as a batch of broken files
            self._record_outcomes(prepared)
            span.end()
        else:
            input = replace(input, behind=self._next)
            self._publishing = asyncio.create_task(self._publish(batch, input, prepared, span))
        if failure:
            raise failure
        if not batch.more:
            await self._published()
        return True

    async def _publish(
        self, batch: ClaimedBatch, input: BatchInput, prepared: StepReport, span: BatchSpan
    ) -> None:
        published: StepReport
        with span.current():
            published = await self._step("publish", DrainActivities.publish, batch, input)
        span.end()
        self._record_outcomes(prepared)
        self._progress.add_outcomes(published)
        self._dirty = self._dirty or published.landed > 0

    async def _published(self) -> None:
        """Wait until the batch that is being published, if any, is finished."""
        publishing, self._publishing = self._publishing, None
        if publishing:
            await publishing

    async def _step(
        self,
        step: str,
        method: Callable[[DrainActivities, BatchInput], Awaitable[T]],
        batch: ClaimedBatch,
        input: BatchInput,
    ) -> T:
        """Run a step of a batch. When it fails permanently, release the batch before raising."""
        source, summary = input.source, f"{input.source}: {batch.count} events"
        try:
            return await self._timed(step, method, input, LONG, summary)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                given_up = GiveUpInput(source, batch.id, error.activity_type, str(error.cause))
                await self._timed("give up", DrainActivities.give_up, given_up, SHORT, summary)
            raise

    async def _timed(
        self,
        step: str,
        method: Callable[[DrainActivities, Any], Awaitable[T]],
        input: Any,
        options: dict[str, Any],
        summary: str,
    ) -> T:
        began = workflow.now()
        result: T = await workflow.execute_activity_method(
            method, input, summary=summary, **options
        )
        self._progress.add_time(step, (workflow.now() - began).total_seconds())
        return result

    def _record_outcomes(self, prepared: StepReport) -> None:
        """Record the failures of preparing. `prepared` is not an outcome: prepared events get theirs from publishing."""
        failed = {name: n for name, n in prepared.counts.items() if name != "prepared"}
        outcomes = {id: name for id, name in prepared.outcomes.items() if name != "prepared"}
        self._progress.add_outcomes(StepReport(failed, outcomes))

    async def _pause_after_failure(self, error: ActivityError) -> None:
        """Pause after a step that failed permanently. Its events are claimed again in smaller batches, until the faulty one is alone."""
        reason = f"{error.activity_type} failed permanently: {error.cause}"
        workflow.logger.error("drain: %s", reason)
        self._progress.add_fault(f"{workflow.now():%H:%M:%S} {reason}")
        self._show("pausing after a failure")
        await workflow.sleep(timedelta(seconds=self._input.fault_seconds))
        self._dirty = True

    def _is_misplaced(self) -> bool:
        """Return whether the run should go on elsewhere, and can: Temporal may not have the new routing yet."""
        if self._place == "leave":
            return self._ends_here() or (
                workflow.info().is_target_worker_deployment_version_changed()
            )
        return self._place == "end"

    def _ends_here(self) -> bool:
        """Return whether nothing continues this run. One that was started for a build cannot move to another."""
        return self._place == "end" or (self._place == "leave" and bool(self._input.build))

    def _is_long(self) -> bool:
        """Return whether the run should continue as new: its history is long, or it idled for an hour.

        Also when Temporal would begin it on another build, in a run whose claims do not say whether it belongs here.
        """
        info = workflow.info()
        return (
            info.is_continue_as_new_suggested()
            or (not self._place and info.is_target_worker_deployment_version_changed())
            or info.get_current_history_length() > self._input.run_events
            or (not self._progress.batches and workflow.now() - info.start_time > IDLE_RUN)
        )

    def _continue_as_new(self) -> NoReturn:
        """Continue on the same build while the run belongs there, else on the one that Temporal chooses.

        Temporal's choice is by workflow id: while a candidate ramps, it would move whole sources to it.
        """
        moves = self._place != "stay"
        behavior = workflow.ContinueAsNewVersioningBehavior
        if self._progress.batches:
            workflow.upsert_search_attributes([OUTCOME.value_set(self._progress.outcome)])
        self._show("finished; the next run continues")
        input = replace(self._input, paused=self._paused, check_now=self._dirty)
        workflow.continue_as_new(
            input,
            memo={"paused": self._paused},
            search_attributes=workflow.info().typed_search_attributes.updated(
                SearchAttributePair(OUTCOME, "idle")
            ),
            initial_versioning_behavior=behavior.AUTO_UPGRADE if moves else behavior.UNSPECIFIED,
        )

    def _show(self, state: str) -> None:
        workflow.set_current_details(self._progress.markdown(self._input.source, state))
