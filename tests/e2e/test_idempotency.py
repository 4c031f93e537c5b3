"""F27, W8: an `Idempotency-Key` names one request of one API key. No second body is accepted and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from apex_memory.credentials.api_keys import create_key
from apex_memory.engines.base import free_port
from apex_memory.gateway import ingest
from apex_memory.gateway.dependencies import Gateway
from apex_memory.model import Event
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, client_of, running_api

KEY = {"idempotency-key": "delivery-7"}
CHAT = {"messages": [{"role": "user", "content": "Where is SHP-100045?"}]}
OTHER_CHAT = {"messages": [{"role": "user", "content": "Where is SHP-100046?"}]}


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex")
    async with running_api(settings) as api:
        yield api


async def client_of_another_key(api: Api) -> httpx2.AsyncClient:
    key = await create_key(api.app.db, "another", ["ingest"])
    return client_of(api.application, {"x-api-key": key.key})


async def stored(api: Api) -> list[bytes]:
    rows = await api.app.db.fetch("SELECT body FROM payloads")
    return [bytes(row["body"]) for row in rows]


def form(*files: str) -> dict[str, Any]:
    return {"files": [("file", (f"{n}.txt", text.encode())) for n, text in enumerate(files)]}


ENTRANCES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("text", "/v1/documents", {"json": {"text": "a"}}, {"json": {"text": "b"}}),
    ("title", "/v1/documents", {"json": {"text": "a"}}, {"json": {"text": "a", "title": "t"}}),
    ("key", "/v1/documents", {"json": {"text": "a"}}, {"json": {"text": "a", "key": "k"}}),
    ("file", "/v1/documents?name=a.txt", {"content": b"a"}, {"content": b"b"}),
    ("files", "/v1/documents", form("a", "b"), form("a", "c")),
    ("another first file", "/v1/documents", form("a", "b"), form("c")),
    ("more files", "/v1/documents", form("a"), form("a", "b")),
    ("chat", "/v1/conversations", {"json": CHAT}, {"json": OTHER_CHAT}),
    ("chats", "/v1/conversations", {"json": [CHAT, CHAT]}, {"json": [CHAT, OTHER_CHAT]}),
    ("more chats", "/v1/conversations", {"json": CHAT}, {"json": [CHAT, OTHER_CHAT]}),
]


@pytest.mark.parametrize(
    ("path", "first", "second"), [row[1:] for row in ENTRANCES], ids=[row[0] for row in ENTRANCES]
)
async def test_f27_another_body_under_the_same_key_is_refused(
    api: Api, path: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    accepted = await api.http.post(path, headers=KEY, **first)
    assert accepted.status_code == 202, accepted.text
    before = await stored(api)
    refused = await api.http.post(path, headers=KEY, **second)
    assert refused.status_code == 422, refused.text
    assert "Idempotency-Key" in refused.json()["error"]["message"]
    assert await stored(api) == before, "nothing of the second request is stored"
    repeated = await api.http.post(path, headers=KEY, **first)
    assert repeated.status_code == 202
    receipts = [
        [(event["id"], event["document_id"]) for event in response.json()["events"]]
        for response in (accepted, repeated)
    ]
    assert receipts[0] == receipts[1]
    assert all(event["duplicate"] for event in repeated.json()["events"])


async def test_w8_two_api_keys_with_the_same_idempotency_key_are_two_requests(api: Api) -> None:
    async with await client_of_another_key(api) as other:
        first = await api.http.post("/v1/documents", headers=KEY, json={"text": "of the first"})
        second = await other.post("/v1/documents", headers=KEY, json={"text": "of the second"})
    assert (first.status_code, second.status_code) == (202, 202)
    events = [response.json()["events"][0] for response in (first, second)]
    assert events[0]["id"] != events[1]["id"]
    assert [event["duplicate"] for event in events] == [False, False]
    assert len(await stored(api)) == 2


async def test_w8_an_idempotency_key_cannot_take_the_id_of_another_document(api: Api) -> None:
    """A caller who guesses the id of a future document does not keep that document out."""
    body = {"key": "rates", "version": 4, "text": "New rates hold."}
    async with await client_of_another_key(api) as other:
        victim = (await api.http.post("/v1/documents", json=body)).json()["events"][0]
        await api.app.db.execute("DELETE FROM inbox")
        headers = {"idempotency-key": victim["event_id"]}
        taken = await other.post("/v1/documents", headers=headers, json={"text": "x"})
        assert taken.status_code == 202
        landed = (await api.http.post("/v1/documents", json=body)).json()["events"][0]
    assert not landed["duplicate"]


async def test_f27_of_two_requests_at_once_exactly_one_body_is_accepted(api: Api) -> None:
    """Also when both are in one commit."""
    texts = [f"body {n}" for n in range(8)]
    responses = await asyncio.gather(
        *(api.http.post("/v1/documents", headers=KEY, json={"text": text}) for text in texts),
        api.http.post("/v1/documents", json={"text": "a neighbour"}),
    )
    assert responses.pop().status_code == 202
    assert sorted(response.status_code for response in responses) == [202] + [422] * 7
    [winner] = [n for n, response in enumerate(responses) if response.status_code == 202]
    kept = [body for body in await stored(api) if b"body " in body]
    assert len(kept) == 1 and texts[winner].encode() in kept[0]


@pytest.mark.parametrize("files", [("b", "c"), ("a", "c")], ids=["other files", "one file more"])
async def test_f27_nothing_is_kept_of_a_request_that_another_gateway_forestalls(
    api: Api, monkeypatch: pytest.MonkeyPatch, files: tuple[str, str]
) -> None:
    """The other request lands between the check of this one and its commit."""
    path, check, checked = "/v1/documents", ingest._check_repetition, asyncio.Event()

    async def check_and_be_forestalled(gateway: Gateway, events: Sequence[Event]) -> bool:
        repeated = await check(gateway, events)
        if not checked.is_set():
            checked.set()
            first = await api.http.post(path, headers=KEY, **form("a"))
            assert first.status_code == 202
        return repeated

    monkeypatch.setattr(ingest, "_check_repetition", check_and_be_forestalled)
    refused = await api.http.post(path, headers=KEY, **form(*files))
    assert refused.status_code == 422, refused.text
    assert "Idempotency-Key" in refused.json()["error"]["message"]
    assert len(await stored(api)) == 1


async def test_f27_one_request_at_two_gateways_at_once_is_kept_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_repeated(gateway: Gateway, events: Sequence[Event]) -> bool:
        return False  # as both are checked before either is committed

    monkeypatch.setattr(ingest, "_check_repetition", never_repeated)
    sending = [api.http.post("/v1/documents", headers=KEY, **form("a", "b")) for _ in range(4)]
    responses = await asyncio.gather(*sending)
    assert [response.status_code for response in responses] == [202] * 4
    events = [event for response in responses for event in response.json()["events"]]
    assert sum(not event["duplicate"] for event in events) == 2
    assert len(await stored(api)) == 2
