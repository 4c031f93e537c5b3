"""Samsara: its webhooks' signature, its feed with all that can be wrong in it, and what both become."""

from __future__ import annotations

import asyncio
import base64
import copy
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, cast

import httpx2
import pytest
from starlette.requests import Request as Asking
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.errors import Misconfigured, Rejected, RetryLater, Unauthorized
from apex_memory.model import MALFORMED, Assertion, Document, Event, Priority, micros, now
from apex_memory.simulate.samsara.simulator import Samsara as Simulated
from apex_memory.simulate.server import serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.base import InboundRequest
from apex_memory.sources.pages import BackfillRange, Page, PullContext, Reading
from apex_memory.sources.payloads import parse_json, sample
from apex_memory.sources.registry import load
from apex_memory.sources.samsara.source import Samsara
from apex_memory.sources.samsara.stats import VEHICLE, read_vehicle
from tests.unit.vendors import Played, vendor_client

SECRET = "c2Ftc2FyYS1leGFtcGxlLXNlY3JldC0wMDAx"
OTHER = base64.b64encode(b"another secret").decode()
AT = datetime.fromtimestamp(1761955200, UTC)
VECTOR = InboundRequest(
    body=b'{"eventId":"5a0c1c7e-0000-4000-8000-000000000001","eventTime":"2025-11-01T00:00:00Z","eventType":"geofenceEntry","orgId":20001,"webhookId":"1411750000000001","data":{}}',
    headers={
        "x-samsara-timestamp": "1761955200",
        "x-samsara-signature": "v1=f798e4e679df00c31f520eb0bf39360e4be277d43b5318ff6140d1420892fdc5",
    },
    query={},
    received_at=AT,
)
FEED: dict[str, Any] = {
    "data": [
        {
            "id": "281474900000001",
            "name": "Unit 204",
            "externalIds": {"samsara.vin": "1EXAMPLEVIN000001"},
            "gps": [
                {
                    "time": "2025-11-01T14:03:20Z",
                    "latitude": 39.9612,
                    "longitude": -82.9988,
                    "headingDegrees": 182,
                    "speedMilesPerHour": 61.5,
                    "reverseGeo": {"formattedLocation": "I-71, Columbus, OH, 43215"},
                    "isEcuSpeed": True,
                }
            ],
            "engineStates": [{"time": "2025-11-01T14:03:18Z", "value": "On"}],
            "fuelPercents": [{"time": "2025-11-01T14:03:18Z", "value": 71}],
        }
    ],
    "pagination": {"endCursor": "9b1d2c1e", "hasNextPage": False},
}
START = datetime(2025, 11, 1, 14, tzinfo=UTC)
SANE = BackfillRange(START - timedelta(days=400), START + timedelta(days=1))


def samsara(**settings: Any) -> Samsara:
    source = load({"samsara": settings})["samsara"]
    assert isinstance(source, Samsara)
    return source


KEYED = samsara(webhook_secrets=[SECRET, OTHER])


def webhook(kind: str = "GeofenceEntry", **data: Any) -> dict[str, Any]:
    return {
        "eventId": "5a0c1c7e-0000-4000-8000-000000000009",
        "eventTime": "2025-11-01T14:03:20.5Z",
        "eventType": kind,
        "orgId": 20001,
        "data": data,
    }


def event_of(body: dict[str, Any]) -> Event:
    raw = json.dumps(body).encode()
    (result,) = KEYED.receive(InboundRequest(raw, KEYED.sign(raw, AT), {}, AT)).events
    return result


def document_of(body: dict[str, Any]) -> Document:
    return KEYED.document(event_of(body))


# Webhooks


def test_the_vector() -> None:
    source = samsara(webhook_secrets=[SECRET])
    assert source.sign(VECTOR.body, AT) == VECTOR.headers
    (event,) = source.receive(VECTOR).events
    assert event.event_id == event.doc_key == "event:5a0c1c7e-0000-4000-8000-000000000001"
    assert (event.version, event.payload) == (micros(AT), VECTOR.body)
    document = source.document(event)
    assert (document.kind, document.title, document.deleted) == ("vehicle_event", "Geofence entry", False)  # fmt: skip


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_both_secrets_are_active_during_rotation(secret: str) -> None:
    KEYED.receive(
        InboundRequest(VECTOR.body, samsara(webhook_secrets=[secret]).sign(VECTOR.body, AT), {}, AT)
    )
    with pytest.raises(Misconfigured):
        samsara(webhook_secrets=[SECRET, OTHER, "dGhpcmQ="])


