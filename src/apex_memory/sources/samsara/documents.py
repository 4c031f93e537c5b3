"""What Samsara's webhooks tell, as documents; and how a vehicle is named, in events and in readings alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    line,
    parse_datetime,
    parse_identifier,
)

MOST_LINES = 60  # of an event's data in its text

_CITY = re.compile(r"(?:^|,)\s*([^,]+),\s*([A-Z]{2})(?:,?\s+\d{5}(?:-\d{4})?)?(?:,\s*USA?)?\s*$")
_RECORD = re.compile(r"(address|driver|vehicle)(created|updated|deleted)")
_ROLES = {
    "vehicle": "vehicle",
    "device": "vehicle",
    "asset": "vehicle",
    "trailer": "vehicle",
    "driver": "driver",
    "address": "location",
    "geofence": "location",
}
_HERE = ("geofenceentry", "routestoparrival")  # after these the vehicle is at that place


def iso(at: datetime) -> str:
    """`2026-11-02T14:05:00Z`, with a fraction only where there is one."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def city_of(place: str) -> str:
    """`I-71, Columbus, OH, 43215` → `Columbus OH`; empty where no city is told."""
    found = _CITY.search(place)
    return f"{found[1].strip()} {found[2]}" if found else ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook's envelope, 2.0 or 1.0. `record` is the kind of thing whose record changed, if it is about one."""

    id: str
    type: str
    at: datetime
    data: Mapping[str, Any]
    record: str
    record_id: str
    change: str

    @property
    def key(self) -> str:
        return f"{self.record}:{self.record_id}" if self.record else f"event:{self.id}"

    @property
    def deleted(self) -> bool:
        return self.change == "deleted"

    @property
    def rank(self) -> int:
        """Which of two changes of the same moment is the later one."""
        return ("", "created", "updated", "deleted").index(self.change)

    @property
    def ping(self) -> bool:
        """Sent when a webhook is set up or tried out; about nothing."""
        return self.type.lower() == "ping"

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Notice:
        legacy = "eventTime" not in body and "eventMs" in body
        name = "event" if legacy else "data"
        data = body.get(name, {})
        if not isinstance(data, dict):
            raise Rejected(f"{name}: expected an object", remedy="is this a Samsara event?")
        kind = parse_identifier(body.get("eventType"), "eventType")
        record, record_id, change = _record(kind.lower(), data)
        return cls(
            id=parse_identifier(body.get("eventId"), "eventId"),
            type=kind,
            at=_from_ms(body["eventMs"])
            if legacy
            else parse_datetime(body.get("eventTime"), "eventTime"),
            data=data,
            record=record,
            record_id=record_id,
            change=change,
        )


def _record(kind: str, data: Mapping[str, Any]) -> tuple[str, str, str]:
    """An event without the thing's id still tells that something happened: it then stands for itself."""
    found = _RECORD.fullmatch(kind)
    thing = as_mapping(data.get(found[1])) or data if found else {}
    if found and (id := thing.get("id")) is not None:
        return found[1], parse_identifier(id, f"data.{found[1]}.id"), found[2]
    return "", "", ""


def _from_ms(value: object) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Rejected("eventMs: expected whole milliseconds since 1970", remedy="correct eventMs")
    seconds, rest = divmod(value, 1000)
    return parse_datetime(seconds, "eventMs") + timedelta(milliseconds=rest)


def event_document(notice: Notice) -> Document:
    """The newest record of an address, driver or vehicle; or something that happened, which stands for itself."""
    if notice.deleted:
        return Document(kind=notice.record, title="", occurred_at=notice.at, deleted=True)
    found = list(_found(notice.data))
    if notice.record and not any(role == _ROLES[notice.record] for role, _ in found):
        found.insert(0, (_ROLES[notice.record], notice.data))  # the record without a wrapping
    named = {role: _named(role, thing) for role, thing in reversed(found)}
    what = _words(notice.type)
    told = as_string(notice.data.get("summary")) or as_string(
        notice.data.get("alertConditionDescription")
    )
    head = {"Event": told or what, "At": f"{notice.at:%Y-%m-%d %H:%M:%S} UTC"}
    body = dict(_lines(notice.data))
    title = ", ".join(
        filter(None, [line(told) or what, named.get("vehicle"), named.get("location")])
    )
    return Document(
        kind=notice.record or "vehicle_event",
        title=title,
        occurred_at=notice.at,
        text=labelled(head | body),
        assertions=_event_said(notice, found),
        metadata={
            "event": notice.type,
            **({"vehicle": named["vehicle"]} if named.get("vehicle") else {}),
            **({"driver": named["driver"]} if named.get("driver") else {}),
        },
        about=_ref(*found[0]) if notice.record and found else None,
    )


