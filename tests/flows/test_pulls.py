"""What is fetched, through Temporal: schedules pull, streams are followed, files have a child each, backfills show how far they are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.temporal import Temporal
from apex_memory.errors import Conflict
from apex_memory.fetching.source_states import ListedSource
from apex_memory.flows.drain.control import Drains, priorities_of
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.fetch.messages import BackfillReport
from apex_memory.flows.fetch.workflows import Backfill
from apex_memory.flows.temporal.client import connect_by
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.wakes import Waker
from apex_memory.flows.worker import serve
from apex_memory.model import document_uuid
from apex_memory.sources.pages import ChangeHint
from tests.conftest import running
from tests.e2e.conftest import MakeSettings
from tests.flows.conftest import TAKEOVER_SECONDS
from tests.flows.payloads import readable
from tests.flows.toys import TOYS
from tests.waiting import until


@dataclass
class Place:
    """A running worker over the toys."""

    app: App
    client: Client
    waker: Waker
    pulling: Pulling
    folder: Path

    async def text(self, source: str, key: str) -> str | None:
        row = await self.app.db.fetch_one(
            """SELECT m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id
               WHERE d.doc_id = %s AND NOT d.deleted""",
            (document_uuid(source, key),),
        )
        return row["text"] if row else None

    async def state(self, source: str) -> ListedSource:
        return next(row for row in await self.app.fetcher.states.listed() if row.name == source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("code", "toys", "toys/in", "toys/archive", "toys/out"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "toys.py").write_text(TOYS)
    (tmp_path / "toys" / "lines").write_text("one\ntwo\nthree\n")
    return tmp_path / "toys"


@asynccontextmanager
async def at_work(
    make_settings: MakeSettings, folder: Path, temporal: Temporal
) -> AsyncIterator[Place]:
    toys: dict[str, dict[str, Any]] = {
        name: {"folder": str(folder)} for name in ("polled", "streamed", "filed")
    }
    toys["streamed"] |= {"poll_seconds": 0.05}
    settings = make_settings(
        temporal=temporal.url, sources=toys, source_path=folder.parent / "code", sweep_seconds=1
    )
    async with open_app(settings) as app:
        client, stop = await connect_by(settings, app.keyring), asyncio.Event()
        pulling = Pulling(client, app.sources)
        waker = Waker(Drains(client, priorities_of(app.sources)), pulling)
        task = asyncio.create_task(serve(app, stop=stop, maintain_seconds=1))
        try:
            yield Place(app, client, waker, pulling, folder)
        finally:
            await waker.close()
            stop.set()
            await task


@asynccontextmanager
async def temporal_server() -> AsyncIterator[Temporal]:
    with tempfile.TemporaryDirectory(prefix="apex-test-") as name:
        engine = Temporal(Path(name), free_port(), "", free_port())
        async with running(engine):
            yield engine


async def test_polls_streams_and_files_arrive(make_settings: MakeSettings, folder: Path) -> None:
    (folder / "readings").write_text("0 10\n10 20\n400 5\n")
    (folder / "in" / "a.txt").write_text("alpha\nbeta\n")
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:
        # At the start each is looked at once, without waiting for the clock.
        await until(lambda: place.text("polled", "line:2"), "the poll arrived", seconds=30)
        await until(lambda: place.text("filed", "a.txt:1"), "the file arrived", seconds=30)
        window = "window:v:2026-11-02T06:00:00+00:00"
        await until(lambda: place.text("streamed", window), "the window arrived", seconds=30)
        assert await place.text("streamed", window) == "2 readings, sum 30"
        assert not list((folder / "in").iterdir())
        await until((folder / "out" / "a.txt.ack").exists, "the acknowledgement is written")
        [file] = await place.app.fetcher.files.listed()
        assert (file.events, file.landed, file.findings) == (2, 2, ["odd"])

        # A change hint fetches at once; a late reading opens its window again.
        (folder / "lines").write_text("one\ntwo\nthree\nfour\n")
        await place.app.fetcher.pulls.note("polled", [ChangeHint("all")])
        place.waker.pull("polled")
        await until(
            lambda: place.text("polled", "line:3"), "the change hint was followed", seconds=20
        )
        assert not await place.app.db.fetch("SELECT FROM change_hints")
        with (folder / "readings").open("a") as readings:
            readings.write("20 70\n")

        async def reopened() -> bool:
            return await place.text("streamed", window) == "3 readings, sum 100"

        await until(reopened, "the window was opened again", seconds=20)
        ids = {run.id async for run in place.client.list_workflows("WorkflowType = 'File'")}
        assert {id.rpartition(":")[0] for id in ids} == {"file:filed"}
        # A child does not inherit it: on a slow machine decisions of 10 s would fail again and again.
        async for run in place.client.list_workflows():
            described = await place.client.get_workflow_handle(run.id, run_id=run.run_id).describe()
            config = described.raw_description.execution_config
            assert config.default_workflow_task_timeout.ToTimedelta() == TASK_TIMEOUT, run.id


@pytest.mark.long
@pytest.mark.timeout(3 * TAKEOVER_SECONDS)
async def test_w4_histories_of_what_is_fetched_hold_no_content(
    make_settings: MakeSettings, folder: Path
) -> None:
    """No text, no key of a document, no name of a file and no setting: ids and counts alone, before they are sealed."""
    contents = ["quetzal", "amaranth", "741852", "Ruth_Vega", "line:", "window:", str(folder)]
    (folder / "lines").write_text("quetzal\n")
    (folder / "readings").write_text("0 741852\n400 1\n")
    (folder / "in" / "Ruth_Vega.txt").write_text("amaranth\n")
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:
        await until(lambda: place.text("polled", "line:0"), "the poll arrived", seconds=30)
        await until(lambda: place.text("filed", "Ruth_Vega.txt:0"), "the file arrived", seconds=30)
        window = "window:v:2026-11-02T06:00:00+00:00"
        await until(lambda: place.text("streamed", window), "the window arrived", seconds=30)
        acknowledged = folder / "out" / "Ruth_Vega.txt.ack"
        await until(acknowledged.exists, "the acknowledgement is written")
        now = datetime.now(UTC)
        id = await place.app.backfills.create(
            "polled", "backfill", now - timedelta(hours=1), now, actor="test"
        )
        await place.pulling.backfill("polled", id)
        await place.client.get_workflow_handle(f"backfill:polled:{id}").result()

        async def recorded() -> dict[str, list[str]]:
            """Return the closed histories and the open ones by workflow, opened."""
            texts: dict[str, list[str]] = {}
            async for run in place.client.list_workflows():
                handle = place.client.get_workflow_handle(run.id, run_id=run.run_id)
                text = await readable(place.client, await handle.fetch_history())
                texts.setdefault(run.workflow_type, []).append(text)
            return texts

        async def complete() -> bool:
            texts = await recorded()
            kinds = {"Pull", "File", "Backfill"}
            return all(
                "WORKFLOW_EXECUTION_COMPLETED" in "".join(texts.get(kind, "")) for kind in kinds
            )

        await until(complete, "the histories are listed", seconds=30, every=0.5)
        histories = await recorded()
    assert {"Pull", "File", "Follow", "Backfill", "Drain"} <= histories.keys()
    assert "landed" in "".join(histories["File"]), "the payloads are open"
    for kind, texts in histories.items():
        for text in texts:
            assert not [content for content in contents if content in text], kind


async def test_a_pause_outlives_the_worker(make_settings: MakeSettings, folder: Path) -> None:
    async with temporal_server() as temporal:
        async with at_work(make_settings, folder, temporal) as place:
            await until(lambda: place.text("polled", "line:0"), "the poll arrived", seconds=30)
            await place.app.fetcher.states.decide("polled", actor="test", paused=True)
        (folder / "lines").write_text("one\ntwo\nthree\nfour\n")
        async with at_work(make_settings, folder, temporal) as place:
            assert (await place.state("polled")).state == "paused"
            await place.pulling.trigger("polled")
            await until(lambda: _pulls(place), "the triggered pull ended", seconds=TAKEOVER_SECONDS)
            assert await place.text("polled", "line:3") is None
            await place.app.fetcher.states.decide("polled", actor="test", paused=False)
            await place.pulling.trigger("polled")
            await until(
                lambda: place.text("polled", "line:3"), "it goes on", seconds=TAKEOVER_SECONDS
            )
            actions = await place.app.db.fetch(
                "SELECT actor, subject FROM audit WHERE subject = 'polled'"
            )
            assert [(row["actor"], row["subject"]) for row in actions] == [("test", "polled")] * 2


async def _pulls(place: Place) -> bool:
    query = "WorkflowType = 'Pull' AND ApexSource = 'polled' AND ExecutionStatus = 'Completed'"
    return len([run async for run in place.client.list_workflows(query)]) >= 2


async def test_trouble_is_shown_and_ends_by_itself(
    make_settings: MakeSettings, folder: Path
) -> None:
    (folder / "lines").write_text("one\ntrouble\n")
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:

        async def failing() -> bool:
            return (await place.state("polled")).state == "failing"

        await until(failing, "the trouble is shown", seconds=30)
        assert "in trouble" in ((await place.state("polled")).error or "")
        (folder / "lines").write_text("one\ntwo\n")
        await until(lambda: place.text("polled", "line:1"), "it was tried again", seconds=30)


async def test_backfill_and_replay(make_settings: MakeSettings, folder: Path) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:
        await until(lambda: place.text("polled", "line:2"), "the poll arrived", seconds=30)
        (folder / "lines").write_text("one\ntwo\nthree\nfour\nfive\n")
        backfills = place.app.backfills
        id = await backfills.create("polled", "backfill", since, datetime.now(UTC), actor="test")
        with pytest.raises(Conflict, match="is running"):
            await backfills.create("polled", "replay", since, datetime.now(UTC), actor="test")
        await place.pulling.backfill("polled", id)

        async def ended() -> bool:
            return bool((await backfills.get(id)).state != "running")

        await until(ended, "the backfill ended", seconds=30)
        row = await backfills.get(id)
        assert (row.state, row.seen, row.landed) == ("done", 5, 2)
        await until(lambda: place.text("polled", "line:4"), "it is in memory", seconds=20)
        cursors = await place.app.db.fetch("SELECT source FROM cursors ORDER BY 1")
        assert [cursor["source"] for cursor in cursors] == ["polled"]

        id = await backfills.create("polled", "replay", since, datetime.now(UTC), actor="test")
        await place.pulling.backfill("polled", id)
        await until(ended, "the replay ended", seconds=30)
        assert (await backfills.get(id)).landed == 5

        async def replayed() -> bool:
            rows = await place.app.db.fetch(
                "SELECT event_id FROM documents WHERE source = 'polled'"
            )
            return all("#replay:" in row["event_id"] for row in rows)

        await until(replayed, "each document was made anew", seconds=20)


async def test_s1_a_backfill_of_a_stream_reports_the_readings_that_it_brought(
    make_settings: MakeSettings, folder: Path
) -> None:
    """Readings become events later, window by window: the count is that of the readings, known ones apart."""
    (folder / "readings").write_text("0 10\n")
    days_before = -60 * 86_400
    old = "".join(f"{days_before + 300 * n} {n}\n" for n in range(6))
    (folder / "history").write_text(f"{old}0 10\n")
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:

        async def readings() -> int:
            return len(await place.app.db.fetch("SELECT FROM readings WHERE source = 'streamed'"))

        async def known() -> bool:
            return await readings() == 1

        await until(known, "the stream is followed", seconds=30)
        backfills = place.app.backfills
        since = datetime.now(UTC) - timedelta(days=90)
        id = await backfills.create("streamed", "backfill", since, datetime.now(UTC), actor="test")
        await place.pulling.backfill("streamed", id)
        handle = place.client.get_workflow_handle_for(Backfill.run, f"backfill:streamed:{id}")
        assert await handle.result() == BackfillReport("done", 7, 6)
        [row] = await backfills.listed()
        assert (row.state, row.seen, row.landed) == ("done", 7, 6)
        assert await readings() == 7
        for n in range(6):
            at = datetime(2026, 11, 2, 6, tzinfo=UTC) + timedelta(seconds=days_before + 300 * n)
            await until(
                partial(place.text, "streamed", f"window:v:{at.isoformat()}"),
                f"window {n} is in memory",
                seconds=40,
            )


async def test_the_sweep_starts_what_was_ordered_while_temporal_was_away(
    make_settings: MakeSettings, folder: Path
) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:
        id = await place.app.backfills.create(
            "polled", "backfill", since, datetime.now(UTC), actor="test"
        )

        async def done() -> bool:
            return bool((await place.app.backfills.get(id)).state == "done")

        await until(done, "the sweep started it", seconds=30)


async def test_a_cancelled_backfill_stops(make_settings: MakeSettings, folder: Path) -> None:
    (folder / "lines").write_text("".join(f"line {n}\n" for n in range(2_000)))
    since = datetime.now(UTC) - timedelta(hours=1)
    async with temporal_server() as temporal, at_work(make_settings, folder, temporal) as place:
        await place.app.fetcher.states.decide("polled", actor="test", enabled=True)
        backfills = place.app.backfills
        id = await backfills.create("polled", "backfill", since, datetime.now(UTC), actor="test")
        await place.pulling.backfill("polled", id)

        async def begun() -> bool:
            return bool((await backfills.get(id)).seen > 3)

        await until(begun, "it has begun", seconds=30)
        assert await backfills.end(id, "cancelled")

        async def over() -> bool:
            handle = place.client.get_workflow_handle(f"backfill:polled:{id}")
            return (await handle.describe()).close_time is not None

        await until(over, "its workflow ended", seconds=30)
        assert (await backfills.get(id)).seen < 2_000