@pytest.mark.parametrize(("seconds", "allowed"), [(300, True), (-300, True), (301, False), (-301, False)])  # fmt: skip
def test_the_replay_window(seconds: int, allowed: bool) -> None:
    request = InboundRequest(VECTOR.body, VECTOR.headers, {}, AT + timedelta(seconds=seconds))
    if allowed:
        KEYED.receive(request)
    else:
        with pytest.raises(Unauthorized, match="301 s away"):
            KEYED.receive(request)


def _forged(key: bytes, message: bytes) -> str:
    return "v1=" + hmac.digest(key, message, "sha256").hex()


@pytest.mark.parametrize(
    "signature",
    [
        _forged(SECRET.encode(), b"v1:1761955200:" + VECTOR.body),  # the secret not decoded
        _forged(base64.b64decode(SECRET), b"1761955200:" + VECTOR.body),
        _forged(base64.b64decode(SECRET), VECTOR.body),
        VECTOR.headers["x-samsara-signature"].upper(),
        VECTOR.headers["x-samsara-signature"].removeprefix("v1="),
        VECTOR.headers["x-samsara-signature"] + " ",
        "v1=é",
        "",
    ],
)
def test_only_the_vendors_own_scheme_is_taken(signature: str) -> None:
    headers = {**VECTOR.headers, "x-samsara-signature": signature}
    with pytest.raises(Unauthorized) as refused:
        KEYED.receive(InboundRequest(VECTOR.body, headers, {}, AT))
    assert "sources.samsara.webhook_secrets" in refused.value.remedy


