"""Searches that read from a standby: within a bound, with what was just written, and without it. Two real PostgreSQL servers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from apex_memory.engines.base import free_port
from apex_memory.stores.standby import Standby
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, running_api
from tests.postgres_servers import Pair, replicated, statement
from tests.waiting import until

BOUND = 4.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(engine_data: Path) -> AsyncIterator[Pair]:
    async with replicated(engine_data / uuid.uuid4().hex[:8], synchronous=False) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="session")
async def database(pair: Pair) -> str:
    """A database of its own on both servers."""
    name = f"reads_{uuid.uuid4().hex[:8]}"
    await statement(pair.primary, f"CREATE DATABASE {name}", "postgres")
    return name


@pytest_asyncio.fixture(loop_scope="session")
async def api(
    pair: Pair, database: str, make_settings: MakeSettings, own_vectors_url: str
) -> AsyncIterator[Api]:
    settings = make_settings(
        vectors=own_vectors_url,
        documents=pair.url("read-write", database),
        documents_standby=pair.url("standby", database),
        documents_standby_seconds=BOUND,
        temporal="127.0.0.1:1/apex",
        call_timeout_seconds=20,
        snapshot_seconds=3,
        grace_seconds=20,
    )
    async with running_api(settings) as api:
        await is_fresh(api)
        yield api
        await statement(pair.standby, "SELECT pg_wal_replay_resume()")


pytestmark = pytest.mark.asyncio(loop_scope="session")


def standby_of(api: Api) -> Standby:
    assert api.app.standby is not None
    return api.app.standby


async def is_fresh(api: Api) -> None:
    await until(lambda: standby_of(api).fresh, "the standby shows marks", seconds=30)


async def pause(pair: Pair) -> None:
    """Let the standby receive, but apply nothing, as when it is busy."""
    await statement(pair.standby, "SELECT pg_wal_replay_pause()")

    async def paused() -> bool:
        rows = await statement(pair.standby, "SELECT pg_get_wal_replay_pause_state()")
        return rows == [("paused",)]

    await until(paused, "replay is paused")


async def resume(pair: Pair) -> None:
    await statement(pair.standby, "SELECT pg_wal_replay_resume()")


def reads(server: str) -> float:
    return REGISTRY.get_sample_value("apex_search_reads_total", {"server": server}) or 0.0


async def write(api: Api, key: str, text: str, version: int = 1) -> None:
    await api.land(key, text, version=version)
    await api.app.direct.drain("documents")


async def search(api: Api, query: str, **more: Any) -> list[str]:
    """Return the texts that a search finds."""
    answer = await api.post("/v1/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    return [hit["snippet"] for hit in answer.json()["hits"]]


async def first(api: Api, query: str, **more: Any) -> str:
    """Return the text that a search finds first."""
    return next(iter(await search(api, query, **more)), "")


async def test_searches_read_from_the_standby_within_the_bound(api: Api, pair: Pair) -> None:
    await write(api, "a", "SHP-200001 left.")
    await until(lambda: search(api, "SHP-200001"), "the standby has it")
    await is_fresh(api)
    await pause(pair)
    before = reads("standby")
    await write(api, "b", "SHP-200002 left.")
    assert "SHP-200002 left." not in await search(api, "SHP-200002")  # as the standby shows it
    assert reads("standby") == before + 1
    assert await first(api, "SHP-200002", fresh=True) == "SHP-200002 left."
    with capture_logs() as logs:
        await until(lambda: not standby_of(api).fresh, "the bound is over", seconds=BOUND + 5)
        assert await first(api, "SHP-200002") == "SHP-200002 left."
        await until(lambda: logs, "it is logged")
    assert [line["event"] for line in logs if line.get("component") == "standby"] == [
        "searches read from the primary"
    ]
    assert (REGISTRY.get_sample_value("apex_standby_behind_seconds") or 0) >= BOUND
    await resume(pair)
    await is_fresh(api)
    before = reads("standby")
    assert await first(api, "SHP-200002") == "SHP-200002 left."
    assert reads("standby") == before + 1


async def test_what_is_said_to_be_searchable_is_found(api: Api, pair: Pair) -> None:
    """The next search finds it, however far the standby is behind."""
    path = "/v1/documents?path=direct&wait=searchable&timeout=30"
    before = reads("standby")
    for n in range(20):
        body = {"key": f"w{n}", "text": f"SHP-{210_000 + n} left."}
        answer = await api.post(path, json=body)
        assert (answer.status_code, answer.json()["searchable"]) == (200, True)
        assert await first(api, f"SHP-{210_000 + n}") == body["text"]
    assert reads("standby") > before
    await is_fresh(api)
    await pause(pair)
    body = {"key": "late", "text": "SHP-210999 left."}
    answer = await api.post(path.replace("30", "1"), json=body)
    assert (answer.status_code, answer.json()["searchable"]) == (202, False)
    answer = await api.post(path, json={"key": "later", "text": "SHP-211000 left."})
    assert (answer.status_code, answer.json()["searchable"]) == (200, True)
    assert await first(api, "SHP-211000") == "SHP-211000 left."
    assert await first(api, "SHP-210999") == "SHP-210999 left."


async def test_who_waits_at_once_with_others_waits_no_longer(api: Api, pair: Pair) -> None:
    """All write marks, and the standby goes on from one to a later one: each covers the writes before it."""
    standby = standby_of(api)

    async def wait(n: int) -> bool:
        await asyncio.sleep(n / 500)  # apart, so that each writes its mark while the others look
        return await standby.caught_up(BOUND)

    began = time.monotonic()
    assert await asyncio.gather(*map(wait, range(40))) == [True] * 40
    assert standby.fresh and time.monotonic() - began < BOUND / 2


async def test_without_marks_the_standby_is_read_until_the_bound_is_over(
    api: Api, pair: Pair, database: str
) -> None:
    """As while the primary is away: nobody can write a mark there."""
    await write(api, "m", "SHP-270001 left.")
    await until(lambda: search(api, "SHP-270001"), "the standby has it")
    await is_fresh(api)
    with capture_logs() as logs:
        await statement(pair.primary, "ALTER TABLE leases RENAME TO leases_away", database)
        await until(
            lambda: any(line["event"] == "standby not looked at" for line in logs), "a mark failed"
        )
        assert standby_of(api).fresh, "what it showed last is younger than the bound"
        before = reads("standby")
        assert await first(api, "SHP-270001") == "SHP-270001 left."
        assert reads("standby") == before + 1
        await until(lambda: not standby_of(api).fresh, "the bound is over", seconds=BOUND + 5)
    await statement(pair.primary, "ALTER TABLE leases_away RENAME TO leases", database)
    await is_fresh(api)


async def test_a_standby_that_was_set_aside_is_not_read_before_it_shows_what_was_promised(
    api: Api, pair: Pair
) -> None:
    await is_fresh(api)
    await pause(pair)
    await is_fresh(api)
    standby_of(api).set_aside("as after a search that failed")
    body = {"key": "promised", "text": "SHP-260001 left."}
    answer = await api.post("/v1/documents?path=direct&wait=searchable&timeout=30", json=body)
    assert answer.json()["searchable"]
    for _ in range(
        15
    ):  # the standby shows a mark that is younger than the bound, and still lacks the document
        assert await first(api, "SHP-260001") == body["text"]
        await asyncio.sleep(0.1)  # between two marks


async def test_what_a_late_standby_shows_is_still_in_the_stores(api: Api, pair: Pair) -> None:
    """The former version, which the standby still shows, is found by its words until the bound is over."""
    await write(api, "v", "The reefer waits at dock seven.", version=1)
    await until(lambda: search(api, "reefer dock seven"), "the standby has it")
    await is_fresh(api)
    await pause(pair)
    await write(api, "v", "The chassis waits at ramp nine.", version=2)
    await api.app.upkeep.collect()
    before = reads("standby")
    assert await first(api, "reefer dock seven") == "The reefer waits at dock seven."
    assert reads("standby") == before + 1


async def test_a_document_that_is_not_on_the_standby_yet_is_no_unknown_scope(
    api: Api, pair: Pair
) -> None:
    await pause(pair)
    await write(api, "n", "SHP-220001 left.")
    [row] = await api.app.db.fetch("SELECT doc_id FROM documents WHERE doc_key = 'n'")
    snippets = await search(api, "left", filters={"documents": [str(row["doc_id"])]})
    assert snippets == ["SHP-220001 left."]


async def test_without_a_standby_searches_read_from_the_primary(
    pair: Pair, database: str, make_settings: MakeSettings
) -> None:
    settings = make_settings(
        documents=pair.url("read-write", database),
        documents_standby=f"postgresql://apex:x@127.0.0.1:{free_port()}/apex",
        documents_standby_seconds=BOUND,
        temporal="127.0.0.1:1/apex",
        grace_seconds=20,
    )
    with capture_logs() as logs:
        async with running_api(settings) as api:
            await until(
                lambda: any(line.get("component") == "standby" for line in logs), "it is logged"
            )
    async with running_api(settings) as api:
        began = time.monotonic()
        answer = await api.post(
            "/v1/documents?path=direct&wait=searchable&timeout=20",
            json={"key": "x", "text": "SHP-230001 left."},
        )
        assert answer.json()["searchable"]
        assert time.monotonic() - began < BOUND
        before = reads("primary")
        assert await first(api, "SHP-230001") == "SHP-230001 left."
        assert reads("primary") == before + 1


async def test_a_standby_that_dies_in_mid_search_is_replaced(
    engine_data: Path, make_settings: MakeSettings
) -> None:
    async with replicated(engine_data / uuid.uuid4().hex[:8], synchronous=False) as pair:
        settings = make_settings(
            documents=pair.url("read-write"),
            documents_standby=pair.standby.url,
            documents_standby_seconds=60,
            temporal="127.0.0.1:1/apex",
            snapshot_seconds=10,  # a search takes long on a machine with other work
            grace_seconds=100,
        )
        async with running_api(settings) as api:
            await is_fresh(api)
            await write(api, "a", "SHP-240001 left.")
            stop = asyncio.Event()
            asking = asyncio.create_task(ask(api, stop))
            await pair.processes["standby"].kill()
            before = reads("primary")
            await until(lambda: reads("primary") > before + 5 or asking.done(), "they go on")
            stop.set()
            await asking


async def ask(api: Api, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await search(api, "SHP-240001")
