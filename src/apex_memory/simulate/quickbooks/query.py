"""The part of QuickBooks' query language that Apex uses: `select * from ENTITY where … orderby … startposition …`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from apex_memory.simulate.quickbooks.books import Books

LISTS = ("Customer", "Vendor")
_QUERY = re.compile(
    r"select \* from (?P<entity>\w+)(?: where (?P<where>.+?))?(?: order ?by (?P<order>[\w.]+)(?: asc)?)?"
    r"(?: startposition (?P<start>\d+))?(?: maxresults (?P<most>\d+))?",
    re.IGNORECASE,
)


def select(books: Books, text: str, now: datetime) -> tuple[str, list[dict[str, Any]], int, int]:
    """Return the entity, its matching records, the start position (from 1) and the most results.

    Raises `ValueError` if the query is not understood.
    """
    match = _QUERY.fullmatch(text.strip())
    if match is None:
        raise ValueError("not understood")
    entity = match["entity"]
    conditions = re.split(r"\s+and\s+", match["where"] or "", flags=re.IGNORECASE)
    conditions = [condition for condition in conditions if condition]
    if entity in LISTS and not any(
        condition.lower().startswith("active") for condition in conditions
    ):
        conditions.append("Active in (true)")
    tests = [_parse_condition(condition) for condition in conditions]
    start, most = int(match["start"] or 1), int(match["most"] or 100)
    if most > 1000 or start < 1:
        raise ValueError("page")
    records = [
        record
        for at, record in books.now(entity, now)
        if record.get("status") != "Deleted" and all(test(at, record) for test in tests)
    ]
    if match["order"] == "MetaData.LastUpdatedTime":
        records.sort(key=lambda item: datetime.fromisoformat(item["MetaData"]["LastUpdatedTime"]))
    return entity, records, start, most


def _parse_condition(text: str) -> Callable[[datetime, Mapping[str, Any]], bool]:
    if active := re.fullmatch(r"Active in \((.+)\)", text, re.IGNORECASE):
        states = [state.strip().lower() == "true" for state in active[1].split(",")]
        return lambda at, record: record.get("Active", True) in states
    if timed := re.fullmatch(r"MetaData\.LastUpdatedTime\s*(>=|<=|>|<|=)\s*'(.+)'", text):
        limit = datetime.fromisoformat(timed[2])
        compare: dict[str, Callable[[datetime], bool]] = {
            ">=": lambda at: at >= limit,
            "<=": lambda at: at <= limit,
            ">": lambda at: at > limit,
            "<": lambda at: at < limit,
            "=": lambda at: at == limit,
        }
        return lambda at, record: compare[timed[1]](at)
    if equal := re.fullmatch(r"(\w+)\s*=\s*'(.*)'", text):
        return lambda at, record: str(record.get(equal[1])) == equal[2]
    raise ValueError(text)