@pytest.mark.parametrize("stamp", ["", "1761955200.0", "-1", "١٧٦١٩٥٥٢٠٠", "9" * 13])
def test_a_time_is_a_whole_number_of_seconds(stamp: str) -> None:
    signature = _forged(base64.b64decode(SECRET), f"v1:{stamp}:".encode() + VECTOR.body)
    headers = {"x-samsara-timestamp": stamp, "x-samsara-signature": signature}
    with pytest.raises(Unauthorized, match="Timestamp"):
        KEYED.receive(InboundRequest(VECTOR.body, headers, {}, AT))


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "eventType"),
        (b'{"eventType": "X", "eventTime": "2025-11-01T00:00:00Z"}', "eventId"),
        (b'{"eventType": "X", "eventId": "1"}', "eventTime"),
        (b'{"eventType": "X", "eventId": "1", "eventTime": "yesterday"}', "eventTime"),
        (b'{"eventType": "X", "eventId": "1", "eventMs": "1"}', "eventMs"),
        (b'{"eventType": "X", "eventId": "1", "eventMs": 1e400}', "eventMs"),
        (b'{"eventType": "X", "eventId": "1", "eventMs": 99999999999999999999}', "eventMs"),
        (b'{"eventType": "X", "eventId": "1", "eventMs": 1, "event": 1}', "event:"),
        (b'{"eventType": "X", "eventId": "1", "eventTime": 1, "data": []}', "data:"),
        (b'{"eventType": "VehicleUpdated", "eventId": "1", "eventTime": 1, "data": {"id": []}}', "data.vehicle.id"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_with_its_place(body: bytes, place: str) -> None:
    with pytest.raises(Rejected, match=place) as refused:
        KEYED.receive(InboundRequest(body, KEYED.sign(body, AT), {}, AT))
    assert refused.value.remedy


def test_a_ping_is_about_nothing() -> None:
    for body in ({"eventId": "1", "eventMs": 1, "eventType": "Ping", "event": {}}, webhook("ping")):
        raw = json.dumps(body).encode()
        assert not KEYED.receive(InboundRequest(raw, KEYED.sign(raw, AT), {}, AT)).events


def test_the_document_of_an_event_names_who_and_where() -> None:
    vehicle = {"id": "281474900000001", "name": "T-204", "externalIds": {"samsara.vin": "1EXAMPLEVIN000001"}}  # fmt: skip
    address = {"id": "494123", "name": "Example Paper Co", "formattedAddress": "350 Front St, Columbus, OH 43215"}  # fmt: skip
    document = document_of(webhook(vehicle=vehicle, driver={"id": "4", "name": "Dana Whitfield"}, address=address))  # fmt: skip
    assert document.title == "Geofence entry, T-204, Example Paper Co"
    for fact in (
        "Vehicle: T-204",
        "Driver: Dana Whitfield",
        "Address formatted address: 350 Front St",
    ):
        assert fact in document.text
    assert set(document.assertions) >= {
        Assertion(predicate="vehicle", object="vehicle:T-204"),
        Assertion(subject="vehicle:T-204", predicate="same_as", object="vin:1EXAMPLEVIN000001"),
        Assertion(subject="vehicle:T-204", predicate="same_as", object="vehicle:samsara-281474900000001"),
        Assertion(subject="vehicle:T-204", predicate="driver", object="person:Dana Whitfield"),
        Assertion(subject="vehicle:T-204", predicate="location", object="location:Example Paper Co"),
        Assertion(subject="location:Example Paper Co", predicate="in", object="location:Columbus OH"),
    }  # fmt: skip
    left = document_of(webhook("GeofenceExit", vehicle=vehicle, address=address))
    assert not [item for item in left.assertions if item.subject == "vehicle:T-204" and item.predicate == "location"]  # fmt: skip


def test_the_legacy_envelope() -> None:
    event = next(item for item in KEYED.samples() if item.name == "legacy_alert")
    landed = event_of(json.loads(event.body))
    assert landed.version == 1763639960123000
    document = KEYED.document(landed)
    assert document.title == "Fuel level of T-204 is below 15%, T-204"
    assert "vehicle:T-204" in {item.object for item in document.assertions}
    assert "Alert condition id: DeviceFuelLevelBelow" in document.text


def test_a_vehicle_known_by_id_alone_is_the_named_one() -> None:
    document = document_of(webhook(vehicle={"id": "281474900000001"}))
    assert Assertion(predicate="vehicle", object="vehicle:samsara-281474900000001") in document.assertions  # fmt: skip


@pytest.mark.parametrize("kind", ["AddressDeleted", "addressDeleted", "ADDRESSDELETED"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_deleted_address_is_gone(kind: str, wrapped: bool) -> None:
    address = {"id": "494123", "name": "Example Paper Co"}
    data = {"address": address} if wrapped else address
    deleted, created = event_of(webhook(kind, **data)), event_of(webhook("addressCreated", **data))
    updated = event_of(webhook("AddressUpdated", **data))
    assert deleted.doc_key == created.doc_key == updated.doc_key == "address:494123"
    assert created.version < updated.version < deleted.version, "of changes at the same moment"
    assert KEYED.document(deleted).deleted
    document = KEYED.document(created)
    assert (document.kind, document.about, document.deleted) == ("address", "location:Example Paper Co", False)  # fmt: skip


def test_records_are_about_their_thing() -> None:
    assert document_of(webhook("VehicleUpdated", vehicle={"id": "1", "name": "T-204"})).about == "vehicle:T-204"  # fmt: skip
    assert document_of(webhook("DriverCreated", id="7", name="Dana Whitfield")).about == "person:Dana Whitfield"  # fmt: skip
    assert event_of(webhook("DriverCreated", name="?")).doc_key.startswith("event:"), "no id to know it by"  # fmt: skip


def test_a_large_event_is_shown_in_part() -> None:
    document = document_of(webhook(**{f"field{n}": "x" * 5000 for n in range(300)}))
    assert 40 < document.text.count("\n") < 80
    assert len(document.text) < 100_000


# Points and windows


def read(item: object) -> tuple[list[Reading], dict[str, Any] | None]:
    result, unread = read_vehicle(item, "data[0]", SANE, 300)
    return result, unread.points if unread else None


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FEED["data"][0]), **fields}


def test_a_vehicles_part_of_a_page() -> None:
    result, unread = read(FEED["data"][0])
    assert unread is None
    assert [(item.kind, item.at.isoformat()[11:19]) for item in result] == [
        (VEHICLE, "14:00:00"),
        ("gps", "14:03:20"),
        ("engineStates", "14:03:18"),
        ("fuelPercents", "14:03:18"),
    ]
    assert result[0].value == {"name": "Unit 204", "externalIds": {"samsara.vin": "1EXAMPLEVIN000001"}}  # fmt: skip
    assert result[1].value["headingDegrees"] == 182 and "time" not in result[1].value


@pytest.mark.parametrize(
    "point",
    [
        None,
        7,
        {},
        {"time": "time", "latitude": 1, "longitude": 1},
        {"time": "2025-11-01T14:03:20Z", "latitude": "39", "longitude": 1},
        {"time": "2025-11-01T14:03:20Z", "latitude": 91, "longitude": 1},
        {"time": "2025-11-01T14:03:20Z", "latitude": 10**400, "longitude": 1},
        {"time": "2025-11-01T14:03:20Z", "latitude": True, "longitude": 1},
        {"time": "1970-01-01T00:00:07Z", "latitude": 39.9, "longitude": -82.9},
        {"time": "2025-11-02T14:00:00Z", "latitude": 39.9, "longitude": -82.9},
        {"time": "9999-12-31T23:59:59-14:00", "latitude": 39.9, "longitude": -82.9},
    ],
)
def test_a_point_that_is_none_costs_itself_alone(point: object) -> None:
    result, unread = read(changed(gps=[point, *changed()["gps"]]))
    assert unread == {"gps": [point]}
    assert [item.kind for item in result] == [VEHICLE, "gps", "engineStates", "fuelPercents"]


@pytest.mark.parametrize("item", [None, [], {"name": "T-204"}, {"id": "", "gps": []}, {"id": 1.5}])
def test_a_vehicle_without_an_id_is_none(item: object) -> None:
    with pytest.raises(Rejected, match=r"data\[0\]"):
        read(item)


def aggregated(*points: tuple[str, str, Any]) -> Document:
    """Of (kind, time within the window, value)."""
    readings = [
        Reading(series="28", kind=kind, at=datetime.fromisoformat(f"2025-11-01T{at}Z"), value=value)
        for kind, at, value in points
    ]
    event = KEYED.aggregate_window("28", START, readings, 3)
    assert (event.event_id, event.doc_key) == (
        "window:28:2025-11-01T14:00:00Z:3",
        "window:28:2025-11-01T14:00:00Z",
    )
    assert (event.version, event.priority) == (3, Priority.P1)
    assert event == KEYED.aggregate_window("28", START, readings, 3), "pure"
    return KEYED.document(event)


def gps(at: str, latitude: float, place: str = "", mph: float = 60) -> tuple[str, str, Any]:
    value = {"latitude": latitude, "longitude": -83.0, "speedMilesPerHour": mph, "reverseGeo": {"formattedLocation": place}}  # fmt: skip
    return "gps", at, value


def test_the_document_of_a_window_shows_where_the_truck_went() -> None:
    document = aggregated(
        (VEHICLE, "14:00:00", {"name": "T-204", "externalIds": {"samsara.vin": "1EXAMPLEVIN000001"}}),
        gps("14:00:05", 39.90, "I-71, Grove City, OH, 43123"),
        ("engineStates", "14:01:00", {"value": "On"}),
        ("fuelPercents", "14:01:00", {"value": 71}),
        gps("14:02:00", 39.93, mph=66),
        ("engineStates", "14:04:00", {"value": "Idle"}),
        ("fuelPercents", "14:04:30", {"value": 70}),
        gps("14:04:55", 39.96, "I-71, Columbus, OH, 43215", mph=30),
    )  # fmt: skip
    assert document.title == "T-204, 2025-11-01 14:00 to 14:05 UTC, Columbus OH"
    assert document.text.splitlines() == [
        "Vehicle: T-204",
        "Window: 2025-11-01 14:00 to 14:05 UTC",
        "Telematics: 7 readings, last at 14:04:55 UTC near I-71, Columbus, OH, 43215",
        "Passed: I-71, Grove City, OH, 43123; I-71, Columbus, OH, 43215",
        "Driven: 4.2 miles at 52 mph, 66 at most",
        "Engine: Idle 1 min, On 3 min",
        "Fuel: 71 % to 70 %",
    ]
    assert document.occurred_at.isoformat() == "2025-11-01T14:04:55+00:00"
    assert document.metadata["first_position"] == [39.90, -83.0]
    assert document.metadata["last_position"] == [39.96, -83.0]
    assert set(document.assertions) == {
        Assertion(predicate="vehicle", object="vehicle:T-204"),
        Assertion(subject="vehicle:T-204", predicate="name", value="T-204"),
        Assertion(subject="vehicle:T-204", predicate="samsara_id", value="28"),
        Assertion(subject="vehicle:T-204", predicate="same_as", object="vehicle:samsara-28"),
        Assertion(subject="vehicle:T-204", predicate="same_as", object="vin:1EXAMPLEVIN000001"),
        Assertion(subject="vehicle:T-204", predicate="status", value="Idle"),
        Assertion(subject="vehicle:T-204", predicate="location", object="location:Columbus OH"),
        Assertion(predicate="passed", object="location:Grove City OH"),
    }


NO_PLACES: Sequence[object] = (None, [], "x", {"latitude": None}, 10**400)


@pytest.mark.parametrize(
    "points",
    [
        [("fuelPercents", "14:00:00", {"value": 7})],
        [("engineStates", "14:00:00", {"value": "Off"})],
        [("gps", "14:00:00", {"latitude": 1, "longitude": 2})],
        [("gps", "14:00:00", value) for value in NO_PLACES],
        [("fuelPercents", "14:00:00", {"value": 10**400}), ("engineStates", "14:00:00", {"value": [1]})],
        [("gps", "14:00:00", {"latitude": 1, "longitude": 1, "speedMilesPerHour": 1.7e308})] * 3,
        [("unknown", "14:00:00", 1)],
        [(VEHICLE, "14:00:00", [])],
    ],
)  # fmt: skip
def test_a_window_has_a_document_whatever_its_values_are(
    points: list[tuple[str, str, Any]],
) -> None:
    document = aggregated(*points)
    assert document.title.startswith("28, 2025-11-01 14:00")
    assert document.text.startswith("Vehicle: 28\nWindow: ")


# Pulls


class Scripted(Played):
    """A Samsara with scripted responses. It keeps the requests."""

    name = "samsara"

    def __init__(self, *answers: Response | dict[str, Any]) -> None:
        super().__init__()
        self.answers, self.requests = list(answers), list[tuple[str, dict[str, str]]]()

    def settings(self, base: str) -> dict[str, Any]:
        return {"api_token": "t", "base_url": base}

    def routes(self) -> Sequence[BaseRoute]:
        return [Route("/fleet/vehicles/stats/{what}", self._answer)]

    async def _answer(self, request: Asking) -> Response:
        assert request.headers["authorization"] == "Bearer t"
        query = dict(request.query_params)
        assert query.pop("types") == "gps,engineStates,fuelPercents"
        self.requests.append((request.path_params["what"], query))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Response) else JSONResponse(answer)


