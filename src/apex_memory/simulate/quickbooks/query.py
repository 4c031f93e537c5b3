"""QuickBooks' query language, as far as anybody here speaks it: `select * from ENTITY where … orderby … startposition …`."""

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
    """The entity, its records, the first that is asked for (from 1) and how many. Raises `ValueError`."""
    match = _QUERY.fullmatch(text.strip())
    if match is None:
        raise ValueError("not understood")
    entity = match["entity"]
    conditions = re.split(r"\s+and\s+", match["where"] or "", flags=re.IGNORECASE)
    conditions = [one for one in conditions if one]
    if entity in LISTS and not any(one.lower().startswith("active") for one in conditions):
        conditions.append("Active in (true)")
    tests = [_condition(one) for one in conditions]
    start, most = int(match["start"] or 1), int(match["most"] or 100)
    if most > 1000 or start < 1:
        raise ValueError("page")
    found = [
        record
        for at, record in books.now(entity, now)
        if record.get("status") != "Deleted" and all(test(at, record) for test in tests)
    ]
    if match["order"] == "MetaData.LastUpdatedTime":
        found.sort(key=lambda one: datetime.fromisoformat(one["MetaData"]["LastUpdatedTime"]))
    return entity, found, start, most


def _condition(text: str) -> Callable[[datetime, Mapping[str, Any]], bool]:
    if active := re.fullmatch(r"Active in \((.+)\)", text, re.IGNORECASE):
        wanted = [one.strip().lower() == "true" for one in active[1].split(",")]
        return lambda at, record: record.get("Active", True) in wanted
    if timed := re.fullmatch(r"MetaData\.LastUpdatedTime\s*(>=|<=|>|<|=)\s*'(.+)'", text):
        than = datetime.fromisoformat(timed[2])
        compare: dict[str, Callable[[datetime], bool]] = {
            ">=": lambda at: at >= than,
            "<=": lambda at: at <= than,
            ">": lambda at: at > than,
            "<": lambda at: at < than,
            "=": lambda at: at == than,
        }
        return lambda at, record: compare[timed[1]](at)
    if equal := re.fullmatch(r"(\w+)\s*=\s*'(.*)'", text):
        return lambda at, record: str(record.get(equal[1])) == equal[2]
    raise ValueError(text)
