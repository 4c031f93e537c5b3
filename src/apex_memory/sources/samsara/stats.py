"""Samsara's stats feed: its points as readings, a vehicle's window of them as a summary, and its document."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Priority
from apex_memory.sources.fields import RecordFields, labelled
from apex_memory.sources.pages import BackfillRange, Reading
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_identifier,
    sequence,
)
from apex_memory.sources.samsara.documents import (
    city_of,
    iso,
    unit_of,
    vehicle_assertions,
    vehicle_ref,
)

SOURCE = "samsara"
PRIORITY = Priority.P1
WINDOW_SECONDS = 300
KINDS = ("gps", "engineStates", "fuelPercents")  # the feed takes at most three
VEHICLE = "vehicle"
"""Kind of the reading with a vehicle's name and VIN: one per window, at the window's start."""
MAX_PLACES = 8  # in a window's document
MAX_PLACE = 300  # characters of a place

WINDOW_FIELDS = RecordFields(
    "vehicle_window",
    shown={
        "id": "metadata assertion",
        "name": "title text metadata assertion",
        "externalIds": "assertion",
        "gps.time": "text time",
        "gps.latitude": "metadata",
        "gps.longitude": "metadata",
        "gps.speedMilesPerHour": "text",
        "gps.reverseGeo.formattedLocation": "title text assertion",
        "engineStates.time": "text",
        "engineStates.value": "text metadata assertion",
        "fuelPercents.value": "text",
    },
    left_out={
        "gps.headingDegrees": "of every point",
        "gps.isEcuSpeed": "of every point",
        "fuelPercents.time": "of every point",
        "decorations": "not fetched",
    },
    others_in_text=False,
    note="A window sums up the points of five minutes. Each point is kept as it came for `reading_days`.",
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_start(at: datetime, seconds: int) -> datetime:
    """Return the start of the window that contains `at`; windows are counted from 1970."""
    width = timedelta(seconds=seconds)
    return _EPOCH + (at - _EPOCH) // width * width


@dataclass(slots=True)
class Unread:
    """The unreadable points in one vehicle's part of a page, and the first reason."""

    reason: Rejected
    points: dict[str, list[Any]]

    def add(self, kind: str, point: object) -> None:
        self.points.setdefault(kind, []).append(point)


def read_vehicle(
    item: object, place: str, sane: BackfillRange, seconds: int
) -> tuple[list[Reading], Unread | None]:
    """Return the readings in one vehicle's part of a page, and its unreadable points. Raises `Rejected` without an id.

    Points with times outside `sane` are unreadable: a device with a wrong clock must not create partitions for its days.
    """
    if not isinstance(item, dict):
        raise Rejected(f"{place}: expected an object", remedy="report it to Samsara's support")
    series = parse_identifier(item.get("id"), f"{place}.id")
    readings: list[Reading] = []
    unread: Unread | None = None
    for kind in KINDS:
        for point in _points(item.get(kind)):
            try:
                readings.append(_reading(series, kind, point, f"{place}.{kind}", sane))
            except Rejected as reason:
                unread = unread or Unread(reason, {})
                unread.add(kind, point)
    vehicle = {
        "name": as_string(item.get("name")),
        "externalIds": dict(as_mapping(item.get("externalIds"))),
    }
    starts = sorted({window_start(reading.at, seconds) for reading in readings})
    return [
        *(Reading(series=series, kind=VEHICLE, at=start, value=vehicle) for start in starts),
        *readings,
    ], unread


def _points(given: object) -> Sequence[Any]:
    if given is None:
        return ()
    return given if isinstance(given, list) else [given]


def _reading(series: str, kind: str, point: object, place: str, sane: BackfillRange) -> Reading:
    wrong = Rejected(f"{place}: not a valid point", remedy="report it to Samsara's support")
    if not isinstance(point, dict):
        raise wrong
    at = parse_datetime(point.get("time"), f"{place}.time")
    if not sane.since <= at < sane.until:
        raise Rejected(
            f"{place}.time: {iso(at)} is not between {iso(sane.since)[:10]} and {iso(sane.until)[:10]}",
            remedy="check the device's clock; to take older ones raise sources.samsara.oldest_days",
        )
    if kind == "gps":
        valid = _within(point.get("latitude"), 90) and _within(point.get("longitude"), 180)
    else:
        value = point.get("value")
        valid = isinstance(value, str) if kind == "engineStates" else _number(value) is not None
    if not valid:
        raise wrong
    return Reading(
        series=series,
        kind=kind,
        at=at,
        value={name: value for name, value in point.items() if name != "time"},
    )


