"""HubSpot's words: object types, records as events and documents, and the notices of its webhooks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document, Event, Priority, micros
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
MOST = 300  # characters of a name in a ref


@dataclass(frozen=True, slots=True)
class Kind:
    """An object type. `modified` is the property that search windows go by; `shown` maps properties to labels."""

    plural: str  # in paths
    name: str  # in webhooks and document keys
    type_id: str  # in webhooks of the newer form
    modified: str
    shown: Mapping[str, str]


_COMPANY = Kind(
    "companies",
    "company",
    "0-2",
    "hs_lastmodifieddate",
    {
        "name": "Company",
        "domain": "Domain",
        "website": "Website",
        "phone": "Phone",
        "address": "Address",
        "city": "City",
        "state": "State",
        "zip": "Postal code",
        "country": "Country",
        "industry": "Industry",
        "type": "Type",
        "lifecyclestage": "Lifecycle stage",
        "numberofemployees": "Employees",
        "annualrevenue": "Annual revenue",
        "description": "Description",
    },
)
_CONTACT = Kind(
    "contacts",
    "contact",
    "0-1",
    "lastmodifieddate",
    {
        "firstname": "First name",
        "lastname": "Last name",
        "email": "E-mail",
        "phone": "Phone",
        "mobilephone": "Mobile",
        "jobtitle": "Job title",
        "company": "Company",
        "city": "City",
        "state": "State",
        "lifecyclestage": "Lifecycle stage",
        "hs_lead_status": "Lead status",
        "message": "Message",
        "associatedcompanyid": "Company id",
    },
)
_DEAL = Kind(
    "deals",
    "deal",
    "0-3",
    "hs_lastmodifieddate",
    {
        "dealname": "Deal",
        "dealstage": "Stage",
        "pipeline": "Pipeline",
        "amount": "Amount",
        "deal_currency_code": "Currency",
        "closedate": "Close date",
        "dealtype": "Type",
        "hs_priority": "Priority",
        "hs_next_step": "Next step",
        "description": "Description",
        "hubspot_owner_id": "Owner id",
        "hs_primary_associated_company": "Company id",
    },
)
KINDS: Mapping[str, Kind] = {kind.plural: kind for kind in (_COMPANY, _CONTACT, _DEAL)}
_BY_NAME = {kind.name: kind for kind in KINDS.values()}
_BY_TYPE_ID = {kind.type_id: kind for kind in KINDS.values()}
_OWN = {"createdate", "hs_object_id", "hs_lastmodifieddate", "lastmodifieddate"}


def record_event(kind: Kind, record: object, *, restored: datetime | None = None) -> Event:
    """A record of any call as an event: the same state, the same event, by whatever way it came.

    `restored` is when it came back from the recycling bin: that need not change `updatedAt`, and must
    outdo the delete. `Rejected` if it cannot be read.
    """
    body = as_mapping(record)
    key = f"{kind.name}:{object_id(body.get('id'), 'id')}"
    changed = parse_datetime(
        body.get("updatedAt") or as_mapping(body.get("properties")).get(kind.modified), "updatedAt"
    )
    archived = body.get("archived") is True
    at, mark = changed, ""
    if archived:
        given = body.get("archivedAt")
        at = max(changed, parse_datetime(given, "archivedAt")) if given else changed
        mark = ":archived"
    elif restored is not None:
        at, mark = max(changed, restored), f":restored@{micros(restored)}"
    return _event(key, f"{key}@{micros(at if archived else changed)}{mark}", at, body)


def gone_event(kind: Kind, id: str, at: datetime) -> Event:
    """A delete of what HubSpot knows no more, not even in its recycling bin.

    At an equal time the record wins (`@` sorts behind `:`): HubSpot may not show yet what was just made.
    """
    key = f"{kind.name}:{id}"
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


def modified(kind: Kind, record: object) -> int | None:
    """The time (ms since 1970) that search sorted this record by; None if it cannot be read."""
    body = as_mapping(record)
    given = as_mapping(body.get("properties")).get(kind.modified) or body.get("updatedAt")
    with contextlib.suppress(Rejected):
        return micros(parse_datetime(given, kind.modified)) // 1000
    return None


def object_id(value: object, place: str) -> str:
    """HubSpot's ids are numbers, in text or not."""
    id = parse_identifier(value, place)
    if not re.fullmatch(r"[0-9]{1,20}", id, re.ASCII):
        raise Rejected(f"{place}: expected a number", remedy=f"correct {place}")
    return id