@asynccontextmanager
async def pulling(
    vendor: Simulator, **settings: Any
) -> AsyncIterator[Callable[..., AsyncIterator[Page]]]:
    async with serve_simulators([vendor]) as served, vendor_client("samsara", patience=2) as client:
        base = f"{served.url}/samsara"
        source = samsara(**{**vendor.settings(base), **settings})
        assert source.missing_settings == ""

        def pull(cursor: Mapping[str, Any] | None = None, window: BackfillRange | None = None) -> AsyncIterator[Page]:  # fmt: skip
            return source.pull(PullContext(client=client, cursor=cursor or {}, window=window))

        yield pull


def point(minutes: float = 5, **more: Any) -> dict[str, Any]:
    """A vehicle with one engine state, so long ago."""
    at = now() - timedelta(minutes=minutes)
    return {"id": "1", "name": "T-204", "engineStates": [{"time": at.isoformat(), "value": "On"}], **more}  # fmt: skip


def page(*vehicles: Any, after: str = "", more: Any = False) -> dict[str, Any]:
    return {"data": list(vehicles), "pagination": {"endCursor": after, "hasNextPage": more}}


async def test_pages_are_followed_and_the_cursor_moves_with_each() -> None:
    vendor = Scripted(page(point(), after="a", more=True), page(point(4), after="b"))
    async with pulling(vendor) as pull:
        result = [item async for item in pull()]
    assert [item.cursor["after"] for item in result if item.cursor] == ["a", "b"]
    assert [len(item.readings) for item in result] == [2, 2]
    assert vendor.requests == [("feed", {}), ("feed", {"after": "a"})]