def _number(value: object) -> float | None:
    """Return a number of a plausible size, None for anything else, so that sums stay finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        return None
    return float(value)


def _within(value: object, most: float) -> bool:
    number = _number(value)
    return number is not None and abs(number) <= most


def summarise(
    series: str, start: datetime, seconds: int, readings: Sequence[Reading]
) -> dict[str, Any]:
    """Return the summary of a window as JSON. Pure; never fails, whatever the values of the readings are."""
    by_kind: dict[str, list[Reading]] = {kind: [] for kind in (VEHICLE, *KINDS)}
    for reading in readings:
        by_kind.setdefault(reading.kind, []).append(reading)
    vehicle = as_mapping(by_kind[VEHICLE][-1].value) if by_kind[VEHICLE] else {}
    points = [reading for reading in readings if reading.kind != VEHICLE]
    summary: dict[str, Any] = {
        "vehicle": {"id": series, **vehicle},
        "start": iso(start),
        "end": iso(start + timedelta(seconds=seconds)),
        "readings": dict(Counter(point.kind for point in points)),
        "last": iso(max((point.at for point in points), default=start)),
    }
    if gps := by_kind["gps"]:
        summary["gps"] = _journey(gps)
    if states := by_kind["engineStates"]:
        summary["engine"] = _engine(states, start + timedelta(seconds=seconds))
    if fuel := _values(by_kind["fuelPercents"], "value"):
        summary["fuel"] = {"from": fuel[0], "to": fuel[-1]}
    return summary


def _value(reading: Reading, name: str) -> float | None:
    return _number(as_mapping(reading.value).get(name))


def _values(readings: Sequence[Reading], name: str) -> list[float]:
    numbers = (_value(reading, name) for reading in readings)
    return [number for number in numbers if number is not None]


def _journey(gps: Sequence[Reading]) -> dict[str, Any]:
    places = dict.fromkeys(filter(None, (_place(reading.value) for reading in gps)))
    speeds = _values(gps, "speedMilesPerHour")
    spots: list[tuple[float, float]] = []
    for reading in gps:
        latitude, longitude = _value(reading, "latitude"), _value(reading, "longitude")
        if latitude is not None and longitude is not None:
            spots.append((latitude, longitude))
    journey: dict[str, Any] = {
        "first": {"time": iso(gps[0].at), **as_mapping(gps[0].value)},
        "last": {"time": iso(gps[-1].at), **as_mapping(gps[-1].value)},
        "places": list(places)[:MAX_PLACES],
        "miles": round(sum(map(_miles, spots, spots[1:])), 2),
    }
    if speeds:
        journey["mph"] = {
            "average": round(sum(speeds) / len(speeds), 1),
            "most": round(max(speeds), 1),
        }
    return journey


def _place(point: object) -> str:
    place = as_string(as_mapping(as_mapping(point).get("reverseGeo")).get("formattedLocation"))
    return place.strip()[:MAX_PLACE]


def _miles(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Return the distance along the great circle, in miles; positions are in degrees."""
    north, east = map(math.radians, start)
    to_north, to_east = map(math.radians, end)
    across = math.sin((to_east - east) / 2) ** 2 * math.cos(north) * math.cos(to_north)
    chord = min(1.0, max(0.0, math.sin((to_north - north) / 2) ** 2 + across))
    return 2 * 3958.8 * math.asin(math.sqrt(chord))


def _engine(states: Sequence[Reading], end: datetime) -> dict[str, Any]:
    """Return the minutes per state: a state lasts until the next one, the last one until the window's end."""
    minutes: dict[str, float] = {}
    ends = [*(reading.at for reading in states[1:]), end]
    for reading, until in zip(states, ends, strict=True):
        state = as_string(as_mapping(reading.value).get("value"))
        minutes[state] = minutes.get(state, 0.0) + (until - reading.at).total_seconds() / 60
    return {
        "minutes": {state: round(sum_, 1) for state, sum_ in minutes.items()},
        "last": as_string(as_mapping(states[-1].value).get("value")),
    }