@dataclass(frozen=True, slots=True)
class Notice:
    """One element of a webhook: what happened to which objects. `kind` None: a type that is not held here."""

    kind: Kind | None
    action: str
    ids: tuple[str, ...]
    at: datetime | None
    portal: str

    @property
    def order(self) -> tuple[bool, int]:
        """HubSpot puts a change before the creation it belongs to: creation first, then by time."""
        return self.action != "creation", micros(self.at) if self.at else 0

    @classmethod
    def read(cls, value: object, place: str) -> Notice:
        if not isinstance(value, dict):
            raise Rejected(f"{place}: expected an object", remedy=f"correct {place}")
        name, _, action = as_string(value.get("subscriptionType")).partition(".")
        if not action:
            raise Rejected(
                f"{place}.subscriptionType: expected a text like contact.creation",
                remedy=f"correct {place}.subscriptionType",
            )
        given = [value.get("objectId", value.get("primaryObjectId"))]
        given += sequence(value.get("mergedObjectIds"))
        kind = _BY_TYPE_ID.get(as_string(value.get("objectTypeId")))
        return cls(
            kind=kind if name == "object" else _BY_NAME.get(name),
            action=action,
            ids=tuple(dict.fromkeys(object_id(id, f"{place}.objectId") for id in given)),
            at=_from_ms(value.get("occurredAt"), f"{place}.occurredAt"),
            portal=str(value.get("portalId", "")),
        )


