"""Samsara's webhook events and their documents; and the names of vehicles in events and readings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, micros
from apex_memory.sources.fields import RecordFields, as_words, labelled, remaining_lines
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    line,
    parse_datetime,
    parse_identifier,
)

MAX_PARTIES = 200  # vehicles, drivers and places of one event

_AFTER_ALL = 4 * 10**18  # added to the version of a delete: greater than any time in microseconds
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

EVENT_FIELDS = RecordFields(
    "vehicle_event, address, driver and vehicle",
    shown={
        "eventId": "text",
        "eventType": "text metadata",
        "eventTime": "text time",
        "data.summary": "title text",
    },
    left_out={
        "orgId": "the organisation of the token",
        "webhookId": "names the subscription, not the event",
    },
    note="Vehicles, drivers and places anywhere in an event are asserted too. The older envelope has `eventMs` and `event`. "
    "A list of more than three bare numbers, such as the corners of an area, is shown by its length.",
)


def iso(at: datetime) -> str:
    """Return a time as `2026-11-02T14:05:00Z`, with a fraction only if there is one."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def city_of(place: str) -> str:
    """Return the city of an address: `Columbus OH` for `I-71, Columbus, OH, 43215`, empty without one.

    Only the end of a long text is searched: the pattern takes quadratic time.
    """
    match = _CITY.search(place[-200:])
    return f"{match[1].strip()} {match[2]}" if match else ""


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook's envelope, version 2.0 or 1.0. `record` is the type of the object whose record changed, if it is about one."""

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
    def version(self) -> int:
        """Order among the changes of a record: by time; at the same time creation, update, delete.

        A delete is the last change whatever its time, because Samsara gives no id a second time: an update that claims
        to be later than the delete does not bring the record back.
        """
        rank = ("", "created", "updated", "deleted").index(self.change)
        return micros(self.at) + rank + (_AFTER_ALL if self.deleted else 0)

    @property
    def ping(self) -> bool:
        """Whether it is a test that Samsara sends when a webhook is set up."""
        return self.type.lower() == "ping"

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> WebhookEvent:
        legacy = "eventTime" not in body and "eventMs" in body
        name = "event" if legacy else "data"
        data = {} if body.get(name) is None else body[name]
        if not isinstance(data, dict):
            raise Rejected(
                f"{name}: expected an object", remedy="check that the request comes from Samsara"
            )
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
    """Return type, id and change of the record that an event is about; empty for an event without an object's id."""
    match = _RECORD.fullmatch(kind)
    if match is None:
        return "", "", ""
    record = as_mapping(data.get(match[1])) or data
    id = record.get("id")
    if id is None:
        return "", "", ""
    return match[1], parse_identifier(id, f"data.{match[1]}.id"), match[2]


def _from_ms(value: object) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Rejected("eventMs: expected whole milliseconds since 1970", remedy="correct eventMs")
    seconds, rest = divmod(value, 1000)
    return parse_datetime(seconds, "eventMs") + timedelta(milliseconds=rest)


def event_document(event: WebhookEvent) -> Document:
    """Return the newest record of an address, driver or vehicle, or the document of another event."""
    if event.deleted:
        return Document(kind=event.record, title="", occurred_at=event.at, deleted=True)
    parties = list(islice(_parties(event.data), MAX_PARTIES))
    if event.record and not any(role == _ROLES[event.record] for role, _ in parties):
        parties.insert(0, (_ROLES[event.record], event.data))  # the record without an envelope
    names = {role: _party_name(role, party) for role, party in reversed(parties)}
    summary = as_string(event.data.get("summary")) or as_string(
        event.data.get("alertConditionDescription")
    )
    label = " ".join(summary.split()) or as_words(event.type)
    head = {
        "Event": label,
        "At": f"{event.at:%Y-%m-%d %H:%M:%S} UTC",
        "Event type": event.type,
        "Event id": event.id,
    }
    lines = remaining_lines(event.data, shown=("summary",) if summary else ())
    return Document(
        kind=event.record or "vehicle_event",
        title=_title(event, label, names),
        occurred_at=event.at,
        text="\n".join([labelled(head), *lines]),
        assertions=_event_assertions(event, parties),
        metadata={
            "event": event.type,
            **{role: names[role] for role in ("vehicle", "driver") if names.get(role)},
        },
        about=_ref(*parties[0]) if event.record and parties else None,
    )


