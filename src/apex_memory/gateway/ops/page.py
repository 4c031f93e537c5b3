"""The page of a dashboard as HTML: complete with its present values without JavaScript; scripts draw the charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apex_memory.gateway.ops.data import DashboardData, PanelData
from apex_memory.gateway.ops.panels import DASHBOARDS, Dashboard, Panel, Unit

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(dashboard: Dashboard, data: DashboardData, version: str, *, alarm: str = "") -> str:
    """Return the page of a dashboard with its data at this moment. `alarm` stands above all else."""
    stats = "".join(_stat(item) for item in data.panels if item.panel.kind == "stat")
    charts = "".join(_chart(item) for item in data.panels if item.panel.kind == "chart")
    tabs = "".join(_tab(item, item is dashboard) for item in DASHBOARDS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(dashboard.title)} · Apex Memory</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/ops/static/icon.svg">'
        '<link rel="stylesheet" href="/ops/static/uPlot.min.css">'
        '<link rel="stylesheet" href="/ops/static/ops.css"></head>'
        f'<body data-source="/ops/data/{dashboard.name}">'
        f'<header><h1>Apex Memory</h1><span class="version">{escape(version)}</span>'
        f'<span id="freshness" role="status"></span></header><nav aria-label="Dashboards">{tabs}</nav>'
        f'<main>{_alarm(alarm)}<div class="lead"><h2>{escape(dashboard.title)}</h2><p>{escape(dashboard.about)}</p></div>'
        f'<section class="stats">{stats}</section><section class="charts">{charts}</section></main>'
        f"<footer><p>Data from {escape(data.origin)}.</p></footer>"
        '<script src="/ops/static/uPlot.iife.min.js"></script><script src="/ops/static/ops.js"></script>'
        "</body></html>"
    )


def _alarm(text: str) -> str:
    return f'<p class="alarm" role="alert">{escape(text)}</p>' if text else ""


def _tab(dashboard: Dashboard, current: bool) -> str:
    mark = ' aria-current="page"' if current else ""
    return f'<a href="/ops/{dashboard.name}"{mark}>{escape(dashboard.title)}</a>'


def _stat(item: PanelData) -> str:
    panel = item.panel
    value = item.series[0].last if item.series else None
    text = written(value, panel.unit, panel.words)
    return (
        f'<article class="stat {level(panel, value)}" id="{panel.id}" title="{escape(panel.about)}">'
        f'<h3>{escape(panel.title)}</h3><p class="value">{escape(text)}</p></article>'
    )


def _chart(item: PanelData) -> str:
    panel = item.panel
    empty = item.reason or ("" if item.series else "no data yet")
    return (
        f'<article class="chart" id="{panel.id}"><h3>{escape(panel.title)}</h3>'
        f'<p class="about">{escape(panel.about)}</p>'
        f'<div class="plot"><p class="empty">{escape(empty)}</p></div>{_legend(item)}</article>'
    )


def _legend(item: PanelData) -> str:
    rows = "".join(
        f'<li><i class="c{n}"></i><span>{escape(series.label)}</span>'
        f"<b>{escape(written(series.last, item.panel.unit, item.panel.words))}</b></li>"
        for n, series in enumerate(item.series)
    )
    more = f'<li class="more">and {item.left_out} more</li>' if item.left_out else ""
    return f'<ul class="legend">{rows}{more}</ul>'


def level(panel: Panel, value: float | None) -> str:
    """Return `good`, `warn`, `bad` or, without a value or limits, an empty string."""
    if value is None or (panel.warn is None and panel.bad is None):
        return ""
    for name, limit in (("bad", panel.bad), ("warn", panel.warn)):
        if limit is not None and (value < limit if panel.low_is_bad else value >= limit):
            return name
    return "good"


def written(value: float | None, unit: Unit, words: Sequence[str] = ("no", "yes")) -> str:
    """Return a value with its unit, in about three digits."""
    if value is None:
        return "–"
    if unit == "state":
        return words[1] if value >= 0.5 else words[0]
    if unit == "seconds":
        return _seconds(value)
    if unit == "bytes":
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if unit == "share":
        return f"{value * 100:.3g} %"
    text = _scaled(value, ("", "k", "M", "G"))
    suffixes = {"per second": "/s", "per hour": "/h"}
    return text + suffixes.get(unit, "")


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    for limit, divisor, name in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if abs(value) < limit:
            return f"{value / divisor:.3g} {name}"
    return f"{value / 86_400:.3g} d"


def _scaled(value: float, names: Sequence[str]) -> str:
    size = 0
    while abs(value) >= 1000 and size < len(names) - 1:
        value /= 1000
        size += 1
    return f"{value:.3g} {names[size]}".strip()
