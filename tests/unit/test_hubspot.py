"""HubSpot: who is let in, what a webhook asks for, that no walk skips or repeats without end, what a record becomes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hubspot import Client
from hubspot.crm.contacts import PublicObjectSearchRequest
from hubspot.crm.deals import BatchReadInputSimplePublicObjectId
from hubspot.utils.signature import Signature
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse

from apex_memory.errors import Forbidden, Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Assertion, Document, Event, micros, now
from apex_memory.simulate.hubspot import simulator as vendor
from apex_memory.simulate.hubspot.objects import Version
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.hubspot.documents import deletion_event, record_event
from apex_memory.sources.hubspot.object_types import OBJECT_TYPES
from apex_memory.sources.hubspot.source import HubSpot
from apex_memory.sources.pages import BackfillRange, ChangeHint
from apex_memory.sources.payloads import sample
from apex_memory.sources.registry import load
from tests.unit.held import Held
from tests.unit.vendors import vendor_client

SECRET = "00000000-1111-4222-8333-444444444444"
URL = "https://ingest.example.com/webhooks/hubspot?tenant=t1"
BODY = b'[{"eventId":1,"subscriptionType":"deal.creation","objectId":42}]'
STAMP = "1761955200123"
V3 = "Dz0RJKucxoayBtQ5kTCXCmjGtleFsQGa2PtEQMmyOXA="
V1 = "ac78cfb35a01f7c1ee8a315b2b340d71030bf36f5d6f659aa821f74b12c60b9f"
AT = datetime.fromtimestamp(1761955200, UTC).replace(microsecond=123_000)


def configured(**settings: Any) -> HubSpot:
    source = load({"hubspot": settings})["hubspot"]
    assert isinstance(source, HubSpot)
    return source


KEYED = configured(client_secrets=[SECRET], public_url=URL)


def v3(signature: str = V3, stamp: str = STAMP) -> dict[str, str]:
    return {"x-hubspot-signature-v3": signature, "x-hubspot-request-timestamp": stamp}


def received(body: object, source: HubSpot = KEYED) -> Any:
    raw = json.dumps(body).encode()
    return source.receive(InboundRequest(raw, source.sign(raw, AT), {}, AT))


# Who is let in


def test_the_v3_vector() -> None:
    got = KEYED.receive(InboundRequest(BODY, v3(), {}, AT))
    assert got.change_hints == [ChangeHint("deal:42", None)] and not got.events
    assert KEYED.sign(BODY, AT) == v3()


def test_the_v1_vector_only_where_older_apps_are_let_in() -> None:
    headers = {"x-hubspot-signature": V1, "x-hubspot-signature-version": "v1"}
    older = configured(client_secrets=[SECRET], public_url=URL, legacy_signatures=True)
    assert older.receive(InboundRequest(BODY, headers, {}, AT)).change_hints
    assert older.receive(InboundRequest(BODY, {"x-hubspot-signature": V1}, {}, AT)).change_hints
    with pytest.raises(Unauthorized, match="no X-HubSpot-Signature-v3") as refused:
        KEYED.receive(InboundRequest(BODY, headers, {}, AT))
    assert "sources.hubspot.legacy_signatures" in refused.value.remedy
    for changed in (headers | {"x-hubspot-signature-version": "v2"}, {"x-hubspot-signature": V1[:-1] + "0"}):  # fmt: skip
        with pytest.raises(Unauthorized, match="does not fit"):
            older.receive(InboundRequest(BODY, changed, {}, AT))


def test_v2_covers_method_and_url() -> None:
    older = configured(client_secrets=[SECRET], public_url=URL, legacy_signatures=True)
    digest = hashlib.sha256(SECRET.encode() + b"POST" + URL.encode() + BODY).hexdigest()
    headers = {"x-hubspot-signature": digest, "x-hubspot-signature-version": "v2"}
    assert older.receive(InboundRequest(BODY, headers, {}, AT)).change_hints


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_the_official_package_agrees(version: str) -> None:
    signature = Signature.get_signature(SECRET, BODY.decode(), version, URL, "POST", STAMP)
    older = configured(client_secrets=[SECRET], public_url=URL, legacy_signatures=True)
    headers = {"x-hubspot-signature": signature, "x-hubspot-signature-version": version}
    given = v3(signature) if version == "v3" else headers
    assert older.receive(InboundRequest(BODY, given, {}, AT)).change_hints


def test_a_broken_v3_signature_is_not_saved_by_an_older_one() -> None:
    older = configured(client_secrets=[SECRET], public_url=URL, legacy_signatures=True)
    with pytest.raises(Unauthorized):
        older.receive(InboundRequest(BODY, {**v3("x"), "x-hubspot-signature": V1}, {}, AT))


def test_characters_of_the_url_that_hubspot_decodes() -> None:
    source = configured(client_secrets=[SECRET], public_url="https://a.example/h?t=a%2Cb%3A1&x=%20")
    for url in ("https://a.example/h?t=a,b:1&x=%20", "https://a.example/h?t=a%2Cb%3A1&x=%20"):
        signed = b"POST" + url.encode() + BODY + STAMP.encode()
        digest = base64.b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).decode()
        assert source.receive(InboundRequest(BODY, v3(digest), {}, AT)).change_hints


@pytest.mark.parametrize("secret", ["s-1", "s-2"])
def test_both_secrets_are_active_during_rotation(secret: str) -> None:
    both = configured(client_secrets=["s-1", "s-2"])
    assert both.receive(
        InboundRequest(BODY, configured(client_secrets=[secret]).sign(BODY, AT), {}, AT)
    ).change_hints


@pytest.mark.parametrize(("seconds", "allowed"), [(300, True), (-300, True), (301, False), (-301, False)])  # fmt: skip
def test_the_replay_window(seconds: int, allowed: bool) -> None:
    request = InboundRequest(BODY, v3(), {}, AT + timedelta(seconds=seconds))
    if allowed:
        assert KEYED.receive(request).change_hints
        return
    with pytest.raises(Unauthorized, match="301 s away"):
        KEYED.receive(request)


def test_a_forged_request_is_refused_before_it_is_read() -> None:
    for body, headers in (
        (b"{", v3()),
        (BODY + b" ", v3()),
        (BODY, v3(stamp="1761955200124")),
        (BODY, v3(stamp="soon")),
        (BODY, {"x-hubspot-signature-v3": V3}),
        (BODY, {}),
    ):
        with pytest.raises(Unauthorized):
            KEYED.receive(InboundRequest(body, headers, {}, AT))
    with pytest.raises(Unauthorized) as refused:
        configured(client_secrets=[SECRET]).receive(InboundRequest(BODY, v3(), {}, AT))
    assert "sources.hubspot.public_url" in refused.value.remedy
    with pytest.raises(Misconfigured, match="client_secrets"):
        configured().sign(b"", AT)


def test_wrong_settings_are_named() -> None:
    for name, value in (("time_zone", "Mars/Olympus"), ("objects", ["ships"]), ("base_url", "ftp://x"), ("client_secrets", ["a", "b", "c"])):  # fmt: skip
        with pytest.raises(Misconfigured, match=rf"sources\.hubspot\.{name}"):
            configured(**{name: value})
    assert (
        configured().missing_settings == "access_token"
        and not configured(access_token="t").missing_settings
    )


# What a webhook asks for


def notice(
    kind: str, id: object = 51, at: object = 1761955200123, **more: Any
) -> dict[str, object]:
    """Return one notice of a webhook. `id` and `at` may be values that HubSpot never sends; without a time if `at` is None."""
    fields = {"subscriptionType": kind, "objectId": id, "portalId": 44001, **more}
    return fields if at is None else {**fields, "occurredAt": at}


def test_webhooks_become_one_change_hint_an_object_with_the_newest_time() -> None:
    later = AT + timedelta(seconds=9)
    body = [
        notice("contact.propertyChange", at=1761955209123),
        notice("contact.creation"),
        notice("company.creation", 9001, at=None),
        notice("contact.propertyChange"),
    ]
    assert received(body).change_hints == [
        ChangeHint("company:9001", None),
        ChangeHint("contact:51", later),
    ]


def test_a_creation_comes_before_the_change_that_hubspot_sent_first() -> None:
    body = [notice("deal.propertyChange", 7), notice("deal.creation", 8), notice("deal.creation", 7, 1761955200122)]  # fmt: skip
    assert [hint.key for hint in received(body).change_hints] == ["deal:7", "deal:8"]
    assert received(body).change_hints[0].at == AT


def test_merges_restores_and_the_newer_form() -> None:
    merge = {"subscriptionType": "contact.merge", "primaryObjectId": 1, "mergedObjectIds": [2, 3], "occurredAt": 1761955200123}  # fmt: skip
    newer = notice("object.deletion", 9001, objectTypeId="0-2")
    keys = [hint.key for hint in received([merge, newer, notice("deal.restore", 5)]).change_hints]
    assert sorted(keys) == ["company:9001", "contact:1", "contact:2", "contact:3", "deal:5:restored"]  # fmt: skip


def test_what_is_not_held_requests_nothing() -> None:
    strange = [notice("conversation.creation"), notice("ticket.deletion"), notice("object.creation", objectTypeId="0-5")]  # fmt: skip
    assert not received(strange).change_hints
    few = configured(client_secrets=[SECRET], objects=["deals"], portal_id=44001)
    assert not received([notice("contact.creation"), notice("deal.creation") | {"portalId": 7}], few).change_hints  # fmt: skip
    assert received([notice("deal.creation")], few).change_hints


def test_an_erased_contact_needs_no_fetching() -> None:
    (event,) = received([notice("contact.privacyDeletion")]).events
    assert (event.doc_key, event.version) == ("contact:51", micros(AT))
    assert KEYED.document(event).deleted


def test_a_broken_notice_does_not_stop_its_neighbours() -> None:
    for bad in (7, {}, notice("contact"), notice("contact.creation", "x"), notice("deal.creation", at="now"), notice("deal.creation", at=10**400)):  # fmt: skip
        got = received([bad, notice("contact.creation")])
        assert [hint.key for hint in got.change_hints] == ["contact:51"]
        assert [event.content_type for event in got.events] == [MALFORMED]
        with pytest.raises(Rejected, match=r"body\[0\]"):
            received([bad])
    with pytest.raises(Rejected, match="array"):
        received({"subscriptionType": "deal.creation"})


# Walks


@asynccontextmanager
async def hubspot(
    change: Callable[[vendor.HubSpot], None] = lambda simulator: None, **settings: Any
) -> AsyncIterator[tuple[vendor.HubSpot, Held[HubSpot]]]:
    world = World.make(7, shipments=6)
    simulator = vendor.HubSpot(world, Clock(world.start + timedelta(hours=20)), Chaos())
    change(simulator)
    async with (
        serve_simulators([simulator]) as served,
        vendor_client("hubspot", patience=30) as client,
    ):
        source = configured(**{**simulator.settings(f"{served.url}/hubspot"), "overlap_seconds": 0, **settings})  # fmt: skip
        source._searches = source._searches.__class__(1000, 1)
        yield simulator, Held(source, client)


def equal(simulator: vendor.HubSpot, held: Held[HubSpot]) -> None:
    truth = {item.doc_key: item for item in simulator.truth(simulator.clock.now)}
    live = held.live()
    assert live.keys() == {key for key, item in truth.items() if not item.deleted}
    for key, document in live.items():
        assert truth[key].text in document.text, key


async def test_a_pull_brings_all_and_the_next_little() -> None:
    async with hubspot() as (simulator, held):
        await held.pull()
        equal(simulator, held)
        before = dict(held.events)
        await held.pull()
        assert held.events == before
        assert held.cursor["deals"].keys() == {"seen", "swept"}


@pytest.mark.parametrize(("most", "cap"), [(1, 10_000), (2, 2), (3, 5), (5, 10_000)])
async def test_ties_longer_than_a_page_and_than_the_cap(most: int, cap: int) -> None:
    """27 contacts and companies have the same time. A page holds fewer, and so does the result of a query."""

    def small(simulator: vendor.HubSpot) -> None:
        simulator.most, simulator.cap = most, cap

    async with hubspot(small) as (simulator, held):
        await held.pull()
        equal(simulator, held)


async def test_no_object_is_skipped_that_moves_while_pages_are_read() -> None:
    """If the cursor were a position in the list, each change would make the next page skip an object."""

    def small(simulator: vendor.HubSpot) -> None:
        simulator.most = 4

    async with hubspot(small) as (simulator, held):
        pages = await held.pull(between=lambda n: simulator._touch())
        simulator.most = 200
        await held.pull()
        assert pages > 10
        equal(simulator, held)


async def test_a_worker_that_dies_anywhere_loses_nothing() -> None:
    def small(simulator: vendor.HubSpot) -> None:
        simulator.most = 9

    async with hubspot(small) as (simulator, held):
        pages = await held.pull()
        for n in range(pages):
            again = Held(held.source, held.client)
            await again.pull(die_before=n)
            await again.pull()
            equal(simulator, again)


async def test_a_broken_off_walk_goes_on_where_it_stopped() -> None:
    def small(simulator: vendor.HubSpot) -> None:
        simulator.most = 4

    async with hubspot(small, objects=["contacts"]) as (_, held):
        pages = await held.pull()
        again, runs = Held(held.source, held.client), 0
        while again.cursor.get("contacts", {"at": 0}).get("at") is not None:
            await again.pull(die_before=1)
            runs += 1
            assert runs <= pages, "a run that always dies early must still come to an end"
        assert again.live().keys() == held.live().keys()


async def test_what_search_shows_late_is_found_by_the_overlap() -> None:
    late = World.make(7).start + timedelta(hours=19, minutes=55)
    for overlap, shown in ((0, False), (600, True)):
        async with hubspot(overlap_seconds=overlap) as (simulator, held):
            simulator.put("companies", 1, Version(simulator.clock.now, {"name": "New", "description": "New."}))  # fmt: skip
            await held.pull()
            simulator.put("companies", 2, Version(late, {"name": "Late", "description": "Late."}))  # fmt: skip
            await held.pull()
            assert ("company:2" in held.live()) == shown


async def test_a_time_in_the_far_future_does_not_stop_the_poll() -> None:
    async with hubspot() as (simulator, held):
        simulator.clock.advance_to(now() + timedelta(days=400))
        simulator.put("companies", 1, Version(simulator.clock.now, {"name": "Odd", "description": "Odd."}))  # fmt: skip
        await held.pull()
        assert "company:1" in held.live()
        assert held.cursor["companies"]["seen"] <= (now() + timedelta(hours=1)).timestamp() * 1000
        simulator.put("companies", 2, Version(now() + timedelta(hours=2), {"name": "Next", "description": "Next."}))  # fmt: skip
        await held.pull()
        assert "company:2" in held.live()


async def test_a_record_that_cannot_be_read_does_not_stop_its_neighbours() -> None:
    async with hubspot() as (simulator, held):
        simulator.put("companies", 1, Version(simulator.clock.now, {"name": "x", "description": "y"}))  # fmt: skip
        real = vendor._record

        def spoilt(plural: str, id: int, *rest: Any) -> dict[str, Any]:
            record = real(plural, id, *rest)
            return {**record, "id": None} if (plural, id) == ("companies", 1) else record

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vendor, "_record", spoilt)
            await held.pull()
        (left,) = held.broken()
        assert left["reason"].startswith("id: expected an id")
        assert left["record"]["properties"]["name"] == "x"
        assert len(held.live()) == sum(not item.deleted for item in simulator.truth(simulator.clock.now)) - 1  # fmt: skip


async def test_the_recycling_bin_is_listed_as_often_as_set() -> None:
    async with hubspot(archived_seconds=3600) as (simulator, held):
        await held.pull()
        simulator.put("companies", 9001, Version(simulator.clock.now, {}, archived=True))
        await held.pull()
        assert "company:9001" in held.live(), "not yet due"
        held.cursor["companies"]["swept"] = (now() - timedelta(seconds=3601)).isoformat()
        await held.pull()
        assert "company:9001" not in held.live()


async def test_hints_are_fetched_and_acknowledged_whatever_became_of_the_record() -> None:
    async with hubspot(archived_seconds=1e6) as (simulator, held):
        await held.pull()
        held.events.clear()
        at = simulator.clock.now + timedelta(seconds=2)
        simulator.put("companies", 9002, Version(simulator.clock.now, {"name": "A", "description": "B"}, archived=True))  # fmt: skip
        keys = ["company:9001", "company:9002", "contact:999999999", "ticket:1", "x", "deal:100045"]
        await held.pull(change_hints=[ChangeHint(key, at) for key in keys])
        assert sorted(held.acknowledged) == sorted(keys)
        assert {"company:9001", "deal:100045"} <= held.live().keys()
        assert "company:9002" not in held.live() and "contact:999999999" not in held.live()
        assert held.newest()["contact:999999999"].version == micros(at)


async def test_an_import_of_more_than_a_batch_is_read_in_batches() -> None:
    async with hubspot(objects=["companies"]) as (simulator, held):
        for n in range(250):
            simulator.put("companies", 50_000 + n, Version(simulator.clock.now, {"name": f"C{n}", "description": "Imported."}))  # fmt: skip
        change_hints = [ChangeHint(f"company:{50_000 + n}") for n in range(250)]
        await held.pull(change_hints=change_hints, die_before=3)
        assert len(held.live()) == len(held.acknowledged) == 250


async def test_a_restore_outdoes_the_delete_even_where_the_object_did_not_change() -> None:
    async with hubspot() as (simulator, held):
        before = simulator.objects["companies", 9001][:]
        at = simulator.clock.now
        simulator.put("companies", 9001, Version(at, before[0].properties, archived=True))
        await held.pull()
        assert "company:9001" not in held.live()
        simulator.objects["companies", 9001] = before  # back, as it was
        await held.pull(
            change_hints=[ChangeHint("company:9001:restored", at + timedelta(minutes=1))]
        )
        assert "company:9001" in held.live()


def test_what_is_not_shown_yet_is_not_lost_by_a_fetch_that_found_nothing() -> None:
    made = record_event(OBJECT_TYPES["deals"], {"id": "7", "updatedAt": "2025-11-01T00:00:00.123Z"})
    gone = deletion_event(OBJECT_TYPES["deals"], "7", AT)
    assert made.occurred_at == AT and (made.version, made.event_id) > (gone.version, gone.event_id)


async def test_a_backfill_takes_its_window_and_leaves_change_hints_alone() -> None:
    async with hubspot() as (simulator, held):
        start = simulator.world.start
        window = BackfillRange(start + timedelta(hours=2), start + timedelta(hours=9))
        simulator.most = 3
        await held.pull(window=window, change_hints=[ChangeHint("company:9001")], die_before=2)
        await held.pull(window=window, change_hints=[ChangeHint("company:9001")])
        changed = [versions[-1].at for (plural, _), versions in simulator.objects.items() if not versions[-1].archived]  # fmt: skip
        assert not held.acknowledged and held.events
        assert len(held.live()) == sum(window.since <= at < window.until for at in changed)
        before = len(held.events)
        assert await held.pull(window=window) == 0, "it is done"
        assert len(held.events) == before


async def test_the_daily_limit_stops_all_calls_until_it_starts_anew() -> None:
    async with hubspot(time_zone="America/Chicago") as (simulator, held):
        simulator.calls_left = 2
        with pytest.raises(RetryLater, match="daily limit") as spent:
            await held.pull()
        assert 0 < spent.value.after <= 24 * 3600
        assert held.cursor["limit"]["until"] and held.events
        simulator.calls_left = 1_000
        with pytest.raises(RetryLater, match="daily limit"):
            await held.pull()
        assert simulator.calls_left == 1_000, "no call is made"
        held.cursor["limit"]["until"] = (now() - timedelta(seconds=1)).isoformat()
        await held.pull()
        equal(simulator, held)
        assert "limit" not in held.cursor


async def test_the_short_limit_is_waited_out() -> None:
    async with hubspot() as (simulator, held):
        simulator.chaos.limits = 0.5
        await held.pull()
        equal(simulator, held)


# What a record becomes


def document_of(kind: str, id: str = "51", **properties: Any) -> Document:
    record = {"id": id, "properties": properties, "updatedAt": "2025-11-01T00:00:00.123Z", "future": 1}  # fmt: skip
    event = record_event(OBJECT_TYPES[kind], record)
    assert json.loads(event.payload) == record, "unknown fields are kept"
    return KEYED.document(event)


def assertions_of(document: Document) -> set[tuple[str, str, str | None]]:
    return {
        (assertion.subject, assertion.predicate, assertion.object or assertion.value)
        for assertion in document.assertions
    }


def test_a_contact() -> None:
    document = document_of("contacts", firstname="Dana", lastname="Whitfield", email="Dana@Paper.example", phone="+1 614 555 0123",
                    company="Example Paper Co", jobtitle="Buyer", favourite_lane="ATL", hs_lead_status=None)  # fmt: skip
    assert (document.kind, document.title, document.about) == ("contact", "Dana Whitfield", "email:dana@paper.example")  # fmt: skip
    assert "Job title: Buyer" in document.text and "Favourite lane: ATL" in document.text
    assert {
        ("email:dana@paper.example", "name", "Dana Whitfield"),
        ("email:dana@paper.example", "works_for", "company:Example Paper Co"),
        ("person:Dana Whitfield", "works_for", "company:Example Paper Co"),
        ("person:Dana Whitfield", "email", "email:dana@paper.example"),
        ("person:Dana Whitfield", "phone", "phone:+1 614 555 0123"),
    } <= assertions_of(document)


def test_a_company_and_a_deal_meet_by_the_company_id() -> None:
    company = document_of("companies", "9001", name="Northwind Trucking", city="Columbus", state="OH", scac="NWTR", mc_number="123456")  # fmt: skip
    assert company.about == "company:Northwind Trucking"
    assert {
        ("company:Northwind Trucking", "same_as", "crm_company:9001"),
        ("company:Northwind Trucking", "same_as", "scac:NWTR"),
        ("company:Northwind Trucking", "same_as", "mc:123456"),
        ("company:Northwind Trucking", "in", "location:Columbus OH"),
    } <= assertions_of(company)
    deal = document_of("deals", "6001", dealname="Lane bid ATL", dealstage="closedwon", amount="12500", hs_primary_associated_company="9001")  # fmt: skip
    assert (deal.title, deal.about, deal.metadata["amount"]) == ("Lane bid ATL", "deal:6001", 12500.0)  # fmt: skip
    assert {
        ("deal:6001", "status", "closedwon"),
        ("deal:6001", "amount", "12500"),
        ("deal:6001", "customer", "crm_company:9001"),
    } <= assertions_of(deal)


@pytest.mark.parametrize(
    ("amount", "currency", "value"),
    [("12500", "EUR", "12500.00 EUR"), ("12500.5", "JPY", "12500.5 JPY"), ("12500", "", "12500"), ("about 5", "EUR", "about 5")],
)  # fmt: skip
def test_the_amount_of_a_deal_has_its_currency(amount: str, currency: str, value: str) -> None:
    deal = document_of("deals", "6001", amount=amount, deal_currency_code=currency)
    assert [item.value for item in deal.assertions if item.predicate == "amount"] == [value]


@pytest.mark.parametrize("value", ["", None, 7, [], {}, "nan", "1e999", "\u0007", "x" * 5_000])
def test_odd_values_are_shown_or_left_out(value: Any) -> None:
    for kind, plan in OBJECT_TYPES.items():
        document = document_of(kind, **dict.fromkeys(plan.labels, value))
        assert document.title
        json.dumps([document.metadata, document.text], allow_nan=False)


@pytest.mark.parametrize("name", ["contacts", "deals"])
def test_real_records(name: str) -> None:
    for record in json.loads(sample("hubspot", f"{name}.json"))["results"]:
        event: Event = record_event(OBJECT_TYPES[name], record)
        document = KEYED.document(event)
        assert document.title and document.text
        assert event.doc_key == f"{name[:-1]}:{record['id']}"
    assert Assertion(subject=f"deal:{record['id']}", predicate="status", value="qualifiedtobuy") in document.assertions or name == "contacts"  # fmt: skip


# The simulator is held to what the official package asks and understands


async def test_the_official_package_reads_the_simulator() -> None:
    async with hubspot() as (simulator, held):
        simulator.most = 5
        base = held.source.settings.base_url
        client = Client.create(access_token=vendor.TOKEN, host=base)

        def read() -> None:
            everyone = client.crm.contacts.get_all(properties=["email"])
            assert len(everyone) == sum(key.startswith("contact") for key in live)
            binned = client.crm.contacts.basic_api.get_page(limit=100, archived=True)
            assert [contact.archived for contact in binned.results] == [True, True]
            filters = [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": "0"}]
            search = PublicObjectSearchRequest(
                filter_groups=[{"filters": filters}],
                sorts=[{"propertyName": "lastmodifieddate", "direction": "ASCENDING"}],
                properties=["email"],
                limit=200,
            )
            page = client.crm.contacts.search_api.do_search(public_object_search_request=search)
            assert page.total == len(everyone) and len(page.results) == 5 and page.paging.next.after
            company = client.crm.companies.basic_api.get_by_id("9001", properties=["name"])
            assert company.properties["name"] == simulator.world.customers[0].name
            inputs = BatchReadInputSimplePublicObjectId(
                inputs=[{"id": "100045"}, {"id": "1"}], properties=["dealstage"], properties_with_history=[]
            )  # fmt: skip
            batch = client.crm.deals.batch_api.read(inputs)
            assert [(deal.id, deal.properties["dealstage"]) for deal in batch.results] == [("100045", "closedwon")]  # fmt: skip
            assert batch.num_errors == 1

        await held.pull()
        live = held.live()
        await asyncio.to_thread(read)


async def test_s2_a_record_that_hubspot_refuses_is_a_dead_letter_and_stops_nothing() -> None:
    def refuse_one(simulator: vendor.HubSpot) -> None:
        batch = simulator._batch

        def respond(plural: str, request: StarletteRequest, body: Any) -> Any:
            if {"id": "9001"} in body["inputs"]:
                return vendor._error(400, "VALIDATION_ERROR", "9001 is refused")
            return batch(plural, request, body)

        simulator._batch = respond  # type: ignore[method-assign] # as a vendor with a bad day

    async with hubspot(refuse_one, archived_seconds=1e6) as (simulator, held):
        await held.pull()
        held.events.clear()
        at = simulator.clock.now + timedelta(seconds=2)
        keys = ["company:9001", "company:9002"]
        await held.pull(change_hints=[ChangeHint(key, at) for key in keys])
        assert held.acknowledged == keys[1:]
        assert "company:9002" in held.live(), "its neighbours come"
        (failed,) = held.unfetched
        assert failed.hint.key == "company:9001" and isinstance(failed.reason, Rejected)


def test_a_second_content_of_one_time_is_an_event_of_its_own() -> None:
    """Calculated properties change without `updatedAt`: both contents are kept, and a redelivery stays a duplicate."""
    before = {"id": "7", "updatedAt": "2026-03-03T15:15:00Z", "properties": {"name": "Northwind"}}
    kind = OBJECT_TYPES["companies"]
    first = record_event(kind, before)
    for change in ({"properties": {"name": "Northwind Trucking"}}, {"createdAt": "2026-03-02"}):
        second = record_event(kind, {**before, **change})
        assert first.version == second.version and first.doc_key == second.doc_key
        assert first.event_id != second.event_id
    assert record_event(kind, {**before, "url": "https://example.com/7"}).event_id == first.event_id
    archived = record_event(kind, {**before, "archived": True, "archivedAt": before["updatedAt"]})
    assert archived.event_id > max(first.event_id, second.event_id)


def test_a_change_of_associations_fetches_the_object_of_its_type() -> None:
    change = {"subscriptionType": "contact.associationChange", "portalId": 44001, "occurredAt": 1761955200123, "fromObjectId": 51, "toObjectId": 9001, "associationType": "CONTACT_TO_COMPANY", "associationRemoved": False}  # fmt: skip
    newer = {**change, "subscriptionType": "object.associationChange", "fromObjectTypeId": "0-3", "toObjectTypeId": "0-2"}  # fmt: skip
    got = received([change, newer, {**change, "subscriptionType": "ticket.associationChange", "fromObjectId": None}])  # fmt: skip
    assert [hint.key for hint in got.change_hints] == ["contact:51", "deal:51"] and not got.events


def test_a_merge_into_a_new_object_fetches_that_too() -> None:
    merge = notice("contact.merge", None, primaryObjectId=7, mergedObjectIds=[8, 9], newObjectId=10)
    got = received([merge])
    assert {hint.key for hint in got.change_hints} == {f"contact:{id}" for id in (7, 8, 9, 10)}


async def test_a_type_that_hubspot_refuses_does_not_stop_the_others() -> None:
    def forbid_companies(simulator: vendor.HubSpot) -> None:
        search = simulator._search

        def respond(plural: str, request: StarletteRequest, body: Any) -> Any:
            if plural == "companies":
                return vendor._error(403, "MISSING_SCOPES", "the token may not read companies")
            return search(plural, request, body)

        simulator._search = respond  # type: ignore[method-assign] # as for a token without that scope

    async with hubspot(forbid_companies) as (_, held):
        with pytest.raises(Forbidden):
            await held.pull()
        kinds = {document.kind for document in held.live().values()}
        assert kinds == {"contact", "deal"}
        assert held.cursor.keys() == {"companies", "contacts", "deals"}


async def test_an_empty_page_is_followed_by_the_next() -> None:
    tokens: list[str | None] = []

    def hide_a_page(simulator: vendor.HubSpot) -> None:
        search = simulator._search

        def respond(plural: str, request: StarletteRequest, body: Any) -> Any:
            if plural == "companies":
                tokens.append(body.pop("after", None))
                if tokens[-1] is None:
                    return JSONResponse({"total": 6, "results": [], "paging": {"next": {"after": "200"}}})  # fmt: skip
            return search(plural, request, body)

        simulator._search = respond  # type: ignore[method-assign] # as where all records of a page are gone

    async with hubspot(hide_a_page) as (simulator, held):
        await held.pull()
        equal(simulator, held)
    assert tokens == [None, "200"]


async def test_pages_that_lead_to_themselves_end_the_pull() -> None:
    again = {"results": [], "paging": {"next": {"after": "7"}}}

    def repeat(simulator: vendor.HubSpot) -> None:
        simulator._list = lambda *_: JSONResponse(again)  # type: ignore[method-assign] # without end

    async with hubspot(repeat) as (_, held):
        with pytest.raises(RetryLater, match="the same page again"):
            await held.pull()


async def test_what_hubspot_could_not_read_is_not_deleted() -> None:
    def fail_one(simulator: vendor.HubSpot) -> None:
        batch = simulator._batch

        def respond(plural: str, request: StarletteRequest, body: Any) -> Any:
            if {"id": "9001"} not in body["inputs"]:
                return batch(plural, request, body)
            error = {"status": "error", "category": "INTERNAL_ERROR", "context": {"ids": ["9001"]}}
            return JSONResponse({"status": "COMPLETE", "results": [], "errors": [error]}, 207)

        simulator._batch = respond  # type: ignore[method-assign] # as a vendor with a bad day

    async with hubspot(fail_one, archived_seconds=1e6) as (simulator, held):
        await held.pull()
        at = simulator.clock.now + timedelta(hours=2)
        await held.pull(change_hints=[ChangeHint(f"company:{id}", at) for id in (9001, 9002)])
        assert "company:9001" in held.live(), "it may exist"
        assert [item.hint.key for item in held.unfetched] == ["company:9001"]
        assert held.acknowledged == ["company:9002"]


async def test_an_object_that_is_named_before_it_is_visible_is_not_deleted() -> None:
    """A change of associations is newer than the object itself: its tombstone would hide the object until its next change."""
    young = ChangeHint("company:424242", datetime.now(UTC))
    old = ChangeHint(young.key, datetime.now(UTC) - timedelta(minutes=2))
    async with hubspot(archived_seconds=1e6) as (_, held):
        await held.pull()
        await held.pull(change_hints=[young, ChangeHint("company:9002", young.at)])
        assert [item.hint for item in held.unfetched] == [young]
        assert held.acknowledged == ["company:9002"], "it holds no other"
        assert young.key not in held.newest()
        await held.pull(change_hints=[old])
        assert held.acknowledged[-1] == young.key
        gone = held.newest()[young.key]
        assert held.source.document(gone).deleted and gone.occurred_at == old.at
