"""Turvo: who is let in, what a notice asks for, how the list is read, and what a shipment becomes."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from starlette.responses import JSONResponse, Response

from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Assertion, Document, Event, micros
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.turvo import simulator as vendor
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources import fetch_back
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, ChangeHint, PullContext, Unfetched
from apex_memory.sources.registry import load
from apex_memory.sources.turvo.documents import STATUSES
from apex_memory.sources.turvo.source import Turvo
from tests.unit.vendors import emptied

AT = datetime(2025, 11, 1, 14, 3, 25, tzinfo=UTC)
NOTICE = {
    "tenantId": "9901",
    "eventName": "SHIPMENT_STATUS_UPDATE",
    "eventTime": "2025-11-01T14:03:22.118Z",
    "eventPayload": {"id": 1000450123, "status": {"code": {"key": "2104", "value": "At pickup"}}},
}
STOP = {
    "stopType": {"key": "1500", "value": "Pickup"},
    "location": {"id": 311},
    "timezone": "America/New_York",
    "address": {"line1": "100 Example Way", "city": "Columbus", "state": "OH", "zip": "43215", "country": "US"},
    "appointment": {"start": "2025-11-01T12:00:00Z"},
    "deleted": False,
}  # fmt: skip
SINGLE: dict[str, Any] = {
    "id": 1000450123,
    "customId": "SHP-100045",
    "ltlShipment": False,
    "status": {"code": {"key": "2105", "value": "En route"}},
    "startDate": {"date": "2025-11-01T12:00:00Z", "timeZone": "America/New_York"},
    "endDate": {"date": "2025-11-02T19:00:00Z", "timeZone": "America/New_York"},
    "lane": {"start": "Columbus, OH", "end": "Atlanta, GA"},
    "customerOrder": [{"id": 71, "customer": {"id": 9001, "name": "Example Paper Co"}, "deleted": False, "route": [STOP]}],
    "carrierOrder": [{"id": 44, "carrier": {"id": 512, "name": "Northwind Trucking"}, "deleted": False}],
    "statusHistory": [{"code": {"key": "2103", "value": "Dispatched"}, "lastUpdatedOn": "2025-11-01T10:00:00Z"}],
}  # fmt: skip


def turvo(**settings: Any) -> Turvo:
    source = load({"turvo": settings})["turvo"]
    assert isinstance(source, Turvo)
    return source


def request(body: object, **headers: str) -> InboundRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return InboundRequest(
        raw, {name.replace("_", "-"): text for name, text in headers.items()}, {}, AT
    )


# Who is let in


@pytest.mark.parametrize("given", ["t-1", "t-2", "Bearer t-1", "bearer  t-2"])
def test_both_tokens_are_active_with_or_without_bearer(given: str) -> None:
    source = turvo(webhook_tokens=["t-1", "t-2"])
    assert source.receive(request(NOTICE, authorization=given)).change_hints


def test_the_header_of_the_token_is_a_setting() -> None:
    source = turvo(webhook_tokens=["t-1"], webhook_header="X-Hook-Token")
    assert source.receive(request(NOTICE, x_hook_token="t-1")).change_hints
    with pytest.raises(Unauthorized, match="X-Hook-Token"):
        source.receive(request(NOTICE, authorization="t-1"))


@pytest.mark.parametrize("given", ["", "t-", "t-11", "T-1", "Bearer", "Bearer Bearer t-1", "é"])
def test_other_tokens_are_refused(given: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        turvo(webhook_tokens=["t-1"]).receive(request(NOTICE, authorization=given))
    assert "sources.turvo.webhook_tokens" in refused.value.remedy


@pytest.mark.parametrize("write", [
    lambda digest: digest.hex(), lambda digest: digest.hex().upper(), lambda digest: f"sha256={digest.hex()}",
    lambda digest: base64.b64encode(digest).decode(),
])  # fmt: skip
@pytest.mark.parametrize("key", [b"k-1", b"k-2"])
def test_a_signature_in_any_of_its_spellings(write: Callable[[bytes], str], key: bytes) -> None:
    source = turvo(hmac_keys=["k-1", "k-2"], hmac_header="X-Sig")
    raw = json.dumps(NOTICE).encode()
    fits = write(hmac.digest(key, raw, "sha256"))
    assert source.receive(request(raw, x_sig=fits)).change_hints
    for body, header in ((raw + b" ", fits), (raw, write(hmac.digest(b"k-3", raw, "sha256")))):
        with pytest.raises(Unauthorized, match="X-Sig"):
            source.receive(request(body, x_sig=header))


def test_where_token_and_signature_are_set_both_are_demanded() -> None:
    source = turvo(webhook_tokens=["t"], hmac_keys=["k"])
    raw = json.dumps(NOTICE).encode()
    headers = source.sign(raw, AT)
    assert set(headers) == {"authorization", "x-turvo-signature"}
    assert source.receive(InboundRequest(raw, headers, {}, AT)).change_hints
    for missing in headers:
        kept = {name: value for name, value in headers.items() if name != missing}
        with pytest.raises(Unauthorized):
            source.receive(InboundRequest(raw, kept, {}, AT))


def test_signing_and_checking_without_a_secret_are_refused() -> None:
    with pytest.raises(Misconfigured, match="webhook_tokens"):
        turvo().sign(b"", AT)
    with pytest.raises(Unauthorized) as refused:
        turvo().receive(request(NOTICE, authorization=""))
    assert "sources.turvo.webhook_tokens" in refused.value.remedy


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"webhook_tokens": [""]}, r"webhook_tokens\.0"),
        ({"hmac_keys": ["a", "b", "c"]}, "hmac_keys"),
        ({"webhook_header": "a b"}, "webhook_header"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"page_size": 1}, "page_size"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(Misconfigured, match=rf"sources\.turvo\.{name}"):
        turvo(**settings)


def test_what_a_pull_lacks_is_named() -> None:
    given = {"client_id": "c", "client_secret": "s", "api_key": "k", "username": "u", "password": "p"}  # fmt: skip
    assert turvo(**given).missing_settings == ""
    for name in given:
        assert turvo(**{**given, name: ""}).missing_settings == name


# What a notice asks for


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({}, "2025-11-01T14:03:22.118000+00:00"),
        ({"eventName": "SHIPMENT_UPDATE", "eventPayload": {"id": 1000450123, "load": {"id": 7}}}, "2025-11-01T14:03:22.118000+00:00"),
        ({"eventName": "shipment_update", "eventPayload": {"load": {"id": 1000450123}}, "eventTime": None}, None),
        ({"eventPayload": {"id": "1000450123"}, "eventTime": "yesterday", "extra": [1]}, None),
    ],
)  # fmt: skip
def test_a_webhook_is_a_change_hint_for_its_shipment(
    changes: dict[str, Any], at: str | None
) -> None:
    received = turvo(webhook_tokens=["t"]).receive(request({**NOTICE, **changes}, authorization="t"))  # fmt: skip
    expected = datetime.fromisoformat(at) if at else None
    assert received.change_hints == [ChangeHint("shipment:1000450123", expected)]
    assert not received.events


def test_notices_of_other_things_ask_for_nothing() -> None:
    source = turvo(webhook_tokens=["t"])
    for name in ("CARRIER_UPDATE", "USER_UPDATE", "SOMETHING_NEW"):
        received = source.receive(request({**NOTICE, "eventName": name}, authorization="t"))
        assert not received.change_hints and not received.events


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "body"),
        ([NOTICE], "body"),
        ({}, "eventName"),
        ({**NOTICE, "eventName": 5}, "eventName"),
        ({**NOTICE, "eventPayload": {}}, r"eventPayload\.id"),
        ({**NOTICE, "eventPayload": {"id": [1]}}, r"eventPayload\.id"),
        ({**NOTICE, "eventPayload": "1000450123"}, r"eventPayload\.id"),
    ],
)
def test_malformed_notices_are_refused_by_place(body: object, place: str) -> None:
    with pytest.raises(Rejected, match=f"^{place}: ") as refused:
        turvo(webhook_tokens=["t"]).receive(request(body, authorization="t"))
    assert refused.value.remedy


# What a shipment becomes


def document_of(record: dict[str, Any]) -> Document:
    event = Event(
        source="turvo",
        event_id="e",
        doc_key="shipment:1",
        version=1,
        occurred_at=AT,
        payload=json.dumps(record).encode(),
    )
    return turvo().document(event)


def test_the_document_of_a_shipment_reads_well_and_names_who_and_where() -> None:
    numbers = [
        {"type": {"key": "1400", "value": "Purchase order #"}, "value": "PO 7745"},
        {"type": {"key": "1405", "value": "PRO #"}, "value": "PRO778812"},
        {"type": {"key": "1401", "value": "BOL #"}, "value": "SHP-100045"},
        {"type": {"key": "1", "value": "Dock"}, "value": "12"},
        {"type": {"key": "1", "value": "Old"}, "value": "13", "deleted": True},
    ]
    drivers = [{"context": {"name": "Luis Ortega"}}]
    trucks = [{"type": {"value": "Truck #"}, "value": "T-204"}]
    carrier = {"name": "Northwind Trucking", "scac": "NWTR", "mcNumber": 123456}
    document = document_of({
        **SINGLE,
        "customerOrder": [{**SINGLE["customerOrder"][0], "externalIds": numbers, "costs": {"totalAmount": 1245}}],
        "carrierOrder": [
            {"carrier": {"name": "Fell Through Freight"}, "deleted": True},
            {"carrier": carrier, "drivers": drivers, "externalIds": trucks},
        ],
    })  # fmt: skip
    text, _, others = document.text.partition("\n\nFurther fields\n")
    assert "Carrier order carrier mc number: 123456" in others
    assert "Fell Through" not in document.text
    assert text == (
        "Shipment: SHP-100045\nStatus: En route\nCustomer: Example Paper Co\nCarrier: Northwind Trucking\n"
        "Driver: Luis Ortega\nRoute: Columbus, OH to Atlanta, GA\n"
        "Pickup: 2025-11-01 12:00 UTC (America/New_York)\nDelivery: 2025-11-02 19:00 UTC (America/New_York)\n"
        "Turvo id: 1000450123\nPurchase order #: PO 7745\nPRO #: PRO778812\nBOL #: SHP-100045\nDock: 12\nTruck #: T-204\n"
        "Charges: 1245.00 USD\n\nStops\n"
        "1. Pickup, 100 Example Way, Columbus, OH 43215, appointment 2025-11-01 12:00 UTC\n\n"
        "Status history\n2025-11-01 10:00 UTC Dispatched"
    )
    assert (document.kind, document.about) == ("shipment", "shipment:SHP-100045")
    assert document.title == "Shipment SHP-100045 (Columbus, OH to Atlanta, GA) En route"
    own, carrier_ref = "shipment:SHP-100045", "company:Northwind Trucking"
    assert set(document.assertions) == {
        Assertion(subject=own, predicate="status", value="En route"),
        Assertion(subject=own, predicate="customer", object="company:Example Paper Co"),
        Assertion(subject="company:Example Paper Co", predicate="name", value="Example Paper Co"),
        Assertion(subject=own, predicate="carrier", object=carrier_ref),
        Assertion(subject=carrier_ref, predicate="name", value="Northwind Trucking"),
        Assertion(subject=carrier_ref, predicate="same_as", object="scac:NWTR"),
        Assertion(subject=carrier_ref, predicate="same_as", object="mc:123456"),
        Assertion(subject=own, predicate="driver", object="person:Luis Ortega"),
        Assertion(subject=own, predicate="vehicle", object="vehicle:T-204"),
        Assertion(subject=own, predicate="origin", object="location:Columbus, OH"),
        Assertion(subject=own, predicate="destination", object="location:Atlanta, GA"),
        Assertion(subject=own, predicate="pickup_at", value="2025-11-01T12:00:00+00:00"),
        Assertion(subject=own, predicate="delivery_at", value="2025-11-02T19:00:00+00:00"),
        Assertion(subject=own, predicate="po", object="po:7745"),
        Assertion(subject=own, predicate="pro", object="pro:778812"),
        Assertion(subject=own, predicate="bol", object="bol:SHP-100045"),
        Assertion(subject=own, predicate="amount", value="1245.00 USD"),
    }
    assert document.metadata == {
        "shipment": "SHP-100045",
        "turvo_id": "1000450123",
        "status": "En route",
        "status_key": "2105",
        "customer": "Example Paper Co",
        "carrier": "Northwind Trucking",
    }


def test_a_row_of_the_list_reads_like_the_record() -> None:
    row = {**SINGLE, "startDate": "2025-11-01T12:00:00Z", "endDate": "2025-11-02T19:00:00Z"}
    single, listed = document_of(SINGLE), document_of(row)
    assert listed.assertions == single.assertions
    assert listed.text == single.text.replace(" (America/New_York)", "")


def test_without_a_lane_the_stops_name_origin_and_destination() -> None:
    there = {**STOP, "stopType": {"key": "1501"}, "address": {"city": "Atlanta", "state": "GA"}}
    document = document_of({**SINGLE, "lane": None, "customerOrder": [{"route": [STOP, there]}]})
    assert "Route: Columbus, OH to Atlanta, GA" in document.text


@pytest.mark.parametrize("key", STATUSES)
def test_every_known_status_has_one_spelling(key: str) -> None:
    document = document_of({**SINGLE, "status": {"code": {"key": key, "value": "wHaTeVeR"}}})
    assert f"\nStatus: {STATUSES[key]}\n" in document.text
    assert document.metadata["status_key"] == key
    assert not document.deleted  # 2113 too: a cancelled shipment is not a deleted one


def test_unknown_statuses_keep_key_and_label() -> None:
    document = document_of({**SINGLE, "status": {"code": {"key": "2199", "value": "Weather hold"}}})
    assert (document.metadata["status"], document.metadata["status_key"]) == ("Weather hold", "2199")  # fmt: skip
    assert (
        document_of({**SINGLE, "status": {"code": {"key": "2199"}}}).metadata["status"]
        == "status 2199"
    )


def test_only_the_shipments_own_flag_deletes_it() -> None:
    assert document_of({**SINGLE, "deleted": True}).deleted
    parts = {"customerOrder": [{**SINGLE["customerOrder"][0], "deleted": True}], "carrierOrder": [{"deleted": True}]}  # fmt: skip
    document = document_of({**SINGLE, "deleted": False, **parts})
    assert not document.deleted
    assert "Example Paper Co" not in document.text and "Stops" not in document.text


@pytest.mark.parametrize("wrong", [None, 5, "x", [], [5, None], {}, {"code": 5}, {"date": []}, True])  # fmt: skip
@pytest.mark.parametrize("name", sorted(SINGLE))
def test_a_part_of_another_shape_is_left_out(name: str, wrong: object) -> None:
    assert not document_of({**SINGLE, name: wrong}).deleted


# How the list is read


class Shelf(vendor.Turvo):
    """Turvo with just the rows that a test puts there. `between` runs after each page of the list."""

    def __init__(self) -> None:
        world = World.make(1, shipments=2)
        super().__init__(world, Clock(world.start), Chaos())
        self.rows: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.between: Callable[[], None] = lambda: None
        self.queries: list[dict[str, str]] = []
        self.pagination = True

    async def list_shipments(self, request: Any) -> Any:
        self.calls.append("list")
        self.queries.append(dict(request.query_params))
        if "list" in self.answers:
            return self.answers["list"]()
        if refused := self._refused(request):
            return refused
        start, size = int(request.query_params["start"]), int(request.query_params["pageSize"])
        page = self.rows[start : start + size]
        more = {"pagination": {"moreAvailable": start + size < len(self.rows)}} if self.pagination else {}  # fmt: skip
        answer = vendor._success({"shipments": page, **more})
        self.between()
        return answer

    async def show_shipment(self, request: Any) -> Any:
        made = self.answers.get(request.path_params["id"])
        self.calls.append(request.path_params["id"])
        return (self._refused(request) or made()) if made else await super().show_shipment(request)

    def _record(self, id: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if str(row["id"]) == id), None)


def row(id: int, minute: float, **more: Any) -> dict[str, Any]:
    at = AT.replace(hour=8, minute=0, second=0) + timedelta(minutes=minute)
    changed = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"id": id, "customId": f"SHP-{id}", "lastUpdatedOn": changed, **more}


@dataclass
class Pulled:
    events: list[Event] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    cursor: dict[str, Any] = field(default_factory=dict)
    unfetched: list[Unfetched] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    pages: int = 0

    @property
    def ids(self) -> list[str]:
        return [event.doc_key.removeprefix("shipment:") for event in self.events]


@dataclass
class Ward:
    """The source and its simulated vendor. `pull` keeps each page, as a worker commits it."""

    shelf: Shelf
    source: Turvo
    client: VendorClient

    async def pull(
        self,
        cursor: dict[str, Any] | None = None,
        change_hints: Sequence[ChangeHint] = (),
        *,
        window: BackfillRange | None = None,
        pages: int = 10_000,
        into: Pulled | None = None,
    ) -> Pulled:
        done = into or Pulled()
        done.cursor = dict(cursor or {})
        context = PullContext(
            client=self.client, cursor=done.cursor, change_hints=change_hints, window=window
        )
        async for page in self.source.pull(context):
            done.events += page.events
            done.unfetched += page.unfetched
            done.hints += [hint.key for hint in page.hints]
            done.acknowledged += [hint.key for hint in page.acknowledged]
            done.cursor = dict(page.cursor) if page.cursor is not None else done.cursor
            done.pages += 1
            if done.pages >= pages:
                break
        return done


Desk = Callable[..., AbstractAsyncContextManager[Ward]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served() -> AsyncIterator[SimulatorServer]:
    async with serve_simulators([Shelf()]) as served:
        yield served


@pytest.fixture
def desk(served: SimulatorServer) -> Desk:
    """Open a source, with settings, and an empty simulated vendor."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Ward]:
        async with emptied(served, Shelf) as (shelf, given, client):
            given |= {"page_size": 3, "overlap_seconds": 0}
            yield Ward(shelf, turvo(**{**given, **settings}), client)

    return opened


