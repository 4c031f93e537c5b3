"""QuickBooks Online's records as events, and the changes that its two webhook envelopes name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Event, Priority, micros
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    canonical,
    parse_datetime,
    parse_identifier,
)

SOURCE = "quickbooks"
PRIORITY = Priority.P2
MAX_ID = 100  # characters of an id
_LAST = 999_999  # rank of a delete, which is the last change of its second

_CLOUD = re.compile(r"qbo\.([a-z]{1,40})\.([a-z]{1,40})\.v\d{1,3}", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class RecordKey:
    """The identity of a record: ids repeat across entities and companies (realms)."""

    realm: str
    entity: str
    id: str

    def __str__(self) -> str:
        return f"{self.realm}:{self.entity}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> RecordKey | None:
        """Return the key of a text `realm:entity:id`, None for another form."""
        parts = text.split(":", 2)
        return cls(*parts) if len(parts) == 3 and all(parts) else None


_OF_THE_CALL = frozenset({"domain", "sparse"})
"""Fields that say how a record was read, not what it holds."""


def record_event(realm: str, entity: str, record: object, fetched_at: datetime) -> Event:
    """Return the event of a record. Equal states give equal events, whichever call returned the record.

    `fetched_at` replaces a missing time. Times are whole seconds, so the sync token orders the changes within one. Other
    content under one token, which QuickBooks never sends, is kept too: the id holds a digest of the content.
    Raises `Rejected` for a record without an id.
    """
    body = as_mapping(record)
    key = RecordKey(realm, entity, short_id(body.get("Id"), f"{entity}.Id"))
    given = as_mapping(body.get("MetaData")).get("LastUpdatedTime")
    at = parse_datetime(given, f"{entity}.MetaData.LastUpdatedTime") if given else fetched_at
    if as_string(body.get("status")).lower() == "deleted":
        return deleted_event(key, at, body)
    token = _token(body.get("SyncToken"))
    state = {name: value for name, value in body.items() if name not in _OF_THE_CALL}
    digest = hashlib.sha256(canonical(state)).hexdigest()[:32]
    mark = f"{token}@{_seconds(at)}#{digest}" if given else digest
    return _event(key, mark, at, min(token, _LAST - 1), body)


def deleted_event(key: RecordKey, at: datetime, body: Mapping[str, Any] | None = None) -> Event:
    """Return the delete of a record at a time."""
    payload = body or {"domain": "QBO", "status": "Deleted", "Id": key.id}
    return _event(key, f"deleted@{_seconds(at)}", at, _LAST, payload)


def _event(key: RecordKey, mark: str, at: datetime, rank: int, body: Mapping[str, Any]) -> Event:
    return Event(
        source=SOURCE,
        event_id=f"{key}:{mark}",
        doc_key=str(key),
        version=_seconds(at) * 1_000_000 + rank,
        occurred_at=at,
        payload=canonical(body),
        priority=PRIORITY,
    )


def updated_seconds(record: object) -> int | None:
    """Return the time of a record's last change, in seconds since 1970; None if it cannot be read."""
    given = as_mapping(as_mapping(record).get("MetaData")).get("LastUpdatedTime")
    try:
        return _seconds(parse_datetime(given, "LastUpdatedTime"))
    except Rejected:
        return None


def _seconds(at: datetime) -> int:
    return micros(at) // 1_000_000


def _token(value: object) -> int:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) else 0


def short_id(value: object, place: str) -> str:
    """Return an id as text. Raises `Rejected` when it is missing or too long."""
    id = parse_identifier(value, place)
    if len(id) > MAX_ID:
        raise Rejected(f"{place}: longer than {MAX_ID} characters", remedy=f"correct {place}")
    return id


@dataclass(frozen=True, slots=True)
class RecordChange:
    """One change that a webhook names. `operation` is in lower case; `merged` is the id of the record that a merge removed."""

    key: RecordKey
    operation: str
    at: datetime | None
    merged: str | None = None


def read_changes(
    body: Any, entities: Sequence[str]
) -> tuple[list[RecordChange], list[tuple[Any, Rejected]]]:
    """Return the changes of these entities, and the elements that cannot be read, each with its error.

    An object is the older envelope, an array holds CloudEvents. Raises `Rejected` for anything else.
    """
    if isinstance(body, dict) and isinstance(body.get("eventNotifications"), list):
        items, read = list(_legacy_items(body["eventNotifications"])), _legacy
    elif isinstance(body, list):
        items, read = [(f"body[{n}]", item) for n, item in enumerate(body)], _cloud
    else:
        raise Rejected(
            "body: expected eventNotifications, or an array of CloudEvents",
            remedy="check that the request comes from QuickBooks",
        )
    changes: list[RecordChange] = []
    malformed: list[tuple[Any, Rejected]] = []
    names = {entity.lower(): entity for entity in entities}
    for place, item in items:
        try:
            if change := read(item, place, names):
                changes.append(change)
        except Rejected as error:
            malformed.append((item, error))
    return changes, malformed


def _legacy_items(notifications: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each changed entity; a notification without entities as it came."""
    for n, notification in enumerate(notifications):
        place = f"eventNotifications[{n}]"
        entities = as_mapping(as_mapping(notification).get("dataChangeEvent")).get("entities")
        if not isinstance(entities, list):
            yield place, notification
            continue
        for m, entity in enumerate(entities):
            yield (
                f"{place}.dataChangeEvent.entities[{m}]",
                {"realmId": notification.get("realmId"), "entity": entity},
            )


def _legacy(item: Any, place: str, names: Mapping[str, str]) -> RecordChange | None:
    entity = as_mapping(as_mapping(item).get("entity"))
    if not entity:
        raise Rejected(f"{place}: expected a changed entity", remedy=f"correct {place}")
    name = names.get(as_string(entity.get("name")).lower())
    if name is None:
        return None
    return _change(
        RecordKey(
            _realm(item["realmId"], f"{place}.realmId"),
            name,
            short_id(entity.get("id"), f"{place}.id"),
        ),
        as_string(entity.get("operation")),
        entity.get("lastUpdated"),
        entity.get("deletedId"),
        place,
    )


def _cloud(item: Any, place: str, names: Mapping[str, str]) -> RecordChange | None:
    event = as_mapping(item)
    type = _CLOUD.fullmatch(as_string(event.get("type")))
    if type is None:
        raise Rejected(
            f"{place}.type: expected a text like qbo.invoice.updated.v1",
            remedy=f"correct {place}.type",
        )
    name = names.get(type[1].lower())
    if name is None:
        return None
    data = {key.lower(): value for key, value in as_mapping(event.get("data")).items()}
    return _change(
        RecordKey(
            _realm(event.get("intuitaccountid"), f"{place}.intuitaccountid"),
            name,
            short_id(event.get("intuitentityid"), f"{place}.intuitentityid"),
        ),
        type[2],
        event.get("time"),
        data.get("deletedid"),
        place,
    )


_PAST = {"deleted": "delete", "merged": "merge"}


def _change(key: RecordKey, operation: str, at: object, merged: object, place: str) -> RecordChange:
    operation = operation.lower()
    return RecordChange(
        key,
        _PAST.get(operation, operation),
        parse_datetime(at, f"{place}.time") if at not in (None, "") else None,
        short_id(merged, f"{place}.deletedId") if merged else None,
    )


def _realm(value: object, place: str) -> str:
    realm = short_id(value, place)
    if ":" in realm:
        raise Rejected(f"{place}: expected a company's id", remedy=f"correct {place}")
    return realm
