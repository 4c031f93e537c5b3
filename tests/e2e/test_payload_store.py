"""Large raw payloads in an S3-compatible server: written before 202, read where they are processed, removed with their events."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from pydantic import SecretStr

from apex_memory.app import App, open_app
from apex_memory.backup import back_up, restore
from apex_memory.cli.doctor import _stores_and_events
from apex_memory.engines.base import free_port
from apex_memory.errors import Misconfigured, NotAllowed, NotCalled, RetryLater, Unavailable
from apex_memory.fetching.backfills import Backfills, ReplayedChunk
from apex_memory.model import Event, LandResult, now
from apex_memory.saga.failures import MOST_PARKS, Failure
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.simulate.server import serve_simulators
from apex_memory.stores import objects
from tests.bucket import BUCKET, SECRET, BucketServer
from tests.e2e.conftest import MakeSettings, live, state, text_event
from tests.e2e.front import message
from tests.e2e.front import request as front_request
from tests.e2e.shadows import process_all, shadow_on
from tests.e2e.test_api import Api, running_api
from tests.unit.test_front_poll import Script, front, listed
from tests.unit.test_front_poll import record_of as listed_event
from tests.unit.vendors import vendor_client
from tests.waiting import until

LONG = "Shipment SHP-100045 left Columbus, OH for Northwind Trucking. " * 100
MARKER = b"SHP-100045"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_bucket() -> AsyncIterator[BucketServer]:
    server = BucketServer()
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def bucket(shared_bucket: BucketServer) -> AsyncIterator[BucketServer]:
    """The server with an empty bucket, whatever a test did to it."""
    yield shared_bucket
    await shared_bucket.empty()


@pytest.fixture
async def app(make_settings: MakeSettings, bucket: BucketServer) -> AsyncIterator[App]:
    async with open_app(make_settings(**bucket.settings())) as app:
        await app.recovery.check_restarted_stores()
        yield app


@pytest.fixture
async def api(make_settings: MakeSettings, bucket: BucketServer) -> AsyncIterator[Api]:
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", **bucket.settings())
    async with running_api(settings) as api:
        yield api


async def land(app: App, *events: Event) -> list[LandResult]:
    return await app.inbox.land(await app.payloads.offload(events))


async def forget(app: App, id: UUID) -> None:
    """Remove the payload of an event, as retention does, and let the collector look."""
    await app.db.execute("DELETE FROM payloads WHERE inbox_id = %s", (id,))
    await sweep_later(app)


async def sweep_later(app: App) -> int:
    """Let the collector look, after the time for which a written object is kept."""
    await app.db.execute(
        "UPDATE payload_objects SET check_at = now() - interval '1 s' WHERE check_at IS NOT NULL"
    )
    return await app.payloads.sweep()


async def test_a_large_document_is_an_object_and_is_read_from_it(
    api: Api, bucket: BucketServer
) -> None:
    event = await api.land("long", LONG)
    small = await api.land("short", "Door 4 is open.")
    [name] = await bucket.names()
    assert MARKER not in await bucket.body(name), "the object is sealed"
    rows = await api.app.db.fetch("SELECT inbox_id, body FROM payloads ORDER BY length(body)")
    assert [(str(row["inbox_id"]), bool(row["body"])) for row in rows] == [
        (event["id"], False),
        (small["id"], True),
    ]
    await api.app.direct.drain("documents")
    document = await live(api.app, "long")
    assert document and document["text"].startswith(LONG[:500])
    shown = (await api.get(f"/v1/events/{event['id']}")).json()
    payload = (await api.get(f"/v1/events/{event['id']}/payload")).content
    assert shown["state"] == "done"
    assert shown["payload_bytes"] == len(payload) > len(LONG)
    assert MARKER in payload
    assert (await api.get(f"/v1/events/{small['id']}/payload")).content.count(b"Door 4") == 1


async def test_equal_payloads_share_an_object_that_goes_with_the_last(
    app: App, bucket: BucketServer
) -> None:
    original = text_event(app, "one", LONG, version=1)
    other = replace(original, event_id="other", doc_key="other")
    [first], [second] = await land(app, original), await land(app, other)
    [again] = await land(app, original)
    assert again.duplicate
    assert len(await bucket.names()) == 1
    await app.direct.drain("documents")
    await forget(app, first.id)
    assert len(await bucket.names()) == 1
    assert (
        await app.payloads.load_one(await app.inbox.event(second.id))
    ).payload == original.payload
    await forget(app, second.id)
    assert await bucket.names() == []
    assert await app.db.fetch("SELECT FROM payload_objects") == []


async def test_retention_removes_objects(app: App, bucket: BucketServer) -> None:
    [landed] = await land(app, text_event(app, "one", LONG))
    await app.direct.drain("documents")
    await app.db.execute("UPDATE inbox SET received_at = now() - interval '400 days'")
    await app.upkeep.collect()
    await sweep_later(app)
    assert await bucket.names() == []
    assert await state(app, landed) == "done"


async def test_in_an_outage_large_events_are_refused_and_small_ones_land(
    api: Api, bucket: BucketServer
) -> None:
    await bucket.kill()
    refused = await api.post("/v1/documents", json={"key": "long", "text": LONG})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "payload_store" in refused.json()["error"]["remedy"]
    await api.land("short", "Door 4 is open.")
    await api.app.direct.drain("documents")
    assert await live(api.app, "short")
    assert await live(api.app, "long") is None
    report = (await api.get("/v1/status")).json()
    [finding] = [item for item in _stores_and_events(report) if item.what == "store payloads"]
    assert finding.state == "bad"
    assert "payload_store" in finding.remedy
    await bucket.start()
    await until(lambda: _lands(api), "the object store is used again")
    await api.app.direct.drain("documents")
    assert await live(api.app, "long")


async def _lands(api: Api) -> bool:
    answer = await api.post("/v1/documents", json={"key": "long", "text": LONG})
    return answer.status_code == 202


async def test_a_payload_that_cannot_be_read_parks_its_event_alone(
    app: App, bucket: BucketServer
) -> None:
    large, small = await land(
        app, text_event(app, "long", LONG), text_event(app, "short", "Door 4 is open.")
    )
    bucket.hang()
    try:
        await app.direct.drain("documents")
        assert (await state(app, small), await state(app, large)) == ("done", "parked")
        row = await app.db.fetch_one(
            "SELECT park_store, last_error FROM inbox WHERE id = %s", (large.id,)
        )
        assert row and row["park_store"] == "payloads"
        assert "did not respond" in row["last_error"]
        await app.upkeep.sweep()
        assert await state(app, large) == "parked", "the store is away still"
    finally:
        bucket.resume()

    async def done() -> bool:
        await app.upkeep.sweep()
        await app.direct.drain("documents")
        return await state(app, large) == "done"

    await until(done, "the parked event is processed")


async def test_wrong_credentials_are_an_outage_that_names_no_secret(
    api: Api, bucket: BucketServer, capfd: pytest.CaptureFixture[str]
) -> None:
    await bucket.require_credentials()
    refused = await api.post("/v1/documents", json={"key": "long", "text": LONG})
    assert refused.status_code == 503
    assert "InvalidAccessKeyId" in refused.text
    with pytest.raises(Unavailable):
        await api.app.upkeep._sweeper._stores["payloads"].ping()
    assert SECRET not in refused.text + "".join(capfd.readouterr())
    await bucket.require_credentials(False)
    assert await _lands(api)


async def test_an_object_without_an_event_is_removed_and_its_name_never_used_again(
    app: App, bucket: BucketServer
) -> None:
    """The process ends between the object and the event: nothing was acknowledged, and the sender repeats it."""
    event = text_event(app, "long", LONG, version=1)
    [offloaded] = await app.payloads.offload([event])
    assert await app.payloads.sweep() == 0, "its event may be about to land"
    assert await bucket.names() == [offloaded.payload_object]
    assert await sweep_later(app) == 1
    assert await bucket.names() == []
    with pytest.raises(RetryLater):
        await app.inbox.land([offloaded])
    [landed] = await land(app, event)
    [name] = await bucket.names()
    assert name != offloaded.payload_object
    await app.direct.drain("documents")
    assert await state(app, landed) == "done"


async def test_a_late_removal_spares_what_was_acknowledged_since(
    app: App, bucket: BucketServer
) -> None:
    """Removing an object fails or is late, and an equal payload comes meanwhile: it gets an object of its own."""
    event = text_event(app, "long", LONG, version=1)
    [unused] = await app.payloads.offload([event])
    bucket.hang()
    try:
        assert await sweep_later(app) == 0
    finally:
        bucket.resume()

    async def responds() -> bool:
        try:
            return bool(await land(app, event))
        except Unavailable:
            return False

    await until(responds, "the object store responds")
    [name] = {row["object"] for row in await app.db.fetch("SELECT object FROM payload_references")}
    assert name != unused.payload_object
    await app.db.execute("UPDATE payload_removals SET due_at = now() - interval '1 s'")
    await sweep_later(app)
    assert await bucket.names() == [name]
    assert await app.db.fetch("SELECT FROM payload_removals") == []


async def test_the_last_reference_goes_while_an_equal_payload_is_about_to_land(app: App) -> None:
    event = text_event(app, "long", LONG, version=1)
    [landed] = await land(app, event)
    [offloaded] = await app.payloads.offload([replace(event, event_id="again")])
    await app.db.execute("DELETE FROM payloads WHERE inbox_id = %s", (landed.id,))
    await asyncio.sleep(0.01)
    assert await app.payloads.sweep() == 0
    [again] = await app.inbox.land([offloaded])
    assert (await app.payloads.load_one(await app.inbox.event(again.id))).payload == event.payload


async def test_an_object_that_cannot_be_removed_holds_no_other(
    app: App, bucket: BucketServer
) -> None:
    events = [text_event(app, f"k{n}", f"{LONG} {n}") for n in range(3)]
    first, *_ = await app.payloads.offload(events)
    assert first.payload_object
    await bucket.deny("DeleteObject", first.payload_object)
    assert await sweep_later(app) == 2
    assert await bucket.names() == [first.payload_object]
    [row] = await app.db.fetch(
        "SELECT name, due_at > now() + interval '1 minute' AS later FROM payload_removals"
    )
    assert (row["name"], row["later"]) == (first.payload_object, True)


async def test_equal_payloads_of_a_page_are_written_once(app: App, bucket: BucketServer) -> None:
    event = text_event(app, "one", LONG, version=1)
    page = [replace(event, event_id=f"e{n}", doc_key=f"d{n}") for n in range(20)]
    before = _puts()
    landed = await land(app, *page, text_event(app, "short", "Door 4 is open."))
    assert len(landed) == 21
    assert len(await bucket.names()) == 1
    assert _puts() - before == 1
    rows = await app.db.fetch("SELECT FROM payload_references")
    assert len(rows) == 20


def _puts() -> float:
    value = REGISTRY.get_sample_value(
        "apex_payload_object_requests_total", {"operation": "put", "outcome": "done"}
    )
    return value or 0.0


async def test_a_hanging_bucket_holds_a_page_for_a_bounded_time(
    app: App, bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "AWAY_SECONDS", 0.0)  # nobody is refused at once
    page = [text_event(app, f"k{n}", f"{LONG} {n}") for n in range(100)]
    bucket.hang()
    try:
        began = monotonic()
        with pytest.raises(Unavailable):
            await app.payloads.offload(page)
        with pytest.raises(Unavailable):  # what the page began has ended, so nothing is before it
            await app.payloads.offload(page[:1])
        other = asyncio.gather(
            *(app.payloads.offload([event]) for event in page), return_exceptions=True
        )
        assert all(isinstance(error, Unavailable) for error in await other)
        assert monotonic() - began < 6 * app.settings.payload_store_seconds
    finally:
        bucket.resume()


async def test_a_failure_keeps_no_payload_in_memory(app: App, bucket: BucketServer) -> None:
    """Errors hold their frames, and these the events: in a circle they would stay until the garbage collector runs."""
    [landed] = await land(app, text_event(app, "long", LONG))

    async def fail() -> None:
        with pytest.raises(Unavailable):
            await app.payloads.offload([text_event(app, f"k{n}", f"{LONG} {n}") for n in range(9)])
        with pytest.raises(Unavailable):
            await app.payloads.load_one(await app.inbox.event(landed.id))
        await asyncio.sleep(objects.AWAY_SECONDS)

    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        bucket.hang()
        await fail()
        await bucket.kill()
        await fail()
        gc.collect()
        assert [item for item in gc.garbage if isinstance(item, Event)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def test_an_object_that_was_changed_is_a_dead_letter_until_it_is_restored(
    app: App, bucket: BucketServer
) -> None:
    [landed, longer] = await land(
        app, text_event(app, "long", LONG), text_event(app, "longer", LONG + LONG)
    )
    rows = await app.db.fetch("SELECT name FROM payload_objects ORDER BY bytes")
    [name, other] = [row["name"] for row in rows]
    good, more = await bucket.body(name), await bucket.body(other)
    await bucket.write(name, bytes([good[0] ^ 1]) + good[1:])
    await bucket.write(other, more * 100)
    await app.direct.drain("documents")
    assert [await state(app, item) for item in (landed, longer)] == ["dead", "dead"]
    letters = await app.db.fetch("SELECT id, message FROM dead_letters ORDER BY message")
    assert "bytes and was written with" in letters[0]["message"]
    assert "does not match its seal" in letters[1]["message"]
    await bucket.write(name, good)
    await bucket.write(other, more)
    await app.dead_letters.redrive([letter["id"] for letter in letters], actor="test")
    await app.direct.drain("documents")
    assert [await state(app, item) for item in (landed, longer)] == ["done", "done"]


async def test_an_outage_of_the_bucket_alone_makes_no_dead_letters(
    make_settings: MakeSettings, bucket: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small documents are committed all the while. They are no proof that the bucket serves anybody."""
    monkeypatch.setattr(objects, "AWAY_SECONDS", 0.0)
    settings = make_settings(**bucket.settings())
    async with open_app(settings) as app:
        [large] = await land(app, text_event(app, "long", LONG))
    impatient = settings.model_copy(update={"payload_store_seconds": 0.2})
    async with open_app(impatient) as app:
        await app.recovery.check_restarted_stores()
        bucket.hang()
        try:
            for n in range(MOST_PARKS + 2):
                await land(app, text_event(app, f"short {n}", "Door 4 is open."))
                await app.direct.drain("documents")
                assert await state(app, large) == "parked"
                await unpark(app, large)
        finally:
            bucket.resume()
        assert await parks(app, large) >= MOST_PARKS
    async with open_app(settings) as app:
        await app.direct.drain("documents")
        assert await state(app, large) == "done"


