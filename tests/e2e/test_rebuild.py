"""Rebuilding a store while everything works: complete and verified at the end, reported as degraded until then."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from apex_memory.app import App, open_app
from apex_memory.engines.base import free_port
from apex_memory.errors import ApexError, Conflict, Unavailable
from apex_memory.model import Tally, now
from apex_memory.saga.recovery import CHECK_LEASE_SECONDS, LONG_AGO, check_lease
from apex_memory.saga.stage import Stage
from apex_memory.stores.lease import acquire, release
from tests.conftest import running
from tests.e2e.conftest import MakeSettings, land, live, text_event
from tests.e2e.test_api import running_api
from tests.faulty import Fault, Faulty
from tests.waiting import until

# Rebuilds a store in a process of its own, and waits for ever once it has written the first group of documents.
HELD_REBUILD = """
import asyncio, json, sys, time
from apex_memory.app import open_app
from apex_memory.config import Settings
from apex_memory.saga import rebuild

async def main():
    rebuild.CHECK_LEASE_SECONDS = 0.5
    rebuild.GROUP_STAGES = 5
    async with open_app(Settings(**json.loads(sys.argv[1]))) as app:
        rewrite = app.rebuild._rewrite
        calls = 0

        async def held(name, stages):
            nonlocal calls
            calls += 1
            if calls == 2:
                await app.rebuild._stores[name].delete_stages([stage.id for stage in stages])
                print("deleted", flush=True)
                time.sleep(600)
            await rewrite(name, stages)

        app.rebuild._rewrite = held
        await app.rebuild.run(sys.argv[2])

asyncio.run(main())
"""


async def fill(app: App, count: int, *, first: int = 0) -> None:
    events = [
        text_event(app, f"d{n}", f"SHP-{100_000 + n} waits at door {n}.", version=1)
        for n in range(first, first + count)
    ]
    await land(app, *events)
    await app.direct.drain("documents")


async def stage_ids(app: App) -> list[UUID]:
    rows = await app.db.fetch("SELECT stage_id FROM documents")
    return [row["stage_id"] for row in rows]


async def incomplete(app: App, store: str) -> list[str]:
    """Keys of the live documents of which a store does not hold what PostgreSQL has."""
    rows = await app.db.fetch(
        "SELECT d.doc_key, s.* FROM documents d JOIN stages s ON s.stage_id = d.stage_id"
    )
    held = await getattr(app, store).tally([row["stage_id"] for row in rows])
    side = "chunks" if store == "vectors" else "edges"
    return [
        row["doc_key"]
        for row in rows
        if held.get(row["stage_id"], Tally()) != Tally(row[side], row[f"{side}_sum"])
    ]


async def lose(app: App, store: str) -> None:
    """Remove everything that a store holds."""
    await getattr(app, store).delete_stages(await stage_ids(app))


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("store", ["graph", "vectors"])
async def test_a_store_is_rebuilt_while_others_search_and_write(
    make_settings: MakeSettings, own_vectors_url: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_memory.saga.rebuild.GROUP_STAGES", 7)
    async with open_app(make_settings(vectors=own_vectors_url)) as app:
        await app.recovery.check_restarted_stores()
        await fill(app, 40)
        before = set(await stage_ids(app))
        await lose(app, store)
        assert len(await incomplete(app, store)) == 40
        searched: list[tuple[str, list[str], bool]] = []
        _wait_for_searches(app, searched, monkeypatch)
        async with beside(_search_for_ever(app, store, searched)), beside(_write_for_ever(app)):
            result = await app.rebuild.run(store)
        assert (result.state, result.done >= 40, result.repaired) == ("done", True, 0)
        during = [(degraded, right) for state, degraded, right in searched if state == "recovering"]
        assert during, "no search ran meanwhile"
        assert all(store in degraded for degraded, _ in during)
        assert all(right for _, right in during), "an identifier is found without the store"
        assert await incomplete(app, store) == []
        assert before <= set(await stage_ids(app)), (
            "the other store, and what is cached, stays as it is"
        )
        answer = await app.search.search("SHP-100007")
        assert answer.degraded == [] and answer.hits[0].title
        progress = await app.rebuild.progress(store)
        assert (progress.state, progress.done) == ("done", progress.total)


def _wait_for_searches(
    app: App, searched: Sequence[tuple[str, list[str], bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the rebuild write each group of documents after another search: on any machine some run beside it."""
    rewrite = app.rebuild._rewrite

    async def held(name: str, stages: Any) -> None:
        count = len(searched) + 1  # the search after the one that runs begins and ends meanwhile
        await until(lambda: len(searched) > count, "searches run", every=0.001)
        await rewrite(name, stages)

    monkeypatch.setattr(app.rebuild, "_rewrite", held)


