"""What runs by the clock: sweep, collect, and the nightly comparison of the stores. Shown, paused and triggered in Temporal's UI."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from apex_memory.config import Settings
from apex_memory.flows.orders import ReconcileOrder, RoundsOrder
from apex_memory.flows.queues import BULK, REALTIME

RUN_SECONDS = 300.0  # how long one run of `sweep` or `collect` goes on in rounds
RECONCILE_HOUR = 3  # UTC


def schedules(settings: Settings) -> dict[str, Schedule]:
    """Every schedule by id."""
    order = ReconcileOrder(["graph", "vectors"])
    nightly = ScheduleSpec(
        calendars=[ScheduleCalendarSpec(hour=[ScheduleRange(RECONCILE_HOUR)])],
        jitter=timedelta(minutes=10),
    )
    return {
        "sweep": _rounds("Sweep", REALTIME, settings.sweep_seconds),
        "collect": _rounds("Collect", BULK, settings.collect_seconds),
        "reconcile": Schedule(
            action=_start("Reconcile", BULK, order),
            spec=nightly,
            policy=SchedulePolicy(
                overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(hours=12)
            ),
        ),
    }


async def ensure_schedules(client: Client, settings: Settings) -> None:
    """Create the schedules, or bring them up to date, and begin what goes on in rounds. Paused stays paused."""
    for id, schedule in schedules(settings).items():
        try:
            await client.create_schedule(id, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(id).update(_Updating(schedule))
    for id in ("sweep", "collect"):
        await begin_rounds(client, id)


async def begin_rounds(client: Client, id: str) -> None:
    """Start a run of the schedule now, unless one is running or a person paused it."""
    handle = client.get_schedule_handle(id)
    if not (await handle.describe()).schedule.state.paused:
        await handle.trigger(overlap=ScheduleOverlapPolicy.SKIP)


class _Updating:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __call__(self, input: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(self._schedule, state=input.description.schedule.state))


def _rounds(workflow: str, queue: str, every_seconds: float) -> Schedule:
    """Runs that follow on each other without a gap: the next one waits for the end of the one before."""
    order = RoundsOrder(max(1.0, every_seconds), RUN_SECONDS)
    run = timedelta(seconds=RUN_SECONDS)
    return Schedule(
        action=_start(workflow, queue, order),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=run)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.BUFFER_ONE, catchup_window=run),
    )


def _start(workflow: str, queue: str, order: Any) -> ScheduleActionStartWorkflow:
    return ScheduleActionStartWorkflow(
        workflow, args=[order], id=workflow.lower(), task_queue=queue
    )