async def test_an_object_that_the_bucket_never_serves_is_a_dead_letter_while_it_serves_others(
    app: App,
) -> None:
    """As an object whose reading always takes too long."""
    [large] = await land(app, text_event(app, "long", LONG))
    late = Unavailable("payloads", "did not respond")
    assert await blame(app, large, late) == "parked", "nothing was committed since"
    [other] = await land(app, text_event(app, "other", LONG + LONG))
    await app.direct.drain("documents")
    assert await state(app, other) == "done"
    for kind in (NotCalled, NotAllowed):
        assert await blame(app, large, kind("payloads", "refused")) == "parked"
    assert await blame(app, large, late) == "dead"


async def blame(app: App, landed: LandResult, error: Unavailable) -> str:
    """Let a batch of one event fail, which was parked often already; return what becomes of it."""
    await app.db.execute(
        """UPDATE inbox SET state = 'received', park_store = NULL, next_at = now(), parks = %s,
             parked_at = coalesce(parked_at, clock_timestamp()) WHERE id = %s""",
        (MOST_PARKS, landed.id),
    )
    batch = uuid4()
    assert await app.steps.claim_events("documents", [landed.id], batch=batch) == [landed.id]
    handled = await app.publication.failures.handle(batch, "prepare", [Failure(landed.id, error)])
    return handled[landed.id]


