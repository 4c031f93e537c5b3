"""SONAR's index values and alerts, read whatever the case of their field names, and their documents."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from apex_memory.errors import Rejected
from apex_memory.model import Assertion, Document
from apex_memory.sources.fields import RecordFields, labelled, remaining_lines
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
VALUE_FIELDS = RecordFields(
    "market_index",
    shown={
        "index": "title text metadata assertion",
        "ticker": "title text metadata assertion",
        "qualifier": "title text metadata assertion",
        "granularity": "title text metadata assertion",
        "date": "title text metadata time",
        "data_timestamp": "title text metadata time",
        "value": "title text metadata assertion",
        "data_value": "title text metadata assertion",
    },
    note="Names in any case. `ticker`, `granularity`, `data_timestamp` and `data_value` stand for the names above them.",
)
ALERT_FIELDS = RecordFields(
    "market_alert",
    shown={
        "timestamp": "version time",
        "data.title": "title text",
        "data.text": "text",
        "data.index": "text metadata assertion",
        "data.qualifier": "text metadata assertion",
        "data.severity": "text metadata",
    },
    left_out={"type": "`alert`"},
)
_LANE = re.compile(r"([A-Z]{3})([A-Z]{3})")


@dataclass(frozen=True, slots=True)
class IndexValue:
    """One index, at one place or lane, on one day. `number` is None if the value was withdrawn, or is not published yet."""

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
        """The value as text, with up to 15 digits; empty without one."""
        return "" if self.number is None else f"{self.number:.15g}"

    @classmethod
    def read(cls, record: object) -> IndexValue:
        """Return the value in a record. Raises `Rejected` with the field that cannot be read.

        SONAR's field names are not verified: several are accepted.
        """
        if not isinstance(record, dict):
            raise Rejected(
                "record: expected an object", remedy="check that this is a value of SONAR"
            )
        fields = _folded(record)
        number = _first(fields, _VALUE)
        return cls(
            index=_code(_first(fields, _INDEX), "index"),
            qualifier=_code(_first(fields, _QUALIFIER), "qualifier"),
            day=_day(_first(fields, _DATE)),
            number=None if number is None else _number(number),
        )


def with_series(record: object, index: str, qualifier: str) -> object:
    """Return the record, with the index and place of the request where it does not name them itself."""
    if not isinstance(record, dict):
        return record
    fields = _folded(record)
    completed = dict(record)
    if not as_string(_first(fields, _INDEX)):
        completed["index"] = index
    if not as_string(_first(fields, _QUALIFIER)):
        completed["qualifier"] = qualifier
    return completed


def records_of(body: object) -> list[object]:
    """Return the records in a response: a list, or an object with one list of records in it. Raises `Rejected`."""
    if isinstance(body, list):
        return body
    lists = [value for value in as_mapping(body).values() if isinstance(value, list)]
    if len(lists) != 1:
        raise Rejected(
            "sonar: the response is not a list of records",
            remedy="see docs/howto/sources/sonar.md for the forms that are read",
        )
    return list(sequence(lists[0]))


def value_document(value: IndexValue, record: Mapping[str, Any]) -> Document:
    """Return the `market_index` of a value, or its delete where the value was withdrawn."""
    if value.number is None:
        return Document(kind="market_index", title="", occurred_at=value.at, deleted=True)
    known = [name for name in record if name.lower() in VALUE_FIELDS.shown]
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
        text="\n".join([labelled(lines), *remaining_lines(record, shown=known)]),
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
    """Return the `market_alert` of a relay's message: its title and text, and every other field in a line of its own."""
    data = as_mapping(body.get("data"))
    title = _one_line(data.get("title")) or "Market alert"
    text = as_string(data.get("text")).strip()
    lines = [labelled({"Alert": title}), *remaining_lines(data, shown=("title", "text"))]
    index, qualifier = (
        _one_line(data.get("index")).upper(),
        _one_line(data.get("qualifier")).upper(),
    )
    series = f"index:{index}/{qualifier}" if index and qualifier else ""
    metadata = {name: _one_line(data.get(name)) for name in ("index", "qualifier", "severity")}
    return Document(
        kind="market_alert",
        title=title,
        occurred_at=at,
        text="\n".join(lines) + (f"\n\n{text}" if text else ""),
        assertions=(Assertion(predicate="of", object=series),) if series else (),
        metadata={name: value for name, value in metadata.items() if value},
    )


def _one_line(value: object) -> str:
    """Return a text or a number as one line, empty for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return " ".join(as_string(value).split())


def _folded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in record.items()}


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _code(value: object, place: str) -> str:
    code = parse_identifier(value, place).strip().upper()
    if len(code) > 100:
        raise Rejected(f"{place}: longer than 100 characters", remedy=f"correct {place}")
    return code


def _day(value: object) -> date:
    """Return the day of a date or a time. It is the one that is written: a zone must not move a value to another day."""
    at = parse_datetime(value, "date")
    written = re.match(r"\s*(\d{4}-\d{2}-\d{2})", as_string(value), re.ASCII)
    return date.fromisoformat(written[1]) if written else at.date()


def _number(value: object) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise Rejected("value: expected a number", remedy="correct value")
