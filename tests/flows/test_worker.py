"""The worker with the real application on real engines: events arrive, whatever becomes of Temporal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from temporalio.client import Client

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.cards import running_processes
from apex_memory.engines.temporal import Temporal
from apex_memory.flows.drain.control import Drains, priorities_of
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.maintenance.smoke_test import run_smoke_test
from apex_memory.flows.temporal.client import connect, connect_by
from apex_memory.flows.temporal.queues import QUEUES, drain_id
from apex_memory.flows.wakes import Waker
from apex_memory.flows.worker import serve
from apex_memory.model import LandResult
from apex_memory.saga.publication import BatchResult
from tests.conftest import running
from tests.e2e.conftest import MakeSettings, land, live, state, text_event
from tests.waiting import until


@pytest.fixture
def temporal() -> Iterator[Temporal]:
    """A Temporal server that is not started yet, on a folder that survives its stops."""
    with tempfile.TemporaryDirectory(prefix="apex-test-") as folder:
        yield Temporal(Path(folder), free_port(), "", free_port())


@asynccontextmanager
async def serving(app: App, *, queues: Sequence[str] = QUEUES) -> AsyncIterator[Waker]:
    """A worker in this process, and the waker that the landing side would have."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve(app, stop=stop, maintain_seconds=1, queues=queues))
    client = await connect_by(app.settings, app.keyring, lazy=True)
    waker = Waker(Drains(client, priorities_of(app.sources)), Pulling(client, app.sources))
    try:
        yield waker
    finally:
        await waker.close()
        stop.set()
        await task


async def done(app: App, landed: LandResult) -> bool:
    return await state(app, landed) == "done"


