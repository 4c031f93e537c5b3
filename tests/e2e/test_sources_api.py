"""Operating sources by API: decisions hold, secrets rotate without a restart and never come out, links wait and close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apex_memory.app import open_app
from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault
from apex_memory.engines.base import free_port
from apex_memory.model import now
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.sources.auth import Token
from apex_memory.sources.registry import load
from tests.e2e import front
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api import Api, client_of, running_api
from tests.waiting import until

RECORDS = '''
import json
from datetime import UTC, datetime
from apex_memory.model import Document, Event, Priority
from apex_memory.sources.base import Received, Source

class Records(Source):
    """Records of things."""
    name, title, priority, path = "records", "Records", Priority.P1, "/v1/records"
    def receive(self, request):
        body = json.loads(request.body)
        return Received([Event(source="records", event_id=f"{body['ref']}:{body['version']}", doc_key=body["ref"],
                               version=body["version"], occurred_at=datetime(2026, 11, 2, tzinfo=UTC),
                               payload=request.body)])
    def document(self, event):
        body = json.loads(event.payload)
        return Document(kind="record", title=body["ref"], occurred_at=event.occurred_at, text=body["text"],
                        about=body["ref"], deleted=body.get("deleted", False))
    def samples(self):
        return []
'''


@pytest.fixture
async def api(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "records.py").write_text(RECORDS)
    settings = make_settings(
        temporal=f"127.0.0.1:{free_port()}/apex",
        secret_key=new_key(),
        source_path=tmp_path / "extra",
    )
    async with running_api(settings) as api:
        yield api


async def test_sources_are_listed_with_what_they_are_at(api: Api) -> None:
    await api.land()
    rows = {row["name"]: row for row in (await api.get("/v1/sources")).json()["sources"]}
    assert set(rows) == set(api.app.sources)
    documents = rows["documents"]
    assert (documents["backlog"], documents["state"], documents["route"]) == (
        1,
        "working",
        "/v1/documents",
    )
    assert documents["lag"] > 0 and documents["last_event_at"]


async def test_a_pause_holds_what_landed_until_it_ends(api: Api) -> None:
    answer = (await api.post("/v1/sources/documents/pause")).json()
    assert answer["source"]["state"] == "paused"
    assert "Temporal was not notified" in answer["note"]  # it is away in this test
    event = await api.land()
    assert await api.app.direct.drain("documents") == 0
    assert await api.app.inbox.ready() == {}
    await api.post("/v1/sources/documents/resume")
    assert await api.app.direct.drain("documents") == 1
    shown = (await api.get(f"/v1/events/{event['id']}")).json()
    assert shown["state"] == "done"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/sources/nobody/pause", 404),
        ("POST", "/v1/sources/documents/explode", 422),
        ("POST", "/v1/sources/documents/run", 409),
        ("DELETE", "/v1/backfills/0a3f6f4e-64c7-4d0f-9d83-2b8a4b0e6c11", 404),
        ("DELETE", "/v1/secrets/frontapp/signing_keys", 404),
    ],
)
async def test_what_cannot_be_done_is_refused_with_a_remedy(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["remedy"]


async def test_orders_that_make_no_sense_are_refused(api: Api) -> None:
    since, before = "2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z"
    path = "/v1/sources/documents"
    backwards = await api.post(f"{path}/replays", json={"since": since, "until": before})
    assert backwards.status_code == 422
    assert (await api.post(f"{path}/backfills", json={"since": since})).status_code == 422


async def test_an_order_is_kept_while_temporal_is_away(api: Api) -> None:
    since = "2026-11-02T00:00:00Z"
    first = await api.post("/v1/sources/documents/replays", json={"since": since})
    assert first.status_code == 202 and first.json()["state"] == "running"
    assert first.json()["waits_for"] == "temporal"
    [listed] = (await api.get("/v1/backfills")).json()["backfills"]
    assert listed["waits_for"] == "temporal"
    second = await api.post("/v1/sources/documents/replays", json={"since": since})
    assert second.status_code == 409 and first.json()["id"] in second.text
    gone = await api.http.delete(f"/v1/backfills/{first.json()['id']}")
    assert (gone.json()["state"], gone.json()["waits_for"]) == ("cancelled", None)
    again = await api.http.delete(f"/v1/backfills/{first.json()['id']}")
    assert again.status_code == 409
    states = [row["state"] for row in (await api.get("/v1/backfills")).json()["backfills"]]
    assert states == ["cancelled"]


async def test_a_signing_key_rotates_without_a_restart(api: Api) -> None:
    body = front.message("evt_rotated", "msg_1", text="hello", at=now().timestamp())
    fresh = load({"frontapp": {"signing_keys": ["fresh-key"]}})["frontapp"]
    headers = {"content-type": "application/json"}

    async def accepted() -> bool:
        signed = {**headers, **fresh.sign(body, now())}
        answer = await client_of(api.application).post(
            "/hooks/frontapp", content=body, headers=signed
        )
        return answer.status_code == 202

    assert not await accepted()
    put = await api.http.put(
        "/v1/secrets/frontapp/signing_keys", json={"value": ["fresh-key", "test_signing_key"]}
    )
    assert put.status_code == 204
    began = asyncio.get_running_loop().time()
    await until(accepted, "the new key holds", seconds=5)
    assert asyncio.get_running_loop().time() - began < 3
    listed = await api.get("/v1/secrets")
    assert [row["name"] for row in listed.json()["secrets"]] == ["source/frontapp/signing_keys"]
    assert "fresh-key" not in listed.text
    assert (await api.http.delete("/v1/secrets/frontapp/signing_keys")).status_code == 204

    async def refused() -> bool:
        return not await accepted()

    await until(refused, "the settings file holds again", seconds=5)


@pytest.mark.parametrize(
    ("path", "value", "status"),
    [
        ("frontapp/nothing", "x", 422),
        ("nobody/secret", "x", 404),
        ("frontapp/signing_keys", [""], 422),
        ("edi/inbound_folder", "/", 422),
        ("edi/sftp_host", "attacker.example", 422),
        ("plaid/base_url", "https://attacker.example", 422),
        ("quickbooks/token_url", "https://attacker.example", 422),
        ("frontapp/signing_keys", ["a", "b", "c"], 422),
    ],
)
async def test_w3_an_address_a_folder_or_a_wrong_secret_is_refused_before_it_is_kept(
    api: Api, path: str, value: object, status: int
) -> None:
    answer = await api.http.put(f"/v1/secrets/{path}", json={"value": value})
    assert answer.status_code == status, answer.text
    assert (await api.get("/v1/secrets")).json()["secrets"] == []


async def test_secrets_are_sealed_again_under_a_new_key(api: Api) -> None:
    put = await api.http.put("/v1/secrets/frontapp/signing_keys", json={"value": ["a-key"]})
    assert put.status_code == 204
    old = api.app.settings.secret_key.get_secret_value()
    fresh = new_key()
    api.app.vault._keys = Keyring(read_keys([fresh, old]))
    answer = await api.post("/v1/secrets/reseal")
    assert (answer.status_code, answer.json()) == (
        200,
        {"resealed": 1, "data_keys": 0, "unreadable": [], "objects": 0},
    )
    only_new = Vault(api.app.db, Keyring(read_keys([fresh])))
    assert await only_new.get("source/frontapp/signing_keys") == ["a-key"]
    again = await api.post("/v1/secrets/reseal")
    assert again.json() == {"resealed": 0, "data_keys": 0, "unreadable": [], "objects": 0}


async def test_an_app_that_closes_stores_the_token_that_a_vendor_is_about_to_send(
    make_settings: MakeSettings,
) -> None:
    settings, spent = make_settings(), asyncio.Event()

    async def renew(old: Token | None) -> Token:
        spent.set()
        await asyncio.sleep(0.3)  # the vendor's response is on its way
        return Token("access", "refresh")

    async with open_app(settings) as app:
        pull = asyncio.create_task(VaultTokens(app.vault).renewed("qbo", None, renew))
        await spent.wait()
        pull.cancel()
        await asyncio.gather(pull, return_exceptions=True)
    async with open_app(settings) as app:
        assert await VaultTokens(app.vault).current("qbo") == Token("access", "refresh")


async def test_an_invoice_waits_for_its_shipment(api: Api) -> None:
    async def waiting() -> list[str]:
        return [link["ref"] for link in (await api.get("/v1/unresolved")).json()["unresolved"]]

    async def record(ref: str, version: int, **more: object) -> None:
        fields = {"ref": ref, "version": version, "text": f"The record of {ref}.", **more}
        assert (await api.post("/v1/records", json=fields)).status_code == 202
        await api.app.direct.drain("records")

    await record("invoice:INV-55045", 1, text="Invoice INV-55045 bills shipment SHP-100045.")
    assert await waiting() == ["shipment:SHP-100045"]
    [link] = (await api.get("/v1/unresolved")).json()["unresolved"]
    assert link["sources"] == ["records"] and link["examples"][0]["title"] == "invoice:INV-55045"
    await record("shipment:SHP-100045", 1)
    assert await waiting() == []
    await record("shipment:SHP-100045", 2, deleted=True)
    assert await waiting() == ["shipment:SHP-100045"]


async def test_unresolved_references_are_those_of_the_newest_documents(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the response says that older documents were not looked at."""
    for number in (100045, 100046):
        fields = {
            "ref": f"invoice:INV-{number}",
            "version": 1,
            "text": f"Invoice INV-{number} bills shipment SHP-{number}.",
        }
        assert (await api.post("/v1/records", json=fields)).status_code == 202
        await api.app.direct.drain("records")
    page = (await api.get("/v1/unresolved")).json()
    assert [row["ref"] for row in page["unresolved"]] == [
        "shipment:SHP-100045",
        "shipment:SHP-100046",
    ]
    assert not page["partial"] and page["looked_at"] == 100_000
    monkeypatch.setattr("apex_memory.search.unresolved.LOOKED_AT", 1)
    page = (await api.get("/v1/unresolved")).json()
    assert [row["ref"] for row in page["unresolved"]] == ["shipment:SHP-100046"]
    assert page["partial"]
