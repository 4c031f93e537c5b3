"""A new build takes over: what the old one began is not left lying, and nothing needs a person."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus

from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.deployment import Deployment, build_id
from apex_memory.flows.worker import activate_build, maintain, workers
from tests.conftest import running
from tests.flows.conftest import TAKEOVER_SECONDS
from tests.flows.scripted import Steps
from tests.waiting import until

pytestmark = pytest.mark.timeout(3 * TAKEOVER_SECONDS)


@pytest.fixture
def folder() -> object:
    with tempfile.TemporaryDirectory(prefix="apex-test-") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def own(folder: Path) -> AsyncIterator[Client]:
    """A client of a Temporal server that no other test uses: deployments are the server's, not a queue's."""
    async with running(Temporal(folder, free_port(), "", free_port())) as engine:
        yield await connect(engine.url)


@asynccontextmanager
async def build(client: Client, name: str, steps: Steps) -> AsyncIterator[Drains]:
    """Workers of a build, tended as in a worker process; inside the block they are current."""
    deployment, drains = Deployment(client, name), Drains(client, {"frontapp": 0, "edi": 2})
    settings = Settings(sweep_seconds=3600, collect_seconds=3600)
    async with workers(deployment, steps.activities):
        await activate_build(settings, {}, drains, deployment)
        task = asyncio.create_task(
            maintain(settings, {}, drains, deployment, seconds=1, unclaimed=2.5)
        )
        try:
            yield drains
        finally:
            task.cancel()


async def version_of(client: Client) -> str:
    """The build that the newest run of the drain is on."""
    found = await client.get_workflow_handle("drain:frontapp").describe()
    return str(found.raw_info.versioning_info.deployment_version.build_id)


async def test_events_are_carried_after_an_upgrade_of_the_only_worker(own: Client) -> None:
    old, new = Steps(), Steps()
    async with build(own, "a", old) as drains:
        old.land(1)
        await drains.wake("frontapp")
        await until(lambda: old.published == ["e0"], "the old build carries it")

        async def on_a() -> bool:
            return await version_of(own) == "a"

        await until(on_a, "the server says which build carries it")

    async with build(own, "b", new) as drains:
        new.land(1)
        await drains.wake("frontapp")
        await until(
            lambda: new.published == ["e0"], "the new build carries it", seconds=TAKEOVER_SECONDS
        )

        async def on_new_build() -> bool:
            return await version_of(own) == "b"

        await until(on_new_build, "the drain is on the new build", seconds=TAKEOVER_SECONDS)
    ended = [item async for item in own.list_workflows("WorkflowId = 'drain:frontapp'")]
    assert WorkflowExecutionStatus.TERMINATED in {item.status for item in ended}


async def test_a_drain_of_a_living_old_worker_moves_by_itself(own: Client) -> None:
    old, new = Steps(), Steps()
    async with build(own, "a", old) as drains:
        old.land(1)
        await drains.wake("frontapp")
        await until(lambda: old.published == ["e0"], "the old build carries it")
        async with build(own, "b", new):
            await drains.wake("frontapp")

            async def moved() -> bool:
                return await version_of(own) == "b"

            await until(moved, "the drain is on the new build", seconds=TAKEOVER_SECONDS)
            new.land(1)
            await drains.wake("frontapp")
            await until(
                lambda: new.published == ["e0"],
                "the new build carries it",
                seconds=TAKEOVER_SECONDS,
            )
            runs = [item async for item in own.list_workflows("WorkflowType = 'Drain'")]
            assert WorkflowExecutionStatus.TERMINATED not in {item.status for item in runs}


async def test_paused_stays_paused_over_an_upgrade(own: Client) -> None:
    old, new = Steps(), Steps()
    async with build(own, "a", old) as drains:
        await drains.pause("frontapp")
        old.land(1)
        await drains.wake("frontapp")

        async def paused() -> bool:
            found = await own.get_workflow_handle("drain:frontapp").describe()
            return (await found.memo())["paused"] is True

        await until(paused, "the drain says that it is paused")
    async with build(own, "b", new) as drains:
        new.land(1)

        async def moved() -> bool:
            return await version_of(own) == "b" and await paused()

        await until(moved, "the drain is on the new build, paused", seconds=TAKEOVER_SECONDS)
        assert new.published == []
        await drains.resume("frontapp")
        await until(lambda: new.published == ["e0"], "carried after resume")


def test_build_id_is_the_version_and_a_hash_of_the_code() -> None:
    version, _, digest = build_id().rpartition("-")
    assert version
    assert len(digest) == 10
    assert build_id() == build_id()
