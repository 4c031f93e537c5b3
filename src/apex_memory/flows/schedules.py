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
from apex_memory.flows.orders import ReconcileOrder
from apex_memory.flows.queues import BULK, REALTIME

SWEEP_LEAST_SECONDS = (
    10  # a scheduled run costs the server far more than the sweep costs PostgreSQL
)
RECONCILE_HOUR = 3  # UTC


def schedules(settings: Settings) -> dict[str, Schedule]:
    """Every schedule by id."""
    sweep = ScheduleSpec(intervals=[_every(max(settings.sweep_seconds, SWEEP_LEAST_SECONDS))])
    collect = ScheduleSpec(intervals=[_every(settings.collect_seconds)])
    nightly = ScheduleSpec(
        calendars=[ScheduleCalendarSpec(hour=[ScheduleRange(RECONCILE_HOUR)])],
        jitter=timedelta(minutes=10),
    )
    order = ReconcileOrder(["graph", "vectors"])
    return {
        "sweep": _schedule(sweep, "Sweep", REALTIME),
        "collect": _schedule(collect, "Collect", BULK),
        "reconcile": _schedule(nightly, "Reconcile", BULK, order, catch_up=timedelta(hours=12)),
    }


async def ensure_schedules(client: Client, settings: Settings) -> None:
    """Create the schedules, or bring them up to date. One that a person paused stays paused."""
    for id, schedule in schedules(settings).items():
        try:
            await client.create_schedule(id, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(id).update(_Updating(schedule))


class _Updating:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __call__(self, input: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(self._schedule, state=input.description.schedule.state))


def _every(seconds: float) -> ScheduleIntervalSpec:
    return ScheduleIntervalSpec(every=timedelta(seconds=max(1, round(seconds))))


def _schedule(
    spec: ScheduleSpec,
    workflow: str,
    queue: str,
    *arguments: Any,
    catch_up: timedelta = timedelta(seconds=10),
) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            workflow, args=list(arguments), id=workflow.lower(), task_queue=queue
        ),
        spec=spec,
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=catch_up),
    )
