"""Without Temporal the direct path processes everything, the most urgent first, and hands back: on a real server that stops or dies."""

from __future__ import annotations

import asyncio
import io
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.engines.process import Process, child_of
from apex_memory.engines.temporal import Temporal
from apex_memory.flows import fallback
from apex_memory.flows.drain.control import Drains, priorities_of
from apex_memory.flows.fallback import responds
from apex_memory.flows.fetch.control import Pulling
from apex_memory.flows.temporal.client import connect, connect_by
from apex_memory.flows.wakes import Waker
from apex_memory.flows.worker import serve_paths
from apex_memory.model import Event, document_uuid, now
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.pages import ChangeHint
from apex_memory.telemetry import FALLBACK
from tests.conftest import running
from tests.e2e.conftest import MakeSettings, dumps, live, text_event
from tests.flows.conftest import TAKEOVER_SECONDS
from tests.flows.toys import TOYS
from tests.waiting import until

FALLBACK_SECONDS = 5.0
pytestmark = pytest.mark.timeout(4 * TAKEOVER_SECONDS)
BACK_SECONDS = 60  # until the worker has found Temporal again, on a machine that others work on
SOURCES = '''
import json
from datetime import UTC, datetime
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import Received, Source

class Urgent(Source):
    """Urgent notes."""
    name, title, priority, path = "urgent", "Urgent", Priority.P0, "/v1/urgent"
    def receive(self, request):
        note = json.loads(request.body)
        return Received([Event(source=self.name, event_id=note["id"], doc_key=note["id"], version=note.get("version", 1),
                               occurred_at=datetime(2026, 11, 2, tzinfo=UTC), payload=request.body,
                               priority=self.priority)])
    def document(self, event):
        note = json.loads(event.payload)
        return Document(kind="note", title=note["id"], occurred_at=event.occurred_at, text=note["text"])
    def samples(self):
        return []

class Slow(Urgent):
    """Notes that can wait."""
    name, title, priority, path = "slow", "Slow", Priority.P2, "/v1/slow"
'''


@pytest.fixture
def temporal() -> Iterator[Temporal]:
    """A Temporal server that is not started yet, on a folder that survives its stops."""
    with tempfile.TemporaryDirectory(prefix="apex-test-") as folder:
        yield Temporal(Path(folder), free_port(), "", free_port())


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[Waker]:
    """A worker in this process with both paths, and the waker of a gateway."""
    stop = asyncio.Event()
    task = asyncio.create_task(serve_paths(app, stop=stop, maintain_seconds=1))
    client = await connect_by(app.settings, app.keyring, lazy=True)
    waker = Waker(
        Drains(client, priorities_of(app.sources)), Pulling(client, app.sources), app.inbox
    )
    watching = asyncio.create_task(waker.watch_shares())
    try:
        yield waker
    finally:
        watching.cancel()
        await waker.close()
        stop.set()
        await ended(task)


async def ended(task: asyncio.Task[None], *, seconds: float = 60) -> None:
    """Wait for the worker to end; if it does not, fail with what its tasks wait for."""
    if not (await asyncio.wait((task,), timeout=seconds))[0]:
        stacks = io.StringIO()
        for other in asyncio.all_tasks():
            other.print_stack(file=stacks)
        pytest.fail(f"the worker has not ended after {seconds:g} s\n{stacks.getvalue()}")
    await task


def note(app: App, id: str, source: str = "urgent", version: int = 1) -> Event:
    body = dumps({"id": id, "text": f"Note {id} of SHP-100045.", "version": version})
    request = InboundRequest(body=body, headers={}, query={}, received_at=now())
    return app.sources[source].receive(request).events[0]


async def processed(app: App, id: str) -> dict[str, Any] | None:
    """Return the event, once it is done: its path, its build, its workflow, and when it ended."""
    return await app.db.fetch_one(
        """SELECT path, build, workflow_id, ended_at, received_at FROM inbox
           WHERE event_id = %s AND state = 'done'""",
        (id,),
    )


async def processed_by(app: App, id: str, *, seconds: float = 30) -> str:
    row = await until(lambda: processed(app, id), f"{id} is processed", seconds=seconds)
    assert row
    return str(row["path"])


