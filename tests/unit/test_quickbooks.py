"""QuickBooks: who is let in, both envelopes, changes and their limits, tokens, and what a record becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from intuitlib.client import AuthClient
from quickbooks import QuickBooks
from quickbooks.cdc import change_data_capture
from quickbooks.exceptions import ObjectNotFoundException
from quickbooks.objects import Customer, Invoice, Payment
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from apex_memory.credentials.tokens import VaultTokens
from apex_memory.credentials.vault import Vault
from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Document, micros, now
from apex_memory.sealing import Keyring, new_key, read_keys
from apex_memory.simulate.quickbooks import simulator as vendor
from apex_memory.simulate.quickbooks.webhooks import REALM
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, ChangeHint
from apex_memory.sources.payloads import sample
from apex_memory.sources.quickbooks.records import record_event
from apex_memory.sources.quickbooks.source import QuickBooks as QuickBooksSource
from apex_memory.sources.registry import load
from apex_memory.stores.postgres import Postgres
from tests.unit.held import Held
from tests.unit.vendors import KeptTokens

AT = datetime(2025, 11, 1, 14, tzinfo=UTC)
CLOUD = b'[{"specversion":"1.0","id":"0f6c1d2e-0000-4000-8000-000000000001","source":"intuit.example=","type":"qbo.invoice.updated.v1","time":"2025-11-01T00:00:00.000Z","datacontenttype":"application/json","intuitentityid":"95","intuitaccountid":"9130350000000001","data":{}}]'


def configured(**settings: Any) -> QuickBooksSource:
    source = load({"quickbooks": settings})["quickbooks"]
    assert isinstance(source, QuickBooksSource)
    return source


KEYED = configured(verifier_tokens=["one", "two"])


def received(body: object, source: QuickBooksSource = KEYED) -> Any:
    raw = json.dumps(body).encode()
    return source.receive(InboundRequest(raw, source.sign(raw, AT), {}, AT))


# Who is let in


def test_the_vector_of_cloud_events() -> None:
    source = configured(verifier_tokens=["example-verifier-token"])
    headers = {"intuit-signature": "Wv4tG+1xJ8yQZKk0fbnl1X8rNSSt5JRf7D0IL8Mrz18="}
    assert source.sign(CLOUD, AT) == headers
    got = source.receive(InboundRequest(CLOUD, headers, {}, AT))
    assert got.change_hints == [
        ChangeHint(f"{REALM}:Invoice:95", datetime(2025, 11, 1, tzinfo=UTC))
    ]


def test_the_vector_of_the_official_package() -> None:
    source = configured(verifier_tokens=["verify_me"])
    headers = {"intuit-signature": "nfPLN16u3vMvv08ghDs+dOkLuirEVDy5wAeG/lmM2OA="}
    with pytest.raises(Rejected, match="eventNotifications"):  # let in, but not understood
        source.receive(InboundRequest(b'{"stuff":"5"}', headers, {}, AT))
    client = QuickBooks(verifier_token="verify_me", minorversion=75)
    assert client.validate_webhook_signature('{"stuff":"5"}', headers["intuit-signature"])


@pytest.mark.parametrize("token", ["one", "two"])
def test_both_tokens_are_active_during_rotation(token: str) -> None:
    signed = configured(verifier_tokens=[token]).sign(CLOUD, AT)
    assert KEYED.receive(InboundRequest(CLOUD, signed, {}, AT)).change_hints


def test_a_forged_request_is_refused_before_it_is_read() -> None:
    good = KEYED.sign(CLOUD, AT)
    wrong = configured(verifier_tokens=["three"]).sign(CLOUD, AT)
    for body, headers in ((CLOUD + b" ", good), (b"{", good), (CLOUD, wrong), (CLOUD, {}), (CLOUD, {"intuit-signature": "é"})):  # fmt: skip
        with pytest.raises(Unauthorized) as refused:
            KEYED.receive(InboundRequest(body, headers, {}, AT))
        assert "sources.quickbooks.verifier_tokens" in refused.value.remedy
    with pytest.raises(Misconfigured, match="verifier_tokens"):
        configured().sign(b"", AT)


def test_the_first_missing_setting_is_named() -> None:
    given: dict[str, Any] = {}
    for name, value in (("client_id", "a"), ("client_secret", "b"), ("realm_ids", ["1", "2"]), ("refresh_tokens", ["x"])):  # fmt: skip
        assert configured(**given).missing_settings == name
        given[name] = value
    assert configured(**given).missing_settings == "refresh_tokens", "one a company"
    assert not configured(**{**given, "refresh_tokens": ["x", "y"]}).missing_settings


# What a webhook asks for


def legacy(*entities: Any, realm: str = REALM) -> dict[str, Any]:
    return {
        "eventNotifications": [{"realmId": realm, "dataChangeEvent": {"entities": list(entities)}}]
    }


def entity(operation: str = "Update", **more: Any) -> dict[str, Any]:
    fields = {"name": "Invoice", "id": "95", "lastUpdated": "2025-11-01T07:00:00-0700"}
    return {**fields, "operation": operation, **more}


def test_the_older_envelope() -> None:
    later = entity(lastUpdated="2025-11-01T07:00:09-0700")
    got = received(legacy(later, entity("Create"), entity("Delete", id="96"), entity(name="Estimate"), entity("Void", name="Bill")))  # fmt: skip
    assert got.change_hints == [
        ChangeHint(f"{REALM}:Invoice:95", AT + timedelta(seconds=9)),
        ChangeHint(f"{REALM}:Invoice:96:deleted", AT),
        ChangeHint(f"{REALM}:Bill:95", AT),
    ]
    assert not got.events


def test_several_companies_in_one_post_and_only_ours() -> None:
    body = legacy(entity())
    body["eventNotifications"] += legacy(entity(), realm="7")["eventNotifications"]
    assert [hint.key for hint in received(body).change_hints] == [
        f"{REALM}:Invoice:95",
        "7:Invoice:95",
    ]
    source = configured(verifier_tokens=["one"], realm_ids=["7"])
    assert [hint.key for hint in received(body, source).change_hints] == ["7:Invoice:95"]


@pytest.mark.parametrize("form", ["older", "newer"])
def test_a_merge_deletes_what_it_took_away(form: str) -> None:
    cloud = {"type": "qbo.vendor.merged.v1", "time": "2025-11-01T14:00:00Z", "intuitentityid": "61", "intuitaccountid": REALM, "data": {"DeletedID": "64"}}  # fmt: skip
    body = [cloud] if form == "newer" else legacy(entity("Merge", name="Vendor", id="61", deletedId="64"))  # fmt: skip
    got = received(body)
    (event,) = got.events
    assert (event.doc_key, event.occurred_at) == (f"{REALM}:Vendor:64", AT)
    assert KEYED.document(event).deleted
    assert [hint.key for hint in got.change_hints] == [f"{REALM}:Vendor:61"]


def test_a_broken_element_does_not_stop_its_neighbours() -> None:
    for bad in (7, {}, {"type": "qbo.invoice.v1"}, {**json.loads(CLOUD)[0], "intuitentityid": {}}, {**json.loads(CLOUD)[0], "time": "soon"}):  # fmt: skip
        got = received([bad, *json.loads(CLOUD)])
        assert len(got.change_hints) == 1 and [event.content_type for event in got.events] == [
            MALFORMED
        ]
        with pytest.raises(Rejected):
            received([bad])
    got = received({"eventNotifications": [3, *legacy(entity("Create"), 5, entity(id=None))["eventNotifications"]]})  # fmt: skip
    assert len(got.change_hints) == 1 and len(got.events) == 3


# Changes


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Postgres]:
    db = Postgres(database_url)
    await db.open()
    yield db
    await db.close()


Books = Callable[..., AbstractAsyncContextManager[tuple[vendor.QuickBooks, Held[QuickBooksSource]]]]


@pytest.fixture
async def quickbooks(database_url: str) -> AsyncIterator[Books]:
    async with opened(database_url) as db:
        tokens = VaultTokens(Vault(db, Keyring(read_keys([new_key()]))))

        @asynccontextmanager
        async def books(
            **settings: Any,
        ) -> AsyncIterator[tuple[vendor.QuickBooks, Held[QuickBooksSource]]]:
            world = World.make(7, shipments=6)
            simulator = vendor.QuickBooks(world, Clock(world.start + timedelta(hours=20)), Chaos())
            async with serve_simulators([simulator]) as served, httpx2.AsyncClient() as http:
                base = simulator.settings(f"{served.url}/quickbooks")
                source = configured(**{**base, **settings})
                client = VendorClient(
                    "quickbooks", http, tokens, rate_limits=lambda: [(1_000, 1)], patience=5
                )
                yield simulator, Held(source, client)

        yield books


def equal(simulator: vendor.QuickBooks, held: Held[QuickBooksSource]) -> None:
    truth = {item.doc_key: item for item in simulator.truth(simulator.clock.now)}
    live = held.live()
    assert live.keys() == {key for key, item in truth.items() if not item.deleted}
    for key, document in live.items():
        assert truth[key].text in document.text, key


async def test_everything_first_and_then_what_changed(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        equal(simulator, held)
        assert held.cursor[REALM].keys() == {"time", "at"}
        before = len(held.events)
        simulator.clock.advance_to(simulator.clock.now + timedelta(minutes=5))
        simulator.books.put("Invoice", "7001", simulator.clock.now, {"DocNumber": "INV-7001", "PrivateNote": "New."})  # fmt: skip
        simulator.books.delete("Vendor", "512", simulator.clock.now)
        assert await held.pull() == 1
        equal(simulator, held)
        assert len(held.events) == before + 2
        assert not held.broken()


async def test_every_way_to_a_state_makes_the_same_event(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        known = dict(held.events)
        held.cursor[REALM]["time"] = (simulator.clock.now - timedelta(days=20)).isoformat()
        change_hints = [ChangeHint(key, simulator.clock.now) for key in held.live()]
        await held.pull(change_hints=change_hints)
        fresh = [event for id, event in held.events.items() if id not in known]
        assert all(held.source.document(event).deleted for event in fresh), "only deletes are new"
        equal(simulator, held)


async def test_a_worker_that_dies_anywhere_loses_nothing(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        pages = await held.pull()
        for n in range(pages):
            again = Held(held.source, held.client)
            await again.pull(die_before=n)
            await again.pull()
            equal(simulator, again)


async def test_what_changes_while_everything_is_listed_is_not_skipped(quickbooks: Books) -> None:
    async with quickbooks(overlap_seconds=0) as (simulator, held):

        def work(n: int) -> None:
            simulator.clock.advance_to(simulator.clock.now + timedelta(seconds=2))
            simulator._touch()
            if n == 1:
                simulator.books.delete("Customer", "9002", simulator.clock.now)

        await held.pull(between=work)
        await held.pull()
        equal(simulator, held)


async def test_several_changes_within_a_second_are_ordered_by_the_token(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        for _ in range(12):
            simulator._touch()
            await held.pull(change_hints=[ChangeHint(f"{REALM}:Vendor:511", simulator.clock.now)])
        equal(simulator, held)


def many(simulator: vendor.QuickBooks, count: int, at: datetime, *, apart: int = 0) -> None:
    for n in range(count):
        simulator.books.put("Invoice", str(50_000 + n), at + timedelta(seconds=n * apart), {"DocNumber": f"INV-{n}", "PrivateNote": f"Imported {n}."})  # fmt: skip


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("apart", [0, 2])
async def test_more_changes_than_a_response_holds(
    quickbooks: Books, newest_first: bool, apart: int
) -> None:
    """All changes come, of one instant or of several, in either order. An event reports the deletes that may be missing."""
    async with quickbooks() as (simulator, held):
        simulator.newest_first = newest_first
        await held.pull()
        simulator.clock.advance_to(simulator.clock.now + timedelta(hours=2))
        many(simulator, 2_150, simulator.clock.now - timedelta(hours=1, minutes=30), apart=apart)
        simulator.books.delete("Vendor", "512", simulator.clock.now)
        simulator.books.delete("Invoice", "50000", simulator.clock.now)  # in a part that came whole
        await held.pull()
        equal(simulator, held)
        (gap,) = held.broken()
        assert "deletes in QuickBooks between" in gap["reason"] and "Invoice" in str(gap["record"])
        before = len(held.events)
        await held.pull()
        assert len(held.events) == before, "and only once"


async def test_more_changes_than_a_response_holds_but_not_of_one_kind(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        simulator.clock.advance_to(simulator.clock.now + timedelta(minutes=5))
        many(simulator, 980, simulator.clock.now)
        for n in range(30):
            simulator.books.put("Payment", str(60_000 + n), simulator.clock.now, {"PrivateNote": f"p{n}"})  # fmt: skip
        simulator.books.delete("Vendor", "512", simulator.clock.now)
        await held.pull()
        equal(simulator, held)
        assert not held.broken()


async def test_a_listing_of_more_rows_than_a_query_shows(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        many(simulator, 2_150, simulator.clock.now - timedelta(minutes=5))
        await held.pull(die_before=3)
        await held.pull()
        equal(simulator, held)


async def test_a_cursor_too_old_for_changes_lists_everything_since_and_notes_the_gap(
    quickbooks: Books,
) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        held.cursor[REALM]["at"] = (now() - timedelta(days=31)).isoformat()
        simulator.clock.advance_to(simulator.clock.now + timedelta(days=31))
        simulator.books.put("Invoice", "7001", simulator.clock.now - timedelta(days=15), {"DocNumber": "INV-7001", "PrivateNote": "New."})  # fmt: skip
        simulator.books.put("Customer", "9001", simulator.clock.now - timedelta(days=9), {"DisplayName": "x", "Active": False})  # fmt: skip
        before = len(held.events)
        await held.pull()
        assert f"{REALM}:Invoice:7001" in held.live()
        assert f"{REALM}:Customer:9001" not in held.live()
        (gap,) = held.broken()
        assert "no poll ran for 30 days" in gap["reason"]
        assert len(held.events) < before + 10, "only what changed since"
        simulator.clock.advance_to(simulator.clock.now + timedelta(minutes=5))
        simulator.books.delete("Invoice", "7001", simulator.clock.now)
        await held.pull()
        assert f"{REALM}:Invoice:7001" not in held.live()


async def test_hints_are_fetched_and_acknowledged_whatever_became_of_the_record(
    quickbooks: Books,
) -> None:
    async with quickbooks() as (simulator, held):
        at = simulator.clock.now
        await held.pull()
        held.events.clear()
        simulator.books.delete(
            "Bill", "45", at + timedelta(days=1)
        )  # the changes do not show it yet
        del simulator.books.versions["Bill", "45"]
        keys = [f"{REALM}:Invoice:45", f"{REALM}:Bill:45:deleted", f"{REALM}:Bill:4711", "7:Invoice:45", f"{REALM}:Estimate:1", "x"]  # fmt: skip
        await held.pull(change_hints=[ChangeHint(key, at) for key in keys])
        assert sorted(held.acknowledged) == sorted(keys)
        assert f"{REALM}:Invoice:45" in held.live()
        gone = held.newest()[f"{REALM}:Bill:45"]
        assert held.source.document(gone).deleted
        assert f"{REALM}:Bill:4711" not in held.newest(), "perhaps it is not shown yet"


async def test_a_backfill_takes_its_window(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        start = simulator.world.start
        window = BackfillRange(start + timedelta(hours=6), start + timedelta(hours=12))
        await held.pull(window=window, change_hints=[ChangeHint("x")], die_before=1)
        await held.pull(window=window, change_hints=[ChangeHint("x")])
        times = [event.occurred_at for event in held.events.values()]
        assert times and all(window.since <= at < window.until for at in times)
        assert not held.acknowledged and not held.broken()
        assert await held.pull(window=window) == 0


async def test_throttling_of_either_kind_is_tried_later(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        simulator.chaos.limits = 0.5
        await held.pull()
        fault = vendor._fault(403, "003001", "ThrottleExceeded", "SERVICE", simulator.clock.now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "_refused", lambda request: fault)
            with pytest.raises(RetryLater, match="too many calls"):
                await held.pull()


async def test_a_refusal_names_code_and_trace(quickbooks: Books) -> None:
    async with quickbooks(entities=["Invoice"]) as (simulator, held):
        await held.pull()
        simulator.clock.advance_to(simulator.clock.now + timedelta(days=40))
        with pytest.raises(Rejected, match="400, code 4001, intuit_tid 1-simulated-0001"):
            await held.pull()


# Tokens


async def test_a_token_ends_and_is_renewed_once_with_the_newest_refresh_token(
    quickbooks: Books,
) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        assert simulator.renewals == 1
        simulator.spent = ""  # the first one is worth nothing any more
        for n in (2, 3):
            simulator.access = ""
            await held.pull()
            assert simulator.renewals == n
        token = await held.client.tokens.current(f"quickbooks/{REALM}")
        assert token is not None and token.refresh == simulator.refresh


async def test_two_pulls_at_once_spend_one_refresh_token(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        simulator.access = ""
        others = [Held(held.source, held.client) for _ in range(4)]
        await asyncio.gather(*(other.pull() for other in others))
        assert simulator.renewals == 2


async def test_an_ended_connection_opens_a_new_one_which_then_holds(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        await held.pull()
        simulator.connected, simulator.access = False, ""
        with pytest.raises(Unauthorized, match="invalid_grant") as ended:
            await held.pull()
        assert "connect the company anew" in ended.value.remedy
        simulator.connected, simulator.refresh, simulator.spent = True, "AB11-anew", ""
        with pytest.raises(Unauthorized):
            await held.pull()
        base = held.source.settings.base_url
        anew = configured(**{**simulator.settings(base), "refresh_tokens": ["AB11-anew"]})
        await Held(anew, held.client).pull()
        await held.pull()


async def test_a_wrong_client_secret_is_named(quickbooks: Books) -> None:
    async with quickbooks(client_secret="wrong") as (_, held):
        with pytest.raises(Unauthorized) as refused:
            await held.pull()
        assert "sources.quickbooks.client_secret" in refused.value.remedy


# What a record becomes


def document_of(kind: str, **body: Any) -> Document:
    record = {"Id": "501", "SyncToken": "3", "MetaData": {"LastUpdatedTime": "2025-11-01T07:05:11-07:00"}, "future": [1], **body}  # fmt: skip
    event = record_event(REALM, kind, record, now())
    assert json.loads(event.payload) == record, "unknown fields are kept"
    assert event.version == micros(datetime(2025, 11, 1, 14, 5, 11, tzinfo=UTC)) + 3
    return KEYED.document(event)


def assertions_of(document: Document) -> set[tuple[str, str, str | None]]:
    return {
        (assertion.subject, assertion.predicate, assertion.object or assertion.value)
        for assertion in document.assertions
    }


INVOICE: dict[str, Any] = {
    "DocNumber": "INV-55045", "TxnDate": "2025-11-01", "CurrencyRef": {"value": "USD"},
    "CustomerRef": {"value": "58", "name": "Example Paper Co"}, "TotalAmt": 1245.0, "Balance": 1245.0,
    "Line": [{"Amount": 1245.0, "Description": "Freight", "DetailType": "SalesItemLineDetail", "SalesItemLineDetail": {"ItemRef": {"name": "Line haul"}}}],
}  # fmt: skip


@pytest.mark.parametrize("where", [
    {"Line": [{"Description": "SHP-100045 Columbus to Atlanta"}]},
    {"CustomField": [{"Name": "Shipment", "Type": "StringType", "StringValue": "shp 100045"}]},
    {"CustomerMemo": {"value": "For SHP-100045."}},
    {"PrivateNote": "SHP-100045"},
])  # fmt: skip
def test_an_invoice_bills_the_shipment_it_names(where: dict[str, Any]) -> None:
    document = document_of("Invoice", **{**INVOICE, **where})
    assert (document.kind, document.title, document.about) == ("invoice", "Invoice INV-55045", "invoice:INV-55045")  # fmt: skip
    assert {
        ("invoice:INV-55045", "bills", "shipment:SHP-100045"),
        ("invoice:INV-55045", "billed_to", "company:Example Paper Co"),
        ("invoice:INV-55045", "amount", "1,245.00 USD"),
        ("invoice:INV-55045", "status", "open"),
        ("invoice:INV-55045", "same_as", f"qbo_invoice:{REALM}-501"),
    } <= assertions_of(document)
    assert document.metadata["amount"] == 1245.0


@pytest.mark.parametrize(("change", "status"), [
    ({}, "open"), ({"Balance": 0}, "paid"), ({"Balance": 45}, "partly paid"),
    ({"Balance": 0, "TotalAmt": 0}, "paid"), ({"Balance": "45.00", "TotalAmt": "1,245.00"}, "partly paid"),
    ({"PrivateNote": "Voided"}, "voided"), ({"PrivateNote": "Voided - twice", "Balance": 0, "TotalAmt": 0}, "voided"),
])  # fmt: skip
def test_the_state_of_an_invoice(change: dict[str, Any], status: str) -> None:
    document = document_of("Invoice", **{**INVOICE, **change})
    assert not document.deleted and f"Status: {status}" in document.text


def test_a_payment_pays_by_number_or_by_id() -> None:
    line = {"LinkedTxn": [{"TxnId": "501", "TxnType": "Invoice"}]}
    named = {**line, "LineEx": {"any": [{"value": {"Name": "txnReferenceNumber", "Value": "INV-55045"}}]}}  # fmt: skip
    ref = f"payment:{REALM}-501"
    assert (ref, "pays", "invoice:INV-55045") in assertions_of(document_of("Payment", Line=[named]))
    assert (ref, "pays", f"qbo_invoice:{REALM}-501") in assertions_of(
        document_of("Payment", Line=[line])
    )


def test_a_carriers_bill() -> None:
    document = document_of("Bill", DocNumber="PRO778045", VendorRef={"name": "Northwind Trucking"}, Line=[{"Description": "SHP-100045"}], TotalAmt=900)  # fmt: skip
    ref = f"bill:{REALM}-501"
    assert {
        (ref, "carrier", "company:Northwind Trucking"),
        (ref, "bills", "shipment:SHP-100045"),
        (ref, "pro", "pro:778045"),
    } <= assertions_of(document)
    rent = document_of("Bill", DocNumber="9", VendorRef={"name": "Landlord"})
    assert (ref, "vendor", "company:Landlord") in assertions_of(rent)


def test_parties_and_what_else_is_held() -> None:
    vendor_ = document_of("Vendor", DisplayName="Northwind Trucking", PrimaryEmailAddr={"Address": "AP@nw.example"}, BillAddr={"City": "Columbus", "CountrySubDivisionCode": "OH"})  # fmt: skip
    assert vendor_.about == "company:Northwind Trucking"
    assert ("company:Northwind Trucking", "email", "email:ap@nw.example") in assertions_of(vendor_)
    other = document_of("PurchaseOrder", DocNumber="PO-1", VendorRef={"name": "A"}, TotalAmt=3)
    assert (other.kind, other.title) == ("purchase_order", "PurchaseOrder PO-1")


def test_a_reference_by_id_alone_leads_to_the_party() -> None:
    invoice = document_of("Invoice", **{**INVOICE, "CustomerRef": {"value": "58"}})
    customer = document_of("Customer", Id="58", DisplayName="Sample Retail")
    ref = f"qbo_customer:{REALM}-58"
    assert ("invoice:INV-55045", "billed_to", ref) in assertions_of(invoice)
    assert ("company:Sample Retail", "same_as", ref) in assertions_of(customer)
    assert "Customer ref: 58" in invoice.text
    bill = document_of("Bill", DocNumber="9", VendorRef={"value": "12"})
    assert (f"bill:{REALM}-501", "vendor", f"qbo_vendor:{REALM}-12") in assertions_of(bill)


def test_discounts_and_taxes_are_lines() -> None:
    discount = {
        "Amount": 54.5,
        "DetailType": "DiscountLineDetail",
        "DiscountLineDetail": {"DiscountPercent": 4.2},
    }
    tax = {"TotalTax": 12.25, "TaxLine": [{"Amount": 12.25}]}
    text = document_of("Invoice", **{**INVOICE, "Line": [discount], "TxnTaxDetail": tax}).text
    assert "- Discount 54.50" in text and "discount percent: 4.2" in text
    assert "total tax: 12.25" in text


def test_every_phone_of_a_party_is_asserted() -> None:
    phones = {"PrimaryPhone": "614 555 0100", "Mobile": "614 555 0101", "AlternatePhone": "614 555 0102"}  # fmt: skip
    bodies = {field: {"FreeFormNumber": number} for field, number in phones.items()}
    party = document_of(
        "Vendor", DisplayName="Northwind", **bodies, Fax={"FreeFormNumber": "614 555 0103"}
    )
    asserted = {fact for _, predicate, fact in assertions_of(party) if predicate == "phone"}
    assert asserted == {f"phone:{number}" for number in phones.values()}
    assert "614 555 0103" in party.text


def test_deleted_and_inactive_records_are_deletes() -> None:
    assert document_of("Customer", DisplayName="A", Active=False).deleted
    gone = {"domain": "QBO", "status": "Deleted", "Id": "498", "MetaData": {"LastUpdatedTime": "2025-11-01T06:59:00-07:00"}}  # fmt: skip
    event = record_event(REALM, "Invoice", gone, now())
    assert KEYED.document(event).deleted
    same_second = record_event(REALM, "Invoice", {**gone, "status": "", "SyncToken": "9" * 18}, now())  # fmt: skip
    assert event.version > same_second.version


@pytest.mark.parametrize("value", [None, 7, [], {}, "nan", float("1e300"), "\u0007", "x" * 5_000, [[]], [{"value": 3}], {"any": 3}])  # fmt: skip
def test_odd_values_are_shown_or_left_out(value: Any) -> None:
    for kind in ("Invoice", "Payment", "Bill", "Customer", "Estimate"):
        for field in ("DocNumber", "DisplayName", "CustomerRef", "VendorRef", "Line", "CustomField", "TotalAmt", "Balance", "PrimaryPhone", "CurrencyRef", "CustomerMemo"):  # fmt: skip
            document = document_of(kind, **{**INVOICE, field: value})
            json.dumps([document.title, document.text, document.metadata], allow_nan=False)


@pytest.mark.parametrize(("name", "left"), [("changes", 0), ("changes_short", 2)])  # fmt: skip
def test_real_records(name: str, left: int) -> None:
    body = json.loads(sample("quickbooks", f"{name}.json"))
    seen, broken = 0, 0
    for answer in body["CDCResponse"][0]["QueryResponse"]:
        for kind, records in answer.items():
            for record in records if isinstance(records, list) else ():
                try:
                    event = record_event(REALM, kind, record, now())
                except Rejected as error:
                    assert "Id" in str(error)  # that fixture's invoices have none
                    broken += 1
                    continue
                document = KEYED.document(event)
                assert document.title or document.deleted
                seen += 1
    assert seen and broken == left


# The simulator is held to what the official packages ask and understand


async def test_the_official_packages_read_the_simulator(quickbooks: Books) -> None:
    async with quickbooks() as (simulator, held):
        base = held.source.settings.base_url

        def read() -> None:
            auth = AuthClient(vendor.CLIENT, vendor.SECRET, "https://a.example", f"{base}/.well-known/openid_configuration")  # fmt: skip
            with auth, pytest.MonkeyPatch.context() as patch:
                patch.setattr(QuickBooks, "api_url_v3", f"{base}/v3")
                patch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the simulator speaks no TLS
                auth.refresh(refresh_token=vendor.FIRST_REFRESH)
                assert auth.refresh_token != vendor.FIRST_REFRESH
                auth.environment = "production"
                client = QuickBooks(auth_client=auth, refresh_token=auth.refresh_token, company_id=REALM, minorversion=75)  # fmt: skip
                with client.session:
                    understand(client, simulator)

        await asyncio.to_thread(read)


def understand(client: QuickBooks, simulator: vendor.QuickBooks) -> None:
    invoice = Invoice.get(45, qb=client)
    assert (invoice.DocNumber, float(invoice.Balance)) == ("INV-55045", 0)
    with pytest.raises(ObjectNotFoundException):
        Invoice.get(999, qb=client)
    customers = Customer.all(qb=client, max_results=1000)
    names = {company.name for company in simulator.world.customers} | {"Seasonal Orchards"}
    assert {customer.DisplayName for customer in customers} == names, "none that is inactive"
    invoices = Invoice.filter(DocNumber="INV-55045", qb=client)
    assert [item.Id for item in invoices] == ["45"]
    since = simulator.world.start - timedelta(days=1)
    changes = change_data_capture([Invoice, Payment, Customer], f"{since:%Y-%m-%dT%H:%M:%S}+00:00", qb=client)  # fmt: skip
    assert {payment.Id for payment in changes.Payment._object_list} >= {"45"}
    assert not hasattr(changes, "Bill")


@pytest.mark.parametrize(("status", "code"), [(400, "2050"), (404, "")])
async def test_s2_a_record_that_is_refused_is_a_dead_letter_and_stops_nothing(
    quickbooks: Books, status: int, code: str
) -> None:
    async with quickbooks() as (simulator, held):
        at = simulator.clock.now
        refused = simulator._refused

        def refuse(request: StarletteRequest) -> Any:
            if request.url.path.endswith("/bill/45"):
                return vendor._fault(status, code, "Refused", "ValidationFault", at)
            return refused(request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "_refused", refuse)
            keys = [f"{REALM}:Bill:45", f"{REALM}:Invoice:45"]
            await held.pull(change_hints=[ChangeHint(key, at) for key in keys])
        assert held.acknowledged == keys[1:]
        assert f"{REALM}:Invoice:45" in held.live(), "its neighbours come"
        assert held.cursor, "the changes were read"
        (failed,) = held.unfetched
        assert failed.hint.key == f"{REALM}:Bill:45"
        assert isinstance(failed.reason, Rejected)


async def test_s11_throttling_in_xml_is_throttling(quickbooks: Books) -> None:
    xml = b'<IntuitResponse><Fault type="SERVICE"><Error code="3001"><Message>ThrottleExceeded</Message></Error></Fault></IntuitResponse>'
    async with quickbooks() as (simulator, held):
        await held.pull()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                simulator,
                "_refused",
                lambda request: Response(xml, 403, media_type="application/xml"),
            )
            with pytest.raises(RetryLater, match="too many calls"):
                await held.pull()


def test_an_invoice_without_a_balance_has_no_state() -> None:
    document = document_of("Invoice", **{**INVOICE, "Balance": None})
    assert "Status:" not in document.text and "status" not in document.metadata
    assert not [fact for fact in document.assertions if fact.predicate == "status"]


def test_amounts_keep_the_decimals_of_their_currency_and_their_words() -> None:
    dinar = document_of("Bill", TotalAmt=12.345, Balance=12.345, CurrencyRef={"value": "KWD"})
    assert "Total: 12.345 KWD" in dinar.text
    yen = document_of("Payment", TotalAmt="125000", CurrencyRef={"value": "JPY"})
    assert "Total: 125,000 JPY" in yen.text and yen.metadata["amount"] == 125_000
    odd = document_of("Payment", TotalAmt="about 7", CurrencyRef={"value": "USD"})
    assert "Total: about 7" in odd.text
    assert not [fact for fact in odd.assertions if fact.predicate == "amount"]


# Several companies


def two_companies(request: httpx2.Request) -> httpx2.Response:
    """Respond as QuickBooks to company 1, whose connection has ended, and to company 2, which has one customer."""
    customer = {"Id": "58", "DisplayName": "Kestrel", "MetaData": {"LastUpdatedTime": "2025-11-01T07:05:11-07:00"}}  # fmt: skip
    time = {"time": "2025-11-01T14:10:00Z"}
    if "oauth2" in request.url.path:
        if b"refresh_token=one" in request.content:
            return httpx2.Response(400, json={"error": "invalid_grant"})
        return httpx2.Response(200, json={"access_token": "a", "expires_in": 3600})
    if request.url.path.endswith("/query"):
        return httpx2.Response(200, json={"QueryResponse": {"Customer": [customer]}, **time})
    if request.url.path.endswith("/cdc"):
        return httpx2.Response(200, json={"CDCResponse": [{"QueryResponse": [{}]}], **time})
    return httpx2.Response(200, json={"Customer": {**customer, "DisplayName": "Kestrel Paper"}})


@pytest.mark.parametrize("window", [None, BackfillRange(AT - timedelta(days=9), AT)])
async def test_a_company_whose_connection_has_ended_does_not_stop_the_others(
    window: BackfillRange | None,
) -> None:
    source = configured(
        client_id="c",
        client_secret="s",
        realm_ids=["1", "2"],
        refresh_tokens=["one", "two"],
        entities=["Customer"],
    )
    hints = [ChangeHint(f"{realm}:Customer:58", AT) for realm in ("1", "2", "3")]
    transport = httpx2.MockTransport(two_companies)
    async with httpx2.AsyncClient(transport=transport) as http:
        client = VendorClient("quickbooks", http, KeptTokens(), patience=0)
        held = Held(source, client)
        with pytest.raises(Unauthorized, match="company 1 has ended"):
            await held.pull(change_hints=() if window else hints, window=window)
    assert {event.doc_key for event in held.events.values()} == {"2:Customer:58"}
    if window is None:
        assert held.acknowledged == ["3:Customer:58", "2:Customer:58"]
        assert held.cursor["2"].keys() == {"time", "at"}
        assert "time" not in held.cursor.get("1", {})


@pytest.mark.parametrize("status", [400, 404, 410])
async def test_an_announced_delete_of_a_record_that_is_refused_is_a_delete(status: int) -> None:
    def respond(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/invoice/58"):
            return httpx2.Response(status, json={"Fault": {"Error": [{"code": "2050"}]}})
        return two_companies(request)

    source = configured(
        client_id="c",
        client_secret="s",
        realm_ids=["2"],
        refresh_tokens=["two"],
        entities=["Invoice"],
    )
    hints = [ChangeHint(f"2:Invoice:58{end}", AT) for end in ("", ":deleted")]
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(respond)) as http:
        held = Held(source, VendorClient("quickbooks", http, KeptTokens(), patience=0))
        await held.pull(change_hints=hints)
    (event,) = held.events.values()
    assert event.doc_key == "2:Invoice:58" and source.document(event).deleted
    assert held.acknowledged == ["2:Invoice:58:deleted"]
    assert [item.hint.key for item in held.unfetched] == ["2:Invoice:58"]


def test_every_voided_transaction_says_so() -> None:
    for kind in ("Payment", "RefundReceipt", "Bill"):
        document = document_of(kind, TotalAmt=0, PrivateNote="Voided - paid twice")
        assert "\nStatus: voided" in document.text, kind
        assert "voided" in {fact.value for fact in document.assertions}
        assert "Status:" not in document_of(kind, TotalAmt=9, PrivateNote="Avoided").text


def test_another_kind_of_record_knows_its_party_by_id() -> None:
    credit = document_of("CreditMemo", DocNumber="CM-1", CustomerRef={"value": "58"})
    ref = f"qbo_creditmemo:{REALM}-501"
    assert (ref, "with", f"qbo_customer:{REALM}-58") in assertions_of(credit)
    named = document_of("VendorCredit", VendorRef={"value": "7", "name": "Northwind"})
    assert "company:Northwind" in {fact.object for fact in named.assertions}