async def _search_for_ever(
    app: App, store: str, searched: list[tuple[str, list[str], bool]]
) -> None:
    n = 0
    while True:
        before = (await app.recovery.states())[store]
        answer = await app.search.search(f"SHP-{100_000 + n % 40}")
        after = (await app.recovery.states())[store]
        right = bool(answer.hits) and f"door {n % 40}." in answer.hits[0].snippet
        # Only if it was the same before and after does the search belong to it.
        searched.append((before if before == after else "changed", list(answer.degraded), right))
        n += 1


async def _write_for_ever(app: App) -> None:
    n = 0
    while True:
        await fill(app, 3, first=1_000 + n)
        n += 3


async def test_a_rebuild_that_is_killed_leaves_the_store_degraded_until_it_is_whole_again(
    app: App,
) -> None:
    await fill(app, 20)
    names = ("documents", "graph", "vectors", "cache", "embedder", "temporal")
    settings = json.dumps({name: str(getattr(app.settings, name)) for name in names})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HELD_REBUILD, settings, "graph"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    async with asyncio.timeout(90):
        line = await process.stdout.readline()
    assert line == b"deleted\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert (await app.recovery.states())["graph"] == "recovering"
    assert len(await incomplete(app, "graph")) == 5, "control: it died in the middle of a group"
    assert "graph" in (await app.search.search("SHP-100001")).degraded

    await until(lambda: _is_interrupted(app), seconds=10, what="its lease runs out")
    repeated = await app.rebuild.run("graph")
    assert (repeated.state, repeated.done) == ("done", 20)
    assert await incomplete(app, "graph") == []
    assert (await app.recovery.states())["graph"] == "ready"


async def _is_interrupted(app: App) -> bool:
    return (await app.rebuild.progress("graph")).state == "interrupted"


async def test_a_killed_rebuild_is_completed_by_the_check_of_the_workers(app: App) -> None:
    await fill(app, 10)
    # As a killed rebuild leaves it, long after the documents were committed.
    await app.db.execute("UPDATE stages SET committed_at = committed_at - interval '1 day'")
    await app.recovery.distrust("vectors", await app.vectors.incarnation(), "it is being rebuilt")
    await app.vectors.delete_stages((await stage_ids(app))[:3])
    [result] = await app.recovery.check_restarted_stores()
    assert (result.store, result.repaired) == ("vectors", 3)
    assert result.stages >= 10, "all of them, however old"
    assert await incomplete(app, "vectors") == []
    assert (await app.recovery.states())["vectors"] == "ready"


async def test_a_check_does_not_end_the_state_of_a_store_that_is_being_rebuilt(app: App) -> None:
    await fill(app, 3)
    owner = uuid.uuid4()
    assert await acquire(app.db, check_lease("graph"), owner, CHECK_LEASE_SECONDS)
    await app.recovery.distrust("graph", await app.graph.incarnation(), "it is being rebuilt")
    assert await app.recovery.check_restarted_stores() == []
    assert (await app.recovery.states())["graph"] == "recovering"
    with pytest.raises(Conflict, match="rebuilt or checked already"):
        await app.rebuild.run("graph")
    await release(app.db, check_lease("graph"), owner)
    assert len(await app.recovery.check_restarted_stores()) == 1
    assert (await app.recovery.states())["graph"] == "ready"


