"""Writes `histories/*.json` anew: `python -m tests.flows.export_histories`.

Run it when a workflow changed on purpose. Histories of the builds that are out there should be replayed as long as
those builds may have runs that are open, so keep the old files until then.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.errors import Misconfigured, RetryLater
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
from apex_memory.flows.fetch.workflows import PULL_WORKFLOWS, Backfill, File, Follow, Pull
from apex_memory.flows.maintenance.messages import (
    ReconcileInput,
    ReconcileReport,
    RolloutGateInput,
    RolloutGateReport,
    RoundsInput,
    SmokeTestReport,
    StoreInput,
    SweepReport,
)
from apex_memory.flows.maintenance.workflows import (
    MAINTENANCE_WORKFLOWS,
    Collect,
    Hello,
    Reconcile,
    RolloutGate,
    Sweep,
)
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.errors import Translation
from tests.conftest import running
from tests.flows.conftest import Bench, bench_for
from tests.flows.scripted import Steps
from tests.waiting import until

HISTORIES = Path(__file__).parent / "histories"


@activity.defn
async def sweep() -> SweepReport:
    return SweepReport(1, 1, {"graph": 1}, {"frontapp": 2})


@activity.defn
async def collect() -> int:
    return 3


@activity.defn
async def reconcile(input: StoreInput) -> ReconcileReport:
    return ReconcileReport(input.store, 10, 0, 0, 0, 0)


@activity.defn
async def smoke_test() -> SmokeTestReport:
    return SmokeTestReport("build", {"documents": "PostgreSQL 18"}, {"cache": "away"})


@activity.defn
async def rollout_gate(input: RolloutGateInput) -> RolloutGateReport:
    return RolloutGateReport("build", {"documents": "PostgreSQL 18"}, {"Drain": 20})


async def processed(bench: Bench, count: int) -> None:
    await bench.wake()
    await until(lambda: len(bench.steps.published) == count, f"{count} events published")


async def handed_over(bench: Bench) -> None:
    async def two_runs() -> bool:
        return len(await bench.runs()) > 1

    await until(two_runs, "the run handed over")


async def burst(bench: Bench) -> None:
    bench.steps.land(25)
    await bench.start()
    await processed(bench, 25)
    await handed_over(bench)


async def faults(bench: Bench) -> None:
    bench.steps.fail = {
        "claim": [RetryLater("busy", after=0.01)],
        "publish": [Misconfigured("wrong", remedy="correct it")],
    }
    bench.steps.land(1)
    await bench.start()
    await bench.wake()
    await until(lambda: not bench.steps.fail["publish"], "a step failed permanently")
    bench.steps.land(2)
    await processed(bench, 3)
    await handed_over(bench)


async def pause(bench: Bench) -> None:
    handle = await bench.start()
    await handle.signal("pause")
    bench.steps.land(2)
    await bench.wake()
    await handle.signal("resume")
    await processed(bench, 2)
    await handed_over(bench)


async def idle(bench: Bench) -> None:
    await bench.start(idle_seconds=0.1)
    await until(lambda: bench.steps.claims >= 3, "three claims")


async def export_drains(client: Client) -> None:
    for scenario in (burst, faults, pause, idle):
        async with bench_for(client, Steps()) as bench:
            await scenario(bench)
            first = bench.handle.first_execution_run_id
            await write(
                f"drain-{scenario.__name__}", client.get_workflow_handle(bench.name, run_id=first)
            )


async def export_others(client: Client) -> None:
    calls: list[tuple[Any, list[Any]]] = [
        (Sweep, [RoundsInput(0.05, 0.2)]),
        (Collect, [RoundsInput(30, 10)]),
        (Reconcile, [ReconcileInput(["graph", "vectors"])]),
        (Hello, []),
        (RolloutGate, [RolloutGateInput(20)]),
    ]
    async with Worker(
        client,
        task_queue="export",
        workflows=MAINTENANCE_WORKFLOWS,
        activities=[sweep, collect, reconcile, smoke_test, rollout_gate],
        interceptors=[Translation()],
    ):
        for workflow, arguments in calls:
            name = workflow.__name__.lower()
            handle = await client.start_workflow(
                workflow.run, args=arguments, id=name, task_queue="export"
            )
            await handle.result()
            await write(name, handle)


@activity.defn
async def pull(input: PullInput) -> PullReport:
    return PullReport(2, 300, 290, 0, ["a", "b"])


@activity.defn
async def follow(input: FollowInput) -> FollowReport:
    return FollowReport(120, 4_000, 12, 20)


@activity.defn
async def land_file(input: FileInput) -> FileReport:
    done = activity.info().workflow_id in landing
    landing.add(activity.info().workflow_id)
    return FileReport(600, 600 if done else 500, more=not done)


@activity.defn
async def answer_file(input: FileInput) -> list[str]:
    return []


@activity.defn
async def backfill(input: BackfillInput) -> BackfillReport:
    return BackfillReport("done", 500, 12)


landing: set[str | None] = set()


async def export_fetching(client: Client) -> None:
    calls: list[tuple[Any, Any]] = [
        (Pull, PullInput("edi")),
        (File, FileInput("edi", "c")),
        (Follow, FollowInput("samsara", runs=2)),
        (Backfill, BackfillInput("edi", "d")),
    ]
    async with Worker(
        client,
        task_queue="fetching",
        workflows=PULL_WORKFLOWS,
        activities=[pull, follow, land_file, answer_file, backfill],
        interceptors=[Translation()],
    ):
        for workflow, input in calls:
            name = workflow.__name__.lower()
            handle = await client.start_workflow(
                workflow.run, input, id=name, task_queue="fetching"
            )
            first = client.get_workflow_handle(name, run_id=handle.first_execution_run_id)
            await until(partial(_closed, first), f"{name} ended")
            await write(name, first)
        await client.get_workflow_handle("follow").terminate("exported")


async def _closed(handle: WorkflowHandle[Any, Any]) -> bool:
    return (await handle.describe()).close_time is not None


async def write(name: str, handle: WorkflowHandle[Any, Any]) -> None:
    history = json.loads((await handle.fetch_history()).to_json())
    text = json.dumps(_anonymous(history), indent=1, sort_keys=True)
    text = re.sub(r"\d+@[\w.-]+", "worker", text)
    (HISTORIES / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _anonymous(value: Any) -> Any:
    """Without the names of machines and folders it was made on."""
    if isinstance(value, dict):
        return {key: _anonymous(item) for key, item in value.items() if key != "stackTrace"}
    return [_anonymous(item) for item in value] if isinstance(value, list) else value


async def main() -> None:
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with running(Temporal(Path(folder), free_port(), "", free_port())) as engine:
            client = await connect(engine.url)
            await export_drains(client)
            await export_others(client)
            await export_fetching(client)


if __name__ == "__main__":
    asyncio.run(main())