async def test_everything_once_then_only_what_changed(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, n) for n in range(1, 8)]
        first = await ward.pull()
        assert first.ids == ["1", "2", "3", "4", "5", "6", "7"]
        ward.shelf.rows[2] = row(3, 30)
        second = await ward.pull(first.cursor)
        assert second.ids == ["3", "7"]  # 7 stands at the edge: times may be equal there
        again = [event for event in second.events if event.doc_key == "shipment:7"]
        assert [event.event_id for event in again] == [first.events[-1].event_id]
        assert (await ward.pull(second.cursor)).ids == ["3"]


async def test_equal_times_at_the_edge_of_a_page_are_all_seen(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, 5) for n in range(1, 9)]
        first = await ward.pull()
        assert sorted(first.ids) == [str(n) for n in range(1, 9)]
        ward.shelf.rows.append(row(9, 5))
        assert "9" in (await ward.pull(first.cursor)).ids


@pytest.mark.parametrize("pagination", [True, False])
async def test_both_page_objects_end(desk: Desk, pagination: bool) -> None:
    async with desk() as ward:
        ward.shelf.pagination = pagination
        for count in (0, 1, 2, 3, 4, 5, 7):
            ward.shelf.rows = [row(n, n) for n in range(count)]
            assert (await ward.pull()).ids == [str(n) for n in range(count)]