def _found(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The vehicles, drivers and places named anywhere in an event, with their role."""
    for name, value in data.items():
        for thing in value if isinstance(value, list) else [value]:
            if isinstance(thing, dict):
                if (role := _ROLES.get(name)) and _named(role, thing):
                    yield role, thing
                yield from _found(thing)


def _named(role: str, thing: Mapping[str, Any]) -> str:
    return unit_of(thing) if role == "vehicle" else _name(thing)


def _name(thing: Mapping[str, Any]) -> str:
    return line(" ".join(as_string(thing.get("name")).split()), 200)


def _ref(role: str, thing: Mapping[str, Any]) -> str | None:
    if role == "vehicle":
        return vehicle_ref(thing)
    name = _named(role, thing)
    kind = "person" if role == "driver" else "location"
    return f"{kind}:{name}" if name else None


def _event_said(
    notice: Notice, found: Iterable[tuple[str, Mapping[str, Any]]]
) -> tuple[Assertion, ...]:
    refs: dict[str, list[str]] = {"vehicle": [], "driver": [], "location": []}
    said: list[Assertion] = []
    for role, thing in found:
        if ref := _ref(role, thing):
            refs[role].append(ref)
            said.append(Assertion(predicate=role, object=ref))
            if role == "vehicle":
                said += vehicle_said(thing)
            else:
                said.append(Assertion(subject=ref, predicate="name", value=_named(role, thing)))
            if city := city_of(as_string(thing.get("formattedAddress"))):
                said.append(Assertion(subject=ref, predicate="in", object=f"location:{city}"))
    for vehicle in refs["vehicle"][:1]:
        about = [("driver", refs["driver"])]
        if notice.type.lower() in _HERE:
            about.append(("location", refs["location"]))
        said += [
            Assertion(subject=vehicle, predicate=predicate, object=others[0])
            for predicate, others in about
            if others
        ]
    return tuple(dict.fromkeys(said))


def unit_of(vehicle: Mapping[str, Any]) -> str:
    """The name on the door; a vehicle without one goes by Samsara's id."""
    return _name(vehicle) or _id(vehicle)


def _id(vehicle: Mapping[str, Any]) -> str:
    id = vehicle.get("id")
    return line(str(id), 200) if isinstance(id, str | int) and not isinstance(id, bool) else ""


def vehicle_ref(vehicle: Mapping[str, Any]) -> str:
    return f"vehicle:{_name(vehicle) or f'samsara-{_id(vehicle)}'}"


def vin_of(vehicle: Mapping[str, Any]) -> str:
    vin = as_mapping(vehicle.get("externalIds")).get("samsara.vin") or vehicle.get("vin")
    return "".join(as_string(vin).split())[:40]


def vehicle_said(vehicle: Mapping[str, Any]) -> list[Assertion]:
    """Its name, and under what other names it goes: events may know a vehicle by Samsara's id alone."""
    ref, id, vin = vehicle_ref(vehicle), _id(vehicle), vin_of(vehicle)
    said = [Assertion(subject=ref, predicate="name", value=unit_of(vehicle))]
    if id:
        said.append(Assertion(subject=ref, predicate="samsara_id", value=id))
        if ref != f"vehicle:samsara-{id}":
            said.append(Assertion(subject=ref, predicate="same_as", object=f"vehicle:samsara-{id}"))
    if vin:
        said.append(Assertion(subject=ref, predicate="same_as", object=f"vin:{vin}"))
    return said


def _lines(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What an event's data say, a line each: `Vehicle`, `Vehicle id`, `Driver`, `Route stops 2 address` …"""
    open_: list[tuple[str, Any]] = [("", data)]
    told = 0
    while open_ and told < MOST_LINES:
        path, value = open_.pop()
        if isinstance(value, dict):
            inner = [(_path(path, name), item) for name, item in value.items()]
            open_ += reversed(inner)
        elif isinstance(value, list):
            open_ += reversed([(f"{path} {n}", item) for n, item in enumerate(value, 1)])
        elif isinstance(value, str | int | float) and value != "":
            told += 1
            shown = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            yield path, line(shown, 1000)


def _path(outer: str, name: str) -> str:
    if outer and name == "name":
        return outer
    return f"{outer} {_words(name).lower()}".strip().capitalize()


def _words(name: str) -> str:
    """`SevereSpeedingStarted` → `Severe speeding started`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[._]", " ", name).strip().capitalize()


def labelled(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)