async def unpark(app: App, landed: LandResult) -> None:
    await app.db.execute(
        "UPDATE inbox SET state = 'received', park_store = NULL, next_at = now() WHERE id = %s",
        (landed.id,),
    )


async def parks(app: App, landed: LandResult) -> int:
    row = await app.db.fetch_one("SELECT parks FROM inbox WHERE id = %s", (landed.id,))
    assert row
    return int(row["parks"])


async def test_refused_credentials_blame_no_event(app: App, bucket: BucketServer) -> None:
    [large] = await land(app, text_event(app, "long", LONG))
    await bucket.require_credentials()
    for _ in range(3):
        await app.direct.drain("documents")
        assert await state(app, large) == "parked"
        await unpark(app, large)
    assert await parks(app, large) == 0
    await bucket.require_credentials(False)
    await app.direct.drain("documents")
    assert await state(app, large) == "done"


async def test_a_refusal_without_a_call_is_no_try(app: App, bucket: BucketServer) -> None:
    landed = await land(app, *(text_event(app, f"k{n}", f"{LONG} {n}") for n in range(20)))
    bucket.hang()
    try:
        await app.direct.drain("documents")
    finally:
        bucket.resume()
    assert {await state(app, item) for item in landed} == {"parked"}
    counts = [await parks(app, item) for item in landed]
    assert 0 < sum(counts) <= objects.AT_ONCE


