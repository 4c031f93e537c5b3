"""The workflows that fetch. Cursors, files and progress are in PostgreSQL, so any run may be terminated at any time."""

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
    from apex_memory.flows.temporal.options import TASK_TIMEOUT
    from apex_memory.flows.temporal.queues import file_id

RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=60),
)
# The heartbeat detects a lost worker; a slow vendor may take hours.
STEP: dict[str, Any] = {
    "start_to_close_timeout": timedelta(hours=6),
    "heartbeat_timeout": timedelta(seconds=15),
    "retry_policy": RETRY,
}
# A pull that cannot succeed within this time fails visibly; the schedule starts the next one.
PULL: dict[str, Any] = {**STEP, "schedule_to_close_timeout": timedelta(minutes=15)}


@workflow.defn
class Pull:
    """One pull of a source: every page that the vendor has now, then a child workflow for each unfinished file."""

    @workflow.run
    async def run(self, input: PullInput) -> PullReport:
        report: PullReport = await workflow.execute_activity_method(
            PullActivities.pull, input, summary=input.source, **PULL
        )
        for file in report.files:
            await _start_file(FileInput(input.source, file))
        workflow.set_current_details(
            f"**{input.source}**: {report.pages} pages, {report.events} events ({report.fresh} new), "
            f"{report.readings} readings, {len(report.files)} files"
        )
        return report


async def _start_file(input: FileInput) -> None:
    with suppress(WorkflowAlreadyStartedError):  # the child of an earlier pull processes it
        await workflow.start_child_workflow(
            File.run,
            input,
            id=file_id(input.source, input.file),
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            task_timeout=TASK_TIMEOUT,
            static_summary=f"File of {input.source}",
        )


@workflow.defn
class File:
    """A file of a batch source: its events land chunk by chunk, then it is acknowledged to its sender."""

    @workflow.run
    async def run(self, input: FileInput) -> FileReport:
        while True:
            report: FileReport = await workflow.execute_activity_method(
                PullActivities.land_file, input, summary=input.source, **STEP
            )
            workflow.set_current_details(f"{report.landed} of {report.events} events landed")
            if not report.more:
                break
        await workflow.execute_activity_method(
            PullActivities.answer_file, input, summary="Acknowledge to the sender", **STEP
        )
        return report


@workflow.defn
class Follow:
    """Reads a stream in long activities that pull, commit and aggregate. Continues as new every few hours."""

    @workflow.run
    async def run(self, input: FollowInput) -> None:
        total = FollowReport()
        for _ in range(input.runs):
            try:
                report: FollowReport = await workflow.execute_activity_method(
                    PullActivities.follow, input, summary=input.source, **STEP
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                workflow.set_current_details(f"**{input.source}**: {error.cause}")
                await workflow.sleep(timedelta(seconds=60))
                continue
            total = FollowReport(
                total.pulls + report.pulls,
                total.readings + report.readings,
                total.events + report.events,
                total.windows + report.windows,
                report.paused,
            )
            workflow.set_current_details(_details(input, total))
            info = workflow.info()
            if (
                info.is_continue_as_new_suggested()
                or info.is_target_worker_deployment_version_changed()
            ):
                break
        workflow.continue_as_new(
            input,
            initial_versioning_behavior=workflow.ContinueAsNewVersioningBehavior.AUTO_UPGRADE,
        )


def _details(input: FollowInput, total: FollowReport) -> str:
    state = "paused" if total.paused else "reading"
    return (
        f"**{input.source}** {state}: {total.pulls} pulls, {total.readings} readings, "
        f"{total.windows} windows, {total.events} events"
    )


@workflow.defn
class Backfill:
    """A backfill or replay of a source, at the lowest priority and a limited rate. Cancelling stops it after the current page."""

    @workflow.run
    async def run(self, input: BackfillInput) -> BackfillReport:
        report: BackfillReport = await workflow.execute_activity_method(
            PullActivities.backfill, input, summary=input.source, **STEP
        )
        workflow.set_current_details(
            f"{report.state}: {report.landed} of {report.seen} events are new"
        )
        return report


PULL_WORKFLOWS = (Pull, File, Follow, Backfill)
