"""Turvo's shipments, read from a webhook, a row of the list or the record itself, and their documents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event
from apex_memory.sources.fields import RecordFields, remaining_lines
from apex_memory.sources.money import format_money, read_amount
from apex_memory.sources.payloads import as_mapping, as_string, parse_datetime, sequence

STATUSES = {
    "2100": "Quote active", "2101": "Tendered", "2102": "Covered", "2103": "Dispatched", "2104": "At pickup",
    "2105": "En route", "2106": "At delivery", "2107": "Delivered", "2108": "Ready for billing", "2109": "Processing",
    "2110": "Carrier paid", "2111": "Customer paid", "2112": "Completed", "2113": "Canceled", "2114": "Quote inactive",
    "2115": "Picked up", "2116": "Route complete", "2117": "Tender offered", "2118": "Tender accepted",
    "2119": "Tender rejected", "2120": "Draft", "2121": "Shipment ready", "2123": "Acquiring location",
    "2124": "Customs hold", "2125": "Arrived", "2126": "Available", "2127": "Out gated", "2129": "In gated",
    "2131": "Arriving to port", "2132": "Berthing", "2133": "Unloading", "2134": "Ramped", "2135": "Deramped",
    "2136": "Departed", "2137": "Held", "2138": "Out for delivery", "2139": "In transshipment", "2140": "On hold",
    "2141": "Interline",
}  # fmt: skip
"""Status keys with one spelling each, as labels vary from tenant to tenant. Other keys keep Turvo's label."""

_NUMBERS = (
    ("po", re.compile(r"\bpurchase order\b|\bp\.?o\.?\b", re.IGNORECASE)),
    ("bol", re.compile(r"\bbol\b|\bbill of lading\b", re.IGNORECASE)),
    ("pro", re.compile(r"\bpro\b", re.IGNORECASE)),
    ("vehicle", re.compile(r"\b(?:truck|tractor|trailer)\b", re.IGNORECASE)),
)

_LOCAL = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?", re.ASCII)
_LABEL = "the label of a key with one spelling here"
_STOP = (
    "stopType.value",
    "location.name",
    "address.line1",
    "address.city",
    "address.state",
    "address.zip",
    "appointment.start",
    "attributes.arrival",
    "attributes.departed",
)
SHIPMENT_FIELDS = RecordFields(
    "shipment",
    shown={
        "id": "text metadata",
        "customId": "title text metadata assertion",
        "status.code.key": "title text metadata assertion",
        "ltlShipment": "metadata",
        "lane.start": "title text assertion",
        "lane.end": "title text assertion",
        "startDate.date": "text assertion",
        "startDate.timeZone": "text",
        "endDate.date": "text assertion",
        "endDate.timeZone": "text",
        "customerOrder.customer.name": "text metadata assertion",
        "customerOrder.costs.totalAmount": "text assertion",
        "customerOrder.costs.currency.value": "text assertion",
        "carrierOrder.carrier.name": "text metadata assertion",
        "carrierOrder.drivers.context.name": "text assertion",
        "*.externalIds.type.value": "text",
        "*.externalIds.value": "text",
        "transportation.mode.value": "text",
        "equipment.type.value": "text",
        **{f"*.route.{field}": "text" for field in _STOP},
        **{f"*.globalRoute.{field}": "text" for field in _STOP},
        "statusHistory.code.key": "text",
        "statusHistory.lastUpdatedOn": "text",
    },
    left_out={
        "status.code.value": _LABEL,
        "statusHistory.code.value": _LABEL,
        "*.key": "the key of a label that is shown",
        "*.deleted": "a deleted part is left out, and a deleted shipment is deleted here",
        "lastUpdatedOn": "the version",
        "updated": "the version",
    },
    note="Of a deleted part, such as a stop, nothing is shown.",
)


def time_of(value: object) -> datetime | None:
    """Return a time of Turvo's lists (ISO 8601) or records (`{date, timeZone}`), None for anything else.

    A date of a record without an offset is a local time in its zone.
    """
    zone = ""
    if isinstance(value, dict):
        zone = as_string(value.get("timeZone"))
        value = value.get("date")
    try:
        at = parse_datetime(value, "date")
    except Rejected:
        return None
    if zone and _LOCAL.fullmatch(as_string(value).strip()):
        with contextlib.suppress(
            KeyError, ValueError, OSError, OverflowError
        ):  # no zone of this name is known
            return at.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return at


def changed_at(record: Mapping[str, Any]) -> datetime | None:
    """Return the time of the shipment's last change, None if the record has none."""
    return next(filter(None, (time_of(record.get(name)) for name in ("lastUpdatedOn", "updated"))), None)  # fmt: skip


def status_of(holder: Mapping[str, Any]) -> tuple[str, str]:
    """Return key and label of `{code: {key, value}}`. Unknown keys keep Turvo's label."""
    code = as_mapping(holder.get("code"))
    key = _words(code.get("key"))
    return key, STATUSES.get(key) or _words(code.get("value")) or (key and f"status {key}")


