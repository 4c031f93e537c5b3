"""The month as its vendors report it: the simulators' webhooks, API pages and files, read by the sources' own code.

Nothing is served on a port: the sources' clients call the simulators' routes in this process.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.routing import Mount

from apex_memory.model import MALFORMED, TOMBSTONE, Event, micros
from apex_memory.simulate.edi.messages import US as OUR_EDI_ID
from apex_memory.simulate.edi.messages import Message, messages_of
from apex_memory.simulate.edi.simulator import EdiSimulator
from apex_memory.simulate.frontapp.simulator import FrontSimulator
from apex_memory.simulate.hubspot.objects import Version
from apex_memory.simulate.hubspot.simulator import HubSpot
from apex_memory.simulate.llm.simulator import LLMSimulator
from apex_memory.simulate.plaid.simulator import PlaidSimulator
from apex_memory.simulate.quickbooks.simulator import QuickBooks
from apex_memory.simulate.samsara.simulator import Arrival, Samsara
from apex_memory.simulate.sonar import simulator as sonar
from apex_memory.simulate.turvo.simulator import Turvo
from apex_memory.simulate.vendor import Chaos, Push, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.auth import Renew, Token
from apex_memory.sources.base import (
    FileSource,
    InboundRequest,
    PulledSource,
    Source,
    as_stream_source,
)
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import InboundFile, PullContext, Reading
from bench.memory.month.company import BEGIN, MONTH, NOW, make_world

BASE = "http://127.0.0.1:9"
"""The address of the simulators. Nobody connects to it: calls stay in this process."""

PUSHED = ("llm", "samsara", "sonar")
NEVER_DELETED = ("edi", "llm", "sonar")
"""Sources whose documents are not deleted by an event of their own format."""
PULLED = ("frontapp", "hubspot", "plaid", "quickbooks", "turvo")
POSITIONS_EVERY = 300  # seconds between two positions of a moving truck
RECENT_SECONDS = 7_200  # the newest reading of any truck is not older: parked ones report each hour
FEED_READ_AT = (
    MONTH + timedelta(days=9, hours=10),
    MONTH + timedelta(days=17, hours=15),
    NOW - timedelta(hours=20),
    NOW,
)
"""When the feed of positions is read: each time it returns the newest position of every truck."""

MARKETS = (("OTRI", "USA"), ("OTVI", "ATL"), ("OTRI", "CHI"), ("NTI", "USA"), ("OTRI", "DAL"))
MARKET_DAYS = 26  # days of the month with a value of each market index
DECLINES_EVERY = 3  # cancelled loads: of so many one has no answer but a declined tender


class _DatedTurvo(Turvo):
    """Turvo with a time of change in every record: without one the time of the fetch would be this machine's."""

    def _record(self, id: str) -> dict[str, Any] | None:
        record = super()._record(id)
        if record and "statusHistory" in record:
            record.setdefault("lastUpdatedOn", record["statusHistory"][-1]["lastUpdatedOn"])
        return record


class _RecentSamsara(Samsara):
    """Samsara that looks for the newest readings in the last hours only, not in the whole month."""

    def _latest(self, until: int) -> list[Arrival]:
        newest: dict[tuple[str, str], Arrival] = {}
        for item in self._arrived(until - RECENT_SECONDS, until):
            newest[item.truck, item.kind] = max(
                item, newest.get((item.truck, item.kind), item), key=lambda each: each.time
            )
        return list(newest.values())


@dataclass(slots=True)
class Vendors:
    """The simulators of one world, at one time."""

    world: World
    clock: Clock
    by_name: dict[str, Simulator] = field(init=False)

    def __post_init__(self) -> None:
        kinds = (FrontSimulator, HubSpot, LLMSimulator, PlaidSimulator, QuickBooks, sonar.Sonar)
        made: list[Simulator] = [
            kind(self.world, self.clock, Chaos()) for kind in (*kinds, _DatedTurvo)
        ]
        made.append(_RecentSamsara(self.world, self.clock, Chaos(), every=POSITIONS_EVERY))
        self.by_name = {simulator.name: simulator for simulator in made}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the tables `[sources.NAME]` that fit the simulators."""
        tables = {}
        for name, simulator in self.by_name.items():
            tables[name] = simulator.settings(f"{BASE}/{name}")
        tables["turvo"]["page_size"] = 100
        tables["edi"] = {"own_ids": [OUR_EDI_ID]}
        return tables

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Mount(f"/{name}", routes=list(simulator.routes()))
                for name, simulator in self.by_name.items()
            ]
        )


@cache
def vendors() -> Vendors:
    """Return the simulators at the month's end."""
    world = make_world()
    made = Vendors(world, Clock(NOW))
    _add_sales(made)
    _add_books(made)
    return made