async def test_a_page_is_requested_only_when_the_one_before_is_safe() -> None:
    vendor = Scripted(page(point(), after="a", more=True), page(point(), after="b"))
    async with pulling(vendor) as pull:
        # A pull is an async generator, which can be closed before its end.
        async with aclosing(cast(AsyncGenerator[Page], pull())) as pages:
            await anext(pages)
        assert len(vendor.requests) == 1


async def test_nothing_new_is_no_page_and_an_empty_cursor_keeps_the_last() -> None:
    async with pulling(Scripted(page(after="a"), page())) as pull:
        assert [item async for item in pull({"after": "a", "seen": "2025-11-01T00:00:00Z"})] == []
        assert [item async for item in pull({"after": "a"})] == []


@pytest.mark.parametrize("after", ["a", ""])
async def test_a_feed_that_stands_still_is_fetched_later(after: str) -> None:
    async with pulling(Scripted(page(point(), after=after, more=True))) as pull:
        with pytest.raises(RetryLater, match="without a cursor"):
            [item async for item in pull({"after": "a"})]


async def test_a_limit_is_waited_out_to_the_fraction() -> None:
    slow = JSONResponse({"message": "slow down"}, 429, {"Retry-After": "0.40235"})
    async with pulling(Scripted(slow, page(point(), after="a"))) as pull:
        began = asyncio.get_running_loop().time()
        assert len([item async for item in pull()]) == 1
        assert asyncio.get_running_loop().time() - began >= 0.4


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"data": {}}'])
async def test_what_is_no_page_is_fetched_later(body: str) -> None:
    async with pulling(Scripted(Response(body))) as pull:
        with pytest.raises(RetryLater, match="not a page"):
            [item async for item in pull()]


