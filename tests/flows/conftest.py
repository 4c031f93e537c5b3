from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypedDict, Unpack

import pytest_asyncio
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker

from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.drain.workflow import Drain
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.codec import SealingCodec, sealing_converter
from apex_memory.flows.temporal.deployment import NOT_YET, Deployment
from apex_memory.flows.temporal.errors import Translation
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.sealing import Keyring, new_key, read_keys
from tests.e2e.conftest import hashing_vectors_url, make_settings
from tests.flows.scripted import Steps
from tests.waiting import until

__all__ = ["hashing_vectors_url", "make_settings"]  # fixtures that are shared

# An old worker can still be handed a task while it ends: the server takes the task back after its time limit.
TAKEOVER_SECONDS = TASK_TIMEOUT.total_seconds() + 30


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(temporal_address: str) -> Client:
    """A client with the codec, as an installation's own have it."""
    converter = sealing_converter(SealingCodec(Keyring(read_keys([new_key()]))))
    return await connect(temporal_address, data_converter=converter)


async def make_current(deployment: Deployment) -> None:
    """Make the deployment's build current, once the server has seen its worker."""

    async def is_set() -> bool:
        try:
            await deployment.set_current(deployment.build)
        except RPCError as error:
            if error.status not in NOT_YET:
                raise
            return False
        return True

    await until(is_set, f"build {deployment.build} is current", every=0.2)


class Changes(TypedDict, total=False):
    """Fields of `DrainInput` that a test may change."""

    idle_seconds: float
    quiet_seconds: float
    fault_seconds: float
    run_events: int


class Bench:
    """A worker with scripted steps on a queue of its own, and one drain on it."""

    def __init__(self, client: Client, steps: Steps) -> None:
        self.client = client
        self.steps = steps
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.handle: WorkflowHandle[Drain, None]

    async def start(self, **changes: Unpack[Changes]) -> WorkflowHandle[Drain, None]:
        input = DrainInput("frontapp", 0, quiet_seconds=0.3, idle_seconds=600, fault_seconds=0.2)
        self.handle = await self.client.start_workflow(
            Drain.run, replace(input, **changes), id=self.name, task_queue=self.name
        )
        return self.handle

    async def wake(self) -> None:
        await self.client.get_workflow_handle(self.name).signal("wake")

    async def runs(self) -> list[str]:
        """Run ids, as the runs say it themselves: each names the one it went on as."""
        chain, run = [], self.handle.first_execution_run_id
        while run:
            chain.append(run)
            history = await self.client.get_workflow_handle(self.name, run_id=run).fetch_history()
            last = history.events[-1].workflow_execution_continued_as_new_event_attributes
            run = last.new_execution_run_id
        return chain


@asynccontextmanager
async def bench_for(client: Client, steps: Steps) -> AsyncIterator[Bench]:
    bench = Bench(client, steps)
    async with Worker(
        client,
        task_queue=bench.name,
        workflows=[Drain],
        activities=steps.activities,
        interceptors=[Translation()],
    ):
        try:
            yield bench
        finally:
            await client.get_workflow_handle(bench.name).terminate("the test is over")


@pytest_asyncio.fixture
async def bench(client: Client) -> AsyncIterator[Bench]:
    async with bench_for(client, Steps()) as bench:
        yield bench