@asynccontextmanager
async def server(temporal: Temporal) -> AsyncIterator[Process]:
    temporal.prepare()
    process = Process(child_of(temporal), temporal.data_dir / "temporal.log")
    await process.until_ready()
    try:
        yield process
    finally:
        await process.kill()


@pytest.mark.long
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_without_temporal_the_direct_path_processes_all_and_hands_back(
    make_settings: MakeSettings, temporal: Temporal, tmp_path: Path, how: str
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "notes.py").write_text(SOURCES)
    settings = make_settings(
        temporal=temporal.url,
        source_path=tmp_path / "sources",
        fallback_seconds=FALLBACK_SECONDS,
        batch_max=5,
        sweep_seconds=1,
    )
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(server(temporal))
        app = await stack.enter_async_context(open_app(settings))
        waker = await stack.enter_async_context(serving(app))

        async def land(*events: Event) -> None:
            await app.inbox.land(events)
            for source in {event.source for event in events}:
                waker.wake(source)

        async def by_temporal() -> bool:
            id = f"seen-{now().timestamp()}"
            await land(note(app, id))
            return await processed_by(app, id) == "temporal"  # if not, a stall was drained directly

        await until(by_temporal, "Temporal processes events", seconds=TAKEOVER_SECONDS)
        assert await app.inbox.fallback_since() is None and FALLBACK._value.get() == 0
        # On a slow machine there may have been a fallback at the start already.
        await app.db.execute("DELETE FROM audit")

        if how == "stopped":
            process.signal(signal.SIGSTOP)
        else:
            await process.kill()
        await land(*(note(app, f"slow-{n}", "slow") for n in range(40)), note(app, "urgent"))
        assert await processed_by(app, "urgent") == "direct"
        urgent = await processed(app, "urgent")
        assert urgent and urgent["build"] == app.build and urgent["workflow_id"] is None
        assert (urgent["ended_at"] - urgent["received_at"]).total_seconds() >= FALLBACK_SECONDS - 1

        async def all_slow() -> list[Any]:
            rows = await app.db.fetch(
                "SELECT path, ended_at FROM inbox WHERE source = 'slow' AND state = 'done'"
            )
            return rows if len(rows) == 40 else []

        slow = await until(all_slow, "the backlog is processed", seconds=60)
        assert {row["path"] for row in slow} == {"direct"}
        later = sum(row["ended_at"] > urgent["ended_at"] for row in slow)
        assert later >= 20, "P0 first: it does not wait for the backlog of P2"
        # A stalled source may be drained before.
        await until(lambda: FALLBACK._value.get() == 1, "the fallback begins")
        assert await until(app.inbox.fallback_since, "seen by every process")

        if how == "stopped":
            process.signal(signal.SIGCONT)
        else:
            process = await stack.enter_async_context(server(temporal))
        await until(lambda: FALLBACK._value.get() == 0, "the fallback ends", seconds=BACK_SECONDS)

        async def nowhere() -> bool:
            return await app.inbox.fallback_since() is None

        await until(nowhere, "and every process sees it")
        await until(by_temporal, "events go through Temporal again", seconds=TAKEOVER_SECONDS)
        rows = await app.db.fetch("SELECT subject FROM audit WHERE action = 'fallback' ORDER BY id")
        assert [row["subject"] for row in rows] == ["began", "ended"]
        unfinished = await app.db.fetch("SELECT FROM inbox WHERE state NOT IN ('done')")
        assert not unfinished


