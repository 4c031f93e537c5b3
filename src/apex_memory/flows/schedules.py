"""Schedules: sweep, collect, the nightly comparison of the stores, and a pull for every polled source.

The Temporal UI shows and triggers them.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from temporalio.common import Priority

from apex_memory.config import Settings
from apex_memory.flows.fetch.messages import PullInput
from apex_memory.flows.maintenance.messages import ReconcileInput, RoundsInput
from apex_memory.flows.temporal.attributes import attributes_of
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.temporal.queues import BULK, REALTIME, key_of, pull_id, queue_of
from apex_memory.sources.base import PulledSource, Source, StreamSource

RUN_SECONDS = 300.0  # length of one run of `Sweep` or `Collect`, which works in rounds
RECONCILE_HOUR = 3  # UTC


def schedules(settings: Settings) -> dict[str, Schedule]:
    """Return the schedules of maintenance by id."""
    stores = ReconcileInput(["graph", "vectors"])
    nightly = ScheduleSpec(
        calendars=[ScheduleCalendarSpec(hour=[ScheduleRange(RECONCILE_HOUR)])],
        jitter=timedelta(minutes=10),
    )
    return {
        "sweep": _rounds("Sweep", REALTIME, settings.sweep_seconds),
        "collect": _rounds("Collect", BULK, settings.collect_seconds),
        "reconcile": Schedule(
            action=_start("Reconcile", BULK, stores),
            spec=nightly,
            policy=SchedulePolicy(
                overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(hours=12)
            ),
        ),
    }


def pulls(sources: Mapping[str, Source]) -> dict[str, Schedule]:
    """Return a schedule for every polled or batch source whose settings are complete. The pull of a paused source ends at once."""
    schedules: dict[str, Schedule] = {}
    for name, source in sources.items():
        if not isinstance(source, PulledSource) or isinstance(source, StreamSource):
            continue
        if source.missing_settings:
            continue
        schedules[pull_id(name)] = Schedule(
            action=ScheduleActionStartWorkflow(
                "Pull",
                args=[PullInput(name)],
                id=pull_id(name),
                task_queue=queue_of(int(source.priority)),
                task_timeout=TASK_TIMEOUT,
                static_summary=f"Fetch from {source.title}",
                typed_search_attributes=attributes_of(name, int(source.priority)),
                priority=Priority(priority_key=key_of(int(source.priority)), fairness_key=name),
            ),
            spec=ScheduleSpec(
                intervals=[ScheduleIntervalSpec(every=timedelta(seconds=source.poll_every))],
                jitter=timedelta(seconds=min(10, source.poll_every / 10)),
            ),
            policy=SchedulePolicy(
                overlap=ScheduleOverlapPolicy.SKIP,
                catchup_window=timedelta(seconds=max(60, source.poll_every)),
            ),
        )
    return schedules


async def ensure_schedules(
    client: Client, settings: Settings, sources: Mapping[str, Source]
) -> None:
    """Create or update the schedules, and start `Sweep` and `Collect`. A paused schedule stays paused."""
    await _ensure(client, schedules(settings))
    await ensure_pulls(client, sources)
    for id in ("sweep", "collect"):
        await start_rounds(client, id)


async def ensure_pulls(client: Client, sources: Mapping[str, Source]) -> None:
    """Create or update the schedules of pulls. A new schedule pulls at once."""
    for id in await _ensure(client, pulls(sources)):
        await client.get_schedule_handle(id).trigger(overlap=ScheduleOverlapPolicy.SKIP)


async def _ensure(client: Client, wanted: Mapping[str, Schedule]) -> list[str]:
    """Create or update schedules. Return the ids of new ones."""
    created = []
    for id, schedule in wanted.items():
        try:
            await client.create_schedule(id, schedule)
            created.append(id)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(id).update(_Updating(schedule))
    return created


async def start_rounds(client: Client, id: str) -> None:
    """Start a run of the schedule now, unless one runs or the schedule is paused."""
    handle = client.get_schedule_handle(id)
    if not (await handle.describe()).schedule.state.paused:
        await handle.trigger(overlap=ScheduleOverlapPolicy.SKIP)


class _Updating:
    """Replaces a schedule but keeps its state: paused stays paused."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __call__(self, input: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(self._schedule, state=input.description.schedule.state))


def _rounds(workflow: str, queue: str, every_seconds: float) -> Schedule:
    """Return a schedule of runs without a gap: each run starts when the previous one ends."""
    rounds = RoundsInput(max(1.0, every_seconds), RUN_SECONDS)
    run = timedelta(seconds=RUN_SECONDS)
    return Schedule(
        action=_start(workflow, queue, rounds),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=run)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.BUFFER_ONE, catchup_window=run),
    )


def _start(workflow: str, queue: str, input: Any) -> ScheduleActionStartWorkflow:
    return ScheduleActionStartWorkflow(
        workflow,
        args=[input],
        id=workflow.lower(),
        task_queue=queue,
        task_timeout=TASK_TIMEOUT,
    )
