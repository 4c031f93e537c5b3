"""The check of a build, where a task of its workflow gets lost or never ends."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import pytest
from temporalio import activity
from temporalio.client import Client

from apex_memory.errors import Unavailable
from apex_memory.flows.maintenance import rollout_gate
from apex_memory.flows.maintenance.messages import RolloutGateInput, RolloutGateReport
from apex_memory.flows.maintenance.rollout_gate import run_rollout_gate
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.worker import workers
from tests.flows.conftest import make_current

pytestmark = pytest.mark.timeout(90)


@dataclass
class Gate:
    """An activity that hangs the first times it runs."""

    hangs: int
    runs: int = 0

    @activity.defn(name="rollout_gate")
    async def check(self, input: RolloutGateInput) -> RolloutGateReport:
        self.runs += 1
        while self.runs <= self.hangs:
            activity.heartbeat()
            await asyncio.sleep(0.1)
        return RolloutGateReport("b", {"documents": "PostgreSQL"}, {"Drain": input.histories})


async def test_a_check_that_hangs_is_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_gate, "TRY_SECONDS", (3.0, 40.0))
    deployment, gate = Deployment(client, "b", f"gate-{uuid.uuid4().hex[:6]}"), Gate(hangs=1)
    async with workers(deployment, [gate.check]):
        await make_current(deployment)
        id = await run_rollout_gate(deployment, deployment.build, 1)
    assert gate.runs == 2
    assert await client.get_workflow_handle(id).result() is not None


async def test_a_check_that_never_ends_says_where_to_look(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_gate, "TRY_SECONDS", (2.0, 2.0))
    deployment, gate = Deployment(client, "b", f"gate-{uuid.uuid4().hex[:6]}"), Gate(hangs=9)
    async with workers(deployment, [gate.check]):
        await make_current(deployment)
        with pytest.raises(Unavailable, match="did not finish") as unavailable:
            await run_rollout_gate(deployment, deployment.build, 1)
    assert "apex builds list" in (unavailable.value.remedy or "")