async def test_without_the_right_to_list_a_lost_object_is_missing(
    app: App, bucket: BucketServer
) -> None:
    """S3 refuses it then like one that may not be read."""
    lost, kept = await land(app, text_event(app, "one", LONG), text_event(app, "two", LONG + "!"))
    event = await app.inbox.event(lost.id)
    assert event.payload_object
    await bucket.deny("GetObject", event.payload_object)
    [store] = [store for store in app.stores if store.name == "payloads"]
    await store.ping()
    await app.direct.drain("documents")
    assert [await state(app, item) for item in (lost, kept)] == ["received", "done"]
    row = await app.db.fetch_one("SELECT attempts, last_error FROM inbox WHERE id = %s", (lost.id,))
    assert row and row["attempts"] == 1
    assert "missing" in row["last_error"]


async def test_a_bucket_that_hangs_is_asked_once_whether_it_works(
    app: App, bucket: BucketServer
) -> None:
    [store] = [store for store in app.stores if store.name == "payloads"]
    bucket.hang()
    try:
        began = monotonic()
        with pytest.raises(Unavailable, match="did not respond within"):
            await store.ping()
        assert monotonic() - began < 1.5 * app.settings.payload_store_seconds
    finally:
        bucket.resume()


async def test_a_missing_key_is_named_while_the_bucket_is_away(
    app: App, bucket: BucketServer
) -> None:
    [landed] = await land(app, text_event(app, "long", LONG))
    await app.db.execute("UPDATE payload_objects SET key_id = 'gone'")
    await bucket.kill()
    with pytest.raises(Misconfigured, match="not configured"):
        await app.payloads.load_one(await app.inbox.event(landed.id))


