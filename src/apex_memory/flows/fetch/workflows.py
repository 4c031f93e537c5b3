"""The workflows that fetch: what runs when. Cursors, files and progress are in PostgreSQL; any run may be ended at any time."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, WorkflowAlreadyStartedError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from apex_memory.flows.fetch.activities import PullActivities
    from apex_memory.flows.fetch.messages import (
        BackfillInput,
        BackfillReport,
        FileInput,
        FileReport,
        FollowInput,
        FollowReport,
        PullInput,
        PullReport,
    )
    from apex_memory.flows.temporal.queues import file_id

RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=60),
)
# The heartbeat says whether the step lives; how long a vendor takes says nothing.
STEP: dict[str, Any] = {
    "start_to_close_timeout": timedelta(hours=6),
    "heartbeat_timeout": timedelta(seconds=15),
    "retry_policy": RETRY,
}
# A poll that cannot succeed for so long shows as failed; the schedule starts the next one.
PULL: dict[str, Any] = {**STEP, "schedule_to_close_timeout": timedelta(minutes=15)}


@workflow.defn
class Pull:
    """One look at a polled source: every page there is at the moment, then a child for each file that came."""

    @workflow.run
    async def run(self, order: PullInput) -> PullReport:
        report: PullReport = await workflow.execute_activity_method(
            PullActivities.pull, order, summary=order.source, **PULL
        )
        for file in report.files:
            await _carry_file(FileInput(order.source, file))
        workflow.set_current_details(
            f"**{order.source}**: {report.pages} pages, {report.events} events ({report.fresh} new), "
            f"{report.readings} readings, {len(report.files)} files"
        )
        return report


async def _carry_file(order: FileInput) -> None:
    with suppress(WorkflowAlreadyStartedError):  # an earlier pull's child is at it
        await workflow.start_child_workflow(
            File.run,
            order,
            id=file_id(order.source, order.file),
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            static_summary=f"A file of {order.source}",
        )


@workflow.defn
class File:
    """A file of a batch source: its events land chunk by chunk, then it is answered."""

    @workflow.run
    async def run(self, order: FileInput) -> FileReport:
        while True:
            report: FileReport = await workflow.execute_activity_method(
                PullActivities.land_file, order, summary=order.source, **STEP
            )
            workflow.set_current_details(f"{report.landed} of {report.events} events landed")
            if not report.more:
                break
        await workflow.execute_activity_method(
            PullActivities.answer_file, order, summary="answer the sender", **STEP
        )
        return report


@workflow.defn
class Follow:
    """Stays with a stream: a long step that looks, commits and folds, again and again. A fresh run every few hours."""

    @workflow.run
    async def run(self, order: FollowInput) -> None:
        total = FollowReport()
        for _ in range(order.runs):
            try:
                report: FollowReport = await workflow.execute_activity_method(
                    PullActivities.follow, order, summary=order.source, **STEP
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                workflow.set_current_details(f"**{order.source}**: {error.cause}")
                await workflow.sleep(timedelta(seconds=60))
                continue
            total = FollowReport(
                total.looks + report.looks,
                total.readings + report.readings,
                total.events + report.events,
                total.folded + report.folded,
                report.paused,
            )
            workflow.set_current_details(_followed(order, total))
            info = workflow.info()
            if (
                info.is_continue_as_new_suggested()
                or info.is_target_worker_deployment_version_changed()
            ):
                break
        workflow.continue_as_new(
            order,
            initial_versioning_behavior=workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE,
        )


def _followed(order: FollowInput, total: FollowReport) -> str:
    state = "paused" if total.paused else "follows"
    return (
        f"**{order.source}** {state}: {total.looks} looks, {total.readings} readings, "
        f"{total.folded} windows, {total.events} events"
    )


@workflow.defn
class Backfill:
    """A stretch of a source's past, at the lowest priority and a bounded rate. Cancelling it ends it in order."""

    @workflow.run
    async def run(self, order: BackfillInput) -> BackfillReport:
        report: BackfillReport = await workflow.execute_activity_method(
            PullActivities.backfill, order, summary=order.source, **STEP
        )
        workflow.set_current_details(f"{report.state}: {report.landed} of {report.seen} landed")
        return report


PULL_WORKFLOWS = (Pull, File, Follow, Backfill)