async def test_a_row_that_goes_away_above_us_hides_none_below(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, n) for n in range(1, 9)]
        gone = iter([1, 2])

        def go_away() -> None:
            if (id := next(gone, None)) is not None:
                ward.shelf.rows = [item for item in ward.shelf.rows if item["id"] != id]

        ward.shelf.between = go_away
        assert {"3", "4", "5", "6", "7", "8"} <= set((await ward.pull()).ids)


async def test_a_row_that_moves_to_the_top_is_seen_by_the_next_reading(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, 20 - n) for n in range(1, 9)]  # newest first

        def change_the_last() -> None:
            if ward.shelf.rows[-1]["id"] == 8:
                ward.shelf.rows = [row(8, 40), *ward.shelf.rows[:-1]]

        ward.shelf.between = change_the_last
        first = await ward.pull()
        assert "8" not in first.ids
        assert "8" in (await ward.pull(first.cursor)).ids


async def test_a_list_that_never_rests_is_left_for_later(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, n) for n in range(100)]

        def remove_the_first() -> None:
            ward.shelf.rows.pop(0)

        ward.shelf.between = remove_the_first
        with pytest.raises(RetryLater, match="faster than it can be read"):
            await ward.pull()


async def test_a_worker_that_dies_anywhere_loses_nothing(desk: Desk) -> None:
    """The worker dies after each page in turn, and a row changes meanwhile: the next pulls bring the rest and the change."""
    for kill in (1, 3, 4, 5, 7, 8, 10):
        async with desk() as ward:
            ward.shelf.rows = [row(n, n) for n in range(1, 8)]
            done = await ward.pull(pages=kill)
            ward.shelf.rows[0] = row(1, 50, customId="changed")
            late = await ward.pull(done.cursor)
            last = await ward.pull(late.cursor)
            events = done.events + late.events + last.events
            newest = {
                event.doc_key: event for event in sorted(events, key=lambda item: item.version)
            }
            assert set(newest) == {f"shipment:{n}" for n in range(1, 8)}, kill
            assert b"changed" in newest["shipment:1"].payload, kill


