"""Points of Samsara's stats feed: read as readings, folded into a vehicle's five minutes, told as a document."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources.pages import Reading, TimeRange
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
    labelled,
    unit_of,
    vehicle_ref,
    vehicle_said,
)

KINDS = ("gps", "engineStates", "fuelPercents")  # the feed takes at most three
VEHICLE = "vehicle"
"""Kind of the reading that keeps a vehicle's name and VIN beside its points: one a window, at the window's start."""
MOST_PLACES = 8  # of a window

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_start(at: datetime, seconds: int) -> datetime:
    """Where the window that holds `at` begins; windows are counted from 1970."""
    width = timedelta(seconds=seconds)
    return _EPOCH + (at - _EPOCH) // width * width


@dataclass(slots=True)
class Unread:
    """What of one vehicle's part of a page cannot be read, and the first reason."""

    reason: Rejected
    points: dict[str, list[Any]]

    def add(self, kind: str, point: object) -> None:
        self.points.setdefault(kind, []).append(point)


def read_vehicle(
    item: object, place: str, sane: TimeRange, seconds: int
) -> tuple[list[Reading], Unread | None]:
    """The readings in one vehicle's part of a page, and its points that are none. Raises `Rejected` without an id.

    Times outside `sane` are no readings: a device with a wrong clock must not make partitions for its days.
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
    known = {
        "name": as_string(item.get("name")),
        "externalIds": dict(as_mapping(item.get("externalIds"))),
    }
    starts = sorted({window_start(one.at, seconds) for one in readings})
    return [
        *(Reading(series=series, kind=VEHICLE, at=start, value=known) for start in starts),
        *readings,
    ], unread


def _points(given: object) -> Sequence[Any]:
    if given is None:
        return ()
    return given if isinstance(given, list) else [given]


def _reading(series: str, kind: str, point: object, place: str, sane: TimeRange) -> Reading:
    wrong = Rejected(f"{place}: no such point", remedy="report it to Samsara's support")
    if not isinstance(point, dict):
        raise wrong
    at = parse_datetime(point.get("time"), f"{place}.time")
    if not sane.since <= at < sane.until:
        raise Rejected(
            f"{place}.time: {iso(at)} is not between {iso(sane.since)[:10]} and {iso(sane.until)[:10]}",
            remedy="check the device's clock; to take older ones raise sources.samsara.oldest_days",
        )
    if kind == "gps":
        fits = _within(point.get("latitude"), 90) and _within(point.get("longitude"), 180)
    else:
        value = point.get("value")
        fits = isinstance(value, str) if kind == "engineStates" else _number(value) is not None
    if not fits:
        raise wrong
    return Reading(
        series=series,
        kind=kind,
        at=at,
        value={name: value for name, value in point.items() if name != "time"},
    )


def _number(value: object) -> float | None:
    """A number that can be one of a vehicle's; nothing else, and none so large that sums of it are no more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        return None
    return float(value)


def _within(value: object, most: float) -> bool:
    number = _number(value)
    return number is not None and abs(number) <= most


def summarise(
    series: str, start: datetime, seconds: int, readings: Sequence[Reading]
) -> dict[str, Any]:
    """What a window holds, as JSON. Pure, and never fails whatever the readings' values are."""
    by_kind: dict[str, list[Reading]] = {kind: [] for kind in (VEHICLE, *KINDS)}
    for one in readings:
        by_kind.setdefault(one.kind, []).append(one)
    known = as_mapping(by_kind[VEHICLE][-1].value) if by_kind[VEHICLE] else {}
    points = [one for kind, some in by_kind.items() if kind != VEHICLE for one in some]
    summary: dict[str, Any] = {
        "vehicle": {"id": series, **known},
        "start": iso(start),
        "end": iso(start + timedelta(seconds=seconds)),
        "readings": dict(Counter(one.kind for one in points)),
        "last": iso(max((one.at for one in points), default=start)),
    }
    if gps := by_kind["gps"]:
        summary["gps"] = _journey(gps)
    if states := by_kind["engineStates"]:
        summary["engine"] = _engine(states, start + timedelta(seconds=seconds))
    if fuel := [n for one in by_kind["fuelPercents"] if (n := _value(one, "value")) is not None]:
        summary["fuel"] = {"from": fuel[0], "to": fuel[-1]}
    return summary


def _value(one: Reading, name: str) -> float | None:
    return _number(as_mapping(one.value).get(name))