async def test_pulls_streams_files_and_sweeps_go_on_without_temporal(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    for name in ("code", "toys", "toys/in", "toys/archive", "toys/out"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "toys"
    (tmp_path / "code" / "toys.py").write_text(TOYS)
    (folder / "lines").write_text("one\ntwo\n")
    (folder / "readings").write_text("0 10\n10 20\n400 5\n")
    (folder / "in" / "a.txt").write_text("alpha\nbeta\n")
    toys: dict[str, dict[str, Any]] = {
        name: {"folder": str(folder)} for name in ("polled", "streamed", "filed")
    }
    toys["streamed"] |= {"poll_seconds": 0.5}
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        sources=toys,
        source_path=tmp_path / "code",
        fallback_seconds=0.2,
        sweep_seconds=1,
    )

    async with open_app(settings) as app, serving(app):

        async def text(source: str, key: str) -> str | None:
            row = await app.db.fetch_one(
                """SELECT m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id
                   WHERE d.doc_id = %s AND NOT d.deleted""",
                (document_uuid(source, key),),
            )
            return row["text"] if row else None

        await until(lambda: text("polled", "line:1"), "the poll arrived", seconds=30)
        await until(lambda: text("filed", "a.txt:1"), "the file arrived", seconds=30)
        window = "window:v:2026-11-02T06:00:00+00:00"
        await until(lambda: text("streamed", window), "the window arrived", seconds=30)
        await until((folder / "out" / "a.txt.ack").exists, "the acknowledgement is written")
        # A change hint is followed, though the next pull by the clock is an hour away.
        (folder / "lines").write_text("one\ntwo\nthree\n")
        await app.fetcher.pulls.note("polled", [ChangeHint("all")])
        await until(lambda: text("polled", "line:2"), "the hinted change arrived", seconds=30)
        # What waits for a store goes on when the sweep finds that the store responds.
        [landed] = await app.inbox.land([text_event(app, "a", "waits for a store")])
        await app.db.execute(
            """UPDATE inbox SET state = 'parked', park_store = 'graph', parked_at = now() WHERE id = %s""",
            (landed.id,),
        )
        await until(lambda: live(app, "a"), "the sweep unparked it", seconds=30)
        rows = await app.db.fetch("SELECT path, count(*) AS events FROM inbox GROUP BY 1")
        assert [row["path"] for row in rows] == ["direct"]


async def test_two_processes_without_temporal_pull_once(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Only the holder of the lease fetches; the other one takes over when the holder stops."""
    for name in ("code", "toys"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "toys.py").write_text(TOYS)
    (tmp_path / "toys" / "lines").write_text("one\n")
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        sources={"polled": {"folder": str(tmp_path / "toys"), "poll_seconds": 0.5}},
        source_path=tmp_path / "code",
        fallback_seconds=0.2,
    )
    async with open_app(settings) as one, open_app(settings) as other:

        async def owner() -> Any:
            row = await one.db.fetch_one("SELECT owner FROM leases WHERE name = 'fallback'")
            return row and row["owner"]

        pulls: Counter[str] = Counter()
        for name, app in (("one", one), ("other", other)):
            _count_pulls(app, name, pulls)
        async with serving(other):
            async with serving(one):
                first = await until(owner, "one of them holds the lease")
                await until(lambda: sum(pulls.values()) >= 3, "it pulls by its rhythm")
                assert len(pulls) == 1, "and the other one does not"
                assert await owner() == first
                [holder] = pulls
                if holder == "other":
                    return  # it goes on: nothing to take over
            await until(lambda: pulls["other"] >= 2, "the other one takes over", seconds=30)
            assert await owner() != first


def _count_pulls(app: App, name: str, pulls: Counter[str]) -> None:
    pull = app.fetcher.pull

    async def counted(source: str, **options: Any) -> Any:
        if source == "polled":
            pulls[name] += 1
        return await pull(source, **options)

    app.fetcher.pull = counted  # type: ignore[method-assign, assignment]


async def test_a_server_without_the_namespace_does_not_count_as_there(temporal: Temporal) -> None:
    async with running(temporal):
        address = temporal.url.partition("/")[0]
        assert await responds(await connect(temporal.url))
        assert not await responds(await connect(f"{address}/nowhere"))
    assert not await responds(await connect(temporal.url, lazy=True))


async def test_a_short_absence_changes_nothing(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed calls that end before `fallback_seconds` have passed begin no fallback."""
    answers = iter([True, False, False, True, *[False] * 4, True])
    looked: list[bool] = []

    async def scripted(client: Client) -> bool:
        looked.append(next(answers, True))
        return looked[-1]

    monkeypatch.setattr(fallback, "responds", scripted)
    monkeypatch.setattr(fallback, "CHECK_SECONDS", 0.05)
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", fallback_seconds=60)
    async with open_app(settings) as app, serving(app):
        await until(lambda: len(looked) > 9, "all looked at")
        assert FALLBACK._value.get() == 0 and await app.inbox.fallback_since() is None