async def simulated_events(sources: Mapping[str, Source]) -> list[Event]:
    """Return the newest event of each document that exists when the month ends."""
    made = vendors()
    events: list[Event] = []
    for name in PUSHED:
        for push in _pushes(made, name):
            events += _received(sources[name], push)
    async with _client(made) as http:
        for name in PULLED:
            cursor = {"after": micros(BEGIN)} if name == "frontapp" else {}
            events += await _pulled(sources[name], _vendor_client(name, http), cursor)
        events += await _positions(made, sources["samsara"], _vendor_client("samsara", http))
    for file in _files(made.world):
        source = sources["edi"]
        assert isinstance(source, FileSource)
        events += source.unpack(file).events
    return _newest(sources, events)


def _newest(sources: Mapping[str, Source], events: Sequence[Event]) -> list[Event]:
    """Return the newest event of each document, without those of deleted documents."""
    newest: dict[tuple[str, str], Event] = {}
    for event in events:
        assert event.content_type != MALFORMED, event.payload
        key = (event.source, event.doc_key)
        known = newest.get(key)
        order = (event.version, event.event_id)
        if known is None or (known.version, known.event_id) < order:
            newest[key] = event
    return [event for event in newest.values() if not _is_deletion(sources[event.source], event)]


def _is_deletion(source: Source, event: Event) -> bool:
    if event.source in NEVER_DELETED:
        return event.content_type == TOMBSTONE
    return source.document(event).deleted


def _pushes(made: Vendors, name: str) -> list[Push]:
    before = made.world.start - timedelta(days=3)
    pushes = list(made.by_name[name].pushes(before, NOW))
    if name == "sonar":
        pushes += _market_values()
    return pushes


def _received(source: Source, push: Push) -> Sequence[Event]:
    headers = {"content-type": push.content_type}
    for name, value in push.sign(push.body, push.at).items():
        headers[name.lower()] = value
    return source.receive(InboundRequest(push.body, headers, {}, push.at)).events


def _market_values() -> Iterator[Push]:
    """Yield the daily values of the market indexes, as a relay sends them."""
    for day in range(MARKET_DAYS):
        at = MONTH + timedelta(days=day, hours=5)
        for n, (index, qualifier) in enumerate(MARKETS):
            wave = (day * (n + 3)) % 11 - 5
            base = (8.4, 11_900, 7.1, 2.31, 9.6)[n]
            value = round(base * (1 + wave / 60), 2)
            body = {"Index": index, "Qualifier": qualifier, "Date": f"{at:%Y-%m-%d}T00:00:00", "Value": value}  # fmt: skip
            message = {"type": "index.value", "timestamp": at.isoformat(), "data": body}
            yield Push(at, "/hooks/sonar", json.dumps(message).encode(), sonar.signed)


@dataclass(slots=True)
class _Tokens:
    """Tokens in memory, in the place of the vault."""

    kept: dict[str, Token] = field(default_factory=dict)

    async def current(self, name: str) -> Token | None:
        return self.kept.get(name)

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        self.kept[name] = await renew(self.kept.get(name))
        return self.kept[name]


@asynccontextmanager
async def _client(made: Vendors) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=made.application())
    async with httpx2.AsyncClient(transport=transport) as http:
        yield http


def _vendor_client(name: str, http: httpx2.AsyncClient) -> VendorClient:
    return VendorClient(name, http, _Tokens(), rate_limits=lambda: [(100_000, 1)], patience=0)


async def _pulled(source: Source, client: VendorClient, cursor: Mapping[str, Any]) -> list[Event]:
    assert isinstance(source, PulledSource)
    events: list[Event] = []
    async for page in source.pull(PullContext(client=client, cursor=cursor)):
        events += page.events
    return events


async def _positions(made: Vendors, source: Source, client: VendorClient) -> list[Event]:
    """Return the windows of telematics that hold the newest readings at each time that the feed is read."""
    stream = as_stream_source(source)
    simulator = made.by_name["samsara"]
    assert isinstance(simulator, Samsara)
    readings: set[tuple[str, str, datetime, str]] = set()
    for at in FEED_READ_AT:
        simulator.clock = Clock(at)
        async for page in stream.pull(PullContext(client=client)):
            for item in page.readings:
                readings.add((item.series, item.kind, item.at, json.dumps(item.value)))
    simulator.clock = made.clock
    windows: dict[tuple[str, datetime], list[Reading]] = {}
    for series, kind, at, value in sorted(readings):
        seconds = int(at.timestamp()) // stream.window_seconds * stream.window_seconds
        reading = Reading(series=series, kind=kind, at=at, value=json.loads(value))
        windows.setdefault((series, datetime.fromtimestamp(seconds, UTC)), []).append(reading)
    events = []
    for (series, start), items in windows.items():
        items.sort(key=lambda item: item.at)
        events.append(stream.aggregate_window(series, start, items, 1))
    return events