async def test_an_event_lands_or_its_object_is_removed_but_never_both(
    app: App, bucket: BucketServer
) -> None:
    """Sweeps run all the time, and every claim has run out: what is acknowledged can be read nevertheless."""
    ended = False

    async def sweep() -> None:
        while not ended:
            await app.db.execute(
                "UPDATE payload_objects SET check_at = now() WHERE check_at IS NOT NULL"
            )
            await app.payloads.sweep()

    sweeping = asyncio.create_task(sweep())
    landed: list[LandResult] = []
    refused = 0
    for n in range(40):
        event = text_event(app, f"k{n % 7}", f"{LONG} {n % 3}", version=n)
        try:
            landed += await land(app, replace(event, payload=event.payload[-2_500:]))
        except RetryLater:
            refused += 1
    ended = True
    await sweeping
    assert landed, f"all {refused} were refused"
    for item in landed:
        assert (await app.payloads.load_one(await app.inbox.event(item.id))).payload


async def test_a_lost_object_is_a_reason_and_the_same_content_heals_it(
    make_settings: MakeSettings, bucket: BucketServer
) -> None:
    async with open_app(make_settings(max_attempts=1, **bucket.settings())) as app:
        await app.recovery.check_restarted_stores()
        event = text_event(app, "long", LONG, version=1)
        [landed] = await land(app, event)
        [name] = await bucket.names()
        await bucket.delete(name)
        await app.direct.drain("documents")
        [letter] = await app.db.fetch("SELECT id, message, remedy FROM dead_letters")
        assert "missing in the object store" in letter["message"]
        assert "backup" in letter["remedy"]
        await land(app, replace(event, event_id="sent again"))
        await app.dead_letters.redrive([letter["id"]], actor="test")
        await app.direct.drain("documents")
        assert await state(app, landed) in ("done", "superseded")
        assert await live(app, "long")


async def test_a_lost_object_is_tried_again_before_it_is_a_dead_letter(
    app: App, bucket: BucketServer
) -> None:
    [landed] = await land(app, text_event(app, "long", LONG))
    [name] = await bucket.names()
    await bucket.delete(name)
    await app.direct.drain("documents")
    assert await state(app, landed) == "received"
    row = await app.db.fetch_one(
        "SELECT attempts, last_error FROM inbox WHERE id = %s", (landed.id,)
    )
    assert row and row["attempts"] == 1
    assert "missing" in row["last_error"]


