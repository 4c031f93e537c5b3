"""`python -m bench.codec`: what the payload codec costs, with plain and sealed payloads in alternating runs.

The workflow is the worst case for a codec: nothing but payloads, each of an activity that does nothing. The product's
drain hands over a few payloads for a batch of up to 500 events.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.converter import DataConverter
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.codec import SealingCodec, sealing_converter
from apex_memory.sealing import Keyring, new_key, read_keys
from tests.conftest import running

ROUNDS = 6
WORKFLOWS = 60  # in each round
ACTIVITIES = 5  # of each workflow, so that it has 14 payloads
AT_ONCE = 20


@activity.defn
async def echo(text: str) -> str:
    return text


@workflow.defn
class Echoes:
    """A workflow whose activities return their argument of 500 bytes."""

    @workflow.run
    async def run(self, text: str) -> str:
        for _ in range(ACTIVITIES):
            text = await workflow.execute_activity(
                echo, text, start_to_close_timeout=timedelta(seconds=60)
            )
        return text


async def workflows_per_second(client: Client) -> float:
    """Return how many workflows end in a second."""
    queue = f"bench-{uuid.uuid4().hex[:8]}"
    slots = asyncio.Semaphore(AT_ONCE)

    async def run_one(n: int) -> None:
        async with slots:
            await client.execute_workflow(
                Echoes.run, "x" * 500, id=f"{queue}-{n}", task_queue=queue
            )

    async with Worker(
        client,
        task_queue=queue,
        workflows=[Echoes],
        activities=[echo],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        began = time.perf_counter()
        await asyncio.gather(*(run_one(n) for n in range(WORKFLOWS)))
        return WORKFLOWS / (time.perf_counter() - began)


async def microseconds(converter: DataConverter) -> float:
    """Return what writing and reading a payload of 500 bytes takes, in µs of processor time."""
    repeats = 20_000
    began = time.process_time()
    for _ in range(repeats):
        await converter.decode(await converter.encode(["x" * 500]), [str])
    return (time.process_time() - began) / repeats * 1e6


async def main() -> None:
    sealing = sealing_converter(SealingCodec(Keyring(read_keys([new_key()]))))
    rates: dict[str, list[float]] = {"plain": [], "sealed": []}
    with tempfile.TemporaryDirectory(prefix="apex-bench-") as folder:
        async with running(Temporal(Path(folder), free_port(), "", free_port())) as engine:
            clients = {
                "plain": await connect(engine.url),
                "sealed": await connect(engine.url, data_converter=sealing),
            }
            for client in clients.values():
                await workflows_per_second(client)  # warms up
            for _ in range(ROUNDS):
                for name, client in clients.items():
                    rates[name].append(await workflows_per_second(client))
    for name, values in rates.items():
        listed = " ".join(f"{value:.1f}" for value in values)
        print(f"{name}: {statistics.median(values):.1f} workflows/s, median of {listed}")
    pairs = zip(rates["sealed"], rates["plain"], strict=True)
    print(f"sealed × plain: {statistics.median(a / b for a, b in pairs):.3f}, median of pairs")
    plain = await microseconds(DataConverter.default)
    sealed = await microseconds(sealing)
    print(f"a payload written and read: {plain:.1f} µs plain, {sealed:.1f} µs sealed")


if __name__ == "__main__":
    asyncio.run(main())
