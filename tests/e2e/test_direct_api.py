"""`?path=direct&wait=searchable`: the gateway processes the event itself, at once; and what it does not process goes the usual way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apex_memory.gateway import ingest
from tests.e2e import front
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, running_api

DIRECT = "/v1/documents?path=direct&wait=searchable&timeout=20"


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    """No worker runs, and Temporal is away: only the gateway itself can process an event."""
    async with running_api(make_settings(temporal="127.0.0.1:1/apex")) as api:
        yield api


async def post(api: Api, key: str, path: str = DIRECT, **fields: Any) -> Any:
    body = {"key": key, "text": f"Shipment SHP-100045, note {key}."} | fields
    return await api.post(path, json=body)


async def test_the_event_is_searchable_when_the_response_comes(api: Api) -> None:
    answer = await post(api, "a")
    assert answer.status_code == 200 and answer.json()["searchable"]
    [event] = answer.json()["events"]
    shown = (await api.get(f"/v1/events/{event['id']}")).json()
    assert (shown["state"], shown["path"], shown["build"]) == ("done", "direct", api.app.build)
    assert shown["workflow_id"] is None
    result = (await api.post("/v1/search", json={"query": "SHP-100045"})).json()
    assert [hit["document_id"] for hit in result["hits"]] == [event["document_id"]]


async def test_a_redelivery_is_not_processed_twice(api: Api) -> None:
    headers = {"idempotency-key": "once"}
    body = {"key": "a", "text": "one"}
    first = await api.post(DIRECT, json=body, headers=headers)
    again = await api.post(DIRECT, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["events"][0]["duplicate"] and again.json()["searchable"]
    rows = await api.app.db.fetch("SELECT count(*) AS n FROM stages")
    assert rows[0]["n"] == 1


async def test_versions_at_once_end_with_the_newest_live(api: Api) -> None:
    """Requests beyond those that the gateway processes go the usual way: here to a drain of the direct path."""
    answers = asyncio.gather(*(post(api, "a", version=n, text=f"version {n}") for n in range(1, 9)))
    while not answers.done():
        await api.app.direct.drain("documents")
        await asyncio.sleep(0.01)
    assert {answer.status_code for answer in await answers} == {200}
    rows = await api.app.db.fetch(
        "SELECT m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id"
    )
    assert [row["text"] for row in rows] == ["version 8"]
    states = await api.app.db.fetch("SELECT DISTINCT state FROM inbox ORDER BY 1")
    assert {row["state"] for row in states} <= {"done", "superseded"}


async def test_a_large_request_goes_the_usual_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "DIRECT_BYTES", 100)
    answer = await post(api, "a", DIRECT.replace("20", "0.1"), text="x" * 200)
    assert answer.status_code == 202 and not answer.json()["searchable"]
    assert await api.app.direct.drain("documents") == 1


async def test_a_paused_source_stays_paused(api: Api) -> None:
    await api.post("/v1/sources/documents/pause")
    answer = await post(api, "a", DIRECT.replace("20", "0.1"))
    assert answer.status_code == 202
    assert answer.json()["events"][0]["state"] == "received"


async def test_a_step_that_is_slow_outlives_its_request(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, gate = api.app.steps.prepare, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await gate.wait()
        return await prepare(*arguments)

    monkeypatch.setattr(api.app.steps, "prepare", slow)
    answer = await post(api, "a", DIRECT.replace("20", "0.1"))
    assert answer.status_code == 202
    gate.set()
    [event] = answer.json()["events"]
    ended = await api.app.inbox.finished([event["id"]])
    while not ended:
        await asyncio.sleep(0.01)
        ended = await api.app.inbox.finished([event["id"]])


@pytest.mark.parametrize(
    "query", ["path=temporal&wait=searchable", "path=direct", "path=&wait=searchable"]
)
async def test_other_paths_are_refused_and_nothing_is_kept(api: Api, query: str) -> None:
    answer = await post(api, "a", f"/v1/documents?{query}")
    assert answer.status_code == 422 and answer.json()["error"]["remedy"]
    assert await api.app.db.fetch("SELECT FROM inbox") == []


async def test_a_webhook_takes_the_direct_path_too(api: Api) -> None:
    body = front.message("msg_1", "cnv_1", at=1)
    answer = await api.hook(body, params={"path": "direct", "wait": "searchable"})
    assert answer.status_code == 200 and answer.json()["searchable"]
