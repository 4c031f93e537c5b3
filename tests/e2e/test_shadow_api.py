"""Comparisons by API, and a candidate's process of its own that is killed in the middle."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apex_memory.app import App, open_app
from apex_memory.config import Settings
from tests.e2e.conftest import MakeSettings, text_event
from tests.e2e.shadows import (
    CANDIDATE,
    SOURCE,
    Changed,
    drain,
    facts,
    leftovers,
    marked,
    process_all,
    shadow_on,
)
from tests.e2e.test_api import Api, running_api
from tests.waiting import until

TEXT = "Shipment SHP-100045 left Columbus, OH for the dock of Northwind Trucking. " * 20


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        yield api


async def post(api: Api, path: str, body: dict[str, Any]) -> Any:
    return await api.http.request("POST", path, json=body)


async def test_a_report_pages_differing_events_and_an_accepted_field_no_longer_holds(
    api: Api,
) -> None:
    app = api.app
    landed = await drain(app, *(text_event(app, f"d{n}", f"text {n}", version=1) for n in range(5)))
    body = {"build": CANDIDATE, "source": SOURCE}
    assert (await post(api, "/v1/rollouts/build/replay", body)).json() == {
        "build": CANDIDATE, "events": 5, "queued": 5
    }  # fmt: skip
    app.sources[SOURCE] = Changed(app.sources[SOURCE], marked("zqx"))  # type: ignore[assignment]
    await process_all(app, "build", CANDIDATE)
    path = "/v1/rollouts/build/report"
    first = (await api.get(path, params={"limit": 3})).json()
    assert (first["facts"]["compared"], first["facts"]["mismatched"]) == (5, 5)
    assert len(first["events"]) == 3 and first["next"]
    second = (await api.get(path, params={"limit": 3, "cursor": first["next"]})).json()
    assert len(second["events"]) == 2 and second["next"] is None
    events = {row["event"] for row in first["events"] + second["events"]}
    assert events == {str(item.id) for item in landed}
    both = (await api.get(f"/v1/rollouts/build/diff/{landed[0].id}")).json()
    assert "zqx" in both["shadow"]["text"] and "zqx" not in both["live"]["text"]
    assert (await api.get(f"/v1/events/{landed[0].id}/diff")).json() == both
    fields = {row["field"] for row in first["differences"]}
    assert fields == {"text", "title", "entities.lot", "assertions.mentions"}

    accept = "/v1/rollouts/build/accept"
    assert (await post(api, accept, {"field": "kind"})).status_code == 422
    for field in ("text", "title", "entities"):
        assert (await post(api, accept, {"field": field, "reason": "meant"})).is_success
    assert (await facts(app, "build", CANDIDATE)).mismatched == 5, "one field still holds"
    answer = await post(api, accept, {"field": "assertions.mentions"})
    assert [row["field"] for row in answer.json()["acceptances"]] == [
        "assertions.mentions", "entities", "text", "title"
    ]  # fmt: skip
    known = await facts(app, "build", CANDIDATE)
    assert (known.accepted, known.mismatched, known.by_field) == (5, 0, {})
    assert (await api.get(path)).json()["events"] == []
    await post(api, accept, {"field": "text", "accepted": False})
    assert (await facts(app, "build", CANDIDATE)).by_field == {"text": 5}
    rows = await app.db.fetch("SELECT action FROM audit WHERE subject = 'build' ORDER BY id")
    assert [row["action"] for row in rows] == ["accept difference"] * 4 + ["withdraw acceptance"]
    assert (await api.get("/v1/rollouts/nobody/report")).status_code == 422
    assert (await api.get(f"/v1/events/{landed[0].doc_id}/diff")).status_code == 404


@asynccontextmanager
async def candidate_process(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process with the role `shadow`, whose build id and chunker are its own."""
    given = {
        "APEX_DOCUMENTS": settings.documents,
        "APEX_GRAPH": settings.graph,
        "APEX_VECTORS": settings.vectors,
        "APEX_CACHE": settings.cache,
        "APEX_EMBEDDER": settings.embedder,
        "APEX_DATA_DIR": str(settings.data_dir),
        "APEX_LEASE_SECONDS": "2",
        "APEX_BUILD_ID": CANDIDATE,
        "APEX_CHUNK_CHARS": "300",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apex_memory.flows", "shadow"), env=os.environ | given
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.alone(reason="has a lease of two seconds")
async def test_a_candidates_process_that_is_killed_leaves_nothing_and_another_goes_on(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(lease_seconds=2)
    async with open_app(settings) as app:
        await shadow_on(app, "build", CANDIDATE)
        landed = await drain(
            app, *(text_event(app, f"d{n}", f"{TEXT} {n}", version=1) for n in range(150))
        )
        before = await app.db.fetch("SELECT * FROM documents ORDER BY doc_id")
        for _ in range(2):
            async with candidate_process(settings) as process:
                await until(lambda: _staging(app), "a copy is staged", seconds=60, every=0.005)
                process.kill()
        async with candidate_process(settings):

            async def compared() -> bool:
                await app.upkeep.sweep()
                return (await facts(app, "build", CANDIDATE)).compared == len(landed)

            await until(compared, "all copies are compared", seconds=120, every=0.5)

            async def nothing_left() -> bool:
                await app.upkeep.sweep()
                return not await leftovers(app)

            await until(nothing_left, "no stage of a copy is left", seconds=30, every=0.5)
        assert (await facts(app, "build", CANDIDATE)).by_field == {"chunks": 150}
        assert await app.db.fetch("SELECT * FROM documents ORDER BY doc_id") == before


async def _staging(app: App) -> bool:
    rows = await app.db.fetch("SELECT FROM stages WHERE shadow AND state = 'staging' LIMIT 1")
    return bool(rows)
