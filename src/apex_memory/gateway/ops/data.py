"""The data of a dashboard's panels: from the gateway's own history, or from Prometheus."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

import httpx2

from apex_memory.errors import Unavailable
from apex_memory.gateway.ops.history import MetricsHistory, Snapshot
from apex_memory.gateway.ops.panels import Dashboard, Line, Panel
from apex_memory.gateway.ops.queries import RANGE

MOST_LINES = 8  # of a chart; the others are counted
MINUTES = 30
STEP_SECONDS = 15
RECENT_STEPS = 4
PROMETHEUS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SeriesData:
    """One line of a chart; a value is None where there is none."""

    label: str
    values: Sequence[float | None]

    @property
    def last(self) -> float | None:
        """The newest value; None if there was none in the last minute, whose newest steps may still be on their way."""
        recent = self.values[-RECENT_STEPS:]
        return next((value for value in reversed(recent) if value is not None), None)


@dataclass(frozen=True, slots=True)
class PanelData:
    """The lines of one panel, those with the largest values first. `left_out` is how many more there are."""

    panel: Panel
    times: Sequence[float]
    """Seconds since 1970."""
    series: Sequence[SeriesData] = ()
    left_out: int = 0
    reason: str = ""
    """Why there is no data."""


@dataclass(frozen=True, slots=True)
class DashboardData:
    """The data of all panels of a dashboard, and where it comes from."""

    origin: str
    panels: Sequence[PanelData] = field(default_factory=list)


class HistoryData:
    """The data of dashboards from the gateway's own history. It is computed once for each new sample, however many look at it."""

    def __init__(self, history: MetricsHistory) -> None:
        self._history = history
        self._computed: dict[str, tuple[float, DashboardData]] = {}
        self._computing = asyncio.Lock()

    async def of(self, dashboard: Dashboard) -> DashboardData:
        """Return the data of a dashboard up to the last sample."""
        async with self._computing:
            newest = self._history.newest
            known = self._computed.get(dashboard.name)
            if known and known[0] == newest:
                return known[1]
            data = await from_history(dashboard, self._history)
            self._computed[dashboard.name] = (newest, data)
            return data


async def from_history(dashboard: Dashboard, history: MetricsHistory) -> DashboardData:
    """Return the data that the gateway keeps in memory."""
    names: set[str] = set()
    for panel in dashboard.panels:
        for line in panel.lines:
            names.update(line.query.metrics())
    snapshot = history.snapshot(names)
    # In a thread: quantiles of many buckets take some milliseconds.
    panels = await asyncio.to_thread(
        lambda: [_from_snapshot(panel, snapshot) for panel in dashboard.panels]
    )
    return DashboardData("the gateway's own memory of the last half an hour", panels)


def _from_snapshot(panel: Panel, snapshot: Snapshot) -> PanelData:
    if panel.needs_prometheus:
        return PanelData(panel, snapshot.times, reason="only with Prometheus")
    series: list[SeriesData] = []
    for line in panel.lines:
        for labels, values in line.query.points(snapshot).items():
            named = dict(zip(line.query.by, labels, strict=True))
            series.append(SeriesData(legend(line, named), [_finite(value) for value in values]))
    return _largest(panel, snapshot.times, series)


async def from_prometheus(dashboard: Dashboard, url: str) -> DashboardData:
    """Return the data from Prometheus. Raises `Unavailable` when it does not respond."""
    end = time() // STEP_SECONDS * STEP_SECONDS
    times = [end - STEP_SECONDS * n for n in reversed(range(MINUTES * 60 // STEP_SECONDS))]
    async with httpx2.AsyncClient(
        base_url=url.rstrip("/"), timeout=PROMETHEUS_SECONDS, trust_env=False
    ) as http:
        panels = await asyncio.gather(*(_queried(panel, http, times) for panel in dashboard.panels))
    return DashboardData("Prometheus", panels)


async def _queried(panel: Panel, http: httpx2.AsyncClient, times: Sequence[float]) -> PanelData:
    series: list[SeriesData] = []
    for line in panel.lines:
        for result in await _query_range(line, http, times):
            values = {round(at): float(value) for at, value in result["values"]}
            points = [_finite(values.get(round(at), math.nan)) for at in times]
            series.append(SeriesData(legend(line, result["metric"]), points))
    return _largest(panel, times, series)


async def _query_range(
    line: Line, http: httpx2.AsyncClient, times: Sequence[float]
) -> list[dict[str, Any]]:
    parameters: dict[str, str | float] = {
        "query": line.query.promql().replace(RANGE, f"{4 * STEP_SECONDS}s"),
        "start": times[0],
        "end": times[-1],
        "step": STEP_SECONDS,
    }
    try:
        response = await http.get("/api/v1/query_range", params=parameters)
        answer = response.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise Unavailable(
            "prometheus",
            f"does not respond ({type(error).__name__})",
            remedy="check the setting prometheus_url, or empty it",
        ) from None
    if answer.get("status") != "success":
        raise Unavailable(
            "prometheus",
            f"refuses a query ({str(answer.get('error'))[:200]})",
            remedy="see its log",
        )
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def legend(line: Line, labels: dict[str, str]) -> str:
    """Return the text of a line's legend, with the values of the labels that the query groups by."""
    text = line.legend
    for name in line.query.by:
        text = text.replace(f"{{{name}}}", labels.get(name, ""))
    return text.strip()


def _largest(panel: Panel, times: Sequence[float], series: list[SeriesData]) -> PanelData:
    """Return the lines with the largest values, and how many are left out."""
    filled = [item for item in series if any(value is not None for value in item.values)]
    filled.sort(key=lambda item: (-_peak(item), item.label))
    return PanelData(panel, times, filled[:MOST_LINES], max(0, len(filled) - MOST_LINES))


def _peak(series: SeriesData) -> float:
    return max((value for value in series.values if value is not None), default=0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