async def test_a_landed_event_is_processed_and_names_its_run(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    async with (
        running(temporal),
        open_app(make_settings(temporal=temporal.url, temporal_payloads="plain")) as app,
        serving(app) as waker,
    ):
        [landed] = await land(app, text_event(app, "a", "Shipment SHP-100045 left Columbus, OH."))
        waker.wake("documents")
        await until(lambda: done(app, landed), "the event is done")
        assert await live(app, "a")
        row = await app.db.fetch_one("SELECT workflow_id, run_id FROM inbox")
        assert row and row["workflow_id"] == drain_id("documents")
        client = await connect_by(app.settings, app.keyring)
        history = await client.get_workflow_handle(
            row["workflow_id"], run_id=row["run_id"]
        ).fetch_history()
        assert "Columbus" not in history.to_json()

        workflow, report = await run_smoke_test(client)
        assert workflow.startswith("hello:") and not report.away
        assert set(report.stores) == {"documents", "graph", "vectors", "cache"}
        assert report.stores["documents"].startswith("PostgreSQL")


@pytest.mark.alone(reason="has a lease of two seconds")
async def test_a_batch_that_waits_for_the_one_before_keeps_its_lease(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    settings = make_settings(temporal=temporal.url, batch_max=1, lease_seconds=2)
    async with running(temporal), open_app(settings) as app, serving(app) as waker:
        publish, gate = app.publication.publish, asyncio.Event()

        async def publish_late(batch: UUID) -> BatchResult:
            await gate.wait()
            return await publish(batch)

        app.publication.publish = publish_late  # type: ignore[method-assign] # waits for the test
        # At once: a drain that finds the first alone publishes it before it looks for more.
        first, second = await land(app, text_event(app, "a", "one"), text_event(app, "b", "two"))
        waker.wake("documents")

        async def is_prepared() -> bool:
            return await state(app, second) == "prepared"

        await until(is_prepared, "the second batch waits")
        seen = await app.db.fetch_one("SELECT now() AS at")

        async def is_held_much_later() -> bool:
            row = await app.db.fetch_one(
                "SELECT batch IS NOT NULL AND next_at > %s + interval '6 s' AS held FROM inbox WHERE id = %s",
                (seen and seen["at"], second.id),
            )
            return bool(row and row["held"])

        await until(is_held_much_later, "its lease goes on, three times over", seconds=15)
        gate.set()
        for landed in (first, second):
            await until(partial(done, app, landed), "processed")


async def test_the_sweep_makes_up_for_a_lost_wake(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    settings = make_settings(temporal=temporal.url, sweep_seconds=1)
    async with running(temporal), open_app(settings) as app, serving(app) as waker:
        [first] = await land(app, text_event(app, "a", "one"))
        waker.wake("documents")
        await until(lambda: done(app, first), "the worker processes an event")
        [second] = await land(app, text_event(app, "b", "two"))
        await until(lambda: done(app, second), "processed, though nobody woke the drain")


async def test_w4_nothing_is_lost_when_a_stranger_ends_the_workflows(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    """Any user of the machine can do so through Temporal's gRPC, which has no authentication."""
    settings = make_settings(temporal=temporal.url, sweep_seconds=1)
    async with running(temporal), open_app(settings) as app, serving(app) as waker:
        [first] = await land(app, text_event(app, "a", "one"))
        waker.wake("documents")
        await until(lambda: done(app, first), "the worker processes an event")
        address, _, namespace = temporal.url.partition("/")
        stranger = await Client.connect(address, namespace=namespace)
        await stranger.get_workflow_handle(drain_id("documents")).terminate("by a stranger")
        [second] = await land(app, text_event(app, "b", "two"))
        await until(lambda: done(app, second), "processed by a new run", seconds=30)


async def test_the_worker_waits_for_temporal_and_survives_its_absence(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    settings = make_settings(temporal=temporal.url, sweep_seconds=1)
    async with open_app(settings) as app, serving(app) as waker:
        [early] = await land(app, text_event(app, "a", "landed before Temporal was there"))
        async with running(temporal):
            await until(lambda: done(app, early), "processed once Temporal is there", seconds=30)
        [late] = await land(app, text_event(app, "b", "landed while Temporal is away"))
        waker.wake("documents")
        async with running(temporal):
            await until(lambda: done(app, late), "processed once Temporal is back", seconds=40)


class Bare(Temporal):
    """A server as somebody else set it up."""

    def command(self) -> list[str]:
        command = super().command()
        while "--search-attribute" in command:
            at = command.index("--search-attribute")
            del command[at : at + 2]
        return command


async def test_missing_search_attributes_are_created(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    bare = Bare(temporal.data_dir, temporal.port, "", temporal.ui_port)
    async with (
        running(bare),
        open_app(make_settings(temporal=bare.url)) as app,
        serving(app) as waker,
    ):
        [landed] = await land(app, text_event(app, "a", "one"))
        waker.wake("documents")
        await until(lambda: done(app, landed), "the event is done", seconds=30)
        runs = (await connect(bare.url)).list_workflows("ApexSource = 'documents'")
        assert {item.id async for item in runs} == {drain_id("documents")}


async def test_temporal_that_lost_its_data_is_set_up_again(
    make_settings: MakeSettings, temporal: Temporal
) -> None:
    settings = make_settings(temporal=temporal.url, sweep_seconds=1)
    async with open_app(settings) as app, serving(app) as waker:
        async with running(temporal):
            [first] = await land(app, text_event(app, "a", "one"))
            waker.wake("documents")
            await until(lambda: done(app, first), "the worker processes an event")
        for file in temporal.directory.glob("temporal.db*"):
            file.unlink()
        async with running(temporal):
            [second] = await land(app, text_event(app, "b", "two"))
            await until(
                lambda: done(app, second), "processed by a Temporal without a past", seconds=60
            )


async def test_the_process_works_shows_its_metrics_and_stops_on_sigterm(
    make_settings: MakeSettings, temporal: Temporal, tmp_path: Path
) -> None:
    settings = make_settings(temporal=temporal.url)
    names = ("documents", "graph", "vectors", "cache", "temporal", "embedder", "data_dir")
    environment = {f"APEX_{name.upper()}": str(getattr(settings, name)) for name in names}
    environment["APEX_SECRET_KEY"] = settings.secret_key.get_secret_value()
    async with running(temporal), open_app(settings) as app:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "apex_memory.flows"),
            env=os.environ | environment,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            [landed] = await land(app, text_event(app, "a", "one"))
            await until(lambda: done(app, landed), "the worker processes the event", seconds=30)
            [card] = running_processes(tmp_path)
            assert card.pid == process.pid and card.process == "worker" and card.build
            async with httpx2.AsyncClient() as http:
                own = (await http.get(card.metrics)).text
                assert 'apex_events_ended_total{source="documents",state="done"} 1.0' in own
                # Those of Temporal's library stand beside ours.
                assert "temporal_request_total{" in own
                # W4: a page in a browser on this machine reaches loopback under a name of its own.
                foreign = await http.get(card.metrics, headers={"host": "attacker.example"})
                assert foreign.status_code == 421 and "apex_" not in foreign.text
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
            assert running_processes(tmp_path) == []
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
