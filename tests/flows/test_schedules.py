"""Schedules: made once, brought up to date, never against the will of the person who paused one."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from temporalio.client import Client, ScheduleActionStartWorkflow

from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.schedules import ensure_schedules
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.worker import workers
from tests.conftest import running
from tests.flows.conftest import make_current
from tests.flows.export_histories import collect, sweep
from tests.waiting import until


@pytest_asyncio.fixture
async def own() -> AsyncIterator[Client]:
    with tempfile.TemporaryDirectory(prefix="apex-test-") as folder:
        async with running(Temporal(Path(folder), free_port(), "", free_port())) as engine:
            yield await connect(engine.url)


async def running_sweeps(client: Client) -> list[str]:
    query = "WorkflowType = 'Sweep' AND ExecutionStatus = 'Running'"
    return [item.run_id async for item in client.list_workflows(query)]


async def test_schedules_are_made_once_updated_and_stay_paused(own: Client) -> None:
    await ensure_schedules(own, Settings(sweep_seconds=5), {})
    await own.get_schedule_handle("collect").pause(note="a person did")
    await ensure_schedules(own, Settings(sweep_seconds=7), {})

    async def listed() -> bool:
        ids = {item.id async for item in await own.list_schedules()}
        return ids == {"sweep", "collect", "reconcile"}

    await until(listed, "the three schedules, and no other")
    sweeps = (await own.get_schedule_handle("sweep").describe()).schedule
    assert isinstance(sweeps.action, ScheduleActionStartWorkflow)
    assert b'"every_seconds":7' in sweeps.action.args[0].data.replace(b" ", b"")
    collects = (await own.get_schedule_handle("collect").describe()).schedule
    assert collects.state.paused and collects.state.note == "a person did"
    assert (await own.get_schedule_handle("reconcile").describe()).info.next_action_times


async def test_sweep_runs_in_rounds_and_there_is_only_one(own: Client) -> None:
    deployment = Deployment(own, "a")
    async with workers(deployment, [sweep, collect]):
        await make_current(deployment)
        await ensure_schedules(own, Settings(sweep_seconds=1), {})
        [run] = await until(lambda: running_sweeps(own), "a sweep is running")
        await ensure_schedules(own, Settings(sweep_seconds=1), {})

        async def rounds() -> bool:
            runs = own.list_workflows("WorkflowType = 'Sweep'")
            ids = [(item.id, item.run_id) async for item in runs]
            assert [run_id for _, run_id in ids] == [run]
            history = await own.get_workflow_handle(ids[0][0]).fetch_history()
            done = [
                e for e in history.events if e.HasField("activity_task_completed_event_attributes")
            ]
            return len(done) >= 3

        await until(rounds, "three rounds in one run")