def _journey(gps: Sequence[Reading]) -> dict[str, Any]:
    places = dict.fromkeys(place for one in gps if (place := _place(one.value)))
    speeds = [n for one in gps if (n := _value(one, "speedMilesPerHour")) is not None]
    spots = [
        (latitude, longitude)
        for one in gps
        if (latitude := _value(one, "latitude")) is not None
        and (longitude := _value(one, "longitude")) is not None
    ]
    journey: dict[str, Any] = {
        "first": {"time": iso(gps[0].at), **as_mapping(gps[0].value)},
        "last": {"time": iso(gps[-1].at), **as_mapping(gps[-1].value)},
        "places": list(places)[:MOST_PLACES],
        "miles": round(sum(map(_miles, spots, spots[1:])), 2),
    }
    if speeds:
        journey["mph"] = {
            "average": round(sum(speeds) / len(speeds), 1),
            "most": round(max(speeds), 1),
        }
    return journey


def _place(point: object) -> str:
    return as_string(
        as_mapping(as_mapping(point).get("reverseGeo")).get("formattedLocation")
    ).strip()


def _miles(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the great circle."""
    (north, east), (to_north, to_east) = (tuple(map(math.radians, spot)) for spot in (one, other))
    across = math.sin((to_east - east) / 2) ** 2 * math.cos(north) * math.cos(to_north)
    chord = min(1.0, max(0.0, math.sin((to_north - north) / 2) ** 2 + across))
    return 2 * 3958.8 * math.asin(math.sqrt(chord))


def _engine(states: Sequence[Reading], end: datetime) -> dict[str, Any]:
    """A state lasts until the next, the last one to the window's end."""
    minutes: dict[str, float] = {}
    for one, until in zip(states, [*(one.at for one in states[1:]), end], strict=True):
        state = as_string(as_mapping(one.value).get("value"))
        minutes[state] = minutes.get(state, 0.0) + (until - one.at).total_seconds() / 60
    return {
        "minutes": {state: round(sum_, 1) for state, sum_ in minutes.items()},
        "last": as_string(as_mapping(states[-1].value).get("value")),
    }


def window_document(summary: Mapping[str, Any]) -> Document:
    """Five minutes of a vehicle, as `summarise` tells them."""
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
        assertions=_window_said(vehicle, state, city, sequence(gps.get("places"))),
        metadata={
            "vehicle": unit,
            "vehicle_id": as_string(vehicle.get("id")),
            "start": iso(start),
            "end": iso(end),
            "readings": _count(summary),
            **(
                {
                    "miles": gps["miles"],
                    "first_position": _spot(gps.get("first")),
                    "last_position": _spot(gps.get("last")),
                }
                if gps
                else {}
            ),
            **({"engine": state} if state else {}),
        },
    )


def _window_lines(
    summary: Mapping[str, Any], start: datetime, end: datetime, last: datetime
) -> dict[str, str]:
    """Short, and in words: embedding a window costs more than all its readings, by the word. The rest is metadata."""
    gps, fuel = as_mapping(summary.get("gps")), as_mapping(summary.get("fuel"))
    minutes = as_mapping(as_mapping(summary.get("engine")).get("minutes"))
    places, here = sequence(gps.get("places")), _place(gps.get("last"))
    said = f"{_count(summary)} readings, last at {last:%H:%M:%S} UTC"
    return {
        "Vehicle": unit_of(as_mapping(summary.get("vehicle"))),
        "Window": f"{start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC",
        "Telematics": f"{said} near {here}" if here else said,
        "Passed": "; ".join(places) if len(places) > 1 else "",
        "Driven": _driven(gps) if gps else "",
        "Engine": ", ".join(f"{state} {n:.0f} min" for state, n in minutes.items()),
        "Fuel": " to ".join(
            dict.fromkeys(f"{fuel[side]:.0f} %" for side in ("from", "to") if fuel)
        ),
    }


def _driven(gps: Mapping[str, Any]) -> str:
    mph, miles = as_mapping(gps.get("mph")), f"{gps['miles']:.1f} miles"
    return f"{miles} at {mph['average']:.0f} mph, {mph['most']:.0f} at most" if mph else miles


def _window_said(
    vehicle: Mapping[str, Any], state: str, city: str, places: Sequence[Any]
) -> tuple[Assertion, ...]:
    ref = vehicle_ref(vehicle)
    said = [Assertion(predicate="vehicle", object=ref), *vehicle_said(vehicle)]
    if state:
        said.append(Assertion(subject=ref, predicate="status", value=state))
    if city:
        said.append(Assertion(subject=ref, predicate="location", object=f"location:{city}"))
    passed = dict.fromkeys(map(city_of, places))
    said += [
        Assertion(predicate="passed", object=f"location:{other}")
        for other in passed
        if other not in ("", city)
    ]
    return tuple(said)


def _count(summary: Mapping[str, Any]) -> int:
    return sum(as_mapping(summary.get("readings")).values())


def _spot(point: object) -> list[Any]:
    """Latitude and longitude in degrees."""
    return [as_mapping(point).get(name) for name in ("latitude", "longitude")]