async def test_our_own_mistakes_raise_errors() -> None:
    for status, error in ((401, Unauthorized), (403, Unauthorized), (400, Rejected), (404, Rejected)):  # fmt: skip
        async with pulling(Scripted(JSONResponse({"message": "no"}, status))) as pull:
            with pytest.raises(error):
                [item async for item in pull()]


async def test_what_cannot_be_read_is_quarantined_with_its_reason() -> None:
    old = {"time": "1999-01-01T00:00:00Z", "value": "On"}
    vendor = Scripted(
        page(
            point(engineStates=[old, old, *point()["engineStates"]]),
            {"name": "no id"},
            point(id="2"),
            after="a",
        )
    )
    async with pulling(vendor) as pull:
        (result,) = [item async for item in pull()]
    assert {item.series for item in result.readings} == {"1", "2"}
    assert {item.content_type for item in result.events} == {MALFORMED}
    first, second = (json.loads(item.payload) for item in result.events)
    assert first["record"] == {"id": "1", "name": "T-204", "externalIds": None, "engineStates": [old, old]}  # fmt: skip
    assert "1999-01-01" in first["reason"] and "oldest_days" in first["remedy"]
    assert second["record"] == {"name": "no id"} and "data[1].id" in second["reason"]


async def test_a_setting_limits_how_old_a_reading_may_be() -> None:
    vendor = Scripted(*(page(point(minutes=500 * 1440), after="a") for _ in range(2)))
    async with pulling(vendor) as pull:
        (strict,) = [item async for item in pull()]
    async with pulling(vendor, oldest_days=600) as pull:
        (lenient,) = [item async for item in pull()]
    assert (len(strict.readings), len(strict.events)) == (0, 1)
    assert (len(lenient.readings), len(lenient.events)) == (2, 0)


async def test_a_cursor_that_is_no_longer_taken_leaves_no_gap() -> None:
    gone = JSONResponse({"message": "invalid cursor"}, 400)
    vendor = Scripted(
        gone,
        page(point(1), after="n"),
        page(point(40), after="h", more=True),
        page(point(20), after="i"),
    )
    seen = now() - timedelta(hours=1)
    async with pulling(vendor) as pull:
        result = [item async for item in pull({"after": "a", "seen": seen.isoformat()})]
    assert [item.cursor["after"] if item.cursor else None for item in result] == [
        None,
        None,
        "n",
    ], "the new cursor is safe only when all between is"
    assert [what for what, _ in vendor.requests] == ["feed", "feed", "history", "history"]
    since = datetime.fromisoformat(vendor.requests[2][1]["startTime"])
    assert since <= seen - timedelta(hours=6)
    assert vendor.requests[3][1]["after"] == "h"


async def test_a_backfill_lists_a_window_and_knows_when_it_is_done() -> None:
    vendor = Scripted(page(point(), after="a", more=True), page(point(), after=""))
    window = BackfillRange(START, START + timedelta(hours=1))
    async with pulling(vendor) as pull:
        result = [item async for item in pull(window=window)]
        assert [item.cursor for item in result] == [
            {"after": "a", "done": False},
            {"after": "a", "done": True},
        ]
        assert [item async for item in pull(result[-1].cursor, window)] == []
    times = {"startTime": "2025-11-01T14:00:00Z", "endTime": "2025-11-01T15:00:00Z"}
    assert vendor.requests == [("history", times), ("history", {**times, "after": "a"})]