async def test_an_idempotency_key_knows_a_large_body(api: Api, bucket: BucketServer) -> None:
    async def post(text: str) -> int:
        headers = {"idempotency-key": "delivery-7"}
        return (await api.post("/v1/documents", json={"text": text}, headers=headers)).status_code

    assert [await post(LONG), await post(LONG), await post(LONG + "!")] == [202, 202, 422]
    assert len(await bucket.names()) == 1


async def test_other_content_under_the_same_id_lands_too(app: App, bucket: BucketServer) -> None:
    event = text_event(app, "long", LONG, version=1)
    [first] = await land(app, event)
    document = app.sources["documents"].document
    for again, changes in ((event, 0), (replace(event, payload=event.payload[:-2] + b' "}'), 1)):
        offloaded = await app.payloads.offload([again])
        results = await app.inbox.land(offloaded)
        assert [item.id for item in results] == [first.id]
        changed = await app.inbox.with_own_ids("documents", offloaded, results, document)
        assert len(changed) == changes
        landed = await app.inbox.land(list(changed.values()))
        assert [item.duplicate for item in landed] == [False] * changes
    assert len(await bucket.names()) == 2


async def test_a_new_key_leaves_objects_under_the_old_one_and_counts_them(
    make_settings: MakeSettings, bucket: BucketServer, tmp_path: Path
) -> None:
    old, new = new_key(), new_key()
    settings = bucket.settings()
    async with open_app(make_settings(secret_key=old, **settings)) as app:
        event = text_event(app, "long", LONG, version=1)
        [landed] = await land(app, event)
        assert (await app.payloads.reseal(actor="test")).objects == 0
    (tmp_path / "old.key").write_text(old)
    both = make_settings(secret_key=new, secret_key_file=tmp_path / "old.key", **settings)
    async with open_app(both) as app:
        await land(app, text_event(app, "later", LONG + "It arrived.", version=1))
        assert (await app.payloads.reseal(actor="test")).objects == 1
        stored = await app.inbox.event(landed.id)
        assert (await app.payloads.load_one(stored)).payload == event.payload
    async with open_app(make_settings(secret_key=new, **settings)) as app:
        with pytest.raises(Misconfigured):  # why the old key is kept
            await app.payloads.load_one(stored)


async def test_no_row_lets_test_whether_a_known_document_is_stored(app: App) -> None:
    event = text_event(app, "long", LONG, version=1)
    [landed] = await land(app, event)
    digest = hashlib.sha256(event.payload).hexdigest()
    for table in ("payload_objects", "payload_references", "payloads", "inbox"):
        [row] = await app.db.fetch(f"SELECT t::text AS text FROM {table} t")
        assert digest not in row["text"], table
    assert await app.inbox.same_payloads("documents", {event.event_id: bytes.fromhex(digest)}) == {
        event.event_id: True
    }
    await app.db.execute("DELETE FROM payloads WHERE inbox_id = %s", (landed.id,))
    assert await app.inbox.same_payloads("documents", {event.event_id: bytes.fromhex(digest)}) == {
        event.event_id: False
    }


async def test_a_repetition_is_known_after_the_key_was_replaced(
    make_settings: MakeSettings, bucket: BucketServer
) -> None:
    old = new_key()
    settings = make_settings(secret_key=old, **bucket.settings())
    async with open_app(settings) as app:
        event = text_event(app, "long", LONG, version=1)
        await land(app, event)
    file = settings.data_dir / "keys"
    file.write_text(f"{new_key()}\n{old}\n")
    both = settings.model_copy(update={"secret_key": SecretStr(""), "secret_key_file": file})
    async with open_app(both) as app:
        offloaded = await app.payloads.offload([event])
        results = await app.inbox.land(offloaded)
        assert results[0].duplicate
        document = app.sources["documents"].document
        assert await app.inbox.with_own_ids("documents", offloaded, results, document) == {}


async def test_a_large_repetition_beside_others_changes_nothing_for_them(
    app: App,
) -> None:
    """Documents are compared where payloads differ in bytes alone, also in a page with a large repetition."""
    source = app.sources["frontapp"]
    [small] = source.receive(front_request(source, message("msg_1", "cnv_1", at=10))).events
    [other] = source.receive(front_request(source, message("msg_2", "cnv_1", at=11))).events
    large = replace(other, payload=other.payload + b" " * 3_000)
    spaced = replace(small, payload=small.payload + b" ")
    await land(app, large, small)
    offloaded = await app.payloads.offload([large, spaced])
    results = await app.inbox.land(offloaded)
    assert [result.duplicate for result in results] == [True, True]
    assert await app.inbox.with_own_ids("frontapp", offloaded, results, source.document) == {}


