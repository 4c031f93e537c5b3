"""Builds side by side: which one is current, what a new one gets, and what becomes of the workflows of an old one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus

from apex_memory.app import App
from apex_memory.build import build_id
from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.builds import BuildKeeper
from apex_memory.flows.drain.activities import DrainActivities
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.drain.messages import ClaimedBatch, ClaimInput
from apex_memory.flows.temporal.client import connect
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.worker import workers
from apex_memory.rollout import builds
from apex_memory.rollout.build_watch import BuildWatch
from apex_memory.stores.postgres import Postgres
from tests.conftest import running
from tests.flows.conftest import TAKEOVER_SECONDS
from tests.flows.scripted import Steps
from tests.waiting import until

pytestmark = pytest.mark.timeout(3 * TAKEOVER_SECONDS)

SOURCES = {"frontapp": 0, "edi": 2}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="apex-test-") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def own(folder: Path) -> AsyncIterator[Client]:
    """A client of a Temporal server that no other test uses: deployments are the server's, not a queue's."""
    async with running(Temporal(folder, free_port(), "", free_port())) as engine:
        yield await connect(engine.url)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


@dataclass
class PlacedSteps(Steps):
    """Scripted steps whose claims say, as the real ones do, whether the drain is where it belongs.

    As the real ones, they claim nothing of a source that is paused in PostgreSQL.
    """

    place: Any = None
    db: Postgres | None = None

    @activity.defn(name="claim")
    async def claim(self, input: ClaimInput) -> ClaimedBatch:
        if self.db and await self.db.fetch_one(
            "SELECT name FROM sources WHERE name = %s AND paused", (input.source,)
        ):
            return ClaimedBatch(input.batch, 0, False)
        batch = await super().claim(input)
        place = await self.place(
            input.source, activity.info().workflow_id or "", empty=not batch.count
        )
        return replace(batch, place=place)


@dataclass
class Worker:
    """A worker process of one build, without engines: what the keeper of builds sees of an `App`."""

    db: Postgres
    build: str
    settings: Settings
    builds: BuildWatch
    steps: PlacedSteps
    sources: dict[str, Any] = field(default_factory=dict)
    drains: Drains = field(init=False)


@asynccontextmanager
async def worker(
    client: Client, db: Postgres, build: str, *, routing: str = "self", sources: Any = SOURCES
) -> AsyncIterator[Worker]:
    """Run workers of a build, kept as in a worker process."""
    settings = Settings(sweep_seconds=3600, collect_seconds=3600, routing=cast(Any, routing))
    host = Worker(db, build, settings, BuildWatch(db, build), PlacedSteps(db=db))
    app = cast(App, host)
    host.steps.place = DrainActivities(app)._place
    host.drains = Drains(client, sources, routing=lambda: host.builds.routing)
    deployment = Deployment(client, build)
    keeper = BuildKeeper(app, host.drains, deployment, seconds=1)
    async with workers(deployment, host.steps.activities):
        tasks = [
            asyncio.create_task(host.builds.work(decides=routing == "self")),
            asyncio.create_task(keeper.run(unclaimed=2.5)),
        ]
        try:
            yield host
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def promote(db: Postgres, build: str) -> None:
    async def registered() -> bool:
        return build in [row.build for row in await builds.listed(db)]

    await until(registered, f"{build} has registered")
    await builds.promote(db, build, actor="test", unchecked=True)


async def alone(db: Postgres, build: str) -> None:
    """As `apex up` does before it starts its workers."""
    await builds.promote(db, build, actor="test", alone=True)


async def version_of(client: Client, workflow: str = "drain:frontapp") -> str:
    """Return the build that the newest run of a drain is on."""
    description = await client.get_workflow_handle(workflow).describe()
    return str(description.raw_info.versioning_info.deployment_version.build_id)


async def processes(client: Client, host: Worker, count: int = 1) -> None:
    """Land an event on the build, and wait until its drain has processed it."""
    before = len(host.steps.published)
    host.steps.land(count)
    await host.drains.wake("frontapp")
    await until(
        lambda: len(host.steps.published) == before + count,
        f"{host.build} processes it",
        seconds=TAKEOVER_SECONDS,
    )


async def in_temporal(client: Client, current: str, ramping: str = "", share: int = 0) -> None:
    """Wait until Temporal has this routing, so that its UI shows it."""
    deployment = Deployment(client, current)

    async def is_set() -> bool:
        state = await deployment.state()
        return (state.current, state.ramping, round(state.percentage)) == (current, ramping, share)

    await until(is_set, f"current {current}, ramping {ramping} {share} %", seconds=30, every=0.5)


async def test_the_first_build_is_current_and_a_later_one_waits(own: Client, db: Postgres) -> None:
    async with worker(own, db, "a") as a:
        await processes(own, a)
        assert await version_of(own) == "a"
        async with worker(own, db, "b") as b:

            async def waits() -> bool:
                return {row.build: row.role for row in await builds.listed(db)} == {
                    "a": "current",
                    "b": "waiting",
                }

            await until(waits, "the second build has registered and waits")
            await in_temporal(own, "a")
            b.steps.land(1)
            await processes(own, a)
            assert b.steps.published == []


@pytest.mark.long
async def test_a_restarting_old_worker_takes_nothing_back(own: Client, db: Postgres) -> None:
    async with worker(own, db, "a") as a:
        await processes(own, a)
        async with worker(own, db, "b") as b:
            await promote(db, "b")
            await in_temporal(own, "b")
            await processes(own, b)
        # `b` is away: its events wait, whoever else starts.
    async with worker(own, db, "a") as a:

        async def registered_again() -> bool:
            return any(row.build == "a" and not row.absent for row in await builds.listed(db))

        await until(registered_again, "the old build runs again")
        a.steps.land(1)
        await a.drains.wake("frontapp")
        async with worker(own, db, "b") as b:
            await processes(own, b)
        assert a.steps.published == []
        assert (await builds.routing(db)).current == "b"
        await in_temporal(own, "b")


@pytest.mark.long
async def test_events_are_processed_after_an_upgrade_of_the_only_worker(
    own: Client, db: Postgres
) -> None:
    async with worker(own, db, "a") as a:
        await processes(own, a)
    await alone(db, "b")
    async with worker(own, db, "b") as b:
        await processes(own, b)

        async def on_new_build() -> bool:
            return await version_of(own) == "b"

        await until(on_new_build, "the drain is on the new build", seconds=TAKEOVER_SECONDS)
    ended = [item async for item in own.list_workflows("WorkflowId = 'drain:frontapp'")]
    assert WorkflowExecutionStatus.TERMINATED in {item.status for item in ended}


async def test_a_drain_of_a_living_old_worker_moves_by_itself(own: Client, db: Postgres) -> None:
    async with worker(own, db, "a") as a:
        await processes(own, a)
        async with worker(own, db, "b") as b:
            await promote(db, "b")

            async def moved() -> bool:
                return await version_of(own) == "b"

            await until(moved, "the drain is on the new build", seconds=TAKEOVER_SECONDS)
            await processes(own, b)
            runs = [item async for item in own.list_workflows("WorkflowType = 'Drain'")]
            assert WorkflowExecutionStatus.TERMINATED not in {item.status for item in runs}


async def _pause(db: Postgres, *, paused: bool) -> None:
    """Keep the pause in PostgreSQL, as the API does before it signals the drain.

    Of every source: the scripted steps have one inbox for all, and the drain of another source would take the event.
    """
    await db.execute(
        """INSERT INTO sources (name, paused) SELECT name, %s FROM unnest(%s::text[]) AS t (name)
           ON CONFLICT (name) DO UPDATE SET paused = excluded.paused""",
        (paused, list(SOURCES)),
    )


async def test_paused_stays_paused_over_an_upgrade(own: Client, db: Postgres) -> None:
    async with worker(own, db, "a") as a:
        await _pause(db, paused=True)
        await a.drains.pause("frontapp")
        a.steps.land(1)
        await a.drains.wake("frontapp")

        async def paused() -> bool:
            description = await own.get_workflow_handle("drain:frontapp").describe()
            return (await description.memo())["paused"] is True

        await until(paused, "the drain says that it is paused")
    await alone(db, "b")
    async with worker(own, db, "b") as b:
        b.steps.land(1)

        async def moved() -> bool:
            return await version_of(own) == "b" and await paused()

        await until(moved, "the drain is on the new build, paused", seconds=TAKEOVER_SECONDS)
        assert b.steps.published == []
        await _pause(db, paused=False)
        await b.drains.resume("frontapp")
        await until(lambda: b.steps.published == ["e0"], "processed after resume")


async def test_a_candidate_has_drains_of_its_own_and_temporal_shows_its_share(
    own: Client, db: Postgres
) -> None:
    async with worker(own, db, "a") as a:
        await processes(own, a)
        async with worker(own, db, "b") as b:
            await until(lambda: b.builds.routing.current == "a", "the candidate knows the routing")
            for share in (10, 50, 100):
                await builds.ramp(db, "b", share, actor="test", unchecked=True)
                await in_temporal(own, "a", "b", share)
            b.steps.land(1)
            await until(lambda: b.steps.published, "the candidate's drain processes its events")
            assert await version_of(own, "drain:frontapp@b") == "b"
            await processes(own, a)
            assert await version_of(own) == "a", "the drain of the others stays where it is"

            await builds.rollback(db, actor="test")
            await in_temporal(own, "a")

            async def ended() -> bool:
                description = await own.get_workflow_handle("drain:frontapp@b").describe()
                return description.status == WorkflowExecutionStatus.COMPLETED

            await b.drains._send("frontapp", "wake", "drain:frontapp@b", build="b")
            await until(ended, "the drain of a candidate ends with its rollout")
            await processes(own, a)


async def test_promoting_the_candidate_ends_its_ramp(own: Client, db: Postgres) -> None:
    """Temporal leaves a ramp on when the current build is set to what it is already."""
    async with worker(own, db, "a") as a, worker(own, db, "b") as b:
        await processes(own, a)
        await builds.ramp(db, "b", 50, actor="test", unchecked=True)
        await in_temporal(own, "a", "b", 50)
        await builds.promote(db, "b", actor="test", unchecked=True)
        await in_temporal(own, "b")
        await processes(own, b)
        await builds.rollback(db, actor="test")
        await in_temporal(own, "a")
        await processes(own, a)


async def test_a_retired_build_loses_its_workflows(own: Client, db: Postgres) -> None:
    async with worker(own, db, "a") as a, worker(own, db, "b") as b:
        await processes(own, a)
        await promote(db, "b")
        await processes(own, b)
        await builds.retire(db, "a", actor="test")

        async def gone() -> bool:
            return await Deployment(own, "b").running("a") == 0

        await until(gone, "no workflow runs on the retired build", seconds=TAKEOVER_SECONDS)
        await processes(own, b)


async def test_an_external_owner_of_the_routing_is_followed(own: Client, db: Postgres) -> None:
    """No process of ours makes a build current, or ends its workflows; shares of documents follow the owner's ramp."""
    owner = Deployment(own, "owner")
    async with (
        worker(own, db, "a", routing="external") as a,
        worker(own, db, "b", routing="external") as b,
    ):

        async def both_are_seen() -> bool:
            return {"a", "b"} == {version.build for version in (await owner.state()).versions}

        await until(both_are_seen, "the server has seen both builds")
        assert (await owner.state()).current == ""
        assert (await builds.routing(db)).current == ""

        await owner.set_current("a")
        await until(lambda: a.builds.routing.current == "a", "the owner's choice is followed")
        await processes(own, a)
        await owner.set_ramp("b", 10)
        await until(
            lambda: (a.builds.routing.candidate, a.builds.routing.share) == ("b", 10),
            "the owner's ramp is the share of the documents",
        )
        b.steps.land(1)
        await until(lambda: b.steps.published, "the candidate processes its share")
        await owner.set_ramp("", 0)
        await until(lambda: not a.builds.routing.candidate, "the end of the ramp is followed")
        await owner.set_current("b")
        await until(lambda: a.builds.routing.current == "b", "the promotion is followed")
        await processes(own, b)
    runs = [item async for item in own.list_workflows("WorkflowType = 'Drain'")]
    assert WorkflowExecutionStatus.TERMINATED not in {item.status for item in runs}


def test_build_id_is_the_version_and_a_hash_of_the_code() -> None:
    version, _, digest = build_id().rpartition("-")
    assert version
    assert len(digest) == 10
    assert build_id() == build_id()