def window_document(summary: Mapping[str, Any]) -> Document:
    """Return the document of a vehicle's window, from its `summarise` summary."""
    start, end, last = (
        parse_datetime(summary.get(name), name) for name in ("start", "end", "last")
    )
    vehicle, gps = as_mapping(summary.get("vehicle")), as_mapping(summary.get("gps"))
    unit, state = unit_of(vehicle), as_string(as_mapping(summary.get("engine")).get("last"))
    city = city_of(_place(gps.get("last")))
    return Document(
        kind="vehicle_window",
        title=f"{unit}, {start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC" + (f", {city}" if city else ""),
        occurred_at=last,
        text=labelled(_window_lines(summary, start, end, last)),
        assertions=_window_assertions(vehicle, state, city, sequence(gps.get("places"))),
        metadata={
            "vehicle": unit,
            "vehicle_id": as_string(vehicle.get("id")),
            "start": iso(start),
            "end": iso(end),
            "readings": _count(summary),
            **_positions(gps),
            **({"engine": state} if state else {}),
        },
    )


def _positions(gps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a window's metadata that comes from its positions."""
    if not gps:
        return {}
    return {
        "miles": gps["miles"],
        "first_position": _spot(gps.get("first")),
        "last_position": _spot(gps.get("last")),
    }


def _window_lines(
    summary: Mapping[str, Any], start: datetime, end: datetime, last: datetime
) -> dict[str, str]:
    """Return the text of a window by label. It is short, as embedding it costs more than all its readings; the rest is metadata."""
    gps, fuel = as_mapping(summary.get("gps")), as_mapping(summary.get("fuel"))
    minutes = as_mapping(as_mapping(summary.get("engine")).get("minutes"))
    places, here = sequence(gps.get("places")), _place(gps.get("last"))
    telematics = f"{_count(summary)} readings, last at {last:%H:%M:%S} UTC"
    return {
        "Vehicle": unit_of(as_mapping(summary.get("vehicle"))),
        "Window": f"{start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC",
        "Telematics": f"{telematics} near {here}" if here else telematics,
        "Passed": "; ".join(places) if len(places) > 1 else "",
        "Driven": _driven(gps) if gps else "",
        "Engine": ", ".join(f"{state} {n:.0f} min" for state, n in minutes.items()),
        "Fuel": _change(fuel),
    }


def _change(fuel: Mapping[str, Any]) -> str:
    """Return `71 % to 68 %`; one value where they are equal."""
    if not fuel:
        return ""
    return " to ".join(dict.fromkeys((f"{fuel['from']:.0f} %", f"{fuel['to']:.0f} %")))


def _driven(gps: Mapping[str, Any]) -> str:
    mph, miles = as_mapping(gps.get("mph")), f"{gps['miles']:.1f} miles"
    return f"{miles} at {mph['average']:.0f} mph, {mph['most']:.0f} at most" if mph else miles


def _window_assertions(
    vehicle: Mapping[str, Any], state: str, city: str, places: Sequence[Any]
) -> tuple[Assertion, ...]:
    ref = vehicle_ref(vehicle)
    assertions = [Assertion(predicate="vehicle", object=ref), *vehicle_assertions(vehicle)]
    if state:
        assertions.append(Assertion(subject=ref, predicate="status", value=state))
    if city:
        assertions.append(Assertion(subject=ref, predicate="location", object=f"location:{city}"))
    passed = dict.fromkeys(map(city_of, places))
    assertions += [
        Assertion(predicate="passed", object=f"location:{other}")
        for other in passed
        if other not in ("", city)
    ]
    return tuple(assertions)


def _count(summary: Mapping[str, Any]) -> int:
    return sum(as_mapping(summary.get("readings")).values())


def _spot(point: object) -> list[Any]:
    """Return latitude and longitude in degrees."""
    return [as_mapping(point).get(name) for name in ("latitude", "longitude")]