async def test_the_real_sample_is_read() -> None:
    """As published its times are the word `time`, and its vehicles' ids the word `id`."""
    published = parse_json(sample("samsara", "stats_feed.json"))
    text = json.dumps(published).replace('"time": "time"', '"time": "2025-11-01T14:03:20Z"')
    dated = {**json.loads(text), "pagination": {"endCursor": "a", "hasNextPage": False}}
    result, unread = read(dated["data"][0])
    assert unread is None and {item.kind for item in result} == {VEHICLE, "gps", "engineStates", "fuelPercents"}  # fmt: skip
    published["pagination"]["hasNextPage"] = False
    async with pulling(Scripted(published)) as pull:
        (whole,) = [item async for item in pull()]
    assert not whole.readings and len({item.event_id for item in whole.events}) == 1


async def test_every_point_comes_once_however_small_the_pages() -> None:
    """Many points arrive in the same second, so pages end among equal times; some are sent again in between."""
    world = World.make(3, shipments=4)
    totals = []
    for size in (1000, 7):
        clock = Clock(world.start)
        vendor = Simulated(world, clock, Chaos(mutations=0.3), page=size)
        cursor: Mapping[str, Any] = {}
        result: dict[tuple[str, str, datetime], Any] = {}
        async with pulling(vendor) as pull:
            for hours in (0.1, 5, 9):
                clock.advance_to(world.start + timedelta(hours=hours))
                async for item in pull(cursor):
                    cursor = item.cursor or cursor
                    for reading in item.readings:
                        key = (reading.series, reading.kind, reading.at)
                        assert result.setdefault(key, reading.value) == reading.value
        totals.append(result)
        points = sum(key[1] != VEHICLE for key in result)
        windows = [item for item in vendor.truth(clock.now) if item.doc_key.startswith("window:")]
        assert points == sum(int(item.text.split()[1]) for item in windows) > 400
    assert totals[0] == totals[1]


async def test_the_simulator_refuses_what_the_vendor_would() -> None:
    world = World.make(3, shipments=1)
    vendor = Simulated(world, Clock(world.start), Chaos())
    async with (
        serve_simulators([vendor]) as served,
        httpx2.AsyncClient(base_url=served.url) as http,
    ):
        feed = "/samsara/fleet/vehicles/stats/feed"
        good = {"Authorization": f"Bearer {vendor.settings('')['api_token']}"}
        assert (await http.get(feed, params={"types": "gps"})).status_code == 401
        for query in ({}, {"types": "gps,a"}, {"types": "gps", "after": "x"}):
            assert (await http.get(feed, params=query, headers=good)).status_code == 400, query
        assert (await http.get(feed, params={"types": "gps"}, headers=good)).status_code == 200


# Faults seen, by their id


@pytest.mark.parametrize("minutes", [0, 1, 60 * 24 * 400])
def test_s7_an_update_after_the_delete_does_not_bring_an_address_back(minutes: int) -> None:
    address = {"id": "494123", "name": "Example Paper Co"}
    deleted = event_of(webhook("AddressDeleted", address=address))
    later = (START + timedelta(minutes=minutes)).isoformat()
    for kind in ("AddressCreated", "AddressUpdated"):
        other = event_of({**webhook(kind, address=address), "eventTime": later})
        assert other.doc_key == deleted.doc_key
        assert other.version < deleted.version < 2**63 - 10**6, "an operator can still delete it"


@pytest.mark.parametrize("corners", [3, 4, 40, 400])
@pytest.mark.parametrize("place", ["geofence", "address"])
def test_s12_an_area_of_many_corners_leaves_the_address_its_name(corners: int, place: str) -> None:
    vertices = [{"latitude": 39.9 + n / 1000, "longitude": -83.0} for n in range(corners)]
    area = {"polygon": {"vertices": vertices}, "settings": {"showAddresses": True}}
    thing = {"geofence": area, "id": "494123", "formattedAddress": "350 Front St, Columbus, OH 43215", "name": "Example Paper Co", "notes": "Ring at dock 4"}  # fmt: skip
    document = document_of(webhook("GeofenceEntry", **{place: thing}))
    assert document.title == "Geofence entry, Example Paper Co"
    for fact in ("Example Paper Co", "350 Front St", "494123", "Ring at dock 4"):
        assert fact in document.text
    assert document.text.count("\n") < 20


def test_s12_of_a_large_event_the_outer_values_are_shown() -> None:
    fields = [{"label": f"field {n}", "options": [{"id": f"o{n}-{m}", "text": "x"} for m in range(9)]} for n in range(90)]  # fmt: skip
    document = document_of(
        webhook("FormSubmitted", form={"fields": fields, "title": "Gate check", "status": "done"})
    )
    for fact in ("Gate check", "done", "field 0", "field 89"):
        assert fact in document.text
    assert "Further values, not shown:" in document.text


