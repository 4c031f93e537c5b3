"""The HTTP API in this process, over real engines. The direct path processes the events."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest
from fastapi import FastAPI

from apex_memory.app import App
from apex_memory.cli.ask import left_out
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import create_key
from apex_memory.engines.base import free_port
from apex_memory.gateway import create_app
from apex_memory.gateway import ingest as intake_module
from apex_memory.gateway.dependencies import Gateway
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.model import Event, LandResult, now
from tests.e2e import front
from tests.e2e.conftest import MakeSettings, live
from tests.waiting import until

TEXT = "Shipment SHP-100045 left Columbus, OH for Northwind Trucking."


@dataclass(slots=True)
class Api:
    """The running application, a client with an admin key, and the parts behind."""

    gateway: Gateway
    http: httpx2.AsyncClient
    application: FastAPI

    @property
    def app(self) -> App:
        return self.gateway.app

    async def post(self, path: str, **more: Any) -> httpx2.Response:
        return await self.http.post(path, **more)

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        return await self.http.get(path, **more)

    async def land(self, key: str = "note", text: str = TEXT, **fields: Any) -> dict[str, Any]:
        """Post a document; return its event."""
        answer = await self.post("/v1/documents", json={"key": key, "text": text, **fields})
        assert answer.status_code == 202, answer.text
        event: dict[str, Any] = answer.json()["events"][0]
        return event

    async def without_key(self, **headers: str) -> httpx2.AsyncClient:
        return client_of(self.application, headers)

    async def hook(self, body: bytes, **more: Any) -> httpx2.Response:
        """A webhook as Front sends it."""
        headers = self.app.sources["frontapp"].sign(body, now())
        more = {"headers": {**headers, "content-type": "application/json"}, **more}
        return await client_of(self.application).post("/hooks/frontapp", content=body, **more)


def client_of(application: FastAPI, headers: Mapping[str, str] | None = None) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=application, client=("127.0.0.1", 50_000))
    return httpx2.AsyncClient(
        transport=transport, base_url="http://127.0.0.1:8460", headers=headers or {}, timeout=30
    )


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[Api]:
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        gateway = application.state.gateway
        key = await create_key(gateway.app.db, "test", ["admin"])
        await gateway.app.recovery.check_restarted_stores()
        async with client_of(application, {"authorization": f"Bearer {key.key}"}) as http:
            yield Api(gateway, http, application)


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    """Temporal is away in all of these: landing, asking and operating work without it."""
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        temporal_ui="http://127.0.0.1:8461/",
        facts_seconds=1,
    )
    async with running_api(settings) as api:
        yield api


async def drained(api: Api, source: str = "documents") -> None:
    """Process the events that land, as a worker does, until cancelled."""
    while True:
        await api.app.direct.drain(source)
        await asyncio.sleep(0.01)  # a worker's pause between two looks


@asynccontextmanager
async def processed(api: Api, source: str = "documents") -> AsyncIterator[None]:
    task = asyncio.create_task(drained(api, source))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_from_a_post_to_an_answer(make_settings: MakeSettings, own_vectors_url: str) -> None:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", vectors=own_vectors_url)
    async with running_api(settings) as api:
        event = await api.land()
        assert not event["duplicate"]
        await api.app.direct.drain("documents")
        body = {"query": "where is SHP-100045?", "explain": True}
        result = (await api.post("/v1/search", json=body)).json()
        assert result["evidence"] == "strong" and "words" in result["hits"][0]["points"]
        assert result["hits"][0]["document_id"] == event["document_id"]
        assert result["hits"][0]["provenance"]["id"] == event["id"]
        assert not result["degraded"]
        document = (await api.get(f"/v1/documents/{event['document_id']}")).json()
        assert document["text"] == TEXT and document["key"] == "note"
        [version] = document["versions"]
        again = await api.get(f"/v1/documents/{event['document_id']}/versions/{version['version']}")
        assert again.json()["text"] == TEXT
        entity = (await api.get("/v1/entities/shipment/SHP-100045")).json()
        assert entity["documents"][0]["document_id"] == event["document_id"]


async def test_a_search_by_get_returns_what_the_post_does(api: Api) -> None:
    event = await api.land()
    await api.app.direct.drain("documents")
    query = {"q": "SHP-100045", "source": "documents", "entity": "shipment:SHP-100045", "limit": 1}
    [hit] = (await api.get("/v1/search", params=query)).json()["hits"]
    assert hit["document_id"] == event["document_id"]
    nothing = await api.get("/v1/search", params={**query, "source": "turvo"})
    assert nothing.json()["hits"] == []


async def test_a_webhook_needs_its_signature_and_no_key(api: Api) -> None:
    body = front.message("msg_1", "cnv_1", at=0)
    answer = await api.hook(body)
    assert answer.status_code == 202, answer.text
    [event] = answer.json()["events"]
    assert answer.json()["status_url"] == f"/v1/events/{event['id']}"
    bare = await client_of(api.application).post("/hooks/frontapp", content=body)
    assert bare.status_code == 401 and "www-authenticate" not in bare.headers
    forged = await api.http.post("/hooks/frontapp", content=body)
    assert forged.status_code == 401, "an API key does not stand in for the signature"


async def test_a_vendors_handshake_gets_the_response_that_it_expects(api: Api) -> None:
    source, body = api.app.sources["frontapp"], b'{"type": "sync"}'
    headers = {**source.sign(body, now()), "x-front-challenge": "abc123"}
    answer = await client_of(api.application).post("/hooks/frontapp", content=body, headers=headers)
    assert (answer.status_code, answer.text) == (200, "abc123")
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_redelivery_gets_the_same_response(api: Api) -> None:
    body = front.message("msg_1", "cnv_1", at=0)
    first, second = await api.hook(body), await api.hook(body)
    assert first.status_code == second.status_code == 202
    event, same = first.json()["events"][0], second.json()["events"][0]
    assert (event["duplicate"], same["duplicate"]) == (False, True)
    assert {**event, "duplicate": True} == same
    rows = await api.app.db.fetch("SELECT id FROM inbox")
    assert len(rows) == 1


async def test_other_content_under_the_id_of_an_earlier_event_is_kept(api: Api) -> None:
    first = front.message("msg_1", "cnv_1", at=0, text="Where is SHP-100045?")
    other = front.message("msg_1", "cnv_1", at=0, text="Where is SHP-100046?")
    other_time = front.message("msg_1", "cnv_1", at=5, text="Where is SHP-100047?")
    bodies = [first, other, other_time, other, first]
    events = [(await api.hook(body)).json()["events"][0] for body in bodies]
    assert [event["duplicate"] for event in events] == [False, False, False, True, True]
    assert [event["id"] for event in events[3:]] == [events[1]["id"], events[0]["id"]]
    assert len({event["document_id"] for event in events}) == 1
    await api.app.direct.drain("frontapp")
    rows = await api.app.db.fetch(
        "SELECT m.text FROM inbox i JOIN manifests m ON m.inbox_id = i.id"
    )
    kept = " ".join(row["text"] for row in rows)
    assert all(f"SHP-10004{n}" in kept for n in (5, 6, 7))
    current = await live(api.app, "message:msg_1")
    assert current and "SHP-100047" in current["text"]


async def test_the_same_event_by_both_kinds_of_webhook_is_one_event(api: Api) -> None:
    """A rule's webhook sends the event alone, an application's wraps it."""
    wrapped = front.message("msg_1", "cnv_1", at=0)
    alone = json.dumps(json.loads(wrapped)["payload"]).encode()
    first, second = [(await api.hook(body)).json()["events"][0] for body in (wrapped, alone)]
    assert second == {**first, "duplicate": True}


async def test_a_form_with_two_files_lands_two_events(api: Api) -> None:
    files = [("file", (f"{n}.txt", f"lane {n}".encode(), "text/plain")) for n in range(2)]
    answer = await api.post("/v1/documents", files=files)
    assert answer.status_code == 202 and len(answer.json()["events"]) == 2
    listed = await api.get(answer.json()["status_url"])
    assert {e["id"] for e in listed.json()["events"]} == {e["id"] for e in answer.json()["events"]}


async def test_waiting_returns_the_receipt(api: Api) -> None:
    async with processed(api):
        answer = await api.post(
            "/v1/documents?wait=searchable&timeout=20", json={"key": "a", "text": TEXT}
        )
    assert answer.status_code == 200, answer.text
    [event] = answer.json()["events"]
    assert answer.json()["searchable"] is True and event["state"] == "done"
    for store in ("documents", "graph", "vectors"):
        assert event["stores"][store]["state"] == "held" and event["stores"][store]["at"]
    response = await api.get("/v1/search", params={"q": "SHP-100045"})
    assert response.json()["hits"], "searchable means that a search finds it"


async def test_waiting_in_vain_is_202_and_not_searchable(api: Api) -> None:
    answer = await api.post(
        "/v1/documents?wait=searchable&timeout=0.05", json={"key": "a", "text": TEXT}
    )
    assert answer.status_code == 202
    assert answer.json()["searchable"] is False
    assert answer.json()["events"][0]["state"] == "received"


async def test_waiting_for_what_is_already_there_is_200_with_duplicate(api: Api) -> None:
    body = {"key": "a", "text": TEXT, "version": 7}
    await api.post("/v1/documents", json=body)
    await api.app.direct.drain("documents")
    answer = await api.post("/v1/documents?wait=searchable", json=body)
    assert answer.status_code == 200
    assert answer.json()["events"][0]["duplicate"] and answer.json()["searchable"]


@pytest.mark.parametrize(
    "query",
    [
        "wait=done",
        "wait=searchable&timeout=x",
        "wait=searchable&timeout=61",
        "wait=searchable&timeout=nan",
    ],
)
async def test_wrong_waits_are_refused_before_anything_lands(api: Api, query: str) -> None:
    answer = await api.post(f"/v1/documents?{query}", json={"key": "a", "text": TEXT})
    assert answer.status_code == 422
    assert await api.app.db.fetch("SELECT id FROM inbox") == []


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b'{"text": ', "application/json", 400, "malformed"),
        (b'{"txet": "x"}', "application/json", 422, "rejected"),
        (b"[]", "application/json", 422, "rejected"),
        (b"", "text/plain", 422, "rejected"),
        (b"--x", "multipart/form-data; boundary=x", 422, "rejected"),
    ],
)
async def test_malformed_bodies(api: Api, body: bytes, kind: str, status: int, code: str) -> None:
    answer = await api.post("/v1/documents", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_large_bodies_are_parsed_aside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "THREAD_BYTES", 10)
    assert not (await api.land(text="a text of more than ten bytes"))["duplicate"]


async def test_limits_of_size_come_from_the_source_and_the_settings(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex", max_body_bytes=200, max_upload_bytes=1_000
    )
    async with running_api(settings) as api:
        hook = await api.hook(front.message("msg_1", "cnv_1", at=0))
        assert hook.status_code == 413
        assert (await api.post("/v1/documents", json={"text": "x" * 900})).status_code == 202
        assert (await api.post("/v1/documents", json={"text": "x" * 1_000})).status_code == 413
        sources = (await api.get("/v1/sources")).json()["sources"]
        limits = {source["name"]: source["max_body_bytes"] for source in sources}
        assert limits["frontapp"] == 200 and limits["documents"] == 1_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/documents", {"text": "x"}),
        ("/v1/conversations", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_w1_large_metadata_is_refused_at_the_entrance(
    make_settings: MakeSettings, path: str, body: dict[str, Any]
) -> None:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", metadata_max_bytes=2_000)
    async with running_api(settings) as api:
        answer = await api.post(path, json={**body, "metadata": {"note": "x" * 2_000}})
        assert answer.status_code == 422
        assert "metadata_max_bytes" in answer.text and answer.json()["error"]["remedy"]
        answer = await api.post(path, json={**body, "metadata": {"note": "x" * 1_900}})
        assert answer.status_code == 202


async def test_scopes_decide_who_may_what(api: Api) -> None:
    made = {
        scope: (await api.post("/v1/keys", json={"name": scope, "scopes": [scope]})).json()["key"]
        for scope in ("ingest", "read")
    }
    calls = {"ingest": ("POST", "/v1/documents"), "read": ("GET", "/v1/status")}
    for scope, (method, path) in calls.items():
        for held, key in made.items():
            async with client_of(api.application, {"x-api-key": key}) as http:
                body = {"text": "x"} if method == "POST" else None
                answer = await http.request(method, path, json=body)
                assert answer.is_success is (held == scope), (scope, held, answer.text)
                assert answer.is_success or answer.status_code == 403
                assert (await http.get("/v1/keys")).status_code == 403


async def test_every_request_without_a_key_is_refused(api: Api) -> None:
    document = api.application.openapi()
    async with client_of(api.application) as http:
        for path, item in document["paths"].items():
            if path.startswith("/hooks/") or path in ("/healthz", "/readyz", "/metrics"):
                continue
            for method in item:
                id = "1" if "dead-letters" in path else str(uuid4())
                place = path.replace("{id}", id).replace("{store}", "graph")
                answer = await http.request(method, re.sub(r"\{\w+\}", "1", place), json={})
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_lives_from_its_creation_to_its_revocation(api: Api) -> None:
    made = (await api.post("/v1/keys", json={"name": "agent", "scopes": ["read"]})).json()
    async with client_of(api.application, {"authorization": f"bearer {made['key']}"}) as http:
        assert (await http.get("/v1/sources")).status_code == 200
        listed = (await api.get("/v1/keys")).json()["keys"]
        assert made["key"] not in str(listed) and made["id"] in str(listed)
        assert (await api.http.delete(f"/v1/keys/{made['id']}")).json()["revoked_at"]
        assert (await http.get("/v1/sources")).status_code == 401
    assert (await api.http.delete(f"/v1/keys/{made['id']}")).status_code == 404


async def test_an_event_is_shown_from_received_to_done(api: Api) -> None:
    event = await api.land()
    path = f"/v1/events/{event['id']}"
    seen = (await api.get(path)).json()
    assert seen["state"] == "received" and seen["owner"] is None and seen["deadline"]
    batch = await api.app.steps.claim("documents")
    seen = (await api.get(path)).json()
    assert seen["owner"] == str(batch.id) and seen["deadline"] > seen["received_at"]
    await api.app.steps.prepare("documents", batch.id)
    assert (await api.get(path)).json()["state"] == "prepared"
    begun = await api.app.publication.journal.begin(batch.id)
    seen = (await api.get(path)).json()
    assert seen["state"] == "staged" and seen["stores"]["graph"]["state"] == "writing"
    assert begun.stages and [
        e["id"] for e in (await api.get("/v1/events?state=staged")).json()["events"]
    ] == [event["id"]]
    assert (await api.get("/v1/events?state=prepared")).json()["events"] == []
    await api.app.steps.publish(batch.id)
    seen = (await api.get(path)).json()
    assert seen["state"] == "done" and seen["ended_at"] and seen["deadline"] is None
    assert seen["stores"]["vectors"]["state"] == "held"
    states = await api.post("/v1/events/states", json={"ids": [event["id"], str(uuid4())]})
    assert states.json()["states"] == {event["id"]: "done"}


async def test_an_event_links_to_the_run_that_processes_it(api: Api) -> None:
    event = await api.land()
    await api.app.db.execute("UPDATE inbox SET workflow_id = 'drain:documents', run_id = 'r/1'")
    seen = (await api.get(f"/v1/events/{event['id']}")).json()
    assert (
        seen["workflow_url"]
        == "http://127.0.0.1:8461/namespaces/apex/workflows/drain%3Adocuments/r%2F1/history"
    )


async def test_a_parked_event_names_the_store_it_waits_for(api: Api) -> None:
    event = await api.land()
    await api.app.db.execute("UPDATE inbox SET state = 'parked', park_store = 'graph'")
    seen = (await api.get(f"/v1/events/{event['id']}")).json()
    assert (seen["state"], seen["park_store"]) == ("parked", "graph") and seen["deadline"]
    status = (await api.get("/v1/status")).json()
    assert (status["open"], status["parked"]) == (0, 1)
    assert status["backlog"][0]["park_store"] == "graph"


async def test_events_are_listed_page_by_page(api: Api) -> None:
    landed = [(await api.land(key=f"k{n}"))["id"] for n in range(5)]
    await api.hook(front.message("msg_1", "cnv_1", at=0))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"source": "documents", "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/v1/events", params=query)).json()
        seen += [event["id"] for event in page["events"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == landed[::-1]
    assert (await api.get("/v1/events", params={"since": now().isoformat()})).json()["events"] == []
    assert (await api.get("/v1/events", params={"cursor": "x"})).status_code == 422
    assert (await api.get("/v1/events", params={"source": "a\x00"})).status_code == 422


async def test_a_payload_is_a_download_for_admins(api: Api) -> None:
    body = front.message("msg_1", "cnv_1", at=0)
    id = (await api.hook(body)).json()["events"][0]["id"]
    answer = await api.get(f"/v1/events/{id}/payload")
    assert answer.content == body and answer.headers["apex-content-type"] == "application/json"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    reader = await create_key(api.app.db, "reader", ["read"])
    async with client_of(api.application, {"x-api-key": reader.key}) as http:
        assert (await http.get(f"/v1/events/{id}/payload")).status_code == 403


async def test_a_deletion_takes_the_document_away_and_can_be_waited_for(api: Api) -> None:
    event = await api.land()
    path = f"/v1/documents/{event['document_id']}"
    async with processed(api):
        await api.gateway.completion.until_ended([UUID(event["id"])], 20)
        answer = await api.http.delete(f"{path}?wait=searchable&timeout=20")
    assert answer.status_code == 200, answer.text
    assert answer.json()["events"][0]["event_id"].startswith("delete:")
    assert (await api.get(path)).status_code == 404
    assert (await api.get("/v1/search", params={"q": "SHP-100045"})).json()["hits"] == []
    assert (await api.http.delete(path)).status_code == 404
    listed = (await api.get("/v1/documents", params={"deleted": True})).json()["documents"]
    assert [row["deleted"] for row in listed] == [True]


async def test_a_deletion_outruns_what_is_still_on_its_way(api: Api) -> None:
    far = 2**62
    event = await api.land(version=far)
    answer = await api.http.delete(f"/v1/documents/{event['document_id']}")
    assert answer.status_code == 202, "landed, though the document is not there yet"
    await api.app.direct.drain("documents")
    assert (await api.get(f"/v1/documents/{event['document_id']}")).status_code == 404
    assert (await api.http.delete(f"/v1/documents/{uuid4()}")).status_code == 404


async def broken(api: Api, count: int) -> None:
    """Land events that no source understands, and let them become dead letters."""
    await api.app.inbox.land(
        [
            Event(
                source="documents",
                event_id=f"broken-{n}",
                doc_key=f"broken-{n}",
                version=1,
                occurred_at=now(),
                payload=b"\xff",
                content_type="application/json",
            )
            for n in range(count)
        ]
    )
    await api.app.direct.drain("documents")


async def test_an_event_that_waits_is_discarded(api: Api) -> None:
    id = (await api.land())["id"]
    done = await api.post(f"/v1/events/{id}/discard", json={"reason": "too large"})
    assert done.status_code == 200, done.text
    assert (done.json()["status"], done.json()["resolution"]) == ("discarded", "too large")
    assert (await api.get(f"/v1/events/{id}")).json()["state"] == "dead"
    again = await api.post(f"/v1/events/{id}/discard", json={"reason": "too large"})
    assert again.status_code == 409
    assert await api.app.direct.drain("documents") == 0


async def test_dead_letters_are_listed_redriven_and_discarded(api: Api) -> None:
    await broken(api, 3)
    letters = (await api.get("/v1/dead-letters")).json()["dead_letters"]
    assert len(letters) == 3 and letters[0]["remedy"]
    first = letters[0]
    shown = (await api.get(f"/v1/dead-letters/{first['id']}")).json()
    assert shown["payload_bytes"] == 1
    event = (await api.get(f"/v1/events/{first['event']}")).json()
    assert event["state"] == "dead" and event["dead_letter"] == first["id"]

    order = {"fingerprint": first["fingerprint"], "source": "documents"}
    dry = await api.post("/v1/dead-letters/redrive", json={**order, "dry_run": True})
    assert len(dry.json()["dead_letters"]) == 3
    assert (await api.get("/v1/status")).json()["dead_letters"] == 3
    done = await api.post(f"/v1/dead-letters/{first['id']}/discard", json={"reason": "a test"})
    assert done.json()["status"] == "discarded" and done.json()["resolution"] == "a test"
    assert done.json()["actor"].startswith("key:")
    redriven = await api.post("/v1/dead-letters/redrive", json=order)
    assert len(redriven.json()["dead_letters"]) == 2
    assert (await api.app.inbox.ready()) == {"documents": 2}
    again = await api.post(f"/v1/dead-letters/{first['id']}/redrive")
    assert again.status_code == 409
    assert (await api.post("/v1/dead-letters/999999/redrive")).status_code == 404


async def test_every_dead_letter_is_reached_page_by_page(api: Api) -> None:
    await broken(api, 7)
    # Several failed in the same microsecond, as those of one statement can.
    await api.app.db.execute(
        "UPDATE dead_letters SET last_at = '2026-11-01T00:00:00Z'::timestamptz + (id / 3) * interval '1 us'"
    )
    whole = (await api.get("/v1/dead-letters?limit=200")).json()
    assert whole["next"] is None and len(whole["dead_letters"]) == 7
    for limit in (1, 2, 3, 6, 7):
        seen: list[int] = []
        page: dict[str, Any] = {"limit": limit, "source": "documents"}
        while True:
            answer = (await api.get("/v1/dead-letters", params=page)).json()
            seen += [letter["id"] for letter in answer["dead_letters"]]
            if answer["next"] is None:
                break
            page["cursor"] = answer["next"]
        assert seen == [letter["id"] for letter in whole["dead_letters"]], limit


async def test_a_redrive_of_many_begins_with_those_that_failed_longest_ago(api: Api) -> None:
    await broken(api, 3)
    await api.app.db.execute(
        "UPDATE dead_letters SET last_at = '2026-11-01T00:00:00Z'::timestamptz - id * interval '1 s'"
    )
    letters = (await api.get("/v1/dead-letters")).json()["dead_letters"]
    ids = await api.app.dead_letters.open_ids(source="documents", fingerprint=None, limit=2)
    assert ids == [letters[2]["id"], letters[1]["id"]]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/search?q=dock&sources=llm",
        "/v1/search?question=dock",
        "/v1/documents?sourc=llm",
        "/v1/events?status=dead",
    ],
)
async def test_a_misspelled_parameter_is_refused_by_name(api: Api, path: str) -> None:
    """Ignored, it would return all that the filter was to leave out."""
    response = await api.get(path)
    wrong = path.rpartition("?")[2].split("&")[-1].partition("=")[0]
    error = response.json()["error"]
    assert response.status_code == 422 and error["message"] == f"{wrong}: unknown parameter"
    assert "source" in error["remedy"], "it names those that the route has"


async def test_a_wrong_cursor_is_refused(api: Api) -> None:
    at = "2026-11-01T00:00:00Z"
    wrong = ["", "2026-11-01", "2026-11-01 7", "x 7", "\ud800", f"{at} x\x00"]
    no_id = [at, f"{at} 0", f"{at} -1", f"{at} " + "9" * 30, f"{at} " + "9" * 5_000]
    for path in ("dead-letters", "files", "backfills", "unresolved"):
        positions = [*wrong, *([] if path == "unresolved" else no_id)]
        encoded = [
            base64.urlsafe_b64encode(position.encode("utf-8", "surrogatepass")).decode()
            for position in positions
        ]
        for cursor in (*encoded, "é", "a"):
            answer = await api.get(f"/v1/{path}", params={"cursor": cursor})
            assert answer.status_code == 422, (path, cursor, answer.text)
            assert "cursor" in answer.json()["error"]["message"]


async def test_every_file_backfill_and_unresolved_reference_is_reached_page_by_page(
    api: Api,
) -> None:
    await api.app.db.execute(
        """INSERT INTO files (id, source, name, sha256, body, received_at)
           SELECT gen_random_uuid(), 'edi', 'f' || n, '', '', '2026-11-01T00:00:00Z' FROM generate_series(1, 5) n"""
    )
    await api.app.db.execute(
        """INSERT INTO backfills (source, kind, since, until, state, actor, started_at)
           SELECT 'edi', 'replay', now(), now(), 'failed', 'test', '2026-11-01T00:00:00Z' FROM generate_series(1, 5)"""
    )
    await api.land("refs", text=" ".join(f"SHP-10000{n}" for n in range(5)))
    await api.app.direct.drain("documents")
    for path, name, key in (("files", "files", "id"), ("backfills", "backfills", "id"),
                            ("unresolved", "unresolved", "ref")):  # fmt: skip
        seen: list[str] = []
        page: dict[str, Any] = {"limit": 2}
        while True:
            answer = (await api.get(f"/v1/{path}", params=page)).json()
            seen += [row[key] for row in answer[name]]
            if answer["next"] is None:
                break
            page["cursor"] = answer["next"]
        assert len(seen) == len(set(seen)) == 5, (path, seen)
    first = (await api.get("/v1/backfills?limit=1")).json()["backfills"][0]
    assert (await api.get(f"/v1/backfills/{first['id']}")).json() == first
    assert (await api.get(f"/v1/backfills/{uuid4()}")).status_code == 404


@pytest.mark.parametrize("order", [{}, {"ids": []}, {"ids": [1], "source": "edi"}, {"all": True}])
async def test_a_redrive_states_its_effect(api: Api, order: dict[str, Any]) -> None:
    assert (await api.post("/v1/dead-letters/redrive", json=order)).status_code == 422


async def test_status_shows_stores_backlog_and_temporal(api: Api) -> None:
    await api.land()
    status = (await api.get("/v1/status")).json()
    assert {row["name"]: row["state"] for row in status["stores"]} == dict.fromkeys(
        ("documents", "graph", "vectors", "cache"), "ready"
    )
    assert all(row["version"] for row in status["stores"])
    assert status["open"] == 1 and not status["temporal"]["reachable"]
    assert "frontapp" in status["sources"]


async def test_landing_needs_nothing_but_postgresql(make_settings: MakeSettings) -> None:
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        graph=f"falkordb://:x@127.0.0.1:{free_port()}/apex",
        vectors=f"edge://:x@127.0.0.1:{free_port()}",
        cache=f"redis://:x@127.0.0.1:{free_port()}/0",
    )
    async with running_api_without_stores(settings) as api:
        assert not (await api.land())["duplicate"]
        assert (await api.hook(front.message("msg_1", "cnv_1", at=0))).status_code == 202
        assert (await api.get("/readyz")).status_code == 200
        status = (await api.get("/v1/status")).json()
        away = {row["name"] for row in status["stores"] if row["state"] == "unavailable"}
        assert away == {"graph", "vectors", "cache"}
        response = await api.get("/v1/search", params={"q": "SHP-100045"})
        assert response.status_code == 200 and {"graph", "vectors"} <= set(
            response.json()["degraded"]
        )


@asynccontextmanager
async def running_api_without_stores(settings: Settings) -> AsyncIterator[Api]:
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        gateway = application.state.gateway
        key = await create_key(gateway.app.db, "test", ["admin"])
        async with client_of(application, {"authorization": f"Bearer {key.key}"}) as http:
            yield Api(gateway, http, application)


async def test_without_postgresql_everything_is_503_with_retry_after(
    api: Api, postgres_url: str
) -> None:
    await api.get("/v1/sources")  # the key is known from here on
    name = api.app.settings.documents.rpartition("/")[2]
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        try:
            answers = await asyncio.gather(
                api.hook(front.message("msg_1", "cnv_1", at=0)),
                api.post("/v1/documents", json={"text": TEXT}),
                api.get("/readyz"),
            )
            assert [answer.status_code for answer in answers] == [503] * 3
            assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
            assert (await api.get("/healthz")).status_code == 200
            status = (await api.get("/v1/status")).json()
            assert status["backlog"] is None
            assert (await api.get("/metrics")).status_code == 200
        finally:
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    async def ready() -> bool:
        return (await api.get("/readyz")).status_code == 200

    await until(ready, "the gateway is ready again", seconds=30)
    assert not (await api.land())["duplicate"]


async def test_too_many_at_once_are_sent_away(api: Api) -> None:
    inside, gate = asyncio.Event(), asyncio.Event()

    async def land(events: Sequence[Event]) -> list[LandResult]:
        inside.set()
        await gate.wait()
        return await api.app.inbox.land(events)

    object.__setattr__(api.gateway, "group_commit", GroupCommitter(land, queued=1))
    waiting = asyncio.create_task(api.post("/v1/documents", json={"text": "one"}))
    await inside.wait()
    busy = await api.post("/v1/documents", json={"text": "two"})
    assert busy.status_code == 503 and busy.headers["retry-after"] == "1"
    gate.set()
    assert (await waiting).status_code == 202


async def test_metrics_are_for_this_machine_or_admins(api: Api) -> None:
    await api.land()
    async with client_of(api.application) as http:

        async def read() -> bool:
            backlog = 'apex_inbox_open{source="documents",state="received"} 1.0'
            return backlog in (await http.get("/metrics")).text

        await until(read, "the facts are read once a second", every=0.25)
        assert 'route="/v1/documents"' in (await http.get("/metrics")).text
        assert (
            await http.get("/metrics", headers={"x-forwarded-for": "8.8.8.8"})
        ).status_code == 401
    reader = await create_key(api.app.db, "reader", ["read"])
    away = httpx2.ASGITransport(app=api.application, client=("10.0.0.9", 1))
    async with httpx2.AsyncClient(transport=away, base_url="http://127.0.0.1:8460") as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers={"x-api-key": reader.key})).status_code == 403
        admin = {"authorization": api.http.headers["authorization"]}
        assert (await http.get("/metrics", headers=admin)).status_code == 200


async def test_the_docs_page_needs_nothing_from_elsewhere(api: Api) -> None:
    async with client_of(api.application) as http:
        assert (await http.get("/")).headers["location"] == "/docs"
        page = await http.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"<(script|link|img|iframe)|url\(|@import", page.text)
        for path in api.application.openapi()["paths"]:
            assert f"<code>{path}</code>" in page.text


async def test_an_agents_trace_goes_on_with_its_event(api: Api) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await api.post(
        "/v1/documents",
        json={"text": TEXT},
        headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    )
    row = await api.app.db.fetch_one(
        "SELECT trace_parent FROM inbox WHERE id = %s", (answer.json()["events"][0]["id"],)
    )
    assert row and trace in row["trace_parent"]


async def test_a_store_is_reconciled_once_at_a_time(api: Api) -> None:
    await api.land()
    await api.app.direct.drain("documents")
    answer = await api.post("/v1/stores/graph/reconcile", json={})
    assert answer.status_code == 200 and answer.json()["stages"] == 1
    api.gateway.reconciling.add("graph")
    assert (await api.post("/v1/stores/graph/reconcile", json={})).status_code == 409
    assert (await api.post("/v1/stores/cache/reconcile", json={})).status_code == 422


async def test_hello_reports_that_temporal_is_away(api: Api) -> None:
    answer = await api.post("/v1/hello")
    assert answer.status_code == 503 and "temporal" in answer.json()["error"]["message"]


async def test_f14_refs_are_found_in_any_spelling(api: Api) -> None:
    spelled = ["company:Northwind Trucking, LLC", "shipment:shp-777001", "phone:(901) 555-0143"]
    other = ["company:northwind trucking", "Shipment: SHP-777001", "phone:+1 901.555.0143"]
    event = await api.land("spelled", "Nothing of it in the words.", entities=spelled)
    await api.app.direct.drain("documents")
    document = (await api.get(f"/v1/documents/{event['document_id']}")).json()
    assert document["entities"] == [
        "company:northwind-trucking",
        "phone:+19015550143",
        "shipment:SHP-777001",
    ]
    for ref in [*spelled, *other, *document["entities"]]:
        body = {"query": "", "filters": {"entities": [ref]}}
        hits = (await api.post("/v1/search", json=body)).json()["hits"]
        assert [hit["document_id"] for hit in hits] == [event["document_id"]], ref
        answer = await api.get("/v1/search", params={"q": "words", "entity": ref})
        assert [hit["document_id"] for hit in answer.json()["hits"]] == [event["document_id"]], ref
        kind, _, key = ref.partition(":")
        shown = await api.get(f"/v1/entities/{kind.lower()}/{quote(key, safe='')}")
        assert shown.status_code == 200, ref
        assert shown.json()["ref"] in document["entities"]


async def test_o1_a_document_that_is_cut_is_marked_everywhere(api: Api) -> None:
    codes = " ".join(f"SHP-{n}" for n in range(100_000, 102_500))
    text = f"{codes}\n" + "word " * 400_000
    body = {"key": "giant", "version": 1, "text": text}
    event = (await api.post("/v1/documents", json=body)).json()["events"][0]
    await api.app.direct.drain("documents")
    document = (await api.get(f"/v1/documents/{event['document_id']}")).json()
    degraded = document["degraded"]
    assert degraded == {
        "characters": {"found": len(text), "kept": 2_000_000},
        "entities": {"found": 2_500, "kept": 2_000},
    }
    assert "apex_degraded" not in document["metadata"]
    assert (await api.get(f"/v1/events/{event['id']}")).json()["degraded"] == degraded
    receipt = (await api.post("/v1/documents?wait=searchable", json=body)).json()["events"][0]
    assert receipt["duplicate"] and receipt["degraded"] == degraded
    metrics = (await api.get("/metrics")).text
    assert 'apex_documents_cut_total{limit="characters",source="documents"}' in metrics
    assert left_out(degraded) == (
        f"2,000,000 of {len(text):,} characters kept, 2,000 of 2,500 entities kept"
    )
    whole = await api.land("whole", "Nothing is left out.")
    await api.app.direct.drain("documents")
    assert (await api.get(f"/v1/events/{whole['id']}")).json()["degraded"] == {}


async def test_w6_a_bomb_becomes_a_dead_letter_that_names_its_limit(api: Api) -> None:
    neighbour = await api.land("neighbour", "Reads well.")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("zeros.txt", bytes(30_000_000))
    answer = await api.post(
        "/v1/documents?name=bomb.zip",
        content=archive.getvalue(),
        headers={"content-type": "application/zip"},
    )
    bomb = answer.json()["events"][0]
    await api.app.direct.drain("documents")
    event = (await api.get(f"/v1/events/{bomb['id']}")).json()
    assert event["state"] == "dead"
    assert "(limit `reader_compression_ratio`)" in event["last_error"]
    assert "`reader_compression_ratio` allows it" in event["remedy"]
    assert (await api.get(f"/v1/events/{neighbour['id']}")).json()["state"] == "done"
