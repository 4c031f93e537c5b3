"""What SONAR and its relay say: index values and alerts, read whatever the case of their fields, and told as documents."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources.payloads import (
    as_mapping,
    as_string,
    parse_datetime,
    parse_identifier,
    sequence,
)

NAMES = {
    "OTRI": "Outbound Tender Reject Index",
    "OTVI": "Outbound Tender Volume Index",
    "ITRI": "Inbound Tender Reject Index",
    "ITVI": "Inbound Tender Volume Index",
    "VOTRI": "Van Outbound Tender Reject Index",
    "VOTVI": "Van Outbound Tender Volume Index",
    "ROTRI": "Reefer Outbound Tender Reject Index",
    "ROTVI": "Reefer Outbound Tender Volume Index",
    "NTI": "National Truckload Index",
    "HAUL": "Headhaul Index",
}
_INDEX, _QUALIFIER = ("index", "ticker"), ("qualifier", "granularity")
_DATE, _VALUE = ("date", "data_timestamp"), ("value", "data_value")
_LANE = re.compile(r"([A-Z]{3})([A-Z]{3})")


@dataclass(frozen=True, slots=True)
class Value:
    """One index, at one place or lane, on one day. `number` None: the value was withdrawn, or is not out yet."""

    index: str
    qualifier: str
    day: date
    number: float | None

    @property
    def key(self) -> str:
        return f"index:{self.index}/{self.qualifier}/{self.day}"

    @property
    def at(self) -> datetime:
        return datetime.combine(self.day, time(), UTC)

    @property
    def shown(self) -> str:
        return "" if self.number is None else f"{self.number:.15g}"

    @classmethod
    def read(cls, record: object) -> Value:
        """Raises `Rejected` with the field that cannot be read. Field names are not verified: several are known."""
        if not isinstance(record, dict):
            raise Rejected("record: expected an object", remedy="is this a value of SONAR?")
        fields = _folded(record)
        number = _first(fields, _VALUE)
        return cls(
            index=_code(_first(fields, _INDEX), "index"),
            qualifier=_code(_first(fields, _QUALIFIER), "qualifier"),
            day=parse_datetime(_first(fields, _DATE), "date").date(),
            number=None if number is None else _number(number),
        )


def completed(record: object, index: str, qualifier: str) -> object:
    """The record, with index and place as they were asked for where it does not name them itself."""
    if not isinstance(record, dict):
        return record
    fields = _folded(record)
    context = {"index": (_INDEX, index), "qualifier": (_QUALIFIER, qualifier)}
    added = {name: value for name, (known, value) in context.items() if not as_string(_first(fields, known))}  # fmt: skip
    return {**record, **added}


def records_of(answer: object) -> list[object]:
    """The records in an answer: a list, or an object with one list of records in it."""
    if isinstance(answer, list):
        return answer
    lists = [value for value in as_mapping(answer).values() if isinstance(value, list)]
    if len(lists) != 1:
        raise Rejected(
            "sonar: the answer is no list of records",
            remedy="has the API changed? See docs/howto/sources/sonar.md",
        )
    return list(sequence(lists[0]))


def value_document(value: Value) -> Document:
    """A `market_index`; gone where the value was withdrawn."""
    if value.number is None:
        return Document(kind="market_index", title="", occurred_at=value.at, deleted=True)
    lane = _LANE.fullmatch(value.qualifier)
    lines = {
        "Index": " ".join(filter(None, [value.index, NAMES.get(value.index)])),
        "Market": value.qualifier,
        "Lane": f"{lane[1]} to {lane[2]}" if lane else "",
        "Date": value.day.isoformat(),
        "Value": value.shown,
    }
    series = f"index:{value.index}/{value.qualifier}"
    return Document(
        kind="market_index",
        title=f"{value.index} {value.qualifier} {value.day}: {value.shown}",
        occurred_at=value.at,
        text=_text(lines),
        assertions=(
            Assertion(predicate="of", object=series),
            Assertion(predicate="value", value=value.shown),
            Assertion(
                subject=series,
                predicate="name",
                value=f"{NAMES.get(value.index, value.index)} {value.qualifier}",
            ),
        ),
        metadata={
            "index": value.index,
            "qualifier": value.qualifier,
            "date": value.day.isoformat(),
            "value": value.number,
        },
    )


def alert_document(body: Mapping[str, Any], at: datetime) -> Document:
    """A `market_alert`: title and text, and every other plain field as a line."""
    data = as_mapping(body.get("data"))
    said = {
        name: " ".join(str(value).split())
        for name, value in data.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    title, text = said.pop("title", "") or "Market alert", as_string(data.get("text")).strip()
    lines = {
        name.replace("_", " ").capitalize(): value
        for name, value in said.items()
        if name not in ("id", "text")
    }
    index, qualifier = said.get("index", "").upper(), said.get("qualifier", "").upper()
    series = f"index:{index}/{qualifier}" if index and qualifier else ""
    return Document(
        kind="market_alert",
        title=title,
        occurred_at=at,
        text=_text({"Alert": title, **lines}) + (f"\n\n{text}" if text else ""),
        assertions=(Assertion(predicate="of", object=series),) if series else (),
        metadata={name: said[name] for name in ("index", "qualifier", "severity") if name in said},
    )


def _text(lines: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value)


def _folded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in record.items()}


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _code(value: object, place: str) -> str:
    code = parse_identifier(value, place).strip().upper()
    if len(code) > 100:
        raise Rejected(f"{place}: longer than 100 characters", remedy=f"correct {place}")
    return code


def _number(value: object) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise Rejected("value: expected a number", remedy="correct value")