async def test_a_clock_that_runs_ahead_hides_nothing(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [{**row(1, 0), "lastUpdatedOn": "2099-01-01T00:00:00Z"}, row(2, 1)]
        first = await ward.pull()
        now = datetime.now(UTC) + timedelta(seconds=1)
        ward.shelf.rows[1] = {**row(2, 1), "lastUpdatedOn": now.isoformat()}
        assert "2" in (await ward.pull(first.cursor)).ids


async def test_a_row_without_a_time_is_fetched_and_known_again(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [{"id": 1, "customId": "SHP-1"}]
        first, second = await ward.pull(), await ward.pull()
        assert [event.event_id for event in first.events] == [event.event_id for event in second.events]  # fmt: skip
        ward.shelf.rows = [{"id": 1, "customId": "SHP-1", "ltlShipment": True}]
        third = await ward.pull()
        assert third.events[0].event_id != first.events[0].event_id
        assert third.events[0].version > first.events[0].version


async def test_changes_within_a_millisecond_are_ordered_by_their_history(desk: Desk) -> None:
    async with desk() as ward:
        dispatched = {"code": {"key": "2101"}, "lastUpdatedOn": "2025-11-01T08:00:00Z"}
        events = []
        for history in ([dispatched], [dispatched, dispatched]):
            ward.shelf.rows = [row(1, 1, statusHistory=history)]
            events += (await ward.pull()).events
        assert events[0].version < events[1].version
        assert events[0].event_id != events[1].event_id


async def test_the_list_is_read_when_it_is_time(desk: Desk) -> None:
    async with desk(listing_seconds=3600) as ward:
        ward.shelf.rows = [row(1, 1)]
        first = await ward.pull()
        ward.shelf.calls.clear()
        second = await ward.pull(first.cursor, [ChangeHint("shipment:1", AT)])
        assert ward.shelf.calls == ["1", "shipment"]
        assert second.acknowledged == ["shipment:1"]


async def test_the_filter_is_sent_where_it_is_set(desk: Desk) -> None:
    async with desk(updated_filter="lastUpdatedOn[gte]", overlap_seconds=60) as ward:
        ward.shelf.rows = [row(1, 1)]
        done = await ward.pull()
        await ward.pull(done.cursor)
        assert ward.shelf.queries == [
            {"start": "0", "pageSize": "3"},
            {"start": "0", "pageSize": "3", "lastUpdatedOn[gte]": "2025-11-01T08:00:00Z"},
        ]


async def test_a_backfill_fetches_its_window_and_no_change_hints(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(n, n) for n in range(1, 9)]
        start = AT.replace(hour=8, minute=0, second=0)
        window = BackfillRange(start + timedelta(minutes=3), start + timedelta(minutes=6))
        done = await ward.pull(change_hints=[ChangeHint("shipment:8")], window=window)
        assert done.ids == ["3", "4", "5"]
        assert not done.acknowledged
        part = await ward.pull(window=window, pages=2)
        assert [*part.ids, *(await ward.pull(part.cursor, window=window)).ids] == ["3", "4", "5"]  # fmt: skip


# What is fetched for a change hint


async def test_hints_are_acknowledged_also_when_the_record_is_deleted_or_foreign(
    desk: Desk,
) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(1, 1)]
        at = datetime.now(UTC) + timedelta(days=1)
        change_hints = [
            ChangeHint("shipment:1", AT),
            ChangeHint("shipment:404", at),
            ChangeHint("carrier:512", AT),
        ]
        done = await ward.pull(change_hints=change_hints)
        assert done.acknowledged == [hint.key for hint in change_hints]
        gone = next(event for event in done.events if event.doc_key == "shipment:404")
        assert ward.source.document(gone).deleted
        assert micros(at) < gone.version < micros(at + timedelta(milliseconds=1))


async def test_a_shipment_that_is_named_before_it_is_visible_is_not_deleted(desk: Desk) -> None:
    """Its tombstone would be newer than the shipment, and hide it until its next change."""
    async with desk() as ward:
        young = ChangeHint("shipment:1", datetime.now(UTC))
        done = await ward.pull(change_hints=[young])
        assert not done.events and [item.hint for item in done.unfetched] == [young]
        ward.shelf.rows = [row(1, 1)]
        done = await ward.pull(change_hints=[young])
        assert done.ids[0] == "1" and done.acknowledged == ["shipment:1"]
        ward.shelf.rows = []
        old = ChangeHint("shipment:1", datetime.now(UTC) - timedelta(minutes=2))
        (gone,) = (await ward.pull(change_hints=[old])).events
        assert ward.source.document(gone).deleted


async def test_a_delete_is_above_what_we_have_and_below_what_comes_back(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [{"id": 1}]  # has no time of change
        there = (await ward.pull(change_hints=[ChangeHint("shipment:1")])).events[0]
        ward.shelf.rows = []
        gone = (await ward.pull(change_hints=[ChangeHint("shipment:1")])).events[0]
        assert there.version < gone.version


async def test_webhook_and_list_give_the_same_event(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(1, 1)]
        done = await ward.pull(change_hints=[ChangeHint("shipment:1", AT)])
        assert len(done.events) == 2
        assert len({event.event_id for event in done.events}) == 1


def failing(code: int = 200, **details: Any) -> Callable[[], Any]:
    return lambda: JSONResponse({"Status": "ERROR", "details": details}, code)


@pytest.mark.parametrize("details", [{"errorCode": "5000"}, {}])
async def test_a_status_other_than_success_is_tried_again_and_stops_no_neighbour(desk: Desk, details: dict[str, Any]) -> None:  # fmt: skip
    async with desk() as ward:
        ward.shelf.rows = [row(1, 1), row(2, 2), row(3, 3)]
        ward.shelf.answers["1"] = failing(**details)
        hints = [ChangeHint("shipment:1"), ChangeHint("shipment:2")]
        done = await ward.pull(change_hints=hints)
        assert done.acknowledged == ["shipment:2"]
        assert done.ids == ["2", "2", "3"]
        assert [item.hint.key for item in done.unfetched] == ["shipment:1"] * 2, "hint and list"
        reason = done.unfetched[0].reason
        assert "responded with Status ERROR" in str(reason) and reason.remedy
        assert ("5000" in str(reason)) == bool(details)
        again = await ward.pull(done.cursor)
        assert again.ids == ["3"] and not again.unfetched, "the list went past it"


async def test_where_failures_have_used_up_their_time_the_rest_of_the_list_is_left_as_hints(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_back, "FAULT_SECONDS", 1e-9)
    async with desk() as ward:
        ward.shelf.rows = [row(n, n) for n in range(1, 6)]
        ward.shelf.answers["2"] = failing()
        done = await ward.pull()
        assert done.ids == ["1"]
        assert [item.hint.key for item in done.unfetched] == ["shipment:2"]
        assert done.hints == ["shipment:3", "shipment:4", "shipment:5"]
        assert done.cursor["listed"], "the list was read to its end"


async def test_codes_that_mean_gone_are_a_setting(desk: Desk) -> None:
    async with desk(gone_codes=["4040"]) as ward:
        ward.shelf.answers["9"] = failing(errorCode=4040)
        done = await ward.pull(change_hints=[ChangeHint("shipment:9")])
        assert done.acknowledged == ["shipment:9"]
        assert ward.source.document(done.events[0]).deleted


async def test_what_cannot_be_read_is_kept_as_broken_beside_its_neighbours(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(1, 1), {"id": {"odd": 1}}, row(3, 3)]
        ward.shelf.answers["1"] = failing(422)
        done = await ward.pull()
        kinds = [event.content_type == MALFORMED for event in done.events]
        assert kinds == [True, False]
        assert json.loads(done.events[0].payload)["record"]["id"] == {"odd": 1}
        (failed,) = done.unfetched
        assert failed.hint.key == "shipment:1" and isinstance(failed.reason, Rejected)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: JSONResponse({"Status": "SUCCESS", "details": {"shipments": {}}}), Rejected),
        (lambda: JSONResponse({"Status": "SUCCESS", "details": []}), RetryLater),
        (lambda: JSONResponse({"details": {"shipments": []}}), RetryLater),
        (lambda: Response("<html>", 200), RetryLater),
        (lambda: Response("", 500), RetryLater),
        (lambda: Response("", 403), Unauthorized),
        (lambda: Response("", 400), Rejected),
    ],
)  # fmt: skip
async def test_answers_that_are_no_list_are_named(
    desk: Desk, answer: Callable[[], Any], error: type[Exception]
) -> None:
    async with desk() as ward:
        ward.shelf.answers["list"] = answer
        with pytest.raises(error, match="turvo"):
            await ward.pull()


