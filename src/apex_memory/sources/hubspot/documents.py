"""HubSpot's object types, records as events and documents, and the changes that its webhooks name."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, Priority, micros
from apex_memory.sources.fields import labelled, remaining_lines
from apex_memory.sources.hubspot.object_types import BY_NAME, BY_TYPE_ID, FIELDS, ObjectType
from apex_memory.sources.money import format_money, read_amount
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    parse_datetime,
    parse_identifier,
    parse_object,
    sequence,
)

SOURCE = "hubspot"
PRIORITY = Priority.P2
MAX_NAME = 300  # characters of a name in a ref
_OF_THE_CALL = frozenset({"archived", "archivedAt", "url"})
"""Fields that only some calls return with the same state of a record."""


def record_event(type: ObjectType, record: object, *, restored: datetime | None = None) -> Event:
    """Return the event of a record. Equal states give equal events, whichever call returned the record.

    The id holds a digest of the record: calculated properties change, and several changes fall into a millisecond,
    without another `updatedAt`. Of two such states the digest decides which is live; the other is kept as superseded.

    `restored` is the time at which the record came back from the recycling bin: that need not change `updatedAt`, and
    must be newer than the delete. Raises `Rejected` if the record cannot be read.
    """
    body = as_mapping(record)
    key = f"{type.name}:{object_id(body.get('id'), 'id')}"
    changed = parse_datetime(
        body.get("updatedAt") or as_mapping(body.get("properties")).get(type.modified), "updatedAt"
    )
    state = {name: value for name, value in body.items() if name not in _OF_THE_CALL}
    digest = hashlib.sha256(canonical(state)).hexdigest()[:16]
    # The mark stands before the digest, so that an archived record is newer than the same record before.
    if body.get("archived") is True:
        given = body.get("archivedAt")
        at = max(changed, parse_datetime(given, "archivedAt")) if given else changed
        return _event(key, f"{key}@{micros(at)}:archived#{digest}", at, body)
    event_id = f"{key}@{micros(changed)}"
    if restored is None:
        return _event(key, f"{event_id}#{digest}", changed, body)
    mark = f"restored@{micros(restored)}"
    return _event(key, f"{event_id}:{mark}#{digest}", max(changed, restored), body)


def deletion_event(type: ObjectType, id: str, at: datetime) -> Event:
    """Return the delete of an object that HubSpot no longer has, not even in its recycling bin.

    At an equal time the record wins (`@` sorts behind `:`): HubSpot may not yet show an object that was just created.
    """
    key = f"{type.name}:{id}"
    return _event(key, f"{key}:gone@{micros(at)}", at, {"id": id, "archived": True})


def _event(key: str, event_id: str, at: datetime, body: Mapping[str, Any]) -> Event:
    return Event(
        source=SOURCE,
        event_id=event_id,
        doc_key=key,
        version=micros(at),
        occurred_at=at,
        payload=canonical(body),
        priority=PRIORITY,
    )


def modified_ms(type: ObjectType, record: object) -> int | None:
    """Return the time by which search sorted a record, in milliseconds since 1970; None if it cannot be read."""
    body = as_mapping(record)
    given = as_mapping(body.get("properties")).get(type.modified) or body.get("updatedAt")
    with contextlib.suppress(Rejected):
        return micros(parse_datetime(given, type.modified)) // 1000
    return None


def object_id(value: object, place: str) -> str:
    """Return an id as text. HubSpot's ids are numbers, in text or not. Raises `Rejected` for anything else."""
    id = parse_identifier(value, place)
    if not re.fullmatch(r"[0-9]{1,20}", id, re.ASCII):
        raise Rejected(f"{place}: expected a number", remedy=f"correct {place}")
    return id


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """One element of a webhook: what happened to which objects. `type` is None for objects that Apex does not hold."""

    type: ObjectType | None
    action: str
    ids: tuple[str, ...]
    at: datetime | None
    portal: str

    @property
    def order(self) -> tuple[bool, int]:
        """The order among the changes of a webhook: creations first, then by time.

        HubSpot puts a change before the creation that it belongs to.
        """
        return self.action != "creation", micros(self.at) if self.at else 0

    @classmethod
    def read(cls, value: object, place: str) -> ObjectChange:
        """Return the change that an element names. Raises `Rejected` with the field that cannot be read."""
        if not isinstance(value, dict):
            raise Rejected(f"{place}: expected an object", remedy=f"correct {place}")
        name, _, action = as_string(value.get("subscriptionType")).partition(".")
        if not action:
            raise Rejected(
                f"{place}.subscriptionType: expected a text like contact.creation",
                remedy=f"correct {place}.subscriptionType",
            )
        type_id = value.get("objectTypeId", value.get("fromObjectTypeId"))
        type = BY_TYPE_ID.get(as_string(type_id)) if name == "object" else BY_NAME.get(name)
        # Changes of what Apex does not hold need no id in a form known here.
        ids = _changed_ids(value) if type else ()
        return cls(
            type=type,
            action=action,
            ids=tuple(dict.fromkeys(object_id(id, f"{place}.objectId") for id in ids)),
            at=_from_ms(value.get("occurredAt"), f"{place}.occurredAt"),
            portal=str(value.get("portalId", "")),
        )