def shipment_document(record: Mapping[str, Any], event: Event) -> Document:
    """Return the document of a shipment, about `shipment:<custom id>`."""
    if record.get("deleted") is True:
        return Document(kind="shipment", title="", occurred_at=event.occurred_at, deleted=True)
    shipment = _Shipment(record)
    lane = f"({shipment.lane})" if shipment.lane else ""
    title = [f"Shipment {shipment.number}", lane, shipment.status]
    return Document(
        kind="shipment",
        title=" ".join(filter(None, title)),
        occurred_at=event.occurred_at,
        text="\n".join(shipment.lines()),
        assertions=tuple(dict.fromkeys(shipment.assertions())),
        metadata={name: value for name, value in shipment.metadata().items() if value},
        about=shipment.ref,
    )


class _Shipment:
    """A record, parsed once. Unexpected values and soft-deleted parts are left out."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.number = _words(record.get("customId")) or _words(record.get("id"))
        self.ref = f"shipment:{self.number}"
        self.status_key, self.status = status_of(as_mapping(record.get("status")))
        self.customer_orders = _kept(record.get("customerOrder"))
        self.carrier_orders = _kept(record.get("carrierOrder"))
        self.customers = _names(self.customer_orders, "customer")
        self.carriers = _names(self.carrier_orders, "carrier")
        self.stops: list[Mapping[str, Any]] = []
        for holder in (record, *self.customer_orders):
            self.stops += _kept(holder.get("globalRoute")) + _kept(holder.get("route"))
        lane = as_mapping(record.get("lane"))
        self.origin = as_string(lane.get("start")) or next(self._places("1500"), "")
        self.destination = as_string(lane.get("end")) or next(self._places("1501", last=True), "")
        self.lane = " to ".join(filter(None, [self.origin, self.destination]))
        self.numbers = list(dict.fromkeys(self._numbers()))
        self.drivers = list(dict.fromkeys(self._drivers()))

    def lines(self) -> Iterator[str]:
        record = self.record
        equipment = (_label(item.get("type")) for item in _kept(record.get("equipment")))
        labelled = {
            "Shipment": self.number,
            "Status": self.status,
            "Customer": ", ".join(self.customers),
            "Carrier": ", ".join(self.carriers),
            "Driver": ", ".join(self.drivers),
            "Route": self.lane,
            "Pickup": _shown(record.get("startDate")),
            "Delivery": _shown(record.get("endDate")),
            "Mode": _label(as_mapping(record.get("transportation")).get("mode")),
            "Equipment": ", ".join(filter(None, equipment)),
            "Turvo id": _words(record.get("id")),
        }
        yield from (f"{name}: {value}" for name, value in labelled.items() if value)
        yield from (f"{label}: {value}" for _, label, value in self.numbers)
        for order in self.customer_orders:
            if amount := self._amount(order):
                yield f"Charges: {amount}"
        if self.stops:
            yield "\nStops"
            yield from (f"{n}. {_stop(stop)}" for n, stop in enumerate(self.stops, 1))
        history = [
            (at, status_of(entry)[1])
            for entry in sequence(record.get("statusHistory"))
            if isinstance(entry, dict) and (at := time_of(entry.get("lastUpdatedOn")))
        ]
        if history:
            yield "\nStatus history"
            yield from (f"{at:%Y-%m-%d %H:%M} UTC {label}" for at, label in sorted(history))
        # Rows of the list have these times as texts.
        times = [name for name in ("startDate", "endDate") if isinstance(record.get(name), str)]
        others = remaining_lines(
            _without_deleted(record),
            shown={*SHIPMENT_FIELDS.shown, *times},
            left_out=SHIPMENT_FIELDS.left_out,
        )
        if others:
            yield "\nFurther fields"
            yield from others

    def assertions(self) -> Iterator[Assertion]:
        for predicate, names in (("customer", self.customers), ("carrier", self.carriers)):
            yield from (self._relation(predicate, f"company:{name}") for name in names)
            yield from (_value(f"company:{name}", "name", name) for name in names)
        yield from (self._relation("driver", f"person:{name}") for name in self.drivers)
        for predicate, place in (("origin", self.origin), ("destination", self.destination)):
            if place:
                yield self._relation(predicate, f"location:{place}")
        for kind, _, value in self.numbers:
            if kind:
                yield self._relation(kind, f"{kind}:{_code(kind, value)}")
        for order in self.carrier_orders:
            yield from _codes(as_mapping(order.get("carrier")))
        values = [("status", self.status)]
        values += [("amount", self._amount(order)) for order in self.customer_orders]
        for predicate, field in (("pickup_at", "startDate"), ("delivery_at", "endDate")):
            at = time_of(self.record.get(field))
            values.append((predicate, at.isoformat() if at else ""))
        yield from (_value(self.ref, predicate, value) for predicate, value in values if value)

    def _relation(self, predicate: str, ref: str) -> Assertion:
        return Assertion(subject=self.ref, predicate=predicate, object=ref)

    def metadata(self) -> dict[str, Any]:
        return {
            "shipment": self.number,
            "turvo_id": _words(self.record.get("id")),
            "status": self.status,
            "status_key": self.status_key,
            "customer": ", ".join(self.customers),
            "carrier": ", ".join(self.carriers),
            "ltl": self.record.get("ltlShipment") is True,
        }

    def _places(self, stop_type: str, *, last: bool = False) -> Iterator[str]:
        """Yield city and state of the stops of a type (1500 pickup, 1501 delivery) that have them; with `last` from the last on."""
        for stop in reversed(self.stops) if last else self.stops:
            if _words(as_mapping(stop.get("stopType")).get("key")) == stop_type:
                address = as_mapping(stop.get("address"))
                place = [_words(address.get("city")), _words(address.get("state"))]
                if any(place):
                    yield ", ".join(filter(None, place))

    def _numbers(self) -> Iterator[tuple[str, str, str]]:
        """Yield entity type (empty if unknown), label and value of every external id."""
        for holder in (self.record, *self.customer_orders, *self.carrier_orders):
            for external_id in _kept(holder.get("externalIds")):
                label = _label(external_id.get("type")) or "Reference"
                value = _words(external_id.get("value"))
                if value:
                    kind = next((kind for kind, pattern in _NUMBERS if pattern.search(label)), "")
                    yield kind, label, value

    def _drivers(self) -> Iterator[str]:
        for order in self.carrier_orders:
            for driver in _kept(order.get("drivers")):
                person = as_mapping(driver.get("context"))
                name = _words(person.get("name")) or _words(driver.get("name"))
                if name:
                    yield name

    def _amount(self, order: Mapping[str, Any]) -> str:
        costs = as_mapping(order.get("costs"))
        total = read_amount(costs.get("totalAmount"))
        if total is None:
            return ""
        return format_money(total, _label(costs.get("currency")) or "USD", grouped=False)


def _without_deleted(value: Any) -> Any:
    """Return a record without its soft-deleted parts. Payloads are bounded in depth."""
    if isinstance(value, dict):
        return {name: _without_deleted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        parts = [part for part in value if not (isinstance(part, dict) and part.get("deleted"))]
        return [_without_deleted(part) for part in parts]
    return value


def _kept(value: object) -> list[Mapping[str, Any]]:
    """Return the objects of an array that are not soft-deleted."""
    return [item for item in sequence(value) if isinstance(item, dict) and not item.get("deleted")]


def _names(orders: Sequence[Mapping[str, Any]], of: str) -> list[str]:
    names = (_words(as_mapping(order.get(of)).get("name")) for order in orders)
    return list(dict.fromkeys(filter(None, names)))


def _words(value: object) -> str:
    """Return text or a whole number as one line, empty for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    return " ".join(as_string(value).split())