@pytest.mark.parametrize(
    ("kind", "name", "title"),
    [
        ("DriverUpdated", "Dana Whitfield", "Driver Dana Whitfield"),
        ("driverCreated", "Dana Whitfield", "Driver Dana Whitfield"),
        ("VehicleUpdated", "T-204", "Vehicle T-204"),
        ("AddressCreated", "Example Paper Co", "Address Example Paper Co"),
        ("DriverUpdated", "", "Driver 45646"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_s12_a_records_title_is_its_name(kind: str, name: str, title: str, wrapped: bool) -> None:
    record = {"id": "45646", "name": name}
    wrapper = kind.lower().removesuffix("updated").removesuffix("created")
    document = document_of(webhook(kind, **({wrapper: record} if wrapped else record)))
    assert document.title == title


def test_s12_an_event_about_a_driver_alone_has_the_drivers_name() -> None:
    document = document_of(webhook("DriverSignedIn", driver={"id": "4", "name": "Dana Whitfield"}))
    assert document.title == "Driver signed in, Dana Whitfield"


@pytest.mark.parametrize(
    "place",
    ["," * 200_000, "a, " * 70_000, " " * 200_000 + ",", "A" * 200_000, ", " + " " * 200_000 + "x"],
)
def test_w6_a_long_place_takes_no_time(place: str) -> None:
    began = perf_counter()
    address = {"id": "1", "name": "Yard", "formattedAddress": place}
    document_of(webhook("GeofenceEntry", address=address))
    aggregated(gps("14:00:01", 39.9, place), gps("14:00:02", 39.9, f"{place} OH"))
    assert perf_counter() - began < 2


def test_w6_long_names_of_fields_do_not_multiply() -> None:
    nested: Any = list(range(300))
    for _ in range(60):
        nested = {"n" * 1_000: nested, "other": "x"}
    document = document_of(webhook("FormSubmitted", form=nested))
    assert len(document.text) < 200_000


def test_an_event_and_a_record_have_their_own_id() -> None:
    event = document_of(webhook(driver={"id": "4", "name": "Dana Whitfield"}))
    expected = "id:5a0c1c7e-0000-4000-8000-000000000009"
    assert Assertion(predicate="id", object=expected) in event.assertions
    record = document_of(webhook("AddressUpdated", address={"id": "494123", "name": "Yard"}))
    assert Assertion(predicate="id", object="id:494123") in record.assertions
    assert Assertion(predicate="id", object=expected) not in record.assertions


@pytest.mark.parametrize("seconds", [7, 60, 600])
def test_the_simulated_feed_has_each_reading_once_however_often_it_is_asked(seconds: int) -> None:
    """Also one that is on its way when its truck enters a dead zone."""
    simulated = Simulated(World.make(shipments=6), Clock(), Chaos())
    day = 24 * 3600
    parts = [
        item
        for since in range(0, day, seconds)
        for item in simulated._arrived(since, min(since + seconds, day))
    ]
    assert parts == simulated._arrived(0, day)


def test_an_event_whose_data_is_null_is_an_event() -> None:
    body = json.dumps({"eventId": "1", "eventType": "AlertIncident", "eventTime": "2025-11-01T00:00:00Z", "data": None}).encode()  # fmt: skip
    (event,) = KEYED.receive(InboundRequest(body, KEYED.sign(body, AT), {}, AT)).events
    assert KEYED.document(event).title == "Alert incident"


@pytest.mark.parametrize("expired", [400, 410])
async def test_a_history_that_is_refused_does_not_stop_the_feed(expired: int) -> None:
    gone = JSONResponse({"message": "invalid cursor"}, expired)
    refused = JSONResponse({"message": "startTime is too long ago"}, 400)
    seen = now() - timedelta(hours=1)
    async with pulling(Scripted(gone, page(point(1), after="n"), refused)) as pull:
        result = [item async for item in pull({"after": "a", "seen": seen.isoformat()})]
    gap, fresh = result
    (event,) = gap.events
    assert (
        event.content_type == MALFORMED and "may be missing" in json.loads(event.payload)["reason"]
    )
    assert gap.cursor is None and fresh.cursor and fresh.cursor["after"] == "n"
    assert len(fresh.readings) == 2