def _title(event: WebhookEvent, label: str, names: Mapping[str, str]) -> str:
    """Return `Driver Dana Whitfield` for a record, and for another event what happened, to whom and where."""
    if event.record:
        name = names.get(_ROLES[event.record]) or event.record_id
        return f"{event.record.capitalize()} {name}"
    party = names.get("vehicle") or names.get("driver")
    return ", ".join(filter(None, [line(label), party, names.get("location")]))


def _parties(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the vehicles, drivers and places named anywhere in an event, with their role."""
    for name, value in data.items():
        for thing in value if isinstance(value, list) else [value]:
            if isinstance(thing, dict):
                if (role := _ROLES.get(name)) and _party_name(role, thing):
                    yield role, thing
                yield from _parties(thing)


def _party_name(role: str, thing: Mapping[str, Any]) -> str:
    return unit_of(thing) if role == "vehicle" else _name(thing)


def _name(thing: Mapping[str, Any]) -> str:
    return line(" ".join(as_string(thing.get("name")).split()), 200)


def _ref(role: str, thing: Mapping[str, Any]) -> str | None:
    if role == "vehicle":
        return vehicle_ref(thing)
    name = _party_name(role, thing)
    kind = "person" if role == "driver" else "location"
    return f"{kind}:{name}" if name else None


def _event_assertions(
    event: WebhookEvent, parties: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[Assertion, ...]:
    refs: dict[str, list[str]] = {"vehicle": [], "driver": [], "location": []}
    assertions = [Assertion(predicate="id", object=f"id:{event.record_id or event.id}")]
    for role, party in parties:
        ref = _ref(role, party)
        if ref is None:
            continue
        refs[role].append(ref)
        assertions.append(Assertion(predicate=role, object=ref))
        if role == "vehicle":
            assertions += vehicle_assertions(party)
        else:
            name = _party_name(role, party)
            assertions.append(Assertion(subject=ref, predicate="name", value=name))
        city = city_of(as_string(party.get("formattedAddress")))
        if city:
            assertions.append(Assertion(subject=ref, predicate="in", object=f"location:{city}"))
    assertions += _about_vehicle(event, refs)
    return tuple(dict.fromkeys(assertions))


def _about_vehicle(event: WebhookEvent, refs: Mapping[str, Sequence[str]]) -> Iterator[Assertion]:
    """Yield who drives the event's first vehicle, and where it is after an arrival."""
    if not refs["vehicle"]:
        return
    vehicle = refs["vehicle"][0]
    if refs["driver"]:
        yield Assertion(subject=vehicle, predicate="driver", object=refs["driver"][0])
    if refs["location"] and event.type.lower() in _HERE:
        yield Assertion(subject=vehicle, predicate="location", object=refs["location"][0])


def unit_of(vehicle: Mapping[str, Any]) -> str:
    """Return the vehicle's name, as on its door; Samsara's id for one without a name."""
    return _name(vehicle) or _id(vehicle)


def _id(vehicle: Mapping[str, Any]) -> str:
    id = vehicle.get("id")
    return line(str(id), 200) if isinstance(id, str | int) and not isinstance(id, bool) else ""


def vehicle_ref(vehicle: Mapping[str, Any]) -> str:
    return f"vehicle:{_name(vehicle) or f'samsara-{_id(vehicle)}'}"


def vin_of(vehicle: Mapping[str, Any]) -> str:
    vin = as_mapping(vehicle.get("externalIds")).get("samsara.vin") or vehicle.get("vin")
    return "".join(as_string(vin).split())[:40]


def vehicle_assertions(vehicle: Mapping[str, Any]) -> list[Assertion]:
    """Return its name and its other identifiers, as events may name a vehicle by Samsara's id alone."""
    ref, id, vin = vehicle_ref(vehicle), _id(vehicle), vin_of(vehicle)
    assertions = [Assertion(subject=ref, predicate="name", value=unit_of(vehicle))]
    if id:
        assertions.append(Assertion(subject=ref, predicate="samsara_id", value=id))
        if ref != f"vehicle:samsara-{id}":
            assertions.append(
                Assertion(subject=ref, predicate="same_as", object=f"vehicle:samsara-{id}")
            )
    if vin:
        assertions.append(Assertion(subject=ref, predicate="same_as", object=f"vin:{vin}"))
    return assertions