class _Files(EdiSimulator):
    """The files of the world and of declined tenders; the mailboxes stay closed."""

    def _messages(self) -> Iterator[Message]:
        for shipment in self.world.shipments:
            yield from messages_of(shipment)
        for shipment in declined_loads(self.world):
            at = (shipment.cancelled_at or NOW) - timedelta(minutes=20)
            scac, day = shipment.carrier.scac, f"{at:%Y%m%d}"
            segments = [
                ("ST", "990"),
                ("B1", scac, shipment.id, day, "D"),
                ("N9", "CN", shipment.pro),
            ]
            key = f"response:{scac}:{shipment.id}"
            yield Message(at, scac, OUR_EDI_ID, "GF", segments, key, "Answer: declined")


def declined_loads(world: World) -> list[Any]:
    """Return the loads whose carrier took them first and declined in the end."""
    cancelled = [shipment for shipment in world.shipments if shipment.cancelled_at]
    return cancelled[::DECLINES_EVERY]


def _files(world: World) -> Iterator[InboundFile]:
    for file in _Files(world, Clock(NOW), Chaos())._scheduled:
        if file.at <= NOW:
            yield InboundFile(file.name, file.data)


DEALS = (
    (7001, "Kestwick Ceramics: Denver to Dallas, dedicated", "qualifiedtobuy", "88400.00", "Two trucks a week from March. They want a trial in February and a rate that holds until summer."),
    (7002, "Pomelo Juice Works: Atlanta cross-dock", "presentationscheduled", "41250.00", "Their procurement sees our slides on February 5. Competes with their present forwarder on claims, not on rate."),
    (7003, "Old Mill Flour: Kansas City bulk bags", "decisionmakerboughtin", "63700.00", "The plant manager is for it, the owner has to sign. Needs food-grade trailers with washout papers."),
    (7004, "Bluehorn Cycles: Chicago to Charlotte", "closedlost", "29900.00", "Gone to a carrier of their own family. Ask again in autumn."),
    (7005, "Marrow Bone Treats: Memphis outbound", "closedlost", "17500.00", "They found us 11 percent too dear and did not want to hear about detention."),
    (7006, "Tidewater Tea: summer surge", "contractsent", "152000.00", "Fourteen extra loads a week from May to August. The contract is with Rosalind's lawyers."),
    (7007, "Voltedge Batteries: hazmat lane to Columbus", "appointmentscheduled", "74800.00", "First call with Kwame on February 3. Drivers need the hazmat endorsement."),
)  # fmt: skip


def _add_sales(made: Vendors) -> None:
    """Add deals that are no loads yet."""
    crm = made.by_name["hubspot"]
    assert isinstance(crm, HubSpot)
    for n, (id, name, stage, amount, description) in enumerate(DEALS):
        properties = {
            "dealname": name,
            "dealstage": stage,
            "pipeline": "default",
            "amount": amount,
            "deal_currency_code": "USD",
            "description": description,
        }
        crm.put("deals", id, Version(MONTH + timedelta(days=3 * n, hours=9), properties))


BILL_DAYS = 21
"""Days until a carrier's bill is due."""


def _add_books(made: Vendors) -> None:
    """Add the due date to each carrier's bill, and its payment where it is paid."""
    quickbooks = made.by_name["quickbooks"]
    assert isinstance(quickbooks, QuickBooks)
    for shipment in made.world.shipments:
        id = str(shipment.number - 100_000)
        versions = quickbooks.books.versions.get(("Bill", id))
        if not versions:
            continue
        at, body = versions[-1]
        due = at + timedelta(days=BILL_DAYS)
        bill = {**body, "DueDate": f"{due:%Y-%m-%d}"}
        quickbooks.books.put("Bill", id, at + timedelta(minutes=1), bill)
        if bill_paid_at(shipment):
            link = [{"TxnId": str(8_000 + int(id)), "TxnType": "BillPaymentCheck"}]
            note = f"{shipment.pro} for {shipment.id}, paid by wire."
            paid = {**bill, "Balance": 0, "LinkedTxn": link, "PrivateNote": note}
            quickbooks.books.put("Bill", id, bill_paid_at(shipment) or at, paid)


def bill_paid_at(shipment: Any) -> datetime | None:
    """Return when the carrier's bill is paid: after 18 days, but every fifth one is forgotten. None if it is open at the end."""
    delivered = shipment.at("delivered")
    if delivered is None or shipment.number % 5 == 0:
        return None
    at: datetime = delivered + timedelta(days=18)
    return at if at <= NOW else None
