"""SONAR: the relay's signature, what a message becomes, what a poll finds new, and how it keeps still while blocked."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Generic, TypeVar

import pytest
import pytest_asyncio
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.responses import JSONResponse

from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Assertion, Document, Event, micros
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.sonar import simulator as vendor
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, PullContext
from apex_memory.sources.registry import load
from apex_memory.sources.sonar.source import Sonar
from tests.unit.vendors import KeptTokens, emptied, vendor_client

AT = datetime(2025, 11, 1, 14, 3, 25, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret, of 32 bytes too!").decode()
RECORD = {"index": "OTRI", "qualifier": "ATL", "date": "2025-11-01", "value": 6.42}
MESSAGE = {"type": "index.value", "timestamp": "2025-11-01T14:03:20Z", "data": RECORD}


def sonar(**settings: Any) -> Sonar:
    source = load({"sonar": settings})["sonar"]
    assert isinstance(source, Sonar)
    return source


KEYED = sonar(relay_secrets=[SECRET])


def request(body: object, source: Sonar = KEYED, *, at: datetime = AT) -> InboundRequest:
    raw = json.dumps(body).encode()
    return InboundRequest(raw, source.sign(raw, at), {}, AT)


def received(body: object) -> list[Event]:
    return list(KEYED.receive(request(body)).events)


def document_from(body: object) -> Document:
    (event,) = received(body)
    return KEYED.document(event)


# The relay's signature


def test_what_the_published_library_signs_is_let_in() -> None:
    raw = json.dumps(MESSAGE)
    for secret in (SECRET, SECRET.rstrip("=")):
        headers = {
            "webhook-id": "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W",
            "webhook-timestamp": str(int(AT.timestamp())),
            "webhook-signature": Webhook(secret).sign("msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", AT, raw),
        }
        for source in (KEYED, sonar(relay_secrets=[secret])):
            (event,) = source.receive(InboundRequest(raw.encode(), headers, {}, AT)).events
            assert event.event_id == "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"


def test_what_we_and_the_simulator_sign_the_published_library_verifies() -> None:
    now, raw = datetime.now(UTC), json.dumps(MESSAGE).encode()
    assert Webhook(SECRET).verify(raw, dict(KEYED.sign(raw, now))) == MESSAGE
    assert Webhook(vendor.SECRET).verify(raw, dict(vendor.signed(raw, now))) == MESSAGE
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(raw, dict(KEYED.sign(raw, now)))


def test_both_secrets_are_active_during_rotation_on_either_side() -> None:
    both, other = sonar(relay_secrets=[SECRET, OTHER]), sonar(relay_secrets=[OTHER])
    for source in (KEYED, other):
        assert both.receive(request(MESSAGE, source)).events
    # A relay that rotates sends one signature for each of its secrets, and versions that we do not know.
    changed, two = request(MESSAGE, other), request(MESSAGE)
    several = " ".join(["v1a,AAAA", changed.headers["webhook-signature"], two.headers["webhook-signature"], "v2,"])  # fmt: skip
    headers = {**changed.headers, "webhook-signature": several}
    for source in (KEYED, other):
        assert source.receive(InboundRequest(changed.body, headers, {}, AT)).events


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "no comma"},
        {"webhook-id": "msg_other"},
        {"webhook-id": "é"},
        {"webhook-id": ""},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "1762005806"},
        {"webhook-timestamp": "1762005805.0"},
        {"webhook-timestamp": "٣"},
    ],
)
def test_a_tampered_message_is_refused(changes: dict[str, str]) -> None:
    good = request(MESSAGE)
    assert good.headers["webhook-timestamp"] == "1762005805"
    with pytest.raises(Unauthorized) as refused:
        KEYED.receive(InboundRequest(good.body, {**good.headers, **changes}, {}, AT))
    assert refused.value.remedy
    with pytest.raises(Unauthorized):
        KEYED.receive(InboundRequest(good.body + b" ", good.headers, {}, AT))


@pytest.mark.parametrize(("seconds", "allowed"), [(300, True), (-300, True), (302, False), (-302, False)])  # fmt: skip
def test_the_replay_window(seconds: int, allowed: bool) -> None:
    late = request(MESSAGE, at=AT + timedelta(seconds=seconds))
    if allowed:
        assert KEYED.receive(late).events
    else:
        with pytest.raises(Unauthorized, match="302 s away"):
            KEYED.receive(late)


def test_a_secret_that_is_no_base64_is_taken_as_it_is() -> None:
    raw = json.dumps(MESSAGE).encode()
    headers = sonar(relay_secrets=["plain"]).sign(raw, AT)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(b"plain", signed, "sha256")).decode()  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"relay_secrets": [""]}, r"relay_secrets\.0"),
        ({"relay_secrets": ["whsec_"]}, "relay_secrets"),
        ({"relay_secrets": ["whsec_no base64"]}, "relay_secrets"),
        ({"relay_secrets": ["a", "b", "c"]}, "relay_secrets"),
        ({"series": ["OTRI"]}, r"series\.0"),
        ({"series": ["OTRI/USA/x"]}, r"series\.0"),
        ({"block_seconds": 0}, "block_seconds"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(Misconfigured, match=rf"sources\.sonar\.{name}"):
        sonar(**settings)


def test_what_is_not_set_is_named() -> None:
    given = {"username": "u", "password": "p", "series": ["OTRI/USA"]}
    assert sonar(**given).missing_settings == ""
    assert [sonar(**{k: v for k, v in given.items() if k != name}).missing_settings for name in given] == list(given)  # fmt: skip
    with pytest.raises(Misconfigured, match="relay_secrets"):
        sonar().sign(b"", AT)
    with pytest.raises(Unauthorized) as refused:
        sonar().receive(request(MESSAGE))
    assert "sources.sonar.relay_secrets" in refused.value.remedy


def test_the_pause_between_polls_is_a_setting() -> None:
    assert (sonar().poll_every, sonar(poll_seconds=3600).poll_every) == (21_600, 3600)


# What a message becomes


def test_an_index_value() -> None:
    (event,) = received(MESSAGE)
    assert (event.doc_key, event.occurred_at) == ("index:OTRI/ATL/2025-11-01", datetime(2025, 11, 1, tzinfo=UTC))  # fmt: skip
    assert event.version == micros(datetime(2025, 11, 1, 14, 3, 20, tzinfo=UTC))
    document = KEYED.document(event)
    assert document.text == (
        "Index: OTRI Outbound Tender Reject Index\nMarket: ATL\nDate: 2025-11-01\nValue: 6.42"
    )
    assert (document.kind, document.title) == ("market_index", "OTRI ATL 2025-11-01: 6.42")
    assert Assertion(predicate="of", object="index:OTRI/ATL") in document.assertions
    assert document.metadata["value"] == 6.42


@pytest.mark.parametrize(
    "record",
    [
        {"INDEX": "otri", "Qualifier": "atl", "DATE": "2025-11-01T00:00:00", "VALUE": "6.42"},
        {"ticker": "OTRI", "granularity": "ATL", "data_Timestamp": "2025-11-01T00:00:00Z", "data_Value": 6.42},
        {**RECORD, "unit": "percent", "more": {"a": [1]}},
    ],
)  # fmt: skip
def test_fields_are_read_whatever_their_case(record: dict[str, Any]) -> None:
    (event,) = received({**MESSAGE, "data": record})
    assert event.doc_key == "index:OTRI/ATL/2025-11-01"
    assert KEYED.document(event).text.startswith(
        "Index: OTRI Outbound Tender Reject Index\nMarket: ATL\nDate: 2025-11-01\nValue: 6.42"
    )
    assert json.loads(event.payload) == record  # kept as it came


def test_a_lane_is_spelt_out_and_a_withdrawn_value_is_a_delete() -> None:
    assert "\nLane: ATL to DAL\n" in document_from({**MESSAGE, "data": {**RECORD, "qualifier": "ATLDAL"}}).text  # fmt: skip
    assert document_from({**MESSAGE, "data": {**RECORD, "value": None}}).deleted


def test_records_of_one_message_are_events_and_a_bad_one_stops_none() -> None:
    records = [RECORD, {**RECORD, "value": "high"}, 5, {**RECORD, "qualifier": "DAL"}]
    events = received({**MESSAGE, "data": records})
    assert [event.content_type == MALFORMED for event in events] == [False, True, True, False]
    assert events[3].event_id.endswith("#3")
    assert "expected a number" in json.loads(events[1].payload)["reason"]


def test_an_alert() -> None:
    data = {"id": "alr_1", "title": "Rejections jump", "text": "SHP-100045 is on this lane.", "severity": "high", "index": "otri", "qualifier": "atl", "nested": [1]}  # fmt: skip
    (event,) = received({**MESSAGE, "type": "alert", "data": data})
    assert event.doc_key == "alert:alr_1"
    document = KEYED.document(event)
    assert document.text == (
        "Alert: Rejections jump\nId: alr_1\nIndex: otri\nNested: 1\nQualifier: atl\nSeverity: high\n\nSHP-100045 is on this lane."
    )
    assert (document.kind, document.occurred_at) == ("market_alert", datetime(2025, 11, 1, 14, 3, 20, tzinfo=UTC))  # fmt: skip
    assert document.assertions == (Assertion(predicate="of", object="index:OTRI/ATL"),)


def test_a_relay_whose_clock_runs_ahead_hides_nothing_that_follows() -> None:
    (event,) = received({**MESSAGE, "timestamp": "2099-01-01T00:00:00Z"})
    assert event.version == micros(AT)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ([], "body"),
        ({**MESSAGE, "timestamp": None}, "timestamp"),
        ({**MESSAGE, "type": "news"}, "type, data"),
        ({**MESSAGE, "type": "alert", "data": []}, "type, data"),
        ({**MESSAGE, "data": []}, "type, data"),
        ({**MESSAGE, "data": [RECORD] * 1001}, "type, data"),
        ({**MESSAGE, "data": {**RECORD, "index": ""}}, "index"),
        ({**MESSAGE, "data": {**RECORD, "index": "x" * 101}}, "index"),
        ({**MESSAGE, "data": {**RECORD, "qualifier": {}}}, "qualifier"),
        ({**MESSAGE, "data": {**RECORD, "date": "soon"}}, "date"),
        ({**MESSAGE, "data": {**RECORD, "value": True}}, "value"),
        ({**MESSAGE, "data": {**RECORD, "value": "nan"}}, "value"),
        ({**MESSAGE, "type": "alert", "data": {"id": []}}, r"data\.id"),
    ],
)
def test_malformed_messages_are_refused_by_place(body: object, place: str) -> None:
    with pytest.raises(Rejected, match=f"^{place}: ") as refused:
        received(body)
    assert refused.value.remedy


# What a poll finds new


class Shelf(vendor.Sonar):
    """A SONAR with the responses that a test puts there, by series. `refusal`: status and `Retry-After`."""

    def __init__(self) -> None:
        world = World.make(1, shipments=1)
        super().__init__(world, Clock(world.start), Chaos())
        self.held: dict[str, Any] = {}
        self.refusal: tuple[int, str] | None = None
        self.requests: list[str] = []

    async def authenticate(self, request: Any) -> Any:
        self.requests.append("token")
        return self._refuse() or await super().authenticate(request)

    async def values(self, request: Any) -> Any:
        path = request.path_params
        series = f"{path['index']}/{path['qualifier']}"
        self.requests.append(f"{series} {path['start']} {path['end']}")
        if refused := self._refuse():
            return refused
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return JSONResponse({}, 401)
        held = self.held.get(series)
        return JSONResponse(held) if held is not None else JSONResponse({}, 404)

    def _refuse(self) -> Any:
        if not self.refusal:
            return None
        status, wait = self.refusal
        return JSONResponse({}, status, {"Retry-After": wait} if wait else {})


SonarT = TypeVar("SonarT", bound=vendor.Sonar)


@dataclass
class Ward(Generic[SonarT]):
    """The source before its shelf. What a page brought is kept, as a worker does."""

    shelf: SonarT
    source: Sonar
    client: VendorClient
    cursor: dict[str, Any] = field(default_factory=dict)

    async def pull(self, *, window: BackfillRange | None = None, pages: int = 1000) -> list[Event]:
        events: list[Event] = []
        done = 0
        context = PullContext(client=self.client, cursor=self.cursor, window=window)
        async for page in self.source.pull(context):
            events += page.events
            if page.cursor is not None:
                self.cursor = json.loads(json.dumps(page.cursor))
            done += 1
            if done == pages:
                break
        return events


Desk = Callable[..., AbstractAsyncContextManager[Ward[Shelf]]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served() -> AsyncIterator[SimulatorServer]:
    async with serve_simulators([Shelf()]) as served:
        yield served


@pytest.fixture
def desk(served: SimulatorServer) -> Desk:
    """Opens a source, with settings, before an empty shelf."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Ward[Shelf]]:
        async with emptied(served, Shelf) as (shelf, given, client):
            given |= {"series": ["otri/usa"], "since": "2025-10-30"}
            yield Ward(shelf, sonar(**{**given, "block_seconds": 600, **settings}), client)

    return opened