async def test_a_token_is_fetched_once_and_again_when_it_ends(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.rows = [row(1, 1)]
        await ward.pull()
        await ward.pull()
        assert ward.shelf.calls.count("token") == 1
        ward.shelf.tokens.clear()
        await ward.pull()
        assert ward.shelf.calls.count("token") == 2


async def test_wrong_credentials_are_named(desk: Desk) -> None:
    async with desk(password="wrong") as ward:
        with pytest.raises(Unauthorized) as refused:
            await ward.pull()
        assert "sources.turvo" in refused.value.remedy


def test_the_destination_of_several_deliveries_is_the_last() -> None:
    def stop(kind: str, city: str) -> dict[str, Any]:
        return {**STOP, "stopType": {"key": kind}, "address": {"city": city, "state": "GA"}}

    route = [stop("1500", "Macon"), stop("1500", "Albany"), stop("1501", "Rome"), stop("1501", "Atlanta"), stop("1501", "")]  # fmt: skip
    route[-1]["address"] = {}
    document = document_of({**SINGLE, "lane": None, "customerOrder": [{"route": route}]})
    assert "Route: Macon, GA to Atlanta, GA" in document.text


@pytest.mark.parametrize(
    ("total", "currency", "shown"),
    [("1245.5", "USD", "1245.50 USD"), (1245, "JPY", "1245 JPY"), (12.345, "KWD", "12.345 KWD")],
)
def test_charges_keep_their_value(total: Any, currency: str, shown: str) -> None:
    costs = {"totalAmount": total, "currency": {"key": "1550", "value": currency}}
    document = document_of({**SINGLE, "customerOrder": [{"id": 1, "costs": costs}]})
    assert f"Charges: {shown}" in document.text
    assert shown in {fact.value for fact in document.assertions if fact.predicate == "amount"}


@pytest.mark.parametrize(
    ("date", "zone", "at"),
    [
        ("2025-11-01T19:00:00", "America/New_York", "2025-11-01T23:00:00+00:00"),
        ("2025-11-03T19:00:00", "America/New_York", "2025-11-04T00:00:00+00:00"),
        ("2025-11-03T19:00:00Z", "America/New_York", "2025-11-03T19:00:00+00:00"),
        ("2025-11-03T19:00:00-08:00", "America/New_York", "2025-11-04T03:00:00+00:00"),
        ("2025-11-03T19:00:00", "Nowhere/Town", "2025-11-03T19:00:00+00:00"),
        ("2025-11-03T19:00:00", "../../etc/passwd", "2025-11-03T19:00:00+00:00"),
        ("0001-01-01T00:00:00", "Asia/Tokyo", "0001-01-01T00:00:00+00:00"),
        ("2025-11-03T19:00:00", None, "2025-11-03T19:00:00+00:00"),
    ],
)
def test_a_date_without_an_offset_is_local_to_its_zone(
    date: str, zone: str | None, at: str
) -> None:
    document = document_of({**SINGLE, "endDate": {"date": date, "timeZone": zone}})
    times = [fact.value for fact in document.assertions if fact.predicate == "delivery_at"]
    assert times == [at]


def test_a_time_of_a_stop_is_local_to_the_stop() -> None:
    stop = {**STOP, "timezone": "America/Chicago", "appointment": {"start": "2025-11-03T08:00:00"}}
    document = document_of({**SINGLE, "customerOrder": [{"route": [stop]}]})
    assert "appointment 2025-11-03 14:00 UTC" in document.text
