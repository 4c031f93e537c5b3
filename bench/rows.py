"""Rows of the result table: a measured value, its target, and how it was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCALE = float(os.environ.get("SCALE", "0.1"))
"""Share of the full size of the long rows: 200,000 documents, 100,000 chunks. 0.1 unless set."""


@dataclass(frozen=True, slots=True)
class Row:
    """A measured value in `unit`. `target` is text for people; `ok` is None for a value without a target."""

    name: str
    value: float
    unit: str
    target: str
    ok: bool | None
    note: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def at_most(name: str, value: float, unit: str, limit: float, note: str) -> Row:
    return Row(name, round(value, 3), unit, f"≤ {limit:g}", value <= limit, note)


def at_least(name: str, value: float, unit: str, limit: float, note: str) -> Row:
    return Row(name, round(value, 3), unit, f"≥ {limit:g}", value >= limit, note)


def stated(name: str, value: float, unit: str, note: str) -> Row:
    return Row(name, round(value, 3), unit, "stated", None, note)


def row_of(given: Row | Mapping[str, Any]) -> Row:
    """Return a row of a part of the bench that may return plain mappings."""
    return given if isinstance(given, Row) else Row(**given)


def scaled(full: int) -> int:
    """Return a size at the scale of this run."""
    return max(1, round(full * SCALE))


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