def days(**values: float | None) -> list[dict[str, Any]]:
    """`d01=6.4`: the value of November 1."""
    return [
        {"date": f"2025-11-{name[1:]}", "value": value, "index": "OTRI", "qualifier": "USA"}
        for name, value in values.items()
    ]


def shown(events: list[Event]) -> dict[str, float]:
    return {event.doc_key[-10:]: json.loads(event.payload)["value"] for event in events}


async def test_new_and_restated_values_are_events_and_others_are_not(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = days(d01=6.4, d02=6.5)
        first = await ward.pull()
        assert shown(first) == {"2025-11-01": 6.4, "2025-11-02": 6.5}
        assert await ward.pull() == []
        ward.shelf.held["OTRI/USA"] = days(d01=6.4, d02=6.9, d03=7.0)
        assert shown(await ward.pull()) == {"2025-11-02": 6.9, "2025-11-03": 7.0}
        ward.shelf.held["OTRI/USA"] = days(d01=6.4, d02=6.5, d03=7.0)
        back = await ward.pull()  # to a value that it had before: a version of its own all the same
        assert shown(back) == {"2025-11-02": 6.5}
        assert back[0].event_id != first[1].event_id and back[0].version > first[1].version


async def test_a_withdrawn_value_is_a_delete_and_one_that_never_came_is_nothing(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = days(d01=6.4, d02=None)
        assert list(shown(await ward.pull())) == ["2025-11-01"]
        ward.shelf.held["OTRI/USA"] = days(d01=None, d02=None)
        (gone,) = await ward.pull()
        assert ward.source.document(gone).deleted
        assert await ward.pull() == []


async def test_the_days_requested(desk: Desk) -> None:
    async with desk(reread_days=2) as ward:
        ward.shelf.held["OTRI/USA"] = []
        today = datetime.now(UTC).date()
        await ward.pull()
        ward.shelf.held["OTRI/USA"] = days(d01=6.4, d05=6.5)
        await ward.pull()
        await ward.pull()
        first, fresh = f"OTRI/USA 2025-10-30 {today}", f"OTRI/USA 2025-11-03 {today}"
        assert ward.shelf.requests == ["token", first, first, fresh]
    async with desk(since=None) as ward:
        ward.shelf.held["OTRI/USA"] = []
        await ward.pull()
        assert ward.shelf.requests[1] == f"OTRI/USA {today - timedelta(days=30)} {today}"


async def test_records_in_other_forms(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = {"Count": 1, "Data": [{"data_Timestamp": "2025-11-01T00:00:00", "data_Value": "6.4"}]}  # fmt: skip
        (event,) = await ward.pull()
        assert event.doc_key == "index:OTRI/USA/2025-11-01"
        assert json.loads(event.payload)["data_Value"] == "6.4"
        assert await ward.pull() == []
        # The record names another series than the request: it is kept under its own name, and recognised.
        ward.shelf.held["OTRI/USA"] = [{**days(d01=1.0)[0], "qualifier": "United States"}]
        assert (await ward.pull())[0].doc_key == "index:OTRI/UNITED STATES/2025-11-01"
        assert await ward.pull() == []


async def test_of_a_day_that_occurs_twice_the_last_value_counts(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = [*days(d01=6.4), *days(d01=6.5)]
        events = await ward.pull()
        assert len({event.event_id for event in events}) == 2
        assert json.loads(max(events, key=lambda event: event.version).payload)["value"] == 6.5


async def test_a_broken_record_stops_no_other_and_a_missing_series_no_other(desk: Desk) -> None:
    async with desk(series=["NONE/USA", "OTRI/USA"]) as ward:
        ward.shelf.held["OTRI/USA"] = [{"value": 1}, *days(d01=6.4)]
        with pytest.raises(Rejected, match="404"):
            await ward.pull()
        assert list(ward.cursor["seen"]) == ["OTRI/USA"]
        ward.cursor = {}
        ward.shelf.held["NONE/USA"] = []
        events = await ward.pull()
        assert [event.content_type == MALFORMED for event in events] == [True, False]


@pytest.mark.parametrize("answer", [{"a": [], "b": []}, {}, "x", 5])
async def test_a_response_without_records_is_an_error_that_names_it(
    desk: Desk, answer: object
) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = answer
        with pytest.raises(Rejected, match="not a list of records") as refused:
            await ward.pull()
        assert refused.value.remedy


async def test_a_worker_that_dies_between_two_series_goes_on_behind_the_first(desk: Desk) -> None:
    async with desk(series=["OTRI/USA", "OTVI/ATL"]) as ward:
        ward.shelf.held["OTRI/USA"] = days(d01=6.4)
        ward.shelf.held["OTVI/ATL"] = [{"date": "2025-11-01", "value": 9}]
        assert len(await ward.pull(pages=1)) == 1
        assert [event.doc_key for event in await ward.pull()] == ["index:OTVI/ATL/2025-11-01"]


async def test_a_backfill_fetches_in_parts_and_continues_where_it_was(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = days(d01=6.4)
        window = BackfillRange(datetime(2023, 1, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC))
        await ward.pull(window=window, pages=1)
        await ward.pull(window=window)
        assert ward.shelf.requests == ["token", "OTRI/USA 2023-01-01 2024-01-01", "OTRI/USA 2024-01-02 2024-06-01"]  # fmt: skip
        assert await ward.pull(window=window) == []


# How it keeps still


@pytest.mark.parametrize(
    ("status", "wait", "seconds"),
    [(429, "", 600), (429, "30", 30), (451, "", 600), (451, "30", 600), (451, "900", 900)],
)
@pytest.mark.parametrize("where", ["token", "values"])
async def test_a_refusal_ends_the_poll_and_nothing_is_requested_until_it_is_over(
    desk: Desk, status: int, wait: str, seconds: float, where: str
) -> None:
    async with desk(series=["OTRI/USA", "OTVI/ATL"]) as ward:
        if where == "values":
            ward.shelf.held["OTRI/USA"] = ward.shelf.held["OTVI/ATL"] = []
            await ward.pull()
        ward.shelf.requests.clear()
        ward.shelf.refusal = (status, wait)
        with pytest.raises(RetryLater, match=str(status)) as refused:
            await ward.pull()
        assert refused.value.after == pytest.approx(seconds)
        assert len(ward.shelf.requests) == 1, "not one call more"
        ward.shelf.refusal = None
        for _ in range(3):
            with pytest.raises(RetryLater, match="blocks calls until") as waiting:
                await ward.pull()
            assert seconds - 5 < waiting.value.after <= seconds
        assert len(ward.shelf.requests) == 1, "asking on would make the block longer"
        ward.cursor["until"] = micros(datetime.now(UTC))
        ward.shelf.held["OTRI/USA"] = ward.shelf.held["OTVI/ATL"] = []
        await ward.pull()
        assert len(ward.shelf.requests) >= 3


async def test_a_short_block_is_waited_out_in_place(desk: Desk) -> None:
    async with desk(block_seconds=0.05) as ward:
        ward.shelf.held["OTRI/USA"] = days(d01=6.4)
        ward.shelf.refusal = (451, "")
        with pytest.raises(RetryLater):
            await ward.pull()
        ward.shelf.refusal = None
        assert len(await ward.pull()) == 1


async def test_the_simulator_blocks_whoever_goes_on_and_we_do_not() -> None:
    world = World.make(1, shipments=1)
    simulator = vendor.Sonar(
        world, Clock(world.start + timedelta(hours=4)), Chaos(limits=0.5, seed=3)
    )
    tokens = KeptTokens()
    async with (
        serve_simulators([simulator]) as served,
        vendor_client("sonar", tokens, patience=0.2) as client,
    ):
        source = sonar(**served.settings()["sonar"])
        ward = Ward(simulator, source, client)
        refused = 0
        for _ in range(12):
            try:
                await ward.pull()
            except RetryLater:
                refused += 1
        assert refused >= 3
        assert simulator.hammered == 0
        simulator.closed = float("inf")
        with pytest.raises(RetryLater, match="451"):
            await ward.pull()
        assert simulator.hammered == 1  # a negative control: it does count


async def test_a_token_is_kept_and_renewed_when_it_is_refused(desk: Desk) -> None:
    async with desk() as ward:
        ward.shelf.held["OTRI/USA"] = []
        for _ in range(2):
            await ward.pull()
        assert ward.shelf.requests.count("token") == 1
        ward.shelf.tokens.clear()
        await ward.pull()
        assert ward.shelf.requests.count("token") == 2


async def test_wrong_credentials_are_named(desk: Desk) -> None:
    async with desk(password="wrong") as ward:
        with pytest.raises(Unauthorized) as refused:
            await ward.pull()
        assert "sources.sonar" in refused.value.remedy


def test_the_first_day_may_come_from_the_environment() -> None:
    assert sonar(since="2025-11-01", series='["OTRI/USA"]').settings.since == date(2025, 11, 1)


@pytest.mark.parametrize(
    "date", ["2025-11-01", "2025-11-01T20:00:00-05:00", "2025-11-01T00:00:00+02:00", 1761955200]
)
def test_a_zone_does_not_move_a_value_to_another_day(date: object) -> None:
    (event,) = received({**MESSAGE, "data": {**RECORD, "date": date}})
    assert event.doc_key == "index:OTRI/ATL/2025-11-01"
