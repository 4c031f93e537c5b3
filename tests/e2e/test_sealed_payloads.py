"""Raw payloads sealed in PostgreSQL: nothing readable in the table, plain rows beside them, new keys, missing keys, backups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from apex_memory.app import App, open_app
from apex_memory.backup import back_up, restore
from apex_memory.engines.base import free_port
from apex_memory.errors import Misconfigured, Rejected, RetryLater
from apex_memory.fetching.backfills import Backfills, ReplayedChunk
from apex_memory.inbox.payload_store import PayloadStore
from apex_memory.model import Event, LandResult, now
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.simulate.server import serve_simulators
from tests.e2e.conftest import MakeSettings, live, state, text_event
from tests.e2e.front import conversation, message, request
from tests.e2e.shadows import process_all, shadow_on
from tests.e2e.test_api import Api, running_api
from tests.unit.test_front_poll import Script, front, listed
from tests.unit.test_front_poll import record_of as listed_event
from tests.unit.vendors import vendor_client

TEXT = "Shipment SHP-100045 left Columbus, OH for Northwind Trucking."
MARKER = b"SHP-100045"


@pytest.fixture
async def app(make_settings: MakeSettings) -> AsyncIterator[App]:
    async with open_app(make_settings(seal_payloads=True)) as app:
        await app.recovery.check_restarted_stores()
        yield app


@pytest.fixture
async def api(make_settings: MakeSettings) -> AsyncIterator[Api]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", seal_payloads=True)
    async with running_api(settings) as api:
        yield api


async def land(app: App, *events: Event) -> list[LandResult]:
    return await app.inbox.land(await app.payloads.offload(events))


async def bodies(app: App) -> list[bytes]:
    rows = await app.db.fetch("SELECT body FROM payloads ORDER BY inbox_id")
    return [bytes(row["body"]) for row in rows]


async def read(app: App, landed: LandResult) -> bytes:
    return (await app.payloads.load_one(await app.inbox.event(landed.id))).payload


async def test_the_table_does_not_hold_what_is_read_from_it(api: Api) -> None:
    event = await api.land("one", TEXT)
    [body] = await bodies(api.app)
    assert body and MARKER not in body
    assert MARKER not in bytes(
        (await api.app.db.fetch("SELECT string_agg(sealed, '') AS all FROM data_keys"))[0]["all"]
    )
    await api.app.direct.drain("documents")
    document = await live(api.app, "one")
    assert document and document["text"] == TEXT
    payload = (await api.get(f"/v1/events/{event['id']}/payload")).content
    shown = (await api.get(f"/v1/events/{event['id']}")).json()
    assert MARKER in payload and shown["payload_bytes"] == len(payload)


async def test_plain_and_sealed_rows_are_read_side_by_side(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with open_app(settings) as before:
        plain = text_event(before, "plain", TEXT, version=1)
        [first] = await land(before, plain)
        assert MARKER in (await bodies(before))[0]
    async with open_app(make_settings(seal_payloads=True)) as sealing:
        sealed = text_event(sealing, "sealed", TEXT, version=1)
        [second] = await land(sealing, sealed)
        assert await read(sealing, first) == plain.payload
        assert await read(sealing, second) == sealed.payload
    async with open_app(settings) as after:  # the setting is off again
        await after.recovery.check_restarted_stores()
        assert await read(after, second) == sealed.payload
        await after.direct.drain("documents")
        assert [await state(after, item) for item in (first, second)] == ["done", "done"]


async def test_a_new_key_reseals_data_keys_and_no_payload(make_settings: MakeSettings) -> None:
    old, new = new_key(), new_key()
    async with open_app(make_settings(seal_payloads=True, secret_key=old)) as app:
        event = text_event(app, "one", TEXT, version=1)
        [landed] = await land(app, event)
        before = await bodies(app)
        both = PayloadStore(app.db, keys=Keyring(read_keys([new, old])), seals=True)
        assert (await both.reseal(actor="test")).resealed == 1
        assert (await both.reseal(actor="test")).resealed == 0
        assert await bodies(app) == before
    async with open_app(make_settings(seal_payloads=True, secret_key=new)) as app:
        assert await read(app, landed) == event.payload
        [again] = await land(app, event)
        assert again.duplicate


async def test_reseal_names_data_keys_that_it_cannot_open(api: Api) -> None:
    await api.land("one", TEXT)
    await api.app.db.execute("UPDATE data_keys SET key_id = 'gone'")
    answer = (await api.post("/v1/secrets/reseal")).json()
    assert answer["data_keys"] == 0
    [unreadable] = answer["unreadable"]
    assert unreadable.startswith("data key ")


async def test_without_its_key_an_event_waits_with_the_reason_and_is_not_lost(
    make_settings: MakeSettings,
) -> None:
    right, wrong = make_settings(seal_payloads=True), make_settings(secret_key=new_key())
    async with open_app(right) as app:
        event = text_event(app, "one", TEXT, version=1)
        [landed] = await land(app, event)
    async with open_app(wrong) as app:
        await app.recovery.check_restarted_stores()
        await app.direct.drain("documents")
        row = await app.db.fetch_one("SELECT state, last_error FROM inbox")
        assert row and row["state"] == "parked"
        assert "not configured" in row["last_error"] and "data key" in row["last_error"]
        with pytest.raises(Misconfigured, match="not configured") as refused:
            await read(app, landed)
        assert "secret_key_file" in refused.value.remedy
    with pytest.raises(Misconfigured, match="not configured"):  # it could not read what it seals
        async with open_app(wrong.model_copy(update={"seal_payloads": True})):
            pass
    async with open_app(right) as app:
        await app.recovery.check_restarted_stores()
        await app.upkeep.sweep()
        await app.direct.drain("documents")
        assert await state(app, landed) == "done"


async def test_without_any_key_sealing_is_refused_at_the_start(make_settings: MakeSettings) -> None:
    with pytest.raises(Misconfigured, match="secret_key"):
        async with open_app(make_settings(seal_payloads=True, secret_key="")):
            pass


async def test_what_was_changed_in_the_table_is_a_dead_letter_until_it_is_restored(
    app: App,
) -> None:
    change = "UPDATE payloads SET body = set_byte(body, 20, get_byte(body, 20) # 1)"
    [landed] = await land(app, text_event(app, "one", TEXT))
    await app.db.execute(change)
    with pytest.raises(Rejected, match="does not match its seal"):
        await read(app, landed)
    await app.direct.drain("documents")
    assert await state(app, landed) == "dead"
    [letter] = await app.db.fetch("SELECT id, remedy FROM dead_letters")
    assert "backup" in letter["remedy"]
    await app.db.execute(change)  # once more: it is as it was
    await app.dead_letters.redrive([letter["id"]], actor="test")
    await app.direct.drain("documents")
    assert await state(app, landed) == "done"


async def test_nothing_lands_under_a_data_key_that_the_database_has_lost(app: App) -> None:
    """As after a failover to a standby that missed the newest rows."""
    [sealed] = await app.payloads.offload([text_event(app, "one", TEXT)])
    await app.db.execute("DELETE FROM data_keys")
    with pytest.raises(RetryLater):
        await app.inbox.land([sealed])
    assert await app.db.fetch("SELECT FROM inbox") == []


async def test_a_week_later_another_data_key_seals(make_settings: MakeSettings) -> None:
    settings = make_settings(seal_payloads=True)
    async with open_app(settings) as app:
        first = text_event(app, "one", TEXT)
        [old] = await land(app, first)
        await app.db.execute("UPDATE data_keys SET created_at = now() - interval '8 days'")
    async with open_app(settings) as app:
        [new] = await land(app, text_event(app, "two", TEXT))
        rows = await app.db.fetch("SELECT DISTINCT data_key FROM payloads")
        assert len(rows) == 2
        assert await read(app, old) == first.payload
        assert MARKER in await read(app, new)


async def test_repetitions_and_other_content_under_the_same_id(app: App) -> None:
    source = app.sources["frontapp"]
    [event, *_] = source.receive(request(source, message("msg_1", "cnv_1", at=10))).events
    [first] = await land(app, event)
    spaced = replace(event, payload=event.payload + b" ")  # the same document
    other = replace(event, payload=event.payload.replace(b"msg_1", b"msg_2"))
    assert other.payload != event.payload
    for again, changes in ((event, 0), (spaced, 0), (other, 1)):
        offloaded = await app.payloads.offload([again])
        results = await app.inbox.land(offloaded)
        assert [item.id for item in results] == [first.id]
        changed = await app.inbox.with_own_ids("frontapp", offloaded, results, source.document)
        assert len(changed) == changes
        await app.inbox.land(list(changed.values()))
    assert len(await bodies(app)) == 2
    assert not any(b"msg_" in body for body in await bodies(app))


async def test_an_idempotency_key_knows_a_sealed_body(api: Api) -> None:
    async def post(text: str) -> int:
        headers = {"idempotency-key": "delivery-7"}
        return (await api.post("/v1/documents", json={"text": text}, headers=headers)).status_code

    assert [await post(TEXT), await post(TEXT), await post(TEXT + "!")] == [202, 202, 422]


async def test_polls_replays_and_copies(app: App) -> None:
    records = listed(listed_event("evt_1", 1), listed_event("evt_2", 2))
    async with (
        serve_simulators([Script(events=records)]) as served,
        vendor_client("frontapp") as client,
    ):
        source = front(f"{served.url}/frontapp")
        assert (await app.fetcher.pulls.run(source, client)).fresh == 2
    rows = await app.db.fetch("SELECT FROM payloads WHERE data_key IS NULL")
    assert rows == []
    await shadow_on(app)
    event = text_event(app, "one", TEXT, version=1)
    [landed] = await land(app, event)
    await app.direct.drain("documents")
    assert (await process_all(app)).equal == 1
    replays = Backfills(app.db, app.payloads)
    replay = await replays.create(
        "documents", "replay", now().replace(year=2000), now().replace(year=2100), actor="test"
    )
    assert await replays.replay_chunk(replay) == ReplayedChunk(1, 1, more=True)
    await app.direct.drain("documents")
    states = await app.db.fetch("SELECT state FROM inbox WHERE source = 'documents'")
    assert {row["state"] for row in states} <= {"done", "superseded"}
    assert not any(MARKER in body for body in await bodies(app))
    assert await read(app, landed) == event.payload


async def test_children_come_back_with_their_parent(app: App) -> None:
    source = app.sources["frontapp"]

    async def deliver(body: bytes) -> None:
        await land(app, *source.receive(request(source, body)).events)
        await app.direct.drain("frontapp")

    for body in (message("msg_1", "cnv_1", at=10), conversation("cnv_1", "archive", at=12)):
        await deliver(body)
    await deliver(conversation("cnv_1", "trash", at=20))
    assert await live(app, "message:msg_1") is None
    await deliver(conversation("cnv_1", "restore", at=30))
    assert await live(app, "message:msg_1")


async def test_a_backup_names_the_key_and_is_read_with_it(
    make_settings: MakeSettings, postgres_url: str, tmp_path: Path
) -> None:
    settings = make_settings(seal_payloads=True)
    async with open_app(settings) as app:
        event = text_event(app, "one", TEXT, version=1)
        [landed] = await land(app, event)
        written = await back_up(settings.documents, tmp_path / "backup")
    assert written.secret_keys == [
        Keyring(read_keys([settings.secret_key.get_secret_value()])).first
    ]
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE restored_sealed")
        try:
            url = postgres_url.removesuffix("/postgres") + "/restored_sealed"
            # Started once and not used, where payloads are to be sealed: that is empty still.
            async with open_app(settings.model_copy(update={"documents": url})) as app:
                assert await app.db.fetch("SELECT FROM data_keys")
            await restore(url, tmp_path / "backup")
            async with open_app(make_settings(documents=url)) as app:
                assert await read(app, landed) == event.payload
                await app.recovery.check_restarted_stores()
                await app.direct.drain("documents")
                assert await state(app, landed) == "done"
                await app.rebuild.run("graph")
                assert await live(app, "one")
        finally:
            await admin.execute("DROP DATABASE restored_sealed WITH (FORCE)")


async def test_a_payload_is_erased_with_its_event(app: App) -> None:
    await land(app, text_event(app, "one", TEXT))
    await app.db.execute("DELETE FROM inbox")
    assert await bodies(app) == []