def _changed_ids(value: Mapping[str, Any]) -> list[object]:
    """Return the ids of the objects that an element is about.

    A merge names the object that remains, which may be a new one, and those merged into it. A change of associations names
    the object of the subscription's type as `fromObjectId`; the other side has an element of its own.
    """
    names = ("objectId", "primaryObjectId", "fromObjectId")
    ids = [next((value[name] for name in names if value.get(name) is not None), None)]
    if value.get("newObjectId") is not None:
        ids.append(value["newObjectId"])
    return [*ids, *sequence(value.get("mergedObjectIds"))]


def _from_ms(value: object, place: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 10**15:
        raise Rejected(f"{place}: expected milliseconds since 1970", remedy=f"correct {place}")
    return parse_datetime(value / 1000, place)


def hint_key(type: ObjectType, id: str, *, restored: bool) -> str:
    """Return the key of the hint to fetch an object."""
    return f"{type.name}:{id}:restored" if restored else f"{type.name}:{id}"


def parse_hint_key(key: str) -> tuple[ObjectType, str] | None:
    """Return type and id of the object that a hint names; None for a key of another form."""
    match = re.fullmatch(r"(\w+):([0-9]+)(?::restored)?", key, re.ASCII)
    type = BY_NAME.get(match[1]) if match else None
    return (type, match[2]) if match and type else None


def record_document(event: Event) -> Document:
    """Return the `company`, `contact` or `deal` of a record. Raises `Rejected` for another type."""
    name, _, id = event.doc_key.partition(":")
    type, body = BY_NAME.get(name), parse_object(event.payload)
    if type is None:
        raise Rejected(
            f"{name}: unknown type of object", remedy="check that this is a record of HubSpot"
        )
    if body.get("archived") is True:
        return Document(kind=type.name, title="", occurred_at=event.occurred_at, deleted=True)
    properties = _properties(body)
    summary = _SUMMARIES[type.name](id, properties)
    created = as_string(body.get("createdAt")) or properties.get("createdate", "")
    known = {label: properties.get(name, "") for name, label in type.labels.items()}
    head = labelled({**known, "HubSpot id": id, "Created": created})
    fields = FIELDS[type.name]
    return Document(
        kind=type.name,
        title=summary.title,
        occurred_at=event.occurred_at,
        text="\n".join(
            [head, *remaining_lines(body, shown=fields.shown, left_out=fields.left_out)]
        ),
        assertions=tuple(dict.fromkeys(summary.assertions)),
        metadata=_metadata(id, properties),
        about=summary.about,
    )


def _properties(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the properties that have a value, each as one line."""
    lines = {name: _one_line(value) for name, value in as_mapping(body.get("properties")).items()}
    return {name: line for name, line in lines.items() if line}


@dataclass(frozen=True, slots=True)
class _Summary:
    """Title, entity and assertions of a record."""

    title: str
    about: str
    assertions: list[Assertion]


def _company(id: str, properties: Mapping[str, str]) -> _Summary:
    name = (properties.get("name") or properties.get("domain") or f"Company {id}")[:MAX_NAME]
    ref = f"company:{name}"
    assertions = [
        Assertion(subject=ref, predicate="name", value=name),
        Assertion(subject=ref, predicate="same_as", object=f"crm_company:{id}"),
        *_values(ref, properties, domain="domain", status="lifecyclestage"),
        *_objects(ref, properties, phone=("phone", "phone")),
    ]
    for property, kind in (("scac", "scac"), ("mc_number", "mc"), ("usdot", "usdot")):
        if property in properties:
            code = f"{kind}:{properties[property][:MAX_NAME]}"
            assertions.append(Assertion(subject=ref, predicate="same_as", object=code))
    place = " ".join(filter(None, (properties.get("city"), properties.get("state"))))
    if place:
        location = f"location:{place[:MAX_NAME]}"
        assertions.append(Assertion(subject=ref, predicate="in", object=location))
    return _Summary(name, ref, assertions)


def _contact(id: str, properties: Mapping[str, str]) -> _Summary:
    names = (properties.get("firstname"), properties.get("lastname"))
    name = " ".join(filter(None, names))[:MAX_NAME]
    email = properties.get("email", "").lower()[:MAX_NAME]
    if "@" not in email:
        email = ""
    person = f"person:{name}" if name else ""
    ref = f"email:{email}" if email else person or f"contact:{id}"
    assertions = _values(ref, {"name": name, **properties}, name="name", title="jobtitle")
    for subject in filter(None, dict.fromkeys((ref, person))):
        assertions += _objects(
            subject,
            properties,
            works_for=("company", "company"),
            phone=("phone", "phone"),
            mobile=("mobilephone", "phone"),
        )
        if "company" not in properties:
            company_id = ("associatedcompanyid", "crm_company")
            assertions += _objects(subject, properties, works_for=company_id)
    if email and person:
        assertions.append(Assertion(subject=person, predicate="email", object=ref))
    return _Summary(name or email or f"Contact {id}", ref, assertions)


def _deal(id: str, properties: Mapping[str, str]) -> _Summary:
    name, ref = properties.get("dealname") or f"Deal {id}", f"deal:{id}"
    company = ("hs_primary_associated_company", "crm_company")
    assertions = [
        Assertion(subject=ref, predicate="name", value=name),
        *_values(
            ref, {**properties, "amount": _amount(properties)}, status="dealstage", amount="amount"
        ),
        *_objects(ref, properties, customer=company),
    ]
    return _Summary(name, ref, assertions)


def _amount(properties: Mapping[str, str]) -> str:
    """Return the amount with its currency: `1245.00 USD`. Accounts with one currency do not name it."""
    text, currency = properties.get("amount", ""), properties.get("deal_currency_code", "")
    amount = read_amount(text)
    return (
        format_money(amount, currency, grouped=False) if amount is not None and currency else text
    )


_SUMMARIES: Mapping[str, Callable[[str, Mapping[str, str]], _Summary]] = {
    "company": _company,
    "contact": _contact,
    "deal": _deal,
}


def _values(ref: str, properties: Mapping[str, str], **names: str) -> list[Assertion]:
    """Return an assertion for each predicate whose property has a value."""
    return [
        Assertion(subject=ref, predicate=predicate, value=properties[name])
        for predicate, name in names.items()
        if properties.get(name)
    ]


def _objects(ref: str, properties: Mapping[str, str], **names: tuple[str, str]) -> list[Assertion]:
    """Return an assertion for each predicate whose property, the first of the pair, names an entity of the second's type."""
    assertions: list[Assertion] = []
    for predicate, (name, kind) in names.items():
        value = properties.get(name, "")
        # A phone's key is its digits; a text with fewer than five of them is no number.
        if value and (kind != "phone" or re.search(r"\d{5}", re.sub(r"\D", "", value))):
            object = f"{kind}:{value[:MAX_NAME]}"
            assertions.append(Assertion(subject=ref, predicate=predicate, object=object))
    return assertions


def _metadata(id: str, properties: Mapping[str, str]) -> dict[str, Any]:
    amount: float | None = None
    with contextlib.suppress(ValueError):
        amount = float(properties.get("amount", ""))
    metadata = {
        "crm_id": id,
        "stage": properties.get("dealstage") or properties.get("lifecyclestage"),
        "pipeline": properties.get("pipeline"),
        "amount": amount if amount is not None and abs(amount) < 1e15 else None,
        "currency": properties.get("deal_currency_code"),
        "owner_id": properties.get("hubspot_owner_id"),
    }
    return {name: value for name, value in metadata.items() if value is not None}


def _one_line(value: object) -> str:
    # All of HubSpot's values are texts or null; a number is accepted too.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(as_string(value).split())