async def test_a_copy_in_shadow_reads_the_object_or_waits(app: App, bucket: BucketServer) -> None:
    await shadow_on(app)
    await land(app, text_event(app, "long", LONG, version=1))
    await app.direct.drain("documents")
    bucket.hang()
    try:
        result = await process_all(app)
        assert (result.waiting, result.failed, result.different) == (1, 0, 0)
    finally:
        bucket.resume()
    await app.db.execute("UPDATE shadows SET next_at = now()")

    async def equal() -> bool:
        await app.db.execute("UPDATE shadows SET next_at = now()")
        return (await process_all(app)).equal == 1

    await until(equal, "the copy is processed")


async def test_a_poll_is_repeated_from_the_same_place(app: App, bucket: BucketServer) -> None:
    long_one = {"id": "cnv_1", "subject": LONG, "status": "assigned"}
    records = listed(listed_event("evt_1", 1, conversation=long_one), listed_event("evt_2", 2))
    async with (
        serve_simulators([Script(events=records)]) as served,
        vendor_client("frontapp") as client,
    ):
        source = front(f"{served.url}/frontapp")
        await bucket.kill()
        with pytest.raises(Unavailable):
            await app.fetcher.pulls.run(source, client)
        assert await app.db.fetch("SELECT FROM inbox") == []
        await bucket.start()
        await asyncio.sleep(objects.AWAY_SECONDS)  # requests are refused at once for that long
        assert (await app.fetcher.pulls.run(source, client)).fresh == 2
    assert len(await bucket.names()) == 1


async def test_a_replay_shares_the_object(app: App, bucket: BucketServer) -> None:
    await land(app, text_event(app, "long", LONG, version=1))
    await app.direct.drain("documents")
    replays = Backfills(app.db, app.payloads)
    replay = await replays.create(
        "documents", "replay", now().replace(year=2000), now().replace(year=2100), actor="test"
    )
    assert await replays.replay_chunk(replay) == ReplayedChunk(1, 1, more=True)
    assert len(await bucket.names()) == 1
    await app.direct.drain("documents")
    rows = await app.db.fetch(
        "SELECT i.state, r.object FROM inbox i JOIN payload_references r ON r.inbox_id = i.id"
    )
    assert len(rows) == 2
    assert {row["state"] for row in rows} <= {"done", "superseded"}
    assert len({row["object"] for row in rows}) == 1


async def test_a_backup_names_the_objects_and_the_key(
    make_settings: MakeSettings,
    bucket: BucketServer,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    settings = make_settings(**bucket.settings())
    async with open_app(settings) as app:
        event = text_event(app, "long", LONG, version=1)
        [landed] = await land(app, event)
        written = await back_up(settings.documents, tmp_path / "backup")
    key = Keyring(read_keys([settings.secret_key.get_secret_value()])).first
    assert written.secret_keys == [key]
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute("CREATE DATABASE restored_payloads")
        try:
            url = postgres_url.removesuffix("/postgres") + "/restored_payloads"
            await restore(url, tmp_path / "backup")
            async with open_app(make_settings(documents=url, **bucket.settings())) as app:
                loaded = await app.payloads.load_one(await app.inbox.event(landed.id))
                assert loaded.payload == event.payload
            async with open_app(make_settings(documents=url)) as app:
                with pytest.raises(Misconfigured, match="payload_store"):
                    await app.payloads.load_one(await app.inbox.event(landed.id))
        finally:
            await admin.execute("DROP DATABASE restored_payloads WITH (FORCE)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"secret_key": ""}, "secret_key"),
        ({"payload_store_secret": ""}, "belong together"),
    ],
)
async def test_a_store_that_cannot_work_is_refused_at_the_start(
    make_settings: MakeSettings, given: dict[str, Any], message: str
) -> None:
    store = {
        "payload_store": f"s3://{BUCKET}",
        "payload_store_key_id": "id",
        "payload_store_secret": "secret",
    }
    with pytest.raises(Misconfigured, match=message):
        async with open_app(make_settings(**{**store, **given})):
            pass


@pytest.mark.parametrize("url", ["s3://", "bucket/prefix", "https://bucket", "s3://user:pw@bucket"])
def test_other_urls_are_refused(make_settings: MakeSettings, url: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket"):
        make_settings(payload_store=url)