def _label(enum: object) -> str:
    """Return the label of an enum `{key, value}`."""
    return _words(as_mapping(enum).get("value"))


def _value(subject: str, predicate: str, value: str) -> Assertion:
    return Assertion(subject=subject, predicate=predicate, value=value)


def _codes(carrier: Mapping[str, Any]) -> Iterator[Assertion]:
    """Yield the codes that identify the carrier in other sources."""
    name = _words(carrier.get("name"))
    for kind, field in (("scac", "scac"), ("mc", "mcNumber")):
        if name and (code := _words(carrier.get(field))):
            yield Assertion(subject=f"company:{name}", predicate="same_as", object=f"{kind}:{code}")


def _code(kind: str, value: str) -> str:
    """Return the bare number: 778045 for `PRO778045`, 7745 for `PO 7745`."""
    plain = re.sub(r"^(?:PRO|PO|BOL)[\s#:-]*(?=\S*\d)", "", value, flags=re.IGNORECASE)
    return plain if kind != "vehicle" else value


def _shown(value: object) -> str:
    at = time_of(value)
    zone = _words(value.get("timeZone")) if isinstance(value, dict) else ""
    return f"{at:%Y-%m-%d %H:%M} UTC{f' ({zone})' if zone else ''}" if at else ""


def _stop(stop: Mapping[str, Any]) -> str:
    address, attributes = as_mapping(stop.get("address")), as_mapping(stop.get("attributes"))
    city_and_state = filter(None, [_words(address.get("city")), _words(address.get("state"))])
    city = f"{', '.join(city_and_state)} {_words(address.get('zip'))}".strip()
    parts = [
        _label(stop.get("stopType")),
        _words(as_mapping(stop.get("location")).get("name")),
        _words(address.get("line1")),
        city,
    ]
    times = {
        "appointment": as_mapping(stop.get("appointment")).get("start"),
        "arrived": attributes.get("arrival"),
        "departed": attributes.get("departed"),
    }
    for name, value in times.items():
        # A time without an offset is one of the stop's own zone.
        at = value if isinstance(value, dict) else {"date": value, "timeZone": stop.get("timezone")}
        if known := time_of(at):
            parts.append(f"{name} {known:%Y-%m-%d %H:%M} UTC")
    return ", ".join(filter(None, parts))
