"""The drain: carries the events of one source from inbox to memory. Every run is pinned to the build it began on (`Deployment.config`), and holds nothing
that PostgreSQL does not: the order of steps, and what a person wants to see of it.
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

IDLE_RUN = timedelta(hours=1)  # a run that carried nothing hands over then

T = TypeVar("T")


@workflow.defn
class Drain:
    """Carries the events of one source, batch after batch, for as long as there are any; then waits for a wake.

    One run is one burst: when nothing came for a moment, the run hands over to a fresh one, so that the
    list of runs is the list of bursts. Losing a run loses nothing: leases run out, the next run claims again.
    """

    @workflow.init
    def __init__(self, order: DrainInput) -> None:
        self._order = order
        self._dirty = order.check_now
        self._paused = order.paused
        self._progress = RunProgress()
        # The id of the batch to come, known before it is claimed: who publishes the one before keeps its lease.
        self._next = str(workflow.uuid4())
        self._publishing: asyncio.Task[None] | None = None

    @workflow.run
    async def run(self, order: DrainInput) -> None:
        over = False
        while True:
            try:
                if self._paused or over:
                    await self._published()
                if over:
                    self._hand_over()
                await self._until_due()
                found = await self._carry()
                over = bool(self._progress.batches) and not found and not self._dirty
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                await self._rest(error)
                over = False
            over = over or self._is_long()

    @workflow.signal
    def wake(self) -> None:
        """Something landed. Carries no data: the inbox knows what."""
        self._dirty = True

    @workflow.signal
    def pause(self) -> None:
        """Finish what is in hand, then wait for `resume`."""
        self._paused = True
        workflow.upsert_memo({"paused": True})

    @workflow.signal
    def resume(self) -> None:
        self._paused = False
        self._dirty = True
        workflow.upsert_memo({"paused": False})

    async def _until_due(self) -> None:
        """Return on a wake, or after a while without one; not while paused."""
        while True:
            if self._paused:
                self._show("paused")
                await workflow.wait_condition(lambda: not self._paused)
            if not self._dirty:
                self._show("waits for events")
                wait = (
                    self._order.quiet_seconds
                    if self._progress.batches
                    else self._order.idle_seconds
                )
                with suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(
                        lambda: self._dirty or self._paused, timeout=timedelta(seconds=wait)
                    )
            if not self._paused:
                self._dirty = False
                return

    async def _carry(self) -> bool:
        """Claim and prepare a batch while the one before is published, then publish it. False when nothing was ready.

        Only behind a full batch is there something to prepare beside it: any other is waited for.
        """
        source = self._order.source
        claim = ClaimInput(source, self._next)
        batch: ClaimedBatch = await self._timed(
            "claim", DrainActivities.claim, claim, SHORT, source
        )
        if not batch.count:
            await self._published()
            return False
        self._next = str(workflow.uuid4())
        if not self._progress.batches:
            workflow.upsert_search_attributes([OUTCOME.value_set("working")])
        self._progress.claimed(batch)
        self._dirty = self._dirty or batch.more
        self._show("works")
        order = BatchInput(source, batch.id)
        prepared: StepReport = await self._step("prepare", DrainActivities.prepare, batch, order)
        try:
            await self._published()
        finally:  # what became of the batch before is nothing to this one
            order = replace(order, behind=self._next)
            self._publishing = asyncio.create_task(self._publish(batch, order, prepared))
        if not batch.more:
            await self._published()
        return True

    async def _publish(self, batch: ClaimedBatch, order: BatchInput, prepared: StepReport) -> None:
        published: StepReport = await self._step("publish", DrainActivities.publish, batch, order)
        self._settle(prepared, published)
        self._dirty = self._dirty or published.landed > 0

    async def _published(self) -> None:
        """Wait until the batch that is being published, if there is one, is at its end."""
        publishing, self._publishing = self._publishing, None
        if publishing:
            await publishing

    async def _step(
        self,
        step: str,
        method: Callable[[DrainActivities, BatchInput], Awaitable[T]],
        batch: ClaimedBatch,
        order: BatchInput,
    ) -> T:
        """A step of a batch. One that fails for good gives the batch back first."""
        source, summary = order.source, f"{order.source}: {batch.count} events"
        try:
            return await self._timed(step, method, order, LONG, summary)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                given_up = GiveUpInput(source, batch.id, error.activity_type, str(error.cause))
                await self._timed("give up", DrainActivities.give_up, given_up, SHORT, summary)
            raise

    async def _timed(
        self,
        step: str,
        method: Callable[[DrainActivities, Any], Awaitable[T]],
        order: Any,
        options: dict[str, Any],
        summary: str,
    ) -> T:
        began = workflow.now()
        result: T = await workflow.execute_activity_method(
            method, order, summary=summary, **options
        )
        self._progress.took(step, (workflow.now() - began).total_seconds())
        return result

    def _settle(self, prepared: StepReport, published: StepReport) -> None:
        """`prepared` is no outcome: what was prepared has its outcome from publishing."""
        failed = {name: n for name, n in prepared.counts.items() if name != "prepared"}
        outcomes = {id: name for id, name in prepared.outcomes.items() if name != "prepared"}
        self._progress.settled(StepReport(failed, outcomes))
        self._progress.settled(published)

    async def _rest(self, error: ActivityError) -> None:
        """A step gave up. Its events are claimed again, one at a time, until the one to blame is known."""
        reason = f"{error.activity_type} gave up: {error.cause}"
        workflow.logger.error("drain: %s", reason)
        self._progress.failed(f"{workflow.now():%H:%M:%S} {reason}")
        self._show("rests after a failure")
        await workflow.sleep(timedelta(seconds=self._order.fault_seconds))
        self._dirty = True

    def _is_long(self) -> bool:
        """Time for a fresh run: the history is long, the code is newer, or the run idled for an hour."""
        info = workflow.info()
        return (
            info.is_continue_as_new_suggested()
            or info.is_target_worker_deployment_version_changed()
            or info.get_current_history_length() > self._order.run_events
            or (not self._progress.batches and workflow.now() - info.start_time > IDLE_RUN)
        )

    def _hand_over(self) -> NoReturn:
        if self._progress.batches:
            workflow.upsert_search_attributes([OUTCOME.value_set(self._progress.outcome)])
        self._show("over; the next run goes on")
        order = replace(self._order, paused=self._paused, check_now=self._dirty)
        workflow.continue_as_new(
            order,
            memo={"paused": self._paused},
            search_attributes=workflow.info().typed_search_attributes.updated(
                SearchAttributePair(OUTCOME, "idle")
            ),
            initial_versioning_behavior=workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE,
        )

    def _show(self, state: str) -> None:
        workflow.set_current_details(self._progress.markdown(self._order.source, state))