async def test_a_check_ends_though_documents_are_written_all_the_time(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(app, 5)
    incomplete = app.recovery._incomplete
    pages = 0

    async def beside_a_writer(name: str, stages: Sequence[UUID]) -> list[UUID]:
        nonlocal pages
        pages += 1
        assert pages < 20, "the check follows the writer without an end"
        await fill(app, 1, first=1_000 + pages)  # committed before the next page is read
        return await incomplete(name, stages)

    monkeypatch.setattr(app.recovery, "_incomplete", beside_a_writer)
    result = await app.recovery.check("graph", since=LONG_AGO)
    assert result.stages >= 5
    assert (result.repaired, result.errors) == (0, [])


async def test_a_stage_that_ends_while_it_is_rewritten_leaves_nothing_behind(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(app, 1)
    [old] = await stage_ids(app)
    write_again = app.publication.write_again

    async def collected_first(store: str, stages: Sequence[Stage]) -> dict[UUID, ApexError]:
        # A newer version is committed and the old stage collected, all between the read and the write of it.
        await app.db.execute("UPDATE stages SET state = 'reaped' WHERE stage_id = %s", (old,))
        await app.graph.delete_stages([old])
        return await write_again(store, stages)

    monkeypatch.setattr(app.publication, "write_again", collected_first)
    await app.rebuild.run("graph")
    assert await app.graph.tally([old]) == {}


async def test_a_store_that_fails_in_the_middle_stays_degraded_and_says_why(app: App) -> None:
    await fill(app, 6)
    away = Faulty(app.graph)
    away.plan(Fault.FAIL, "upsert")
    app.publication._graph = away
    with pytest.raises(Unavailable):
        await app.rebuild.run("graph")
    progress = await app.rebuild.progress("graph")
    assert progress.state == "failed" and "graph" in progress.error and progress.remedy
    assert (await app.recovery.states())["graph"] == "recovering"
    away.heal()
    await asyncio.sleep(app.settings.breaker_open_seconds)  # the breaker's own wait
    assert (await app.rebuild.run("graph")).state == "done"
    assert await incomplete(app, "graph") == []


async def test_a_new_engine_is_filled_by_a_rebuild(app: App, make_settings: MakeSettings) -> None:
    """Moving to another engine: its URL is new, it is empty, and PostgreSQL has everything."""
    await fill(app, 12)
    other = f"{app.settings.documents}?schema=other"
    async with open_app(make_settings(graph=other)) as moved:
        await moved.recovery.prepare()
        assert len(await incomplete(moved, "graph")) == 12
        assert (await moved.rebuild.run("graph")).done == 12
        assert await incomplete(moved, "graph") == []
        facts = await moved.search.entity("shipment:SHP-100003")
        assert facts.degraded == []


async def test_the_graph_moves_to_falkordb_and_back_into_the_documents_postgresql(
    app: App, make_settings: MakeSettings, falkordb_url: str
) -> None:
    assert app.settings.graph_url == app.settings.documents
    await fill(app, 12)
    falkordb = falkordb_url.rpartition("/")[0] + f"/t{uuid.uuid4().hex[:8]}"
    async with open_app(make_settings(graph=falkordb)) as moved:
        await moved.recovery.prepare()
        assert len(await incomplete(moved, "graph")) == 12
        assert (await moved.recovery.states())["graph"] == "recovering"
        for _ in range(2):  # into empty tables, and over what they hold
            result = await moved.rebuild.run("graph")
            assert (result.state, result.done, result.repaired) == ("done", 12, 0)
            assert await incomplete(moved, "graph") == []
        assert (await moved.recovery.states())["graph"] == "ready"
        facts = await moved.search.entity("shipment:SHP-100003")
        assert facts.degraded == [] and facts.roles
        await fill(moved, 5, first=500)
        reconciled = await moved.recovery.reconcile("graph")
        assert (reconciled.stages, reconciled.repaired, reconciled.removed, reconciled.left) == (
            17,
            0,
            0,
            0,
        )
    assert len(await incomplete(app, "graph")) == 5  # the former engine lacks what came meanwhile
    assert (await app.rebuild.run("graph")).state == "done"
    assert await incomplete(app, "graph") == []


@pytest.mark.server
async def test_the_graph_moves_to_neo4j(
    app: App, make_settings: MakeSettings, engine_data: Path
) -> None:
    """The workers' check fills the new engine by itself; a rebuild does it on demand, again and again."""
    from tests.servers.neo4j import Neo4j  # needs the driver

    await fill(app, 30)
    folder = Path(tempfile.mkdtemp(dir=engine_data))
    async with (
        running(Neo4j(folder, free_port(), "apex-pass")) as engine,
        open_app(make_settings(graph=engine.url, call_timeout_seconds=30)) as moved,
    ):
        await moved.recovery.prepare()
        assert len(await incomplete(moved, "graph")) == 30
        assert (await moved.recovery.states())["graph"] == "recovering"
        for _ in range(2):  # into an empty engine, and over what it holds
            result = await moved.rebuild.run("graph")
            assert (result.state, result.done, result.repaired) == ("done", 30, 0)
            assert await incomplete(moved, "graph") == []
        assert (await moved.recovery.states())["graph"] == "ready"
        await fill(moved, 5, first=500)
        assert await incomplete(moved, "graph") == []


async def test_the_cache_is_emptied_of_what_is_apex_s(app: App) -> None:
    await app.cache.put_many({"document:x": b"1", "document:y": b"2"}, 60)
    async with app.cache._server.bounded() as client:
        await client.set("somebody:else", b"3")
    result = await app.rebuild.run("cache")
    assert result.state == "done" and result.done >= 2
    assert await app.cache.get_many(["document:x", "document:y"]) == {}
    async with app.cache._server.bounded() as client:
        assert await client.getdel("somebody:else") == b"3"


async def test_an_empty_store_is_noticed_though_nothing_was_committed_lately(app: App) -> None:
    """A volume that was lost, or another server under the same name, on a quiet day."""
    await fill(app, 9)
    await app.db.execute("UPDATE stages SET committed_at = committed_at - interval '1 day'")
    await lose(app, "vectors")
    await app.db.execute("UPDATE store_state SET incarnation = 'another' WHERE store = 'vectors'")
    [result] = await app.recovery.check_restarted_stores()
    assert result.repaired == 9
    assert await incomplete(app, "vectors") == []


async def test_an_older_copy_of_a_store_is_noticed(app: App) -> None:
    await fill(app, 300)
    await app.db.execute("UPDATE stages SET committed_at = committed_at - interval '9 days'")
    newest = await app.db.fetch("SELECT stage_id FROM stages ORDER BY committed_at DESC LIMIT 4")
    await app.vectors.delete_stages([row["stage_id"] for row in newest])
    await app.db.execute("UPDATE store_state SET incarnation = 'another' WHERE store = 'vectors'")
    [result] = await app.recovery.check_restarted_stores()
    assert result.repaired == 4


@pytest.mark.parametrize("known", [True, False])
async def test_a_check_that_dies_in_the_middle_is_made_again_from_the_beginning(
    app: App, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """What was repaired until then must not make the rest look complete."""
    await fill(app, 8)
    await app.db.execute("UPDATE stages SET committed_at = committed_at - interval '1 day'")
    if known:
        [row] = await app.db.fetch("SELECT stage_id FROM stages LIMIT 1")
        await app.db.execute(
            "UPDATE stages SET committed_at = now() WHERE stage_id = %s", (row["stage_id"],)
        )
        await app.db.execute("UPDATE store_state SET incarnation = 'another' WHERE store = 'graph'")
    else:
        await app.db.execute("DELETE FROM store_state WHERE store = 'graph'")
    await lose(app, "graph")
    check = app.recovery.check
    calls = 0

    async def dies(name: str, *, since: Any) -> Any:
        nonlocal calls
        calls += 1
        if since == LONG_AGO:
            raise Unavailable("graph", "this process was killed")
        return await check(name, since=since)

    with monkeypatch.context() as patch:
        patch.setattr(app.recovery, "check", dies)
        assert await app.recovery.check_restarted_stores() == []
    assert calls == (2 if known else 1)
    [kept] = await app.db.fetch("SELECT state, verified_at FROM store_state WHERE store = 'graph'")
    assert kept["state"] == "recovering" and kept["verified_at"] < now() - timedelta(days=365)
    await app.recovery.check_restarted_stores()
    assert await incomplete(app, "graph") == []
    document = await live(app, "d1")
    assert document


async def test_a_rebuild_by_the_api_shows_its_progress(make_settings: MakeSettings) -> None:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        await fill(api.app, 5)
        path = "/v1/stores/graph/rebuild"
        assert (await api.get(path)).json()["state"] == "idle"
        started = await api.post(path)
        assert started.status_code == 202 and started.json()["state"] in ("running", "done")
        await until(lambda: _has_ended(api, path), seconds=30)
        report = (await api.get(path)).json()
        assert (report["state"], report["done"], report["total"], report["repaired"]) == (
            "done",
            5,
            5,
            0,
        )
        owner = uuid.uuid4()
        assert await acquire(api.app.db, check_lease("graph"), owner, CHECK_LEASE_SECONDS)
        assert (await api.post(path)).status_code == 409
        await release(api.app.db, check_lease("graph"), owner)
        assert (await api.post("/v1/stores/documents/rebuild")).status_code == 422


async def _has_ended(api: Any, path: str) -> bool:
    return bool((await api.get(path)).json()["state"] != "running")