def _from_ms(value: object, place: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 10**15:
        raise Rejected(f"{place}: expected milliseconds since 1970", remedy=f"correct {place}")
    return parse_datetime(value / 1000, place)


def nudge_key(kind: Kind, id: str, *, restored: bool) -> str:
    return f"{kind.name}:{id}:restored" if restored else f"{kind.name}:{id}"


def read_key(key: str) -> tuple[Kind, str, bool] | None:
    """Kind, id, and whether it was restored; None if the key is none of ours."""
    match = re.fullmatch(r"(\w+):([0-9]+)(:restored)?", key, re.ASCII)
    kind = _BY_NAME.get(match[1]) if match else None
    return (kind, match[2], bool(match[3])) if match and kind else None


def record_document(event: Event) -> Document:
    """A `company`, `contact` or `deal` as its properties tell it."""
    name = event.doc_key.partition(":")[0]
    kind, body = _BY_NAME.get(name), parse_object(event.payload)
    if kind is None:
        raise Rejected(f"{name}: no such type of object", remedy="is this a record of HubSpot?")
    if body.get("archived") is True:
        return Document(kind=kind.name, title="", occurred_at=event.occurred_at, deleted=True)
    told = {name: _one_line(value) for name, value in as_mapping(body.get("properties")).items()}
    told = {name: value for name, value in told.items() if value}
    id = event.doc_key.partition(":")[2]
    title, about, said = _TELLERS[kind.name](id, told)
    lines = [f"{label}: {told[name]}" for name, label in kind.shown.items() if name in told]
    lines += [
        f"{name.removeprefix('hs_').replace('_', ' ').capitalize()}: {value}"
        for name, value in sorted(told.items())
        if name not in kind.shown and name not in _OWN
    ]
    return Document(
        kind=kind.name,
        title=title,
        occurred_at=event.occurred_at,
        text="\n".join(lines) or title,
        assertions=tuple(dict.fromkeys(said)),
        metadata=_metadata(id, told),
        about=about,
    )


Told = tuple[str, str, list[Assertion]]


def _company(id: str, told: Mapping[str, str]) -> Told:
    name = (told.get("name") or told.get("domain") or f"Company {id}")[:MOST]
    ref = f"company:{name}"
    said = [
        Assertion(subject=ref, predicate="name", value=name),
        Assertion(subject=ref, predicate="same_as", object=f"crm_company:{id}"),
        *_values(ref, told, domain="domain", status="lifecyclestage"),
        *_objects(ref, told, phone=("phone", "phone")),
        *(
            Assertion(subject=ref, predicate="same_as", object=f"{kind}:{told[property][:MOST]}")
            for property, kind in (("scac", "scac"), ("mc_number", "mc"), ("usdot", "usdot"))
            if property in told
        ),
    ]
    if place := " ".join(filter(None, (told.get("city"), told.get("state")))):
        said.append(Assertion(subject=ref, predicate="in", object=f"location:{place[:MOST]}"))
    return name, ref, said


def _contact(id: str, told: Mapping[str, str]) -> Told:
    name = " ".join(filter(None, (told.get("firstname"), told.get("lastname"))))[:MOST]
    email = told["email"].lower()[:MOST] if "@" in told.get("email", "") else ""
    person = f"person:{name}" if name else ""
    ref = f"email:{email}" if email else person or f"contact:{id}"
    said = _values(ref, {"name": name, **told}, name="name", title="jobtitle")
    for subject in filter(None, dict.fromkeys((ref, person))):
        said += _objects(
            subject,
            told,
            works_for=("company", "company"),
            phone=("phone", "phone"),
            mobile=("mobilephone", "phone"),
        )
        if "company" not in told:
            said += _objects(subject, told, works_for=("associatedcompanyid", "crm_company"))
    if email and person:
        said.append(Assertion(subject=person, predicate="email", object=ref))
    return name or email or f"Contact {id}", ref, said


def _deal(id: str, told: Mapping[str, str]) -> Told:
    name, ref = told.get("dealname") or f"Deal {id}", f"deal:{id}"
    said = [
        Assertion(subject=ref, predicate="name", value=name),
        *_values(ref, told, status="dealstage", amount="amount"),
        *_objects(ref, told, customer=("hs_primary_associated_company", "crm_company")),
    ]
    return name, ref, said


_TELLERS = {"company": _company, "contact": _contact, "deal": _deal}


def _values(ref: str, told: Mapping[str, str], **wanted: str) -> list[Assertion]:
    return [
        Assertion(subject=ref, predicate=predicate, value=told[property])
        for predicate, property in wanted.items()
        if told.get(property)
    ]


def _objects(ref: str, told: Mapping[str, str], **wanted: tuple[str, str]) -> list[Assertion]:
    return [
        Assertion(subject=ref, predicate=predicate, object=f"{kind}:{told[property][:MOST]}")
        for predicate, (property, kind) in wanted.items()
        if told.get(property)
        # A phone's key is its digits; a text without any names nobody.
        and (kind != "phone" or re.search(r"\d{5}", re.sub(r"\D", "", told[property])))
    ]


def _metadata(id: str, told: Mapping[str, str]) -> dict[str, Any]:
    amount: float | None = None
    with contextlib.suppress(ValueError):
        amount = float(told.get("amount", ""))
    known = {
        "crm_id": id,
        "stage": told.get("dealstage") or told.get("lifecyclestage"),
        "pipeline": told.get("pipeline"),
        "amount": amount if amount is not None and abs(amount) < 1e15 else None,
        "currency": told.get("deal_currency_code"),
        "owner_id": told.get("hubspot_owner_id"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _one_line(value: object) -> str:
    # All of HubSpot's values are texts or null; a number is taken all the same.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(as_string(value).split())
